"""OctoAI's API: its bodies as its clients write and read them."""

"""Assets: their records, owners, formats, stored bytes and the recipes that use them."""

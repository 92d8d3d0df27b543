"""Which request next, and on which replica. Pure decisions over values; no I/O, no clock."""

"""The asset cache tiers: disk, host RAM and GPU."""

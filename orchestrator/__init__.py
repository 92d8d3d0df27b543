"""The tiers: bring an asset's bytes up in time."""

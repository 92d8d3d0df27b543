"""The command ``asset-orchestrator``."""

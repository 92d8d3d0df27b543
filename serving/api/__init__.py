"""The door: HTTP in OctoAI's wire shapes, and a simpler one."""

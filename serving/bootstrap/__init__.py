"""Builds objects from the settings; shared by the in-process and the cluster platform."""

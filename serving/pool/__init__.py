"""A pool of replicas: dispatcher, autoscaler and replica states."""

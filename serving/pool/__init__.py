"""A pool of replicas: its dispatcher, its autoscaler and the state of each replica."""

"""A pool of replicas: its dispatcher, its autoscaler and what it knows of each replica."""

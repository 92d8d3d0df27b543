"""Sampling as solver × schedule × prediction: plans of plain numbers, computed before the loop."""

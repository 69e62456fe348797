"""Checkpoints of others -> a run, and a run without labels -> plans, gate and promise."""

"""Checkpoints: what a run goes on from."""

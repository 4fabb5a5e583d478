"""Checkpoints: the training state from which a run resumes."""

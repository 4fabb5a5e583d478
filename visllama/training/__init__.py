"""Training: the Lightning module, the optimizer, the callbacks, and the run from config to weights."""

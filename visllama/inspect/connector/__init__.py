"""Inspect a trained connector: read its image vectors as tokens, and measure what captions lose without each vector."""

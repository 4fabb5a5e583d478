"""Decode image files, and make them the pixels that a vision encoder expects."""

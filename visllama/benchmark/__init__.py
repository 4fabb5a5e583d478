"""Measure what things cost, beside what the same costs elsewhere."""

"""Sweeps and searches: many jobs of `train`, their table, the choice of the best one, and SLURM's queue."""

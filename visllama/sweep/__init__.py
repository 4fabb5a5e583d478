"""Many runs: their table, and SLURM's queue."""

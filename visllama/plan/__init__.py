"""The cost of a job before it is queued: memory a rank, time and communication, without weights, GPU or data."""

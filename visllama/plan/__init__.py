"""What a job costs before it is queued: memory a rank, time, communication; no weight, no GPU, no data."""

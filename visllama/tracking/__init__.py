"""What a run tells of itself while it trains: `metrics.csv`, and trackers such as wandb."""

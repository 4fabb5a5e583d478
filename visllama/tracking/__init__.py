"""Loggers of a run: the file `metrics.csv`, and trackers (wandb, TensorBoard, trackio) that show it elsewhere."""

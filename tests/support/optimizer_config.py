"""What a configuration says of the optimizer."""

OPTIM = {
    "_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.9, 0.95], "weight_decay": 0.2, "schedule": "cosine", "warmup_fraction": 0.1,
    "clip_norm": 1.0, "lr_by_part": {},
}  # fmt: skip

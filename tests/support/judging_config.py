"""What a configuration says of judging."""

from omegaconf import OmegaConf

CFG = OmegaConf.create(
    {
        "trainer": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        "decoding": {"max_new_tokens": 12},
        "plugins": [],
        "paths": {"models": "models"},
    }
)

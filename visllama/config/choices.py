"""The names that may be chosen for a key, the keys that a verb reads, and a check that a value is one of the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from visllama.errors import ConfigError

TRAINABLE_PARTS = ("connector", "markers", "adapter", "language_model", "vision_encoder")
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
PICTURE_METRICS = ("CLIPScore", "CHAIR")
"""Metrics of captions that look at the pictures, or at what was drawn in them."""
YES_NO_METRICS = ("precision", "recall", "F1", "yes_share")
"""Metrics of yes/no questions alone; beside them `accuracy` too is computed on answers read as yes or no."""
TOKENIZERS = ("ptb", "ptb_keep_punctuation")
TASKS = {
    "caption": (
        (*METRICS, *PICTURE_METRICS),
        ("shuffled_images", "blank_images"),
    ),
    "vqa": (
        ("accuracy", "accuracy_normalise_all", *YES_NO_METRICS),
        ("shuffled_images", "no_images", "majority_answer", "true_facts"),
    ),
}
"""What can be judged: the metrics and the controls of each task."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
SCHEDULES = ("cosine", "linear", "constant")
SPLITS = ("train", "val", "test")
EXPORT_FORMATS = ("hub", "llava", "adapter", "language_model")
EXPORT_DTYPES = ("fp32", "bf16")
REPORT_FORMATS = ("text", "markdown", "latex", "csv")
BENCHMARKS = ("data",)
BENCHMARK_SIZES = ("small", "full")
MOST_THREADS = 1024
READ_BY_EVALUATE = ("accelerator", "devices", "num_nodes", "precision", "strategy", "threads", "timeout_s")
"""Keys of `trainer` that `evaluate` reads, which trains nothing."""
READ_BY_CAPTION = ("accelerator", "precision", "threads")
"""Keys of `trainer` that the verbs read which run on one device."""
READ_BY_CONNECTOR = (
    "weights",
    "evaluation",
    "decoding",
    "num_pictures",
    "samples",
    "trainer",
    "paths",
    "plugins",
    "name",
    "seed",
    "check_only",
    "hydra",
)
"""The keys and groups that `inspect weights=` reads: the model is described inside the weights."""
OPTIM_TYPES = {
    "lr": float,
    "weight_decay": float,
    "schedule": str | Mapping,
    "warmup_fraction": float,
    "clip_norm": float | None,
    "lr_by_part": Mapping,
}
"""The keys of `optim` that visllama itself reads, with their types."""
OWN_OPTIM_KEYS = OPTIM_TYPES.keys() - {"lr", "weight_decay"}
"""The keys of `optim` that no optimizer takes as an argument."""


def choose(key: str, value: object, options: Sequence[str]) -> None:
    """Check that a value is one of some allowed values, and do nothing else.

    Args:
        key: The dotted key that the value was given to, for the message.
        value: The value that was found.
        options: The allowed values, at least two.

    Raises:
        ConfigError: If the value is not allowed. The message names the key, the value, all allowed values, and those
            that were probably meant: those that begin with the value, or else at most two of a similar spelling.
    """
    if value in options:
        return

    text = str(value)
    # difflib finds no long name by its beginning: `ptb_keep` is too unlike `ptb_keep_punctuation` for it.
    close = [option for option in options if text and option.startswith(text)]
    if not close:
        # Without regard to case: difflib counts "PTB" and "ptb" as wholly different.
        by_lower = {option.lower(): option for option in options}
        close = [by_lower[lower] for lower in get_close_matches(text.lower(), by_lower, 2)]

    meant = f"did you mean {' or '.join(close)}? " if close else ""
    listed = f"{', '.join(options[:-1])} or {options[-1]}"
    raise ConfigError(f"{key}={value}: {meant}choose {listed}")

"""The embedded world as a data source: records made when they are asked for, the same everywhere."""

from __future__ import annotations

from visllama.config import ConfigError
from visllama.data.scenes.language import captions
from visllama.data.scenes.renderer import render
from visllama.data.scenes.world import scene_of

_SIZES = {"train": (5334, 1), "val": (200, 5), "test": (400, 5)}
"""Records of each split, and captions a record."""


class ScenesSource:
    """Records of scenes: a picture and its captions.

    Args:
        split: `train` and `val` show the seen color and shape pairs, every scene of `test` a held-out one.
        num_records: How many records; None is the world's own number for the split.
        captions_per_record: Sentences on each picture; None likewise.
    """

    def __init__(self, split: str, num_records: int | None = None, captions_per_record: int | None = None) -> None:
        if split not in _SIZES:
            raise ConfigError(f"split={split}: scenes has {', '.join(_SIZES)}")
        own_records, own_captions = _SIZES[split]
        self.split, self.num_records = split, num_records or own_records
        self.captions_per_record = captions_per_record or own_captions

    def __len__(self) -> int:
        return self.num_records

    @property
    def num_pairs(self) -> int:
        """Image-caption pairs."""
        return self.num_records * self.captions_per_record

    def __getitem__(self, index: int) -> dict:
        """Give a record: `key`, `image` (PIL), `captions`."""
        scene, dice = scene_of(self.split, index)
        return {
            "key": f"{self.split}-{index:06d}",
            "image": render(scene, dice),
            "captions": captions(scene, dice, self.captions_per_record),
        }

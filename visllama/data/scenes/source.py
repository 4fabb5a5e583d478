"""The embedded world as a data source: records made when they are asked for, the same everywhere."""

from __future__ import annotations

from visllama.data.scenes.language import captions
from visllama.data.scenes.renderer import render
from visllama.data.scenes.world import scene_of


class ScenesSource:
    """Records of scenes: a picture and its captions.

    Args:
        split: `train` and `val` show the seen color and shape pairs, every scene of `test` a held-out one.
        num_records: How many records.
        captions_per_record: Sentences on each picture.
    """

    def __init__(self, split: str, num_records: int, captions_per_record: int) -> None:
        self.split, self.num_records, self.captions_per_record = split, num_records, captions_per_record

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

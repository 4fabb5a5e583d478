"""What a run has written for TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Events(NamedTuple):
    """The events of a run, each with its step, those left out that a run which went on has written anew."""

    scalars: dict[str, list[tuple[int, float]]]
    texts: dict[str, list[tuple[int, str]]]
    images: dict[str, list[tuple[int, bytes]]]


def read_events(folder: Path) -> Events:
    """Read the event files of a folder, all of them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    reader.Reload()
    tags = reader.Tags()
    scalars = {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in tags["scalars"]}
    images = {
        name: [(event.step, event.encoded_image_string) for event in reader.Images(name)] for name in tags["images"]
    }
    texts = {
        name.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in reader.Tensors(name)
        ]
        for name in tags["tensors"]
    }
    return Events(scalars, texts, images)

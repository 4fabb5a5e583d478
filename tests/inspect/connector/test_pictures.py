"""Which pictures are looked at, and which cannot be."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.looked_at import EVALUATION, captioner_of, loud_model
from visllama.data.scenes.source import ScenesSource
from visllama.errors import BadRecord, ConfigError
from visllama.inspect.connector.pictures import encode, make_samples, read_pictures


class Changed(ScenesSource):
    """Scenes of which one is changed."""

    def __init__(self, change, num_records: int = 4) -> None:
        super().__init__("test", num_records, 2)
        self.change = change

    def read(self, index: int) -> dict:
        record = super().read(index)
        return self.change(record) if index == 2 else record


def test_they_are_evenly_spaced():
    found = read_pictures("mine", EVALUATION, ScenesSource("test", 10, 2), 4)
    assert found.keys == [f"test-{index:06d}" for index in (0, 2, 5, 7)]
    assert found.references["test-000005"] == found.records[2]["captions"]


def test_of_fewer_all_are_taken():
    assert len(read_pictures("mine", EVALUATION, ScenesSource("test", 3, 2), 100).records) == 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (ScenesSource("test", 1, 2), "evaluation.mine.source: holds 1 records: at least two pictures"),
        (Changed(lambda record: record | {"image": b"no picture"}), "evaluation.mine.source: a record cannot be read"),
        (
            Changed(lambda record: {**record, "images": [record["image"]] * 2}),
            "record test-000002 has 2 images: a connector is looked at on records of one",
        ),
        (Changed(lambda record: record | {"key": "test-000001"}), "1 image ids come more than once"),
    ],
    ids=["few", "damaged", "two images", "twice"],
)
def test_what_cannot_be_looked_at_is_refused(source, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_pictures("mine", EVALUATION, source, 4)


def test_a_record_that_cannot_be_read_is_named():
    class Bad(ScenesSource):
        def read(self, index: int) -> dict:
            raise BadRecord("image", "test-000000: no")

    with pytest.raises(ConfigError, match=r"evaluation\.mine\.source: a record cannot be read: .*test-000000: no"):
        read_pictures("mine", EVALUATION, Bad("test", 4, 2), 4)


@pytest.mark.parametrize("connector", ["mlp", "patch_mlp"])
def test_batches_are_encoded_as_all_at_once(connector):
    model = loud_model(connector)
    captioner = captioner_of(model)
    samples = make_samples(captioner.maker, read_pictures("mine", EVALUATION, ScenesSource("test", 6, 2), 6).records)
    expected = model.encode_images(torch.stack([sample.pixel_values[0] for sample in samples]))
    # fp32: another batch size may add in another order
    assert torch.allclose(encode(model, captioner.collator, samples), expected, atol=1e-5)

"""Captions judged: their ids, and figures that stand at the right images whatever the order of the records."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of
from visllama.data.scenes.source import ScenesSource
from visllama.data.source import Source
from visllama.errors import ConfigError
from visllama.evaluation.caption_task import check_images, image_ids
from visllama.evaluation.captions import score_captions
from visllama.evaluation.gallery_cards import read_cards
from visllama.evaluation.prompts import prompts_of_records, prompts_of_source
from visllama.evaluation.runner import judge


class Backwards(Source):
    """Scenes whose ids sort against their order, half of them of one type and half of another."""

    fingerprint = "backwards"

    def __init__(self) -> None:
        self.scenes = ScenesSource("test", 6, 5)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        return self.scenes[index] | {"image_id": 60 - 10 * index, "type": ("near", "far")[index % 2]}


def test_every_figure_stands_at_its_image(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    config = {
        "mine": evaluation(
            task="caption", split="test", batch_size=4, metrics=["CIDEr"], decoding={"max_new_tokens": 8}
        )
    }
    result = judge(model, maker_of(model), config, {"mine": Backwards()}, SETTINGS, tmp_path, "these weights")["mine"]
    folder = tmp_path / "evaluations" / "mine"
    captions = {str(row["image_id"]): row["caption"] for row in json.loads((folder / "captions.json").read_text())}
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / "references.json").read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])

    alone = score_captions(captions, references, ("CIDEr",))
    by_id = dict(zip(alone.ids, alone.metrics["CIDEr"].per_image, strict=True))
    assert result["metrics"]["CIDEr"] == pytest.approx(alone.values["CIDEr"])
    cards = read_cards(folder / "gallery.html")
    assert {card.id: card.texts["said"].split() for card in cards} == {
        key: text.split() for key, text in captions.items()
    }
    assert {card.id: card.score for card in cards} == pytest.approx(by_id, rel=1e-5)  # the page has six digits
    near = [by_id[key] for key in ("60", "40", "20")]
    assert result["by_type"]["type"]["near"]["CIDEr"] == pytest.approx(sum(near) / 3)


def test_an_id_is_the_images_own_or_the_records_key():
    records = [{"key": "a", "captions": ["x"]}, {"key": "b", "image_id": 7, "captions": ["x"]}]
    assert image_ids(prompts_of_records(records), "mine") == ["a", 7]


def test_ids_that_come_twice_are_refused_as_text():
    records = [{"key": str(n), "image_id": image, "captions": ["x"]} for n, image in enumerate((7, "7", 8))]
    prompts = prompts_of_records(records)
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.source: 1 image ids come more than once, first 7:"):
        check_images(prompts, "mine", {"metrics": ["CIDEr"]})
    assert len(image_ids(prompts_of_source(Backwards(), "mine"), "mine")) == 6

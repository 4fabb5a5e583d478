"""`inspect.json` holds each figure under its name."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.support.found_study import facts, study


def test_it_is_json_that_names_each_figure():
    found = json.loads(json.dumps(study().to_dict(), allow_nan=False))
    assert (found["connector"]["kind"], found["num_image_tokens"], found["n"]) == ("MLPConnector", 3, 100)
    assert found["ablations"][0] == {
        "kind": "whole", "vectors": [], "CIDEr": 1.0, "compared_with": "whole", "difference": 0.0, "interval": [0.0, 0.0], "changed": 0.0,
    }  # fmt: skip
    assert [row["vectors"] for row in found["ablations"] if row["kind"] == "removed"] == [[1], [2], [3]]
    assert {row["compared_with"] for row in found["ablations"] if row["kind"] == "alone"} == {"all_frozen"}
    second = found["vectors"][1]
    assert (second["vector"], second["varies"], second["nearest"]["own_words"]) == (2, 0.9, 0.6)
    assert second["nearest"]["named"] == [{"word": "red", "right": 9, "times": 10, "base": 0.25}]
    assert second["unembedding"]["first_tokens"][0] == {"token": "Ġred", "share_of_pictures": 0.5}
    (picture,) = found["pictures"]
    assert picture["vectors"][2]["vector"] == 3
    assert picture["vectors"][0]["nearest"][0] == {"token": "Ġred", "cosine": 0.5}
    assert len(picture["attention"]) == len(picture["words"]) == 3
    assert found["norms"]["boi"] == 0.5 and found["markers"]["boi"] == [{"token": "a", "cosine": 0.1}]
    assert len(found["findings"]) == 9


def test_what_was_not_measured_is_absent():
    blind = replace(study(), vectors=[replace(facts(1, 0.5), unembedding=None)])
    assert "unembedding" not in blind.to_dict()["vectors"][0]


def test_scores_are_found_by_their_kind():
    assert [score.ablation.vectors for score in study().of_kind("alone")] == [(1,), (2,), (3,)]

import json

import pytest
import torch

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import TEXT, maker_of, tiny_parts
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.runner import judge, judge_weights, sample_maker
from visllama.model.weights import save_weights

EVALUATIONS = {
    "mine": evaluation(
        task="caption", split="test", batch_size=5, metrics=["BLEU", "ROUGE-L", "CIDEr"], controls=["shuffled_images", "blank_images"],
        source={"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 12, "captions_per_record": 5},
    )
}  # fmt: skip


def test_judging_writes_everything_and_weights_judge_the_same(make_model, tmp_path, capsys):
    """The run folder as DESIGN 4 has it; the model rebuilt from `weights/` scores to the last digit what the trained one did."""
    model = make_model(dtype=torch.float32)
    maker = maker_of(model)
    result = judge(model, maker, EVALUATIONS, judged_sources(EVALUATIONS, []), SETTINGS, tmp_path, "these weights")[
        "mine"
    ]
    assert result["n"] == 12 and set(result["metrics"]) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert (
        set(result["controls"]) == {"shuffled_images", "blank_images"} and "CIDEr" in result["controls"]["blank_images"]
    )
    assert result["intervals"]["CIDEr"][0] <= result["metrics"]["CIDEr"] <= result["intervals"]["CIDEr"][1]
    folder = tmp_path / "evaluations" / "mine"
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in said] == [f"test-{i:06d}" for i in range(12)]
    texts = [{"image_id": row["image_id"], "caption": row["caption"]} for row in said]
    assert sorted(texts, key=lambda row: row["image_id"]) == json.loads((folder / "captions.json").read_text())
    assert (folder / "gallery.html").stat().st_size > 1000

    assert result["decoding"] == {
        "do_sample": False, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "eos_token_id": [3], "pad_token_id": 0, "max_new_tokens": 12,
    }  # fmt: skip
    phases = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mine: ")]
    assert phases[:2] == [
        "mine: writing captions of 12 images, and again for each control: shuffled_images, blank_images",
        "mine: scoring 12 captions by BLEU, ROUGE-L, CIDEr, then the controls by CIDEr",
    ]

    save_weights(model, tiny_parts(), TEXT, tmp_path / "weights")
    again = judge_weights(tmp_path / "weights", EVALUATIONS, SETTINGS, tmp_path / "again")["mine"]
    assert again["metrics"] == result["metrics"] and again["controls"] == result["controls"]


def test_training_holds_samples_to_the_models_positions(make_model):
    model = make_model(dtype=torch.float32)
    assert sample_maker(model, TEXT).num_positions == model.num_positions == 512


def test_a_prompt_past_the_positions_is_refused_before_anything_is_written(make_model, tmp_path):
    """500 new tokens leave 12 for a question, whose image alone takes as many."""
    model = make_model(dtype=torch.float32)
    source = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 2, "holds": "questions"}
    config = evaluation(
        task="vqa", split="test", batch_size=4, metrics=["accuracy"], controls=["true_facts"], source=source,
        decoding={"max_new_tokens": 500},
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"evaluation\.mine: record test-00000\d: max_new_tokens=500 behind \d+ tokens"
    ):
        judge(
            model,
            maker_of(model),
            {"mine": config},
            judged_sources({"mine": config}, []),
            SETTINGS,
            tmp_path,
            "these weights",
        )
    assert not list((tmp_path / "evaluations" / "mine").iterdir())

import json

import torch
from omegaconf import OmegaConf

from tests.tiny import TEXT, maker_of, tiny_parts
from visllama.data.sources import judged_sources
from visllama.evaluation.runner import judge, judge_weights
from visllama.model.weights import save_weights

CFG = OmegaConf.create(
    {
        "trainer": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        "decoding": {"max_new_tokens": 12},
        "plugins": [],
        "paths": {"models": "models"},
    }
)
EVALUATIONS = {
    "mine": {
        "task": "caption", "split": "test", "batch_size": 5, "metrics": ["BLEU", "ROUGE-L", "CIDEr"], "controls": ["shuffled_images", "blank_images"],
        "source": {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 12, "captions_per_record": 5},
    }
}  # fmt: skip


def test_judging_writes_everything_and_weights_judge_the_same(make_model, tmp_path):
    """The run folder as DESIGN 4 has it; the model rebuilt from `weights/` scores to the last digit what the trained one did."""
    model = make_model(dtype=torch.float32)
    maker = maker_of(model)
    result = judge(model, maker, EVALUATIONS, judged_sources(EVALUATIONS, []), CFG, tmp_path)["mine"]
    assert result["n"] == 12 and set(result["metrics"]) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert (
        set(result["controls"]) == {"shuffled_images", "blank_images"} and "CIDEr" in result["controls"]["blank_images"]
    )
    assert result["intervals"]["CIDEr"][0] <= result["metrics"]["CIDEr"] <= result["intervals"]["CIDEr"][1]
    folder = tmp_path / "evaluations" / "mine"
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in said] == [f"test-{i:06d}" for i in range(12)]
    assert sorted(said, key=lambda row: row["image_id"]) == json.loads((folder / "captions.json").read_text())
    assert (folder / "gallery.html").stat().st_size > 1000

    save_weights(model, tiny_parts(), TEXT, tmp_path / "weights")
    again = judge_weights(tmp_path / "weights", EVALUATIONS, CFG, tmp_path / "again")["mine"]
    assert again["metrics"] == result["metrics"] and again["controls"] == result["controls"]

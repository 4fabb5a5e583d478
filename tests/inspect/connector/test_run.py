"""One look at real weights: the figures are those of an evaluation, and the files and tables hold them."""

from __future__ import annotations

import gc
import json
import weakref

import pytest

from tests.support.found_study import study
from tests.support.judging import SETTINGS
from tests.support.looked_at import save_loud
from tests.support.verbs import assemble, inspect
from visllama.config.plain import plain
from visllama.errors import ConfigError
from visllama.evaluation.runner import judge_weights
from visllama.inspect.connector import run

SMALL = (
    "num_pictures=6", "samples=2", "evaluation.scenes_caption.source.num_records=6", "trainer=cpu", "trainer.threads=1",
    "evaluation.scenes_caption.batch_size=4", "evaluation.scenes_caption.metrics=[CIDEr]", "decoding.max_new_tokens=12",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a connector of two vectors."""
    return save_loud(tmp_path_factory.mktemp("run") / "weights", "mlp_published")


def test_its_whole_and_its_controls_are_those_of_the_evaluation(compose_config, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    cfg = compose_config("inspect", f"weights={weights}", *SMALL)
    looked = inspect(cfg)
    said = capsys.readouterr().out.splitlines()
    evaluations = plain(cfg).judged_on
    judged = judge_weights(weights, evaluations, SETTINGS, tmp_path)["scenes_caption"]
    of_kind = {score.ablation.kind: score.cider for score in looked.ablations if not score.ablation.vectors}
    assert of_kind["whole"] == judged["metrics"]["CIDEr"] > 0
    for control in ("shuffled_images", "blank_images"):
        assert of_kind[control] == judged["controls"][control]["CIDEr"]
    lines = (tmp_path / "evaluations" / "scenes_caption" / "predictions.jsonl").read_text().splitlines()
    assert [picture.caption for picture in looked.pictures] == [json.loads(line)["caption"] for line in lines[:2]]

    found = json.loads((tmp_path / "inspect.json").read_text())
    assert found["weights"] == str(weights) and found["n"] == 6 and "versions" in found["provenance"]
    assert [row["CIDEr"] for row in found["ablations"]] == [score.cider for score in looked.ablations]
    assert len(looked.ablations) == 5 + 3 * 2 and len(looked.vectors) == 2
    for picture in looked.pictures:
        assert picture.words == picture.caption.split() and len(picture.attention) == len(picture.words)
        assert all(len(row) == 2 and 0 < sum(row) < 1 for row in picture.attention)
    assert "What the connector says" in (tmp_path / "inspect_connector.html").read_text()

    *tables, _, wrote, judge = said
    assert wrote == f"Wrote {tmp_path}: inspect_connector.html; inspect.json has every figure"
    assert judge == f"Judge it whole:  visllama evaluate weights={weights} 'evaluation=[scenes_caption]'"
    assert max(map(len, tables)) <= 80
    assert any(line.startswith("- Removed, vector ") for line in tables)


def test_pixels_of_other_pictures_are_not_held_while_captions_are_written(compose_config, weights, monkeypatch):
    made = []

    def make_samples(maker, records):
        samples = original(maker, records)
        made.append([weakref.ref(sample) for sample in samples])
        return samples

    def score_ablations(*_):
        gc.collect()
        assert [sum(sample() is not None for sample in samples) for samples in made] == [6, 0, 0]
        raise ConfigError("looked")

    original = run.make_samples
    monkeypatch.setattr(run, "make_samples", make_samples)
    monkeypatch.setattr(run, "score_ablations", score_ablations)
    with pytest.raises(ConfigError, match="looked"):
        inspect(compose_config("inspect", f"weights={weights}", *SMALL))


def test_checking_alone_shows_and_writes_nothing(compose_config, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("visllama.inspect.connector.run.look", lambda *_, **__: study())
    inspect(compose_config("inspect", f"weights={weights}", *SMALL, "check_only=true"))
    assert "- Removed, vector 2 costs most" in capsys.readouterr().out and not list(tmp_path.glob("inspect*"))


def test_the_pictures_are_looked_for_before_any_weight_is_loaded(compose_config, weights, monkeypatch):
    monkeypatch.setattr(
        "visllama.inspect.connector.run.load_weights", lambda *_, **__: pytest.fail("weights are loaded")
    )
    chosen = assemble("inspect", compose_config("inspect", f"weights={weights}", *SMALL))
    assert (chosen.name, len(chosen.source)) == ("scenes_caption", 6)
    with pytest.raises(ConfigError, match=r"evaluation\.scenes_caption\.source"):
        assemble(
            "inspect", compose_config("inspect", f"weights={weights}", "evaluation.scenes_caption.source.num_records=x")
        )


@pytest.mark.slow
def test_a_vector_for_each_patch(compose_config, tmp_path):
    weights = save_loud(tmp_path / "run" / "weights", "patch_mlp")
    looked = inspect(compose_config("inspect", f"weights={weights}", *SMALL, "decoding.max_new_tokens=3"))
    assert len(looked.vectors) == 9 and looked.about["is_patch_grid"]
    assert len(looked.of_kind("removed")) == 9
    text = (tmp_path / "inspect_connector.html").read_text()
    assert text.count("class=map ") == sum(len(picture.words) for picture in looked.pictures) > 0

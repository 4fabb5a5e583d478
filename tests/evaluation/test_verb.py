import json
import sys

import pytest

from tests.support.said_captions import GOOD, REFERENCES
from tests.support.verbs import evaluate
from visllama.errors import ConfigError
from visllama.evaluation.verb import score_files


def test_scores_files(tmp_path, capsys):
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    (tmp_path / "r.json").write_text(json.dumps(REFERENCES))
    result = score_files(tmp_path, tmp_path / "p.json", tmp_path / "r.json", metrics=("BLEU", "CIDEr"))["predictions"]
    assert result["task"] == "caption" and set(result["intervals"]) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr"}
    said = capsys.readouterr().out
    assert "CIDEr" in said and "tokenizer: ptb" in said
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2


def test_a_part_is_scored_alone_and_told(tmp_path, capsys):
    """A part's document frequencies are its own, unless those of all references are given."""
    (tmp_path / "p.json").write_text(json.dumps({"one": GOOD["one"]}))
    (tmp_path / "r.json").write_text(json.dumps(REFERENCES))
    files = {"predictions": tmp_path / "p.json", "references": tmp_path / "r.json", "metrics": ("CIDEr",)}
    with pytest.raises(ConfigError, match="1 images have no prediction, first two"):
        score_files(tmp_path, **files)
    alone = score_files(tmp_path, **files, subset=True)["predictions"]
    assert alone["n"] == 1 and alone["n_of"] == 2 and "does not compare" in capsys.readouterr().out
    whole = score_files(tmp_path, **files, subset=True, document_frequencies=tmp_path / "r.json")["predictions"]
    assert whole["document_frequencies"] == str(tmp_path / "r.json") and whole["metrics"] != alone["metrics"]
    assert "does not compare" not in capsys.readouterr().out


def test_nothing_is_written_when_the_call_is_wrong(compose_config, tmp_path):
    with pytest.raises(ConfigError):
        evaluate(compose_config("evaluate"))
    assert not (tmp_path / "metrics.json").exists()


def test_scoring_imports_no_model():
    """It should take a second, not transformers' ten."""
    import subprocess

    code = "import sys, visllama.evaluation.verb; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

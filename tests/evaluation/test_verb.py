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
    result = score_files(tmp_path / "p.json", tmp_path / "r.json")["predictions"]
    assert result["task"] == "caption" and set(result["intervals"]) == {"ROUGE-L", "CIDEr"}
    assert "CIDEr" in capsys.readouterr().out


def test_nothing_is_written_when_the_call_is_wrong(compose_config, tmp_path):
    with pytest.raises(ConfigError):
        evaluate(compose_config("evaluate"))
    assert not (tmp_path / "metrics.json").exists()


def test_scoring_imports_no_model():
    """It should take a second, not transformers' ten."""
    import subprocess

    code = "import sys, visllama.evaluation.verb; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

import json
import math

import pytest
from rich.console import Console

from visllama.evaluation.report import provenance, scores_table, write_json

EVALUATION = {
    "task": "caption", "split": "test", "n": 400, "metrics": {"BLEU-4": 0.25, "CIDEr": 2.6}, "intervals": {"CIDEr": [2.5, 2.75]},
    "controls": {"shuffled_images": {"CIDEr": 0.5}, "blank_images": {"CIDEr": 0.6}},
}  # fmt: skip


def test_table_fits_80_columns_and_prints_x100():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table("scenes_caption", EVALUATION))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    cider = next(line for line in text.splitlines() if "CIDEr" in line)
    assert [cell.strip() for cell in cider.strip("│").split("│")] == ["CIDEr", "260.0", "250.0 - 275.0", "50.0", "60.0"]
    assert "(x100)" in text and "n = 400" in text


def test_what_was_not_measured_is_absent():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table("predictions", {"n": 2, "metrics": {"CIDEr": 1.0}}))
    assert "shuffled" not in console.export_text() and "0.0 -" not in console.export_text()


def test_provenance_names_versions_and_facts():
    facts = provenance(seed=3)
    assert facts["seed"] == 3 and {"python", "torch", "transformers", "pycocoevalcap"} <= set(facts["versions"])


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "m.json", {"ü": 1})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"ü": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_what_is_no_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"train": {"val/loss": math.nan}})
    assert not list(tmp_path.iterdir())

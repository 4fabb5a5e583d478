"""`visllama caption` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.support.tiny import TEXT, tiny_parts
from visllama.errors import ConfigError
from visllama.inference.verb import find_pictures
from visllama.model.weights import save_weights


@pytest.fixture
def work(make_model, records, tmp_path):
    """A folder with weights and two pictures."""
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / "weights")
    (tmp_path / "photos").mkdir()
    for name, record in zip(("b.png", "a.JPG"), records, strict=False):
        record["image"].save(tmp_path / "photos" / name, "PNG" if name == "b.png" else "JPEG")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path


def caption(*overrides: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "visllama", "caption", *overrides], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_a_folder_as_json_and_as_a_table(work):
    before = sorted(path.name for path in work.iterdir())
    ended = caption("weights=weights", "images=photos", "json=true", "trainer=cpu", cwd=work)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [row["image"] for row in rows] == ["photos/a.JPG", "photos/b.png"] and all(row["caption"] for row in rows)
    shown = caption("weights=weights", "images=[photos/b.png]", "trainer=cpu", cwd=work)
    assert shown.returncode == 0 and "photos/b.png" in shown.stdout and "photos/a.JPG" not in shown.stdout
    assert sorted(path.name for path in work.iterdir()) == before, "it writes nothing"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["images=photos"], "no value for weights"),
        (["weights=nowhere", "images=photos"], "weights=nowhere: no such folder"),
        (["weights=weights", "images=nowhere"], "images=nowhere: no such file or folder"),
    ],
)
def test_bad_calls_end_with_a_message(work, overrides, says):
    ended = caption(*overrides, cwd=work)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no jpg"):
        find_pictures([tmp_path])

"""Parts of one's own, from outside: the wheel, an empty folder, a short file and a YAML of three lines; no fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

CONNECTOR = '''
"""A connector of one's own: the mean patch and the pooled-like maximum, each through a layer."""
import torch
from torch import nn


class MeanMax(nn.Module):
    consumes = "patch"

    def __init__(self, vision_dim, language_dim, hidden_dim=64):
        super().__init__()
        self.hidden = nn.Linear(2 * vision_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 4 * language_dim)

    def forward(self, features):
        both = torch.cat([features.mean(1), features.amax(1)], dim=-1)
        return self.output(torch.relu(self.hidden(both))).unflatten(1, (4, -1))
'''
CONNECTOR_YAML = """
_target_: mylab.connectors.MeanMax
hidden_dim: 48
"""
SOURCE = '''
"""A data source of one's own: gray pictures."""
from PIL import Image

from visllama.data.source import Source


class Grays(Source):
    def __init__(self, split, num_records, num_retries):
        self.split, self.num_records, self.num_retries = split, num_records, num_retries

    def __len__(self):
        return self.num_records

    def __getitem__(self, index):
        shade = 255 * index // len(self)
        word = "dark" if shade < 128 else "light"
        return {
            "key": f"{self.split}-{index}",
            "image": Image.new("RGB", (60, 40), (shade,) * 3),
            "captions": [f"a {word} gray background"],
        }
'''
SOURCE_YAML = """
# @package data.sources.grays
_target_: mylab.data.Grays
num_records: 40
num_retries: 0 # a name of theirs: it is no count of ours that has to be more than 0
"""
EVALUATION_YAML = """
# @package evaluation.grays
{task: caption, split: val, metrics: [CIDEr], batch_size: 6, source: {_target_: mylab.data.Grays, num_records: 6, num_retries: 0}}
"""
SHORT = [
    "trainer=cpu",
    "trainer.max_steps=6",
    "stage.global_batch_size=8",
    "data.num_val_records=8",
    "hydra.run.dir=run",
]


def lines(text: str) -> int:
    return len(text.strip().splitlines())


@pytest.fixture
def visllama(wheel, tmp_path):
    """The program out of the wheel, run in a folder that holds the user's package and configs alone."""
    site, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            archive.extract(name, site)
    for path, text in {
        "mylab/__init__.py": "", "mylab/connectors.py": CONNECTOR, "mylab/data.py": SOURCE,
        "my_conf/model/connector/meanmax.yaml": CONNECTOR_YAML, "my_conf/data/source/grays.yaml": SOURCE_YAML, "my_conf/evaluation/grays.yaml": EVALUATION_YAML,
    }.items():  # fmt: skip
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    program = (
        "import sys; from visllama.cli import main; sys.path.remove(''); sys.argv = ['visllama', *sys.argv[1:]]; main()"
    )

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=work, timeout=300,
            env=os.environ | {"PYTHONPATH": str(site)},
        )  # fmt: skip

    run.work = work
    return run


def score(path: Path) -> dict:
    return next(iter(json.loads(path.read_text())["evaluations"].values()))


@pytest.mark.slow
def test_a_connector_of_ones_own(visllama):
    assert lines(CONNECTOR) <= 25 and lines(CONNECTOR_YAML) == 2
    few = "evaluation.scenes_caption.source.num_records=12"
    mine = ["--config-dir", "my_conf", "model/connector=meanmax"]
    refused = visllama("train", *mine, *SHORT, few)
    assert (
        refused.returncode == 2 and "plugins=[mylab.connectors]" in refused.stderr and "Traceback" not in refused.stderr
    )

    trained = visllama("train", *mine, "plugins=[mylab]", *SHORT, few)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "MeanMax" in trained.stdout and "plugins=[mylab]" in trained.stdout, "the next command names the plugin too"
    description = (visllama.work / "run" / "weights" / "visllama.json").read_text()
    assert '"kind": "MeanMax"' in description and "mylab" not in description, "a name is stored, never a path"

    judged = visllama("evaluate", "weights=run/weights", "plugins=[mylab]", few, "hydra.run.dir=judged")
    assert judged.returncode == 0, judged.stderr[-2000:]
    first, again = score(visllama.work / "run" / "metrics.json"), score(visllama.work / "judged" / "metrics.json")
    assert first["metrics"] == again["metrics"] and first["n"] == 12

    Image.new("RGB", (9, 9)).save(visllama.work / "a.png")
    for verb, *more in (("evaluate",), ("caption", "images=a.png")):
        refused = visllama(verb, "weights=run/weights", *more)
        assert refused.returncode == 2 and "unknown connector 'MeanMax'" in refused.stderr, refused.stderr
        assert "plugins=[PACKAGE]" in refused.stderr and "Traceback" not in refused.stderr
    code = "import visllama; from PIL import Image; print(visllama.load('run/weights', plugins=['mylab']).caption(Image.new('RGB', (9, 9))))"
    site = str(visllama.work.parent / "site")
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=visllama.work,
        env=os.environ | {"PYTHONPATH": site},
    )
    assert loaded.returncode == 0 and loaded.stdout.strip(), loaded.stderr[-2000:]


@pytest.mark.slow
def test_a_data_source_of_ones_own(visllama):
    assert lines(SOURCE_YAML) == 4 and lines(SOURCE) <= 25
    mine = ["--config-dir", "my_conf", "data/source=[grays]", "evaluation=[grays]"]
    refused = visllama("train", *mine, *SHORT)
    assert refused.returncode == 2 and "plugins=[mylab.data]" in refused.stderr and "Traceback" not in refused.stderr

    trained = visllama("train", *mine, "plugins=[mylab]", *SHORT)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "val-1" in trained.stdout and "gray background" in trained.stdout
    assert "--config-dir" in trained.stdout.splitlines()[-1], "the next command finds the same configs"
    judged = visllama(
        *("evaluate", "--config-dir", "my_conf", "weights=run/weights", "evaluation=[grays]", "plugins=[mylab]"),
        "hydra.run.dir=judged",
    )
    assert judged.returncode == 0, judged.stderr[-2000:]
    first, again = score(visllama.work / "run" / "metrics.json"), score(visllama.work / "judged" / "metrics.json")
    assert first["metrics"] == again["metrics"] and first["n"] == 6

"""Parts of one's own: every recipe of the page in the wheel, run in a folder that holds nothing else; no fork."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.commands import ROOT

RECIPES = (
    "Connector",
    "Vision encoder",
    "Language model",
    "Data source",
    "Optimizer",
    "Schedule",
    "Loss",
    "Logger",
    "Callback",
)
FILE = re.compile(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_BLOCK = re.compile(r"^```(?:python|yaml)$", re.MULTILINE)
PROGRAM = (
    "import sys; from visllama.cli import main; sys.path.remove(''); sys.argv = ['visllama', *sys.argv[1:]]; main()"
)
SHORT = [
    "trainer=cpu",
    "trainer.max_steps=6",
    "stage.global_batch_size=8",
    "data.num_val_records=8",
    "hydra.run.dir=run",
]
LITTLE = [
    "evaluation.scenes_caption.source.num_records=12",
    "evaluation.scenes_caption.metrics=[CIDEr]",
    "evaluation.scenes_caption.controls=[]",
]


def sections(page: str) -> dict[str, str]:
    """Return the text below each heading of a page, by the heading."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for block in COMMANDS.findall(text) for line in block.splitlines()]


class Lab:
    """A folder with the user's package and YAML files, out of one recipe, beside an unpacked wheel."""

    def __init__(self, site: Path, folder: Path, recipe: str) -> None:
        self.site = site
        self.folder = folder
        self.recipe = recipe
        self.write("mylab/__init__.py", "")
        for path, content in FILE.findall(recipe):
            self.write(path, content)

    def write(self, path: str, content: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(content)

    def start(self, *words: str) -> subprocess.CompletedProcess:
        """Run a command of the page."""
        program = {"visllama": [sys.executable, "-c", PROGRAM], "python": [sys.executable]}[words[0]]
        return subprocess.run(
            [*program, *words[1:]],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=300,
            env=os.environ | {"PYTHONPATH": str(self.site)},
        )

    def succeed(self, *words: str) -> str:
        """Run a command of the page, which has to end well and without a warning, and return what it said."""
        ended = self.start(*words)
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert "warn" not in ended.stderr.lower(), ended.stderr
        return ended.stdout

    def train(self, *more: str) -> list[str]:
        """Run the commands of the recipe, the training as a short one, and return the words of the training."""
        *before, training = commands(self.recipe)
        for words in before:
            self.succeed(*words)
        self.succeed(*training, *SHORT, *more)
        return training

    def judged(self, folder: str) -> dict:
        metrics = json.loads((self.folder / folder / "metrics.json").read_text())
        return next(iter(metrics["evaluations"].values()))


@pytest.fixture
def lab(wheel, tmp_path) -> Callable[[str], Lab]:
    """Return what sets up the folder of a recipe, by its heading on the wheel's own page."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            archive.extract(name, site)
    page = sections((site / "visllama" / "README.md").read_text())
    return lambda heading: Lab(site, tmp_path / "work", page[heading])


def test_the_page_holds_every_recipe():
    page = (ROOT / "visllama" / "README.md").read_text()
    assert set(RECIPES) < set(sections(page))
    for heading in RECIPES:
        recipe = sections(page)[heading]
        assert FILE.findall(recipe) and commands(recipe), heading
    assert len(FILE.findall(page)) == len(CODE_BLOCK.findall(page)), "each block of code is a file, which is tried"
    assert "visllama/README.md" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_a_connector(lab):
    lab = lab("Connector")
    *_, training = commands(lab.recipe)
    without_plugin = [word for word in training if not word.startswith("plugins=")]
    refused = lab.start(*without_plugin, *SHORT)
    assert refused.returncode == 2 and "plugins=[mylab]" in refused.stderr
    assert "Traceback" not in refused.stderr and not (lab.folder / "run").exists()

    said = lab.succeed(*training, *SHORT, *LITTLE)
    assert "MeanMax" in said and "plugins=[mylab]" in said, "the next command names the plugin too"
    description = (lab.folder / "run" / "weights" / "visllama.json").read_text()
    assert '"kind": "MeanMax"' in description and "mylab" not in description, "a name is stored, never a path"

    Image.new("RGB", (9, 9)).save(lab.folder / "photo.jpg")
    page = sections((lab.site / "visllama" / "README.md").read_text())
    for words in commands(page["Afterwards"]):
        words = [word.replace("RUN", "run") for word in words]
        evaluating = [*LITTLE, "hydra.run.dir=judged"] if words[1] == "evaluate" else []
        lab.succeed(*words, *evaluating)
        refused = lab.start(*(word for word in words if not word.startswith("plugins=")))
        assert refused.returncode == 2 and "unknown connector 'MeanMax'" in refused.stderr, refused.stderr
        assert "plugins=[PACKAGE]" in refused.stderr and "Traceback" not in refused.stderr
    assert lab.judged("run")["metrics"] == lab.judged("judged")["metrics"] and lab.judged("run")["n"] == 12

    code = "import visllama; print(visllama.load('run/weights', plugins=['mylab']).caption('photo.jpg'))"
    assert lab.succeed("python", "-c", code).strip()


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "kind"), [("Vision encoder", "SmallCNN"), ("Language model", "WithAttention")])
def test_a_frozen_part(lab, heading, kind):
    lab = lab(heading)
    lab.train(*LITTLE)
    assert f'"kind": "{kind}"' in (lab.folder / "run" / "weights" / "visllama.json").read_text()
    lab.succeed(
        "visllama", "evaluate", "weights=run/weights", "plugins=[mylab]", *LITTLE, "trainer=cpu", "hydra.run.dir=judged"
    )
    assert lab.judged("run")["metrics"] == lab.judged("judged")["metrics"]


@pytest.mark.slow
def test_weights_are_refused_beside_another_encoder(lab):
    lab = lab("Vision encoder")
    lab.train("judge=false")
    lab.succeed("python", "-m", "mylab.encoders")  # other random weights
    refused = lab.start("visllama", "evaluate", "weights=run/weights", "plugins=[mylab]")
    assert refused.returncode == 2 and "trained with another vision_encoder" in refused.stderr


@pytest.mark.slow
def test_a_data_source(lab):
    lab = lab("Data source")
    yaml = lab.folder / "my_conf" / "data" / "source" / "grays.yaml"
    yaml.write_text(yaml.read_text() + "num_retries: 0\n")  # a name of theirs: it is no count of ours, to be above 0
    module = lab.folder / "mylab" / "data.py"
    module.write_text(module.read_text().replace("split, num_records)", "split, num_records, num_retries=3)"))
    training = lab.train()
    assert "--config-dir" in training and lab.judged("run")["n"] == 40

    lab.succeed(
        *("visllama", "evaluate", "--config-dir", "my_conf", "weights=run/weights", "evaluation=[grays]"),
        *("plugins=[mylab]", "trainer=cpu", "hydra.run.dir=judged"),
    )
    assert lab.judged("run")["metrics"] == lab.judged("judged")["metrics"]


@pytest.mark.slow
def test_an_optimizer(lab):
    lab = lab("Optimizer")
    training = lab.train("judge=false")
    trained = {}
    for folder, rate in (("slow", "4e-4"), ("fast", "8e-4")):
        lab.succeed(
            *training, *SHORT, "judge=false", "trainer.max_steps=1", f"optim.lr={rate}", f"hydra.run.dir={folder}",
            "optim.warmup_fraction=0", "optim.schedule=constant",
        )  # fmt: skip
        trained[folder] = load_file(lab.folder / folder / "weights" / "visllama.safetensors")["markers"]
    # A first step of Lion moves every number by the rate, so the second run moved each twice as far as the first.
    step = (trained["fast"] - trained["slow"]).abs()
    moved = step > 0
    torch.testing.assert_close(step[moved], torch.full_like(step[moved], 4e-4), rtol=1e-3, atol=1e-7)
    assert moved.float().mean() > 0.9


def column(folder: Path, name: str) -> list[float]:
    with open(folder / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.slow
def test_a_schedule(lab):
    lab = lab("Schedule")
    lab.train("judge=false", "trainer.log_every_steps=1", "optim.warmup_fraction=0", "trainer.max_steps=10")
    rates = column(lab.folder / "run", "lr/connector")
    # Of ten steps the first is the warm-up, and at the last 8/9 of the others are done. Lightning logs in float32.
    assert rates == pytest.approx([4e-3] * 9 + [4e-4], rel=1e-6)


@pytest.mark.slow
def test_a_loss(lab):
    lab = lab("Loss")
    training = lab.train("judge=false", "trainer.log_every_steps=1")
    lab.succeed(*training, *SHORT, "judge=false", "loss.smoothing=0.0", "hydra.run.dir=plain")
    without = [word for word in training if not word.startswith("loss=")]
    lab.succeed(*without, *SHORT, "judge=false", "hydra.run.dir=none")
    smoothed, plain, none = (column(lab.folder / run, "train/loss")[0] for run in ("run", "plain", "none"))
    # Without smoothing it is the cross-entropy, summed in another order; fp32 has 7 digits.
    assert plain == pytest.approx(none, rel=1e-5) and smoothed > plain + 0.1
    assert column(lab.folder / "run", "val/loss")[-1] > column(lab.folder / "plain", "val/loss")[-1]


@pytest.mark.slow
def test_a_logger(lab):
    lab = lab("Logger")
    lab.train("judge=false")
    first, *rows = [json.loads(line) for line in (lab.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first == {"seed": 1, "lr": 4e-3}
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    with open(lab.folder / "run" / "metrics.csv") as file:
        in_table = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses and losses == pytest.approx(in_table), "metrics.csv is written beside it"


@pytest.mark.slow
def test_a_callback(lab):
    lab = lab("Callback")
    lab.train("judge=false", "trainer.log_every_steps=2")
    with open(lab.folder / "run" / "metrics.csv") as file:
        norms = [float(row["markers/boi_norm"]) for row in csv.DictReader(file) if row["markers/boi_norm"]]
    assert len(norms) >= 2 and len(set(norms)) > 1, "the markers learn"

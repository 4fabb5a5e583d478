"""From a sweep to a paper: three connectors, three seeds, a table of LaTeX that compiles and holds the files' figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from statistics import mean, stdev

import pytest

from tests.support.commands import ROOT
from tests.support.pdflatex import compile_table, needs_pdflatex

CONNECTORS = {"mlp": "MLPConnector", "patch_mlp": "PatchMLPConnector", "resampler": "ResamplerConnector"}
SHORT = [
    "trainer=cpu", "trainer.max_steps=12", "trainer.val_check_interval=1.0", "stage.global_batch_size=16",
    "data.num_val_records=16", "evaluation=[scenes_caption]", "evaluation.scenes_caption.source.num_records=20",
    "evaluation.scenes_caption.controls=[]", "evaluation.scenes_caption.metrics=[BLEU,CIDEr]", "name=nine",
    "hydra.sweep.dir=nine",
]  # fmt: skip


def visllama(*words: str, cwd, timeout_s: int) -> None:
    command = [sys.executable, "-m", "visllama", *words]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout_s, env=env)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]


@pytest.mark.proof
@needs_pdflatex
def test_three_connectors_with_three_seeds(tmp_path):
    visllama(
        "train", "-m", *SHORT, "seed=1,2,3", f"model/connector={','.join(CONNECTORS)}", cwd=tmp_path, timeout_s=1500
    )
    words = ["runs=nine", "rows=model.connector.kind", "over=seed", "columns=CIDEr,BLEU-4", "format=latex"]
    visllama("report", *words, "out=table.tex", cwd=tmp_path, timeout_s=200)

    table = (tmp_path / "table.tex").read_text()
    assert compile_table(table, tmp_path).stat().st_size > 5000
    for kind in CONNECTORS.values():
        measured = []
        for path in (tmp_path / "nine").glob("*/metrics.json"):
            metrics = json.loads(path.read_text())
            if metrics["provenance"]["model"]["connector"]["kind"] == kind:
                measured.append(metrics["evaluations"]["scenes_caption_val"]["metrics"])
        assert len(measured) == 3
        line = next(line for line in table.splitlines() if line.startswith(kind))
        expected = []
        for name in ("CIDEr", "BLEU-4"):
            values = [one[name] for one in measured]
            expected += [f"{100 * mean(values):.1f}", f"{100 * stdev(values):.1f}"]
        assert re.findall(r"\d+\.\d", line) == expected

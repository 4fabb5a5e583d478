"""The wheel: the package with its configs inside, nothing else at top level, and it runs in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile


def test_holds_the_package_and_the_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"visllama", "visllama-0.1.0.dist-info"}
    assert {
        "visllama/conf/train.yaml",
        "visllama/conf/model/connector/mlp.yaml",
        "visllama/data/scenes/pretrained/clip/model.safetensors",
        "visllama/evaluation/object_names.txt",
        "visllama/evaluation/templates/gallery.html.jinja",
        "visllama/report/templates/report.html.jinja",
        "visllama/inspect/templates/connector.html.jinja",
    } <= set(names)
    assert wheel.stat().st_size < 8_000_000


def test_runs_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            archive.extract(name, site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import visllama; print(visllama.__file__); from visllama.cli import main; sys.argv = ['visllama', 'train', '--cfg', 'job']; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=work,
        env=os.environ | {"PYTHONPATH": ""},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert str(site) in ended.stdout.splitlines()[0] and "global_batch_size: 64" in ended.stdout
    assert list(work.iterdir()) == []

"""The img2dataset command: what is asked of it, what it does not get to know, and which shards count as whole."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from visllama.errors import ConfigError
from visllama.prepare.img2dataset import alone, command_line, environment, find_command, run_img2dataset
from visllama.prepare.request import Download


def test_the_command_line(tmp_path):
    spec = Download(
        "coyo", "list", tmp_path, 384, skip_reencode=True, score_columns=("a", "b"), command="i2d", processes=3
    )
    assert command_line(spec, "/l", "/o") == [
        *("i2d", "--url_list", "/l", "--input_format", "jsonl", "--url_col", "url", "--caption_col", "caption"),
        *("--output_format", "webdataset", "--output_folder", "/o", "--processes_count", "3", "--thread_count", "64"),
        *("--image_size", "384", "--resize_mode", "keep_ratio", "--resize_only_if_bigger", "True"),
        *("--skip_reencode", "True", "--encode_quality", "95", "--min_image_size", "0"),
        *("--number_sample_per_shard", "10000", "--save_additional_columns", '["a", "b"]', "--extract_exif", "False"),
        *("--timeout", "10", "--retries", "1", "--max_shard_retry", "3", "--incremental_mode", "incremental"),
        *("--distributor", "multiprocessing", "--enable_wandb", "False"),
    ]
    line = command_line(dataclasses.replace(spec, score_columns=(), max_aspect_ratio=3.0), "/l", "/o")
    assert "--save_additional_columns" not in line and line[line.index("--max_aspect_ratio") + 1] == "3.0"


def test_the_command_is_absent(tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"command=no-such-command: .*pip install img2dataset==.*VISLLAMA_IMG2DATASET"
    ):
        find_command("no-such-command")
    moved = tmp_path / "moved"
    moved.write_text("#!/no/such/python\n")
    moved.chmod(0o755)
    with pytest.raises(ConfigError, match="does not start: "):
        run_img2dataset([find_command(str(moved))], tmp_path, 1, 1)
    monkeypatch.setenv("VISLLAMA_IMG2DATASET", "/somewhere")
    assert Download("a", "b", tmp_path).command == "/somewhere"


def test_secrets_stay_here(tmp_path, monkeypatch):
    secrets = ["WANDB_API_KEY", "HF_TOKEN", "AWS_PROFILE", "GITHUB_TOKEN", "MY_password", "PYTHONPATH", "SSH_AUTH_SOCK"]
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    run_img2dataset([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"], tmp_path, 0, 0)
    found = json.loads((tmp_path / "log.txt").read_text())
    assert "secret" not in found.values() and found["https_proxy"] == "http://proxy.example"


def make_shard(shards: Path, number: int) -> None:
    shards.mkdir(exist_ok=True)
    tarfile.open(shards / f"{number:05d}.tar", "w").close()
    (shards / f"{number:05d}_stats.json").write_text(json.dumps({"count": 4}))


@pytest.mark.parametrize(
    "tear",
    [
        lambda shards: (shards / "00001.tar").unlink(),
        lambda shards: (shards / "00001.tar").write_bytes(b"torn"),
        lambda shards: (shards / "00001.tar").write_bytes(b"torn" * 1000),
        lambda shards: (shards / "00001_stats.json").write_text("{"),
        lambda shards: (shards / "00001_stats.json").unlink(),
    ],
)
def test_a_torn_shard_is_not_whole_and_is_done_again(tmp_path, tear):
    shards = tmp_path / "shards"
    for number in (0, 1):
        make_shard(shards, number)
    nothing = [sys.executable, "-c", "print('a reason')"]
    assert run_img2dataset(nothing, tmp_path, 2, 8) == {0: {"count": 4}, 1: {"count": 4}}
    tear(shards)
    with pytest.raises(ConfigError, match=r"(?s)ended with 0; 1 of 2 shards are complete.*a reason"):
        run_img2dataset(nothing, tmp_path, 2, 8)
    assert [path.name for path in shards.glob("*.json")] == ["00000_stats.json"], "so img2dataset makes it again"


def test_missing_urls_and_a_failed_command_are_refused(tmp_path):
    make_shard(tmp_path / "shards", 0)
    with pytest.raises(ConfigError, match="ended with 0; 1 of 1"):
        run_img2dataset(["true"], tmp_path, 1, 5)
    with pytest.raises(ConfigError, match="ended with 1; 1 of 1"):
        run_img2dataset(["false"], tmp_path, 1, 4)


def test_who_is_alone_ends_what_was_left_at_work_in_the_folder(tmp_path):
    sleep = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    names = ("here", "elsewhere")
    left = [subprocess.Popen(sleep, env=environment(tmp_path / name), stdout=subprocess.PIPE) for name in names]
    try:
        for process in left:
            process.stdout.readline()
        with alone(tmp_path / "here"):
            assert left[0].wait(10) < 0 and left[1].poll() is None
            with pytest.raises(ConfigError, match="another process is at it"), alone(tmp_path / "here"):
                pass
        with alone(tmp_path / "here"):
            os.kill(left[1].pid, 0)
    finally:
        for process in left:
            process.kill()
            process.wait()
            process.stdout.close()

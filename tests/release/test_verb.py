"""`visllama export` as a user calls it: a whole folder, or a message and nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import visllama
from tests.support.families import save_language_model
from visllama.cli import understand
from visllama.errors import ConfigError
from visllama.release.verb import assemble, export


@pytest.fixture
def run(configure):
    """Export in this process, by the overrides that a user types."""

    def do(*overrides: str):
        config = configure("export", *overrides)
        export(config, assemble(config))

    return do


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "visllama", "export", *words]


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("hub", "visllama.safetensors"),
        ("llava", "model.safetensors"),
        ("language_model", "model.safetensors"),
        ("adapter", "adapter_model.safetensors"),
    ],
)
def test_every_format_is_a_folder_with_a_card(save_model, run, tmp_path, capsys, form, file):
    _, weights = save_model(lora=True)
    out = tmp_path / "out"
    run(f"weights={weights}", f"format={form}", f"out={out}")
    said = capsys.readouterr().out
    assert (out / file).is_file() and (out / "README.md").read_text().startswith("---\n")
    assert "Read back by" in said and f"Wrote {out}" in said and "Nothing was uploaded" in said and file in said
    assert {path.suffix for path in out.rglob("*.*")} <= {".safetensors", ".json", ".md", ".jinja", ".yaml", ".png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights"], "nothing is left beside it"


def test_hub_weights_caption_as_before_also_in_bf16(save_model, run, records, tmp_path):
    _, weights = save_model("resampler", lora=True)
    run(f"weights={weights}", "format=hub", f"out={tmp_path / 'out'}")
    images = [record["image"] for record in records]
    expected = visllama.load(weights, accelerator="cpu").caption(images, max_new_tokens=8)
    assert visllama.load(tmp_path / "out", accelerator="cpu").caption(images, max_new_tokens=8) == expected
    run(f"weights={weights}", "format=hub", f"out={tmp_path / 'half'}", "dtype=bf16")
    assert {t.dtype for t in load_file(tmp_path / "half/visllama.safetensors").values()} == {torch.bfloat16}
    visllama.load(tmp_path / "half", accelerator="cpu")


@pytest.mark.parametrize(
    ("connector", "overrides", "says"),
    [
        (
            "resampler",
            ["format=llava"],
            "format=llava: LLaVA has no place for a ResamplerConnector.*format=language_model",
        ),
        ("patch_mlp", ["format=adapter"], "format=adapter: these weights hold no LoRA: format=hub"),
    ],
)
def test_what_a_format_cannot_express_is_refused(save_model, run, tmp_path, connector, overrides, says):
    _, weights = save_model(connector)
    with pytest.raises(ConfigError, match=says):
        run(f"weights={weights}", f"out={tmp_path / 'out'}", *overrides)
    assert not (tmp_path / "out").exists()


def test_another_base_model_is_refused(save_model, run, tmp_path):
    """Of the same shapes, with other weights."""
    base = save_language_model("llama", tmp_path / "base")
    _, weights = save_model(language_model=base)
    other = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in other.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="trained with another language_model"):
        run(f"weights={weights}", "format=llava", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_base_model_that_nobody_else_has_is_named_by_the_user(save_model, run, tmp_path):
    base = save_language_model("llama", tmp_path / "base")
    _, weights = save_model("mlp", language_model=base)
    with pytest.raises(ConfigError, match="language_model=ORGANISATION/NAME"):
        run(f"weights={weights}", "format=hub", f"out={tmp_path / 'out'}")
    run(f"weights={weights}", "format=hub", f"out={tmp_path / 'out'}", "language_model=lab/llama")
    description = json.loads((tmp_path / "out/visllama.json").read_text())
    assert description["parts"]["language_model"]["arguments"] == {"path": "lab/llama"}
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text() + json.dumps(description)


def test_a_folder_that_holds_something_is_refused(save_model, run, tmp_path):
    _, weights = save_model()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something is there already"):
        run(f"weights={weights}", "format=llava", f"out={tmp_path / 'out'}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["format=lava"], "format=lava: did you mean llava"),
        (["dtype=fp16"], "dtype=fp16: .*choose fp32 or bf16"),
        (["max_shard_size=5"], "max_shard_size=5: give a number and KB, MB or GB"),
        (["push=mine"], "push=mine: give its name on the hub, as ORGANISATION/NAME"),
        (["weights=nowhere"], "weights=nowhere: no such folder"),
        (["push=lab/model"], "HF_TOKEN"),
    ],
)
def test_what_is_typed_wrong_ends_at_once(save_model, compose_config, tmp_path, monkeypatch, overrides, says):
    _, weights = save_model()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = [f"weights={weights}", "format=llava", f"out={tmp_path / 'out'}", *overrides]
    with pytest.raises(ConfigError, match=says):
        understand("export", compose_config("export", *words))


def test_a_kill_leaves_nothing_under_the_name_and_the_next_export_removes_what_is_beside_it(save_model, run, tmp_path):
    _, weights = save_model()
    words = [f"weights={weights}", "format=llava", "out=out"]
    process = subprocess.Popen(command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not list(tmp_path.glob(".out.*.partial/*")) and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".out.*.partial")) and not (tmp_path / "out").exists()
    run(f"weights={weights}", "format=llava", f"out={tmp_path / 'out'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights"]

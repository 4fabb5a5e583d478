"""Ranks change nothing: the same global batches, losses and updates on one, two and three ranks (gloo), in fp64."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.scripts.validate_on_ranks import measure
from tests.support.commands import ROOT
from tests.support.tiny import relative_difference
from visllama.model.locate import SHIPPED

EXACT = 1e-12


def train(folder, *overrides: str) -> None:
    command = [sys.executable, "-m", "visllama", "train", "trainer=cpu", "trainer.precision=64-true", "trainer.max_steps=12", "judge=false",
               "trainer.log_every_steps=1", "optim.weight_decay=0.2", "model.connector.hidden_dim=64", f"hydra.run.dir={folder}", *overrides]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]


def losses(folder) -> list[float]:
    with open(folder / "metrics.csv") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.devices=2", "trainer/strategy=ddp"],
        ["trainer.devices=2", "micro_batch_size=7"],  # rounds of accumulation, and the strategy found by itself
        ["trainer.devices=3", "trainer/strategy=ddp"],  # 64 samples on 3 ranks: 21, 21, 22
        ["trainer.devices=3", "micro_batch_size=21"],  # one micro-batch on two ranks, two on the third
        ["trainer.devices=2", "trainer/strategy=fsdp", "micro_batch_size=7", "trainer.activation_checkpointing=true"],
    ],
    ids=["two", "two-accumulating", "three", "three-uneven-rounds", "two-sharded"],
)
def test_ranks_change_neither_loss_nor_update(tmp_path, overrides):
    train(tmp_path / "one")
    train(tmp_path / "many", *overrides)
    one, many = (load_file(tmp_path / name / "weights" / "visllama.safetensors") for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert max(relative_difference(many[name], one[name]) for name in one) < EXACT
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert len(expected) == 12
    assert max(abs(a - b) / b for a, b in zip(found, expected, strict=True)) < EXACT
    facts = json.loads((tmp_path / "many" / "metrics.json").read_text())
    assert facts["provenance"]["num_ranks"] == int(overrides[0][-1]) and facts["train"]["samples"] == 12 * 64


@pytest.mark.slow
def test_ranks_share_the_judging_and_say_what_one_would(tmp_path):
    """Sharded, none could generate alone; 25 records in batches of 8 leave one rank with nothing in the last round."""
    small = ["evaluation.scenes_caption.source.num_records=25", "evaluation.scenes_caption.batch_size=8", "trainer.precision=64-true",
             "judge=true", "trainer.max_steps=4", "data.num_val_records=5"]  # fmt: skip
    told = {}
    for name, more in {
        "one": [],
        "ddp": ["trainer.devices=2"],
        "fsdp": ["trainer.devices=2", "trainer/strategy=fsdp"],
    }.items():
        train(tmp_path / name, *small, *more)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        lines = (tmp_path / name / "evaluations" / "scenes_caption" / "predictions.jsonl").read_text()
        judged = metrics["evaluations"]["scenes_caption"]
        judged.pop("generation_seconds")
        told[name] = lines, judged, (tmp_path / name / "weights" / "visllama.json").read_text()
    assert len(told["one"][0].splitlines()) == 25
    assert told["one"] == told["ddp"] == told["fsdp"]


def trained(out, num_ranks: int, precision: str, *cases: str, steps: int = 50) -> dict[str, dict]:
    """Train on so many ranks by each strategy; gives what each case left, by its name without the ranks."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"] if num_ranks > 1 else []
    command = [
        sys.executable,
        *launch,
        str(ROOT / "tests" / "scripts" / "train_on_ranks.py"),
        str(out),
        precision,
        str(steps),
        *cases,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3000, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {path.name.split("-", 1)[1]: load_file(path) for path in out.parent.glob(f"{out.name}.{num_ranks}-*")}


def compare(found: dict[str, dict], one: dict[str, dict], exact: float, of: str = "") -> None:
    """Hold losses, gradients of every step and final weights to those of one rank, relative to each tensor's norm."""
    for name, tensors in found.items():
        _, stage, _, clip = name.split("-")
        expected = one[f"one-{stage}-8-{clip}"]
        assert tensors.keys() == expected.keys() and len(tensors["losses"]) == len(expected["losses"]) >= 12
        for key in (key for key in expected if key.startswith(of)):
            rows = key == "losses" or key.startswith("gradients/")  # by step
            pairs = zip(tensors[key], expected[key], strict=True) if rows else [(tensors[key], expected[key])]
            worst = max(relative_difference(a, b) for a, b in pairs if b.norm())
            assert worst < exact, (name, key, worst)


EVERY_SIZE = [f"{count}-{at_once}" for count in range(1, 18) for at_once in (1, 3, 64)]


def validated(out, num_ranks: int, *cases: str) -> dict[str, dict]:
    """Validate and judge on so many ranks, sharded; gives each case's loss and captions."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [
        sys.executable,
        *launch,
        str(ROOT / "tests" / "scripts" / "validate_on_ranks.py"),
        str(out),
        "fsdp",
        *cases,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100 * len(cases), cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        ((2,), ["1-64", "9-64", "11-3"]),  # one of two has nothing at all, nothing in the second step, fewer rounds
        pytest.param((2, 3, 4), EVERY_SIZE, marks=pytest.mark.proof),
    ],
    ids=["three-of-two-ranks", "all"],
)
def test_validation_and_judging_of_every_size_are_those_of_one_rank(tmp_path, ranks, cases):
    """Steps of 8 records: ranks have other numbers of records and micro-batches, down to none."""
    one = measure("one", cases)
    assert len({tuple(found["captions"]) for found in one.values()}) == len({case.split("-")[0] for case in cases})
    for num_ranks in ranks:
        many = validated(tmp_path / f"{num_ranks}.json", num_ranks, *cases)
        assert many.keys() == one.keys()
        for case, expected in one.items():
            assert abs(many[case]["loss"] - expected["loss"]) / expected["loss"] < EXACT, (num_ranks, case)
            assert many[case]["captions"] == expected["captions"], (num_ranks, case)


@pytest.mark.slow
def test_evaluate_shares_the_judging_over_the_ranks_that_it_starts(tmp_path):
    """Once by itself, once under torchrun: 25 records in batches of 8 leave one rank with nothing in the last round."""
    train(tmp_path / "run", "trainer.max_steps=4", "data.num_val_records=5")
    words = [f"weights={tmp_path / 'run' / 'weights'}", "trainer=cpu", "trainer.precision=64-true", "evaluation.scenes_caption.source.num_records=25",
             "evaluation.scenes_caption.batch_size=8"]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--rdzv-id=x"]
    told = {}
    for name, launch, more in (
        ("one", [], []),
        ("ddp", [], ["trainer.devices=2"]),
        ("fsdp", torchrun, ["trainer/strategy=fsdp"]),
    ):
        command = [
            sys.executable,
            *launch,
            str(ROOT / "evaluate.py"),
            *words,
            *more,
            f"hydra.run.dir={tmp_path / name}",
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0 and ended.stdout.count("Wrote") == 1, ended.stderr[-3000:]
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        judged = metrics["evaluations"]["scenes_caption"]
        judged.pop("generation_seconds")
        told[name] = judged, (tmp_path / name / "evaluations" / "scenes_caption" / "predictions.jsonl").read_text()
    assert len(told["one"][1].splitlines()) == 25
    assert told["one"] == told["ddp"] == told["fsdp"]


ONE = ("pretrain-8-inf", "pretrain-8-0.1", "finetune-8-inf", "finetune-8-0.1")
SOME = {2: ("pretrain-8-inf", "finetune-1-0.1"), 3: ("pretrain-1-0.1", "finetune-8-inf"), 4: ("finetune-8-0.1",)}


@pytest.mark.slow
def test_ddp_and_fsdp_change_neither_losses_nor_gradients_nor_weights(tmp_path):
    """1 rank x 8, 2 x 4, 4 x 2, and 3 of 2 or 3 samples; both stages, accumulating or not, clipped or not."""
    one = trained(tmp_path / "one", 1, "64-true", *ONE, steps=12)
    for num_ranks, cases in SOME.items():
        found = trained(tmp_path / "some", num_ranks, "64-true", *cases, steps=12)
        assert len(found) == 2 * len(cases)
        compare(found, one, EXACT)


@pytest.mark.proof
@pytest.mark.parametrize(("precision", "exact", "of"), [("64-true", EXACT, ""), ("32-true", 1e-5, "losses")])
def test_every_strategy_on_every_rank_count(tmp_path, precision, exact, of):
    one = trained(tmp_path / "one", 1, precision, *ONE)
    for num_ranks in (2, 3, 4):
        found = trained(tmp_path / "all", num_ranks, precision)
        assert len(found) == 16
        compare(found, one, exact, of)


@pytest.mark.parametrize(
    ("hidden", "layers"),
    [pytest.param(512, 10, marks=pytest.mark.slow), pytest.param(1024, 24, marks=pytest.mark.proof)],
)
def test_a_ranks_memory_falls_with_the_number_of_ranks(tmp_path, hidden, layers):
    """Frozen weights stream into shards: at no moment does a rank hold all of them. In MiB of anonymous memory."""
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=3 * hidden,
        num_attention_heads=16,
        vocab_size=32000,
    )
    torch.set_default_dtype(torch.bfloat16)
    language_model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    whole = sum(p.numel() * 2 for p in language_model.parameters()) / 2**20
    language_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(SHIPPED / "llama").save_pretrained(tmp_path)
    del language_model
    print(f"{whole:.0f} MiB of frozen weights\nranks  before  after  most")
    for num_ranks in (1, 2, 4):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={num_ranks}",
            str(ROOT / "tests" / "scripts" / "measure_memory.py"),
            str(tmp_path),
        ]
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=400,
            cwd=ROOT,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        rows = [json.loads(row) for row in re.findall(r"\{[^}]*\}", ended.stdout)]
        assert len(rows) == num_ranks
        for row in rows:
            print(f"{num_ranks:5} {row['before']:7.0f} {row['after']:6.0f} {row['most']:5.0f}")
            assert abs(row["after"] - row["before"] - whole / num_ranks) < 0.02 * whole + 8
            head = 32000 * hidden * 2 / 2**20  # whole while they compute, and packed once more by oneDNN
            assert num_ranks == 1 or row["most"] - row["before"] < whole / num_ranks + 3 * head + 0.1 * whole + 64


@pytest.mark.slow
def test_a_rank_with_text_alone_beside_one_with_images(tmp_path):
    """At each of 50 steps one rank has no image and the other has them all: no hang, and all as on one rank."""
    script = str(ROOT / "tests" / "scripts" / "mix_on_ranks.py")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    for command, name in (([sys.executable, script], "one"), (launched, "two")):
        ended = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, timeout=400, cwd=ROOT)
        assert ended.returncode == 0, ended.stderr[-3000:]
    one, text, pictures = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert text.pop("images").tolist() == [0] * 50 and pictures.pop("images").tolist() == [4] * 50
    assert one.pop("images").tolist() == [4] * 50 and any("lora_" in name for name in one)
    for found in (text, pictures):  # AdamW's 50 steps rest on every gradient
        assert max(relative_difference(found[name], one[name]) for name in one) < EXACT, "losses among them"

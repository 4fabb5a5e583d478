"""The verb `plan`: published shapes, figures worked out by hand, what makes a job fit, what it says and refuses."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from math import isfinite, lcm
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, CLIPVisionModelWithProjection, Dinov2Model, SiglipVisionModel

from tests.support.verbs import plan
from visllama.config.schema import conf_dir
from visllama.errors import ConfigError
from visllama.machine.cards import CARDS
from visllama.plan.lines import GIB
from visllama.plan.published import language_configs, vision_configs
from visllama.training.assembly import count_steps

CLUSTER = ("model=real", "trainer=node", "trainer.num_nodes=8", "trainer.devices=8", "data=coco")
SIZES = {"language_model/llama_7b": 6_738_415_616, "language_model/llama_13b": 13_015_864_320,
         "language_model/llama_30b": 32_528_943_616, "language_model/llama_65b": 65_285_660_672,
         "language_model/llama2_7b": 6_738_415_616, "language_model/vicuna_7b": 6_738_415_616,
         "language_model/llama3_8b": 8_030_261_248, "language_model/mistral_7b": 7_241_732_096,
         "language_model/qwen2_5_7b": 7_615_616_512, "vision_encoder/clip_l14": 303_966_208,
         "vision_encoder/clip_l14_336": 304_293_888, "vision_encoder/dinov2_l14": 304_368_640,
         "vision_encoder/siglip_so400m": 428_225_600}  # fmt: skip
"""As published."""


class TestPublishedShapes:
    YAMLS = sorted(
        f"{group}/{path.stem}"
        for group in ("language_model", "vision_encoder")
        for path in (conf_dir() / "model" / group).glob("*.yaml")
    )

    @pytest.mark.parametrize("name", [name for name in YAMLS if not name.endswith("/tiny")])
    def test_every_yaml_has_one_and_it_is_exact(self, name):
        path = OmegaConf.load(conf_dir() / "model" / f"{name}.yaml").path
        config = (language_configs() | vision_configs())[path]
        kinds = {
            "clip_vision_model": CLIPVisionModelWithProjection, "dinov2": Dinov2Model,
            "siglip_vision_model": SiglipVisionModel,
        }  # fmt: skip
        with torch.device("meta"):
            kind = kinds.get(config.model_type)
            model = kind(config) if kind else AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == SIZES[name]

    def test_the_models_own_config_wins(self, compose_config, tmp_path):
        own = language_configs()["huggyllama/llama-7b"]
        own.num_hidden_layers = 2
        own.save_pretrained(tmp_path / "huggyllama" / "llama-7b")
        found = plan(compose_config("plan", *CLUSTER, f"paths.models={tmp_path}"))
        frozen = {line.name: line.num_bytes for line in found.mean.lines}["frozen language model"]
        assert frozen == 2 * (6_738_415_616 - 30 * (202_375_168 + 2 * 4096))

    def test_an_unknown_model_is_told_from_a_known_one(self, compose_config):
        cfg = compose_config("plan", *CLUSTER, "model.language_model.path=lab/unheard")
        with pytest.raises(
            ConfigError, match=r"model\.language_model\.path=lab/unheard: neither .* huggyllama/llama-7b"
        ):
            plan(cfg)


def lines(found, kind: str = "mean") -> dict[str, int]:
    return {line.name: line.num_bytes for line in getattr(found, kind).lines}


def test_7b_on_64_gpus_by_hand(compose_config, monkeypatch):
    """Every figure is worked out here from the published sizes, and nothing is fetched for it."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    found = plan(compose_config("plan", *CLUSTER, "stage.global_batch_size=3840", "samples=566747"))
    connector = 768 * 1024 + 1024 + 1024 * 10 * 4096 + 10 * 4096
    trained = connector + 2 * 4096
    token = 32 * (2 * 4 * (4096 + 1) + 4 * 2 * 4096 + 4 * 32 + 3 * 2 * 11008) + 4 * (4096 + 1)
    assert (found.tokens, found.job.num_samples, connector) == (27, 60, 42_771_456)
    by_hand = {
        "trained weights": 4 * trained,
        "frozen language model": 2 * 6_738_415_616,
        "frozen vision encoder": 2 * 303_966_208,
        "gradients": 4 * trained,
        "optimizer's state": 8 * trained + 4 * 5,
        "DDP's gradient buckets": 4 * trained,
        "activations: language model": 60 * 27 * token,
        "logits": 60 * 27 * 2 * 32000,
        "loss and its gradients": 60 * 27 * 12 * 32000,
    }
    assert {name: lines(found)[name] for name in by_hand} == by_hand
    assert lines(found, "longest")["logits"] == 60 * (1 + 12 + 256) * 2 * 32000
    counted = {part.name: part.count for part in found.flops}
    assert counted["frozen blocks"] == 4 * 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 27
    assert counted["vision encoder"] == pytest.approx(162e9, rel=0.01)  # as is told of CLIP-L/14 at 224
    step = found.step
    assert step.reduced_bytes == pytest.approx(2 * 63 / 64 * 4 * trained)
    assert step.reduce_s == pytest.approx(step.reduced_bytes / 50e9)
    assert step.compute_s == pytest.approx(60 * sum(counted.values()) / (0.4 * 312e12))
    assert step.update_s == pytest.approx(7 * 4 * trained / 2039e9)
    assert found.num_steps == 3 * 566747 // 3840
    assert found.to_dict()["gpu_hours"] == pytest.approx(found.num_steps * step.seconds * 64 / 3600)


@pytest.mark.slow
@pytest.mark.parametrize("connector", ["mlp", "mlp_published"])
@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("batch_size", [64, 3840])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("model", ["llama_7b", "llama_13b", "llama_65b"])
def test_the_published_sizes_on_a100(compose_config, model, stage, batch_size, nodes, connector):
    cfg = compose_config(
        "plan", *CLUSTER[:2], "trainer.devices=8", f"trainer.num_nodes={nodes}", f"model/language_model={model}",
        f"stage={stage}", "data=coco", f"stage.global_batch_size={batch_size}", f"model/connector={connector}",
    )  # fmt: skip
    found = plan(cfg)
    told = found.to_dict()
    assert all(isfinite(value) and value >= 0 for value in (told["peak_bytes"], *told["step"].values()))
    assert found.longest.peak >= found.mean.peak > 2 * SIZES[f"language_model/{model}"]
    assert (found.job.num_samples * found.tokens < 1000) == any("tokens a GPU" in said for said in found.warnings)
    if model == "llama_65b":
        assert not found.fits and "trainer/strategy=fsdp" in found.switches
    elif not found.fits:  # a batch of many samples, each of which might be as long as is allowed
        assert batch_size == 3840 and found.switches[0].startswith("micro_batch_size=")


@pytest.mark.parametrize(
    ("overrides", "switches"),
    [
        (["stage.global_batch_size=3840"], ["micro_batch_size=32"]),
        (["model/language_model=llama_65b", "stage.global_batch_size=64"], ["trainer/strategy=fsdp"]),
        pytest.param(
            ["gpu=rtx4090_24g", "micro_batch_size=1", "stage.max_text_tokens=2000"],
            ["trainer.activation_checkpointing=true"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model/language_model=llama_65b", "trainer.num_nodes=1", "gpu=rtx4090_24g"],
            ["trainer.num_nodes=2", "trainer/strategy=fsdp"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_switches_that_it_names_make_it_fit(compose_config, capsys, overrides, switches):
    found = plan(compose_config("plan", *CLUSTER, *overrides))
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert not found.fits and found.switches[: len(switches)] == switches
    assert f"It does not fit: {found.longest.peak / GIB:.1f} GiB" in said and " ".join(found.switches) in said
    keys = {word.partition("=")[0] for word in found.switches}
    kept = [word for word in (*CLUSTER, *overrides) if word.partition("=")[0] not in keys]
    assert plan(compose_config("plan", *kept, *found.switches)).fits
    last = found.switches[-1]
    assert not plan(compose_config("plan", *kept, *found.switches[:-1])).fits, f"{last} is needed"


def test_the_published_batch_is_no_faster_on_eight_nodes(compose_config):
    found = plan(compose_config("plan", *CLUSTER, "model/connector=mlp_published", "stage.global_batch_size=64"))
    rates = [step.samples_per_second for step, _ in found.by_nodes]
    assert len(rates) == 4 and rates[3] < rates[0]
    assert "A step holds 27 tokens a GPU, under 1,000" in found.warnings[0]


def test_fsdp_gathers_and_scatters(compose_config):
    found = plan(compose_config("plan", *CLUSTER, "trainer/strategy=fsdp", "stage.global_batch_size=3840"))
    frozen, trained = 2 * (6_738_415_616 + 303_966_208), 4 * (42_771_456 + 8192)
    assert found.step.gathered_bytes == pytest.approx(2 * 63 / 64 * (frozen + trained))
    assert found.step.reduced_bytes == pytest.approx(63 / 64 * trained)
    assert lines(found)["FSDP's blocks, whole"] == 3 * 2 * (202_375_168 + 2 * 4096)
    assert lines(found)["FSDP's root, whole"] >= 2 * 2 * 32000 * 4096


class TestPretrain8x8:
    def test_it_is_what_was_asked_for(self, compose_config):
        cfg = compose_config("plan", "experiment=pretrain_8x8", "trainer.num_nodes=8")
        assert cfg.stage.global_batch_size % lcm(64, 60, 48, 40, 32) == 0
        found = plan(cfg)
        assert found.job.num_ranks == 64 and found.fits and found.warnings == []
        assert lines(found)["trained weights"] <= 4 * 45e6
        assert found.num_steps == 30_000_000 // 3840
        one, *_, eight = (step.samples_per_second for step, _ in found.by_nodes)
        assert eight > 7.5 * one

    @pytest.mark.parametrize(
        ("overrides", "steps"),
        [([], 100 * 3 // 64), (["stage.num_samples=1000"], 15), (["stage.num_samples=1000", "trainer.max_steps=7"], 7)],
    )
    def test_a_budget_in_samples_stands_in_for_epochs(self, configure, overrides, steps):
        assert count_steps(configure("train", *overrides), 100) == steps

    def test_a_budget_of_less_than_a_batch_is_an_error(self, configure):
        with pytest.raises(ConfigError, match=r"stage\.num_samples=63 makes no whole batch"):
            count_steps(configure("train", "stage.num_samples=63"), 1000)


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=llava15_finetune"], ["stage=finetune", "model=real"]], ids=" ".join
)
def test_it_takes_the_config_that_train_takes(compose_config, overrides):
    ours, theirs = compose_config("plan", *overrides), compose_config("train", *overrides)
    own = {
        "name": "plan",
        "gpu": "a100_80g",
        "utilisation": 0.4,
        "network_gb_s": 50.0,
        "text_tokens": None,
        "samples": None,
    }
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs) | own | {"out": None}
    assert OmegaConf.get_type(ours.stage) is OmegaConf.get_type(theirs.stage) is not dict


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("gpu=a100", "gpu=a100: did you mean a100_40g or a100_80g"),
        ("utilisation=1.5", "utilisation=1.5: must be more than 0, and at most 1"),
        ("network_gb_s=0", "network_gb_s=0.0: must be more than 0"),
        ("text_tokens=300", "text_tokens=300.0: more than stage.max_text_tokens=256"),
        ("samples=0", "samples=0: must be more than 0"),
        ("stage.num_samples=0", "stage.num_samples=0: must be more than 0, or null for stage.epochs"),
        ("out=nowhere/plan.json", "out=nowhere/plan.json: there is no folder nowhere"),
        ("data.sources.scenes.num_recods=5", "data.sources.scenes: .*num_recods"),
        ("+model.connector.width=5", r"model\.connector: .*width"),
        ("optim._target_=torch.optim.Adagrat", "Adagrat"),
        ("data.sources.scenes._target_=visllama.data.order.Order", r"data\.sources\.scenes\._target_=.*is no source"),
    ],
)
def test_what_it_refuses(compose_config, override, says):
    cfg = compose_config("plan", override if "recods" not in override else f"+{override}")
    with pytest.raises(ConfigError, match=says):
        plan(cfg)


@pytest.mark.parametrize(
    ("overrides", "ranks", "says"),
    [
        ([], 1, "trainer.devices=auto is taken as 1; trainer.num_nodes=auto is taken as 1"),
        (["trainer=cluster"], 8, "trainer.devices=auto is taken as 8"),
        (["trainer/strategy=ddp"], 8, "trainer.devices=auto is taken as 8"),
        (["trainer.devices=[0,1]", "trainer.num_nodes=2"], 4, "text_tokens is taken as 14"),
        (["stage=finetune", "trainer.precision=auto"], 1, "trainer.precision=auto is taken as bf16-mixed; text_tokens is taken as 64"),
        (["trainer=cpu"], 1, "trainer.accelerator=cpu is shown as if it were the GPU"),
        (["data=coco"], 1, r"unknown \(data.sources.coco cannot be read here\): give samples=N"),
    ],
)  # fmt: skip
def test_what_it_assumes_is_told(compose_config, capsys, overrides, ranks, says):
    found = plan(compose_config("plan", *overrides))
    assert found.job.num_ranks == ranks
    assert re.search(says, re.sub(r"\s+", " ", capsys.readouterr().out))


OWN = """
import torch
from torch import nn
from visllama.images.transform import ImageTransform
from visllama.model.vision_encoder import CLIPVisionEncoder, VisionEncoder, VisionFeatures

class Stripes(VisionEncoder):
    def __init__(self, width):
        super().__init__()
        self.pooled_dim = self.patch_dim = width
        self.num_patches = 16
        self.transform = CLIPVisionEncoder("visllama:clip").transform
        self.map = nn.Linear(3 * 9 * 16, width, device="meta")

    def load_base_weights(self, dtype): ...

    def encode(self, pixel_values):
        patches = self.map(pixel_values.flatten(1).unflatten(1, (16, -1)))
        return VisionFeatures(patches.mean(1), patches)
"""


def test_parts_of_ones_own_are_counted(compose_config, tmp_path, monkeypatch):
    (tmp_path / "planlab.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["plugins=[planlab]", "~model.vision_encoder", "+model.vision_encoder._target_=planlab.Stripes"]
    found = plan(compose_config("plan", *own, "+model.vision_encoder.width=24"))
    assert lines(found)["frozen vision encoder"] == 2 * (3 * 9 * 16 * 24 + 24)
    assert {part.name: part.count for part in found.flops}["vision encoder"] == 2 * 3 * 9 * 16 * 24 * 16
    assert any("its class is your own" in said for said in found.assumed)


def test_the_help_names_every_card():
    text = (conf_dir() / "plan.yaml").read_text()
    assert all(f"{name}" in text for name in CARDS)
    assert all(card.memory_gib < int(name.rpartition("_")[2][:-1]) for name, card in CARDS.items())


def test_the_command_needs_no_model_no_data_and_80_columns(tmp_path):
    command = [sys.executable, "-m", "visllama", "plan", *CLUSTER, "model/language_model=llama_65b", "out=plan.json",
               "stage.global_batch_size=3840", "samples=566747"]  # fmt: skip
    root = str(Path(__file__).parents[2])
    environment = {"PATH": "", "PYTHONPATH": root, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["fits"] is False and told["switches"][0] == "trainer/strategy=fsdp"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["plan.json"]
    *shown, run = ended.stdout.splitlines()
    assert run.startswith("Run it:  python train.py model=real") and run.endswith(" ".join(told["switches"]))
    assert max(map(len, shown)) <= 80 and "…" not in ended.stdout
    for name in ("frozen language model", "optimizer's state", "peak", "frozen blocks", "GPU"):
        assert name in ended.stdout

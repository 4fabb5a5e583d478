"""Others' recipes: each value that an experiment says it takes from its source, and the passes that it says it makes."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from visllama.config.plain import plain
from visllama.config.schema import conf_dir
from visllama.data.order import shares
from visllama.training.assembly import count_steps
from visllama.training.optim import build_optimizer, build_schedule

CLIP, CLIP_336 = "openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336"
CONNECTORS = "visllama.model.connector"
SHORT_ANSWER = "Answer the question using a single word or phrase."

VISUAL_LLAMA = {
    "model.vision_encoder.path": CLIP,
    "model.language_model.path": "huggyllama/llama-7b",
    "model.connector._target_": f"{CONNECTORS}.MLPConnector",  # of the pooled vector, a tanh between two layers
    "model.connector.num_image_tokens": 10,
    "model.connector.hidden_dim": None,  # K * D / 2
    "stage.max_text_tokens": 256,
    "stage.prompt": "",
    "stage.epochs": 3,
    "stage.num_samples": None,
    "optim.schedule": "constant",
    "optim.warmup_fraction": 0.0,
    "optim.clip_norm": None,
}
LLAVA = {
    "model.vision_encoder.path": CLIP_336,
    "model.vision_encoder.feature_layer": -2,
    "model.language_model.path": "lmsys/vicuna-7b-v1.5",
    "model.connector._target_": f"{CONNECTORS}.PatchMLPConnector",
    "model.connector.num_image_tokens": None,  # as many as patches
    "model.connector.hidden_dim": None,  # the language model's width
    "model.lora": None,
    "stage.max_text_tokens": 2048,
    "stage.prompt": "",
    "stage.epochs": 1,
    "stage.num_samples": None,
    "optim.schedule": "cosine",
    "optim.warmup_fraction": 0.03,
    "optim.clip_norm": None,
}
RECIPES = {
    "original_pretrain": VISUAL_LLAMA
    | {
        "model.lora": None,
        "stage.trainable": ["connector", "markers"],
        "stage.template": "plain",
        "stage.global_batch_size": 64,
        "data.sources.coco.prompt": None,
    },
    "original_finetune": VISUAL_LLAMA
    | {
        "model.lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "stage.trainable": ["connector", "markers", "adapter"],
        "stage.template": "original",
        "stage.global_batch_size": 1024,
        "data.sources.vqa.prompt": None,
        "data.sources.instruct.prompt": None,
    },
    "llava15_pretrain": LLAVA
    | {
        "stage.trainable": ["connector", "markers"],
        "stage.template": "plain",
        "stage.global_batch_size": 256,
        "data.sources.llava_pretrain.prompt": None,
    },
    "llava15_finetune": LLAVA
    | {
        "stage.trainable": ["connector", "markers", "language_model"],
        "stage.template": "vicuna",
        "stage.global_batch_size": 128,
        "data.sources.llava_instruct.prompt": SHORT_ANSWER,  # of VQAv2's questions, which it validates on
    },
}
OPTIMIZERS = {
    # AdamW's rate, betas, eps and decay, as the source's optimizer has them
    "original_pretrain": (4e-3, (0.98, 0.999), 1e-6, 0.01),
    "original_finetune": (2e-5, (0.9, 0.999), 1e-8, 0.01),
    "llava15_pretrain": (1e-3, (0.9, 0.999), 1e-8, 0.0),
    "llava15_finetune": (2e-5, (0.9, 0.999), 1e-8, 0.0),
}
SIZES = {
    # questions of VQAv2's train, Alpaca's 52,002 without a hundredth, captions of Karpathy's train, LLaVA's two files
    "vqa": 443_757, "instruct": 51_482, "coco": 566_747, "llava_pretrain": 558_128, "llava_instruct": 665_298,
}  # fmt: skip
PASSES = {
    "original_pretrain": (26_566, {"coco": 3}),
    "original_finetune": (1_450, {"vqa": 3, "instruct": 3}),
    "llava15_pretrain": (2_180, {"llava_pretrain": 1}),
    "llava15_finetune": (5_197, {"llava_instruct": 1}),
}


def header(path: str) -> str:
    lines = (conf_dir() / path).read_text().splitlines()
    return " ".join(line.strip("# ") for line in lines if line.startswith("#"))


def passes(cfg, sizes: dict[str, int]) -> tuple[int, dict[str, float]]:
    """Return the steps of a run, and how often it passes over each source of these sizes."""
    chosen = {name: sizes[name] for name in cfg.data.sources}
    steps = count_steps(plain(cfg), sum(chosen.values()))
    drawn = shares({name: node.weight for name, node in cfg.data.sources.items()})
    samples = steps * cfg.stage.global_batch_size
    each = zip(chosen.items(), drawn, strict=True)
    return steps, {name: share / sum(drawn) * samples / size for (name, size), share in each}


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_holds_its_sources_values(compose_config, experiment):
    cfg = OmegaConf.to_container(compose_config("train", f"experiment={experiment}", "paths.data=data"), resolve=True)
    found = {key: OmegaConf.select(OmegaConf.create(cfg), key, throw_on_missing=True) for key in RECIPES[experiment]}
    plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in found.items()}
    assert plain == RECIPES[experiment]
    assert list(cfg["data"]["sources"]) == list(PASSES[experiment][1]), "no source beside those of the recipe"
    assert set(cfg["optim"]["lr_by_part"].values()) == {None}


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_makes_its_sources_optimizer(compose_config, experiment):
    cfg = compose_config("train", f"experiment={experiment}")
    model = nn.ModuleDict({"connector": nn.Linear(2, 2)})
    optimizer = build_optimizer(model, OmegaConf.to_container(cfg.optim, resolve=True))
    rate, betas, eps, decay = OPTIMIZERS[experiment]
    assert type(optimizer) is torch.optim.AdamW
    matrices, biases = optimizer.param_groups
    assert (matrices["lr"], tuple(matrices["betas"]), matrices["eps"]) == (rate, betas, eps)
    assert (matrices["weight_decay"], biases["weight_decay"]) == (decay, 0.0)


@pytest.mark.parametrize(
    ("experiment", "rates"),
    [
        ("original_pretrain", {0: 1, 26_565: 1}),
        ("original_finetune", {0: 1, 1_449: 1}),
        ("llava15_pretrain", {0: 1 / 65, 64: 1, 65 + (2180 - 65) // 3: 0.75}),  # a third of the cosine
        ("llava15_finetune", {0: 1 / 156, 155: 1, 156 + (5197 - 156) // 3: 0.75}),
    ],
)
def test_a_recipe_makes_its_sources_schedule(compose_config, experiment, rates):
    cfg = compose_config("train", f"experiment={experiment}")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = build_schedule(optimizer, cfg.optim, PASSES[experiment][0]).lr_lambdas[0]
    # The cosine's third falls between two steps, which are 1e-3 apart.
    assert {step: factor(step) for step in rates} == pytest.approx(rates, abs=1e-3)


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_passes_over_each_source_as_often_as_it_says(compose_config, experiment):
    steps, found = passes(compose_config("train", f"experiment={experiment}"), SIZES)
    wanted_steps, wanted = PASSES[experiment]
    # Shares are counted in 1/1024 of all samples, which is 0.5% of Alpaca's; the last step's rest is 0.1%.
    assert steps == wanted_steps and found == pytest.approx(wanted, rel=0.006)
    assert f"{steps:,} steps" in header(f"experiment/{experiment}.yaml")


def test_the_headers_figures_of_the_mixes(compose_config):
    _, found = passes(compose_config("train", "experiment=original_finetune"), SIZES)
    said = header("experiment/original_finetune.yaml")
    assert f"{found['vqa']:.2f} passes over the questions and {found['instruct']:.2f} over the instructions" in said

    _, found = passes(compose_config("train", "stage=finetune", "data=instruct_mix", "stage.epochs=1"), SIZES)
    said = header("data/instruct_mix.yaml")
    told = (
        "{vqa:.2f} passes over the questions",
        "{instruct:.2f} over the instructions",
        "{coco:.2f} over the captions",
    )
    for words in told:
        assert words.format(**found) in said


def test_vqav2_bare_is_vqav2_without_its_prompt(compose_config):
    cfg = compose_config("evaluate", "evaluation=[vqav2,vqav2_bare]", "paths.data=data", "paths.cache=cache")
    both = OmegaConf.to_container(cfg.evaluation, resolve=True)
    assert both["vqav2"].pop("prompt") == SHORT_ANSWER and both["vqav2_bare"].pop("prompt") is None
    assert both["vqav2"] == both["vqav2_bare"]

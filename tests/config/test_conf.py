"""Every YAML composes and binds, what wins over what, and what is refused before any weight is loaded."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from tests.support.verbs import train
from visllama.config.checks import check_train
from visllama.config.schema import conf_dir
from visllama.data.scenes.source import ScenesSource
from visllama.data.sources import MIX_KEYS
from visllama.errors import ConfigError
from visllama.plugins import check_target

LEAVES = sorted(
    path.relative_to(conf_dir()).with_suffix("") for path in conf_dir().rglob("*.yaml") if "local" not in path.parts
)
ADDED_BY_CALLER = {
    "connector": {"vision_dim", "language_dim"},
    "optim": {"params"},
    "source": {"split"},
    "evaluation": {"split"},
}
OURS = {"optim": {"schedule", "warmup_fraction", "clip_norm", "lr_by_part"}, "data": set(MIX_KEYS)}


def choice(leaf: Path) -> tuple[str, str] | None:
    group, name = leaf.parent.as_posix(), leaf.name
    if group == ".":
        return None
    chosen = f"{group}=[{name}]" if group in ("evaluation", "data/source") else f"{group}={name}"
    return "prepare" if group == "source" else "train", chosen


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_every_yaml_composes(compose_config, leaf):
    chosen = choice(leaf)
    cfg = compose_config(*chosen) if chosen else compose_config(leaf.name)
    assert isinstance(cfg, DictConfig)


def targets(node, path=""):
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key in node:
            yield from targets(node[key], f"{path}.{key}".strip("."))
    elif isinstance(node, list):
        for item in node:
            yield from targets(item, path)


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_every_target_binds_to_its_signature(leaf):
    """A typo in a leaf's key is found here, not after an hour of training."""
    for path, node in targets(OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{leaf}.yaml"))):
        if path.startswith("hydra") or leaf.parts[0] == "hydra":
            continue  # Hydra itself builds these, out of what it knows
        check_target(node["_target_"])
        signature = inspect.signature(get_class(node["_target_"]))
        # torch's and lightning's own classes take **kwargs in places; ours never.
        if node["_target_"].startswith("visllama."):
            assert not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()), node["_target_"]
        given = set(node) - {"_target_"} - OURS.get(leaf.parts[0], set())
        signature.bind(
            **dict.fromkeys(given | ADDED_BY_CALLER.get(leaf.parent.name, ADDED_BY_CALLER.get(leaf.parts[0], set())))
        )


def test_pretrain_holds_the_published_values(compose_config):
    cfg = compose_config("train")
    assert (cfg.stage.global_batch_size, cfg.stage.epochs, cfg.stage.max_text_tokens, cfg.optim.lr) == (
        64,
        3,
        256,
        4e-3,
    )
    assert cfg.model.connector.num_image_tokens == 10
    assert int(cfg.stage.epochs * len(ScenesSource("train"))) // cfg.stage.global_batch_size == 250


def test_finetune_holds_the_published_values(compose_config):
    cfg = compose_config("train", "stage=finetune", "data=instruct_mix")
    assert (cfg.stage.global_batch_size, cfg.stage.epochs, cfg.stage.max_text_tokens, cfg.optim.lr) == (
        1024,
        3,
        256,
        2e-5,
    )
    assert cfg.model.lora == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    assert (list(cfg.stage.trainable), cfg.stage.template) == (["connector", "markers", "adapter"], "question_answer")
    check_train(cfg)


def test_the_embedded_world_has_values_of_its_own_size(compose_config):
    cfg = compose_config("train", "stage=finetune")
    assert list(cfg.data.sources) == ["scenes_questions", "scenes_conversations", "scenes_instructions", "scenes"]
    assert list(cfg.evaluation) == ["scenes_vqa", "scenes_caption", "scenes_instruct"]
    assert (cfg.stage.global_batch_size, cfg.optim.lr, cfg.model.lora.r) == (64, 4e-3, 8)
    check_train(cfg)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stage=finetune", "model/lora=none"], "'adapter', but the model has none: choose one, as model/lora=qv"),
        (["model/lora=qv"], "does not train: name adapter there"),
        (
            ["stage=finetune", "stage.trainable=[connector,markers,adapter,language_model]"],
            "language_model beside model",
        ),
        (["stage.template=vicunna"], "stage.template=vicunna: choose plain, question_answer, original, alpaca"),
        (["stage.template={human: hi}"], r"stage.template.human='hi': has no \{human\}"),
        (["init_from=nowhere"], "init_from=nowhere: holds no visllama.json"),
        (["model.lora=qv"], "model.lora=qv: an option of a group is chosen with slashes"),
    ],
)
def test_contradictions_of_a_stage_are_refused(compose_config, overrides, says):
    with pytest.raises(ConfigError, match=says):
        check_train(compose_config("train", *overrides))


class TestWhatWins:
    """conf defaults < stage < tuned < experiment < local < the command line."""

    @pytest.fixture
    def mine(self, tmp_path):
        def write(path: str, text: str):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(f"# @package _global_\n{text}")
            return tmp_path

        return write

    def test_stage_over_defaults(self, compose_config, mine):
        mine("stage/mine.yaml", "defaults: [pretrain]\noptim: {lr: 0.5, weight_decay: 0.3}\nmicro_batch_size: 7")
        cfg = compose_config("train", "stage=mine", config_dir=mine("x.yaml", ""))
        assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.micro_batch_size) == (0.5, 0.3, 7)

    def test_tuned_over_stage(self, compose_config, mine):
        folder = mine("tuned/tiny_scenes_pretrain.yaml", "optim: {lr: 0.25}")
        assert compose_config("train", config_dir=folder).optim.lr == 0.25

    def test_tuned_reaches_its_own_triple_alone(self, compose_config, mine):
        mine("tuned/tiny_scenes_pretrain.yaml", "optim: {lr: 0.25}")
        folder = mine("data/other.yaml", "data: {sources: {other: {x: 1}}, num_workers: 2}")
        assert compose_config("train", "data=other", config_dir=folder).optim.lr == 4e-3
        assert compose_config("train", "stage=finetune", "data=other", config_dir=folder).optim.lr == 2e-5

    def test_experiment_over_tuned_over_stage_and_the_command_line_over_all(self, compose_config, mine):
        mine("tuned/tiny_scenes_pretrain.yaml", "optim: {lr: 0.25, weight_decay: 0.4}")
        folder = mine(
            "experiment/mine.yaml", "optim: {lr: 0.75, clip_norm: 3}\ndefaults:\n- override /model/connector: resampler"
        )
        cfg = compose_config("train", "experiment=mine", config_dir=folder)
        assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.clip_norm) == (0.75, 0.4, 3)
        assert cfg.model.connector._target_.endswith("ResamplerConnector")
        cfg = compose_config("train", "experiment=mine", "optim.lr=0.9", "model/connector=mlp", config_dir=folder)
        assert cfg.optim.lr == 0.9 and cfg.model.connector._target_.endswith("MLPConnector")

    def test_no_value_of_the_embedded_world_reaches_other_data_and_models(self, compose_config, mine):
        """Neither its sources nor its judge nor its backbones: nothing in the config speaks of scenes."""
        mine("data/other.yaml", "data: {sources: {other: {x: 1}}, num_workers: 2}")
        mine("model/vision_encoder/other.yaml", "model: {vision_encoder: {path: a}}")
        folder = mine("model/language_model/other.yaml", "model: {language_model: {path: b}}")
        cfg = compose_config(
            "train", "data=other", "model/vision_encoder=other", "model/language_model=other", config_dir=folder
        )
        text = OmegaConf.to_yaml(
            OmegaConf.masked_copy(cfg, ["model", "data", "evaluation", "stage", "optim", "trainer"])
        )
        assert cfg.evaluation == {} and "scenes" not in text and "visllama:" not in text

    def test_another_judge_can_be_chosen_with_scenes(self, compose_config):
        assert compose_config("train", "evaluation=none").evaluation == {}
        assert list(compose_config("train").evaluation) == ["scenes_caption"]


EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_where_it_comes_from(experiment):
    lines = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and lines[1].startswith("# ")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_starts_at_tiny_size(compose_config, experiment):
    tiny = [f"model/{part}=tiny" for part in ("vision_encoder", "language_model")]
    small = [
        "model=tiny",
        *tiny,
        "stage.max_text_tokens=64",
        "data=scenes",
        "trainer=cpu",
        "trainer.num_nodes=1",
        "trainer.devices=1",
        "trainer.max_steps=2",
        "stage.global_batch_size=4",
    ]
    cfg = compose_config("train", f"experiment={experiment}", *small, "data.num_val_records=4", "judge=false")
    assert train(cfg)["train"]["steps"] == 2


@pytest.mark.parametrize("part", ["vision_encoder", "language_model"])
def test_published_models_are_pinned_to_a_commit(part):
    for path in (conf_dir() / "model" / part).glob("*.yaml"):
        node = OmegaConf.load(path)
        assert node.path.startswith("visllama:") or re.fullmatch("[0-9a-f]{40}", node.revision), path

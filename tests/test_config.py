"""Every YAML composes and binds, what wins over what, and what is refused before any weight is loaded."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from visllama.config import (
    ConfigError,
    build,
    check_evaluate,
    check_target,
    check_train,
    conf_dir,
    evaluations,
    override,
    target_of_kind,
)

LEAVES = sorted(
    path.relative_to(conf_dir()).with_suffix("") for path in conf_dir().rglob("*.yaml") if "local" not in path.parts
)
ADDED_BY_CALLER = {"connector": {"vision_dim", "language_dim"}, "optim": {"params"}}
OURS = {"optim": {"schedule", "warmup_fraction", "clip_norm", "lr_by_part"}}


def choice(leaf: Path) -> tuple[str, str] | None:
    group, name = leaf.parent.as_posix(), leaf.name
    if group == ".":
        return None
    return (
        "prepare" if group == "prepare" else "train"
    ), f"{group}={name}" if group != "evaluation" else f"evaluation=[{name}]"


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
        if path.startswith("hydra"):
            continue
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
    assert int(cfg.stage.epochs * cfg.data.train.num_records) // cfg.stage.global_batch_size == 250


def test_finetune_holds_the_published_values(compose_config):
    cfg = compose_config("train", "stage=finetune")
    assert (cfg.stage.global_batch_size, cfg.stage.epochs, cfg.stage.max_text_tokens, cfg.optim.lr) == (
        1024,
        3,
        256,
        2e-5,
    )
    with pytest.raises(ConfigError, match="'adapter', but the model has no LoRA"):
        check_train(cfg)


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
        folder = mine("data/other.yaml", "data: {train: {x: 1}, val: {x: 1}, num_workers: 2}")
        assert compose_config("train", "data=other", config_dir=folder).optim.lr == 4e-3
        assert compose_config("train", "stage=finetune", config_dir=folder).optim.lr == 2e-5

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
        mine("data/other.yaml", "data: {train: {x: 1}, val: {x: 1}, num_workers: 2}")
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


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stage.global_batch_size=0", "stage.global_batch_size=0: must be more than 0"),
        ("micro_batch_size=-1", "micro_batch_size=-1"),
        ("stage.trainable=[conector]", "stage.trainable names 'conector': choose from connector, markers"),
        ("stage.trainable=[]", "trains nothing"),
        ("optim.lr=0", "optim.lr=0"),
        ("optim.schedule=cosin", "optim.schedule=cosin: choose cosine, linear or constant"),
        ("optim.warmup_fraction=1", "optim.warmup_fraction=1"),
        ("optim.lr_by_part.language_model=1", "optim.lr_by_part names 'language_model', which does not train"),
        ("trainer.max_steps=0", "trainer.max_steps=0"),
    ],
)
def test_contradictions_name_the_key_and_the_value(compose_config, override, says):
    with pytest.raises(ConfigError) as error:
        check_train(compose_config("train", override))
    assert says in str(error.value)


def test_evaluate_wants_one_thing_to_judge(compose_config, tmp_path):
    for overrides, says in (
        ([], "found neither"),
        (["weights=a", "predictions=b"], "weights and predictions"),
        ([f"weights={tmp_path}/no"], "no such file or folder"),
        ([f"predictions={tmp_path}"], "references=FILE is missing"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_evaluate(compose_config("evaluate", *overrides))


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "subprocess.run", "visllamax.f", "torch.load", None, 3]
)
def test_targets_outside_the_allow_list_are_refused(target):
    with pytest.raises(ConfigError, match="is not allowed"):
        build({"_target_": "visllama.data.scenes.source.ScenesSource", "split": {"deep": [{"_target_": target}]}})


def test_kinds_resolve_by_their_yaml():
    assert target_of_kind("connector", "mlp").__name__ == "MLPConnector"
    with pytest.raises(ConfigError, match="unknown connector 'mpl': there are mlp, resampler"):
        target_of_kind("connector", "mpl")


def test_evaluations_on_another_split_say_so(compose_config):
    cfg = compose_config("train")
    assert evaluations(cfg)["scenes_caption"]["source"]["split"] == "test"
    on_val = evaluations(cfg, "val")
    assert list(on_val) == ["scenes_caption_val"] and on_val["scenes_caption_val"]["source"]["split"] == "val"
    assert cfg.evaluation.scenes_caption.split == "test"


@pytest.mark.parametrize(
    "value", ["plain/path-1.0", "a b", "k=v", "it's", "(x)", "back\\slash", "end\\", "\\'", "ü", "a,b", "[x]"]
)
def test_an_override_is_read_back_as_it_was(value):
    parsed = OverridesParser.create().parse_override(override("key", value))
    assert parsed.key_or_group == "key" and str(parsed.value()) == value

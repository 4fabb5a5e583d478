import ast
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import visllama
from visllama.config import plain as module
from visllama.config.plain import evaluations, judging, plain, to_dict, to_yaml
from visllama.config.schema import PrepareConfig
from visllama.errors import ConfigError


def test_every_reference_is_resolved_and_nothing_of_omegaconf_is_left(compose_config):
    cfg = compose_config("train", "name=a", "paths.models=${name}/x", "model/lora=qv", "trainer.devices=[0,1]")
    config = plain(cfg)
    assert config.paths["models"] == "a/x"
    assert to_dict(config) == OmegaConf.to_container(cfg, resolve=True)
    assert to_yaml(config) == OmegaConf.to_yaml(cfg, resolve=True)

    def walk(value):
        assert is_dataclass(value) or type(value) in (dict, list, str, int, float, bool, type(None)), type(value)
        inside = vars(value) if is_dataclass(value) else value
        for each in inside.values() if isinstance(inside, dict) else inside if isinstance(inside, list) else ():
            walk(each)

    walk(config)


@pytest.mark.parametrize("is_rival", [False, True])
def test_rivals_are_judged_on_validation_and_under_a_name_that_says_so(compose_config, monkeypatch, is_rival):
    """The place of the data follows the split."""
    monkeypatch.setattr(module, "is_selecting", lambda: is_rival)
    cfg = compose_config("train", "evaluation=[scenes_caption,coco_karpathy]", "paths.data=d")
    config = plain(cfg)
    suffix, split = ("_val", "val") if is_rival else ("", "test")
    assert list(config.judged_on) == [f"scenes_caption{suffix}", f"coco_karpathy{suffix}"]
    assert {evaluation["split"] for evaluation in config.judged_on.values()} == {split}
    assert config.judged_on[f"coco_karpathy{suffix}"]["source"]["val_path"] == f"d/coco/{split}"
    assert to_dict(config) == OmegaConf.to_container(cfg, resolve=True), "the configuration itself stays"


def test_rivals_are_not_selected_by_files_of_another_split(compose_config, monkeypatch):
    """What a file holds does not follow the split: its test captions would choose the best job."""
    monkeypatch.setattr(module, "is_selecting", lambda: True)
    files = ["evaluation=[files]", "evaluation.files.images=d", "evaluation.files.references=r.json"]
    with pytest.raises(ConfigError, match=r"evaluation\.files\.split=test: .* selected by val"):
        plain(compose_config("train", *files))
    config = plain(compose_config("train", *files, "evaluation.files.split=val"))
    assert config.judged_on["files_val"]["source"]["references"] == "r.json"


def test_what_a_run_says_of_judging_is_what_evaluate_reads(compose_config):
    cfg = compose_config(
        "train", "decoding.max_new_tokens=${stage.max_text_tokens}", "name=a", "paths.models=${name}/x"
    )
    config = judging(cfg)
    assert config.decoding["max_new_tokens"] == cfg.stage.max_text_tokens and config.paths["models"] == "a/x"
    assert evaluations(config) == evaluations(plain(cfg)) and config.trainer == plain(cfg).trainer


def test_the_keys_of_a_source_stand_apart(configure):
    config = configure("prepare", "source=folder", "images=i")
    assert type(config) is PrepareConfig and config.source == "folder"
    assert config.keys["images"] == "i" and "source" not in config.keys and "keys" not in to_dict(config)


def assignments(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the variable and the line of each assignment to an attribute or an item."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if not isinstance(target, (ast.Attribute, ast.Subscript)):
                continue
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
            if isinstance(target, ast.Name):
                yield target.id, node.lineno


def test_an_assignment_to_a_configuration_is_found():
    tree = ast.parse("config.trainer.max_steps = 3\nconfig.model['lora'] = None\nconfig = 4\nother.seed = 1")
    assert [line for name, line in assignments(tree) if name == "config"] == [1, 2]


def test_below_the_door_nothing_assigns_to_a_configuration():
    """The dataclasses cannot be frozen: OmegaConf would refuse every override of one that is."""
    package = Path(visllama.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in ("config", "sweep", "cli.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path}:{line}" for name, line in assignments(tree) if name == "config"]
    assert found == []

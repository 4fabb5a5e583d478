import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, read_write

from visllama.config.ranges import Range
from visllama.config.selection import are_rivals, is_selecting, ranges_in, swept_keys


@pytest.mark.parametrize(
    ("keys", "rivals"), [([], False), (["seed"], False), (["optim.lr"], True), (["optim.lr", "seed"], True)]
)
def test_jobs_that_differ_in_more_than_the_seed_are_rivals(keys, rivals):
    assert are_rivals(keys) is rivals


def test_the_swept_keys_are_those_with_several_values(tmp_path):
    (tmp_path / "multirun.yaml").write_text(
        "hydra: {overrides: {task: ['optim.lr=1e-3,1e-2', 'name=lr', 'model/connector=mlp,resampler', 'data.x=[1,2]']}}"
    )
    assert swept_keys(tmp_path) == ["optim.lr", "model/connector"]


def test_the_keys_of_a_grid_by_name_are_swept_and_a_typed_one_wins(compose_config, tmp_path):
    cfg = compose_config("train", "sweep=lr_warmup")
    hydra = OmegaConf.masked_copy(HydraConfig.instance().cfg, "hydra")
    OmegaConf.save(OmegaConf.merge(hydra, cfg), tmp_path / "multirun.yaml")
    assert swept_keys(tmp_path) == ["optim.lr", "optim.warmup_fraction"] and ranges_in(tmp_path) == []
    with_typed = hydra.copy()
    with read_write(with_typed.hydra) as node:
        node.overrides.task = ["sweep=lr_warmup", "optim.lr=1e-3", "optim.warmup_fraction=0,0.2", "seed=1,2"]
    OmegaConf.save(with_typed, tmp_path / "multirun.yaml")
    assert swept_keys(tmp_path) == ["optim.warmup_fraction", "seed"], "one rate was typed"


def test_the_keys_of_a_search_are_those_of_its_ranges(tmp_path):
    (tmp_path / "multirun.yaml").write_text(
        "hydra: {overrides: {task: [search=tpe, 'model/connector=mlp,resampler', optim.b=1]}}\n"
        "search: {ranges: {optim: {lr: {low: 1e-5, high: 0.1, log: true}, b: {low: 0, high: 2}}}}"
    )
    assert swept_keys(tmp_path) == ["optim.lr", "model/connector"]
    assert ranges_in(tmp_path)[0] == Range("optim.lr", 1e-5, 0.1, is_log=True)


@pytest.mark.parametrize(("words", "expected"), [("optim.lr=1e-3,1e-2", True), ("seed=1,2", False)])
def test_another_rank_of_a_job_and_one_that_is_resumed_are_judged_as_the_others(
    compose_config, tmp_path, words, expected
):
    """They run without `--multirun`, below the folder of the sweep."""
    compose_config("train")
    folder = tmp_path.parent / f"{tmp_path.name}_sweep"
    (folder / "0").mkdir(parents=True)
    with read_write(HydraConfig.instance().cfg.hydra.runtime) as runtime:
        runtime.output_dir = str(folder / "0")
    assert not is_selecting()
    (folder / "multirun.yaml").write_text(f"hydra: {{overrides: {{task: ['{words}']}}}}")
    assert is_selecting() is expected

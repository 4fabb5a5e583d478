import os

import pytest
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from visllama.config import ConfigError, register
from visllama.resume import Finished, differing_keys, find_run, replay, words_to_go_on


@pytest.fixture
def run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(
        "- model/connector=resampler\n- seed=3\n- data.sources.shards.path='a b.tar'\n- +x.y=1\n- resume=old\n"
    )
    (tmp_path / ".hydra" / "hydra.yaml").write_text(
        "hydra:\n  runtime:\n    config_sources:\n    - {path: hydra.conf, provider: hydra}\n"
        "    - {path: /my/conf, provider: command-line}\n"
        "  overrides: {hydra: ['hydra.run.dir=elsewhere', 'hydra.searchpath=[/a]']}\n"
    )
    return tmp_path


def test_nothing_changes_without_resume():
    for arguments in (["seed=2", "-m"], ["resume=null"], ["resume="], []):
        assert replay(arguments) == arguments


def test_a_runs_overrides_come_before_what_is_typed(run):
    assert replay([f"resume={run}", "data.num_workers=2"]) == [
        "--config-dir", "/my/conf", "hydra.searchpath=[/a]", "model/connector=resampler", "seed=3",
        "data.sources.shards.path='a b.tar'", "+x.y=1", f"hydra.run.dir={run}", f"resume={run}", "data.num_workers=2",
    ]  # fmt: skip


def test_what_is_typed_replaces_the_same_key(run):
    replayed = replay([f"resume={run}", "seed=4", "model/connector=mlp", "x.y=2", "--config-dir", "/other"])
    assert [word for word in replayed if "seed" in word or "connector" in word or "x.y" in word] == [
        "seed=4", "model/connector=mlp", "x.y=2",
    ]  # fmt: skip
    assert replayed.count("--config-dir") == 1


@pytest.mark.parametrize("typed", ["-m", "hydra.run.dir=elsewhere"])
def test_it_goes_on_in_its_folder_alone(run, typed):
    with pytest.raises(ConfigError, match="leave out"):
        replay([f"resume={run}", typed])


def test_a_kill_while_hydra_writes_loses_no_override(run):
    (run / "command.yaml").write_text("{overrides: [seed=3], options: []}")
    (run / ".hydra" / "overrides.yaml").write_text("")
    assert replay([f"resume={run}"]) == ["seed=3", f"hydra.run.dir={run}", f"resume={run}"]


def test_another_rank_may_be_given_the_folder(run):
    assert replay([f"resume={run}", f"hydra.run.dir={run}"]).count(f"hydra.run.dir={run}") == 1


@pytest.mark.parametrize("content", [None, "{", "- 3", "a: b"])
def test_what_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / ".hydra").mkdir()
        for name in ("overrides", "hydra"):
            (tmp_path / ".hydra" / f"{name}.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"resume=.*: no folder of a run"):
        replay([f"resume={tmp_path}"])


@pytest.fixture
def runs(tmp_path):
    """Make runs of one name: by folder, the time of the newest checkpoint (None is none), and whether it is finished."""

    def make(**times):
        for name, when in times.items():
            folder = tmp_path / "a" / name
            (folder / "checkpoints").mkdir(parents=True)
            (folder / "command.yaml").write_text("{overrides: [name=a, seed=3], options: []}")
            (folder / "metrics.json").write_text("{}")
            if when is not None:
                (folder / "checkpoints" / "step_00000004").mkdir()
                os.utime(folder / "checkpoints" / "step_00000004", (when, when))
        return ["name=a", f"paths.outputs={tmp_path}", "seed=3"]

    register()
    return make


def test_auto_takes_the_newest_run_of_that_name_that_has_a_checkpoint(runs, tmp_path):
    words = runs(one=100, two=300, three=200, four=None)
    assert find_run(words) == tmp_path / "a" / "two"
    replayed = replay([*words, "resume=auto"])
    assert f"resume={tmp_path / 'a' / 'two'}" in replayed and "resume=auto" not in replayed
    assert f"hydra.run.dir={tmp_path / 'a' / 'two'}" in replayed


def test_auto_begins_where_there_is_none(runs, tmp_path):
    words = runs(one=None)
    assert replay([*words, "resume=auto"]) == words
    assert find_run(["name=b", f"paths.outputs={tmp_path}"]) is None
    assert find_run(["nonsense=1"]) is None, "what does not compose is refused by Hydra itself, with a message"


def test_auto_does_nothing_for_what_is_finished_unless_more_is_asked(runs, tmp_path):
    words = runs(one=100)
    (tmp_path / "a" / "one" / "metrics.json").write_text('{"provenance": {}}')
    (tmp_path / "a" / "one" / "command.yaml").write_text(
        f"{{overrides: [name=a, seed=3, paths.outputs={tmp_path}], options: []}}"
    )
    with pytest.raises(Finished, match="is finished: nothing to do"):
        find_run(words)
    assert find_run([*words, "trainer.max_steps=9"]) == tmp_path / "a" / "one"


def test_what_a_run_is_may_not_differ_and_how_it_computes_may():
    before = {"optim.lr": 1, "trainer.devices": 1, "seed": 1, "data.sources.a": 1, "micro_batch_size": 8, "model.x": 1}
    now = {
        "optim.lr": 2,
        "trainer.devices": 4,
        "seed": 2,
        "data.sources.a": 2,
        "micro_batch_size": 4,
        "model.x": "${model.y}",
    }
    assert differing_keys(before, now) == ["data.sources.a", "optim.lr", "seed"]
    assert differing_keys(before, now | {"data.allow_reorder": True}) == ["optim.lr"]
    assert differing_keys(before, before | {"model.x": 2}) == ["model.x"]
    assert differing_keys(before, before | {"model.x": 2, "init_from": "w"}) == ["init_from"], "it brings the model"


def test_the_next_command_names_the_users_configs_and_code(compose_config, tmp_path):
    """`plugins` and `--config-dir` choose which code runs: a folder alone does not."""
    compose_config("train", "plugins=[mylab]", "seed=3")
    with read_write(HydraConfig.get()):
        HydraConfig.get().runtime.config_sources = [ConfigSourceInfo("/my conf", "file", "command-line")]
    assert words_to_go_on(tmp_path) == ["--config-dir", "/my conf", "plugins=[mylab]", f"resume={tmp_path}"]
    compose_config("train", "seed=3")
    assert words_to_go_on(tmp_path) == [f"resume={tmp_path}"]

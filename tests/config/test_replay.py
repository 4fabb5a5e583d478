import os

import pytest
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from tests.support.written_runs import write_command_file
from visllama.config.command import words_to_go_on
from visllama.config.replay import Finished, differing_keys, find_run, replay
from visllama.config.schema import register
from visllama.errors import ConfigError


def test_nothing_changes_without_resume():
    for arguments in (["seed=2", "-m"], ["resume=null"], ["resume="], []):
        assert replay(arguments) == arguments


def test_a_runs_overrides_come_before_what_is_typed(run):
    assert replay([f"resume={run}", "data.num_workers=2"]) == [
        "model/connector=resampler", "seed=3", "data.sources.shards.path='a b.tar'", "+x.y=1",
        f"hydra.run.dir={run}", f"resume={run}", "data.num_workers=2",
    ]  # fmt: skip


def test_what_is_typed_replaces_the_same_key(run):
    replayed = replay([f"resume={run}", "seed=4", "model/connector=mlp", "x.y=2"])
    assert [word for word in replayed if "seed" in word or "connector" in word or "x.y" in word] == [
        "seed=4", "model/connector=mlp", "x.y=2",
    ]  # fmt: skip


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
    assert find_run(words, "auto") == tmp_path / "a" / "two"
    replayed = replay([*words, "resume=auto"])
    assert f"resume={tmp_path / 'a' / 'two'}" in replayed and "resume=auto" not in replayed
    assert f"hydra.run.dir={tmp_path / 'a' / 'two'}" in replayed


def test_auto_begins_where_there_is_none(runs, tmp_path):
    words = runs(one=None)
    assert replay([*words, "resume=auto"]) == words
    assert find_run(["name=b", f"paths.outputs={tmp_path}"], "auto") is None
    assert find_run(["nonsense=1"], "auto") is None, "what does not compose is refused by Hydra itself, with a message"


def test_auto_does_nothing_for_what_is_finished_unless_more_is_asked(runs, tmp_path):
    words = runs(one=100)
    (tmp_path / "a" / "one" / "metrics.json").write_text('{"provenance": {}}')
    (tmp_path / "a" / "one" / "command.yaml").write_text(
        f"{{overrides: [name=a, seed=3, paths.outputs={tmp_path}], options: []}}"
    )
    with pytest.raises(Finished, match="is finished: nothing to do"):
        find_run(words, "auto")
    with pytest.raises(ConfigError, match="resume=auto goes on with one run: leave out -m"):
        replay([*words, "resume=auto", "-m"])
    assert find_run([*words, "trainer.max_steps=9"], "auto") == tmp_path / "a" / "one"


def test_last_takes_the_newest_run_of_any_name_and_of_a_sweep(runs, tmp_path):
    runs(one=100)
    outputs = f"paths.outputs={tmp_path}"
    job = tmp_path / "b" / "sweep" / "0"
    (job / "checkpoints" / "step_00000004").mkdir(parents=True)
    (job / "command.yaml").write_text("{overrides: [name=b, trainer.val_fraction=0.5], options: []}")

    replayed = replay([outputs, "resume=last"])

    assert f"resume={job}" in replayed and "resume=last" not in replayed
    assert "trainer.val_check_interval=0.5" in replayed, "what an earlier version called otherwise"


def test_last_goes_on_with_a_search_also_beside_multirun(runs, tmp_path):
    """`-m` is how a search was started: the same words go on with it."""
    runs(one=100)
    search = tmp_path / "b" / "search"
    (search / "0" / "checkpoints" / "step_00000004").mkdir(parents=True)
    for folder in (search, search / "0"):
        (folder / "command.yaml").write_text("{overrides: [name=b], options: []}")
    (search / "search.journal").write_text("")
    assert f"hydra.sweep.dir={search}" in replay([f"paths.outputs={tmp_path}", "resume=last", "-m"])

    runs(two=9e12)
    with pytest.raises(ConfigError, match=r"resume=.*two goes on with one run: leave out -m"):
        replay([f"paths.outputs={tmp_path}", "resume=last", "-m"])


def test_last_names_the_folder_in_which_it_finds_no_run(tmp_path):
    with pytest.raises(ConfigError, match=rf"resume=last: there is no run .* in paths.outputs={tmp_path}"):
        replay([f"paths.outputs={tmp_path}", "resume=last"])


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
    assert differing_keys(before | {"data.sources.b": 1, "trainer.x": 1}, before) == ["data.sources.b"]
    assert differing_keys(before, before | {"model.x": 2, "init_from": "w"}) == ["init_from"], "it brings the model"


def test_the_next_command_names_the_users_configs_and_code(compose_config, tmp_path):
    """`plugins` and `--config-dir` choose which code runs: a folder alone does not."""
    compose_config("train", "plugins=[mylab]", "seed=3")
    with read_write(HydraConfig.get()):
        HydraConfig.get().runtime.config_sources = [ConfigSourceInfo("/my conf", "file", "command-line")]
    assert words_to_go_on(tmp_path) == ["--config-dir", "/my conf", "plugins=[mylab]", f"resume={tmp_path}"]
    compose_config("train", "seed=3")
    assert words_to_go_on(tmp_path) == [f"resume={tmp_path}"]


@pytest.mark.parametrize(
    "content",
    ["overrides: 5\noptions: []", "overrides: null\noptions: []", "overrides: [5]\noptions: []", "overrides: [[a]]\noptions: []",
     "overrides: []\noptions: [-m]", "overrides: []\noptions: [--config-dir]", "overrides: []\noptions: {}", "- a", "5", "",
     "overrides: []", "!!python/object/apply:os.system [true]", "[" * 5000, "a: &a [*a]", "\x00", "x" * 2**21, "overrides: []\noptions: []\nseal: \"\\ud800\""],
    ids=range(17),
)  # fmt: skip
def test_a_command_of_nonsense_is_no_run(tmp_path, content):
    (tmp_path / "command.yaml").write_text(content)
    with pytest.raises(ConfigError, match="no folder of a run"):
        replay([f"resume={tmp_path}"])


def test_escapes_for_the_terminal_are_shown_as_text(tmp_path):
    write_command_file(tmp_path, "plugins=[\x1b]0;evil\x07\u202e]")
    with pytest.raises(ConfigError) as refused:
        replay([f"resume={tmp_path}"])
    assert r"\x1b]0;evil\x07\u202e" in str(refused.value) and str(refused.value).isprintable()

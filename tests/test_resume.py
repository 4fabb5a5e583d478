import pytest

from visllama.config import ConfigError
from visllama.resume import replay


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

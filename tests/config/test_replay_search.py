import pytest
import yaml

from visllama.config.replay import find_run, replay
from visllama.config.replay_search import JOURNAL, is_search
from visllama.config.schema import register
from visllama.config.trust import seal
from visllama.errors import ConfigError

WORDS = ["search=tpe", "search.n_trials=5", "optim.weight_decay=0,0.1", "name=lr"]


def write_search(folder, words=WORDS, is_own: bool = True):
    folder.mkdir(parents=True)
    sealed = seal(folder, [words, []]) if is_own else None
    (folder / "command.yaml").write_text(yaml.safe_dump({"overrides": words, "options": [], "seal": sealed}))
    (folder / JOURNAL).touch()
    return folder


def test_a_search_goes_on_in_its_folder_with_more_trials(tmp_path):
    folder = write_search(tmp_path / "s")
    assert is_search(folder) and not is_search(tmp_path)
    replayed = replay([f"resume={folder}", "search.n_trials=9", "-m"])
    kept = [word for word in WORDS if word != "search.n_trials=5"]
    assert replayed == [*kept, f"hydra.sweep.dir={folder}", "search.n_trials=9", "-m"], "no job is told to resume"


@pytest.mark.parametrize(
    "typed", ["optim.lr=1e-3", "search.ranges.optim.lr.high=1", "trainer.max_steps=3", "search=random"]
)
def test_it_goes_on_as_it_began(tmp_path, typed):
    with pytest.raises(ConfigError, match=rf"{typed}: a search goes on as it began.* paths\.\*, hydra\.\*, "):
        replay([f"resume={write_search(tmp_path / 's')}", typed])


def test_words_that_it_began_with_may_be_typed_again(tmp_path):
    folder = write_search(tmp_path / "s")
    assert replay([f"resume={folder}", "name=lr"])[-1] == "name=lr"


def test_a_search_of_somebody_else_chooses_no_code(tmp_path):
    folder = write_search(tmp_path / "s", ["search=tpe", "plugins=[evil]"], is_own=False)
    with pytest.raises(ConfigError, match=r"bears no seal of yours .*plugins=\[evil\]"):
        replay([f"resume={folder}"])


def test_auto_finds_the_newest_search_of_the_name_and_last_the_search_of_the_newest_run(tmp_path):
    register()
    typed = ["search=tpe", f"paths.outputs={tmp_path}", "optim.weight_decay=0,0.1"]
    assert find_run([*typed, "name=lr"], "auto") is None
    folder = write_search(tmp_path / "lr" / "first")
    assert find_run([*typed, "name=lr"], "auto") == folder
    assert find_run([*typed, "name=other"], "auto") is None
    assert replay([*typed, "name=other", "resume=auto", "-m"]) == [*typed, "name=other", "-m"], "it begins"

    job = folder / "0"
    (job / "checkpoints" / "step_00000001").mkdir(parents=True)
    (job / "command.yaml").write_text("{overrides: [], options: []}")
    assert find_run([f"paths.outputs={tmp_path}"], "last") == folder


def test_a_job_of_a_search_goes_on_alone_where_its_own_folder_is_named(tmp_path):
    job = write_search(tmp_path / "s") / "0"
    job.mkdir()
    words = ["optim.lr=1e-3", "sweep=optim_lr"]
    (job / "command.yaml").write_text(
        yaml.safe_dump({"overrides": words, "options": [], "seal": seal(job, [words, []])})
    )
    assert replay([f"resume={job}"]) == ["optim.lr=1e-3", f"hydra.run.dir={job}", f"resume={job}"], "it is no sweep"

"""What is believed of a command that lies in a folder."""

import shlex

import pytest
import yaml

from tests.support.written_runs import write_command_file, write_hydra
from visllama.config.command import write_command
from visllama.config.replay import replay
from visllama.errors import ConfigError

CODE = [
    "plugins=[evil]",
    "+plugins.0=evil",
    "hydra.job.chdir=true",
    "+hydra.job.env_set.PYTHONPATH=/evil",
    "+hydra={callbacks: {a: {_target_: evil.Evil}}}",
    "hydra/job_logging=stdout",
    "model/connector@hydra.callbacks.a=mlp",
    "logger._target_=subprocess.Popen",
    "+logger.deep=[{a: {_target_: evil.Evil}}]",
    "experiment=../../../evil",
    "evaluation=[none,/evil/evil]",
    "local=/evil",
    "stage.prompt=${oc.env:HF_TOKEN}",
    "--experimental-rerun=/evil/config.pickle",
    "-cp/evil",
    "seed=1,2",
    "what is no override",
]


@pytest.mark.parametrize("word", CODE)
def test_what_chooses_code_is_not_taken_out_of_a_folder(tmp_path, word):
    write_command_file(tmp_path, "seed=3", word)
    with pytest.raises(ConfigError, match="its command would choose which code runs") as refused:
        replay([f"resume={tmp_path}", "trainer.devices=2"])
    typed = shlex.join([word, f"resume={tmp_path}", "trainer.devices=2"])
    assert str(refused.value).endswith(f"type it:  visllama train {typed}"), refused.value


@pytest.mark.parametrize("word", [word for word in CODE if not word.startswith("-") and "=" in word])
def test_what_is_typed_again_is_taken(tmp_path, word):
    write_command_file(tmp_path, "micro_batch_size=3", word)
    assert replay([f"resume={tmp_path}", word]) == [
        "micro_batch_size=3",
        f"hydra.run.dir={tmp_path}",
        f"resume={tmp_path}",
        word,
    ]


def test_a_config_folder_is_typed_again_too(run):
    write_hydra(run, "hydra.searchpath=[/a]", config_dir="/my conf")
    with pytest.raises(
        ConfigError, match=r"visllama train --config-dir '/my conf' 'hydra\.searchpath=\[/a\]' resume="
    ) as refused:
        replay([f"resume={run}"])
    typed = shlex.split(str(refused.value).rpartition("train.py ")[2])
    assert replay(typed)[-4:] == typed[-4:] and "seed=3" in replay(typed)
    write_command_file(run, options=["--config-dir", "/x"])
    with pytest.raises(ConfigError, match=r"visllama train --config-dir /x resume="):
        replay([f"resume={run}"])
    assert "/x" not in replay([f"resume={run}", "--config-dir=/y"])


@pytest.mark.parametrize(
    "word",
    ["optim._target_=torch.optim.SGD", "data.sources.a.path=../a.tar", "evaluation=[none]", "~model/lora",
     "stage.prompt='A photo of: [x]'", "init_from=../other/weights", "data/source@data.sources.more=shards"],
)  # fmt: skip
def test_plain_words_are_taken_from_anybody(tmp_path, word):
    write_command_file(tmp_path, word)
    assert replay([f"resume={tmp_path}"])[0] == word


OWN = ["plugins=[mylab]", "optim._target_=mylab.Lion"]


@pytest.fixture
def own(tmp_path, compose_config):
    """A run of this user's, with a plugin and a config folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "run").mkdir()
    compose_config("train", *OWN, config_dir=tmp_path / "conf")
    write_command(tmp_path / "run")
    return tmp_path / "run"


def test_what_this_user_wrote_is_taken_as_it_was(own):
    assert replay([f"resume={own}"])[-4:] == [*OWN, f"hydra.run.dir={own}", f"resume={own}"]


@pytest.mark.parametrize(
    "change", ["moved", "another word", "another option", "another's seal", "no seal", "another user", "no home"]
)
def test_a_seal_is_of_one_user_one_folder_and_one_command(own, change, monkeypatch):
    path = own / "command.yaml"
    content = yaml.safe_load(path.read_text())
    if change == "moved":
        own = own.rename(own.parent / "elsewhere")
    elif change == "another word":
        content["overrides"][0] = "plugins=[evil]"
    elif change == "another option":
        content["options"].append("hydra.searchpath=[/evil]")
    elif change == "another's seal":
        content["seal"] = "0" * 64
    elif change == "no seal":
        del content["seal"]
    elif change == "another user":
        monkeypatch.setenv("XDG_STATE_HOME", str(own.parent / "state"))
    else:
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    if change != "moved":
        path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="bears no seal of yours"):
        replay([f"resume={own}"])


def test_without_a_home_runs_are_written_and_plain_ones_go_on(tmp_path, compose_config, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    compose_config("train", "seed=4")
    write_command(tmp_path)
    assert replay([f"resume={tmp_path}"])[0] == "seed=4"

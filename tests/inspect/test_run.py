"""One inspection fits a terminal, and a step with nothing to learn ends it with an error."""

from __future__ import annotations

import pytest
from webdataset import TarWriter

from tests.support.inspections import SMALL, of_tar, red_picture
from tests.support.verbs import inspect
from visllama.errors import ConfigError


@pytest.mark.parametrize("check_only", [False, True])
def test_a_step_with_nothing_supervised_is_an_error(compose_config, tmp_path, capsys, check_only):
    prompt = "stage.prompt=a small red triangle above a large blue square on the left of a green circle"
    typed = (*SMALL, prompt, "stage.max_text_tokens=12", f"check_only={check_only}")
    with pytest.raises(
        ConfigError, match=r"stage.max_text_tokens=12: none of the 16 samples of step 1 .*16 no_target.*stage.prompt"
    ):
        inspect(compose_config("inspect", *typed))
    assert (tmp_path / "inspect.html").exists() != check_only, "the page shows why"
    said = capsys.readouterr().out
    assert "32 no_target" in said and "masked: 27 more" in said


def test_a_step_that_cannot_be_read_is_an_error(compose_config, tmp_path, capsys):
    with TarWriter(str(tmp_path / "a.tar")) as written:
        for i in range(4):
            written.write({"__key__": f"{i}", "png": red_picture(9)[:-40], "json": {"captions": ["never read"]}})
    with pytest.raises(ConfigError, match=r"data.sources.shards: none of the 4 samples of step 1 .*\(4 image\)"):
        inspect(compose_config("inspect", *of_tar(f"{tmp_path}/a.tar")))
    assert "No sample could be read" in capsys.readouterr().out and (tmp_path / "inspect.html").exists()


def test_it_fits_80_columns(compose_config, tmp_path, monkeypatch, capsys):
    """But for what ends it, which is to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    inspect(compose_config("inspect", "stage=finetune", "stage.template=vicuna", *SMALL, "samples=3"))
    *lines, blank, wrote, train = capsys.readouterr().out.splitlines()
    assert (blank, wrote) == ("", f"Wrote {tmp_path}: inspect.html")
    assert train == "Train on it:  visllama train stage=finetune stage.template=vicuna stage.global_batch_size=16"
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("scenes_instructions ") for line in lines), "names are not broken"

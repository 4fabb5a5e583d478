"""What was typed, as it is told apart: overrides, and the folders of the user's own configs."""

from pathlib import Path

import pytest

from visllama.config.command import split_words


@pytest.mark.parametrize("option", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_a_folder_is_told_from_overrides_however_it_is_typed(option):
    words, folders = split_words(["a=1", *option, "b=2", "-m", "--cfg", "~c"])
    assert folders == [Path("mine").resolve()]
    assert [word for word in words if "=" in word or word.startswith("~")] == ["a=1", "b=2", "~c"]

"""What `train` checks and shows before it begins; with `check_only` that is all."""

from __future__ import annotations

import pytest

from tests.support.verbs import train
from visllama.errors import ConfigError


def test_check_only_prints_the_table_and_writes_nothing(compose_config, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    assert train(compose_config("train", "check_only=true", "model/connector=patch_mlp")) is None
    said = capsys.readouterr().out
    for words in (
        "PatchMLPConnector",
        "33,024",
        "exports to: hub, llava, language_model",
        "5,334",
        "All checks passed",
    ):
        assert words in said, words
    assert set(tmp_path.iterdir()) == before


def test_a_part_in_a_place_of_another_is_refused(compose_config):
    with pytest.raises(
        ConfigError, match=r"model\.connector\._target_=.*PretrainedLanguageModel is no connector: it has no consumes"
    ):
        train(compose_config("train", "model.connector._target_=visllama.model.language_model.PretrainedLanguageModel"))

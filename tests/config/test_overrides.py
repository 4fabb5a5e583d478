import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from visllama.config.overrides import config_dir_options, lists_of, override


@pytest.mark.parametrize(
    "value", ["plain/path-1.0", "a b", "k=v", "it's", "(x)", "back\\slash", "end\\", "\\'", "ü", "a,b", "[x]"]
)
def test_an_override_is_read_back_as_it_was(value):
    parsed = OverridesParser.create().parse_override(override("key", value))
    assert parsed.key_or_group == "key" and str(parsed.value()) == value


def test_another_command_finds_the_same_configs(compose_config, tmp_path):
    compose_config("train", config_dir=tmp_path)
    assert config_dir_options() == [f"hydra.searchpath=[file://{tmp_path}]"]
    compose_config("train")
    assert config_dir_options() == []


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("rows=a.b,c", "rows=[a.b,c]"),
        ("rows=a", "rows=a"),
        ("rows=[a,b]", "rows=[a,b]"),
        ("rows='a,b'", "rows='a,b'"),
        ("other=a,b", "other=a,b"),
        ("-m", "-m"),
    ],
)
def test_values_with_commas_are_a_list_where_a_key_takes_one(typed, read):
    assert lists_of(typed, ("rows",)) == read

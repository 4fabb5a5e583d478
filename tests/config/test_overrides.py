import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from visllama.config.overrides import config_dir_options, in_words, lists_of, override


@pytest.mark.parametrize(
    "value", ["plain/path-1.0", "a b", "k=v", "it's", "(x)", "back\\slash", "end\\", "\\'", "ü", "a,b", "[x]"]
)
def test_an_override_is_read_back_as_it_was(value):
    parsed = OverridesParser.create().parse_override(override("key", value))
    assert parsed.key_or_group == "key" and str(parsed.value()) == value


@pytest.mark.parametrize("text", ["true", "NULL", "1", "1e-3", ".5", "nan", "1_000", "None", "007", "1.2.3"])
def test_a_text_stays_a_text(text):
    parsed = OverridesParser.create().parse_override(override("key", text))
    value = parsed.value()
    assert type(value) in (str, QuotedString) and str(getattr(value, "text", value)) == text


@pytest.mark.parametrize("value", [None, True, False, 3, 1e-05, [1, None, [True]]])
def test_other_values_keep_their_type(value):
    parsed = OverridesParser.create().parse_override(override("key", value))
    assert parsed.value() == value and type(parsed.value()) is type(value)


def test_beginnings_of_keys_are_shown_as_patterns():
    assert in_words(("trainer.", "resume")) == "trainer.*, resume"


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

import pytest

from visllama.config.ranges import Range, is_of_sweep, job_words, read_ranges, searched_ranges
from visllama.errors import ConfigError

LR = {"low": 1e-5, "high": 1e-1, "log": True}


def test_nested_and_dotted_keys_are_the_same():
    expected = {"optim.lr": Range("optim.lr", 1e-5, 1e-1, is_log=True)}
    assert read_ranges({"optim": {"lr": LR}}) == read_ranges({"optim.lr": LR}) == expected


def test_choices_are_written_as_overrides():
    found = read_ranges({"stage": {"trainable": {"choices": [["connector"], ["connector", "markers"]]}},
                         "model/connector": {"choices": ["mlp", "resampler"]}, "x": {"choices": [None, True, "a b"]}})  # fmt: skip
    assert found["stage.trainable"].ends == ["stage.trainable=[connector]", "stage.trainable=[connector,markers]"]
    assert found["model/connector"].ends == ["model/connector=mlp", "model/connector=resampler"]
    assert found["x"].ends == ["x=null", "x=true", "x='a b'"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"low": 2, "high": 1}, r"search.ranges.optim.lr: low=2 must be less than high=1"),
        ({"low": 1, "high": 1}, "low=1 must be less than high=1"),
        ({"low": 0, "high": 1, "log": True}, r"search.ranges.optim.lr.low=0: must be more than 0 with log: true"),
        ({"low": "a", "high": 1}, r"search.ranges.optim.lr.low=a: must be a number"),
        ({"low": 1, "high": float("inf")}, r"search.ranges.optim.lr.high=inf: must be a number, and finite"),
        ({"low": True, "high": 2}, "low=True: must be a number"),
        ({"low": 1, "high": 2, "log": 1}, "log=1: must be true or false"),
        ({"low": 1}, "search.ranges.optim.lr: found low: give"),
        ({"low": 1, "high": 2, "step": 1}, "found low, high, step: give"),
        ({"choices": [1]}, "choices=.1.: must be a list of two values or more"),
        ({}, "found nothing: give"),
        (3, "search.ranges.optim.lr=3: is no range: give"),
    ],
)
def test_what_is_no_range_is_refused_by_its_key(value, says):
    with pytest.raises(ConfigError, match=says):
        read_ranges({"optim": {"lr": value}})


def test_a_key_has_one_range():
    with pytest.raises(ConfigError, match=r"search.ranges.optim.lr: is given twice"):
        read_ranges({"optim": {"lr": LR}, "optim.lr": LR})


def test_a_number_has_four_digits_and_stays_inside():
    assert Range("a", 0.0, 1.0).word(0.123456789) == "a=0.1235"
    assert Range("a", 1e-5, 1e-1).word(3.21987654e-5) == "a=3.22e-05"
    assert Range("a", 1, 100).word(7) == "a=7"
    assert Range("a", 0.0, 0.12341).word(0.123409) == "a=0.1234"
    assert Range("a", 0.0, 0.12346).word(0.123458) == "a=0.123458", "0.1235 would lie outside"


def test_what_is_typed_wins():
    ranges = {"optim": {"lr": LR, "warmup_fraction": {"low": 0.0, "high": 0.2}}}
    typed = ["optim.lr=1e-3,1e-2", "optim.warmup_fraction=0.1", "model/connector=mlp,resampler", "seed=2"]
    assert searched_ranges(typed, ranges) == [
        Range("optim.lr", choices=("0.001", "0.01")),
        Range("model/connector", choices=("mlp", "resampler")),
    ]
    assert searched_ranges(["a=interval(1.5,2.5)", "b=tag(log,interval(1.5,2.5))", "c=range(1,4)"], {}) == [
        Range("a", 1.5, 2.5), Range("b", 1.5, 2.5, is_log=True), Range("c", choices=("1", "2", "3")),
    ]  # fmt: skip


def test_something_has_to_be_left():
    with pytest.raises(ConfigError, match="no key is left to search"):
        searched_ranges(["optim.lr=1"], {"optim": {"lr": LR}})


def test_jobs_share_what_neither_is_the_searchs_nor_searched():
    typed = ["search=tpe", "search.n_trials=3", "~search.ranges.x", "seed=2", "optim.lr=1,2", "stage.trainable=[a,b]"]
    assert job_words(typed) == ["seed=2", "stage.trainable=[a,b]"]
    assert is_of_sweep("sweep") and is_of_sweep("search.ranges.optim.lr") and not is_of_sweep("searched")

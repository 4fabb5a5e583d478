import pickle

import pytest

from visllama.errors import REASONS, BadRecord, ConfigError, refuse_ids


def test_it_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(BadRecord("image", "broken")))  # noqa: S301
    assert (error.reason, error.detail, str(error)) == ("image", "broken", "image: broken")


def test_only_known_reasons_are_counted():
    assert all(BadRecord(reason, "").reason == reason for reason in REASONS)
    with pytest.raises(ValueError, match="choose from header, cut"):
        BadRecord("bad luck", "")


def test_ids_are_refused_with_their_number_and_the_first_five():
    refuse_ids([], "are wrong")
    with pytest.raises(ConfigError, match=r"^6 are wrong, first a, b, c, d, e$"):
        refuse_ids("fbcdea", "are wrong")

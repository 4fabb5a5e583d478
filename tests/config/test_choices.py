import re

import pytest

from visllama.config.choices import choose
from visllama.errors import ConfigError


def test_an_option_is_taken():
    choose("optim.schedule", "linear", ("cosine", "linear"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cos", "optim.schedule=cos: did you mean cosine? choose cosine, linear or constant"),
        ("LINAER", "optim.schedule=LINAER: did you mean linear? choose cosine, linear or constant"),
        ("zzz", "optim.schedule=zzz: choose cosine, linear or constant"),
    ],
)
def test_another_value_is_refused_with_what_was_probably_meant(value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        choose("optim.schedule", value, ("cosine", "linear", "constant"))

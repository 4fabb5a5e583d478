import json
import re

import pytest

from visllama.errors import ConfigError
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES

SETTINGS = TextSettings("a picture of", 64, TEMPLATES["vicuna"])


def test_the_settings_come_back_from_a_file():
    assert TextSettings.from_dict(json.loads(json.dumps(SETTINGS.to_dict()))) == SETTINGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "must be prompt, max_text_tokens, template"),
        ({"more": 1}, "must be prompt, max_text_tokens, template"),
        ({"max_text_tokens": True}, "must be prompt, max_text_tokens, template"),
        ({"max_text_tokens": 0}, "text.max_text_tokens=0: must be 1 or more"),
        ({"template": {"human": "no slot"}}, "text.template.human='no slot': has no {human}"),
    ],
)
def test_what_no_run_wrote_is_refused(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        TextSettings.from_dict(SETTINGS.to_dict() | change)

"""One shard: of images that are what they were when it was laid out."""

from __future__ import annotations

import pytest

from tests.prepare.made import picture, plan, put
from visllama.errors import ConfigError
from visllama.prepare.writer import write_split


def test_an_image_that_changes_meanwhile_is_an_error(tmp_path):
    made = plan(tmp_path)
    put(tmp_path / "images" / "3.jpg", picture(3) + b"more")
    with pytest.raises(ConfigError, match=r"3.jpg: had .* a moment ago"):
        write_split(made, tmp_path / "data" / "train", {})
    assert not (tmp_path / "data" / "train").exists()


def test_an_image_that_became_a_link_is_not_followed(tmp_path):
    made = plan(tmp_path)
    put(tmp_path / "secret.jpg", picture(3))
    (tmp_path / "images" / "3.jpg").unlink()
    (tmp_path / "images" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    assert write_split(made, tmp_path / "data" / "train", {}, 0.5)["skipped"] == {"unreadable": 1}

"""What the tests of exported folders share."""

from __future__ import annotations

import pytest

from tests.support.exported import save_tiny


@pytest.fixture
def save_model(tmp_path):
    """Write weights of a tiny model, and return the model and the folder."""

    def save(*arguments, name: str = "weights", **options):
        return save_tiny(tmp_path / name, *arguments, **options), tmp_path / name

    return save

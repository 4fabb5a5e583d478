from __future__ import annotations

import pytest

from tests.support.verbs import prepare


@pytest.fixture
def run(compose_config, tmp_path, monkeypatch):
    """Prepare as the command line would, in an empty folder; gives where the splits lie."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str):
        cfg = compose_config("prepare", *map(str, overrides), f"paths.data={tmp_path}/data")
        prepare(cfg)
        return tmp_path / "data" / str(cfg.name)

    return run

from __future__ import annotations

import pytest

from tests.support.written_runs import write_hydra


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with the overrides that Hydra wrote."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(
        "- model/connector=resampler\n- seed=3\n- data.sources.shards.path='a b.tar'\n- +x.y=1\n- resume=old\n"
    )
    write_hydra(tmp_path)
    return tmp_path

"""Which record goes into which shard."""

from __future__ import annotations

import pytest

from tests.prepare.made import plan
from visllama.errors import ConfigError
from visllama.prepare.layout import refuse_too_many_bad
from visllama.prepare.raw import Skipped


def test_a_record_larger_than_a_shard_has_its_own(tmp_path):
    assert [len(shard) for shard in plan(tmp_path, 3, 1000).shards] == [1, 1, 1]


@pytest.mark.parametrize("allowed", [0.01, 1.0])
def test_where_all_is_bad_no_fraction_is_offered(allowed):
    with pytest.raises(ConfigError) as raised:
        refuse_too_many_bad("train", [Skipped("row 0", "missing", "'a.jpg' is not there")], 1, allowed)
    message = str(raised.value)
    assert message.endswith("nothing is left: mend them; check_only=true names each")
    assert "1 of 1 records (100.0%) are bad (missing 1):" in message and "max_bad_fraction" not in message

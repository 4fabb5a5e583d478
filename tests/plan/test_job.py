"""How a job trains: what its config leaves open, and how that is taken."""

from __future__ import annotations

import re

import pytest

from tests.support.verbs import plan


@pytest.mark.parametrize(
    ("overrides", "ranks", "says"),
    [
        ([], 1, "trainer.devices=auto is taken as 1; trainer.num_nodes=auto is taken as 1"),
        (["trainer=cluster"], 8, "trainer.devices=auto is taken as 8"),
        (["trainer/strategy=ddp"], 8, "trainer.devices=auto is taken as 8"),
        (["trainer.devices=[0,1]", "trainer.num_nodes=2"], 4, "text_tokens is taken as 14"),
        (["stage=finetune", "trainer.precision=auto"], 1, "trainer.precision=auto is taken as bf16-mixed; text_tokens is taken as 64"),
        (["trainer=cpu"], 1, "trainer.accelerator=cpu is shown as if it were the GPU"),
        (["data=coco"], 1, r"unknown \(data.sources.coco cannot be read here\): give samples=N"),
    ],
)  # fmt: skip
def test_what_it_assumes_is_told(compose_config, capsys, overrides, ranks, says):
    found = plan(compose_config("plan", *overrides))
    assert found.job.num_ranks == ranks
    assert re.search(says, re.sub(r"\s+", " ", capsys.readouterr().out))

"""What makes a job fit."""

from __future__ import annotations

import re

import pytest

from tests.support.plans import CLUSTER
from tests.support.verbs import plan
from visllama.plan.lines import GIB


@pytest.mark.parametrize(
    ("overrides", "switches"),
    [
        (["stage.global_batch_size=3840"], ["micro_batch_size=32"]),
        (["model/language_model=llama_65b", "stage.global_batch_size=64"], ["trainer/strategy=fsdp"]),
        pytest.param(
            ["gpu=rtx4090_24g", "micro_batch_size=1", "stage.max_text_tokens=2000"],
            ["trainer.activation_checkpointing=true"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model/language_model=llama_65b", "trainer.num_nodes=1", "gpu=rtx4090_24g"],
            ["trainer.num_nodes=2", "trainer/strategy=fsdp"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_switches_that_it_names_make_it_fit(compose_config, capsys, overrides, switches):
    found = plan(compose_config("plan", *CLUSTER, *overrides))
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert not found.fits and found.switches[: len(switches)] == switches
    assert f"It does not fit: {found.longest.peak / GIB:.1f} GiB" in said and " ".join(found.switches) in said
    keys = {word.partition("=")[0] for word in found.switches}
    kept = [word for word in (*CLUSTER, *overrides) if word.partition("=")[0] not in keys]
    assert plan(compose_config("plan", *kept, *found.switches)).fits
    last = found.switches[-1]
    assert not plan(compose_config("plan", *kept, *found.switches[:-1])).fits, f"{last} is needed"

"""A frozen weight that changed and ranks of different configs stop a run."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from visllama.config.plain import to_yaml
from visllama.errors import ConfigError
from visllama.training.callbacks.proofs import FrozenWeights, SameEverywhere


def test_a_changed_bit_in_a_frozen_part_stops_the_run(make_model):
    module = SimpleNamespace(model=make_model(dtype=torch.float32))
    watch = FrozenWeights()
    watch.on_fit_start(None, module)
    watch.on_fit_end(None, module)
    with torch.no_grad():
        module.model.language_model.get_input_embeddings().weight[5, 5] += 1e-3
    with pytest.raises(RuntimeError, match="frozen weights changed in training: language_model"):
        watch.on_fit_end(None, module)


@pytest.mark.parametrize("other", ["same", "another"])
def test_ranks_of_different_configs_are_refused(configure, monkeypatch, other):
    ours = to_yaml(configure("train", "optim.lr=0.5"))
    theirs = ours.replace("lr: 0.5", "lr: 0.25") if other == "another" else ours
    monkeypatch.setattr(
        dist, "all_gather_object", lambda found, own, group: found.__setitem__(slice(None), [own, theirs])
    )
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(control=None))
    if other == "same":
        SameEverywhere(ours).setup(trainer, None, "fit")
        return
    with pytest.raises(ConfigError, match=r"rank 1 was given another config than rank 0: .*lr: 0\.25; .*lr: 0\.5"):
        SameEverywhere(ours).setup(trainer, None, "fit")

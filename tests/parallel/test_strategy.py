import pytest
import torch

from visllama.config.schema import TrainerSettings
from visllama.errors import ConfigError
from visllama.parallel.strategy import DDP, FSDP, SingleDevice, build_strategy

TRAINER = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "timeout_s": 400.0, "strategy": "auto"}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, SingleDevice),
        ({"devices": 2}, DDP),
        ({"num_nodes": 2}, DDP),
        ({"strategy": {"_target_": "visllama.parallel.strategy.DDP"}}, DDP),
        ({"strategy": {"_target_": "visllama.parallel.strategy.FSDP"}, "devices": 2}, FSDP),
    ],
)
def test_auto_is_one_device_or_ddp(config, kind):
    strategy = build_strategy(TrainerSettings(**(TRAINER | config)))
    assert type(strategy) is kind and strategy.is_sharded == (kind is FSDP)
    if kind is not SingleDevice:
        assert strategy._timeout.total_seconds() > 400


def test_one_whose_checkpoints_are_others_is_refused():
    config = TRAINER | {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}}
    with pytest.raises(ConfigError, match=r"trainer\.strategy\._target_=lightning.*choose trainer/strategy=ddp"):
        build_strategy(TrainerSettings(**config))


def test_alone_a_rank_agrees_with_itself():
    assert SingleDevice(torch.device("cpu")).gather([3, 4]) == [[3, 4]]

"""The configurations of the tests are those that Hydra composes."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from tests.support.composed import compose_fast, compose_whole

COMMANDS = [
    ("train",),
    ("train", "optim.lr=1e-3", "seed=3", "name='a b'", "hydra.run.dir=/tmp/q"),
    ("train", "model=real", "model.connector.hidden_dim=3", "paths.models=/models"),
    ("train", "callbacks=keep_best", "callbacks.keep_best.mode=max", "+extra=1", "~profiler"),
    ("train", "data=coco", "data.sources.coco.weight=2", "stage.trainable=[connector]", "experiment=smoke"),
    ("train", "stage=finetune", "init_from=x", "decoding={num_beams: 3, max_new_tokens: 4}", "search=tpe"),
    ("evaluate", "metrics=[CIDEr]", "weights=x", "evaluation=[scenes_caption,files]", "evaluation.files.images=a"),
    ("plan", "gpu=h100_80g", "trainer=node"),
    ("prepare", "source=coco", "images=a", "workers=3"),
]  # fmt: skip


def without_dirname(config) -> dict:
    container = OmegaConf.to_container(config)
    del container["hydra"]["job"]["override_dirname"]
    return container


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_it_is_what_hydra_composes(words):
    for _ in range(2):  # what was composed once is not changed by who got it
        fast = compose_fast(*words)
        assert without_dirname(fast) == without_dirname(compose_whole(*words))
        assert OmegaConf.is_struct(fast)
        fast.name = "changed"


@pytest.mark.parametrize(
    "word", ["optim.nonsense=1", "nonsense=1", "optim.lr=1,2", "optim.lr=[", "seed=text", "model=none"]
)
def test_what_hydra_refuses_is_refused_in_its_words(word):
    with pytest.raises(HydraException) as whole:
        compose_whole("train", word)
    with pytest.raises(HydraException) as fast:
        compose_fast("train", word)
    assert str(fast.value) == str(whole.value)

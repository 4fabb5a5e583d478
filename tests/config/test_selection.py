import pytest

from visllama.config.selection import are_rivals, swept_keys


@pytest.mark.parametrize(
    ("keys", "rivals"), [([], False), (["seed"], False), (["optim.lr"], True), (["optim.lr", "seed"], True)]
)
def test_jobs_that_differ_in_more_than_the_seed_are_rivals(keys, rivals):
    assert are_rivals(keys) is rivals


def test_the_swept_keys_are_those_with_several_values(tmp_path):
    (tmp_path / "multirun.yaml").write_text(
        "hydra: {overrides: {task: ['optim.lr=1e-3,1e-2', 'name=lr', 'model/connector=mlp,resampler', 'data.x=[1,2]']}}"
    )
    assert swept_keys(tmp_path) == ["optim.lr", "model/connector"]

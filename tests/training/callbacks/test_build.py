from visllama.checkpoint.folder import name_of
from visllama.training.callbacks.build import build_callbacks
from visllama.training.callbacks.saving import Saving


def test_checkpoints_have_names_that_hydra_can_parse(tmp_path, configure):
    last = build_callbacks(configure("train"), tmp_path, None)[-1]
    assert isinstance(last, Saving) and name_of(1200) == "step_00001200"

from types import SimpleNamespace

from PIL import Image

from visllama.training.callbacks.curves import Curves


def test_curves_are_drawn(tmp_path):
    curves = Curves(tmp_path / "curves.png")
    for step in range(1, 21):
        trainer = SimpleNamespace(
            global_step=step,
            log_every_n_steps=5,
            callback_metrics={"train/loss": 1 / step, "lr/connector": 0.1, "val/loss": 2.0},
        )
        curves.on_train_batch_end(trainer)
        if step % 10 == 0:
            curves.on_validation_end(trainer)
    assert [step for step, _ in curves.points["train/loss"]] == [1, 5, 10, 15, 20]
    assert [step for step, _ in curves.points["val/loss"]] == [10, 20]
    curves.teardown(None, None, stage="fit")
    assert Image.open(tmp_path / "curves.png").size[0] > 800

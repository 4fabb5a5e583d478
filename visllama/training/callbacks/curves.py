"""`curves.png`: what was logged over the steps."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from visllama.files import replacing


class Curves(Callback):
    """Remember losses and learning rate, and draw them at the end.

    Args:
        path: The picture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[str, list[tuple[int, float]]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == 1 or trainer.global_step % trainer.log_every_n_steps == 0:
            self._remember(trainer, "train/", "lr/")

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self._remember(trainer, "val/")

    def state_dict(self) -> dict:
        return {"points": self.points}

    def load_state_dict(self, state: dict) -> None:
        self.points = state["points"]

    def _remember(self, trainer: pl.Trainer, *prefixes: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefixes):
                self.points.setdefault(name, []).append((trainer.global_step, float(value)))

    @rank_zero_only
    def teardown(self, *_, **__) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, (losses, rate) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for name in ("train/loss", "val/loss"):
            if name in self.points:
                losses.plot(
                    *zip(*self.points[name], strict=True), marker="o" if name == "val/loss" else None, label=name
                )
        losses.set(xlabel="step", ylabel="loss (nats a token)", title="Loss")
        for name in sorted(name for name in self.points if name.startswith("lr/")):
            rate.plot(*zip(*self.points[name], strict=True), label=name)
        rate.set(xlabel="step", title="Learning rate")
        for axes in (losses, rate):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        with replacing(self.path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        plt.close(figure)

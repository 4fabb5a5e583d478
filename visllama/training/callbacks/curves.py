"""`curves.png`: what was logged over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from visllama.files import replacing

Points = list[tuple[int, float]]
"""The steps and values of one figure."""


class Curves(Callback):
    """Remember losses and learning rates, and draw them at each validation and at the end.

    Args:
        path: The picture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[str, Points] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == 1 or trainer.global_step % trainer.log_every_n_steps == 0:
            self._remember(trainer, "train/", "lr/")

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self._remember(trainer, "val/")
        self.draw()

    @rank_zero_only
    def teardown(self, *_, **__) -> None:
        self.draw()

    def state_dict(self) -> dict:
        return {"points": self.points}

    def load_state_dict(self, state: dict) -> None:
        self.points = state["points"]

    def _remember(self, trainer: pl.Trainer, *prefixes: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefixes):
                self.points.setdefault(name, []).append((trainer.global_step, float(value)))

    @rank_zero_only
    def draw(self) -> None:
        """Write the picture, whole or not at all."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, (losses, rates) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for number, (source, points) in enumerate(sorted(losses_by_source(self.points).items())):
            color = f"C{number}"
            width = 1 if source else 2  # that of all sources together stands out
            for kind, style in (("train", {"linestyle": "-"}), ("val", {"linestyle": "--", "marker": "o"})):
                if kind in points:
                    label = " ".join([kind, source or "loss"])
                    losses.plot(*zip(*points[kind], strict=True), color=color, linewidth=width, label=label, **style)
        losses.set(xlabel="step", ylabel="loss (nats a token)", title="Loss")

        for label, points in equal_rates(self.points):
            rates.plot(*zip(*points, strict=True), label=label)
        rates.set(xlabel="step", title="Learning rate", ylim=(0, None))

        for axes in (losses, rates):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
        with replacing(self.path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        plt.close(figure)


def losses_by_source(points: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Return the losses by source, and each of those by `train` and `val`; the source of all together is ""."""
    found: dict[str, dict[str, Points]] = {}
    for name, values in points.items():
        kind, _, figure = name.partition("/")
        what, _, source = figure.partition("/")
        if kind in ("train", "val") and what == "loss":
            found.setdefault(source, {})[kind] = values
    return found


def equal_rates(points: Mapping[str, Points]) -> Iterator[tuple[str, tuple[tuple[int, float], ...]]]:
    """Yield each learning rate once, with the names of all parts that it is the rate of."""
    parts: dict[tuple[tuple[int, float], ...], dict[str, None]] = {}
    for name in sorted(points):
        if name.startswith("lr/"):
            part = name.removeprefix("lr/").removesuffix("_no_decay")
            values = tuple(map(tuple, points[name]))
            parts.setdefault(values, {})[part] = None
    for values, names in parts.items():
        yield ", ".join(names), values

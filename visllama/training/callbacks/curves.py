"""Keep the figures (named numbers) that a run logs, and draw them over its steps as `curves.png`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from visllama.files import replacing
from visllama.training.lightning_parts import connected

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[int, float]]
"""The values of one logged figure: pairs of a step and the value there."""
_FrozenPoints = tuple[tuple[int, float], ...]
"""The same pairs in tuples, which can be the key of a dictionary."""
_CIDER = "val/CIDEr"
_WIDE_RANGE = 30
"""The ratio of the largest to the least gradient norm from which on the axis is logarithmic."""


class Curves(Callback):
    """Keep the figures that a run logs, and draw them into a picture after each validation and at the end.

    The picture shows losses, learning rates, the gradient norm and the throughput; and CIDEr at validations if a
    callback logs it, as `val/CIDEr` and, for a control (wrong pictures on purpose), as `val/CIDEr/CONTROL`.

    Args:
        path: The file of the picture, a PNG.

    Attributes:
        points: The logged values of each figure, by the figure's name, as `train/loss`. A resumed run keeps them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[str, Points] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        step = trainer.global_step
        if step == 1 or step % connected(trainer).log_every_n_steps == 0:
            self._remember(trainer, "train/", "lr/")

    def on_validation_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self._remember(trainer, "val/")
        self.draw()

    @rank_zero_only
    def teardown(self, *_: object, **__: object) -> None:
        self.draw()

    def state_dict(self) -> dict:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict) -> None:
        self.points = state_dict["points"]

    def _remember(self, trainer: pl.Trainer, *prefixes: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefixes):
                points = self.points.setdefault(name, [])
                points.append((trainer.global_step, float(value)))

    @rank_zero_only
    def draw(self) -> None:
        """Draw all figures of `points`, and write the picture, whole or not at all; on the first rank only.

        Raises:
            WriteFailed: If the picture cannot be written.
        """
        # Here, because it is slow to import.
        import matplotlib

        # Draws into a file, without a screen.
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        panels = [_draw_losses, _draw_rates, _draw_norms, _draw_speed]
        if any(is_cider(name) for name in self.points):
            panels.append(_draw_cider)
        num_panels = len(panels)
        num_rows = math.ceil(num_panels / 2)
        size = (11, 3.6 * num_rows)
        figure, grid = plt.subplots(num_rows, 2, figsize=size, layout="constrained", squeeze=False)
        places = list(grid.flat)

        for draw_panel, axes in zip(panels, places, strict=False):
            draw_panel(axes, self.points)
            axes.grid(alpha=0.3)
            axes.set(xlabel="step", xlim=(0, None))
            handles, _ = axes.get_legend_handles_labels()
            if handles:
                axes.legend(fontsize="small")
        for axes in places[num_panels:]:
            axes.axis("off")

        with replacing(self.path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        plt.close(figure)


def _draw_losses(axes: Axes, points: Mapping[str, Points]) -> None:
    """Draw the loss of each source in a colour of its own, that of training as a line and of validation dashed."""
    losses = sorted(losses_by_source(points).items())
    for number, (source, kinds) in enumerate(losses):
        # The loss of all sources together stands out.
        width = 1 if source else 2
        color = f"C{number}"
        name = source or "loss"
        if "train" in kinds:
            _plot(axes, kinds["train"], label=f"train {name}", color=color, linewidth=width)
        if "val" in kinds:
            _plot(axes, kinds["val"], label=f"val {name}", color=color, linewidth=width, linestyle="--", marker="o")

    axes.set(ylabel="loss (nats a token)", title="Loss")


def _draw_rates(axes: Axes, points: Mapping[str, Points]) -> None:
    for label, rates in equal_rates(points):
        _plot(axes, rates, label=label)

    axes.set(title="Learning rate", ylim=(0, None))


def _draw_norms(axes: Axes, points: Mapping[str, Points]) -> None:
    # The norm of a step that was not taken may not be finite.
    norms = points.get("train/gradient_norm", [])
    finite_norms = [(step, norm) for step, norm in norms if math.isfinite(norm)]
    if finite_norms:
        _plot(axes, finite_norms)

    positive = [norm for _, norm in finite_norms if norm > 0]
    if positive:
        smallest = min(positive)
        largest = max(positive)
        if largest > _WIDE_RANGE * smallest:
            axes.set_yscale("log")

    axes.set(title="Gradient norm, before clipping", ylabel="L2 norm")


def _draw_speed(axes: Axes, points: Mapping[str, Points]) -> None:
    speeds = points.get("train/samples_per_second", [])
    if speeds:
        _plot(axes, speeds)

    axes.set(title="Throughput", ylabel="samples a second", ylim=(0, None))


def _draw_cider(axes: Axes, points: Mapping[str, Points]) -> None:
    """Draw CIDEr as a thick line, and that of each control dashed."""
    names = [name for name in points if is_cider(name)]
    for name in sorted(names):
        control = name.removeprefix(_CIDER).lstrip("/")
        if control:
            label = control.replace("_", " ")
            _plot(axes, points[name], label=label, linestyle="--", marker="o")
        else:
            _plot(axes, points[name], label="CIDEr", linewidth=2, marker="o")

    axes.set(title="CIDEr at validations", ylabel="CIDEr")


def _plot(axes: Axes, points: Iterable[tuple[float, float]], **style: Any) -> None:
    """Draw points (pairs of a step and a value) as a line in a style of matplotlib's `plot`."""
    steps = []
    values = []
    for step, value in points:
        steps.append(step)
        values.append(value)
    axes.plot(steps, values, **style)


def is_cider(name: str) -> bool:
    """Return whether a figure's name is `val/CIDEr` or begins with `val/CIDEr/`, as those of its controls do."""
    return name == _CIDER or name.startswith(f"{_CIDER}/")


def losses_by_source(points: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Return the logged losses by data source, and for each source by "train" and "val".

    Args:
        points: The values of figures by name; all but `train/loss`, `val/loss` and these with `/SOURCE` are left out.

    Returns:
        For each source its points under "train" and "val", where they were logged. The loss of all sources together
        is under the source "".
    """
    losses: dict[str, dict[str, Points]] = {}
    for name, values in points.items():
        # train/loss is of all sources, and train/loss/NAME of one.
        kind, _, figure = name.partition("/")
        metric, _, source = figure.partition("/")
        if kind in ("train", "val") and metric == "loss":
            kinds = losses.setdefault(source, {})
            kinds[kind] = values

    return losses


def equal_rates(points: Mapping[str, Points]) -> Iterator[tuple[str, _FrozenPoints]]:
    """Yield the learning rates over the steps, where parts of the model with the same values are taken together.

    Args:
        points: The values of figures by name, of which those named `lr/PART` are read.

    Yields:
        The names of the parts, joined by ", ", and their common pairs of step and value.
    """
    parts_by_values: dict[_FrozenPoints, list[str]] = {}
    for name in sorted(points):
        if not name.startswith("lr/"):
            continue

        part = name.removeprefix("lr/").removesuffix("_no_decay")
        # A resumed run reads its points as lists, which cannot be keys.
        values = tuple((step, value) for step, value in points[name])
        parts = parts_by_values.setdefault(values, [])
        if part not in parts:
            parts.append(part)

    for values, parts in parts_by_values.items():
        yield ", ".join(parts), values

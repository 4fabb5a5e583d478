"""What a proof has found: a table, facts, and the promises that were broken."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.scripts.survival.life import Life


class Report:
    """A table's rows, what was found beside them, and the promises that were broken."""

    def __init__(self, title: str, out: Path) -> None:
        self.title, self.out = title, out
        self.rows: list[dict] = []
        self.facts: dict[str, object] = {}
        self.broken: list[str] = []

    def expect(self, what: str, expected: object, found: object, life: Life | None = None) -> bool:
        """Note a broken promise unless what was found is what was expected."""
        return self._keep(expected == found, f"{what}: expected {expected!r}, found {found!r}", life)

    def at_most(self, what: str, most: float, found: float, life: Life | None = None) -> bool:
        """Note a broken promise if more was found."""
        return self._keep(found <= most, f"{what}: expected at most {most:.4g}, found {found:.4g}", life)

    def _keep(self, is_kept: bool, told: str, life: Life | None) -> bool:
        if is_kept:
            return True
        told += f" ({life.log})" if life else ""
        self.broken.append(told)
        print(f"BROKEN  {told}", flush=True)
        return False

    def add(self, **row: object) -> None:
        self.rows.append(row)
        print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)

    def show(self) -> int:
        """Print it all and write result.json; gives the exit code."""
        lines = [f"\n== {self.title} =="]
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [names, *([str(row.get(name, "")) for name in names] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"{len(self.broken)} promises broken" if self.broken else "every promise kept", *self.broken]
        print("\n".join(lines), flush=True)
        written = {"title": self.title, "rows": self.rows, "facts": self.facts, "broken": self.broken}
        (self.out / "result.json").write_text(json.dumps(written, indent=1, default=str))
        return int(bool(self.broken))


def spread(values: Sequence[float]) -> str:
    """Tell a distribution."""
    if not values:
        return "none"
    ordered = sorted(values)
    ninth = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
    return f"median {statistics.median(ordered):.2f}, 90% {ninth:.2f}, most {ordered[-1]:.2f} s (of {len(ordered)})"

"""Where an item lies among records.

An item is one thing to learn: a caption, a question, a conversation. Items are numbered record by record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ItemPlace(NamedTuple):
    """Where an item lies in its source.

    Attributes:
        record: Number of the record.
        index: Number of the item in that record; None where the source does not count items.
        num_items: Number of items that the source counts in that record; None where it does not count items.
    """

    record: int
    index: int | None = None
    num_items: int | None = None


def place_of_item(ends: np.ndarray, item: int) -> ItemPlace:
    """Return the place of an item among records.

    Args:
        ends: The number of items up to the end of each record.
        item: The item's number.
    """
    record = int(np.searchsorted(ends, item, side="right"))
    start = int(ends[record - 1]) if record else 0
    return ItemPlace(record, item - start, int(ends[record]) - start)

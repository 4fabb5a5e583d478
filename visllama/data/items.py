"""Find the record that holds an item.

An item is one thing to learn: a caption, a question or a whole conversation. The items of a source are numbered from 0,
record by record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ItemPlace(NamedTuple):
    """The record that holds an item, and the item's number in that record.

    Attributes:
        record: Number of the record, from 0.
        index: Number of the item in that record, from 0; None where the source does not count items.
        num_items: Number of items that the source counts in that record; None where it does not count items.
    """

    record: int
    index: int | None = None
    num_items: int | None = None


def place_of_item(ends: np.ndarray, item: int) -> ItemPlace:
    """Return the record that holds an item, the item's number in it, and the number of items of that record.

    Args:
        ends: For each record, the number of items up to its end, that record's own included (a cumulative sum).
        item: The item's number, from 0 and less than the last of `ends`.

    Raises:
        IndexError: If `item` is not less than the last of `ends`, or `ends` is empty.
    """
    # "right" passes over records without items, whose end is that of the record before them.
    record = int(np.searchsorted(ends, item, side="right"))
    start = int(ends[record - 1]) if record else 0
    return ItemPlace(record, item - start, int(ends[record]) - start)

"""Read shards (tars of records): index them, fetch them from other machines, and serve their records as a source."""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Return `ShardSource`, imported only when it is asked for (PEP 562): whoever only reads a tar does not need it."""
    if name != "ShardSource":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from visllama.data.shards.source import ShardSource

    return ShardSource

"""Sources of records that tests make."""

from visllama.data.scenes.source import ScenesSource
from visllama.data.source import Source
from visllama.errors import BadRecord


class Damaged(Source):
    """Scenes of which some cannot be read."""

    def __init__(self, bad: dict[int, str], count: int = 20) -> None:
        self.scenes, self.bad = ScenesSource("train", count, 1), bad

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict:
        if index in self.bad:
            raise BadRecord(self.bad[index], f"record {index}")
        return self.scenes[index]


class Counted(Source):
    """Records of which each says how many items it holds."""

    def __init__(self, counts, sizes=None) -> None:
        self.item_counts = counts
        if sizes is not None:
            self.shard_sizes = sizes

    def __len__(self) -> int:
        return len(self.item_counts)

    def __getitem__(self, index: int) -> dict:
        raise NotImplementedError("its records are counted, and not read")


class Records(Source):
    """Records out of a list, or out of another source, that does not say how many items they hold."""

    def __init__(self, records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return self.records[index]

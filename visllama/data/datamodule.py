"""The LightningDataModule: a loader of Steps for training and validation.

One Lightning batch is one optimizer step. The loader has the length of the whole run: passes over the data follow each
other inside it, so a position in the data is one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from visllama.data.collate import Collator, Step
from visllama.data.order import RecordOrder, rank_share
from visllama.data.samples import Sample, SampleMaker
from visllama.data.sources import Source


class _Positions(Dataset):
    """Samples by position; `locate` gives (record, pass)."""

    def __init__(
        self, source: Source, maker: SampleMaker, order: RecordOrder, locate: Callable[[int], tuple[int, int]]
    ) -> None:
        self.source, self.maker, self.order, self.locate = source, maker, order, locate

    def __getitem__(self, position: int) -> Sample:
        index, number = self.locate(position)
        record = self.source[index]
        return self.maker(record, self.order.caption(index, number, len(record["captions"])))


class _RankBatches:
    """The positions that a rank takes in each global batch; the last batch may be smaller (validation)."""

    def __init__(self, num_samples: int, global_batch_size: int, rank: int, num_ranks: int) -> None:
        tail = num_samples % global_batch_size
        self.sizes = [global_batch_size] * (num_samples // global_batch_size) + [tail] * bool(tail)
        self.global_batch_size, self.rank, self.num_ranks = global_batch_size, rank, num_ranks

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        for step, size in enumerate(self.sizes):
            yield [step * self.global_batch_size + i for i in rank_share(size, self.rank, self.num_ranks)]


class CaptionData(pl.LightningDataModule):
    """Caption records for training and validation.

    Args:
        train, val: Sources.
        maker: Makes Samples of records.
        collator: Makes Steps of Samples.
        global_batch_size: Samples a step over all ranks.
        num_steps: Optimizer steps of the run; passes over the data follow each other until then.
        num_workers: Processes that load, a rank; their number changes nothing but speed.
        seed: Of the order.
        num_val_records: Validate on this many only, the first; None on all.
    """

    def __init__(
        self,
        train: Source,
        val: Source,
        maker: SampleMaker,
        collator: Collator,
        global_batch_size: int,
        num_steps: int,
        num_workers: int,
        seed: int,
        num_val_records: int | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val, self.maker, self.collator = train, val, maker, collator
        self.global_batch_size, self.num_steps, self.num_workers = global_batch_size, num_steps, num_workers
        self.num_val_records = min(len(val), num_val_records or len(val))
        self.order = RecordOrder(len(train), seed)

    def train_dataloader(self) -> DataLoader[Step]:
        dataset = _Positions(self.train, self.maker, self.order, self.order.locate)
        return self._loader(dataset, self.num_steps * self.global_batch_size)

    def val_dataloader(self) -> DataLoader[Step]:
        dataset = _Positions(self.val, self.maker, self.order, lambda position: (position, 0))
        return self._loader(dataset, self.num_val_records)

    def _loader(self, dataset: Dataset, num_samples: int) -> DataLoader[Step]:
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = _RankBatches(num_samples, self.global_batch_size, rank, num_ranks)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.collator.step, num_workers=self.num_workers)

"""The LightningDataModule: a loader of Steps for training and validation.

One Lightning batch is one optimizer step. The loader has the length of the whole run: passes over the data follow each
other inside it, so a position in the data is one number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice

import lightning.pytorch as pl
from torch.utils.data import Dataset

from visllama.data.collate import Collator, Step
from visllama.data.items import ItemPlace
from visllama.data.loading import Loader
from visllama.data.order import Order, item_shown, rank_share
from visllama.data.record import images_of
from visllama.data.samples import Sample, SampleMaker, masked_sample
from visllama.data.source import Source
from visllama.data.sources import fingerprint
from visllama.data.turns import num_items
from visllama.errors import BadRecord, ConfigError
from visllama.images.decode import open_image

_AHEAD_STEPS = 64
"""How far before their turn remote shards are fetched."""
_RECENT_SHARDS = 1024


class TrainingSamples(Dataset):
    """Samples by position: what cannot be read is masked in its place.

    A sample's key is `SOURCE/RECORD#ITEM`: the name of its source, its record's key, and the number of the caption,
    question or conversation in that record. A record that cannot be read goes by its number in the source.

    Args:
        sources: By name.
        makers: Make Samples of each one's records.
        order: What stands where.
    """

    def __init__(self, sources: Mapping[str, Source], makers: Mapping[str, SampleMaker], order: Order) -> None:
        self.sources, self.makers, self.order = sources, makers, order

    def __getitem__(self, position: int) -> Sample:
        source, item, number = self.order.locate(position)
        name = self.order.names[source]
        place = self.sources[name].find_item(item)
        key = str(place.record)
        index = place.index
        try:
            record = self.sources[name].read(place.record)
            key = record["key"]
            index = self._index_shown(record, place, number)
            sample = self.makers[name](record, index)
        except BadRecord as error:
            number_of_item = "" if index is None else f"#{index}"
            return masked_sample(f"{name}/{key}{number_of_item}", name, error)
        return _of_source(name, replace(sample, key=f"{sample.key}#{index}"))

    def _index_shown(self, record: Mapping, place: ItemPlace, number: int) -> int:
        """Return which of a record's items stands at a place, in this pass.

        Raises:
            BadRecord: If the record holds another number of items than its source counts.
        """
        num_found = num_items(record)
        if place.index is None:
            return item_shown(self.order.seed, place.record, number, num_found)
        if num_found != place.num_items:
            raise BadRecord(
                "text", f"{record['key']}: holds {num_found} items, and its source counts {place.num_items} in it"
            )
        return place.index


class ValidationSamples(Dataset):
    """Samples of the sources' first records, in turns, each with its first caption or question.

    Args:
        sources: By name.
        makers: Make Samples of each one's records.
        num_records: Of all sources together; None is all that there are.
    """

    def __init__(
        self, sources: Mapping[str, Source], makers: Mapping[str, SampleMaker], num_records: int | None = None
    ) -> None:
        self.sources, self.makers = sources, makers
        longest = max(map(len, sources.values()), default=0)
        turns = ((name, i) for i in range(longest) for name, source in sources.items() if i < len(source))
        self.places = list(islice(turns, num_records))

    def __len__(self) -> int:
        return len(self.places)

    def record(self, index: int) -> dict:
        """Return a record, which may raise `BadRecord`."""
        name, place = self.places[index]
        return self.sources[name].read(place)

    def readable(self, source: str) -> Iterator[dict]:
        """Yield the records of a source that can be read, with pictures that can be decoded."""
        for index, (name, _) in enumerate(self.places):
            if name == source:
                with suppress(BadRecord):
                    record = self.record(index)
                    for image in images_of(record):
                        open_image(image)
                    yield record

    def __getitem__(self, index: int) -> Sample:
        name, place = self.places[index]
        key = str(place)
        try:
            record = self.record(index)
            key = record["key"]
            sample = self.makers[name](record)
        except BadRecord as error:
            return masked_sample(f"{name}/{key}", name, error)
        return _of_source(name, sample)


def _of_source(name: str, sample: Sample) -> Sample:
    """Return a sample with its source's name; one of which nothing is left to learn has that as its fault."""
    fault = None if sample.num_targets else BadRecord("no_target", f"{sample.key}: nothing to learn is left of it")
    return replace(sample, key=f"{name}/{sample.key}", source=name, fault=fault)


class StepLoader:
    """A rank's Steps of a whole run. Its state is the number of samples that all ranks have seen, and what the order
    rests on; it goes on from there with any number of ranks and workers.

    Args:
        samples: By position.
        rests_on: What their order rests on.
        collator: Makes Steps of them.
        num_steps: Of the run.
        num_workers: Processes that load; their number changes nothing but speed.
        rank, num_ranks: Which share of each global batch is this rank's.
        allow_reorder: Go on with another order than the one before; items may then come twice, or late. The batch is
            the same all the same: steps are counted in it.

    Attributes:
        waited_s: Seconds that the training has waited for Steps so far.
    """

    def __init__(
        self, samples: TrainingSamples, rests_on: Mapping, collator: Collator, num_steps: int, num_workers: int,
        rank: int, num_ranks: int, allow_reorder: bool = False,
    ) -> None:  # fmt: skip
        self.rests_on = rests_on
        self.samples, self.collator, self.num_steps, self.num_workers = samples, collator, num_steps, num_workers
        self.order, self.rank, self.num_ranks, self.allow_reorder = samples.order, rank, num_ranks, allow_reorder
        self.step = self._first = 0
        self.waited_s = 0.0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Step]:
        self.step, self._first = self._first, 0
        batches = (self._positions(step) for step in range(self.step, self.num_steps))
        # Forks the workers: before there is another thread, whose locks they would inherit held.
        steps = iter(Loader(self.samples, batches, self.collator, self.num_workers))
        with self._fetching_ahead():
            while True:
                started = time.perf_counter()
                step = next(steps, None)
                self.waited_s += time.perf_counter() - started
                if step is None:
                    return
                self.step += 1
                yield step

    def _positions(self, step: int) -> list[int]:
        return self.order.positions(step, self.rank, self.num_ranks)

    @contextmanager
    def _fetching_ahead(self) -> Iterator[None]:
        remote = [name for name, source in self.samples.sources.items() if source.is_remote]
        self._reading = True
        threads = [self.samples.sources[name].cache.prefetch(self._coming_shards(name)) for name in remote]
        try:
            yield
        finally:
            self._reading = False
            for thread in threads:
                thread.stop(timeout_s=0)

    def _coming_shards(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the shards of a source that this rank will read, in their order, some steps before their turn."""
        recent: deque[int] = deque(maxlen=_RECENT_SHARDS)
        for step in range(self.step, self.num_steps):
            while step > self.step + _AHEAD_STEPS:
                if not self._reading:
                    return
                time.sleep(0.1)
            for position in self._positions(step):
                source, item, _ = self.order.locate(position)
                if self.order.names[source] != name:
                    continue
                shard = self.samples.sources[name].shard_of_item(item)
                if shard not in recent:
                    recent.append(shard)
                    yield self.samples.sources[name].address(shard)

    def state_dict(self) -> dict:
        return {"samples_seen": self.step * self.order.global_batch_size, "rests_on": self.rests_on}

    def load_state_dict(self, state: dict) -> None:
        """Go on where another loader was.

        Raises:
            ConfigError: If the order is another one, naming what differs.
        """
        check_order(state["rests_on"], self.rests_on, self.allow_reorder)
        self._first = self.step = state["samples_seen"] // self.order.global_batch_size


def check_order(before: Mapping, now: Mapping, allow_reorder: bool) -> None:
    """Refuse to go on with another order than the one that a checkpoint was written in.

    Raises:
        ConfigError: Naming each part that differs.
    """
    batch = "stage.global_batch_size"
    if before.get(batch) != now[batch]:
        raise ConfigError(
            f"{batch}={now[batch]}: the run has {before.get(batch)}, and its steps are counted in them: set it back. "
            f"data.allow_reorder=true accepts another order, and not another batch"
        )
    if allow_reorder:
        return
    accept = "or accept it by data.allow_reorder=true"
    version = "order_version"
    if before.get(version) != now[version]:
        raise ConfigError(
            f"resume: the checkpoint was written with version {before.get(version)} of the order of samples, and this "
            f"visllama has version {now[version]}: items would come twice, or not at all. Go on with the visllama that "
            f"wrote it, {accept}"
        )
    differing = [
        f"{name}: {before.get(name)} then, {now.get(name)} now" for name in now if before.get(name) != now[name]
    ]
    if differing:
        raise ConfigError(
            f"resume: the samples would come in another order ({'; '.join(differing)}): items would come twice, or "
            f"not at all. Set these back, {accept}"
        )


class TrainingData(pl.LightningDataModule):
    """Records for training and validation.

    Args:
        train: Sources, by name.
        val: The same, of records that are not trained on; empty where nothing is validated.
        makers: Make Samples of each source's records.
        collator: Makes Steps of Samples.
        order: Of the training samples.
        num_steps: Optimizer steps of the run; passes over the data follow each other until then.
        num_workers: Processes that load, a rank; their number changes nothing but speed.
        num_val_records: Validate on this many only, the first; None on all.
        allow_reorder: As `StepLoader` has it.
    """

    def __init__(
        self,
        train: Mapping[str, Source],
        val: Mapping[str, Source],
        makers: Mapping[str, SampleMaker],
        collator: Collator,
        order: Order,
        num_steps: int,
        num_workers: int,
        num_val_records: int | None = None,
        allow_reorder: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.makers, self.collator = train, makers, collator
        self.val = ValidationSamples(val, makers, num_val_records)
        self.order, self.num_steps, self.num_workers, self.allow_reorder = order, num_steps, num_workers, allow_reorder

    @property
    def rests_on(self) -> dict[str, object]:
        """Name all that the order of the training samples rests on."""
        return self.order.fingerprint({name: fingerprint(source) for name, source in self.train.items()})

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StepLoader:
        samples = TrainingSamples(self.train, self.makers, self.order)
        return StepLoader(
            samples,
            self.rests_on,
            self.collator,
            self.num_steps,
            self.num_workers,
            *self._rank(),
            allow_reorder=self.allow_reorder,
        )

    def val_dataloader(self) -> Loader:
        """Return each validation record once; where ranks do not divide them, some ranks have one more."""
        size, (rank, num_ranks) = self.order.global_batch_size, self._rank()
        batches = [
            [first + i for i in rank_share(min(size, len(self.val) - first), rank, num_ranks)]
            for first in range(0, len(self.val), size)
        ]
        return Loader(self.val, batches, self.collator, self.num_workers)

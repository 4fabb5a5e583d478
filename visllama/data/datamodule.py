"""The LightningDataModule: a loader of Steps for training and validation.

One Lightning batch is one optimizer step. The loader has the length of the whole run: passes over the data follow each
other inside it, so a position in the data is one number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, cast

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

if TYPE_CHECKING:
    from visllama.data.shards.cache import ShardCache

_AHEAD_STEPS = 64
"""Number of steps by which remote shards are fetched before their turn."""
_RECENT_SHARDS = 1024
"""Number of shards that are remembered as fetched, so that none is asked for at every sample of it."""


class RemoteSource(Protocol):
    """What a source has besides, if it `is_remote`, as `ShardSource` does."""

    cache: ShardCache

    def shard_of_item(self, item: int) -> int:
        """Return which shard holds an item."""
        ...

    def address(self, shard: int) -> tuple[str, int]:
        """Return a shard's address, and its bytes."""
        ...


class TrainingSamples(Dataset):
    """Samples by position: what cannot be read is masked in its place.

    A sample's key is `SOURCE/RECORD#ITEM`: the name of its source, its record's key, and the number of the caption,
    question or conversation in that record. A record that cannot be read goes by its number in the source.

    Args:
        sources: The sources by name.
        makers: For each source, what makes Samples of its records.
        order: Which item stands at which position.
    """

    def __init__(self, sources: Mapping[str, Source], makers: Mapping[str, SampleMaker], order: Order) -> None:
        self.sources = sources
        self.makers = makers
        self.order = order

    def __getitem__(self, index: int) -> Sample:
        """Return the Sample that stands at a position of the order."""
        source_number, item, number = self.order.locate(index)
        name = self.order.names[source_number]
        source = self.sources[name]
        place = source.find_item(item)

        # What a sample is called that cannot be read; it becomes more exact as more of it is known.
        key = str(place.record)
        item_index = place.index
        try:
            record = source.read(place.record)
            key = record["key"]
            item_index = self._index_shown(record, place, number)
            sample = self.makers[name](record, item_index)
        except BadRecord as error:
            suffix = "" if item_index is None else f"#{item_index}"
            return masked_sample(f"{name}/{key}{suffix}", name, error)
        return _of_source(name, replace(sample, key=f"{sample.key}#{item_index}"))

    def _index_shown(self, record: Mapping, place: ItemPlace, number: int) -> int:
        """Return which of a record's items stands at a place, in this pass.

        Raises:
            BadRecord: If the record holds another number of items than its source counts.
        """
        num_held = num_items(record)
        if place.index is None:
            # The source counts a record as one item: each pass shows another one of those that it holds.
            return item_shown(self.order.seed, place.record, number, num_held)

        if num_held != place.num_items:
            raise BadRecord(
                "text", f"{record['key']}: holds {num_held} items, and its source counts {place.num_items} in it"
            )
        return place.index


class ValidationSamples(Dataset):
    """Samples of the sources' first records, in turns, each with its first caption or question.

    Args:
        sources: The sources by name.
        makers: For each source, what makes Samples of its records.
        num_records: Number of records of all sources together; None is all that there are.
    """

    def __init__(
        self, sources: Mapping[str, Source], makers: Mapping[str, SampleMaker], num_records: int | None = None
    ) -> None:
        self.sources = sources
        self.makers = makers
        longest = max(map(len, sources.values()), default=0)
        turns = ((name, i) for i in range(longest) for name, source in sources.items() if i < len(source))
        self.places = list(islice(turns, num_records))

    def __len__(self) -> int:
        return len(self.places)

    def record(self, index: int) -> dict:
        """Return a record.

        Raises:
            BadRecord: If it cannot be read.
        """
        name, place = self.places[index]
        return self.sources[name].read(place)

    def readable(self, source: str) -> Iterator[dict]:
        """Yield the records of a source that can be read, with pictures that can be decoded."""
        for index, (name, _) in enumerate(self.places):
            if name != source:
                continue

            with suppress(BadRecord):
                record = self.record(index)
                # A picture that is damaged shows only when it is decoded.
                for image in images_of(record):
                    open_image(image)
                yield record

    def __getitem__(self, index: int) -> Sample:
        name, place = self.places[index]

        # A record that cannot be read goes by its number in the source.
        key = str(place)
        try:
            record = self.record(index)
            key = record["key"]
            sample = self.makers[name](record)
        except BadRecord as error:
            return masked_sample(f"{name}/{key}", name, error)
        return _of_source(name, sample)


def _of_source(name: str, sample: Sample) -> Sample:
    """Return a sample with its source's name, and with a fault if nothing is left of it to learn."""
    fault = None
    if sample.num_targets == 0:
        fault = BadRecord("no_target", f"{sample.key}: nothing to learn is left of it")
    return replace(sample, key=f"{name}/{sample.key}", source=name, fault=fault)


class StepLoader:
    """A rank's Steps of a whole run.

    Its state is the number of samples that all ranks have seen, and what the order rests on. It goes on from there with
    any number of ranks and workers.

    Args:
        samples: A sample for each position of the order.
        rests_on: What the order rests on, by name.
        collator: Builds Steps of Samples.
        num_steps: Number of optimizer steps of the run.
        num_workers: Number of processes that load; it changes nothing but speed.
        rank: Number of this rank, which decides its share of each global batch.
        num_ranks: Number of ranks.
        allow_reorder: Go on with another order than the one before; items may then come twice, or late. The global
            batch size may not change even then: steps are counted in it.

    Attributes:
        waited_s: Seconds that the training has waited for Steps so far.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        rests_on: Mapping,
        collator: Collator,
        num_steps: int,
        num_workers: int,
        rank: int,
        num_ranks: int,
        allow_reorder: bool = False,
    ) -> None:
        self.samples = samples
        self.order = samples.order
        self.rests_on = rests_on
        self.collator = collator
        self.num_steps = num_steps
        self.num_workers = num_workers
        self.rank = rank
        self.num_ranks = num_ranks
        self.allow_reorder = allow_reorder

        self.step = 0
        self._first = 0
        self.waited_s = 0.0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Step]:
        # What a state has set holds for one time through: the next one begins at the start.
        self.step = self._first
        self._first = 0

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

                # Counted before the step is handed out: a state that is saved during it includes its samples.
                self.step += 1
                yield step

    def _positions(self, step: int) -> list[int]:
        return self.order.positions(step, self.rank, self.num_ranks)

    def _remote(self, name: str) -> RemoteSource:
        return cast("RemoteSource", self.samples.sources[name])

    @contextmanager
    def _fetching_ahead(self) -> Generator[None, None, None]:
        """Fetch the shards of remote sources in the background, as long as Steps are read."""
        remote_names = [name for name, source in self.samples.sources.items() if source.is_remote]
        self._reading = True
        threads = [self._remote(name).cache.prefetch(self._coming_shards(name)) for name in remote_names]

        try:
            yield
        finally:
            # What waits in `_coming_shards` for the steps to come ends by this.
            self._reading = False
            for thread in threads:
                thread.stop(timeout_s=0)

    def _coming_shards(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the shards of a source that this rank will read, in their order, some steps before their turn."""
        recent: deque[int] = deque(maxlen=_RECENT_SHARDS)
        for step in range(self.step, self.num_steps):
            # This runs in a thread of its own, while `self.step` goes on in the main thread.
            while step > self.step + _AHEAD_STEPS:
                if not self._reading:
                    return
                time.sleep(0.1)

            for position in self._positions(step):
                source, item, _ = self.order.locate(position)
                if self.order.names[source] != name:
                    continue

                shard = self._remote(name).shard_of_item(item)
                if shard not in recent:
                    recent.append(shard)
                    yield self._remote(name).address(shard)

    def state_dict(self) -> dict:
        """Return what `load_state_dict` needs to go on from here, with any number of ranks."""
        return {"samples_seen": self.step * self.order.global_batch_size, "rests_on": self.rests_on}

    def load_state_dict(self, state: dict) -> None:
        """Set the step from which to go on, as another loader's state has it.

        Raises:
            ConfigError: If the order is another one, naming what differs.
        """
        check_order(state["rests_on"], self.rests_on, self.allow_reorder)
        step = state["samples_seen"] // self.order.global_batch_size
        self._first = step
        self.step = step


def check_order(before: Mapping, now: Mapping, allow_reorder: bool) -> None:
    """Check that the order of samples is still the one that a checkpoint was written in.

    Args:
        before: What the checkpoint's order rests on.
        now: What this run's order rests on.
        allow_reorder: Accept another order, though not another global batch size.

    Raises:
        ConfigError: If it is another one, naming each part that differs.
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

    differences = [
        f"{name}: {before.get(name)} then, {now.get(name)} now" for name in now if before.get(name) != now[name]
    ]
    if differences:
        raise ConfigError(
            f"resume: the samples would come in another order ({'; '.join(differences)}): items would come twice, or "
            f"not at all. Set these back, {accept}"
        )


class TrainingData(pl.LightningDataModule):
    """Records for training and validation.

    Args:
        train: Sources of training records, by name.
        val: Sources of records that are not trained on, by name; empty where nothing is validated.
        makers: For each source, what makes Samples of its records.
        collator: Builds Steps of Samples.
        order: Which training item stands at which position.
        num_steps: Number of optimizer steps of the run; passes over the data follow each other until then.
        num_workers: Number of processes that load for each rank; it changes nothing but speed.
        num_val_records: Number of records to validate on, the first ones; None validates on all.
        allow_reorder: Go on with another order than that of the checkpoint; items may then come twice, or late.
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
        self.train = train
        self.val = ValidationSamples(val, makers, num_val_records)
        self.makers = makers
        self.collator = collator

        self.order = order
        self.num_steps = num_steps
        self.num_workers = num_workers
        self.allow_reorder = allow_reorder

    @property
    def rests_on(self) -> dict[str, object]:
        """All that the order of the training samples rests on, by name."""
        fingerprints = {name: fingerprint(source) for name, source in self.train.items()}
        return self.order.fingerprint(fingerprints)

    def _rank(self) -> tuple[int, int]:
        """Return the number of this rank, and the number of ranks."""
        # Whoever takes a loader without a trainer is alone.
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> StepLoader:
        """Return the loader of this rank's Steps of the whole run."""
        rank, num_ranks = self._rank()
        return StepLoader(
            TrainingSamples(self.train, self.makers, self.order),
            self.rests_on,
            self.collator,
            self.num_steps,
            self.num_workers,
            rank,
            num_ranks,
            allow_reorder=self.allow_reorder,
        )

    def val_dataloader(self) -> Loader:
        """Return a loader of each validation record once; where ranks do not divide them, some ranks have one more."""
        rank, num_ranks = self._rank()
        num_records = len(self.val)
        size = self.order.global_batch_size

        batches = []
        for first in range(0, num_records, size):
            share = rank_share(min(size, num_records - first), rank, num_ranks)
            batches.append([first + i for i in share])
        return Loader(self.val, batches, self.collator, self.num_workers)

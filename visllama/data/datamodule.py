"""The LightningDataModule: loaders of Steps (the work of one rank in one optimizer step) for training and validation.

One Lightning batch is one Step. The training loader has the length of the whole run, and passes over the data follow
each other inside it, so one number, the samples seen so far, says where a run stands.
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
    """What a source must have if its `is_remote` is true, so that its shards are downloaded before their turn."""

    cache: ShardCache
    """Downloads the source's shards."""

    def shard_of_item(self, item: int) -> int:
        """Return the number of the shard that holds an item, given by its number in the source."""
        ...

    def address(self, shard: int) -> tuple[str, int]:
        """Return a shard's URL, and its size in bytes."""
        ...


class TrainingSamples(Dataset):
    """A torch dataset of training Samples, indexed by a position in the order of the run.

    That order has no end, so the dataset has no length. A record that cannot be used becomes a masked Sample, which has
    no images and no targets. A Sample's key is `SOURCE/RECORD#ITEM`: the name of its source, its record's key, and the
    number of the caption, question or conversation in that record. Where the record cannot be read, RECORD is its
    number in the source.

    Args:
        sources: The sources by name.
        makers: The SampleMaker of each source, by the source's name.
        order: Says which item of which source stands at each position.
    """

    def __init__(self, sources: Mapping[str, Source], makers: Mapping[str, SampleMaker], order: Order) -> None:
        self.sources = sources
        self.makers = makers
        self.order = order

    def __getitem__(self, index: int) -> Sample:
        """Return the Sample at a position of the order, masked and with its fault where the record cannot be used."""
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
        """Return the number of the item of a record that is shown in this pass (`number`) over the source.

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
    """The validation Samples: one for each record, of its first caption or question, or of its conversation.

    The records come in turns: the first of each source, then the second of each, and so on. A record that cannot be
    used becomes a masked Sample, which has no images and no targets.

    Args:
        sources: The sources by name.
        makers: The SampleMaker of each source, by the source's name.
        num_records: The largest number of records, over all sources together; None takes all.
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
        """Read the record at a position of this dataset from its source, and return it as `Source.read` does.

        Args:
            index: The position, from 0.

        Raises:
            BadRecord: If the record cannot be read.
            IndexError: If `index` is not less than the length of the dataset.
        """
        name, place = self.places[index]
        return self.sources[name].read(place)

    def readable(self, source: str) -> Iterator[dict]:
        """Yield the records of one source whose text can be read and whose images can all be decoded; skip the others.

        Args:
            source: The source's name; of a source that this dataset does not have, nothing is yielded. Records of the
                source that `num_records` left out of this dataset are not yielded either.
        """
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
    """Return a copy of a sample with its source's name, also in its key, and with a fault if it has no targets."""
    fault = None
    if sample.num_targets == 0:
        fault = BadRecord("no_target", f"{sample.key}: nothing to learn is left of it")
    return replace(sample, key=f"{name}/{sample.key}", source=name, fault=fault)


class StepLoader:
    """An iterable of one rank's Steps, from the first step of the run, or the resumed one, to the last.

    `state_dict` returns the number of samples that all ranks (training processes) have seen, and the inputs of the
    order (`rests_on`). A run can be resumed from that dict with any number of ranks and workers. While Steps are read,
    threads download the shards of remote sources up to 64 steps ahead.

    Args:
        samples: The dataset that returns the Sample at each position of the order.
        rests_on: All inputs that the order of samples is computed from, by name, as `Order.fingerprint` returns them.
        collator: Builds Steps of Samples.
        num_steps: Number of optimizer steps of the run.
        num_workers: Number of processes that load; 0 loads in this process. It changes nothing but speed.
        rank: Number of this rank, from 0; it decides which samples of each global batch are loaded here.
        num_ranks: Number of ranks.
        allow_reorder: Accept a saved state with another order; items may then come twice, or late. A state with
            another global batch size is refused all the same, since steps are counted in batches of that size.

    Attributes:
        step: Number of steps that were handed out so far, counted from the start of the run.
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
        # Threads of this process, not of the loading processes: each of those sees only some of the steps.
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
        """Yield the URL and the size of each shard of a source that this rank will read, at most 64 steps early."""
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
        """Return the number of samples that all ranks have seen, and `rests_on`, as `load_state_dict` takes them."""
        return {"samples_seen": self.step * self.order.global_batch_size, "rests_on": self.rests_on}

    def load_state_dict(self, state: dict) -> None:
        """Set the step at which the next iteration begins to the one at which a saved state was taken.

        Args:
            state: What `state_dict` returned, maybe for another number of ranks.

        Raises:
            ConfigError: If the saved order has another global batch size, or differs otherwise and `allow_reorder` is
                false. The message names what differs.
        """
        check_order(state["rests_on"], self.rests_on, self.allow_reorder)
        step = state["samples_seen"] // self.order.global_batch_size
        self._first = step
        self.step = step


def check_order(before: Mapping, now: Mapping, allow_reorder: bool) -> None:
    """Check that a run draws its samples in the same order as the run that wrote a checkpoint.

    Args:
        before: The inputs of the checkpoint's order, by name, as `Order.fingerprint` returns them.
        now: The inputs of this run's order, by name, in the same form.
        allow_reorder: Accept another order, though not another global batch size.

    Raises:
        ConfigError: If the global batch size differs, or another input does and `allow_reorder` is false. The message
            names what differs.
    """
    # Checked before `allow_reorder`: the position of a run is stored in samples, and read in steps of this size.
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
    """A LightningDataModule that makes the loaders of training and validation Steps for the trainer's rank.

    Args:
        train: Sources of training records, by name.
        val: Sources of records that are not trained on, by name; empty where nothing is validated.
        makers: The SampleMaker of each source of `train` and `val`, by the source's name.
        collator: Builds Steps of Samples.
        order: Says which training item stands at each position.
        num_steps: Number of optimizer steps of the run; passes over the data follow each other until then.
        num_workers: Number of processes that load for each rank; 0 loads in this process. It changes nothing but speed.
        num_val_records: The largest number of records to validate on: the first of each source, then the second of
            each, and so on. None validates on all.
        allow_reorder: Accept a checkpoint with another order of samples; items may then come twice, or late.
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
        """All inputs that the order of the training samples is computed from, by name, as a checkpoint stores them."""
        fingerprints = {name: fingerprint(source) for name, source in self.train.items()}
        return self.order.fingerprint(fingerprints)

    def _rank(self) -> tuple[int, int]:
        """Return the number of this rank, from 0, and the number of ranks."""
        # Whoever takes a loader without a trainer is alone.
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> StepLoader:
        """Return a new loader of this rank's training Steps of the whole run, which starts at the first step."""
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
        """Return a loader of this rank's validation Steps; over all ranks, each validation record comes once.

        The records are cut into global batches of the order's `global_batch_size`, the last maybe smaller. A Step holds
        this rank's share of one of them; the shares of different ranks differ by one record at most.
        """
        rank, num_ranks = self._rank()
        num_records = len(self.val)
        size = self.order.global_batch_size

        batches = []
        for first in range(0, num_records, size):
            share = rank_share(min(size, num_records - first), rank, num_ranks)
            batches.append([first + i for i in share])

        return Loader(self.val, batches, self.collator, self.num_workers)

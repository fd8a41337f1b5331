"""Which records stand in which batch.

The order is a function of (seed, epoch, batches handed out) alone: not of the workers, of how the global batch is
split over ranks, or of any generator's state. Every epoch of a sampler has the same number of batches, which the
schedule and Lightning count on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from ftlab.data.collators import Idle
from ftlab.data.packing import Bins, best_fit, longest_first
from ftlab.errors import UserError

IntArray = NDArray[numpy.integer]
GlobalBatch = Callable[[int], list[Any]]
"""The k-th global batch of an epoch: indices of records, or packs of them."""


def share(items: list[Any], rank: int, world_size: int) -> list[Any]:
    """A rank's part of a global batch: the items [r::W], or an idle batch."""
    return items[rank::world_size] or Idle(items[:1])


class TrainingBatchSampler(Sampler[list[Any]]):
    """What all training samplers share: global batches, of which rank r takes the items [r::W].

    The last one is short where the items do not go into it evenly; where they are fewer than ranks, some are idle.

    Args:
        size: Places in an epoch: the number of records, or of `rows`.
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes (W).
        rows: The records that an epoch goes through, some perhaps several times, (size,); by default each once.
        data: Fingerprint of the data, so that a resume on other data is refused.
    """

    def __init__(self, size: int, seed: int, rank: int, world_size: int, rows: IntArray | None, data: str) -> None:
        if rows is not None and len(rows) != size:
            raise ValueError(f"{len(rows)} rows for {size} places")
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.rows = rows
        self.data = data if rows is None else f"{data}+{_digest(rows)}"
        self.lengths: IntArray | None = None
        """Tokens of the places, where they are known, (size,)."""
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next iterator goes through; one that is under way is left alone."""
        self.epoch = epoch

    def global_batches(self, epoch: int) -> GlobalBatch:
        """Lays out an epoch."""
        raise NotImplementedError

    def over(self, places: IntArray) -> TrainingBatchSampler:
        """The sampler of an epoch that goes through these places alone: what is left of one that began otherwise."""
        raise NotImplementedError

    def identity(self) -> dict[str, int | str]:
        """All that the global batches depend on, beside the epoch."""
        return {"records": self.size, "seed": self.seed, "data": self.data}

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Any]]:
        return self.batches(self.epoch)

    def batches(self, epoch: int, skipped: int = 0) -> Iterator[list[Any]]:
        """This rank's batches of an epoch, without the first ones."""
        global_batch = self.global_batches(epoch)
        for number in range(skipped, len(self)):
            yield share(global_batch(number), self.rank, self.world_size)

    def _records(self, places: IntArray) -> IntArray:
        return places if self.rows is None else self.rows[places]


class ShuffledBatchSampler(TrainingBatchSampler):
    """Records at random: the k-th global batch is order[k*B*W : (k+1)*B*W].

    So W ranks of B records train what one rank of B*W records trains, batch for batch.

    Args:
        size: Number of records, or of `rows`.
        batch_size: Records of one rank's batch (B).
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes (W).
        rows: The records that an epoch goes through (see TrainingBatchSampler).
        window: Shuffle within consecutive windows of so many places, as a stream does; by default over all.
        data: Fingerprint of the data.
        ordered: Leave them as they are instead.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        rows: IntArray | None = None,
        window: int | None = None,
        data: str = "",
        ordered: bool = False,
    ) -> None:
        super().__init__(size, seed, rank, world_size, rows, data)
        self.batch_size = batch_size
        self.window = window
        self.ordered = ordered

    @property
    def global_batch_size(self) -> int:
        """Records that all ranks take together in one batch."""
        return self.batch_size * self.world_size

    def order(self, epoch: int) -> IntArray:
        """The records in the order of the epoch, (size,)."""
        if self.ordered:
            return self._records(numpy.arange(self.size))
        return self._records(shuffled_places(self.size, self.seed, epoch, self.window))

    def over(self, places: IntArray) -> ShuffledBatchSampler:
        """These places in this order."""
        rows, size = self._records(places), self.batch_size
        return ShuffledBatchSampler(
            len(places), size, self.seed, self.rank, self.world_size, rows, data=self.data, ordered=True
        )

    def global_batches(self, epoch: int) -> GlobalBatch:
        """Cuts the order."""
        order, size = self.order(epoch), self.global_batch_size
        return lambda number: order[number * size : (number + 1) * size].tolist()

    def identity(self) -> dict[str, int | str]:
        """Kind, records, seed, global batch and window."""
        own: dict[str, int | str] = {"batching": "pad", "global_batch_size": self.global_batch_size}
        return own | super().identity() | ({} if self.window is None else {"window": self.window})

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)


class BucketBatchSampler(TrainingBatchSampler):
    """Records of like length together, batches at random.

    Lengths are rounded up to classes 3 to 6 % wide, records sorted by class and at random within it, and cut into
    global batches, which are then shuffled. So it is chance who meets whom, but not how many batches there are.

    With `batch_size` a batch holds as many records as ShuffledBatchSampler's, the last one, too, which is of any
    lengths; W ranks of B records train what one rank of B*W records trains. With `batch_tokens` every rank of a batch
    holds the same number of records; those that do not go into the ranks evenly, fewer than W, are one batch more.

    Args:
        lengths: Tokens of each of the epoch's records: of `rows` where these are given, (size,).
        batch_size: Records of one rank's batch (B).
        batch_tokens: Most positions of one rank's batch, padding counted; instead of `batch_size`.
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes (W).
        rows: The records that an epoch goes through (see TrainingBatchSampler).
        data: Fingerprint of the data.

    Raises:
        UserError: A record is longer than `batch_tokens`.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rows: IntArray | None = None,
        data: str = "",
    ) -> None:
        if (batch_size is None) == (batch_tokens is None):
            raise ValueError("give batch_size or batch_tokens")
        tokens: IntArray = numpy.asarray(lengths, dtype=numpy.int64)
        super().__init__(len(tokens), seed, rank, world_size, rows, data)
        self.lengths: IntArray = tokens
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self._classes = _length_classes(tokens)
        if batch_tokens is None:
            assert batch_size is not None
            global_batch = batch_size * world_size
            self._sorted = self.size // global_batch * global_batch
            self._offsets: IntArray = numpy.arange(0, self._sorted + 1, global_batch)
        else:
            if (longest := int(tokens.max(initial=0))) > batch_tokens:
                raise UserError(
                    f"data.batch_tokens is {batch_tokens}, but a record has {longest} tokens; raise it, or "
                    "lower data.max_length"
                )
            self._sorted = self.size // world_size * world_size
            self._offsets = self._cut(numpy.minimum(self._classes, batch_tokens), batch_tokens)

    def _cut(self, longest: IntArray, batch_tokens: int) -> IntArray:
        """Where batches start among the sorted records.

        Cut as if the shortest records were those left out: whichever are, the k-th longest of the others is no
        longer than here, so that every epoch's batches fit.
        """
        falling = numpy.sort(longest)[::-1][: self._sorted].tolist()
        offsets = [0]
        while offsets[-1] < len(falling):
            rows = batch_tokens // falling[offsets[-1]] * self.world_size
            offsets.append(min(offsets[-1] + rows, len(falling)))
        return numpy.array(offsets)

    def global_batches(self, epoch: int) -> GlobalBatch:
        """Sorts and cuts the epoch's permutation, and shuffles the batches; those too few to fill one come last."""
        generator = numpy.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.size)
        whole, rest = order[: self._sorted], order[self._sorted :]
        batches = Bins(longest_first(self._classes, whole), self._offsets)
        shuffled = generator.permutation(len(batches))
        return lambda number: self._records(batches[shuffled[number]] if number < len(shuffled) else rest).tolist()

    def over(self, places: IntArray) -> BucketBatchSampler:
        """Their lengths, laid out anew."""
        rest, rows = self.lengths[places], self._records(places)
        return BucketBatchSampler(
            rest, self.batch_size, self.batch_tokens, self.seed, self.rank, self.world_size, rows, self.data
        )

    def identity(self) -> dict[str, int | str]:
        """Kind, records and their lengths, seed and global batch."""
        own: dict[str, int | str] = {"batching": "bucket", "lengths": _digest(self.lengths)}
        if self.batch_size is not None:
            own |= {"global_batch_size": self.batch_size * self.world_size}
        if self.batch_tokens is not None:
            own |= {"batch_tokens": self.batch_tokens, "devices": self.world_size}
        return own | super().identity()

    def __len__(self) -> int:
        return len(self._offsets) - 1 + (self.size > self._sorted)


class PackBatchSampler(TrainingBatchSampler):
    """Packs of records, each a list of indices.

    Packs are made by `packing.best_fit` over the whole epoch, among records of the same length as the epoch's
    permutation has it, and shuffled. How many there are depends on the lengths alone. Global batches are of B*W packs.

    Args:
        lengths: Tokens of each of the epoch's records: of `rows` where these are given, (size,).
        capacity: Most tokens of a pack.
        packs_per_batch: Packs of one rank's batch (B).
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes (W).
        rows: The records that an epoch goes through (see TrainingBatchSampler).
        data: Fingerprint of the data.

    Raises:
        UserError: A record is longer than `capacity`.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        capacity: int,
        packs_per_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rows: IntArray | None = None,
        data: str = "",
    ) -> None:
        tokens: IntArray = numpy.asarray(lengths, dtype=numpy.int64)
        super().__init__(len(tokens), seed, rank, world_size, rows, data)
        self.lengths: IntArray = tokens
        self.capacity = capacity
        self.packs_per_batch = packs_per_batch
        # over the sorted lengths, so that its rows are places in that order, whoever takes them in an epoch
        self._places = best_fit(tokens[longest_first(tokens)], capacity)

    @property
    def packs(self) -> int:
        """Packs of an epoch."""
        return len(self._places)

    @property
    def _global_packs(self) -> int:
        return self.packs_per_batch * self.world_size

    def global_batches(self, epoch: int) -> GlobalBatch:
        """Gives the places in the packs to the epoch's permutation, and shuffles the packs."""
        generator = numpy.random.default_rng([self.seed, epoch])
        by_length = longest_first(self.lengths, generator.permutation(self.size))
        packs = Bins(by_length[self._places.rows], self._places.offsets)
        shuffled, size = generator.permutation(len(packs)), self._global_packs
        return lambda number: [
            self._records(packs[pack]).tolist() for pack in shuffled[number * size : (number + 1) * size].tolist()
        ]

    def over(self, places: IntArray) -> PackBatchSampler:
        """Their lengths, packed anew."""
        rest, rows = self.lengths[places], self._records(places)
        return PackBatchSampler(
            rest, self.capacity, self.packs_per_batch, self.seed, self.rank, self.world_size, rows, self.data
        )

    def identity(self) -> dict[str, int | str]:
        """Kind, records and their lengths, seed, capacity and global batch."""
        own: dict[str, int | str] = {
            "batching": "pack",
            "lengths": _digest(self.lengths),
            "capacity": self.capacity,
            "packs_of_a_global_batch": self._global_packs,
        }
        return own | super().identity()

    def __len__(self) -> int:
        return -(-self.packs // self._global_packs)


class LengthBatchSampler(Sampler[list[int]]):
    """Evaluation batches: every record once on exactly one rank, those of like length together, longest first.

    Batches differ by at most one record in size and number `ceil(N / (B*W))` on every rank; only where there are fewer
    records than ranks, or B is 1, may a rank get one batch less. As many records as ranks are a batch for each.

    Args:
        lengths: Tokens of each record.
        batch_size: Most records of one rank's batch (B).
        rank: This process.
        world_size: Number of processes (W).
    """

    def __init__(self, lengths: ArrayLike, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        order = longest_first(
            numpy.asarray(lengths, dtype=numpy.int64)
        )  # too little memory shows at once, not at the end
        steps = -(-len(order) // (batch_size * world_size))
        # of single records parts alike in size may all be smaller than the ranks are many
        cuts = range(world_size, len(order), world_size) if batch_size == 1 else max(1, steps)
        shares = [part[rank::world_size].tolist() for part in numpy.array_split(order, cuts)]
        self._batches: list[list[int]] = [share for share in shares if share]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


def shuffled_places(size: int, seed: int, epoch: int, window: int | None = None) -> IntArray:
    """The permutation of an epoch, within consecutive windows where `window` says so, (size,)."""
    if window is None:
        return numpy.random.default_rng([seed, epoch]).permutation(size)
    windows = [
        start + shuffled_window(min(window, size - start), seed, epoch, number)
        for number, start in enumerate(range(0, size, window))
    ]
    return numpy.concatenate(windows) if windows else numpy.zeros(0, dtype=numpy.int64)


def shuffled_window(size: int, seed: int, epoch: int, number: int) -> IntArray:
    """The permutation of the `number`-th window of an epoch, (size,): the same in memory and in a stream."""
    return numpy.random.default_rng([seed, epoch, number]).permutation(size)


def _length_classes(lengths: IntArray) -> IntArray:
    """Lengths rounded up to five significant bits."""
    steps = 2 ** numpy.maximum(0, numpy.frexp(lengths)[1].astype(numpy.int64) - 5)
    return -(-lengths // steps) * steps


def _digest(values: IntArray) -> str:
    return blake2b(values.astype(numpy.int64).tobytes(), digest_size=4).hexdigest()

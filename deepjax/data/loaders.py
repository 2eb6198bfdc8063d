"""Batches in a reproducible order: from arrays on the device, or read by Grain on the host.

Both loaders have `steps`, `epoch(epoch, first)` and `fetch`. The training step receives the rows that `epoch` yields,
and calls `fetch` on them inside jit, which returns the batch: {"image": [batch, ...], "label": int32 [batch],
"mask": bool [batch]}. The mask is False for the padding of the last batch.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from deepjax import config
from deepjax.data import images
from deepjax.data.balance import balanced_order, repeats
from deepjax.data.records import MEMORY_LIMIT, Arrays, Records, Split
from deepjax.errors import InputError


def epoch_order(
    seed: int, epoch: int, size: int, batch_size: int, *, shuffle: bool, balance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of one epoch, int32 [steps, batch_size], and their mask, bool of the same shape.

    Every index below `size` appears once with mask True, or, with the labels `balance` [size], as in `balanced_order`.
    The order depends only on seed and epoch (and labels). The last batch is padded with index 0 and mask False.
    """
    rng = _rng(seed, 0, epoch)
    if balance is not None:
        order = balanced_order(balance, rng)
    else:
        order = rng.permutation(size) if shuffle else np.arange(size)
    steps = -(-size // batch_size)
    indices = np.zeros(steps * batch_size, np.int32)
    indices[:size] = order
    mask = np.arange(steps * batch_size) < size
    return indices.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def _rng(seed: int, *stream: int) -> np.random.Generator:
    """Return an independent generator for each (seed, stream)."""
    # The stream is passed as spawn_key, because SeedSequence([1]) equals SeedSequence([1, 0]).
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


class DeviceLoader:
    """A loader with all images on the device. A step selects its batch there, so only indices are transferred."""

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool,
        balance: bool = False,
        put: Callable[[np.ndarray], Any] = jax.device_put,
    ):
        self.balance = arrays.labels if balance else None
        self.batch_size, self.seed, self.shuffle, self.size = batch_size, seed, shuffle, len(arrays)
        self.steps = -(-len(arrays) // batch_size)
        self.data = {"images": put(arrays.images), "labels": put(arrays.labels)}

    def epoch(self, epoch: int, first: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the rows of the steps `first`, first + 1, ... of this epoch: indices of images, and the mask."""
        order = {"shuffle": self.shuffle, "balance": self.balance}
        indices, mask = epoch_order(self.seed, epoch, self.size, self.batch_size, **order)
        for step in range(first, self.steps):
            yield {"index": indices[step], "mask": mask[step]}

    @staticmethod
    def fetch(data: dict[str, Any], rows: dict[str, Any]) -> dict[str, jax.Array]:
        """Return the batch of these rows. Pure, for use inside jit."""
        image = data["images"].at[rows["index"]].get(mode="promise_in_bounds")
        label = data["labels"].at[rows["index"]].get(mode="promise_in_bounds")
        return {"image": image, "label": label, "mask": rows["mask"]}


@dataclass(frozen=True)
class _Batches:
    """One epoch as a random-access source for Grain: item k is batch k. Picklable, for worker processes."""

    source: Split
    indices: np.ndarray
    repeats: np.ndarray
    """How often each index occurs earlier in the epoch."""
    mask: np.ndarray
    seed: int
    epoch: int
    area: tuple[float, float] | None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows, mask = self.indices[index], self.mask[index]
        return {"image": self._images(rows, self.repeats[index], mask), "label": self.source.labels[rows], "mask": mask}

    def _images(self, rows: np.ndarray, repeats: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if isinstance(self.source, Arrays):
            return self.source.images[rows]
        images = self._read(rows[mask], repeats[mask])
        if mask.all():
            return images
        padding = self._read(rows[~mask][:1], repeats[~mask][:1])  # decoded once, not for every masked row
        return np.concatenate([images, np.repeat(padding, (~mask).sum(), 0)])

    def _read(self, rows: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        assert isinstance(self.source, Records)

        def rng(position: int) -> np.random.Generator:
            again = repeats[position]
            return _rng(self.seed, 1, self.epoch, int(rows[position]), *([int(again)] if again else []))

        return self.source.read(rows, self.area, None if self.area is None else rng)


class HostLoader:
    """A loader that reads batches on the host, by Grain, while the device computes. A step receives the complete batch.

    The order is that of DeviceLoader. With `area`, images are random-area crops that depend only on (seed, epoch,
    image, how often the image occurred before in the epoch).
    `workers` is the number of processes that decode images; they are started and stopped with each epoch.
    With 0 workers, and for Arrays, which need no decoding, threads are used.
    """

    data = ()  # there are no images on the device

    def __init__(
        self,
        source: Split,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool,
        balance: bool = False,
        area: tuple[float, float] | None = None,
        workers: int = 0,
    ):
        if area is not None and isinstance(source, Arrays):
            raise InputError(
                f"data.augment.area {area}: needs images that are read one by one; set data.placement to host"
            )
        self.source, self.batch_size, self.seed, self.shuffle = source, batch_size, seed, shuffle
        self.balance = source.labels if balance else None
        self.area, self.workers = area, 0 if isinstance(source, Arrays) else workers
        self.steps = -(-len(source) // batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of the steps `first`, first + 1, ... of this epoch. Images of earlier steps are not read.

        Raise InputError, naming the file, if an image cannot be read.
        """
        if first >= self.steps:
            return
        order = {"shuffle": self.shuffle, "balance": self.balance}
        indices, mask = epoch_order(self.seed, epoch, len(self.source), self.batch_size, **order)
        again = repeats(indices.ravel()).reshape(indices.shape)
        batches = _Batches(self.source, indices[first:], again[first:], mask[first:], self.seed, epoch, self.area)
        iterator = iter(_prefetched(batches, self.workers))
        try:
            yield from iterator
        finally:
            iterator.close()  # stops threads and worker processes, also if the consumer stops early

    @staticmethod
    def fetch(data: tuple, rows: dict[str, Any]) -> dict[str, Any]:
        """Return the rows, which are the batch."""
        return rows


def _prefetched(batches: _Batches, workers: int):
    """Return a Grain pipeline that reads batches ahead, in order."""
    import grain
    from absl import flags

    dataset = grain.MapDataset.source(batches)
    if workers == 0:
        threads = images.threads(batches.source.shape) if isinstance(batches.source, Records) else 1
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1))
    # Grain reads absl's flags before it starts workers, but only absl.app parses them.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return dataset.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_ignore_interrupt)


def _ignore_interrupt(*_):
    """Ignore Ctrl-C, which is sent to all processes of a terminal. The main process stops its workers after saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    split: Split,
    data: config.Data,
    batch_size: int,
    seed: int,
    *,
    train: bool,
    put: Callable[[np.ndarray], Any] = jax.device_put,
) -> DeviceLoader | HostLoader:
    """Make the loader that `data` describes. With `train`, it shuffles, balances and crops as `data` says.

    Arrays are put on the device, unless data.placement is host, or is auto and they exceed 1 GiB.

    Args:
      split: Arrays or Records.
      data: config.Data.
      batch_size: rows of each batch.
      seed: seed of order and crops.
      train: whether batches are for training.
      put: function that transfers an array to the devices.
    """
    balance = train and data.balance == "sample"
    if isinstance(split, Arrays) and (
        data.placement == "device" or (data.placement == "auto" and split.images.nbytes <= MEMORY_LIMIT)
    ):
        return DeviceLoader(split, batch_size, seed, shuffle=train, balance=balance, put=put)
    area = data.augment.area if train else None
    return HostLoader(split, batch_size, seed, shuffle=train, balance=balance, area=area, workers=data.workers)

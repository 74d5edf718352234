"""What the layers of the original read, in numbers: one pass over the calibration samples, kept for the next run."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.data import Data, feeds
from onnxprune.patches import Patches
from onnxprune.progress import Progress, Quiet
from onnxprune.readers import Reader, find_readers
from onnxprune.weights import Array, Floats

FORMAT = 4  # of what is kept on disk
CONSTANT = 1e-6  # part of the mean variance; a number that varies less is a constant, but for rounding
RIDGE = 1e-4  # part of the mean variance that is added to each number's own
WIDEST = 5_000  # inputs of a layer; wider ones are looked at in blocks of channels
ROWS_PER_INPUT, LEAST_ROWS, MOST_ROWS = 40, 8_000, 60_000
HELD_BYTES = 2_000_000_000  # of sums that are held at once; more take further passes
LAYER_BYTES = 1_000_000_000  # of the sums of one layer, where whole channels allow it; what is made of them is larger
TAPPED = 100_000_000  # numbers in all tapped tensors of one batch
CACHE_BYTES = 8_000_000_000  # on disk; what was made longest ago goes first
IN_USE = 86_400  # seconds for which a run may go on using what it has found or is still writing
UNIT = "unit.json"


@dataclass(frozen=True)
class Inputs:
    """What a layer sums over, in numbers; input and kernel position make one number each.

    Attributes:
        mean: (groups, numbers).
        covariance: (groups, blocks, numbers of a block, numbers of a block); more than one block only for very wide
            layers, where what lies between blocks is not known, and the last block is filled up with zeros.
        rows: how many were looked at.
    """

    mean: Floats
    covariance: Array
    rows: int

    @property
    def block(self) -> int:
        """Numbers of a block."""
        return int(self.covariance.shape[-1])

    def regular(self, is_centred: bool = True) -> Floats:
        """Give the covariance, or the second moments, as they may be beyond the rows that were looked at: invertible.

        Of few rows a covariance knows too many coincidences: correlations shrink by the share that is expected to be
        one (oracle approximating shrinkage; Chen, Wiesel, Eldar and Hero, 2010).
        """
        covariance = self.covariance.astype(np.float64)
        size = self.block
        variance = np.einsum("gbii->gbi", covariance)
        mean = variance.sum(axis=-1) / size
        varies = variance > CONSTANT * mean[..., None]
        spread = np.where(varies, np.sqrt(np.maximum(variance, 1e-30)), np.inf)  # constants correlate with nothing
        count = np.maximum(varies.sum(axis=-1), 1)
        squares = np.square(covariance / (spread[..., :, None] * spread[..., None, :])).sum(axis=(-2, -1))
        above = np.maximum((self.rows + 1 - 2 / count) * (squares - count), 1e-30)
        share = np.minimum(((1 - 2 / count) * squares + count**2) / above, 1)[..., None, None]
        own = np.eye(size) * covariance
        covariance = (
            (1 - share) * covariance + share * own + np.maximum(RIDGE * mean, 1e-30)[..., None, None] * np.eye(size)
        )
        if not is_centred:
            groups, blocks = covariance.shape[:2]
            means = np.zeros((groups, blocks * size))
            means[:, : self.mean.shape[1]] = self.mean
            means = means.reshape(groups, blocks, size)
            covariance = covariance + means[..., :, None] * means[..., None, :]
        return np.asarray(covariance, np.float64)

    @property
    def mean_square(self) -> Floats:
        """Mean square of each number, (groups, numbers)."""
        variance = np.einsum("gbii->gbi", self.covariance).reshape(len(self.mean), -1)[:, : self.mean.shape[1]]
        return np.asarray(variance + self.mean**2)


class Statistics:
    """What the layers of a model read.

    Args:
        channels: of the model.
        folder: where the numbers lie, see `collect`.

    Attributes:
        readers: the layers that read channels which can go, in the order of the graph.
        unit: per layer (node) the variance of what its output becomes a part of, summed over channels.
    """

    def __init__(self, channels: Channels, folder: Path) -> None:
        self.channels = channels
        self.readers = choosing_readers(channels)
        self.unit: dict[int, float] = {int(k): v for k, v in json.loads((folder / UNIT).read_text()).items()}
        self._files = {key: folder / f"{number}.npz" for number, key in enumerate(_keys(self.readers))}

    def inputs(self, reader: Reader) -> Inputs:
        """Give what a layer sums over."""
        with np.load(self._files[reader.rows_key], allow_pickle=False) as held:
            return Inputs(held["mean"].astype(np.float64), held["covariance"], int(held["rows"]))


def choosing_readers(channels: Channels) -> list[Reader]:
    """List the layers whose inputs can go one by one; a group of one input goes with its outputs."""
    readers = find_readers(channels)
    return [r for r in readers if r.layer.x.shape[1] > 1 and (channels.channel_of[r.layer.x] >= 0).any()]


def _keys(readers: Sequence[Reader]) -> list[tuple[str, Patches, int]]:
    return list(dict.fromkeys(reader.rows_key for reader in readers))


def collect(channels: Channels, data: Data, *, seed: int = 0, progress: Progress | None = None) -> Statistics:
    """Run the model over the samples and sum up what its layers read, or take what an earlier run has kept.

    Args:
        channels: of the model.
        data: samples; labels are not looked at.
        seed: chooses the positions of feature maps that are looked at.
        progress: told how many samples are done, of how many.
    """
    readers = choosing_readers(channels)
    home = user_cache_path("onnxprune") / "statistics"
    folder = home / _key(channels, readers, data, seed)
    with suppress(OSError):  # it is not there
        found = Statistics(channels, folder)
        with suppress(OSError):  # it is someone else's
            os.utime(folder)
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=home, prefix="new."))
    except OSError:  # nothing can be kept; the numbers lie in a folder that goes with the process
        scratch = folder = Path(tempfile.mkdtemp(prefix="onnxprune."))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        _Pass(channels, readers, data, seed, progress or Quiet()).write(scratch)
        if scratch != folder:
            os.replace(scratch, folder)
            _evict(home)
    except OSError:
        if not (folder / UNIT).is_file():  # else another run was faster
            raise
    finally:
        if scratch != folder:
            shutil.rmtree(scratch, ignore_errors=True)
    return Statistics(channels, folder)


def _key(channels: Channels, readers: Sequence[Reader], data: Data, seed: int) -> str:
    """Name what the numbers depend on."""
    model = channels.model
    digest = hashlib.sha256(f"{FORMAT} {seed} {data.sha256} {sorted(model.bound.items())}".encode())
    for reader in readers:
        digest.update(f"{reader.rows_key} {reader.layer.index} {reader.landing.tensor}".encode())
    digest.update(model.sha256.encode())
    return digest.hexdigest()[:32]


def _evict(home: Path) -> None:
    """Make room: what was used longest ago goes first, but nothing that another run may be using right now."""
    folders = []
    for folder in home.iterdir():
        with suppress(OSError):  # another run makes room at the same time
            size = sum(file.stat().st_size for file in folder.iterdir())
            folders.append((folder.stat().st_mtime, size, folder))
    used = 0
    for time_of_use, size, folder in sorted(folders, reverse=True):
        used += size
        if used > CACHE_BYTES and time.time() - time_of_use > IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


class _Sums:
    """Sums over the rows of one layer, or of several that read the same."""

    def __init__(self, reader: Reader, channels: Channels) -> None:
        groups, inputs = reader.layer.x.shape
        self.reader = reader
        self.kernel = reader.layer.weight.shape[-1]
        self.block = _block(channels.channel_of[reader.layer.x[0]], self.kernel, groups)
        self.blocks = -(-inputs * self.kernel // self.block)
        self.sums = np.zeros((groups, inputs * self.kernel))
        self.products = np.zeros((groups, self.blocks, self.block, self.block), np.float64)
        self.rows = 0
        self.shift: Array = np.zeros((groups, 1, 1))

    @property
    def numbers(self) -> int:
        return int(self.sums.shape[1])

    @property
    def wanted(self) -> int:
        return int(np.clip(min(self.numbers, WIDEST) * ROWS_PER_INPUT, LEAST_ROWS, MOST_ROWS))

    def add(self, rows: Array) -> None:
        if not self.rows:  # single precision is enough for what is left once a first mean is taken off
            self.shift = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(rows.dtype)
        rows = rows - self.shift
        self.rows += rows.shape[1]
        self.sums += rows.sum(axis=1, dtype=np.float64)
        for number in range(self.blocks):
            part = rows[:, :, number * self.block : (number + 1) * self.block]
            size = part.shape[2]
            self.products[:, number, :size, :size] += part.swapaxes(1, 2) @ part

    def inputs(self) -> Inputs:
        mean = self.sums / max(self.rows, 1)
        covariance = self.products / max(self.rows, 1)
        for number in range(self.blocks):
            part = mean[:, number * self.block : (number + 1) * self.block]
            size = part.shape[1]
            covariance[:, number, :size, :size] -= part[:, :, None] * part[:, None, :]
        return Inputs(mean + self.shift[:, 0], covariance, self.rows)


def _block(channel: Array, kernel: int, groups: int) -> int:
    """Choose how many numbers make a block: all, or as many as are not too many and fit in memory, channels whole."""
    numbers = len(channel) * kernel
    if numbers <= WIDEST:
        return numbers
    changes = np.flatnonzero(np.diff(channel))
    run = (int(changes[0]) + 1 if len(changes) else 1) * kernel  # numbers of one channel that stand together
    blocks = max(-(-numbers // WIDEST), -(-8 * groups * numbers**2 // LAYER_BYTES))
    return min(-(-numbers // (blocks * run)) * run, numbers)


class _Pass:
    """The model on its way over the samples, with what its layers read as further outputs."""

    def __init__(
        self, channels: Channels, readers: Sequence[Reader], data: Data, seed: int, progress: Progress
    ) -> None:
        self.channels = channels
        self.readers = readers
        self.data = data
        self.seed = seed
        self.progress = progress

    def write(self, folder: Path) -> None:
        """Run as often as memory asks for, and write what was found."""
        first = {reader.rows_key: reader for reader in reversed(self.readers)}
        order = [first[key] for key in _keys(self.readers)]
        units: dict[int, float] = {}
        start, passes = 0, list(_portions(order)) if order else []
        for number, portion in enumerate(passes):
            sums = [_Sums(reader, self.channels) for reader in portion]
            units |= self._run(sums, self.readers if number == 0 else (), number, len(passes))
            for position, found in enumerate(sums):
                inputs = found.inputs()
                covariance = inputs.covariance.astype(np.float32)
                file = folder / f"{start + position}.npz"
                np.savez(file, mean=inputs.mean, covariance=covariance, rows=np.asarray(inputs.rows))
            start += len(portion)
        (folder / UNIT).write_text(json.dumps(units))

    def _run(self, sums: Sequence[_Sums], landing: Sequence[Reader], number: int, passes: int) -> dict[int, float]:
        model = self.channels.model
        wanted = [name for s in sums for name in (s.reader.x, s.reader.y)] + [r.landing.tensor for r in landing]
        names = [name for name in dict.fromkeys(wanted) if name not in model.bound]
        session = runtime.open_with(model.proto, names, model.folder)
        spread = {reader.layer.index: _Spread(reader) for reader in landing}
        rng, done = np.random.default_rng(self.seed), 0
        tapped = sum(int(np.prod(model.shapes.get(name, ()))) for name in names)
        for feed in feeds(self.data, model, max(1, TAPPED // max(tapped, 1))):
            samples = len(next(iter(feed.values())))
            found = {**feed, **dict(zip(names, session.run(feed, names), strict=True))}
            for total in sums:
                total.add(_rows(total, found, samples / len(self.data), rng))
            for measured in spread.values():
                measured.add(found[measured.reader.landing.tensor])
            done += samples
            self.progress.step(number * len(self.data) + done, passes * len(self.data))
        return {index: measured.variance() for index, measured in spread.items()}


def _rows(total: _Sums, found: dict[str, Array], share: float, rng: np.random.Generator) -> Array:
    how, y = total.reader.patches, found[total.reader.y]
    places = how.places(y, max(1, round(total.wanted * share)), rng)
    rows = how.rows(found[total.reader.x], y.shape[2:], places, len(total.sums))
    return rows.astype(np.result_type(rows.dtype, np.float32), copy=False)


class _Spread:
    """The variance of a tensor over samples and positions, summed over channels."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows = 0
        size = reader.layer.y.size
        self.sums, self.squares = np.zeros(size), np.zeros(size)

    def add(self, values: Array) -> None:
        axis = 1 if self.reader.patches.is_convolution else values.ndim - 1
        others = tuple(a for a in range(values.ndim) if a != axis)
        self.rows += values.size // values.shape[axis]
        self.sums += values.sum(axis=others, dtype=np.float64)
        self.squares += np.square(values, dtype=np.float64).sum(axis=others)

    def variance(self) -> float:
        rows = max(self.rows, 1)
        return float(np.maximum(self.squares / rows - (self.sums / rows) ** 2, 0).sum())


def _portions(readers: Sequence[Reader]) -> Iterator[list[Reader]]:
    """Split layers so that the sums of each part can be held in memory."""
    portion: list[Reader] = []
    used = 0
    for reader in readers:
        groups, inputs = reader.layer.x.shape
        numbers = inputs * reader.layer.weight.shape[-1]
        size = 8 * groups * numbers * min(numbers, WIDEST)
        if portion and used + size > HELD_BYTES:
            yield portion
            portion, used = [], 0
        portion.append(reader)
        used += size
    yield portion

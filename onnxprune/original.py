"""What the layers of the original answer, computed once for all candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.channels import Channels
from onnxprune.data import Data, batch_size, feeds
from onnxprune.patches import Places
from onnxprune.readers import Reader, find_readers
from onnxprune.walk import Walk
from onnxprune.weights import Array

HELD_BYTES = 1_000_000_000  # of targets that are held for the next candidate


@dataclass(frozen=True)
class Sampling:
    """How many rows a fit looks at: enough for its unknowns, and not more than needed.

    Attributes:
        per_input: rows for each input of a layer.
        least: of a layer.
        most: of a layer.
    """

    per_input: int = 40
    least: int = 8_000
    most: int = 60_000

    def rows(self, inputs: int) -> int:
        """Give the number of rows for a layer of so many inputs."""
        return int(np.clip(inputs * self.per_input, self.least, self.most))


@dataclass(frozen=True)
class Target:
    """What a layer of the original answers on some rows of one batch.

    Attributes:
        places: the rows.
        sizes: spatial sizes of the output.
        y: (groups, rows, outputs).
        partner: what is added to it, of the same shape; None where nothing is.
    """

    places: Places
    sizes: tuple[int, ...]
    y: Array
    partner: Array | None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.places.nbytes + self.y.nbytes + (0 if self.partner is None else self.partner.nbytes)


class Original:
    """What the layers of the original answer, computed once for all candidates where memory allows.

    Args:
        channels: of the original.
        data: samples to look at.
        sampling: how many rows of each layer to look at.
        seed: chooses the rows.
        threads: of onnxruntime; None leaves the choice to it.
    """

    def __init__(
        self,
        channels: Channels,
        data: Data,
        sampling: Sampling | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self.channels = channels
        self.readers = find_readers(channels)
        self.sampling = sampling or Sampling()
        self.data = data
        self.threads = threads
        self._batch = batch_size(data, channels.model)
        self._seed = seed
        self._walk = self._new_walk()
        self._held: dict[int, list[Target]] = {}
        self._used = 0

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Give the inputs, batch by batch."""
        return feeds(self.data, self.channels.model)

    def _new_walk(self) -> Walk:
        return self.walk(self.channels.model.proto)

    def walk(self, proto: ModelProto) -> Walk:
        """Start to run a model over the samples."""
        batches = len(self.data) // self._batch
        return Walk(proto, self.channels.model.folder, self.feeds, threads=self.threads, batches=batches)

    def targets(self, reader: Reader) -> Iterator[Target]:
        """Give what a layer answers, batch by batch; layers are best asked for in order."""
        index = reader.layer.index
        if index in self._held:
            yield from self._held[index]
            return
        if self._walk.place > index:
            self._walk = self._new_walk()
        self._walk.advance(index + 1)
        held: list[Target] | None = []
        for target in self._computed(reader):
            if held is not None:
                held.append(target)
                self._used += target.nbytes
                if self._used > HELD_BYTES:
                    self._used -= sum(t.nbytes for t in held)
                    held = None
            yield target
        if held is not None:
            self._held[index] = held

    def _computed(self, reader: Reader) -> Iterator[Target]:
        layer, how, partner = reader.layer, reader.patches, reader.landing.partner
        rng = np.random.default_rng((self._seed, layer.index))
        groups = len(layer.x)
        wanted = self.sampling.rows(layer.x.shape[1] * layer.weight.shape[-1]) / max(len(self.data), 1)
        names = [reader.y] if partner is None else [reader.y, partner]
        for number, batch in enumerate(self._walk.taps(names)):
            y = batch[reader.y]
            samples = min(self._batch, len(self.data) - number * self._batch)  # the last batch may have fewer
            places = how.places(y, max(1, round(wanted * samples)), rng)
            other = None  # a partner of one sample is added to all of them
            if partner is not None:
                other = how.targets(np.broadcast_to(batch[partner], y.shape), places, groups)
            yield Target(places, y.shape[2:], how.targets(y, places, groups), other)

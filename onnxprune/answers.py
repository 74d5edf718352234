"""What a model answers, read where it says most: before a last softmax or sigmoid, which flatten differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune import runtime
from onnxprune.data import Data
from onnxprune.shapes import is_default_domain
from onnxprune.weights import Array

FLATTENS = {"LogSoftmax": "Softmax", "Sigmoid": "Sigmoid", "Softmax": "Softmax"}
"""Operators that are read before instead of behind, and the family they belong to."""

PASSES_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that may stand between one of these and the output; they keep the numbers."""

FLOATS = frozenset({TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
BATCH_BYTES, MOST_SAMPLES = 5_000_000, 100  # a batch of inputs; caches hold less, single samples run slower


@dataclass(frozen=True)
class Reading:
    """Where an output of a model is read.

    Attributes:
        output: its name.
        tensor: the tensor that is read in its place: what goes into a last softmax or sigmoid, the output elsewhere.
        function: ``Softmax`` or ``Sigmoid`` where the output is made by one, else empty.
    """

    output: str
    tensor: str
    function: str = ""

    @property
    def is_inside(self) -> bool:
        """Whether a tensor of the inside is read in place of the output."""
        return self.tensor != self.output

    @property
    def outside(self) -> Reading:
        """The same output, read as it is."""
        return replace(self, tensor=self.output)


@dataclass(frozen=True)
class Answer:
    """What a model says to one batch.

    Attributes:
        values: one per reading, floats as float32; what is no array (a sequence, a map) as it is.
        samples: how many were asked, without those a last batch was filled up with.
        labels: their classes, where the data has them.
    """

    values: list[Any]
    samples: int
    labels: Array | None

    @property
    def is_by_sample(self) -> bool:
        """Whether the first axis of every array counts the samples."""
        return all(v.shape[:1] == (self.samples,) for v in self.values if isinstance(v, np.ndarray))

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return sum(v.nbytes for v in self.values if isinstance(v, np.ndarray))


def find_readings(graph: GraphProto) -> tuple[Reading, ...]:
    """Say for every output of a graph where to read it."""
    makers = {name: node for node in graph.node for name in node.output}
    return tuple(_reading(value, makers) for value in graph.output)


def _reading(output: ValueInfoProto, makers: dict[str, NodeProto]) -> Reading:
    if output.type.tensor_type.elem_type not in FLOATS:
        return Reading(output.name, output.name)
    name = output.name
    for _ in range(len(makers)):  # no longer than a graph without cycles
        node = makers.get(name)
        if node is None or not node.input or not is_default_domain(node.domain):
            break
        name = node.input[0]
        if node.op_type in FLATTENS:
            return Reading(output.name, name, FLATTENS[node.op_type])
        if node.op_type not in PASSES_ON:
            break
    return Reading(output.name, output.name)


def paired(ours: Sequence[Reading], theirs: Sequence[Reading]) -> list[tuple[Reading, Reading]]:
    """Pair the outputs of two models by position; both are read inside, or none.

    Outputs that only one of the models has are left out.
    """
    return [
        (a, b) if a.is_inside and b.is_inside and a.function == b.function else (a.outside, b.outside)
        for a, b in zip(ours, theirs, strict=False)
    ]


def open_session(
    model: ModelProto, readings: Sequence[Reading], folder: Path, threads: int | None = None
) -> runtime.Session:
    """Load a model so that its readings can be asked for.

    Args:
        model: see `runtime.open_with`.
        readings: what will be asked for.
        folder: where its external data lies.
        threads: intra-op threads; None leaves the choice to onnxruntime.

    Raises:
        InputError: onnxruntime cannot load it.
    """
    return runtime.open_with(model, (reading.tensor for reading in readings), folder, threads=threads)


def batch_size(data: Data) -> int:
    """Choose how many samples run together where the batch is free: about 5 MB of inputs, 100 samples at most."""
    feed, _ = next(iter(data.batches(1)))
    return int(np.clip(BATCH_BYTES // max(1, sum(x.nbytes for x in feed.values())), 1, MOST_SAMPLES))


def ask(
    session: runtime.Session,
    data: Data,
    size: int,
    *,
    fill: bool = False,
    tensors: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Answer]:
    """Run a model on samples, batch by batch.

    Args:
        session: the model.
        data: samples in its layout.
        size: samples per batch.
        fill: whether a last, short batch is filled up, for models of a fixed batch size.
        tensors: what to read (default: the outputs).
        progress: told how many samples are done, of how many.

    Raises:
        InputError: onnxruntime fails on these samples.
    """
    done = 0
    for feed, labels in data.batches(size):
        samples = len(next(iter(feed.values())))
        if fill:
            feed = {name: _filled(x, size) for name, x in feed.items()}
        values = session.run(feed, tensors)
        done += samples
        if progress is not None:
            progress(done, len(data))
        yield Answer([_kept(value, samples, size) for value in values], samples, labels)


def is_float(value: object) -> TypeGuard[Array]:
    """Tell whether this is an array of floats."""
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _filled(x: Array, size: int) -> Array:
    """Fill a short batch by repeating its first sample."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)]) if len(x) < size else x


def _kept(value: Any, samples: int, size: int) -> Any:
    """Cut what filled a batch up, and take floats as float32; larger numbers become infinite."""
    if not isinstance(value, np.ndarray):
        return value
    if value.shape[:1] == (size,) and samples < size:  # else an axis of this size is no batch, or full
        value = value[:samples]
    with np.errstate(over="ignore"):
        return value.astype(np.float32, copy=False) if is_float(value) else value

"""Where the time goes: the kernels that onnxruntime ran, each put down to the node of the file that it computes.

onnxruntime rewrites a graph before it runs it. A kernel bears the name of a node, or of the tensor that it makes where
several nodes became one (``x_nchwc``: a convolution in blocks of channels, with the activation behind it); what moves
data between layouts bears a name of its own and belongs to no node.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.errors import InputError

SUFFIX = "_kernel_time"
BLOCKED = "_nchwc"  # behind the name of the tensor that a kernel for blocks of channels makes
BACK = 8  # nodes that may have become one with the one that a kernel is named after
RUN = "model_run"


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime ran once in each run.

    Attributes:
        name: its own.
        op: the operator, as onnxruntime rewrote it.
        provider: what ran it.
        ms: median of its times.
        least_ms: the shortest of them.
        node: place in the file of the node that it computes, -1 where it moves data between layouts or is not known.
    """

    name: str
    op: str
    provider: str
    ms: float
    least_ms: float
    node: int


@dataclass(frozen=True)
class Trace:
    """What a file of kernel times says.

    Attributes:
        kernels: in the order in which they ran.
        run_ms: median of whole runs, which takes longer than without the file.
        arena_bytes: most that the arena held, None where the file does not say.
        used_bytes: most of it that was in use.
    """

    kernels: tuple[Kernel, ...]
    run_ms: float
    arena_bytes: int | None
    used_bytes: int | None


def read_trace(file: Path, graph: GraphProto, warm_up: int) -> Trace:
    """Read what onnxruntime wrote.

    Args:
        file: see `runtime.Session`.
        graph: of the model that it ran.
        warm_up: runs at the start that do not count.

    Raises:
        InputError: it holds no runs.
    """
    events: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == RUN)[warm_up:]
    if not runs:
        raise InputError("onnxruntime wrote no times of kernels")
    starts = np.asarray([start for start, _ in runs])
    times: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    seen: dict[tuple[int, str], int] = defaultdict(int)  # a body of a loop runs its kernels many times
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(SUFFIX):
            continue
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run < 0 or event["ts"] > runs[run][1]:
            continue
        about, name = event["args"], event["name"].removesuffix(SUFFIX)
        number = seen[run, name]
        seen[run, name] += 1
        times[name, about.get("op_name", ""), about.get("provider", ""), number].append(event["dur"] / 1e3)
    nodes = Nodes(graph)
    kernels = [
        Kernel(name, op, provider, float(np.median(ms)), min(ms), nodes.computed_by(name, op))
        for (name, op, provider, _), ms in times.items()
    ]
    whole = float(np.median([end - start for start, end in runs])) / 1e3
    return Trace(tuple(kernels), whole, _most(events, "mem_arena_held"), _most(events, "mem_in_use_peak"))


def _most(events: Sequence[Mapping[str, Any]], name: str) -> int | None:
    found = [int(e["args"][name]) for e in events if name in e.get("args", {})]
    return max(found, default=None)


class Nodes:
    """The nodes of a file, by their names and by what they make."""

    def __init__(self, graph: GraphProto) -> None:
        self._nodes: list[NodeProto] = list(graph.node)
        self._named = {node.name: place for place, node in enumerate(graph.node) if node.name}
        self._makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}

    def computed_by(self, kernel: str, op: str) -> int:
        """Find the node that a kernel computes; -1: none is known."""
        if kernel.endswith(BLOCKED):
            return self._behind(self._makers.get(kernel.removesuffix(BLOCKED), -1), op)
        for name in (kernel, kernel.partition(" ")[2], kernel.rpartition("/")[0]):  # "fused X", "X/MatMulAddFusion"
            if name in self._named:
                return self._named[name]
        return self._makers.get(kernel, -1)

    def _behind(self, place: int, op: str) -> int:
        """Go back from a node over what became one with it to the node of the operator that a kernel has."""
        for _ in range(BACK):
            if place < 0 or self._nodes[place].op_type == op:
                return place
            place = next((self._makers[name] for name in self._nodes[place].input if name in self._makers), -1)
        return -1


def by_op(trace: Trace) -> dict[str, float]:
    """Add up milliseconds by operator, longest first."""
    found: dict[str, float] = defaultdict(float)
    for kernel in trace.kernels:
        found[kernel.op] += kernel.ms
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def by_node(trace: Trace) -> dict[int, float]:
    """Add up milliseconds by the node of the file that they go into, -1 for all that belongs to none."""
    found: dict[int, float] = defaultdict(float)
    for kernel in trace.kernels:
        found[kernel.node] += kernel.ms
    return dict(found)


def by_provider(trace: Trace) -> dict[str, int]:
    """Count kernels by what runs them."""
    found: dict[str, int] = defaultdict(int)
    for kernel in trace.kernels:
        found[kernel.provider] += 1
    return dict(found)

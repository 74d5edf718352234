"""Kernel times, put down to the nodes of the file: files as onnxruntime writes them, and some written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import IMAGE, Draft, convs, dense
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.profiling.kernels import Trace, by_node, by_op, by_provider, read_trace

RUNS = 5


def traced(model: ModelProto, folder: Path, **feed: Any) -> Trace:
    session = runtime.Session(model, threads=1, profile=folder / "trace")
    for _ in range(RUNS):
        session.run(feed)
    return read_trace(session.end_profile(), model.graph, 2)


def image() -> Any:
    return np.zeros((1, *IMAGE), np.float32)


def test_every_layer_of_a_network_gets_its_time(tmp_path: Path) -> None:
    model = convs((16, 64, 32))
    trace = traced(model, tmp_path, image=image())
    names = {model.graph.node[at].name: ms for at, ms in by_node(trace).items() if at >= 0}
    assert {"conv1", "conv2", "conv3", "head"} <= names.keys()
    assert all(ms > 0 for ms in names.values())
    assert not {"relu1", "relu2", "relu3"} & names.keys()  # each became one with the convolution before it
    assert sum(kernel.ms for kernel in trace.kernels) <= trace.run_ms
    assert by_provider(trace) == {runtime.CPU: len(trace.kernels)}


def test_operators_add_up_to_all_kernels_longest_first(tmp_path: Path) -> None:
    trace = traced(convs((16, 64, 32)), tmp_path, image=image())
    ops = by_op(trace)
    assert sum(ops.values()) == pytest.approx(sum(kernel.ms for kernel in trace.kernels))
    assert list(ops.values()) == sorted(ops.values(), reverse=True)


def test_products_are_known_by_their_own_names(tmp_path: Path) -> None:
    model = dense()
    trace = traced(model, tmp_path, **{model.graph.input[0].name: np.zeros((1, 20), np.float32)})
    wanted = {at for at, node in enumerate(model.graph.node) if node.op_type in ("Gemm", "MatMul")}
    assert wanted <= by_node(trace).keys()


def test_memory_of_the_arena_holds_what_is_used_of_it(tmp_path: Path) -> None:
    trace = traced(convs((16, 64, 32)), tmp_path, image=image())
    assert trace.arena_bytes is not None
    assert trace.used_bytes is not None
    assert 4 * 64 * 12 * 12 <= trace.used_bytes <= trace.arena_bytes


# ---- by hand


def event(name: str, op: str, ts: int, dur: int) -> dict[str, Any]:
    about = {"op_name": op, "provider": runtime.CPU}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": about}


def written(folder: Path, runs: list[list[dict[str, Any]]]) -> Path:
    events = []
    for number, run in enumerate(runs):
        start = 1000 * number
        events += [{**e, "ts": e["ts"] + start} for e in run]
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 900, "args": {}})
    (folder / "trace.json").write_text(json.dumps(events))
    return folder / "trace.json"


def add_net() -> ModelProto:
    """A convolution whose output is added to its input and goes through Relu."""
    draft = Draft()
    draft.relu("relu", draft.add("Add", "add", draft.conv("conv", "image", 3, 3), "image"))
    return draft.model([("image", (1, *IMAGE))], [("relu.out", (1, *IMAGE))])


@pytest.mark.parametrize(
    ("kernel", "op", "node"),
    [
        ("conv", "Conv", "conv"),
        ("relu.out_nchwc", "Conv", "conv"),  # three nodes in one, named after what comes out
        ("fused conv", "FusedConv", "conv"),
        ("add/SomeFusion", "FusedAdd", "add"),
        ("relu.out", "FusedConv", "relu"),
        ("ReorderInput_token_3", "ReorderInput", None),
    ],
)
def test_fused_kernels_are_put_down_to_the_node_that_they_compute(
    tmp_path: Path, kernel: str, op: str, node: str | None
) -> None:
    graph = add_net().graph
    trace = read_trace(written(tmp_path, [[event(kernel, op, 10, 40)]]), graph, 0)
    (at,) = by_node(trace)
    assert (graph.node[at].name if at >= 0 else None) == node


def test_what_was_measured_while_it_warmed_up_does_not_count(tmp_path: Path) -> None:
    runs = [[event("conv", "Conv", 10, dur)] for dur in (700, 300, 40, 50, 60)]
    assert read_trace(written(tmp_path, runs), add_net().graph, 2).kernels[0].ms == pytest.approx(0.05)


def test_a_kernel_that_runs_twice_in_a_run_counts_twice(tmp_path: Path) -> None:
    runs = [[event("conv", "Conv", 10, 40), event("conv", "Conv", 100, 60)] for _ in range(3)]
    assert by_node(read_trace(written(tmp_path, runs), add_net().graph, 1)) == {0: pytest.approx(0.1)}


def test_a_file_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no times"):
        read_trace(written(tmp_path, []), add_net().graph, 0)

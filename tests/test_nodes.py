"""The order of nodes: what other programs left in disorder is read, and what is in order is not moved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cli_nets import convs, run, write
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS
from onnx import GraphProto, ModelProto, helper

from onnxprune.model import load, read_file
from onnxprune.nodes import sort_nodes
from onnxprune.runtime import evaluate


def reordered(proto: ModelProto, order: Sequence[int]) -> ModelProto:
    mixed = copy.deepcopy(proto)
    del mixed.graph.node[:]
    mixed.graph.node.extend(proto.graph.node[at] for at in order)
    return mixed


def makers(graph: GraphProto) -> list[str]:
    return [node.output[0] for node in graph.node]


@given(st.data(), st.sampled_from(sorted(NETS)))
def test_nodes_in_any_order_come_to_one_that_the_checker_takes(data: st.DataObject, name: str) -> None:
    proto = NETS[name].build()
    mixed = reordered(proto, data.draw(st.permutations(range(len(proto.graph.node)))))
    sort_nodes(mixed.graph)
    onnx.checker.check_model(mixed)
    assert sorted(makers(mixed.graph)) == sorted(makers(proto.graph))


@given(st.data(), st.sampled_from(sorted(NETS)))
def test_one_node_that_was_appended_goes_back_and_no_other_moves(data: st.DataObject, name: str) -> None:
    proto = NETS[name].build()
    count = len(proto.graph.node)
    at = data.draw(st.integers(0, count - 1))
    mixed = reordered(proto, [*range(at), *range(at + 1, count), at])
    sort_nodes(mixed.graph)
    others = [maker for maker in makers(mixed.graph) if maker != proto.graph.node[at].output[0]]
    assert others == [maker for maker in makers(proto.graph) if maker != proto.graph.node[at].output[0]]


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_graph_in_order_is_left_to_the_letter(name: str) -> None:
    proto = NETS[name].build()
    before = proto.SerializeToString(deterministic=True)
    sort_nodes(proto.graph)
    assert proto.SerializeToString(deterministic=True) == before


def test_what_the_body_of_an_if_reads_comes_before_it() -> None:
    body = [helper.make_graph([helper.make_node(op, ["late"], ["y"])], op, [], []) for op in ("Abs", "Neg")]
    for graph in body:
        graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    nodes = [
        helper.make_node("If", ["asked"], ["out"], then_branch=body[0], else_branch=body[1]),
        helper.make_node("Relu", ["x"], ["late"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    sort_nodes(graph)
    assert makers(graph) == ["late", "out"]


def test_a_circle_is_refused_as_the_checker_does(tmp_path: Path) -> None:
    proto = convs()
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
    write(proto, tmp_path / "net.onnx")
    outcome = run("inspect", tmp_path / "net.onnx")
    assert outcome.code == 2
    assert "topologically sorted" in outcome.errors[0]


def test_what_onnxruntime_converts_to_half_precision_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    monkeypatch.chdir(tmp_path)
    half = convert_float_to_float16(convs((32, 32, 32)), keep_io_types=True)
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(half)
    write(half, Path("half.onnx"))
    assert load(Path("half.onnx"), evaluate).proto == read_file(Path("half.onnx"))
    outcome = run("compress", "half.onnx", "--flops", 0.5, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    onnx.checker.check_model("small.onnx")
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    image = np.ones([1, *taken.shape[1:]], np.float32)
    assert np.isfinite(session.run(None, {taken.name: image})[0]).all()

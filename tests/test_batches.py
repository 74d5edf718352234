"""Files that leave the batch free, over graphs that hold one sample only: samples have to run one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_nets import IMAGE, convs, run, write
from onnx import ModelProto, helper, numpy_helper

import onnxprune
from onnxprune import CompressSettings, FinetuneSettings, model, runtime


def holding_one() -> ModelProto:
    """The same network as `convs`, but for a reshape that writes down that there is one sample."""
    proto = convs()
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    place = list(proto.graph.node).index(flatten)
    proto.graph.node[place].CopyFrom(helper.make_node("Reshape", [flatten.input[0], "one"], flatten.output))
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([1, -1]), "one"))
    return proto


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(holding_one(), Path("model.onnx"))
    write(convs(), Path("free.onnx"))
    x = np.random.default_rng(1).standard_normal((64, *IMAGE)).astype(np.float32)
    y = runtime.evaluate(convs(), {"image": x})[0].argmax(axis=1)
    np.savez("data.npz", x=x, y=np.where(np.arange(64) % 4, y, (y + 1) % 10))
    return tmp_path


def test_it_is_found_out_only_where_samples_are_to_run(folder: Path) -> None:
    for name, runs_batches, is_free in (("model", False, True), ("model", True, False), ("free", True, True)):
        found = model.load(Path(f"{name}.onnx"), runtime.evaluate, runs_batches=runs_batches)
        assert found.has_free_batch == is_free
        assert found.fixed_batch("image") == (None if is_free else 1)
        assert any("fixed to 1 by what it computes" in note for note in found.notes) != is_free


def test_samples_are_evaluated_one_by_one(folder: Path) -> None:
    scores = [onnxprune.evaluate(name, data="data.npz") for name in ("model.onnx", "free.onnx")]
    assert scores[0] == scores[1]
    assert scores[0].top1 == 0.75
    outcome = run("evaluate", "model.onnx", "--data", "data.npz", "--reference", "free.onnx")
    assert outcome.code == 0, outcome.err


def swallowing() -> ModelProto:
    """A network that answers once however many samples it is given."""
    proto = convs()
    pool = next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    pool.CopyFrom(helper.make_node("Reshape", [pool.input[0], "one"], pool.output))
    flatten.CopyFrom(helper.make_node("ReduceMean", flatten.input, flatten.output, axes=[2], keepdims=0))
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 32, -1]), "one"))
    return proto


def test_a_graph_that_answers_once_for_many_samples_gets_one_at_a_time(folder: Path) -> None:
    write(swallowing(), Path("model.onnx"))
    assert onnxprune.evaluate("model.onnx", data="data.npz") == onnxprune.evaluate("free.onnx", data="data.npz")
    settings = CompressSettings({"macs": "0.5"}, align=4)
    for data in (None, "data.npz"):
        report = onnxprune.compress("model.onnx", "small.onnx", settings, data=data, force=True)
        assert "the original takes no batch of 2" in report.checks["outputs"]


def test_it_is_still_known_once_dead_channels_are_folded_and_when_training_begins(folder: Path) -> None:
    proto = holding_one()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "conv3.weight")
    values = numpy_helper.to_array(weight).copy()
    values[:3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    write(proto, Path("model.onnx"))
    asked = {"align": 4, "search": "uniform", "finetune_epochs": 1}
    report = onnxprune.compress("model.onnx", "small.onnx", CompressSettings({"macs": "0.5"}, **asked), data="data.npz")
    assert report.lossless["channels"] == 3
    assert "fine-tune" in report.seconds


def test_it_is_compressed_and_trained_one_by_one(folder: Path) -> None:
    settings = CompressSettings({"macs": "0.5"}, align=4, search="uniform")
    report = onnxprune.compress("model.onnx", "small.onnx", settings, data="data.npz")
    assert any("fixed to 1 by what it computes" in note for note in report.notes)
    assert report.stages[-1]["accuracy"] > 0.3
    onnxprune.finetune("small.onnx", "trained.onnx", FinetuneSettings(epochs=1), data="data.npz")
    assert onnxprune.evaluate("trained.onnx", data="data.npz").samples == 64

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


def test_it_is_compressed_and_trained_one_by_one(folder: Path) -> None:
    settings = CompressSettings({"macs": "0.5"}, align=4, search="uniform")
    report = onnxprune.compress("model.onnx", "small.onnx", settings, data="data.npz")
    assert any("fixed to 1 by what it computes" in note for note in report.notes)
    assert report.stages[-1]["accuracy"] > 0.3
    onnxprune.finetune("small.onnx", "trained.onnx", FinetuneSettings(epochs=1), data="data.npz")
    assert onnxprune.evaluate("trained.onnx", data="data.npz").samples == 64

"""``--memory``: what processes need, measured for some cuts, predicted for all, and met in the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import convs, run, write
from onnx import ModelProto, TensorProto, helper

import onnxprune
from onnxprune import CompressSettings, attempt, attempts, pipeline, runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.errors import InputError, TargetError
from onnxprune.metrics import MEMORY, Costs
from onnxprune.model import Model, analyse
from onnxprune.predicting import memory
from onnxprune.predicting.device import Device
from onnxprune.progress import Quiet
from onnxprune.targets import parse_target

MEGABYTE = 1e6
WIDTHS = (256, 512, 256)
BASE = 20 * MEGABYTE
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


def net() -> Channels:
    return find_channels(analyse(convs(WIDTHS, image=(3, 8, 8)), Path(), runtime.evaluate, {}))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine on which every process needs some memory, and twice the weights of its model."""
    found = {"base": BASE, "bias": 1.0}

    def needed(proto: ModelProto, model: Model, device: Device) -> int:
        return int((found["base"] + 2 * proto.ByteSize()) ** found["bias"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "needed", needed)
    monkeypatch.setattr(pipeline, "try_memory", attempt.try_memory)
    write(convs(WIDTHS, image=(3, 8, 8)), Path("model.onnx"))
    return found


def compress(asked: str, **settings: Any) -> Any:
    return onnxprune.compress("model.onnx", "small.onnx", CompressSettings({MEMORY: asked}, **settings), force=True)


@pytest.mark.parametrize(("asked", "megabytes"), [("0.7", None), ("26MB", 26), ("70%", None)])
def test_the_memory_asked_for_is_kept(machine: dict[str, float], asked: str, megabytes: float | None) -> None:
    report = compress(asked)
    wanted = megabytes * MEGABYTE if megabytes else 0.7 * report.before.memory_bytes
    assert report.after.memory_bytes == pytest.approx(wanted, rel=0.05)
    assert report.target[MEMORY]["reached"] == pytest.approx(report.after.memory_bytes, rel=0.05)


def test_widths_do_not_get_coarser_for_the_sake_of_time(
    machine: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt.Attempt, "lags", True)
    monkeypatch.setattr(attempt.Attempt, "is_slower", True)
    report = compress("0.7")
    assert {tried["multiple"] for tried in report.alignments} == {8}


def test_less_than_an_empty_process_cannot_be_reached(machine: dict[str, float]) -> None:
    with pytest.raises(TargetError, match=r"--memory 19MB cannot be reached: the lowest is 0\.\d+ of the original"):
        compress("19MB")


def test_every_report_tells_the_memory_before_and_after(machine: dict[str, float]) -> None:
    outcome = run("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "memory of a process" in outcome.out
    report = json.loads(Path("small.report.json").read_text())
    assert report["before"]["memory_bytes"] > report["after"]["memory_bytes"] > BASE


def test_a_system_that_does_not_tell_is_refused_with_a_target_and_told_nothing_without(
    machine: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "needed", lambda *given: None)
    with pytest.raises(InputError, match="--memory: it cannot be told here"):
        compress("0.5")
    report = onnxprune.compress("model.onnx", "small.onnx", CompressSettings({"macs": "0.5"}), force=True)
    assert report.after.memory_bytes is None


def test_predictions_follow_what_was_measured(machine: dict[str, float]) -> None:
    channels = net()
    costs = Costs(channels)
    predict, error = memory.predictor(costs, *memory.measure(channels, Device(), Quiet()))
    assert error < 0.02
    counts = np.asarray([[group.width // 2 for group in channels.groups]])
    expected = BASE + 2 * costs.of(counts)["file_bytes"]
    assert predict(counts) == pytest.approx(expected, rel=0.02)


def test_predictions_that_are_off_are_made_up_for(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(tried: attempt.Attempt, model: Model, device: Device) -> None:
        before, after = (memory.needed(proto, model, device) for proto in (model.proto, tried.result))
        assert before is not None
        assert after is not None
        tried.memory = before, int(before * (after / before) ** 0.6)  # a cut brings less than was predicted

    monkeypatch.setattr(attempts, "measure_memory", biased)
    report = compress("0.8")
    assert report.target[MEMORY]["reached"] / report.before.memory_bytes == pytest.approx(0.8, rel=0.06)


def test_of_a_model_that_reads_text_nothing_is_told() -> None:
    model = convs()
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.graph.node.append(helper.make_node("Identity", ["text"], ["same"]))
    model.graph.output.append(helper.make_tensor_value_info("same", TensorProto.STRING, [1]))
    assert memory.needed(model, analyse(model, Path(), runtime.evaluate, {}), Device()) is None


@linux
def test_on_this_machine_a_process_needs_its_weights_at_least() -> None:
    model = analyse(convs((512, 1024, 1024), image=(3, 4, 4)), Path(), runtime.evaluate, {})
    small = analyse(convs((8, 8, 8), image=(3, 4, 4)), Path(), runtime.evaluate, {})
    most, least = (memory.needed(one.proto, one, Device()) for one in (model, small))
    assert most is not None
    assert least is not None
    assert most - least > 0.8 * model.proto.ByteSize()


@pytest.mark.parametrize(
    ("text", "limit"), [("40MB", 40e6), ("1gb", 1e9), ("512KiB", 512 * 1024), ("0.5", 50e6), ("25%", 25e6)]
)
def test_amounts_are_read_with_their_units(text: str, limit: float) -> None:
    assert parse_target(MEMORY, text, 100e6).limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["40", "40ms", "40M", "2"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory .*40MB"):
        parse_target(MEMORY, text, 100e6)

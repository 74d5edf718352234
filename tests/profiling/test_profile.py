"""Models side by side: the function and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import CLASSES, Draft, convs, run, write, write_outside

import onnxprune
from onnxprune import ProfileSettings
from onnxprune.cli.profile import compared
from onnxprune.errors import InputError
from onnxprune.profiling.intervals import Interval
from onnxprune.profiling.process import Subject

QUICK = ProfileSettings(seconds=0.5, precision=0.2)
IMAGE = (3, 32, 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where a large and a small network lie, alike but for their widths."""
    monkeypatch.chdir(tmp_path)
    write(convs((64, 128, 64), image=IMAGE), Path("large.onnx"))
    write(convs((8, 8, 8), image=IMAGE), Path("small.onnx"))
    return tmp_path


def test_a_network_of_a_twentieth_of_the_work_is_really_faster(folder: Path) -> None:
    report = onnxprune.profile(["large.onnx", "small.onnx"], QUICK)
    large, small = report.profiles
    (speedup,) = report.speedups
    assert speedup.low > 2
    assert small.latency_ms["median"] < large.latency_ms["median"]
    assert small.per_second > large.per_second
    assert small.file_bytes == Path("small.onnx").stat().st_size
    assert {"conv1", "conv2", "conv3", "head"} <= {node["name"] for node in large.nodes}


def test_a_network_beside_itself_shows_no_difference_of_note(folder: Path) -> None:
    report = onnxprune.profile(["large.onnx", "large.onnx"], ProfileSettings(seconds=3, precision=0.03))
    assert 0.7 < report.speedups[0].median < 1.4


@pytest.mark.parametrize(("share", "is_said"), [(0.01, False), (0.3, True)])
def test_a_busy_machine_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, share: float, is_said: bool) -> None:
    monkeypatch.setattr(Subject, "waiting", share)
    report = onnxprune.profile(["small.onnx"], QUICK)
    assert is_said == any("this machine is busy: small.onnx waited 30% of its time" in note for note in report.notes)


def test_a_batch_is_what_the_model_is_fed(folder: Path) -> None:
    report = onnxprune.profile(["small.onnx"], ProfileSettings(batch=6, seconds=0.2, precision=0.5))
    (one,) = report.profiles
    assert one.inputs == {"image": [6, *IMAGE]}
    assert one.per_second == pytest.approx(6 / one.interval_ms.median * 1e3)


def test_an_optimization_level_that_is_none_is_refused_in_python_too(folder: Path) -> None:
    with pytest.raises(InputError, match="optimize 'fast' is none of: none, basic, extended, all"):
        onnxprune.profile(["small.onnx"], ProfileSettings(optimize="fast"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_memory_holds_the_weights_and_its_parts_fit_together(folder: Path) -> None:
    write(convs((512, 1024, 512), image=(3, 4, 4)), Path("heavy.onnx"))
    (one,) = onnxprune.profile(["heavy.onnx"], QUICK).profiles
    weights = Path("heavy.onnx").stat().st_size
    memory = {name: value for name, value in one.memory.items() if value is not None}
    assert weights > 30_000_000
    assert weights <= memory["steady"] <= memory["peak"]
    assert memory["loaded"] <= memory["load_peak"]


def test_weights_beside_the_file_count(folder: Path) -> None:
    write_outside(convs((8, 8, 8), image=IMAGE), Path("outside.onnx"))
    report = onnxprune.profile(["outside.onnx"], QUICK)
    assert report.profiles[0].file_bytes > Path("outside.onnx").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nix.onnx"], "nix.onnx does not exist"),
        (["fixed.onnx", "--batch", 4], "takes 1 at once; leave --batch out"),
        (["small.onnx", "--batch", 0], "--batch 0: give 1 or more"),
        (["small.onnx", "--threads", -1], "--threads -1"),
        (["small.onnx", "--seconds", 0], "--precision and --seconds must be above 0"),
        (["small.onnx", "--precision", "nan"], "--precision and --seconds must be above 0"),
        (["small.onnx", "--provider", "abacus"], "this onnxruntime has no abacus; it has"),
        (["small.onnx", "--shape", "image=1,3,33,32"], "axis 2 is fixed to 32"),
        (["small.onnx", "--shape", "picture=1,3,32,32"], "no input of any model; inputs: image"),
        (["broken.onnx"], "onnxruntime cannot load the model"),
        (["text.onnx"], "reads text"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_measured_ends_with_two_and_says_why(folder: Path, arguments: list[Any], words: str) -> None:
    write(convs(batch=1, image=IMAGE), Path("fixed.onnx"))
    broken = convs(image=IMAGE)
    broken.graph.node[0].op_type = "NoSuchOp"
    Path("broken.onnx").write_bytes(broken.SerializeToString())
    draft = Draft()
    draft.add("Identity", "same", "words")
    text = draft.model([("words", (1,))], [("same.out", (1,))])
    for value in (*text.graph.input, *text.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.STRING
    Path("text.onnx").write_bytes(text.SerializeToString())
    outcome = run("profile", *arguments)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert words in outcome.errors[0]


def test_the_command_shows_the_models_side_by_side_and_writes_json(folder: Path) -> None:
    outcome = run("profile", "large.onnx", "small.onnx", "--seconds", 0.5, "--precision", 0.2, "--json", "found.json")
    assert outcome.code == 0, outcome.err
    for words in ("large.onnx (1x3x32x32)", "1 thread", "faster", "conv2", "all Conv", "kernels"):
        assert words in outcome.out
    found = json.loads(Path("found.json").read_text())
    assert found["format"] == "onnxprune.profile/1"
    assert [one["model"] for one in found["profiles"]] == ["large.onnx", "small.onnx"]
    assert found["speedups"][0]["low"] > 1
    assert found["machine"]["cpu"]
    assert found["versions"]["onnxprune"]
    quiet = run("profile", "small.onnx", "--seconds", 0.2, "--precision", 0.5, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        (Interval(1.4, 1.3, 1.5), "b.onnx: 1.4x as fast as a.onnx (1.3x to 1.5x with 95 % confidence), faster"),
        (Interval(0.8, 0.7, 0.9), "b.onnx: 0.8x as fast as a.onnx (0.7x to 0.9x with 95 % confidence), SLOWER"),
        (Interval(1.1, 0.9, 1.3), "b.onnx: no difference from a.onnx shows (0.9x to 1.3x as fast)"),
    ],
)
def test_a_difference_is_claimed_only_where_the_interval_leaves_no_doubt(speedup: Interval, words: str) -> None:
    assert compared("b.onnx", "a.onnx", speedup).startswith(words)


def test_another_provider_is_told_by_what_runs_on_the_cpu_instead(folder: Path) -> None:
    from onnxprune.cli.profile import _placed

    report = onnxprune.profile(["small.onnx"], QUICK)
    report.profiles[0].providers.update({"CUDAExecutionProvider": 5})
    assert "of them on CPUExecutionProvider" in _placed(report, "CUDAExecutionProvider")
    assert report.settings["provider"] == "cpu"


def test_inputs_are_made_up_for_integers_as_well(folder: Path) -> None:
    draft = Draft()
    draft.store("table", np.ones((7, CLASSES)))
    draft.add("Gather", "look", "table", "tokens")
    model = draft.model([("tokens", ("N", 5))], [("look.out", ("N", 5, CLASSES))])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    write(model, Path("tokens.onnx"))
    (one,) = onnxprune.profile(["tokens.onnx"], QUICK).profiles
    assert one.inputs == {"tokens": [1, 5]}


def test_short_names_and_full_names_mean_the_same_provider() -> None:
    for name in ("cpu", "CPU", "CPUExecutionProvider"):
        assert ProfileSettings(provider=name).provider_name == "CPUExecutionProvider"

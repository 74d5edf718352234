"""Compression that looks at data, from end to end: ranked, searched, repaired, and reported on samples held out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs, dense, run, write
from nets import NETS
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune import (
    CompressSettings,
    FinetuneSettings,
    attempt,
    attempts,
    dropping,
    finish,
    judging,
    prepare,
    runtime,
    stepwise,
)
from onnxprune.channels import find_channels
from onnxprune.errors import InputError
from onnxprune.evaluation import Scores
from onnxprune.finish import points_lost
from onnxprune.model import analyse
from onnxprune.plan import Plan, to_json
from onnxprune.problem import FINE, Align, Problem
from onnxprune.reporting import Report
from onnxprune.search import SearchSettings, random
from onnxprune.surgery import cut
from onnxprune.targets import parse_target

SAMPLES = 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(count: int = SAMPLES) -> Array:
    return np.random.default_rng(1).standard_normal((count, *IMAGE)).astype(np.float32)


def vectors(count: int = SAMPLES) -> Array:
    return np.random.default_rng(1).standard_normal((count, 20)).astype(np.float32)


def give(model: ModelProto, x: Array, labels: bool = True) -> None:
    """Write model.onnx and data.npz, with the labels that the model itself gives or without."""
    write(model, Path("model.onnx"))
    arrays = {"x": x}
    if labels:
        arrays["y"] = runtime.evaluate(model, {model.graph.input[0].name: x})[0].argmax(axis=1)
    np.savez("data.npz", **arrays)


def compress(out: str = "small.onnx", dry_run: bool = False, **asked: Any) -> Report:
    if "max_drop" not in asked:
        asked.setdefault("targets", {"macs": "0.5"})
    settings = CompressSettings(**{"align": 4, "budget": 8, **asked})
    return onnxprune.compress(Path("model.onnx"), Path(out), settings, data="data.npz", force=True, dry_run=dry_run)


def judged(file: str, report: Report, part: str) -> Scores:
    """Compare a file with the original on one part of the data."""
    chosen = report.data["parts"][part]["indices"]
    with np.load("data.npz") as arrays:
        np.savez("part.npz", **{name: values[chosen] for name, values in arrays.items()})
    return onnxprune.evaluate(Path(file), "part.npz", reference=Path("model.onnx"))


def weights(file: str) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


# ---- the functions


def test_a_file_may_be_given_as_text(folder: Path) -> None:
    give(dense(), vectors())
    settings = CompressSettings({"macs": "0.5"}, align=4, budget=8)
    onnxprune.compress("model.onnx", "small.onnx", settings, data="data.npz", run="kept")
    with pytest.raises(InputError, match="has finished"):
        onnxprune.resume("model.onnx", run="kept")
    onnxprune.apply("model.onnx", "small.plan.json", "again.onnx")
    lesson = FinetuneSettings(epochs=1)
    onnxprune.finetune("small.onnx", "tuned.onnx", lesson, data="data.npz", teacher="model.onnx", run="lesson")
    drawn, cut_again = onnxprune.inspect("tuned.onnx", graph="tuned.html"), onnxprune.inspect("again.onnx")
    assert drawn.costs["macs"] == cut_again.costs["macs"] < onnxprune.inspect("model.onnx").costs["macs"]
    assert Path("tuned.html").exists()
    assert onnxprune.evaluate("tuned.onnx", "data.npz", reference="model.onnx").top1


# ---- three numbers


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_three_stages_are_reported_and_the_repair_is_worth_it(folder: Path, labels: bool) -> None:
    give(convs(), images(), labels)
    report = compress()
    onnxprune.apply(Path("model.onnx"), Path("small.plan.json"), Path("cut.onnx"))
    assert [stage["name"] for stage in report.stages] == ["original", "cut", "repair"]
    assert judged("small.onnx", report, "search").error < 0.1 * judged("cut.onnx", report, "search").error
    held = [judged(file, report, "holdout") for file in ("model.onnx", "cut.onnx", "small.onnx")]
    for stage, scores in zip(report.stages[1:], held[1:], strict=True):
        assert stage["kl"] == pytest.approx(scores.kl, rel=1e-3)
        assert stage["agreement"] == scores.agreement
    assert report.stages[2]["kl"] < 0.1 * report.stages[1]["kl"]
    assert [stage.get("accuracy") for stage in report.stages] == [scores.top1 for scores in held]
    assert (report.before.accuracy, report.after.accuracy) == (held[0].top1, held[2].top1)
    assert report.before.accuracy == (1.0 if labels else None)


def test_the_parts_of_the_data_have_no_sample_in_common(folder: Path) -> None:
    give(convs(), images())
    parts = compress(calibration=100).data["parts"]
    assert set(parts) == {"calibration", "search", "holdout"}
    assert parts["calibration"]["samples"] == 100
    assert all(part["samples"] == len(part["indices"]) > 20 for part in parts.values())
    indices = [index for part in parts.values() for index in part["indices"]]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(SAMPLES))


def test_labels_of_samples_that_are_not_held_out_change_nothing(folder: Path) -> None:
    """Repair needs no labels: with wrong ones it does the same."""
    give(convs(), images())
    report = compress("right.onnx")
    with np.load("data.npz") as arrays:
        x, y = arrays["x"], arrays["y"].copy()
    y[report.data["parts"]["calibration"]["indices"]] = 3
    np.savez("data.npz", x=x, y=y)
    compress("wrong.onnx")
    assert Path("right.onnx").read_bytes() == Path("wrong.onnx").read_bytes()


def test_the_same_run_again_writes_the_same_bytes(folder: Path) -> None:
    give(convs(), images())
    for name in ("one.onnx", "two.onnx"):
        compress(name)
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_the_plan_holds_the_settings_that_were_chosen(folder: Path) -> None:
    give(convs(), images())
    compress()
    asked = json.loads(Path("small.plan.json").read_text())["settings"]
    assert (asked["search"], asked["criterion"], asked["repair"]) == ("greedy", "obs", "least_squares")
    assert (asked["calibration"], asked["max_drop"], asked["workers"]) == (None, None, 1)


# ---- repair


def test_apply_repeats_the_cut_before_its_repair_bit_for_bit(folder: Path) -> None:
    give(convs(), images())
    bare = compress("bare.onnx", search="uniform", repair="none")
    report = compress("small.onnx", search="uniform")
    onnxprune.apply(Path("model.onnx"), Path("small.plan.json"), Path("again.onnx"))
    assert Path("again.onnx").read_bytes() == Path("bare.onnx").read_bytes() != Path("small.onnx").read_bytes()
    assert [stage["name"] for stage in bare.stages] == ["original", "cut"]
    assert bare.stages[1] == report.stages[1]
    assert "repaired" not in bare.checks
    assert "repaired" in report.checks


def test_a_repair_changes_numbers_only(folder: Path) -> None:
    give(convs(), images())
    compress()
    onnxprune.apply(Path("model.onnx"), Path("small.plan.json"), Path("cut.onnx"))
    cut, repaired = onnx.load("cut.onnx"), onnx.load("small.onnx")
    assert [n.op_type for n in cut.graph.node] == [n.op_type for n in repaired.graph.node]
    shapes = [{name: (v.shape, v.dtype) for name, v in weights(f).items()} for f in ("cut.onnx", "small.onnx")]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("repair", ["least_squares", "bn"])
def test_every_repair_lowers_the_error(folder: Path, repair: str) -> None:
    give(convs(), images())
    report = compress(repair=repair)
    assert report.stages[2]["kl"] < 0.5 * report.stages[1]["kl"]


def test_a_repair_that_answers_worse_is_not_kept_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(original: Any, plan: Any, smaller: ModelProto, *_: Any) -> ModelProto:
        made = ModelProto()
        made.CopyFrom(smaller)
        for tensor in made.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(values), tensor.name))
        return made

    monkeypatch.setattr(judging, "repaired", spoiled)
    give(convs(), images())
    report = compress()
    onnxprune.apply(Path("model.onnx"), Path("small.plan.json"), Path("cut.onnx"))
    assert Path("cut.onnx").read_bytes() == Path("small.onnx").read_bytes()
    assert {**report.stages[1], "name": "repair"} == report.stages[2]
    assert any("the cut is left as it is" in note for note in report.notes)


def test_a_target_that_nothing_must_be_cut_for_leaves_the_model_as_it_was(folder: Path) -> None:
    give(convs(), images())
    report = compress(targets={"macs": "1"})
    assert Path("small.onnx").read_bytes() == Path("model.onnx").read_bytes()
    assert report.stages[2]["agreement"] == 1
    assert not report.notes


# ---- criteria and searches


@pytest.mark.parametrize("criterion", ["activation", "fpgm", "l1", "obs", "random"])
@pytest.mark.parametrize("search", ["greedy", "random", "uniform"])
def test_every_criterion_and_search_works_with_data(folder: Path, criterion: str, search: str) -> None:
    give(dense(), vectors())
    report = compress(criterion=criterion, search=search)
    assert report.after.macs <= 0.5 * report.before.macs
    assert report.score is not None
    assert report.score <= 0
    assert report.stages[2]["kl"] < report.stages[1]["kl"]


def test_a_dry_run_looks_at_the_data_and_foretells_the_plan(folder: Path) -> None:
    give(convs(), images())
    report = compress(dry_run=True)
    assert sorted(file.name for file in folder.iterdir()) == ["data.npz", "model.onnx"]
    assert report.groups == compress().groups


# ---- models of other kinds


def segmenter() -> ModelProto:
    draft = Draft()
    x = draft.relu("relu1", draft.conv("conv1", "image", 3, 16))
    x = draft.relu("relu2", draft.conv("conv2", x, 16, 24))
    draft.nodes.append(onnx.helper.make_node("Conv", [x, draft.weight("w", 4, 24, 1, 1)], ["map"], name="last"))
    return draft.model([("image", ("N", *IMAGE))], [("map", ("N", 4, *IMAGE[1:]))])


@pytest.mark.parametrize("asked", [{}, {"max_drop": 60.0}], ids=["target", "largest drop"])
def test_a_model_that_does_not_classify_is_repaired_by_its_distance(folder: Path, asked: dict[str, Any]) -> None:
    give(segmenter(), images(), labels=False)
    report = compress(**asked)
    assert [set(stage) for stage in report.stages[1:]] == [{"name", "samples", "distance"}] * 2
    assert report.stages[2]["distance"] < report.stages[1]["distance"]
    assert report.after.macs < report.before.macs
    assert judged("small.onnx", report, "holdout").distance == pytest.approx(report.stages[2]["distance"], rel=1e-4)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_model_of_a_fixed_batch_is_repaired(folder: Path, batch: int) -> None:
    model = convs()
    give(model, images(203))
    write(convs(batch=batch), Path("model.onnx"))
    report = compress()
    held = report.data["parts"]["holdout"]["samples"]
    assert held % 8 > 0
    assert report.stages[0] == {"name": "original", "samples": held, "accuracy": 1.0, "top5": 1.0}
    assert report.stages[2]["kl"] < 0.1 * report.stages[1]["kl"]


def test_a_fixed_batch_with_fewer_samples_to_calibrate_with_is_refused(folder: Path) -> None:
    give(convs(), images(40))
    write(convs(batch=32), Path("model.onnx"))
    with pytest.raises(InputError, match=r"\d+ of its samples are to calibrate with, and the model takes 32 at once"):
        compress()


def test_where_the_model_does_not_run_is_told_before_the_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*_: Any, **__: Any) -> None:
        raise InputError("there is no GPU")

    give(convs(), images(60))
    monkeypatch.setattr("onnxprune.predicting.device.Device.session", session)
    assert compress(verify="none").after.latency_ms is None
    monkeypatch.setattr("onnxprune.pipeline._search", lambda *_: pytest.fail("searched"))
    with pytest.raises(InputError, match="there is no GPU; --verify none compresses"):
        compress()


def test_memory_that_nobody_asked_for_may_stay_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(*_: Any) -> None:
        raise InputError("the process ended")

    give(convs(), images(60))
    monkeypatch.setattr("onnxprune.attempt.measure_memory", memory)
    monkeypatch.setattr("onnxprune.pipeline.try_memory", attempt.try_memory)
    report = compress()
    assert "what memory a process needs was not measured: the process ended" in report.notes
    assert Path("small.onnx").exists()


def test_a_batch_that_the_model_does_not_take_is_refused(folder: Path) -> None:
    give(convs(), images(60))
    write(convs(batch=1), Path("model.onnx"))
    with pytest.raises(InputError, match=r"model\.onnx takes 1 at once; leave --batch out"):
        compress(batch=16)
    assert compress(batch=1).settings["batch"] == 1


def test_what_training_refuses_is_refused_before_the_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.pipeline._search", lambda *_: pytest.fail("searched"))
    give(convs(), images(120))
    write(convs(batch=16), Path("model.onnx"))
    with pytest.raises(InputError, match=r"to choose the epoch by, and 16 are needed at once"):
        compress(finetune_epochs=1)


def test_a_layer_is_repaired_that_one_position_code_for_all_samples_is_added_to(folder: Path) -> None:
    body = (
        "a = MatMul (x, w1) b = Add (a, b1) c = Relu (b) d = MatMul (c, w2) e = Add (d, b2) "
        "p = Slice (code, start, end, axis) f = Add (e, p) g = Relu (f) y = MatMul (g, w3)"
    )
    text = f'<ir_version: 8, opset_import: ["": 17]> net (float[N,5,6] x) => (float[N,5,4] y) {{ {body} }}'
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"w1": (6, 12), "b1": (12,), "w2": (12, 8), "b2": (8,), "code": (1, 512, 8), "w3": (8, 4)}
    stored: dict[str, Array] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    stored |= {name: np.asarray([value]) for name, value in (("start", 0), ("end", 5), ("axis", 1))}
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in stored.items())
    give(model, rng.standard_normal((200, 5, 6)).astype(np.float32), labels=False)
    report = compress(align=1)
    assert report.stages[2]["distance"] < 0.7 * report.stages[1]["distance"]


def test_half_precision_is_repaired_and_stays_half(folder: Path) -> None:
    give(convs(dtype=np.float16), images().astype(np.float16))
    report = compress()
    assert {values.dtype for values in weights("small.onnx").values()} == {np.dtype(np.float16)}
    assert report.stages[2]["kl"] < 0.1 * report.stages[1]["kl"]


def test_three_samples_are_enough_to_run_and_two_are_refused(folder: Path) -> None:
    give(convs(), images(3))
    parts = compress().data["parts"]
    assert [part["samples"] for part in parts.values()] == [1, 1, 1]
    give(convs(), images(2))
    with pytest.raises(InputError, match="too few samples"):
        compress()


def test_wrong_labels_are_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(convs(), images(), labels=False)
    y = np.zeros(SAMPLES, np.int64)
    y[17] = CLASSES
    np.savez("data.npz", x=images(), y=y)
    monkeypatch.setattr("onnxprune.prepare.collect", lambda *_: pytest.fail("statistics were collected"))
    with pytest.raises(InputError, match=f"class {CLASSES} "):
        compress()


# ---- the smallest model within a drop


def trials(out: str) -> list[tuple[float, float]]:
    """The share of the FLOPs and the points lost of each trial."""
    found = re.findall(r"trial \d of 7: ([\d.]+)% of the FLOPs kept, (-?[\d.]+) points lost", out)
    return [(float(share), float(lost)) for share, lost in found]


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_the_smallest_model_within_a_drop_is_found(folder: Path, labels: bool) -> None:
    give(dense(), vectors(600), labels)
    options = ("--data", "data.npz", "-o", "small.onnx", "--align", 1, "--budget", 4)
    outcome = run("compress", "model.onnx", "--max-drop", 10, *options)
    assert outcome.code == 0, outcome.err
    report = json.loads(Path("small.report.json").read_text())
    name = "accuracy" if labels else "agreement"
    lost = 100 * (1 - report["stages"][2][name])
    assert report["target"]["max_drop"] == {"asked": "10.0", "limit": 10.0, "reached": pytest.approx(lost)}
    assert 0 <= lost <= 10
    kept = 100 * report["after"]["macs"] / report["before"]["macs"]
    tried = trials(outcome.out)
    within, beyond = [share for share, drop in tried if drop <= 10], [share for share, drop in tried if drop > 10]
    assert min(within) == pytest.approx(kept, abs=0.06)
    assert max(beyond) < kept < max(beyond) + 2  # percent: what seven halvings leave of the whole
    assert kept < 80


def test_where_every_cut_loses_too_much_the_model_stays_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(dense(), vectors())
    monkeypatch.setattr(finish.Finish, "drop", lambda *_: 0.5)
    report = compress(max_drop=0.0)
    assert report.after.macs == report.before.macs
    assert any("every cut that was tried loses more than 0 points" in note for note in report.notes)
    assert report.target["max_drop"]["reached"] == 0


def test_training_that_loses_more_than_is_allowed_is_not_taken_and_the_report_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(dense(), vectors(600))
    trained = finish.Finish.finetuned

    def spoilt(self: finish.Finish, plan: Plan, model: ModelProto, run_folder: Path) -> ModelProto:
        result = trained(self, plan, model, run_folder)
        last = next(t for t in result.graph.initializer if t.name == result.graph.node[-1].input[1])
        last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), last.name))
        return result

    monkeypatch.setattr(finish.Finish, "finetuned", spoilt)
    report = compress(max_drop=50.0, search="uniform", finetune_epochs=1, choose="last", seed=0)
    repaired, after = report.stages[-2:]
    assert (repaired["name"], after["name"]) == ("repair", "finetune")
    assert after["accuracy"] == repaired["accuracy"]
    assert report.training["chosen_epoch"] == 0
    assert finish.NOT_TAKEN in report.notes


def test_when_its_time_is_up_no_further_share_is_tried_and_the_best_measured_one_is_taken(folder: Path) -> None:
    give(dense(), vectors(600))
    options = ("--data", "data.npz", "-o", "small.onnx", "--align", 1, "--search", "random")
    outcome = run("compress", "model.onnx", "--max-drop", 99, "--time-limit", 0.001, *options)
    assert outcome.code == 0, outcome.err
    report = json.loads(Path("small.report.json").read_text())
    ((share, lost),) = trials(outcome.out)
    assert 100 * report["after"]["macs"] / report["before"]["macs"] == pytest.approx(share, abs=0.06)
    assert report["target"]["max_drop"]["reached"] == pytest.approx(lost, abs=0.006)
    assert any("its time was used up" in note for note in report["notes"])


def test_the_plan_that_was_measured_to_be_within_the_drop_is_the_one_that_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(dense(), vectors(600))
    searched, search = list[Array](), random.search

    def noted(problem: Problem, settings: SearchSettings, progress: Any) -> Plan:
        """Come to another plan each time, as a search does whose time is up."""
        found = search(problem, replace(settings, seed=len(searched)), progress)
        searched.append(found.counts)
        return found

    monkeypatch.setattr(random, "search", noted)
    report = compress(max_drop=99.0, search="random", budget=1, align=1)
    assert len(searched) == dropping.TRIALS
    assert [group["kept"] for group in report.groups] == searched[-1].tolist()


def test_shares_that_cannot_be_reached_are_passed_over(folder: Path) -> None:
    give(dense(), vectors())
    report = compress(max_drop=99.0, min_keep=30)
    assert all(group["kept"] >= 30 for group in report.groups)
    assert report.after.macs < 0.6 * report.before.macs


@pytest.mark.parametrize(("lost", "multiple"), [(50.0, 8), (50.1, 1)])
def test_coarser_widths_are_taken_for_their_speed_only_within_the_drop(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lost: float, multiple: int
) -> None:
    give(dense(), vectors())
    monkeypatch.setattr(attempts, "ALIGNMENTS", (Align(1), Align(8, rest=FINE)))
    monkeypatch.setattr(attempt.Attempt, "lags", True)
    monkeypatch.setattr(attempt.Attempt, "is_faster_than", lambda self, other: True)
    monkeypatch.setattr(attempts, "MOST_WORSE", 1000)
    monkeypatch.setattr(
        "onnxprune.pipeline.smallest_within",
        lambda points, prepared, attempting, journal, finish, progress: attempting(progress, {"macs": "0.53"}),
    )
    monkeypatch.setattr(finish.Finish, "drop", lambda *_: lost)
    assert compress(align=None, max_drop=50.0).settings["align"]["multiple"] == multiple


@pytest.mark.parametrize(
    ("original", "found", "points"),
    [
        ({"accuracy": 0.75}, {"accuracy": 0.5, "agreement": 0.9, "distance": 0.1}, 25),
        ({"accuracy": 0.5}, {"accuracy": 0.75, "agreement": 0.9, "distance": 0.1}, -25),
        ({}, {"agreement": 0.75, "distance": 0.1}, 25),
        ({}, {"distance": 0.25}, 25),
        ({}, {"distance": None}, np.inf),
    ],
)
def test_points_are_of_accuracy_else_of_agreement_else_of_distance(
    original: dict[str, float], found: dict[str, float], points: float
) -> None:
    assert points_lost(original, found) == points


def test_answers_that_are_not_finite_are_told_in_plain_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    def judge(self: Any, candidate: ModelProto, folder: Path | None = None) -> Scores:
        return Scores(60, 0.1, 0.5, 0.1, np.inf, np.inf)

    give(convs(), images())
    monkeypatch.setattr("onnxprune.evaluation.Judge.judge", judge)
    options = ("--flops", 0.5, "--data", "data.npz", "-o", "small.onnx", "--align", 4, "--json", "result.json")
    outcome = run("compress", "model.onnx", *options)
    assert outcome.code == 0, outcome.err
    assert "not finite" in outcome.out
    for file in ("small.report.json", "small.plan.json", "result.json"):
        content = json.loads(Path(file).read_text(), parse_constant=refuse)
        assert file == "small.plan.json" or content["stages"][1]["kl"] is None


def test_training_follows_the_repair_with_the_original_as_teacher(folder: Path) -> None:
    give(convs(), images(), labels=False)
    report = compress(finetune_epochs=2)
    assert [stage["name"] for stage in report.stages] == ["original", "cut", "repair", "finetune"]
    bare = compress("bare.onnx")
    assert report.stages[:3] == bare.stages
    small, repaired = onnx.load("small.onnx"), onnx.load("bare.onnx")
    assert [(t.name, list(t.dims)) for t in small.graph.initializer] == [
        (t.name, list(t.dims)) for t in repaired.graph.initializer
    ]
    assert judged("small.onnx", report, "holdout").kl == pytest.approx(report.stages[3]["kl"], rel=1e-3)
    assert "trained on" in report.data["parts"]["calibration"]["purpose"]


def test_training_that_brings_nothing_is_told_and_the_last_epoch_can_be_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxprune.training import trainer

    judged = trainer.Trainer._evaluated

    def forgetful(self: Any, epoch: int, loss: float) -> tuple[float, float]:
        return (-epoch, judged(self, epoch, loss)[1])  # each epoch answers worse than the one before

    give(convs(), images())
    monkeypatch.setattr(trainer.Trainer, "_evaluated", forgetful)
    best, last = compress("best.onnx", finetune_epochs=1), compress("last.onnx", finetune_epochs=1, choose="last")
    bare = compress("bare.onnx")
    assert any("--choose last" in note for note in best.notes)
    assert not any("--choose last" in note for note in last.notes)
    assert best.stages[3]["kl"] == pytest.approx(bare.stages[2]["kl"], rel=1e-3)
    assert last.stages[3]["kl"] != pytest.approx(bare.stages[2]["kl"], rel=1e-2)
    assert [found.training["chosen_epoch"] for found in (best, last)] == [0, 1]
    in_steps = compress("steps.onnx", finetune_epochs=1, steps=2)
    assert [note[:7] for note in in_steps.notes if "--choose last" in note] == ["step 1:", "step 2:"]
    assert [step["chosen_epoch"] for step in in_steps.training["steps"]] == [0, 0]
    assert not bare.training


def test_training_needs_data(folder: Path) -> None:
    write(convs(), Path("model.onnx"))
    outcome = run("compress", "model.onnx", "--flops", 0.5, "--finetune-epochs", 2)
    assert outcome.code == 2
    assert "--finetune-epochs needs samples to train on; give --data" in outcome.errors[0]


def test_a_deep_cut_in_steps_is_one_plan_of_the_original(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(tried: attempt.Attempt, *_: Any) -> list[str]:
        tried.memory = (5_000_000, 3_000_000)
        return ["memory was measured"]

    give(convs(), images(), labels=False)
    monkeypatch.setattr("onnxprune.stepwise.try_memory", memory)
    monkeypatch.setattr("onnxprune.stepwise.where_time_is", lambda *_: ["the time is in the first layer"])
    outcome = run(
        *("compress", "model.onnx", "--flops", 0.25, "--data", "data.npz", "--finetune-epochs", 1, "--steps", 3),
        *("--align", 2, "-o", "small.onnx"),
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(Path("small.report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["original", "cut", "step 1", "step 2", "finetune"]
    assert report["after"]["macs"] <= 0.25 * report["before"]["macs"]
    assert report["stages"][4]["kl"] < report["stages"][1]["kl"]
    assert {"search", "repair", "fine-tune", "measure memory", "explain"} <= report["seconds"].keys()
    assert (report["before"]["memory_bytes"], report["after"]["memory_bytes"]) == (5_000_000, 3_000_000)
    assert report["notes"][:2] == ["memory was measured", "the time is in the first layer"]
    assert run("apply", "model.onnx", "small.plan.json", "-o", "cut.onnx").code == 0
    small, bare = onnx.load("small.onnx"), onnx.load("cut.onnx")
    assert {t.name: list(t.dims) for t in small.graph.initializer} == {
        t.name: list(t.dims) for t in bare.graph.initializer
    }
    onnx.checker.check_model(small, full_check=True)
    assert sorted(file.name for file in folder.iterdir()) == [
        *("cut.onnx", "data.npz", "model.onnx", "small.onnx", "small.plan.json", "small.report.json"),
    ]


def test_all_steps_calibrate_with_the_samples_of_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(convs(), images(1200), labels=False)
    monkeypatch.setattr("onnxprune.prepare.CALIBRATION", (20, 1000))
    macs = onnxprune.inspect("model.onnx").costs["macs"]
    monkeypatch.setattr("onnxprune.prepare.CALIBRATION_MACS", 200 * macs)
    parts, real = list[Any](), prepare._parts
    monkeypatch.setattr(prepare, "_parts", lambda *given: parts.append(real(*given)) or parts[-1])
    asked = CompressSettings({"macs": "0.4"}, finetune_epochs=1, steps=2, verify="none", search="uniform")
    onnxprune.compress("model.onnx", "small.onnx", asked, data="data.npz")
    assert len(parts) == 3  # the whole, and each step
    assert all(found.indices == parts[0].indices for found in parts)
    assert len(parts[0].calibration) == 200


def test_each_step_takes_the_same_part_of_what_is_there() -> None:
    steps = stepwise.limits({"macs": "0.125"}, {"macs": 8000.0}, 3)
    assert [parse_target("macs", step["macs"], 8000.0).limit for step in steps] == [4000, 2000, 1000]
    few = stepwise.limits({"params": "0.5"}, {"params": 900.0}, 2)
    assert parse_target("params", few[1]["params"], 900.0).limit == 450


@pytest.mark.parametrize(
    "name", ["residual", "dense_blocks", "shuffled_three_times", "view_with_a_channel_count", "vision_transformer"]
)
@pytest.mark.parametrize("seed", range(3))
def test_two_cuts_one_after_the_other_are_the_cut_of_both_plans_together(name: str, seed: int) -> None:
    model = NETS[name].build()
    rng = np.random.default_rng(seed)
    now, removed = model, []
    for _ in range(2):
        channels = find_channels(analyse(now, Path(), runtime.evaluate, {}))
        plan = Plan(tuple(np.sort(rng.permutation(g.width)[: -(-g.width * 3 // 4)]) for g in channels.groups))
        removed.append(to_json(channels, plan, "", {})["removed"])
        now = cut(channels, plan, runtime.evaluate)
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {}))
    once = cut(channels, stepwise.composed(channels, removed), runtime.evaluate)
    ours, theirs = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (once, now))
    weights = [name for name in ours if ours[name].dtype.kind == "f" and ours[name].ndim > 1]
    assert weights
    for weight in weights:
        np.testing.assert_array_equal(ours[weight], theirs[weight])


def test_steps_are_refused_where_groups_of_convolutions_are_cut_inside(folder: Path) -> None:
    write(NETS["two_groups"].build(), Path("model.onnx"))
    shape = [d.dim_value or 40 for d in onnx.load("model.onnx").graph.input[0].type.tensor_type.shape.dim]
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, *shape[1:])).astype(np.float32))
    outcome = run(
        *("compress", "model.onnx", "--flops", 0.5, "--data", "x.npy", "--finetune-epochs", 1, "--steps", 2, "--slots"),
    )
    assert outcome.code == 2
    assert "--steps cannot cut inside groups of convolutions" in outcome.errors[0]


@pytest.mark.parametrize("option", [[], ["--finetune-epochs", 1, "--max-drop", 1]])
def test_steps_need_training_between_them_and_a_target(folder: Path, option: list[Any]) -> None:
    give(convs(), images(), labels=False)
    target = [] if "--max-drop" in option else ["--flops", 0.5]
    outcome = run("compress", "model.onnx", *target, "--data", "data.npz", "--steps", 2, *option)
    assert outcome.code == 2
    assert "--steps trains between cuts" in outcome.errors[0]


def test_a_point_lost_is_a_point_and_no_more() -> None:
    assert 100 * (1 - 0.99) > 1  # in binary fractions
    assert points_lost({"accuracy": 1.0}, {"accuracy": 0.99}) <= 1.0
    assert points_lost({}, {"agreement": 0.99}) <= 1.0

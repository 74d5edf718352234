"""finetune from end to end: what is learnt, from whom, what goes on after an end, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_nets import CLASSES, Draft, run
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.transformers import float16
from torch._dynamo import exc
from training import tasks

import onnxprune
from onnxprune import FinetuneSettings, runtime
from onnxprune.errors import InputError
from onnxprune.finetuning import FinetuneReport
from onnxprune.progress import Quiet
from onnxprune.runs import take
from onnxprune.training import checkpoint, trainer

ONLY_TAUGHT = ("--teacher", "model.onnx", "--teacher-share", 1)
PROGRAM = Path(sys.executable).with_name("onnxprune")
QUICK: dict[str, Any] = {"epochs": 3, "batch": 64, "augment": "none", "precision": "fp32"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tasks.write(tmp_path)
    return tmp_path


def finetune(out: str = "trained.onnx", data: str = "data.npz", **asked: Any) -> FinetuneReport:
    names = ("teacher", "resume", "force", "run", "label_offset", "progress")
    given = {name: asked.pop(name) for name in names if name in asked}
    settings = FinetuneSettings(**{**QUICK, **asked})
    return onnxprune.finetune(Path("model.onnx"), Path(out), settings, data=data, **given)


def accuracy(file: str) -> float:
    x, y = tasks.samples(400, seed=7)
    return float((runtime.Session(Path(file)).run({"image": x})[0].argmax(axis=1) == y).mean())


def weights(file: str) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


@pytest.mark.parametrize("norms", ["insert", "keep"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_labels_are_learnt_and_the_file_keeps_its_structure(folder: Path, norms: str, optimizer: str) -> None:
    report = finetune(norms=norms, optimizer=optimizer, epochs=6, rate=0.05 if optimizer == "sgd" else 0.01)
    assert accuracy("trained.onnx") > max(0.9, accuracy("model.onnx") + 0.2)
    before, after = onnx.load("model.onnx"), onnx.load("trained.onnx")
    for graph in (before.graph, after.graph):
        for tensor in graph.initializer:
            tensor.raw_data = b""
    assert before == after
    assert report.after.top1 is not None
    assert report.before.top1 is not None
    assert report.after.top1 > report.before.top1
    assert report.chosen_epoch > 0
    assert [row["epoch"] for row in report.epochs] == list(range(7))
    assert report.epochs[report.chosen_epoch]["accuracy"] == pytest.approx(report.after.top1)
    written = json.loads(Path("trained.report.json").read_text())
    assert written["format"] == "onnxprune.finetune/1"
    assert written["settings"]["norms"] == norms


def test_a_teacher_is_learnt_from_without_labels(folder: Path) -> None:
    tasks.write(folder, labels=False)
    onnx.save(tasks.teacher(), "teacher.onnx")
    report = finetune(teacher=Path("teacher.onnx"), epochs=6)
    assert accuracy("trained.onnx") > 0.9
    assert report.after.top1 is None
    assert report.after.agreement is not None
    assert report.before.agreement is not None
    assert report.after.agreement > report.before.agreement


def test_a_share_of_one_for_the_teacher_never_reads_labels(folder: Path) -> None:
    onnx.save(tasks.teacher(), "teacher.onnx")
    x, y = tasks.samples(512)
    np.savez("wrong.npz", x=x, y=(y + 1) % tasks.CORNERS)
    for name in ("wrong", "data"):
        finetune(f"{name}.onnx", data=f"{name}.npz", teacher=Path("teacher.onnx"), teacher_share=1.0, epochs=6)
    assert accuracy("wrong.onnx") > 0.9
    ours, theirs = weights("wrong.onnx"), weights("data.onnx")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_model_that_ends_in_softmax_is_read_before_it(folder: Path) -> None:
    tasks.write(folder, softmax=True)
    report = finetune(epochs=6)
    assert report.epochs[0]["holdout_loss"] > 1  # nats; of probabilities taken for scores it would be near log(4)
    assert accuracy("trained.onnx") > 0.9


class Told(Quiet):
    """Remembers what steps of training are shown with."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.counted: list[tuple[int, int]] = []

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        self.texts.append(text)
        self.counted.append((done, total))


def test_each_step_shows_what_training_has_come_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHECKED", 4)
    told = Told()
    report = finetune(epochs=2, progress=told)
    first, second = report.epochs[:2]
    assert told.texts[0] == f"accuracy {first['accuracy']:.1%}"
    half = len(told.texts) // 2
    assert told.texts[half] == f"loss {second['loss']:.3f}, accuracy {second['accuracy']:.1%}"
    losses = [float(text.split()[1].rstrip(",")) for text in told.texts if text.startswith("loss")]
    assert len(set(losses)) == 3  # after four steps, after the first epoch, after four more steps
    assert losses[0] > losses[-1]


def test_averaged_weights_are_those_that_are_judged_and_written(folder: Path) -> None:
    plain = finetune("plain.onnx", norms="keep")
    averaged = finetune("averaged.onnx", norms="keep", ema=0.99)
    assert plain.epochs[1]["loss"] == averaged.epochs[1]["loss"]
    assert plain.epochs[1]["holdout_loss"] != averaged.epochs[1]["holdout_loss"]
    assert averaged.after.top1 == pytest.approx(averaged.epochs[averaged.chosen_epoch]["accuracy"])


def test_hints_change_what_is_learnt(folder: Path) -> None:
    onnx.save(tasks.net(width=12, seed=5), "teacher.onnx")
    plain = finetune("plain.onnx", teacher=Path("teacher.onnx"))
    hinted = finetune("hinted.onnx", teacher=Path("teacher.onnx"), hints=10.0)
    assert hinted.epochs[0]["holdout_loss"] > plain.epochs[0]["holdout_loss"]
    assert not np.array_equal(weights("plain.onnx")["conv1.weight"], weights("hinted.onnx")["conv1.weight"])


def test_the_same_seed_gives_the_same_weights_and_another_one_others(folder: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        finetune(f"{name}.onnx", seed=seed, augment="small", cutout=2)
    a, b, c = (weights(f"{name}.onnx")["conv1.weight"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_sides_of_an_image_are_told_from_its_channels_where_these_come_last(folder: Path) -> None:
    model = onnx.load("model.onnx")
    last = helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ("N", tasks.SIDE, tasks.SIDE, 1))
    model.graph.input[0].CopyFrom(last)
    model.graph.node.insert(0, helper.make_node("Transpose", ["last"], ["image"], perm=[0, 3, 1, 2]))
    onnx.save(model, "model.onnx")
    x, y = tasks.samples(512)
    np.savez("data.npz", x=np.moveaxis(x, 1, 3), y=y)
    finetune(epochs=1, augment="small", cutout=4)
    with pytest.raises(InputError, match="--cutout 8 leaves nothing of images of 8 pixels"):
        finetune("other.onnx", epochs=1, augment="small", cutout=8)


class StopError(Exception):
    """What ends a run in a test."""


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_was_ended_goes_on_to_the_same_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    asked: dict[str, Any] = {"epochs": 4, "augment": "small", "ema": ema}
    whole = finetune("whole.onnx", **asked)
    ordinary = trainer.Trainer._step

    def ending(self: trainer.Trainer, step: int, *given: Any) -> torch.Tensor:
        if step == 2 * self.steps + 3:
            raise StopError
        return ordinary(self, step, *given)

    monkeypatch.setattr(trainer.Trainer, "_step", ending)
    with pytest.raises(StopError):
        finetune("half.onnx", **asked)
    assert not Path("half.onnx").exists()
    monkeypatch.setattr(trainer.Trainer, "_step", ordinary)
    half = finetune("half.onnx", resume=True, **asked)
    assert half.epochs == whole.epochs
    assert Path("half.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_a_run_that_goes_on_counts_what_it_has_yet_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = trainer.Trainer._epoch

    def ending(self: trainer.Trainer, epoch: int) -> float:
        if epoch == 4:
            raise StopError
        return ordinary(self, epoch)

    monkeypatch.setattr(trainer.Trainer, "_epoch", ending)
    with pytest.raises(StopError):
        finetune(epochs=4)
    monkeypatch.setattr(trainer.Trainer, "_epoch", ordinary)
    told = Told()
    finetune(epochs=4, resume=True, progress=told)
    assert told.counted == [(number, 7) for number in range(7)]  # of 28, 21 were made before


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_run_that_was_killed_goes_on_to_the_same_file(folder: Path) -> None:
    command = ["finetune", "model.onnx", "--data", "data.npz", "--epochs", "30", "--batch", "64", "--augment", "small"]
    command += ["--cutout", "2", "--ema", "0.9"]
    process = subprocess.Popen([PROGRAM, *command, "--quiet"])
    log = Path("model.finetuned.run", checkpoint.LOG)
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("model.finetuned.onnx").exists()
    assert run(*command, "--resume").code == 0
    assert run(*command, "-o", "whole.onnx").code == 0
    assert Path("model.finetuned.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_another_command_does_not_go_on_with_a_run(folder: Path) -> None:
    finetune(epochs=1)
    with pytest.raises(InputError, match="holds a run; go on with --resume"):
        finetune("other.onnx", run=Path("trained.run"))
    with pytest.raises(InputError, match="holds a run with other --epochs"):
        finetune("other.onnx", run=Path("trained.run"), resume=True, epochs=2)
    onnx.save(tasks.net(seed=3), "model.onnx")
    with pytest.raises(InputError, match="holds a run with other model"):
        finetune("other.onnx", run=Path("trained.run"), resume=True, epochs=1)


def test_a_damaged_checkpoint_is_an_error_and_not_read_as_code(folder: Path) -> None:
    finetune(epochs=1)
    Path("trained.run", checkpoint.LAST).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(InputError, match=r"last\.pt is damaged"):
        finetune("other.onnx", run=Path("trained.run"), resume=True, epochs=1)
    assert not Path("hacked").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = trainer.Trainer._step

    def broken(self: trainer.Trainer, step: int, *given: Any) -> torch.Tensor:
        if step == 2 * self.steps + 1:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return ordinary(self, step, *given)

    monkeypatch.setattr(trainer.Trainer, "_step", broken)
    report = finetune(epochs=4)
    assert [row["epoch"] for row in report.epochs] == [0, 1, 2]
    assert any("not finite" in note for note in report.notes)
    assert all(np.isfinite(values).all() for values in weights("trained.onnx").values())
    assert report.after.top1 is not None
    assert report.before.top1 is not None
    assert report.after.top1 >= report.before.top1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_log_for_tensorboard_has_every_epoch_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune(epochs=3, tensorboard=True)
    events = EventAccumulator("trained.run")
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy")] == [1, 2, 3]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install onnxprune\[tensorboard\]"):
        finetune("other.onnx", epochs=1, tensorboard=True)


def with_batch(size: int) -> None:
    """Write a model whose batch is fixed."""
    model = tasks.net()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(model, "model.onnx")


@pytest.mark.parametrize("size", [1, 16, 60])
def test_a_fixed_batch_is_kept_whatever_is_held_out(folder: Path, size: int) -> None:
    with_batch(size)
    x, y = tasks.samples(500)
    np.savez("data.npz", x=x, y=y)
    report = finetune(epochs=2)
    assert report.epochs[2]["holdout_loss"] < report.epochs[0]["holdout_loss"]
    assert f"the model takes {size} sample{'s' * (size > 1)} at once" in report.notes[0]


def test_a_fixed_batch_may_be_larger_than_what_calibrates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.training.lesson.CALIBRATION", 16)
    with_batch(60)
    report = finetune(epochs=2, teacher=Path("model.onnx"))
    assert report.before.kl == 0


def test_fewer_samples_than_a_fixed_batch_are_an_error(folder: Path) -> None:
    with_batch(400)
    with pytest.raises(InputError, match="400 are needed at once; give more"):
        finetune(epochs=1)


def test_a_run_started_anew_forgets_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(epochs=3)

    def ending(self: trainer.Trainer, epoch: int) -> float:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_epoch", ending)
        with pytest.raises(StopError):
            finetune(force=True, epochs=3)
    report = finetune(force=True, resume=True, epochs=3)
    assert [row["epoch"] for row in report.epochs] == [0, 1, 2, 3]
    assert report.epochs[report.chosen_epoch]["accuracy"] == pytest.approx(report.after.top1)
    assert report.chosen_epoch > 0


def test_other_samples_do_not_go_on_with_a_run(folder: Path) -> None:
    finetune(epochs=1)
    x, y = tasks.samples(512)
    np.savez("data.npz", x=-x, y=y)
    with pytest.raises(InputError, match="holds a run with other samples"):
        finetune("other.onnx", run=Path("trained.run"), resume=True, epochs=1)


def test_labels_beyond_the_classes_are_an_error_unless_nobody_reads_them(folder: Path) -> None:
    onnx.save(tasks.teacher(), "teacher.onnx")
    x, y = tasks.samples(512)
    np.savez("data.npz", x=x, y=np.where(np.arange(512) == np.random.default_rng(0).permutation(512)[400], 9, y))
    with pytest.raises(InputError, match="has class 9 and --label-offset is 0, the model has outputs 0 to 3"):
        finetune(epochs=1)
    finetune(epochs=1, teacher=Path("teacher.onnx"), teacher_share=1.0)


def test_a_teacher_of_other_classes_or_inputs_is_an_error(folder: Path) -> None:
    teacher = tasks.teacher()
    wide = helper.make_node("Concat", ["scores", "scores"], ["wide"], axis=1)
    teacher.graph.node.append(wide)
    teacher.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", 1, ("N", 8)))
    onnx.save(teacher, "teacher.onnx")
    with pytest.raises(InputError, match="give a teacher of the same outputs"):
        finetune(epochs=1, teacher=Path("teacher.onnx"))


@pytest.mark.parametrize("where", ["model", "teacher"])
def test_a_softmax_on_one_side_only_is_looked_behind(folder: Path, where: str) -> None:
    tasks.write(folder, labels=False, softmax=where == "model")
    teacher = tasks.teacher()
    if where == "teacher":
        teacher.graph.node.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
        teacher.graph.output[0].name = "shares"
    onnx.save(teacher, "teacher.onnx")
    finetune(teacher=Path("teacher.onnx"), epochs=6)
    assert accuracy("trained.onnx") > 0.95


def test_a_shift_of_what_goes_into_a_sigmoid_is_learnt(folder: Path) -> None:
    for name, shift in (("teacher", 0.0), ("model", 3.0)):
        model = tasks.net()
        model.graph.node.append(helper.make_node("Sigmoid", [model.graph.output[0].name], ["shares"]))
        model.graph.output[0].name = "shares"
        bias = next(t for t in model.graph.initializer if t.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(4, shift, np.float32), "head.bias"))
        onnx.save(model, f"{name}.onnx")
    report = finetune(teacher=Path("teacher.onnx"), epochs=6, norms="keep", rate=0.02)
    assert report.after.distance is not None
    assert report.before.distance is not None
    assert report.after.distance < 0.2 * report.before.distance


def quantised(model: ModelProto, axis: int | None = None) -> ModelProto:
    """Store all weights in 8 bits behind DequantizeLinear."""
    for tensor in [t for t in model.graph.initializer if t.name.endswith("weight")]:
        values = numpy_helper.to_array(tensor)
        along = None if axis is None else tuple(a for a in range(values.ndim) if a != axis)
        scale = np.asarray(np.abs(values).max(axis=along, keepdims=True) / 127, np.float32)
        stored = {"whole": np.rint(values / scale).astype(np.int8), "scale": scale.reshape([-1] if axis == 0 else [])}
        names = [f"{tensor.name}.{kind}" for kind in stored]
        model.graph.initializer.extend(map(numpy_helper.from_array, stored.values(), names))
        attributes = {} if axis is None else {"axis": axis}
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [tensor.name], **attributes))
        model.graph.initializer.remove(tensor)
    return model


@pytest.mark.parametrize("axis", [None, 0])
def test_quantised_weights_are_trained_and_stay_quantised(folder: Path, axis: int | None) -> None:
    onnx.save(quantised(tasks.net(), axis), "model.onnx")
    report = finetune(epochs=6, rate=0.05, choose="last")
    before, after = weights("model.onnx"), weights("trained.onnx")
    for name in before:
        assert after[name].dtype == before[name].dtype
        assert np.array_equal(after[name], before[name]) == name.endswith("scale"), name
    assert [n.op_type for n in onnx.load("trained.onnx").graph.node] == [
        n.op_type for n in onnx.load("model.onnx").graph.node
    ]
    assert report.before.top1 is not None
    assert accuracy("trained.onnx") > report.before.top1 + 0.2


@pytest.mark.parametrize("opset", [11, 14, 17])
def test_halves_are_trained_with_norms_in_single_precision_whatever_the_opset(folder: Path, opset: int) -> None:
    onnx.save(float16.convert_float_to_float16(tasks.net(opset=opset), keep_io_types=True), "model.onnx")
    report = finetune(epochs=3)
    assert report.epochs[3]["holdout_loss"] < 0.9 * report.epochs[0]["holdout_loss"]
    assert weights("trained.onnx")["conv1.weight"].dtype == np.float16


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch itself uses it
def test_a_compiled_model_learns_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune("plain.onnx", epochs=1, choose="last")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # needs no compiler
    finetune("compiled.onnx", epochs=1, choose="last", compiled=True)
    plain, compiled = weights("plain.onnx"), weights("compiled.onnx")
    for name, values in plain.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-3, atol=1e-5)


def test_products_in_bfloat16_learn_as_well(folder: Path) -> None:
    finetune(epochs=6, precision="bf16")
    assert accuracy("trained.onnx") > 0.9
    assert weights("trained.onnx")["conv1.weight"].dtype == np.float32


@pytest.mark.parametrize("augment", ["auto", "imagenet"])
def test_images_of_bytes_are_augmented_and_learnt(folder: Path, augment: str) -> None:
    model = tasks.net()
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("bytes", onnx.TensorProto.UINT8, ("N", 1, tasks.SIDE, tasks.SIDE))
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(40), "step"))
    model.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["cast"], to=1))
    model.graph.node.insert(1, helper.make_node("Div", ["cast", "step"], ["image"]))
    onnx.save(model, "model.onnx")
    x, y = tasks.samples(512)
    np.savez("data.npz", x=np.clip(40 * x + 128, 0, 255).astype(np.uint8), y=y)
    shown = finetune("shown.onnx", epochs=3, augment=augment, choose="last")
    assert shown.epochs[3]["holdout_loss"] < shown.epochs[0]["holdout_loss"]
    finetune("plain.onnx", epochs=3, choose="last")
    assert not np.array_equal(weights("shown.onnx")["conv1.weight"], weights("plain.onnx")["conv1.weight"])


@pytest.mark.skipif(os.name != "posix", reason="needs limits")
def test_a_full_disk_is_said_in_one_line(folder: Path) -> None:
    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    command = [PROGRAM, "finetune", "model.onnx", "--data", "data.npz", "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "File too large" in result.stderr
    assert not Path("model.finetuned.onnx").exists()


def test_half_precision_inputs_are_trained(folder: Path) -> None:
    model = onnx.load("model.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, "model.onnx")
    report = finetune(epochs=3)
    assert report.epochs[3]["holdout_loss"] < report.epochs[0]["holdout_loss"]


@pytest.mark.parametrize("form", ["initializer", "constant"])
def test_weights_inside_a_branch_stay_and_the_report_says_so(folder: Path, form: str) -> None:
    model = onnx.load("model.onnx")
    assert finetune(epochs=1, out="before.onnx").notes == []
    values = numpy_helper.from_array(np.float32([1, 2, 3, 4]), "inner")
    kept = [values] if form == "initializer" else []
    nodes = [] if kept else [helper.make_node("Constant", [], ["inner"], value=values)]
    nodes.append(helper.make_node("Mul", ["scores", "inner"], ["scaled"]))
    scores = model.graph.output[0].name
    nodes[-1].input[0] = scores
    made = helper.make_tensor_value_info("scaled", 1, None)
    body = helper.make_graph(nodes, "body", [], [made], kept)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "always"))
    model.graph.node.append(helper.make_node("If", ["always"], ["out"], then_branch=body, else_branch=body))
    model.graph.output[0].name = "out"
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    (note,) = finetune(epochs=1).notes
    assert note == "what lies inside If, Loop, Scan or a local function is not trained: 'inner'"
    assert onnx.load("trained.onnx").graph.node[-1] == model.graph.node[-1]


def test_weights_inside_a_local_function_stay_and_the_report_says_so(folder: Path) -> None:
    model = onnx.load("model.onnx")
    values = numpy_helper.from_array(np.float32([1, 2, 3, 4]), "inner")
    nodes = [helper.make_node("Constant", [], ["inner"], value=values), helper.make_node("Mul", ["x", "inner"], ["y"])]
    model.functions.append(helper.make_function("here", "Scale", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("here", 1))
    model.graph.node.append(helper.make_node("Scale", [model.graph.output[0].name], ["out"], domain="here"))
    model.graph.output[0].name = "out"
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    (note,) = finetune(epochs=1).notes
    assert note == "what lies inside If, Loop, Scan or a local function is not trained: 'inner'"
    assert onnx.load("trained.onnx").functions == model.functions


def test_weights_may_have_any_name(folder: Path) -> None:
    model = onnx.load("model.onnx")
    for tensor, name in zip(model.graph.initializer, ("keys", "training", "a.b", "a", "%2E", "weights"), strict=True):
        for node in model.graph.node:
            node.input[:] = [name if given == tensor.name else given for given in node.input]
        tensor.name = name
    onnx.save(model, "model.onnx")
    assert finetune(epochs=1).epochs[1]["loss"] > 0


def test_images_that_belong_together_move_together(folder: Path) -> None:
    d = Draft()
    both = d.add("Sub", "sub", "left", "right")
    shape = ("N", 1, 8, 8)
    flat = d.add("Flatten", "flatten", d.conv("conv", both, 1, 2))
    d.nodes.append(helper.make_node("MatMul", [flat, d.weight("head", 128, 3)], ["out"]))
    onnx.save(d.model([("left", shape), ("right", shape)], [("out", ("N", 3))]), "model.onnx")
    x, y = tasks.samples(256)
    np.savez("data.npz", left=x, right=x, y=y % 3)
    seen = []

    def step(self: trainer.Trainer, number: int, inputs: Any, labels: Any) -> torch.Tensor:
        seen.append(inputs)
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", step)
        finetune(epochs=1, augment="small", norms="keep")
    assert all(torch.equal(left, right) for left, right in seen)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_loss_that_one_process_alone_loses_ends_all_of_them(folder: Path) -> None:
    x, y = tasks.samples(512)
    x, y = np.tile(x, (5, 1, 1, 1)), np.tile(y, 5)
    x[np.random.default_rng(0).permutation(len(x))[1000]] = 3e38  # finite, and not for long
    np.savez("data.npz", x=x, y=y)
    result = together("--epochs", "1", "--batch", "16")
    assert result.returncode == 0, result.stderr
    assert "not finite" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", 0], "--epochs 0: give a number from 1"),
        (["--epochs", 1, "--optimizer", "sdg"], "--optimizer 'sdg' does not exist; choose one of sgd, adamw"),
        (["--epochs", 1, "--rate", 0], "--rate 0: give a number"),
        (["--epochs", 1, "--cutout", 4, "--augment", "none"], "leave --augment none out"),
        (["--epochs", 1, "--cutout", 100], "--cutout 100 leaves nothing of images of"),
        (["--epochs", 1, "--teacher", "none.onnx"], "none.onnx does not exist"),
        (["--epochs", 1, "--hints", 1], "--hints compares with a teacher; give --teacher"),
        (["--epochs", 1, "-o", "missing/x.onnx"], "the folder missing does not exist"),
        (["--epochs", 1, "--temperature", 4], "--temperature softens a teacher's answers; give --teacher"),
        (["--epochs", 1, *ONLY_TAUGHT, "--smoothing", 0.1], "--smoothing is of labels, and none are learnt from"),
        ([], "Missing option '--epochs'"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(folder: Path, options: list[Any], message: str) -> None:
    outcome = run("finetune", "model.onnx", "--data", "data.npz", *options)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]
    assert sorted(file.name for file in folder.iterdir()) == ["data.npz", "model.onnx"]


def test_no_labels_and_no_teacher_is_an_error(folder: Path) -> None:
    tasks.write(folder, labels=False)
    outcome = run("finetune", "model.onnx", "--data", "data.npz", "--epochs", 1)
    assert outcome.code == 2
    assert "has no labels; give some, or a --teacher" in outcome.errors[0]


def test_an_offset_of_labels_that_are_not_there_is_an_error(folder: Path) -> None:
    tasks.write(folder, labels=False)
    with pytest.raises(InputError, match=r"--label-offset is of labels, and --data data\.npz has none"):
        finetune(label_offset=1, teacher=Path("model.onnx"))


def wide() -> ModelProto:
    d = Draft()
    x = d.relu("relu", d.conv("conv", "image", 5, 8))
    return d.model([("image", ("N", 5, 8, 8))], [(d.head(x, 8), ("N", CLASSES))])


def test_a_hole_is_refused_where_no_image_would_get_one(folder: Path) -> None:
    onnx.save(wide(), "model.onnx")
    np.savez("data.npz", x=np.zeros((64, 5, 8, 8), np.float32), y=np.arange(64) % CLASSES)
    with pytest.raises(InputError, match="auto leaves images of 5 channels as they are"):
        finetune(augment="auto", cutout=3)
    finetune(augment="small", cutout=3, epochs=1)


@pytest.mark.parametrize(("count", "most"), [(254, 128), (48_000, 128), (1000, 300), (256, 256), (90, 89), (3, 2)])
def test_steps_are_equally_large_and_an_epoch_sees_nearly_every_sample(count: int, most: int) -> None:
    steps, size = trainer.equal_steps(count, most)
    assert most / 2 < size <= most
    assert steps * size <= count
    if count // -(-count // most) * 2 > most:  # equal steps need not be half as large as was asked for
        assert count - steps * size < steps
    assert trainer.equal_steps(count, most, is_fixed=True) == (count // most, most)


def test_an_epoch_sees_every_sample_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.write(folder, count=290)
    seen, before = [], trainer.Trainer._shown

    def shown(self: trainer.Trainer, inputs: Any, generator: Any) -> Any:
        seen.extend(x.tobytes() for x in inputs[0].numpy())
        return before(self, inputs, generator)

    monkeypatch.setattr(trainer.Trainer, "_shown", shown)
    report = finetune(epochs=1, batch=128)
    assert len(seen) == len(set(seen)) == report.data["trained"] == 254


@pytest.mark.parametrize("name", ["best.pt", "log.jsonl"])
def test_files_of_others_are_not_overwritten(folder: Path, name: str) -> None:
    Path("mine").mkdir()
    (folder / "mine" / name).write_bytes(b"of another program")
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"{name} is of no run, and would be overwritten; give another --run"):
            finetune(run=Path("mine"), resume=resume, epochs=1)
    assert (folder / "mine" / name).read_bytes() == b"of another program"
    finetune(run=Path("mine"), force=True, epochs=1)


def test_a_run_that_was_killed_before_its_first_epoch_may_start_again(folder: Path) -> None:
    finetune(run=Path("kept"), epochs=1)
    for name in ("last.pt", "log.jsonl"):
        (folder / "kept" / name).unlink()
    finetune("again.onnx", run=Path("kept"), epochs=1)


@pytest.mark.parametrize(
    ("error", "asked", "text"),
    [
        (MemoryError(), {}, "not enough memory to train on 64 samples at once; give a smaller --batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), {}, "give a smaller --batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), {}, "give a smaller --batch"),
        (exc.TorchDynamoException("no compiler\nand more"), {"compiled": True}, r"not work here \(no compiler\)"),
    ],
    ids=str,
)
def test_what_pytorch_cannot_do_here_is_said_with_what_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, asked: dict[str, Any], text: str
) -> None:
    def fail(self: trainer.Trainer, resume: bool = False) -> None:
        raise error

    monkeypatch.setattr(trainer.Trainer, "run", fail)
    monkeypatch.setattr("onnxprune.training.lesson.check_agreement", lambda *given: None)
    with pytest.raises(InputError, match=text):
        finetune(**asked)


def test_a_defect_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: trainer.Trainer, resume: bool = False) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(trainer.Trainer, "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        finetune()


def test_the_report_tells_the_rate_that_was_chosen(folder: Path) -> None:
    for norms, rate in (("insert", 0.05), ("keep", 0.005)):
        assert finetune(f"{norms}.onnx", norms=norms, epochs=1).settings["rate"] == rate


def test_the_command_shows_epochs_and_what_they_brought(folder: Path) -> None:
    outcome = run("finetune", "model.onnx", "--data", "data.npz", "--epochs", 2, "--batch", 64, "--augment", "none")
    assert outcome.code == 0, outcome.err
    assert "epoch 2 of 2: loss" in outcome.out
    assert "top-1" in outcome.out
    assert Path("model.finetuned.onnx").exists()
    rows = [json.loads(line) for line in Path("model.finetuned.run", checkpoint.LOG).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]


LONG = ["finetune", "model.onnx", "--data", "data.npz", "--epochs", "4000", "--batch", "64", "--augment", "none"]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs signals")
def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(folder: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, *LONG],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background is started with the signal ignored, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not Path("model.finetuned.run", checkpoint.LAST).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "error: interrupted; finished epochs are kept" in err
    assert f"onnxprune {' '.join(LONG)} --resume" in err
    assert "Traceback" not in err
    assert not Path("model.finetuned.onnx").exists()
    assert Path("model.finetuned.run", checkpoint.LAST).exists()


COMMAND = [
    "finetune",
    "model.onnx",
    "--data",
    "data.npz",
    "--augment",
    "none",
    "--norms",
    "keep",
    "--precision",
    "fp32",
]


def together(*options: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", "--no-python", "--", str(PROGRAM), *COMMAND, "-o", "two.onnx", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_train_one_model_together(folder: Path) -> None:
    result = together("--epochs", "3", "--batch", "64", "--ema", "0.9", "--run", "kept")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote two.onnx") == 1
    assert run(*COMMAND, "--epochs", 3, "--batch", 64, "--ema", 0.9, "-o", "one.onnx").code == 0
    one, two = weights("one.onnx"), weights("two.onnx")
    for name in one:  # the same samples a step, their gradients averaged
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_no_process_draws_what_another_does_in_any_epoch() -> None:
    seeds = {trainer.seed_of(seed, epoch, rank) for seed in range(3) for epoch in range(20) for rank in range(8)}
    assert len(seeds) == 3 * 20 * 8


def test_two_processes_train_with_norms(folder: Path) -> None:
    result = together("--epochs", "4", "--batch", "64", "--norms", "insert")
    assert result.returncode == 0, result.stderr
    assert accuracy("two.onnx") > 0.8


def test_the_last_epoch_is_written_where_it_is_asked_for_even_from_a_run_that_has_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(tasks.teacher(), "model.onnx")
    hurting = {"norms": "keep", "rate": 0.3, "weight_decay": 1.0, "epochs": 2}  # which leaves hardly any weights
    best = finetune("best.onnx", run=Path("run"), **hurting)
    assert best.chosen_epoch == 0
    assert any("--choose last" in note for note in best.notes)
    ours = weights("best.onnx")
    assert all(np.array_equal(values, ours[name]) for name, values in weights("model.onnx").items())
    monkeypatch.setattr(trainer.Trainer, "_epoch", lambda *_: pytest.fail("trained again"))
    last = finetune("last.onnx", run=Path("run"), resume=True, choose="last", **hurting)
    assert last.chosen_epoch == 2
    assert last.notes == []
    assert any(not np.array_equal(values, ours[name]) for name, values in weights("last.onnx").items())
    assert last.after.top1 == pytest.approx(last.epochs[2]["accuracy"])


@pytest.mark.parametrize(("choose", "spoilt"), [("best", 2), ("last", 2), ("last", 1)])
def test_weights_that_are_no_numbers_after_an_epoch_are_never_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, choose: str, spoilt: int
) -> None:
    once = trainer.Trainer._epoch

    def epoch(self: trainer.Trainer, number: int) -> float:
        loss = once(self, number)
        if number == spoilt:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return loss

    monkeypatch.setattr(trainer.Trainer, "_epoch", epoch)
    report = finetune(choose=choose, rate=0.05)
    assert report.chosen_epoch == spoilt - 1
    assert any(f"not finite after epoch {spoilt}" in note for note in report.notes)
    assert all(np.isfinite(values).all() for values in weights("trained.onnx").values())


def test_where_no_epoch_is_better_the_weights_are_as_they_were_to_the_letter(folder: Path) -> None:
    finetune("model.onnx.trained", epochs=6, rate=0.05)
    os.replace("model.onnx.trained", "model.onnx")
    report = finetune(rate=100.0, clip=0.0)
    assert report.chosen_epoch == 0
    assert onnx.load("trained.onnx") == onnx.load("model.onnx")


def test_two_runs_do_not_share_a_folder(folder: Path) -> None:
    with take(Path("trained.run/.lock")), pytest.raises(InputError, match=r"another run is at work in trained\.run"):
        finetune(epochs=1)
    finetune(epochs=1)
    assert not Path("trained.run/.lock").exists()


def test_weights_beside_the_file_are_found_wherever_the_teacher_lies(folder: Path) -> None:
    for name in ("old", "new"):
        Path(name).mkdir()
    onnx.save(tasks.teacher(), "old/teacher.onnx")
    onnx.save(tasks.net(), "new/model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    settings = FinetuneSettings(**{**QUICK, "epochs": 6})
    report = onnxprune.finetune("new/model.onnx", "trained.onnx", settings, data="data.npz", teacher="old/teacher.onnx")
    assert report.before.agreement is not None
    assert report.after.agreement is not None
    assert report.after.agreement > report.before.agreement
    assert accuracy("trained.onnx") == pytest.approx(report.after.agreement, abs=0.1)


def with_norm(statistics: str = "") -> ModelProto:
    """The net with a BatchNormalization of its own, whose statistics may go by another name first."""
    d = Draft(0)
    mean, variance = d.store("mean", np.full(8, 0.1)), d.store("variance", np.full(8, 0.5))
    if statistics:
        mean, variance = (d.add("Identity", f"{statistics}_{name}", name) for name in (mean, variance))
    x = d.conv("conv", "image", 1, 8)
    scale, shift = d.store("scale", np.ones(8)), d.store("shift", np.zeros(8))
    x = d.relu("relu", d.add("BatchNormalization", "norm", x, scale, shift, mean, variance))
    x = d.add("Flatten", "flatten", d.add("AveragePool", "pool", x, kernel_shape=[4, 4], strides=[4, 4]))
    scores = d.add("Gemm", "head", x, d.weight("head.weight", 4, 32), d.store("head.bias", np.zeros(4)), transB=1)
    return d.model([("image", ("N", 1, tasks.SIDE, tasks.SIDE))], [(scores, ("N", 4))], 17)


@pytest.mark.parametrize("batch", [1, 64])
def test_one_sample_is_normalised_as_in_use_and_a_batch_by_itself(folder: Path, batch: int) -> None:
    onnx.save(with_norm(), "model.onnx")
    x, y = tasks.samples(200)
    np.savez("data.npz", x=x, y=y)
    finetune(epochs=2, batch=batch, choose="last")
    before, after = weights("model.onnx"), weights("trained.onnx")
    assert not np.array_equal(before["conv.weight"], after["conv.weight"])
    for name in ("mean", "variance"):
        assert np.array_equal(before[name], after[name]) == (batch == 1)


def test_statistics_that_go_by_another_name_are_followed(folder: Path) -> None:
    onnx.save(with_norm("also"), "model.onnx")
    finetune(epochs=2, choose="last")
    before, after = weights("model.onnx"), weights("trained.onnx")
    assert not any(np.array_equal(before[name], after[name]) for name in ("mean", "variance", "scale"))


def test_a_mask_of_infinities_stays_and_the_rest_is_trained(folder: Path) -> None:
    model = tasks.net()
    mask = np.where(np.eye(4), 0, -np.inf).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    model.graph.node.append(helper.make_node("Softmax", ["mask"], ["rows"], axis=1))
    model.graph.node.append(helper.make_node("MatMul", [model.graph.output[0].name, "rows"], ["masked"]))
    model.graph.output[0].name = "masked"
    onnx.save(model, "model.onnx")
    report = finetune(epochs=2, choose="last")
    assert report.chosen_epoch == 2
    assert np.array_equal(weights("trained.onnx")["mask"], mask)
    assert not np.array_equal(weights("trained.onnx")["head.weight"], weights("model.onnx")["head.weight"])


def test_what_is_held_out_runs_in_no_larger_batches_than_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, once = list[int](), trainer.Trainer._answers

    def answers(self: trainer.Trainer, model: Any, inputs: Any) -> Any:
        sizes.append(len(inputs[0]))
        return once(self, model, inputs)

    monkeypatch.setattr(trainer.Trainer, "_answers", answers)
    finetune(epochs=1, batch=16)
    assert max(sizes) == 16


def test_a_model_of_whole_numbers_is_refused_and_leaves_no_folder(folder: Path) -> None:
    model = onnx.load("model.onnx")
    scores = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [scores], ["best"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("best", onnx.TensorProto.INT64, ["N"]))
    onnx.save(model, "model.onnx")
    with pytest.raises(InputError, match="whole numbers only"):
        finetune()
    assert not Path("trained.run").exists()


def teacher_of_other_inputs(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "picture"


def teacher_of_four_samples(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4


@pytest.mark.parametrize(
    ("change", "text"),
    [(teacher_of_other_inputs, "the teacher takes picture"), (teacher_of_four_samples, "takes samples by 4")],
)
def test_a_teacher_that_cannot_be_asked_is_named_as_such(folder: Path, change: Any, text: str) -> None:
    model = tasks.teacher()
    change(model)
    onnx.save(model, "teacher.onnx")
    with pytest.raises(InputError, match=f"teacher.*{text}|{text}"):
        finetune(teacher=Path("teacher.onnx"))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"teacher_share": 1.0}, "--teacher-share divides the loss with a teacher"),
        ({"data": "bare.npz", "teacher": Path("model.onnx"), "teacher_share": 0.0}, "leaves nothing to learn"),
    ],
    ids=str,
)
def test_a_share_that_shares_nothing_is_refused(folder: Path, asked: dict[str, Any], text: str) -> None:
    np.savez("bare.npz", x=tasks.samples(64)[0])
    with pytest.raises(InputError, match=text):
        finetune(**asked)

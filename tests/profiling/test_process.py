"""A model in a process of its own, and what that process tells of its memory."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from cli_nets import IMAGE, convs, write
from onnx import ModelProto, TensorProto, helper

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.profiling import child, gpu, load, machine, memory
from onnxprune.profiling.process import Subject, write_feed

MEGABYTE = 1_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


def started(folder: Path, model: ModelProto, feed: dict[str, Any], **options: Any) -> Subject:
    file = write(model, folder / "model.onnx")
    write_feed(folder / "feed.npz", feed)
    return Subject(file, folder / "feed.npz", **{"threads": 1, "provider": runtime.CPU, **options})


def image(batch: int = 1) -> dict[str, Any]:
    return {"image": np.zeros((batch, *IMAGE), np.float32)}


def test_a_process_runs_as_often_as_it_is_told_and_times_each_run(tmp_path: Path) -> None:
    with started(tmp_path, convs(), image()) as subject:
        times = subject.run(4)
    assert len(times) == 4
    assert all(time > 0 for time in times)


@pytest.mark.parametrize("name", ["file", "names", "allow_pickle", "arr_0", "a/b é"])
def test_inputs_may_have_any_name(tmp_path: Path, name: str) -> None:
    model = convs()
    model.graph.input[0].name = name
    for node in model.graph.node:
        node.input[:] = [name if given == "image" else given for given in node.input]
    with started(tmp_path, model, {name: image()["image"]}) as subject:
        assert len(subject.run(1)) == 1


def test_nothing_that_lies_in_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "random", "onnxruntime"):
        Path(f"{name}.py").write_text("raise SystemExit('taken over')")
    with started(tmp_path, convs(), image()) as subject:
        assert len(subject.run(1)) == 1


def test_a_process_that_was_killed_is_an_error_that_names_the_model(tmp_path: Path) -> None:
    with started(tmp_path, convs(), image()) as subject:
        os.kill(subject._process.pid, signal.SIGKILL)
        with pytest.raises(InputError, match=r"ran model\.onnx ended, most likely for want of memory"):
            subject.run(1)


def test_a_model_that_does_not_run_is_an_error_and_leaves_no_process(tmp_path: Path) -> None:
    with (
        started(tmp_path, convs(), {"image": np.zeros((1, 5, 12, 12), np.float32)}) as subject,
        pytest.raises(InputError, match=r"model\.onnx: onnxruntime cannot run the model"),
    ):
        subject.run(1)
    assert subject._process.returncode is not None


def test_a_provider_that_cannot_load_says_what_is_missing(tmp_path: Path) -> None:
    import onnxruntime

    name = "CUDAExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    if gpu.described():
        pytest.skip("CUDA works here")
    with pytest.raises(InputError, match=r"CUDAExecutionProvider (cannot load: lib\S+ is missing|finds no device)"):
        started(tmp_path, convs(), image(), provider=name)


def test_a_provider_that_is_not_built_in_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no NoSuchProvider; it has .*CPUExecutionProvider"):
        started(tmp_path, convs(), image(), provider="NoSuchProvider")


def test_a_provider_that_onnxruntime_drops_without_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    both = ["XnnpackExecutionProvider", runtime.CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    whole = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers, **more: whole(*args, providers=both[1:])
    )
    with pytest.raises(InputError, match="XnnpackExecutionProvider finds no device"):
        runtime.Session(convs(), provider="XnnpackExecutionProvider")


def test_bound_inputs_give_the_same_answers(tmp_path: Path) -> None:
    model = convs()
    x = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)
    session = runtime.Session(model, threads=1)
    session.bind({"image": x}, "cpu")()
    with pytest.raises(InputError, match="cannot bind"):
        session.bind({"no such input": x}, "cpu")
    with started(tmp_path, model, {"image": x}, bind=True) as subject:
        assert len(subject.run(2)) == 2


@pytest.mark.parametrize("level", runtime.LEVELS)
def test_every_level_of_optimisation_gives_the_same_answers(level: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)
    (expected,) = runtime.evaluate(convs(), {"image": x})
    (found,) = runtime.Session(convs(), threads=1, optimize=level).run({"image": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ---- memory


@linux
def test_memory_that_was_given_back_shows_in_the_peak_alone() -> None:
    assert memory.forget_peak()
    before = memory.held()
    assert before is not None
    block = np.ones(60 * MEGABYTE // 8)
    del block
    held, peak = memory.held(), memory.peak()
    assert held is not None
    assert peak is not None
    assert peak - before > 50 * MEGABYTE
    assert held - before < 10 * MEGABYTE
    assert memory.forget_peak()
    assert (memory.peak() or 0) < peak - 40 * MEGABYTE


def large(size: int) -> ModelProto:
    """One product with a stored matrix of so many bytes."""
    width = round((size / 4) ** 0.5)
    weight = helper.make_tensor("w", TensorProto.FLOAT, (width, width), np.ones(width * width, np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, width))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, width))],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@linux
def test_the_weights_of_a_model_show_in_what_it_holds(tmp_path: Path) -> None:
    size = 80 * MEGABYTE
    model = large(size)
    width = model.graph.initializer[0].dims[0]
    with started(tmp_path, model, {"x": np.zeros((1, width), np.float32)}) as subject:
        used = subject.use(2)
        loaded = subject.loaded
    assert size <= used["held"] - loaded["before"] <= 3 * size
    assert loaded["load_peak"] >= loaded["loaded"] >= loaded["before"] + size


def test_elsewhere_memory_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "here")
    assert memory.held() is memory.peak() is None
    assert not memory.forget_peak()


# ---- the other side of the line, in this process


@linux
def test_time_that_others_had_is_counted_while_there_are_more_threads_than_processors() -> None:
    began = load.waited()
    rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            pass
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert load.waited() - began > 50  # ms


@pytest.mark.parametrize("content", [None, "", "12", "a b c"])
def test_where_nothing_tells_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    monkeypatch.setattr(load, "SCHEDULER", tmp_path / "schedstat")
    if content is not None:
        (tmp_path / "schedstat").write_text(content)
    assert load.waited() == 0


@pytest.mark.parametrize(("threads", "waits"), [(1, 0), (2, 1), (None, 1)])
def test_a_turn_begins_when_the_threads_of_other_models_sleep(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, waits: int
) -> None:
    asleep: list[float] = []
    monkeypatch.setattr(runtime.time, "sleep", asleep.append)
    session = runtime.Session(convs(), threads=threads)
    assert len(runtime.warm_runs(session, image(), 3)) == 3
    assert asleep == waits * [runtime.SPIN]


def test_commands_are_answered_line_by_line_errors_too(tmp_path: Path) -> None:
    file = write(convs(), tmp_path / "model.onnx")
    write_feed(tmp_path / "feed.npz", image())
    given = {"model": str(file), "feed": str(tmp_path / "feed.npz"), "bind": False, "threads": 1}
    asked = [{"do": "load", **given, "provider": "Nix"}, {"do": "load", **given}, {"do": "run", "count": 3}]
    answers = io.StringIO()
    child.serve(io.StringIO("".join(json.dumps(line) + "\n" for line in asked)), answers)
    wrong, loaded, ran = map(json.loads, answers.getvalue().splitlines())
    assert "has no Nix" in wrong["error"]
    assert loaded["seconds"] > 0
    assert len(ran["ms"]) == 3
    assert 0 <= ran["waited"] < 10_000


# ---- a driver that is made up


def driver(ends: list[str], processes: list[SimpleNamespace]) -> SimpleNamespace:
    """Make what pynvml would be on a machine with one GPU."""
    return SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: ends.append("ended"),
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda device: "Made-up GPU",
        nvmlSystemGetDriverVersion=lambda: "1.2",
        nvmlDeviceGetClockInfo=lambda device, kind: 1500,
        nvmlDeviceGetComputeRunningProcesses=lambda device: processes,
    )


def test_memory_on_a_gpu_is_that_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in ((1, 7), (os.getpid(), 5))]
    monkeypatch.setitem(sys.modules, "pynvml", driver(ends, processes))
    assert gpu.held() == 5
    processes.pop()
    assert gpu.held() == 0
    assert len(ends) == 2
    assert machine.described()["gpu"] == "Made-up GPU"


def test_what_a_driver_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> NoReturn:
        raise RuntimeError("Not Supported")

    ends: list[str] = []
    made = driver(ends, [])
    made.nvmlDeviceGetClockInfo = made.nvmlDeviceGetComputeRunningProcesses = unknown
    monkeypatch.setitem(sys.modules, "pynvml", made)
    assert gpu.held() is None
    assert gpu.described() == {"gpu": "Made-up GPU", "driver": "1.2"}
    made.nvmlDeviceGetHandleByIndex = unknown
    assert gpu.described() == {}
    assert len(ends) == 3


@pytest.mark.parametrize(("place", "expected"), [("cuda", None), ("cpu", 0)])
def test_a_model_on_a_gpu_whose_driver_does_not_know_this_process_holds_nobody_knows_what(
    monkeypatch: pytest.MonkeyPatch, place: str, expected: int | None
) -> None:
    monkeypatch.setattr(gpu, "held", lambda: 0)
    monkeypatch.setattr(child.Child, "run", lambda self, count: {})
    one = child.Child()
    one._place = place
    assert one.use(1)["device_held"] == expected


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.held() is None
    assert gpu.described() == {}
    about = machine.described()
    assert about["cpu"]
    assert about["cores"] == os.cpu_count()

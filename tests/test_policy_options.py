"""The options of compress that belong to the policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_nets import IMAGE, convs, residual, run, write
from onnx import numpy_helper

from onnxprune import policies

OPTIONS = ("--flops", 0.4, "--data", "x.npy", "--align", 1, "--search")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for build in (convs, residual):
        write(build(), tmp_path / f"{build.__name__}.onnx")
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, *IMAGE)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("search", ["gnn_rl", "evolution", "amc"])
def test_every_search_compresses_a_model_and_says_how_many_plans_it_judged(folder: Path, search: str) -> None:
    outcome = run("compress", "residual.onnx", *OPTIONS, search, "--budget", 14, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    report = json.loads(Path("small.report.json").read_text())
    judged = report["search"]["judged"]
    assert 1 <= judged.get("quick", 0) + judged.get("probe", 0) <= 14
    assert report["target"]["macs"]["reached"] <= report["target"]["macs"]["limit"]


def test_a_model_of_which_more_is_zero_than_is_to_go_is_no_problem(folder: Path) -> None:
    model = convs((20, 28, 36))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("conv"):
            values = numpy_helper.to_array(tensor).copy()
            values[::4] = 0  # as tools leave channels that they only mask
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    write(model, Path("masked.onnx"))
    outcome = run("compress", "masked.onnx", "--flops", 0.95, "--search", "gnn_rl", "--budget", 12, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("small.report.json").read_text())["score"] == pytest.approx(1.0)


def test_the_published_preset_and_a_policy_of_other_networks_give_plans_that_meet_the_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "THINKING", 1)  # a good one is not needed here
    made = run("policy", "train", "convs.onnx", "--data", "x.npy", "-o", "p.safetensors", "--rounds", 1, "--flops", 0.5)
    assert made.code == 0, made.err
    for number, more in enumerate((["--policy-preset", "paper"], ["--policy", "p.safetensors"])):
        out = f"{number}.onnx"
        outcome = run("compress", "residual.onnx", *OPTIONS[:-1], "--budget", 10, "-o", out, *more)
        assert outcome.code == 0, outcome.err
        report = json.loads(Path(f"{number}.report.json").read_text())
        assert report["target"]["macs"]["reached"] <= report["target"]["macs"]["limit"]
        assert report["settings"]["search"] == "gnn_rl"  # what else would have a policy


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["greedy", "--policy", "p.safetensors"], "--search greedy has no policy"),
        (["random", "--policy-preset", "paper"], "--search random has no policy"),
        (["gnn_rl", "--policy", "p.safetensors"], "no such file"),
        (["gnn_rl", "--policy-preset", "best"], "choose one of default, paper"),
        (["gnn_rl", "--policy", "x.npy", "--policy-preset", "paper"], "leave --policy out"),
        (["gnn_rl", "--policy", "x.npy"], "cannot be read"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_line(folder: Path, options: list[str], text: str) -> None:
    outcome = run("compress", "residual.onnx", *OPTIONS, *options)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert text in outcome.errors[0]

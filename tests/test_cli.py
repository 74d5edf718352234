"""The program as users call it: what each command prints and writes, and the exit code it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_nets import CLASSES, IMAGE, Draft, Outcome, convs, dense, files, residual, run, sizes, write, write_outside
from nets import NETS

from onnxprune import models as zoo
from onnxprune import pipeline
from onnxprune.cli import main as program
from onnxprune.errors import VerifyError
from onnxprune.evaluation import Scores

FIXED = ("--align", 4)  # widths that no measured time has a say in

COMMANDS = {
    "apply": [],
    "compress": [],
    "evaluate": [],
    "finetune": [],
    "inspect": [],
    "models": [],
    "models list": [],
    "models export": [],
    "models train": [],
    "policy": [],
    "policy train": [],
    "policy show": [],
    "profile": [],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own that holds model.onnx."""
    monkeypatch.chdir(tmp_path)
    write(convs(), tmp_path / "model.onnx")
    return tmp_path


@pytest.fixture
def labelled(folder: Path) -> Path:
    """Add data.npz: images, and the labels that the model itself gives them, every fifth one wrong."""
    x = np.random.default_rng(1).standard_normal((60, *IMAGE)).astype(np.float32)
    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    y = session.run(None, {"image": x})[0].argmax(axis=1)
    y[::5] = (y[::5] + 1) % CLASSES
    np.savez("data.npz", x=x, y=y)
    return folder


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def passed(*arguments: object) -> Outcome:
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    assert not outcome.errors
    return outcome


def failed(code: int, *arguments: object) -> str:
    """Run the program, make sure that it fails with one clear line, and return that line."""
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err or outcome.out
    assert len(outcome.errors) == 1
    assert outcome.err.splitlines()[-1] == outcome.errors[0]
    assert "Traceback" not in outcome.err + outcome.out
    return outcome.errors[0]


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise error

    return raise_it


# ---- inspect


def test_inspect_shows_costs_groups_and_what_is_frozen_and_why(folder: Path) -> None:
    before = files(folder)
    out = passed("inspect", "model.onnx").out
    assert "model.onnx: image 1x3x12x12" in out
    assert all(name in out for name in ("macs", "params", "file_bytes", "conv1", "conv2", "conv3"))
    assert "model output 'logits'" in out
    assert files(folder) == before


def test_json_takes_the_place_of_json_alone(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(Path("model.onnx").read_bytes())
    before = files(folder)
    message = failed(2, "inspect", "model.onnx", "--json", "other.onnx")
    assert "--json other.onnx would overwrite a file that holds no JSON" in message
    assert files(folder) == before
    for _ in range(2):
        passed("inspect", "model.onnx", "--json", "found.json")
    assert sorted(files(folder)) == ["found.json", "model.onnx", "other.onnx"]


@pytest.mark.parametrize(
    ("words", "json_file"),
    [
        (["compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx"], "small.onnx"),
        (["compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx"], "./small.plan.json"),
        (["compress", "model.onnx", "--flops", 0.5], "model.pruned.report.json"),
        (["compress", "model.onnx", "--flops", 0.5, "--data", "x.npy", "--preprocess", "pre.json"], "pre.json"),
        (["apply", "model.onnx", "plan.json", "-o", "small.onnx"], "plan.json"),
        (["apply", "model.onnx", "plan.json", "-o", "small.onnx"], "link.json"),
        (["finetune", "model.onnx", "--epochs", 1, "--data", "x.npy"], "model.finetuned.onnx"),
        (["evaluate", "model.onnx", "--data", "x.npy", "--preprocess", "pre.json"], "pre.json"),
        (["inspect", "model.onnx", "--graph", "net.html"], "net.html"),
        (["models", "export", "mobilenet_v1_cifar"], "mobilenet_v1_cifar.onnx"),
        (["policy", "train", "model.onnx", "--data", "x.npy", "-o", "new.safetensors"], "new.safetensors"),
        (["profile", "model.onnx", "plan.json"], "plan.json"),
    ],
    ids=str,
)
def test_json_takes_the_place_of_nothing_else_that_is_read_or_written(
    folder: Path, words: list[Any], json_file: str
) -> None:
    for name in ("x.npy", "plan.json", "pre.json"):
        (folder / name).write_text("{}")
    os.symlink("plan.json", folder / "link.json")
    before = files(folder)
    assert "would overwrite another file of this command" in failed(2, *words, "--json", json_file)
    assert files(folder) == before


@pytest.mark.parametrize("target", [["--latency", 5], ["--latency", "5x"], ["--flops", 40], ["--memory", "0MB"]])
def test_a_target_that_is_none_is_refused_before_the_model_is_read(folder: Path, target: list[Any]) -> None:
    assert target[0] in failed(2, "compress", "absent.onnx", *target)


def test_a_counted_target_out_of_reach_is_told_before_anything_is_measured(folder: Path) -> None:
    outcome = run("compress", "model.onnx", "--flops", 0.0001, "--latency", 0.5)
    assert outcome.code == 3
    assert "--flops 0.0001 cannot be reached" in outcome.errors[0]
    assert "measure" not in outcome.err


@pytest.mark.parametrize(
    "option", [["--preprocess", "cifar10"], ["--label-offset", 1], ["--repair", "bn"], ["--preprocess", "absent.json"]]
)
def test_what_says_how_samples_are_used_needs_some(folder: Path, option: list[Any]) -> None:
    assert "give --data, or leave" in failed(2, "compress", "model.onnx", "--flops", 0.5, *option)


def test_inspect_json_holds_what_counting_by_hand_gives(folder: Path) -> None:
    passed("inspect", "model.onnx", "--json", "found.json")
    found = read("found.json")
    pixels = 12 * 12
    assert found["format"] == "onnxprune.inspect/1"
    assert found["costs"]["macs"] == pixels * 9 * (3 * 16 + 16 * 24 + 24 * 32) + 32 * CLASSES
    assert found["costs"]["params"] == sum(int(np.prod(shape)) for shape in sizes(convs()).values())
    assert [(g["name"], g["width"]) for g in found["groups"]] == [("conv1", 16), ("conv2", 24), ("conv3", 32)]
    assert [(part["node"], part["inputs_shrink"]) for part in found["frozen"]] == [("head", True)]
    assert found["prunable"] == 1.0
    assert 0 < found["lowest"]["macs"] < 0.2 * found["costs"]["macs"]


def test_inspect_says_which_input_sizes_were_assumed(folder: Path) -> None:
    write(convs(image=(3, "H", "W")), folder / "free.onnx")
    assert "image 1x3x224x224" in passed("inspect", "free.onnx").out
    out = passed("inspect", "free.onnx", "--shape", "image=2,3,20,24").out
    assert "image 2x3x20x24" in out
    assert "image 2x3x20x24" in passed("inspect", "free.onnx", "--shape", "image=2x3x20x24").out


def test_inspect_prints_names_that_look_like_markup_as_they_are(folder: Path) -> None:
    model = convs()
    model.graph.node[0].name = "[/bold][red]conv :car:"
    write(model, folder / "odd.onnx")
    assert "[/bold][red]conv :car:" in passed("inspect", "odd.onnx").out
    assert "[/bold][red]conv :car:" in passed("compress", "odd.onnx", "--flops", 0.5, *FIXED).out


# ---- compress


def test_compress_first_line_says_the_target_in_words_with_both_numbers(folder: Path) -> None:
    passed("inspect", "model.onnx", "--json", "found.json")
    macs = read("found.json")["costs"]["macs"]
    first = passed("compress", "model.onnx", "--flops", "0.3", *FIXED).out.splitlines()[0]
    assert first.startswith("Keep at most 30.0% of the FLOPs")
    assert f"{int(macs * 0.3):,}"[:-1] in first
    assert f"of {macs:,}" in first


def test_compress_writes_model_plan_and_report(folder: Path) -> None:
    original = (folder / "model.onnx").read_bytes()
    out = passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED).out
    assert sorted(files(folder)) == ["model.onnx", "small.onnx", "small.plan.json", "small.report.json"]
    assert (folder / "model.onnx").read_bytes() == original
    assert "wrote small.onnx" in out
    onnx.checker.check_model(onnx.load("small.onnx"), full_check=True)

    plan, report = read("small.plan.json"), read("small.report.json")
    assert plan["format"] == "onnxprune.plan/1"
    assert plan["model_sha256"] == hashlib.sha256(original).hexdigest()
    assert plan["settings"]["targets"] == {"macs": "0.5"}
    assert report["format"] == "onnxprune.report/1"
    passed("inspect", "small.onnx", "--json", "found.json")
    measured = read("found.json")["costs"]
    assert {name: report["after"][name] for name in ("macs", "params")} == {n: measured[n] for n in ("macs", "params")}
    assert report["after"]["file_bytes"] == (folder / "small.onnx").stat().st_size
    assert report["before"]["file_bytes"] == len(original)
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["target"]["macs"] == {
        "asked": "0.5",
        "limit": 0.5 * report["before"]["macs"],
        "reached": report["after"]["macs"],
    }
    assert set(report["after"]["latency_ms"]) == {"median", "p10", "p90"}
    for side in (report["before"], report["after"]):  # one sample at a time
        assert side["per_second"] == pytest.approx(1e3 / side["latency_ms"]["median"], rel=1e-3)
    assert report["after"]["accuracy"] is None
    assert set(report["checks"]) == {"checker", "interface", "macs", "outputs"}
    assert {"onnx", "numpy", "python", "onnxprune"} <= set(report["versions"])
    assert {"load", "search", "cut and time", "verify"} <= set(report["seconds"])
    assert [part["node"] for part in report["frozen"]] == ["head"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_no_utf_8_is_written_down_and_read_again(folder: Path) -> None:
    name = os.fsdecode(b"bad\xff")
    Path("model.onnx").rename(f"{name}.onnx")
    np.save("x.npy", np.random.default_rng(0).standard_normal((60, *IMAGE)).astype(np.float32))
    target = ("--flops", 0.5, "--search", "uniform", "--data", "x.npy", *FIXED)
    words = ("compress", f"{name}.onnx", *target, "-o", f"{name}.small.onnx", "--run", f"{name}.run")
    assert run(*words, "--json", "told.json").code == 0
    assert run("apply", f"{name}.onnx", f"{name}.small.plan.json", "-o", "again.onnx").code == 0
    for file in (f"{name}.small.report.json", "told.json"):
        assert json.loads(Path(file).read_text())["model"] == f"{name}.onnx"
    assert "has finished" in run(*words[:2], *words[-2:], "--resume", "--force").err


def test_compress_plan_names_every_slice_that_was_cut(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    plan, before = read("small.plan.json"), convs()
    after = onnx.load("small.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in before.graph.initializer}
    for name, axes in plan["removed"].items():
        for axis, indices in axes.items():
            values[name] = np.delete(values[name], indices, int(axis))
    assert len(plan["removed"]) == 7
    for tensor in after.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), values[tensor.name])
    for group in plan["groups"]:
        gone = plan["removed"][f"{group['name']}.weight"]["0"]
        assert sorted(gone + group["kept"]) == list(range(group["width"]))


def test_compress_writes_model_dot_pruned_dot_onnx_in_the_working_directory_by_default(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "model.onnx").rename(folder / "elsewhere" / "net.v2.onnx")
    passed("compress", "elsewhere/net.v2.onnx", "--flops", 0.5, *FIXED)
    assert sorted(files(folder)) == [
        "elsewhere/net.v2.onnx",
        "net.v2.pruned.onnx",
        "net.v2.pruned.plan.json",
        "net.v2.pruned.report.json",
    ]


@pytest.mark.parametrize("taken", ["small.onnx", "small.plan.json", "small.report.json", "small.onnx.data"])
def test_compress_overwrites_an_existing_file_only_by_force(folder: Path, taken: str) -> None:
    (folder / taken).write_text("mine")
    before = files(folder)
    message = failed(2, "compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    assert taken in message
    assert "--force" in message
    assert files(folder) == before
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED, "--force")
    assert read("small.plan.json")["format"] == "onnxprune.plan/1"


def test_compress_keeps_weights_in_a_file_of_their_own_where_the_source_did(folder: Path) -> None:
    write_outside(convs(), folder / "wide.onnx")
    passed("compress", "wide.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "inside.onnx", *FIXED)
    assert (folder / "small.onnx.data").stat().st_size > 0
    inside, outside = (onnx.load(name) for name in ("inside.onnx", "small.onnx"))
    for one, other in zip(inside.graph.initializer, outside.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    total = sum((folder / name).stat().st_size for name in ("small.onnx", "small.onnx.data"))
    assert read("small.report.json")["after"]["file_bytes"] == total


def test_compress_refuses_to_overwrite_sizes_of_its_input_that_lie_outside(folder: Path) -> None:
    proto = convs()
    place = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Flatten")
    flatten = proto.graph.node[place]
    flatten.CopyFrom(onnx.helper.make_node("Reshape", [flatten.input[0], "shape"], flatten.output))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([-1, 32]), "shape"))
    onnx.save(proto, "wide.onnx", save_as_external_data=True, size_threshold=0, all_tensors_to_one_file=False)
    before = files(folder)
    message = failed(2, "compress", "wide.onnx", "--flops", 0.5, "-o", "shape", "--force")
    assert "shape holds the weights of the input model" in message
    assert files(folder) == before


def test_compress_refuses_to_overwrite_the_weights_of_its_input(folder: Path) -> None:
    write_outside(convs(), folder / "wide.onnx")
    (folder / "wide.onnx.data").rename(folder / "small.onnx.data")
    model = onnx.load("wide.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "small.onnx.data" if entry.key == "location" else entry.value
    write(model, folder / "wide.onnx")
    before = files(folder)
    message = failed(2, "compress", "wide.onnx", "--flops", 0.5, "-o", "small.onnx", "--force")
    assert "small.onnx.data holds the weights of the input model" in message
    assert files(folder) == before


@pytest.mark.parametrize("output", ["model.onnx", "../{folder}/model.onnx", "link.onnx"])
@pytest.mark.parametrize("command", ["compress", "apply"])
def test_an_output_equal_to_the_input_is_refused_even_by_force(folder: Path, command: str, output: str) -> None:
    os.symlink("model.onnx", folder / "link.onnx")
    (folder / "plan.json").write_text("{}")
    output = output.format(folder=folder.name)
    given = {"compress": ["--flops", 0.5], "apply": ["plan.json"]}[command]
    before = files(folder)
    assert "is the input model" in failed(2, command, "model.onnx", *given, "-o", output, "--force")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["compress", "model.onnx", "--flops", 0.5, "--data", "x.npy"], "x.npy"),
        (["compress", "model.onnx", "--flops", 0.5, "--data", "x.npy"], "model.x.npy"),
        (["finetune", "model.onnx", "--epochs", 1, "--data", "x.npy"], "x.npy"),
        (["finetune", "model.onnx", "--epochs", 1, "--data", "x.npy", "--teacher", "big.onnx"], "big.onnx"),
        (["apply", "model.onnx", "plan.json"], "plan.json"),
    ],
    ids=str,
)
def test_an_output_over_what_is_read_is_refused_even_by_force(folder: Path, words: list[Any], output: str) -> None:
    for name in ("x.npy", "big.onnx", "plan.json"):
        (folder / name).write_text("{}")
    os.link("x.npy", "model.x.npy")
    before = files(folder)
    assert "would overwrite" in failed(2, *words, "-o", output, "--force")
    assert files(folder) == before


@pytest.mark.parametrize("command", ["compress", "apply"])
def test_a_missing_output_folder_is_refused_before_any_work(folder: Path, command: str) -> None:
    (folder / "plan.json").write_text("{}")
    given = {"compress": ["--flops", 0.5], "apply": ["plan.json"]}[command]
    message = failed(2, command, "model.onnx", *given, "-o", "absent/small.onnx")
    assert "the folder absent does not exist" in message
    assert "is a folder" in failed(2, command, "model.onnx", *given, "-o", ".")


def test_dry_run_prints_the_plan_and_writes_nothing_even_where_a_result_lies(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, *FIXED)
    before = files(folder)
    out = passed("compress", "model.onnx", "--flops", 0.3, *FIXED, "--dry-run").out
    assert "nothing written" in out
    assert "conv2" in out
    assert files(folder) == before


def test_dry_run_foretells_what_the_real_run_does(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.4, *FIXED, "--dry-run", "--json", "dry.json")
    passed("compress", "model.onnx", "--flops", 0.4, *FIXED, "--json", "real.json")
    dry, real = read("dry.json"), read("real.json")
    assert dry["groups"] == real["groups"]
    assert dry["after"]["macs"] == real["after"]["macs"]
    assert dry["output"] is None


def test_keep_leaves_the_nodes_it_names_alone(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", "--keep", "conv1", "--keep", "hea?", *FIXED)
    before, after = sizes(convs()), sizes(onnx.load("small.onnx"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"conv2.weight", "conv2.bias", "conv3.weight"}
    assert after["conv3.weight"][0] == before["conv3.weight"][0]
    assert read("small.plan.json")["settings"]["keep"] == ["conv1", "hea?"]


def test_keep_with_a_pattern_that_matches_nothing_is_refused(folder: Path) -> None:
    for command in (["inspect"], ["compress", "--flops", 0.5]):
        assert "'convolution*' matches no node" in failed(2, *command, "model.onnx", "--keep", "convolution*")


def test_keep_of_everything_leaves_nothing_to_prune(folder: Path) -> None:
    assert "nothing to prune" in failed(2, "compress", "model.onnx", "--flops", 0.5, "--keep", "*")


def test_an_option_that_lets_more_go_is_named_where_a_target_is_out_of_reach(folder: Path) -> None:
    draft, hint = Draft(), "--approximate lets axes shrink"
    x = draft.add("MatMul", "first", "x", draft.weight("w", 16, 32))
    x = draft.add("LayerNormalization", "norm", x, draft.weight("scale", 32))
    draft.add("MatMul", "last", x, draft.weight("v", 32, 4))
    write(draft.model([("x", ("N", 16))], [("last.out", ("N", 4))]), Path("normed.onnx"))
    assert hint in failed(2, "compress", "normed.onnx", "--flops", 0.5)
    assert hint not in failed(3, "compress", "normed.onnx", "--flops", 0.001, "--approximate")
    assert hint not in failed(3, "compress", "model.onnx", "--flops", 0.001)
    passed("compress", "normed.onnx", "--flops", 0.5, "--approximate", *FIXED)


def test_min_keep_holds_for_every_group(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.45, "--min-keep", 12, *FIXED, "--json", "report.json")
    assert all(group["kept"] >= 12 for group in read("report.json")["groups"])
    passed("compress", "model.onnx", "--flops", 0.1, *FIXED, "--json", "report.json", "--force")
    assert any(group["kept"] < 12 for group in read("report.json")["groups"])


@pytest.mark.parametrize("align", [1, 3, 8])
def test_align_makes_every_width_a_multiple(folder: Path, align: int) -> None:
    passed("compress", "model.onnx", "--flops", 0.6, "--align", align, "--json", "report.json")
    groups = read("report.json")["groups"]
    assert all(g["kept"] % align == 0 or g["kept"] == g["width"] for g in groups)
    assert any(g["kept"] < g["width"] for g in groups)


def test_random_search_and_random_criterion_follow_the_seed(folder: Path) -> None:
    def kept(*options: object) -> Any:
        passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", "--force", *FIXED, *options)
        return [group["kept"] for group in read("small.plan.json")["groups"]]

    for options in (["--search", "random", "--budget", 1, "--align", 1], ["--criterion", "random"]):
        assert kept(*options, "--seed", 1) == kept(*options, "--seed", 1)
        assert kept(*options, "--seed", 1) != kept(*options, "--seed", 2)


@pytest.mark.parametrize("asked", ["0.5", "50%", ".5", "777.76k", "0.77776M", "777760"])
def test_flops_takes_a_fraction_percent_or_an_absolute_number(folder: Path, asked: str) -> None:
    passed("compress", "model.onnx", "--flops", asked, *FIXED, "--json", "report.json", "--dry-run")
    target = read("report.json")["target"]["macs"]
    assert target["limit"] == pytest.approx(777_760)
    assert 0.9 * target["limit"] < target["reached"] <= target["limit"]


@pytest.mark.parametrize(("flops", "params"), [("0.8", "0.3"), ("0.3", "0.8"), ("700k", "4000")])
def test_several_targets_all_hold(folder: Path, flops: str, params: str) -> None:
    passed("compress", "model.onnx", "--flops", flops, "--params", params, *FIXED, "-o", "small.onnx")
    targets = read("small.report.json")["target"]
    assert set(targets) == {"macs", "params"}
    assert all(target["reached"] <= target["limit"] for target in targets.values())
    passed("inspect", "small.onnx", "--json", "found.json")
    costs = read("found.json")["costs"]
    assert costs["macs"] <= targets["macs"]["limit"]
    assert costs["params"] <= targets["params"]["limit"]


def test_a_target_of_one_hundred_percent_changes_nothing(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 1, "-o", "same.onnx", *FIXED)
    assert (folder / "same.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_an_unreachable_target_ends_with_three_and_names_the_lowest_and_what_is_frozen(folder: Path) -> None:
    passed("inspect", "model.onnx", "--keep", "conv2", "--json", "found.json")
    (folder / "found.json").rename(folder / "found")
    found = json.loads((folder / "found").read_text())
    before = files(folder)
    message = failed(3, "compress", "model.onnx", "--flops", 0.05, "--keep", "conv2")
    share = found["lowest"]["macs"] / found["costs"]["macs"]
    assert "--flops 0.05 cannot be reached" in message
    assert f"{share:.3f} of the original ({found['lowest']['macs']:,} of {found['costs']['macs']:,})" in message
    assert "largest frozen parts: conv2" in message
    assert "kept as asked" in message
    assert files(folder) == before


NAMES = {"samples": "samples", "accuracy": "top1", "top5": "top5"}
"""What a stage of a report calls a score."""


def write_held_out(report: Any, arrays: Any) -> None:
    """Write held.npz: the samples that a report says its answers are for."""
    held = report["data"]["parts"]["holdout"]["indices"]
    np.savez("held.npz", **{name: values[held] for name, values in arrays.items()})


def test_compress_reports_the_accuracy_of_original_cut_and_repaired_on_samples_held_out(labelled: Path) -> None:
    out = passed("compress", "model.onnx", "--flops", 0.8, "--data", "data.npz", "-o", "small.onnx", *FIXED).out
    report = read("small.report.json")
    write_held_out(report, np.load("data.npz"))
    passed("apply", "model.onnx", "small.plan.json", "-o", "cut.onnx")
    assert [stage["name"] for stage in report["stages"]] == ["original", "cut", "repair"]
    for stage, file in zip(report["stages"], ("model.onnx", "cut.onnx", "small.onnx"), strict=True):
        passed("evaluate", file, "--data", "held.npz", "--reference", "model.onnx", "--json", "scores.json")
        scores = read("scores.json")
        assert all(stage[ours] == scores[its] for ours, its in NAMES.items())
        if file != "model.onnx":
            assert stage["agreement"] == scores["agreement"]
            assert (stage["kl"], stage["distance"]) == pytest.approx((scores["kl"], scores["distance"]), rel=1e-4)
        assert f"{stage['accuracy']:.2%}" in out
    assert report["before"]["accuracy"] == report["stages"][0]["accuracy"]
    assert report["after"]["accuracy"] == report["stages"][2]["accuracy"]
    lines = [line.strip() for line in out.splitlines()]
    table = lines[lines.index(f"Answers to {report['stages'][0]['samples']} samples held out") :]
    assert table[2].split() == ["model", "top-1", "top-5", "agreement", "KL,", "nats", "distance"]
    assert [line.split()[0] for line in table[4:7]] == ["original", "cut", "repaired"]


def test_compress_reports_agreement_where_there_are_no_labels(labelled: Path) -> None:
    np.save("x.npy", np.load("data.npz")["x"])
    out = passed("compress", "model.onnx", "--flops", 0.8, "--data", "x.npy", "-o", "small.onnx", *FIXED).out
    report = read("small.report.json")
    write_held_out(report, {"x": np.load("x.npy")})
    passed("evaluate", "small.onnx", "--data", "held.npz", "--reference", "model.onnx", "--json", "scores.json")
    assert report["stages"][0] == {"name": "original", "samples": read("scores.json")["samples"]}
    assert report["stages"][2]["agreement"] == read("scores.json")["agreement"]
    assert report["after"]["accuracy"] is None
    assert f"{report['stages'][2]['agreement']:.2%}" in out
    assert "top-1" not in out


def test_compress_says_which_samples_were_used_for_what(labelled: Path) -> None:
    out = passed("compress", "model.onnx", "--flops", 0.8, "--data", "data.npz", *FIXED, "-o", "small.onnx").out
    used = next(line for line in out.splitlines() if line.startswith("samples of data.npz: "))
    parts = read("small.report.json")["data"]["parts"]
    assert sum(len(part["indices"]) for part in parts.values()) == 60
    for name, words in (("calibration", "for statistics and repair"), ("search", "to choose"), ("holdout", "held out")):
        assert f"{len(parts[name]['indices'])} {words}" in used


def test_compress_works_on_a_zoo_network(folder: Path) -> None:
    zoo.export("cifar_resnet20", "resnet.onnx")
    passed("compress", "resnet.onnx", "--flops", 0.5, "-o", "small.onnx")
    report = read("small.report.json")
    assert 0.45 < report["after"]["macs"] / report["before"]["macs"] <= 0.5


# ---- apply


@pytest.mark.parametrize("outside", [False, True])
def test_apply_repeats_compress_bit_for_bit(folder: Path, outside: bool) -> None:
    (write_outside if outside else write)(residual(), folder / "net.onnx")
    passed("compress", "net.onnx", "--flops", 0.5, "-o", "small.onnx", "--search", "random", "--criterion", "random")
    (folder / "again").mkdir()
    out = passed("apply", "net.onnx", "small.plan.json", "-o", "again/small.onnx", "--json", "checks.json").out
    assert (folder / "again" / "small.onnx").read_bytes() == (folder / "small.onnx").read_bytes()
    assert (folder / "again" / "small.onnx.data").exists() == outside
    if outside:
        assert (folder / "again" / "small.onnx.data").read_bytes() == (folder / "small.onnx.data").read_bytes()
    assert "wrote again/small.onnx" in out
    assert read("checks.json")["format"] == "onnxprune.apply/1"
    assert set(read("checks.json")["checks"]) == {"checker", "interface", "macs", "outputs"}


def test_apply_minds_the_kept_nodes_and_shapes_of_the_run(folder: Path) -> None:
    write(convs(image=(3, "H", "W")), folder / "free.onnx")
    options = ["--keep", "conv2", "--shape", "image=1,3,16,16", *FIXED]
    passed("compress", "free.onnx", "--flops", 0.6, "-o", "small.onnx", *options)
    passed("apply", "free.onnx", "small.plan.json", "-o", "again.onnx")
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


def test_apply_refuses_a_model_the_plan_was_not_made_for(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    write(convs(seed=1), folder / "other.onnx")
    before = files(folder)
    message = failed(2, "apply", "other.onnx", "small.plan.json", "-o", "again.onnx")
    assert "small.plan.json was made for another file than other.onnx" in message
    assert files(folder) == before


def test_apply_overwrites_only_by_force(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    assert "--force" in failed(2, "apply", "model.onnx", "small.plan.json", "-o", "small.onnx")
    expected = (folder / "small.onnx").read_bytes()
    (folder / "small.onnx").write_bytes(b"old")
    (folder / "small.onnx.data").write_bytes(b"old")
    passed("apply", "model.onnx", "small.plan.json", "-o", "small.onnx", "--force")
    assert (folder / "small.onnx").read_bytes() == expected
    assert not (folder / "small.onnx.data").exists()


# ---- evaluate


def test_evaluate_prints_and_writes_accuracy(labelled: Path) -> None:
    out = passed("evaluate", "model.onnx", "--data", "data.npz", "--json", "scores.json").out
    assert "top1: 80.00%" in out
    assert read("scores.json") == {
        "format": "onnxprune.evaluate/1",
        "model": "model.onnx",
        "samples": 60,
        "top1": 0.8,
        "top5": read("scores.json")["top5"],
        "agreement": None,
        "kl": None,
        "distance": None,
        "others": None,
    }
    assert read("scores.json")["top5"] >= 0.8


def test_evaluate_measures_agreement_with_a_reference(labelled: Path) -> None:
    np.save("x.npy", np.load("data.npz")["x"])
    out = passed("evaluate", "model.onnx", "--data", "x.npy", "--reference", "model.onnx").out
    assert "agreement: 100.00%" in out
    assert "top1" not in out


def test_evaluate_tells_distances_as_numbers_and_writes_no_infinity(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Scores(samples=3, kl=math.inf, distance=0.5, others=0.25, agreement=1.0)
    monkeypatch.setattr("onnxprune.pipeline.evaluate", lambda *_, **__: found)
    out = passed("evaluate", "model.onnx", "--data", "x.npy", "--json", "scores.json").out
    assert "others: 0.25 (" in out
    assert "%" not in out.replace("agreement: 100.00%", "")
    assert read("scores.json")["kl"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_no_utf_8_is_shown_where_only_utf_8_can_be(folder: Path) -> None:
    name = os.fsdecode(b"bad\xff.onnx")
    Path("model.onnx").rename(name)
    words = [sys.executable, "-c", "from onnxprune.cli.main import main; main()", "inspect", name]
    done = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"bad\\udcff.onnx" in done.stdout


def test_evaluate_without_labels_asks_for_a_reference(labelled: Path) -> None:
    np.save("x.npy", np.load("data.npz")["x"])
    assert "--reference" in failed(2, "evaluate", "model.onnx", "--data", "x.npy")


# ---- models


def test_models_list_and_export_work_from_the_program(folder: Path) -> None:
    assert "cifar_resnet20" in passed("models", "list").out
    assert "wrote net.onnx" in passed("models", "export", "cifar_resnet20", "-o", "net.onnx").out
    onnx.checker.check_model(onnx.load("net.onnx"))
    assert "no model named 'resnet19'" in failed(2, "models", "export", "resnet19")


# ---- what all commands share


@pytest.mark.parametrize("command", ["inspect", "compress", "apply", "evaluate"])
def test_quiet_prints_nothing(labelled: Path, command: str) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    given = {
        "inspect": [],
        "compress": ["--flops", 0.5, "--data", "data.npz"],
        "apply": ["small.plan.json", "-o", "again.onnx"],
        "evaluate": ["--data", "data.npz"],
    }[command]
    outcome = passed(command, "model.onnx", *given, "--quiet", "--json", "result.json")
    assert outcome.out == outcome.err == ""
    assert read("result.json")["format"].startswith("onnxprune.")


def test_quiet_still_tells_of_errors(folder: Path) -> None:
    assert "cannot be reached" in failed(3, "compress", "model.onnx", "--flops", "0.0001", "--quiet")


@pytest.mark.parametrize("command", ["inspect", "compress"])
def test_a_json_file_in_an_absent_folder_is_refused_before_any_work(folder: Path, command: str) -> None:
    before = files(folder)
    given = ["--flops", 0.5] if command == "compress" else []
    assert "--json absent/x.json" in failed(2, command, "model.onnx", *given, "--json", "absent/x.json")
    assert "is a directory" in failed(2, command, "model.onnx", *given, "--json", ".")
    assert files(folder) == before


def test_every_number_in_the_result_is_plain_json(folder: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    passed("compress", "model.onnx", "--flops", "1e300", "-o", "small.onnx", "--json", "result.json", *FIXED)
    for file in ("small.report.json", "small.plan.json", "result.json"):
        json.loads(Path(file).read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    "arguments",
    [
        ["squeeze"],
        ["compress"],
        ["compress", "model.onnx", "--smaller", "0.5"],
        ["compress", "model.onnx", "--flops"],
        ["compress", "model.onnx"],
        ["compress", "model.onnx", "--flops", "0.5", "--budget", "many"],
        ["compress", "model.onnx", "--flops", "0.5", "--verify", "twice"],
        ["compress", "model.onnx", "--flops", "0.5", "--search", "telepathy"],
        ["compress", "model.onnx", "--flops", "0.5", "--search", "../uniform"],
        ["compress", "model.onnx", "--flops", "0.5", "--criterion", "l3"],
        ["compress", "model.onnx", "extra", "--flops", "0.5"],
        ["inspect", "--frob", "model.onnx"],
        ["apply", "model.onnx"],
        ["evaluate", "model.onnx"],
        ["models"],
        ["models", "sell"],
        ["--frob"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_or_option_is_one_error_line(folder: Path, arguments: list[str]) -> None:
    before = files(folder)
    message = failed(2, *arguments)
    assert len(message) < 300
    assert files(folder) == before


def test_the_bare_program_shows_its_help() -> None:
    out = passed().out
    assert "Usage: onnxprune" in out
    assert all(name in out for name in program.COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_shows_an_example_that_calls_the_command(command: str) -> None:
    out = passed(*command.split(), "--help").out
    example = out[out.index("Example: ") :]
    assert example.startswith(f"Example: onnxprune {command}")


def test_help_covers_every_command() -> None:
    assert {name.split()[0] for name in COMMANDS} == set(program.COMMANDS)


# ---- failures


def test_a_defect_ends_with_one_a_traceback_and_a_request_to_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(folder)
    monkeypatch.setattr("onnxprune.prepare.find_channels", raising(ZeroDivisionError("planted")))
    outcome = run("compress", "model.onnx", "--flops", 0.5)
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "ZeroDivisionError: planted" in outcome.err
    assert len(outcome.errors) == 1
    assert "report" in outcome.errors[0]
    assert files(folder) == before


@pytest.mark.parametrize(
    "place",
    [
        *("attempts.search.find", "attempts.cut", "pipeline.verify"),
        *("outputs.models.save", "outputs.plans.to_json", "outputs.write_json"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupt_ends_with_130_and_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, force: bool
) -> None:
    if force:
        passed("compress", "model.onnx", "--flops", 0.9, *FIXED)
    before = files(folder)
    monkeypatch.setattr(f"onnxprune.{place}", raising(KeyboardInterrupt()))
    message = failed(130, "compress", "model.onnx", "--flops", 0.5, *FIXED, *(["--force"] if force else []))
    assert "interrupted" in message
    assert files(folder) == before
    assert sorted(os.listdir(folder)) == sorted(before)


def test_an_interrupt_amid_a_search_ends_with_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def interrupt(*arguments: Any) -> None:
        steps.append(arguments)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.cli.display.Shown.step", interrupt)
    failed(130, "compress", "model.onnx", "--flops", 0.5, "--search", "random")
    assert len(steps) == 3
    assert os.listdir(folder) == ["model.onnx"]


@pytest.mark.parametrize("command", ["compress", "apply"])
def test_a_result_that_fails_its_verification_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "first.onnx", *FIXED)
    given = {"compress": ["--flops", 0.5], "apply": ["first.plan.json"]}[command]
    before = files(folder)
    monkeypatch.setattr(pipeline, "verify", raising(VerifyError("the outputs differ")))
    message = failed(1, command, "model.onnx", *given, "-o", "small.onnx")
    assert "the outputs differ" in message
    assert "report" in message
    assert files(folder) == before


def test_no_command_leaves_temporary_files_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", "--verify", "full")
    passed("apply", "model.onnx", "small.plan.json", "-o", "again.onnx")
    monkeypatch.setattr("onnxprune.runtime.Session.run", raising(KeyboardInterrupt()))
    failed(130, "compress", "model.onnx", "--flops", 0.5)
    assert os.listdir(scratch) == []


# ---- a process of its own


def started(code: str) -> set[str]:
    """Run Python code in a fresh process and return the modules it has imported."""
    text = f"{code}\nimport sys; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_help_imports_neither_onnx_nor_onnxruntime_nor_torch() -> None:
    for arguments in (["--help"], ["compress", "--help"], ["inspect", "--help"], ["models", "--help"]):
        modules = started(f"from onnxprune.cli.main import run\nassert run({arguments!r}) == 0")
        assert "onnxprune.cli.main" in modules
        assert not modules & {"onnx", "onnxruntime", "torch", "numpy", "scipy"}


@pytest.mark.parametrize("command", ["inspect", "compress", "evaluate"])
def test_commands_on_onnx_files_do_not_import_torch(labelled: Path, command: str) -> None:
    given = {"inspect": [], "compress": ["--flops", "0.5"], "evaluate": ["--data", "data.npz"]}[command]
    modules = started(f"from onnxprune.cli.main import run\nassert run({[command, 'model.onnx', *given]!r}) == 0")
    assert "onnx" in modules
    assert "torch" not in modules
    assert ("onnxruntime" in modules) == (command != "inspect")


def test_ctrl_c_ends_a_long_search_within_seconds_and_leaves_nothing(folder: Path) -> None:
    arguments = ["compress", "model.onnx", "--flops", "0.5", "--search", "random", "--budget", "1000000000"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("onnxprune"), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background is started with the signal ignored, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert [process.stderr.readline() for _ in range(3)] == ["load ...\n", "rank channels ...\n", "search ...\n"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.strip().startswith("error: interrupted")
    assert "Traceback" not in err
    assert os.listdir(folder) == ["model.onnx"]


def test_the_installed_program_runs_and_says_what_failed(folder: Path) -> None:
    program_file = Path(sys.executable).with_name("onnxprune")
    done = subprocess.run([program_file, "inspect", "model.onnx"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "conv1" in done.stdout
    assert done.stderr == ""
    failed_run = subprocess.run([program_file, "inspect", "absent.onnx"], capture_output=True, text=True)
    assert failed_run.returncode == 2
    assert failed_run.stderr == "error: absent.onnx does not exist; check the path\n"


def test_dense_layers_compress_too(folder: Path) -> None:
    write(dense(), folder / "dense.onnx")
    passed("compress", "dense.onnx", "--params", 0.5, "-o", "small.onnx", "--align", 1)
    report = read("small.report.json")
    assert 0.45 < report["after"]["params"] / report["before"]["params"] <= 0.5


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("layer_norm", ("--approximate",)),
        ("packed_attention_by_part_and_head", ("--slots",)),
        ("embedding", ("--approximate", "--slots")),
        ("grouped_conv", ("--slots",)),
        ("residual", ("--min-keep", 0)),
    ],
)
def test_apply_repeats_every_kind_of_cut(folder: Path, net: str, options: tuple[object, ...]) -> None:
    write(NETS[net].build(), folder / "net.onnx")
    passed("compress", "net.onnx", "--flops", 0.4, "--align", 1, *options, "-o", "small.onnx")
    passed("apply", "net.onnx", "small.plan.json", "-o", "again.onnx")
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


def test_apply_refuses_a_plan_whose_slices_are_not_those_it_would_cut(folder: Path) -> None:
    passed("compress", "model.onnx", "--flops", 0.5, "-o", "small.onnx", *FIXED)
    content = read("small.plan.json")
    next(iter(content["removed"].values()))["0"].pop()
    (folder / "small.plan.json").write_text(json.dumps(content), encoding="utf-8")
    assert "would cut other slices" in failed(2, "apply", "model.onnx", "small.plan.json", "-o", "again.onnx")


def test_approximate_groups_are_marked_and_only_asked_for(folder: Path) -> None:
    write(NETS["layer_norm"].build(), folder / "net.onnx")
    passed("inspect", "net.onnx", "--json", "exact.json")
    assert not any(group["approximate"] for group in read("exact.json")["groups"])
    assert "(approximate)" in passed("inspect", "net.onnx", "--approximate").out
    out = passed("compress", "net.onnx", "--flops", 0.4, "--align", 1, "--approximate", "-o", "small.onnx").out
    assert "cut approximately: normalisations average over what is left" in out
    assert any(group["approximate"] for group in read("small.report.json")["groups"])


def test_a_result_can_be_printed_as_json_instead_of_written(folder: Path) -> None:
    outcome = run("inspect", "model.onnx", "--quiet", "--json", "-")
    assert outcome.code == 0
    assert json.loads(outcome.out)["format"] == "onnxprune.inspect/1"
    assert not Path("-").exists()

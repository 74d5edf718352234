"""Whatever is wrong with a file or an option ends with one clear line and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import CLASSES, IMAGE, Draft, convs, dense, files, run, write, write_outside
from onnx import ModelProto, TensorProto, helper

COMPRESS = ("compress", "model.onnx", "--flops", "0.5")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own; what lies above it belongs to the test too."""
    inner = tmp_path / "work"
    inner.mkdir()
    monkeypatch.chdir(inner)
    return inner


@pytest.fixture
def good(folder: Path) -> Path:
    """Add model.onnx, which has nothing wrong with it."""
    write(convs(), folder / "model.onnx")
    return folder


def refused(*arguments: object, code: int = 2) -> str:
    """Run the program, make sure that it refuses politely and writes nothing, and return its one line."""
    before, listing = files(Path()), sorted(os.listdir())
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err + outcome.out
    assert len(outcome.errors) == 1, outcome.err
    assert outcome.err.splitlines()[-1] == outcome.errors[0]
    assert "Traceback" not in outcome.err + outcome.out
    assert files(Path()) == before
    assert sorted(os.listdir()) == listing
    assert len(outcome.errors[0]) < 700
    return outcome.errors[0]


def refused_by_all(path: str) -> str:
    """Make sure that every command that reads a model refuses this one, and for the same reason."""
    Path("plan.json").write_text(json.dumps({"format": "onnxprune.plan/1", "groups": []}))
    np.save("x.npy", np.zeros((2, *IMAGE), np.float32))
    messages = {
        refused("inspect", path),
        refused("compress", path, "--flops", "0.5", "-o", "out.onnx"),
        refused("compress", path, "--flops", "0.5", "-o", "out.onnx", "--verify", "none"),
        refused("compress", path, "--flops", "0.5", "--dry-run"),
        refused("evaluate", path, "--data", "x.npy", "--reference", path),
    }
    assert len(messages) == 1
    refused("apply", path, "plan.json", "-o", "out.onnx")
    return messages.pop()


# ---- the file


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(good: Path, share: float) -> None:
    content = (good / "model.onnx").read_bytes()
    (good / "model.onnx").write_bytes(content[: int(len(content) * share)])
    message = refused_by_all("model.onnx")
    assert "model.onnx" in message
    assert "export or download it again" in message


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 100, 50_000])
def test_random_bytes_are_refused(folder: Path, seed: int, size: int) -> None:
    (folder / "noise.onnx").write_bytes(random.Random(seed).randbytes(size))
    message = refused("inspect", "noise.onnx")
    assert "noise.onnx" in message
    assert "export or download it again" in message


@pytest.mark.parametrize("seed", [*range(40), *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, 150))])
def test_a_damaged_byte_never_ends_in_a_traceback(good: Path, seed: int) -> None:
    content = bytearray((good / "model.onnx").read_bytes())
    draw = random.Random(seed)
    head = content.index(b"conv1.weight")  # before it stand the nodes, behind the last weight the inputs and outputs
    place = draw.choice([draw.randrange(head), draw.randrange(len(content) - 200, len(content))])
    content[place] = draw.randrange(256)
    (good / "model.onnx").write_bytes(bytes(content))
    before = files(good)
    outcome = run("compress", "model.onnx", "--flops", "0.5", "-o", "out.onnx")
    assert outcome.code in (0, 2, 3), outcome.err
    assert len(outcome.errors) == (outcome.code != 0)
    if outcome.code:
        assert files(good) == before
    else:
        onnx.checker.check_model(onnx.load("out.onnx"))


@pytest.mark.parametrize("content", [b"", b"\n", b"hello, I am a text file\n" * 20, b"PK\x03\x04" + bytes(100)])
def test_what_is_no_onnx_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    assert "model.onnx" in refused_by_all("model.onnx")


@pytest.mark.parametrize("ending", ["json", "textproto", "onnxtxt", "txt"])
def test_an_ending_that_onnx_knows_as_text_changes_nothing(folder: Path, ending: str) -> None:
    (folder / f"model.{ending}").write_text("{ this is no model")
    assert "is not an ONNX file" in refused("inspect", f"model.{ending}")
    write(convs(), folder / f"net.{ending}")
    assert run("inspect", f"net.{ending}").code == 0


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(folder: Path) -> None:
    assert "absent.onnx does not exist" in refused_by_all("absent.onnx")
    (folder / "sub").mkdir()
    assert "is not a file" in refused_by_all("sub")
    assert "name too long" in refused_by_all("x" * 300).lower()


def test_names_that_are_no_text_are_refused(folder: Path) -> None:
    content = convs().SerializeToString()
    for name, damaged in ((b"relu2", b"\xff\xfe\xc3lu"), (b"net", b"\xb1et"), (b"head.bias", b"\xb1ead.bias")):
        assert content.count(name) > 0
        (folder / "model.onnx").write_bytes(content.replace(name, damaged))
        assert "names that are no text" in refused_by_all("model.onnx")


def test_an_unreadable_file_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: Any, **named: Any) -> Any:
        raise PermissionError(13, "Permission denied", "model.onnx")

    monkeypatch.setattr("onnx.load", deny)
    assert "model.onnx cannot be read: Permission denied" in refused("inspect", "model.onnx")


# ---- the model in it


def broken(change: Callable[[ModelProto], None], model: ModelProto | None = None) -> str:
    """Write a model with something changed; returns its name."""
    model = model or convs()
    change(model)
    write(model, Path("model.onnx"))
    return "model.onnx"


def test_a_model_that_fails_the_checker_is_refused(folder: Path) -> None:
    def twice(model: ModelProto) -> None:
        model.graph.node[1].output[0] = model.graph.node[0].output[0]

    def cut_off(model: ModelProto) -> None:
        model.graph.node[1].input[0] = "nowhere"

    def without_operator(model: ModelProto) -> None:
        model.graph.node[1].op_type = "Convolve"

    def without_opset(model: ModelProto) -> None:
        del model.opset_import[:]

    for change in (twice, cut_off, without_operator, without_opset):
        assert "not a valid ONNX model" in refused_by_all(broken(change))


def test_shapes_that_contradict_each_other_are_refused(folder: Path) -> None:
    def widen(name: str, *shape: int) -> Callable[[ModelProto], None]:
        def change(model: ModelProto) -> None:
            weight = next(t for t in model.graph.initializer if t.name == name)
            weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))

        return change

    assert "contradict" in refused_by_all(broken(widen("fc2.weight", 38, 64), dense()))
    broken(widen("conv2.weight", 24, 17, 3, 3))
    for command in (["inspect", "model.onnx"], COMPRESS, [*COMPRESS, "--verify", "none"]):
        assert "node 'conv2' (Conv): sizes 17 and 16 do not match" in refused(*command)
    assert "onnxruntime cannot" in refused("evaluate", "model.onnx", "--data", "x.npy", "--reference", "model.onnx")


def test_an_unknown_domain_without_its_import_is_refused(folder: Path) -> None:
    def estrange(model: ModelProto) -> None:
        model.graph.node[1].domain = "com.acme"

    assert "com.acme" in refused_by_all(broken(estrange))


def test_an_unknown_operator_of_an_imported_domain_freezes_what_it_touches(folder: Path) -> None:
    def estrange(model: ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = "Squash", "com.acme"
        model.opset_import.append(helper.make_opsetid("com.acme", 1))

    broken(estrange, convs((16, 24, 32, 24)))
    outcome = run("inspect", "model.onnx")
    assert outcome.code == 0
    assert "com.acme.Squash" in outcome.out
    message = refused("compress", "model.onnx", "--flops", "0.9", "-o", "out.onnx")
    assert "--verify none" in message or "nothing to prune" in message


def test_an_operator_that_onnxruntime_lacks_can_be_compressed_unverified(folder: Path) -> None:
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv1", "image", 3, 16))
    draft.head(draft.relu("relu2", draft.conv("conv2", x, 16, 24)), 24)
    draft.nodes.append(helper.make_node("Squash", ["image"], ["side"], name="squash", domain="com.acme"))
    model = draft.model(
        [("image", (1, *IMAGE))], [("logits", (1, CLASSES)), ("side", (1, *IMAGE))], domains=["com.acme"]
    )
    write(model, folder / "model.onnx")
    assert "--verify none" in refused(*COMPRESS)
    outcome = run(*COMPRESS, "--verify", "none", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    squash = onnx.load("small.onnx").graph.node[-1]
    assert squash == model.graph.node[-1]


def test_numbers_missing_from_a_weight_are_refused(folder: Path) -> None:
    def shorten(model: ModelProto) -> None:
        for weight in model.graph.initializer:
            weight.raw_data = weight.raw_data[:-8] if weight.name == name else weight.raw_data

    for name in ("conv2.weight", "conv3.weight"):  # a small one, and one that the checker does not see
        broken(shorten)
        assert name in refused(*COMPRESS)


@pytest.mark.parametrize(
    ("value", "criterion"), [(np.nan, "l1"), (np.nan, "l2"), (np.inf, "l1"), (-np.inf, "l2"), (3e38, "l2")]
)
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float, criterion: str) -> None:
    def spoil(model: ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "conv2.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3, 1, 0, 0] = value
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

    broken(spoil)
    message = refused(*COMPRESS, "--criterion", criterion)
    assert "conv2.weight" in message
    assert "NaN, infinite or absurdly large" in message


def test_an_input_of_size_zero_is_refused(folder: Path) -> None:
    write(convs(batch=0), folder / "model.onnx")
    assert "--flops 0.5: the model has none at all" in refused(*COMPRESS)
    assert "'image' has a size of 0" in refused("compress", "model.onnx", "--params", "0.5")
    write(convs(image=(3, 0, 12)), folder / "model.onnx")
    assert "onnxruntime cannot run" in refused(*COMPRESS)


def test_a_weight_of_size_zero_does_no_harm(folder: Path) -> None:
    def add(model: ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((0, 16, 4), np.float32), "empty"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 0), np.float32), "hollow"))
        model.graph.node.append(helper.make_node("Shape", ["empty"], ["unread"], name="shape"))
        model.graph.node.append(helper.make_node("Relu", ["hollow"], ["unread2"], name="relu"))

    broken(add)
    outcome = run(*COMPRESS, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    held = {t.name: tuple(t.dims) for t in onnx.load("small.onnx").graph.initializer}
    assert held["empty"] == (0, 16, 4)
    assert held["hollow"] == (4, 0)


def test_a_graph_with_nothing_to_prune_is_refused_and_can_be_inspected(folder: Path) -> None:
    draft = Draft()
    draft.nodes.append(helper.make_node("Relu", ["x"], ["y"], name="relu"))
    write(draft.model([("x", (1, 8))], [("y", (1, 8))]), folder / "model.onnx")
    outcome = run("inspect", "model.onnx")
    assert outcome.code == 0
    assert "No channel can be pruned" in outcome.out
    message = refused(*COMPRESS)
    assert "nothing to prune" in message
    assert "onnxprune inspect" in message


def test_a_graph_without_nodes_is_handled(folder: Path) -> None:
    write(Draft().model([("x", (1, 8))], [("x", (1, 8))]), folder / "model.onnx")
    assert run("inspect", "model.onnx").code == 0
    assert "nothing to prune" in refused(*COMPRESS)
    write(Draft().model([("x", (1, 8))], []), folder / "model.onnx")
    assert "no ONNX graph" in refused(*COMPRESS)


def test_a_graph_without_inputs_is_handled(folder: Path) -> None:
    draft = Draft()
    x = draft.store("x", draft.rng.standard_normal((1, *IMAGE)))
    draft.head(draft.relu("relu", draft.conv("conv", x, 3, 32)), 32)
    write(draft.model([], [("logits", (1, CLASSES))]), folder / "model.onnx")
    assert run("inspect", "model.onnx").code == 0
    assert "nothing to prune" in refused(*COMPRESS)  # all of it is constant
    np.save("x.npy", np.zeros((2, 3), np.float32))
    assert "one input; this one has 0" in refused("evaluate", "model.onnx", "--data", "x.npy")


def test_an_opset_before_seven_is_refused_with_the_way_out(folder: Path) -> None:
    write(convs(opset=6), folder / "model.onnx")
    message = refused_by_all("model.onnx")
    assert "opset 6" in message
    assert "version_converter" in message


def test_flops_of_a_model_that_multiplies_nothing_are_refused(folder: Path) -> None:
    draft = Draft()
    table = draft.store("table", draft.rng.standard_normal((10, 32)))
    x = draft.add("Gather", "embed", table, "ids")
    draft.nodes.append(helper.make_node("ReduceSum", [draft.relu("relu", x)], ["y"], name="sum", keepdims=0))
    model = draft.model([("ids", (1, 4))], [("y", ())])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    write(model, folder / "model.onnx")
    message = refused(*COMPRESS)
    assert "none at all" in message or "nothing to prune" in message


# ---- weights beside the model


@pytest.fixture
def outside(folder: Path) -> Path:
    """Write model.onnx with its weights in model.onnx.data."""
    return write_outside(convs(), folder / "model.onnx")


def relocate(model: Path, key: str, value: str) -> None:
    """Rewrite one entry of every external tensor."""
    proto = onnx.load(str(model), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = value if entry.key == key else entry.value
    write(proto, model)


def test_a_missing_external_data_file_is_refused(outside: Path) -> None:
    Path("model.onnx.data").unlink()
    message = refused_by_all("model.onnx")
    assert "'model.onnx.data'" in message
    assert "missing" in message


@pytest.mark.parametrize("place", ["../weights", "/etc/passwd", "sub/../../weights", ".", "", "link", "linked/weights"])
def test_external_data_outside_the_folder_of_the_model_is_refused(outside: Path, place: str) -> None:
    shutil.copy("model.onnx.data", "../weights")
    os.symlink("../weights", "link")
    os.symlink("..", "linked")
    Path("sub").mkdir()
    relocate(outside, "location", place)
    message = refused_by_all("model.onnx")
    assert "outside the model's folder" in message


def test_external_data_in_a_folder_below_the_model_is_fine(outside: Path) -> None:
    Path("sub").mkdir()
    shutil.move("model.onnx.data", "sub/weights")
    relocate(outside, "location", "sub/weights")
    assert run(*COMPRESS, "-o", "small.onnx").code == 0


def test_external_data_that_is_too_short_is_refused(outside: Path) -> None:
    content = Path("model.onnx.data").read_bytes()
    Path("model.onnx.data").write_bytes(content[:-2000])
    message = refused(*COMPRESS)
    assert "too short" in message
    assert "'model.onnx.data'" in message


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "far"), ("length", "12"), ("length", "")])
def test_an_external_offset_or_length_that_makes_no_sense_is_refused(outside: Path, key: str, value: str) -> None:
    relocate(outside, key, value)
    message = refused(*COMPRESS)
    assert "conv1.weight" in message or "model.onnx.data" in message


# ---- options


@pytest.mark.parametrize("option", ["--flops", "--params"])
@pytest.mark.parametrize(
    "value",
    ["0", "-1", "nan", "inf", "-inf", "1.5", "101%", "5000000%", "abc", "", "0.5x", "0%", "0M", "300", "1e400", "٣"],
)
def test_a_target_that_makes_no_sense_is_refused(good: Path, option: str, value: str) -> None:
    message = refused("compress", "model.onnx", option, value)
    assert f"{option} {value}".strip() in message
    assert "give a fraction" in message or "a fraction is at most 1" in message


@pytest.mark.parametrize("value", ["1e99", "1e9T", "100%", "1.0"])
def test_a_target_above_the_original_cuts_nothing(good: Path, value: str) -> None:
    assert run("compress", "model.onnx", "--flops", value, "-o", "same.onnx", "--align", 8).code == 0
    assert (good / "same.onnx").read_bytes() == (good / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--align", "0"], "--align"),
        (["--align", "-8"], "--align"),
        (["--align", "99999"], "--align"),
        (["--align", "two"], "--align"),
        (["--min-keep", "-3"], "--min-keep"),
        (["--budget", "0"], "--budget 0"),
        (["--budget", "-5"], "--budget -5"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "x"], "--seed"),
        (["--search", "magic"], "--search 'magic'"),
        (["--search", ""], "--search ''"),
        (["--search", "__init__"], "--search '__init__'"),
        (["--criterion", "magic"], "--criterion 'magic'"),
        (["--verify", "magic"], "--verify"),
        (["--shape", "nonsense"], "--shape 'nonsense'"),
        (["--shape", "image="], "--shape 'image='"),
        (["--shape", "=1,3,12,12"], "--shape"),
        (["--shape", "image=1,3,a,12"], "--shape 'image=1,3,a,12'"),
        (["--shape", "image=1,3,12"], "--shape image gives 3 sizes, the input has 4 axes"),
        (["--shape", "image=1,3,-12,12"], "--shape image=1,3,-12,12"),
        (["--shape", "image=0,3,12,12"], "--shape image=0,3,12,12"),
        (["--shape", "image=99999999999999999999,3,12,12"], "--shape"),
        (["--shape", "image=1,4,12,12"], "axis 1 is fixed to 3"),
        (["--shape", "picture=1,3,12,12"], "'picture', which is no input"),
        (["--keep", "nobody"], "--keep 'nobody'"),
        (["--keep", ""], "--keep ''"),
        (["--label-offset", "one"], "--label-offset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_absurd_option_is_refused(good: Path, options: list[str], words: str) -> None:
    assert words in refused(*COMPRESS, *options)


@pytest.mark.parametrize("options", [["--align", "999"], ["--min-keep", str(10**9)], ["--min-keep", str(10**40)]])
def test_options_that_leave_no_choice_make_the_target_unreachable(good: Path, options: list[str]) -> None:
    message = refused(*COMPRESS, *options, code=3)
    assert "the lowest is 1.000 of the original" in message


def test_a_size_that_cannot_be_known_is_asked_for(folder: Path) -> None:
    model = dense()
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    write(model, folder / "model.onnx")
    assert "--shape x=1,?" in refused(*COMPRESS)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    write(model, folder / "model.onnx")
    assert "--shape x=" in refused(*COMPRESS)


def test_an_output_that_cannot_be_written_is_refused(good: Path) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that not even root can write")
    assert "/proc/self" in refused(*COMPRESS, "-o", "/proc/self/out.onnx")
    assert "--json" in refused("inspect", "model.onnx", "--json", "/proc/self/out.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_refused(good: Path) -> None:
    (good / "locked").mkdir(mode=0o500)
    assert "locked" in refused(*COMPRESS, "-o", "locked/out.onnx")


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left on device" in refused(*COMPRESS)


def test_too_little_memory_is_told_in_one_line(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: Any, **named: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("onnxprune.attempts.cut", short)
    assert "not enough memory" in refused(*COMPRESS)


# ---- data


def images(count: int = 8) -> Any:
    return np.random.default_rng(0).standard_normal((count, *IMAGE)).astype(np.float32)


def npz(**arrays: Any) -> Callable[[], str]:
    def write_it() -> str:
        np.savez("data.npz", **arrays)
        return "data.npz"

    return write_it


def raw(content: bytes, name: str = "data.npz") -> Callable[[], str]:
    def write_it() -> str:
        Path(name).write_bytes(content)
        return name

    return write_it


def broken_archive() -> str:
    np.savez_compressed("data.npz", x=images(), y=np.zeros(8, np.int64))
    content = bytearray(Path("data.npz").read_bytes())
    content[200:400] = bytes(200)
    Path("data.npz").write_bytes(bytes(content))
    return "data.npz"


def huge_header() -> str:
    header = str({"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6, 3)}).encode().ljust(117) + b"\n"
    Path("data.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return "data.npy"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def pickled_array() -> str:
    np.save("data.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    return "data.npy"


def pickled_member() -> str:
    np.savez("data.npz", x=images(), y=np.array([Trap()] * 8, dtype=object), allow_pickle=True)
    return "data.npz"


def bare_pickle() -> str:
    Path("data.npy").write_bytes(pickle.dumps(Trap()))
    return "data.npy"


def archive_of_text() -> str:
    with zipfile.ZipFile("data.npz", "w") as archive:
        archive.writestr("x.npy", "no array")
    return "data.npz"


LABELS = np.arange(8) % CLASSES

WRONG_DATA: dict[str, tuple[Callable[[], str], str]] = {
    "missing file": (lambda: "absent.npz", "no such file"),
    "a folder": (lambda: "..", "holds no images"),
    "empty file": (raw(b""), "no .npz or .npy file"),
    "text": (raw(b"1,2,3\n4,5,6\n"), "no .npz or .npy file"),
    "cut archive": (raw(b"PK\x03\x04" + bytes(50)), "no .npz or .npy file"),
    "damaged archive": (broken_archive, "no .npz or .npy file"),
    "text in an archive": (archive_of_text, "must be numbers"),
    "header of petabytes": (huge_header, "no .npz or .npy file"),
    "cut array": (raw(b"\x93NUMPY\x01\x00", "data.npy"), "no .npz or .npy file"),
    "no x": (npz(images=images(), labels=LABELS), "no array x; it has images, labels"),
    "no arrays": (npz(), "no array x; it has none"),
    "no samples": (npz(x=images(0)), "no samples"),
    "a single number": (npz(x=np.float32(3)), "no samples"),
    "words": (npz(x=np.array(["cat", "dog"])), "must be numbers"),
    "complex numbers": (npz(x=images().astype(np.complex64)), "must be numbers"),
    "four channels": (npz(x=np.zeros((8, 4, 12, 12), np.float32)), "(4, 12, 12), the model takes (3, 12, 12)"),
    "wrong size": (npz(x=np.zeros((8, 3, 32, 32), np.uint8)), "(3, 32, 32), the model takes (3, 12, 12)"),
    "one image without its batch": (npz(x=images(1)[0]), "the model takes (3, 12, 12)"),
    "flat images": (npz(x=images().reshape(8, -1)), "the model takes (3, 12, 12)"),
    "too few labels": (npz(x=images(), y=LABELS[:7]), "one integer class per sample (8)"),
    "label matrix": (npz(x=images(), y=np.eye(8, dtype=np.int64)), "one integer class per sample (8)"),
    "one label": (npz(x=images(), y=np.int64(3)), "one integer class per sample (8)"),
    "fractional labels": (npz(x=images(), y=LABELS / 2), "one integer class per sample (8)"),
    "label above the classes": (npz(x=images(), y=LABELS + CLASSES), "class 10"),
    "label below zero": (npz(x=images(), y=LABELS - 1), "class -1"),
    "label beyond int64": (npz(x=images(), y=np.full(8, 2**64 - 1, np.uint64)), "class"),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_wrong_data_is_refused(good: Path, case: str) -> None:
    make, words = WRONG_DATA[case]
    data = make()
    assert words in refused("evaluate", "model.onnx", "--data", data, "--reference", "model.onnx")
    assert words in refused(*COMPRESS, "--data", data)


@pytest.mark.parametrize("make", [pickled_array, pickled_member, bare_pickle])
def test_pickled_data_is_refused_and_never_unpickled(good: Path, make: Callable[[], str]) -> None:
    data = make()
    assert "no .npz or .npy file" in refused("evaluate", "model.onnx", "--data", data)
    assert not Path("trapped").exists()
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(data, allow_pickle=False)["y"]


@pytest.mark.parametrize("asked", [["evaluate", "model.onnx"], ["compress", "model.onnx", "--flops", 0.5]])
def test_a_label_offset_without_labels_is_refused(good: Path, asked: list[object]) -> None:
    np.savez("data.npz", x=images(20))
    assert "has none; leave it out" in refused(*asked, "--data", "data.npz", "--label-offset", 1)


@pytest.mark.parametrize("offset", [1, -1, 10**30, -(10**30)])
def test_a_label_offset_that_leaves_the_classes_is_refused(good: Path, offset: int) -> None:
    np.savez("data.npz", x=images(20), y=np.arange(20) % CLASSES)
    message = refused("evaluate", "model.onnx", "--data", "data.npz", "--label-offset", offset)
    assert f"--label-offset is {offset}" in message


@pytest.mark.parametrize("reference", ["absent.onnx", ".", "noise.onnx", "model.onnx.json"])
def test_a_reference_that_is_no_model_is_refused(good: Path, reference: str) -> None:
    Path("noise.onnx").write_bytes(bytes(range(200)))
    Path("model.onnx.json").write_text("{}")
    np.save("x.npy", images())
    message = refused("evaluate", "model.onnx", "--data", "x.npy", "--reference", reference)
    assert reference in message


def test_a_reference_that_takes_other_inputs_is_refused(good: Path) -> None:
    write(dense(), good / "dense.onnx")
    np.save("x.npy", images())
    message = refused("evaluate", "model.onnx", "--data", "x.npy", "--reference", "dense.onnx")
    assert "onnxruntime cannot run the model" in message


def test_a_model_whose_output_is_no_list_of_scores_cannot_be_judged(folder: Path) -> None:
    draft = Draft()
    draft.nodes.append(helper.make_node("Conv", ["image", draft.weight("w", 4, 3, 1, 1)], ["map"], name="conv"))
    write(draft.model([("image", ("N", *IMAGE))], [("map", ("N", 4, 12, 12))]), folder / "model.onnx")
    np.savez("data.npz", x=images(), y=LABELS % 4)
    message = refused("evaluate", "model.onnx", "--data", "data.npz")
    assert "no list of class scores" in message
    assert "(8, 4, 12, 12)" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{ not json", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("9" * 10_000, "cannot be read as JSON"),
        ("[1, 2]", "must be numbers"),
        ('{"name": "model", "version": 1}', "says nothing of how pixels become inputs"),
        ('{"format": "onnxprune.plan/1", "mean": [0.5]}', "give one of crop_size, do_center_crop"),
        ('{"image_mean": "half"}', "must be numbers"),
        ('{"image_mean": ["a"]}', "must be numbers"),
        ('{"image_mean": "abc"}', "must be numbers"),
        ('{"rescale_factor": null}', "must be numbers"),
        ('{"rescale_factor": NaN}', "must be finite"),
        ('{"image_std": [0, 1, 1]}', "image_std not 0"),
        ('{"image_mean": [0.5, 0.5]}', "means for 2 channels"),
        ('{"image_mean": []}', "means for 0 channels"),
        ('{"image_std": [1, 1, 1, 1]}', "stds for 4 channels"),
    ],
)
def test_a_preprocess_file_that_makes_no_sense_is_refused(good: Path, content: str, words: str) -> None:
    np.savez("data.npz", x=images(), y=LABELS)
    Path("preprocess.json").write_text(content)
    message = refused("evaluate", "model.onnx", "--data", "data.npz", "--preprocess", "preprocess.json")
    assert words in message
    assert "preprocess" in message


@pytest.mark.parametrize("name", ["Imagenet", "imagenet ", "", ".", "absent.json", "\0", "x" * 300])
def test_an_unknown_preprocess_is_refused_with_the_names_there_are(good: Path, name: str) -> None:
    np.savez("data.npz", x=images(), y=LABELS)
    message = refused("evaluate", "model.onnx", "--data", "data.npz", "--preprocess", name)
    assert "imagenet" in message or "name too long" in message


# ---- plans


@pytest.fixture
def planned(good: Path) -> Path:
    """Add plan.json, which fits model.onnx."""
    assert run(*COMPRESS, "-o", "first.onnx", "--align", 4).code == 0
    (good / "first.plan.json").rename(good / "plan.json")
    return good


def edited(change: Callable[[dict[str, Any]], None]) -> str:
    content = json.loads(Path("plan.json").read_text())
    change(content)
    Path("plan.json").write_text(json.dumps(content))
    return refused("apply", "model.onnx", "plan.json", "-o", "out.onnx")


def test_the_plan_that_the_other_cases_edit_is_fine(planned: Path) -> None:
    assert run("apply", "model.onnx", "plan.json", "-o", "out.onnx").code == 0


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"plan"', "{}", '{"format": "onnxprune.plan/2"}'])
def test_a_file_that_is_no_plan_is_refused(planned: Path, content: str) -> None:
    Path("plan.json").write_text(content)
    assert "plan.json" in refused("apply", "model.onnx", "plan.json", "-o", "out.onnx")


def test_a_missing_or_binary_plan_is_refused(planned: Path) -> None:
    assert "absent.json" in refused("apply", "model.onnx", "absent.json", "-o", "out.onnx")
    assert "first.onnx" in refused("apply", "model.onnx", "first.onnx", "-o", "out.onnx")
    assert "cannot be read" in refused("apply", "model.onnx", ".", "-o", "out.onnx")


@pytest.mark.parametrize(
    "kept",
    [[0, 16], [-1, 3], [3, 3], [3, 2], [], None, 7, "all", {"0": 1}, [0.0, 1.0], [True], ["0"], [[0]], [10**30]],
    ids=str,
)
def test_a_plan_that_keeps_what_does_not_exist_is_refused(planned: Path, kept: Any) -> None:
    def change(plan: dict[str, Any]) -> None:
        plan["groups"][0]["kept"] = kept

    assert "'conv1'" in edited(change)


@pytest.mark.parametrize(("key", "value"), [("width", 17), ("width", None), ("name", "conv9"), ("kept", None)])
def test_a_plan_whose_groups_are_not_those_of_the_model_is_refused(planned: Path, key: str, value: Any) -> None:
    assert "'conv2'" in edited(lambda plan: plan["groups"][1].update({key: value}))


def test_a_plan_with_another_number_of_groups_is_refused(planned: Path) -> None:
    assert "2 groups, the model 3" in edited(lambda plan: plan["groups"].pop())
    assert "0 groups, the model 3" in edited(lambda plan: plan["groups"].clear())
    assert "'conv1'" in edited(lambda plan: plan["groups"].extend([None, 1, "x"]))


@pytest.mark.parametrize(
    "settings",
    [
        None,
        [],
        3,
        {"shapes": [1]},
        {"shapes": {"image": "big"}},
        {"shapes": {"image": [1, 3.5]}},
        {"shapes": None},
        {"keep": "conv1"},
        {"keep": [1]},
        {"keep": None},
    ],
    ids=str,
)
def test_a_plan_with_settings_that_make_no_sense_is_refused(planned: Path, settings: Any) -> None:
    assert "settings that make no sense" in edited(lambda plan: plan.update(settings=settings))


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 5])
def test_a_plan_with_another_digest_is_refused(planned: Path, digest: Any) -> None:
    assert "made for another file" in edited(lambda plan: plan.update(model_sha256=digest))

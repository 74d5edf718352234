"""Samples from a Python function: module:function gives batches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_nets import CLASSES, convs, write
from cli_nets import run as program
from onnx import ModelProto, TensorProto, helper

from onnxprune import runtime
from onnxprune.arrays import collect, is_spec, read_file
from onnxprune.data import read_data
from onnxprune.errors import InputError
from onnxprune.model import analyse

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)
HEAD = "import numpy as np\nPIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)\n"
NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write modules into the working directory; each gets a name of its own, as Python keeps what it imported."""
    monkeypatch.chdir(tmp_path)

    def write_it(body: str) -> str:
        name = f"loader{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(HEAD + body)
        return name

    return write_it


BATCHES = {
    "a generator of arrays": "def f():\n    yield PIXELS[:4]\n    yield PIXELS[4:]",
    "a list of pairs": "def f():\n    return [(PIXELS[i:i + 2], np.arange(7)[i:i + 2]) for i in range(0, 7, 2)]",
    "lists of two, as PyTorch gives": "def f():\n    yield [PIXELS[:6], list(range(6))]\n    yield [PIXELS[6:], [6]]",
    "dicts": "def f():\n    yield {'x': PIXELS, 'y': np.arange(7)}",
    "dicts and labels": "def f():\n    yield {'x': PIXELS}, np.arange(7)[:, None]",
    "a class": "class f:\n    def __iter__(self):\n        yield PIXELS, np.arange(7)",
}


@pytest.mark.parametrize("form", BATCHES)
def test_batches_are_joined_in_their_order(module: Callable[[str], str], form: str) -> None:
    spec = f"{module(BATCHES[form])}:f"
    data = read_data(spec, analyse(convs(), Path(), runtime.evaluate, {}), None)
    ((feed, labels),) = data.batches(7)
    np.testing.assert_array_equal(feed["image"], PIXELS.transpose(0, 3, 1, 2).astype(np.float32))
    if "y" in collect(spec):
        np.testing.assert_array_equal(labels, np.arange(7))
    else:
        assert labels is None
        assert form == "a generator of arrays"
    assert data.source == spec


def two_inputs() -> ModelProto:
    nodes = [helper.make_node("Add", ["a", "b"], ["c"], name="add")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 4)) for name in "abc"]
    return helper.make_model(helper.make_graph(nodes, "net", values[:2], values[2:]), ir_version=8)


def test_dicts_feed_several_inputs(module: Callable[[str], str]) -> None:
    name = module(
        "def f():\n    for i in range(3):\n        yield {'a': np.full((2, 4), i), 'b': np.eye(2, 4)}, [i, 7]"
    )
    data = read_data(f"{name}:f", analyse(two_inputs(), Path(), runtime.evaluate, {}), None)
    ((feed, labels),) = data.batches(6)
    np.testing.assert_array_equal(feed["a"][:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(feed["b"], np.tile(np.eye(2, 4), (3, 1)))
    np.testing.assert_array_equal(labels, [0, 7, 1, 7, 2, 7])


def test_a_module_in_a_package_is_found_and_may_import_its_neighbours_late(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    neighbour = module("")
    package = tmp_path / f"package{next(NUMBERS)}"
    package.mkdir()
    (package / "inner.py").write_text(f"def f():\n    from {neighbour} import PIXELS\n    yield PIXELS")
    before = list(sys.path)
    np.testing.assert_array_equal(collect(f"{package.name}.inner:f")["x"], PIXELS)
    assert sys.path == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def g(): pass", "has no function f; it must be a function without arguments that returns batches"),
        ("f = 3", "something other than a function named f"),
        ("raise RuntimeError('no disk')", "importing loader.* failed: RuntimeError: no disk"),
        ("import does_not_exist_anywhere", "importing loader.* failed: ModuleNotFoundError: .*does_not_exist_anywhere"),
        ("def f(:", "importing loader.* failed: SyntaxError"),
        ("import sys; sys.exit(5)", "importing loader.* failed: SystemExit: 5"),
        ("def f():\n    raise KeyError('label')", ":f failed: KeyError: 'label'"),
        ("def f():\n    yield PIXELS\n    raise OSError('disk full')", ":f failed: OSError: disk full"),
        ("def f(path): return [PIXELS]", ":f failed: TypeError: .*path"),
        ("def f(): return None", ":f failed: TypeError: .*not iterable"),
        ("def f(): return PIXELS", "gives one ndarray; it must give batches: return a list of them"),
        ("def f(): return {'x': PIXELS}", "gives one dict"),
        ("def f(): return []", "gives no batches"),
        ("def f(): yield PIXELS, [1] * 7, 3", "a batch of 3 parts; a pair must hold samples and classes"),
        ("def f(): yield PIXELS, [1, 2]", "in batch 0 the first axes differ: x 7, y 2"),
        ("def f(): yield PIXELS, 3", "in batch 0 the first axes differ: x 7, y 0"),
        ("def f():\n    yield PIXELS\n    yield PIXELS, [1] * 7", "batch 1 has x, y, the first has x"),
        ("def f():\n    yield PIXELS\n    yield PIXELS[:, 1:]", "samples of different shapes"),
        ("def f(): yield [[[1, 2], [3]], [0, 1]]", "failed: ValueError: .*inhomogeneous"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(module: Callable[[str], str], body: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"--data loader\d+.*{words}"):
        collect(f"{module(body)}:f")


def test_objects_are_no_numbers(module: Callable[[str], str]) -> None:
    spec = f"{module('def f(): yield np.array([object()] * 7)')}:f"
    with pytest.raises(InputError, match="the samples must be numbers"):
        read_data(spec, analyse(convs(), Path(), runtime.evaluate, {}), None)


def test_a_module_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no module not_there in the working directory"):
        collect("not_there:f")
    with pytest.raises(InputError, match=r"there is no module json\.not_there"):
        collect("json.not_there:f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loader:batches", True),
        ("package.loader:batches", True),
        ("data.npz", False),
        ("C:\\data.npz", False),
        ("C:data.npz", False),
        ("C:/data.npz", False),
        ("loader:", False),
        (":batches", False),
        ("a:b:c", False),
        ("my loader:batches", False),
        (".loader:batches", False),
    ],
)
def test_only_two_python_names_read_as_a_function(text: str, expected: bool) -> None:
    assert is_spec(text) is expected


def test_the_program_takes_a_function(module: Callable[[str], str], tmp_path: Path) -> None:
    write(convs(), tmp_path / "model.onnx")
    name = module(f"def f():\n    yield PIXELS, np.arange(7) % {CLASSES}")
    assert program("evaluate", "model.onnx", "--data", f"{name}:f").code == 0
    refusal = program("evaluate", "model.onnx", "--data", f"{name}:g")
    assert refusal.code == 2
    assert refusal.errors[0].startswith(f"error: --data {name}:g: ")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04K\x01.", b"a list of images", b"\x93NUMPY\x01\x00"])
def test_a_file_of_something_else_is_refused_without_a_word_of_loading_it_unsafely(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "samples.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"samples\.npz is no \.npz or \.npy file of numbers") as caught:
        read_file(tmp_path / "samples.npz", ["x"])
    assert "unsafe" not in str(caught.value)

"""Small networks for the tests of the program, and the program run in process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.cli import main as program

Array = npt.NDArray[Any]
CLASSES = 10
IMAGE = (3, 12, 12)


@dataclass(frozen=True)
class Outcome:
    """What a run of the program left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def run(*arguments: object) -> Outcome:
    """Run the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.run([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


class Draft:
    """Writes a network node by node; methods return the name of the tensor they make."""

    def __init__(self, seed: int = 0, dtype: Any = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []

    def store(self, name: str, values: npt.ArrayLike, dtype: Any = None) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(values, dtype or self.dtype), name))
        return name

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(self, name: str, *shape: int) -> str:
        return self.store(name, self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])))

    def conv(self, name: str, x: str, before: int, after: int, kernel: int = 3, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        weight = self.weight(f"{name}.weight", after, before // group, kernel, kernel)
        bias = self.store(f"{name}.bias", self.rng.uniform(0.1, 0.3, after))
        return self.add("Conv", name, x, weight, bias, pads=[kernel // 2] * 4, **attributes)

    def relu(self, name: str, x: str) -> str:
        return self.add("Relu", name, x)

    def head(self, x: str, before: int, classes: int = CLASSES) -> str:
        """Pool, flatten and classify; the output is `logits`."""
        flat = self.add("Flatten", "flatten", self.add("GlobalAveragePool", "pool", x))
        weight = self.weight("head.weight", classes, before)
        bias = self.store("head.bias", np.linspace(-0.1, 0.1, classes))
        self.nodes.append(helper.make_node("Gemm", [flat, weight, bias], ["logits"], name="head", transB=1))
        return "logits"

    def model(
        self,
        inputs: Sequence[tuple[str, Sequence[int | str]]],
        outputs: Sequence[tuple[str, Sequence[int | str]]],
        opset: int = 17,
        domains: Iterable[str] = (),
    ) -> ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs],
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
            self.stored,
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def convs(
    widths: Sequence[int] = (16, 24, 32),
    *,
    batch: int | str = "N",
    image: Sequence[int | str] = IMAGE,
    classes: int = CLASSES,
    seed: int = 0,
    dtype: Any = np.float32,
    opset: int = 17,
) -> ModelProto:
    """Convolutions conv1, conv2, ... with Relu between them, and a dense head."""
    draft = Draft(seed, dtype)
    x, before = "image", 3
    for number, width in enumerate(widths, 1):
        x = draft.relu(f"relu{number}", draft.conv(f"conv{number}", x, before, width))
        before = width
    draft.head(x, before, classes)
    return draft.model([("image", (batch, *image))], [("logits", (batch, classes))], opset)


def residual(width: int = 32, inner: int = 48) -> ModelProto:
    """A stem, two residual blocks and a depthwise convolution: groups that several nodes share."""
    draft = Draft()
    x = draft.relu("stem_relu", draft.conv("stem", "image", 3, width))
    for number in (1, 2):
        y = draft.relu(f"relu{number}", draft.conv(f"inner{number}", x, width, inner))
        x = draft.add("Add", f"add{number}", x, draft.conv(f"outer{number}", y, inner, width))
    x = draft.conv("depthwise", x, width, width, group=width)
    draft.head(x, width)
    return draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])


def branches() -> ModelProto:
    """Two branches of different widths that a Concat joins."""
    draft = Draft()
    left = draft.relu("left_relu", draft.conv("left", "image", 3, 24))
    right = draft.relu("right_relu", draft.conv("right", "image", 3, 40, 1))
    x = draft.conv("join", draft.add("Concat", "concat", left, right, axis=1), 64, 56, 1)
    draft.head(draft.relu("join_relu", x), 56)
    return draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])


def dense() -> ModelProto:
    """Three dense layers whose first width is no multiple of anything."""
    draft = Draft()
    x = draft.add("Gemm", "fc1", "x", draft.weight("fc1.weight", 37, 20), transB=1)
    x = draft.add("MatMul", "fc2", draft.relu("relu1", x), draft.weight("fc2.weight", 37, 64))
    draft.nodes.append(helper.make_node("MatMul", [x, draft.weight("fc3.weight", 64, 10)], ["logits"], name="fc3"))
    return draft.model([("x", ("N", 20))], [("logits", ("N", CLASSES))])


def write(model: ModelProto, path: Path) -> Path:
    """Write a model into one file."""
    path.write_bytes(model.SerializeToString())
    return path


def write_outside(model: ModelProto, path: Path) -> Path:
    """Write a model with its weights in NAME.data beside it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(
        copy,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=0,
    )
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, hidden ones too."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def sizes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Give the shape of every initializer."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}

"""A task that a tiny network learns in seconds: which of four corners of an image is the brightest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from cli_nets import Draft
from onnx import ModelProto, helper, numpy_helper

SIDE, CORNERS = 8, 4


def net(width: int = 8, seed: int = 0, softmax: bool = False, opset: int = 17) -> ModelProto:
    """Two convolutions with biases, as exporters leave them, and a head."""
    d = Draft(seed)
    x = d.relu("relu1", d.conv("conv1", "image", 1, width))
    x = d.relu("relu2", d.conv("conv2", x, width, width))
    x = d.add("Flatten", "flatten", d.add("AveragePool", "pool", x, kernel_shape=[4, 4], strides=[4, 4]))
    weight, bias = d.weight("head.weight", CORNERS, 4 * width), d.store("head.bias", np.zeros(CORNERS))
    scores = d.add("Gemm", "head", x, weight, bias, transB=1)
    output = d.add("Softmax", "softmax", scores, axis=1) if softmax else scores
    return d.model([("image", ("N", 1, SIDE, SIDE))], [(output, ("N", CORNERS))], opset)


def samples(count: int, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw noisy images and say which corner is the brightest."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CORNERS, count)
    x = 0.5 * rng.standard_normal((count, 1, SIDE, SIDE))
    for image, corner in zip(x, y, strict=True):
        image[0, 4 * (corner // 2) : 4 * (corner // 2) + 4, 4 * (corner % 2) : 4 * (corner % 2) + 4] += 0.5
    return x.astype(np.float32), y


def write(folder: Path, count: int = 512, labels: bool = True, **options: Any) -> None:
    """Write model.onnx and data.npz."""
    onnx.save(net(**options), folder / "model.onnx")
    x, y = samples(count)
    np.savez(folder / "data.npz", x=x, **({"y": y} if labels else {}))


def teacher() -> ModelProto:
    """A model that solves the task by hand: it adds up each corner."""
    weight = numpy_helper.from_array(np.ones((1, 1, 4, 4), np.float32), "sum")
    nodes = [
        helper.make_node("Conv", ["image", "sum"], ["corners"], strides=[4, 4]),
        helper.make_node("Flatten", ["corners"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", 1, ("N", 1, SIDE, SIDE))
    scores = helper.make_tensor_value_info("scores", 1, ("N", CORNERS))
    graph = helper.make_graph(nodes, "teacher", [image], [scores], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

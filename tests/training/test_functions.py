"""Every function against the examples of the ONNX standard, whose answers numpy computed."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from onnxprune.nodes import every_node
from onnxprune.ops import RULES
from onnxprune.shapes import is_default_domain
from onnxprune.training.executor import INLINED, Executor
from onnxprune.training.functions import FUNCTIONS, as_tensor, find

Data = list[Any]

EXCEPTIONS = {
    "FLOAT8": "there is no arithmetic with eight bits",
    "FLOAT4": "there is no arithmetic with four bits",
    "e4m3fn": "there is no arithmetic with eight bits",
    "e5m2": "there is no arithmetic with eight bits",
    "float4": "there is no arithmetic with four bits",
    "to_INT4": "integers of four bits come of QuantizeLinear only",
    "to_UINT4": "integers of four bits come of QuantizeLinear only",
    "to_INT2": "integers of two bits come of QuantizeLinear only",
    "to_UINT2": "integers of two bits come of QuantizeLinear only",
    "string": "text",
    "_sequence": "lists of tensors",
    "_opt": "tensors that may be absent",
    "cubic_align_corners": "onnxruntime counts whole numbers between corners, the standard parts of them",
    "linear_align_corners": "likewise",
    "training_dropout": "what is dropped is drawn at random",
    "test_not_": "opset 1",
    "_empty_set": "no model has inputs without numbers",
    "zero_size": "no model has inputs without numbers",
    "reordered": "no model has inputs without numbers",
    "tril_zero": "no model has inputs without numbers",
    "triu_zero": "no model has inputs without numbers",
    "test_if": "decides by the data",
    "align_corners_expanded": "decides by the data",
    "test_loop11": "runs for a number of rounds that the data decide",
    "tive_delta_expanded": "runs for a number of rounds that the data decide",
}
"""Parts of the names of examples that are not run, and why."""

WITHOUT_EXAMPLE = {
    "Affine": "experimental",
    "Crop": "experimental",
    "GlobalLpPool": "the standard has none",
    "ImageScaler": "experimental",
    "MaxRoiPool": "the standard has none",
    "Not": "only of opset 1",
    "SimplifiedLayerNormalization": "onnxruntime's own",
}


@cache
def examples() -> dict[str, list[Any]]:
    """Give the examples by operator; under "" those that are written out in other ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some overflow or divide by zero on purpose
        found = load_model_tests(kind="node")
    by_op: dict[str, list[Any]] = defaultdict(list)
    for example in found:
        nodes = list(every_node(inlined(example.model).graph))
        if all(is_runnable(node) for node in nodes) and not any(part in example.name for part in EXCEPTIONS):
            by_op[nodes[0].op_type if len(nodes) == 1 else ""].append(example)
    return by_op


def inlined(model: ModelProto) -> ModelProto:
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def is_runnable(node: NodeProto) -> bool:
    known = find(node.domain, node.op_type) is not None
    return known or (is_default_domain(node.domain) and node.op_type in INLINED)


def arrays(values: Sequence[Any]) -> Data:
    return [numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value) for value in values]


def with_stored_sizes(model: ModelProto, inputs: Data) -> tuple[ModelProto, Data]:
    """Store what operators take as sizes, as real models do."""
    stored = ModelProto()
    stored.CopyFrom(model)
    sizes = set()
    for node in every_node(stored.graph):
        found = find(node.domain, node.op_type)
        sizes |= {name for position, name in enumerate(node.input) if found and position in found.sizes}
    fed, rest = [], []
    for value, given in zip(stored.graph.input, inputs, strict=True):
        if value.name in sizes or not given.size:
            stored.graph.initializer.append(numpy_helper.from_array(given, value.name))
        else:
            fed.append(value)
            rest.append(given)
    del stored.graph.input[:]
    stored.graph.input.extend(fed)
    stored.ir_version = max(stored.ir_version, 4)
    return stored, rest


def check(name: str, model: ModelProto, inputs: Data, outputs: Data) -> None:
    with torch.no_grad():
        found = Executor(model, Path()).eval()(*(as_tensor(given) for given in inputs))
    halves = any(array.dtype.itemsize == 2 for array in outputs)
    for one, other in zip(found, outputs, strict=True):
        wanted = as_tensor(other)
        assert one.shape == wanted.shape, name
        assert one.dtype == wanted.dtype or "quantize" in name, name  # quantised numbers are held as floats
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if halves else {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(
            one.double(), wanted.double(), equal_nan=True, msg=lambda text: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("op", [*sorted({op for domain, op in FUNCTIONS if not domain} - set(WITHOUT_EXAMPLE)), ""])
def test_an_operator_gives_what_the_standard_says(op: str) -> None:
    assert examples()[op], "no example"
    for example in examples()[op]:
        for inputs, outputs in example.data_sets:
            given, wanted = arrays(inputs), arrays(outputs)
            check(example.name, *with_stored_sizes(example.model, given), wanted)
            if op and all(array.size and array.dtype.kind != "V" for array in given):
                check(f"{example.name}, sizes computed", example.model, given, wanted)


def test_every_operator_with_a_rule_has_a_function_but_those_that_compute_with_integers() -> None:
    known = {f"{domain}.{op}".lstrip(".") for domain, op in FUNCTIONS} | set(INLINED)
    quantised = {"ConvInteger", "MatMulInteger", "com.microsoft.QGemm"}
    assert set(RULES) - known == quantised | {op for op in RULES if "QLinear" in op}


def test_every_exception_is_needed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [example.name for example in load_model_tests(kind="node")]
    assert all(any(part in name for name in names) for part in EXCEPTIONS)

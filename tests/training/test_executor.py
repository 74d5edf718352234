"""An ONNX graph in PyTorch: the same answers, parameters under their own names, what was not trained to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from nets import Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.training.executor import Executor


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def expected(model: ModelProto, *inputs: torch.Tensor) -> list[Any]:
    names = [value.name for value in model.graph.input]
    return runtime.evaluate(model, dict(zip(names, (x.numpy() for x in inputs), strict=False)))


def small() -> ModelProto:
    b = Builder()
    x = b.relu(b.norm(b.conv(b.stem(8), 8, 8, 3, 3, pads=[1] * 4), 8))
    return b.done(b.head(x, 8), rank=2)


def run(executor: Executor, *inputs: torch.Tensor) -> list[Any]:
    with torch.no_grad():
        return [y.numpy() for y in executor.eval()(*inputs)]


def test_any_batch_size_gives_what_onnxruntime_gives() -> None:
    model = small()
    executor = Executor(model, Path())
    for batch in (1, 4, 2, 4):
        x = data(batch, 3, 6, 6)
        np.testing.assert_allclose(run(executor, x)[0], expected(model, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch itself uses it
def test_a_compiled_model_gives_the_same() -> None:
    model, x = small(), data(2, 3, 6, 6)
    eager, compiled = Executor(model, Path()), Executor(model, Path(), compiled=True)
    np.testing.assert_allclose(run(compiled, x)[0], run(eager, x)[0], rtol=1e-4, atol=1e-5)


def test_gradients_and_statistics_are_those_of_the_same_network_in_torch() -> None:
    model, x = small(), data(8, 3, 6, 6)
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    one, two, norm, head = (
        [stored[name] for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type in ("Conv", "BatchNormalization", "Gemm")
    )
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():
        for layer, values in ((layers[0], one), (layers[2], two), (layers[3], norm[:2]), (layers[7], head)):
            layer.weight.copy_(values[0])
            layer.bias.copy_(values[1])
        layers[3].running_mean.copy_(norm[2])
        layers[3].running_var.copy_(norm[3])
    executor = Executor(model, Path()).train()
    labels = torch.arange(8) % 5
    F.cross_entropy(executor(x)[0], labels).backward()
    F.cross_entropy(layers.train()(x), labels).backward()
    names = [name for node in model.graph.node for name in node.input[1:] if name in stored]
    theirs = {}
    places = ((layers[0], names[:2]), (layers[2], names[2:4]), (layers[3], names[4:6]), (layers[7], names[8:]))
    for layer, given in places:
        theirs |= {given[0]: layer.weight.grad, given[1]: layer.bias.grad}
    assert set(theirs) == {name for name, values in executor.named() if isinstance(values, nn.Parameter)}
    for name, grad in theirs.items():
        assert name == names[3] or grad.abs().max() > 1e-4  # the norm takes away what that bias adds
        torch.testing.assert_close(executor.tensor(name).grad, grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(executor.tensor(names[6]), layers[3].running_mean)
    torch.testing.assert_close(executor.tensor(names[7]), layers[3].running_var)


def test_untrained_it_gives_the_model_back_to_the_letter() -> None:
    model = small()
    executor = Executor(model, Path())
    run(executor, data(2, 3, 6, 6))
    assert executor.model().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_trained_numbers_are_written_where_they_were() -> None:
    model, x = small(), data(2, 3, 6, 6)
    executor = Executor(model, Path())
    with torch.no_grad():
        for _, values in executor.named():
            values.mul_(1.5)
    written = executor.model()
    assert [t.name for t in written.graph.initializer] == [t.name for t in model.graph.initializer]
    np.testing.assert_allclose(expected(written, x)[0], run(executor, x)[0], rtol=1e-4, atol=1e-5)


def biases_shared() -> ModelProto:
    """Two convolutions that share a bias, one of them through an alias; the second layer is used again."""
    b = Builder()
    first, second, bias = b.weight(4, 4, 1, 1), b.weight(4, 4, 1, 1), b.store(np.zeros(4))
    x = b.node("Conv", b.input("N", 4, 3, 3), first, bias)
    y = b.node("Conv", x, second, b.node("Identity", bias))
    z = b.node("Conv", y, second, bias)
    return b.done(b.node("Relu", z))


def test_a_bias_that_exporters_merged_is_trained_for_each_layer_and_that_of_a_layer_used_twice_as_one() -> None:
    model, x = biases_shared(), data(2, 4, 3, 3)
    executor = Executor(model, Path())
    assert len(list(executor.parameters())) == 4
    assert executor.model() == model
    with torch.no_grad():
        list(executor.parameters())[3].add_(1)
    written = executor.model()
    onnx.checker.check_model(written, full_check=True)
    assert len(written.graph.initializer) == 4
    assert written.graph.node[-2].input[2] == written.graph.node[-3].input[2] != model.graph.node[0].input[2]
    np.testing.assert_allclose(expected(written, x)[0], run(executor, x)[0], rtol=1e-5, atol=1e-5)


def test_single_numbers_bounds_and_sizes_are_not_trained() -> None:
    b = Builder()
    x = b.node("Mul", b.stem(4), b.store(0.5))
    x = b.node("Clip", x, b.store(0.0), b.store(6.0))
    x = b.node("Add", x, b.vector(4, 1, 1))
    executor = Executor(b.done(x), Path())
    assert [tuple(p.shape) for p in executor.parameters()] == [(4, 3, 3, 3), (4,), (4, 1, 1)]


def test_the_one_slope_of_a_prelu_is_trained() -> None:
    b = Builder()
    executor = Executor(b.done(b.node("PRelu", b.input("N", 4, 3, 3), b.positive(1))), Path())
    assert [tuple(p.shape) for p in executor.parameters()] == [(1,)]


def test_half_precision_is_trained_in_single_and_written_back_as_it_was() -> None:
    b = Builder(dtype=np.float16)
    model = b.done(b.relu(b.conv(b.input("N", 3, 4, 4), 3, 4)))
    executor = Executor(model, Path())
    assert {p.dtype for p in executor.parameters()} == {torch.float32}
    assert executor.model() == model
    with torch.no_grad():
        for p in executor.parameters():
            p.add_(0.25)
    assert {t.data_type for t in executor.model().graph.initializer} == {TensorProto.FLOAT16}


def test_an_operator_without_a_function_is_an_error_that_names_node_and_operator() -> None:
    b = Builder()
    model = b.done(b.node("Det", b.input("N", 3, 3)))
    with pytest.raises(InputError, match=r"node 'Det_0' \(Det\)"):
        run(Executor(model, Path()), data(2, 3, 3))


def branch(name: str, op: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.full(3, 2, np.float32), f"{name}.w")
    return helper.make_graph([helper.make_node(op, ["x", f"{name}.w"], [f"{name}.y"])], name, [], [output], [weight])


@pytest.mark.parametrize("condition", [True, False])
def test_an_if_whose_condition_is_known_is_its_branch(condition: bool) -> None:
    b = Builder()
    x = b.input("N", 3)
    known = b.store(condition, bool)
    y = b.node("If", known, then_branch=branch("then", "Mul"), else_branch=branch("else", "Add"))
    model, given = b.done(y, rank=2), data(2, 3)
    assert x == "x"
    np.testing.assert_allclose(run(Executor(model, Path()), given)[0], expected(model, given)[0])


def test_an_if_that_looks_at_the_data_is_an_error() -> None:
    b = Builder()
    b.input("N", 3)
    seen = b.node("Greater", b.node("ReduceMax", "x", keepdims=0), b.store(0.0))
    model = b.done(b.node("If", seen, then_branch=branch("then", "Mul"), else_branch=branch("else", "Add")), rank=2)
    with pytest.raises(InputError, match=r"\(If\) decides by the data"):
        run(Executor(model, Path()), data(2, 3))


def test_names_inside_one_if_are_nothing_to_the_next() -> None:
    """A stored factor in the first, a computed one of the same name in the second, another stored one in the third."""
    b = Builder()
    x, yes = b.input("N", 3), b.store(True, bool)
    other = [branch(f"other{number}", "Add") for number in range(3)]
    for number, factor in enumerate((2.0, None, 5.0)):
        made = helper.make_node("ReduceMax", [x], ["k"], keepdims=0)
        if factor is not None:
            made = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(factor)))
        nodes = [made, helper.make_node("Clip", [x, "", "k"], ["low"]), helper.make_node("Mul", ["low", "k"], ["y"])]
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        then = helper.make_graph(nodes, f"then{number}", [], [out])
        x = b.node("If", yes, then_branch=then, else_branch=other[number])
    model, given = b.done(x, rank=2), data(2, 3)
    np.testing.assert_allclose(run(Executor(model, Path()), given)[0], expected(model, given)[0], rtol=1e-5)


def loop(rounds: int, last: int | None = None) -> ModelProto:
    """Multiply by the weights so often, or until after the round `last`, and keep what each round gives."""
    inner = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
        ("round", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, None),
    )]  # fmt: skip
    nodes = [
        helper.make_node("Identity", ["go"], ["again"])
        if last is None
        else helper.make_node("Less", ["round", "last"], ["again"]),
        helper.make_node("MatMul", ["state", "weight"], ["product"]),
        helper.make_node("Cast", ["round"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["product", "number"], ["next"]),
        helper.make_node("Identity", ["next"], ["kept"]),
    ]
    made = [helper.make_tensor_value_info("again", TensorProto.BOOL, [])]
    made += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("next", "kept")]
    body = helper.make_graph(nodes, "body", inner, made)
    b = Builder()
    b.input("N", 3)
    b.initializers.append(numpy_helper.from_array(b.rng.standard_normal((3, 3)).astype(np.float32), "weight"))
    b.initializers.append(numpy_helper.from_array(np.asarray(last or 0, np.int64), "last"))
    state, all_ = b.nodes_of("Loop", b.store(rounds, np.int64), b.store(True, bool), "x", outputs=2, body=body)
    return b.done(state, all_, rank=2)


@pytest.mark.parametrize(("rounds", "last"), [(1, None), (4, None), (4, 2), (4, 0), (3, 9)])
def test_a_loop_of_a_known_number_of_rounds_is_so_many_copies(rounds: int, last: int | None) -> None:
    model, given = loop(rounds, last), data(2, 3)
    executor = Executor(model, Path())
    for found, wanted in zip(run(executor, given), expected(model, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    executor(given)[0].sum().backward()
    assert executor.tensor("weight").grad is not None


def test_a_loop_of_no_round_that_collects_something_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(Loop\) collects what no round gives"):
        run(Executor(loop(0), Path()), data(2, 3))


def test_tensors_inside_can_be_asked_for() -> None:
    model, x = small(), data(2, 3, 6, 6)
    name = model.graph.node[1].output[0]
    executor = Executor(model, Path(), [name, model.graph.output[0].name])
    inner, logits = run(executor, x)
    assert inner.shape == (2, 8, 6, 6)
    np.testing.assert_allclose(logits, expected(model, x)[0], rtol=1e-4, atol=1e-5)


def test_another_number_of_inputs_is_an_error() -> None:
    with pytest.raises(InputError, match="takes 1 inputs"):
        Executor(small(), Path())(data(1, 3, 6, 6), data(1))

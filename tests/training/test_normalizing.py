"""BatchNormalization put in changes nothing, in onnxruntime; folded in again, nothing either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_nets import CLASSES, IMAGE, Draft
from onnx import ModelProto
from onnxruntime.transformers import float16

from onnxprune import runtime
from onnxprune.model import analyse
from onnxprune.training.executor import Executor
from onnxprune.training.normalizing import PARAMETERS, find_norms, fold, insert, is_normalised
from onnxprune.training.sharing import writable, write


def net(ir_version: int = 8, **attributes: Any) -> ModelProto:
    """A stem, a convolution of four groups, a transposed one of two, and a head."""
    d = Draft()
    x = d.relu("relu1", d.conv("conv1", "image", 3, 8))
    x = d.relu("relu2", d.conv("conv2", x, 8, 12, group=4, **attributes))
    d.store("up.weight", d.rng.standard_normal((12, 5, 2, 2)))
    d.store("up.bias", d.rng.standard_normal(10))
    x = d.relu("relu3", d.add("ConvTranspose", "up", x, "up.weight", "up.bias", strides=[2, 2], group=2))
    model = d.model([("image", ("N", *IMAGE))], [(d.head(x, 10), ("N", CLASSES))])
    model.ir_version = ir_version
    return model


def feeds(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"image": rng.standard_normal((5, *IMAGE)).astype(np.float32)} for _ in range(count)]


def answers(model: ModelProto) -> Any:
    return runtime.evaluate(model, feeds(1)[0])[0]


def found(model: ModelProto) -> list[Any]:
    return find_norms(model, analyse(model, Path(), runtime.evaluate, {}).shapes)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_what_is_put_in_and_folded_again_changes_no_answer(ir_version: int) -> None:
    model = net(ir_version)
    if ir_version < 4:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    norms = found(model)
    assert [norm.weight for norm in norms] == ["conv1.weight", "conv2.weight", "up.weight"]
    with_norms = insert(model, Path(), norms, feeds())
    onnx.checker.check_model(with_norms, full_check=True)
    np.testing.assert_allclose(answers(with_norms), answers(model), rtol=1e-4, atol=1e-5)
    again = fold(with_norms, model, Path(), norms)
    np.testing.assert_allclose(answers(again), answers(model), rtol=1e-4, atol=1e-5)
    assert [(n.op_type, n.input, n.output) for n in again.graph.node] == [
        (n.op_type, n.input, n.output) for n in model.graph.node
    ]


def test_numbers_that_were_trained_come_back_in_the_old_structure() -> None:
    model = net()
    norms = found(model)
    with_norms = insert(model, Path(), norms, feeds())
    rng = np.random.default_rng(2)
    for name, tensor in writable(with_norms).items():
        drawn = rng.uniform(0.5, 1.5, tuple(tensor.dims))
        write(tensor, drawn if name.endswith("variance") else drawn * rng.choice([-1, 1], drawn.shape), Path())
    np.testing.assert_allclose(
        answers(fold(with_norms, model, Path(), norms)), answers(with_norms), rtol=1e-4, atol=1e-4
    )


def test_it_starts_with_the_mean_and_variance_of_all_samples_together() -> None:
    model = net()
    norms = found(model)
    with_norms = insert(model, Path(), norms, feeds())
    inner = norms[1].inner
    session = runtime.open_with(with_norms, [inner, norms[1].output], Path())
    values = np.concatenate([session.run(feed, [inner])[0] for feed in feeds()])
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in with_norms.graph.initializer}
    _, shift, mean, variance = (stored[norms[1].parameter(kind)] for kind in PARAMETERS)
    np.testing.assert_allclose(variance, values.var(axis=(0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)
    before = runtime.open_with(model, ["conv2.out"], Path())
    answered = np.concatenate([before.run(feed, ["conv2.out"])[0] for feed in feeds()])
    np.testing.assert_allclose(shift, answered.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_every_filter_gets_the_length_of_its_first_draw_and_one_of_zeros_stays() -> None:
    model = net()
    stored = writable(model)
    weight = onnx.numpy_helper.to_array(stored["conv2.weight"]).copy()
    weight[3] = 0
    write(stored["conv2.weight"], weight, Path())
    norms = found(model)
    with_norms = insert(model, Path(), norms, feeds())
    weights = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in writable(with_norms).items()}
    lengths = np.linalg.norm(weights["conv2.weight"].reshape(12, -1), axis=1)
    np.testing.assert_allclose(lengths, [2**0.5 if row != 3 else 0 for row in range(12)], rtol=1e-5)
    halves = weights["up.weight"].reshape(2, 6, 5, 4)  # groups, inputs, outputs of a group, kernel
    np.testing.assert_allclose(np.sqrt(np.square(halves).sum(axis=(1, 3))), 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(answers(with_norms), answers(model), rtol=1e-4, atol=1e-5)


def with_biases_merged() -> ModelProto:
    """Two convolutions that read one bias, as exporters merge equal numbers, and one with a bias of its own."""
    d = Draft()
    x = d.relu("relu1", d.conv("conv1", "image", 3, 8))
    x = d.relu("relu2", d.conv("conv2", x, 8, 8))
    x = d.relu("relu3", d.conv("conv3", x, 8, 8))
    model = d.model([("image", ("N", *IMAGE))], [(d.head(x, 8), ("N", CLASSES))])
    shared = model.graph.node[2].input[2]
    model.graph.node[4].input[2] = shared
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == shared)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(8, np.float32), shared))
    return model


def test_biases_that_were_one_and_became_two_in_training_are_both_there_once_it_is_folded() -> None:
    model = with_biases_merged()
    norms = found(model)
    assert [norm.weight for norm in norms] == ["conv1.weight"]
    executor = Executor(insert(model, Path(), norms, feeds()), Path())
    with torch.no_grad():
        for number, values in enumerate(executor.parameters()):
            values.mul_(1 + 0.1 * number).add_(0.01 * number)
    trained = executor.model()
    folded = fold(trained, model, Path(), norms)
    onnx.checker.check_model(folded, full_check=True)
    np.testing.assert_allclose(answers(folded), answers(trained), rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in model.graph.node]
    assert len(folded.graph.initializer) == len(model.graph.initializer) + 1


def test_a_variance_too_large_for_half_precision_is_none_too_large() -> None:
    model = float16.convert_float_to_float16(net())
    for tensor in model.graph.initializer:
        if tensor.name == "conv1.weight":
            write(tensor, onnx.numpy_helper.to_array(tensor) * 0.02, Path())
    norms = found(model)
    wide = [{"image": 300 * feed["image"].astype(np.float16)} for feed in feeds()]
    with_norms = insert(model, Path(), norms, wide)
    variance = writable(with_norms)[norms[0].parameter("variance")]
    assert np.isfinite(onnx.numpy_helper.to_array(variance)).all()
    assert onnx.numpy_helper.to_array(variance).max() > np.finfo(np.float16).max
    x = torch.from_numpy(wide[0]["image"])
    with torch.no_grad():
        ours, theirs = (Executor(proto, Path()).eval()(x)[0].float().numpy() for proto in (with_norms, model))
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02 * np.abs(theirs).max())


def without_bias(model: ModelProto) -> None:
    del model.graph.node[0].input[2:]


def with_a_norm_behind(model: ModelProto) -> None:
    for kind in PARAMETERS:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(8, np.float32), kind))
    norm = onnx.helper.make_node("BatchNormalization", ["conv1.out", *PARAMETERS], ["normalised"])
    model.graph.node.insert(1, norm)
    model.graph.node[2].input[0] = "normalised"


def as_an_output(model: ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("conv1.out", 1, ("N", 8, 12, 12)))


def with_a_shared_weight(model: ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["conv1.weight"], ["same"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("same", 1, (8, 3, 3, 3)))


@pytest.mark.parametrize("change", [without_bias, with_a_norm_behind, as_an_output, with_a_shared_weight])
def test_a_convolution_that_had_none_is_left_alone(change: Any) -> None:
    model = net()
    change(model)
    assert [norm.weight for norm in found(model)] == ["conv2.weight", "up.weight"]


def test_a_convolution_with_one_pixel_to_normalise_is_left_alone() -> None:
    assert [norm.weight for norm in found(net(strides=[12, 12]))] == ["conv1.weight", "up.weight"]


def with_norms(convolutions: int, norms: int, products: int = 0) -> ModelProto:
    d = Draft()
    x = "image"
    for number in range(convolutions):
        x = d.conv(f"conv{number}", x, 3, 3)
        if number < norms:
            parameters = [d.store(f"norm{number}.{kind}", np.ones(3)) for kind in "abcd"]
            x = d.add("BatchNormalization", f"norm{number}", x, *parameters)
    for number in range(products):
        x = d.add("MatMul", f"product{number}", x, d.store(f"matrix{number}", np.eye(IMAGE[2])))
    return d.model([("image", ("N", *IMAGE))], [(x, ("N", *IMAGE))])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((2, 2), True), ((4, 2), True), ((4, 1), False), ((4, 0), False), ((2, 2, 2), True), ((2, 2, 3), False)],
)
def test_large_steps_are_for_networks_most_of_whose_layers_are_normalised(
    layers: tuple[int, ...], expected: bool
) -> None:
    assert is_normalised(with_norms(*layers)) == expected

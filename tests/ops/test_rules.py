"""Every rule, through tiny networks that a reader can check by hand, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import nets
import numpy as np
import oracle
import pytest
import test_more_rules
from nets import MODES, NETS, Builder
from onnx import ModelProto

from onnxprune import channels, model, runtime
from onnxprune.ops import RULES
from onnxprune.plan import Plan

ONE_OPERAND = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal"),
    *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan"),
    *("Tanh", "ThresholdedRelu", "Swish", "IsInf", "IsNaN"),
)
TWO_OPERANDS = ("Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Pow", "PRelu", "Sub", "Sum")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
LOGIC = ("And", "Or", "Xor")
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


CASES = [(name, mode) for name, net in NETS.items() for mode in net.modes]


def find(proto: ModelProto, mode: str = "default") -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}), **MODES[mode])


def widths(proto: ModelProto, mode: str = "default") -> tuple[int, ...]:
    return tuple(sorted(oracle.widths(find(proto, mode))))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_net_has_the_groups_that_a_reader_finds(name: str, mode: str) -> None:
    assert widths(NETS[name].build(), mode) == NETS[name].modes[mode]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_cut_net_equals_the_original_without_the_removed_slices(name: str, mode: str) -> None:
    for seed in range(4):
        oracle.check(NETS[name].build(), seed=seed, **MODES[mode])


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_net_can_go_down_to_one_channel_a_group(name: str, mode: str) -> None:
    proto = NETS[name].build()
    for channel in (0, -1):
        kept = Plan(tuple(np.arange(width)[[channel]] for width in oracle.widths(find(proto, mode))))
        oracle.check(proto, kept=kept, **MODES[mode])


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_an_error_in_any_cut_layer_of_a_net_would_show(name: str, mode: str) -> None:
    proto = NETS[name].build()
    halves = tuple(np.arange(width)[:: 2 if width > 1 else 1] for width in oracle.widths(find(proto, mode)))
    assert oracle.blind_layers(oracle.check(proto, kept=Plan(halves), **MODES[mode])) == []


def between_convolutions(build: Callable[[Builder, str], str], opset: int = 18) -> ModelProto:
    b = Builder(opset=opset)
    return b.done(b.conv(build(b, b.stem(8)), 8, 4))


def one_operand(op: str, b: Builder, x: str) -> str:
    if op in ("Acos", "Asin", "Atanh"):
        x = b.node("Tanh", x)
    elif op in ("Acosh", "Log", "Reciprocal"):
        x = b.node("Add", x, b.store(1.5))
    result = b.node(op, x)
    return b.node("Cast", result, to=1) if op in ("IsInf", "IsNaN") else result


@pytest.mark.parametrize("op", ONE_OPERAND)
def test_channels_pass_an_operator_of_one_operand(op: str) -> None:
    opset = {"Gelu": 20, "Swish": 24}.get(op, 18)
    proto = between_convolutions(partial(one_operand, op), opset)
    assert widths(proto) == (8,)
    oracle.check(proto)


def two_operands(op: str, b: Builder, x: str) -> str:
    attributes = {"fmod": 1} if op == "Mod" else {}
    joined = b.node(op, b.node("Abs", x), b.positive(8, 1, 1), **attributes)
    return b.node(op, joined, b.node("Add", b.node("Sigmoid", x), b.store(0.5)), **attributes)


def comparison(op: str, b: Builder, x: str) -> str:
    return b.node("Where", b.node(op, x, b.positive(1, 8, 1, 1)), x, b.node("Neg", x))


def logic(op: str, b: Builder, x: str) -> str:
    large, small = b.node("Greater", x, b.store(0.5)), b.node("Less", x, b.positive(8, 1, 1))
    return b.node("Where", b.node("Not", b.node(op, large, small)), x, b.positive(8, 1, 1))


@pytest.mark.parametrize(
    ("build", "op"),
    [
        *((two_operands, op) for op in TWO_OPERANDS),
        *((comparison, op) for op in COMPARISONS),
        *((logic, op) for op in LOGIC),
    ],
)
def test_channels_of_all_operands_belong_together(build: Callable[[str, Builder, str], str], op: str) -> None:
    proto = between_convolutions(partial(build, op))
    assert widths(proto) == (8,)
    oracle.check(proto)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [12, 18])
def test_channels_pass_a_reduction_over_pixels(op: str, opset: int) -> None:
    def reduce(b: Builder, x: str) -> str:
        x = b.node("Add", b.node("Sigmoid", x), b.store(0.5))
        if opset >= (13 if op == "ReduceSum" else 18):
            return b.node(op, x, b.integers(2, 3))
        return b.node(op, x, axes=[2, 3])

    proto = between_convolutions(reduce, opset)
    assert widths(proto) == (8,)
    oracle.check(proto)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_channels_stay_where_a_softmax_sums_over_them(op: str) -> None:
    assert widths(between_convolutions(lambda b, x: b.node(op, x, axis=1))) == ()
    assert widths(between_convolutions(lambda b, x: b.node(op, x, axis=-1))) == (8,)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_channels_pass_a_search_along_another_axis(op: str) -> None:
    proto = between_convolutions(lambda b, x: b.node("Cast", b.node(op, x, axis=-1), to=1))
    assert widths(proto) == (8,)
    oracle.check(proto)


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_the_macs_of_recurrent_layers_are_counted(op: str) -> None:
    gates = {"GRU": 3, "RNN": 1}[op]
    b = Builder()
    x = b.node("Unsqueeze", b.linear(b.relu(b.linear(b.input("N", 6), 6, 8)), 8, 5), b.integers(0))
    weights = b.weight(1, 4 * gates, 5), b.weight(1, 4 * gates, 4)
    proto = b.done(b.nodes_of(op, x, *weights, outputs=1, hidden_size=4)[0])
    assert sorted(oracle.widths(find(proto))) == [5, 8]  # what it reads can shrink
    before, after = oracle.check(proto).macs
    assert before == 6 * 8 + 8 * 5 + 4 * gates * (5 + 4)
    assert before > after


def test_every_operator_with_a_rule_is_tried_somewhere() -> None:
    tried = {op for net in NETS.values() for op in oracle.operators(net.build())}
    tried.update(ONE_OPERAND, TWO_OPERANDS, COMPARISONS, LOGIC, REDUCTIONS)
    tried.update({"ArgMin", "GRU", "RNN", "Hardmax", "Not"})
    tried.add("SimplifiedLayerNormalization")  # onnxruntime's, under the name of the standard: the checker refuses it
    assert set(RULES) - tried - test_more_rules.operators() == set()


def test_a_shuffle_that_another_shape_cannot_write_becomes_one_gather() -> None:
    proto = NETS["shuffled"].build()
    unequal = oracle.check(proto, kept=Plan((np.asarray([0, 1, 2, 5, 6]),)))
    assert oracle.operators(unequal.small) == {"Conv": 2, "Relu": 1, "Gather": 1}
    equal = oracle.check(proto, kept=Plan((np.asarray([0, 3, 4, 7]),)))
    assert oracle.operators(equal.small) == oracle.operators(proto)


def test_a_net_that_loses_nothing_keeps_its_shuffles() -> None:
    proto = NETS["shuffled"].build()
    assert oracle.check(proto, kept=Plan((np.arange(8),))).small == proto


def test_groups_that_leave_a_choice_go_whole_unless_their_inside_is_asked_for() -> None:
    proto = NETS["eight_groups"].build()
    kept = Plan(tuple(np.arange(width // 2) for width in oracle.widths(find(proto))))
    whole = oracle.check(proto, kept=kept)
    assert whole.content["removed_in_groups"] == []
    inside = oracle.check(proto, slots=True)
    (entry,) = inside.content["removed_in_groups"]
    assert [len(indices) for indices in entry["indices"]] == [1] * 8
    attributes = {a.name: a.i for node in inside.small.graph.node for a in node.attribute}
    assert attributes["group"] == 8


def test_cuts_that_are_not_exact_are_marked() -> None:
    proto = NETS["layer_norm"].build()
    assert {group.width: group.is_approximate for group in find(proto, "approximate").groups} == {6: False, 8: True}
    assert [group.is_approximate for group in find(proto).groups] == [False]


def test_the_table_of_nets_has_no_two_of_a_name() -> None:
    source = Path(nets.__file__).read_text(encoding="utf-8")
    assert source.count("\n@net(") == len(NETS)

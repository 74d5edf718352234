"""LSTM, GRU and RNN, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.activations import activation
from onnxprune.training.functions.call import Call, Result, function
from onnxprune.training.functions.indexing import reversed_steps

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]

WITH_ALPHA = frozenset({"Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu"})
WITH_BETA = frozenset({"HardSigmoid"})


@dataclass(frozen=True)
class Layer:
    """One direction of a recurrent layer.

    Attributes:
        weight: of the inputs, gates by hidden units in a row.
        again: of the hidden state, laid out likewise.
        bias: what is added to the products with the inputs.
        again_bias: what is added to the products with the hidden state.
        activations: in the order of the standard.
        call: the node.
        peepholes: weights from the cell state to the gates of an LSTM.
    """

    weight: Tensor
    again: Tensor
    bias: Tensor | None
    again_bias: Tensor | None
    activations: Sequence[Activation]
    call: Call
    peepholes: Sequence[Tensor] = ()


Cell = Callable[[Layer, Tensor, States], States]


@function("LSTM", fixed=(5, 6))
def lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    p: Tensor | None = None,
) -> Result:
    """LSTM: all hidden states, the last one and the last cell state."""
    return _run(call, _lstm_step, ("Sigmoid", "Tanh", "Tanh"), x, (w, r, b, p), lengths, (hidden, cell))


@function("GRU", fixed=(5,))
def gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Result:
    """GRU: all hidden states and the last one."""
    return _run(call, _gru_step, ("Sigmoid", "Tanh"), x, (w, r, b, None), lengths, (hidden,))


@function("RNN", fixed=(5,))
def rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Result:
    """RNN: all hidden states and the last one."""
    return _run(call, _rnn_step, ("Tanh",), x, (w, r, b, None), lengths, (hidden,))


def _run(
    call: Call,
    cell: Cell,
    default: Sequence[str],
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
) -> Result:
    """Run all directions; with `layout` 1 the batch comes first, inside and outside."""
    batch_first = bool(call.attribute("layout", 0))
    if batch_first:
        x, initial = x.transpose(0, 1), [None if s is None else s.transpose(0, 1) for s in initial]
    direction = call.attribute("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    ran = []
    for number, layer in enumerate(_layers(call, default, *weights)):
        size = layer.again.shape[1]
        start = tuple(x.new_zeros(x.shape[1], size) if s is None else s[number] for s in initial)
        ran.append(_steps(cell, layer, x, lengths, start, backwards[number]))
    everything = torch.stack([found for found, _ in ran], 1)
    last = [torch.stack(states) for states in zip(*(states for _, states in ran), strict=True)]
    if batch_first:
        everything, last = everything.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return call.given([everything, *last])


def _layers(
    call: Call, default: Sequence[str], w: Tensor, r: Tensor, b: Tensor | None, p: Tensor | None
) -> Iterator[Layer]:
    """Take the directions apart."""
    named = call.attribute("activations", list(default) * len(w))
    names = [name.decode() if isinstance(name, bytes) else name for name in named]
    alphas, betas = iter(call.attribute("activation_alpha", [])), iter(call.attribute("activation_beta", []))
    for number in range(len(w)):
        activations = []
        for place, name in enumerate(names[number * len(default) : (number + 1) * len(default)]):
            given = {"alpha": next(alphas, None) if name in WITH_ALPHA else None}
            given["beta"] = next(betas, None) if name in WITH_BETA else None
            run = activation(call, name, **{key: value for key, value in given.items() if value is not None})
            bound = call.attribute("clip") if place < 2 else None  # onnxruntime clips no cell state
            activations.append(partial(_clipped, bound, run))
        biases: Sequence[Tensor | None] = (None, None) if b is None else b[number].chunk(2)
        peepholes = () if p is None else p[number].chunk(3)
        yield Layer(w[number], r[number], biases[0], biases[1], activations, call, peepholes)


def _clipped(bound: float | None, run: Activation, x: Tensor) -> Tensor:
    return run(x if bound is None else x.clamp(-bound, bound))


def _steps(
    cell: Cell, layer: Layer, x: Tensor, lengths: Tensor | None, states: States, backwards: bool
) -> tuple[Tensor, States]:
    """Run one direction: all hidden states, zero behind the end of a sequence, and the last states."""
    x = _turned(x, lengths) if backwards else x
    found = []
    for number, inputs in enumerate(F.linear(x, layer.weight, layer.bias)):
        new = cell(layer, inputs, states)
        if lengths is None:
            states = new
            found.append(new[0])
        else:
            goes_on = (number < lengths).unsqueeze(1)
            states = tuple(torch.where(goes_on, one, old) for one, old in zip(new, states, strict=True))
            found.append(torch.where(goes_on, new[0], 0.0))
    everything = torch.stack(found)
    return (_turned(everything, lengths) if backwards else everything), states


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.flip(0) if lengths is None else reversed_steps(x, lengths, 0, 1)


def _lstm_step(layer: Layer, inputs: Tensor, states: States) -> States:
    hidden, cell = states
    gate, make, show = layer.activations
    i, o, f, c = (inputs + F.linear(hidden, layer.again, layer.again_bias)).chunk(4, 1)
    if layer.peepholes:
        i, f = i + layer.peepholes[0] * cell, f + layer.peepholes[2] * cell
    i = gate(i)
    f = 1 - i if layer.call.attribute("input_forget", 0) else gate(f)
    cell = f * cell + i * make(c)
    o = gate(o + layer.peepholes[1] * cell if layer.peepholes else o)
    return o * show(cell), cell


def _gru_step(layer: Layer, inputs: Tensor, states: States) -> States:
    (hidden,) = states
    gate, make = layer.activations
    size = hidden.shape[1]
    bias: Sequence[Tensor | None] = (None, None)
    if layer.again_bias is not None:
        bias = torch.split(layer.again_bias, [2 * size, size])
    z, r = gate(inputs[:, : 2 * size] + F.linear(hidden, layer.again[: 2 * size], bias[0])).chunk(2, 1)
    again = layer.again[2 * size :]
    if layer.call.attribute("linear_before_reset", 0):
        remembered = r * F.linear(hidden, again, bias[1])
    else:
        remembered = F.linear(r * hidden, again, bias[1])
    return (((1 - z) * make(inputs[:, 2 * size :] + remembered) + z * hidden),)


def _rnn_step(layer: Layer, inputs: Tensor, states: States) -> States:
    return (layer.activations[0](inputs + F.linear(states[0], layer.again, layer.again_bias)),)

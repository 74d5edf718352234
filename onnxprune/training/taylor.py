"""How much the answers change when a channel goes, to first order: from gradients, without labels.

The gradient of the loss along a channel is the sum of weight times gradient over the weights that read it (Molchanov et
al., 2019). Labels are drawn from the model's own answers: squared and averaged, the slopes then say how far the answers
move, as the KL divergence counts it (the Fisher information). Outputs that score no classes are summed up with random
signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.channels import Channels
from onnxprune.data import Data, feeds
from onnxprune.linear import by_group
from onnxprune.progress import Progress
from onnxprune.readers import Reader
from onnxprune.training.agreement import check_agreement
from onnxprune.training.executor import Executor
from onnxprune.training.losses import classifier, float_readings
from onnxprune.weights import Floats

SAMPLES, BATCH = 512, 8  # looked at in all, and together: drawn labels do not agree, so that slopes of a batch add up


def slopes(channels: Channels, readers: Sequence[Reader], data: Data, seed: int, progress: Progress) -> Floats:
    """Give the mean squared slope of the loss along each channel, by channel id.

    Args:
        channels: of the model.
        readers: its layers, see `find_readers`.
        data: samples; labels are not looked at.
        seed: of what is drawn.
        progress: told how many samples are done.

    Raises:
        InputError: the model holds an operator that PyTorch cannot run, or does not run as onnxruntime does.
    """
    model = channels.model
    readings = float_readings(model)
    names, scored = [reading.tensor for reading in readings], classifier(model, readings)
    executor = Executor(model.proto, model.folder, names).eval()
    named = dict(executor.named())
    weights = {reader.layer.index: named.get(_weight(channels, reader.layer.index)) for reader in readers}
    check_agreement(executor, model.proto, next(feeds(data, model, most=2)), names)
    batch = model.fixed_batch(data.inputs[0].name) or min(BATCH, len(data))
    count = min(SAMPLES, len(data)) // batch * batch
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(channels.count)
    for number, (feed, _) in enumerate(data.take(np.arange(count)).batches(batch)):
        progress.step(number * batch, count)
        executor.zero_grad()
        answers = executor(*(torch.from_numpy(x) for x in feed.values()))
        torch.autograd.backward(_loss(answers, scored, generator))
        total += np.square(_slopes(channels, readers, weights))
    return total / max(count, 1)


def _weight(channels: Channels, index: int) -> str:
    """Name the stored tensor that a layer reads as its weight, whichever name it goes by."""
    name: str = channels.model.graph.nodes[index].inputs[1].name
    if name in channels.model.dequantized:
        return channels.model.dequantized[name].name
    root: str = channels.aliases.root.get(name, name)
    return root


def _loss(answers: Sequence[Tensor], scored: int | None, generator: torch.Generator) -> Tensor:
    if scored is not None:
        rows = answers[scored].flatten(1)
        drawn = torch.multinomial(rows.detach().softmax(1), 1, generator=generator)[:, 0]
        return F.cross_entropy(rows, drawn, reduction="sum")
    signed = [y * (torch.randint(0, 2, y.shape, generator=generator) * 2 - 1) for y in answers]
    parts = [y.sum() / (y.shape[1:].numel() * y.detach().var(correction=0) + 1e-12).sqrt() for y in signed]
    return torch.stack(parts).sum()


def _slopes(channels: Channels, readers: Sequence[Reader], weights: dict[int, Tensor | None]) -> Floats:
    """Add up weight times gradient over all that reads a channel."""
    found = np.zeros(channels.count + 1)  # the last is where `channel_of` says FROZEN
    for reader in readers:
        layer, weight = reader.layer, weights[reader.layer.index]
        if weight is None or weight.grad is None:
            continue
        along = by_group((weight.detach() * weight.grad).double().numpy(), len(layer.x), layer.outputs_first)
        slope = along.sum(axis=(1, 3))
        slope[reader.goes_along(channels.channel_of)] = 0  # what passes a channel on is not where it is read
        np.add.at(found, channels.channel_of[layer.x], slope)
    return found[:-1]

"""Seeded initial weights that let a defect show.

With the usual start (gamma 1, beta 0, running mean 0, variance 1) many channels are interchangeable, and an edit that
keeps the wrong one goes unseen. Here every channel has its own scale, shift and statistics, and the activations keep
a sane size through the deepest network, so a wrong channel changes the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

_BIAS_STD = 0.1
_TOKEN_STD = 0.5
_START_STD = 0.02


def initialize(net: nn.Module, input_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Give a network drawn weights and fitting BatchNorm statistics; return it on the CPU, in eval mode.

    The draws come from a generator of their own: the global random state is neither read nor moved.

    Args:
        net: A network made of convolutions, dense layers, BatchNorms, LayerNorms and parameters that stand for
            activations; it may lie on the meta device.
        input_shape: Channels, height and width of one image.
        seed: The same seed gives the same weights, bit for bit.
    """
    generator = torch.Generator().manual_seed(seed)
    net.to_empty(device="cpu").eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in net.modules():
            _draw(module, generator)
        if norms:
            _measure_statistics(net, norms, input_shape, generator)
    return net


def untrained(net: nn.Module, seed: int) -> nn.Module:
    """Give a network the weights that training starts from (He et al., 2015); return it on the CPU, in eval mode.

    Args:
        net: A network as for `initialize`.
        seed: The same seed gives the same weights, bit for bit.
    """
    generator = torch.Generator().manual_seed(seed)
    net.to_empty(device="cpu").eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                mode: Literal["fan_in", "fan_out"] = "fan_in" if isinstance(module, nn.Linear) else "fan_out"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.reset_parameters()
            else:
                for parameter in module.parameters(recurse=False):  # class tokens, positions
                    parameter.normal_(std=_START_STD, generator=generator)
    return net


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Fill a module's own parameters."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
        if isinstance(module, nn.ConvTranspose2d):
            # The places of the kernel are shared out over as many output pixels as its strides make of one input pixel.
            inputs = module.weight[:, 0].numel() / module.groups / math.prod(module.stride)
            module.weight.normal_(std=math.sqrt(2 / inputs), generator=generator)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if module.bias is not None:
            module.bias.normal_(std=_BIAS_STD, generator=generator)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.weight.uniform_(0.5, 1.5, generator=generator)
        module.bias.normal_(std=_BIAS_STD, generator=generator)
    else:
        for parameter in module.parameters(recurse=False):  # class tokens, positions
            parameter.normal_(std=_TOKEN_STD, generator=generator)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums split over several differ in the last bits.

    For small networks it is hardly slower, and far faster where others keep the processor busy: threads wait for
    each other after every node.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure_statistics(
    net: nn.Module, norms: list[nn.BatchNorm2d], input_shape: tuple[int, int, int], generator: torch.Generator
) -> None:
    """Set the running statistics from one pass over random images."""
    # A deep layer of a small image has few pixels, so small images need more of them for a fair variance.
    batch = 2 if input_shape[-1] > 64 else 32
    images = torch.randn(batch, *input_shape, generator=generator)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average: after one pass, the statistics of that pass
        norm.train()
    with one_thread():
        net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()

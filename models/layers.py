"""What several networks of the zoo are made of."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def unit(
    channels: int,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Chain a convolution, a BatchNorm and, where one is given, an activation."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    chain = nn.Sequential(conv, nn.BatchNorm2d(width))
    return chain if act is None else chain.append(act())


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of each group out over all groups, like cards."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


def stem(channels: int, width: int, *, small: bool) -> OrderedDict[str, nn.Module]:
    """Start a ShuffleNet: a convolution, and for all but small images a step and a pool that halve them twice."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = unit(channels, width, 3, stride=1 if small else 2)
    if not small:
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return layers

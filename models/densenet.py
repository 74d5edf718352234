"""DenseNet-BC (Huang et al. 2016): every layer reads all maps made before it in its block.

Images of up to 64 pixels get the plain stem of the paper's CIFAR networks. The names of the layers follow torchvision;
its own files name the layers inside a block in an older way.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SQUEEZE = 4
# New maps of each layer, and layers of each block, by the depth.
_DEPTHS = {40: (12, (6, 6, 6)), 121: (32, (6, 12, 24, 16))}


class Layer(nn.Module):
    """Make a few new maps from many: a 1x1 and a 3x3 convolution, each behind its BatchNorm."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        inner = _SQUEEZE * growth
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        x = self.conv1(F.relu(self.norm1(x)))
        new: Tensor = self.conv2(F.relu(self.norm2(x)))
        return new


class Block(nn.Module):
    """Layers that each see the input and the maps of all layers before."""

    def __init__(self, channels: int, growth: int, count: int) -> None:
        super().__init__()
        for index in range(count):
            self.add_module(f"denselayer{index + 1}", Layer(channels + index * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; its output is the input and all new maps."""
        maps = [x]
        for layer in self.children():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


def network(input_shape: tuple[int, int, int], classes: int, *, depth: int) -> nn.Module:
    """Build DenseNet-BC-40 or DenseNet-121."""
    growth, layers = _DEPTHS[depth]
    small = input_shape[-1] <= 64
    channels = 2 * growth
    features: OrderedDict[str, nn.Module] = OrderedDict()
    if small:
        features["conv0"] = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
    else:
        features["conv0"] = nn.Conv2d(input_shape[0], channels, 7, stride=2, padding=3, bias=False)
        features["norm0"] = nn.BatchNorm2d(channels)
        features["relu0"] = nn.ReLU()
        features["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
    for block, count in enumerate(layers, start=1):
        if block > 1:
            features[f"transition{block - 1}"] = _transition(channels)
            channels //= 2
        features[f"denseblock{block}"] = Block(channels, growth, count)
        channels += growth * count
    features["norm5"] = nn.BatchNorm2d(channels)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(features),
            relu=nn.ReLU(),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, classes),
        )
    )


def _transition(channels: int) -> nn.Module:
    """Halve the channels and the image."""
    conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2)))

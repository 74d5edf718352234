"""EfficientNet-B0 (Tan and Le 2019): inverted residuals whose channels are weighed by squeeze and excitation.

The names of the layers follow torchvision, so its weight files load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import unit

# Expansion, kernel, first stride, width and blocks of each stage.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM = 32
_LAST = 1280
_SQUEEZE = 4


class Excitation(nn.Module):
    """Scale each channel by a factor between 0 and 1 that the means of all channels decide."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, narrow, 1)
        self.fc2 = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        means = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(means))))


class Block(nn.Module):
    """Expand, filter each channel alone, weigh, project; beside a shortcut where the shape stays."""

    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(unit(channels, hidden, 1, act=nn.SiLU))
        layers.append(unit(hidden, hidden, kernel, stride, groups=hidden, act=nn.SiLU))
        layers.append(Excitation(hidden, channels // _SQUEEZE))
        layers.append(unit(hidden, width, 1, act=None))
        self.block = nn.Sequential(*layers)
        self.joined = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out: Tensor = self.block(x)
        return x + out if self.joined else out


def network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build EfficientNet-B0."""
    channels = _STEM
    features: list[nn.Module] = [unit(input_shape[0], channels, 3, stride=2, act=nn.SiLU)]
    for expansion, kernel, stride, width, count in _STAGES:
        members = [Block(channels, width, expansion, kernel, stride)]
        members += [Block(width, width, expansion, kernel, 1) for _ in range(count - 1)]
        features.append(nn.Sequential(*members))
        channels = width
    features.append(unit(channels, _LAST, 1, act=nn.SiLU))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, classes)),
        )
    )

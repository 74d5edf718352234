"""SqueezeNet 1.1 (Iandola et al. 2016): no BatchNorm, no dense layer.

The names of the layers follow torchvision, so its weight files load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEM = 64
# Squeezed width and half of the expanded width of each block; a pool goes before the first block of a row.
_BLOCKS = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))


class Fire(nn.Module):
    """Squeeze the channels, then expand them by 1x1 and by 3x3 filters side by side."""

    def __init__(self, channels: int, narrow: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, width, 1)
        self.expand3x3 = nn.Conv2d(narrow, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))), 1)


def network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build SqueezeNet 1.1; the logits are the means of one map a class."""
    channels = _STEM
    features: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, stride=2), nn.ReLU()]
    for row in _BLOCKS:
        features.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
        for narrow, width in row:
            features.append(Fire(channels, narrow, width))
            channels = 2 * width
    head = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), classifier=head, flatten=nn.Flatten()))

"""ShuffleNet-v1 (Zhang et al. 2017), width 1.0: grouped 1x1 convolutions, and a shuffle that lets the groups mix.

Images of up to 64 pixels get a stem that keeps their size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import shuffle, stem, unit

# Width of the first stage by the number of groups; every further stage has twice the width.
_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_BLOCKS = (4, 8, 4)
_STEM = 24
_SQUEEZE = 4


class Block(nn.Module):
    """Squeeze, shuffle, filter each channel alone, expand; beside the input, or joined to its pooled form."""

    def __init__(self, channels: int, width: int, stride: int, groups: int, *, whole: bool) -> None:
        super().__init__()
        inner = width // _SQUEEZE
        self.groups = groups
        self.squeeze = unit(channels, inner, 1, groups=1 if whole else groups)
        self.depthwise = unit(inner, inner, 3, stride, groups=inner, act=None)
        self.expand = unit(inner, width if stride == 1 else width - channels, 1, groups=groups, act=None)
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = self.squeeze(x)
        if self.groups > 1:
            out = shuffle(out, self.groups)
        out = self.expand(self.depthwise(out))
        return F.relu(x + out if self.pool is None else torch.cat((self.pool(x), out), 1))


def network(input_shape: tuple[int, int, int], classes: int, *, groups: int) -> nn.Module:
    """Build ShuffleNet-v1 with 1, 2, 3, 4 or 8 groups."""
    channels = _STEM
    layers = stem(input_shape[0], channels, small=input_shape[-1] <= 64)
    for stage, count in enumerate(_BLOCKS):
        width = _WIDTHS[groups] * 2**stage
        members = []
        for index in range(count):
            # The few channels of the stem are not worth grouping.
            whole = stage == index == 0
            members.append(Block(channels, width, 2 if index == 0 else 1, groups, whole=whole))
            channels = width
        layers[f"stage{stage + 2}"] = nn.Sequential(*members)
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)

"""ShuffleNet-v2 (Ma et al. 2018): half of the channels pass each block untouched, then both halves are shuffled.

Images of up to 64 pixels get a stem that keeps their size. The names of the layers follow torchvision, so its weight
files load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import shuffle, stem, unit

# Widths of the three stages and of the last convolution, by the factor of the paper.
_WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = (4, 8, 4)
_STEM = 24


class Block(nn.Module):
    """Work on one half of the channels; a block that halves the image works on all of them, twice."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.split = stride == 1
        self.branch1 = nn.Sequential()
        if not self.split:
            self.branch1.extend(unit(channels, channels, 3, stride, groups=channels, act=None))
            self.branch1.extend(unit(channels, half, 1))
        self.branch2 = nn.Sequential(
            *unit(half if self.split else channels, half, 1),
            *unit(half, half, 3, stride, groups=half, act=None),
            *unit(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        left, right = x.chunk(2, dim=1) if self.split else (x, x)
        return shuffle(torch.cat((self.branch1(left), self.branch2(right)), 1), 2)


class Mean(nn.Module):
    """Average over the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Leave one number a channel."""
        return x.mean((2, 3))


def network(input_shape: tuple[int, int, int], classes: int, *, width: float) -> nn.Module:
    """Build ShuffleNet-v2 of a width 0.5, 1.0, 1.5 or 2.0."""
    channels = _STEM
    layers = stem(input_shape[0], channels, small=input_shape[-1] <= 64)
    *stages, last = _WIDTHS[width]
    for stage, (count, wide) in enumerate(zip(_BLOCKS, stages, strict=True), start=2):
        members = [Block(channels, wide, 2)] + [Block(wide, wide, 1) for _ in range(count - 1)]
        layers[f"stage{stage}"] = nn.Sequential(*members)
        channels = wide
    layers["conv5"] = unit(channels, last, 1)
    layers["mean"] = Mean()
    layers["fc"] = nn.Linear(last, classes)
    return nn.Sequential(layers)

"""U-Net (Ronneberger et al. 2015) with BatchNorm and padded convolutions: one logit a class and pixel."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import unit

_LEVELS = 4


class UNet(nn.Module):
    """Go down by pools and up again by transposed convolutions; every level hands its maps across."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(_LEVELS + 1)]
        self.down = nn.ModuleList(_pair(*sizes) for sizes in pairwise([channels, *widths]))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * wide, wide, 2, stride=2) for wide in widths[-2::-1])
        self.merge = nn.ModuleList(_pair(2 * wide, wide) for wide in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Classify every pixel."""
        x = self.down[0](image)
        across = []
        for down in self.down[1:]:
            across.append(x)
            x = down(self.pool(x))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((up(x), across.pop()), 1))
        logits: Tensor = self.head(x)
        return logits


def network(input_shape: tuple[int, int, int], classes: int, *, width: int) -> nn.Module:
    """Build a U-Net of five levels; the first has the given width, every further one twice that of the one above."""
    return UNet(input_shape[0], classes, width)


def _pair(channels: int, width: int) -> nn.Module:
    return nn.Sequential(*unit(channels, width, 3), *unit(width, width, 3))

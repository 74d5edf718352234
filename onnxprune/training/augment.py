"""Show images a little otherwise each time: shifted, mirrored, cropped, with a hole."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

AUGMENTS = ("auto", "small", "imagenet", "none")
"""What may be asked for; ``auto`` chooses by the size of the images."""

SMALL = 64  # pixels a side; larger images are cropped and resized
SHIFT = 8  # a side is moved by at most this part of it
SMALLEST_CROP = 0.35  # of the area; 0.08 is usual for training from scratch, fine-tuning wants less
LONGEST_CROP = 4 / 3  # most that one side of a crop is longer than the other


def choose(asked: str, shape: tuple[int, ...]) -> str:
    """Say how images of a shape (samples, channels, height, width) are augmented."""
    if asked != "auto":
        return asked
    if len(shape) != 4 or shape[1] > 4:
        return "none"
    return "small" if max(shape[2:]) <= SMALL else "imagenet"


def augment(x: Tensor, how: str, generator: torch.Generator, cutout: int = 0) -> Tensor:
    """Show a batch of images otherwise.

    Args:
        x: (samples, channels, height, width), of any type.
        how: ``small``, ``imagenet`` or ``none``.
        generator: draws, on the CPU, so that every device sees the same.
        cutout: pixels a side of the square that is set to zero; 0 for none (DeVries and Taylor, 2017).
    """
    if how == "none":
        return x
    x = shifted(x, generator) if how == "small" else cropped(x, generator)
    x = mirrored(x, generator)
    return with_hole(x, cutout, generator) if cutout else x


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its sides; what comes in is zero."""
    count, _, height, width = x.shape
    down, right = height // SHIFT, width // SHIFT
    top = torch.randint(0, 2 * down + 1, (count,), generator=generator).to(x.device)
    left = torch.randint(0, 2 * right + 1, (count,), generator=generator).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    padded = F.pad(x, (right, right, down, down)).permute(0, 2, 3, 1)
    each = torch.arange(count, device=x.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn half of the images round, left to right."""
    turned = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(turned[:, None, None, None], x.flip(3), x)


def cropped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Take a part of each image, of any place, size and proportion within bounds, and bring it to the full size."""
    count = len(x)
    area = torch.empty(count).uniform_(SMALLEST_CROP, 1, generator=generator)
    stretch = torch.empty(count).uniform_(-math.log(LONGEST_CROP), math.log(LONGEST_CROP), generator=generator).exp()
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    x_place = (2 * torch.rand(count, generator=generator) - 1) * (1 - width)
    y_place = (2 * torch.rand(count, generator=generator) - 1) * (1 - height)
    zero = torch.zeros(count)
    rows = [torch.stack([width, zero, x_place], 1), torch.stack([zero, height, y_place], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(x.device), list(x.shape), align_corners=False)
    if x.is_floating_point():
        return F.grid_sample(x, grid.to(x.dtype), padding_mode="reflection", align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False).round().to(x.dtype)


def with_hole(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square of each image to zero."""
    count, _, height, width = x.shape
    inside = []
    for size in (height, width):
        place = torch.randint(0, size, (count, 1), generator=generator).to(x.device)
        far = torch.arange(size, device=x.device) - (place - side // 2)
        inside.append((far >= 0) & (far < side))
    return x.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)

"""VGG-16 (Simonyan and Zisserman 2014), configuration D, with and without BatchNorm.

The names of the layers follow torchvision, so its ImageNet weight files load.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_DENSE = 4096


def network(input_shape: tuple[int, int, int], classes: int, *, normed: bool) -> nn.Module:
    """Build VGG-16; images of up to 64 pixels get a single dense layer for a head."""
    channels, side, _ = input_shape
    features: list[nn.Module] = []
    for widths in _STAGES:
        for width in widths:
            features.append(nn.Conv2d(channels, width, 3, padding=1))
            if normed:
                features.append(nn.BatchNorm2d(width))
            features.append(nn.ReLU())
            channels = width
        features.append(nn.MaxPool2d(2))
    flat = channels * (side // 2 ** len(_STAGES)) ** 2
    head: nn.Module
    if side <= 64:
        head = nn.Linear(flat, classes)
    else:
        head = nn.Sequential(
            *(nn.Linear(flat, _DENSE), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(_DENSE, _DENSE), nn.ReLU(), nn.Dropout()),
            nn.Linear(_DENSE, classes),
        )
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), classifier=head))

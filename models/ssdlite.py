"""SSDLite on MobileNet-v2 (Sandler et al. 2018, section 6.2): finds objects on six maps, from fine to coarse.

Behind the backbone stand biases instead of BatchNorms, as in the first SSD: the coarsest map is a single pixel, too
little to measure statistics on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mobilenet import InvertedResidual, v2_features

# The block of MobileNet-v2 whose expanded maps are the finest to be searched, and how many those are.
_TAP, _TAP_WIDTH = 14, 576
_EXTRAS = (512, 256, 256, 128)
# Anchors of each pixel of each map.
_ANCHORS = (3, 6, 6, 6, 6, 6)
_BOX = 4


class SSDLite(nn.Module):
    """A chain of stages, each with a head for classes and one for boxes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        backbone, width = v2_features(channels, small=False)
        blocks = list(backbone)
        tapped = blocks[_TAP]
        assert isinstance(tapped, InvertedResidual)
        expand, *project = tapped.conv
        widths = [_TAP_WIDTH, width]
        fine = nn.Sequential(*blocks[:_TAP], expand)
        coarse = nn.Sequential(*project, *blocks[_TAP + 1 :])
        self.stages = nn.ModuleList((fine, coarse))
        for wide in _EXTRAS:
            self.stages.append(_extra(widths[-1], wide))
            widths.append(wide)
        heads = list(zip(widths, _ANCHORS, strict=True))
        self.classify = nn.ModuleList(_head(wide, anchors * classes) for wide, anchors in heads)
        self.locate = nn.ModuleList(_head(wide, anchors * _BOX) for wide, anchors in heads)
        self.classes = classes

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Give every anchor a logit a class, and a box."""
        x = image
        logits, boxes = [], []
        for stage, classify, locate in zip(self.stages, self.classify, self.locate, strict=True):
            x = stage(x)
            logits.append(_by_anchor(classify(x), self.classes))
            boxes.append(_by_anchor(locate(x), _BOX))
        return torch.cat(logits, 1), torch.cat(boxes, 1)


def network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build SSDLite; one of the classes is the background."""
    return SSDLite(input_shape[0], classes)


def _extra(channels: int, width: int) -> nn.Module:
    """Halve the image once more."""
    inner = width // 2
    return nn.Sequential(
        _conv(channels, inner, 1), _conv(inner, inner, 3, stride=2, groups=inner), _conv(inner, width, 1)
    )


def _head(channels: int, values: int) -> nn.Module:
    """Predict so many values for each pixel."""
    return nn.Sequential(_conv(channels, channels, 3, groups=channels), nn.Conv2d(channels, values, 1))


def _conv(channels: int, width: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups), nn.ReLU6())


def _by_anchor(x: Tensor, values: int) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)

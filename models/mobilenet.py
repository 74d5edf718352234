"""MobileNet-v1 (Howard et al. 2017) and MobileNet-v2 (Sandler et al. 2018), width 1.0.

Images of up to 64 pixels get smaller strides. The names of the v2 layers follow torchvision, so its weight files load.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from .layers import unit

# Width and stride of each depthwise-separable block.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
# Expansion, width, blocks and first stride of each stage.
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM = 32
_V2_LAST = 1280


class InvertedResidual(nn.Module):
    """Expand, filter each channel alone, project; beside a shortcut where the shape stays."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(unit(channels, hidden, 1, act=nn.ReLU6))
        layers.append(unit(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        layers += [nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.conv = nn.Sequential(*layers)
        self.joined = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out: Tensor = self.conv(x)
        return x + out if self.joined else out


def network(input_shape: tuple[int, int, int], classes: int, *, version: int) -> nn.Module:
    """Build MobileNet-v1 or -v2."""
    small = input_shape[-1] <= 64
    features, channels = {1: _v1, 2: v2_features}[version](input_shape[0], small)
    classifier: nn.Module = nn.Linear(channels, classes)
    if version == 2:
        classifier = nn.Sequential(nn.Dropout(0.2), classifier)
    return nn.Sequential(
        OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=classifier)
    )


def _v1(channels: int, small: bool) -> tuple[nn.Sequential, int]:
    """Lay out the convolutions; a small image keeps its size through the stem."""
    layers = [unit(channels, _STEM, 3, stride=1 if small else 2)]
    channels = _STEM
    for width, stride in _V1:
        layers.append(unit(channels, channels, 3, stride, groups=channels))
        layers.append(unit(channels, width, 1))
        channels = width
    return nn.Sequential(*layers), channels


def v2_features(channels: int, small: bool) -> tuple[nn.Sequential, int]:
    """Lay out the convolutions; a small image keeps its size through the stem and the second stage."""
    layers: list[nn.Module] = [unit(channels, _STEM, 3, stride=1 if small else 2, act=nn.ReLU6)]
    channels = _STEM
    for stage, (expansion, width, blocks, first) in enumerate(_V2):
        for index in range(blocks):
            stride = first if index == 0 and not (small and stage == 1) else 1
            layers.append(InvertedResidual(channels, width, stride, expansion))
            channels = width
    layers.append(unit(channels, _V2_LAST, 1, act=nn.ReLU6))
    return nn.Sequential(*layers), _V2_LAST

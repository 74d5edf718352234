"""ResNet with projection shortcuts (He et al. 2015); the bottleneck strides in its 3x3 convolution.

The names of the layers follow torchvision, so its weight files load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

_IMAGENET_WIDTHS = (64, 128, 256, 512)


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = _shortcut(channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


_DEPTHS: dict[int, tuple[type[Basic] | type[Bottleneck], tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def network(input_shape: tuple[int, int, int], classes: int, *, depth: int) -> nn.Module:
    """Build ResNet-18, -34 or -50; images of up to 64 pixels get the CIFAR stem."""
    block, blocks = _DEPTHS[depth]
    return resnet(input_shape, classes, block, blocks, _IMAGENET_WIDTHS)


def resnet(
    input_shape: tuple[int, int, int],
    classes: int,
    block: type[Basic] | type[Bottleneck],
    blocks: Sequence[int],
    widths: Sequence[int],
) -> nn.Module:
    """Build a residual network with any number of stages; each but the first halves the image.

    Args:
        input_shape: Channels, height and width of one image.
        classes: Number of logits.
        block: The kind of residual block.
        blocks: Blocks of each stage.
        widths: Width of each stage, before the expansion of its blocks.
    """
    small = input_shape[-1] <= 64
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = widths[0]
    if small:
        layers["conv1"] = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
    else:
        layers["conv1"] = nn.Conv2d(input_shape[0], channels, 7, stride=2, padding=3, bias=False)
    layers["bn1"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    if not small:
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        members = []
        for index in range(count):
            members.append(block(channels, width, stride=2 if stage > 1 and index == 0 else 1))
            channels = width * block.expansion
        layers[f"layer{stage}"] = nn.Sequential(*members)
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

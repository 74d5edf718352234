"""The CIFAR family of ResNet (He et al. 2015, section 4.2): three narrow stages, shortcuts without parameters."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A of the paper: take every second pixel and pad the missing channels with zeros on both sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        missing = width - channels
        self.before = missing // 2
        self.after = missing - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Shrink the image and widen the channels."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        # A stage that widens the channels halves the image in the same block.
        stride = 1 if channels == width else 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if channels == width else PadShortcut(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def network(input_shape: tuple[int, int, int], classes: int, *, depth: int) -> nn.Module:
    """Build the CIFAR ResNet of a depth 6n + 2."""
    blocks = (depth - 2) // 6
    channels = _WIDTHS[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
    layers["bn1"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    for stage, width in enumerate(_WIDTHS, start=1):
        members = [Block(channels, width)] + [Block(width, width) for _ in range(blocks - 1)]
        layers[f"layer{stage}"] = nn.Sequential(*members)
        channels = width
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)

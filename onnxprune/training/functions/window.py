"""Windows that move over the spatial axes of images: their sizes, steps and pads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call


@dataclass(frozen=True)
class Window:
    """How a window moves; every list has an entry for each spatial axis.

    Attributes:
        kernel: its size.
        strides: its steps.
        dilations: steps inside it.
        before: what is padded before an axis.
        after: what is padded after an axis.
        beyond: what the last window needs behind that, where `ceil_mode` lets it begin.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    beyond: list[int]

    @classmethod
    def of(cls, call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
        """Read the window of a node, automatic pads worked out."""
        rank = len(kernel)
        strides = list(call.attribute("strides", [1] * rank))
        dilations = list(call.attribute("dilations", [1] * rank))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before, after = _pads(call, sizes, reach, strides)
        beyond = [0] * rank
        if call.attribute("ceil_mode", 0):
            beyond = [_beyond(*numbers) for numbers in zip(sizes, reach, strides, before, after, strict=True)]
        return cls(list(kernel), strides, dilations, before, after, beyond)

    def over(self, x: Tensor, pads: float = 0.0) -> Tensor:
        """Give what lies in each window of an image, behind its axes, one axis for each spatial one.

        Args:
            x: the image.
            pads: what its pads hold; what lies beyond them is zero.
        """
        x = padded(padded(x, self.before, self.after, pads), [0] * len(self.kernel), self.beyond)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.strides, self.dilations, strict=True), start=2):
            x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
        return x


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of a tensor, or cut them where pads are below zero."""
    flat = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _pads(
    call: Call, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Give the pads before and after each axis."""
    rank = len(reach)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = list(call.attribute("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, strides, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _beyond(size: int, reach: int, stride: int, before: int, after: int) -> int:
    """Give what the last window lacks; one that would begin behind the image is none."""
    room = size + before + after
    steps = -(-(room - reach) // stride)
    if steps * stride >= size + before:
        steps -= 1
    return max(steps * stride + reach - room, 0)

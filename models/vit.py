"""Vision Transformer (Dosovitskiy et al. 2020) in the size Tiny: 192 wide, 3 heads.

Images of up to 64 pixels get patches of 4 pixels and half as many blocks. The names of the layers follow timm, so its
weight files load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

_WIDTH = 192
_HEADS = 3
_BLOCKS = 12
_PATCH = 16
_SMALL_BLOCKS = 6
_SMALL_PATCH = 4
_EXPANSION = 4
_EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention; one dense layer makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.size = width // heads
        self.scale = self.size**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token look at all tokens."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        return out


class Block(nn.Module):
    """Attention and two dense layers, each behind its LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        hidden = _EXPANSION * width
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Patches and a class token, told apart by learned positions; the class token is classified in the end."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, patch: int, blocks: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        tokens = 1 + (height // patch) * (width // patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, _WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, _WIDTH))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, _WIDTH, patch, stride=patch)))
        self.blocks = nn.Sequential(*(Block(_WIDTH, _HEADS) for _ in range(blocks)))
        self.norm = nn.LayerNorm(_WIDTH, eps=_EPSILON)
        self.head = nn.Linear(_WIDTH, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x[:, 0])
        return logits


def network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build ViT-Tiny."""
    if input_shape[-1] <= 64:
        return VisionTransformer(input_shape, classes, _SMALL_PATCH, _SMALL_BLOCKS)
    return VisionTransformer(input_shape, classes, _PATCH, _BLOCKS)

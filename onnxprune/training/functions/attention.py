"""Attention as one operator."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Result, function


@function("Attention", fixed=(3,))
def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Result:
    """Attention: queries of several heads meet keys, which several of them may share, and their values."""
    packed = q.ndim == 3
    if packed:
        counts = [int(call.attribute(name)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
        q, k, v = (_heads(x, count) for x, count in zip((q, k, v), counts, strict=True))
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    shared = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (k, v))
    scale = float(call.attribute("scale") or q.shape[-1] ** -0.5)
    scores = (q * scale**0.5) @ (keys * scale**0.5).transpose(2, 3)
    cap = float(call.attribute("softcap", 0.0))
    capped = cap * torch.tanh(scores / cap) if cap > 0 else scores
    bias = _bias(call, capped, mask, 0 if past_key is None else past_key.shape[2], lengths)
    biased = capped if bias is None else capped + bias
    weights = _softmax(biased, bias)
    y = weights @ values
    y = y.transpose(1, 2).flatten(2) if packed else y
    stages = (scores, capped, biased, weights)
    return call.given([y, k, v, stages[int(call.attribute("qk_matmul_output_mode", 0))]])


def _heads(x: Tensor, count: int) -> Tensor:
    """Take heads that lie side by side apart."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _bias(call: Call, scores: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None) -> Tensor | None:
    """Give what is added to the scores: the mask, and minus infinity where a query may not look."""
    queries, keys = (torch.arange(size, device=scores.device) for size in scores.shape[2:])
    ahead = keys - queries.unsqueeze(1) - past
    allowed = []
    if lengths is not None:
        counts = lengths.reshape(-1, 1, 1, 1)
        ahead = ahead + past - (counts - len(queries))
        allowed.append(keys < counts)
    if call.attribute("is_causal", 0):
        allowed.append(ahead <= 0)
    left, right = (int(call.attribute(f"{side}_window_size", -1)) for side in ("left", "right"))
    if left >= 0:
        allowed.append(-ahead <= left)
    if right >= 0:
        allowed.append(ahead <= right)
    if mask is not None:
        unseen = False if mask.dtype == torch.bool else -torch.inf
        mask = F.pad(mask, (0, len(keys) - mask.shape[-1]), value=unseen)
        if mask.dtype == torch.bool:
            allowed.append(mask)
            mask = None
    if not allowed:
        return mask
    hidden = torch.where(reduce(torch.logical_and, allowed), 0.0, -torch.inf).to(scores.dtype)
    return hidden if mask is None else mask + hidden


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax; a query that may look at nothing gets zeros, and a gradient that is a number."""
    if bias is None:
        return scores.softmax(-1)
    blind = torch.isneginf(bias).all(-1, keepdim=True)
    return torch.where(blind, 0.0, torch.where(blind, 0.0, scores).softmax(-1))


@function("RotaryEmbedding", fixed=(1, 2))
def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """RotaryEmbedding: pairs of numbers of each head are turned by an angle of their position."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    if x.ndim == 4:
        return _turned(call, x.transpose(1, 2), cos, sin).transpose(1, 2)
    size = x.shape[-1] // int(call.attribute("num_heads", 0) or x.shape[-1] // (2 * cos.shape[-1]))
    return _turned(call, x.reshape(*x.shape[:2], -1, size), cos, sin).flatten(2)


def _turned(call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first numbers of each head: (batch, sequence, heads, numbers), angles (batch, sequence, pairs)."""
    size = int(call.attribute("rotary_embedding_dim", 0)) or x.shape[-1]
    head, rest = x[..., :size], x[..., size:]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    interleaved = bool(call.attribute("interleaved", 0))
    one, other = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    turned = cos * one - sin * other, sin * one + cos * other
    return torch.cat([torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1), rest], -1)

"""What each ONNX operator says about channels: a table of rules, one small class per family of operators."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops.conv import Conv, ConvTranspose
from onnxprune.ops.elementwise import CastLike, Dropout, Elementwise
from onnxprune.ops.layout import ConstantOfShape, Expand, Flatten, Reshape, Squeeze, Transpose, Unsqueeze
from onnxprune.ops.linear import Gemm, MatMul
from onnxprune.ops.normalization import BatchNormalization, InstanceNormalization
from onnxprune.ops.pooling import Pool, Resize
from onnxprune.ops.recurrent import Recurrent
from onnxprune.ops.reduction import Arg, Reduce, Softmax
from onnxprune.ops.rule import Rule
from onnxprune.ops.slicing import Concat, Gather, Pad, Slice, Split
from onnxprune.shapes import is_default_domain

FAMILIES: tuple[type[Rule], ...] = (
    *(Conv, ConvTranspose, Gemm, MatMul, Recurrent),
    *(BatchNormalization, InstanceNormalization),
    *(Elementwise, CastLike, Dropout),
    *(Pool, Resize, Reduce, Arg, Softmax),
    *(Transpose, Squeeze, Unsqueeze, Flatten, Reshape, Expand, ConstantOfShape),
    *(Concat, Split, Slice, Gather, Pad),
)

RULES: dict[str, Rule] = {op: family() for family in FAMILIES for op in family.ops}

FREE_OF_MACS = frozenset({"Constant", "NonMaxSuppression", "Shape", "Size", "TopK"})
"""Operators without a rule that are known to multiply nothing worth counting."""


def rule_for(node: gs.Node) -> Rule | None:
    """Find the rule for a node; None means that everything it touches stays."""
    return RULES.get(node.op) if is_default_domain(node.domain) else None

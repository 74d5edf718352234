"""What each ONNX operator says about channels: a table of rules, one small class per family of operators."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops.attention import Attention, RotaryEmbedding
from onnxprune.ops.conv import Conv, ConvTranspose, DeformConv
from onnxprune.ops.elementwise import (
    Cast,
    Clip,
    Dropout,
    Elementwise,
    NonZero,
    Pow,
    Product,
    Shrink,
    Sum,
    Where,
)
from onnxprune.ops.indexing import (
    Compress,
    CumSum,
    GatherElements,
    GatherND,
    Reverse,
    ScatterElements,
    ScatterND,
    TopK,
    Trilu,
)
from onnxprune.ops.layout import (
    Col2Im,
    ConstantOfShape,
    DepthToSpace,
    Expand,
    Flatten,
    Reshape,
    SpaceToDepth,
    Squeeze,
    Tile,
    Transpose,
    Unsqueeze,
)
from onnxprune.ops.linear import Einsum, Gemm, MatMul
from onnxprune.ops.microsoft import (
    FusedConv,
    FusedGemm,
    FusedMatMul,
    MicrosoftGelu,
    MicrosoftRotaryEmbedding,
    SkipLayerNormalization,
)
from onnxprune.ops.normalization import (
    LRN,
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    LpNormalization,
    MeanVarianceNormalization,
)
from onnxprune.ops.pooling import Pool, Resize, Sample
from onnxprune.ops.qlinear import QGemm, QLinearAdd, QLinearConcat, QLinearLeakyRelu, QLinearPool, QLinearSigmoid
from onnxprune.ops.quantization import (
    ConvInteger,
    DynamicQuantizeLinear,
    MatMulInteger,
    QLinearConv,
    QLinearMatMul,
    Quantize,
)
from onnxprune.ops.recurrent import Recurrent
from onnxprune.ops.reduction import Arg, Reduce, ReduceLog, ReduceMean, ReduceSum, Softmax
from onnxprune.ops.rule import Rule
from onnxprune.ops.slicing import Concat, Gather, Pad, Slice, Split
from onnxprune.shapes import is_default_domain

FAMILIES: tuple[type[Rule], ...] = (
    *(Conv, ConvTranspose, DeformConv, Gemm, MatMul, Einsum, Attention, RotaryEmbedding, Recurrent),
    *(BatchNormalization, InstanceNormalization, LayerNormalization, GroupNormalization),
    *(LRN, LpNormalization, MeanVarianceNormalization),
    *(Elementwise, NonZero, Sum, Product, Where, Clip, Pow, Shrink, Cast, Dropout),
    *(Pool, Sample, Resize, Reduce, ReduceLog, ReduceSum, ReduceMean, Arg, Softmax),
    *(Transpose, Squeeze, Unsqueeze, Flatten, Reshape, Expand, Tile, ConstantOfShape),
    *(DepthToSpace, SpaceToDepth, Col2Im),
    *(Concat, Split, Slice, Gather, GatherElements, GatherND, ScatterElements, ScatterND, Compress, Pad),
    *(TopK, CumSum, Reverse, Trilu),
    *(Quantize, DynamicQuantizeLinear, QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger),
    *(MicrosoftGelu, FusedConv, FusedGemm, FusedMatMul, MicrosoftRotaryEmbedding, SkipLayerNormalization),
    *(QLinearAdd, QLinearConcat, QLinearLeakyRelu, QLinearSigmoid, QLinearPool, QGemm),
)

RULES: dict[str, Rule] = {f"{family.domain}.{op}".lstrip("."): family() for family in FAMILIES for op in family.ops}
"""The rule of each operator; those of other domains than the standard's are named ``domain.operator``."""

FREE_OF_MACS = frozenset(
    {"Constant", "EyeLike", "NonMaxSuppression", "NonZero", "OneHot", "Range", "Shape", "Size", "Unique"}
)
"""Operators without a rule that are known to multiply nothing worth counting."""


def rule_for(node: gs.Node) -> Rule | None:
    """Find the rule for a node; None means that everything it touches stays."""
    return RULES.get(node.op if is_default_domain(node.domain) else f"{node.domain}.{node.op}")

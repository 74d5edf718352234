"""Whether PyTorch computes what onnxruntime computes: training of anything else would be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.linear import HALF_TYPES
from onnxprune.nodes import every_node
from onnxprune.training.executor import Executor
from onnxprune.training.sharing import writable
from onnxprune.weights import Array

CLOSE, CLOSE_HALVES, CLOSE_WHOLE = 1e-3, 3e-2, 0.1  # of the largest answer, between PyTorch and onnxruntime
ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})  # what they give may fall on either side of a step


def disagreement(executor: Executor, proto: ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> str:
    """Say which answer PyTorch gives otherwise than onnxruntime, and by how much; empty where there is none.

    Args:
        executor: of the model, or of one that answers as it does; `names` are its first outputs.
        proto: the model.
        feed: what both are asked, by the names of inputs in the order of the model.
        names: of the tensors to compare.
    """
    rounds = any(node.op_type in ROUNDING for node in every_node(proto.graph))
    # fast kernels for quantised layers round elsewhere than the model says, and may cut sums off
    answers = runtime.open_with(proto, names, executor.folder, optimize=not rounds).run(feed, names)
    executor.eval()
    device = next((values.device for values in executor.parameters()), torch.device("cpu"))
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        wanted = executor(*(torch.from_numpy(x).to(device) for x in feed.values()))
    close = CLOSE_WHOLE if rounds else _tolerance(proto)
    for name, found, values in zip(names, answers, wanted, strict=False):
        expected = values.cpu().numpy().astype(np.float64)
        apart = np.abs(found.astype(np.float64) - expected).max(initial=0)
        apart /= max(float(np.abs(expected).max(initial=0)), 1e-12)
        if not apart < close:
            return f"{name!r} by {apart:.1e} of the largest number"
    return ""


def _tolerance(proto: ModelProto) -> float:
    halves = any(tensor.data_type in HALF_TYPES for tensor in writable(proto).values())
    return CLOSE_HALVES if halves else CLOSE


def check_agreement(executor: Executor, proto: ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> None:
    """Make sure that PyTorch runs a model as onnxruntime does, before anything is learnt; see `disagreement`.

    Raises:
        InputError: it does not.
    """
    found = disagreement(executor, proto, feed, names)
    if found:
        raise InputError(
            f"PyTorch answers otherwise than onnxruntime does ({found}), so the model cannot be trained here; one with "
            "Dropout or BatchNormalization as in training has to be exported for use, any other can be cut and repaired"
        )

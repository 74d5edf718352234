"""Every tiny network in PyTorch: its answers, its numbers written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from nets import NETS
from onnx import ModelProto, TensorProto

from onnxprune import runtime, shapes
from onnxprune.errors import InputError
from onnxprune.training.executor import Executor
from onnxprune.training.functions import as_tensor

NOT_COVERED = {
    "branch_captures_a_weight": "'If_4' (If) decides by the data",
    "operator_of_another_domain": "'ExpandDims_2' (com.microsoft.ExpandDims) cannot be run",
    "pool_with_indices": "'MaxUnpool_3' (MaxUnpool) cannot be run",
}
COVERED = sorted(set(NETS) - set(NOT_COVERED))


def tolerance(proto: ModelProto) -> float:
    """Halves are computed in single precision, which onnxruntime does not do."""
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return oracle.HALF_TOLERANCE if halves else oracle.TOLERANCE


def compare(proto: ModelProto, executor: Executor) -> None:
    """Compare what the executor gives to what onnxruntime gives, at two batch sizes where the batch is free."""
    session = runtime.Session(proto, threads=1, optimize=False)
    bound, _ = shapes.bind_inputs(proto.graph, {})
    for feed in oracle.random_feeds(proto, bound, 0):
        with torch.no_grad():
            ours = executor(*(as_tensor(feed[name]) for name in executor.inputs))
        for one, other in zip(ours, session.run(feed), strict=True):
            largest = np.abs(other.astype(np.float64)).max()
            assert one.shape == other.shape
            np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=tolerance(proto) * largest)


@pytest.mark.parametrize("name", COVERED)
def test_a_net_gives_what_onnxruntime_gives_and_comes_back_to_the_letter(name: str) -> None:
    proto = NETS[name].build()
    executor = Executor(proto, Path()).eval()
    compare(proto, executor)
    assert executor.model().SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", COVERED)
def test_numbers_that_change_are_written_back(name: str) -> None:
    proto = NETS[name].build()
    executor = Executor(proto, Path()).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, values in executor.named():
            values.mul_(torch.empty_like(values).uniform_(0.8, 1.2, generator=rng))
    written = executor.model()
    changed = written.SerializeToString(deterministic=True) != proto.SerializeToString(deterministic=True)
    assert changed == any(True for _ in executor.named())
    compare(written, executor)


@pytest.mark.parametrize(("name", "reason"), NOT_COVERED.items())
def test_a_net_that_torch_cannot_run_is_refused_by_the_name_of_the_node(name: str, reason: str) -> None:
    proto = NETS[name].build()
    executor = Executor(proto, Path())
    bound, _ = shapes.bind_inputs(proto.graph, {})
    with pytest.raises(InputError) as caught:
        executor(*(torch.zeros(bound[name]) for name in executor.inputs))
    assert reason in str(caught.value)


def test_every_net_of_floats_has_something_to_train() -> None:
    without = {name for name in COVERED if not any(True for _ in Executor(NETS[name].build(), Path()).named())}
    assert without == set()

"""What the torch function of an operator is given beside its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.errors import InputError, at
from onnxprune.shapes import is_default_domain

Sizes = Tensor | npt.NDArray[Any]
"""Sizes or positions: known numbers, or a tensor where they depend on the data."""

Result = Tensor | tuple[Tensor, ...]
"""What a node gives: one tensor as it is, or so many."""

Run = Callable[..., Any]
Defined = TypeVar("Defined", bound=Run)

TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT16: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT64: torch.int64,
}
"""What numbers are computed in: halves in single precision, unsigned integers that torch lacks in wider ones."""


@dataclass(frozen=True)
class Call:
    """One node, as its torch function sees it.

    Attributes:
        op: its operator.
        name: of the node.
        version: of the operator's domain.
        attributes: those that the node has.
        outputs: how many outputs it has, unnamed ones included.
        training: whether the model trains.
    """

    op: str
    name: str
    version: int
    attributes: Mapping[str, Any]
    outputs: int
    training: bool

    def attribute(self, name: str, default: Any = None) -> Any:
        """Give an attribute, or what the standard says where it is absent."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def given(self, tensors: Sequence[Tensor]) -> Result:
        """Give as many outputs as the node has, a single one as it is."""
        return tensors[0] if self.outputs == 1 else tuple(tensors[: self.outputs])

    def refusal(self, what: str) -> InputError:
        """Make the error that says what cannot be run."""
        return InputError(f"{at(self.name, self.op)} {what}, which PyTorch cannot run; compress without training")


@dataclass(frozen=True)
class Function:
    """How torch computes an operator.

    Attributes:
        run: called with the `Call` and the operands, None for those left out.
        sizes: operands that hold sizes or positions; it gets them as numbers where they are known.
        fixed: operands that are never trained, beside these.
    """

    run: Run
    sizes: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()


FUNCTIONS: dict[tuple[str, str], Function] = {}
"""By domain (empty for the standard's) and operator."""


def function(
    *ops: str, sizes: Sequence[int] = (), fixed: Sequence[int] = (), domain: str = ""
) -> Callable[[Defined], Defined]:
    """Enter a function in the table; see `Function`."""

    def enter(run: Defined) -> Defined:
        for op in ops:
            FUNCTIONS[domain, op] = Function(run, tuple(sizes), tuple(fixed))
        return run

    return enter


def find(domain: str, op: str) -> Function | None:
    """Find the function of an operator."""
    return FUNCTIONS.get(("" if is_default_domain(domain) else domain, op))


def numbers(values: Sizes | Sequence[Any]) -> list[Any]:
    """Give sizes or positions as a flat list of Python numbers."""
    if isinstance(values, Tensor):
        found: list[Any] = values.detach().reshape(-1).tolist()
        return found
    known: list[Any] = _known_numbers(values)
    return known


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _known_numbers(values: npt.NDArray[Any] | Sequence[Any]) -> list[Any]:
    """Turn what is known into numbers that torch may compile in."""
    found: list[Any] = np.ravel(np.asarray(values)).tolist()
    return found


def as_tensor(values: npt.NDArray[Any]) -> Tensor:
    """Turn stored numbers into a tensor of the type that they are computed in."""
    if (values.dtype.kind in "f" and values.dtype.itemsize < 4) or values.dtype.kind == "V":
        values = values.astype(np.float32)
    elif values.dtype in (np.uint16, np.uint32, np.uint64):
        values = values.astype(np.int64)
    return torch.from_numpy(np.array(values))  # a copy: stored numbers may be read-only

"""The numbers of a tensor, read only when asked for: inside the model file or in an external data file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import InputError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK = 4_000_000  # numbers looked at together
NOT_WEIGHTS = frozenset({6, 7, 8, 9, 12, 13})
"""ONNX element types of stored numbers that are sizes, indices or text: int32, int64, string, bool, uint32, uint64."""

PACKED_TYPES = frozenset(
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)


def is_external(tensor: TensorProto) -> bool:
    """Tell whether the numbers of `tensor` lie in a file of their own."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_place(tensor: TensorProto, folder: Path) -> tuple[Path, int, int | None]:
    """Find where an external tensor lies: its file, the offset in it and the length in bytes (None: to the end).

    Raises:
        InputError: the place lies outside `folder`, or the file is missing. Model files are untrusted input.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(root) or path == root:
        raise InputError(
            f"external data of tensor {tensor.name!r} points to {location!r}, outside the model's folder {folder}; "
            "move the data file beside the model and save it again"
        )
    if not path.is_file():
        raise InputError(
            f"external data file {location!r} of tensor {tensor.name!r} is missing in {folder}; "
            "copy it beside the model file"
        )
    try:
        return path, int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise InputError(
            f"external data of tensor {tensor.name!r} has an offset or length that is no number"
        ) from error


def read(tensor: TensorProto, folder: Path) -> Array:
    """Read the numbers of `tensor`; an external one is mapped, not loaded.

    Raises:
        InputError: the numbers are missing or too few, or the external data lies outside `folder`.
    """
    if not is_external(tensor):
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"tensor {tensor.name!r} does not hold the numbers its shape {tuple(tensor.dims)} asks for; "
                "export or download the model again"
            ) from error
    path, offset, length = external_place(tensor, folder)
    shape = tuple(tensor.dims)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    is_packed = tensor.data_type in PACKED_TYPES
    wanted = byte_size(tensor) if is_packed else int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if wanted == 0:
        return np.zeros(shape, dtype)
    if offset < 0 or path.stat().st_size < offset + wanted or (length is not None and length < wanted):
        raise InputError(
            f"external data file {path.name!r} is too short for tensor {tensor.name!r} "
            f"({wanted} bytes at offset {offset}); copy the file again"
        )
    if is_packed:
        packed = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        with path.open("rb") as file:
            file.seek(offset)
            packed.raw_data = file.read(wanted)
        return numpy_helper.to_array(packed)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def byte_size(tensor: TensorProto) -> int:
    """Count the bytes that the numbers of `tensor` take, wherever they lie."""
    numbers = int(np.prod(tuple(tensor.dims), dtype=np.int64))
    if tensor.data_type in PACKED_TYPES:
        return (numbers + 1) // 2
    if tensor.data_type == TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return numbers * item_size(tensor.data_type)


def item_size(data_type: int) -> int:
    """Count the bytes of one number of an ONNX element type (1 for types that are not numbers)."""
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize)
    except (KeyError, TypeError):
        return 1


def slice_norms(values: Array, order: int, axes: int | None = None) -> list[npt.NDArray[np.float64]]:
    """Give the norm of every slice along the first axes, in one pass over the numbers and little memory.

    Args:
        values: a weight of any float or integer type.
        order: 1 for the sum of magnitudes, 2 for the Euclidean norm.
        axes: how many axes (default: all).
    """
    sums = [np.zeros(size) for size in values.shape[:axes]]
    rows = max(1, BLOCK // max(1, values[0].size))
    for start in range(0, len(values), rows):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            block = values[start : start + rows].astype(np.float32, copy=False)
            block = block * block if order == 2 else np.abs(block)
        if len(sums) < block.ndim:  # a product with ones sums short axes faster than a sum does
            inner = block.reshape(*block.shape[: len(sums)], -1)
            block = inner @ np.ones(inner.shape[-1], np.float32)
        for axis in range(block.ndim):
            others = tuple(a for a in range(block.ndim) if a != axis)
            part = block.sum(axis=others, dtype=np.float64)
            if axis == 0:
                sums[0][start : start + rows] = part
            else:
                sums[axis] += part
    return [np.sqrt(found) for found in sums] if order == 2 else sums


def without_slots(values: Array, kept: npt.NDArray[np.bool_]) -> Array:
    """Take other indices of the second axis in every group of rows.

    Args:
        values: a weight whose first axis falls into groups.
        kept: (groups, second axis) which indices stay, as many in each group.
    """
    rows = values.reshape(len(kept), -1, *values.shape[1:])
    picked = [np.compress(mask, group, axis=1) for mask, group in zip(kept, rows, strict=True)]
    return np.concatenate(picked)

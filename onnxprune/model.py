"""Load, know and save a model: its graph (onnx-graphsurgeon), the sizes of its tensors, its weights on demand."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune import shapes as sizes
from onnxprune.dequantizing import Dequantized, find_dequantized
from onnxprune.errors import InputError
from onnxprune.nodes import every_body, every_node, sort_nodes
from onnxprune.shapes import Run, Shape
from onnxprune.weights import PACKED_TYPES, Array, byte_size, external_place, is_external, read

OLDEST_OPSET = 7
DATA_FIELDS = (
    "raw_data",
    "external_data",
    "data_location",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
NOT_MINDED = (
    "is deprecated in domain_version",  # GroupNormalization of opset 18 is defined all the same
    *(f"No Op registered for {op} with" for op in ("LayerNormalization", "SimplifiedLayerNormalization")),
)
"""What the checker of onnx says of operators that onnxruntime knows: it has some before the standard does."""
LARGEST_FILE = 1_900_000_000  # bytes; protobuf cannot write 2 GiB, larger models keep their weights beside the file


@dataclass
class Model:
    """A model and what is known of it for one binding of its free input sizes.

    Attributes:
        proto: the file as read, its nodes in order; large external weights stay on disk.
        folder: where the file lies; external data is looked for here and nowhere else.
        graph: the same graph in onnx-graphsurgeon; ``graph.nodes[i]`` is ``proto.graph.node[i]``.
        opset: version of the ONNX standard's operators.
        bound: shape of each input the user feeds.
        shapes: shape of every tensor that is known, bound sizes included.
        types: ONNX element type of every tensor that is known.
        stored: the numbers the file holds: initializers and Constant nodes, by tensor name.
        frame_bytes: bytes of the file other than those of its large weights.
        size_nodes: indices of the nodes that only compute with sizes.
        size_values: what these nodes compute.
        notes: what the user should know about how the model was read.
        data_files: the files that initializers lie in, those that were taken inside included.
        is_batch_fixed: whether it runs with the bound batch only, though the file leaves it free (None: not tried).
    """

    proto: ModelProto
    folder: Path
    graph: gs.Graph
    opset: int
    bound: dict[str, Shape]
    shapes: dict[str, Shape]
    types: dict[str, int]
    stored: dict[str, TensorProto]
    frame_bytes: int
    size_nodes: frozenset[int] = frozenset()
    size_values: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_files: list[Path] = field(default_factory=list)
    is_batch_fixed: bool | None = None

    def array(self, name: str) -> Array:
        """Read the numbers of a stored tensor."""
        return read(self.stored[name], self.folder)

    def value(self, name: str) -> Array | None:
        """Give the numbers of a tensor where they are small and known without running the model."""
        if name in self.size_values:
            return self.size_values[name]
        tensor = self.stored.get(name)
        if tensor is None or sizes.is_weight(tensor):
            return None
        return read(tensor, self.folder)

    @cached_property
    def dequantized(self) -> dict[str, Dequantized]:
        """What comes from stored whole numbers and is read once, as floats, by name."""
        return find_dequantized(self.proto, self.stored, self.folder)

    @cached_property
    def sha256(self) -> str:
        """The same wherever the same graph has the same numbers; those outside the file are read."""
        digest = hashlib.sha256(self.proto.SerializeToString(deterministic=True))
        for tensor in self.stored.values():
            if is_external(tensor):
                digest.update(raw_bytes(tensor, self.folder))
        return digest.hexdigest()

    @property
    def has_free_batch(self) -> bool:
        """Whether the first axis of every input is free, so that the model runs at any batch size."""
        if self.is_batch_fixed:
            return False
        declared = [sizes.declared_shape(value) for value in sizes.real_inputs(self.proto.graph)]
        return bool(declared) and all(shape and not isinstance(shape[0], int) for shape in declared)

    def fixed_batch(self, name: str) -> int | None:
        """Give the batch size that an input is fixed to (None: it is free)."""
        return None if self.has_free_batch else self.bound[name][0]


def load(
    path: Path, run: Run, asked: Mapping[str, Sequence[int]] | None = None, *, runs_batches: bool = False
) -> Model:
    """Read a model file and find the sizes of its tensors.

    Args:
        path: an ONNX file of opset 7 or later.
        run: runs a model in memory once; used for what shape inference cannot tell.
        asked: shapes for inputs whose sizes the file leaves free.
        runs_batches: it will run with many samples at once, where it can: graphs may hold a batch that the file leaves
            free, so it is tried.

    Raises:
        InputError: missing, broken or contradictory file, unknown sizes.
    """
    model = analyse(read_file(path), path.parent, run, asked or {})
    if runs_batches:
        model.is_batch_fixed = holds_batch(model, run)
    if model.is_batch_fixed:
        model.notes.append(
            f"the batch is free in the file, and fixed to {sizes.samples(model.bound)} by what it computes; "
            "exported with a free batch all the way the model takes less time here"
        )
    return model


def holds_batch(model: Model, run: Run) -> bool:
    """Tell whether a model holds a batch that its file leaves free: twice as many samples fail, or nothing grows."""
    if model.is_batch_fixed is not None or not model.has_free_batch:
        return bool(model.is_batch_fixed)

    def answers(times: int) -> list[Any] | None:
        bound = {name: (times * shape[0], *shape[1:]) for name, shape in model.bound.items()}
        try:
            return run(model.proto, sizes.example_inputs(model.proto.graph, bound), model.folder)
        except InputError:
            return None

    once, twice = answers(1), answers(2)
    return once is not None and (twice is None or list(map(np.shape, once)) == list(map(np.shape, twice)))


def read_file(path: Path) -> ModelProto:
    """Parse a model file without its external data, its nodes in order.

    Raises:
        InputError: it cannot be read or is not an ONNX model.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the .onnx file itself")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; export or download it again")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path} is not an ONNX file or is cut short; export or download it again") from error
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path} holds no ONNX graph; export or download it again")
    if not all(isinstance(name, str) for name in _names(model)):  # protobuf gives what is no UTF-8 as bytes
        raise InputError(f"{path} holds names that are no text; it is damaged, export or download it again")
    sort_nodes(model.graph)
    for tensor in _inner_tensors(model):
        if is_external(tensor):
            take_inside(tensor, path.parent)
    return model


def take_inside(tensor: TensorProto, folder: Path) -> None:
    """Store in a tensor what lies in a file of its own.

    Raises:
        InputError: it is missing, too short, or outside `folder`.
    """
    tensor.CopyFrom(numpy_helper.from_array(np.array(read(tensor, folder)), tensor.name))


def _inner_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Give the tensors that nodes hold, and those of bodies and functions, none of which may stay outside."""
    for graph in (model.graph, *model.functions):
        for node in every_node(graph):
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
        for body in every_body(graph):
            yield from body.initializer


def _names(model: ModelProto) -> Iterator[str]:
    graph = model.graph
    yield from (model.domain, graph.name, *(opset.domain for opset in model.opset_import))
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)


def analyse(proto: ModelProto, folder: Path, run: Run, asked: Mapping[str, Sequence[int]]) -> Model:
    """Check a model and find the sizes of its tensors; see `load`.

    Sizes and positions that lie outside the file are taken inside.
    """
    data_files: dict[Path, None] = {}
    for tensor in filter(is_external, proto.graph.initializer):
        data_files[external_place(tensor, folder)[0]] = None
        if sizes.may_be_sizes(tensor):
            take_inside(tensor, folder)
    bound, notes = sizes.bind_inputs(proto.graph, asked)
    bare = sizes.skeleton(proto, bound)
    check(bare)
    opset = next((o.version for o in proto.opset_import if sizes.is_default_domain(o.domain)), 0)
    if 0 < opset < OLDEST_OPSET:
        raise InputError(
            f"the model uses opset {opset}; opset {OLDEST_OPSET} is the oldest supported, "
            "convert it with onnx.version_converter"
        )
    shapes, types, contradiction = sizes.infer(bare)
    stored = stored_tensors(proto)
    for name, tensor in stored.items():
        shapes[name], types[name] = tuple(tensor.dims), tensor.data_type
    frame_bytes = bare.ByteSize() + sum(value.ByteSize() for value in proto.graph.value_info)
    model = Model(proto, folder, read_graph(proto), opset, bound, shapes, types, stored, frame_bytes, notes=notes)
    model.data_files = list(data_files)
    _find_unknown(model, run, contradiction)
    nodes = sizes.shape_arithmetic(proto.graph, shapes, types, stored)
    try:
        model.size_values = sizes.compute_sizes(proto, nodes, shapes, stored, run)
        model.size_nodes = frozenset(nodes)
    except InputError as error:
        model.notes.append(f"shape arithmetic could not be computed, what it touches is left alone ({error})")
    return model


def read_graph(proto: ModelProto) -> gs.Graph:
    """Read a model into onnx-graphsurgeon, which warns of much that does not matter here.

    Raises:
        InputError: it holds what onnx-graphsurgeon does not know.
    """
    try:
        with G_LOGGER.suppress():
            return gs.import_onnx(proto)
    except Exception as error:  # types and attributes that it does not know raise anything
        raise InputError(f"onnx-graphsurgeon cannot read the model: {error!r}; export it again") from error


def check(bare: ModelProto) -> None:
    """Run the checker of onnx on a skeleton; what it minds and onnxruntime does not is let through.

    Raises:
        InputError: the model is not valid ONNX.
    """
    shaped = ModelProto()
    shaped.CopyFrom(bare)
    for value in shaped.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # any: it is inferred anew
    try:
        onnx.checker.check_model(shaped)
    except Exception as error:  # onnx raises types of its own here
        if any(words in str(error) for words in NOT_MINDED):
            return
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise InputError(f"not a valid ONNX model: {lines[0][:300] if lines else 'checker failed'}") from error


def stored_tensors(proto: ModelProto) -> dict[str, TensorProto]:
    """Collect the dense tensors a model stores: initializers, and Constant nodes by their output's name."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and sizes.is_default_domain(node.domain):
            tensor = constant_tensor(node)
            if tensor is not None:
                stored[node.output[0]] = tensor
    return stored


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Give what a Constant node holds as a tensor, whichever attribute holds it (None: strings or sparse)."""
    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in types:
            value = onnx.helper.get_attribute_value(attribute)
            return numpy_helper.from_array(np.asarray(value, types[attribute.name]), node.output[0])
    return None


def _find_unknown(model: Model, run: Run, contradiction: str | None) -> None:
    """Probe for the shapes that inference left open; a model that cannot run keeps them unknown (they freeze)."""
    names = [name for node in model.proto.graph.node for name in node.output if name and name not in model.shapes]
    if not names and contradiction is None:
        return
    try:
        results = sizes.probe(model.proto, model.folder, model.bound, names, run)
    except InputError as error:
        if contradiction is not None:
            raise InputError(f"the shapes of the model contradict each other: {contradiction}") from error
        model.notes.append(f"{len(names)} tensors have unknown shapes, what they touch is left alone ({error})")
        return
    for name, value in results.items():
        if isinstance(value, np.ndarray):
            model.shapes[name] = value.shape
            model.types.setdefault(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def save(proto: ModelProto, path: Path, folder: Path) -> None:
    """Write a model so that no reader ever sees half of it.

    Weights go beside the file, as ``NAME.data``, where the source kept them so or the file would pass 2 GB.

    Args:
        proto: what to write; tensors that are still external lie in `folder`.
        path: the new file.
        folder: where the source model lies.
    """
    tensors = list(proto.graph.initializer)
    outside = any(is_external(t) for t in tensors) or sum(map(byte_size, tensors)) > LARGEST_FILE
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        file = Path(scratch) / path.name
        if outside:
            write_beside(proto, file, folder)
            os.replace(data_file(file), data_file(path))
        else:
            file.write_bytes(proto.SerializeToString())
        os.replace(file, path)
    if not outside:
        data_file(path).unlink(missing_ok=True)  # of what is overwritten


def write_beside(proto: ModelProto, path: Path, folder: Path) -> None:
    """Write a model with its large weights in a file beside it; see `save`."""
    bare = ModelProto()
    copy_fields(proto, bare, skip=["graph"])
    copy_fields(proto.graph, bare.graph, skip=["initializer"])
    write_external(bare, ((tensor.name, tensor) for tensor in proto.graph.initializer), path, folder)


def data_file(path: Path) -> Path:
    """Name the file of weights that lies beside a model file."""
    return path.with_name(f"{path.name}.data")


def write_external(
    proto: ModelProto, tensors: Iterable[tuple[str, TensorProto | Array]], path: Path, folder: Path
) -> None:
    """Write a model with its large weights in a file beside it, one tensor in memory at a time.

    Args:
        proto: the model but for its initializers, which are added here.
        tensors: name and numbers of each initializer; external ones lie in `folder`.
        path: the file to write.
        folder: where the source model lies.
    """
    with data_file(path).open("wb") as file:
        for name, given in tensors:
            entry = proto.graph.initializer.add()
            if isinstance(given, TensorProto):
                large = sizes.is_weight(given) and given.data_type != TensorProto.STRING  # text has no raw bytes
                copy_fields(given, entry, skip=DATA_FIELDS if large else [])
            else:
                large = given.size > sizes.SMALL
                if large:
                    entry.data_type = onnx.helper.np_dtype_to_tensor_dtype(given.dtype)
                    entry.dims.extend(given.shape)
                else:
                    entry.CopyFrom(numpy_helper.from_array(given))
            entry.name = name
            if not large:
                continue
            file.write(b"\0" * (-file.tell() % 4096))  # readers map the file, page by page
            offset = file.tell()
            length = file.write(raw_bytes(given, folder))
            entry.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data_file(path).name), ("offset", offset), ("length", length)):
                entry.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())


def raw_bytes(given: TensorProto | Array, folder: Path) -> bytes | memoryview:
    """Give numbers as ONNX lays them out in raw data, wherever and however they are stored, copied only if need be."""
    if isinstance(given, TensorProto):
        if given.HasField("raw_data"):
            raw: bytes = given.raw_data
            return raw
        given = read(given, folder)
    if onnx.helper.np_dtype_to_tensor_dtype(given.dtype) in PACKED_TYPES or sys.byteorder != "little":
        packed: bytes = numpy_helper.from_array(given).raw_data
        return packed
    return memoryview(cast(bytes, np.ascontiguousarray(given).reshape(-1).view(np.uint8)))


def copy_fields(source: Message, target: Message, skip: Collection[str]) -> None:
    """Copy the fields of a protobuf message, those the format gains later included, except some."""
    for descriptor, value in source.ListFields():
        if descriptor.name in skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)

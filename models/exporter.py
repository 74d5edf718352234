"""From a PyTorch network to an ONNX file, through either of PyTorch's exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from onnxprune.errors import InputError

EXPORTERS = ("torchscript", "dynamo")
_TORCHSCRIPT_OPSET = 17
# A protobuf ends at 2 GiB; the rest is room for the graph.
_INLINE_BYTES = 1_800_000_000
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def check_request(path: Path, exporter: str, batch: int | None) -> None:
    """Refuse what cannot be written, before any work is done."""
    if exporter not in EXPORTERS:
        raise InputError(f"unknown exporter {exporter!r}; choose one of: {', '.join(EXPORTERS)}")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} is not a batch size; give 1 or more, or leave it out to keep it dynamic")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it or choose another path")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file in it")


def write_onnx(
    net: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    *,
    exporter: str = "torchscript",
    batch: int | None = None,
    outputs: Sequence[str] = ("logits",),
    keep_norms: bool = False,
) -> None:
    """Write a network with the input ``image``; the file appears whole or not at all.

    Args:
        net: The network; it is exported as it is, so put it in eval mode first.
        input_shape: Channels, height and width of one image.
        path: The file to write; an existing one is replaced.
        exporter: One of `EXPORTERS`.
        batch: Fixes the batch size; left out, it stays dynamic.
        outputs: The names of the outputs, in the network's order.
        keep_norms: Leave BatchNorm in the graph instead of folding it into the convolutions; torchscript only.
    """
    check_request(path, exporter, batch)
    if keep_norms and exporter != "torchscript":
        raise InputError(f"the exporter {exporter} folds BatchNorm; export what is to be trained through torchscript")
    # A file beyond the limit of protobuf comes with its weights beside it, under names the model refers to. A folder of
    # its own lets every file be written under its final name.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        # An example of one image would let the dynamo exporter take the batch for a constant.
        example = torch.zeros(batch or 2, *input_shape)
        with _quiet(), torch.no_grad():
            if exporter == "dynamo":
                _export_dynamo(net, example, draft, outputs, dynamic=batch is None)
            else:
                _export_torchscript(net, example, draft, outputs, dynamic=batch is None, keep_norms=keep_norms)
        beside = [file for file in Path(folder).iterdir() if file != draft]
        for file in (*beside, draft):
            os.replace(file, path.parent / file.name)


def _export_torchscript(
    net: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], *, dynamic: bool, keep_norms: bool
) -> None:
    mode = torch.onnx.TrainingMode.PRESERVE if keep_norms else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        net,
        (example,),
        path,
        dynamo=False,
        opset_version=_TORCHSCRIPT_OPSET,
        training=mode,
        do_constant_folding=not keep_norms,
        input_names=["image"],
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch"} for name in ("image", *outputs)} if dynamic else None,
    )


def _export_dynamo(net: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], *, dynamic: bool) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    torch.onnx.export(
        net,
        (example,),
        path,
        dynamo=True,
        external_data=size > _INLINE_BYTES,
        verbose=False,
        input_names=["image"],
        output_names=list(outputs),
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
    )


def load_weights(net: nn.Module, path: Path) -> nn.Module:
    """Fill a network, which may lie on the meta device, from a .safetensors, .pt or .pth state dict."""
    given = _read_state(path)
    wanted = net.state_dict()
    # Counters of training steps: a file may leave them out.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in wanted]
    misshapen = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    faults = [
        f"{word} {len(keys)} (first {keys[0]!r})"
        for word, keys in (("missing", missing), ("unknown", unknown), ("wrong shape", misshapen))
        if keys
    ]
    if faults:
        raise InputError(
            f"weights file {path} does not fit this model: {', '.join(faults)}; give a state dict of this very model"
        )
    net.load_state_dict(given, assign=True)
    return net.float().eval()


def _read_state(path: Path) -> dict[str, Tensor]:
    kinds = "give a .safetensors, .pt or .pth file"
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist; {kinds}")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(f"weights file {path} has an unknown ending {path.suffix!r}; {kinds}")
    try:
        with _quiet():
            if path.suffix == ".safetensors":
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything: KeyError, UnicodeDecodeError, IndexError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"weights file {path} cannot be read ({reason}); write it again or give another") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights file {path} is not a state dict; save it with torch.save(net.state_dict(), path)")
    return state


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch says; what it raises still passes."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

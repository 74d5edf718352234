"""Structured pruning for ONNX models: an ONNX file in, a smaller and faster ONNX file out.

The commands of the command line are functions here, under the same names: `inspect`, `compress`, `apply`, `evaluate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.inspection import inspect as inspect
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import compress as compress
    from onnxprune.pipeline import evaluate as evaluate
    from onnxprune.settings import CompressSettings as CompressSettings

_HOMES = {
    "CompressSettings": "settings",
    "apply": "pipeline",
    "compress": "pipeline",
    "evaluate": "pipeline",
    "inspect": "inspection",
}
__all__ = ["CompressSettings", "apply", "compress", "evaluate", "inspect"]


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxprune.{_HOMES[name]}"), name)

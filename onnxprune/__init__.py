"""Structured pruning for ONNX models: an ONNX file in, a smaller and faster ONNX file out.

The commands of the command line are functions here, under the same names: `inspect`, `compress`, `apply`, `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.pipeline import CompressSettings as CompressSettings
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import compress as compress
    from onnxprune.pipeline import evaluate as evaluate
    from onnxprune.pipeline import inspect as inspect

__all__ = ["CompressSettings", "apply", "compress", "evaluate", "inspect"]


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used, so that the command line starts at once."""
    if name in __all__:
        from onnxprune import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

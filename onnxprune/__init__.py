"""Structured pruning for ONNX models: an ONNX file in, a smaller and faster ONNX file out.

The commands of the command line are functions here, under the same names: `inspect`, `compress`, `apply`, `finetune`,
`evaluate`, `profile`. `resume` is ``compress --resume``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.finetuning import finetune as finetune
    from onnxprune.inspection import inspect as inspect
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import compress as compress
    from onnxprune.pipeline import evaluate as evaluate
    from onnxprune.pipeline import resume as resume
    from onnxprune.profiling.profile import ProfileSettings as ProfileSettings
    from onnxprune.profiling.profile import profile as profile
    from onnxprune.settings import CompressSettings as CompressSettings
    from onnxprune.training.settings import FinetuneSettings as FinetuneSettings

_HOMES = {
    "CompressSettings": "settings",
    "FinetuneSettings": "training.settings",
    "ProfileSettings": "profiling.profile",
    "apply": "pipeline",
    "compress": "pipeline",
    "evaluate": "pipeline",
    "finetune": "finetuning",
    "inspect": "inspection",
    "profile": "profiling.profile",
    "resume": "pipeline",
}
__all__ = [
    "CompressSettings",
    "FinetuneSettings",
    "ProfileSettings",
    "apply",
    "compress",
    "evaluate",
    "finetune",
    "inspect",
    "profile",
    "resume",
]


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxprune.{_HOMES[name]}"), name)

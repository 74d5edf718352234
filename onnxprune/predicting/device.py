"""What runs a model, and how: one place that latency targets, their model and the final times share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxprune import runtime, shapes
from onnxprune.model import Model
from onnxprune.weights import Array


@dataclass(frozen=True)
class Device:
    """What runs a model, and how.

    Attributes:
        provider: by onnxruntime's name for it.
        threads: for one operator; 0 leaves it to onnxruntime.
        batch: samples at a time, where the model leaves them free; None: as many as its sizes were bound for.
    """

    provider: str = runtime.CPU
    threads: int = 1
    batch: int | None = None

    @property
    def tells_kernels(self) -> bool:
        """Whether times of kernels are what they take; those of a GPU tell when they were handed over."""
        return self.provider == runtime.CPU

    def inputs(self, model: Model) -> dict[str, Array]:
        """Make up inputs for a model."""
        return shapes.example_inputs(model.proto.graph, self._sizes(model))

    def samples(self, model: Model) -> int:
        """Count the samples that a model gets at once."""
        return shapes.samples(self._sizes(model))

    def _sizes(self, model: Model) -> Mapping[str, shapes.Shape]:
        if model.has_free_batch and self.batch is not None:
            return {name: (self.batch, *shape[1:]) for name, shape in model.bound.items()}
        return model.bound

    def session(self, model: ModelProto, folder: Path, profile: Path | None = None) -> runtime.Session:
        """Load a model; `profile` is where the times of its kernels go.

        Raises:
            InputError: onnxruntime cannot load it, or not with this provider.
        """
        return runtime.Session(
            model, folder=folder, threads=self.threads or None, provider=self.provider, profile=profile
        )

"""Write a model with its weights and computations in half precision, inputs and outputs as they were.

    python benchmarks/half.py MODEL.onnx HALF.onnx

The work is onnxruntime's own converter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnxprune.files import aside


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    half = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    with aside(target) as draft:
        onnx.save(half, str(draft))


if __name__ == "__main__":
    main()

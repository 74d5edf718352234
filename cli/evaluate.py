"""``onnxprune evaluate``: accuracy with labels, agreement without."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from . import display


@click.command(epilog="Example: onnxprune evaluate small.onnx --data test.npz --preprocess cifar10")
@display.model_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), help="An .npz with x (and y), or an .npy.")
@display.preprocess_option
@display.label_offset_option
@click.option("--reference", type=click.Path(path_type=Path), help="A model to agree with.")
@display.shape_option
@display.json_option
@display.quiet_option
def evaluate(
    model: Path,
    data: Path,
    preprocess: str,
    label_offset: int,
    reference: Path | None,
    shapes: tuple[str, ...],
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Judge MODEL on samples: top-1 and top-5 with labels, agreement with a --reference model."""
    from onnxprune import pipeline

    progress = display.Shown(quiet)
    try:
        scores = pipeline.evaluate(
            model,
            data,
            preprocess=preprocess,
            label_offset=label_offset,
            reference=reference,
            shapes=display.parse_shapes(shapes),
            progress=progress,
        )
    finally:
        progress.close()
    display.write_result(json_file, {"format": "onnxprune.evaluate/1", "model": model.name, **asdict(scores)})
    if not quiet:
        for name, value in asdict(scores).items():
            if value is not None:
                click.echo(f"{name}: {value}" if name == "samples" else f"{name}: {value:.2%}")

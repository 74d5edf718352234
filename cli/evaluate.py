"""``onnxprune evaluate``: accuracy with labels, distance from another model's answers without."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from . import display

FORMATS = {
    "samples": "{}",
    "kl": "{:.4g} nats",
    "distance": "{:.4g} (0 is the same, 1 as bad as a constant answer)",
    "others": "{:.4g} (the square of the distance, of outputs that are no classes)",
}
"""How scores are shown that are no shares."""


@click.command(epilog="Example: onnxprune evaluate small.onnx --data test.npz --preprocess cifar10")
@display.model_argument
@click.option("--data", required=True, help=f"Samples: {display.DATA_FORMS}.")
@display.preprocess_option
@display.label_offset_option
@click.option("--reference", type=click.Path(path_type=Path), help="A model to compare the answers with.")
@display.shape_option
@display.json_option
@display.quiet_option
def evaluate(
    model: Path,
    data: str,
    preprocess: str,
    label_offset: int,
    reference: Path | None,
    shapes: tuple[str, ...],
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Judge MODEL on samples: top-1 and top-5 with labels; agreement, KL divergence and distance with a --reference."""
    from onnxprune import pipeline, reporting

    display.check_json(json_file)
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
    found = asdict(scores)
    told = {"format": "onnxprune.evaluate/1", "model": model.name, **reporting.plain(found)}
    display.write_result(json_file, told)
    if not quiet:
        for name, value in found.items():
            if value is not None:
                click.echo(f"{name}: {FORMATS.get(name, '{:.2%}').format(value)}")

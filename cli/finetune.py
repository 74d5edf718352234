"""``onnxprune finetune``: train a model, from labels or from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.errors import InterruptedRunError

from . import display

if TYPE_CHECKING:
    from onnxprune.finetuning import FinetuneReport
    from onnxprune.training.settings import FinetuneSettings

ANSWERS = {"top1": "top-1", "top5": "top-5", "agreement": "agreement", "kl": "KL, nats", "distance": "distance"}


@click.command(epilog="Example: onnxprune finetune small.onnx --data train.npz --teacher model.onnx --epochs 10")
@display.model_argument
@click.option("--data", required=True, help=f"Samples to train on: {display.DATA_FORMS}. Part of them is held out.")
@click.option("--epochs", type=int, required=True, help="Times that every sample is seen.")
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="A model whose answers are to be learnt, such as the one before it was cut; needed where there are no labels.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write; MODEL.finetuned.onnx by default."
)
@display.preprocess_option
@display.label_offset_option
@click.option("--batch", default=128, show_default=True, help="Samples a step, over all processes.")
@click.option("--rate", type=float, help="Highest learning rate. Default: by optimizer, smaller without normalisation.")
@click.option("--optimizer", default="sgd", show_default=True, help="sgd or adamw.")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Of weights; biases and scales have none.")
@click.option("--warmup", default=0.05, show_default=True, help="Share of all steps in which the rate rises.")
@click.option("--smoothing", default=0.0, show_default=True, help="Label smoothing.")
@click.option("--temperature", default=2.0, show_default=True, help="Of the scores compared with the teacher's.")
@click.option(
    "--teacher-share",
    default=0.5,
    show_default=True,
    help="The teacher's part of the loss where there are labels, too; 1 leaves the labels alone.",
)
@click.option(
    "--hints",
    default=0.0,
    show_default=True,
    help="Weight of the teacher's inner images in the loss.",
)
@click.option("--clip", default=1.0, show_default=True, help="Most that the norm of all gradients may be; 0: no limit.")
@click.option("--ema", default=0.0, show_default=True, help="How slowly averaged weights follow; 0: no average.")
@click.option(
    "--augment",
    default="auto",
    show_default=True,
    help="small shifts and mirrors, imagenet crops; none.",
)
@click.option("--cutout", default=0, show_default=True, metavar="PIXELS", help="A square to blank in each image.")
@click.option(
    "--norms",
    default="insert",
    show_default=True,
    help="insert: BatchNormalization comes back behind convolutions while training lasts. keep: the model as it is.",
)
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option("--compile", "compiled", is_flag=True, help="Let torch compile the model: slow to start, faster to run.")
@click.option("--tensorboard", is_flag=True, help="Write a log for TensorBoard into the run's folder, too.")
@click.option("--holdout", default=2000, show_default=True, help="Most samples held out, to choose the best epoch by.")
@click.option(
    "--choose",
    default="best",
    show_default=True,
    help="The epoch that is written: best on samples held out, or last: where the model was trained on these before.",
)
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--run", type=click.Path(path_type=Path), help="Folder for checkpoints; OUTPUT.run by default.")
@click.option("--resume", is_flag=True, help="Go on with the run that the folder holds.")
@display.shape_option
@display.force_option
@display.json_option
@display.quiet_option
def finetune(
    model: Path,
    data: str,
    epochs: int,
    teacher: Path | None,
    output: Path | None,
    preprocess: str,
    label_offset: int,
    batch: int,
    rate: float | None,
    optimizer: str,
    weight_decay: float,
    warmup: float,
    smoothing: float,
    temperature: float,
    teacher_share: float,
    hints: float,
    clip: float,
    ema: float,
    augment: str,
    cutout: int,
    norms: str,
    precision: str,
    compiled: bool,
    tensorboard: bool,
    holdout: int,
    choose: str,
    seed: int,
    run: Path | None,
    resume: bool,
    shapes: tuple[str, ...],
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Train MODEL in PyTorch, from labels, from a teacher's answers or both, and write it in its own structure.

    Several GPUs or machines: torchrun --nproc-per-node 2 --no-python -- onnxprune finetune ...
    """
    from onnxprune.training.settings import FinetuneSettings

    settings = FinetuneSettings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup=warmup,
        smoothing=smoothing,
        temperature=temperature,
        teacher_share=teacher_share,
        hints=hints,
        clip=clip,
        ema=ema,
        augment=augment,
        cutout=cutout,
        norms=norms,
        precision=precision,
        compiled=compiled,
        tensorboard=tensorboard,
        holdout=holdout,
        choose=choose,
        seed=seed,
    )
    out = output if output is not None else Path(f"{model.name.removesuffix('.onnx')}.finetuned.onnx")
    train(
        model,
        out,
        settings,
        quiet=quiet,
        json_file=json_file,
        data=data,
        preprocess=preprocess,
        label_offset=label_offset,
        teacher=teacher,
        run=run,
        resume=resume,
        shapes=display.parse_shapes(shapes),
        force=force,
    )


def train(
    model: Path, out: Path, settings: FinetuneSettings, *, quiet: bool, json_file: Path | None, **given: Any
) -> None:
    """Train, show what it brought, and turn an interrupt into an error that says how to go on."""
    from onnxprune import finetuning
    from onnxprune.training.processes import is_first

    display.check_json(json_file, out)
    quiet = quiet or not is_first()
    progress = display.Shown(quiet)
    try:
        report = finetuning.finetune(model, out, settings, progress=progress, **given)
    except KeyboardInterrupt as error:
        again = display.again("--resume")
        raise InterruptedRunError(
            f"interrupted; finished epochs are kept, and this goes on from there: {again}"
        ) from error
    finally:
        progress.close()
    if is_first():
        display.write_result(json_file, report.to_json())
    if not quiet:
        _show(report, out)


def _show(report: FinetuneReport, out: Path) -> None:
    made = display.table(f"Answers to {report.before.samples} samples held out", "score", " before", " after")
    for name, title in ANSWERS.items():
        before, after = getattr(report.before, name), getattr(report.after, name)
        if before is not None and after is not None:
            form = "{:.2%}" if name in ("top1", "top5", "agreement") else "{:.4g}"
            made.add_row(title, form.format(before), form.format(after))
    console = display.console()
    console.print(made)
    for note in report.notes:
        console.print(f"Note: {note}")
    console.print(f"wrote {out} with the weights of epoch {report.chosen_epoch}, and its report")

"""What finetune is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxprune.data import CHOICES
from onnxprune.errors import InputError
from onnxprune.training.augment import AUGMENTS

OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16")
NORMS = ("insert", "keep")
RATES = {("sgd", True): 0.05, ("sgd", False): 0.005, ("adamw", True): 1e-3, ("adamw", False): 2e-4}
"""Learning rates by optimizer and by whether the network normalises: without that, larger steps diverge."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What finetune is asked for.

    Attributes:
        epochs: times that every training sample is seen.
        batch: most samples a step, over all processes; steps are equally large.
        rate: highest learning rate; None chooses by optimizer and network, see `RATES`.
        optimizer: ``sgd`` (with Nesterov's momentum) or ``adamw``.
        weight_decay: of weights; biases and normalisations have none.
        warmup: share of all steps in which the rate rises; behind it, it falls as a cosine does.
        smoothing: share of the label's probability that all classes get.
        temperature: what scores are divided by before they are compared with the teacher's.
        teacher_share: of the loss, where there are labels and a teacher.
        hints: weight of the teacher's inner maps in the loss; 0 leaves them out.
        clip: most that the norm of all gradients may be; 0 for no limit.
        ema: how slowly averaged weights follow; 0 for no average.
        augment: how images are shown otherwise each time, see `augment.AUGMENTS`.
        cutout: pixels a side of a square that is set to zero in each image; 0 for none.
        norms: ``insert`` puts BatchNormalization behind convolutions it was folded into while training lasts.
        precision: ``bf16`` computes products in half precision, ``auto`` where that is faster.
        compiled: whether torch compiles the model.
        tensorboard: whether the run's folder gets a log for TensorBoard as well.
        holdout: the most samples that are not trained on, to choose the best epoch by.
        choose: ``best`` takes the epoch that answers the samples held out best, 0 among them; ``last`` the last one,
            for samples that the model was trained on before, which it knows by heart.
        seed: of everything that is drawn.
    """

    epochs: int
    batch: int = 128
    rate: float | None = None
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warmup: float = 0.05
    smoothing: float = 0.0
    temperature: float = 2.0
    teacher_share: float = 0.5
    hints: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    augment: str = "auto"
    cutout: int = 0
    norms: str = "insert"
    precision: str = "auto"
    compiled: bool = False
    tensorboard: bool = False
    holdout: int = 2000
    choose: str = "best"
    seed: int = 0


def check(settings: FinetuneSettings) -> None:
    """Make sure that the settings make sense.

    Raises:
        InputError: one does not.
    """
    for option, value, choices in (
        ("--optimizer", settings.optimizer, OPTIMIZERS),
        ("--augment", settings.augment, AUGMENTS),
        ("--precision", settings.precision, PRECISIONS),
        ("--norms", settings.norms, NORMS),
        ("--choose", settings.choose, CHOICES),
    ):
        if value not in choices:
            raise InputError(f"{option} {value!r} does not exist; choose one of {', '.join(choices)}")
    for option, number, least, most in (
        ("--epochs", settings.epochs, 1, 1e6),
        ("--batch", settings.batch, 1, 1e6),
        ("--rate", 1.0 if settings.rate is None else settings.rate, 1e-9, 1e3),
        ("--weight-decay", settings.weight_decay, 0, 1),
        ("--warmup", settings.warmup, 0, 0.99),
        ("--smoothing", settings.smoothing, 0, 0.99),
        ("--temperature", settings.temperature, 0.01, 1000),
        ("--teacher-share", settings.teacher_share, 0, 1),
        ("--hints", settings.hints, 0, 1e6),
        ("--clip", settings.clip, 0, 1e6),
        ("--ema", settings.ema, 0, 0.99999),
        ("--cutout", settings.cutout, 0, 1e4),
        ("--holdout", settings.holdout, 1, 1e9),
        ("--seed", settings.seed, 0, 2**32),
    ):
        if not least <= number <= most:
            raise InputError(f"{option} {number:g}: give a number from {least:g} to {most:g}")

    if settings.cutout and settings.augment == "none":
        raise InputError("--cutout blanks part of augmented images; leave --augment none out")


def with_rate(settings: FinetuneSettings, is_normalised: bool) -> FinetuneSettings:
    """Choose the learning rate where it was left open."""
    if settings.rate is not None:
        return settings
    return replace(settings, rate=RATES[settings.optimizer, is_normalised])

"""What each criterion and each repair is worth, on the same widths.

    python benchmarks/repair.py criteria MODEL [MODEL ...] --data train.npz --test test.npz [--samples 2000]
    python benchmarks/repair.py models MODEL [MODEL ...] [--flops 0.7]

`criteria` cuts all widths alike and prints top-1 on test data for every criterion, repair and share of the FLOPs.
`models` feeds files of any kind with made-up images (smooth shapes and noise) and prints the error of their outputs
after a cut, unrepaired and repaired, on made-up images that the repair has not seen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.attempts import Attempts
from onnxprune.criteria import Evidence, importance
from onnxprune.data import read_data, read_preprocess
from onnxprune.errors import OnnxPruneError
from onnxprune.finish import Finish
from onnxprune.judging import judge_on, repaired
from onnxprune.prepare import Prepared, Source, prepare
from onnxprune.progress import Quiet
from onnxprune.runtime import BLAS_THREADS
from onnxprune.settings import CompressSettings, resolve
from onnxprune.shapes import example_inputs
from onnxprune.statistics import Statistics
from onnxprune.surgery import cut

CRITERIA = ("obs", "taylor", "activation", "l1", "random")
REPAIRS = ("none", "bn", "least_squares")
SEEDS = range(3)  # of the random criterion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    criteria = kinds.add_parser("criteria")
    criteria.set_defaults(run=run_criteria)
    criteria.add_argument("--data", required=True)
    criteria.add_argument("--test", required=True)
    criteria.add_argument("--preprocess", default="cifar10")
    criteria.add_argument("--samples", type=int, default=2000, help="test samples, the first ones")
    criteria.add_argument("--flops", default="0.7,0.5,0.3")
    criteria.add_argument("--criteria", default=",".join(CRITERIA))
    wild = kinds.add_parser("models")
    wild.set_defaults(run=run_models)
    wild.add_argument("--flops", default="0.7")
    wild.add_argument("--samples", type=int, default=96, help="made-up images")
    for kind in (criteria, wild):
        kind.add_argument("models", nargs="+", type=Path)
    arguments = parser.parse_args()
    arguments.run(arguments)


def run_criteria(arguments: argparse.Namespace) -> None:
    for path in arguments.models:
        test = None
        for criterion in arguments.criteria.split(","):
            seeds = SEEDS if criterion == "random" else (0,)
            for target in arguments.flops.split(","):
                tops: dict[str, list[float]] = {repair: [] for repair in REPAIRS}
                for seed in seeds:
                    prepared, finish, statistics = ready(
                        path, arguments.data, arguments.preprocess, target, "uniform", criterion, seed
                    )
                    if test is None:
                        data = read_data(arguments.test, prepared.original.model, read_preprocess(arguments.preprocess))
                        test = judge_on(prepared.original, data.take(np.arange(arguments.samples)), 0)
                    attempt = attempted(prepared, statistics)
                    smaller = cut(attempt.best.channels, attempt.best.plan, runtime.evaluate)
                    for repair in REPAIRS:
                        result = repaired(finish.candidates.original, attempt.best.plan, smaller, repair)
                        tops[repair].append(100 * (test.judge(result).top1 or 0))
                shown = " | ".join(f"{repair} {summary(found)}" for repair, found in tops.items())
                print(f"{path.stem} | {criterion} | {target} | {shown}", flush=True)


def summary(found: list[float]) -> str:
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def ready(
    path: Path, data: str, preprocess: str, target: str, search: str, criterion: str, seed: int = 0
) -> tuple[Prepared, Finish, Statistics]:
    asked = CompressSettings({"macs": target}, search=search, criterion=criterion, seed=seed)
    prepared = prepare(Source(path, resolve(asked, True), data, preprocess))
    return prepared, Finish(prepared, Quiet()), prepared.statistics()


def attempted(prepared: Prepared, statistics: Statistics) -> Attempts:
    settings = prepared.source.settings
    assert settings.criterion is not None
    assert prepared.parts is not None
    evidence = Evidence(prepared.lossless.channels, settings.seed, statistics, prepared.parts.calibration)
    worth = importance(evidence, settings.criterion)
    return Attempts(prepared, worth, None, Quiet())


def run_models(arguments: argparse.Namespace) -> None:
    for path in arguments.models:
        try:
            print(model_line(path, arguments.flops, arguments.samples), flush=True)
        except OnnxPruneError as error:
            print(f"{path.stem} | {error}", flush=True)


def model_line(path: Path, target: str, samples: int) -> str:
    model = models.load(path, runtime.evaluate)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made_up.npz"
        np.savez(file, allow_pickle=False, **made_up(model, samples))
        prepared, finish, statistics = ready(path, str(file), "none", target, "uniform", "obs")
        attempt = attempted(prepared, statistics).best
        smaller = cut(attempt.channels, attempt.plan, runtime.evaluate)
        assert prepared.parts is not None
        judge = judge_on(prepared.original, prepared.parts.holdout, 0)
        errors = []
        for repair in REPAIRS:
            scores = judge.judge(repaired(finish.candidates.original, attempt.plan, smaller, repair))
            errors.append(f"{repair} {scores.distance:.3f}")
    return f"{path.stem} | {attempt.macs_share:.3f} | " + " | ".join(errors)


def made_up(model: models.Model, samples: int) -> dict[str, npt.NDArray[np.generic]]:
    """Make inputs: images of smooth shapes with some noise, and for what is no image what the probe run is given."""
    rng = np.random.default_rng(0)
    made = {}
    for name, example in example_inputs(model.proto.graph, model.bound).items():
        shape = (samples, *example.shape[1:])
        if example.ndim == 4 and example.dtype.kind == "f":
            channels_last = shape[3] <= 4 < shape[1]
            sizes = shape[1:3] if channels_last else shape[2:]
            colours = shape[3] if channels_last else shape[1]
            images = smooth(rng, samples, colours, *sizes) + 0.1 * rng.standard_normal((samples, colours, *sizes))
            made[name] = (np.moveaxis(images, 1, 3) if channels_last else images).astype(example.dtype)
        else:
            seeds = range(-(-samples // max(len(example), 1)))
            parts = [example_inputs(model.proto.graph, model.bound, seed)[name] for seed in seeds]
            made[name] = np.concatenate(parts)[:samples]
    return made


def smooth(rng: np.random.Generator, samples: int, colours: int, height: int, width: int) -> npt.NDArray[np.float64]:
    """Draw images whose low frequencies are strong, as those of photographs are."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    strength = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    shape = (samples, colours, height, columns.shape[1])
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * strength
    images = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray(images / images.std(axis=(2, 3), keepdims=True))


if __name__ == "__main__":
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        main()

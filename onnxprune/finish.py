"""What happens to a plan once it is chosen: repaired with all calibration samples, and reported on samples held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.data import batch_size
from onnxprune.evaluation import Judge, Scores
from onnxprune.judging import Candidates, digest, judge_on
from onnxprune.model import analyse, load
from onnxprune.plan import Plan
from onnxprune.prepare import Prepared
from onnxprune.progress import Progress
from onnxprune.reporting import plain
from onnxprune.runs import name_of
from onnxprune.statistics import Statistics

FEWEST_TOGETHER = 32  # samples of a step in training, and
TENSORS = 4  # times as many as a model's largest tensors allow where it runs only: steps gain from it
EXACT = 9  # decimals of points, so that 1 less 0.99 is one point and no more

NOT_TAKEN = "what came of training loses more points than --max-drop allows, so the weights are those from before it"
PURPOSES = {
    "calibration": "for statistics and repair",
    "search": "to choose between candidates and whether to keep the repair",
    "holdout": "held out for the answers reported",
}


class Finish:
    """Repairs cut models and tells what they answer.

    Args:
        prepared: the model and its data.
        progress: told what is going on.
    """

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        assert prepared.parts is not None
        self._prepared = prepared
        self._settings = prepared.source.settings
        self._progress = progress
        self._parts = prepared.parts
        self.training = dict[str, Any]()  # what came of it, see `Report.training`

    def check_training(self) -> None:
        """Make sure that the original can be trained, before a search begins.

        Raises:
            InputError: it holds an operator that PyTorch cannot run or no weights, or there are too few samples.
        """
        from onnxprune.training.lesson import check_trainable  # PyTorch takes seconds to load

        check_trainable(self._prepared.original.model, self._parts.train, self._parts.search)

    @cached_property
    def statistics(self) -> Statistics:
        """What the layers of the model read on the calibration samples."""
        return self._prepared.statistics(self._progress)

    @cached_property
    def candidates(self) -> Candidates:
        """Cuts and repairs plans."""
        return self._prepared.candidates(self.statistics)

    @cached_property
    def _held_out(self) -> Judge:
        """Compares on the samples that results are reported on."""
        return judge_on(self._prepared.original, self._parts.holdout.loaded(), self._prepared.source.label_offset)

    @property
    def _stage_of_original(self) -> dict[str, Any]:
        return _stage(
            "original", replace(self._held_out.original_scores, agreement=None, kl=None, distance=None, others=None)
        )

    def repaired(self, plan: Plan, smaller: ModelProto) -> ModelProto:
        """Repair a cut model; give it back as it was where the repair answers worse on samples that it has not seen."""
        return self.candidates.repaired(plan, smaller, self._progress)

    def drop(self, model: ModelProto) -> float:
        """Give the points that a model loses on the samples held out, see `points_lost`."""
        return points_lost(self._stage_of_original, _stage("", self._held_out.judge(model)))

    def loss(self, plan: Plan, smaller: ModelProto) -> float:
        """Give the points that a cut model loses once it is repaired."""
        return self.drop(self.repaired(plan, smaller))

    def finetuned(self, plan: Plan, model: ModelProto, run: Path) -> ModelProto:
        """Train a model on all samples that are not for the search or held out, with the original as its teacher.

        Labels are learnt as well where there are any. The best epoch is chosen by the samples of the search. Training
        that was interrupted goes on.

        Args:
            plan: what the model keeps.
            model: it, repaired.
            run: folder of the run; each plan and way to train it has a folder of its own in there.
        """
        from onnxprune.training.lesson import Lesson, train, untrained  # PyTorch takes seconds to load
        from onnxprune.training.processes import alone
        from onnxprune.training.settings import FinetuneSettings

        source, parts = self._prepared.source, self._parts
        original = self._prepared.original.model
        teacher, shapes = original, self._settings.shapes
        if source.teacher is not None:
            teacher = load(source.teacher, runtime.evaluate, shapes, runs_batches=True)
        smaller = analyse(model, original.folder, runtime.evaluate, shapes)
        smaller.is_batch_fixed = original.is_batch_fixed
        identity = {"plan": digest(plan), "samples": parts.train.sha256, "teacher": teacher.sha256}
        lesson = Lesson(smaller, teacher, parts.train, parts.search.loaded(), source.label_offset, identity)
        most = max(FEWEST_TOGETHER, TENSORS * batch_size(parts.train, original))
        batch = min(FinetuneSettings.batch, most)
        asked = FinetuneSettings(epochs=self._settings.finetune_epochs, batch=batch, seed=self._settings.seed)
        folder = run / f"training-{name_of([identity, asdict(asked)])}"  # the same, whichever epoch is taken
        asked = replace(asked, choose=self._settings.choose)
        folder.mkdir(exist_ok=True)
        trained, result = train(lesson, asked, folder, alone(), self._progress, resume=True)
        notes = result.notes("--choose last") + untrained(smaller)
        self.training = {"chosen_epoch": result.chosen, "epochs": plain(result.rows), "notes": notes}
        return trained

    def give_up_training(self) -> None:
        """Say that what came of training is not taken."""
        self.training["chosen_epoch"] = 0
        self.training["notes"] = [*self.training["notes"], NOT_TAKEN]

    def stages(self, smaller: ModelProto, result: ModelProto, trained: ModelProto) -> list[dict[str, Any]]:
        """Judge the original, the cut model, the repaired and the trained one on the samples held out."""
        found = [self._stage_of_original, _stage("cut", self._held_out.judge(smaller))]
        if self._settings.repair != "none":
            is_repaired = result is not smaller
            repair = _stage("repair", self._held_out.judge(result)) if is_repaired else {**found[-1], "name": "repair"}
            found.append(repair)
        if self._settings.finetune_epochs:
            found.append(_stage("finetune", self._held_out.judge(trained)))
        return found

    def stages_of(self, smaller: ModelProto, steps: Sequence[ModelProto]) -> list[dict[str, Any]]:
        """Judge the original, a cut model and what each of several steps came to on the samples held out."""
        found = [self._stage_of_original, _stage("cut", self._held_out.judge(smaller))]
        names = [*(f"step {number}" for number in range(1, len(steps))), "finetune"]
        return [*found, *(_stage(name, self._held_out.judge(m)) for name, m in zip(names, steps, strict=True))]

    def used(self) -> dict[str, Any]:
        """Tell which samples were used for what."""
        purposes, indices = dict(PURPOSES), self._parts.indices
        if self._settings.max_drop is not None:
            purposes["holdout"] += " and for --max-drop"
        if self._settings.finetune_epochs:
            others = len(self._parts.train) - len(self._parts.calibration)
            purposes["calibration"] += f"; trained on, with {others} samples that are in no part"
            purposes["search"] += ", and to choose the best epoch"
        return {
            "source": self._parts.holdout.source,
            "preprocess": self._prepared.source.preprocess,
            "parts": {
                name: {"purpose": purpose, "samples": len(indices[name]), "indices": indices[name]}
                for name, purpose in purposes.items()
            },
        }


def points_lost(original: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Give the points that a model loses: of accuracy with labels, else of agreement.

    Of a model that does not classify, and of other outputs of one that does, if that is more: hundredths of the
    distance at which it is as bad as a constant answer.

    Args:
        original: its stage, see `Finish.stages`.
        found: the stage of the smaller model.
    """
    others = 100 * np.sqrt(_infinite(found["others"])) if "others" in found else -np.inf
    if "accuracy" in original:
        return float(max(round(100 * (float(original["accuracy"]) - float(found["accuracy"])), EXACT), others))
    if "agreement" in found:
        return float(max(round(100 * (1 - float(found["agreement"])), EXACT), others))
    return 100 * _infinite(found["distance"])


def _infinite(number: float | None) -> float:
    """Take None, which stands for what is not finite, for that."""
    return np.inf if number is None else float(number)


def _stage(name: str, scores: Scores) -> dict[str, Any]:
    """Describe scores; None stands for a number that is not finite, which JSON does not know."""
    given = {field: value for field, value in asdict(scores).items() if value is not None}
    found = {field: value if np.isfinite(value) else None for field, value in given.items()}
    return {"name": name, **{"accuracy" if field == "top1" else field: value for field, value in found.items()}}

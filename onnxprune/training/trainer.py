"""The loop: steps of stochastic gradient descent, an evaluation after each epoch, a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.progress import Progress
from onnxprune.training import checkpoint
from onnxprune.training.augment import augment, choose
from onnxprune.training.executor import Executor
from onnxprune.training.losses import Loss
from onnxprune.training.processes import Processes
from onnxprune.training.settings import FinetuneSettings
from onnxprune.training.sharing import is_vector

Item = TypeVar("Item")
Weights = dict[str, Tensor]
Outputs = tuple[Tensor, ...]

NOTHING_BETTER = (
    "no epoch answers the samples held out better than the model did before training, so its weights are as they were. "
    "Samples that the model was trained on before cannot tell, since it knows them by heart: {} takes the last epoch"
)

LOWER = "a lower --rate may help"
EVALUATED = 256  # samples of the hold-out that run together, where steps take no fewer
CHECKED = 50  # steps between looks at whether the loss is finite; all processes look together


@dataclass(frozen=True)
class Task:
    """What is trained, on what, towards what.

    Attributes:
        model: its first outputs are the answers that the loss looks at, the others inner tensors.
        teacher: gives the same outputs, where there is one.
        answers: how many of the outputs are answers.
        loss: of the answers.
        train: samples to train on; classes are learnt where they have any.
        holdout: samples to choose the best epoch by.
        fixed_batch: the batch size that the model is fixed to; None where it is free.
        identity: what makes this task this one, such as the hash of the model; a run goes on only with the same.
    """

    model: Executor
    teacher: Executor | None
    answers: int
    loss: Loss
    train: Data
    holdout: Data
    fixed_batch: int | None
    identity: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        weights: of the chosen epoch, by name.
        rows: what happened in each epoch.
        chosen: the epoch they are from; 0 is before training.
        stopped: why it ended early, or empty.
        rate: the highest learning rate.
    """

    weights: Weights
    rows: list[dict[str, Any]]
    chosen: int
    stopped: str
    rate: float

    def notes(self, options: str) -> list[str]:
        """Say what the user should know, with the options that would take another epoch."""
        notes = [self.stopped] if self.stopped else []
        return notes + ([NOTHING_BETTER.format(options)] if not self.chosen and len(self.rows) > 1 else [])


class Trainer:
    """Trains one model.

    Args:
        task: what is trained.
        settings: how.
        folder: for checkpoints.
        team: the processes that train together.
        progress: told about each epoch.
    """

    def __init__(
        self, task: Task, settings: FinetuneSettings, folder: Path, team: Processes, progress: Progress
    ) -> None:
        self.task, self.settings, self.folder, self.team, self.progress = task, settings, folder, team, progress
        self.model = _placed(task.model, team.device)
        if task.teacher is not None:
            _placed(task.teacher, team.device).eval()
        asked = settings.batch if task.fixed_batch is None else task.fixed_batch * team.count
        if asked % team.count:
            raise InputError(f"a step of {asked} samples does not divide among {team.count} processes")
        most = min(asked, len(task.train) // team.count * team.count)
        self.steps, self.batch = equal_steps(len(task.train), most, task.fixed_batch is not None)
        self.batch -= self.batch % team.count
        check_weights(task.model)
        assert settings.rate is not None, "`with_rate` chooses one"
        self.rate = settings.rate
        self.optimizer = _optimizer(self.model, settings)
        self.average: Weights = {}
        self.rows: list[dict[str, Any]] = []
        self._before = 0  # steps that earlier runs have made, which tell nothing of the time that is left
        self.bf16 = uses_bf16(settings.precision, team.device)
        self._replica: nn.Module = self.model
        if team.count > 1:
            self._replica = DistributedDataParallel(self.model, find_unused_parameters=True)

    def run(self, resume: bool = False) -> Result:
        """Train all epochs, or those that are left.

        Raises:
            InputError: what is to go on is damaged, another run, or not seen by all processes.
        """
        if resume and self._has_begun():
            best, best_epoch, start = self._resumed()
            self._before = start * self.steps
        else:
            if self.team.is_first:  # of an earlier run that is not to go on
                (self.folder / checkpoint.LAST).unlink(missing_ok=True)
            best, best_epoch, start = self._evaluated(0, math.nan), 0, 0
            self._save_best(0)
        board = None
        if self.settings.tensorboard and self.team.is_first:
            board = checkpoint.open_board(self.folder, start)
        stopped = ""
        for epoch in range(start + 1, self.settings.epochs + 1):
            loss = self._epoch(epoch)
            if not math.isfinite(loss):
                stopped = f"the loss was not finite in epoch {epoch}, so training ended there; {LOWER}"
                break
            score = self._evaluated(epoch, loss)
            if not math.isfinite(score[1]) and math.isfinite(best[1]):
                stopped = f"the model's answers were not finite after epoch {epoch}, so training ended there; {LOWER}"
                break
            if score > best or math.isnan(best[1]):
                best, best_epoch = score, epoch
                self._save_best(epoch)
            self._save_last(epoch, best, best_epoch)
            if board is not None:
                for name in ("loss", "holdout_loss", "accuracy"):
                    if self.rows[-1][name] is not None:
                        board.add_scalar(name, self.rows[-1][name], epoch)
                board.flush()
            self.progress.say(_line(self.rows[-1], self.settings.epochs, is_best=best_epoch == epoch))
        if not self.team.is_first:
            return Result({}, self.rows, best_epoch, stopped, self.rate)
        chosen, epoch = self._chosen()
        return Result(chosen, self.rows, epoch, stopped, self.rate)

    def _has_begun(self) -> bool:
        """Tell whether the folder holds a run to go on with; all processes must see the same."""
        has_begun = torch.tensor(float((self.folder / checkpoint.LAST).exists()), device=self.team.device)
        count = float(self.team.added(has_begun))
        if 0 < count < self.team.count:
            raise InputError(f"{self.folder} is not the same for all processes; give a --run that all machines share")
        return count > 0

    def _chosen(self) -> tuple[Weights, int]:
        """Give the weights of the epoch that the settings ask for, and its number."""
        if self.settings.choose == "last" and (self.folder / checkpoint.LAST).exists():
            last = checkpoint.load(self.folder, checkpoint.LAST)
            return last["average"] or last["weights"], last["epoch"]
        best = checkpoint.load(self.folder, checkpoint.BEST)
        return best["weights"], best["epoch"]

    def _epoch(self, epoch: int) -> float:
        """Train on all samples once; gives the mean loss, NaN where it was not finite."""
        own_seed = seed_of(self.settings.seed, epoch, self.team.rank)
        torch.manual_seed(own_seed)  # for what the graph itself draws
        generator = torch.Generator().manual_seed(own_seed)
        drawing = np.random.default_rng(seed_of(self.settings.seed, epoch))  # the same for all processes
        order = drawing.permutation(len(self.task.train))[: self.steps * self.batch]
        share = self.batch // self.team.count
        own = order.reshape(self.steps, self.team.count, share)[:, self.team.rank].reshape(-1)
        self._replica.train()
        total, text = torch.zeros((), device=self.team.device), _come_to(self.rows[-1]["loss"], self.rows[-1])
        for number, (inputs, labels) in enumerate(ahead(self._batches(self.task.train.take(own), share))):
            step = (epoch - 1) * self.steps + number
            self.progress.step(step - self._before, self.settings.epochs * self.steps - self._before, text)
            loss = self._step(step, self._shown(inputs, generator), labels)
            total += loss
            if number % CHECKED == CHECKED - 1:
                so_far = float(self.team.added(total.clone())) / (number + 1) / self.team.count
                if not math.isfinite(so_far):
                    break
                text = _come_to(so_far, self.rows[-1])
        return float(self.team.added(total)) / self.steps / self.team.count

    def _step(self, step: int, inputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * schedule(step, self.settings.epochs * self.steps, self.settings.warmup)
        loss = self._loss(*self._answers(self._replica, inputs), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        if self.settings.ema:
            self._follow(step)
        return loss.detach()

    def _answers(self, model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Outputs, Outputs | None]:
        """Give what the model puts out, and the teacher."""
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.bf16):
            found = model(*inputs)
            if self.task.teacher is None:
                return found, None
            with torch.no_grad():
                return found, self.task.teacher(*inputs)

    def _loss(self, found: Outputs, wanted: Outputs | None, labels: Tensor | None) -> Tensor:
        answers = self.task.answers
        maps = [] if wanted is None else list(zip(found[answers:], wanted[answers:], strict=True))
        return self.task.loss.of(found[:answers], labels, None if wanted is None else wanted[:answers], maps)

    def _follow(self, step: int) -> None:
        """Let the averaged weights follow, faster at first."""
        slow = min(self.settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, values in self.model.named():
                if name in self.average:
                    self.average[name].lerp_(values.detach(), 1 - slow)
                else:
                    self.average[name] = values.detach().clone()

    def _evaluated(self, epoch: int, loss: float) -> tuple[float, float]:
        """Judge the model, averaged where averages are kept, on the hold-out; larger is better."""
        task, team = self.task, self.team
        for values in (*self.model.statistics.buffers(), *self.average.values()):
            team.share(values)  # each process has followed its own batches
        kept = _copied(self.model) if self.average else {}
        _set(self.model, self.average)
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        own = task.holdout.take(np.arange(team.rank, len(task.holdout), team.count))
        with torch.no_grad():
            for inputs, labels in self._batches(own, task.fixed_batch or min(EVALUATED, self.batch // team.count)):
                if len(inputs[0]) != (task.fixed_batch or len(inputs[0])):
                    break  # the last samples do not fill a batch
                found, wanted = self._answers(self.model, inputs)
                sums[0] += float(self._loss(found, wanted, labels)) * len(inputs[0])
                sums[1] += len(inputs[0])
                if labels is not None:
                    best = task.loss.scores(found).argmax(1)
                    sums[2] += int((best == labels + task.loss.label_offset).sum())
        _set(self.model, kept)
        held, count, right = team.added(sums.to(team.device)).tolist()
        accuracy = right / count if task.holdout.y is not None else None
        row = {"epoch": epoch, "loss": loss if epoch else None, "holdout_loss": held / count, "accuracy": accuracy}
        self.rows.append(row)
        return (accuracy or 0.0, -held / count)

    def _batches(self, data: Data, size: int) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        device = self.team.device
        for feed, labels in data.batches(size):
            inputs = [torch.from_numpy(x).to(device) for x in feed.values()]
            yield inputs, None if labels is None else torch.from_numpy(labels).to(device)

    def _shown(self, inputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Augment the inputs that are images."""
        shown = []
        state = generator.get_state()
        for x, given in zip(inputs, self.task.train.inputs, strict=True):
            if given.image is not None and given.channel_axis is not None:
                generator.set_state(state)  # images that belong together move together
                images = x.movedim(given.channel_axis, 1)
                how = choose(self.settings.augment, tuple(images.shape))
                x = augment(images, how, generator, self.settings.cutout).movedim(1, given.channel_axis)
            shown.append(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
        return shown

    def _save_best(self, epoch: int) -> None:
        if self.team.is_first:
            weights = {name: values.cpu() for name, values in (self.average or _copied(self.model)).items()}
            checkpoint.save(self.folder, checkpoint.BEST, {"epoch": epoch, "weights": weights})

    def _save_last(self, epoch: int, best: tuple[float, float], best_epoch: int) -> None:
        if not self.team.is_first:
            return
        state = {
            "identity": self._identity,
            "epoch": epoch,
            "weights": _copied(self.model),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "rows": self.rows,
            "best": list(best),
            "best_epoch": best_epoch,
        }
        checkpoint.save(self.folder, checkpoint.LAST, state)
        checkpoint.log(self.folder, self.rows)

    @property
    def _identity(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.settings).items() if name != "choose"}
        return {**self.task.identity, "settings": settings, "processes": self.team.count}

    def _resumed(self) -> tuple[tuple[float, float], int, int]:
        state = checkpoint.load(self.folder, checkpoint.LAST)
        try:
            return self._taken(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.folder / checkpoint.LAST} is damaged; remove it to train anew") from error

    def _taken(self, state: dict[str, Any]) -> tuple[tuple[float, float], int, int]:
        """Go on from a state."""
        if state["identity"] != self._identity:
            changed = _changed(state["identity"], self._identity)
            raise InputError(
                f"{self.folder} holds a run with other {', '.join(changed)}; give the command it began with, "
                "or another --run"
            )
        _set(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = {name: values.to(self.team.device) for name, values in state["average"].items()}
        self.rows = state["rows"]
        best, also = state["best"]
        return (best, also), state["best_epoch"], state["epoch"]


def seed_of(seed: int, epoch: int, rank: int = 0) -> int:
    """Give the seed of what a process draws in an epoch: no other one draws the same, in whatever epoch."""
    return seed * 100_003 + epoch + (rank << 40)


def _come_to(loss: float | None, row: dict[str, Any]) -> str:
    """Say what training has come to within an epoch: the loss so far, and the accuracy after the epoch before."""
    parts = {"loss": loss and f"{loss:.3f}", "accuracy": row["accuracy"] and f"{row['accuracy']:.1%}"}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _changed(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Name what differs between two runs; settings by their options."""
    changed = [name for name, value in ours.items() if theirs.get(name) != value]
    if "settings" not in changed:
        return changed
    before = theirs.get("settings", {})
    options = [f"--{n.replace('_', '-')}" for n, value in ours["settings"].items() if before.get(n) != value]
    return [name for name in changed if name != "settings"] + options


def check_weights(model: Executor) -> None:
    """Make sure that there is something to train.

    Raises:
        InputError: there is not.
    """
    if not list(model.parameters()):
        raise InputError("the model holds no float weights to train; train it before it is quantised")


def schedule(step: int, steps: int, warmup: float) -> float:
    """Give the share of the highest rate at a step: a rising line, then half a cosine down to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Tell whether products are computed in bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Prepare the next item in a thread while the last one is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def equal_steps(count: int, most: int, is_fixed: bool = False) -> tuple[int, int]:
    """Divide samples among steps of equal size, so that an epoch sees them all but for fewer than there are steps.

    Returns:
        How many steps, and of how many samples: of no more than `most`, and of more than half as many; where that
        cannot be, or the size is fixed, of `most`, and the rest waits for another epoch.
    """
    steps = -(-count // most)
    if is_fixed or count // steps * 2 <= most:
        return count // most, most
    return steps, count // steps


def _optimizer(model: Executor, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Set weights and what is not decayed apart: biases, scales and shifts."""
    weights = [p for p in model.parameters() if not is_vector(p.shape)]
    others = [p for p in model.parameters() if is_vector(p.shape)]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def _placed(model: Executor, device: torch.device) -> Executor:
    """Bring a model to a device, its kernels in the order that convolutions are fast in."""
    model.to(device)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _copied(model: Executor) -> Weights:
    return {name: values.detach().clone() for name, values in model.named()}


def _set(model: Executor, weights: Weights) -> None:
    with torch.no_grad():
        for name, values in weights.items():
            model.tensor(name).copy_(values)


def _line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    accuracy = "" if row["accuracy"] is None else f", accuracy {row['accuracy']:.2%}"
    best = ", the best so far" if is_best else ""
    held = f"loss {row['holdout_loss']:.4f}{accuracy}{best}"
    return f"epoch {row['epoch']} of {epochs}: loss {row['loss']:.4f}; held out: {held}"

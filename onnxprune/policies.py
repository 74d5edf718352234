"""Policies that carry over from network to network: trained on several at once, and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune.criteria import Evidence, importance
from onnxprune.errors import InputError, TargetError
from onnxprune.files import append_lines, read_lines
from onnxprune.journal import Entry, Journal
from onnxprune.outputs import check_apart, check_outputs
from onnxprune.prepare import Prepared, Source, prepare
from onnxprune.problem import FINE, Judging, Problem
from onnxprune.progress import Progress, Quiet
from onnxprune.runs import identity, name_of, take
from onnxprune.runtime import BLAS_THREADS
from onnxprune.search.gnn_rl import LENGTH
from onnxprune.search.greedy import descend
from onnxprune.settings import CompressSettings, check_seed, resolve
from onnxprune.targets import parse_target

if TYPE_CHECKING:
    from onnxprune.search.policy.environment import Episodes
    from onnxprune.search.policy.learning import Learner


EXPLORED = 3  # batches of plans that tell what groups matter, before an agent learns from that
THINKING = 8  # times that a network is thought about for each time that its plans are judged


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        shares: of the FLOPs that each network is cut to.
        rounds: times that each network is met at each share.
        rate: of the agent's weights.
        seed: same seed, same policy.
    """

    shares: tuple[float, ...] = (0.5, 0.25, 0.12)
    rounds: int = 6
    rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class PolicyReport:
    """What training came to; gains are logarithms: 0.1 stands for an error 10 % smaller.

    Attributes:
        rounds: for each round the mean gain of all episodes over the plans that they start from.
        own: for each network and share what the policy's own plan gains in the end.
        settings: how it was trained.
    """

    rounds: list[float]
    own: dict[str, float]
    settings: dict[str, Any]


def train_policy(
    models: Sequence[Path],
    out: Path,
    settings: PolicySettings,
    *,
    data: Sequence[str | Path],
    preprocess: str = "none",
    label_offset: int = 0,
    start: Path | None = None,
    run: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> PolicyReport:
    """Train one policy over several networks and targets, and write it after every round.

    Args:
        models: the networks.
        out: the file to write.
        settings: how.
        data: samples for all of them, or for each its own, see `read_data`.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        start: a policy to go on with.
        run: folder for what is judged, which stays: the same training, started again, judges nothing twice.
        force: overwrite an existing file.
        progress: told what is going on.

    Raises:
        InputError: a file or an option is wrong.
        TargetError: a network cannot be cut to one of the shares.
    """
    from onnxprune.search.policy.learning import Learner, Learning, fresh, optimizer_of, seeded  # PyTorch takes seconds
    from onnxprune.search.policy.storing import load, save

    progress = progress or Quiet()
    _check(models, out, settings, [*data, preprocess, *([] if start is None else [start])], force)
    if len(data) not in (1, len(models)):
        raise InputError(f"--data was given {len(data)} times for {len(models)} networks; give it once, or for each")
    agent = None if start is None else load(start)[0]
    episodes: dict[str, Episodes] = {}
    begun: dict[str, tuple[Path, Prepared]] = {}
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=BLAS_THREADS, user_api="blas"))
        generator = stack.enter_context(seeded(settings.seed))
        for number, model in enumerate(models):
            progress.stage(f"load {model.name}")
            asked, samples = resolve(CompressSettings({"macs": "1.0"}), True), data[number % len(data)]
            prepared = prepare(Source(model, asked, samples, preprocess, label_offset))
            check_apart(prepared.original.model, out, model.name)
            known = name_of(identity(prepared))
            if known in begun:
                raise InputError(f"{model} is the same network as {begun[known][0]}; name each once")
            _check_shares(prepared, model, settings.shares)
            begun[known] = model, prepared
        for known, (model, prepared) in begun.items():
            progress.stage(f"look at {model.name}")
            kept = None if run is None else stack.enter_context(take(run / f"{known}.jsonl"))
            name = model.name if [other.name for other in models].count(model.name) == 1 else str(model)
            episodes |= _episodes(prepared, name, settings.shares, kept, progress)
        progress.stage("explore")
        agent, how = agent or fresh(), Learning(rate=settings.rate, afterthoughts=THINKING)
        optimizer = optimizer_of(agent, how)
        learners = {name: Learner(agent, place, how, generator, optimizer) for name, place in episodes.items()}
        for number, learner in enumerate(learners.values()):
            progress.step(number, len(learners))
            for _ in range(EXPLORED):
                learner.recall(list(map(learner.episodes.space.plan, learner.aims(how.together))))
        progress.stage("train")
        told = {"models": [model.name for model in models], "data": [Path(source).name for source in data]}
        told |= {"preprocess": [str(preprocess)], "policy": [] if start is None else [start.name]}
        asked_for, rounds = {**asdict(settings), **told}, list[float]()
        for number in range(settings.rounds):
            rounds.append(_round(list(learners.values()), settings, number, progress))
            report = PolicyReport(rounds, {}, asked_for)
            save(agent, out, asdict(report))  # what comes between the rounds loses one of them at most
        report = replace(report, own={name: _own_gain(learner) for name, learner in learners.items()})
    save(agent, out, asdict(report))
    return report


def show_policy(path: Path) -> dict[str, Any]:
    """Tell how a policy was trained, and how large it is.

    Raises:
        InputError: it cannot be read.
    """
    from onnxprune.search.policy.storing import load  # PyTorch takes seconds to load

    agent, notes = load(path)
    return {"parameters": sum(values.numel() for values in agent.parameters()), **asdict(agent.shape), "notes": notes}


def _check(
    models: Sequence[Path], out: Path, settings: PolicySettings, read: Sequence[str | Path], force: bool
) -> None:
    if not models:
        raise InputError("no networks to train on; name some .onnx files")
    shares = [f"{share:g}" for share in settings.shares]
    if not shares or not all(0 < share < 1 for share in settings.shares) or len(set(shares)) < len(shares):
        raise InputError(f"--flops {', '.join(shares)}: give shares between 0 and 1, each once")
    for model in models:
        if not model.is_file():
            raise InputError(f"{model} does not exist; name files of networks")
        if [other.resolve() for other in models].count(model.resolve()) > 1:
            raise InputError(f"{model} is named twice; name each network once")
    if settings.rounds < 1 or not 0 < settings.rate < 1:
        raise InputError(
            f"--rounds {settings.rounds}, --rate {settings.rate:g}: give at least one round, a rate below 1"
        )
    check_seed(settings.seed)
    for model in models:
        check_outputs(model, out, force, kinds=(), read=read)


def _check_shares(prepared: Prepared, model: Path, shares: Sequence[float]) -> None:
    """Make sure that a network can be cut as far as is asked for."""
    if not prepared.lossless.channels.groups:
        raise InputError(f"{model} has nothing to prune; leave it out")
    problem = prepared.problem()
    lowest = problem.lowest()["macs"] / max(problem.original["macs"], 1)
    if min(shares) < lowest:
        raise TargetError(
            f"--flops {min(shares):g} cannot be reached by {model}: the lowest is {np.ceil(1e3 * lowest) / 1e3:g}; "
            "give larger shares, or leave it out"
        )


def _episodes(
    prepared: Prepared, name: str, shares: Sequence[float], kept: BinaryIO | None, progress: Progress
) -> dict[str, Episodes]:
    """Make a place for episodes of a network at each share, from the ranking as it is."""
    from onnxprune.search.policy.environment import Episodes  # PyTorch takes seconds to load

    channels, found = prepared.lossless.channels, dict[str, Episodes]()
    statistics = prepared.statistics(progress)
    worth = importance(Evidence(channels, 0, statistics), "obs")
    judging: Judging = prepared.candidates(statistics)
    if kept is not None:
        judging = Journal(judging, read_lines(Path(kept.name), Entry), append=partial(append_lines, kept))
    for share in shares:
        target = parse_target("macs", np.format_float_positional(share), prepared.original_costs["macs"])
        problem = Problem(channels, prepared.costs, [target], worth, FINE, lossless=prepared.lossless, judging=judging)
        found[f"{name} at {share:g}"] = Episodes(problem, descend(problem), LENGTH)
    return found


def _round(learners: Sequence[Learner], settings: PolicySettings, number: int, progress: Progress) -> float:
    """Let the agent play a batch of episodes of each problem, in an order drawn anew, and learn from it."""
    gained = []
    order = np.random.default_rng((settings.seed, number)).permutation(len(learners))
    for done, at in enumerate(order):
        learner = learners[at]
        gained.append(float(learner.practise(learner.how.together).mean()))
        progress.step(number * len(learners) + done + 1, settings.rounds * len(learners))
    progress.say(f"round {number + 1} of {settings.rounds}: episodes gain {np.mean(gained):+.3f}")
    return float(np.mean(gained))


def _own_gain(learner: Learner) -> float:
    """Give what the most likely actions gain."""
    return float(learner.episodes.rewards([learner.own_plan()])[0])

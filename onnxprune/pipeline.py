"""The one data path, readable in a minute: load, find channels, search, cut, repair, verify, time, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxprune import model as models
from onnxprune import plan as plans
from onnxprune import runtime
from onnxprune.attempt import WORDS, check_runs, early_end, try_memory
from onnxprune.attempts import Attempts
from onnxprune.criteria import Evidence, importance
from onnxprune.data import read_data, read_preprocess
from onnxprune.dropping import drop_of, smallest_within
from onnxprune.errors import InputError
from onnxprune.evaluation import Judge, Scores, evaluate_model
from onnxprune.finish import Finish, points_lost
from onnxprune.journal import Journal
from onnxprune.limits import NEAR
from onnxprune.lossless import find_lossless, nothing_lossless
from onnxprune.metrics import LATENCY, MEMORY
from onnxprune.outputs import check_apart, check_outputs, default_output, write_results
from onnxprune.plan import Plan
from onnxprune.prepare import Prepared, Source, predict, prepare
from onnxprune.progress import Clock, Progress, Quiet
from onnxprune.records import Place, default_folder, is_half_written, unfinished
from onnxprune.reporting import Report
from onnxprune.runs import Run
from onnxprune.settings import CompressSettings, resolve
from onnxprune.stepwise import in_steps
from onnxprune.summary import note_own, summarise, where_time_is
from onnxprune.surgery import cut
from onnxprune.verify import verify, verify_lossless, verify_repaired
from onnxprune.workers import Workers

NOT_KEPT = "the repair answers worse than the bare cut on samples that it has not seen, so the cut is left as it is"


def compress(
    path: str | Path,
    out: str | Path,
    settings: CompressSettings,
    *,
    data: str | Path | None = None,
    preprocess: str = "none",
    label_offset: int = 0,
    run: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make a model smaller until it meets its targets, prove the result and write it.

    With data, what was judged is kept in a folder as long as the run lasts. One that was interrupted goes on there when
    the same is asked for again, and comes to the same plan.

    Args:
        path: the model file.
        out: the file to write; ``NAME.plan.json`` and ``NAME.report.json`` go beside it.
        settings: targets, search and the rest.
        data: samples, with labels or without, to rank channels, repair and report with, see `read_data`.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        run: folder of the run, which stays; what it holds is not judged again. ``NAME.run`` beside `out` by default,
            which goes when the run has ended well.
        force: overwrite existing files.
        dry_run: find the plan, cut and write nothing.
        progress: told what is going on.

    Raises:
        InputError: a file or an option is wrong.
        TargetError: a target cannot be reached.
        VerifyError: the result is not what it must be; nothing is written.
    """
    path, out = Path(path), Path(out)
    source = Source(path, resolve(settings, data is not None), data, preprocess, label_offset)
    if run is not None and data is None:
        raise InputError("--run keeps what was judged on data; give --data, or leave --run out")
    if data is None and (preprocess != "none" or label_offset):
        raise InputError("--preprocess and --label-offset say how samples are read; give --data, or leave them out")
    place = None if run is None else Place(Path(run))
    if data is not None and run is None and not dry_run:
        place = Place(default_folder(out), is_given=False)
    return _run(source, out, place, force, dry_run, progress or Quiet())


def resume(
    path: str | Path,
    *,
    out: str | Path | None = None,
    run: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Go on with a run of `compress` that was interrupted: all it was asked for stands in its folder.

    Args:
        path: the model file.
        out: the file that it was to write, by which its folder is found. MODEL.pruned.onnx by default.
        run: its folder, which stays; `out` is not looked at then.
        force: overwrite existing files.
        progress: told what is going on.

    Raises:
        InputError: there is no such run, or the model or its data are others by now.
        TargetError: see `compress`.
        VerifyError: see `compress`.
    """
    progress, path = progress or Quiet(), Path(path)
    written = default_output(path) if out is None else Path(out)
    place = Place(default_folder(written), is_given=False) if run is None else Place(Path(run))
    asked = unfinished(place.folder)
    data = asked.found(asked.data)
    settings = resolve(asked.settings, has_data=True)
    source = Source(path, settings, data, asked.found(asked.preprocess), asked.label_offset)
    progress.say(f"{path} with the samples of {data}{'' if asked.dry_run else f', to {asked.out}'}")
    return _run(source, asked.out, place, force, asked.dry_run, progress)


def _run(source: Source, out: Path, place: Place | None, force: bool, dry_run: bool, progress: Progress) -> Report:
    if not dry_run:
        may_overwrite = force or (place is not None and is_half_written(place.folder, out))
        check_outputs(source.path, out, may_overwrite, read=(source.data, source.preprocess, source.settings.policy))
    if source.settings.policy is not None:  # before anything is measured for it
        from onnxprune.search.policy.storing import load as check_policy  # PyTorch takes seconds to load

        check_policy(Path(source.settings.policy))
    with threadpool_limits(limits=runtime.BLAS_THREADS, user_api="blas"):
        if source.settings.steps > 1 and not dry_run:
            assert place is not None, "steps train, and that needs data"
            return in_steps(source, out, place, progress, _compress)
        return _compress(source, out, place, progress, dry_run)


def _compress(source: Source, out: Path, place: Place | None, progress: Progress, dry_run: bool = False) -> Report:
    path = source.path
    clock = Clock(progress)
    with clock.stage("load"):
        prepared = prepare(source)
        check_apart(prepared.original.model, out)
    if not prepared.original.groups:
        raise InputError(
            f"{path.name} has nothing to prune; `onnxprune inspect {path.name}` shows what holds each part"
            f"{prepared.original.advice}"
        )
    prepared.check_targets()
    if source.settings.verify != "none" and not dry_run:
        check_runs(prepared.original.model, source.settings.device)
    if {LATENCY, MEMORY} & source.settings.targets.keys() or source.settings.align == "auto":
        with clock.stage("measure cuts"):
            prepared, errors = predict(prepared, progress)
        for metric, error in errors.items():
            progress.say(f"The {WORDS[metric]} is predicted, with a mean error of {error:.1%}.")
        if source.settings.align == "auto":
            progress.say(f"Widths are multiples of {prepared.source.settings.align}, as no coarser ones are faster.")
    finish = Finish(prepared, progress) if prepared.parts is not None else None
    if finish is not None and source.settings.finetune_epochs:
        finish.check_training()
    with Run(prepared, out, place, dry_run) as run:
        attempts, lost = _search(prepared, finish, run, clock, progress, dry_run)
        if dry_run:
            report = summarise(prepared, attempts.best, None, clock)
            _note_search(report, attempts)
            _note_planned(report, attempts, source.settings)
            if lost is not None:
                _note_drop(report, source.settings, lost)
        else:
            report, result = _proven(prepared, finish, attempts, run, out, clock)
            with clock.stage("write"):
                run.writing()
                write_results(path, out, attempts.best, result, report)
        run.finish(attempts.best.problem)
    return report


def _proven(
    prepared: Prepared, finish: Finish | None, attempts: Attempts, run: Run, out: Path, clock: Clock
) -> tuple[Report, ModelProto]:
    """Repair the plan that was chosen, verify it, train it, and judge what came of it."""
    attempt, settings, lossless = attempts.best, prepared.source.settings, prepared.lossless
    result = attempt.result
    if finish is not None:
        with clock.stage("repair"):
            result = finish.repaired(attempt.plan, attempt.result)
    with clock.stage("verify"):
        checks = verify(lossless.channels, attempt.plan, attempt.result, settings.verify)
        if lossless.count:
            checks |= verify_lossless(prepared.original, lossless.channels, lossless.plan, settings.verify)
    trained = result
    if finish is not None and settings.finetune_epochs:
        with clock.stage("fine-tune"):
            trained = finish.finetuned(attempt.plan, result, run.folder)
            if settings.max_drop is not None and finish.drop(trained) > settings.max_drop:
                trained = result
                finish.give_up_training()
    if trained is not attempt.result:
        with clock.stage("verify"):
            checks |= verify_repaired(lossless.channels, attempt.plan, trained, settings.verify)
    notes = []
    if attempt.memory is None and settings.verify != "none":
        with clock.stage("measure memory"):
            notes = try_memory(attempt, prepared.original.model, settings.device)
    report = summarise(prepared, attempt, out, clock)
    report.notes += notes
    note_own(report, attempt.result, trained)
    report.checks = checks
    report.alignments = [tried.summary() for tried in attempts.tried]
    _note_search(report, attempts)
    with clock.stage("explain"):
        _note_measured(report, attempts, prepared)
    if finish is not None:
        with clock.stage("evaluate"):
            report.add_stages(finish.stages(attempt.result, result, trained))
        report.data = finish.used()
        report.training = finish.training
        report.notes += finish.training.get("notes", [])
        _note_answers(report, settings, is_repaired=result is not attempt.result)
    return report, trained


def _search(
    prepared: Prepared, finish: Finish | None, run: Run, clock: Clock, progress: Progress, dry_run: bool
) -> tuple[Attempts, float | None]:
    """Rank channels, search for a plan, and cut and time it unless this is a dry run.

    Returns:
        What was found, and the points that it loses where a dry run is asked for the most it may lose.
    """
    settings = prepared.source.settings
    assert settings.criterion is not None, "resolve chooses one"
    statistics = None
    if finish is not None:
        with clock.stage("collect statistics"):
            statistics = finish.statistics
    with clock.stage("rank channels"):
        samples = None if prepared.parts is None else prepared.parts.calibration
        evidence = Evidence(prepared.lossless.channels, settings.seed, statistics, samples, progress)
        worth = importance(evidence, settings.criterion)
    if known := run.known():
        progress.say(known)
    lost = None
    with _judging(prepared, finish, run) as journal:
        with clock.stage("search"):
            attempting = partial(Attempts, prepared, worth, journal, measurements=run.measurements())
            if finish is not None and journal is not None and settings.max_drop is not None:
                attempting = partial(attempting, allows=partial(_loses_little, journal, finish, settings.max_drop))
                attempts = smallest_within(settings.max_drop, prepared, attempting, journal, finish, progress)
                lost = drop_of(attempts.best, journal, finish) if dry_run else None
            else:
                attempts = attempting(progress)
        if not dry_run:
            with clock.stage("cut and time"):
                attempts.cut_and_measure()
        attempts.best.score = attempts.best.problem.score(attempts.best.plan)
    return attempts, lost


@contextmanager
def _judging(prepared: Prepared, finish: Finish | None, run: Run) -> Iterator[Journal | None]:
    """Judge plans here or in other processes, as long as this lasts; None without data."""
    count = prepared.source.settings.workers
    if finish is None:
        yield None
    elif count > 1:
        assert prepared.parts is not None
        with Workers(prepared.source, count, prepared.parts.calibration.sha256) as workers:
            yield run.journal(workers, together=count)
    else:
        yield run.journal(finish.candidates, together=1)


def _loses_little(journal: Journal, finish: Finish, points: float, plan: Plan, smaller: ModelProto) -> bool:
    """Tell whether a cut model, once repaired, loses no more points than that."""
    return journal.drop(plan, lambda: finish.loss(plan, smaller)) <= points


def _note_search(report: Report, attempts: Attempts) -> None:
    """Say how much was judged, and where a search ended early or an earlier one did better."""
    searched = attempts.searched()
    report.search = asdict(searched)
    report.notes += early_end(searched)
    if not attempts.best.is_found:
        report.notes.append(
            "an earlier run in this folder found the plan; this search came to none that answers better"
        )


def _note_planned(report: Report, attempts: Attempts, settings: CompressSettings) -> None:
    """Tell limits as they were asked for, which move in the course of a search, and what a plan leaves out."""
    for metric, share in attempts.limits.asked.items():
        report.target[metric]["limit"] = share * attempts.best.problem.original[metric]
    if settings.steps > 1:
        report.notes.append("this plan cuts all at once: --steps trains in between, which a dry run does not")


def _note_measured(report: Report, attempts: Attempts, prepared: Prepared) -> None:
    """Say whether time and memory are as was asked, and where the time is that should have gone with the FLOPs."""
    device, attempt = prepared.source.settings.device, attempts.best
    for metric, share in attempts.limits.asked.items():
        found, whole = attempt.measured_share(metric), attempt.problem.original[metric]
        if found is None:
            continue
        report.target[metric] |= {"limit": share * whole, "reached": found * whole}
        if found > (1 + NEAR) * share:
            report.notes.append(
                f"{found:.1%} of the {WORDS[metric]} were measured, {share:.1%} were asked for; no plan came closer"
            )
    report.notes += where_time_is(attempt, device)


def _note_answers(report: Report, settings: CompressSettings, is_repaired: bool) -> None:
    """Say what was lost of what was allowed, and whether the repair was of use."""
    if settings.repair != "none" and not is_repaired and report.after.macs < report.before.macs:
        report.notes.append(NOT_KEPT)
    if settings.max_drop is not None:
        _note_drop(report, settings, points_lost(report.stages[0], report.stages[-1]))


def _note_drop(report: Report, settings: CompressSettings, lost: float) -> None:
    """Say what was lost of what --max-drop allows."""
    report.target["max_drop"] = {"asked": str(settings.max_drop), "limit": settings.max_drop, "reached": lost}
    if report.after.macs >= report.before.macs:
        report.notes.append(f"every cut that was tried loses more than {settings.max_drop:g} points; allow some more")


def apply(
    path: str | Path, plan: str | Path, out: str | Path, *, verify_level: str = "fast", force: bool = False
) -> dict[str, str]:
    """Repeat a cut, bit for bit.

    Args:
        path: the model file the plan was made for.
        plan: a ``.plan.json`` that compress wrote.
        out: the file to write.
        verify_level: see `verify`.
        force: overwrite an existing file.

    Returns:
        What was verified.

    Raises:
        InputError: a file is wrong, or the plan was made for another model.
        VerifyError: the result is not what it must be; nothing is written.
    """
    path, plan, out = Path(path), Path(plan), Path(out)
    check_outputs(path, out, force, kinds=(), read=(plan,))
    content = plans.read_plan(plan)
    models.read_file(path)
    if content.get("model_sha256") != plans.file_sha256(path):
        raise InputError(f"{plan} was made for another file than {path}; give the model that was compressed")
    asked = content["settings"]
    model = models.load(path, runtime.evaluate, asked["shapes"])
    check_apart(model, out)
    settings = CompressSettings(keep=asked["keep"], approximate=asked["approximate"], slots=asked["slots"])
    find = Source(path, settings).find
    lossless = nothing_lossless(find(model))
    if content.get("lossless"):
        lossless = find_lossless(lossless.channels, find, runtime.evaluate)
    channels = lossless.channels
    chosen = plans.from_json(channels, content)
    if (lossless.folded or {}) != content.get("folded", {}):
        raise InputError(f"{plan} does not fold what the dead channels of {path.name} add; compress the model again")
    plans.check_same_cut(channels, chosen, content)
    result = cut(channels, chosen, runtime.evaluate)
    checks = verify(channels, chosen, result, verify_level)
    if lossless.count:
        checks |= verify_lossless(lossless.original, channels, lossless.plan, verify_level)
    models.save(result, out, path.parent)
    return checks


def evaluate(
    path: str | Path,
    data: str | Path,
    *,
    preprocess: str = "none",
    label_offset: int = 0,
    reference: str | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Judge a model on samples: top-1 and top-5 with labels, and how far it answers from a reference model.

    Args:
        path: the model file.
        data: samples, with labels or without, see `read_data`.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        reference: a model to compare the answers with.
        shapes: sizes for inputs that leave them free.
        progress: told what is going on.

    Raises:
        InputError: a file or an option is wrong.
    """
    path = Path(path)
    model = models.load(path, runtime.evaluate, shapes, runs_batches=True)
    samples = read_data(data, model, read_preprocess(preprocess), label_offset)
    batch = model.fixed_batch(samples.inputs[0].name)
    step = (progress or Quiet()).step
    if reference is None:
        return evaluate_model(runtime.Session(path), samples, batch=batch, label_offset=label_offset, progress=step)
    original = models.read_file(Path(reference))
    judge = Judge(original, Path(reference).parent, samples, batch=batch, label_offset=label_offset, progress=step)
    return judge.judge(model.proto, model.folder)

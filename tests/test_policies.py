"""Policies are trained over several networks, kept in files, and serve networks that they have never seen."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_nets import IMAGE, branches, convs, residual, run, write
from nets import Array
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_greedy import Judged, channels_of, problem_of
from test_policy import hard

import onnxprune
from onnxprune import CompressSettings, pipeline, policies
from onnxprune.errors import InputError, TargetError
from onnxprune.judging import Candidates
from onnxprune.plan import Plan
from onnxprune.policies import PolicySettings, show_policy, train_policy
from onnxprune.problem import Effort
from onnxprune.records import is_finished
from onnxprune.search import SearchSettings, gnn_rl
from onnxprune.search.greedy import descend
from onnxprune.search.policy.agent import Agent
from onnxprune.search.policy.environment import Episodes
from onnxprune.search.policy.learning import Learner, Learning, fresh, optimizer_of, seeded
from onnxprune.search.policy.storing import load, save
from onnxprune.settings import resolve

FEW = PolicySettings(shares=(0.6, 0.4), rounds=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for build in (convs, residual):
        write(build(), tmp_path / f"{build.__name__}.onnx")
    monkeypatch.setattr(policies, "EXPLORED", 1)  # nothing here depends on how well a policy was trained
    monkeypatch.setattr(policies, "THINKING", 2)
    shape = (120, *IMAGE)
    np.save("x.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return tmp_path


def stored(path: Path | str, seed: int = 0) -> Path:
    with seeded(seed):
        save(fresh(), Path(path), {"of": "a test"})
    return Path(path)


def decided(path: Path | str, seed: int) -> Path:
    """Store a policy that corrects much, in its own way."""
    with seeded(seed):
        agent = fresh()
        with torch.no_grad():
            for values in agent.actor[-1].parameters():
                values.mul_(1000)
    save(agent, Path(path), {})
    return Path(path)


def test_a_policy_comes_back_from_its_file_as_it_was(folder: Path) -> None:
    with seeded(3):
        agent = fresh()
    save(agent, Path("p.safetensors"), {"rounds": 7})
    again, notes = load(Path("p.safetensors"))
    assert notes == {"rounds": 7}
    assert again.shape == agent.shape
    for name, values in agent.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], values, rtol=0, atol=0)
    assert [file.name for file in folder.iterdir() if file.suffix == ".safetensors"] == ["p.safetensors"]


def changed(source: Path, **metadata: Any) -> Path:
    with safe_open(source, "pt") as file:
        told = {**file.metadata(), **{name: json.dumps(value) for name, value in metadata.items()}}
    path = source.with_name(f"{len(list(source.parent.iterdir()))}.safetensors")
    save_file(load_file(source), path, told)
    return path


def test_files_that_are_no_policy_of_this_version_are_refused_with_what_to_do(folder: Path) -> None:
    good = stored("p.safetensors")
    for path, text in (
        (Path("absent.safetensors"), "no such file"),
        (changed(good, format="onnxprune.policy/0"), "not written by this version"),
        (changed(good, features=[["width"]]), "other features"),
        (changed(good, shape={"width": 4}), "damaged"),
        (changed(good, shape={"sizes": [[5, 3]], "context": 6, "width": 8, "rounds": [1], "spread": 0.4}), "damaged"),
        *((changed(good, shape=asdict(fresh().shape) | {"spread": spread}), "damaged") for spread in (np.nan, 1e9, 0)),
    ):
        with pytest.raises(InputError, match=text) as caught:
            load(path)
        assert "train" in str(caught.value)
    torn = Path("torn.safetensors")
    torn.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        load(torn)


def test_a_policy_alone_gives_a_plan_and_judges_nothing(folder: Path) -> None:
    plans = []
    for seed in (0, 1):
        problem = problem_of(channels_of(branches()), judging=Judged(), macs=0.5)
        plan = gnn_rl.search(
            problem, SearchSettings(1, policy=decided("p.safetensors", seed)), lambda done, total: None
        )
        assert problem.meets(plan.counts).all()
        assert isinstance(problem.judging, Judged)
        assert problem.judging.full == problem.judging.probes == []
        plans.append(plan.counts.tolist())
    without = descend(problem_of(channels_of(branches()), judging=Judged(), macs=0.5)).tolist()
    assert plans[0] != plans[1]
    assert without not in plans  # the ranking as it is, to which no policy leads


def test_a_policy_for_other_numbers_of_features_is_refused_though_its_tensors_fit(folder: Path) -> None:
    shape = fresh().shape
    for other in (
        replace(shape, sizes=(*shape.sizes[:-1], (5, 3))),
        replace(shape, sizes=shape.sizes[-1:], rounds=shape.rounds[-1:]),
        replace(shape, context=shape.context + 1),
    ):
        save(Agent(other), Path("p.safetensors"), {})
        with pytest.raises(InputError, match=r"damaged .*makes no sense"):
            load(Path("p.safetensors"))


def test_with_a_budget_a_policy_is_a_start_and_its_own_plan_is_among_those_judged(folder: Path) -> None:
    policy = stored("p.safetensors")
    alone = gnn_rl.search(
        problem_of(channels_of(branches()), judging=Judged(), macs=0.5),
        SearchSettings(1, policy=policy),
        lambda *_: None,
    )
    problem = problem_of(channels_of(branches()), judging=Judged(), macs=0.5)
    plan = gnn_rl.search(problem, SearchSettings(20, policy=policy), lambda *_: None)
    assert isinstance(problem.judging, Judged)
    judged = [found.counts.tolist() for found, _ in problem.judging.full]
    assert alone.counts.tolist() in judged
    assert len({tuple(counts) for counts in judged}) <= 20
    assert min(error for _, error in problem.judging.full) == problem.judging.error(plan)


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Collect what learners take to be the best before anything is known."""
    found, believe = list[Array](), Learner.believe

    def noted(learner: Learner, corrections: Array) -> None:
        found.append(corrections)
        believe(learner, corrections)

    monkeypatch.setattr(Learner, "believe", noted)
    return found


def test_a_policy_that_knows_a_network_is_followed_and_needs_few_plans(folder: Path, believed: list[Array]) -> None:
    problem, best = hard(1)
    with seeded(2) as generator:
        agent, how = fresh(), Learning()
        episodes = Episodes(problem, descend(problem), gnn_rl.LENGTH)
        learner = Learner(agent, episodes, how, generator, optimizer_of(agent, how))
        for _ in range(14):
            learner.practise(8)
            for _ in range(5):
                learner.think(8)
    save(agent, Path("p.safetensors"), {})
    believed.clear()
    gained = {}
    for policy in (Path("p.safetensors"), None):
        problem, _ = hard(1)
        assert isinstance(problem.judging, Judged)
        plan = gnn_rl.search(problem, SearchSettings(12, policy=policy), lambda *_: None)
        gained[policy is not None] = float(episodes.rewards([plan])[0])
        first = episodes.prior.mean
        assert [np.array_equal(found, first) for found in believed] == ([True, False] if policy else [True])
        believed.clear()
    assert gained[True] > 0.5 * best
    assert gained[True] > gained[False]


def test_a_policy_whose_own_plan_is_no_better_than_the_ranking_is_not_followed(
    folder: Path, believed: list[Array]
) -> None:
    problem, _ = hard(2)
    policy = stored("p.safetensors")
    plan = gnn_rl.search(problem, SearchSettings(30, policy=policy), lambda *_: None)
    assert isinstance(problem.judging, Judged)
    assert len(believed) == 2  # of the policy, and of one that is new
    np.testing.assert_array_equal(*believed)
    assert min(error for _, error in problem.judging.full) == problem.judging.error(plan)


@pytest.mark.parametrize("policy", [False, True])
def test_a_target_that_is_met_at_once_leaves_every_channel(folder: Path, policy: bool) -> None:
    problem = problem_of(channels_of(branches()), judging=Judged(), macs=1.0)
    given = stored("p.safetensors") if policy else None
    plan = gnn_rl.search(problem, SearchSettings(12, policy=given), lambda *_: None)
    assert plan.counts.tolist() == problem.most.tolist()


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 9])
def test_no_more_plans_are_judged_than_the_budget_allows(folder: Path, budget: int) -> None:
    problem, _ = hard(2)
    plan = gnn_rl.search(problem, SearchSettings(budget, policy=stored("p.safetensors")), lambda *_: None)
    assert problem.meets(plan.counts).all()
    assert isinstance(problem.judging, Judged)
    judged = {tuple(found.counts) for found, _ in [*problem.judging.full, *problem.judging.probes]}
    assert len(judged) <= budget


def test_one_policy_is_trained_over_several_networks_and_a_seed_repeats_it(folder: Path) -> None:
    models = [folder / "convs.onnx", folder / "residual.onnx"]
    reports = [train_policy(models, Path(f"{n}.safetensors"), FEW, data=["x.npy"]) for n in (1, 2)]
    assert Path("1.safetensors").read_bytes()[-20_000:] == Path("2.safetensors").read_bytes()[-20_000:]
    assert set(reports[0].own) == {f"{net}.onnx at {share}" for net in ("convs", "residual") for share in (0.6, 0.4)}
    assert reports[0].rounds == reports[1].rounds
    assert np.isfinite(reports[0].rounds).all()
    shown = show_policy(Path("1.safetensors"))
    assert shown["notes"]["settings"]["models"] == ["convs.onnx", "residual.onnx"]
    further = train_policy(models[:1], Path("3.safetensors"), FEW, data=["x.npy"], start=Path("1.safetensors"))
    assert Path("3.safetensors").read_bytes() != Path("1.safetensors").read_bytes()
    assert len(further.own) == 2


def test_networks_whose_files_have_the_same_name_are_told_apart(folder: Path) -> None:
    named = [Path("a/net.onnx"), Path("b/net.onnx")]
    for path, build in zip(named, (convs, residual), strict=True):
        path.parent.mkdir()
        write(build(), path)
    report = train_policy(named, Path("p.safetensors"), PolicySettings((0.5,), rounds=1), data=["x.npy"])
    assert set(report.own) == {"a/net.onnx at 0.5", "b/net.onnx at 0.5"}


def test_the_name_of_its_file_makes_no_policy_another(folder: Path) -> None:
    for name in ("p", "q"):
        train_policy([Path("convs.onnx")], Path(name), PolicySettings((0.5,), rounds=1), data=["x.npy"])
    assert load(Path("p"))[1] == load(Path("q"))[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_policy_of_values_that_are_no_numbers_is_damaged(folder: Path, value: float) -> None:
    tensors = load_file(stored("p.safetensors"))
    next(iter(tensors.values())).view(-1)[0] = value
    with safe_open("p.safetensors", "pt") as file:
        save_file(tensors, "q.safetensors", file.metadata())
    with pytest.raises(InputError, match=r"damaged .*no finite numbers"):
        load(Path("q.safetensors"))


def test_what_a_policy_tells_of_itself_may_be_anything(folder: Path) -> None:
    good = stored("p.safetensors")
    endless = {"sizes": [[5, 3]], "context": float("inf"), "width": 8, "rounds": [1], "spread": 0.4}
    with pytest.raises(InputError, match="damaged"):
        load(changed(good, shape=endless))
    with safe_open(good, "pt") as file:
        deep = {**file.metadata(), "notes": "[" * 100_000}
    save_file(load_file(good), "deep.safetensors", deep)
    with pytest.raises(InputError, match="cannot be read"):
        load(Path("deep.safetensors"))
    shown = run("policy", "show", str(changed(good, notes={"by": "\x1b[31m[bold]me"})))
    assert (shown.code, "\x1b" in shown.out) == (0, False)
    assert "[bold]me" in shown.out


def test_a_run_goes_on_with_the_policy_that_it_began_with_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {seed: decided(f"{seed}.safetensors", seed) for seed in (0, 1)}
    asked = CompressSettings({"macs": "0.5"}, search="gnn_rl", policy="used", budget=6, align=1, verify="none")

    def compress(**more: Any) -> list[int]:
        report = onnxprune.compress("convs.onnx", "small.onnx", asked, data="x.npy", force=True, **more)
        return [group["kept"] for group in report.groups]

    def use(seed: int) -> None:
        Path("used").write_bytes(both[seed].read_bytes())

    use(0)
    expected, once, left = compress(), Candidates.errors, 2

    def errors(self: Candidates, plans: list[Plan], *, effort: Effort = "quick") -> list[float]:
        nonlocal left
        left -= len(plans)
        if left < 0:
            raise KeyboardInterrupt
        return once(self, plans, effort=effort)

    monkeypatch.setattr(Candidates, "errors", errors)
    with pytest.raises(KeyboardInterrupt):
        compress(run="kept")
    monkeypatch.setattr(Candidates, "errors", once)
    use(1)
    with pytest.raises(InputError, match=r"used is another policy than the run in kept began with"):
        onnxprune.resume("convs.onnx", run="kept", force=True)
    use(0)
    report = onnxprune.resume("convs.onnx", run="kept", force=True)
    assert [group["kept"] for group in report.groups] == expected


def test_a_policy_can_be_read_by_others(folder: Path) -> None:
    Path("other").write_text("")
    assert stored("p.safetensors").stat().st_mode == Path("other").stat().st_mode


def test_the_weights_of_a_network_are_not_overwritten(folder: Path) -> None:
    onnx.save(residual(), "outside.onnx", save_as_external_data=True, size_threshold=0, location="some.policy")
    before = Path("some.policy").read_bytes()
    with pytest.raises(InputError, match=r"some\.policy holds the weights of outside\.onnx; choose another -o"):
        train_policy([Path("outside.onnx")], Path("some.policy"), FEW, data=["x.npy"], force=True)
    assert Path("some.policy").read_bytes() == before


def test_one_network_under_two_names_is_refused(folder: Path) -> None:
    Path("again.onnx").write_bytes(Path("convs.onnx").read_bytes())
    with pytest.raises(InputError, match=r"again\.onnx is the same network as convs\.onnx"):
        train_policy([Path("convs.onnx"), Path("again.onnx")], Path("p.safetensors"), FEW, data=["x.npy"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--run", "kept"], r"what was judged is kept in kept.* onnxprune .*--run kept.*--force"),
        ([], r"p\.safetensors is the policy after the last round, to go on with by --policy"),
    ],
)
def test_training_that_is_interrupted_says_what_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], text: str
) -> None:
    def ended(learners: Any, settings: PolicySettings, number: int, progress: Any) -> float:
        if number:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(policies, "_round", ended)
    given = ["policy", "train", "convs.onnx", "--data", "x.npy", "-o", "p.safetensors", "--flops", "0.5", *options]
    monkeypatch.setattr("sys.argv", ["onnxprune", *given])
    outcome = run(*given)
    assert outcome.code == 130
    assert re.search(text, outcome.errors[0])


def test_a_file_of_before_is_not_told_to_be_the_policy_of_the_last_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(policies, "_round", ended)
    given = ["policy", "train", "convs.onnx", "--data", "x.npy", "-o", str(stored("p.safetensors")), "--flops", "0.5"]
    outcome = run(*given, "--force")
    assert outcome.code == 130
    assert "interrupted in the first round; --run FOLDER keeps what is judged the next time" in outcome.errors[0]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (
            ["--flops", "0.5,0.0001"],
            3,
            r"--flops 0\.0001 cannot be reached by convs\.onnx: the lowest is 0\.0\d+; give",
        ),
        (["absent.onnx"], 2, r"absent\.onnx does not exist; name files of networks"),
    ],
)
def test_what_cannot_be_trained_on_is_said_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, text: str
) -> None:
    monkeypatch.setattr(policies, "_episodes", lambda *_: pytest.fail("measured"))
    outcome = run("policy", "train", "convs.onnx", *options, "--data", "x.npy", "-o", "p.safetensors")
    assert outcome.code == code
    assert re.search(text, outcome.errors[0])


def test_very_small_shares_are_fractions_too(folder: Path) -> None:
    with pytest.raises(TargetError, match="--flops 1e-05 cannot be reached"):
        train_policy([Path("convs.onnx")], Path("p"), PolicySettings((1e-5,)), data=["x.npy"])


def test_a_policy_that_is_damaged_is_said_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("loaded"))
    Path("torn").write_bytes(stored("p.safetensors").read_bytes()[:1000])
    outcome = run("compress", "convs.onnx", "--flops", "0.5", "--data", "x.npy", "--policy", "torn")
    assert outcome.code == 2
    assert "torn cannot be read" in outcome.errors[0]


def test_a_step_that_another_policy_has_finished_is_done_again(folder: Path) -> None:
    decided("used", 0)
    asked = CompressSettings({"macs": "0.5"}, search="gnn_rl", policy="used", budget=3, align=1, verify="none")
    onnxprune.compress("convs.onnx", "small.onnx", asked, data="x.npy", run="kept")
    resolved = resolve(asked, has_data=True)
    assert is_finished(Path("kept"), resolved)
    decided("used", 1)
    assert not is_finished(Path("kept"), resolved)


def test_what_is_shown_of_a_policy_can_be_read_by_programs(folder: Path) -> None:
    shown = run("policy", "show", str(stored("p.safetensors")), "--json", "-", "--quiet")
    assert json.loads(shown.out)["notes"] == {"of": "a test"}


def test_the_policy_to_go_on_with_is_not_overwritten(folder: Path) -> None:
    start = stored("p.safetensors")
    before = start.read_bytes()
    with pytest.raises(InputError, match=r"would overwrite p\.safetensors"):
        train_policy([Path("convs.onnx")], start, FEW, data=["x.npy"], start=start, force=True)
    assert start.read_bytes() == before


def test_training_that_is_interrupted_leaves_the_policy_of_the_last_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(learners: Any, settings: PolicySettings, number: int, progress: Any) -> float:
        if number == 1:
            raise KeyboardInterrupt
        return whole(learners, settings, number, progress)

    whole = policies._round
    monkeypatch.setattr(policies, "_round", second)
    out = Path("p.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train_policy([folder / "convs.onnx"], out, PolicySettings((0.5,), rounds=3), data=["x.npy"])
    assert len(show_policy(out)["notes"]["rounds"]) == 1
    monkeypatch.setattr(policies, "_round", whole)
    again = train_policy([folder / "convs.onnx"], Path("q.safetensors"), FEW, data=["x.npy"], start=out)
    assert len(again.own) == 2


def test_training_with_a_folder_goes_on_to_the_same_policy_and_judges_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bytes] = []
    once, settings = Candidates.errors, PolicySettings((0.5,), rounds=2)

    def errors(self: Candidates, plans: list[Plan], *, effort: Effort = "quick") -> list[float]:
        if len(judged) == stop_at:
            raise KeyboardInterrupt
        judged.extend(plan.counts.tobytes() for plan in plans)
        return once(self, plans, effort=effort)

    def train(name: str, run: str) -> dict[str, list[float]]:
        train_policy([folder / "convs.onnx"], Path(name), settings, data=["x.npy"], run=Path(run), force=True)
        return {tensor: values.flatten().tolist() for tensor, values in load_file(name).items()}

    monkeypatch.setattr(Candidates, "errors", errors)
    stop_at = -1
    whole, plans = train("a.safetensors", "a"), len(judged)
    judged.clear()
    stop_at = plans // 2
    with pytest.raises(KeyboardInterrupt):
        train("b.safetensors", "b")
    assert len(judged) == stop_at
    stop_at = -1
    assert train("b.safetensors", "b") == whole
    assert len(judged) == plans
    assert len(list(Path("b").iterdir())) == 1
    (kept,) = Path("b").iterdir()
    kept.write_bytes(b"no line of a run\n")
    with pytest.raises(InputError, match="is damaged"):
        train("b.safetensors", "b")
    with pytest.raises(InputError, match=r"--run x\.npy cannot be written"):
        train("c.safetensors", "x.npy")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"models": []}, "no networks"),
        ({"models": [Path("convs.onnx"), Path("./x/../convs.onnx")]}, "named twice"),
        ({"out": Path("x.npy"), "force": True}, "would overwrite x.npy"),
        ({"settings": PolicySettings(shares=(0.5, 0.5000001))}, "each once"),
        ({"data": ["x.npy", "x.npy"]}, "2 times for 1 networks"),
        ({"settings": PolicySettings(shares=(1.5,))}, "between 0 and 1"),
        ({"settings": PolicySettings(rounds=0)}, "--rounds 0"),
        ({"settings": PolicySettings(seed=-1)}, "--seed -1"),
        ({"settings": PolicySettings(seed=2**33)}, "--seed 8589934592"),
        ({"out": Path("nowhere/p.safetensors")}, "does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused_before_any_work(folder: Path, given: dict[str, Any], text: str) -> None:
    asked: dict[str, Any] = {"models": [folder / "convs.onnx"], "out": Path("p.safetensors"), "settings": FEW}
    asked = {**asked, "data": ["x.npy"], **given}
    with pytest.raises(InputError, match=text):
        train_policy(asked.pop("models"), asked.pop("out"), asked.pop("settings"), **asked)
    assert not Path("p.safetensors").exists()


def test_networks_are_named_with_and_without_an_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[Any]()

    def hear(models: Any, *_: Any, **__: Any) -> None:
        given.append([path.name for path in models])
        raise InputError("heard")

    monkeypatch.setattr(policies, "train_policy", hear)
    rest = ("--data", "x.npy", "-o", "p.safetensors")
    for words in (("a", "b", "c"), ("--models", "a", "b", "c"), ("--models", "a", "--models", "b", "c")):
        assert run("policy", "train", *words, *rest).code == 2
    assert given == [["a", "b", "c"]] * 3
    assert "MODELS" in run("policy", "train", *rest).errors[0]


def test_the_commands_train_and_show(folder: Path) -> None:
    options = ("--data", "x.npy", "-o", "p.safetensors", "--rounds", 1, "--flops", "0.5", "--json", "told.json")
    outcome = run("policy", "train", "convs.onnx", *options)
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("told.json").read_text())["own"].keys() == {"convs.onnx at 0.5"}
    assert run("policy", "train", "convs.onnx", *options).code == 2
    shown = run("policy", "show", "p.safetensors")
    assert shown.code == 0
    assert "convs.onnx" in shown.out
    assert run("policy", "show", "x.npy").code == 2

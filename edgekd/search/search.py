"""Student from the teacher, to a budget: candidates, their cost, successive halving, the winner.

Everything found is a file of the search's folder or beside the runs, whole or absent, named by what it
depends on: a search that was stopped finds it again, and trains nothing twice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.artifacts import atomic_path, disk_errors, sha256_json, write_text
from edgekd.config.schema import Config, Distill, Student
from edgekd.data.resolve import Dataset, load
from edgekd.distill.method import METHODS, MethodList
from edgekd.errors import Interrupted, StageError, UsageError
from edgekd.pipeline.line import check_ahead, resolve_folder, run_line
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import LINE
from edgekd.progress import Progress
from edgekd.results import Variant
from edgekd.search import front
from edgekd.search.best import check_best, write_best
from edgekd.search.board import Board, board
from edgekd.search.budgets import left, on_accuracy, on_cost, variants
from edgekd.search.cost import ON_COST, Coster, out_of_reach, places, quantized_variant
from edgekd.search.engine import Engine, Failure, Job, engine_of
from edgekd.search.halving import promoted, rung_epochs
from edgekd.search.records import (
    Candidate,
    Closest,
    Cost,
    Costs,
    Point,
    Rung,
    SearchReport,
    Standing,
    Trial,
)
from edgekd.search.space import candidates, relative
from edgekd.search.trial import checkpoint, rung_path
from edgekd.signals import terminable
from edgekd.tasks.task import only_classes

REPORT, PAGE = "search.json", "search.html"
SUFFIX = "-search"


def search(
    config: Config,
    *,
    base: Path,
    out: Path,
    progress: Progress,
    goes_on: Sequence[Path] = (),
    best: Path | None = None,
    command: str | None = None,
) -> SearchReport:
    """Find the student for `config.gate.budgets`, in the folder `out`; `student` has to be auto.

    The winner, or the closest, is written to `best` as a configuration, and its training goes on in the
    run folders `goes_on`. Raises UsageError for all that is wrong with the configuration, StageError when
    every trial fails or no device answers, Interrupted: the same call goes on.
    """
    if not config.student.auto:
        raise UsageError(
            f"is {config.student.model}: there is nothing to search",
            where="student.model",
            fix="write `student: auto`",
        )
    if (config.search.epochs or 0) > config.distill.epochs:
        raise UsageError(
            f"is {config.search.epochs}, and a whole training has {config.distill.epochs}",
            where="search.epochs",
            fix="distill.epochs is the length of the training; search.epochs may end trials before",
        )
    check_ahead(config, base, LINE[-1].name)
    targets = places(config, base)
    if best is not None:
        check_best(best, base)
    if not _has_teacher(out):
        out_of_reach(targets, base)
    engine = engine_of(config.search.engine, config.search.jobs or _jobs(config))
    run, _ = run_line(
        config, base=base, out=out, until="teacher", progress=progress, command=command
    )
    with _stoppable(), run.locked():
        dataset = load(config.data, config.data.seed, base)
        only_classes(dataset.task, what="edgekd search", where="data.source")
        work = _Search(config, base, run, progress, dataset)
        work.look()
        if work.trials:
            work.train(engine)
        report = work.report(None if best is None else relative(best, Path.cwd()))
        report.write(run.path / REPORT)
        from edgekd.search.page import render

        write_text(run.path / PAGE, render(report))
        winner = with_winner(config, base, report)
        if best is not None:
            write_best(best, _plain(winner), run.path / PAGE)
        for folder in goes_on:
            work.hand_over(report, winner, folder)
    return report


def chosen(
    config: Config, kept: Config, *, base: Path, out: Path, progress: Progress, command: str | None
) -> tuple[Config, Config]:
    """`config` and what is kept of it with the student that a search beside the run `out` finds.

    Raises like `search`, and UsageError where no candidate can meet the budgets on cost.
    """
    folder = resolve_folder(config, out.with_name(f"{out.name}{SUFFIX}"))
    report = search(
        config, base=base, out=folder, progress=progress, goes_on=[out], command=command
    )
    if report.closest is not None:
        raise UsageError(
            summary(report),
            where="gate.budgets",
            fix="allow more, search more candidates (search.candidates), or name a smaller student",
        )
    progress.say(summary(report))
    winner = with_winner(config, base, report)
    return winner, with_winner(kept, base, report)


def summary(report: SearchReport) -> str:
    """The winner, or the closest and what stands in the way."""
    if report.closest is not None:
        near, count = report.closest, len(report.candidates)
        return (
            f"none of {count} candidates can meet the budgets; the closest is {near.candidate}, "
            f"{near.variant}: {_in_the_way(near.standings)}"
        )
    point = report.best_point
    assert point is not None
    text = f"{point.candidate}, {point.method}, {point.variant}: "
    text += f"{point.accuracy.value:.2%} of the validation split after {point.epochs} epochs"
    if report.found:
        return f"student: {text}"
    wrong = _in_the_way(point.standings)
    return f"no student meets every budget; the closest is {text}; what stands in the way: {wrong}"


def _in_the_way(standings: Sequence[Standing]) -> str:
    return "; ".join(standing.text for standing in standings if not standing.holds)


def with_winner(config: Config, base: Path, report: SearchReport) -> Config:
    """The configuration with what was found, or is the closest, in the place of auto."""
    chosen = report.best_point or report.closest
    assert chosen is not None
    candidate = _named(report.candidates, chosen.candidate)
    found = _with(config, candidate, dict(_methods(config))[chosen.method])
    targets = [b.target for b in config.gate.budgets if b.target is not None]
    profile = config.profile.model_copy(
        update={"targets": list(dict.fromkeys([*config.profile.targets, *targets]))}
    )
    if chosen.variant == "f32":
        found = found.model_copy(update={"quantize": None})
    return found.model_copy(update={"profile": profile})


def _with(config: Config, candidate: Candidate, methods: MethodList) -> Config:
    """The configuration of one trial: nothing of it but student and methods is another's."""
    distill = config.distill.model_dump()
    return config.model_copy(
        update={
            "student": Student(model=candidate.model, args=candidate.args),
            "distill": Distill.model_validate({**distill, "methods": methods}),
        }
    )


def _methods(config: Config) -> list[tuple[str, MethodList]]:
    """What to distil by, under short names."""
    lists = config.search.methods
    if lists is None:
        own = MethodList(config.distill.methods.entries)
        lists = [own]
        if [entry.name for entry in own.entries] == ["kd"]:
            lists.append(MethodList((METHODS.get("dist")(),)))
    named: list[tuple[str, MethodList]] = []
    for entries in lists:
        name = " + ".join(entry.name for entry in entries.entries) or "labels"
        same = sum(known.partition(" #")[0] == name for known, _ in named)
        named.append((f"{name} #{same + 1}" if same else name, entries))
    return named


@dataclass
class _Trial:
    """A trial in progress."""

    id: str
    candidate: Candidate
    method: str
    config: Config
    folder: Path
    variants: list[Variant]
    rungs: list[Rung] = field(default_factory=list)
    failure: Failure | None = None


class _Search:
    """What is known so far."""

    def __init__(
        self, config: Config, base: Path, run: Run, progress: Progress, dataset: Dataset
    ) -> None:
        self.config, self.base, self.run = config, base, run
        self.progress, self.dataset = progress, dataset
        self.teacher = run.training("teacher").validation
        self.costs: dict[str, Costs] = {}
        self.out: dict[str, str] = {}
        self.trials: list[_Trial] = []
        self.finalists: list[_Trial] = []
        self.coster = Coster(config, base, run.path.parent, dataset)
        self.quantized = quantized_variant(config, base)
        search, distill = config.search, config.distill
        last = min(search.epochs or distill.epochs, distill.epochs)
        self.rungs = rung_epochs(last, search.rungs, search.keep)

    # -- before training --------------------------------------------------------------------

    def look(self) -> None:
        """Find the candidates, cost them, and leave those that cannot meet the budgets."""
        self.progress.say("candidates")
        self.candidates, self.notes = candidates(
            self.config, self.base, self.run, self.dataset, self.progress
        )
        with self.progress.task("cost", len(self.candidates) + 1) as task:
            self._tell_predicted()
            self.whole = self.coster.costs(self.config.teacher, "teacher")
            task.advance()
            for candidate in self.candidates:
                network = Student(model=candidate.model, args=candidate.args)
                found = self.costs[candidate.name] = self.coster.costs(network)
                if found.failed is not None:
                    self.progress.warn(f"{candidate.name} cannot be costed: {found.failed}")
                task.advance(candidate=candidate.name)
        allowed = {c.name: self._allowed(c) for c in self.candidates}
        fit = [c for c in self.candidates if allowed[c.name]]
        said = f"  {len(fit)} of {len(self.candidates)} candidates can meet the budgets on cost"
        self.progress.say(said)
        self.closest = None if fit else self._closest()
        methods = _methods(self.config)
        count = max(1, self.config.search.trials // len(methods))
        for candidate in self._spread(fit, count):
            for name, entries in methods[: self.config.search.trials]:
                config = _with(self.config, candidate, entries)
                self.trials.append(self._trial(candidate, name, config, allowed[candidate.name]))

    def _tell_predicted(self) -> None:
        """Where nothing is measured; what was measured before needs no device."""
        networks = [Student(model=c.model, args=c.args) for c in self.candidates]
        if all(self.coster.known(network) for network in networks):
            return
        for name in self.coster.away:
            self.notes.append(f"{name} cannot be measured now: its cost model predicts latencies")
            self.progress.say(f"  note: {self.notes[-1]}")

    def _standings(self, candidate: Candidate, variant: Variant) -> list[Standing]:
        costs = self.costs[candidate.name]
        return on_cost(self.config.gate.budgets, costs, self.whole, variant)

    def _fits(self, candidate: Candidate, variant: Variant) -> bool:
        """Whether it ran there, and every budget on cost holds by its value."""
        ran = any(f.variant == variant for f in self.costs[candidate.name].figures)
        return ran and all(s.holds for s in self._standings(candidate, variant))

    def _allowed(self, candidate: Candidate) -> list[Variant]:
        possible = variants(self.config.gate.budgets, self.quantized)
        found = [variant for variant in possible if self._fits(candidate, variant)]
        if not found:
            worst = [self._worst(candidate, variant) for variant in possible]
            least = min(worst, key=lambda s: s.beyond if s else float("inf"))
            failed = self.costs[candidate.name].failed
            self.out[candidate.name] = (
                failed if failed else least.text if least else "does not run on the target"
            )
        return found

    def _worst(self, candidate: Candidate, variant: Variant) -> Standing | None:
        standings = self._standings(candidate, variant)
        return max(standings, key=lambda s: s.beyond, default=None)

    def _closest(self) -> Closest:
        """Of all candidates the one that is nearest to the budgets. Raises StageError where none ran."""
        possible = variants(self.config.gate.budgets, self.quantized)
        near = [
            (standing.beyond, candidate.name, variant)
            for candidate in self.candidates
            for variant in possible
            if (standing := self._worst(candidate, variant)) is not None
        ]
        if not near:
            reasons = [costs.failed for costs in self.costs.values() if costs.failed]
            raise StageError(
                f"no candidate could be costed: {reasons[0] if reasons else 'none runs there'}",
                where="target " + ", ".join(target.name for target in self.coster.targets),
                fix="`edgekd targets check` asks whether the device can be measured",
            )
        _, name, variant = min(near)
        standings = tuple(self._standings(_named(self.candidates, name), variant))
        method, _ = _methods(self.config)[0]
        return Closest(candidate=name, method=method, variant=variant, standings=standings)

    def _spread(self, fit: list[Candidate], count: int) -> list[Candidate]:
        """So many of them, evenly from the one nearest to the budget to the cheapest."""
        ordered = sorted(fit, key=lambda c: -self._latency(c))
        if len(ordered) <= count:
            return ordered
        last = len(ordered) - 1
        marks = [round(i * last / max(1, count - 1)) for i in range(count)]
        return [ordered[i] for i in dict.fromkeys(marks)]

    def _latency(self, candidate: Candidate) -> float:
        figure = self._figure(candidate, "latency_p50", "f32")
        return candidate.parameters if figure is None else figure.value

    def _figure(self, candidate: Candidate, metric: str, variant: Variant) -> Cost | None:
        """At the place that fronts are drawn for."""
        target, runtime = self.place
        return next(
            (
                f
                for f in self.costs[candidate.name].figures
                if (f.metric, f.variant, f.target, f.runtime) == (metric, variant, target, runtime)
            ),
            None,
        )

    @property
    def place(self) -> tuple[str, str]:
        """Where latency is looked at: of the first budget on it, or the first that is costed."""
        for budget in self.config.gate.budgets:
            if budget.metric in ON_COST:
                targets = {t.name: t for t in self.coster.targets}
                target = targets[budget.target or self.config.profile.targets[0]]
                return target.name, budget.runtime or target.runtimes[0]
        return self.coster.targets[0].name, self.coster.targets[0].runtimes[0]

    @property
    def limit(self) -> float | None:
        """The budget's limit on latency there, in seconds."""
        standings = [s for c in self.candidates for s in self._standings(c, "f32")]
        return next((s.limit for s in standings if s.budget.startswith("latency_p50")), None)

    def _trial(
        self, candidate: Candidate, method: str, config: Config, allowed: list[Variant]
    ) -> _Trial:
        identity = self._key(config)
        folder = self.run.path / "trials" / identity[:16]
        return _Trial(identity, candidate, method, config, folder, allowed)

    def _key(self, config: Config) -> str:
        """Of its distill stage: in a run of this configuration it is the same."""
        stage = next(stage for stage in LINE if stage.name == "distill")
        record = self.run.manifest.stages["teacher"]
        made = {path: artifact.sha256 for path, artifact in record.artifacts.items()}
        return sha256_json(stage.inputs(config, self.base, made))

    # -- training ---------------------------------------------------------------------------

    def train(self, engine: Engine) -> None:
        """Every rung: those that are left train on, then the best of them go to the next."""
        left_over = list(self.trials)
        counts = self._counts()
        before = (0, *self.rungs)
        total = sum(
            count * (rung - last)
            for count, rung, last in zip(counts, self.rungs, before, strict=False)
        )
        begun = {t.id: float(self._reached(t)) for t in self.trials}
        with board(self.progress, "search", max(total, sum(begun.values())), begun) as shown:
            for position, epochs in enumerate(self.rungs):
                self._rung(engine, left_over, epochs, shown)
                left_over = [trial for trial in left_over if trial.failure is None]
                if not left_over:
                    failed = next(t for t in self.trials if t.failure is not None)
                    assert failed.failure is not None
                    raise failed.failure.error()
                if position + 1 < len(self.rungs):
                    scores = {trial.id: self._score(trial) for trial in left_over}
                    going = promoted(scores, self.config.search.keep)
                    left_over = [trial for trial in left_over if trial.id in going]
        self.finalists = left_over

    def _counts(self) -> list[int]:
        counts = [len(self.trials)]
        for _ in self.rungs[1:]:
            counts.append(max(1, round(counts[-1] / self.config.search.keep)))
        return counts

    def _reached(self, trial: _Trial) -> int:
        return max((e for e in self.rungs if rung_path(trial.folder, e).is_file()), default=0)

    def _rung(self, engine: Engine, trials: list[_Trial], epochs: int, shown: Board) -> None:
        waiting: dict[str, _Trial] = {}
        for trial in trials:
            done = Rung.read_if_whole(rung_path(trial.folder, epochs))
            if done is None:
                waiting[trial.id] = trial
            else:
                trial.rungs.append(done)
        jobs = [self._job(trial, epochs) for trial in waiting.values()]
        self._show(shown, epochs, len(trials))
        if not jobs:
            return
        with contextlib.closing(engine.run(jobs, shown.told)) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                trial = waiting[job.id]
                if isinstance(outcome, Failure):
                    if outcome.kind == "usage":
                        raise outcome.error()
                    trial.failure = outcome
                    self.progress.warn(f"{job.name}: {outcome.error()}")
                else:
                    trial.rungs.append(outcome)
                shown.told(job, epochs)
                self._show(shown, epochs, len(trials))

    def _job(self, trial: _Trial, epochs: int) -> Job:
        config = trial.config
        distill = config.distill.model_copy(update={"doctor": False})
        quick = config.model_copy(update={"distill": distill})
        cores = len(os.sched_getaffinity(0))
        jobs = self.config.search.jobs or _jobs(config)
        return Job(
            id=trial.id,
            name=f"{trial.candidate.name}, {trial.method}",
            config=quick.model_dump(mode="json"),
            base=str(self.base.absolute()),
            run=str(self.run.path.absolute()),
            folder=str(trial.folder.absolute()),
            until=epochs,
            quantized=self.quantized in trial.variants,
            threads=config.distill.threads or (max(1, cores // jobs) if jobs > 1 else None),
        )

    def _score(self, trial: _Trial) -> tuple[float, ...]:
        """Validation accuracy in the best precision that the budgets allow; then the cheaper one."""
        rung = trial.rungs[-1]
        accuracy = max(rung.accuracy[variant].value for variant in trial.variants)
        return accuracy, -self._latency(trial.candidate)

    def _show(self, shown: Board, epochs: int, trials: int) -> None:
        points = self.points()
        found = max((p.accuracy.value for p in points), default=0.0)
        drawing = front.drawn(points, self.limit)
        shown.show(drawing, trials=f"{trials} to epoch {epochs}", best=f"{found:.2%}")

    # -- what came of it --------------------------------------------------------------------

    def points(self) -> tuple[Point, ...]:
        """Every trial as far as it went, in every precision."""
        return front.marked([p for trial in self.trials for p in self._points(trial)])

    def _points(self, trial: _Trial) -> list[Point]:
        if not trial.rungs:
            return []
        rung, candidate = trial.rungs[-1], trial.candidate
        found = []
        for variant in trial.variants:
            if variant not in rung.accuracy:
                continue
            figures = {m: self._figure(candidate, m, variant) for m in front.AXES}
            known = {metric: f for metric, f in figures.items() if f is not None}
            latency = known.get("latency_p50")
            standings = [
                *self._standings(candidate, variant),
                *on_accuracy(
                    self.config.gate.budgets,
                    rung.accuracy[variant],
                    self.teacher,
                    rung.agreement[variant],
                ),
            ]
            found.append(
                Point(
                    trial=trial.id,
                    candidate=candidate.name,
                    family=candidate.family,
                    method=trial.method,
                    variant=variant,
                    epochs=rung.epochs,
                    parameters=candidate.parameters,
                    accuracy=rung.accuracy[variant],
                    costs={metric: f.value for metric, f in known.items()},
                    provenance=latency.provenance if latency else "measured",
                    latency_interval=latency.interval if latency else None,
                    standings=tuple(standings),
                )
            )
        return found

    def report(self, best: str | None) -> SearchReport:
        """With the winner among the finalists: within the budgets the most accurate, else the closest."""
        points = self.points()
        ids = {trial.id for trial in self.finalists}
        final = [i for i, p in enumerate(points) if p.trial in ids]

        def rank(i: int) -> tuple[float, ...]:
            p = points[i]
            beyond = max((s.beyond for s in p.standings), default=1.0)
            return max(beyond, 1.0), -p.accuracy.value, p.costs.get("latency_p50", 0.0)

        return SearchReport(
            name=self.config.name,
            teacher=self.teacher,
            place="/".join(self.place),
            epochs=self.config.distill.epochs,
            rungs=self.rungs,
            candidates=tuple(self.candidates),
            costed_out=self.out,
            trials=tuple(
                Trial(
                    id=t.id, candidate=t.candidate.name, method=t.method, rungs=tuple(t.rungs),
                    error=t.failure.what if t.failure else None,
                )
                for t in self.trials
            ),
            points=points,
            winner=min(final, key=rank) if final else None,
            left=tuple(left(self.config.gate.budgets)),
            notes=tuple(self.notes),
            best=best,
            closest=self.closest,
        )  # fmt: skip

    def hand_over(self, report: SearchReport, winner: Config, folder: Path) -> None:
        """Let the distill stage of a run in `folder` go on from the winner's checkpoint."""
        if report.best_point is None:
            return
        trial = next(t for t in self.trials if t.id == report.best_point.trial)
        made, run = checkpoint(trial.folder), Run(folder)
        key = self._key(winner)
        done = run.manifest.stages.get("distill") if (folder / "run.json").is_file() else None
        target = checkpoint(run.partial("distill", key))
        if target.exists() or not made.exists() or (done is not None and done.key == key):
            return
        with disk_errors(folder), atomic_path(target) as temporary:
            shutil.copyfile(made, temporary)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end a search in one line."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped in the search", fix="run the same command again to go on from here"
        ) from None


def _jobs(config: Config) -> int:
    """As many trials at once as the cores have threads for; one where it takes all of them."""
    threads = config.distill.threads
    return 1 if threads is None else max(1, len(os.sched_getaffinity(0)) // threads)


def _named(found: Sequence[Candidate], name: str) -> Candidate:
    return next(candidate for candidate in found if candidate.name == name)


def _plain(config: Config) -> dict[str, Any]:
    """What of it is not as by default; the search is over."""
    value = config.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
    return {**value, "student": config.student.model_dump(mode="json")}


def _has_teacher(out: Path) -> bool:
    """Whether a search there has got so far before."""
    return (out / "run.json").is_file() and LINE[0].name in Run(out).manifest.stages

"""Searching the settings with which a source is exported to a target best. The search itself is `tuning`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from ..errors import DiskhaulError, InterruptedRunError, RefusedError
from ..feedback import Feedback
from ..formats.codec import parse_compress
from ..machine import machine_facts
from ..model import Disk
from ..names import expand_name
from ..option_checks import option_problems
from ..option_defaults import export_options
from ..options import ExportOptions, Setting
from ..pipeline.source import Source
from ..profile import save_profile
from ..records import Profile, TuneResult
from .base import Operation, RunContext
from .plugin_answers import failure_lines
from .scratch import free_bytes, scratch_directory, target_problems
from .tuning.request import TuneRequest, request_problems
from .tuning.run import Outcome, TuneRun
from .tuning.sample import Unit, units_of
from .tuning.search import GridSearch, Searcher
from .tuning.space import Settings, Space, make_space
from .tuning.trial import TrialRunner
from .tuning.trial_log import TrialLog, log_path, read_log

_WRITING_S = 0.5  # what is kept of the time for writing the profile, and the tables of a report
_PLOTTING_S = 4.0
_WRITING_SHARE = 0.2  # at the most
_ROOM_SHARE = 0.5  # of the target's free space


class TuneOperation(Operation[TuneResult]):
    """Tunes for the disks of one instance, or for one disk. Takes no locks: it only reads, and what it writes is its own.

    Raises (from `run`):
        RefusedError: every reason found, together; nothing was touched.
        OperationFailedError: the sample cannot be exported with the defaults, or not within the time.
        InterruptedRunError: cancelled; nothing is left but the trials' file.
    """

    name = "tune"

    def __init__(self, context: RunContext, request: TuneRequest) -> None:
        super().__init__(context)
        self._begun = time.monotonic()
        self._request = request
        self._disks: Sequence[Disk] = ()
        self._units: list[Unit] = []
        self._defaults = ExportOptions()
        self._room = 0
        self._earlier: tuple[dict[str, Any], list[Any]] | None = None
        self._log: TrialLog | None = None
        self._space: Space

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        problems = request_problems(self._request)
        if problems:
            raise RefusedError(problems)
        self._defaults = export_options(self.cluster)

    def expand_names(self) -> None:
        request = self._request
        if request.source is not None:
            self._disks = (request.source,)
            return
        assert request.instance is not None
        instances = self.host.inventory().instances()
        self._disks = instances[expand_name("instance", request.instance, instances)].disks

    def check_prerequisites(self) -> None:
        problems = [] if self._disks else [f"{self._request.instance} has no disks: there is nothing to tune for"]
        problems += self._search_problems()
        problems += self._target_problems()
        if not problems:
            try:
                self._space = make_space(self._request, self._defaults, self.cluster, self.host.tunables(), self._disks)
            except RefusedError as error:
                problems += error.problems
            else:
                problems += self._space_problems()
                problems += self._source_problems()
        if not problems and self._request.resume:
            problems += self._resume_problems()
        if problems:
            raise RefusedError(problems)

    def _search_problems(self) -> list[str]:
        if self._request.search == "optuna" and find_spec("optuna") is None:
            return ["search: optuna is not installed; install diskhaul[tune], or use --search grid"]
        return []

    def _target_problems(self) -> list[str]:
        target = self._request.target
        problems = target_problems(target, self._disks)
        if not problems:
            self._room = int(free_bytes(target) * _ROOM_SHARE)
            if self._room < 1:
                problems.append(f"target: {target} has no room")
        return problems

    def _space_problems(self) -> list[str]:
        if not self._space.parameters:
            return ["nothing is left to be searched: every setting is given"]
        allowed = self.cluster.compression
        compressions = [each for parameter in self._space.parameters if parameter.name == "compress" for each in parameter.values]
        compressions = compressions or [self._space.fixed["compress"]]
        refused = sorted({str(each) for each in compressions if parse_compress(str(each)).name not in allowed})
        if refused:
            return [f"compress: cluster {self.cluster.name} allows {', '.join(allowed)}, not {', '.join(refused)}"]
        options: dict[str, Any] = {**self._space.kept, **self._space.export_settings(self._space.defaults)}
        return option_problems(ExportOptions(**options))

    def _source_problems(self) -> list[str]:
        """Look at every disk, and note what it holds; say what is in the way."""
        problems: list[str] = []
        for disk in self._disks:
            try:
                storage = self.host.storage(disk.storage)
                wrong = list(storage.check(disk))
                if not wrong:
                    source = Source(storage.open(disk), disk.label)
                    try:
                        self._units += units_of(disk.index, source.extents(), self._space.largest_chunk)
                    finally:
                        source.close()
                problems += wrong
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                problems += failure_lines(disk.label, error)
        if not problems and not self._units:
            problems.append(f"{self._source_name} holds no data: there is nothing to tune for")
        return problems

    def _resume_problems(self) -> list[str]:
        assert self._request.out is not None
        path = log_path(self._request.out)
        about, trials = read_log(path)
        now = self._about(0)
        differing = [name for name in now if name != "sample_limit" and about.get(name) != now[name]]
        if differing:
            return [f"resume: {path} is of a run with another {name.replace('_', ' ')}; leave --resume out" for name in differing]
        if not all(self._space.holds(trial.settings) for trial in trials) or not isinstance(about.get("sample_limit"), int):
            return [f"resume: {path} has been changed; leave --resume out to begin anew"]
        self._earlier = about, trials
        return []

    def _about(self, sample_limit: int) -> dict[str, Any]:
        """What has to be the same for trials to be comparable, in JSON's own types."""
        request = self._request
        return {
            "aim": request.aim,
            "limit": [request.within_s, request.within_ratio],
            "source": [[disk.storage, str(disk.path or ""), repr(sorted(disk.options.items()))] for disk in self._disks],
            "source_content": sum(unit.length for unit in self._units),
            "target": str(request.target.resolve()),
            "search_space": [[each.name, list(each.values), each.default] for each in self._space.parameters],
            "fixed_settings": dict(self._space.fixed),
            "machine": dict(machine_facts()),
            "sample_limit": sample_limit,
        }

    @property
    def _source_name(self) -> str:
        if self._request.instance is not None:
            return self._request.instance
        disk = self._disks[0]
        return str(disk.path) if disk.path is not None else f"{disk.storage} disk"

    # --- the work ---------------------------------------------------------------------------------------------------

    def execute(self, feedback: Feedback) -> TuneResult:
        request = self._request
        plots = request.report is not None and find_spec("matplotlib") is not None
        writing_s = min(request.time_limit_s * _WRITING_SHARE, _PLOTTING_S if plots else _WRITING_S)
        searcher, method = self._searcher()
        with ExitStack() as stack:
            stack.callback(self._close_log)
            scratch = stack.enter_context(scratch_directory(request.target))
            runner = TrialRunner(
                self.cluster, self.context.plugins, self._disks, self._space, ExportOptions(), scratch, self.token
            )
            about, earlier = self._earlier or ({}, [])
            run = TuneRun(
                request,
                self._space,
                runner,
                searcher,
                feedback,
                self.token,
                units=self._units,
                room=self._room,
                earlier=earlier,
                sample_limit=about.get("sample_limit"),
                begin_log=self._begin_log,
                until=self._begun + request.time_limit_s - writing_s,
            )
            try:
                outcome = run.run()
            except InterruptedRunError as error:
                if self._log is not None:
                    error.add_note(f"what was measured is kept in {self._log.path}: go on with --resume")
                raise
        for warning in runner.warnings:
            feedback.warn(warning)
        return self._written(self._result(outcome, method, runner.written_bytes))

    def _searcher(self) -> tuple[Searcher, str]:
        """How to search, and its name."""
        if self._request.search != "grid" and find_spec("optuna") is not None:
            from .tuning.optuna_search import OptunaSearch

            return OptunaSearch(self._space, self._request.seed), "optuna"
        return GridSearch(self._space, self._request.seed), "grid"

    def _begin_log(self, sample_limit: int) -> TrialLog | None:
        if self._request.out is None:
            return None
        path = log_path(self._request.out)
        self._log = TrialLog.resume(path) if self._earlier else TrialLog.begin(path, self._about(sample_limit))
        return self._log

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()

    def _result(self, outcome: Outcome, method: str, written_bytes: int) -> TuneResult:
        verdict = outcome.verdict
        request = self._request
        return TuneResult(
            run_id=self.context.run_id,
            aim=request.aim,
            source=self._source_name,
            target=str(request.target),
            method=method,
            searched={parameter.name: parameter.values for parameter in self._space.parameters},
            fixed=dict(self._space.fixed),
            defaults=dict(self._space.defaults),
            found=dict(outcome.found),
            better=verdict.better,
            ratio=verdict.ratio,
            noise=verdict.noise,
            verdict=verdict.words,
            profile=self._profile(outcome, method),
            trials=outcome.trials,
            rounds=outcome.rounds,
            sample_bytes=outcome.sample_bytes,
            data_bytes=sum(unit.length for unit in self._units),
            written_bytes=written_bytes,
            time_limit_s=request.time_limit_s,
            profile_path=str(request.out or ""),
            report_path=str(request.report or ""),
            trials_path=str(self._log.path) if self._log is not None else "",
            seconds=time.monotonic() - self._begun,
            warnings=tuple(self.feedback.warnings),
        )

    def _profile(self, outcome: Outcome, method: str) -> Profile:
        verdict = outcome.verdict
        chosen: Settings = outcome.found if verdict.better else self._space.defaults
        measurements: dict[str, object] = {
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "aim": self._request.aim,
            "better": verdict.better,
            "verdict": verdict.words,
            "method": method,
            "trials": len(outcome.trials),
            "rounds": len(outcome.rounds),
            "sample_bytes": outcome.sample_bytes,
            "not_searched": dict(self._space.kept),
        }
        if verdict.ratio is not None and verdict.noise is not None:
            measurements |= {"ratio": round(verdict.ratio, 4), "noise": round(verdict.noise, 4)}
        for name, trials in (
            ("defaults", [each.defaults for each in outcome.rounds]),
            ("found", [each.found for each in outcome.rounds]),
        ):
            settings = self._space.defaults if name == "defaults" else outcome.found
            measurements[name] = {"settings": dict(settings)}
            if trials:
                measurements[name] = {
                    "bytes_per_second": round(outcome.sample_bytes / statistics.median(each.seconds for each in trials)),
                    "cpu_seconds": round(statistics.median(each.cpu_seconds for each in trials), 4),
                    "stored_bytes": round(statistics.median(each.stored_bytes for each in trials)),
                    "seconds": [round(each.seconds, 4) for each in trials],
                    "settings": dict(settings),
                }
        source = self._disks[0].path if len(self._disks) == 1 else None
        facts: Mapping[str, Setting] = machine_facts(source=source, target=self._request.target)
        return Profile(
            export=self._space.export_settings(chosen),
            backend_options=self._space.backend_settings(chosen),
            machine={"source": self._source_name} | dict(facts),
            measurements=measurements,
        )

    def _written(self, result: TuneResult) -> TuneResult:
        """Write profile and report; the profile first, it matters more."""
        with self.feedback.stage("report"):
            if self._request.out is not None:
                save_profile(result.profile, self._request.out)
            if self._request.report is not None:
                from ..report import write_tune_report

                try:
                    write_tune_report(result, self._request.report)
                except DiskhaulError as error:
                    self.feedback.warn(f"no report: {error}")
        return replace(result, seconds=time.monotonic() - self._begun, warnings=tuple(self.feedback.warnings))

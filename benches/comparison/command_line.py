"""The command: the order of events, and what becomes of failures."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import checking, machine, page_cache, report
from .arguments import Arguments, parse
from .contestants import Contestant, Place, contestants
from .disk import data_bytes, made_disk, make_disk
from .errors import ComparisonError, ContestantError
from .preparation import clear_output, own_directory, prepare
from .report import Report
from .results import Run
from .running import SEARCH_PATH, Pipeline, Usage, measure, sizes


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parse(sys.argv[1:] if given is None else given)
    signal.signal(signal.SIGTERM, _interrupt)  # mounts and processes have to be seen to, as after Ctrl-C
    try:
        found, interrupted = _report(arguments)
    except ComparisonError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare.py: interrupted", file=sys.stderr)
        return 130
    if found is None:
        return 0
    print(report.readme(found) if arguments.readme else report.text(found), end="")
    if arguments.json:
        report.save(found, arguments.json)
    if arguments.png and (reason := report.chart(found, arguments.png)):
        _say(reason)
    if interrupted:
        return 130
    return 1 if found.failed else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(f"compare.py: {line}", file=sys.stderr, flush=True)


def _say_left_out(lines: Sequence[str]) -> None:
    for line in lines:
        _say(f"left out: {line}")


def _report(arguments: Arguments) -> tuple[Report | None, bool]:
    """What there is to show, if anything, and whether it is incomplete because of an interruption."""
    if arguments.earlier:
        _check_outputs(arguments)
        return report.merge([report.load(path) for path in arguments.earlier]), False
    assert arguments.work is not None
    place = Place(
        work=arguments.work, disk=arguments.disk or arguments.work / "disk.raw", diskhaul=os.path.abspath(arguments.diskhaul)
    )
    taking_part, left_out = _taking_part(arguments, place)
    if arguments.commands:
        for one in taking_part:
            print(f"{one.group}/{one.name}:", *one.commands, sep="\n  ")
        _say_left_out(left_out)
        return None, False
    own_directory(place.work)
    _check_outputs(arguments)
    disk = _given_disk(arguments)
    _say_left_out(left_out)
    disk = disk or _made_disk(arguments, place)
    prepare(place, taking_part, _say)
    taking_part, _ = _taking_part(arguments, place)  # names of files that are known only now
    if arguments.prepare:
        return None, False
    programs = sorted({program for one in taking_part for program in one.programs} | ({"sync"} if arguments.durable else set()))
    empty = Report(
        machine=machine.facts(place.work),
        versions=machine.versions(programs),
        disk=disk,
        settings={"rounds": arguments.rounds, "caches": arguments.caches, "durable": arguments.durable, "trial": arguments.trial},
        entries=[one.entry for one in taking_part],
        commands={f"{one.group}/{one.name}": one.commands for one in taking_part},
        runs=(),
        left_out=left_out,
        failed=(),
    )
    runs: list[Run] = []
    failed: list[str] = []
    interrupted = False
    try:
        for _ in _rounds(arguments, place, taking_part, runs, failed):
            if arguments.json:  # an hour's measurements should not be lost because of what comes later
                report.save(replace(empty, runs=runs, failed=failed), arguments.json)
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted: what has been measured so far is shown")
    finally:
        clear_output(place)
    return replace(empty, runs=runs, failed=failed), interrupted


def _check_outputs(arguments: Arguments) -> None:
    """Raise ComparisonError for results that could not be written: better now than after an hour."""
    for path in (arguments.json, arguments.png):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise ComparisonError(f"{path} cannot be written")


def _taking_part(arguments: Arguments, place: Place) -> tuple[list[Contestant], list[str]]:
    """Who is asked for and has its programs; and who has not, one line each."""
    asked = [one for group in arguments.groups for one in contestants(group, place, arguments.variants)]
    if arguments.only:
        known = {name for one in asked for name in (one.name, f"{one.group}/{one.name}")}
        for name in arguments.only:
            if name not in known:
                raise ComparisonError(f"--only: there is no {name!r} in the groups {', '.join(arguments.groups)}")
        asked = [one for one in asked if {one.name, f"{one.group}/{one.name}"} & set(arguments.only)]
    if shutil.which("time", path=SEARCH_PATH) is None:
        raise ComparisonError("GNU time is not installed, and measures the memory of programs: install the package time")
    present, left_out = [], []
    for one in asked:
        missing = [program for program in one.programs if shutil.which(program, path=SEARCH_PATH) is None]
        if missing:
            left_out.append(f"{one.group}/{one.name}: {', '.join(missing)} not installed")
        else:
            present.append(one)
    if not present:
        raise ComparisonError("nobody is left to be compared")
    return present, left_out


def _given_disk(arguments: Arguments) -> dict[str, Any] | None:
    """What is known of the disk that was named, if one was."""
    if not arguments.disk:
        return None
    try:
        size = arguments.disk.stat().st_size
    except OSError as error:
        raise ComparisonError(f"--disk: {error}") from error
    if not arguments.disk.is_file() or size == 0:
        raise ComparisonError(f"--disk: {arguments.disk} is not a file with something in it")
    return {"path": str(arguments.disk), "size": size, "data": data_bytes(arguments.disk)}


def _made_disk(arguments: Arguments, place: Place) -> dict[str, Any]:
    """What is known of the disk that is made for the comparison, or was for an earlier one."""
    facts = made_disk(place.disk)
    if facts is None or facts.size != arguments.size:
        _say(f"making a disk in {place.work}")
        facts = make_disk(place.disk, arguments.size, source=arguments.source, announce=_say)
    return {"path": str(place.disk), **asdict(facts)}


def _rounds(
    arguments: Arguments, place: Place, taking_part: Sequence[Contestant], runs: list[Run], failed: list[str]
) -> Iterator[None]:
    """Measure everybody and append to `runs`; yields after each round of a group.

    Who fails gets no further turn, and a line in `failed`.
    """
    out: set[tuple[str, str]] = set()
    checked: set[tuple[str, str]] = set()
    for group, number, cache in itertools.product(arguments.groups, range(1, arguments.rounds + 1), arguments.caches):
        for one in taking_part:
            key = (one.group, one.name)
            if one.group != group or key in out:
                continue
            try:
                run = _run(arguments, place, one, number, cache)
                if key not in checked:
                    checking.check(one, place)
                    checked.add(key)
            except ContestantError as error:
                out.add(key)
                failed.append(f"{one.group}/{one.name}: {error}")
                _say(f"FAILED: {failed[-1]}")
                continue
            _say(f"{group}, {cache}, round {number} of {arguments.rounds}: {one.name} {run.usage.wall_s:.2f} s")
            runs.append(run)
        yield


def _run(arguments: Arguments, place: Place, one: Contestant, number: int, cache: page_cache.State) -> Run:
    clear_output(place)
    page_cache.prepare(list(one.sources), cache)
    usage = _measured(one.pipelines, place, arguments.limit_s)
    durable: Usage | None = None
    if arguments.durable:
        sync = Pipeline(stages=(("sync", str(one.result)),))
        durable = usage if one.own else usage.followed_by(_measured([sync], place, arguments.limit_s))
    os.sync()  # blocks are allocated when data is written back, so sizes are known after that
    apparent, allocated = sizes(one.result)
    return Run(
        group=one.group,
        name=one.name,
        cache=cache,
        round=number,
        usage=usage,
        durable=durable,
        apparent=apparent,
        allocated=allocated,
    )


def _measured(pipelines: Sequence[Pipeline], place: Place, limit_s: float) -> Usage:
    with tempfile.TemporaryDirectory(dir=place.work, prefix="logs-") as logs:
        return measure(pipelines, scratch=Path(logs), limit_s=limit_s)

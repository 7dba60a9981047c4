"""Removing several exports with one command."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import diskhaul

from ..errors import DiskhaulError, InterruptedRunError, RefusedError, UnknownNameError
from ..records import RemovalResult
from .invocation import Invocation


def remove_several(
    exports: Sequence[str], *, invocation: Invocation, all_exports: bool, node: str | None, dry_run: bool
) -> RemovalResult:
    """Remove `exports` one after the other and return what became of all of them.

    Every one is tried out first, so that a refusal (all of them are told together) leaves all in place. One that fails after
    others were removed is named in ``incomplete``, and the rest is still removed.

    Raises:
        DiskhaulError: refused; or interrupted; or none could be removed.
    """
    tried = partial(
        diskhaul.remove, config=invocation.cluster(), node=node, all_exports=all_exports, cancel=invocation.cancel, dry_run=True
    )
    remove = partial(tried, on_event=invocation.on_event, dry_run=False)
    if len(exports) == 1:
        return remove(exports[0], dry_run=dry_run)
    results: list[RemovalResult] = []
    refusals: list[str] = []
    for export in exports:
        try:
            results.append(tried(export))
        except RefusedError as error:
            refusals += error.problems
    if refusals:
        raise RefusedError(dict.fromkeys(refusals))
    if dry_run:
        return _together(results, dry_run=True)
    results = []
    failures: list[DiskhaulError] = []
    for export in exports:
        try:
            results.append(remove(export))
        except InterruptedRunError:
            raise
        except UnknownNameError:
            continue  # it was there a moment ago: named twice, or removed by somebody else, and gone is what was asked for
        except DiskhaulError as error:
            failures.append(error)
    if not any(result.removed for result in results) and failures:
        raise failures[0]
    return _together(results, incomplete=[line for error in failures for line in str(error).splitlines()])


def _together(results: Sequence[RemovalResult], *, incomplete: Sequence[str] = (), dry_run: bool = False) -> RemovalResult:
    removed = {(record.store, record.instance, record.export_id): record for result in results for record in result.removed}
    return RemovalResult(
        removed=tuple(removed.values()),
        kept=tuple(
            record
            for result in results
            for record in result.kept
            if (record.store, record.instance, record.export_id) not in removed
        ),
        incomplete=(*(line for result in results for line in result.incomplete), *incomplete),
        dry_run=dry_run,
    )

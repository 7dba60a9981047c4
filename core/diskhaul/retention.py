"""Which exports to keep, by count and by calendar. Pure: used by ``prune`` and by the clean-up backend ``keep``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime

from .options import KeepPolicy
from .records import ExportRecord


def _utc(moment: datetime) -> datetime:
    """`moment` in UTC; one without a zone is UTC already (as `ExportRecord.created` says)."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _day(moment: datetime) -> object:
    return moment.date()


def _week(moment: datetime) -> object:
    return tuple(moment.isocalendar())[:2]  # the ISO year: 2027-01-01 belongs to week 53 of 2026


def _month(moment: datetime) -> object:
    return moment.year, moment.month


def _year(moment: datetime) -> object:
    return moment.year


def keep_option_problems(options: Mapping[str, object]) -> list[str]:
    """Say why ``[backend_options.keep]`` is no policy, one line each, beginning with the key path."""
    known = [field.name for field in fields(KeepPolicy)]
    problems = [f"backend_options.keep.{key}: unknown; there is {', '.join(known)}" for key in options if key not in known]
    problems += [
        f"backend_options.keep.{key}: {value!r} is not a whole number, 0 or more"
        for key, value in options.items()
        if key in known and (not isinstance(value, int) or isinstance(value, bool) or value < 0)
    ]
    if not problems and not any(options.values()):
        problems.append(f"backend_options.keep: keeps nothing; give at least one of {', '.join(known)}")
    return problems


def select_kept(records: Iterable[ExportRecord], policy: KeepPolicy) -> set[str]:
    """Return the ids of the exports that `policy` keeps.

    Each rule looks at all exports of an instance by itself, newest first, as restic's ``forget`` does: ``last`` keeps the
    newest ones, each other rule the newest export of each of the last so many periods *that have one*. What any rule keeps is
    kept. Instances do not compete with each other; one export that is seen through several nodes counts once. Exports of the
    same moment are ordered by id.

    Args:
        records: exports of any number of instances. Those that are not valid take nobody's place and are not in the result:
            whether they go is the caller's decision.
        policy: how many to keep; a policy that keeps nothing gives an empty set.
    """
    by_instance: dict[str, dict[str, ExportRecord]] = {}
    for record in records:
        if record.valid:
            by_instance.setdefault(record.instance, {})[record.export_id] = record
    kept: set[str] = set()
    for exports in by_instance.values():
        newest_first = sorted(exports.values(), key=lambda record: (_utc(record.created), record.export_id), reverse=True)
        kept.update(record.export_id for record in newest_first[: policy.last])
        kept |= _newest_of_each(newest_first, policy.daily, _day)
        kept |= _newest_of_each(newest_first, policy.weekly, _week)
        kept |= _newest_of_each(newest_first, policy.monthly, _month)
        kept |= _newest_of_each(newest_first, policy.yearly, _year)
    return kept


def _newest_of_each(newest_first: Iterable[ExportRecord], count: int, period: Callable[[datetime], object]) -> set[str]:
    """Return the first id of each of the first `count` periods met in `newest_first`."""
    newest: dict[object, str] = {}
    for record in newest_first:
        key = period(_utc(record.created))
        if key in newest:
            continue
        if len(newest) >= count:
            break
        newest[key] = record.export_id
    return set(newest.values())

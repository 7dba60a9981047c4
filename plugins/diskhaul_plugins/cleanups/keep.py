"""Clean-up ``keep``: keeps the last, daily, weekly, monthly and yearly exports, and always the new one.

Its options, ``[backend_options.keep]``, are those of `diskhaul.options.KeepPolicy`; at least one must be above 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from diskhaul.api import BackendContext, Capability, Cleanup
from diskhaul.errors import ConfigurationError
from diskhaul.model import Options
from diskhaul.options import KeepPolicy
from diskhaul.records import ExportRecord
from diskhaul.retention import select_kept


def capability() -> Capability:
    return Capability(works=True)


def _policy(options: Options) -> KeepPolicy:
    """Read the policy from ``[backend_options.keep]``; raises `ConfigurationError` with all problems at once."""
    known = [field.name for field in fields(KeepPolicy)]
    problems = [f"backend_options.keep.{key}: unknown; there is {', '.join(known)}" for key in options if key not in known]
    problems += [
        f"backend_options.keep.{key}: {value!r} is not a whole number, 0 or more"
        for key, value in options.items()
        if key in known and (not isinstance(value, int) or isinstance(value, bool) or value < 0)
    ]
    if problems:
        raise ConfigurationError(problems)
    policy = KeepPolicy(**options)
    if policy.keeps_nothing:
        raise ConfigurationError(f"backend_options.keep: keeps nothing; give at least one of {', '.join(known)}")
    return policy


class KeepCleanup(Cleanup):
    """Chooses what the policy does not keep, among the new export and the existing ones together."""

    def __init__(self, context: BackendContext) -> None:
        self._policy = _policy(context.options)

    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord], /) -> Iterable[ExportRecord]:
        others = [record for record in existing if record.instance == new.instance and record.valid]
        kept = select_kept([new, *others], self._policy) | {new.export_id}
        return [record for record in others if record.export_id not in kept]

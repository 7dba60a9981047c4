"""Clean-up ``keep``: keeps the last, daily, weekly, monthly and yearly exports, and always the new one.

Its options, ``[backend_options.keep]``, are those of `diskhaul.options.KeepPolicy`; at least one must be above 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diskhaul.api import BackendContext, Capability, Cleanup
from diskhaul.errors import ConfigurationError
from diskhaul.model import Options
from diskhaul.options import KeepPolicy
from diskhaul.records import ExportRecord
from diskhaul.retention import keep_option_problems, select_kept


def capability() -> Capability:
    return Capability(works=True)


def _policy(options: Options) -> KeepPolicy:
    """Read the policy from ``[backend_options.keep]``; raises `ConfigurationError` with all problems at once."""
    problems = keep_option_problems(options)
    if problems:
        raise ConfigurationError(problems)
    return KeepPolicy(**options)


class KeepCleanup(Cleanup):
    """Chooses what the policy does not keep, among the new export and the existing ones together."""

    def __init__(self, context: BackendContext) -> None:
        self._policy = _policy(context.options)

    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord], /) -> Iterable[ExportRecord]:
        others = [record for record in existing if record.instance == new.instance and record.valid]
        kept = select_kept([new, *others], self._policy) | {new.export_id}
        return [record for record in others if record.export_id not in kept]

"""Clean-up ``none``: a new export supersedes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diskhaul.api import BackendContext, Capability, Cleanup
from diskhaul.records import ExportRecord


def capability() -> Capability:
    return Capability(works=True)


class NoCleanup(Cleanup):
    """Never chooses anything."""

    removes_exports = False

    def __init__(self, context: BackendContext) -> None:
        pass

    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord], /) -> Iterable[ExportRecord]:
        return ()

"""Clean-up ``others``: the new export replaces the instance's exports on all other nodes, and the older ones beside it.

What lies "beside it" goes by the identity of the store, never by the node's name: two nodes that mount one directory are one
store, and the new export seen through the other node is still the new export.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diskhaul.api import BackendContext, Capability, Cleanup
from diskhaul.records import ExportRecord


def capability() -> Capability:
    return Capability(works=True)


class OthersCleanup(Cleanup):
    """Chooses every other export of the instance, except those in the new one's store that are younger than it.

    An export that claims to be younger than the newest one was made before a clock was set back: it is left for a person
    to judge.
    """

    def __init__(self, context: BackendContext) -> None:
        pass

    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord], /) -> Iterable[ExportRecord]:
        return [
            record
            for record in existing
            if record.instance == new.instance
            # An id carries the id of the run that made it, so an equal one is the new export itself, through whatever store.
            and record.export_id != new.export_id
            and (record.store != new.store or record.created <= new.created)
        ]

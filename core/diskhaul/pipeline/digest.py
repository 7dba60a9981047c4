"""Reading what is stored already, for its digests: nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from ..api import Buffer, StoreFile
from ..formats.codec import codec_for
from .meter import Meter
from .send import SendJob
from .source import Source


class _Nowhere(StoreFile):
    """Takes everything and keeps nothing."""

    @property
    def name(self) -> str:
        return "nowhere"

    def append(self, parts: Sequence[Buffer], /) -> None:
        """Nothing."""

    def write(self, offset: int, buffer: Buffer, /) -> int:
        return 0

    def set_size(self, size: int, /) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


NOWHERE: StoreFile = _Nowhere()


def digest_job(source: Source, chunk_size: int, meter: Meter) -> SendJob:
    """A job that reads `source`, a stored raw disk, and afterwards has its chunk table and byte counts."""
    return SendJob(
        source,
        NOWHERE,
        chunk_size=chunk_size,
        codec=codec_for("none"),
        meter=meter,
        window=1,
        when_sent=lambda: None,
    )

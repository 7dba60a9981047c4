"""Why a filesystem that was recognised is not believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .reading import FreeRuns, Reading
from .volume import OutsideVolumeError


class DoubtError(Exception):
    """What a filesystem says about its free space is not to be believed. The text says why, in a few words.

    Attributes:
        state: what state that shows: "dirty", "has errors", "hibernated", or "clean" where only this reader is at a loss.
    """

    def __init__(self, reason: str, *, state: str) -> None:
        super().__init__(reason)
        self.state = state


def dirty(reason: str) -> DoubtError:
    """It was not unmounted: its maps may be behind."""
    return DoubtError(reason, state="dirty")


def damaged(reason: str) -> DoubtError:
    """Two things on it contradict each other."""
    return DoubtError(reason, state="has errors")


def not_read(reason: str) -> DoubtError:
    """Nothing is wrong with it; it has something that is not read here."""
    return DoubtError(f"{reason}: not read", state="")


def read_or_keep(known: Reading, find: Callable[[], tuple[int, FreeRuns]]) -> Reading:
    """`known`, with what `find` finds (bytes that the filesystem calls free, and what may be left out), or why it is kept."""
    try:
        free, runs = find()
    except DoubtError as doubt:
        return replace(known, state=doubt.state, kept=str(doubt))
    except OutsideVolumeError:
        return replace(known, state="has errors", kept="something in it points behind the end of what it lies on")
    return replace(known, state="clean", free=free, runs=runs)

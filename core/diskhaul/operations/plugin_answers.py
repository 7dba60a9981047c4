"""Questions to backends before anything is touched, where whatever goes wrong is one more reason to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..api import Storage
from ..errors import DiskhaulError, RefusedError
from ..model import Disk


def problems_from(subject: str, question: Callable[[], Iterable[object]]) -> list[str]:
    """The lines that a backend's ``check`` gives; one that fails, or gives something else, is a problem itself.

    Args:
        subject: what such a problem begins with.
    """
    try:
        answers = list(question())
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        return failure_lines(subject, error)
    return [answer if isinstance(answer, str) else f"{subject}: its check gave {answer!r} for a reason" for answer in answers]


def location_of(storage: Storage, disk: Disk) -> str:
    """Where `storage` says that `disk` is.

    Raises:
        TypeError: it gives something else than text.
        BaseException: whatever the storage raises.
    """
    place = storage.location(disk)
    if not isinstance(place, str):
        raise TypeError(f"its storage gives the location {place!r} instead of text")
    return place


def failure_lines(subject: str, error: BaseException) -> list[str]:
    """What a backend raised, as lines for a refusal. Our own errors name their subject themselves."""
    if isinstance(error, RefusedError):
        return list(error.problems)
    if isinstance(error, DiskhaulError):
        return [str(error)]
    if isinstance(error, OSError):
        return [f"{subject}: {error.strerror or error}"]
    return [f"{subject}: {type(error).__name__}: {error}"]

"""The tree of errors: as drawn, with the exit codes it draws."""

from __future__ import annotations

import inspect
import re

from diskhaul import errors
from diskhaul.errors import ConfigurationError, DiskhaulError, InterruptedRunError, RefusedError, StorageError

CLASSES: dict[str, type[DiskhaulError]] = {
    name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, DiskhaulError)
}


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Name to parent and exit code, as the module's docstring draws them."""
    found: dict[str, tuple[str | None, int | None]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(\s+[│├└─ ]*)(\w+Error)\b\s*(\d+)?", line)
        if match:
            depth = len(match[1])
            path = [(d, name) for d, name in path if d < depth]
            found[match[2]] = (path[-1][1] if path else None, int(match[3]) if match[3] else None)
            path.append((depth, match[2]))
    return found


def test_the_drawing_shows_every_error_under_its_parent_with_its_exit_code() -> None:
    tree = drawn()
    assert set(tree) == set(CLASSES)
    for name, (parent, code) in tree.items():
        assert CLASSES[name].__base__ is (CLASSES[parent] if parent else Exception), name
        if code is not None:
            assert CLASSES[name].exit_code == code, name


def test_every_error_is_documented_with_its_own_words() -> None:
    docs = [error.__doc__ for error in CLASSES.values()]
    assert None not in docs
    assert len(set(docs)) == len(docs)


def test_a_refusal_keeps_every_problem() -> None:
    assert RefusedError("one").problems == ("one",)
    error = ConfigurationError(f"problem {number}" for number in range(3))
    assert error.problems == ("problem 0", "problem 1", "problem 2")
    assert str(error) == "problem 0\nproblem 1\nproblem 2"


def test_a_failure_while_cleaning_up_is_added_and_never_replaces() -> None:
    first = StorageError("cannot be read", path="/dev/x", offset=512)
    second = OSError("no")
    first.add(second, "removing the snapshot")
    assert str(first) == "cannot be read"
    assert first.also == [second]
    assert first.__notes__ == ["while removing the snapshot: no"]
    assert InterruptedRunError("stop").exit_code == 130

"""Which instances a fleet is: names, globs and tags, all checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate

from ..errors import RefusedError
from ..model import Instance
from ..names import expand_name, printable, suggestion

_GLOB = frozenset("*?[")


def select(
    instances: Mapping[str, Instance], *, patterns: Sequence[str], tags: Sequence[str], everything: bool
) -> tuple[list[str], list[str]]:
    """Return the full names that are meant, sorted, and what is wrong with the question, one line each.

    A pattern is a name (a short one that fits one instance will do) or a glob, which is matched with full names and with their
    first labels: ``web?`` fits ``web1.example.com``. With `tags`, only instances that have one of them are meant, of those that
    patterns choose, or of all.
    """
    problems: list[str] = []
    if everything and (patterns or tags):
        problems.append("all_instances: chooses every instance, so no names, globs or tags can be given with it")
    if not everything and not patterns and not tags:
        problems.append("no instances are chosen: give names or globs, or tags, or all_instances")
    problems += [f"tags: {printable(tag)} is had by no instance" for tag in _unused(tags, instances.values())]
    chosen: set[str] = set() if patterns else set(instances)
    short_names = _short_names(instances) if patterns else {}
    for pattern in dict.fromkeys(patterns):
        try:
            chosen |= _matching(pattern, instances, short_names)
        except RefusedError as error:
            problems += error.problems
    if tags:
        wanted = set(tags)
        tagged = {name for name in chosen if not wanted.isdisjoint(instances[name].tags)}
        if chosen and not tagged and not problems:
            problems.append(f"no instance that is named has the tag {' or '.join(map(printable, tags))}")
        chosen = tagged
    if not instances:
        problems.append("no instance is configured")
    return sorted(chosen), problems


def _unused(tags: Sequence[str], instances: Iterable[Instance]) -> list[str]:
    missing = dict.fromkeys(tags)
    for instance in instances if missing else ():
        for tag in instance.tags:
            missing.pop(tag, None)
    return list(missing)


def _short_names(instances: Iterable[str]) -> dict[str, list[str]]:
    """Every start of a full name that ends before a dot, and the full names it fits: a name is looked up, not searched for."""
    found: dict[str, list[str]] = {}
    for name in instances:
        for match in re.finditer(r"\.", name):
            found.setdefault(name[: match.start()], []).append(name)
    return found


def _matching(pattern: object, instances: Mapping[str, Instance], short_names: Mapping[str, list[str]]) -> set[str]:
    if not isinstance(pattern, str):
        raise RefusedError(f"instance name: must be text, not {type(pattern).__name__}")
    if _GLOB.isdisjoint(pattern):
        if pattern in instances:
            return {pattern}
        fitting = short_names.get(pattern, [])
        return {expand_name("instance", pattern, fitting or instances)}
    fits = re.compile(translate(pattern)).match
    found = {name for name in instances if fits(name) or fits(name.partition(".")[0])}
    if not found:
        raise RefusedError(f"{printable(pattern)} fits no instance; {suggestion(pattern, instances)}")
    return found

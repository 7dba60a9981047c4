"""Names, globs and tags, and every problem with them at once."""

from __future__ import annotations

from typing import Any

import pytest

from diskhaul import Instance
from diskhaul.fleet.selection import select

INSTANCES = {
    name: Instance(name=name, node="alpha", tags=tags)
    for name, tags in {
        "web1.example.com": ("prod", "web"),
        "web2.example.com": ("web",),
        "web2.example.org": (),
        "db1.example.com": ("prod",),
    }.items()
}


def chosen(*patterns: str, **more: Any) -> tuple[list[str], list[str]]:
    return select(INSTANCES, patterns=patterns, **({"tags": (), "everything": False} | more))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["web1"], ["web1.example.com"]),
        (["web1", "web1.example.com", "web1.example"], ["web1.example.com"]),
        (["web?"], ["web1.example.com", "web2.example.com", "web2.example.org"]),
        (["*.org", "db[0-9]"], ["db1.example.com", "web2.example.org"]),
    ],
)
def test_names_and_globs(patterns: list[str], names: list[str]) -> None:
    assert chosen(*patterns) == (names, [])


def test_tags_narrow_what_patterns_choose_or_everything() -> None:
    assert chosen("web*", tags=["prod"]) == (["web1.example.com"], [])
    assert chosen(tags=["prod"])[0] == ["db1.example.com", "web1.example.com"]
    assert chosen(tags=["prod", "web"])[0] == ["db1.example.com", "web1.example.com", "web2.example.com"]


def test_everything() -> None:
    assert chosen(everything=True) == (sorted(INSTANCES), [])


def test_all_problems_are_told_together() -> None:
    _, problems = chosen("web3", "web2", "x*", "../etc", tags=["staging"], everything=True)
    assert len(problems) == 6
    text = "\n".join(problems)
    for part in ("all_instances", "'staging'", "'web3' is unknown", "'web2' fits several", "'x*' fits no instance", "'../etc'"):
        assert part in text


@pytest.mark.parametrize("question", [{}, {"patterns": ["db1"], "tags": ["web"]}])
def test_choosing_nothing_is_a_problem(question: dict[str, Any]) -> None:
    names, problems = chosen(*question.pop("patterns", ()), **question)
    assert (names == []) or not question
    assert len(problems) == 1

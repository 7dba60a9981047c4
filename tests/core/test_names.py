"""Names: what is allowed, and what a short one means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.errors import AmbiguousNameError, RefusedError, UnknownNameError
from diskhaul.names import MAX_NAME_BYTES, check_name, expand_name, name_problem, printable, suggestion

BAD = ["../x", "/x", ".", "..", "", "a\0b", "a\nb", "a\n", "-x", ".x", "x" * 300, "a/b", "a b", "a..b", "é", "\x1b[31m", "\ud800"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_could_leave_its_directory_or_fool_a_terminal_is_refused(name: str) -> None:
    problem = name_problem("instance", name)
    assert problem is not None
    assert problem.startswith("instance name ")
    assert problem.isascii()
    assert problem.isprintable()
    with pytest.raises(RefusedError):
        check_name("instance", name)
    with pytest.raises(RefusedError):
        expand_name("instance", name, [name])


@pytest.mark.parametrize("name", ["web1", "web1.example.com", "_x", "1", "a+b", "A-b_c", "x" * MAX_NAME_BYTES])
def test_ordinary_names_are_allowed(name: str) -> None:
    assert name_problem("node", name) is None
    check_name("node", name)


@given(st.text())
def test_an_allowed_name_is_always_one_harmless_path_component(name: str) -> None:
    if name_problem("instance", name) is None:
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set("/\\ \0")
        assert name[0] not in ".-"
        assert 0 < len(name) <= MAX_NAME_BYTES


KNOWN = ["web1.example.com", "web10.example.com", "web1.example.org", "db.example.com", "db"]


def test_a_full_name_means_itself_even_where_longer_ones_begin_with_it() -> None:
    assert expand_name("instance", "web1.example.com", KNOWN) == "web1.example.com"
    assert expand_name("instance", "db", KNOWN) == "db"


def test_a_short_name_means_the_only_one_that_begins_with_it_and_a_dot() -> None:
    assert expand_name("instance", "web10", KNOWN) == "web10.example.com"
    assert expand_name("instance", "web1.example", ["web1.example.com"]) == "web1.example.com"


def test_a_short_name_that_fits_several_lists_them() -> None:
    with pytest.raises(AmbiguousNameError, match=r"fits several: web1\.example\.com, web1\.example\.org") as caught:
        expand_name("instance", "web1", KNOWN)
    assert caught.value.candidates == ("web1.example.com", "web1.example.org")


def test_part_of_a_label_is_not_a_short_name() -> None:
    with pytest.raises(UnknownNameError):
        expand_name("instance", "web", KNOWN)


def test_an_unknown_name_lists_close_ones_or_says_that_there_are_none() -> None:
    with pytest.raises(UnknownNameError, match=r"instance 'web2\.example\.com' is unknown; did you mean web1") as caught:
        expand_name("instance", "web2.example.com", KNOWN)
    assert (caught.value.kind, caught.value.name, caught.value.exit_code) == ("instance", "web2.example.com", 2)
    with pytest.raises(UnknownNameError, match="no node is configured"):
        expand_name("node", "alpha", [])
    with pytest.raises(UnknownNameError, match=r"'qqq' is unknown; there is db, db\.example\.com, web1\.example\.com"):
        expand_name("instance", "qqq", KNOWN)


def test_a_suggestion_is_close_or_lists_some_and_is_safe_for_a_terminal() -> None:
    assert suggestion("fiel", ["block", "file"]) == "did you mean file?"
    assert suggestion("nbd", ["file", "block"]) == "there is block, file"
    assert suggestion("x", [], none="no plugin provides any") == "no plugin provides any"
    assert suggestion("qqq", ["a\x1b[31m"]) == r"there is a\x1b[31m"
    assert suggestion("alpha", ["alpha\n"]) == r"did you mean alpha\n?"
    assert suggestion("qqq", (f"name{number:04}" for number in range(5000))).endswith("name0018, name0019, ...")


@given(st.text())
def test_printable_text_has_nothing_a_terminal_would_act_on(text: str) -> None:
    assert printable(text).isascii()
    assert printable(text).isprintable()

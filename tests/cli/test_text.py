from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.cli.text import count, duration, escape, facts, iec, ratio, table, utc

HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\n\tb\u202e\x9b\udcff\u2028c"


def test_control_characters_and_overrides_are_escaped_and_letters_stay() -> None:
    assert escape(HOSTILE) == r"a\x1b[2J\x1b]0;title\x07\r\n\tb\u202e\x9b\udcff\u2028c"
    assert escape("Bücher-日本 ok") == "Bücher-日本 ok"


@given(st.text(alphabet=st.characters(), max_size=60))
def test_no_text_survives_escaping_with_anything_invisible_in_it(text: str) -> None:
    assert escape(text).isprintable()


def test_a_text_without_end_is_cut() -> None:
    assert escape("x" * 10_000, longest=10) == "xxxxxxxxxx..."


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (10 << 30, "10.0 GiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 62, "4.0 EiB"),
    ],
)
def test_sizes_are_shown_in_iec_units(size: int, text: str) -> None:
    assert iec(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.00 s"), (0.347, "0.35 s"), (12, "12.0 s"), (200.4, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_shown_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ratios_counts_and_moments_read_well() -> None:
    assert ratio(400, 100) == "4.0 to 1"
    assert ratio(0, 100) == ratio(100, 0) == ""
    assert (count(1, "export"), count(0, "export")) == ("1 export", "0 exports")
    assert utc(datetime(2026, 1, 31, 13, 5, tzinfo=UTC)) == "2026-01-31 13:05:00Z"
    assert utc(datetime(2026, 1, 31, 13, 5, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-31 11:05:00Z"


def test_tables_are_aligned_and_each_row_stays_one_line() -> None:
    text = table(("name", "size"), [("web1", "10 B"), (HOSTILE, "2 B")], right=("size",))
    lines = text.split("\n")
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in text


def test_facts_leave_out_what_is_empty() -> None:
    assert facts([("a", 1), ("none", ""), ("long", "x\ny")]) == "  a     1\n  long  x\\ny"

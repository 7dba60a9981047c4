from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.cli.numbers import MAX_COUNT, MAX_SECONDS, parse_count, parse_seconds, parse_size

NOT_NUMBERS = [
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "-1",
    "+1",
    "1e99",
    "1e3",
    "0x10",
    "1_000",
    "1,5",
    ".5",
    "5.",
    "5 s",
    "\u0661",
    "1\n",
    "\x1b[1m1",
]


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "99999999999999999999", str(MAX_SECONDS + 1)])
def test_seconds_that_are_no_plain_number_in_range_are_refused_in_one_visible_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds from 0 to 31622400") as caught:
        parse_seconds(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("90", 90.0), ("0.05", 0.05), ("007", 7.0), (str(MAX_SECONDS), MAX_SECONDS)]
)
def test_plain_seconds_are_taken(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "1.0", str(MAX_COUNT + 1), "9" * 5000])
def test_counts_that_are_no_whole_number_in_range_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number") as caught:
        parse_count(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512B", 512),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("1.5 GiB", 3 << 29),
        ("16M", 16 << 20),
        ("2T", 2 << 40),
        ("0.5P", 1 << 49),
        ("2 tib", 2 << 40),
        ("0.5K", 512),
    ],
)
def test_sizes_are_taken_in_bytes_and_iec_units(text: str, size: int) -> None:
    assert parse_size(text, smallest=0, largest=1 << 50) == size


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "M", "1MB", "1KB", "1P", "0.5", "1.0001K", "9" * 21])
def test_sizes_that_are_none_or_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size from 1 B to 1\.0 TiB"):
        parse_size(text, smallest=1, largest=1 << 40)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_in_bytes_is_taken_exactly(size: int) -> None:
    assert parse_size(str(size), smallest=0, largest=1 << 60) == size


@given(st.text(max_size=30))
def test_whatever_is_typed_gives_a_number_in_range_or_a_clear_refusal(text: str) -> None:
    for parse in (parse_seconds, parse_count):
        try:
            outcome: object = parse(text)
        except ValueError as error:
            outcome = str(error)
        if isinstance(outcome, str):
            assert outcome.isprintable()
            assert " is not a " in outcome
        else:
            assert isinstance(outcome, int | float)
            assert 0 <= outcome <= MAX_SECONDS

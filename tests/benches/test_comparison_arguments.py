"""The arguments of benches/compare.py: what they mean, and what is refused before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from benches.comparison.arguments import parse, parse_size, parser
from benches.comparison.contestants import GROUPS, Place, contestants


def test_without_further_arguments_everything_is_compared_five_times_hot_and_cold() -> None:
    found = parse(["--work", "w"])
    assert found.groups == tuple(GROUPS)
    assert (found.rounds, found.caches, found.size, found.durable) == (5, ("cold", "hot"), 5 << 30, False)
    assert found.work == Path("w").absolute()


def test_groups_can_be_given_together_or_apart_and_keep_their_order() -> None:
    assert parse(["--work", "w", "--group", "restore,compressed"]).groups == ("compressed", "restore")
    assert parse(["--work", "w", "--group", "restore", "--group", "shape"]).groups == ("restore", "shape")


def test_variants_are_further_rows_of_diskhaul_with_their_options() -> None:
    found = parse(["--work", "w", "--variant", "tuned=--profile 'my profile.toml'"])
    assert found.variants == {"tuned": ["--profile", "my profile.toml"]}
    place = Place(work=Path("/w"), disk=Path("/w/disk.raw"), diskhaul="/bin/diskhaul")
    for group in GROUPS:
        rows = {one.name: one for one in contestants(group, place, found.variants)}
        tuned = [one for name, one in rows.items() if name.endswith("-tuned")]
        assert tuned
        for one in tuned:
            assert one.own
            assert one.pipelines[0].stages[0][-2:] == ("--profile", "my profile.toml")
            assert one.versus == "" or one.versus in rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--work DIR is needed"),
        (["--work", "w", "--group", "fast"], "there is no group 'fast'"),
        (["--work", "w", "--size", "1G"], "--trial allows less"),
        (["--work", "w", "--size", "1M", "--trial"], "a disk of less than 64 MiB"),
        (["--work", "w", "--size", "much"], "not a size such as 5G"),
        (["--work", "w", "--size", "4294967297"], "not a multiple of 4 MiB"),
        (["--work", "w", "--rounds", "0"], "not a number of rounds"),
        (["--work", "w", "--rounds", "-1"], "not a number of rounds"),
        (["--work", "w", "--cache", "warm"], "invalid choice: 'warm'"),
        (["--work", "w", "--variant", "fast"], "not NAME=OPTIONS"),
        (["--work", "w", "--variant", "a/b=--x"], "not NAME=OPTIONS"),
        (["--work", "w", "--variant", "a=--x", "--variant", "a=--y"], "the same name twice"),
        (["--work", "w", "--limit", "soon"], "not a number of seconds"),
        (["--work", "w", "--round", "3"], "unrecognized arguments: --round 3"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(given)
    assert refused.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "size"), [("5G", 5 << 30), ("512M", 512 << 20), ("4GiB", 4 << 30), ("1t", 1 << 40), ("100", 100)]
)
def test_sizes_have_units(given: str, size: int) -> None:
    assert parse_size(given) == size


def test_the_help_names_every_group_and_program() -> None:
    text = parser().format_help()
    place = Place(work=Path("/w"), disk=Path("/w/disk.raw"), diskhaul="/bin/diskhaul")
    for group in GROUPS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {group} ")]
        assert line.split()[1:] == [one.name for one in contestants(group, place, {})]


def test_names_are_unique_and_every_reference_takes_part() -> None:
    place = Place(work=Path("/w"), disk=Path("/w/disk.raw"), diskhaul="/bin/diskhaul")
    for group in GROUPS:
        names = [one.name for one in contestants(group, place, {})]
        assert len(names) == len(set(names))
        assert {one.versus for one in contestants(group, place, {})} <= {*names, ""}


def test_the_pipeline_of_ganeti_listens_on_the_loopback_address_only() -> None:
    place = Place(work=Path("/w"), disk=Path("/w/disk.raw"), diskhaul="/bin/diskhaul")
    (ganeti,) = [one for one in contestants("compressed", place, {}) if one.name == "ganeti"]
    receiver, sender = ganeti.commands
    assert "OPENSSL-LISTEN:0,bind=127.0.0.1,pf=ipv4," in receiver
    assert " OPENSSL:127.0.0.1:" in sender
    assert "gzip -1 -c" in sender
    assert receiver.endswith("| gzip -d -c | dd bs=1048576 > /w/out/disk.raw")

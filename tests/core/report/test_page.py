"""The page of a tuning run: whole in one file, true, harmless whatever the names are, with and without plots."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import diskhaul
from diskhaul.records import Profile, TuneResult, TuneRound, TuneTrial
from diskhaul.report import write_tune_report
from diskhaul.report.page import tune_page

MIB = 1 << 20
SEARCHED = {"chunk_size": (MIB, 4 * MIB), "threads": (1, 0, 3), "san.fast": (True, False), "compress": ("zstd:1", "zstd:3")}
DEFAULTS = {"chunk_size": 4 * MIB, "threads": 0, "san.fast": False, "compress": "zstd:1"}
FOUND = {"chunk_size": MIB, "threads": 3, "san.fast": True, "compress": "zstd:1"}


def trial(number: int, settings: dict[str, object], seconds: float, phase: str = "search", problem: str = "") -> TuneTrial:
    return TuneTrial(
        number=number,
        phase=phase,  # type: ignore[arg-type]
        settings=settings,  # type: ignore[arg-type]
        seconds=seconds,
        cpu_seconds=2 * seconds,
        stored_bytes=25 * MIB,
        problem=problem,
    )


def result() -> TuneResult:
    search = [
        trial(1, DEFAULTS, 1.0),
        trial(2, {**DEFAULTS, "threads": 1}, 2.0),
        trial(3, FOUND, 0.8),
        trial(4, {**FOUND, "compress": "zstd:3"}, 0.0, problem="stopped after 3.0 s"),
    ]
    rounds = [
        TuneRound(defaults=trial(5 + 2 * n, DEFAULTS, 1.0, "compare"), found=trial(6 + 2 * n, FOUND, 0.8, "compare"))
        for n in range(3)
    ]
    return TuneResult(
        run_id="r",
        aim="fastest",
        source="/dev/<disk> & \x1b[2J",
        target="/srv/exports",
        method="grid",
        searched=SEARCHED,
        fixed={"memory": 192 * MIB},
        defaults=DEFAULTS,
        found=FOUND,
        better=True,
        ratio=0.8,
        noise=0.01,
        verdict="better than the defaults: 0.800 of the defaults' time",
        profile=Profile(machine={"cpu": "A <CPU>", "memory": 8 << 30}, measurements={"measured": "2026-01-31T12:00:00+00:00"}),
        trials=(*search, *(each for pair in rounds for each in (pair.defaults, pair.found))),
        rounds=tuple(rounds),
        sample_bytes=100 * MIB,
        data_bytes=10 << 30,
        seconds=59.0,
        time_limit_s=60.0,
    )


class Reader(HTMLParser):
    """Gathers the elements of a page, and checks that they are closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_needs_nothing_but_itself_and_nothing_in_it_acts() -> None:
    page = tune_page(result())
    reader = read(page)
    assert reader.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in reader.links)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page.partition("</style>")[0]
    assert "\x1b" not in page
    assert "<disk>" not in page
    assert "/dev/<disk> & \\x1b[2J" in reader.text
    assert "A <CPU>" in reader.text


def test_every_figure_is_there_with_its_unit() -> None:
    text = " ".join(read(tune_page(result())).text.split())
    for shown in (
        "20.0 % less time than with the defaults.",
        "Better than the defaults: 0.800 of the defaults' time",
        "100 / 125",  # MiB/s of defaults and found
        "trials of 100 MiB each, of 10.0 GiB of data",
        "stopped after 3.0 s",
        "memory 192 MiB",
        "successive halving",
    ):
        assert shown in text, shown
    for unit in ("MiB/s, defaults", "CPU s/GiB, found", "stored %"):
        assert unit in text


def test_the_plots_are_whole_pictures_with_labelled_axes_and_a_text_for_those_who_cannot_see_them() -> None:
    images = read(tune_page(result())).images
    labels = (
        {"round (both settings one right after the other)", "speed", "(MiB of the disk per second)", "defaults", "found"},
        {"trial", "speed", "(MiB of the disk per second)", "other settings", "stopped or failed", "comparison"},
        {"chunk_size", "threads", "san.fast", "speed", "(MiB of the disk per second)", "1 MiB", "0 (auto)", "true"},
        {"speed (MiB of the disk per second)", "stored", "(% of what was read)", "zstd:1"},
    )
    for image, wanted in zip(images, labels, strict=True):
        assert image["alt"]
        svg = base64.b64decode(str(image["src"]).partition(",")[2]).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert wanted <= set(re.findall(r"<!-- (.*?) -->", svg)), "what is drawn as text stands in a comment as well"


def test_a_run_that_found_nothing_better_says_so_without_a_comparison() -> None:
    page = tune_page(replace(result(), better=False, ratio=None, rounds=(), found=DEFAULTS, verdict="the defaults stand"))
    text = read(page).text
    assert "The defaults stand." in text
    assert "What was found is not in the profile." in text
    assert "Measured again" not in text


@pytest.mark.parametrize("aim", ["smallest", "least-cpu"])
def test_each_aim_has_its_own_figure(aim: str) -> None:
    page = tune_page(replace(result(), aim=aim))  # type: ignore[arg-type]
    assert "lower is better" in page
    assert len(read(page).images) == 4


def test_a_run_of_a_single_trial_has_a_page(tmp_path: Path) -> None:
    single = replace(result(), trials=(trial(1, DEFAULTS, 1.0),), rounds=(), found=DEFAULTS, better=False, ratio=None)
    assert read(tune_page(single)).images == [] or single.trials
    nothing = replace(single, trials=(trial(1, DEFAULTS, 0.0, problem="broken"), trial(2, FOUND, 0.0, problem="broken")))
    read(tune_page(nothing))


def test_without_matplotlib_the_page_has_tables_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reader = read(tune_page(result()))
    assert reader.images == []
    assert "matplotlib is not installed" in reader.text
    assert "MiB/s, defaults" in reader.text


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_tune_report(result(), tmp_path / "report.html")
    assert read((tmp_path / "report.html").read_text()).text == read(tune_page(result())).text
    with pytest.raises(diskhaul.StorageError, match="cannot be written"):
        write_tune_report(result(), tmp_path / "nowhere/report.html")

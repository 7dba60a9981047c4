"""Bench runs: what they measure, that nothing is left, and what they make of it. Rates themselves are never judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import diskhaul
import diskhaul_native as native
from diskhaul.cancellation import CancellationToken
from diskhaul.events import Event, StageStarted
from diskhaul.operations.benching.data import made_up_sample
from diskhaul.operations.benching.limits import path_limits
from diskhaul.operations.benching.rates import ROUNDS, Work, measure, together
from diskhaul.records import Measurement
from diskhaul.testing import MemoryDisk, MemoryStorage

MIB = 1 << 20
SHORT: Mapping[str, Any] = {"time_limit_s": 1.0, "compressions": ["zstd:1"]}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"some text that compresses; " * 40_000 + os.urandom(2 * MIB))
        file.truncate(16 * MIB)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_everything_is_measured_by_one_thread_and_by_all_and_nothing_is_left(disk: Path, target: Path) -> None:
    before = blake3(disk.read_bytes()).digest(), disk.stat().st_mtime_ns
    result = diskhaul.bench(source=disk, target=target, options=diskhaul.ExportOptions(threads=2, read_ahead=2), **SHORT)
    assert (blake3(disk.read_bytes()).digest(), disk.stat().st_mtime_ns) == before
    assert os.listdir(target) == []
    measured = {(each.name, each.threads): each for each in result.measurements}
    assert len(measured) == len(result.measurements)
    for name in ("memory read", "digest", "compress zstd:1", *(f"zero scan {kernel}" for kernel in native.KERNELS)):
        assert {threads for of, threads in measured if of == name} == {1, 2}
    for name in ("source read", "source read cached"):
        assert {threads for of, threads in measured if of == name} == {1, 4}, "as many as an export starts"
    assert {("target write", 1), ("target read", 1)} <= measured.keys()
    assert all(each.rate > 0 and min(each.rounds) <= each.rate <= max(each.rounds) for each in result.measurements)
    ratio = measured["compress zstd:1", 1].ratio
    assert ratio is not None
    assert 0.3 < ratio < 0.9, "two thirds of it are random"
    assert "page cache" in measured["source read cached", 1].note
    assert "direct I/O" in measured["source read", 1].note

    assert result.predicted_rate == result.limits[0].rate > 0
    assert [limit.rate for limit in result.limits] == sorted(limit.rate for limit in result.limits)
    assert {limit.name for limit in result.limits} >= {"disk"}, "source and target are on one device"
    assert result.machine["source"] == str(disk)
    assert result.options["threads"] == 2


def test_without_disks_the_processor_is_measured_and_nothing_is_predicted() -> None:
    result = diskhaul.bench(**SHORT)
    assert "digest" in {each.name for each in result.measurements}
    assert not any("read" in each.name and "memory" not in each.name for each in result.measurements)
    assert result.predicted_rate == 0
    assert any("made-up data" in note for note in result.notes)
    assert len(result.limits) == 1


def test_a_disk_without_a_descriptor_is_read_through_its_storage() -> None:
    storage = MemoryStorage({"root": MemoryDisk(os.urandom(4 * MIB))})
    source = diskhaul.Disk(storage="memory", options={"name": "root"})
    result = diskhaul.bench(source=source, plugins=[storage], **SHORT)
    (note,) = {each.note for each in result.measurements if each.name == "source read"}
    assert "own reader" in note
    assert not any(each.name == "source read cached" for each in result.measurements)


def test_a_source_of_zeros_is_measured_on_made_up_data(tmp_path: Path) -> None:
    (tmp_path / "zeros.raw").write_bytes(bytes(4 * MIB))
    result = diskhaul.bench(source=tmp_path / "zeros.raw", **SHORT)
    assert any("zeros only" in note for note in result.notes)


def test_a_raw_export_has_no_compression_to_run_into(disk: Path, target: Path) -> None:
    options = diskhaul.ExportOptions(compress="none", bwlimit=1)
    result = diskhaul.bench(source=disk, target=target, options=options, **SHORT)
    assert result.limits[0].name == "bwlimit"
    assert result.predicted_rate == 0.5, "what is read back counts, too"
    assert not any("compression" in limit.name for limit in result.limits)


def test_every_reason_to_refuse_is_told(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(diskhaul.RefusedError) as caught:
        diskhaul.bench(options=diskhaul.ExportOptions(threads=-1), compressions=["lzma"], time_limit_s=0.0)
    assert len(caught.value.problems) == 3
    with pytest.raises(diskhaul.RefusedError) as caught:
        diskhaul.bench(source=tmp_path / "nothing", target=tmp_path / "nowhere", **SHORT)
    assert len(caught.value.problems) == 2


def test_a_cancelled_run_leaves_nothing(disk: Path, target: Path) -> None:
    token = diskhaul.CancellationToken()

    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "measure":
            token.cancel("enough")

    with pytest.raises(diskhaul.InterruptedRunError):
        diskhaul.bench(source=disk, target=target, on_event=stop, cancel=token, **SHORT)
    assert os.listdir(target) == []


def test_a_target_on_the_source_is_refused(loop_filesystem: Callable[..., Any], requires: Callable[..., None]) -> None:
    requires("mkfs.ext4", root=True)
    mounted = loop_filesystem("ext4", size_mib=32)
    with pytest.raises(diskhaul.RefusedError, match="must not be written to"):
        diskhaul.bench(source=mounted.image, target=mounted.path, **SHORT)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_every_work_has_its_turn_in_every_round() -> None:
    told: list[str] = []

    def work(name: str) -> Work:
        return Work(name=name, threads=1, run=lambda seconds: told.append(name) or float(len(told)))  # type: ignore[func-returns-value]

    works = [work("a"), work("b")]
    measure(works, float("inf"), CancellationToken(), lambda number: told.append(str(number)))
    assert told == ["1", "a", "b", "2", "a", "b", "3", "a", "b"]
    assert [len(each.rounds) for each in works] == [ROUNDS, ROUNDS]
    assert works[0].measurement().rate == sorted(works[0].rounds)[1]


def test_when_the_time_is_up_the_first_round_is_still_finished() -> None:
    works = [Work(name=name, threads=1, run=lambda seconds: 1.0) for name in "ab"]
    measure(works, 0.0, CancellationToken(), lambda number: None)
    assert [len(each.rounds) for each in works] == [1, 1]


def test_a_step_is_done_at_least_once_by_each_thread_and_its_failure_is_raised() -> None:
    done: list[int] = []
    assert together(lambda number: done.append(number) or 1, 3, CancellationToken())(0.0) > 0  # type: ignore[func-returns-value]
    assert sorted(done) == [0, 1, 2]

    def fail(number: int) -> int:
        raise OSError(5, "broken")

    for threads in (1, 2):
        with pytest.raises(OSError, match="broken"):
            together(fail, threads, CancellationToken())(0.0)


def test_made_up_data_is_neither_random_nor_empty_and_always_the_same() -> None:
    import zstandard

    chunks = made_up_sample(MIB)
    assert [bytes(chunk) for chunk in chunks] == [bytes(chunk) for chunk in made_up_sample(MIB)]
    assert {len(chunk) for chunk in chunks} == {MIB}
    ratio = len(zstandard.compress(b"".join(chunks), 1)) / (4 * MIB)
    assert 0.3 < ratio < 0.8


# --- what is made of it -----------------------------------------------------------------------------------------------


def measured(**rates: float) -> dict[tuple[str, int], Measurement]:
    found = {}
    for name, rate in rates.items():
        title = name.replace("_", " ").replace("zstd1", "zstd:1")
        threads = 4 if title == "source read" else 1 if title.startswith("target") else 2
        ratio = 0.5 if title.startswith("compress") else None
        found[title, threads] = Measurement(name=title, threads=threads, rate=rate, rounds=(rate,), ratio=ratio)
    return found


RATES = measured(
    source_read=1000.0, target_write=500.0, target_read=1000.0, zero_scan_word=1e9, digest=2000.0, compress_zstd1=500.0
)


def limits(options: diskhaul.ExportOptions | None = None, *, one_device: bool = False) -> dict[str, float]:
    found = path_limits(RATES, options or diskhaul.ExportOptions(), threads=2, readers=4, kernel="word", one_device=one_device)
    return {limit.name: limit.rate for limit in found}


def test_each_limit_follows_from_what_a_byte_of_the_disk_asks_for() -> None:
    found = limits()
    # Compressed once; digested once, and what is stored of it twice.
    assert found["CPU, mostly compression zstd:1"] == pytest.approx(1 / (1 / 500 + 2 / 2000), rel=1e-3)
    assert found["source read"] == pytest.approx(1000)
    # Half a byte is written, and read back.
    assert found["target"] == pytest.approx(1 / (0.5 / 500 + 0.5 / 1000))
    assert list(found) == ["CPU, mostly compression zstd:1", "target", "source read"]


def test_without_verification_nothing_is_read_back_or_digested_again() -> None:
    found = limits(diskhaul.ExportOptions(verify="none"))
    assert found["target"] == pytest.approx(1000)
    assert found["CPU, mostly compression zstd:1"] == pytest.approx(1 / (1 / 500 + 1.5 / 2000), rel=1e-3)


def test_on_one_device_reading_and_writing_share_its_time() -> None:
    found = limits(one_device=True)
    assert found["disk"] == pytest.approx(1 / (1 / 1000 + 0.5 / 500 + 0.5 / 1000))
    assert "target" not in found

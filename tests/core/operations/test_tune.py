"""Tuning runs, whole: on a small real disk, with real exports.

They end because there is nothing left to search, or since enough has been written, so nothing depends on how fast they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import diskhaul
from diskhaul.events import Event, StageStarted, TrialFinished
from diskhaul.operations.tuning.trial_log import read_log
from diskhaul.profile import load_profile

MIB = 1 << 20
FIXED: Mapping[str, Any] = {"chunk_size": MIB, "threads": 1, "read_ahead": 0}
"""What leaves only direct I/O to be searched: two settings."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    text = b"some text that compresses, as most things do; " * 1000
    with path.open("wb") as file:
        for number in range(64):
            file.write(text[number:] + os.urandom(20_000))
        file.truncate(16 * MIB)  # ends in a hole
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def tune(disk: Path, target: Path, tmp_path: Path) -> Callable[..., diskhaul.TuneResult]:
    def run(**asked: Any) -> diskhaul.TuneResult:
        usual: dict[str, Any] = {
            "source": disk,
            "target": target,
            "time_limit_s": 1000.0,
            "fixed": FIXED,
            "out": tmp_path / "profile.toml",
            "write_limit": 16 * MIB,  # of some 1.3 MiB each
        }
        return diskhaul.tune(**(usual | asked))

    return run


Tune = Callable[..., diskhaul.TuneResult]


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_run_leaves_a_profile_and_its_trials_and_nothing_else(
    tune: Tune, disk: Path, target: Path, tmp_path: Path, search: str
) -> None:
    before = blake3(disk.read_bytes()).digest(), disk.stat().st_mtime_ns
    events: list[Event] = []
    result = tune(search=search, on_event=events.append)
    assert (blake3(disk.read_bytes()).digest(), disk.stat().st_mtime_ns) == before
    assert os.listdir(target) == []
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "profile.toml", "profile.toml.trials", "target"]

    assert result.method == search
    assert result.searched == {"direct_io": ("auto", "never")}
    assert result.defaults == {"direct_io": "auto"}
    assert {trial.settings["direct_io"] for trial in result.trials} == {"auto", "never"}
    assert [trial.number for trial in result.trials] == list(range(1, len(result.trials) + 1))
    assert {trial.problem.partition(" after")[0] for trial in result.trials} <= {"", "stopped"}, "slow ones are stopped"
    worked = any(trial.settings["direct_io"] == "never" for trial in result.trials if not trial.problem)
    assert result.found == {"direct_io": "never" if worked else "auto"}
    assert len(result.rounds) >= (3 if worked else 0)
    assert all(each.defaults.settings == result.defaults and each.found.settings == result.found for each in result.rounds)
    assert 0 < result.sample_bytes == result.data_bytes < 16 * MIB

    profile = load_profile(tmp_path / "profile.toml")
    assert profile.export == result.profile.export == {**FIXED, "direct_io": "never" if result.better else "auto"}
    assert {"cpu", "cores", "kernel", "memory", "diskhaul", "source", "target"} <= profile.machine.keys()
    assert profile.measurements["verdict"] == result.verdict
    assert profile.measurements["not_searched"]["compress"] == "zstd:1"  # type: ignore[index]
    assert read_log(Path(result.trials_path))[1] == list(result.trials)

    first = [min(each.defaults, each.found, key=lambda trial: trial.number).settings for each in result.rounds]
    assert first[:3] == [result.defaults, result.found, result.defaults][: len(first)], "they take turns"
    numbers = sorted(number for each in result.rounds for number in (each.defaults.number, each.found.number))
    assert numbers == [trial.number for trial in result.trials if trial.phase == "compare"]

    told = [event for event in events if isinstance(event, TrialFinished)]
    assert [(event.number, event.settings) for event in told] == [(trial.number, trial.settings) for trial in result.trials]
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    compared = ["compare"] if worked else []
    assert stages == ["prerequisites", "baseline", "search", "confirm", *compared, "report"]


def test_without_files_to_write_nothing_is_written(tune: Tune, tmp_path: Path) -> None:
    result = tune(out=None)
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "target"]
    assert (result.profile_path, result.trials_path, result.report_path) == ("", "", "")
    assert result.written_bytes <= 16 * MIB


@pytest.mark.parametrize("missing", [("optuna",), ("matplotlib",)])
def test_everything_works_without_what_the_extra_brings(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    result = tune(report=tmp_path / "report.html")
    assert result.method == ("grid" if "optuna" in missing else "optuna")
    page = (tmp_path / "report.html").read_text()
    assert ("data:image/svg+xml" in page) == ("matplotlib" not in missing)
    assert ("matplotlib is not installed" in page) == ("matplotlib" in missing)


def test_optuna_that_is_asked_for_and_missing_is_refused(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(diskhaul.RefusedError, match=r"optuna is not installed.*--search grid"):
        tune(search="optuna")


def test_the_smallest_is_smaller_and_keeps_within_its_time(tune: Tune) -> None:
    fixed = {**FIXED, "direct_io": "never"}
    result = tune(aim="smallest", within_ratio=100.0, compress_range=["zstd:-5", "zstd:12"], fixed=fixed, write_limit=24 * MIB)
    assert result.searched == {"compress": ("zstd:1", "zstd:-5", "zstd:12")}
    assert result.better
    assert result.profile.export["compress"] == "zstd:12"
    assert result.ratio is not None
    assert result.ratio < 0.998
    impossible = tune(aim="smallest", within_ratio=0.01, compress_range=["zstd:12"], fixed=fixed)
    assert not impossible.better
    assert impossible.profile.export["compress"] == "zstd:1"


# --- interrupted, and resumed -----------------------------------------------------------------------------------------


def stopping_after(count: int, token: diskhaul.CancellationToken) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, TrialFinished) and event.number >= count:
            token.cancel("enough")

    return listen


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_an_interrupted_run_leaves_only_its_trials_and_can_be_resumed(
    tune: Tune, target: Path, tmp_path: Path, search: str
) -> None:
    token = diskhaul.CancellationToken()
    with pytest.raises(diskhaul.InterruptedRunError) as caught:
        tune(search=search, cancel=token, on_event=stopping_after(5, token))
    assert os.listdir(target) == []
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "profile.toml.trials", "target"]
    assert any("--resume" in note for note in caught.value.__notes__)
    _, kept = read_log(tmp_path / "profile.toml.trials")
    assert len(kept) >= 5

    result = tune(search=search, resume=True)
    assert list(result.trials[: len(kept)]) == kept
    assert len(result.trials) > len(kept)
    assert result.trials[len(kept)].settings == result.defaults, "measured again, as the machine may not be as it was"
    assert [trial.number for trial in result.trials] == list(range(1, len(result.trials) + 1))
    assert (tmp_path / "profile.toml").exists()

    token = diskhaul.CancellationToken()
    with pytest.raises(diskhaul.InterruptedRunError):
        tune(search=search, cancel=token, on_event=stopping_after(1, token))
    assert len(read_log(tmp_path / "profile.toml.trials")[1]) < len(kept), "begun anew"
    assert (tmp_path / "profile.toml").exists(), "the profile of the run before is still there"


def test_only_a_run_of_the_same_thing_is_resumed(tune: Tune, disk: Path, tmp_path: Path) -> None:
    with pytest.raises(diskhaul.RefusedError, match="nothing to resume"):
        tune(resume=True)
    token = diskhaul.CancellationToken()
    with pytest.raises(diskhaul.InterruptedRunError):
        tune(cancel=token, on_event=stopping_after(1, token))
    for other, named in (
        ({"aim": "least-cpu"}, "aim"),
        ({"fixed": {**FIXED, "threads": 2}}, "fixed settings"),
        ({"fixed": {"chunk_size": MIB, "threads": 1}}, "search space"),
        ({"target": tmp_path}, "target"),
    ):
        with pytest.raises(diskhaul.RefusedError, match=f"another {named}"):
            tune(resume=True, **other)
    with disk.open("r+b") as file:
        file.seek(15 * MIB)
        file.write(b"x" * MIB)
    with pytest.raises(diskhaul.RefusedError, match="another source content"):
        tune(resume=True)


# --- refused, failed --------------------------------------------------------------------------------------------------


def test_every_reason_to_refuse_is_told_and_nothing_is_touched(tune: Tune, tmp_path: Path) -> None:
    with pytest.raises(diskhaul.RefusedError) as caught:
        tune(aim="best", resume=True, out=None)
    assert len(caught.value.problems) == 2
    with pytest.raises(diskhaul.RefusedError, match="nowhere is not a directory"):
        tune(target=tmp_path / "nowhere")
    with pytest.raises(diskhaul.RefusedError, match="does not exist"):
        tune(source=tmp_path / "nothing.raw")
    with pytest.raises(diskhaul.RefusedError, match="nothing is left to be searched"):
        tune(fixed={**FIXED, "direct_io": "never"})
    (tmp_path / "empty.raw").touch()
    os.truncate(tmp_path / "empty.raw", MIB)
    with pytest.raises(diskhaul.RefusedError, match="holds no data"):
        tune(source=tmp_path / "empty.raw")
    (tmp_path / "profile.toml").write_text("[cluster]\n")
    with pytest.raises(diskhaul.RefusedError, match="no profile that could be replaced"):
        tune()
    assert (tmp_path / "profile.toml").read_text() == "[cluster]\n"
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "empty.raw", "profile.toml", "target"]


def test_a_target_on_the_source_is_refused(
    tune: Tune, loop_filesystem: Callable[..., Any], requires: Callable[..., None]
) -> None:
    requires("mkfs.ext4", root=True)
    mounted = loop_filesystem("ext4", size_mib=32)
    with pytest.raises(diskhaul.RefusedError, match="must not be written to"):
        tune(source=mounted.image, target=mounted.path)


class Failing:
    """A storage whose disk cannot be read, or not with some option."""

    def __init__(self, content: bytes, broken: Callable[[Mapping[str, Any]], bool]) -> None:
        self.content, self.broken = content, broken

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterator[diskhaul.StorageSpec]:
        yield diskhaul.StorageSpec(name="failing", create=lambda context: _Failing(self, context.options))

    @diskhaul.hookimpl
    def diskhaul_tunables(self) -> Iterator[diskhaul.Tunable]:
        yield diskhaul.Tunable(backend="failing", option="mode", values=("good", "bad"), default="good")


class _Failing:
    def __init__(self, plugin: Failing, options: Mapping[str, Any]) -> None:
        self.plugin, self.options = plugin, options

    def open(self, disk: diskhaul.Disk) -> _Failing:
        return self

    @property
    def size(self) -> int:
        return len(self.plugin.content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self.plugin.broken(self.options):
            raise OSError(5, "broken")
        buffer[:] = self.plugin.content[offset : offset + len(buffer)]


FAILING = diskhaul.Disk(storage="failing")


def test_defaults_that_do_not_work_fail_the_run_and_leave_nothing(tune: Tune, target: Path, tmp_path: Path) -> None:
    with pytest.raises(diskhaul.OperationFailedError, match=r"with the defaults failed.*broken"):
        tune(source=FAILING, plugins=[Failing(bytes(MIB), lambda options: True)])
    assert os.listdir(target) == []
    assert "profile.toml" not in os.listdir(tmp_path)


def test_settings_that_do_not_work_are_no_candidates_and_do_not_end_the_run(tune: Tune) -> None:
    plugin = Failing(os.urandom(MIB), lambda options: options.get("mode") == "bad")
    result = tune(source=FAILING, plugins=[plugin], fixed={**FIXED, "direct_io": "auto"})
    assert result.searched == {"failing.mode": ("good", "bad")}
    assert {trial.settings["failing.mode"] for trial in result.trials if trial.problem} == {"bad"}
    assert {trial.settings["failing.mode"] for trial in result.trials if not trial.problem} == {"good"}
    assert not result.better
    assert result.profile.backend_options == {"failing": {"mode": "good"}}


# --- plugins, instances -----------------------------------------------------------------------------------------------


class HashingStorage:
    """A storage that takes as much CPU as its option says: it digests every buffer so many times."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.seen: set[int] = set()

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterator[diskhaul.StorageSpec]:
        yield diskhaul.StorageSpec(name="hashing", create=lambda context: _Hashing(self, int(context.options.get("times", 40))))

    @diskhaul.hookimpl
    def diskhaul_tunables(self) -> Iterator[diskhaul.Tunable]:
        yield diskhaul.Tunable(backend="hashing", option="times", values=(1, 10, 40), default=40)


class _Hashing:
    def __init__(self, plugin: HashingStorage, times: int) -> None:
        self.plugin, self.times = plugin, times

    def open(self, disk: diskhaul.Disk) -> _Hashing:
        return self

    @property
    def size(self) -> int:
        return len(self.plugin.content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.plugin.seen.add(self.times)
        buffer[:] = self.plugin.content[offset : offset + len(buffer)]
        for _ in range(self.times):
            blake3(buffer).digest()


def test_an_option_of_a_plugin_that_matters_is_found_and_used_through_the_profile(
    tune: Tune, target: Path, tmp_path: Path
) -> None:
    plugin = HashingStorage(os.urandom(4 * MIB))
    source = diskhaul.Disk(storage="hashing")
    fixed = {**FIXED, "direct_io": "auto"}
    result = tune(source=source, plugins=[plugin], fixed=fixed, aim="least-cpu", write_limit=60 * MIB)
    assert result.searched == {"hashing.times": (1, 10, 40)}
    assert plugin.seen == {1, 10, 40}
    assert result.better
    assert result.found == {"hashing.times": 1}
    assert result.ratio is not None
    assert result.ratio < 0.6

    profile = load_profile(tmp_path / "profile.toml")
    assert profile.backend_options == {"hashing": {"times": 1}}
    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name="alpha", export_dir=target)],
        instances=[diskhaul.Instance(name="web1", node="alpha", state="down", disks=[source])],
    )
    plugin.seen.clear()
    tuned = diskhaul.with_profile(cluster, profile)
    exported = diskhaul.export("web1", node="alpha", config=tuned, plugins=[plugin])
    assert exported.export is not None
    assert plugin.seen == {1}


def test_all_disks_of_an_instance_are_tuned_for_with_the_cluster_s_defaults(tune: Tune, disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(os.urandom(MIB))
    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        compression=["zstd"],
        defaults={"compress": "zstd:3", "direct_io": "never", "remove_instance": True},
        nodes=[diskhaul.Node(name="alpha", export_dir=tmp_path / "exports")],
        instances=[
            diskhaul.Instance(name="web1.example.com", node="alpha", disks=[diskhaul.Disk(path=p) for p in (disk, other)])
        ],
    )
    result = tune(source=None, instance="web1", config=cluster)
    assert result.defaults == {"direct_io": "never"}
    assert result.fixed["compress"] == "zstd:3"
    assert result.data_bytes > MIB
    assert disk.exists()
    assert not (tmp_path / "state").exists(), "locks and journal of the trials were below the target"
    with pytest.raises(diskhaul.RefusedError, match="allows zstd, not none"):
        tune(source=None, instance="web1", config=cluster, compress_range=["none", "zstd:1"])
    with pytest.raises(diskhaul.UnknownNameError):
        tune(source=None, instance="web2", config=cluster)
    with pytest.raises(diskhaul.RefusedError, match="give a configuration"):
        tune(source=None, instance="web1")

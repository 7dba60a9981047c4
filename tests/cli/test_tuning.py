"""``bench`` and ``tune`` as they are typed, and profiles given to the commands that take them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.cli.tuning import parse_within

from .conftest import ENVIRONMENT, Lab, Ran, take_signals_as_from_a_shell

MIB = 1 << 20
KEPT = ("--chunk-size", "1M", "--threads", "1", "--read-ahead", "0", "--write-limit", "16M", "--time", "1000")

Run = Callable[..., Ran]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB) + b"text that compresses " * 10_000)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("text", "meant"), [("300", (300.0, None)), ("90s", (90.0, None)), ("1.5x", (None, 1.5)), ("2x", (None, 2.0))]
)
def test_within_is_seconds_or_a_ratio(text: str, meant: tuple[float | None, float | None]) -> None:
    assert parse_within(text) == meant


@pytest.mark.parametrize("text", ["", "x", "0x", "0", "-1x", "nanx", "1e3x", "fast"])
def test_what_is_neither_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number of seconds"):
        parse_within(text)


def test_tune_writes_a_profile_that_export_plan_and_import_take(diskhaul: Run, lab: Lab, tmp_path: Path, target: Path) -> None:
    lab.disk.write_bytes(os.urandom(MIB) + b"text that compresses " * 10_000)
    profile, report = tmp_path / "p.toml", tmp_path / "r.html"
    tuned = diskhaul(
        "--config", lab.config, "tune", "--instance", "web1", "--target", target, "--out", profile, "--report", report, *KEPT
    )
    assert tuned.code == 0, tuned.err
    assert f"profile       {profile}" in tuned.out
    assert "direct_io" in tuned.out
    assert "trial 2: " in tuned.err
    assert os.listdir(target) == []
    assert report.read_text().startswith("<!DOCTYPE html>")
    written = tomllib.loads(profile.read_text())
    assert written["export"].keys() == {"chunk_size", "threads", "read_ahead", "direct_io"}

    config = ("--config", lab.config)
    plan = diskhaul(*config, "--json", "plan", "web1", "--node", "beta", "--profile", profile, "--threads", "3").document
    assert (plan["options"]["chunk_size"], plan["options"]["threads"]) == (MIB, 3), "what is given beats the profile"
    exported = diskhaul(*config, "--json", "export", "web1", "--node", "beta", "--profile", profile).document
    assert exported["plan"]["options"]["chunk_size"] == MIB
    restored = diskhaul(*config, "import", "web1", "--to-dir", tmp_path / "restored", "--profile", profile)
    assert restored.code == 0, restored.err
    assert (tmp_path / "restored/disk-0.raw").read_bytes() == lab.disk.read_bytes()


@pytest.mark.parametrize("command", [("export", "web1", "--node", "beta"), ("import", "web1"), ("bench",)])
def test_a_profile_with_a_mistake_is_refused_with_file_and_key(
    diskhaul: Run, lab: Lab, tmp_path: Path, command: tuple[str, ...]
) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text("[export]\nthread = 1\nmemory = 3\n")
    before = lab.state()
    refused = diskhaul("--config", lab.config, *command, "--profile", profile)
    assert refused.code == 2
    assert refused.problems == [
        f"diskhaul: {profile}: export.thread: is not an option of a profile; did you mean threads?",
        f"diskhaul: {profile}: export.memory: must be from 16777216 to 1099511627776, not 3",
    ]
    assert lab.state() == before


def test_tune_prints_one_document_with_json(diskhaul: Run, disk: Path, target: Path) -> None:
    ran = diskhaul("--json", "tune", "--source", disk, "--target", target, "--search", "grid", *KEPT)
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["exit_code"] == 0
    assert document["method"] == "grid"
    assert document["searched"] == {"direct_io": ["auto", "never"]}
    assert document["trials"][0]["settings"] == {"direct_io": "auto"}
    assert document["profile"]["export"]["chunk_size"] == MIB
    assert document["profile_path"] == "profile.toml"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tune_leaves_nothing_but_its_trials_and_is_resumed(
    diskhaul: Run, disk: Path, target: Path, tmp_path: Path, number: signal.Signals
) -> None:
    profile = tmp_path / "p.toml"
    arguments = ["tune", "--source", str(disk), "--target", str(target), "--out", str(profile), *KEPT]
    process = subprocess.Popen(
        [sys.executable, "-m", "diskhaul", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_signals_as_from_a_shell,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "trial 2: " in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "go on with --resume" in err
    assert os.listdir(target) == []
    assert not profile.exists()
    kept = (tmp_path / "p.toml.trials").read_text().splitlines()
    assert len(kept) >= 3
    assert json.loads(kept[1])["number"] == 1

    resumed = diskhaul("--json", *arguments, "--resume")
    assert resumed.code == 0, resumed.err
    assert len(resumed.document["trials"]) > len(kept) - 1
    assert (tmp_path / "p.toml.trials").read_text().splitlines()[: len(kept)] == kept
    assert profile.exists()


def test_tune_refuses_what_makes_no_sense_in_a_line_each(diskhaul: Run, disk: Path, target: Path, tmp_path: Path) -> None:
    ran = diskhaul("tune", "--source", disk, "--instance", "web1", "--target", target, "--resume", "--aim", "least-cpu")
    assert ran.code == 2
    assert "configuration" in ran.err, "an instance needs one"
    ran = diskhaul("tune", "--target", tmp_path / "nowhere", "--within", "2x", "--compress-range", "zstd:9..1")
    assert ran.code == 2
    assert [line.split(": ")[1] for line in ran.problems] == ["--within", "--source", "--compress-range"]
    ran = diskhaul("tune", "--source", disk, "--target", target, "--time", "0.5", "--within", "fast")
    assert ran.code == 2
    assert len(ran.problems) == 2


def test_bench_shows_rates_the_limit_and_what_is_next(diskhaul: Run, disk: Path, target: Path) -> None:
    ran = diskhaul("bench", "--source", disk, "--target", target, "--time", "1", "--compress", "zstd:3")
    assert ran.code == 0, ran.err
    for shown in (
        "source read",
        "target write",
        "memory read",
        "zero scan",
        "digest",
        "compress zstd:3",
        "<- the limit",
        "; next: ",
    ):
        assert shown in ran.out
    assert os.listdir(target) == []
    document = diskhaul("bench", "--json", "--time", "1").document
    assert document["predicted_rate"] == 0
    assert {"name", "threads", "rate", "rounds"} <= document["measurements"][0].keys()

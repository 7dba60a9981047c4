"""The commands on a real cluster, each run a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from diskhaul.demo import make_demo

from .conftest import ENVIRONMENT, Lab, Ran, take_signals_as_from_a_shell

Run = Callable[..., Ran]


@pytest.fixture
def exported(diskhaul: Run, lab: Lab) -> Path:
    """One export of web1 on beta."""
    ran = diskhaul("--config", lab.config, "--json", "export", "web1", "--node", "beta")
    assert ran.code == 0, ran.err
    return Path(ran.document["export"]["path"])


def test_an_export_is_listed_shown_verified_restored_pruned_and_removed(diskhaul: Run, lab: Lab, exported: Path) -> None:
    def run(*arguments: str | Path) -> Ran:
        return diskhaul("--config", lab.config, *arguments)

    name = f"web1.example.com@{exported.name}"
    assert exported.parent == lab.path / "beta/web1.example.com"

    listed = run("list")
    assert (listed.code, listed.err) == (0, "")
    (line,) = listed.out.splitlines()[1:]
    assert line.split()[:3] == ["web1.example.com", exported.name, "beta"]
    assert line.endswith("valid")
    assert run("--quiet", "list", "--node", "beta").out == listed.out
    partly = diskhaul("--config", lab.with_offline_node(), "list")
    assert (partly.code, partly.out) == (4, listed.out)
    assert "warning: node offline" in partly.err
    assert run("list", "--node", "alpha").out == "No exports.\n"

    assert "disks[0].root_digest" in run("show", name).out
    assert run("--json", "show", str(exported)).document["manifest"]["instance"]["name"] == "web1.example.com"

    verified = run("verify", name, "--node", "beta")
    assert (verified.code, verified.out.splitlines()[-1].split(",")[0]) == (0, "Checked 1 export")

    restored = lab.path / "restored"
    imported = run("import", name, "--to-dir", restored, "--node", "beta")
    assert imported.code == 0, imported.err
    assert str(restored / "disk-0.raw") in imported.out
    assert (restored / "disk-0.raw").read_bytes() == lab.disk.read_bytes()
    assert (restored / "disk-0.raw").stat().st_blocks * 512 < 4 << 20, "holes come back as holes"

    pruned = run("--json", "prune", "web1", "--node", "beta", "--keep-last", "1")
    assert [record["export_id"] for record in pruned.document["kept"]] == [exported.name]
    would = run("remove", "--all", "web1", "--node", "beta", "--dry-run")
    assert would.out.splitlines() == [f"Would remove {name} on beta", "Dry run: nothing was changed."]
    assert exported.is_dir()
    assert run("remove", name, "--node", "beta").out == f"Removed {name} on beta\n"
    assert not exported.exists()
    assert run("recover").out == "Nothing to recover.\n"


def test_an_export_prints_what_it_did_on_standard_output_and_progress_elsewhere(diskhaul: Run, lab: Lab, tmp_path: Path) -> None:
    events = tmp_path / "events"
    ran = diskhaul("--config", lab.config, "export", "web1", "--node", "beta", "--events", events)
    assert ran.code == 0
    shown = dict(line.split(None, 1) for line in ran.out.splitlines()[1:])
    assert Path(shown["export"]).is_dir()
    assert shown["written"].endswith("to 1)")
    assert "diskhaul: sending disk 0: all of 8.0 MiB" in ran.err
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert {line["event"] for line in lines} >= {"stage-started", "stage-finished", "disk-progress"}
    assert len({line["run_id"] for line in lines}) == 1
    assert stat.S_IMODE(events.stat().st_mode) == 0o600


def test_quiet_says_nothing_when_all_is_well(diskhaul: Run, lab: Lab) -> None:
    assert diskhaul("--config", lab.config, "--quiet", "export", "web1", "--node", "beta") == Ran(0, "", "")


def test_plans_and_dry_runs_change_nothing(diskhaul: Run, lab: Lab) -> None:
    before = lab.state()
    plan = diskhaul("--config", lab.config, "--json", "plan", "web1", "--node", "beta")
    assert plan.code == 0
    assert plan.document["disks"][0]["size"] == 8 << 20
    dry = diskhaul("--config", lab.config, "export", "web1", "--node", "beta", "--dry-run")
    assert dry.code == 0
    assert dry.out.endswith("Dry run: nothing was changed.\n")
    assert lab.state() == before


def test_an_option_that_is_not_given_leaves_the_configuration_s_default_and_one_that_is_overrides_it(
    diskhaul: Run, lab: Lab
) -> None:
    lab.config.write_text(lab.config.read_text() + '\n[defaults]\ncompress = "none"\nverify = "full"\nlong_sleep = true\n')

    def options(*given: str) -> dict[str, Any]:
        planned: dict[str, Any] = diskhaul("--config", lab.config, "--json", "plan", "web1", "--node", "beta", *given).document
        return {name: planned["options"].get(name) for name in ("compress", "verify")}

    assert options() == {"compress": "none", "verify": "full"}
    assert options("--compress", "zstd:3", "--no-long-sleep") == {"compress": "zstd:3", "verify": "full"}
    assert diskhaul("--config", lab.config, "--quiet", "export", "web1", "--node", "beta").code == 0
    assert list((lab.path / "beta/web1.example.com").glob("*/disk-0.raw"))


def test_a_damaged_export_is_exit_code_6_with_disk_and_offset(diskhaul: Run, lab: Lab, exported: Path) -> None:
    data = exported / "disk-0.raw.zst"
    spoiled = bytearray(data.read_bytes())
    spoiled[20] ^= 1
    data.write_bytes(spoiled)
    verified = diskhaul("--config", lab.config, "--quiet", "verify", "--node", "beta")
    assert verified.code == 6
    assert f"{exported}: disk 0 offset 0: " in verified.out
    imported = diskhaul("--json", "import", exported, "--to-dir", lab.path / "restored")
    assert imported.code == 6
    (finding,) = imported.document["error"]["findings"]
    assert (finding["disk"], finding["offset"]) == (0, 0)


def test_a_directory_is_restored_without_any_configuration(diskhaul: Run, lab: Lab, exported: Path) -> None:
    target = lab.path / "target.raw"
    ran = diskhaul("import", exported, "--disk", f"0={target}")
    assert ran.code == 0, ran.err
    assert target.read_bytes() == lab.disk.read_bytes()
    again = diskhaul("import", exported, "--disk", f"0={target}")
    assert again.code == 2, "it exists, and there is no --force"
    assert diskhaul("import", exported, "--disk", f"0={target}", "--force").code == 0


def test_removing_several_is_refused_as_a_whole_or_done_as_a_whole(diskhaul: Run, lab: Lab, exported: Path) -> None:
    name = f"web1.example.com@{exported.name}"
    missing = "web1.example.com@20200101T000000Z-00000000"
    refused = diskhaul(
        "--config", lab.config, "--quiet", "remove", name, missing, "nobody@20200101T000000Z-00000000", "--node", "beta"
    )
    assert refused.code == 2
    assert len(refused.problems) == 2
    assert exported.is_dir()
    assert diskhaul("--config", lab.config, "--quiet", "export", "web1", "--node", "beta").code == 0
    (other,) = {path.name for path in exported.parent.iterdir()} - {exported.name}
    removed = diskhaul("--config", lab.config, "--json", "remove", name, f"web1.example.com@{other}", name, "--node", "beta")
    assert removed.code == 0, removed.err
    assert {record["export_id"] for record in removed.document["removed"]} == {exported.name, other}


def test_terminal_escapes_in_a_store_are_escaped_in_listings(diskhaul: Run, lab: Lab, exported: Path) -> None:
    text = (exported / "manifest.json").read_text()
    (exported / "manifest.json").write_text(text.replace('"lab"', '"\\u001b[2J\\n"', 1).replace('"zstd:1"', '"\\u001b[31m"'))
    for arguments in (["list"], ["show", f"web1.example.com@{exported.name}"], ["verify"], ["show", str(exported)]):
        ran = diskhaul("--config", lab.config, "--no-progress", *arguments, "--node", "beta")
        assert all(line.isprintable() for line in (ran.out + ran.err).splitlines()), arguments


def test_a_reader_of_the_list_may_leave_early(diskhaul: Run, lab: Lab, exported: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "diskhaul", "--config", lab.config, "list", "--node", "beta"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
    process.stderr.close()


def test_plugins_and_doctor_tell_what_is_there_and_what_is_wrong(diskhaul: Run, lab: Lab) -> None:
    listed = diskhaul("--json", "plugins")
    assert listed.code == 0
    names = {(backend["stage"], backend["name"]) for backend in listed.document["backends"]}
    assert {("inventory", "toml"), ("runtime", "command"), ("storage", "file"), ("lock", "file"), ("cleanup", "others")} <= names
    assert all(backend["origin"] == "built-in" and backend["summary"] for backend in listed.document["backends"])
    header, *rows = diskhaul("plugins").out.splitlines()
    assert header.split() == ["stage", "backend", "from", "works", "here", "summary"]
    assert len(rows) == len(names)

    well = diskhaul("doctor")
    assert well.code == 0
    assert well.out.endswith("No problems found.\n")
    lab.config.write_text(lab.config.read_text().partition('[instances."empty.example.com"]')[0])
    before = lab.state()
    assert diskhaul("--config", lab.config, "doctor").code == 0
    assert lab.state() == before
    assert not (lab.path / "state").exists()
    shutil.rmtree(lab.path / "beta")
    lab.config.write_text(lab.config.read_text().replace('runtime = "none"', 'runtime = "nobody"', 1))
    ill = diskhaul("--config", lab.config, "--json", "doctor")
    assert ill.code == 2
    problems = "\n".join(ill.document["problems"])
    assert "there is no runtime backend 'nobody'" in problems
    assert f"{lab.path}/beta" in problems


def test_doctor_says_what_would_keep_exports_from_working(diskhaul: Run, lab: Lab) -> None:
    disks = 'path = "disks/web1.raw"'
    lab.config.write_text(lab.config.read_text().replace(disks, disks + '\nsnapshot = "btrfs"', 1))
    (lab.path / "beta" / ".diskhaul-store").write_text("not a uuid")
    ran = diskhaul("--config", lab.config, "--json", "doctor")
    assert ran.code == 2
    problems = ran.document["problems"]
    assert len(problems) == 4, problems  # two nodes share the damaged store
    assert any("empty.example.com" in line and "has no disks" in line for line in problems)
    assert any("web1.example.com: disk 0" in line and "snapshot btrfs" in line for line in problems)
    assert any(".diskhaul-store: does not hold the store's identity" in line for line in problems)


def test_doctor_says_that_a_clean_up_cannot_be_made(diskhaul: Run, lab: Lab) -> None:
    lab.config.write_text(lab.config.read_text().replace('cleanup = "none"', 'cleanup = "keep"'))
    ran = diskhaul("--config", lab.config, "--json", "doctor")
    assert ran.code == 2
    assert any("backend_options.keep: keeps nothing" in line for line in ran.document["problems"])


def test_a_store_that_lost_its_identity_is_told_and_its_exports_are_listed(diskhaul: Run, lab: Lab) -> None:
    assert diskhaul("--config", lab.config, "export", "web1", "--node", "beta").code == 0
    (lab.path / "beta" / ".diskhaul-store").write_text("not a uuid")
    ran = diskhaul("--config", lab.config, "list")
    assert ran.code == 4
    assert "web1.example.com" in ran.out
    assert "does not hold the store's identity" in ran.err
    assert "remove it, and a new one will be made" in ran.err
    (lab.path / "beta" / ".diskhaul-store").unlink()
    assert diskhaul("--config", lab.config, "verify", "web1").code == 0


def test_the_version_is_told_also_as_json(diskhaul: Run) -> None:
    plain = diskhaul("--version")
    assert plain.out.startswith("diskhaul ")
    assert diskhaul("--json", "--version").document == {"version": plain.out.split()[1]}


# --- a guest, interrupted ---------------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Path]:
    """The demo's cluster with its guest running."""
    requires("mke2fs")
    made = make_demo(tmp_path / "demo")
    yield made.directory
    subprocess.run([made.directory / "vm", "stop", "web1"], check=False)


def test_an_unreachable_node_is_exit_code_4_after_an_export(diskhaul: Run, lab: Lab) -> None:
    config = lab.with_offline_node()
    config.write_text(config.read_text().replace('cleanup = "none"', 'cleanup = "others"'))
    ran = diskhaul("--config", config, "--json", "export", "web1", "--node", "beta")
    assert (ran.code, ran.document["exit_code"]) == (4, 4)
    assert "offline" in ran.document["incomplete"][0]
    assert Path(ran.document["export"]["path"]).is_dir()


def guest_runs(demo: Path) -> bool:
    return subprocess.run([demo / "vm", "status", "web1"], check=False).returncode == 0


@pytest.mark.parametrize("again", [(), (signal.SIGINT,), (signal.SIGTERM, signal.SIGHUP)], ids=["once", "again", "others"])
def test_ctrl_c_in_the_middle_of_an_export_restores_the_guest_and_leaves_nothing(
    demo: Path, diskhaul: Run, again: tuple[signal.Signals, ...]
) -> None:
    config = demo / "cluster.toml"
    process = subprocess.Popen(
        # Level 19 makes the export last for many seconds.
        [sys.executable, "-m", "diskhaul", "--config", config, "export", "web1", "--node", "beta", "--compress", "zstd:19"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_signals_as_from_a_shell,
    )
    assert process.stderr is not None
    told = ""
    while not told.startswith("diskhaul: send:"):
        told = process.stderr.readline()
        assert told, "ended too early"
    # Where the demo found reflinks its guest is up again while a snapshot is sent; elsewhere it sleeps until all is sent.
    assert guest_runs(demo) != tomllib.loads(config.read_text())["defaults"].get("long_sleep", False)

    config_in_haste = demo / "in-haste.toml"
    config_in_haste.write_text(config.read_text().replace("[defaults]", "[defaults]\nlock_timeout_s = 0.2"))
    second = diskhaul("--config", config_in_haste, "--quiet", "export", "web1", "--node", "gamma")
    assert second.code == 5, second.err
    assert "instance/web1.example.com" in second.err
    assert str(process.pid) in second.err, "says who holds it"

    process.send_signal(signal.SIGINT)
    with ThreadPoolExecutor(1) as reader:
        outputs = reader.submit(process.communicate, timeout=120)
        while again and not outputs.done():  # until the process is gone: its end is not disturbed either
            for number in again:
                process.send_signal(number)
    out, err = outputs.result()
    assert "diskhaul: stopping cleanly: what was running will be running\n" in err
    assert ("diskhaul: already stopping; the guest is being restored\n" in err) == bool(again)
    assert "\ndiskhaul: interrupted: " in err
    assert "Traceback" not in err
    assert (process.returncode, out) == (130, "")
    assert guest_runs(demo)
    listed = diskhaul("--config", config, "--json", "list")
    assert (listed.code, listed.document["exports"]) == (0, [])
    assert [path for path in (demo / "beta/exports").rglob("*") if "disk-" in path.name] == []
    assert diskhaul("--config", config, "recover").out == "Nothing to recover.\n"


# --- how an operation ended, in --events ------------------------------------------------------------------------------


def last_event(path: Path) -> dict[str, Any]:
    ending: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    assert ending["event"] == "operation-finished"
    return ending


def test_the_last_event_says_how_the_operation_ended(diskhaul: Run, lab: Lab, tmp_path: Path) -> None:
    events = tmp_path / "events"

    def run(*arguments: str) -> tuple[Ran, dict[str, Any]]:
        ran = diskhaul("--config", lab.config, "--json", "--events", events, *arguments)
        ending = last_event(events)
        assert ending["exit_code"] == ran.code
        assert ending["run_id"]
        return ran, ending

    exported, ending = run("export", "web1", "--node", "beta")
    export_id = exported.document["export"]["export_id"]
    assert (ending["operation"], ending["outcome"], ending["error"]) == ("export", "ok", "")
    assert ending["export_id"] == export_id

    refused, ending = run("export", "web1", "--node", "drained")
    assert (ending["operation"], ending["outcome"], ending["export_id"]) == ("export", "refused", "")
    assert ending["error"] == refused.document["error"]["message"]

    _, ending = run("import", "web1", "--to-dir", str(tmp_path / "restored"))
    assert (ending["operation"], ending["outcome"]) == ("import", "ok")

    (lab.path / "beta/web1.example.com" / export_id / "disk-0.chunks").write_bytes(b"")
    _, ending = run("verify", "web1")
    assert (ending["operation"], ending["outcome"], ending["exit_code"]) == ("verify", "failed", 6)
    failed, ending = run("import", f"web1@{export_id}", "--to-dir", str(tmp_path / "again"))
    assert (ending["outcome"], ending["exit_code"]) == ("failed", 6)
    assert ending["error"] == failed.document["error"]["message"]

    _, ending = run("remove", f"web1@{export_id}")
    assert (ending["operation"], ending["outcome"]) == ("remove", "ok")


def test_the_last_event_of_an_interrupted_export_says_so(demo: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "diskhaul", "--config", demo / "cluster.toml", "--events", events),
            *("export", "web1", "--node", "beta", "--compress", "zstd:19"),
        ],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_signals_as_from_a_shell,
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("diskhaul: send:"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    ending = last_event(events)
    assert (ending["outcome"], ending["exit_code"], ending["error"]) == ("interrupted", 130, "interrupted: SIGTERM")


def test_a_misspelt_name_of_a_disabled_plugin_is_warned_of(diskhaul: Run, lab: Lab) -> None:
    disabled = {"DISKHAUL_DISABLE_PLUGINS": "storage:blok"}
    ran = diskhaul("--config", lab.config, "export", "web1", "--node", "beta", env=disabled)
    assert ran.code == 0
    assert "diskhaul: warning: DISKHAUL_DISABLE_PLUGINS: 'storage:blok' is neither" in ran.err
    assert "storage:blok" in diskhaul("--config", lab.config, "doctor", env=disabled).out

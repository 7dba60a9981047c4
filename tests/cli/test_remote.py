"""``diskhaul prepare``, ``receive`` and ``export --remote`` at the command line: what they take, and what comes out where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, Ran

Diskhaul = Callable[..., Ran]
INSTANCE = "web1.example.com"


@pytest.fixture
def east(diskhaul: Diskhaul, tmp_path: Path) -> Path:
    """The configuration of a cluster with one instance that is down, and beside it that of another cluster."""
    for name in ("alpha", "gamma"):
        (tmp_path / name).mkdir()
    assert diskhaul("certs", "secret", "--dir", tmp_path).code == 0
    (tmp_path / "disk.raw").write_bytes(b"a disk" * 100_000)
    (tmp_path / "east.toml").write_text(f"""
[cluster]
name = "east"
state_dir = "state-east"
cluster_domain_secret = "cluster-domain.secret"
[nodes.alpha]
export_dir = "alpha"
[instances."{INSTANCE}"]
node = "alpha"
state = "down"
[[instances."{INSTANCE}".disks]]
path = "disk.raw"
""")
    (tmp_path / "west.toml").write_text("""
[cluster]
name = "west"
state_dir = "state-west"
cluster_domain_secret = "cluster-domain.secret"
[nodes.gamma]
export_dir = "gamma"
options = { remote_address = "127.0.0.1:0" }
""")
    return tmp_path / "east.toml"


def test_a_secret_is_made_once(diskhaul: Diskhaul, tmp_path: Path) -> None:
    made = diskhaul("--json", "certs", "secret", "--dir", tmp_path / "certs")
    assert made.document["secret"] == str(tmp_path / "certs" / "cluster-domain.secret")
    assert "exists already" in diskhaul("certs", "secret", "--dir", tmp_path / "certs").err
    assert diskhaul("certs", "secret", "--dir", tmp_path / "certs", "--force").code == 0
    assert diskhaul("certs", "secret", "--dir", tmp_path / "certs", "--days", "3").code == 2


def test_prepare_prints_the_document_and_nothing_else_or_writes_it(diskhaul: Diskhaul, east: Path) -> None:
    printed = diskhaul("--config", east, "prepare", "web1")
    assert printed.code == 0
    assert json.loads(printed.out)["signed"]["instance"]["name"] == INSTANCE
    assert printed.out.count("\n") == 1
    file = east.parent / "web1.prepared"
    written = diskhaul("--config", east, "prepare", "web1", "--out", file)
    assert written.out.startswith(f"Prepared {INSTANCE}: ")
    assert json.loads(file.read_text())["signed"]["cluster"] == "east"
    assert file.stat().st_mode & 0o777 == 0o600
    assert diskhaul("--config", east, "--json", "prepare", "web1").document["document"]["signed"]["cluster"] == "east"


def test_receive_reads_standard_input_and_prints_the_destination_first(diskhaul: Diskhaul, east: Path) -> None:
    prepared = diskhaul("--config", east, "prepare", "web1").out
    command = [sys.executable, "-m", "diskhaul", "--config", str(east.parent / "west.toml"), "receive", "-", "--node", "gamma"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with process.stdin:
                process.stdin.write(prepared)
            line = process.stdout.readline()
            destination = east.parent / "web1.destination"
            destination.write_text(line)
            sent = diskhaul("--config", east, "export", "web1", "--remote", destination)
            assert sent.code == 0, sent.err
            assert process.stdout.read() == ""
            assert f"Received {INSTANCE}@" in process.stderr.read()
            assert process.wait(60) == 0
        finally:
            process.kill()
    listed = diskhaul("--config", east.parent / "west.toml", "--json", "list").document["exports"]
    assert [(record["instance"], record["problem"]) for record in listed] == [(INSTANCE, "")]


def test_what_does_not_go_together_is_refused(diskhaul: Diskhaul, east: Path) -> None:
    west = east.parent / "west.toml"
    file = east.parent / "web1.prepared"
    assert diskhaul("--config", east, "prepare", "web1", "--out", file).code == 0
    assert "with --out FILE" in diskhaul("--config", west, "--json", "receive", file, "--node", "gamma").out
    assert "give one of them" in diskhaul("--config", east, "export", "web1", "--node", "alpha", "--remote", file).err
    assert "--node is missing" in diskhaul("--config", east, "export", "web1").err
    assert "but a diskhaul-remote-prepared" in diskhaul("--config", east, "export", "web1", "--remote", file).err
    assert "cannot be read: No such file" in diskhaul("--config", east, "export", "web1", "--remote", file.parent / "no").err
    both = diskhaul("--config", east, "export", "web1", "--remote", file, "--layout", "ganeti", "--compress", "none")
    assert "--layout ganeti: an export to another cluster has the layout diskhaul" in both.err
    assert both.code == 2


def test_a_prepared_document_that_was_changed_cut_or_is_none_is_refused(diskhaul: Diskhaul, east: Path) -> None:
    west, file = east.parent / "west.toml", east.parent / "web1.prepared"
    assert diskhaul("--config", east, "prepare", "web1", "--out", file).code == 0
    text = file.read_text()
    for changed, problem in (
        (text.replace('"alpha"', '"delta"'), "its HMAC is wrong"),
        (text[:100], "is no JSON document"),
        ("", "is no JSON document"),
        ("{}", "hmac, salt, signed: missing"),
    ):
        file.write_text(changed)
        refused = diskhaul("--config", west, "receive", file, "--node", "gamma")
        assert refused.code == 2
        assert problem in refused.err
    file.write_text(text)
    assert "node 'delta' is unknown" in diskhaul("--config", west, "receive", file, "--node", "delta").err
    assert (
        "instance name '../x' is not allowed"
        in diskhaul("--config", west, "receive", file, "--node", "gamma", "--instance-name", "../x").err
    )


def test_what_a_cluster_prepared_itself_it_receives_under_another_name_only(diskhaul: Diskhaul, east: Path) -> None:
    file = east.parent / "web1.prepared"
    assert diskhaul("--config", east, "prepare", "web1", "--out", file).code == 0
    refused = diskhaul("--config", east, "receive", file, "--node", "alpha")
    assert refused.code == 2
    assert f"{INSTANCE} was prepared by this very cluster" in refused.err
    other = diskhaul("--config", east, "receive", file, "--node", "alpha", "--instance-name", "copy", "--timeout", "1")
    assert "nodes.alpha.options.remote_address: is missing" in other.err  # it went on to what else is needed


def test_interfaces_of_a_move_are_read_strictly(diskhaul: Diskhaul, east: Path) -> None:
    for nic in ("mac", "mac=", "colour=red", "mac=1,mac=2", "mac=1,"):
        refused = diskhaul("--config", east, "move", "web1", "--to", "west", "--node", "gamma", "--nic", nic)
        assert refused.code == 2
        assert "is not KEY=VALUE[,KEY=VALUE]..." in refused.err
    for grow in ("0", "x=1", "0=", "0=-1", "0=1GiB,1=2GiB"):
        refused = diskhaul("--config", east, "move", "web1", "--to", "west", "--node", "gamma", "--grow", grow)
        assert refused.code == 2
    assert "cluster west is not configured" in diskhaul("--config", east, "move", "web1", "--to", "west", "--node", "gamma").err


def test_doctor_finds_what_exports_to_other_clusters_would_fail_at(diskhaul: Diskhaul, east: Path) -> None:
    assert diskhaul("--config", east, "--json", "doctor").document["problems"] == []
    (east.parent / "cluster-domain.secret").chmod(0o644)
    with east.open("a") as file:
        file.write('[clusters.west]\ncommand = ["/nowhere/ssh", "west", "diskhaul"]\n')
    problems = diskhaul("--config", east, "--json", "doctor").document["problems"]
    assert [problem.partition(":")[0] for problem in problems] == [
        f"{east.parent}/cluster-domain.secret holds the cluster-domain secret and others can read it (mode 644); run",
        "clusters.west.command",
    ]

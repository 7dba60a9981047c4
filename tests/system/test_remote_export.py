"""Exports to another cluster that shares only the cluster-domain secret: whole ones, and every reason to refuse one."""

from __future__ import annotations

import copy
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.network import Network
from tests.processes import wait_for

import diskhaul
from diskhaul.certificates import make_self_signed
from diskhaul.remote.destination import destination_document
from diskhaul.remote.envelope import CERTIFICATE_PURPOSE, DISK_PURPOSE, LIFE, seal
from diskhaul.remote.prepared import check_prepared
from diskhaul.remote.secret import make_secret
from diskhaul.remote.signing import sign

from .conftest import INSTANCE, Lab, Unchanged
from .two_clusters import LIMIT_S, NEW_NAME, Reception, TwoClusters

Document = dict[str, Any]


@pytest.fixture
def clusters(lab: Lab, requires: Callable[..., None]) -> Iterator[TwoClusters]:
    requires("ip", root=True)
    lab.add_guest(disks=2)
    with ExitStack() as stack:
        network = stack.enter_context(Network(["east", "west"]))
        yield TwoClusters(lab, network, stack)


@pytest.fixture
def secret(clusters: TwoClusters) -> bytes:
    return clusters.west_secret.read_bytes().strip()


class Untouched:
    """The guest as it was: the same process, never stopped."""

    def __init__(self, clusters: TwoClusters) -> None:
        self._clusters, self._guest = clusters, clusters.lab.guests[INSTANCE]
        self._pid, self._calls = self._guest.pid, self._changes()
        self._unchanged = Unchanged(clusters.lab)

    def _changes(self) -> list[str]:
        return [call for call in self._guest.calls() if not call.startswith("status")]

    def check(self) -> None:
        assert self._guest.pid == self._pid
        assert self._changes() == self._calls
        self._guest.wait_for_progress()
        self._unchanged.check(but=("children", "descriptors", "threads"))


@pytest.fixture
def untouched(clusters: TwoClusters) -> Untouched:
    return Untouched(clusters)


# --- whole ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_an_instance_arrives_at_the_other_cluster_byte_for_byte_and_is_imported_there(
    clusters: TwoClusters, compress: str
) -> None:
    lab = clusters.lab
    reception = clusters.receive()
    said = clusters.export(reception.destination, "--compress", compress)
    assert "Exported web1.example.com to gamma" in said
    code, told = reception.ended()
    assert code == 0, told
    assert f"Received {INSTANCE}@" in told
    assert lab.guests[INSTANCE].running
    (record,) = clusters.received()
    lab.check_bytes(record)
    assert clusters.left_in_west() == [record.path]
    assert clusters.keys_in_east() == []
    assert "no damage found" in clusters.run("west", "verify", INSTANCE)
    clusters.run("west", "import", INSTANCE, "--to-dir", clusters.west_dir / "disks")
    second = lab.instances[INSTANCE].disks[1].path
    assert second is not None
    assert (clusters.west_dir / "disks" / "disk-1.raw").read_bytes() == lab.contents[second]


def test_an_instance_can_be_given_another_name_there(clusters: TwoClusters) -> None:
    reception = clusters.receive("--instance-name", NEW_NAME)
    clusters.export(reception.destination, "--no-shutdown")
    assert reception.ended()[0] == 0
    (record,) = clusters.received(NEW_NAME)
    assert clusters.received() == []
    manifest = diskhaul.show(record.path).manifest
    assert (manifest["cluster"], manifest["instance"]["name"], manifest["instance"]["node"]) == ("east", NEW_NAME, "gamma")


def test_a_live_export_with_a_broken_network_in_the_middle_arrives(clusters: TwoClusters) -> None:
    reception = clusters.receive()
    file = clusters.write_destination(reception.destination)
    slow = ("--no-shutdown", "--bwlimit", "2M", "--compress", "none", "--chunk-size", "64K")
    export = clusters.start("east", "export", "web1", "--remote", file, *slow)
    wait_for(lambda: any(clusters.west_exports.glob("*/.*/disk-1.raw")), "the second disk's file", LIMIT_S, while_runs=export)
    clusters.network.disconnect("west")
    time.sleep(1.0)  # long enough for packets to be lost
    clusters.network.connect("west")
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 0, out + err
    assert reception.ended()[0] == 0
    (record,) = clusters.received()
    clusters.lab.check_bytes(record, running=True)


def test_the_private_key_stays_on_the_source_where_nobody_else_can_read_it(clusters: TwoClusters) -> None:
    file = clusters.prepare()
    (place,) = clusters.keys_in_east()
    key = place / "source.pem"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, key, file)] == [0o700, 0o600, 0o600]
    assert b"PRIVATE KEY" in key.read_bytes()
    reception = clusters.receive(prepared=file)
    for text in (file.read_text(), json.dumps(reception.destination)):
        assert "PRIVATE KEY" not in text
    reception.process.terminate()
    assert reception.ended()[0] == 130
    left = [path for path in clusters.west_dir.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert left == []


def test_a_dry_run_uses_nothing_up(clusters: TwoClusters, untouched: Untouched) -> None:
    reception = clusters.receive()
    assert "Dry run" in clusters.export(reception.destination, "--dry-run")
    untouched.check()
    clusters.export(reception.destination)
    assert reception.ended()[0] == 0


# --- refused before anything is touched -------------------------------------------------------------------------------


def resigned(secret: bytes, document: Document, change: Callable[[Document], object]) -> Document:
    content = copy.deepcopy(document["signed"])
    change(content)
    return sign(secret, content["format"], content)


def without_hmacs(entry: Document) -> Document:
    return {name: value for name, value in entry.items() if name not in ("salt", "hmac")}


def test_what_is_changed_in_a_destination_is_refused_all_of_it_together(
    clusters: TwoClusters, untouched: Untouched, secret: bytes
) -> None:
    reception = clusters.receive()
    good = reception.destination
    wrong = copy.deepcopy(good)
    wrong["hmac"] = "0" * 64
    assert "the destination: its HMAC is wrong" in clusters.export(wrong, code=2)
    for name, value in (("host", "198.51.100.1"), ("port", 9), ("token", "f" * 64)):
        changed = resigned(secret, good, lambda content, name=name, value=value: content["disks"][1].update({name: value}))
        assert "disk 1: the HMAC of its destination is wrong" in clusters.export(changed, code=2)

    def all_of_it(content: Document) -> None:
        content["key"]["hmac"] = "0" * 64
        content["certificate"]["salt"] = "0" * 32
        content["disks"] = content["disks"][:1]
        content["disks"][0]["host"] = "198.51.100.1"
        content["expires"] = content["created"]

    worst = resigned(secret, good, all_of_it)
    worst["hmac"] = "1" * 64
    lines = [line for line in clusters.export(worst, code=2).splitlines() if line.startswith("diskhaul: ")]
    assert [line.removeprefix("diskhaul: ").partition(" at ")[0] for line in lines] == [
        "the destination: its HMAC is wrong: it was changed, or the clusters' secrets differ",
        "the destination has expired",
        "the destination: the HMAC of the key's name is wrong",
        "the receiver's certificate is not signed with the cluster-domain secret",
        "the destination has places for 1 disk(s), and the instance has 2",
        "disk 0: the HMAC of its destination is wrong",
    ]
    untouched.check()
    clusters.export(good)  # nothing of it had been used up
    assert reception.ended()[0] == 0


def test_the_wrong_number_and_sizes_of_disks_are_refused(clusters: TwoClusters, untouched: Untouched, secret: bytes) -> None:
    good = clusters.receive().destination
    fewer = resigned(secret, good, lambda content: content["disks"].pop())
    assert "places for 1 disk(s), and the instance has 2" in clusters.export(fewer, code=2)

    def another_size(content: Document) -> None:
        entry = without_hmacs(content["disks"][0]) | {"size": 4096}
        content["disks"][0] = seal(secret, DISK_PURPOSE, entry)

    assert "and its destination is for 4096: prepare it anew" in clusters.export(resigned(secret, good, another_size), code=2)
    untouched.check()


def test_a_certificate_that_is_unsigned_expired_or_another_s_is_refused(
    clusters: TwoClusters, untouched: Untouched, secret: bytes
) -> None:
    good = clusters.receive().destination
    now = datetime.now(UTC)

    def made(cluster: str, role: Any, name: str, at: datetime) -> str:
        return make_self_signed(cluster, role, name, now=at, until=at + LIFE)[1].decode("ascii")

    def with_certificate(pem: str, *, signed: bool = True) -> Document:
        def change(content: Document) -> None:
            entry = without_hmacs(content["certificate"]) | {"pem": pem}
            content["certificate"] = seal(secret if signed else b"x" * 32, CERTIFICATE_PURPOSE, entry)

        return resigned(secret, good, change)

    for pem, signed, problem in (
        (made("west", "receiver", "gamma", now), False, "is not signed with the cluster-domain secret"),
        (made("west", "receiver", "gamma", now - 2 * LIFE), True, "has expired"),
        (made("west", "receiver", "delta", now), True, "is invalid: it is that of receiver 'delta'"),
        (made("west", "source", "gamma", now), True, "is invalid: it is that of source 'gamma'"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", True, "is invalid"),
    ):
        said = clusters.export(with_certificate(pem, signed=signed), code=2)
        assert f"the receiver's certificate {problem}" in said
    # Signed, valid, the right name, and not the certificate that the receiver shows.
    said = clusters.export(with_certificate(made("west", "receiver", "gamma", now)), code=2)
    assert "is refused: its certificate is not the one that was agreed on for this export" in said
    untouched.check()


def test_an_expired_destination_is_refused(clusters: TwoClusters, untouched: Untouched, secret: bytes) -> None:
    file = clusters.prepare()
    reception = clusters.receive(prepared=file)
    now = datetime.now(UTC)
    prepared = check_prepared(json.loads(file.read_text()), secret, now=now)
    given = reception.destination["signed"]
    old = destination_document(
        secret,
        prepared,
        cluster="west",
        node="gamma",
        instance=INSTANCE,
        certificate=given["certificate"]["pem"],
        host=given["disks"][0]["host"],
        port=given["disks"][0]["port"],
        tokens=[bytes.fromhex(disk["token"]) for disk in given["disks"]],
        now=now - timedelta(hours=2),
        expires=now - timedelta(seconds=1),
    )
    assert "the destination has expired at" in clusters.export(old, code=2)
    untouched.check()


def test_what_another_cluster_s_secret_signed_is_refused_on_both_sides(clusters: TwoClusters, untouched: Untouched) -> None:
    file = clusters.prepare()
    good = clusters.receive(prepared=file).destination
    os.replace(make_secret(clusters.lab.path / "other-certs"), clusters.lab.path / "east-certs" / "cluster-domain.secret")
    said = clusters.export(good, code=2)
    assert "the clusters' secrets differ" in said
    assert "the HMAC of the key's name is wrong" in said
    assert "disk 0: the HMAC of its destination is wrong" in said
    new = clusters.prepare()
    assert "the clusters' secrets differ" in clusters.run("west", "receive", new, "--node", "gamma", code=2)
    untouched.check()
    assert clusters.received() == []


def test_a_secret_that_others_can_read_or_that_is_too_short_is_refused(clusters: TwoClusters, untouched: Untouched) -> None:
    good = clusters.receive().destination
    place = clusters.lab.path / "east-certs" / "cluster-domain.secret"
    place.chmod(0o644)
    for arguments in (("prepare", "web1"), ("export", "web1", "--remote", clusters.write_destination(good))):
        assert "others can read it" in clusters.run("east", *arguments, code=2)
    place.chmod(0o600)
    place.write_text("short")
    assert "has 5 bytes, and at least 32 are needed" in clusters.run("east", "prepare", "web1", code=2)
    clusters.west_secret.chmod(0o640)
    said = clusters.run("west", "receive", clusters.lab.path / "web1.prepared", "--node", "gamma", code=2)
    assert "others can read it" in said
    untouched.check()


def test_a_prepared_export_is_received_once(clusters: TwoClusters) -> None:
    file = clusters.prepare()
    reception = clusters.receive(prepared=file)
    again = "has been received already, or is being: each is good once"
    assert again in clusters.run("west", "receive", file, "--node", "gamma", code=2)
    clusters.export(reception.destination)
    assert reception.ended()[0] == 0
    assert again in clusters.run("west", "receive", file, "--node", "gamma", code=2)
    assert len(clusters.received()) == 1


def test_a_destination_is_used_once(clusters: TwoClusters) -> None:
    reception = clusters.receive()
    clusters.export(reception.destination)
    assert reception.ended()[0] == 0
    untouched = Untouched(clusters)
    assert "the source's key is not there (any more): it has been used" in clusters.export(reception.destination, code=2)
    untouched.check()
    assert len(clusters.received()) == 1


def test_tokens_that_are_being_used_are_refused_to_whoever_comes_next(clusters: TwoClusters) -> None:
    """Even to somebody who has stolen the source's key with them."""
    lab = clusters.lab
    reception = clusters.receive()
    (key,) = clusters.keys_in_east()
    stolen = (key / "source.pem").read_bytes(), (key / "expires").read_bytes()
    file = clusters.write_destination(reception.destination)
    slow = ("--bwlimit", "1M", "--compress", "none", "--chunk-size", "64K")
    first = clusters.start("east", "export", "web1", "--remote", file, "--no-shutdown", *slow)
    wait_for(lambda: any(clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=first)
    key.mkdir(mode=0o700)
    for name, content in zip(("source.pem", "expires"), stolen, strict=True):
        (key / name).touch(mode=0o600)
        (key / name).write_bytes(content)
    thief = dict(clusters.east_document) | {"cluster": clusters.east_document["cluster"] | {"state_dir": str(lab.path / "thief")}}
    (lab.path / "thief" / "remote").mkdir(parents=True, mode=0o700)
    (lab.state_dir / "remote" / "keys").rename(lab.path / "thief" / "remote" / "keys")
    config = clusters.write("thief.toml", thief)
    command = clusters.network.command("east", *lab.command("export", "web1", "--remote", file, "--no-shutdown", config=config))
    said = run(command, lab, code=3)
    assert "this destination has been used: its tokens are good once" in said
    out, err = first.communicate(timeout=LIMIT_S)
    assert first.returncode == 0, out + err
    assert reception.ended()[0] == 0
    (record,) = clusters.received()
    lab.check_bytes(record, running=True)


# --- one side gives up ------------------------------------------------------------------------------------------------


def test_a_source_that_fails_ends_the_reception_and_nothing_is_left(clusters: TwoClusters) -> None:
    reception, export = under_way(clusters)
    export.send_signal(signal.SIGINT)
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 130, out + err
    code, told = reception.ended()
    assert code == 3
    assert "the source has given up" in told
    assert clusters.left_in_west() == []
    assert clusters.lab.guests[INSTANCE].running


def test_a_source_that_is_killed_ends_the_reception_in_time_and_recovers_its_guest(clusters: TwoClusters) -> None:
    reception, export = under_way(clusters, "--timeout", "15")
    export.kill()
    export.communicate(timeout=LIMIT_S)
    code, told = reception.ended()
    assert code == 3
    assert "nothing has come for 15 s" in told
    assert clusters.left_in_west() == []
    said = clusters.run("east", "recover")
    assert "is left to its receiver at cluster west" in said
    assert clusters.lab.guests[INSTANCE].running
    assert clusters.lab.state().journal == ()


def test_a_receiver_that_is_killed_fails_the_export_and_recovers_what_it_left(clusters: TwoClusters) -> None:
    reception, export = under_way(clusters)
    reception.process.kill()
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 3, out + err
    assert clusters.lab.guests[INSTANCE].running
    clusters.run("west", "recover")
    assert clusters.left_in_west() == []
    assert clusters.received() == []
    assert clusters.lab.state().journal == ()


def test_a_reception_that_is_stopped_fails_the_export_and_leaves_nothing(clusters: TwoClusters) -> None:
    reception, export = under_way(clusters)
    reception.process.send_signal(signal.SIGTERM)
    assert reception.ended()[0] == 130
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 3, out + err
    assert clusters.lab.guests[INSTANCE].running
    assert clusters.left_in_west() == []


def test_a_reception_to_which_nothing_comes_ends(clusters: TwoClusters) -> None:
    reception = clusters.receive("--timeout", "1")
    code, told = reception.ended()
    assert code == 3
    assert "nothing has come for 1 s" in told
    assert clusters.left_in_west() == []


def under_way(clusters: TwoClusters, *more: str) -> tuple[Reception, Any]:
    """An export in the middle of its first disk, with its guest down."""
    reception = clusters.receive(*more)
    file = clusters.write_destination(reception.destination)
    slow = ("--bwlimit", "512K", "--compress", "none", "--chunk-size", "64K")
    export = clusters.start("east", "export", "web1", "--remote", file, *slow)
    wait_for(lambda: any(clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=export)
    return reception, export


def run(command: list[str], lab: Lab, *, code: int) -> str:
    import subprocess

    done = subprocess.run(command, env=lab.environment(), capture_output=True, text=True, timeout=LIMIT_S, cwd=lab.path)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_receiver_that_is_at_work_keeps_its_state_and_what_others_left_is_swept(clusters: TwoClusters) -> None:
    """Also once what it was given counts no more, as after a day of receiving, and before an export has begun."""
    reception = clusters.receive()
    state = clusters.west_dir / "state" / "remote"
    (place,) = (state / "receiving").iterdir()
    left = state / "receiving" / ("0" * 32)
    left.mkdir()
    (left / "session").touch()
    (state / "taken" / place.name).unlink()
    other = clusters.receive("--instance-name", NEW_NAME)
    assert not left.exists()
    assert place.exists()
    clusters.export(other.destination)
    clusters.export(reception.destination)
    assert (reception.ended()[0], other.ended()[0]) == (0, 0)
    assert list((state / "receiving").iterdir()) == []

"""The two sides of an export to another cluster: one sender, one export, each file with its disk's token, and nothing else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from diskhaul.api import BackendContext, RemoteParty, RemoteTerms, Transfer
from diskhaul.certificates import make_self_signed
from diskhaul.errors import ConfigurationError, StorageError, UnreachableNodeError
from diskhaul.host import PluginHost
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.transfers import INSTANCE
from diskhaul_plugins.transfers.tls.calls import Caller
from diskhaul_plugins.transfers.tls.connection import Dialler
from diskhaul_plugins.transfers.tls.identities import Identity, WrongPeerError
from diskhaul_plugins.transfers.tls.pinned import PinnedIdentity
from diskhaul_plugins.transfers.tls.remote_proofs import disk_of, file_magic, session_proof
from diskhaul_plugins.transfers.tls.remote_receiver import RemoteTlsReceiver
from diskhaul_plugins.transfers.tls.remote_store import RemoteTlsStore
from diskhaul_plugins.transfers.tls.settings import Address, Settings
from diskhaul_plugins.transfers.tls.transfer import TlsTransfer

from .conftest import LIMIT_S, Lab, wait_until

EXPORT, OTHER_EXPORT = "20260101T000000Z-00000001", "20260101T000000Z-00000002"
TOKENS = (b"a" * 32, b"b" * 32)
NOW = datetime.now(UTC)
Made = tuple[bytes, bytes]


def made(cluster: str, role: Literal["source", "receiver"], name: str) -> Made:
    return make_self_signed(cluster, role, name, now=NOW, until=NOW + timedelta(days=1))


SOURCE, RECEIVER = made("east", "source", "web1.example.com"), made("west", "receiver", "gamma")


def terms(own: Made, *, source: Made = SOURCE, receiver: Made = RECEIVER, tokens: tuple[bytes, ...] = TOKENS) -> RemoteTerms:
    return RemoteTerms(
        source=RemoteParty(cluster="east", name="web1.example.com", certificate=source[1]),
        receiver=RemoteParty(cluster="west", name="gamma", certificate=receiver[1]),
        own=b"".join(own),
        instance=INSTANCE,
        tokens=tokens,
    )


class West:
    """The destination: a receiver in a thread."""

    def __init__(self, work: Path) -> None:
        self.exports = work / "west-gamma"
        self.exports.mkdir()
        self.begun: list[str] = []
        self.refuse_manifest = False
        self.said: list[str] = []
        self.transfer = TlsTransfer(BackendContext(cluster=Cluster(name="west", state_dir=work / "state"), options={}))
        node = Node(name="gamma", export_dir=self.exports, options={"remote_address": "127.0.0.1:0"})
        receiver = self.transfer.remote_receiver(
            node, terms(RECEIVER), state_dir=work / "state" / "receiving", begun=self.begun.append, accept=self._accept
        )
        assert isinstance(receiver, RemoteTlsReceiver)
        self.receiver = receiver
        self.receiver._tell = self.said.append
        self._thread = threading.Thread(target=receiver.serve_forever)
        self._thread.start()

    def _accept(self, manifest: bytes) -> None:
        if self.refuse_manifest:
            raise StorageError("not this one", path="manifest")

    def store(self, given: RemoteTerms | None = None) -> RemoteTlsStore:
        return RemoteTlsStore(given or terms(SOURCE), Address(*self.receiver.place), Settings(retry_s=0.5, connect_timeout_s=5.0))

    def close(self) -> None:
        self.receiver.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.exports)) for path in self.exports.glob("*/*"))


@pytest.fixture
def west(tmp_path: Path) -> Iterator[West]:
    there = West(tmp_path)
    yield there
    there.close()


def send(west: West, export_id: str = EXPORT) -> None:
    writer = west.store().begin(INSTANCE, export_id)
    for name in ("disk-0.raw.zst", "disk-0.chunks", "disk-1.raw.zst", "disk-1.chunks"):
        file = writer.create(name)
        file.append([name.encode() * 1000])
        file.finish()
    writer.publish(b"{}")


def call(west: West, called: str, /, **asked: Any) -> Any:
    """A call of somebody who has the right certificate, and asks for whatever they like."""
    return west.store()._caller.call(called, asked)


def credentials(session: bytes = b"s" * 16, tokens: tuple[bytes, ...] = TOKENS) -> dict[str, str]:
    return {"session": session.hex(), "key": (b"k" * 32).hex(), "proof": session_proof(tokens, session).hex()}


# --- the one export ---------------------------------------------------------------------------------------------------


def test_an_export_arrives_and_the_receiver_knows_how_far_it_has_come(west: West) -> None:
    assert west.receiver.stage == "waiting"
    store = west.store()
    assert list(store.check(INSTANCE, for_writing=True)) == []
    assert store.free_bytes()
    writer = store.begin(INSTANCE, EXPORT)
    assert (west.receiver.stage, west.begun) == ("receiving", [EXPORT])
    file = writer.create("disk-0.raw")
    file.set_size(5)
    file.write(0, b"hello")
    file.finish()
    writer.publish(b"{}")
    assert west.receiver.stage == "published"
    found = bytearray(5)
    with closing(store.open(INSTANCE, EXPORT).open("disk-0.raw")) as reader:
        reader.read_into(0, memoryview(found))
    assert found == b"hello"
    store.farewell()
    assert west.receiver.stage == "settled"
    wait_until(lambda: not west.receiver.busy, "nobody is connected")


def test_an_export_that_is_given_up_leaves_nothing(west: West) -> None:
    writer = west.store().begin(INSTANCE, EXPORT)
    writer.create("disk-0.raw.zst").append([b"x" * 100_000])
    writer.abort()
    assert west.receiver.stage == "given up"
    assert west.files() == []


def test_a_published_export_that_its_source_takes_back_is_given_up(west: West) -> None:
    send(west)
    west.store().remove(INSTANCE, EXPORT)
    assert west.receiver.stage == "given up"
    assert west.files() == []
    west.store().farewell()
    assert west.receiver.stage == "given up"


def test_a_manifest_that_is_refused_is_not_published(west: West) -> None:
    west.refuse_manifest = True
    with pytest.raises(StorageError, match="not this one"):
        send(west)
    assert west.receiver.stage == "receiving"
    assert [name for name in west.files() if not name.startswith(f"{INSTANCE}/.")] == []


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_who_does_not_know_all_tokens_begins_nothing_and_uses_nothing_up(west: West) -> None:
    for tokens in ((), TOKENS[:1], TOKENS[::-1], (TOKENS[0], b"c" * 32)):
        with pytest.raises(StorageError, match="does not know the tokens"):
            west.store(terms(SOURCE, tokens=tokens)).begin(INSTANCE, EXPORT)
    assert west.receiver.stage == "waiting"
    assert west.begun == []
    send(west)


def test_a_proof_is_good_for_its_session_only(west: West) -> None:
    asked = {"instance": INSTANCE, "export_id": EXPORT} | credentials()
    asked["session"] = (b"t" * 16).hex()
    with pytest.raises(StorageError, match="does not know the tokens"):
        call(west, "begin", **asked)


def test_tokens_are_used_up_by_whoever_begins_first(west: West) -> None:
    writer = west.store().begin(INSTANCE, EXPORT)
    for export_id in (EXPORT, OTHER_EXPORT):
        with pytest.raises(StorageError, match="its tokens are good once"):
            west.store().begin(INSTANCE, export_id)
    assert west.begun == [EXPORT]
    writer.create("disk-0.raw.zst").finish()  # the first is not disturbed


@pytest.mark.parametrize("stage", ["published", "settled", "given up"])
def test_tokens_stay_used_up_when_it_is_over(west: West, stage: str) -> None:
    if stage == "given up":
        west.store().begin(INSTANCE, EXPORT).abort()
    else:
        send(west)
    if stage == "settled":
        west.store().farewell()
    with pytest.raises(StorageError, match="its tokens are good once"):
        west.store().begin(INSTANCE, OTHER_EXPORT)
    assert west.receiver.stage == stage


@pytest.mark.parametrize(
    ("name", "magic"),
    [
        ("disk-0.raw.zst", b"x" * 16),
        ("disk-0.raw.zst", file_magic(TOKENS, b"s" * 16, "disk-1.raw.zst")),
        ("disk-0.raw.zst", file_magic(TOKENS, b"t" * 16, "disk-0.raw.zst")),
        ("disk-0.raw.zst", file_magic(TOKENS[::-1], b"s" * 16, "disk-0.raw.zst")),
        ("disk-2.raw.zst", b"x" * 16),
        ("manifest.json", b"x" * 16),
        ("config.ini", b"x" * 16),
        ("../disk-0.raw", b"x" * 16),
        ("disk-0.raw\n", b"x" * 16),
    ],
)
def test_a_file_needs_the_token_of_its_disk(west: West, name: str, magic: bytes) -> None:
    call(west, "begin", instance=INSTANCE, export_id=EXPORT, **credentials())
    with pytest.raises(StorageError, match="does not know the token of this file's disk"):
        call(west, "create", name=name, magic=magic.hex(), **credentials())


def test_a_source_makes_only_files_of_disks(west: West) -> None:
    writer = west.store().begin(INSTANCE, EXPORT)
    for name in ("config.ini", "disk-2.raw.zst", "disk-00.raw", "disk-0.raw.zst.more"):
        with pytest.raises(StorageError, match="has no such file"):
            writer.create(name)


def test_files_are_those_of_their_disks() -> None:
    assert [disk_of(name) for name in ("disk-0.raw", "disk-12.raw.zst", "disk-3.raw.gz", "disk-4.chunks")] == [0, 12, 3, 4]
    assert [disk_of(name) for name in ("disk-01.raw", "disk-.raw", "xdisk-0.raw", "disk-0.raw ", "disk-0")] == [None] * 5


# --- nothing else -----------------------------------------------------------------------------------------------------


def test_a_source_touches_nothing_but_its_own_export(west: West) -> None:
    for instance in (INSTANCE, "other.example.com"):
        kept = west.exports / instance / OTHER_EXPORT
        kept.mkdir(parents=True)
        (kept / "manifest.json").write_text("{}")
        partial = west.exports / instance / f".{OTHER_EXPORT}.partial"
        partial.mkdir()
    send(west)
    before = west.files()
    attempts: list[tuple[str, dict[str, Any]]] = [
        (name, {"instance": instance, "export_id": OTHER_EXPORT})
        for name in ("remove", "remove_partial", "names")
        for instance in (INSTANCE, "other.example.com")
    ]
    attempts += [("remove", {"instance": "other.example.com", "export_id": EXPORT})]
    attempts += [("publish", {"instance": INSTANCE, "export_id": OTHER_EXPORT} | credentials())]
    attempts += [("abort", {"instance": INSTANCE, "export_id": OTHER_EXPORT} | credentials())]
    for name, asked in attempts:
        with pytest.raises(StorageError, match=r"may touch no export but|may send .* and nothing else"):
            call(west, name, **asked)
    with pytest.raises(StorageError, match="may touch no export but"):
        west.store().open(INSTANCE, OTHER_EXPORT).open("manifest.json")
    for name in ("instances", "exports", "partials"):
        with pytest.raises(StorageError, match="there is no such call"):
            call(west, name, instance=INSTANCE)
    assert west.files() == before


def test_before_it_has_begun_a_source_touches_no_export_at_all(west: West) -> None:
    (west.exports / INSTANCE / EXPORT).mkdir(parents=True)
    with pytest.raises(StorageError, match="may touch no export but"):
        west.store().remove(INSTANCE, EXPORT)
    assert west.files() == [f"{INSTANCE}/{EXPORT}"]


def test_an_export_of_another_instance_is_refused(west: West) -> None:
    with pytest.raises(StorageError, match=r"may send .* and nothing else"):
        west.store().begin("other.example.com", EXPORT)
    assert west.receiver.stage == "waiting"


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(made("east", "source", "web1.example.com"), id="the same name, another key"),
        pytest.param(made("north", "source", "web1.example.com"), id="another cluster"),
        pytest.param(RECEIVER, id="the receiver's own"),
    ],
)
def test_a_source_with_another_certificate_is_not_let_in(west: West, own: Made) -> None:
    with pytest.raises(UnreachableNodeError):
        west.store(terms(own)).free_bytes()
    assert west.receiver.stage == "waiting"
    wait_until(lambda: any("refused: its certificate" in line for line in west.said), "the receiver says so")


def test_a_receiver_with_another_certificate_is_refused(west: West) -> None:
    other = made("west", "receiver", "gamma")
    with pytest.raises(UnreachableNodeError, match="is refused: its certificate is not the one that was agreed on"):
        west.store(terms(SOURCE, receiver=other)).begin(INSTANCE, EXPORT)
    assert west.begun == []


def shaken(client: PinnedIdentity, server: PinnedIdentity) -> list[BaseException]:
    """What a handshake between the two ends with."""
    failures: list[BaseException] = []
    ends = socket.socketpair()

    def shake(identity: PinnedIdentity, end: socket.socket, *, server_side: bool) -> None:
        name = None if server_side else "gamma"
        try:
            with identity.context(server=server_side).wrap_socket(end, server_side=server_side, server_hostname=name) as tls:
                tls.sendall(b"x")
                tls.recv(1)
        except (OSError, WrongPeerError) as error:
            failures.append(error)
            end.close()

    thread = threading.Thread(target=shake, args=(server, ends[1]), kwargs={"server_side": True})
    thread.start()
    shake(client, ends[0], server_side=False)
    thread.join(LIMIT_S)
    return failures


def test_a_certificate_has_to_count_when_the_export_begins_and_no_longer() -> None:
    past = NOW - timedelta(days=2)
    old_source = make_self_signed("east", "source", "web1.example.com", now=past, until=past + timedelta(days=1))
    old_receiver = make_self_signed("west", "receiver", "gamma", now=past, until=past + timedelta(days=1))
    client, server = (
        PinnedIdentity(b"".join(own), other[1]) for own, other in ((old_source, old_receiver), (old_receiver, old_source))
    )
    assert any("expired" in str(error) for error in shaken(client, server))
    for identity in (client, server):
        identity.begun()
    assert shaken(client, server) == []
    stranger = PinnedIdentity(b"".join(made("east", "source", "web1.example.com")), old_receiver[1])
    stranger.begun()
    assert shaken(stranger, server)  # whoever it is has still to be the right one


def test_nobody_of_the_receiver_s_own_cluster_is_let_in(west: West, lab: Lab) -> None:
    node = Node(name="gamma", export_dir=west.exports)
    caller = Caller(Dialler(node, Address(*west.receiver.place), "west", Identity(lab.certs, "alpha"), Settings(retry_s=0.1)))
    with pytest.raises(UnreachableNodeError):
        caller.call("identity")


def test_a_pinned_identity_cannot_vouch_for_others() -> None:
    """Trust in a certificate is trust in nothing that its key signs."""
    context = PinnedIdentity(b"".join(RECEIVER), SOURCE[1]).context(server=True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    (trusted,) = context.get_ca_certs() or [None]
    assert trusted is None or "CA:TRUE" not in str(trusted)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        PinnedIdentity(b"no key", SOURCE[1])
    with pytest.raises(ConfigurationError, match="cannot be used"):
        PinnedIdentity(b"".join(RECEIVER), b"no certificate")


# --- which transfer, and where ----------------------------------------------------------------------------------------


def test_what_goes_to_other_clusters_is_the_configured_transfer_or_tls(tmp_path: Path) -> None:
    cluster = Cluster(name="lab", state_dir=tmp_path)
    assert isinstance(PluginHost(cluster).remote_transfer(), TlsTransfer)
    host = PluginHost(replace(cluster, backends={"transfer": "tls"}))
    assert host.remote_transfer() is host.transfer()
    plain = type("Plain", (Transfer,), {"store": lambda self, node: None})()
    with pytest.raises(ConfigurationError, match="does not go to other clusters"):
        plain.remote_store(terms(SOURCE), "127.0.0.1", 1)


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({"remote_address": "127.0.0.1:0"}, "127.0.0.1"),
        ({"address": "127.0.0.1:1"}, "127.0.0.1"),
        ({"remote_address": "gamma.example.com:0", "remote_listen": "127.0.0.1:0"}, "gamma.example.com"),
    ],
)
def test_a_node_says_where_other_clusters_reach_it(tmp_path: Path, options: dict[str, str], host: str) -> None:
    receiver = listening(tmp_path, options)()
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    assert receiver.place[0] == host
    assert receiver.place[1] > 1
    receiver.close()
    thread.join(LIMIT_S)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "nodes.gamma.options.remote_address: is missing"),
        ({"remote_address": "nowhere"}, "is not HOST:PORT"),
        ({"remote_address": ":7"}, "is not HOST:PORT"),
        ({"remote_address": "127.0.0.1:0", "remote_listen": "x:y"}, "remote_listen: 'x:y' is not HOST:PORT"),
    ],
)
def test_a_node_that_does_not_say_where_is_refused(tmp_path: Path, options: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        listening(tmp_path, options)()


def listening(work: Path, options: dict[str, str]) -> Callable[[], Any]:
    transfer = TlsTransfer(BackendContext(cluster=Cluster(name="west", state_dir=work), options={}))
    node = Node(name="gamma", export_dir=work, options=options)

    def ignore(_: object) -> None: ...

    return lambda: transfer.remote_receiver(node, terms(RECEIVER), state_dir=work / "r", begun=ignore, accept=ignore)

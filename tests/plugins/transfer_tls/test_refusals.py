"""Whom a receiver, and a sender, refuse; and that the receiver serves on, whatever came."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from diskhaul import certificates
from diskhaul.api import ExportStore
from diskhaul.errors import ConfigurationError, DiskhaulError, StorageError, UnreachableNodeError
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, OLD, content, make, put
from diskhaul_plugins.transfers.tls import connection as client_connection
from diskhaul_plugins.transfers.tls.client_stream import TlsFile
from diskhaul_plugins.transfers.tls.connection import BrokenConnectionError
from diskhaul_plugins.transfers.tls.wire import Kind

from .conftest import LIMIT_S, Lab, forge, wait_until

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)


def assert_serves(lab: Lab, export_id: str = NEW) -> None:
    """A real node's real export goes through."""
    store = lab.transfer("alpha").store(lab.node("beta"))
    make(store, export_id, {"disk-0.raw.zst": pattern(3_000_000)})
    assert content(store.open(INSTANCE, export_id), "disk-0.raw.zst") == pattern(3_000_000)
    assert export_id in store.exports(INSTANCE)


def bare_client(lab: Lab, certificate: Path | None, **limits: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that is not diskhaul's, and verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, version in limits.items():
        setattr(context, name, version)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def other_authority(lab: Lab, name: str) -> Path:
    """A directory with the certificate of `name` by an authority of the same names, which is another."""
    directory = lab.work / "other-certs"
    certificates.make_authority(directory, "lab")
    certificates.issue(directory, name)
    return directory


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_client_without_a_certificate_is_refused_although_its_handshake_and_first_write_succeed(lab: Lab) -> None:
    lab.serve()
    with bare_client(lab, None).wrap_socket(lab.connect()) as client:  # TLS 1.3: it learns of it only when it reads
        client.settimeout(LIMIT_S)
        client.send(b"x")
        with pytest.raises(OSError, match=r"(?i)certificate.required"):
            client.recv(100)
    lab.wait_for_line("refused", "peer did not return a certificate")
    assert_serves(lab)


def _wrong_authority(lab: Lab) -> None:
    shutil.copy(other_authority(lab, "alpha") / "alpha.pem", lab.certs / "alpha.pem")


def _no_san(lab: Lab) -> None:
    forge(lab.certs, "alpha")


def _forged(**how: object) -> Callable[[Lab], None]:
    return lambda lab: forge(lab.certs, "alpha", **how)  # type: ignore[arg-type]  # as given below


ALPHA = "diskhaul://lab/node/alpha"
WRONG_CLIENTS = {
    "by another authority": (
        _wrong_authority,
        r"is of no authority in .*/ca\.crt: copy there .* \(.*(signature|issuer|self.signed)",
    ),
    "expired": (_forged(uri=ALPHA, starts_in=timedelta(days=-9), ends_in=timedelta(seconds=-5)), "has expired: .*certs renew"),
    "not valid yet": (_forged(uri=ALPHA, starts_in=timedelta(hours=1)), "is not valid yet: .*clocks"),
    "a common name and no subjectAltName": (_no_san, "no name diskhaul://"),
    "a server's by its extended key usage": (_forged(uri=ALPHA, uses=SERVER), "is not for this use: .*purpose"),
    "a receiver's by its role": (_forged(uri="diskhaul://lab/receiver/alpha", uses=None), "role is 'receiver'"),
    "of another cluster": (_forged(uri="diskhaul://lab2/node/alpha"), "of cluster 'lab2'"),
    "of no known node": (_forged(uri="diskhaul://lab/node/stranger"), "'stranger' is not a node"),
    "of a name that is none": (_forged(uri="diskhaul://lab/node/..%2f"), "name"),
    "without a name": (_forged(uri="https://alpha/"), "no name diskhaul://"),
}


@pytest.mark.parametrize(("make_wrong", "reason"), WRONG_CLIENTS.values(), ids=WRONG_CLIENTS)
def test_a_client_with_a_wrong_certificate_is_refused_with_a_reason(
    lab: Lab, made_certificates: Path, make_wrong: Callable[[Lab], None], reason: str
) -> None:
    lab.serve()
    make_wrong(lab)
    # It sees to its own side only: what it would refuse of itself is sent all the same.
    with bare_client(lab, lab.certs / "alpha.pem").wrap_socket(lab.connect()) as client:
        client.settimeout(LIMIT_S)
        try:
            hello = b'{"protocol":"diskhaul-tls","version":2,"cluster":"lab","to":"beta","for":"calls","silence_ms":9000}'
            client.sendall(b"dh\x01\x00" + len(hello).to_bytes(4, "big") + hello)
            answer = client.recv(1)
            assert not answer or client.recv(1000)[:2] == b"h\x03", "READY would be kind 2"
        except OSError:
            pass  # closed with an alert
    wait_until(lambda: bool(lab.said), "a line in the log")
    line = lab.wait_for_line("refused")
    assert re.search(reason, line), line
    shutil.copy(made_certificates / "alpha.pem", lab.certs / "alpha.pem")
    assert_serves(lab)


def test_a_sender_is_told_that_it_is_refused(lab: Lab) -> None:
    lab.serve()
    forge(lab.certs, "alpha", uri=ALPHA, uses=SERVER)
    with pytest.raises(UnreachableNodeError, match=r"node beta .*refuses this node: .*(unsupported|bad) certificate"):
        lab.transfer("alpha").store(lab.node("beta"))


def test_another_node_s_valid_certificate_does_not_write_exports_of_a_guest_that_is_not_its(lab: Lab) -> None:
    lab.serve()
    mine = lab.transfer("alpha").store(lab.node("beta"))
    make(mine, OLD)
    theirs = lab.transfer("gamma").store(lab.node("beta"))
    forbidden: list[Callable[[], object]] = [
        lambda: theirs.begin(INSTANCE, NEW),
        lambda: theirs.remove(INSTANCE, OLD),
        lambda: theirs.remove_partial(INSTANCE, OLD),
    ]
    for attempt in forbidden:
        with pytest.raises(StorageError, match=r"node gamma may not write exports of 'web1.example.com'"):
            attempt()
    assert "may not write" in "\n".join(theirs.check(INSTANCE, for_writing=True))
    assert content(theirs.open(INSTANCE, OLD), "disk-0.raw") == b"bytes", "it is a secondary: it may read"
    assert list(mine.exports(INSTANCE)) == [OLD]
    lab.wait_for_line("node gamma", "may not write")


def test_a_node_reads_only_exports_of_guests_that_are_its(lab: Lab) -> None:
    lab.serve("gamma")
    make(lab.transfer("alpha").store(lab.node("gamma")), OLD)
    store = lab.transfer("beta").store(lab.node("gamma"))
    assert list(store.instances()) == []
    for attempt in (lambda: store.open(INSTANCE, OLD), lambda: store.exports(INSTANCE), lambda: store.partials(INSTANCE)):
        with pytest.raises(StorageError, match=r"node beta may not read"):
            attempt()
    assert store.identity == lab.transfer("alpha").store(lab.node("gamma")).identity


def test_the_master_writes_and_reads_all_exports_also_of_guests_that_are_gone(lab: Lab) -> None:
    object.__setattr__(lab.cluster, "master", "gamma")
    lab.serve()
    store = lab.transfer("gamma").store(lab.node("beta"))
    make(store, NEW, instance="gone.example.com")
    assert list(store.instances()) == ["gone.example.com"]
    store.remove("gone.example.com", NEW)


def test_a_certificate_that_is_only_for_receiving_or_sending_is_good_for_that_alone(lab: Lab) -> None:
    certificates.issue(lab.certs, "beta", role="receiver", force=True)
    certificates.issue(lab.certs, "alpha", role="source", force=True)
    lab.serve()
    assert_serves(lab)
    lab.serve("gamma")
    with pytest.raises(UnreachableNodeError, match="refuses this node"):
        lab.transfer("beta").store(lab.node("gamma"))


# --- servers ----------------------------------------------------------------------------------------------------------


WRONG_SERVERS = {
    "another node's": ({"uri": "diskhaul://lab/node/gamma", "dns": "gamma"}, "is not for the name beta: .*certs node beta"),
    "of another node by its URI": ({"uri": "diskhaul://lab/node/gamma", "dns": "beta"}, "that of node gamma"),
    "a common name and no subjectAltName": ({}, "is not for the name beta"),
    "a client's by its extended key usage": (
        {"uri": "diskhaul://lab/node/beta", "uses": CLIENT},
        "is not for this use: .*purpose",
    ),
    "a source's by its role": ({"uri": "diskhaul://lab/source/beta", "uses": None}, "role is 'source'"),
    "expired": (
        {"uri": "diskhaul://lab/node/beta", "starts_in": timedelta(days=-9), "ends_in": timedelta(seconds=-5)},
        r"has expired: 'diskhaul certs renew' makes a new beta\.pem",
    ),
    "not valid yet": ({"uri": "diskhaul://lab/node/beta", "starts_in": timedelta(hours=1)}, "is not valid yet: .*clocks"),
    "of another cluster": ({"uri": "diskhaul://lab2/node/beta"}, "of cluster 'lab2'"),
    "without a name of ours": ({"uri": "https://beta/"}, "no name diskhaul://"),
}


@pytest.mark.parametrize(("how", "reason"), WRONG_SERVERS.values(), ids=WRONG_SERVERS)
def test_a_receiver_with_a_wrong_certificate_is_refused(lab: Lab, how: dict[str, object], reason: str) -> None:
    forge(lab.certs, "beta", **how)  # type: ignore[arg-type]  # as given above
    lab.serve()
    with pytest.raises(UnreachableNodeError, match=reason) as refused:
        lab.transfer("alpha").store(lab.node("beta"))
    assert "\n" not in str(refused.value)


def test_a_receiver_by_another_authority_is_refused(lab: Lab) -> None:
    right = lab.certs
    lab.certs = other_authority(lab, "beta")
    lab.serve()
    lab.certs = right
    with pytest.raises(UnreachableNodeError, match=r"is refused: its certificate is of no authority in .*/certs/ca\.crt: copy"):
        lab.transfer("alpha").store(lab.node("beta"))


# --- what is no TLS 1.3 -----------------------------------------------------------------------------------------------


def test_plaintext_is_refused(lab: Lab) -> None:
    lab.serve()
    with lab.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: beta\r\n\r\n")
        lab.wait_for_line("refused", "no TLS 1.3 handshake")
    assert_serves(lab)


@pytest.mark.parametrize(
    ("what", "value", "says"),
    [
        ("VERSION", 1, "version 2 of diskhaul-tls only: install the same version of diskhaul on both nodes"),
        ("VERSION", 3, "version 2 of diskhaul-tls only: install the same version of diskhaul on both nodes"),
        ("PROTOCOL", "another", "diskhaul-tls only"),
    ],
)
def test_a_sender_of_another_version_is_refused_and_told_what_to_do(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, what: str, value: object, says: str
) -> None:
    lab.serve()
    with monkeypatch.context() as patched:
        patched.setattr(client_connection, what, value)
        with pytest.raises(StorageError, match=f"node beta .*{says}"):
            lab.transfer("alpha").store(lab.node("beta"))
    assert re.search(says, lab.wait_for_line("refused"))
    assert_serves(lab)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_older_versions_of_tls_are_refused(lab: Lab, version: ssl.TLSVersion) -> None:
    lab.serve()
    context = bare_client(lab, lab.certs / "alpha.pem", minimum_version=version, maximum_version=version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with lab.connect() as plain, pytest.raises(OSError, match=r"(?i)version"):
        context.wrap_socket(plain)
    lab.wait_for_line("refused", "unsupported protocol")
    assert_serves(lab)


def test_a_receiver_that_speaks_tls_1_2_only_is_refused(lab: Lab) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(lab.certs / "beta.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with listener, listener.accept()[0] as plain, pytest.raises(OSError, match=r"(?i)protocol|eof|reset"):
            context.wrap_socket(plain, server_side=True)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with pytest.raises(UnreachableNodeError, match=r"(?i)protocol version"):
            lab.transfer("alpha").store(lab.node("beta", f"127.0.0.1:{listener.getsockname()[1]}"))
    finally:
        thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_a_slow_handshake_is_cut_off(lab: Lab) -> None:
    lab.serve(handshake_timeout_s=0.3)
    hello = ssl.MemoryBIO()
    outgoing = bare_client(lab, None).wrap_bio(ssl.MemoryBIO(), hello)
    with pytest.raises(ssl.SSLWantReadError):
        outgoing.do_handshake()
    with lab.connect() as slow, lab.connect() as silent:
        slow.sendall(hello.read()[:100])
        assert slow.recv(1) == b""
        assert silent.recv(1) == b""
    lab.wait_for_line("refused", "no handshake in time")
    assert_serves(lab)


def test_an_authenticated_client_that_says_nothing_is_cut_off(lab: Lab) -> None:
    lab.serve(handshake_timeout_s=0.3)
    with bare_client(lab, lab.certs / "alpha.pem").wrap_socket(lab.connect()) as client:
        client.settimeout(LIMIT_S)
        assert client.recv(1) == b""
    lab.wait_for_rest()
    assert_serves(lab)


GREETINGS = [
    b"dh\x01\x00\xff\xff\xff\xff",
    b"dh\x01\x00\x00\x00\x00\x02[]",
    b"dh\x01\x00\x00\x00\x00\x0d" + b'{"a":1,"a":2}',
    b"dh\x01\x00\x00\x00\x27\x10" + b"[" * 10_000,
    b"dh\x01\x00\x00\x00\x00\x0a" + b'{"a":1e99}',
    b"dh\x08\x00\x00\x00\x00\x00",
    b"xx\x01\x00\x00\x00\x00\x00",
]


@pytest.mark.parametrize("greeting", GREETINGS, ids=range(len(GREETINGS)))
def test_an_authenticated_client_that_does_not_speak_the_protocol_is_refused(lab: Lab, greeting: bytes) -> None:
    lab.serve()
    with bare_client(lab, lab.certs / "alpha.pem").wrap_socket(lab.connect()) as client:
        client.settimeout(LIMIT_S)
        client.sendall(greeting)
        answer = b""
        while chunk := client.recv(4096):
            answer += chunk
        assert answer[:3] == b"dh\x03"
    lab.wait_for_line("node alpha: refused")
    assert_serves(lab)


# --- many connections -------------------------------------------------------------------------------------------------


def test_a_receiver_under_1000_idle_and_100_garbage_connections_still_takes_a_real_stream(lab: Lab) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        lab.serve()
        with ExitStack() as stack:
            for number in range(1100):
                client = stack.enter_context(lab.connect())
                if number % 11 == 5:
                    client.sendall(os.urandom(300))
            assert_serves(lab)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_serves(lab, OLD)


def test_a_receiver_without_free_descriptors_serves_on_once_there_are_some(lab: Lab) -> None:
    receiver = lab.serve(max_pending=5000)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [lab.connect() for _ in range(20)]
    try:
        wait_until(lambda: len(receiver._pending) >= 20, "connections accepted")
        late = socket.socket()
        clients.append(late)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # below what is open: no more can be made
        try:
            late.connect(clients[0].getpeername())
            lab.wait_for_line("could not be accepted: Too many open files")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    finally:
        for client in clients:
            client.close()
    assert_serves(lab)


def test_authenticated_peers_that_say_nothing_more_do_not_keep_others_out_and_are_cut_off(lab: Lab) -> None:
    lab.serve(max_per_peer=4, max_connections=5, idle_timeout_s=1.0)
    store = lab.transfer("gamma").store(lab.node("beta"))
    connections = [store._caller.dialler.dial("calls")[0] for _ in range(4)]  # type: ignore[attr-defined]
    try:
        assert_serves(lab)  # alpha has one at a time
        for connection in connections:
            with pytest.raises(BrokenConnectionError):
                connection.receive(Kind.RESULT)
    finally:
        for connection in connections:
            connection.close()
    lab.wait_for_rest()
    assert_serves(lab, OLD)


def test_a_stream_that_says_nothing_more_is_cut_off_and_its_file_goes_on_once_there_is_more(lab: Lab) -> None:
    """Also when each of the pauses is longer than its sender tries again: nothing has failed."""
    receiver = lab.serve(idle_timeout_s=2)
    writer = lab.transfer("alpha", retry_s=1).store(lab.node("beta")).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    assert isinstance(file, TlsFile)
    parts = [pattern(100_000, seed=number) for number in range(3)]
    for number, part in enumerate(parts):
        file.append([part])
        (session,) = receiver._sessions._sessions.values()
        (received,) = session.files.values()
        wait_until(lambda due=number + 1, received=received: received.progress.due == due, "a frame written")  # type: ignore[misc]
        wait_until(lambda: not file._sender._streams, "the idle stream cut off, which its sender has noticed")
    time.sleep(1)  # many times as long as it takes to begin another
    assert received._round == len(parts), "without anything to send, none is begun"
    file.finish()
    writer.publish(MANIFEST)
    assert content(lab.transfer("alpha").store(lab.node("beta")).open(INSTANCE, NEW), "disk-0.raw.zst") == b"".join(parts)


def test_streams_for_which_there_is_no_room_do_not_end_those_that_were_taken(lab: Lab) -> None:
    receiver = lab.serve(max_per_peer=6)
    writer = lab.transfer("alpha", streams=12).store(lab.node("beta")).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    assert isinstance(file, TlsFile)
    parts = [pattern(1 << 20, seed=number) for number in range(24)]
    for part in parts:
        file.append([part])
    (session,) = receiver._sessions._sessions.values()
    (received,) = session.files.values()
    lab.wait_for_line("6 connections already")
    file.finish()
    assert (received._round, file.resent) == (1, 0)
    wait_until(lambda: received.streams == 0, "the streams' end")
    writer.publish(MANIFEST)
    assert content(lab.transfer("alpha").store(lab.node("beta")).open(INSTANCE, NEW), "disk-0.raw.zst") == b"".join(parts)


def test_a_node_has_only_so_many_connections_and_others_have_theirs(lab: Lab) -> None:
    lab.serve(max_per_peer=2)
    store = lab.transfer("alpha").store(lab.node("beta"))
    make(store, OLD)
    first, second = (store.open(INSTANCE, OLD) for _ in range(2))
    readers = [first.open("disk-0.raw"), second.open("disk-0.raw")]
    try:
        with pytest.raises(UnreachableNodeError, match="this node has 2 connections already"):
            lab.transfer("alpha", retry_s=0).store(lab.node("beta"))
        assert lab.transfer("gamma").store(lab.node("beta")).identity
    finally:
        for reader in readers:
            reader.close()
    lab.wait_for_rest()
    assert_serves(lab)


# --- keys and rotation ------------------------------------------------------------------------------------------------


def test_a_private_key_that_others_can_read_is_refused(lab: Lab) -> None:
    (lab.certs / "alpha.pem").chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"others can read it \(mode 640\); run: chmod 600"):
        lab.transfer("alpha").store(lab.node("beta"))
    (lab.certs / "beta.pem").chmod(0o604)
    with pytest.raises(ConfigurationError, match="mode 604"):
        lab.serve("beta")


def test_renewed_certificates_are_used_without_a_restart_and_an_authority_is_replaced_without_a_gap(lab: Lab) -> None:
    lab.serve()
    transfer = lab.transfer("alpha")

    def store() -> ExportStore:
        return transfer.store(lab.node("beta"))

    make(store(), OLD)
    certificates.rotate_authority(lab.certs)
    assert store().identity, "certificates of the old authority, both trusted"
    certificates.renew(lab.certs, ["alpha"])
    assert store().identity, "one of each"
    with pytest.raises(DiskhaulError, match="first run 'certs renew'"):
        certificates.retire_authorities(lab.certs)
    certificates.renew(lab.certs)
    assert len(certificates.retire_authorities(lab.certs)) == 1
    make(store(), NEW)
    assert list(store().exports(INSTANCE)) == [OLD, NEW]


def test_a_manifest_is_published_only_with_the_session_s_key_and_streams_only_with_their_tokens(lab: Lab) -> None:
    lab.serve()
    store = lab.transfer("alpha").store(lab.node("beta"))
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    stolen = dict(writer._credentials) | {"key": "00" * 32}  # type: ignore[attr-defined]
    caller = store._caller  # type: ignore[attr-defined]
    named = {"instance": INSTANCE, "export_id": NEW}
    with pytest.raises(StorageError, match="sent by somebody else"):
        caller.call("publish", named | stolen, MANIFEST)
    tokens = caller.call("restart", writer._credentials | {"name": "disk-0.raw", "streams": 1})["tokens"]  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="another file's magic value"):
        caller.dialler.dial("stream", token=tokens[0], magic="00" * 16)
    with pytest.raises(StorageError, match="token is not valid"):
        caller.dialler.dial("stream", token=tokens[0], magic="00" * 16)
    writer.publish(MANIFEST)
    assert list(store.exports(INSTANCE)) == [NEW]

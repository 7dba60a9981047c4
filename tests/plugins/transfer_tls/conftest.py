"""Certificates, right and wrong; receivers that run in threads and processes; waiting for conditions."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from diskhaul import certificates
from diskhaul.api import BackendContext, Inventory
from diskhaul.model import Cluster, Instance, Node
from diskhaul.testing.conformance.transfers import INSTANCE
from diskhaul_plugins.transfers.tls.receiver import TlsReceiver
from diskhaul_plugins.transfers.tls.transfer import TlsTransfer

LIMIT_S = 30.0
NODES = ("alpha", "beta", "gamma")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S:g} s"
        threading.Event().wait(0.005)


@pytest.fixture(scope="session")
def made_certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "certs"
    certificates.make_authority(directory, "lab")
    for name in NODES:
        certificates.issue(directory, name)
    return directory


@pytest.fixture
def certs(made_certificates: Path, tmp_path: Path) -> Path:
    """A directory with an authority and a certificate for each of `NODES`."""
    directory = tmp_path / "certs"
    shutil.copytree(made_certificates, directory)
    return directory


def forge(
    directory: Path,
    name: str,
    *,
    uri: str | None = None,
    dns: str | None = None,
    uses: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    starts_in: timedelta = timedelta(hours=-1),
    ends_in: timedelta = timedelta(days=1),
) -> None:
    """Put a certificate into ``NAME.pem`` that is signed by the directory's authority, and wrong as asked.

    `uri` None makes one without any subjectAltName; `uses` None one without extended key usage.
    """
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    signer = load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts_in)
        .not_valid_after(now + ends_in)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if uses is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if uri is not None:
        names = [x509.UniformResourceIdentifier(uri), x509.DNSName(dns or name)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    place = directory / f"{name}.pem"
    place.unlink(missing_ok=True)
    place.touch(mode=0o600)
    place.write_bytes(private + certificate.public_bytes(Encoding.PEM))


class Lab(Inventory):
    """A cluster whose nodes' receivers run in this process. `INSTANCE` lives on alpha; delta is a node without a receiver."""

    def __init__(self, work: Path, certs: Path) -> None:
        self.work, self.certs = work, certs
        self.said: list[str] = []
        self._receivers: list[tuple[TlsReceiver, threading.Thread]] = []
        instances = {INSTANCE, "other.example.com", *(f"web{number}.example.com" for number in range(4))}
        self.cluster = Cluster(
            name="lab",
            master="",
            state_dir=work / "state",
            instances=[Instance(name=name, node="alpha", secondaries=["gamma"]) for name in instances],
        )
        self._nodes: dict[str, Node] = {}
        for name in NODES:
            (work / name).mkdir()
            self._nodes[name] = Node(name=name, export_dir=work / name, options={"address": "127.0.0.1:1"})

    def nodes(self) -> Mapping[str, Node]:
        return dict(self._nodes)

    def instances(self) -> Mapping[str, Instance]:
        return {instance.name: instance for instance in self.cluster.instances}

    def node(self, name: str, address: str | None = None) -> Node:
        """A node as others know it, reached at `address` or where its receiver is."""
        found = self._nodes[name]
        return found if address is None else replace(found, options={"address": address})

    def transfer(self, this: str = "alpha", **options: object) -> TlsTransfer:
        """The transfer of the node `this`."""
        given: dict[str, object] = {"this": this, "certificates": self.certs, "retry_s": 20, "connect_timeout_s": 5} | options
        return TlsTransfer(BackendContext(cluster=replace(self.cluster, nodes=list(self._nodes.values())), options=given))

    def serve(self, name: str = "beta", **options: object) -> TlsReceiver:
        """Start the receiver of the node `name`."""
        listening = replace(self._nodes[name], options={"address": "127.0.0.1:1", "listen": "127.0.0.1:0"})
        receiver = self.transfer(name, **options).receiver(listening, self)
        assert isinstance(receiver, TlsReceiver)
        receiver._tell = self.said.append
        self._nodes[name] = replace(self._nodes[name], options={"address": receiver.address})
        thread = threading.Thread(target=receiver.serve_forever, name=f"receiver-{name}")
        thread.start()
        self._receivers.append((receiver, thread))
        return receiver

    def stop(self) -> None:
        """Stop all receivers."""
        for receiver, thread in self._receivers:
            receiver.close()
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        self._receivers.clear()

    def wait_for_rest(self) -> None:
        """Wait until no receiver has a connection."""
        wait_until(lambda: all(not receiver._threads for receiver, _ in self._receivers), "receivers without connections")

    def connect(self, name: str = "beta") -> socket.socket:
        """A bare TCP connection to a receiver."""
        host, _, port = str(self._nodes[name].options["address"]).rpartition(":")
        return socket.create_connection((host, int(port)), LIMIT_S)

    def wait_for_line(self, *words: str) -> str:
        """Wait until the receivers have logged a line with all `words`; return it."""
        found: list[str] = []

        def said() -> bool:
            found[:] = [line for line in list(self.said) if all(word in line for word in words)]
            return bool(found)

        wait_until(said, f"a line with {words}, in {self.said}")
        return found[-1]


@pytest.fixture
def lab(tmp_path: Path, certs: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, certs)
    yield made
    made.stop()

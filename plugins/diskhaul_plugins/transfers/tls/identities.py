"""Who is at the other end: contexts that verify both ways with the cluster's authority alone, and the name in a certificate.

A peer is who the one URI ``diskhaul://CLUSTER/ROLE/NAME`` in its certificate's subjectAltName says. A common name counts for
nothing (RFC 9525, section 2). What a certificate is good for is said twice, and both have to agree with its use: by the
extended key usage, which OpenSSL checks, and by the role, which is checked here, for certificates that have no such usage.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskhaul.certificates import AUTHORITY, SCHEME, SUFFIX, key_problem
from diskhaul.errors import ConfigurationError
from diskhaul.names import name_problem, printable

SENDERS, RECEIVERS = ("node", "source"), ("node", "receiver")


class WrongPeerError(Exception):
    """The certificate is valid, and the wrong one."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a certificate says its holder is."""

    cluster: str
    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


def peer_of(connection: ssl.SSLSocket, *, cluster: str, roles: Collection[str]) -> Peer:
    """Who is at the other end of a connection whose certificate has been verified.

    Raises:
        WrongPeerError: its certificate names nobody, somebody of another cluster, or is not for this use.
    """
    certificate: Mapping[str, Any] = connection.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI" and value.startswith(f"{SCHEME}://")]
    if len(uris) != 1:
        raise WrongPeerError(f"its certificate has {len(uris) or 'no'} name {SCHEME}://CLUSTER/ROLE/NAME in its subjectAltName")
    parts = uris[0].removeprefix(f"{SCHEME}://").split("/")
    if len(parts) != 3 or name_problem("node", parts[2]):
        raise WrongPeerError(f"its certificate's name {printable(uris[0][:300])} is not {SCHEME}://CLUSTER/ROLE/NAME")
    peer = Peer(*parts)
    if peer.cluster != cluster:
        raise WrongPeerError(f"its certificate is of cluster {printable(peer.cluster)}, not {cluster}")
    if peer.role not in roles:
        raise WrongPeerError(f"its certificate's role is {printable(peer.role)}, which is not one of {', '.join(roles)}")
    return peer


# Which check failed, by OpenSSL's number (X509_V_ERR_..., of <openssl/x509_vfy.h>), and what helps.
_NOT_YET_VALID, _EXPIRED, _PURPOSE, _NAMES = 9, 10, 26, (62, 63, 64)
_AUTHORITIES = (2, 7, 18, 19, 20, 21, 27)  # no issuer, a wrong signature, or an authority that is not among ours


def certificate_problem(error: ssl.SSLCertVerificationError, name: str, authority: Path) -> str:
    """Which check a certificate did not stand, and what to do, in one line.

    Args:
        name: whose certificate it should have been, or "" where anybody's would do.
        authority: the file with those that are trusted here.
    """
    own = f"{name or 'NAME'}{SUFFIX}"
    said = " ".join(error.verify_message.split()).rstrip(".")
    if error.verify_code in _NAMES:
        problem = f"is not for the name {name}: 'diskhaul certs node {name}' makes its {own}; or the address is another node's"
    elif error.verify_code in _AUTHORITIES:
        problem = f"is of no authority in {authority}: copy there the {AUTHORITY} of the authority that made both certificates"
    elif error.verify_code == _EXPIRED:
        problem = f"has expired: 'diskhaul certs renew' makes a new {own} (and see that the clocks are right)"
    elif error.verify_code == _NOT_YET_VALID:
        problem = "is not valid yet: see that the clocks of both machines are right"
    elif error.verify_code == _PURPOSE:
        problem = f"is not for this use: 'diskhaul certs node {name or 'NAME'}' makes one that is good for sending and receiving"
    else:
        problem = "is not valid: see 'diskhaul certs show' there"
    return f"its certificate {problem} ({said})"


class _ClosedWhenStillborn(ssl.SSLSocket):
    """Closes itself when making it fails because the connection has been reset: nobody else has it then."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except OSError:
            if self.version() is None:  # no handshake has begun
                self.close()
            raise


class Identity:
    """This node's certificate and key, and the authority it trusts; read again when the files change. Thread-safe.

    A context that was made stays good for the connections that use it.
    """

    def __init__(self, directory: Path, this: str) -> None:
        """`this` "" takes the only ``NAME.pem`` in `directory`. Nothing is read of it yet but its name.

        Raises:
            ConfigurationError: there is no such file, or none that is the only one, or others can read it.
        """
        self.this = this or _only_one(directory)
        self._authority, self._own = directory / AUTHORITY, directory / f"{self.this}{SUFFIX}"
        self._contexts: dict[bool, tuple[object, ssl.SSLContext]] = {}
        self._lock = threading.Lock()
        if problems := self.problems():
            raise ConfigurationError(problems)

    @property
    def authority(self) -> Path:
        """The file with the authorities that are trusted."""
        return self._authority

    def problems(self) -> list[str]:
        """Why the files cannot be used, one line each."""
        problems = []
        for place in (self._authority, self._own):
            try:
                if place is self._own and (problem := key_problem(place)):
                    problems.append(problem)
                os.stat(place)
            except OSError as error:
                problems.append(f"{place}: {error.strerror}; 'diskhaul certs' makes certificates")
        return problems

    def context(self, *, server: bool) -> ssl.SSLContext:
        """A context for either side.

        Raises:
            ConfigurationError: the files cannot be used, or others can read the key.
        """
        with self._lock:
            seen = tuple(_seen(place) for place in (self._authority, self._own))
            kept = self._contexts.get(server)
            if kept is None or kept[0] != seen:
                if problems := self.problems():
                    raise ConfigurationError(problems)
                kept = self._contexts[server] = (seen, self._made(server=server))
            return kept[1]

    def _made(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = _ClosedWhenStillborn
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if server:
            context.num_tickets = 0  # nothing is resumed: each connection shows its certificate
        else:
            context.check_hostname = True
            context.hostname_checks_common_name = False
        try:
            context.load_verify_locations(cafile=self._authority)
            context.load_cert_chain(self._own)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"{self._own}, {self._authority}: cannot be used: {error}") from error
        return context


def _only_one(directory: Path) -> str:
    try:
        names = sorted(file.stem for file in directory.iterdir() if file.suffix == SUFFIX and not file.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"{directory}: {error.strerror}; 'diskhaul certs' makes certificates") from error
    if len(names) != 1:
        found = ", ".join(names[:20]) or "none"
        raise ConfigurationError(f"backend_options.tls.this: say which node this machine is; {directory} has keys of: {found}")
    return names[0]


def _seen(place: Path) -> object:
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode

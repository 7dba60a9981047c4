"""The identity of one side of an export to another cluster: it trusts exactly one certificate, and shows its own.

No authority is involved. That one certificate is all that there is to verify against, it may not sign others, and after the
handshake the bytes that came are compared with it as well. A certificate that has expired is refused until the export has begun;
one that begins in time may take longer than the certificates count, and connects anew many times.
"""

from __future__ import annotations

import hmac
import os
import ssl
import threading
from pathlib import Path

from diskhaul.errors import ConfigurationError

from .identities import Identity, WrongPeerError

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which ssl.VerifyFlags has no name

_ANOTHER = "its certificate is not the one that was agreed on for this export"
# By OpenSSL's number (X509_V_ERR_..., of <openssl/x509_vfy.h>).
_PROBLEMS = {
    9: "its certificate is not valid yet: see that the clocks of both clusters are right",
    10: "its certificate has expired: prepare the export anew",
}


class PinnedIdentity(Identity):
    """Key and certificate that are nowhere but in memory, and the one certificate of the other side. Thread-safe."""

    def __init__(self, own: bytes, pinned: bytes) -> None:
        """PEM, both; `own` with the private key.

        Raises:
            ConfigurationError: they cannot be used.
        """
        self._own_pem, self._pinned = own, pinned
        self._begun = False
        self._made_contexts: dict[bool, ssl.SSLContext] = {}
        self._making = threading.Lock()
        for server in (False, True):
            self.context(server=server)

    @property
    def authority(self) -> Path:
        """There is none."""
        return Path("/nonexistent")

    def problems(self) -> list[str]:
        return []

    def begun(self) -> None:
        """The export has begun: from here on the certificates' times count for nothing."""
        with self._making:
            if not self._begun:
                self._begun = True
                self._made_contexts.clear()

    def context(self, *, server: bool) -> ssl.SSLContext:
        with self._making:
            if server not in self._made_contexts:
                self._made_contexts[server] = self._new_context(server=server)
            return self._made_contexts[server]

    def _new_context(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if self._begun:
            context.verify_flags |= _NO_CHECK_TIME
        if server:
            context.num_tickets = 0  # nothing is resumed: each connection shows its certificate
        else:
            context.check_hostname = True
            context.hostname_checks_common_name = False
        try:
            text = self._pinned.decode("ascii")
            context.sslsocket_class = _pinning(ssl.PEM_cert_to_DER_cert(text))
            context.load_verify_locations(cadata=text)
            _load_own(context, self._own_pem)
        except (ValueError, ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"the certificates of a remote export cannot be used: {error}") from error
        return context


def _load_own(context: ssl.SSLContext, pem: bytes) -> None:
    """Load key and certificate, which OpenSSL takes from files only, from a file that has no name."""
    descriptor = os.memfd_create("diskhaul-identity", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _pinning(der: bytes) -> type[ssl.SSLSocket]:
    class Pinned(ssl.SSLSocket):
        """Takes no other end than the one with this certificate."""

        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
                shown = self.getpeercert(binary_form=True) or b""
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise WrongPeerError(_PROBLEMS.get(error.verify_code, _ANOTHER)) from error
            if not hmac.compare_digest(shown, der):
                self.close()
                raise WrongPeerError(_ANOTHER)

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            try:
                return super().recv(buflen, flags)
            except OSError:
                if self.version() is None:  # making it fails, and nobody else has it
                    self.close()
                raise

    return Pinned

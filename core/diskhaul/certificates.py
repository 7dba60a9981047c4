"""A small certificate authority for clusters without a PKI of their own: made, used, renewed and replaced in one directory.

    DIR/ca.crt      certificates of the authority, the one that signs first; others are trusted as well while it is being replaced
    DIR/ca.key      the key of the one that signs; needed here only to issue and renew, never on the nodes
    DIR/NAME.pem    a node's private key and certificate, in one file, so that both are replaced by one rename

A node's certificate says who it is in its subjectAltName (RFC 5280, section 4.2.1.6): one URI ``diskhaul://CLUSTER/ROLE/NAME``,
and NAME and further names as DNS names. Its extended key usage follows from its role. Keys are ECDSA P-256. Every file is written
beside its place, made durable, and renamed over it. ``cryptography`` is imported when something is made or looked at, not before.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from .errors import RefusedError, StorageError
from .names import name_problem, printable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

Role = Literal["node", "source", "receiver"]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a certificate is good for: to send and to receive, only to send, only to receive."""

AUTHORITY, AUTHORITY_KEY, SUFFIX = "ca.crt", "ca.key", ".pem"
SCHEME = "diskhaul"
AUTHORITY_DAYS, NODE_DAYS = 3650, 397
RENEW_WITHIN_DAYS = 30
"""`renew` without names takes what has less left than this, or is no longer signed by the present authority."""

BACKDATED = timedelta(hours=1)
"""How much earlier than it was made a certificate begins to be valid: clocks of nodes differ."""
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateInfo:
    """What a certificate in the directory says.

    Attributes:
        file: its file's name there.
        name: the node's, or the cluster's for the authority.
        role: "authority", or the node's role.
        problem: why it cannot be used, or "".
    """

    file: str
    name: str
    role: str
    cluster: str = ""
    dns: tuple[str, ...] = ()
    not_before: datetime | None = None
    not_after: datetime | None = None
    serial: str = ""
    problem: str = ""

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires; negative once it has, and for what is no certificate."""
        return -1 if self.not_after is None else (self.not_after - now).days


def make_authority(directory: Path, cluster: str, *, days: int = AUTHORITY_DAYS, force: bool = False) -> CertificateInfo:
    """Make `directory` (0700) with a new authority for `cluster`.

    Raises:
        RefusedError: there is one already and not `force` (with which every certificate that the old one signed ends at once),
            or the cluster's name cannot be one.
        StorageError: the directory cannot be written.
    """
    _check(name_problem("cluster", cluster))
    _check_cryptography()
    check_directory(directory, make=True)
    for name in (AUTHORITY, AUTHORITY_KEY):
        if not force and os.path.lexists(directory / name):
            raise RefusedError(
                f"{directory / name} exists already; 'certs rotate' replaces an authority without a gap, --force at once"
            )
    key, certificate = _new_authority(cluster, days)
    write_durably(directory / AUTHORITY_KEY, _key_bytes(key), 0o600)
    write_durably(directory / AUTHORITY, _certificate_bytes(certificate), 0o644)
    return _info(AUTHORITY, certificate)


def rotate_authority(directory: Path, *, days: int = AUTHORITY_DAYS) -> CertificateInfo:
    """Make a new authority that signs from now on; the earlier ones stay trusted until `retire_authorities`."""
    earlier = _authorities(directory)
    key, certificate = _new_authority(_cluster_of(earlier[0]), days)
    # The key last: with the old key and the new list, issuing is refused; the other way round it would sign what nobody trusts.
    write_durably(directory / AUTHORITY, b"".join(map(_certificate_bytes, [certificate, *earlier])), 0o644)
    write_durably(directory / AUTHORITY_KEY, _key_bytes(key), 0o600)
    return _info(AUTHORITY, certificate)


def retire_authorities(directory: Path) -> tuple[CertificateInfo, ...]:
    """Trust only the authority that signs now; return those that are no longer trusted.

    Raises:
        RefusedError: a certificate in the directory is still signed by an earlier one.
    """
    signing, *earlier = _authorities(directory)
    waiting = [info.file for info in show(directory) if info.problem and info.role != "authority"]
    if waiting:
        raise RefusedError(f"{directory}: {', '.join(waiting)}: not signed by the present authority: first run 'certs renew'")
    write_durably(directory / AUTHORITY, _certificate_bytes(signing), 0o644)
    return tuple(_info(AUTHORITY, certificate) for certificate in earlier)


def issue(
    directory: Path, name: str, *, role: Role = "node", dns: Sequence[str] = (), days: int = NODE_DAYS, force: bool = False
) -> CertificateInfo:
    """Make a key and a certificate for the node `name`.

    Args:
        dns: DNS names besides `name`; nothing in diskhaul needs them.

    Raises:
        RefusedError: it has one already and not `force`; a name cannot be one; there is no authority, or its key is elsewhere.
        StorageError: the directory cannot be written.
    """
    _check(name_problem("node", name))
    for other in dns:
        _check(name_problem("DNS", other))
    if role not in ROLES:
        raise RefusedError(f"role {printable(role)}: one of {', '.join(ROLES)}")
    if f"{name}{SUFFIX}" in (AUTHORITY, AUTHORITY_KEY):
        raise RefusedError(f"node name {name}: cannot have a certificate of that name")
    place = directory / f"{name}{SUFFIX}"
    if not force and os.path.lexists(place):
        raise RefusedError(f"{place} exists already; 'certs renew {name}' makes a new one of the same kind, --force any")
    return _issue(directory, name, role, dns, days)


def renew(directory: Path, names: Sequence[str] = (), *, days: int = NODE_DAYS) -> tuple[CertificateInfo, ...]:
    """Make new keys and certificates, of the same role and names: for `names`, or for all that are due.

    Raises:
        RefusedError: a name has no certificate here; there is no authority, or its key is elsewhere.
        StorageError: the directory cannot be written.
    """
    known = {info.name: info for info in show(directory) if info.role != "authority"}
    if unknown := [name for name in names if name not in known or not known[name].cluster]:
        raise RefusedError(f"{directory}: no certificate of {', '.join(map(printable, unknown))}: 'certs node NAME' makes one")
    now = datetime.now(UTC)
    due = names or [
        name for name, info in known.items() if info.cluster and (info.problem or info.days_left(now) < RENEW_WITHIN_DAYS)
    ]
    renewed = []
    for name in due:
        info = known[name]
        role: Role = next(role for role in ROLES if role == info.role)
        renewed.append(_issue(directory, name, role, [other for other in info.dns if other != name], days))
    return tuple(renewed)


def show(directory: Path) -> tuple[CertificateInfo, ...]:
    """What is in the directory: the authorities, the one that signs first, then the nodes by name.

    Raises:
        RefusedError: there is no authority in `directory`.
    """
    authorities = _authorities(directory)
    now = datetime.now(UTC)
    found = [_info(AUTHORITY, certificate, _time_problem(certificate, now)) for certificate in authorities]
    files = [file for file in sorted(directory.iterdir()) if file.suffix == SUFFIX and not file.name.startswith(".")]
    return tuple(found + [_node_info(file, authorities[0], now) for file in files])


def key_problem(place: Path | str) -> str | None:
    """Say in one line why the private key at `place` cannot be used: others can read or replace it, or it is no file.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.stat(place)
    if not stat.S_ISREG(status.st_mode):
        return f"{place} is no regular file"
    if status.st_uid not in (0, os.geteuid()):
        return f"{place} holds a private key and belongs to uid {status.st_uid}; run: chown root {place}"
    if status.st_mode & 0o077:
        return (
            f"{place} holds a private key and others can read it (mode {stat.S_IMODE(status.st_mode):o}); run: chmod 600 {place}"
        )
    return None


# --- short-lived ones -------------------------------------------------------------------------------------------------


def make_self_signed(cluster: str, role: Role, name: str, *, now: datetime, until: datetime) -> tuple[bytes, bytes]:
    """A new key and a certificate that no authority signs, for one side of a remote export: as PEM, nothing is written.

    The other side trusts this certificate and no other, so that it needs no authority. It cannot sign certificates.

    Raises:
        RefusedError: ``cryptography`` is missing, or a name cannot be one.
    """
    _check(name_problem("cluster", cluster))
    _check(name_problem(role, name))
    _check_cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(_leaf(cluster, role, name, (), key.public_key(), _name(name[:64]), until, now=now), key)
    return _key_bytes(key), _certificate_bytes(certificate)


def self_signed_problems(pem: str, cluster: str, role: Role, name: str, *, now: datetime) -> list[str]:
    """Why `pem` is not a valid certificate of one side of a remote export, one line each."""
    _check_cryptography()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        found = x509.load_pem_x509_certificates(pem.encode("ascii"))
        (certificate,) = found
        info = _info("", certificate)
    except Exception as error:  # of many kinds: an unknown version of certificates is one of its own
        return [f"is invalid: {printable(str(error)[:200])}"]
    problems = []
    if (info.cluster, info.role, info.name) != (cluster, role, name):
        problems.append(f"is invalid: it is that of {info.role} {printable(info.name)} of cluster {printable(info.cluster)}")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        problems.append("is invalid: its signature is not its own")
    if _certificate_bytes(certificate) != pem.encode("ascii"):
        problems.append("is invalid: there is more in it than one certificate")
    if problem := _time_problem(certificate, now):
        problems.append(problem)
    return problems


# --- making -----------------------------------------------------------------------------------------------------------


def _new_authority(cluster: str, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # A subject of its own for each: with two authorities of one name a verifier may look for a signature at the wrong one.
    subject = _name(f"diskhaul {cluster}"[:50] + f" {secrets.token_hex(4)}")
    now = datetime.now(UTC)
    builder = _builder(subject, subject, key.public_key(), now + timedelta(days=days), now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    uri = x509.UniformResourceIdentifier(f"{SCHEME}://{cluster}/authority")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, _signed(builder, key)


def _issue(directory: Path, name: str, role: Role, dns: Sequence[str], days: int) -> CertificateInfo:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    check_directory(directory)
    authority = _authorities(directory)[0]
    signer = _authority_key(directory, authority)
    key = ec.generate_private_key(ec.SECP256R1())
    days = min(days, max(0, (authority.not_valid_after_utc - datetime.now(UTC)).days))
    if days < 1:
        raise RefusedError(f"{directory / AUTHORITY}: the authority has expired or will within a day: run 'certs rotate'")
    now = datetime.now(UTC)
    builder = _leaf(_cluster_of(authority), role, name, dns, key.public_key(), authority.subject, now + timedelta(days=days))
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(issuer_key, critical=False)
    certificate = _signed(builder, signer)
    file = directory / f"{name}{SUFFIX}"
    write_durably(file, _key_bytes(key) + _certificate_bytes(certificate), 0o600)
    return _info(file.name, certificate)


def _leaf(
    cluster: str,
    role: str,
    name: str,
    dns: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    until: datetime,
    *,
    now: datetime | None = None,
) -> x509.CertificateBuilder:
    """What the certificate of a node, or of one side of a remote export, says."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    uri = x509.UniformResourceIdentifier(f"{SCHEME}://{cluster}/{role}/{name}")
    names: list[x509.GeneralName] = [uri, *(x509.DNSName(entry) for entry in dict.fromkeys([name, *dns]))]
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH] if role != "receiver" else []
    uses += [ExtendedKeyUsageOID.SERVER_AUTH] if role != "source" else []
    builder = _builder(_name(name[:64]), issuer, public_key, until, now or datetime.now(UTC))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, until: datetime, now: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before((now - BACKDATED).replace(microsecond=0)).not_valid_after(until.replace(microsecond=0))


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(key, SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


# --- reading ----------------------------------------------------------------------------------------------------------


def _authorities(directory: Path) -> list[x509.Certificate]:
    _check_cryptography()
    from cryptography import x509

    file = directory / AUTHORITY
    try:
        found = x509.load_pem_x509_certificates(_read(file))
    except FileNotFoundError:
        raise RefusedError(f"{file} does not exist: 'certs init' makes an authority; --dir says where it is") from None
    except OSError as error:
        raise RefusedError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise RefusedError(f"{file}: is no certificate: {error}") from error
    for certificate in found:
        _cluster_of(certificate, str(file))
    return found


def _authority_key(directory: Path, authority: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    file = directory / AUTHORITY_KEY
    try:
        _check(key_problem(file))
        key = load_pem_private_key(_read(file), None)
    except FileNotFoundError:
        raise RefusedError(f"{file} does not exist: certificates are made where the authority's key is") from None
    except (OSError, ValueError, TypeError) as error:
        raise RefusedError(f"{file}: cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise RefusedError(f"{file}: is not the key of the first certificate in {AUTHORITY}")
    return key


def _node_info(file: Path, authority: x509.Certificate, now: datetime) -> CertificateInfo:
    from cryptography import x509

    try:
        problem = key_problem(file)
        certificate = x509.load_pem_x509_certificate(_read(file))
        info = _info(file.name, certificate)
        if info.name != file.name.removesuffix(SUFFIX):
            raise ValueError(f"is the certificate of {printable(info.name)}")
    except (OSError, ValueError) as error:
        return CertificateInfo(file=file.name, name=file.name.removesuffix(SUFFIX), role="?", problem=f"{file}: {error}")
    return _info(file.name, certificate, problem or _issuer_problem(certificate, authority) or _time_problem(certificate, now))


def _issuer_problem(certificate: x509.Certificate, authority: x509.Certificate) -> str:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "is not signed by the authority that signs now: renew it"
    return ""


def _time_problem(certificate: x509.Certificate, now: datetime) -> str:
    if now > certificate.not_valid_after_utc:
        return "has expired"
    return "is not valid yet" if now < certificate.not_valid_before_utc else ""


def _info(file: str, certificate: x509.Certificate, problem: str = "") -> CertificateInfo:
    from cryptography import x509

    uris, dns = _names(certificate)
    parts = uris[0].removeprefix(f"{SCHEME}://").split("/") if len(uris) == 1 and uris[0].startswith(f"{SCHEME}://") else []
    if parts[1:] == ["authority"]:
        role, name = "authority", parts[0]
    elif len(parts) == 3 and parts[1] in ROLES:
        role, name = parts[1], parts[2]
    else:
        raise ValueError(f"its subjectAltName names nobody as {SCHEME}://CLUSTER/ROLE/NAME")
    assert isinstance(certificate, x509.Certificate)
    return CertificateInfo(
        file=file,
        name=name,
        role=role,
        cluster=parts[0],
        dns=dns,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=f"{certificate.serial_number:x}",
        problem=problem,
    )


def _names(certificate: x509.Certificate) -> tuple[list[str], tuple[str, ...]]:
    from cryptography import x509

    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], ()
    uris = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    return uris, tuple(alternative.get_values_for_type(x509.DNSName))


def _cluster_of(authority: x509.Certificate, file: str = AUTHORITY) -> str:
    try:
        info = _info(file, authority)
    except ValueError as error:
        raise RefusedError(f"{file}: {error}") from error
    if info.role != "authority":
        raise RefusedError(f"{file}: holds the certificate of {printable(info.name)}, which is no authority")
    return info.cluster


# --- files ------------------------------------------------------------------------------------------------------------


def _check_cryptography() -> None:
    if find_spec("cryptography") is None:
        raise RefusedError("certificates are made with 'cryptography', which is missing: pip install 'diskhaul[tls]'")


def _check(problem: str | None) -> None:
    if problem:
        raise RefusedError(problem)


def check_directory(directory: Path, *, make: bool = False) -> None:
    """See that secrets can lie in `directory`; with `make`, make it (0700) where it is missing.

    Raises:
        RefusedError: others can write to it.
        StorageError: it is not there, or cannot be made.
    """
    try:
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.stat(directory)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", path=str(directory)) from error
    if status.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        raise RefusedError(f"{directory} can be written by others; run: chmod go-w {directory}")


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_LIMIT)


def write_durably(file: Path, content: bytes, mode: int) -> None:
    """Replace `file` by one rename, durably; nobody else can read it before it has its mode.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror}", path=str(file)) from error


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)

"""A cluster's own authority: what is made, what is refused, what openssl says of it."""

from __future__ import annotations

import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from diskhaul import certificates
from diskhaul.errors import RefusedError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "certs"
    certificates.make_authority(made, "lab")
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_private_whatever_the_umask_and_nothing_else_is_left(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    before = os.umask(0)
    try:
        certificates.make_authority(directory, "lab")
        certificates.issue(directory, "alpha")
    finally:
        os.umask(before)
    assert {file.name: mode(file) for file in directory.iterdir()} == {"ca.crt": 0o644, "ca.key": 0o600, "alpha.pem": 0o600}
    assert mode(directory) == 0o700


@pytest.mark.parametrize(
    ("role", "uses"),
    [("node", "client server"), ("source", "client"), ("receiver", "server")],
    ids=["node", "source", "receiver"],
)
def test_openssl_takes_a_certificate_for_what_its_role_is_and_nothing_else(
    directory: Path, requires: object, role: certificates.Role, uses: str
) -> None:
    assert callable(requires)
    requires("openssl")
    info = certificates.issue(directory, "beta", role=role, dns=["beta.example.com"])
    assert (info.name, info.role, info.cluster, info.dns) == ("beta", role, "lab", ("beta", "beta.example.com"))
    for purpose in ("client", "server"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", f"ssl{purpose}", "-CAfile", "ca.crt", "beta.pem"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        assert (done.returncode == 0) == (purpose in uses.split()), done.stderr


def test_what_is_there_is_not_overwritten_unless_that_is_asked(directory: Path) -> None:
    certificates.issue(directory, "alpha")
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(RefusedError, match="exists already"):
        certificates.make_authority(directory, "lab")
    with pytest.raises(RefusedError, match="exists already"):
        certificates.issue(directory, "alpha")
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    certificates.issue(directory, "alpha", force=True)
    assert (directory / "alpha.pem").read_bytes() != before["alpha.pem"]


@pytest.mark.parametrize("name", ["", "../alpha", ".alpha", "-x", "a/b", "a\nb", "x" * 300])
def test_a_name_that_is_none_is_refused(directory: Path, name: str) -> None:
    before = sorted(os.listdir(directory.parent))
    with pytest.raises(RefusedError):
        certificates.issue(directory, name)
    with pytest.raises(RefusedError):
        certificates.issue(directory, "alpha", dns=[name])
    with pytest.raises(RefusedError):
        certificates.make_authority(directory.parent / "other", name)
    assert sorted(os.listdir(directory)) == ["ca.crt", "ca.key"]
    assert sorted(os.listdir(directory.parent)) == before


def test_only_what_is_due_is_renewed_with_the_same_names_and_role(directory: Path) -> None:
    certificates.issue(directory, "alpha", role="source", dns=["a.example.com"], days=10)
    certificates.issue(directory, "beta")
    before = {info.name: info for info in certificates.show(directory)}
    renewed = certificates.renew(directory)
    assert [info.name for info in renewed] == ["alpha"]
    after = {info.name: info for info in certificates.show(directory)}
    assert after["beta"] == before["beta"]
    assert (after["alpha"].role, after["alpha"].dns) == ("source", ("alpha", "a.example.com"))
    assert after["alpha"].serial != before["alpha"].serial
    assert after["alpha"].days_left(datetime.now(UTC)) >= certificates.NODE_DAYS - 1
    assert [info.name for info in certificates.renew(directory, ["beta"])] == ["beta"]
    assert certificates.renew(directory) == ()
    with pytest.raises(RefusedError, match="no certificate of 'gamma'"):
        certificates.renew(directory, ["gamma"])


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    certificates.make_authority(tmp_path / "certs", "lab", days=20)
    info = certificates.issue(tmp_path / "certs", "alpha")
    authority = certificates.show(tmp_path / "certs")[0]
    assert info.not_after is not None
    assert authority.not_after is not None
    assert info.not_after <= authority.not_after + timedelta(seconds=5)


def test_an_authority_is_replaced_in_three_steps(directory: Path) -> None:
    certificates.issue(directory, "alpha")
    new = certificates.rotate_authority(directory)
    assert [info.role for info in certificates.show(directory)] == ["authority", "authority", "node"]
    assert "renew it" in certificates.show(directory)[-1].problem
    with pytest.raises(RefusedError, match="first run 'certs renew'"):
        certificates.retire_authorities(directory)
    assert [info.name for info in certificates.renew(directory)] == ["alpha"]
    (retired,) = certificates.retire_authorities(directory)
    assert retired.serial != new.serial
    assert [(info.role, info.problem) for info in certificates.show(directory)] == [("authority", ""), ("node", "")]


def test_what_is_wrong_in_the_directory_is_shown(directory: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        certificates.issue(directory, name)
    (directory / "alpha.pem").chmod(0o640)
    (directory / "beta.pem").write_text("no certificate")
    (directory / "gamma.pem").rename(directory / "delta.pem")
    problems = {info.name: info.problem for info in certificates.show(directory)}
    assert "others can read it (mode 640)" in problems["alpha"]
    assert problems["beta"]
    assert "is the certificate of 'gamma'" in problems["delta"]
    assert problems["lab"] == ""


def test_certificates_are_issued_only_where_the_authority_s_key_is_and_is_private(directory: Path) -> None:
    (directory / "ca.key").chmod(0o644)
    with pytest.raises(RefusedError, match="others can read it"):
        certificates.issue(directory, "alpha")
    (directory / "ca.key").unlink()
    with pytest.raises(RefusedError, match="made where the authority's key is"):
        certificates.issue(directory, "alpha")
    certificates.make_authority(directory.parent / "other", "lab")
    (directory.parent / "other" / "ca.key").rename(directory / "ca.key")
    with pytest.raises(RefusedError, match="is not the key of the first certificate"):
        certificates.issue(directory, "alpha")
    directory.chmod(0o777)
    with pytest.raises(RefusedError, match="chmod go-w"):
        certificates.issue(directory, "alpha")


def test_an_authority_signs_nodes_and_no_other_authorities(directory: Path) -> None:
    certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)

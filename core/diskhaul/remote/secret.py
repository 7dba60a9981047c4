"""The cluster-domain secret: one file with random text that clusters which exchange instances have in common."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..certificates import check_directory, key_problem, write_durably
from ..errors import RefusedError
from ..model import Cluster

SECRET_NAME = "cluster-domain.secret"
MIN_LENGTH = 32
"""Bytes, without white space around them: as many as HMAC-SHA256 has digest (RFC 2104, section 3)."""
_MAX_LENGTH = 4096


def read_secret(cluster: Cluster) -> bytes:
    """The secret that `cluster` is configured with.

    Raises:
        RefusedError: none is configured, or it cannot be used: others can read it, or it is too short.
    """
    place = cluster.cluster_domain_secret
    if place is None:
        raise RefusedError(
            f"cluster {cluster.name} has no cluster-domain secret: 'diskhaul certs secret' makes one, "
            "and cluster_domain_secret in [cluster] names its file; the other cluster needs the same"
        )
    try:
        if problem := key_problem(place):
            raise RefusedError(problem.replace("a private key", "the cluster-domain secret"))
        with place.open("rb") as file:
            secret = file.read(_MAX_LENGTH + 1)
    except OSError as error:
        raise RefusedError(f"{place}: the cluster-domain secret cannot be read: {error.strerror}") from error
    if len(secret) > _MAX_LENGTH:
        raise RefusedError(f"{place}: is no cluster-domain secret: it has more than {_MAX_LENGTH} bytes")
    secret = secret.strip()
    if len(secret) < MIN_LENGTH:
        raise RefusedError(
            f"{place}: the cluster-domain secret has {len(secret)} bytes, and at least {MIN_LENGTH} are needed; "
            "'diskhaul certs secret' makes one"
        )
    return secret


def make_secret(directory: Path, *, force: bool = False) -> Path:
    """Make `directory` (0700) with a new secret of 256 random bits; return its file.

    Raises:
        RefusedError: there is one already and not `force`.
        StorageError: the directory cannot be written.
    """
    check_directory(directory, make=True)
    place = directory / SECRET_NAME
    if not force and os.path.lexists(place):
        raise RefusedError(f"{place} exists already; --force replaces it, and the other clusters need the new one then")
    write_durably(place, secrets.token_hex(32).encode("ascii") + b"\n", 0o600)
    return place

"""The cluster-domain secret, and keys that are good once."""

from __future__ import annotations

import errno
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from diskhaul.errors import RefusedError, StorageError
from diskhaul.model import Cluster
from diskhaul.remote.envelope import LIFE
from diskhaul.remote.keys import RemoteKeys, TakenExports
from diskhaul.remote.secret import make_secret, read_secret

ID = "0123456789abcdef" * 2
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def cluster(secret: Path | None) -> Cluster:
    return Cluster(name="lab", state_dir=Path("/nonexistent"), cluster_domain_secret=secret)


def test_a_secret_that_was_made_can_be_read_by_its_owner_alone_and_is_new_each_time(tmp_path: Path) -> None:
    place = make_secret(tmp_path / "certs")
    first = read_secret(cluster(place))
    assert len(first) == 64
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    with pytest.raises(RefusedError, match="exists already"):
        make_secret(tmp_path / "certs")
    make_secret(tmp_path / "certs", force=True)
    assert read_secret(cluster(place)) != first


def test_a_secret_that_others_can_read_or_that_is_short_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    place = make_secret(tmp_path / "certs")
    place.chmod(0o640)
    with pytest.raises(RefusedError, match=r"holds the cluster-domain secret and others can read it \(mode 640\)"):
        read_secret(cluster(place))
    place.chmod(0o600)
    place.write_bytes(b" " * 40 + b"x" * 31 + b"\n" * 40)
    with pytest.raises(RefusedError, match="has 31 bytes, and at least 32 are needed"):
        read_secret(cluster(place))
    place.write_bytes(b"x" * 5000)
    with pytest.raises(RefusedError, match="more than 4096 bytes"):
        read_secret(cluster(place))
    with pytest.raises(RefusedError, match="cannot be read: No such file"):
        read_secret(cluster(tmp_path / "missing"))
    with pytest.raises(RefusedError, match="is no regular file"):
        read_secret(cluster(tmp_path))
    with pytest.raises(RefusedError, match="'diskhaul certs secret' makes one"):
        read_secret(cluster(None))


def test_a_key_is_given_out_once_and_lies_where_nobody_else_can_read_it(tmp_path: Path) -> None:
    keys = RemoteKeys(tmp_path)
    keys.keep(ID, b"key", NOW)
    place = tmp_path / "remote" / "keys" / ID
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place / "source.pem")] == [0o700, 0o600]
    assert keys.peek(ID) == b"key"
    assert keys.problem(ID) is None
    assert keys.take(ID) == b"key"
    assert list(place.parent.iterdir()) == []
    with pytest.raises(RefusedError, match="has been used"):
        keys.take(ID)
    assert "has been used" in str(keys.problem(ID))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys = RemoteKeys(tmp_path)
    keys.keep(ID, b"key", NOW)
    (tmp_path / "remote" / "keys" / ID / "source.pem").chmod(0o644)
    with pytest.raises(RefusedError, match="others can read it"):
        keys.peek(ID)


def test_expired_keys_are_dropped_and_others_kept(tmp_path: Path) -> None:
    keys, other = RemoteKeys(tmp_path), "f" * 32
    keys.keep(ID, b"old", NOW)
    keys.keep(other, b"new", NOW + timedelta(hours=2))
    keys.sweep(NOW + timedelta(hours=1))
    assert keys.problem(ID) is not None
    assert keys.peek(other) == b"new"


def test_a_prepared_export_is_taken_once(tmp_path: Path) -> None:
    taken = TakenExports(tmp_path)
    assert not taken.has(ID)
    taken.take(ID, NOW)
    assert taken.has(ID)
    with pytest.raises(RefusedError, match="each is good once"):
        taken.take(ID, NOW)
    taken.sweep(NOW - timedelta(seconds=1))
    assert taken.has(ID)
    taken.sweep(NOW)
    assert not taken.has(ID)


def test_a_mark_that_could_not_be_written_does_not_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    taken = TakenExports(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            taken.take(ID, NOW)
    assert not taken.has(ID)
    taken.take(ID, NOW)


def test_what_a_process_was_killed_in_the_middle_of_writing_is_dropped_once_it_cannot_count_any_more(tmp_path: Path) -> None:
    keys, taken = tmp_path / "remote" / "keys" / ID, tmp_path / "remote" / "taken" / ID
    keys.mkdir(parents=True)
    taken.parent.mkdir()
    taken.touch()
    for now, kept in ((NOW + LIFE - timedelta(seconds=1), True), (NOW + LIFE, False)):
        for place in (keys, taken):
            if place.exists():
                os.utime(place, (NOW.timestamp(), NOW.timestamp()))
        RemoteKeys(tmp_path).sweep(now)
        TakenExports(tmp_path).sweep(now)
        assert (keys.exists(), taken.exists()) == (kept, kept)

"""A lock service from a plugin that breaks is an error of its own, and nothing has been touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskhaul


class BrokenLocks:
    """Locks whose `acquire` does whatever it is told."""

    def __init__(self, acquire: Callable[[], Any]) -> None:
        self._acquire = acquire

    @diskhaul.hookimpl
    def diskhaul_locks(self) -> Iterator[diskhaul.LockSpec]:
        yield diskhaul.LockSpec(name="broken", create=lambda context: self)

    def acquire(self, name: str, mode: object, **more: object) -> Any:
        return self._acquire()


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("acquire", "message"),
    [
        (lambda: _raise(ValueError("no quorum")), "the lock service failed: ValueError: no quorum"),
        (lambda: _raise(SystemExit(3)), "the lock service failed: SystemExit: 3"),
        (lambda: None, "gave None, which is no lock"),
    ],
    ids=["raises", "exits", "gives nothing"],
)
def test_a_lock_service_that_breaks_is_a_lock_error(tmp_path: Path, acquire: Callable[[], Any], message: str) -> None:
    (tmp_path / "exports").mkdir(mode=0o700)
    (tmp_path / "disk.raw").write_bytes(b"x" * 4096)
    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        backends={"lock": "broken"},
        nodes=[diskhaul.Node(name="alpha", export_dir=tmp_path / "exports")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=tmp_path / "disk.raw")])],
    )
    with pytest.raises(diskhaul.LockError, match=message) as failed:
        diskhaul.export("vm", node="alpha", config=cluster, plugins=[BrokenLocks(acquire)])
    assert failed.value.exit_code == 5
    assert list((tmp_path / "exports").iterdir()) == []

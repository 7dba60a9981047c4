"""The conformance suites ask of a backend what the core asks of it: the shipped examples, and backends that have only what they
must have, pass them without subclassing anything."""

from __future__ import annotations

import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import diskhaul
from diskhaul.api import LockMode
from diskhaul.model import Disk, Instance, Node
from diskhaul.records import ExportRecord
from diskhaul.testing.conformance.cleanups import CleanupConformance
from diskhaul.testing.conformance.engines import EngineConformance
from diskhaul.testing.conformance.inventories import InventoryConformance
from diskhaul.testing.conformance.locks import LockConformance
from diskhaul.testing.conformance.runtimes import RuntimeConformance
from diskhaul.testing.conformance.storages import StorageConformance

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """The module that an example is, for its classes; what it does as a program is not done."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTheObjectExample(StorageConformance):
    test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros = None  # it has no extents
    test_a_descriptor_gives_the_same_bytes = None  # and no descriptor
    test_a_new_disk_is_made = None  # volumes are made by others

    @pytest.fixture
    def storage(self) -> Any:
        return example("storage_object").ObjectStorage({})

    @pytest.fixture
    def make_disk(self, storage: Any) -> Callable[[bytes], Disk]:
        def make(content: bytes) -> Disk:
            name = str(len(storage.volumes))
            storage.volumes[name] = bytearray(content)
            return Disk(storage="object", options={"volume": name})

        return make

    @pytest.fixture
    def missing_disk(self) -> Disk:
        return Disk(storage="object", options={"volume": "nowhere"})


class TestTheDescriptorExample(StorageConformance):
    test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros = None  # the core finds them through its descriptor
    test_a_new_disk_is_made = None  # volumes are made by others

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Any:
        return example("storage_descriptor").PoolStorage(tmp_path)

    @pytest.fixture
    def make_disk(self, tmp_path: Path) -> Callable[[bytes], Disk]:
        def make(content: bytes) -> Disk:
            name = f"volume-{len(list(tmp_path.iterdir()))}"
            (tmp_path / name).write_bytes(content)
            return Disk(storage="pool", options={"volume": name})

        return make

    @pytest.fixture
    def missing_disk(self) -> Disk:
        return Disk(storage="pool", options={"volume": "nowhere"})


class BareRuntime:
    """A runtime with the three methods that a runtime must have."""

    def __init__(self) -> None:
        self.running: set[str] = set()

    def is_running(self, instance: Instance) -> bool:
        return instance.name in self.running

    def start(self, instance: Instance) -> None:
        self.running.add(instance.name)

    def stop(self, instance: Instance, *, timeout_s: float) -> None:
        self.running.discard(instance.name)


class TestABareRuntime(RuntimeConformance):
    @pytest.fixture
    def runtime(self) -> Any:
        return BareRuntime()

    @pytest.fixture
    def instance(self) -> Instance:
        return Instance(name="guest1", node="alpha", runtime="bare")


class BareHeld:
    def __init__(self, service: BareLockService, name: str, mode: LockMode, token: int) -> None:
        self.service, self.name, self.mode, self.token, self.held = service, name, mode, token, True

    def check(self) -> None:
        if not self.held:
            raise diskhaul.LockLostError(f"lock {self.name} is not held")

    def release(self) -> None:
        with self.service.changed:
            if self.held:
                self.held = False
                self.service.held[self.name, self.mode] -= 1
                self.service.changed.notify_all()


class BareLockService:
    """A lock service in memory; its clients are itself."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.held: Counter[tuple[str, LockMode]] = Counter()
        self.holders: dict[str, str] = {}
        self.tokens = 0

    def acquire(
        self,
        name: str,
        mode: LockMode,
        *,
        owner: str,
        deadline_s: float,
        on_wait: Callable[[str], object],
        cancelled: Callable[[], bool],
    ) -> BareHeld:
        excluded_by = [LockMode.EXCLUSIVE] if mode is LockMode.SHARED else list(LockMode)

        def free() -> bool:
            return not any(self.held[name, other] for other in excluded_by)

        with self.changed:
            if not free() and deadline_s > 0:
                on_wait(self.holders[name])
                waited = 0.0
                while not free() and waited < deadline_s and not cancelled():
                    self.changed.wait(0.01)
                    waited += 0.01
            if cancelled():
                raise diskhaul.InterruptedRunError("interrupted")
            if not free():
                raise diskhaul.LockTimeoutError(name, self.holders[name], deadline_s)
            self.held[name, mode] += 1
            self.holders[name] = owner
            self.tokens += 1
            return BareHeld(self, name, mode, self.tokens)


class TestBareLocks(LockConformance):
    @pytest.fixture
    def make_locks(self) -> Callable[[], Any]:
        service = BareLockService()
        return lambda: service


class BareInventory:
    def nodes(self) -> dict[str, Node]:
        return {"alpha": Node(name="alpha", export_dir=Path("/srv"))}

    def instances(self) -> dict[str, Instance]:
        return {"web1": Instance(name="web1", node="alpha")}


class TestABareInventory(InventoryConformance):
    @pytest.fixture
    def inventory(self) -> Any:
        return BareInventory()


class BareEngine:
    def run(self, node: Node, function: Callable[..., Any], *arguments: Any) -> Any:
        if node.offline:
            raise diskhaul.UnreachableNodeError(node.name, f"{node.name} is offline")
        return function(*arguments)


class TestABareEngine(EngineConformance):
    @pytest.fixture
    def engine(self) -> Any:
        return BareEngine()

    @pytest.fixture
    def node(self) -> Node:
        return Node(name="alpha", export_dir=Path("/srv"))


class BareCleanup:
    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord]) -> list[ExportRecord]:
        return []


class TestABareCleanup(CleanupConformance):
    @pytest.fixture
    def cleanup(self) -> Any:
        return BareCleanup()


def test_what_diskhaul_testing_has_can_be_looked_up() -> None:
    import diskhaul.testing

    assert set(diskhaul.testing.__all__) <= set(dir(diskhaul.testing))
    assert all(hasattr(diskhaul.testing, name) for name in dir(diskhaul.testing))

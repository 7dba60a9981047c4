"""The plugin host: who is found, in which order, what is refused and how, and that one bad plugin hurts nobody else."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import diskhaul
from diskhaul.api import BackendContext, Capability, LockSpec, RuntimeSpec, SnapshotSpec, StorageSpec, ZeroFillSpec
from diskhaul.errors import (
    IncompatiblePluginError,
    InvalidHookResultError,
    PluginClashError,
    PluginError,
    UnknownBackendError,
)
from diskhaul.events import Warned
from diskhaul.hookspecs import hookimpl
from diskhaul.host import STAGES, PluginHost
from diskhaul.model import Cluster, Disk, Instance
from diskhaul.records import Plan

PLAN = Plan(
    operation="export",
    run_id="r",
    cluster="lab",
    instance=Instance(name="web1", node="alpha"),
    source=None,
    target=None,
    running=False,
    downtime="none",
    steps=(),
)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(name="lab", state_dir=tmp_path)


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISKHAUL_DISABLE_PLUGINS", raising=False)


class Opens:
    """A storage that has nothing but what is required."""

    def __init__(self, context: BackendContext | None = None) -> None:
        self.context = context

    def open(self, disk: Disk) -> object:
        return disk


class Provides:
    """A plugin with the storages it is given."""

    def __init__(self, *names: str, create: Callable[[BackendContext], Any] = Opens) -> None:
        self.names, self.create = names, create

    @hookimpl
    def diskhaul_storages(self) -> Iterator[StorageSpec]:
        for name in self.names:
            yield StorageSpec(name=name, create=self.create)


def answers(hook: str, result: Callable[..., object], arguments: str = "", **marks: Any) -> object:
    """A plugin, a module, whose only hook returns what `result` does."""
    module = ModuleType("answering")
    scope: dict[str, Any] = {"result": result}
    exec(f"def {hook}({arguments}): return result({arguments})", scope)  # noqa: S102
    setattr(module, hook, hookimpl(**marks)(scope[hook]))
    return module


def raising(error: BaseException) -> Callable[..., object]:
    def call(*_arguments: object) -> object:
        raise error

    return call


def names(host: PluginHost, stage: str = "storage") -> list[str]:
    return [registered.name for registered in host.registered(stage)]


# --- who is found -----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a distribution with one module and one entry point: ``installed("san", "source of san_plugin.py")``."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []

    def install(name: str, source: str, value: str | None = None, version: str = "1.0") -> Path:
        module = f"{name}_plugin"
        (site / f"{module}.py").write_text(source)
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[diskhaul]\n{name} = {value or module}\n")
        modules.append(module)
        return site / f"{module}.py"

    yield install
    for module in modules:
        sys.modules.pop(module, None)


STORAGE_SOURCE = """
from diskhaul.api import StorageSpec
from diskhaul.hookspecs import hookimpl

@hookimpl
def diskhaul_storages():
    return [StorageSpec(name="{0}", create=lambda context: None, summary="from an entry point")]
"""


def test_built_in_backends_are_there_and_come_from_the_built_in_plugin(cluster: Cluster) -> None:
    host = PluginHost(cluster)
    assert names(host)[:2] == ["file", "block"]
    assert {(registered.plugin, registered.origin) for registered in host.registered()} == {("built-in", "built-in")}


def test_all_backends_together_are_those_of_each_stage_in_order(cluster: Cluster) -> None:
    host = PluginHost(cluster)
    together = host.registered()
    assert together == tuple(registered for stage in STAGES for registered in host.registered(stage))
    assert {registered.stage for registered in together} == set(STAGES)
    assert [(each.stage, each.name) for each in diskhaul.plugins_report()] == [(each.stage, each.name) for each in together]


def test_order_is_built_in_then_entry_points_then_the_call_and_within_a_plugin_as_given(
    cluster: Cluster, installed: Callable[..., Path]
) -> None:
    installed("zed", STORAGE_SOURCE.format("zed"))
    installed("ada", STORAGE_SOURCE.format("ada"))
    host = PluginHost(cluster, [Provides("second", "first"), Provides("another")])
    built_in = names(PluginHost(cluster, []))[:-2]
    assert names(host) == [*built_in, "ada", "zed", "second", "first", "another"]
    assert [each.origin for each in host.registered("storage")][-5:] == [
        "entry point ada 1.0",
        "entry point zed 1.0",
        "call",
        "call",
        "call",
    ]
    assert host.registered("storage")[-1].plugin == "Provides-2"


def test_a_plugin_marked_tryfirst_comes_first_and_trylast_last(cluster: Cluster) -> None:
    def plugin(name: str, **marks: bool) -> object:
        return answers("diskhaul_storages", lambda: [StorageSpec(name=name, create=Opens)], **marks)

    host = PluginHost(cluster, [plugin("late", trylast=True), plugin("plain"), plugin("early", tryfirst=True)])
    assert names(host) == ["early", "file", "block", *names(host)[3:-2], "plain", "late"]


def test_a_module_and_an_object_are_plugins_and_one_given_twice_counts_once(cluster: Cluster) -> None:
    module = answers("diskhaul_storages", lambda: [StorageSpec(name="san", create=Opens)])
    other = Provides("other")
    assert names(PluginHost(cluster, [module, other, module, other]))[-2:] == ["san", "other"]


def test_a_broken_entry_point_names_its_distribution_and_its_error(cluster: Cluster, installed: Callable[..., Path]) -> None:
    installed("broken", "import nothing_of_this_name", version="2.5")
    with pytest.raises(IncompatiblePluginError, match=r"broken 2\.5.*ModuleNotFoundError.*nothing_of_this_name.*DISABLE_PLUGINS"):
        PluginHost(cluster)


def test_an_entry_point_that_exits_or_lacks_its_attribute_is_refused(cluster: Cluster, installed: Callable[..., Path]) -> None:
    installed("leaver", "raise SystemExit(0)")
    with pytest.raises(IncompatiblePluginError, match=r"leaver 1\.0.*SystemExit"):
        PluginHost(cluster)


def test_an_entry_point_whose_attribute_is_missing_is_refused(cluster: Cluster, installed: Callable[..., Path]) -> None:
    installed("vague", "", value="vague_plugin:nothing")
    with pytest.raises(IncompatiblePluginError, match=r"vague 1\.0.*nothing"):
        PluginHost(cluster)


def test_a_blocked_entry_point_is_not_even_imported(
    cluster: Cluster, installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("leaver", "raise SystemExit(0)")
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", "other, leaver")
    assert {registered.plugin for registered in PluginHost(cluster).registered()} == {"built-in"}


@pytest.mark.parametrize("what", ["file", "directory"])
def test_an_entry_point_that_every_user_can_change_is_refused_before_it_runs(
    cluster: Cluster, installed: Callable[..., Path], what: str, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    module = installed("open", f"open({str(witness)!r}, 'w').close()")
    os.chmod(module if what == "file" else module.parent, 0o1777 if what == "directory" else 0o666)
    with pytest.raises(IncompatiblePluginError, match=r"open 1\.0.*not trusted.*every user.*chmod o-w"):
        PluginHost(cluster)
    assert not witness.exists()


def test_packages_around_an_entry_points_module_are_judged_too(cluster: Cluster, installed: Callable[..., Path]) -> None:
    site = installed("deep", "", value="deep_package.inner").parent
    package = site / "deep_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('must not run')")
    (package / "inner.py").write_text(STORAGE_SOURCE.format("inner"))
    package.chmod(0o777)
    with pytest.raises(IncompatiblePluginError, match="not trusted"):
        PluginHost(cluster)
    package.chmod(0o755)
    (package / "__init__.py").write_text("")
    try:
        assert names(PluginHost(cluster))[-1] == "inner"
    finally:
        for module in ("deep_package", "deep_package.inner"):
            sys.modules.pop(module, None)


def test_plugins_and_single_backends_are_disabled_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", " Provides , storage:block ,,lock:file")
    host = PluginHost(cluster, [Provides("san")])
    assert "san" not in names(host)
    assert "block" not in names(host)
    assert "file" in names(host)
    with pytest.raises(UnknownBackendError, match="'block' is disabled by DISKHAUL_DISABLE_PLUGINS"):
        host.storage("block")
    with pytest.raises(UnknownBackendError, match="lock 'file' is disabled"):
        host.locks()
    assert host.blocked_in_vain == ()
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", "built-in")
    assert not any(PluginHost(cluster).registered(stage) for stage in STAGES)


def test_a_disabled_name_that_nothing_has_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", "Provides,storage:blok")
    host = PluginHost(cluster, [Provides("san")])
    assert "block" in names(host)
    (line,) = host.blocked_in_vain
    assert line.startswith("DISKHAUL_DISABLE_PLUGINS: 'storage:blok' is neither")


# --- what is refused --------------------------------------------------------------------------------------------------


class WithoutHooks:
    def diskhaul_helper(self) -> None: ...


class ForgotTheMark:
    def diskhaul_storages(self) -> list[StorageSpec]:
        return []


class Misspelled:
    @hookimpl
    def diskhaul_evnt(self, event: object) -> None: ...

    @hookimpl
    def diskhaul_prerequisites(self, plam: object, *, strict: bool) -> None: ...


class Asynchronous:
    @hookimpl
    async def diskhaul_event(self, event: object) -> None: ...


class Wrapping:
    @hookimpl(wrapper=True)
    def diskhaul_event(self, event: object) -> Iterator[None]:
        yield


class Explosive:
    @property
    def diskhaul_api(self) -> int:
        raise SystemExit(3)


class Future:
    diskhaul_api = 2

    @hookimpl
    def diskhaul_storages(self) -> list[StorageSpec]:
        return []


class Past(Future):
    diskhaul_api = 0


@pytest.mark.parametrize(
    ("plugin", "error", "message"),
    [
        (Provides, PluginError, r"Provides \(call\) is a class: give an instance of it, Provides\(\)"),
        (WithoutHooks(), IncompatiblePluginError, "WithoutHooks.*no hooks.*@diskhaul.hookimpl"),
        ("a_module_name", IncompatiblePluginError, "str.*no hooks"),
        (None, IncompatiblePluginError, "NoneType.*no hooks"),
        (ForgotTheMark(), IncompatiblePluginError, "ForgotTheMark.*diskhaul_storages is not marked.*@diskhaul.hookimpl"),
        (
            Misspelled(),
            IncompatiblePluginError,
            "(?s)no hook diskhaul_evnt; did you mean diskhaul_event.*plam, strict.*takes plan",
        ),
        (Asynchronous(), IncompatiblePluginError, "diskhaul_event is asynchronous"),
        (Wrapping(), IncompatiblePluginError, "diskhaul_event is a wrapper"),
        (Explosive(), IncompatiblePluginError, "Explosive.*cannot be examined: SystemExit: 3"),
        (Future(), IncompatiblePluginError, "Future.*plugin API 2, and this diskhaul has 1; update diskhaul"),
        (Past(), IncompatiblePluginError, "Past.*plugin API 0, and this diskhaul has 1; update the plugin"),
    ],
)
def test_an_unusable_plugin_is_refused_with_its_name_and_a_remedy(
    cluster: Cluster, plugin: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        PluginHost(cluster, [plugin])
    assert type(caught.value) is error


def test_a_hook_of_a_later_version_may_be_marked_optional(cluster: Cluster) -> None:
    plugin = answers("diskhaul_of_tomorrow", lambda: None, optionalhook=True)
    assert {registered.origin for registered in PluginHost(cluster, [plugin]).registered()} == {"built-in"}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda: None, "returned None; it must return an iterable of StorageSpec"),
        (lambda: "file", "returned a str"),
        (lambda: {"file": Opens}, "returned a dict"),
        (lambda: StorageSpec(name="x", create=Opens), "returned a StorageSpec"),
        (lambda: 7, "returned an int"),
        (lambda: [RuntimeSpec(name="x", create=Opens)], "gave a RuntimeSpec; expected is a StorageSpec"),
        (lambda: [None], "gave None"),
        (lambda: [StorageSpec(name="", create=Opens)], "backend name ''"),
        (lambda: [StorageSpec(name="a b", create=Opens)], "backend name 'a b'"),
        (lambda: [StorageSpec(name="a\n", create=Opens)], "backend name 'a"),
        (lambda: [StorageSpec(name="-a", create=Opens)], "backend name '-a'"),
        (lambda: [StorageSpec(name="x" * 65, create=Opens)], "at most 64"),
        (lambda: [StorageSpec(name=None, create=Opens)], "backend name 'None'"),  # type: ignore[arg-type]
        (lambda: [StorageSpec(name="x", create=None)], "both must be functions"),  # type: ignore[arg-type]
        (lambda: [StorageSpec(name="x", create=Opens, summary=b"x")], "summary is a bytes"),  # type: ignore[arg-type]
    ],
)
def test_a_provider_hook_that_answers_with_the_wrong_thing_is_named(
    cluster: Cluster, result: Callable[[], object], message: str
) -> None:
    with pytest.raises(InvalidHookResultError, match=f"answering.*diskhaul_storages.*{message}"):
        PluginHost(cluster, [answers("diskhaul_storages", result)])


@pytest.mark.parametrize("error", [ValueError("no\nluck"), SystemExit(0), GeneratorExit()])
def test_a_provider_hook_that_raises_or_exits_is_that_plugins_error(cluster: Cluster, error: BaseException) -> None:
    with pytest.raises(PluginError, match=f"answering.*diskhaul_storages failed: {type(error).__name__}") as caught:
        PluginHost(cluster, [answers("diskhaul_storages", raising(error))])
    assert caught.value.__cause__ is error
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]


def test_a_generator_that_raises_half_way_is_that_plugins_error(cluster: Cluster) -> None:
    def half() -> Iterator[StorageSpec]:
        yield StorageSpec(name="one", create=Opens)
        raise OSError("the rest is gone")

    with pytest.raises(PluginError, match=r"answering.*the rest is gone"):
        PluginHost(cluster, [answers("diskhaul_storages", half)])


def test_an_interrupt_is_not_taken_for_a_plugins_error(cluster: Cluster) -> None:
    with pytest.raises(KeyboardInterrupt):
        PluginHost(cluster, [answers("diskhaul_storages", raising(KeyboardInterrupt()))])


def test_two_plugins_with_one_backend_name_are_both_named(cluster: Cluster) -> None:
    with pytest.raises(
        PluginClashError, match=r"storage 'file' stands twice: both the built-in plugin .* and plugin Provides \("
    ):
        PluginHost(cluster, [Provides("file")])


def test_one_plugin_that_gives_a_name_twice_is_named(cluster: Cluster) -> None:
    with pytest.raises(PluginClashError, match=r"'san' stands twice: plugin Provides \(call\) provides it twice"):
        PluginHost(cluster, [Provides("san", "san")])


def test_a_clash_is_resolved_by_disabling_the_plugin_that_the_message_names(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = [Provides("san"), Provides("san")]
    with pytest.raises(PluginClashError) as caught:
        PluginHost(cluster, plugins)
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", str(caught.value).rpartition("=")[2])
    assert names(PluginHost(cluster, plugins))[-1] == "san"


def test_one_name_in_two_stages_is_no_clash(cluster: Cluster) -> None:
    plugin = answers("diskhaul_locks", lambda: [LockSpec(name="block", create=Opens)])
    assert names(PluginHost(cluster, [plugin]), "lock")[-1] == "block"


# --- backends ---------------------------------------------------------------------------------------------------------


def test_an_unknown_backend_says_what_there_is_and_what_was_meant(cluster: Cluster) -> None:
    with pytest.raises(UnknownBackendError, match=r"storage 'fiel' is unknown; did you mean file\?$"):
        PluginHost(cluster).storage("fiel")
    with pytest.raises(UnknownBackendError, match=r"^[^\x1b]*$"):
        PluginHost(cluster).storage("\x1b[31m")


def test_a_stage_that_nobody_serves_is_said_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", "built-in")
    with pytest.raises(UnknownBackendError, match="lock 'file' is unknown; no plugin provides any lock"):
        PluginHost(cluster).locks()


def test_a_backend_is_made_once_even_when_many_threads_ask(cluster: Cluster) -> None:
    made: list[Opens] = []
    together = threading.Barrier(8)

    def create(context: BackendContext) -> Opens:
        made.append(Opens(context))
        return made[-1]

    host = PluginHost(cluster, [Provides("san", create=create)])
    got: list[object] = []

    def ask() -> None:
        together.wait()
        got.append(host.storage("san"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(got) == 8
    assert all(each is got[0] for each in got)


def test_a_backend_gets_its_cluster_and_its_own_options(tmp_path: Path) -> None:
    cluster = Cluster(name="lab", state_dir=tmp_path, backend_options={"san": {"pool": "p"}, "other": {"x": 1}})
    seen: list[BackendContext] = []

    def create(context: BackendContext) -> Opens:
        seen.append(context)
        return Opens()

    PluginHost(cluster, [Provides("san", create=create)]).storage("san")
    assert seen == [BackendContext(cluster=cluster, options={"pool": "p"})]


def test_what_a_backend_leaves_out_comes_from_its_protocol(cluster: Cluster, tmp_path: Path) -> None:
    storage = PluginHost(cluster, [Provides("san")]).storage("san")
    disk = Disk(storage="san", path=tmp_path)
    assert storage.open(disk) is disk  # type: ignore[comparison-overlap]
    assert list(storage.check(disk)) == []
    assert storage.location(disk) == str(tmp_path)
    with pytest.raises(Exception, match="cannot be written"):
        storage.create(disk, 1, overwrite=False)
    with pytest.raises(AttributeError):
        storage.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (raising(OSError("no such array")), "storage 'san' of plugin Provides .* could not be created: OSError: no such array"),
        (raising(SystemExit(1)), "could not be created: SystemExit: 1"),
        (lambda context: None, "returned None without open"),
        (lambda context: object(), "returned an object without open"),
    ],
)
def test_a_backend_that_cannot_be_made_is_an_error_that_names_it(
    cluster: Cluster, create: Callable[..., object], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        PluginHost(cluster, [Provides("san", create=create)]).storage("san")


def test_a_backend_that_only_inherits_a_required_method_does_not_have_it(cluster: Cluster) -> None:
    from diskhaul.api import Storage

    class Nothing(Storage): ...

    with pytest.raises(PluginError, match="returned a Nothing without open"):
        PluginHost(cluster, [Provides("san", create=lambda context: Nothing())]).storage("san")  # type: ignore[abstract]


def test_backends_need_a_cluster_and_listing_them_does_not() -> None:
    host = PluginHost(None)
    assert "file" in names(host)
    with pytest.raises(PluginError, match="cannot be used without a cluster"):
        host.storage("file")


def test_the_cluster_chooses_the_backends_of_stages_that_have_a_default(tmp_path: Path) -> None:
    class Takes:
        def acquire(self) -> None: ...

    plugin = answers("diskhaul_locks", lambda: [LockSpec(name="mine", create=lambda context: Takes())])  # type: ignore[arg-type, return-value]
    cluster = Cluster(name="lab", state_dir=tmp_path, backends={"lock": "mine"})
    assert PluginHost(cluster, [plugin]).locks().acquire.__self__.__class__ is Takes  # type: ignore[attr-defined]
    default = PluginHost(Cluster(name="lab", state_dir=tmp_path))
    assert [type(default.inventory()).__name__, type(default.cleanup()).__name__] == ["TomlInventory", "OthersCleanup"]
    assert type(default.runtime("none")).__name__ == "NoRuntime"
    with pytest.raises(UnknownBackendError, match="lock 'etc' is unknown"):
        PluginHost(Cluster(name="lab", state_dir=tmp_path, backends={"lock": "etc"})).locks()


@pytest.mark.parametrize("stage", ["inventory", "lock", "transfer", "cleanup", "engine"])
def test_every_stage_with_a_default_has_that_backend(cluster: Cluster, stage: str) -> None:
    host = PluginHost(cluster)
    assert getattr(host, {"lock": "locks"}.get(stage, stage))() is not None


def test_capability_of_a_plugin_that_fails_to_answer_is_no(cluster: Cluster) -> None:
    def spec(name: str, capability: Callable[[], Any]) -> StorageSpec:
        return StorageSpec(name=name, create=Opens, capability=capability)  # type: ignore[arg-type]

    specs = [
        spec("good", lambda: Capability(works=True, detail="fine")),
        spec("bad", raising(SystemExit("out"))),
        spec("odd", lambda: True),
    ]
    host = PluginHost(cluster, [answers("diskhaul_storages", lambda: specs)])
    good, bad, odd = (registered.capability() for registered in host.registered("storage")[-3:])
    assert good == Capability(works=True, detail="fine")
    assert (bad.works, bad.detail) == (False, "SystemExit: out")
    assert not odd.works
    assert "returned a bool instead of a Capability" in odd.detail


# --- choosing for a disk ----------------------------------------------------------------------------------------------


class Snapshots:
    """Refuses with what it is given."""

    def __init__(self, answer: Callable[..., object]) -> None:
        self.refuses = answer

    def plan(self) -> None: ...

    create = open = exists = remove = plan
    writes = False
    free_extents = plan


def snapshot_plugin(**refusals: Callable[..., object]) -> object:
    def specs() -> list[SnapshotSpec]:
        return [SnapshotSpec(name=n, create=lambda context, a=a: Snapshots(a)) for n, a in refusals.items()]  # type: ignore[misc]

    return answers("diskhaul_snapshots", specs)


def zerofill_plugin(**refusals: Callable[..., object]) -> object:
    def specs() -> list[ZeroFillSpec]:
        return [ZeroFillSpec(name=n, create=lambda context, a=a: Snapshots(a)) for n, a in refusals.items()]  # type: ignore[misc]

    return answers("diskhaul_zerofills", specs)


@pytest.fixture
def only_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", "built-in")


@pytest.mark.usefixtures("only_given")
def test_the_first_backend_that_does_not_refuse_is_chosen_and_the_refusals_before_it_are_kept(cluster: Cluster) -> None:
    plugin = snapshot_plugin(
        no=lambda disk: "not\nhere",
        exits=raising(SystemExit(2)),
        odd=lambda disk: True,
        yes=lambda disk: None,
        more=lambda disk: None,
    )
    choice = PluginHost(cluster, [plugin]).snapshots_for(Disk())
    assert choice.name == "yes"
    assert choice.backend is not None
    assert choice.reasons == (
        "no: not here",
        "exits: SystemExit: 2",
        "odd: its refuses() returned a bool instead of a line or None",
    )


@pytest.mark.usefixtures("only_given")
def test_when_all_refuse_there_is_no_backend_and_one_reason_each(cluster: Cluster) -> None:
    choice = PluginHost(cluster, [snapshot_plugin(a=lambda disk: "A", b=lambda disk: "B")]).snapshots_for(Disk())
    assert (choice.name, choice.backend, choice.reasons) == ("", None, ("a: A", "b: B"))


@pytest.mark.usefixtures("only_given")
def test_the_disks_own_choice_goes_before_the_clusters_which_goes_before_asking(tmp_path: Path) -> None:
    plugin = snapshot_plugin(a=lambda disk: None, b=lambda disk: None, c=lambda disk: "busy")
    cluster = Cluster(name="lab", state_dir=tmp_path, backends={"snapshot": "b", "zerofill": "y"})
    host = PluginHost(cluster, [plugin, zerofill_plugin(x=lambda disk: None, y=lambda disk: None)])
    assert host.snapshots_for(Disk()).name == "b"
    assert host.snapshots_for(Disk(snapshot="a")).name == "a"
    assert host.snapshots_for(Disk(snapshot="c")).reasons == ("c: busy",)
    with pytest.raises(UnknownBackendError, match="snapshot 'd' is unknown"):
        host.snapshots_for(Disk(snapshot="d"))
    assert host.zerofill_for(Disk()).name == "y"
    assert host.zerofill_for(Disk(), "x").name == "x"


@pytest.mark.usefixtures("only_given")
def test_a_backend_that_cannot_be_made_is_a_reason_when_asked_in_turn_and_an_error_when_named(cluster: Cluster) -> None:
    specs = [SnapshotSpec(name="sick", create=raising(OSError("ill")))]  # type: ignore[arg-type]
    host = PluginHost(cluster, [answers("diskhaul_snapshots", lambda: specs), snapshot_plugin(fit=lambda disk: None)])
    choice = host.snapshots_for(Disk())
    assert choice.name == "fit"
    assert "sick" in choice.reasons[0]
    assert "ill" in choice.reasons[0]
    with pytest.raises(PluginError, match="ill"):
        host.snapshots_for(Disk(snapshot="sick"))


# --- observers --------------------------------------------------------------------------------------------------------


def test_every_plugin_gets_the_event_in_order_and_one_that_raises_is_warned_of_once(cluster: Cluster) -> None:
    seen: list[str] = []
    told: list[str] = []
    plugins = [
        answers("diskhaul_event", lambda event: seen.append("first"), "event"),
        answers("diskhaul_event", raising(SystemExit("gone")), "event"),
        answers("diskhaul_event", lambda event: seen.append(event.message), "event"),
    ]
    host = PluginHost(cluster, plugins, on_warning=told.append)
    host.emit(Warned(message="one"))
    host.emit(Warned(message="two"))
    assert seen == ["first", "one", "first", "two"]
    assert told == ["plugin answering-2 (call): diskhaul_event failed: SystemExit: gone"]


def test_a_warning_that_is_emitted_as_an_event_does_not_go_round_for_ever(cluster: Cluster) -> None:
    calls: list[object] = []

    def fails(event: object) -> None:
        calls.append(event)
        raise ValueError("again")

    told: list[str] = []
    hosts: list[PluginHost] = []

    def warned(warning: str) -> None:
        told.append(warning)
        hosts[0].emit(Warned(message=warning))

    hosts.append(PluginHost(cluster, [answers("diskhaul_event", fails, "event")], on_warning=warned))
    hosts[0].emit(Warned(message="start"))
    assert len(calls) == 2
    assert len(told) == 1


def test_an_interrupt_in_an_event_hook_comes_through(cluster: Cluster) -> None:
    host = PluginHost(cluster, [answers("diskhaul_event", raising(KeyboardInterrupt()), "event")])
    with pytest.raises(KeyboardInterrupt):
        host.emit(Warned(message="x"))


def test_reasons_to_refuse_are_gathered_and_a_failing_hook_is_one(cluster: Cluster) -> None:
    def some(plan: Plan) -> Iterator[str]:
        yield f"{plan.instance.name} is\nbusy"
        raise OSError("cannot ask further")

    hook = "diskhaul_prerequisites"
    results: list[Callable[..., object]] = [
        some,
        lambda plan: None,
        lambda plan: [],
        lambda plan: "one string",
        lambda plan: 5,
        lambda plan: ["", 7],
        raising(SystemExit(0)),
    ]
    host = PluginHost(cluster, [answers(hook, result, "plan") for result in results])
    assert host.prerequisites(PLAN) == [
        "web1 is busy",
        f"plugin answering (call): {hook} failed: OSError: cannot ask further",
        f"plugin answering-4 (call): {hook} returned a str; it must be a list of lines or None",
        f"plugin answering-5 (call): {hook} returned an int; it must be a list of lines or None",
        f"plugin answering-6 (call): {hook} gave a str for a reason; it must be a line of text",
        f"plugin answering-6 (call): {hook} gave an int for a reason; it must be a line of text",
        f"plugin answering-7 (call): {hook} failed: SystemExit: 0",
    ]


def environment_plugin(result: Callable[..., object]) -> object:
    return answers("diskhaul_hook_environment", result, "plan")


def test_variables_for_hook_scripts_are_merged(cluster: Cluster) -> None:
    results = [lambda plan: {"A_1": plan.instance.name}, lambda plan: None, lambda plan: {"B": ""}]
    assert PluginHost(cluster, [environment_plugin(r) for r in results]).hook_environment(PLAN) == {"A_1": "web1", "B": ""}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (["A"], "returned a list; it must be a mapping"),
        ({"a": "x"}, "variable name 'a' is not allowed"),
        ({"A=B": "x"}, "variable name 'A=B'"),
        ({"A\n": "x"}, "variable name 'A"),
        ({"": "x"}, "variable name ''"),
        ({1: "x"}, "variable name '1'"),
        ({"DISKHAUL_A": "x"}, "leave out DISKHAUL_"),
        ({"A": 1}, "variable A is an int; it must be text"),
        ({"A": "x\0y"}, "variable A holds a NUL"),
        ({"A": "\ud800"}, "variable A holds characters"),
        ({"A": "x" * 65537}, "variable A is longer"),
    ],
)
def test_a_variable_that_no_environment_can_hold_is_refused(cluster: Cluster, result: object, message: str) -> None:
    host = PluginHost(cluster, [environment_plugin(lambda plan: result)])
    with pytest.raises(InvalidHookResultError, match=f"answering.*{message}"):
        host.hook_environment(PLAN)


def test_two_plugins_that_set_one_variable_are_both_named(cluster: Cluster) -> None:
    host = PluginHost(cluster, [environment_plugin(lambda plan: {"A": "1"}), environment_plugin(lambda plan: {"A": "1"})])
    with pytest.raises(
        PluginClashError, match=r"plugin answering \(call\) and plugin answering-2 \(call\) set the hook variable A"
    ):
        host.hook_environment(PLAN)


def test_an_environment_hook_that_fails_is_an_error_that_names_it(cluster: Cluster) -> None:
    with pytest.raises(PluginError, match=r"answering.*diskhaul_hook_environment failed: KeyError"):
        PluginHost(cluster, [environment_plugin(raising(KeyError("x")))]).hook_environment(PLAN)


# --- tunables ---------------------------------------------------------------------------------------------------------


def tunable(**fields: Any) -> diskhaul.Tunable:
    return diskhaul.Tunable(**({"backend": "file", "option": "depth", "values": (1, 2), "default": 1} | fields))


def test_tunables_come_in_the_order_of_the_plugins_and_there_are_none_built_in(cluster: Cluster) -> None:
    plugins = [answers("diskhaul_tunables", lambda name=name: [tunable(option=name)]) for name in ("b", "a")]
    assert [each.name for each in PluginHost(cluster, plugins).tunables()] == ["file.b", "file.a"]
    assert PluginHost(cluster).tunables() == ()


def test_a_tunable_given_twice_is_a_clash(cluster: Cluster) -> None:
    plugins = [answers("diskhaul_tunables", lambda: [tunable()]) for _ in range(2)]
    with pytest.raises(PluginClashError, match=r"'file\.depth' stands twice.*answering.*answering-2.*DISABLE_PLUGINS"):
        PluginHost(cluster, plugins).tunables()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "returned None"),
        (["text"], "gave a str; expected is a Tunable"),
        ([tunable(backend="fiel")], "'fiel', which nobody provides; did you mean file?"),
        ([tunable(option="a.b")], r"option name 'a\.b'"),
        ([tunable(values=(1,))], "not 2 to 64 different ones"),
        ([tunable(values=(1, 1))], "not 2 to 64 different ones"),
        ([tunable(values="12")], "not 2 to 64 different ones"),
        ([tunable(values=(1, None))], "no profile can hold"),
        ([tunable(default=3)], "default is not among its values"),
        ([tunable(values=(0, 2), default=False)], "default is not among its values"),
        ([tunable(applies="always")], "no function"),
    ],
)
def test_a_tunable_that_cannot_be_searched_is_refused_with_its_plugin(cluster: Cluster, given: object, said: str) -> None:
    host = PluginHost(cluster, [answers("diskhaul_tunables", lambda: given)])
    with pytest.raises(InvalidHookResultError, match=f"plugin answering.*diskhaul_tunables.*{said}"):
        host.tunables()


def test_a_tunables_hook_that_fails_names_its_plugin(cluster: Cluster) -> None:
    host = PluginHost(cluster, [answers("diskhaul_tunables", raising(SystemExit(0)))])
    with pytest.raises(PluginError, match=r"plugin answering.*diskhaul_tunables failed.*SystemExit"):
        host.tunables()

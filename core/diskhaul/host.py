"""Finds plugins, checks what they say, and gives operations one typed method for each thing they can ask.

A host is built per operation, so that nothing of one operation's plugins is left for the next. Three sources are registered, in
this order: the built-in plugin, the entry points of group ``diskhaul``, the plugins of the call. Hook implementations are called
one by one rather than through pluggy's own loop, because that loop gives the last registered first, and gives up at the first
one that raises.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import pluggy

from . import api, hookspecs
from .errors import (
    DiskhaulError,
    IncompatiblePluginError,
    InvalidHookResultError,
    PluginClashError,
    PluginError,
    RefusedError,
    UnknownBackendError,
)
from .hookspecs import PROJECT
from .model import Cluster, Disk
from .names import printable, suggestion
from .permissions import tampering_problem

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .events import Event
    from .records import Plan

ENTRY_POINT_GROUP = "diskhaul"
DISABLE_VARIABLE = "DISKHAUL_DISABLE_PLUGINS"
BUILT_IN = "built-in"

_BACKEND_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_VARIABLE_NAME = re.compile(r"[A-Z0-9_]+\Z")
MAX_TUNABLE_VALUES = 64
"""More values of one option than a tuning run could try are a mistake."""
_MAX_VARIABLE_BYTES = 64 * 1024  # execve takes 128 KiB for one string (MAX_ARG_STRLEN), name and prefix included


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the host knows of a stage: its hook, its spec class, and what its backends cannot do without."""

    hook: str
    spec: type[api.BackendSpec[Any]]
    protocol: type
    required: tuple[str, ...]
    default: str = ""


_STAGES: Mapping[str, _Stage] = {
    "inventory": _Stage("diskhaul_inventories", api.InventorySpec, api.Inventory, ("nodes", "instances"), "toml"),
    "runtime": _Stage("diskhaul_runtimes", api.RuntimeSpec, api.Runtime, ("is_running", "stop", "start")),
    "storage": _Stage("diskhaul_storages", api.StorageSpec, api.Storage, ("open",)),
    "lock": _Stage("diskhaul_locks", api.LockSpec, api.Locks, ("acquire",), "file"),
    "snapshot": _Stage(
        "diskhaul_snapshots", api.SnapshotSpec, api.Snapshots, ("refuses", "plan", "create", "open", "exists", "remove")
    ),
    "zerofill": _Stage("diskhaul_zerofills", api.ZeroFillSpec, api.ZeroFill, ("writes", "refuses", "free_extents")),
    "transfer": _Stage("diskhaul_transfers", api.TransferSpec, api.Transfer, ("store",), "directory"),
    "cleanup": _Stage("diskhaul_cleanups", api.CleanupSpec, api.Cleanup, ("superseded",), "others"),
    "engine": _Stage("diskhaul_engines", api.EngineSpec, api.Engine, ("run",), "local"),
}

STAGES: tuple[str, ...] = tuple(_STAGES)
"""Every stage that has backends, in the order of the data's way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredBackend:
    """A backend that some plugin provides.

    Attributes:
        stage: one of `STAGES`.
        name: what configurations call it.
        plugin: the plugin's name, as ``DISKHAUL_DISABLE_PLUGINS`` takes it.
        origin: "built-in", "entry point DISTRIBUTION VERSION" or "call".
        spec: how it was announced, with its `summary`.
    """

    stage: str
    name: str
    plugin: str
    origin: str
    spec: api.BackendSpec[Any]

    def capability(self) -> api.Capability:
        """Whether it works on this machine. A plugin that fails to say so does not work."""
        try:
            answer: object = self.spec.capability()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return api.Capability(works=False, detail=_error_text(error))
        if not isinstance(answer, api.Capability):
            return api.Capability(works=False, detail=f"its capability() returned {_what(answer)} instead of a Capability")
        return answer


B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Generic[B]):
    """Which backend serves a disk.

    Attributes:
        name: the backend's name, "" when none can.
        backend: the backend, or None when none can.
        reasons: why the backends asked before (or all of them) cannot, one line each, beginning with the backend's name.
    """

    name: str
    backend: B | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plugin:
    """A registered plugin. `rank` is its place in the order of registration."""

    name: str
    origin: str
    rank: int

    def __str__(self) -> str:
        if self.origin == BUILT_IN:
            return f"the built-in plugin {self.name}"
        return f"plugin {self.name} ({self.origin})"


class PluginHost:
    """The plugins of one operation.

    Thread-safe once built: backends are created once, `emit` may be called by several threads (plugins then are, too).

    Args:
        cluster: what the backends are made for; None when only `registered` is wanted.
        plugins: modules or objects with hook implementations, from the call; one that is registered already is passed over.
        on_warning: told what observing plugins do wrong, one line and at most one per plugin.

    Raises:
        IncompatiblePluginError: a plugin that cannot be imported or trusted, or was made for another API.
        InvalidHookResultError: a provider hook answered with the wrong thing.
        PluginClashError: two plugins provide a backend of one name.
        PluginError: any other plugin that cannot be used; each message ends with what to do.
    """

    def __init__(
        self,
        cluster: Cluster | None,
        plugins: Sequence[object] = (),
        *,
        on_warning: Callable[[str], object] | None = None,
    ) -> None:
        self._cluster = cluster
        self._on_warning = on_warning
        self._lock = threading.RLock()  # guards what follows; also held while a backend is created, so that there is one of each
        self._warned: set[str] = set()
        self._backends: dict[tuple[str, str], object] = {}
        self._plugins: dict[str, _Plugin] = {}
        self._blocked = _blocked_names()
        self._blocking: set[str] = set()  # those that are the name of something
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

        if not self._is_blocked(BUILT_IN):
            import diskhaul_plugins.builtin

            self._register(diskhaul_plugins.builtin, BUILT_IN, BUILT_IN)
        for name, origin, plugin in self._entry_points():
            self._register(plugin, name, origin)
        for plugin in plugins:
            name = _plugin_name(plugin)
            if not self._is_blocked(name):  # asked here as well: several plugins may have this name
                self._register(plugin, name, "call")
        self._registered = {stage: self._collect(stage) for stage in STAGES}

    def _is_blocked(self, *names: str) -> bool:
        hits = self._blocked.intersection(names)
        self._blocking |= hits
        return bool(hits)

    @property
    def blocked_in_vain(self) -> tuple[str, ...]:
        """What ``DISKHAUL_DISABLE_PLUGINS`` names without leaving anything out, one line each: a misspelt name, most likely."""
        return tuple(
            f"{DISABLE_VARIABLE}: {printable(name)} is neither a plugin nor a backend that is there; nothing was left out for it"
            for name in sorted(self._blocked - self._blocking)
        )

    # --- registration -------------------------------------------------------------------------------------------------

    def _entry_points(self) -> Iterator[tuple[str, str, object]]:
        from importlib.metadata import entry_points

        found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (_distribution(point), point.name))
        for point in found:
            distribution = _distribution(point)
            if self._is_blocked(point.name, distribution.partition(" ")[0]):
                continue
            whose = f"plugin {point.name} of {distribution} ({point.value})"
            with _blaming(
                IncompatiblePluginError,
                f"{whose} cannot be loaded",
                f"; repair it, or leave it out with {DISABLE_VARIABLE}={point.name}",
            ):
                problem = _import_problem(point.module)
                plugin = None if problem else point.load()
            if problem:
                raise IncompatiblePluginError(f"{whose} is not trusted: {problem}")
            yield point.name, f"entry point {distribution}", plugin

    def _register(self, plugin: object, name: str, origin: str) -> None:
        if self._manager.is_registered(plugin):
            return
        unique, number = name, 2
        while unique in self._plugins:
            unique, number = f"{name}-{number}", number + 1
        if self._is_blocked(unique):
            return
        entry = _Plugin(unique, origin, len(self._plugins))
        if inspect.isclass(plugin):
            raise PluginError(f"{entry} is a class: give an instance of it, {plugin.__name__}()")
        with _blaming(IncompatiblePluginError, f"{entry} cannot be examined"):
            version = getattr(plugin, "diskhaul_api", api.API_VERSION)
            problems = self._hook_problems(plugin)
        if version != api.API_VERSION:
            newer = "diskhaul" if isinstance(version, int) and version > api.API_VERSION else "the plugin"
            built_for = version if isinstance(version, int) else printable(str(version))
            raise IncompatiblePluginError(
                f"{entry} is for plugin API {built_for}, and this diskhaul has {api.API_VERSION}; "
                f"update {newer}, or leave it out with {DISABLE_VARIABLE}={unique}"
            )
        if problems:
            raise IncompatiblePluginError(f"{entry}: {problem}" for problem in problems)
        try:
            self._manager.register(plugin, unique)
        except pluggy.PluginValidationError as error:
            raise IncompatiblePluginError(f"{entry}: {' '.join(str(error).split())}") from error
        self._plugins[unique] = entry

    def _hook_problems(self, plugin: object) -> list[str]:
        """What is wrong with the hook implementations of `plugin`, each line naming the hook."""
        known = {name: spec for name, spec in vars(hookspecs).items() if name.startswith(f"{PROJECT}_") and callable(spec)}
        problems: list[str] = []
        hooks = 0
        for name in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, name)
            if options is None:
                if name in known:
                    problems.append(f"{name} is not marked as a hook: put @diskhaul.hookimpl before it")
                continue
            hooks += 1
            hook = options.get("specname") or name
            function = getattr(plugin, name)
            if hook not in known:
                if not options.get("optionalhook"):
                    problems.append(f"there is no hook {hook}; {suggestion(hook, known)}")
            elif options.get("hookwrapper") or options.get("wrapper"):
                problems.append(f"{hook} is a wrapper, and diskhaul calls each plugin on its own: make it a plain hook")
            elif inspect.iscoroutinefunction(function):
                problems.append(f"{hook} is asynchronous: make it a plain function")
            else:
                problems += _argument_problems(hook, function, known[hook])
        if not hooks and not problems:
            problems.append("it has no hooks: give a module or an object with functions marked @diskhaul.hookimpl")
        return problems

    def _implementations(self, hook: str) -> list[tuple[_Plugin, Callable[..., object]]]:
        """Implementations of `hook` in the order they are called: as registered, ``tryfirst`` before and ``trylast`` after."""

        def place(implementation: pluggy.HookImpl) -> tuple[int, int]:
            group = 0 if implementation.tryfirst else 2 if implementation.trylast else 1
            return group, self._plugins[implementation.plugin_name].rank

        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        found = sorted(caller.get_hookimpls(), key=place)
        return [(self._plugins[implementation.plugin_name], _keyword_call(implementation)) for implementation in found]

    def _collect(self, stage: str) -> dict[str, RegisteredBackend]:
        description = _STAGES[stage]
        found: dict[str, RegisteredBackend] = {}
        for plugin, call in self._implementations(description.hook):
            for spec in self._specs(plugin, description, call):
                if self._is_blocked(f"{stage}:{spec.name}"):
                    continue
                other = found.get(spec.name)
                if other is not None:
                    first = self._plugins[other.plugin]
                    who = f"{first} provides it twice" if first == plugin else f"both {first} and {plugin} provide it"
                    raise PluginClashError(
                        f"{stage} {spec.name!r} stands twice: {who}; leave one out with {DISABLE_VARIABLE}={plugin.name}"
                    )
                found[spec.name] = RegisteredBackend(
                    stage=stage, name=spec.name, plugin=plugin.name, origin=plugin.origin, spec=spec
                )
        return found

    def _specs(self, plugin: _Plugin, stage: _Stage, call: Callable[..., object]) -> list[api.BackendSpec[Any]]:
        with _blaming(PluginError, f"{plugin}: {stage.hook} failed", f"; leave it out with {DISABLE_VARIABLE}={plugin.name}"):
            result = call()
            specs = list(result) if isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping) else None
        wanted = stage.spec.__name__
        if specs is None:
            raise InvalidHookResultError(
                f"{plugin}: {stage.hook} returned {_what(result)}; it must return an iterable of {wanted}, as [{wanted}(...)] is"
            )
        for spec in specs:
            problem = None
            if not isinstance(spec, stage.spec):
                problem = f"gave {_what(spec)}; expected is a {wanted}"
            elif not isinstance(spec.name, str) or not _BACKEND_NAME.match(spec.name):
                problem = f"gave the backend name {printable(str(spec.name))}; use letters, digits, - and _, at most 64"
            elif not callable(spec.create) or not callable(spec.capability):
                problem = f"gave {spec.name!r} whose create or capability cannot be called; both must be functions"
            elif not isinstance(spec.summary, str):
                problem = f"gave {spec.name!r} whose summary is {_what(spec.summary)}; it must be text"
            if problem:
                raise InvalidHookResultError(f"{plugin}: {stage.hook} {problem}")
        return specs

    # --- what is there ------------------------------------------------------------------------------------------------

    def registered(self, stage: str | None = None) -> tuple[RegisteredBackend, ...]:
        """The backends of `stage` (one of `STAGES`; None: of every one, stage by stage) in the order in which they are asked."""
        stages = STAGES if stage is None else (stage,)
        return tuple(backend for each in stages for backend in self._registered[each].values())

    def tunables(self) -> tuple[api.Tunable, ...]:
        """What plugins add to the search of a tuning run, in the order in which plugins are asked.

        Raises:
            InvalidHookResultError: something else, values that cannot be searched, or a backend that nobody provides.
            PluginClashError: one option of one backend twice.
            PluginError: the hook failed.
        """
        hook, found = "diskhaul_tunables", dict[str, api.Tunable]()
        givers: dict[str, _Plugin] = {}
        names = {registered.name for registered in self.registered()}
        for plugin, call in self._implementations(hook):
            with _blaming(PluginError, f"{plugin}: {hook} failed", f"; leave it out with {DISABLE_VARIABLE}={plugin.name}"):
                result = call()
                given = list(result) if isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping) else None
            if given is None:
                raise InvalidHookResultError(f"{plugin}: {hook} returned {_what(result)}; it must return an iterable of Tunable")
            for tunable in given:
                problem = _tunable_problem(tunable, names)
                if problem:
                    raise InvalidHookResultError(f"{plugin}: {hook} {problem}")
                if tunable.name in found:
                    first = givers[tunable.name]
                    who = f"{first} gives it twice" if first == plugin else f"both {first} and {plugin} give it"
                    raise PluginClashError(
                        f"tunable {tunable.name!r} stands twice: {who}; leave one out with {DISABLE_VARIABLE}={plugin.name}"
                    )
                found[tunable.name], givers[tunable.name] = tunable, plugin
        return tuple(found.values())

    # --- backends -----------------------------------------------------------------------------------------------------

    def inventory(self) -> api.Inventory:
        """The configured inventory, or ``toml``."""
        return cast(api.Inventory, self._configured("inventory"))

    def runtime(self, name: str) -> api.Runtime:
        """The runtime `name`.

        Raises:
            UnknownBackendError: nobody provides it.
            PluginError: it could not be created. Both hold for every getter here.
        """
        return cast(api.Runtime, self._backend("runtime", name))

    def storage(self, name: str) -> api.Storage:
        """The storage `name`."""
        return cast(api.Storage, self._backend("storage", name))

    def locks(self) -> api.Locks:
        """The configured lock service, or ``file``."""
        return cast(api.Locks, self._configured("lock"))

    def snapshots(self, name: str) -> api.Snapshots:
        """The snapshot backend `name`."""
        return cast(api.Snapshots, self._backend("snapshot", name))

    def transfer(self) -> api.Transfer:
        """The configured transfer, or ``directory``."""
        return cast(api.Transfer, self._configured("transfer"))

    def remote_transfer(self) -> api.Transfer:
        """What goes to other clusters: the configured transfer where it can, or ``tls``."""
        transfer = self.transfer()
        own = getattr(type(transfer), "remote_store", None)
        if own is not None and own is not api.Transfer.remote_store:
            return transfer
        return cast(api.Transfer, self._backend("transfer", "tls"))

    def cleanup(self) -> api.Cleanup:
        """The configured clean-up policy, or ``others``."""
        return cast(api.Cleanup, self._configured("cleanup"))

    def engine(self) -> api.Engine:
        """The configured engine, or ``local``."""
        return cast(api.Engine, self._configured("engine"))

    def snapshots_for(self, disk: Disk) -> Choice[api.Snapshots]:
        """The backend that can snapshot `disk`: the disk's own, the configured one, or the first that does not refuse.

        Raises:
            UnknownBackendError: a configured name that nobody provides.
            PluginError: the configured backend could not be created.
        """
        return cast(Choice[api.Snapshots], self._choose("snapshot", disk, disk.snapshot))

    def zerofill_for(self, disk: Disk, name: str | None = None) -> Choice[api.ZeroFill]:
        """The backend that knows the free space of `disk`: `name`, the configured one, or the first that does not refuse.

        Raises:
            UnknownBackendError: a name that nobody provides.
            PluginError: the named backend could not be created.
        """
        return cast(Choice[api.ZeroFill], self._choose("zerofill", disk, name))

    def _choose(self, stage: str, disk: Disk, name: str | None) -> Choice[Any]:
        named = name or (self._cluster.backends.get(stage) if self._cluster is not None else None)
        reasons: list[str] = []
        for candidate in [named] if named else list(self._registered[stage]):
            try:
                backend = self._backend(stage, candidate)
            except PluginError as error:
                if named:
                    raise
                reasons.append(f"{candidate}: {error}")
                continue
            try:
                reason: object = backend.refuses(disk)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                reason = _error_text(error)
            if reason is None:
                return Choice(name=candidate, backend=backend, reasons=tuple(reasons))
            if not isinstance(reason, str):
                reason = f"its refuses() returned {_what(reason)} instead of a line or None"
            reasons.append(f"{candidate}: {_one_line(reason)}")
        return Choice(name="", backend=None, reasons=tuple(reasons))

    def _configured(self, stage: str) -> Any:
        configured = self._cluster.backends.get(stage) if self._cluster is not None else None
        return self._backend(stage, configured or _STAGES[stage].default)

    def _backend(self, stage: str, name: str) -> Any:
        registered = self._registered[stage].get(name)
        if registered is None:
            raise UnknownBackendError(self._unknown(stage, name))
        plugin = self._plugins[registered.plugin]
        cluster = self._cluster
        if cluster is None:
            raise PluginError(f"{stage} {name!r} cannot be used without a cluster: give a configuration")
        with self._lock:
            backend = self._backends.get((stage, name))
            if backend is None:
                context = api.BackendContext(cluster=cluster, options=cluster.backend_options.get(name, {}))
                with _blaming(PluginError, f"{stage} {name!r} of {plugin} could not be created"):
                    backend = _complete(registered.spec.create(context), _STAGES[stage])
                self._backends[stage, name] = backend
        return backend

    def _unknown(self, stage: str, name: str) -> str:
        if f"{stage}:{name}" in self._blocked:
            return f"{stage} {name!r} is disabled by {DISABLE_VARIABLE}"
        known = suggestion(name, self._registered[stage], none=f"no plugin provides any {stage}")
        return f"{stage} {printable(name)} is unknown; {known}"

    # --- observers ----------------------------------------------------------------------------------------------------

    @property
    def observed(self) -> bool:
        """Whether any plugin wants to know of events."""
        return bool(self._implementations("diskhaul_event"))

    def emit(self, event: Event) -> None:
        """Give `event` to every `diskhaul_event` hook. One that fails is warned of once, and still gets later events."""
        failed: list[str] = []
        for plugin, call in self._implementations("diskhaul_event"):
            try:
                call(event=event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                with self._lock:
                    if plugin.name not in self._warned:
                        self._warned.add(plugin.name)
                        failed.append(f"{plugin}: diskhaul_event failed: {_error_text(error)}")
        # Told after the round: the callback may well emit a warning event of its own, which then finds a host at rest, and
        # comes back here without another warning of the same plugin.
        if self._on_warning is not None:
            for warning in failed:
                self._on_warning(warning)

    def prerequisites(self, plan: Plan) -> list[str]:
        """Reasons of `diskhaul_prerequisites` hooks to refuse `plan`, one line each. A hook that fails is such a reason."""
        reasons: list[str] = []
        for plugin, call in self._implementations("diskhaul_prerequisites"):
            hook = f"{plugin}: diskhaul_prerequisites"
            try:
                result = call(plan=plan)
                if result is None:
                    continue
                if not isinstance(result, Iterable) or isinstance(result, str | bytes):
                    reasons.append(f"{hook} returned {_what(result)}; it must be a list of lines or None")
                    continue
                for reason in result:
                    if isinstance(reason, str) and reason.strip():
                        reasons.append(_one_line(reason))
                    else:
                        reasons.append(f"{hook} gave {_what(reason)} for a reason; it must be a line of text")
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                reasons.append(f"{hook} failed: {_error_text(error)}")
        return reasons

    def hook_environment(self, plan: Plan) -> dict[str, str]:
        """Variables of `diskhaul_hook_environment` hooks for the scripts of `plan`, without prefix.

        Raises:
            InvalidHookResultError: a result that is no mapping of text, or holds a name or value no environment can hold.
            PluginClashError: two plugins set one variable.
            PluginError: a hook failed.
        """
        variables: dict[str, str] = {}
        setters: dict[str, _Plugin] = {}
        for plugin, call in self._implementations("diskhaul_hook_environment"):
            with _blaming(PluginError, f"{plugin}: diskhaul_hook_environment failed"):
                result = call(plan=plan)
                items = list(result.items()) if isinstance(result, Mapping) else None
            if result is None:
                continue
            if items is None:
                raise InvalidHookResultError(
                    f"{plugin}: diskhaul_hook_environment returned {_what(result)}; it must be a mapping of text to text, or None"
                )
            for name, value in items:
                problem = _variable_problem(name, value)
                if problem:
                    raise InvalidHookResultError(f"{plugin}: diskhaul_hook_environment: {problem}")
                if name in setters:
                    raise PluginClashError(
                        f"both {setters[name]} and {plugin} set the hook variable {name}; "
                        f"leave one out with {DISABLE_VARIABLE}={plugin.name}"
                    )
                setters[name] = plugin
                variables[name] = value
        return variables


# --- how plugins are looked at ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _blaming(kind: type[PluginError], prefix: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a plugin's code raises, SystemExit included, into an error that names the plugin."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except RefusedError as error:
        raise kind([f"{prefix}: {_one_line(problem)}{remedy}" for problem in error.problems]) from error
    except BaseException as error:
        raise kind(f"{prefix}: {_error_text(error)}{remedy}") from error


def _error_text(error: BaseException) -> str:
    """One line for an error met in a plugin: its own words where diskhaul made it, else its kind as well."""
    text = _one_line(str(error))
    if isinstance(error, DiskhaulError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _what(value: object) -> str:
    """What somebody gave, for a message: the kind of thing, never its content."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"


def _blocked_names() -> frozenset[str]:
    return frozenset(name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip())


def _plugin_name(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    return plugin.__name__ if inspect.isclass(plugin) else type(plugin).__name__


def _distribution(point: EntryPoint) -> str:
    """Name and version of the distribution an entry point belongs to."""
    distribution = point.dist
    if distribution is None:
        return "an unknown distribution"
    return f"{distribution.name} {distribution.version}"


def _import_problem(module: str) -> str | None:
    """How others could change what ``import module`` runs; looked at before any of it runs, package by package."""
    from importlib.util import find_spec

    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = find_spec(".".join(parts[:end]))  # imports the packages above, which were judged in the rounds before
        if spec is None:
            return None  # the import itself will say what is missing
        places = list(spec.submodule_search_locations or ())
        if spec.has_location and spec.origin:
            places.append(spec.origin)
        for place in places:
            problem = tampering_problem(place, sticky_directory_is_safe=False)
            if problem:
                return problem
    return None


def _argument_problems(hook: str, function: Callable[..., object], spec: Callable[..., object]) -> list[str]:
    allowed = list(inspect.signature(spec).parameters)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    unknown = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and (parameter.kind is parameter.KEYWORD_ONLY or (parameter.kind in positional and parameter.name not in allowed))
    ]
    if not unknown:
        return []
    takes = f"takes {', '.join(allowed)}" if allowed else "takes no arguments"
    return [f"{hook} cannot be given {', '.join(unknown)}: the hook {takes}"]


def _keyword_call(implementation: pluggy.HookImpl) -> Callable[..., object]:
    """Call an implementation with those of the hook's arguments that it asks for, as pluggy does."""
    function, names = implementation.function, implementation.argnames

    def call(**arguments: object) -> object:
        return function(*(arguments[name] for name in names))

    return call


def _tunable_problem(tunable: object, backends: Iterable[str]) -> str | None:
    """Why `tunable` cannot be searched, to be put behind the hook's name; None when it can."""
    if not isinstance(tunable, api.Tunable):
        return f"gave {_what(tunable)}; expected is a Tunable"
    if not isinstance(tunable.backend, str) or tunable.backend not in backends:
        known = suggestion(str(tunable.backend), backends, none="there are no backends")
        return f"gave a tunable of the backend {printable(str(tunable.backend))}, which nobody provides; {known}"
    if not isinstance(tunable.option, str) or not _BACKEND_NAME.match(tunable.option):
        return f"gave the option name {printable(str(tunable.option))}; use letters, digits, - and _, at most 64"
    values = list(tunable.values) if isinstance(tunable.values, Sequence) and not isinstance(tunable.values, str | bytes) else []
    if not 2 <= len(values) <= MAX_TUNABLE_VALUES or len(set(map(repr, values))) != len(values):
        return f"gave {tunable.name!r} whose values are not 2 to {MAX_TUNABLE_VALUES} different ones"
    if not all(isinstance(value, str | int | float) for value in values):
        return f"gave {tunable.name!r} with values that no profile can hold; use text, numbers, or true and false"
    if repr(tunable.default) not in map(repr, values):
        return f"gave {tunable.name!r} whose default is not among its values"
    if tunable.applies is not None and not callable(tunable.applies):
        return f"gave {tunable.name!r} whose applies is no function"
    return None


class _Completed:
    """A backend that did not subclass its Protocol, together with the Protocol's defaults for what it leaves out."""

    def __init__(self, backend: object, protocol: type) -> None:
        self._backend = backend
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._backend, name)
        except AttributeError:
            default = vars(self._protocol).get(name)
            if not inspect.isfunction(default):
                raise
            return MethodType(default, self._backend)


def _complete(backend: object, stage: _Stage) -> object:
    """Check that `backend` can do what its stage cannot do without, and give it the defaults for the rest."""
    protocol = stage.protocol
    # A Protocol's own body of a required method is "...": inheriting that is not having one.
    missing = [name for name in stage.required if _lacks(backend, name, protocol)]
    if missing:
        raise TypeError(f"create() returned {_what(backend)} without {', '.join(missing)}")
    optional = [name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")]
    return backend if all(hasattr(backend, name) for name in optional) else _Completed(backend, protocol)


def with_defaults(stage: str, backend: B) -> B:
    """Return `backend` as operations use it: with the defaults of its stage's Protocol for the methods that it leaves out.

    Args:
        stage: one of `STAGES`.
        backend: subclasses the Protocol or not.

    Raises:
        TypeError: it lacks a method that has no default.
    """
    return cast("B", _complete(backend, _STAGES[stage]))


def _lacks(backend: object, name: str, protocol: type) -> bool:
    inherited = vars(protocol).get(name)
    return not hasattr(backend, name) or (inherited is not None and getattr(type(backend), name, None) is inherited)


def _variable_problem(name: object, value: object) -> str | None:
    if not isinstance(name, str) or not _VARIABLE_NAME.match(name):
        return f"variable name {printable(str(name))} is not allowed: use capital letters, digits and _"
    if name.startswith("DISKHAUL_"):
        return f"variable {name}: leave out DISKHAUL_, the runner puts it before every name"
    if not isinstance(value, str):
        return f"variable {name} is {_what(value)}; it must be text"
    if "\0" in value:
        return f"variable {name} holds a NUL character"
    try:
        length = len(os.fsencode(value))
    except UnicodeEncodeError:
        return f"variable {name} holds characters that no environment can hold"
    if length > _MAX_VARIABLE_BYTES:
        return f"variable {name} is longer than {_MAX_VARIABLE_BYTES} bytes"
    return None

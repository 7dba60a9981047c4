"""Whether options make sense: each value alone, and together. Nothing is looked up, so this comes before everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import get_args

from .errors import DiskhaulError
from .model import Cluster
from .names import printable
from .options import (
    COMPRESSORS,
    MAX_CHUNK_SIZE,
    MAX_TIMEOUT_S,
    MIN_CHUNK_SIZE,
    MIN_MEMORY,
    DigestTime,
    DirectIO,
    ExportOptions,
    ImportOptions,
    IOPriority,
    Layout,
    VerifyMode,
)

MAX_THREADS = 1024
MAX_READ_AHEAD = 1024
MAX_MEMORY = 1 << 40
MAX_BWLIMIT = 1 << 50


def option_problems(options: ExportOptions) -> list[str]:
    """Say everything that is wrong with the options of an export, one line each (docs/semantics.md, Refusals).

    Whether the guest runs, and what the zero-fill backend does to the disk, is not known here: the operation adds
    "remove + running + no shutdown" and "a writing zero-fill needs a shutdown".
    """
    wrong = {
        option.name: problem
        for option in fields(options)
        if (problem := value_problem(option.name, getattr(options, option.name)))
    }
    return [*wrong.values(), *_contradictions(options, _EXPORT_OPTIONS - wrong.keys())]


def compression_problems(options: ExportOptions, cluster: Cluster) -> list[str]:
    """Say, in one line, that `cluster` does not allow the compressor. One that is unknown is `option_problems`'."""
    compressor = _method(str(options.compress))
    if compressor not in COMPRESSORS or compressor in cluster.compression:
        return []
    return [f"compress {options.compress}: cluster {cluster.name} allows {', '.join(cluster.compression)}"]


def default_problems(defaults: Mapping[str, object]) -> list[str]:
    """Say everything that is wrong with export options which a configuration gives as defaults, one line each.

    A contradiction counts only where both sides are given here: otherwise the options of a call may complete the defaults.
    """
    wrong = {name: problem for name, value in defaults.items() if (problem := value_problem(name, value))}
    sound = {name: value for name, value in defaults.items() if name not in wrong and name in _EXPORT_OPTIONS}
    return [*wrong.values(), *_contradictions(ExportOptions(**sound), sound.keys())]  # type: ignore[arg-type]


def _contradictions(options: ExportOptions, judged: Collection[str]) -> list[str]:
    """What the options named in `judged` say against each other. Values that are wrong by themselves must not be among them."""
    problems: list[str] = []

    def sound(*names: str) -> bool:
        return all(name in judged for name in names)

    if sound("long_sleep", "shutdown") and options.long_sleep and not options.shutdown:
        problems.append(
            "long_sleep: contradicts shutdown = false; a guest that is not stopped cannot stay down: drop one of them"
        )
    if not sound("zero_free_space"):
        pass
    elif not options.zero_free_space:
        problems += [
            f"{name}: has no meaning without zero_free_space; ask for zero_free_space too, or drop it"
            for name in ("zero_fill", "zeroing_timeout_fixed_s", "zeroing_timeout_per_mib_s")
            if sound(name) and getattr(options, name) is not None
        ]
    elif sound("compress") and _method(options.compress) == "none":
        problems.append("zero_free_space: gains nothing with compress = none; choose a compressor such as zstd:1")
    if sound("remove_instance", "verify") and options.remove_instance and options.verify == "none":
        problems.append(
            "remove_instance: with verify = none the only copy would be one that nobody has read; use verify = stored"
        )
    if sound("digest", "compress") and options.digest == "later" and _method(options.compress) != "none":
        problems.append(
            f"digest: later is for disks that are not copied, so not with compress = {options.compress}; use compress = none"
        )
    if sound("remove_instance", "digest") and options.remove_instance and options.digest == "later":
        problems.append("remove_instance: with digest = later the only copy would be one that nobody has read; use digest = now")
    if sound("layout", "compress") and options.layout == "ganeti" and _method(options.compress) != "none":
        problems.append(f"layout: ganeti holds raw disks, so compress = {options.compress} cannot be used; use compress = none")
    return problems


_EXPORT_OPTIONS = frozenset(option.name for option in fields(ExportOptions))


def import_option_problems(options: ImportOptions) -> list[str]:
    """Say everything that is wrong with the options of an import, one line each."""
    return [problem for option in fields(options) if (problem := value_problem(option.name, getattr(options, option.name)))]


def value_problem(name: str, value: object) -> str | None:
    """Say in one line, beginning with ``name:``, why `value` cannot be the value of the option `name`, or return None.

    A name that is no option is a problem too.
    """
    check = _CHECKS.get(name)
    if check is None:
        return f"{name}: there is no such option"
    problem = check(value)
    return f"{name}: {problem}" if problem else None


def _method(compress: str) -> str:
    return compress.partition(":")[0]


def _kind(value: object) -> str:
    words = {bool: "true or false", int: "a number", float: "a number with a fraction", str: "text", type(None): "nothing"}
    return words.get(type(value), type(value).__name__)


def _switch(value: object) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {_kind(value)}"


def _seconds(*, zero: bool = True, optional: bool = False) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number of seconds, not {_kind(value)}"
        if value > MAX_TIMEOUT_S or value < 0 or (value == 0 and not zero) or math.isnan(value):
            least = "from 0" if zero else "above 0"
            return f"must be {least} to {MAX_TIMEOUT_S} seconds, not {_number(value)}"
        return None

    return check


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) or abs(value) < 10**20 else "a number of more than 20 digits"


def _one_of(*choices: str) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if isinstance(value, str) and value in choices:
            return None
        given = printable(value[:40]) if isinstance(value, str) else _kind(value)
        return f"must be one of {', '.join(choices)}, not {given}"

    return check


def _compress(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be text such as 'zstd:1', not {_kind(value)}"
    from .formats.codec import parse_compress

    try:
        parse_compress(value)
    except (DiskhaulError, ValueError) as error:
        return str(error).removeprefix("compress: ")
    return None


def _backend_name(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return f"must be the name of a backend, not {_kind(value)}"
    return None if value.strip() else "is empty; name a backend, or leave it out"


def _chunk_size(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number of bytes, not {_kind(value)}"
    if not MIN_CHUNK_SIZE <= value <= MAX_CHUNK_SIZE or value & (value - 1):
        return f"must be a power of two from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE} bytes, not {_number(value)}"
    return None


def _whole(least: int, most: int, *, least_means: str = "", unit: str = "number") -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole {unit}, not {_kind(value)}"
        meaning = f" ({least_means})" if least_means else ""
        return None if least <= value <= most else f"must be from {least}{meaning} to {most}, not {_number(value)}"

    return check


def _grow(value: object) -> str | None:
    if not isinstance(value, tuple | list):
        return "must be pairs of a disk index and a size in bytes"
    seen: set[int] = set()
    for pair in value:
        whole = isinstance(pair, tuple | list) and len(pair) == 2 and all(type(number) is int for number in pair)
        if not whole or pair[0] < 0 or not 0 < pair[1] < 1 << 63:
            return "must be pairs of a disk index and a size in bytes, both whole and not negative"
        if pair[0] in seen:
            return f"names disk {pair[0]} twice"
        seen.add(pair[0])
    return None


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "compress": _compress,
    "shutdown": _switch,
    "shutdown_timeout_s": _seconds(),
    "long_sleep": _switch,
    "zero_free_space": _switch,
    "zero_fill": _backend_name,
    "zeroing_timeout_fixed_s": _seconds(optional=True),
    "zeroing_timeout_per_mib_s": _seconds(optional=True),
    "remove_instance": _switch,
    "ignore_remove_failures": _switch,
    "layout": _one_of(*get_args(Layout)),
    "verify": _one_of(*get_args(VerifyMode)),
    "digest": _one_of(*get_args(DigestTime)),
    "chunk_size": _chunk_size,
    "threads": _whole(0, MAX_THREADS, least_means="one more than CPUs"),
    "read_ahead": _whole(0, MAX_READ_AHEAD),
    "direct_io": _one_of(*get_args(DirectIO)),
    "memory": _whole(MIN_MEMORY, MAX_MEMORY, unit="number of bytes"),
    "bwlimit": _whole(0, MAX_BWLIMIT, least_means="no limit", unit="number of bytes per second"),
    "nice": _whole(0, 19),
    "io_priority": _one_of(*get_args(IOPriority)),
    "lock_timeout_s": _seconds(),
    "hook_timeout_s": _seconds(zero=False),
    "stall_timeout_s": _seconds(zero=False),
    "dry_run": _switch,
    "force": _switch,
    "grow": _grow,
}

"""The readers there are, by the family in which backends choose them. Their modules are loaded in the child process only."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module

from .reading import Reader


@dataclass(frozen=True, slots=True)
class ReaderEntry:
    """Where a reader is found.

    Attributes:
        family: what backends choose it by.
        module: with a leading dot, relative to this package. Its function ``prepare() -> None``, where it has one, is called
            first, with all privileges and before the disk is looked at: to load libraries, and to find programs. It raises when
            the reader cannot work here; the text tells why.
        function: the reader's name there.
        programs: it runs other programs. Whoever wants it gets a child process that may.
    """

    family: str
    module: str
    function: str
    programs: bool = False


READERS = (
    ReaderEntry("ext", ".ext", "read_ext"),
    ReaderEntry("swap", ".swap", "read_swap"),
    ReaderEntry("xfs", ".xfs", "read_xfs"),
    ReaderEntry("btrfs", ".btrfs", "read_btrfs"),
    ReaderEntry("f2fs", ".f2fs", "read_f2fs"),
    ReaderEntry("ntfs", ".ntfs", "read_ntfs"),
    ReaderEntry("exfat", ".exfat", "read_exfat"),
    ReaderEntry("fat", ".fat", "read_fat"),
    ReaderEntry("partclone", ".partclone", "read_partclone", programs=True),
)
"""In the order in which they are asked."""

FAMILIES = tuple(dict.fromkeys(entry.family for entry in READERS if not entry.programs))
"""Those that run no other program."""


@dataclass(frozen=True, slots=True)
class LoadedReaders:
    """Readers that are ready, why others are not (one line each), and whether one of them runs programs."""

    readers: tuple[Reader, ...]
    missing: tuple[str, ...]
    programs: bool


def load_readers(families: Collection[str]) -> LoadedReaders:
    """Load the readers of `families`; one that cannot be loaded is left out."""
    readers: list[Reader] = []
    missing: list[str] = []
    programs = False
    for entry in READERS:
        if entry.family not in families:
            continue
        try:
            module = import_module(entry.module, __package__)
            prepare: Callable[[], object] | None = getattr(module, "prepare", None)
            if prepare is not None:
                prepare()
            readers.append(getattr(module, entry.function))
            programs = programs or entry.programs
        except Exception as error:  # libraries are missing in many ways
            missing.append(f"{entry.family}: {str(error) or type(error).__name__}")
    return LoadedReaders(tuple(readers), tuple(missing), programs)

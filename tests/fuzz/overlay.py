"""A disk that is another one with changes, kept apart from it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from diskhaul_plugins.guest_disks.volume import OutsideVolumeError

PAGE = 4096


class Overlay:
    """A `Volume` over the file behind `descriptor`, which is never written. Its `size` may be set; behind the file are zeros."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size
        self._pages: dict[int, bytearray] = {}
        self.size = self._length

    def read(self, offset: int, length: int, /) -> bytes:
        self._check(offset, length)
        content = self._below(offset, length)
        changed = [page for page in self._pages if page * PAGE < offset + length and (page + 1) * PAGE > offset]
        if not changed:
            return content
        whole = bytearray(content)
        for page in changed:
            begin, end = max(offset, page * PAGE), min(offset + length, (page + 1) * PAGE)
            whole[begin - offset : end - offset] = self._pages[page][begin - page * PAGE : end - page * PAGE]
        return bytes(whole)

    def write(self, offset: int, content: bytes) -> None:
        self._check(offset, len(content))
        while content:
            page, inside = divmod(offset, PAGE)
            if page not in self._pages:
                self._pages[page] = bytearray(self._below(page * PAGE, PAGE))
            part = content[: PAGE - inside]
            self._pages[page][inside : inside + len(part)] = part
            offset, content = offset + len(part), content[len(part) :]

    def touches(self, offset: int, length: int) -> bool:
        """May anything in this range have been changed?"""
        return any(page * PAGE < offset + length and (page + 1) * PAGE > offset for page in self._pages)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        self._check(offset, length)
        if length:
            yield offset, length

    def copy_to(self, target: int) -> None:
        """Make the file behind `target`, which is empty, the same disk, with its holes."""
        os.ftruncate(target, self.size)
        at = 0
        while at < min(self._length, self.size):
            try:
                at = os.lseek(self._descriptor, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = min(os.lseek(self._descriptor, at, os.SEEK_HOLE), self.size)
            while at < end:
                at += os.pwrite(target, os.pread(self._descriptor, min(end - at, 1 << 20), at), at)
        for page, content in self._pages.items():
            begin = page * PAGE
            if begin < self.size:
                os.pwrite(target, content[: self.size - begin], begin)

    def _below(self, offset: int, length: int) -> bytes:
        parts = []
        while length and (part := os.pread(self._descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts) + bytes(length)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutsideVolumeError(f"{length} bytes at {offset} are not on a volume of {self.size} bytes")


class Recorder:
    """A `Volume` that notes what is read of another one."""

    def __init__(self, volume: Overlay) -> None:
        self._volume = volume
        self.size = volume.size
        self.reads: dict[tuple[int, int], None] = {}

    def read(self, offset: int, length: int, /) -> bytes:
        content = self._volume.read(offset, length)
        self.reads[offset, length] = None
        return content

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        return self._volume.on_disk(offset, length)

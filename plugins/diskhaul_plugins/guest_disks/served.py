"""Volumes as files, for programs that want a path (FUSE; Linux: include/uapi/linux/fuse.h, protocol 7.31).

The mount is in a mount namespace of this process, so nobody else sees it, no udev looks into it, and it is gone with the process,
however that ends. The files can only be read: nobody answers a write. They are served by whoever waits for the program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import selectors
import stat
import struct
import subprocess
import time
from collections.abc import Sequence

from .sandbox import NOBODY
from .volume import OutsideVolumeError, Volume

_MOUNT_POINT = b"/tmp"  # covered by the mount, for this process alone; a directory that is everywhere
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18

_REQUEST = struct.Struct("<IIQQIIIHH")  # length, operation, id, node, user, group, process
_REPLY = struct.Struct("<IiQ")  # length, minus an error, id
_ATTRIBUTES = struct.Struct(
    "<QQQQQQ10I"
)  # node, size, blocks, times, times' nanoseconds, mode, links, user, group, rdev, unit, flags
_ENTRY = struct.Struct("<QQQQII")  # node, generation, how long name and attributes stay valid
_ATTRIBUTES_HEAD = struct.Struct("<QII")
_OPENED = struct.Struct("<QII")
_READ = struct.Struct("<QQI")  # handle, offset, length
_INITIALIZED = struct.Struct("<IIIIHHIIHHI28x")

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ_DATA, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 15, 18, 25, 26
_INTERRUPT, _DESTROY, _BATCH_FORGET = 36, 38, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
_KEEP_CACHE = 1 << 1
_FOREVER_S = 1 << 31
_LARGEST_READ = 128 << 10
_ROOT, _FIRST = 1, 2  # nodes
_MAX_OUTPUT = 256 << 20  # bytes that a program may say


class ServedVolumes:
    """A directory of volumes, for programs that are run by `run`. Made while this process still has its privileges."""

    def __init__(self) -> None:
        """Mount the directory.

        Raises:
            OSError: it cannot be mounted: no FUSE here, or no permission.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        if os.geteuid() == 0:
            _must(libc.unshare(_CLONE_NEWNS), "a mount namespace")
        else:
            _must(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER), "a user namespace")
            for name, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(content)
        _must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)  # only now: it belongs to the namespace it was opened in
        options = f"fd={self._device},rootmode=40555,user_id={user},group_id={group}".encode()
        _must(libc.mount(b"diskhaul", _MOUNT_POINT, b"fuse", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options), "a FUSE mount")
        self._volumes: list[Volume] = []

    def run(self, argv: Sequence[str], volume: Volume, *, deadline_s: float) -> bytes:
        """Run a program on `volume`; return its output.

        Args:
            argv: the program, by its full path, and arguments; "@VOLUME@" among them becomes the path of the volume, "@OUTPUT@"
                one that can be written to: that is what is returned.

        Raises:
            OSError: it cannot be started.
            ProgramFailedError: it failed, said too much, or did not end in `deadline_s` seconds; it is no longer running.
        """
        self._volumes.append(volume)
        path = f"{_MOUNT_POINT.decode()}/{len(self._volumes) - 1}"
        output, written = os.pipe()
        try:
            places = {"@VOLUME@": path, "@OUTPUT@": f"/proc/self/fd/{written}"}
            process = subprocess.Popen(
                [places.get(argument, argument) for argument in argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(written,),
                env={"LC_ALL": "C"},
                cwd="/",
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(written)
        try:
            said = self._serve(process, output, time.monotonic() + deadline_s)
        finally:
            os.close(output)
            process.kill()  # it has ended, or is to end now
            process.wait()
        if process.returncode != 0:
            raise ProgramFailedError(f"ended with {process.returncode}")
        return said

    def _serve(self, process: subprocess.Popen[bytes], output: int, until: float) -> bytes:
        """Answer the kernel until the program has closed its output, and ended; return what it said."""
        said = bytearray()
        ended = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in (self._device, output, ended):
                    selector.register(descriptor, selectors.EVENT_READ)
                while len(selector.get_map()) > 1:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise ProgramFailedError("took too long")
                    for key, _ in selector.select(left):
                        if key.fd == self._device:
                            self._answer()
                        elif key.fd == ended or not self._listen(output, said):
                            selector.unregister(key.fd)
        finally:
            os.close(ended)
        return bytes(said)

    def _listen(self, output: int, said: bytearray) -> bool:
        """Take what there is; False at its end."""
        part = os.read(output, 1 << 16)
        said += part
        if len(said) > _MAX_OUTPUT:
            raise ProgramFailedError("says too much")
        return bool(part)

    def _answer(self) -> None:
        try:
            request = os.read(self._device, _LARGEST_READ + 4096)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # whoever asked has gone
                return
            raise
        _, operation, number, node, *_ = _REQUEST.unpack_from(request)
        if operation in _UNANSWERED:
            return
        body = request[_REQUEST.size :]
        try:
            answer = self._reply(operation, node, body)
            header = _REPLY.pack(_REPLY.size + len(answer), 0, number)
        except OSError as error:
            answer, header = b"", _REPLY.pack(_REPLY.size, -(error.errno or errno.EIO), number)
        try:
            os.write(self._device, header + answer)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _reply(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == _INIT:
            _, _, readahead = struct.unpack_from("<III", body)
            return _INITIALIZED.pack(7, 31, min(readahead, _LARGEST_READ), 0, 12, 9, 4096, 1, 0, 0, 0)
        if operation == _LOOKUP:
            found = self._lookup(node, body.rstrip(b"\0"))
            return _ENTRY.pack(found, 0, _FOREVER_S, _FOREVER_S, 0, 0) + self._attributes(found)
        if operation == _GETATTR:
            return _ATTRIBUTES_HEAD.pack(_FOREVER_S, 0, 0) + self._attributes(node)
        if operation == _OPEN:
            return _OPENED.pack(0, _KEEP_CACHE, 0)
        if operation == _READ_DATA:
            _, offset, length = _READ.unpack_from(body)
            volume = self._volume(node)
            try:
                return volume.read(offset, max(0, min(length, _LARGEST_READ, volume.size - offset)))
            except OutsideVolumeError:
                raise _refusal(errno.EIO) from None
        if operation in (_RELEASE, _FLUSH, _DESTROY):
            return b""
        raise _refusal(errno.ENOSYS)

    def _lookup(self, node: int, name: bytes) -> int:
        if node != _ROOT or not name.isdigit() or int(name) >= len(self._volumes):
            raise _refusal(errno.ENOENT)
        return _FIRST + int(name)

    def _volume(self, node: int) -> Volume:
        if not _FIRST <= node < _FIRST + len(self._volumes):
            raise _refusal(errno.ENOENT)
        return self._volumes[node - _FIRST]

    def _attributes(self, node: int) -> bytes:
        if node == _ROOT:
            size, mode = 0, stat.S_IFDIR | 0o555
        else:
            size, mode = (
                self._volume(node).size,
                stat.S_IFREG | 0o666,
            )  # some open for writing what they only read; a write is refused
        return _ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class ProgramFailedError(Exception):
    """A program that was run did not do what it was to do."""


def _refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot have {what}: {os.strerror(number)}")

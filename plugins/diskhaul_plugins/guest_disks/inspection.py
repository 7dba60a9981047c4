"""Has a disk read by a process of its own, and believes nothing of what that says before it was checked."""

from __future__ import annotations

import errno
import io
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import diskhaul_native
from diskhaul import api
from diskhaul.api import DiskMap, DiskReader
from diskhaul.errors import OperationFailedError
from diskhaul.names import escape
from diskhaul.processes import SEARCH_PATH

from . import wire

DEADLINE_S = 120.0
_ENDED_S = 5.0  # how long a process may take to disappear that has said all, or was killed
_MAX_COMPLAINT = 64 << 10
_SET_UP = "import sys; sys.path += sys.argv.pop(1).split(':')\n"
PROGRAM = "from diskhaul_plugins.guest_disks.child import start; start()"


class GuestDiskReaderError(OperationFailedError):
    """The process that was to read a guest's disk failed, or answered nonsense. Nothing of the disk is known."""


def inspect_disk(
    reader: DiskReader, families: Sequence[str], *, deadline_s: float = DEADLINE_S, program: str = PROGRAM
) -> DiskMap:
    """What the disk behind `reader` holds, as the readers of `families` see it.

    It is read through a read-only descriptor of its own where `reader` has one, and else through `reader.read_into`, in this
    thread. Thread-safe. Ends the process on every path, an exception from outside (Ctrl-C) included.

    `program` is what the process runs, after its path has been set up; tests have one that misbehaves.

    Raises:
        GuestDiskReaderError: the process crashed, took longer than `deadline_s`, or answered nonsense.
    """
    with ExitStack() as stack:
        process, channel = _start(reader, [program, str(reader.size), f"{deadline_s + _ENDED_S:.0f}"], families, stack)
        conversation = _Conversation(process, reader, channel)
        with _ended(process):
            conversation.run(time.monotonic() + deadline_s)
        return conversation.result()


def _reopened(reader: DiskReader) -> int | None:
    """A read-only descriptor of the disk that shares nothing with the reader's own, or None where there can be none."""
    fileno = getattr(reader, "fileno", None)
    if not callable(fileno):
        return None
    try:
        return os.open(f"/proc/self/fd/{fileno()}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, io.UnsupportedOperation):
        return None


def _start(
    reader: DiskReader, command: Sequence[str], families: Sequence[str], stack: ExitStack
) -> tuple[subprocess.Popen[bytes], socket.socket | None]:
    """Start the child; return it, and over what it asks for the disk, if it has to. `stack` closes what is left open here."""
    with ExitStack() as handed_over:
        descriptor = _reopened(reader)
        if descriptor is not None:
            handed_over.callback(os.close, descriptor)
            return _spawn([*command, f"disk:{descriptor}", *families], descriptor, stack), None
        channel, childs = socket.socketpair()
        stack.enter_context(channel)
        handed_over.enter_context(childs)
        return _spawn([*command, f"asked:{childs.fileno()}", *families], childs.fileno(), stack), channel


def _spawn(command: Sequence[str], descriptor: int, stack: ExitStack) -> subprocess.Popen[bytes]:
    """A fresh interpreter with a program and its arguments, and one descriptor besides its output."""
    roots = dict.fromkeys(
        str(Path(file).resolve().parents[depth])
        for file, depth in ((__file__, 2), (api.__file__, 1), (diskhaul_native.__file__, 1))
    )
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    if "LD_LIBRARY_PATH" in os.environ:  # this interpreter may be one that needs it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    program, *arguments = command
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _SET_UP + program, ":".join(roots), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    except OSError as error:
        raise GuestDiskReaderError(f"the reader of guests' disks cannot be started: {error}") from error
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stack.enter_context(stream)
    return process


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """At the end the process, and what it started, is gone."""
    try:
        yield
        _wait_unreaped(process)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it has not been reaped: the number is still its own
        except (ProcessLookupError, PermissionError):
            pass
        try:
            process.wait(_ENDED_S)
        except subprocess.TimeoutExpired:
            pass  # it hangs in the kernel, and is reaped with a later child


def _wait_unreaped(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process that has closed its output has ended, so that its status is its own doing."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            selector.select(_ENDED_S)
    finally:
        os.close(descriptor)


class _Conversation:
    """Gathers what the child says, and answers what it asks."""

    def __init__(self, process: subprocess.Popen[bytes], reader: DiskReader, channel: socket.socket | None) -> None:
        self._process, self._reader, self._channel = process, reader, channel
        self._answer, self._complaint, self._request = bytearray(), bytearray(), bytearray()

    def run(self, until: float) -> None:
        """Until the child has closed its output.

        Raises:
            GuestDiskReaderError: it is not done by `until`, or says too much.
        """
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ, self._answer)
            selector.register(self._process.stderr, selectors.EVENT_READ, self._complaint)
            if self._channel is not None:
                selector.register(self._channel, selectors.EVENT_READ, self._request)
            outputs = 2
            while outputs:
                left = until - time.monotonic()
                if left <= 0:
                    raise GuestDiskReaderError("the reader of guests' disks took too long, and was ended")
                for key, _ in selector.select(left):
                    if key.fileobj is self._channel:
                        if not self._listen(until):
                            selector.unregister(self._channel)
                        continue
                    part = os.read(key.fd, 1 << 16)
                    key.data.extend(part)
                    if not part:
                        selector.unregister(key.fileobj)
                        outputs -= 1
                    if len(self._answer) > wire.MAX_ANSWER or len(self._complaint) > _MAX_COMPLAINT:
                        raise GuestDiskReaderError("the reader of guests' disks says too much, and was ended")

    def _listen(self, until: float) -> bool:
        """Take a piece of a request, and answer it when it is whole; False when there will be no more."""
        assert self._channel is not None
        self._channel.settimeout(max(until - time.monotonic(), 0.001))
        try:
            part = self._channel.recv(wire.REQUEST.size - len(self._request))
            self._request += part
            if len(self._request) == wire.REQUEST.size:
                offset, length = wire.REQUEST.unpack(self._request)
                self._request.clear()
                self._channel.sendall(self._content(offset, length))
        except TimeoutError:
            raise GuestDiskReaderError("the reader of guests' disks took too long, and was ended") from None
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            return False
        return bool(part)

    def _content(self, offset: int, length: int) -> bytes:
        if length > wire.MAX_REQUEST or offset + length > self._reader.size:
            return wire.REFUSED
        buffer = bytearray(length)
        try:
            count = self._reader.read_into(offset, memoryview(buffer))
        except Exception:  # a plugin's reader may raise anything; what is to be sent of the disk will show it
            return wire.REFUSED
        if isinstance(count, int) and not isinstance(count, bool) and count != length:
            return wire.REFUSED
        return wire.GRANTED + buffer

    def result(self) -> DiskMap:
        """The disk's map.

        Raises:
            GuestDiskReaderError: the child failed, or answered nonsense.
        """
        code = self._process.returncode
        if code != 0:
            raise GuestDiskReaderError(f"the reader of guests' disks {self._ending(code)}")
        try:
            return wire.decode(self._answer, self._reader.size)
        except wire.NonsenseError as error:
            raise GuestDiskReaderError(f"the reader of guests' disks answered nonsense: {escape(str(error))}") from error

    def _ending(self, code: int | None) -> str:
        if code is None:
            return "cannot be ended"
        if code < 0:
            try:
                return f"was killed by {signal.Signals(-code).name}"
            except ValueError:  # a real-time signal has no name
                return f"was killed by signal {-code}"
        lines = self._complaint.decode("utf-8", "backslashreplace").strip().splitlines()
        return f"failed: {escape(lines[-1].strip())[:200]}" if lines else f"failed with exit code {code}"

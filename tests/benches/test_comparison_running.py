"""One measured run: processes are started and waited for, their use is added up, failures are told, nothing is left running."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benches.comparison.errors import ContestantError
from benches.comparison.running import PORT, Pipeline, Usage, measure, sizes


@pytest.fixture
def run(tmp_path: Path, requires: Callable[..., None]) -> Callable[..., Usage]:
    requires("time")

    def measured(*pipelines: Pipeline, limit_s: float = 60) -> Usage:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return measure(pipelines, scratch=scratch, limit_s=limit_s)

    return measured


def python(program: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", program, *arguments)


def test_a_pipeline_passes_bytes_on_and_writes_its_output(run: Callable[..., Usage], tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"some bytes")
    run(Pipeline(stages=(("cat", str(tmp_path / "in")), ("tr", "a-z", "A-Z"), ("cat",)), output=tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"SOME BYTES"


def test_cpu_time_is_that_of_all_processes_and_their_children(run: Callable[..., Usage]) -> None:
    busy = "import os, time\nwhile time.process_time() < 0.2: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-I', '-S', '-c', {busy!r}], check=True)"
    used = run(Pipeline(stages=(python(busy), python(child))))
    assert used.cpu_s >= 0.4
    assert used.cpu_s == used.user_s + used.system_s


def test_memory_is_the_sum_over_a_pipeline_and_not_that_of_this_process(run: Callable[..., Usage], tmp_path: Path) -> None:
    ballast = bytearray(200 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    forty = "data = bytearray(40 << 20)\ndata[::4096] = b'x' * len(data[::4096])"
    used = run(Pipeline(stages=(python(forty), python(forty))))
    assert 80 << 20 <= used.peak < 160 << 20
    del ballast


def test_a_process_that_fails_is_named_with_what_it_said_last(run: Callable[..., Usage]) -> None:
    failing = python("import sys; print('a disk is full', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ContestantError, match=r"python\S* failed \(status 3\): a disk is full"):
        run(Pipeline(stages=(failing, ("cat",))))


def test_a_program_that_is_not_there_is_a_failure_of_that_program(run: Callable[..., Usage]) -> None:
    with pytest.raises(ContestantError, match="no-such-program failed"):
        run(Pipeline(stages=(("no-such-program",),)))


def test_when_one_fails_the_others_are_ended(run: Callable[..., Usage], tmp_path: Path) -> None:
    note = str(tmp_path / "pid")
    endless = "import os, signal, sys\nopen(sys.argv[1], 'w').write(str(os.getpid()))\nsignal.pause()"
    failing = "import os, sys\nwhile not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])): pass\nsys.exit(1)"
    with pytest.raises(ContestantError, match="status 1"):
        run(Pipeline(stages=(python(endless, note), python(failing, note))))
    pid = int((tmp_path / "pid").read_text())
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_who_does_not_end_within_the_limit_is_ended(run: Callable[..., Usage]) -> None:
    with pytest.raises(ContestantError, match="sleep did not end within the limit"):
        run(Pipeline(stages=(("sleep", "600"),)), limit_s=0.2)


def test_the_second_pipeline_is_given_the_port_on_which_the_first_listens(run: Callable[..., Usage], tmp_path: Path) -> None:
    listener = python(
        "import socket, sys\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    print(f'x N listening on AF=2 127.0.0.1:{server.getsockname()[1]}', file=sys.stderr, flush=True)\n"
        "    with server.accept()[0] as peer: print(peer.recv(99).decode(), end='')"
    )
    sender = python("import socket, sys\nsocket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(b'hello')", PORT)
    run(Pipeline(stages=(listener, ("cat",)), output=tmp_path / "out", listens=True), Pipeline(stages=(sender,)))
    assert (tmp_path / "out").read_text() == "hello"


def test_a_service_is_there_before_the_clock_is_ended_after_it_and_its_cpu_time_counts(
    run: Callable[..., Usage], tmp_path: Path
) -> None:
    service = python(
        "import pathlib, signal, socket, sys, time\n"
        "while time.process_time() < 0.5: pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    print(f'node x listens on 127.0.0.1:{server.getsockname()[1]}', file=sys.stderr, flush=True)\n"
        "    with server.accept()[0] as peer: said = peer.recv(99)\n"
        "    signal.sigwait([signal.SIGTERM])\n"
        "    pathlib.Path(sys.argv[1]).write_bytes(said)\n",
        str(tmp_path / "out"),
    )
    sender = python("import socket, sys\nsocket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(b'hello')", PORT)
    used = run(Pipeline(stages=(service,), listens=True, serves=True), Pipeline(stages=(sender,)))
    assert (tmp_path / "out").read_text() == "hello"
    assert used.cpu_s >= 0.5


def test_a_listener_that_ends_before_it_listens_is_a_failure(run: Callable[..., Usage]) -> None:
    listener = python("import sys; sys.exit('no such certificate')")
    with pytest.raises(ContestantError, match="does not listen: no such certificate"):
        run(Pipeline(stages=(listener,), listens=True), Pipeline(stages=(("true",),)))


def test_programs_get_the_usual_signals(run: Callable[..., Usage]) -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN  # of Python
    with pytest.raises(ContestantError, match="yes failed"):
        run(Pipeline(stages=(("yes",), ("head", "-c", "100000"))))


def test_sizes_tell_length_and_room_of_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    with open(tmp_path / "d/sparse", "wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "d/e/full").write_bytes(os.urandom(65536))
    apparent, allocated = sizes(tmp_path / "d")
    assert apparent == (1 << 30) + 65536
    assert 65536 <= allocated < 1 << 20
    assert sizes(tmp_path / "d/e/full")[0] == 65536

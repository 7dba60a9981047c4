"""One stream of the transfer `tls`, from memory into a file on a receiver, beside what a bare Python `ssl` pair moves.

    python -m benches.tls_stream [--mib 2048] [--rounds 5] [--work /dev/shm]
    python -m benches.tls_stream --append --work /var/tmp

Both on loopback, between two processes, with the same certificates, in turn, in the same run. The bare pair sends the same
buffers with `sendall` and receives into one buffer, and does nothing else. The transfer digests every frame at both ends,
writes it into the page cache, and acknowledges it; its time ends with the receiver's fsync. It writes the same 64 MiB of a
file again and again, so that what is measured is the stream, and not how fast the kernel finds memory for a file.

Between the two stands a bare pair whose receiver also digests each chunk, on a thread of its own, as whoever checks before it
writes has to: what is between that and the transfer is all that could be won.

With --append it sends what an export that is compressed does: frames whose digests are known, which are appended, past the page
cache where the filesystem of WORK has direct I/O. Then the disk has to be faster than the stream.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import ssl
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from diskhaul import certificates
from diskhaul.api import BackendContext, DigestedStoreFile
from diskhaul.formats.chunk_table import chunk_digest
from diskhaul.host import PluginHost
from diskhaul.model import Cluster, Instance, Node
from diskhaul_plugins.transfers.tls.identities import Identity
from diskhaul_plugins.transfers.tls.transfer import TlsTransfer

MIB = 1 << 20
INSTANCE = "web1.example.com"
CHUNK = 4 * MIB
FILE_SIZE = 16 * CHUNK
EXPORT_ID = "20260101T000000Z-0123abcd"


@contextmanager
def child(work: Callable[[], object]) -> Iterator[None]:
    """`work` in a process of its own, which ends with the block."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def receive_and_drop(connection: ssl.SSLSocket, size: int) -> None:
    """Read `size` bytes into one buffer."""
    buffer = memoryview(bytearray(CHUNK))
    while size:
        size -= connection.recv_into(buffer)


def receive_and_digest(connection: ssl.SSLSocket, size: int) -> None:
    """Read `size` bytes, whole chunks, and digest each on another thread while the next one comes."""
    buffers = [memoryview(bytearray(CHUNK)) for _ in range(4)]
    digests: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for number in range(size // CHUNK):
            if len(digests) == len(buffers):
                digests.popleft().result()
            buffer, filled = buffers[number % len(buffers)], 0
            while filled < CHUNK:
                filled += connection.recv_into(buffer[filled:])
            digests.append(pool.submit(chunk_digest, buffer))
        for digest in digests:
            digest.result()


def bare_rate(certs: Path, chunks: list[bytes], take: Callable[[ssl.SSLSocket, int], None]) -> float:
    """Bytes a second of a bare pair, of which the receiver does `take`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def receive() -> None:
        context = Identity(certs, "beta").context(server=True)
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) as connection:
            take(connection, sum(map(len, chunks)))
            connection.sendall(b"x")

    with listener, child(receive):
        plain = socket.create_connection(listener.getsockname())
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with Identity(certs, "alpha").context(server=False).wrap_socket(plain, server_hostname="beta") as connection:
            begun = time.perf_counter()
            for chunk in chunks:
                connection.sendall(chunk)
            if connection.recv(1) != b"x":
                raise ssl.SSLError("the receiver went away")
            return sum(map(len, chunks)) / (time.perf_counter() - begun)


def transfer_rate(certs: Path, work: Path, chunks: list[bytes], streams: int, *, append: bool) -> float:
    """Bytes a second of the transfer."""
    digests = {id(chunk): chunk_digest(chunk) for chunk in chunks} if append else {}
    (work / "exports").mkdir()
    beta = Node(name="beta", export_dir=work / "exports", options={"address": "127.0.0.1:1", "listen": "127.0.0.1:0"})
    cluster = Cluster(
        name="bench",
        state_dir=work / "state",
        nodes=[beta, Node(name="alpha", export_dir=work)],
        instances=[Instance(name=INSTANCE, node="alpha")],
    )

    def transfer(this: str) -> TlsTransfer:
        return TlsTransfer(BackendContext(cluster=cluster, options={"certificates": certs, "this": this, "streams": streams}))

    receiver = transfer("beta").receiver(beta, PluginHost(cluster).inventory())
    with child(receiver.serve_forever):
        store = transfer("alpha").store(replace(beta, options={"address": receiver.address}))
        file = store.begin(INSTANCE, EXPORT_ID).create("disk-0.raw")
        assert isinstance(file, DigestedStoreFile)
        if not append:
            file.set_size(FILE_SIZE)
            file.write(0, bytes(b"x" * FILE_SIZE))
        begun = time.perf_counter()
        for number, chunk in enumerate(chunks):
            if append:
                file.append_digested(chunk, digests[id(chunk)])
            else:
                file.write(number * CHUNK % FILE_SIZE, chunk)
        file.finish()
        rate = sum(map(len, chunks)) / (time.perf_counter() - begun)
        store.remove_partial(INSTANCE, EXPORT_ID)
    (work / "exports" / ".diskhaul-store").unlink()
    (work / "exports").rmdir()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="how much is sent each time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="frames that are appended, as those of a compressed disk")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="where the receiver writes")
    given = parser.parse_args()
    data = [secrets.token_bytes(CHUNK) for _ in range(16)]
    chunks = [data[number % len(data)] for number in range(given.mib * MIB // CHUNK)]
    with tempfile.TemporaryDirectory(dir=given.work) as directory:
        work = Path(directory)
        certs = work / "certs"
        certificates.make_authority(certs, "bench")
        for name in ("alpha", "beta"):
            certificates.issue(certs, name)
        rates: dict[str, list[float]] = {}
        for number in range(given.rounds):
            round_rates = {
                "bare ssl": bare_rate(certs, chunks, receive_and_drop),
                "digested": bare_rate(certs, chunks, receive_and_digest),
                "tls": transfer_rate(certs, work, chunks, given.streams, append=given.append),
            }
            print(f"round {number}: {shown(round_rates)}")
            for name, rate in round_rates.items():
                rates.setdefault(name, []).append(rate)
        print(f"median:  {shown({name: statistics.median(measured) for name, measured in rates.items()})}")


def shown(rates: dict[str, float]) -> str:
    """The rates, and what part of the bare pair's each of the others is."""
    bare = rates["bare ssl"]
    return ", ".join(
        f"{name} {rate / 1e6:.0f} MB/s" + ("" if name == "bare ssl" else f" ({rate / bare:.0%})") for name, rate in rates.items()
    )


if __name__ == "__main__":
    main()

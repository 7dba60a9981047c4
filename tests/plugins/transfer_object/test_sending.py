"""Files that are larger than a part, requests that fail on the way, and exports that several want to make."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tests.s3 import S3Server
from tests.s3_proxy import Fate, S3Proxy, first, proxy_to

from diskhaul.errors import DiskhaulError, LockLostError, StorageError
from diskhaul.model import Node
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, OLD, content, make, put
from diskhaul_plugins.transfers.object_store.store import ObjectStore
from diskhaul_plugins.transfers.object_store.transfer import ObjectTransfer
from diskhaul_plugins.transfers.object_store.uploads import MAX_OBJECT, MAX_PART, MAX_PARTS, MIN_PART, part_size

MIB = 1 << 20
PART = 5 * MIB
MakeTransfer = Callable[..., ObjectTransfer]


@pytest.fixture
def store(transfer: ObjectTransfer, node: Node) -> ObjectStore:
    return transfer.store(node)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[S3Proxy]:
    with proxy_to(server.port) as made:
        yield made


@pytest.fixture
def behind(transfer: ObjectTransfer, node: Node, proxy: S3Proxy) -> ObjectStore:
    """The store through `proxy`."""
    return transfer.store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 4 * PART + 12345])
def test_a_file_of_any_size_comes_back_as_it_was_appended(store: ObjectStore, server: S3Server, bucket: str, size: int) -> None:
    whole = random.Random(size).randbytes(size)
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    for begin in range(0, size, 1_234_567):
        file.append([whole[begin : begin + 1_234_567]])
    file.finish()
    writer.publish(MANIFEST)
    assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("memory_mib", [10, 256])
def test_a_raw_file_comes_back_whatever_the_order_in_which_it_is_written(
    make_transfer: MakeTransfer, node: Node, server: S3Server, bucket: str, memory_mib: int
) -> None:
    store = make_transfer(part_mib=5, memory_mib=memory_mib).store(node)
    generator = random.Random(memory_mib)
    size, chunk = 43 * MIB + 4096, MIB
    expected = bytearray(size)
    pieces = []
    for offset in range(0, size, chunk):
        if generator.random() < 0.7:  # the others are holes
            data = generator.randbytes(min(chunk, size - offset))
            expected[offset : offset + len(data)] = data
            pieces.append((offset, data))
    pieces.sort(key=lambda piece: piece[0] + generator.randrange(12 * MIB if memory_mib == 10 else size))
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(size)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda piece: file.write(*piece), pieces))
    file.set_size(size)
    file.finish()
    writer.publish(MANIFEST)
    found = content(store.open(INSTANCE, NEW), "disk-0.raw")
    assert found == expected
    assert server.uploads(bucket) == []


def test_a_piece_that_comes_after_its_part_was_sent_is_put_right(make_transfer: MakeTransfer, node: Node) -> None:
    store = make_transfer(part_mib=5, memory_mib=10).store(node)
    size = 8 * PART
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(size)
    file.write(0, b"a" * 4096)
    file.write(7 * PART, b"b" * 4096)  # two parts fit into the memory: by now the first is on its way
    file.write(2 * PART - 4096, b"c" * 8192)
    file.write(8192, b"d" * 4096)
    file.finish()
    writer.publish(MANIFEST)
    expected = bytearray(size)
    for offset, letter, length in ((0, b"a", 4096), (7 * PART, b"b", 4096), (2 * PART - 4096, b"c", 8192), (8192, b"d", 4096)):
        expected[offset : offset + length] = letter * length
    assert content(store.open(INSTANCE, NEW), "disk-0.raw") == bytes(expected)


@pytest.mark.parametrize("layout", ["appended", "raw"])
def test_a_large_file_takes_no_more_memory_than_it_may(make_transfer: MakeTransfer, node: Node, layout: str) -> None:
    store = make_transfer(part_mib=5, memory_mib=10, streams=2).store(node)
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0")
    chunk = random.Random(1).randbytes(4 * MIB)
    tracemalloc.start()
    try:
        if layout == "raw":
            file.set_size(30 * len(chunk))
        for number in range(30):
            if layout == "raw":
                file.write(number * len(chunk), chunk)
            else:
                file.append([chunk])
        file.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    writer.abort()
    assert peak < 30 * MIB, "two parts under way, two being filled, and one that is handed on"


def test_the_parts_of_a_long_hole_share_their_zeros_and_are_seen_to_move(make_transfer: MakeTransfer, node: Node) -> None:
    store = make_transfer(part_mib=5, memory_mib=10).store(node)
    size = 40 * PART
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(size)
    tracemalloc.start()
    try:
        file.write(0, b"begin")
        file.write(size - 3, b"end")
        peak = tracemalloc.get_traced_memory()[1]
        assert file.moved >= 30 * PART, "all but what fits into the memory, and what is under way"
        file.finish()
    finally:
        tracemalloc.stop()
    assert file.moved == size
    assert peak < 30 * MIB
    writer.publish(MANIFEST)
    reader = store.open(INSTANCE, NEW).open("disk-0.raw")
    found = bytearray(b"x" * size)
    reader.read_into(0, memoryview(found))
    assert found == b"begin" + bytes(size - 8) + b"end"


@pytest.mark.parametrize("fate", ["slow down", "lose the request", "lose the answer"])
@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("PUT", "partNumber=2"),
        ("POST", "uploads"),
        ("POST", "uploadId="),
        ("PUT", "manifest.json"),
        ("PUT", "/begun"),
        ("PUT", "/upload-"),
        ("GET", "disk-0.raw.zst"),
        ("GET", "list-type=2"),
    ],
)
def test_a_request_that_fails_is_made_again_and_does_what_it_should_once(
    behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str, fate: str, method: str, part: str
) -> None:
    whole = random.Random(part).randbytes(2 * PART + 77)
    proxy.rule = first(2, fate, method=method, part=part)  # type: ignore[arg-type]
    make(behind, NEW, {"disk-0.raw.zst": whole})
    assert content(behind.open(INSTANCE, NEW), "disk-0.raw.zst") == whole
    assert len([path for asked, path in proxy.seen if asked == method and part in path]) > 2, "it was met"
    assert list(behind.exports(INSTANCE)) == [NEW]
    assert content(behind.open(INSTANCE, NEW), "manifest.json") == MANIFEST
    assert [key.rsplit("/", 1)[1] for key in server.keys(bucket)] == ["disk-0.raw.zst", "manifest.json"]
    assert server.uploads(bucket) == [], "nor is one left whose answer was lost"
    behind.remove(INSTANCE, NEW)
    assert server.keys(bucket) == []


def test_a_part_that_fails_for_longer_than_retry_s_fails_the_file_and_the_abort_leaves_nothing(
    make_transfer: MakeTransfer, node: Node, proxy: S3Proxy, server: S3Server, bucket: str
) -> None:
    store = make_transfer(part_mib=5, retry_s=0.3).store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))
    proxy.rule = lambda method, path: "slow down" if "partNumber=3" in path else "pass"
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    with pytest.raises(StorageError, match=r"SlowDown"):
        put(file, bytes(6 * PART))
    with pytest.raises(StorageError):
        file.append([b"more"])
    with pytest.raises(StorageError):
        writer.publish(MANIFEST)
    writer.abort()
    assert server.keys(bucket) == []
    assert server.uploads(bucket) == []


def test_a_file_that_is_closed_while_parts_wait_to_be_sent_does_not_keep_its_finish_waiting(
    make_transfer: MakeTransfer, node: Node, proxy: S3Proxy, server: S3Server, bucket: str
) -> None:
    store = make_transfer(part_mib=5, streams=1).store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))
    go_on = threading.Event()

    def rule(method: str, path: str) -> Fate:
        if "partNumber=" in path:
            go_on.wait()
        return "pass"

    proxy.rule = rule
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    file.append([bytes(4 * PART)])
    with ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(file.finish)
        try:
            while file._next < 4:  # until it has handed on the last part
                threading.Event().wait(0.01)
            file.close()
            with pytest.raises(StorageError, match="was given up"):
                finishing.result(30)
        finally:
            go_on.set()
            file._given_up.set()
            with file._state:
                file._under_way = 0  # so that the thread ends whatever happens
                file._state.notify_all()
    writer.abort()
    assert server.keys(bucket) == []
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("what", ["says nothing", "has no such upload", "loses an answer"])
def test_an_upload_counts_as_completed_when_the_store_says_so_or_has_a_new_object(
    make_transfer: MakeTransfer, node: Node, proxy: S3Proxy, server: S3Server, bucket: str, what: str, which: int
) -> None:
    options = {**node.options, "endpoint": proxy.endpoint}
    store = make_transfer(part_mib=5, memory_mib=10).store(Node(name="alpha", options=options))
    completed: list[str] = []

    def rule(method: str, path: str) -> Fate:
        if method != "POST" or "uploadId=" not in path:
            return "pass"
        completed.append(path)
        if len(completed) != which:
            return "pass"
        if what == "has no such upload":
            key, _, query = path.partition("?uploadId=")
            assert server.request("DELETE", key, {"uploadId": unquote(query)})[0] == 204
        return {"says nothing": "say nothing", "loses an answer": "lose the answer"}.get(what, "pass")  # type: ignore[return-value]

    proxy.rule = rule
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(8 * PART)
    file.write(7 * PART, b"b" * 4096)
    file.write(0, b"late")  # by now the first part is on its way
    if what == "has no such upload":
        with pytest.raises(StorageError, match="NoSuchUpload"):
            file.finish()
        writer.abort()
        assert server.keys(bucket) == []
    else:
        file.finish()
        writer.publish(MANIFEST)
        expected = bytearray(8 * PART)
        expected[:4], expected[7 * PART : 7 * PART + 4096] = b"late", b"b" * 4096
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == bytes(expected)
    assert len(completed) >= which
    assert server.uploads(bucket) == []


# --- several makers -------------------------------------------------------------------------------------------------------


def test_of_two_that_begin_the_same_export_one_does(store: ObjectStore) -> None:
    def begin(_: int) -> bool:
        try:
            store.begin(INSTANCE, NEW)
        except StorageError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(begin, range(4))) == [False, False, False, True]


def test_an_export_that_somebody_else_published_meanwhile_stays_theirs(store: ObjectStore, server: S3Server, bucket: str) -> None:
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"ours")
    key = f"backups/lab/{INSTANCE}/{NEW}/manifest.json"
    server.put(bucket, key, b"theirs")
    with pytest.raises(StorageError, match="somebody"):
        writer.publish(MANIFEST)
    writer.abort()
    assert server.get(bucket, key) == b"theirs"


@pytest.mark.parametrize("fate", ["lose the answer", "lose the request"])
def test_an_export_whose_manifest_was_put_although_no_answer_ever_came_is_removed_and_to_be_looked_for_again(
    make_transfer: MakeTransfer, node: Node, proxy: S3Proxy, server: S3Server, bucket: str, fate: Fate
) -> None:
    store = make_transfer(retry_s=0.3).store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    proxy.rule = lambda method, path: fate if method == "PUT" and "manifest.json" in path else "pass"
    with pytest.raises(StorageError, match="does not answer"):
        writer.publish(MANIFEST)
    assert list(store.exports(INSTANCE)) == ([NEW] if fate == "lose the answer" else [])
    with pytest.raises(StorageError, match="may take it yet: 'diskhaul recover' looks again"):
        writer.abort()
    assert server.keys(bucket) == []
    writer.abort()


@pytest.mark.parametrize("fate", ["slow down", "lose the answer", "lose the request", "pass"])
def test_an_export_that_somebody_takes_away_while_its_manifest_is_put_does_not_appear(
    store: ObjectStore, behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str, fate: Fate
) -> None:
    taken: list[str] = []

    def rule(method: str, path: str) -> Fate:
        if method != "PUT" or "manifest.json" not in path or taken:
            return "pass"
        taken.append(path)
        store.remove_partial(INSTANCE, NEW)
        return fate

    writer = behind.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    proxy.rule = rule
    with pytest.raises(StorageError, match="somebody has removed"):
        writer.publish(MANIFEST)
    assert taken
    if fate.startswith("lose"):
        with pytest.raises(StorageError, match="looks again"):
            writer.abort()
    else:
        assert server.keys(bucket) == [], "before it is aborted"
        writer.abort()
    assert server.keys(bucket) == []


def test_an_export_that_is_being_taken_away_is_not_published_although_it_is_still_whole(
    store: ObjectStore, behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str
) -> None:
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    refused: list[StorageError] = []

    def rule(method: str, path: str) -> Fate:
        if method == "DELETE" and "disk-0.raw" in path:
            with pytest.raises(StorageError, match="somebody has removed") as caught:
                writer.publish(MANIFEST)
            refused.append(caught.value)
        return "pass"

    proxy.rule = rule
    behind.remove_partial(INSTANCE, NEW)
    assert len(refused) == 1
    assert server.keys(bucket) == []


def test_a_lock_that_is_lost_between_two_tries_ends_the_publication(
    behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str
) -> None:
    writer = behind.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    proxy.rule = first(1, "slow down", method="PUT", part="manifest.json")
    asked: list[int] = []

    def check() -> None:
        asked.append(len(asked))
        if len(asked) == 2:
            raise LockLostError("lost meanwhile")

    with pytest.raises(LockLostError):
        writer.publish_while(MANIFEST, check)
    assert asked == [0, 1]
    assert list(behind.exports(INSTANCE)) == []
    writer.abort()
    assert server.keys(bucket) == []


def test_an_export_that_somebody_removed_meanwhile_is_not_published(store: ObjectStore, server: S3Server, bucket: str) -> None:
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    store.remove_partial(INSTANCE, NEW)
    again = store.begin(INSTANCE, NEW)
    with pytest.raises(StorageError, match="somebody has removed"):
        writer.publish(MANIFEST)
    writer.abort()
    assert list(store.partials(INSTANCE)) == [NEW], "what the other one has begun is not touched"
    again.abort()
    assert server.keys(bucket) == []


def test_a_file_that_was_changed_in_the_store_keeps_the_export_from_being_published(
    store: ObjectStore, server: S3Server, bucket: str
) -> None:
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    server.put(bucket, f"backups/lab/{INSTANCE}/{NEW}/disk-0.raw", b"other bytes")
    with pytest.raises(StorageError, match="changed"):
        writer.publish(MANIFEST)
    assert list(store.exports(INSTANCE)) == []


# --- removing -------------------------------------------------------------------------------------------------------------


def test_a_removal_that_stops_in_the_middle_is_listed_as_partial_and_gone_on_with(
    make_transfer: MakeTransfer, node: Node, behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str
) -> None:
    make(behind, OLD)
    make(behind, NEW, {"disk-0.raw": b"1", "disk-1.raw": b"2"})
    failing = make_transfer(retry_s=0).store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))
    proxy.rule = lambda method, path: "slow down" if method == "DELETE" and "disk-1" in path else "pass"
    with pytest.raises(StorageError):
        failing.remove(INSTANCE, NEW)
    assert list(behind.exports(INSTANCE)) == [OLD]
    assert list(behind.partials(INSTANCE)) == [NEW]
    with pytest.raises(DiskhaulError):
        behind.open(INSTANCE, NEW)
    proxy.rule = lambda method, path: "pass"
    behind.remove_partial(INSTANCE, NEW)
    assert list(behind.partials(INSTANCE)) == []
    assert [key for key in server.keys(bucket) if NEW in key] == []


def test_what_is_no_export_is_not_listed_and_files_without_a_manifest_are_partial(
    store: ObjectStore, server: S3Server, bucket: str
) -> None:
    make(store, NEW)
    base = f"backups/lab/{INSTANCE}"
    for key in ("note.txt", f"{OLD}/disk-0.raw", "backup-of-2025/manifest.json", f".{OLD}.removing/x"):
        server.put(bucket, f"{base}/{key}", b"x")
    server.put(bucket, "backups/lab/-x/manifest.json", b"x")
    assert list(store.instances()) == [INSTANCE]
    assert list(store.exports(INSTANCE)) == [NEW]
    assert list(store.partials(INSTANCE)) == [OLD]
    store.remove_partial(INSTANCE, OLD)
    store.remove(INSTANCE, NEW)
    assert [key for key in server.keys(bucket) if OLD + "/" in key or NEW in key] == []
    assert len(server.keys(bucket)) == 4, "what is not ours stays"


@pytest.mark.parametrize(
    "key",
    ["", "/x", "../x", "./x", f"{INSTANCE}/", f"{INSTANCE}//x", f"{INSTANCE}/../x", f"{INSTANCE}/{NEW}/&#x1;x", "caf\udce9/x"],
)
def test_a_key_of_somebody_else_s_that_cannot_be_ours_hides_nothing(
    transfer: ObjectTransfer, node: Node, store: ObjectStore, proxy: S3Proxy, key: str
) -> None:
    """The server here refuses such keys, so they are put into its answers."""
    whole = f"backups/lab/{key}".encode(errors="surrogateescape")

    def edit(method: str, path: str, body: bytes) -> bytes:
        if "list-type=2" not in path:
            return body
        asked = parse_qs(urlsplit(path).query, keep_blank_values=True)
        prefix = asked["prefix"][0].encode()
        if not whole.startswith(prefix):
            return body
        name, slash, _ = whole[len(prefix) :].partition(b"/")
        entry = b"<Contents><Key>" + whole + b"</Key><Size>1</Size></Contents>"
        if asked.get("delimiter") == ["/"] and slash:
            entry = b"<CommonPrefixes><Prefix>" + prefix + name + b"/</Prefix></CommonPrefixes>"
        return body.replace(b"</ListBucketResult>", entry + b"</ListBucketResult>")

    make(store, NEW)
    proxy.edit = edit
    behind = transfer.store(Node(name="alpha", options={**node.options, "endpoint": proxy.endpoint}))
    assert list(behind.instances()) == [INSTANCE]
    assert list(behind.exports(INSTANCE)) == [NEW]
    assert list(behind.partials(INSTANCE)) == []
    assert list(behind.open(INSTANCE, NEW).names()) == ["disk-0.raw", "manifest.json"]
    behind.remove(INSTANCE, NEW)
    assert list(behind.exports(INSTANCE)) == []


def test_a_listing_of_several_pages_is_whole(store: ObjectStore, server: S3Server, bucket: str) -> None:
    names = [f"20260102T000000Z-{number:08x}" for number in range(1001)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: server.put(bucket, f"backups/lab/{INSTANCE}/{name}/manifest.json", b"{}"), names))
    assert list(store.exports(INSTANCE)) == names


def test_credentials_that_are_gone_in_the_middle_are_named(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, server: S3Server, bucket: str
) -> None:
    make(store, NEW)
    writer = store.begin(INSTANCE, OLD)
    file = writer.create("disk-0.raw.zst")
    file.append([bytes(PART + 1)])
    reader = store.open(INSTANCE, NEW)
    with monkeypatch.context() as changed:
        changed.delenv("AWS_SECRET_ACCESS_KEY")
        for call in (lambda: store.exports(INSTANCE), lambda: reader.open("disk-0.raw"), file.finish):
            with pytest.raises(DiskhaulError, match="AWS_SECRET_ACCESS_KEY not set") as caught:
                call()
            assert "does not answer" not in str(caught.value)
    writer.abort()
    store.remove(INSTANCE, NEW)
    assert server.keys(bucket) == []


@pytest.mark.parametrize("how", ["by their notes", "by the store's list"])
def test_what_a_dead_run_left_of_uploads_is_aborted(
    behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str, how: str
) -> None:
    writer = behind.begin(INSTANCE, NEW)
    writer.create("disk-0.raw.zst").append([bytes(2 * PART + 1)])
    (uploading,) = server.uploads(bucket)
    (note,) = (key for key in server.keys(bucket) if "/upload-" in key)
    assert json.loads(server.get(bucket, note))["key"] == uploading == f"backups/lab/{INSTANCE}/{NEW}/disk-0.raw.zst"
    if how == "by their notes":
        proxy.rule = lambda method, path: "forbid" if method == "GET" and "uploads=" in path else "pass"
    else:
        server.request("DELETE", f"/{bucket}/{note}")
    behind.remove_partial(INSTANCE, NEW)
    assert server.uploads(bucket) == []
    assert server.keys(bucket) == []


@pytest.mark.parametrize("noted", [b"[" * 4000, b"[" * 200_000, b"{}", b"\xff", b'{"key": 1, "upload_id": []}'])
def test_what_somebody_else_has_put_among_the_notes_does_not_keep_anything_from_being_removed(
    behind: ObjectStore, proxy: S3Proxy, server: S3Server, bucket: str, noted: bytes
) -> None:
    behind.begin(INSTANCE, NEW)
    key = f"backups/lab/{INSTANCE}/.{NEW}.partial/upload-0"
    server.put(bucket, key, noted)
    behind.remove_partial(INSTANCE, NEW)
    assert server.keys(bucket) == []
    assert (("GET", f"/{bucket}/{key}") in proxy.seen) == (len(noted) <= 4096), "what is too large is not even read"


def test_parts_grow_so_that_ten_thousand_hold_the_largest_object() -> None:
    for first_size in (PART, 8 * MIB, 64 * MIB, 525 * MIB, MAX_PART):
        sizes = [part_size(number, first_size) for number in range(MAX_PARTS)]
        assert sizes == sorted(sizes)
        assert sizes[0] == first_size >= MIN_PART
        assert sizes[-1] <= MAX_PART
        assert sum(sizes) >= MAX_OBJECT * 0.97
    for size in (1, PART, 100 << 30, MAX_OBJECT):
        assert part_size(0, PART, size) * MAX_PARTS >= size
        assert PART <= part_size(7, PART, size) <= MAX_PART

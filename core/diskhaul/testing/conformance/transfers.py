"""What every transfer, and the export stores it reaches, have to do."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diskhaul.api import (
    CloneStoreFile,
    DigestedStoreFile,
    DigestingReader,
    DigestingStoreFile,
    DirectStoreFile,
    ExportReader,
    ExportStore,
    RetryingExportWriter,
    StoreFile,
    Transfer,
)
from diskhaul.errors import DiskhaulError, LockLostError, UnreachableNodeError
from diskhaul.formats.chunk_table import chunk_digest
from diskhaul.host import with_defaults
from diskhaul.model import Node
from diskhaul_native import aligned_buffer

from .storages import descriptors, pattern, read

INSTANCE = "web1.example.com"
OLD = "20260101T000000Z-0123abcd"
NEW = "20260102T000000Z-00000001"
MANIFEST = b'{"format": 1}'
KIB = 1024


def check_digests(export: ExportReader, name: str, content: bytes) -> None:
    """Ask for digests of parts of a file, where it gives any: it need not."""
    reader = export.open(name)
    try:
        if not isinstance(reader, DigestingReader):
            return
        for offset, length in ((0, 0), (0, 1), (0, len(content)), (4096, 8192), (4095, 5_000_000), (len(content) - 1, 1)):
            assert reader.range_digest(offset, length) == chunk_digest(content[offset : offset + length])
        with pytest.raises((DiskhaulError, OSError)):
            reader.range_digest(len(content) - 1, 2)
    finally:
        reader.close()


class TransferConformance:
    """Subclass it, and give the fixtures that say how to make the transfer and nodes that it reaches::

    class TestMyStore(TransferConformance):
        @pytest.fixture
        def transfer(self):
            return MyTransfer(...)

        @pytest.fixture
        def node(self, tmp_path):  # with a store in which nothing was ever written
            return Node(name="alpha", export_dir=...)

        @pytest.fixture
        def other_node(self, tmp_path):  # likewise, with another store
            return Node(name="beta", export_dir=...)

        @pytest.fixture
        def same_node(self, node):  # another node that reaches the store of `node`; None where that cannot be
            return Node(name="gamma", export_dir=node.export_dir)

        @pytest.fixture
        def missing_node(self):  # one whose store is not there
            return Node(name="delta", export_dir=...)

        @pytest.fixture
        def sharable(self, tmp_path):  # where a file can be made whose blocks `node` shares; None where it never does
            return tmp_path / "disk.raw"
    """

    @pytest.fixture
    def transfer(self) -> Transfer:
        raise NotImplementedError("define the fixture 'transfer'")

    @pytest.fixture
    def backend(self, transfer: Transfer) -> Transfer:
        """The transfer as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("transfer", transfer)

    @pytest.fixture
    def node(self) -> Node:
        raise NotImplementedError("define the fixture 'node'")

    @pytest.fixture
    def other_node(self) -> Node:
        raise NotImplementedError("define the fixture 'other_node'")

    @pytest.fixture
    def same_node(self) -> Node | None:
        return None

    @pytest.fixture
    def missing_node(self) -> Node:
        raise NotImplementedError("define the fixture 'missing_node'")

    @pytest.fixture
    def sharable(self) -> Path | None:
        return None

    @pytest.fixture
    def store(self, backend: Transfer, node: Node) -> ExportStore:
        return backend.store(node)

    def test_a_node_that_is_not_there_is_unreachable(self, backend: Transfer, missing_node: Node) -> None:
        with pytest.raises(UnreachableNodeError) as caught:
            backend.store(missing_node)
        assert caught.value.node == missing_node.name

    def test_a_new_store_is_empty_and_without_problems(self, store: ExportStore) -> None:
        assert list(store.instances()) == []
        assert list(store.exports(INSTANCE)) == []
        assert list(store.partials(INSTANCE)) == []
        assert list(store.check(INSTANCE, for_writing=True)) == []
        assert list(store.check(INSTANCE, for_writing=False)) == []
        free = store.free_bytes()
        assert free is None or free > 0

    def test_stores_are_told_apart_by_their_identity(
        self, backend: Transfer, store: ExportStore, other_node: Node, same_node: Node | None
    ) -> None:
        other = backend.store(other_node)
        assert store.identity
        assert store.identity != other.identity
        make(store, NEW)
        assert store.identity == store.identity
        assert store.identity != other.identity
        if same_node is not None:
            assert backend.store(same_node).identity == store.identity
            assert list(backend.store(same_node).exports(INSTANCE)) == [NEW]

    def test_a_published_export_is_listed_and_read_back(self, store: ExportStore) -> None:
        location = make(store, NEW, {"disk-0.raw.zst": pattern(100_000), "disk-0.chunks": b"digests"})
        assert list(store.instances()) == [INSTANCE]
        assert list(store.exports(INSTANCE)) == [NEW]
        assert list(store.partials(INSTANCE)) == []
        export = store.open(INSTANCE, NEW)
        assert export.location == location
        assert list(export.names()) == ["disk-0.chunks", "disk-0.raw.zst", "manifest.json"]
        assert content(export, "manifest.json") == MANIFEST
        assert content(export, "disk-0.raw.zst") == pattern(100_000)
        assert list(store.check(INSTANCE, for_writing=True)) == []

    def test_an_export_is_invisible_until_it_is_published(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        assert list(store.exports(INSTANCE)) == []
        assert list(store.partials(INSTANCE)) == [NEW]
        writer.publish(MANIFEST)
        assert list(store.exports(INSTANCE)) == [NEW]
        assert list(store.partials(INSTANCE)) == []

    def test_an_aborted_export_leaves_nothing(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        unfinished = writer.create("disk-1.raw")
        unfinished.append([b"more"])
        writer.abort()
        assert list(store.exports(INSTANCE)) == []
        assert list(store.partials(INSTANCE)) == []
        writer.abort()
        make(store, NEW)

    def test_an_abort_after_publishing_is_harmless(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        writer.publish(MANIFEST)
        writer.abort()
        assert list(store.exports(INSTANCE)) == [NEW]

    def test_a_writer_that_tries_to_publish_again_asks_before_each_try(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        if not isinstance(writer, RetryingExportWriter):
            writer.abort()
            return  # it need not be
        put(writer.create("disk-0.raw"), b"bytes")

        def refuse() -> None:
            raise LockLostError("lost meanwhile")

        with pytest.raises(LockLostError):
            writer.publish_while(MANIFEST, refuse)
        assert list(store.exports(INSTANCE)) == []
        writer.abort()
        assert list(store.partials(INSTANCE)) == []
        again = store.begin(INSTANCE, NEW)
        assert isinstance(again, RetryingExportWriter)
        put(again.create("disk-0.raw"), b"bytes")
        asked: list[list[str]] = []
        again.publish_while(MANIFEST, lambda: asked.append(list(store.exports(INSTANCE))))
        assert asked == [[]]
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"

    def test_a_file_that_is_not_finished_keeps_the_export_from_being_published(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        unfinished = writer.create("disk-1.raw")
        unfinished.append([b"more"])
        with pytest.raises(DiskhaulError):
            writer.publish(MANIFEST)
        unfinished.close()
        with pytest.raises(DiskhaulError):
            writer.publish(MANIFEST)
        assert list(store.exports(INSTANCE)) == []
        writer.abort()

    def test_a_file_is_closed_for_good_once_it_is_finished(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw")
        file.append([b"bytes"])
        file.finish()
        file.close()
        with pytest.raises(DiskhaulError):
            file.append([b"more"])
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"

    def test_parts_are_appended_in_order(self, store: ExportStore) -> None:
        parts = [bytes([number % 251]) * (number % 97) for number in range(3000)]
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        file.append(parts[:10])
        file.append([])
        file.append([memoryview(b"".join(parts[10:20])), bytearray(b"".join(parts[20:30]))])
        file.append(parts[30:])
        file.finish()
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == b"".join(parts)

    def test_what_was_not_written_of_a_raw_file_reads_as_zeros(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw")
        file.set_size(1024 * KIB)
        offsets = [0, 128 * KIB, 640 * KIB]
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda offset: file.write(offset, pattern(64 * KIB, seed=offset + 1)), offsets))
        file.write(900 * KIB, bytes(64 * KIB))
        file.finish()
        writer.publish(MANIFEST)
        expected = bytearray(1024 * KIB)
        for offset in offsets:
            expected[offset : offset + 64 * KIB] = pattern(64 * KIB, seed=offset + 1)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == bytes(expected)

    def test_what_was_written_can_be_read_back_before_it_is_published(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), pattern(70_000))
        export = writer.reader()
        assert list(export.names()) == ["disk-0.raw"]
        assert content(export, "disk-0.raw") == pattern(70_000)
        writer.publish(MANIFEST)

    def test_digests_of_ranges_are_those_of_what_is_read(self, store: ExportStore) -> None:
        whole = pattern(9_000_001)
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw.zst"), whole)
        check_digests(writer.reader(), "disk-0.raw.zst", whole)
        writer.publish(MANIFEST)
        check_digests(store.open(INSTANCE, NEW), "disk-0.raw.zst", whole)

    def test_what_has_settled_is_what_was_appended(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        if not isinstance(file, DirectStoreFile):
            writer.abort()
            return  # it need not be
        file.use_direct_io("auto")
        whole, settled = pattern(12 << 20), 0
        buffer = aligned_buffer(4096 * KIB)
        for begin in range(0, len(whole), 1_000_000):
            file.append([whole[begin : begin + 1_000_000]])
            assert settled <= file.settled <= begin + 1_000_000
            settled = file.settled
            if settled >= 4096 * KIB and file.read_back(settled - 4096 * KIB, buffer):
                assert buffer == whole[settled - 4096 * KIB : settled]
        file.finish()
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole

    def test_what_has_settled_can_be_digested_while_more_is_appended(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        if not isinstance(file, DigestingStoreFile):
            writer.abort()
            return  # it need not be
        whole, settled = pattern(80 << 20), 0
        for begin in range(0, len(whole), 3_000_001):
            file.append([whole[begin : begin + 3_000_001]])
            assert settled <= file.settled <= begin + 3_000_001
            settled = file.settled
            for offset, length in ((0, settled), (settled // 3, settled // 2), (max(0, settled - 4097), min(settled, 4097))):
                assert file.range_digest(offset, length) in (chunk_digest(whole[offset : offset + length]), None)
        assert settled
        file.finish()
        with pytest.raises((DiskhaulError, OSError)):
            file.range_digest(0, 1)
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole

    def test_what_comes_with_its_digest_is_appended_like_all_else(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        if not isinstance(file, DigestedStoreFile):
            writer.abort()
            return  # it need not be
        whole = pattern(9_000_001)
        for begin, end in ((0, 5), (5, 1_500_000), (3_000_000, 9_000_001)):
            file.append_digested(whole[begin:end], chunk_digest(whole[begin:end]))
            if end == 1_500_000:
                file.append([whole[end:2_000_000], whole[2_000_000:3_000_000]])
        file.finish()
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole

    def test_what_was_written_can_be_read_back_at_once(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw")
        buffer = aligned_buffer(256 * KIB)
        buffer[:] = pattern(256 * KIB)
        if isinstance(file, DirectStoreFile):
            file.use_direct_io("auto")
        file.set_size(1000 * KIB)
        file.write(512 * KIB, buffer)
        if isinstance(file, DirectStoreFile):
            buffer[:] = bytes(256 * KIB)
            if file.read_back(512 * KIB, buffer):
                assert buffer == pattern(256 * KIB)
        file.set_size(1000 * KIB)
        file.finish()
        writer.publish(MANIFEST)
        expected = bytes(512 * KIB) + pattern(256 * KIB) + bytes(232 * KIB)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == expected

    def test_a_file_of_a_disk_s_blocks_is_the_disk_whatever_becomes_of_that(
        self, store: ExportStore, sharable: Path | None
    ) -> None:
        if sharable is None:
            return  # it need not be
        sharable.write_bytes(pattern(1024 * KIB))
        with sharable.open("r+b") as disk:
            assert store.shares_blocks(INSTANCE, disk.fileno())
            writer = store.begin(INSTANCE, NEW)
            file = writer.create("disk-0.raw")
            assert isinstance(file, CloneStoreFile)
            file.set_size(1024 * KIB)
            assert file.clone_from(disk.fileno(), 1024 * KIB)
            assert os.fstat(file.fileno()).st_size == 1024 * KIB
            file.finish()
            disk.write(b"changed")
        assert content(writer.reader(), "disk-0.raw") == pattern(1024 * KIB)
        writer.publish(MANIFEST)
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == pattern(1024 * KIB)

    def test_what_is_no_file_is_not_shared(self, store: ExportStore) -> None:
        ends = os.pipe()
        try:
            assert not hasattr(store, "shares_blocks") or not store.shares_blocks(INSTANCE, ends[0])
            writer = store.begin(INSTANCE, NEW)
            file = writer.create("disk-0.raw")
            assert not isinstance(file, CloneStoreFile) or not file.clone_from(ends[0], 4096)
            writer.abort()
        finally:
            for end in ends:
                os.close(end)

    def test_a_published_export_is_added_to_again_and_again(self, store: ExportStore, sharable: Path | None) -> None:
        if sharable is None:
            return  # what is copied has its digests when it is published
        make(store, OLD)
        make(store, NEW)
        for manifest in (b"second", b"third"):
            store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"of ", manifest], "disk-1.chunks": []}, manifest)
            export = store.open(INSTANCE, NEW)
            assert list(export.names()) == ["disk-0.chunks", "disk-0.raw", "disk-1.chunks", "manifest.json"]
            assert content(export, "manifest.json") == manifest
            assert content(export, "disk-0.chunks") == b"of " + manifest
            assert content(export, "disk-0.raw") == b"bytes"
        assert list(store.exports(INSTANCE)) == [OLD, NEW]
        assert list(store.partials(INSTANCE)) == []
        assert list(store.open(INSTANCE, OLD).names()) == ["disk-0.raw", "manifest.json"]

    def test_what_is_not_there_cannot_be_added_to(self, store: ExportStore) -> None:
        if not hasattr(store, "amend"):
            return  # it need not be
        make(store, OLD)
        with pytest.raises(DiskhaulError):
            store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"x"]}, MANIFEST)
        with pytest.raises(DiskhaulError):
            store.amend(INSTANCE, "..", {"disk-0.chunks": [b"x"]}, MANIFEST)
        with pytest.raises(DiskhaulError):
            store.amend("..", OLD, {"disk-0.chunks": [b"x"]}, MANIFEST)
        with pytest.raises(DiskhaulError):
            store.amend(INSTANCE, OLD, {"../disk-0.chunks": [b"x"]}, MANIFEST)
        assert list(store.exports(INSTANCE)) == [OLD]
        assert content(store.open(INSTANCE, OLD), "manifest.json") == MANIFEST

    def test_exports_are_listed_oldest_first(self, store: ExportStore) -> None:
        make(store, NEW)
        make(store, OLD)
        assert list(store.exports(INSTANCE)) == [OLD, NEW]

    def test_an_export_id_can_be_used_once(self, store: ExportStore) -> None:
        make(store, NEW, {"disk-0.raw": b"first"})
        with pytest.raises(DiskhaulError):
            make(store, NEW, {"disk-0.raw": b"second"})
        assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"first"
        writer = store.begin(INSTANCE, OLD)
        with pytest.raises(DiskhaulError):
            store.begin(INSTANCE, OLD)
        writer.abort()

    def test_a_file_name_can_be_used_once(self, store: ExportStore) -> None:
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        with pytest.raises(DiskhaulError):
            writer.create("disk-0.raw")
        writer.abort()

    @pytest.mark.parametrize("name", ["", ".", "..", "../disk-0.raw", "/tmp/disk-0.raw", "a/b", "a\0b"])
    def test_a_file_name_that_leads_elsewhere_is_refused(self, store: ExportStore, name: str) -> None:
        make(store, OLD)
        writer = store.begin(INSTANCE, NEW)
        with pytest.raises(DiskhaulError):
            writer.create(name)
        writer.abort()
        with pytest.raises(DiskhaulError):
            store.open(INSTANCE, OLD).open(name)

    @pytest.mark.parametrize("instance", ["", "..", "../x", "/x", ".hidden", "-x", "a\0b", "a\nb", "x" * 300])
    def test_an_instance_name_that_is_none_is_refused(self, store: ExportStore, instance: str) -> None:
        assert list(store.check(instance, for_writing=True))
        with pytest.raises(DiskhaulError):
            store.begin(instance, NEW)

    @pytest.mark.parametrize("export_id", ["", "..", "20260102", f"../{NEW}", f".{NEW}.partial"])
    def test_an_export_id_that_is_none_is_refused(self, store: ExportStore, export_id: str) -> None:
        for use in (store.begin, store.open, store.remove, store.remove_partial):
            with pytest.raises(DiskhaulError):
                use(INSTANCE, export_id)

    def test_a_removed_export_is_gone_and_the_others_are_not(self, store: ExportStore) -> None:
        make(store, OLD)
        make(store, NEW)
        store.remove(INSTANCE, OLD)
        assert list(store.exports(INSTANCE)) == [NEW]
        assert list(store.partials(INSTANCE)) == []
        assert content(store.open(INSTANCE, NEW), "manifest.json") == MANIFEST
        store.remove(INSTANCE, OLD)
        store.remove("other.example.com", OLD)
        store.remove(INSTANCE, NEW)
        assert list(store.exports(INSTANCE)) == []

    def test_what_a_dead_run_left_can_be_removed(self, store: ExportStore) -> None:
        make(store, OLD)
        abandoned = store.begin(INSTANCE, NEW)
        put(abandoned.create("disk-0.raw"), b"bytes")
        assert list(store.partials(INSTANCE)) == [NEW]
        store.remove_partial(INSTANCE, NEW)
        assert list(store.partials(INSTANCE)) == []
        assert list(store.exports(INSTANCE)) == [OLD]
        store.remove_partial(INSTANCE, NEW)
        abandoned.abort()

    def test_removing_a_partial_leaves_a_published_export_alone(self, store: ExportStore) -> None:
        make(store, NEW)
        store.remove_partial(INSTANCE, NEW)
        assert list(store.exports(INSTANCE)) == [NEW]

    def test_what_is_not_there_cannot_be_opened(self, store: ExportStore) -> None:
        with pytest.raises(DiskhaulError):
            store.open(INSTANCE, NEW)
        make(store, NEW)
        with pytest.raises(DiskhaulError):
            store.open(INSTANCE, NEW).open("disk-7.raw")

    def test_exports_of_two_instances_are_made_at_the_same_time(self, store: ExportStore) -> None:
        names = [f"web{number}.example.com" for number in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda name: make(store, NEW, {"disk-0.raw": name.encode()}, instance=name), names))
        assert list(store.instances()) == names
        assert [content(store.open(name, NEW), "disk-0.raw") for name in names] == [name.encode() for name in names]

    def test_no_descriptor_is_left_open(self, store: ExportStore) -> None:
        make(store, OLD)

        def use_all() -> None:
            make(store, NEW)
            content(store.open(INSTANCE, NEW), "manifest.json")
            store.begin(INSTANCE, "20260103T000000Z-00000002").abort()
            list(store.check(INSTANCE, for_writing=True))
            store.remove(INSTANCE, NEW)
            with pytest.raises(DiskhaulError):
                store.open(INSTANCE, NEW)
            with pytest.raises(DiskhaulError):
                store.begin(INSTANCE, OLD)
            assert store.identity

        use_all()
        before, times = descriptors(), 5
        for _ in range(times):
            use_all()
        assert descriptors() < before + times  # a store may keep connections for the next call, but not one more for each


def make(store: ExportStore, export_id: str, files: dict[str, bytes] | None = None, *, instance: str = INSTANCE) -> str:
    """Make a small export and return its location."""
    writer = store.begin(instance, export_id)
    for name, data in (files or {"disk-0.raw": b"bytes"}).items():
        put(writer.create(name), data)
    writer.publish(MANIFEST)
    return writer.location


def put(file: StoreFile, data: bytes) -> None:
    """Write a whole file."""
    file.append([data])
    file.finish()


def content(export: ExportReader, name: str) -> bytes:
    """A whole file of an export."""
    reader = export.open(name)
    try:
        return read(reader, 0, reader.size)
    finally:
        reader.close()

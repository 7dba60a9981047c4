"""libext2fs, through cffi's ABI mode: nothing has to be compiled, and the library is on every Debian and Ubuntu.

Only what has been the same since e2fsprogs 1.43 is declared: functions, and the beginning of `struct_ext2_filsys`, which is
compared after opening with what this package reads itself; a library that is laid out otherwise is not used. It reads through
a channel of ours, so it sees whatever a `Volume` shows (a partition, a logical volume, a filesystem with its journal replayed)
and cannot write.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from cffi import FFI

from .errors import KeptError
from .superblock import META_BG, SIZE, Bytes, Superblock

LIBRARIES = ("libext2fs.so.2", "libcom_err.so.2")

# Error codes of libext2fs (ext2_err.et) that serve as magic numbers of its structures.
MAGIC_FILSYS, MAGIC_IO_CHANNEL, MAGIC_IO_MANAGER = 2133571329, 2133571333, 2133571335

FLAG_64BITS, FLAG_SKIP_MMP = 0x20000, 0x100000  # of ext2fs_open2; without the flag to ignore checksums, it verifies them
BG_BLOCK_UNINIT = 0x2
BLOCK_FLAG_READ_ONLY, BLOCK_ABORT = 8, 2
MAX_READ = 16 << 20
"""Bytes that the library may ask for at a time; it asks for blocks, and for a few of them in a row."""

DECLARATIONS = """
typedef long errcode_t;
typedef struct struct_io_manager *io_manager;
typedef struct struct_io_channel *io_channel;

struct struct_io_channel {
    errcode_t magic;
    io_manager manager;
    char *name;
    int block_size;
    void *read_error;
    void *write_error;
    int refcount;
    int flags;
    long reserved[14];
    void *private_data;
    void *app_data;
    int align;
    long spare[16];
};

struct struct_io_manager {
    errcode_t magic;
    const char *name;
    errcode_t (*open)(const char *name, int flags, io_channel *channel);
    errcode_t (*close)(io_channel channel);
    errcode_t (*set_blksize)(io_channel channel, int blksize);
    errcode_t (*read_blk)(io_channel channel, unsigned long block, int count, void *data);
    errcode_t (*write_blk)(io_channel channel, unsigned long block, int count, const void *data);
    errcode_t (*flush)(io_channel channel);
    errcode_t (*write_byte)(io_channel channel, unsigned long offset, int count, const void *data);
    errcode_t (*set_option)(io_channel channel, const char *option, const char *arg);
    errcode_t (*get_stats)(io_channel channel, void *io_stats);
    errcode_t (*read_blk64)(io_channel channel, unsigned long long block, int count, void *data);
    errcode_t (*write_blk64)(io_channel channel, unsigned long long block, int count, const void *data);
    errcode_t (*discard)(io_channel channel, unsigned long long block, unsigned long long count);
    errcode_t (*cache_readahead)(io_channel channel, unsigned long long block, unsigned long long count);
    errcode_t (*zeroout)(io_channel channel, unsigned long long block, unsigned long long count);
    long reserved[14];
    long spare[16];
};

typedef struct struct_ext2_filsys *ext2_filsys;

struct struct_ext2_filsys { /* the beginning of it */
    errcode_t magic;
    io_channel io;
    int flags;
    char *device_name;
    unsigned char *super;
    unsigned int blocksize;
    int fragsize;
    uint32_t group_desc_count;
    unsigned long desc_blocks;
    void *group_desc;
    unsigned int inode_blocks_per_group;
};

void initialize_ext2_error_table(void);
int ext2fs_get_library_version(const char **ver_string, const char **date_string);
errcode_t ext2fs_open2(const char *name, const char *io_options, int flags, int superblock, unsigned int block_size,
                       io_manager manager, ext2_filsys *ret_fs);
void ext2fs_free(ext2_filsys fs);
uint64_t ext2fs_blocks_count(void *super);
uint64_t ext2fs_block_bitmap_loc(ext2_filsys fs, uint32_t group);
uint64_t ext2fs_inode_bitmap_loc(ext2_filsys fs, uint32_t group);
uint64_t ext2fs_inode_table_loc(ext2_filsys fs, uint32_t group);
uint16_t ext2fs_bg_flags(ext2_filsys fs, uint32_t group);
uint32_t ext2fs_bg_free_blocks_count(ext2_filsys fs, uint32_t group);
int ext2fs_group_desc_csum_verify(ext2_filsys fs, uint32_t group);
int ext2fs_block_bitmap_csum_verify(ext2_filsys fs, uint32_t group, char *bitmap, int size);
int ext2fs_bg_has_super(ext2_filsys fs, uint32_t group);
errcode_t ext2fs_super_and_bgd_loc2(ext2_filsys fs, uint32_t group, uint64_t *ret_super_blk, uint64_t *ret_old_desc_blk,
                                    uint64_t *ret_new_desc_blk, uint32_t *ret_used_blks);
uint64_t ext2fs_descriptor_block_loc2(ext2_filsys fs, uint64_t group_block, uint32_t i);
errcode_t ext2fs_read_inode2(ext2_filsys fs, uint32_t ino, void *inode, int bufsize, int flags);
errcode_t ext2fs_block_iterate3(ext2_filsys fs, uint32_t ino, int flags, char *block_buf,
    int (*func)(ext2_filsys fs, uint64_t *blocknr, int64_t blockcnt, uint64_t ref_blk, int ref_offset, void *priv_data),
    void *priv_data);
uint32_t ext2fs_crc32c_le(uint32_t crc, unsigned char const *p, size_t len);

const char *error_message(long code);
"""


class Library:
    """The loaded libraries. `load` makes the only one.

    Attributes:
        version: of libext2fs, as it names itself.
    """

    def __init__(self) -> None:
        """Raises OSError: a library is missing; AttributeError: it lacks a function."""
        ffi: Any = FFI()
        ffi.cdef(DECLARATIONS)
        self.ffi = ffi
        self.ext2fs = ffi.dlopen(LIBRARIES[0])
        self.ext2fs.initialize_ext2_error_table()
        self._error_message = ffi.dlopen(LIBRARIES[1]).error_message
        version = self.ffi.new("const char **")
        number = self.ext2fs.ext2fs_get_library_version(version, self.ffi.NULL)
        self.version = self.ffi.string(version[0]).decode("ascii", "replace")
        if number < 143:
            raise OSError(f"libext2fs {self.version} is too old")
        for name in ("ext2fs_open2", "ext2fs_descriptor_block_loc2", "ext2fs_block_iterate3", "ext2fs_block_bitmap_csum_verify"):
            getattr(self.ext2fs, name)  # others are as old

    def message(self, code: int) -> str:
        """What an error code means, in the library's words."""
        return str(self.ffi.string(self._error_message(code)).decode("ascii", "replace"))

    def crc32c(self, seed: int, data: bytes) -> int:
        """CRC-32C as ext4 and its journal use it: not inverted before or after."""
        return int(self.ext2fs.ext2fs_crc32c_le(seed, data, len(data)))


@cache
def load() -> Library:
    """The libraries, loaded once. A process that is about to give up its rights calls this before.

    Raises:
        KeptError: they are not here, or cannot be used.
    """
    try:
        library = Library()
        _Channel(library, Nothing())  # memory for callbacks is mapped when the first one is made
        return library
    except (OSError, AttributeError) as error:
        raise KeptError("libext2fs is not installed (Debian: libext2fs2, libext2fs2t64)") from error


class Nothing:
    """No bytes at all."""

    size = 0

    def read(self, offset: int, length: int, /) -> bytes:
        raise OSError(errno.EIO, "there is nothing")


class _Channel:
    """An io_manager, and the one channel it opens, that read from `source`. Must live as long as the library uses it.

    What goes wrong while reading is remembered in `failure` and told the library as an error code: an exception cannot pass
    through C.
    """

    def __init__(self, library: Library, source: Bytes) -> None:
        self._ffi = library.ffi
        self._source = source
        self.failure: BaseException | None = None
        self._name = self._ffi.new("char[]", b"diskhaul")
        self.channel = self._ffi.new("struct struct_io_channel *")
        self.channel.magic = MAGIC_IO_CHANNEL
        self.channel.name = self._name
        self.channel.block_size = 1024
        self.channel.refcount = 1
        self.manager = self._ffi.new("struct struct_io_manager *")
        self.manager.magic = MAGIC_IO_MANAGER
        self.manager.name = self._name
        self.channel.manager = self.manager
        refuse = lambda *_: errno.EROFS  # noqa: E731  # one answer for everything that would write
        self._callbacks = {
            "open": self._open,
            "close": lambda _: 0,
            "set_blksize": self._set_block_size,
            "read_blk": self._read,
            "read_blk64": self._read,
            "flush": lambda _: 0,
            "set_option": lambda *_: errno.EINVAL,
            "get_stats": lambda *_: errno.EOPNOTSUPP,
            "cache_readahead": lambda *_: 0,
            "write_blk": refuse,
            "write_blk64": refuse,
            "write_byte": refuse,
            "discard": refuse,
            "zeroout": refuse,
        }
        self._held = []
        for name, function in self._callbacks.items():
            kind = self._ffi.typeof(getattr(self.manager, name))
            callback = self._ffi.callback(kind, function, error=errno.EIO, onerror=self._remember)
            setattr(self.manager, name, callback)
            self._held.append(callback)

    def _remember(self, kind: type[BaseException], value: BaseException, traceback: object) -> None:
        self.failure = self.failure or value

    def _open(self, name: Any, flags: int, channel: Any) -> int:
        channel[0] = self.channel
        return 0

    def _set_block_size(self, channel: Any, size: int) -> int:
        if not 0 < size <= 65536:
            return errno.EINVAL
        channel.block_size = size
        return 0

    def _read(self, channel: Any, block: int, count: int, data: Any) -> int:
        length = -count if count < 0 else count * channel.block_size  # a negative count is one of bytes
        if not 0 < length <= MAX_READ:
            return errno.EINVAL
        self._ffi.memmove(data, self._source.read(block * channel.block_size, length), length)
        return 0


class Filesystem:
    """A filesystem that libext2fs has opened. All numbers are of blocks and groups; made by `open_filesystem`."""

    def __init__(self, library: Library, source: Bytes, superblock: Superblock, channel: _Channel, handle: Any) -> None:
        self.superblock = superblock
        self.source = source
        self._library = library
        self._ffi, self._c = library.ffi, library.ext2fs
        self._channel = channel
        self._handle = handle
        self._numbers = [self._ffi.new("uint64_t *") for _ in range(3)]

    def read_block(self, block: int) -> bytes:
        """A block as the library sees it."""
        return self.source.read(block * self.superblock.block_size, self.superblock.block_size)

    def has_valid_checksum(self, group: int) -> bool:
        """Does the group's description fit its checksum? True where there are none."""
        return bool(self._c.ext2fs_group_desc_csum_verify(self._handle, group))

    def is_bitmap_valid(self, group: int, bitmap: bytes) -> bool:
        """Does this bitmap of the group's blocks fit its checksum? True where there are none."""
        size = self.superblock.clusters_per_group // 8
        return bool(self._c.ext2fs_block_bitmap_csum_verify(self._handle, group, self._ffi.from_buffer(bitmap), size))

    def is_bitmap_missing(self, group: int) -> bool:
        """Was the group's bitmap never written, because nothing but the group's own metadata is in it?"""
        flags = self._c.ext2fs_bg_flags(self._handle, group)
        return self.superblock.has_group_checksums and bool(flags & BG_BLOCK_UNINIT)

    def free_clusters(self, group: int) -> int:
        """The group's own count of free clusters (blocks, without bigalloc)."""
        return int(self._c.ext2fs_bg_free_blocks_count(self._handle, group))

    def block_bitmap(self, group: int) -> int:
        """The block that holds the bitmap of the group's blocks."""
        return int(self._c.ext2fs_block_bitmap_loc(self._handle, group))

    def tables(self, group: int) -> tuple[tuple[int, int], ...]:
        """Where the group's two bitmaps and its inode table are: pairs of first block and number of blocks."""
        return (
            (self.block_bitmap(group), 1),
            (int(self._c.ext2fs_inode_bitmap_loc(self._handle, group)), 1),
            (int(self._c.ext2fs_inode_table_loc(self._handle, group)), self.superblock.inode_blocks_per_group),
        )

    def tables_by_copies(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What copies of the descriptions say: of each group of which there is a copy, where its bitmaps and inode table begin.

        Nothing checks a copy, and only these fields are the same in all of them.

        Raises:
            OSError: it cannot be read.
        """
        s = self.superblock
        per_block = s.block_size // s.descriptor_size
        with_super = next((group for group in range(1, s.groups) if self._c.ext2fs_bg_has_super(self._handle, group)), 0)
        for index in range(s.descriptor_blocks):
            first = index * per_block
            is_meta = bool(s.incompat & META_BG) and index >= s.first_meta_group
            holder = first + 1 if is_meta else with_super  # a meta group has its first copy in its second group
            if not 0 < holder < s.groups:
                continue
            at_super, at_old, at_new = self._numbers
            self._check(self._c.ext2fs_super_and_bgd_loc2(self._handle, holder, at_super, at_old, at_new, self._ffi.NULL))
            place = int(at_new[0]) if is_meta else int(at_old[0]) + index
            if not 0 < place < s.blocks:
                continue
            raw = self.read_block(place)
            for group in range(first, min(first + per_block, s.groups)):
                at = (group - first) * s.descriptor_size
                low = struct.unpack_from("<III", raw, at)
                high = struct.unpack_from("<III", raw, at + 32) if s.descriptor_size >= 64 else (0, 0, 0)
                yield group, tuple(number | more << 32 for number, more in zip(low, high, strict=True))

    def copies(self, group: int) -> list[tuple[int, int]]:
        """What of the superblock and the descriptions lies in the group, with what is reserved for more: as in `tables`."""
        s = self.superblock
        at_super, at_old, at_new = self._numbers
        code = self._c.ext2fs_super_and_bgd_loc2(self._handle, group, at_super, at_old, at_new, self._ffi.NULL)
        self._check(code)
        found = []
        if at_super[0] or group == 0:
            found.append((int(at_super[0]), 1))
        if group == 0 and s.block_size == 1024 and s.first_data_block == 0:
            found.append((0, 2))  # the superblock is in the second block, the first one is for boot loaders
        if at_old[0]:
            old = s.first_meta_group if s.incompat & META_BG else s.descriptor_blocks + s.reserved_descriptor_blocks
            found.append((int(at_old[0]), max(1, min(old, s.blocks - int(at_old[0])))))
        if at_new[0]:
            found.append((int(at_new[0]), 1))
        return found

    def inode(self, number: int) -> bytes:
        """The first 128 bytes of an inode, in the processor's byte order, checked against its checksum.

        Raises:
            KeptError: the library cannot read it.
        """
        raw = self._ffi.new("char[]", 128)
        self._check(self._c.ext2fs_read_inode2(self._handle, number, raw, 128, 0))
        return bytes(self._ffi.buffer(raw))

    def each_block(self, number: int, see: Callable[[int, int], bool]) -> None:
        """Call ``see(index, block)`` for each block of an inode until it is false; the index of a block of metadata is negative.

        Raises:
            KeptError: the library cannot read them.
        """

        def forward(_handle: Any, block: Any, index: int, _from: int, _offset: int, _private: Any) -> int:
            return 0 if see(index, int(block[0])) else BLOCK_ABORT

        kind = "int(ext2_filsys, uint64_t *, int64_t, uint64_t, int, void *)"
        callback = self._ffi.callback(kind, forward, error=BLOCK_ABORT, onerror=self._channel._remember)
        self._check(
            self._c.ext2fs_block_iterate3(self._handle, number, BLOCK_FLAG_READ_ONLY, self._ffi.NULL, callback, self._ffi.NULL)
        )

    def _check(self, code: int) -> None:
        _check(self._library, self._channel, code)


def _check(library: Library, channel: _Channel, code: int) -> None:
    if channel.failure is not None:
        raise KeptError(f"it cannot be read: {channel.failure}") from channel.failure
    if code:
        raise KeptError(f"libext2fs: {library.message(code)}")


@contextmanager
def open_filesystem(source: Bytes, superblock: Superblock) -> Iterator[Filesystem]:
    """Have libext2fs read the descriptions of all groups. `superblock` is what `source` has, and was checked.

    Raises:
        KeptError: the library is missing, refuses the filesystem, or is not laid out as declared here.
    """
    library = load()
    ffi, c = library.ffi, library.ext2fs
    channel = _Channel(library, source)
    handle = ffi.new("ext2_filsys *")
    code = c.ext2fs_open2(channel.manager.name, ffi.NULL, FLAG_64BITS | FLAG_SKIP_MMP, 0, 0, channel.manager, handle)
    _check(library, channel, code)
    fs = handle[0]
    if fs == ffi.NULL or not _is_as_declared(library, channel, superblock, fs):
        # Not freed: whatever lies there, it is not what the library's own function would be sure of.
        raise KeptError(f"libext2fs {library.version} is laid out in an unexpected way")
    try:
        yield Filesystem(library, source, superblock, channel, fs)
    finally:
        c.ext2fs_free(fs)


def _is_as_declared(library: Library, channel: _Channel, superblock: Superblock, fs: Any) -> bool:
    ffi = library.ffi
    return bool(
        fs.magic == MAGIC_FILSYS
        and fs.io == channel.channel
        and fs.flags & (FLAG_64BITS | FLAG_SKIP_MMP) == FLAG_64BITS | FLAG_SKIP_MMP
        and ffi.string(fs.device_name) == b"diskhaul"
        and ffi.buffer(fs.super, SIZE)[:] == superblock.raw
        and fs.blocksize == superblock.block_size
        and fs.group_desc_count == superblock.groups
        and fs.desc_blocks == superblock.descriptor_blocks
        and fs.inode_blocks_per_group == superblock.inode_blocks_per_group
        and library.ext2fs.ext2fs_blocks_count(fs.super) == superblock.blocks
    )

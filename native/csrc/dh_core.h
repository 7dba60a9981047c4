/*
 * The C core of diskhaul: what has to touch every byte of a disk.
 *
 * Rules that every function here keeps:
 *  - It returns a value >= 0, or -errno. An operation that the file, its filesystem or this kernel does not have
 *    is -EOPNOTSUPP (or the code named below), never a silent substitute.
 *  - Offsets and lengths are bytes. A negative one, or an end beyond INT64_MAX, is -EINVAL.
 *  - System calls that EINTR stopped are repeated, short reads and writes are continued.
 *  - No global state, no allocation, no output, no signal handling, no Python. The caller owns all memory, and the
 *    functions may run in any number of threads, also on one descriptor: the file position is neither used nor
 *    meaningful afterwards (dh_next_extent moves it). Only dh_keep_freed_memory is there to change global state.
 *  - A file that ends before the range that was asked for (it shrank) is -ENODATA.
 *
 * What stands between the two "cdef" marks is also read by native/ffi_build.py: plain declarations only.
 */
#ifndef DH_CORE_H
#define DH_CORE_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */

/* ---- zero scan (zero_scan.c) ---- */

enum {
    DH_KERNEL_BEST = -1, /* the one that dh_best_kernel names */
    DH_KERNEL_SCALAR = 0, /* byte by byte: the reference that the others are tested against */
    DH_KERNEL_WORD = 1, /* what every processor has, portable */
    DH_KERNEL_AVX2 = 2,
    DH_KERNEL_AVX512 = 3,
    DH_KERNEL_NEON = 4,
    DH_KERNEL_COUNT = 5
};

/* The kernel's name; NULL for a number that names no kernel. */
const char *dh_kernel_name(int kernel);

/* 1 when this build and this processor have the kernel, else 0. */
int dh_kernel_available(int kernel);

/* The number of the fastest kernel that this processor has. */
int dh_best_kernel(void);

/* 1 when all `length` bytes are zero (also when length is 0), 0 when not; -EOPNOTSUPP for a kernel that is not available. */
int dh_is_zero(int kernel, const void *buffer, size_t length);

/* Add up the buffer's 64-bit words in the processor's byte order, modulo 2^64; a shorter last one is filled up with zero bytes. It
 * reads as the kernel's scan does: what that has to be as fast as. Returns 0; -EOPNOTSUPP for a kernel that is not available. */
int dh_sum_words(int kernel, const void *buffer, size_t length, uint64_t *sum);

/* ---- checksums (crc32c.c) ---- */

/* CRC-32C of the buffer. `crc`: 0, or that of what comes before it. */
uint32_t dh_crc32c(uint32_t crc, const void *buffer, size_t length);

/* The same without the processor's help: what it is tested against, and used where there is none. */
uint32_t dh_crc32c_table(uint32_t crc, const void *buffer, size_t length);

/* ---- reading and writing (file_io.c) ---- */

/* Fill the buffer from the file. Returns 0. `*done` counts the bytes that were read, also on failure. */
int dh_read(int fd, void *buffer, size_t length, int64_t offset, size_t *done);

/* dh_read, then the zero scan: 1 when everything read is zero, 0 when not. -EOPNOTSUPP for a kernel that is not available: nothing is
 * read then. */
int dh_read_scan(int fd, int kernel, void *buffer, size_t length, int64_t offset, size_t *done);

/* Write the whole buffer. Returns 0. `*done` counts the bytes that were written, also on failure. */
int dh_write(int fd, const void *buffer, size_t length, int64_t offset, size_t *done);

/*
 * Write the blocks of the buffer that are not all zero, neighbours in one call. Blocks lie at multiples of `block_size`
 * (> 0) in the file; the first and the last may be parts of one. Blocks of zeros are left alone, so the target must be known
 * to read as zeros there and to be long enough; with `zero_holes` they are made zero as by dh_zero_range(DH_ZERO_AUTO).
 * Returns the bytes written (zeroing does not count). `*done` counts the bytes of the buffer that were dealt with.
 */
int64_t dh_write_sparse(int fd, const void *buffer, size_t length, int64_t offset, size_t block_size, int zero_holes,
                        size_t *done);

/* fsync. Repeated after EINTR only: the wait was cut short, nothing was reported. Any other failure is final: the kernel reports
 * lost data once, a second call could succeed. */
int dh_sync(int fd);

/* ---- the page cache (page_cache.c) ---- */

/* Ask the kernel to forget clean cached pages of the range (length 0: up to the end). */
int dh_drop_cache(int fd, int64_t offset, int64_t length);

/*
 * How many bytes of the range are in the page cache, dirty ones included; bytes beyond the end of the file never are. Regular files and
 * block devices; -EOPNOTSUPP for others, and where the kernel does not tell: older ones answer only who may write to the file.
 * Address space, but no memory, is used for a moment where cachestat is missing.
 */
int64_t dh_cached_bytes(int fd, int64_t offset, int64_t length);

/* Start writing the range's dirty pages (length 0: up to the end), without waiting for more than room in the device's queue. */
int dh_start_writeback(int fd, int64_t offset, int64_t length);

/* Write the range's dirty pages (length 0: up to the end) and wait. No durability: neither metadata nor the device's own cache is
 * flushed. A failure other than EINTR is final, as with dh_sync, and a later dh_sync on this descriptor need not repeat it. */
int dh_wait_writeback(int fd, int64_t offset, int64_t length);

/* ---- direct I/O (direct_io.c) ---- */

/*
 * Open the file of `fd` once more, with O_DIRECT, for reading or for both; returns the new descriptor, which is closed on exec. Not by its
 * path, and it is checked that it is the same file (-ESTALE when /proc is not what it should be). -EOPNOTSUPP for what is neither
 * a regular file nor a block device, and where the filesystem does not take the flag.
 */
int dh_open_direct(int fd, int writable);

/* What offset, length and address of direct I/O must be multiples of, in bytes; 4096 when nobody knows. 0: the kernel says that there
 * is no direct I/O on this file. -EOPNOTSUPP for what is neither a regular file nor a block device. */
int64_t dh_direct_alignment(int fd);

/*
 * Read at least `needed` (<= length) bytes; what the buffer has beyond them is unspecified. Buffer, length and offset are aligned as
 * dh_direct_alignment says, so a file that ends in the middle of a block is read up to its end in one piece. (dh_read would go on at an
 * offset that is not aligned, which is -EINVAL.) `*done` counts the bytes that were read, also on failure.
 */
int dh_read_direct(int fd, void *buffer, size_t length, int64_t offset, size_t needed, size_t *done);

/* ---- I/O priority (io_priority.c) ---- */

enum {
    DH_IO_NORMAL = 0, /* as the thread's nice value says: what a new thread has */
    DH_IO_LOW = 1, /* the lowest that is still served when others wait */
    DH_IO_IDLE = 2, /* only when nobody else wants the disk */
    DH_IO_LEVEL_COUNT = 3
};

/* Set the I/O priority of the calling thread. It counts where the device's scheduler knows priorities (bfq, mq-deadline). */
int dh_set_io_priority(int level);

/* ---- memory (allocation.c) ---- */

/*
 * Have malloc keep what is freed, for the whole process and for good, instead of giving it back to the kernel and having it
 * cleared and mapped anew. -EOPNOTSUPP: this C library has no such setting.
 */
int dh_keep_freed_memory(void);

/* ---- extents (extents.c) ---- */

enum { DH_HOLE = 0, DH_DATA = 1 };

/*
 * What lies at `offset` (< end): DH_HOLE or DH_DATA, up to `*extent_end` (offset < *extent_end <= end). Where the file cannot tell
 * (pipes, old filesystems) everything is DH_DATA. A file that ends before `end` is never said to have a hole there:
 * -ENODATA, with its size in `*extent_end`.
 */
int dh_next_extent(int fd, int64_t offset, int64_t end, int64_t *extent_end);

/* The size of a block device in bytes; -ENOTBLK for anything else. */
int64_t dh_block_device_size(int fd);

/* ---- making zeros (zero_range.c) ---- */

enum {
    DH_ZERO_AUTO = 0, /* the first of the following that the target has */
    DH_ZERO_PUNCH = 1, /* fallocate, deallocating the range */
    DH_ZERO_RANGE = 2, /* fallocate, keeping the range allocated */
    DH_ZERO_BLKZEROOUT = 3, /* ioctl, block devices only */
    DH_ZERO_WRITE = 4 /* writing zeros */
};

/*
 * Make [offset, offset + length) read as zeros; a regular file that ends before is extended. Returns the method that did it.
 * A method that the target does not have is -EOPNOTSUPP when it was named, and the next one's turn when not; one that the target has
 * and that failed is a failure. On a block device the parts of sectors at the ends are written, whatever the method; a range beyond
 * its end is -ENOSPC, and nothing is touched. `*failed_at` is set on failure: the offset that could not be made zero; other parts of
 * the range may be zero by then.
 */
int dh_zero_range(int fd, int64_t offset, int64_t length, int method, int64_t *failed_at);

/* ---- copying (copy_range.c) and sharing (clone.c) ---- */

enum { DH_SIDE_SOURCE = 0, DH_SIDE_TARGET = 1 };

/* How far a copy is. All zeros before the first call; not to be changed between calls. */
struct dh_copy_progress {
    int64_t position; /* bytes of the range that are done */
    int64_t read; /* bytes read from the source: its holes are not */
    int64_t written; /* bytes of data written; zeroing does not count */
    int64_t failed_at; /* after a failure: the offset it happened at, in the file of the failed side */
    int failed_side; /* DH_SIDE_SOURCE or DH_SIDE_TARGET */
    int by_hand; /* nonzero once copy_file_range turned out to be no use here */
};

/*
 * Copy [offset, offset + length) of the source to the target at `target_offset`, without its holes: the target must be known to read
 * as zeros there, or `zero_holes` makes it so. copy_file_range does it where both files allow it; otherwise data goes through
 * `scratch` (at least 4096 bytes), and blocks of 4096 zero bytes are treated as holes. Ranges of one file that overlap are -EINVAL.
 *
 * Stops after about `budget` bytes (> 0), so that the caller can be interrupted: returns 1 when there is more to do, 0 when all is
 * done. To go on, call again with the same arguments. After a failure the bytes before `position` are copied.
 */
int dh_copy_range(int source_fd, int target_fd, int64_t offset, int64_t length, int64_t target_offset, int zero_holes, void *scratch,
                  size_t scratch_size, int64_t budget, struct dh_copy_progress *progress);

/*
 * Make the target share the source's blocks (reflink). All three numbers 0: the whole file. Length 0: up to the source's end. Offsets
 * and length must be multiples of the filesystem's block size, except at the end (-EINVAL). Different filesystems: -EXDEV.
 */
int dh_clone(int source_fd, int target_fd, int64_t source_offset, int64_t length, int64_t target_offset);

/* ---- what two files share (shared_blocks.c) ---- */

/*
 * Whether the first `size` bytes of both files are held by the very same blocks, by the filesystem's own maps; holes, and blocks that
 * were allocated and never written, are zeros on both sides. What is still in the cache is written first, so a file that was written to
 * since it was cloned has other blocks. 1: they are; 0: they are not from `*position` on. -EXDEV: on different filesystems.
 * -EOPNOTSUPP: no telling: not XFS or btrfs, or at `*position` a map that does not say where the bytes are (compressed or inline
 * extents). `*data` is how many of the bytes before `*position` are in blocks.
 */
int dh_shared_blocks(int first_fd, int second_fd, int64_t size, int64_t *position, int64_t *data);

/* ---- bitmaps (bitmap.c) ---- */

/*
 * The runs of clear bits among the bits [*position, end) of a bitmap of `length` bytes; the lowest bit of a byte is its first. Fills
 * `runs` with pairs: the first bit's number, and how many they are; `room` pairs at most (> 0), ascending and as long as they can be.
 * Returns how many, and moves `*position` behind the last bit it looked at: call again until that is `end`.
 */
int64_t dh_clear_bit_runs(const void *bitmap, size_t length, uint64_t *position, uint64_t end, uint64_t *runs, size_t room);

/* cdef end */

#endif

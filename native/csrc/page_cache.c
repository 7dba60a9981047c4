/* What the kernel keeps of a file in memory: asking, forgetting, and writing it back. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* the same on all architectures; Linux 6.5 */
#endif

enum { MINCORE_PAGES = 4096 };

/* As in linux/mman.h, which older systems have without them. */
struct cache_range {
    uint64_t offset;
    uint64_t length;
};
struct cache_counts {
    uint64_t cached;
    uint64_t dirty;
    uint64_t under_writeback;
    uint64_t evicted;
    uint64_t recently_evicted;
};

typedef int64_t count_pages(int fd, int64_t offset, int64_t end, int64_t page);

/* The number of cached pages that [offset, end) touches, by cachestat. */
static int64_t count_by_cachestat(int fd, int64_t offset, int64_t end, int64_t page)
{
    struct cache_range range = {.offset = (uint64_t)offset, .length = (uint64_t)(end - offset)};
    struct cache_counts counts;
    (void)page;
    return syscall(SYS_cachestat, fd, &range, &counts, 0U) < 0 ? -errno : (int64_t)counts.cached;
}

/* The same by mincore, which needs a mapping; nothing in it is touched. */
static int64_t count_by_mincore(int fd, int64_t offset, int64_t end, int64_t page)
{
    unsigned char resident[MINCORE_PAGES];
    int64_t pages = 0;
    for (offset -= offset % page; offset < end; offset += MINCORE_PAGES * page) {
        const int64_t left = end - offset;
        const size_t size = left < MINCORE_PAGES * page ? (size_t)left : (size_t)(MINCORE_PAGES * page);
        void *const mapping = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, offset);
        if (mapping == MAP_FAILED) {
            return errno == EACCES || errno == EPERM || dh_unsupported(errno) ? -EOPNOTSUPP : -errno;
        }
        const int error = mincore(mapping, size, resident) < 0 ? errno : 0;
        munmap(mapping, size);
        if (error != 0) {
            return -error;
        }
        for (size_t i = 0; i < (size + (size_t)page - 1) / (size_t)page; i++) {
            pages += resident[i] & 1;
        }
    }
    return pages;
}

/* mincore calls every page of a file resident to those who neither own it nor may write to it. */
static int mincore_tells(int fd, const struct stat *status)
{
    char path[DH_DESCRIPTOR_PATH_SIZE];
    if (geteuid() == status->st_uid) {
        return 1;
    }
    dh_descriptor_path(fd, path);
    return faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
}

/* The bytes of [offset, end) in pages that are cached: whole pages, less what the first and the last one have outside the range. */
static int64_t count_bytes(count_pages *count, int fd, int64_t offset, int64_t end, int64_t page)
{
    const int64_t before = offset % page;
    const int64_t into_last = end % page;
    const int64_t pages = count(fd, offset, end, page);
    if (pages <= 0) {
        return pages;
    }
    int64_t bytes = pages * page;
    if (before != 0) {
        const int64_t first = count(fd, offset, offset + 1, page);
        if (first < 0) {
            return first;
        }
        bytes -= first > 0 ? before : 0;
    }
    if (into_last != 0) {
        const int64_t last = count(fd, end - 1, end, page);
        if (last < 0) {
            return last;
        }
        bytes -= last > 0 ? page - into_last : 0;
    }
    /* Pages may have come and gone between the questions. */
    return bytes < 0 ? 0 : bytes > end - offset ? end - offset : bytes;
}

int64_t dh_cached_bytes(int fd, int64_t offset, int64_t length)
{
    struct stat status;
    const int64_t page = sysconf(_SC_PAGESIZE);
    if (!dh_valid_range(offset, length)) {
        return -EINVAL;
    }
    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        return -EOPNOTSUPP;
    }
    const int64_t size = S_ISREG(status.st_mode) ? status.st_size : dh_block_device_size(fd);
    if (size < 0) {
        return size;
    }
    const int64_t end = offset + length < size ? offset + length : size;
    if (offset >= end) {
        return 0;
    }
    const int64_t bytes = count_bytes(count_by_cachestat, fd, offset, end, page);
    /* EPERM is also what containers answer to system calls that they do not know. */
    if (bytes >= 0 || (bytes != -EPERM && !dh_unsupported((int)-bytes))) {
        return bytes;
    }
    return mincore_tells(fd, &status) ? count_bytes(count_by_mincore, fd, offset, end, page) : -EOPNOTSUPP;
}

int dh_drop_cache(int fd, int64_t offset, int64_t length)
{
    if (!dh_valid_range(offset, length)) {
        return -EINVAL;
    }
    return -posix_fadvise(fd, offset, length, POSIX_FADV_DONTNEED); /* returns the error, does not set errno */
}

static int write_back(int fd, int64_t offset, int64_t length, unsigned int flags)
{
    int result;
    if (!dh_valid_range(offset, length)) {
        return -EINVAL;
    }
    do {
        result = sync_file_range(fd, offset, length, flags);
    } while (result < 0 && errno == EINTR);
    if (result < 0) {
        return errno == ENOSYS ? -EOPNOTSUPP : -errno;
    }
    return 0;
}

int dh_start_writeback(int fd, int64_t offset, int64_t length)
{
    return write_back(fd, offset, length, SYNC_FILE_RANGE_WRITE);
}

int dh_wait_writeback(int fd, int64_t offset, int64_t length)
{
    /* Pages that are being written now may have been changed since: wait for those, write what is dirty, and wait for that. */
    return write_back(fd, offset, length,
                      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

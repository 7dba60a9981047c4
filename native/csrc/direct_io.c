/* Reading and writing past the page cache: another descriptor, what must be aligned, and reads up to an end that is not. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* From linux/stat.h of Linux 6.1 on; older headers have spare bytes there. */
enum { WANT_DIRECT_ALIGNMENT = 0x2000, DIRECT_ALIGNMENT_AT = 0x98, ALIGNMENT_UNKNOWN = 4096 };

int dh_open_direct(int fd, int writable)
{
    char path[DH_DESCRIPTOR_PATH_SIZE];
    struct stat given;
    struct stat opened;
    int direct_fd;

    if (fstat(fd, &given) < 0) {
        return -errno;
    }
    /* Before opening: that alone does things to terminals, tapes and pipes. */
    if (!S_ISREG(given.st_mode) && !S_ISBLK(given.st_mode)) {
        return -EOPNOTSUPP;
    }
    dh_descriptor_path(fd, path);
    do {
        direct_fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC | O_NOCTTY);
    } while (direct_fd < 0 && errno == EINTR);
    if (direct_fd < 0) {
        return errno == EINVAL ? -EOPNOTSUPP : -errno;
    }
    const int error = fstat(direct_fd, &opened) < 0 ? errno : 0;
    if (error != 0 || opened.st_dev != given.st_dev || opened.st_ino != given.st_ino || opened.st_rdev != given.st_rdev) {
        close(direct_fd);
        return error != 0 ? -error : -ESTALE;
    }
    return direct_fd;
}

int64_t dh_direct_alignment(int fd)
{
    struct stat status;
    struct statx extended;
    int sector = 0;

    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        return -EOPNOTSUPP;
    }
    if (statx(fd, "", AT_EMPTY_PATH, WANT_DIRECT_ALIGNMENT, &extended) == 0 && (extended.stx_mask & WANT_DIRECT_ALIGNMENT) != 0) {
        uint32_t alignment[2]; /* of memory, of offset and length; powers of two, or both 0 */
        memcpy(alignment, (const unsigned char *)&extended + DIRECT_ALIGNMENT_AT, sizeof(alignment));
        return alignment[0] > alignment[1] ? alignment[0] : alignment[1];
    }
    if (S_ISBLK(status.st_mode) && ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0) {
        return sector;
    }
    return ALIGNMENT_UNKNOWN;
}

/* Does the regular file end at or before this offset? */
static int ends_before(int fd, int64_t offset)
{
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size <= offset;
}

int dh_read_direct(int fd, void *buffer, size_t length, int64_t offset, size_t needed, size_t *done)
{
    unsigned char *const bytes = buffer;
    *done = 0;
    if (length > INT64_MAX || !dh_valid_range(offset, (int64_t)length) || needed > length) {
        return -EINVAL;
    }
    /* A short read is continued at the last offset that is aligned, whatever the alignment is: it divides offset and length. */
    const uint64_t both = (uint64_t)offset | length | ALIGNMENT_UNKNOWN;
    const size_t alignment = (size_t)(both & (~both + 1));
    while (*done < needed) {
        const size_t start = *done - *done % alignment;
        const ssize_t count = pread(fd, bytes + start, length - start, offset + (off_t)start);
        if (count < 0) {
            if (errno == EINTR) {
                continue;
            }
            /* Blocks larger than 4096 bytes: not aligned after all, because the file ends here. */
            return errno == EINVAL && *done > 0 && ends_before(fd, offset + (int64_t)*done) ? -ENODATA : -errno;
        }
        if (start + (size_t)count <= *done) {
            return -ENODATA; /* nothing new: the end */
        }
        *done = start + (size_t)count;
    }
    return 0;
}

/* Where a file has data and where it has holes, and how large a block device is. */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

static int64_t seek(int fd, int64_t offset, int whence)
{
    off_t result;
    do {
        result = lseek(fd, offset, whence);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/* lseek found nothing from `offset` on: a hole up to the end of the file, or an offset beyond that. Only the size tells. */
static int hole_to_end(int fd, int64_t offset, int64_t end, int64_t *extent_end)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    if (status.st_size < end) {
        *extent_end = status.st_size < offset ? offset : status.st_size;
        return -ENODATA; /* what is missing must not pass for zeros */
    }
    *extent_end = end;
    return DH_HOLE;
}

int dh_next_extent(int fd, int64_t offset, int64_t end, int64_t *extent_end)
{
    *extent_end = offset;
    if (offset < 0 || end <= offset) {
        return -EINVAL;
    }
    const int64_t data = seek(fd, offset, SEEK_DATA);
    if (data > offset) {
        *extent_end = data < end ? data : end;
        return DH_HOLE;
    }
    if (data == -ENXIO) {
        return hole_to_end(fd, offset, end, extent_end);
    }
    if (data < 0 && !dh_unsupported((int)-data) && data != -ESPIPE) {
        return (int)data;
    }
    if (data == offset) {
        const int64_t hole = seek(fd, offset, SEEK_HOLE);
        if (hole == -ENXIO) {
            return hole_to_end(fd, offset, end, extent_end); /* cut off between the two calls */
        }
        if (hole < 0 && !dh_unsupported((int)-hole)) {
            return (int)hole;
        }
        if (hole > offset) {
            *extent_end = hole < end ? hole : end;
            return DH_DATA;
        }
        /* A hole at `offset` after all (punched meanwhile), or no answer: reading the rest is always right. */
    }
    *extent_end = end; /* no answer, or one that makes no sense (some devices return 0) */
    return DH_DATA;
}

int64_t dh_block_device_size(int fd)
{
    struct stat status;
    uint64_t size;
    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    if (!S_ISBLK(status.st_mode)) {
        return -ENOTBLK;
    }
    if (ioctl(fd, BLKGETSIZE64, &size) < 0) {
        return -errno;
    }
    return size > INT64_MAX ? -EOVERFLOW : (int64_t)size;
}

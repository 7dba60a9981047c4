/*
 * Making a range zero by the best method that the target has: punch -> zero range -> BLKZEROOUT -> writing.
 *
 * "Unsupported" leads to the next method, "failed" does not: a device that reports EIO must not be written to in the hope that it
 * goes away.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"

enum { ZEROS_SIZE = 65536, ZEROS_PER_CALL = 16 };

/* Read-only, and aligned for descriptors that are open with O_DIRECT. */
static const _Alignas(4096) unsigned char zeros[ZEROS_SIZE] = {0};

int dh_zero_target_init(struct dh_zero_target *target, int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return -errno;
    }
    *target = (struct dh_zero_target){
        .fd = fd,
        .is_regular = S_ISREG(status.st_mode),
        .is_block = S_ISBLK(status.st_mode),
        .size = status.st_size,
        .sector = 1,
        .first_method = DH_ZERO_PUNCH,
    };
    if (target->is_block) {
        int sector = 0;
        target->size = dh_block_device_size(fd);
        if (target->size < 0) {
            return (int)target->size;
        }
        if (ioctl(fd, BLKSSZGET, &sector) < 0) {
            return -errno;
        }
        target->sector = sector > 0 ? sector : 512;
    }
    return 0;
}

static int write_zeros(int fd, int64_t offset, int64_t length, int64_t *failed_at)
{
    *failed_at = offset;
    while (length > 0) {
        struct iovec pieces[ZEROS_PER_CALL];
        int count = 0;
        for (int64_t left = length; left > 0 && count < ZEROS_PER_CALL; count++) {
            const size_t size = left < ZEROS_SIZE ? (size_t)left : (size_t)ZEROS_SIZE;
            pieces[count] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros, .iov_len = size};
            left -= (int64_t)size;
        }
        const ssize_t written = pwritev(fd, pieces, count, offset);
        if (written > 0) {
            offset += written;
            length -= written;
            *failed_at = offset;
        } else if (written == 0) {
            return -EIO;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int allocate(int fd, int mode, int64_t offset, int64_t length)
{
    int result;
    do {
        result = fallocate(fd, mode, offset, length);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

/* Bring the size of a regular file up to `end`. By writing one byte that is ours: ftruncate could cut off what another thread has
 * appended meanwhile. */
static int extend(struct dh_zero_target *target, int64_t end, int64_t *failed_at)
{
    struct stat status;
    if (!target->is_regular || end <= target->size) {
        return 0;
    }
    if (fstat(target->fd, &status) < 0) {
        return -errno;
    }
    target->size = status.st_size;
    return end <= target->size ? 0 : write_zeros(target->fd, end - 1, 1, failed_at);
}

/* Zero a range of whole sectors by a method that is not writing. */
static int zero_sectors(struct dh_zero_target *target, int64_t offset, int64_t length, int method)
{
    int result;
    if (method == DH_ZERO_PUNCH) {
        result = allocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    } else if (method == DH_ZERO_RANGE) {
        /* Without KEEP_SIZE a file that ends before is extended; a block device insists on the flag only near its end. */
        result = allocate(target->fd, FALLOC_FL_ZERO_RANGE | (target->is_block ? FALLOC_FL_KEEP_SIZE : 0), offset, length);
    } else if (!target->is_block) {
        result = -EOPNOTSUPP; /* on other files the number of this ioctl may mean something else */
    } else {
        uint64_t range[2] = {(uint64_t)offset, (uint64_t)length};
        do {
            result = ioctl(target->fd, BLKZEROOUT, range);
        } while (result < 0 && errno == EINTR);
        result = result < 0 ? -errno : 0;
    }
    return result < 0 && dh_unsupported(-result) ? -EOPNOTSUPP : result;
}

/* Zero by this method, or -EOPNOTSUPP. */
static int zero_by(struct dh_zero_target *target, int64_t offset, int64_t length, int method, int64_t *failed_at)
{
    const int64_t end = offset + length;
    const int64_t last = end - end % target->sector;
    const int64_t into_sector = offset % target->sector;
    const int64_t first = into_sector == 0 ? offset : offset - into_sector + target->sector;
    int result;

    *failed_at = offset;
    if (method == DH_ZERO_WRITE || first >= last) {
        return write_zeros(target->fd, offset, length, failed_at);
    }
    *failed_at = first;
    result = zero_sectors(target, first, last - first, method);
    if (result == 0) {
        result = write_zeros(target->fd, offset, first - offset, failed_at);
    }
    if (result == 0) {
        result = write_zeros(target->fd, last, end - last, failed_at);
    }
    if (result == 0) {
        result = extend(target, end, failed_at);
    }
    return result;
}

/* May this range be touched? */
static int check_range(const struct dh_zero_target *target, int64_t offset, int64_t length, int64_t *failed_at)
{
    *failed_at = offset;
    if (!dh_valid_range(offset, length)) {
        return -EINVAL;
    }
    /* fallocate would silently stop at the end of a block device. */
    return target->is_block && offset + length > target->size ? -ENOSPC : 0;
}

int dh_zero_target_range(struct dh_zero_target *target, int64_t offset, int64_t length, int64_t *failed_at)
{
    int result = check_range(target, offset, length, failed_at);
    if (result < 0 || length == 0) {
        return result < 0 ? result : target->first_method;
    }
    for (;;) {
        result = zero_by(target, offset, length, target->first_method, failed_at);
        if (result != -EOPNOTSUPP || target->first_method == DH_ZERO_WRITE) {
            return result < 0 ? result : target->first_method;
        }
        target->first_method++;
    }
}

int dh_zero_range(int fd, int64_t offset, int64_t length, int method, int64_t *failed_at)
{
    struct dh_zero_target target;
    int result;

    *failed_at = offset;
    if (method < DH_ZERO_AUTO || method > DH_ZERO_WRITE) {
        return -EINVAL;
    }
    result = dh_zero_target_init(&target, fd);
    if (result < 0) {
        return result;
    }
    if (method == DH_ZERO_AUTO) {
        return dh_zero_target_range(&target, offset, length, failed_at);
    }
    result = check_range(&target, offset, length, failed_at);
    if (result == 0 && length > 0) {
        result = zero_by(&target, offset, length, method, failed_at);
    }
    return result < 0 ? result : method;
}

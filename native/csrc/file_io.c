/* Reading and writing whole buffers at an offset, and syncing. */
#define _GNU_SOURCE
#include <unistd.h>

#include "internal.h"

static int valid_buffer(int64_t offset, size_t length)
{
    return length <= INT64_MAX && dh_valid_range(offset, (int64_t)length);
}

int dh_read(int fd, void *buffer, size_t length, int64_t offset, size_t *done)
{
    unsigned char *const bytes = buffer;
    *done = 0;
    if (!valid_buffer(offset, length)) {
        return -EINVAL;
    }
    while (*done < length) {
        const ssize_t count = pread(fd, bytes + *done, length - *done, offset + (off_t)*done);
        if (count > 0) {
            *done += (size_t)count;
        } else if (count == 0) {
            return -ENODATA;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int dh_read_scan(int fd, int kernel, void *buffer, size_t length, int64_t offset, size_t *done)
{
    dh_zero_scan *const is_zero = dh_find_scan(kernel);
    *done = 0;
    if (is_zero == NULL) {
        return -EOPNOTSUPP;
    }
    const int result = dh_read(fd, buffer, length, offset, done);
    return result < 0 ? result : is_zero(buffer, length);
}

int dh_write(int fd, const void *buffer, size_t length, int64_t offset, size_t *done)
{
    const unsigned char *const bytes = buffer;
    *done = 0;
    if (!valid_buffer(offset, length)) {
        return -EINVAL;
    }
    while (*done < length) {
        const ssize_t count = pwrite(fd, bytes + *done, length - *done, offset + (off_t)*done);
        if (count > 0) {
            *done += (size_t)count;
        } else if (count == 0) {
            return -EIO; /* accepts nothing, and gives no reason: going on could last for ever */
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int64_t dh_write_sparse_to(int fd, struct dh_zero_target *zero_target, const unsigned char *bytes, size_t length, int64_t offset,
                           size_t block_size, size_t *done)
{
    dh_zero_scan *const is_zero = dh_find_scan(DH_KERNEL_BEST);
    int64_t written = 0;
    size_t start = 0; /* of the run of blocks that are alike */
    size_t next = 0;
    int run_is_zero = 0;
    *done = 0;
    while (start < length) {
        /* Lengthen the run by the next block, if that is like it. */
        if (next < length) {
            const size_t into_block = (size_t)((uint64_t)offset + next) % block_size;
            const size_t left = length - next;
            const size_t size = left < block_size - into_block ? left : block_size - into_block;
            const int zero = is_zero(bytes + next, size);
            if (next == start) {
                run_is_zero = zero;
            }
            if (zero == run_is_zero) {
                next += size;
                continue;
            }
        }
        if (!run_is_zero) {
            size_t run_done;
            const int result = dh_write(fd, bytes + start, next - start, offset + (int64_t)start, &run_done);
            *done = start + run_done;
            if (result < 0) {
                return result;
            }
            written += (int64_t)run_done;
        } else if (zero_target != NULL) {
            int64_t failed_at;
            const int result = dh_zero_target_range(zero_target, offset + (int64_t)start, (int64_t)(next - start), &failed_at);
            if (result < 0) {
                *done = (size_t)(failed_at - offset);
                return result;
            }
        }
        *done = next;
        start = next;
    }
    return written;
}

int64_t dh_write_sparse(int fd, const void *buffer, size_t length, int64_t offset, size_t block_size, int zero_holes, size_t *done)
{
    struct dh_zero_target target;
    *done = 0;
    if (!valid_buffer(offset, length) || block_size == 0) {
        return -EINVAL;
    }
    if (zero_holes) {
        const int result = dh_zero_target_init(&target, fd);
        if (result < 0) {
            return result;
        }
    }
    return dh_write_sparse_to(fd, zero_holes ? &target : NULL, buffer, length, offset, block_size, done);
}

int dh_sync(int fd)
{
    int result;
    do {
        result = fsync(fd);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

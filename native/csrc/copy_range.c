/* Copying a range between files without filling its holes. */
#define _GNU_SOURCE
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

enum { BLOCK_SIZE = 4096 };

/* What one call works with. */
struct copy {
    int source_fd;
    int target_fd;
    int64_t offset;
    int64_t target_offset;
    unsigned char *scratch;
    size_t scratch_size;
    struct dh_zero_target *zero_target; /* NULL: holes are left alone */
    struct dh_copy_progress *progress;
};

/* Note where it failed: `offset` is one of the failing side's file. */
static int failed(struct dh_copy_progress *progress, int side, int64_t offset, int error)
{
    progress->failed_side = side;
    progress->failed_at = offset;
    return error;
}

/* 1 when both ranges lie in one file or device and overlap. */
static int overlaps(int source_fd, int target_fd, int64_t offset, int64_t target_offset, int64_t length,
                    struct dh_copy_progress *progress)
{
    struct stat source;
    struct stat target;
    const int64_t distance = offset < target_offset ? target_offset - offset : offset - target_offset;

    if (fstat(source_fd, &source) < 0) {
        return failed(progress, DH_SIDE_SOURCE, offset, -errno);
    }
    if (fstat(target_fd, &target) < 0) {
        return failed(progress, DH_SIDE_TARGET, target_offset, -errno);
    }
    const int same_file = source.st_dev == target.st_dev && source.st_ino == target.st_ino;
    const int same_device = S_ISBLK(source.st_mode) && S_ISBLK(target.st_mode) && source.st_rdev == target.st_rdev;
    return (same_file || same_device) && distance < length;
}

/* Let the kernel copy: it may share blocks, or spare the way through user space. Returns the bytes copied. 0 means "by hand": either
 * the files do not allow it, or it failed, and then reading and writing will tell on which side and at which offset. */
static int64_t copy_in_kernel(const struct copy *copy, int64_t position, int64_t length)
{
    off_t source_offset = copy->offset + position;
    off_t target_offset = copy->target_offset + position;
    const size_t most = (size_t)1 << 30;
    for (;;) {
        const ssize_t count = copy_file_range(copy->source_fd, &source_offset, copy->target_fd, &target_offset,
                                              length < (int64_t)most ? (size_t)length : most, 0);
        if (count >= 0 || errno != EINTR) {
            return count < 0 ? 0 : count;
        }
    }
}

/* Copy up to `length` bytes of data from the current position on. */
static int copy_data(const struct copy *copy, int64_t length)
{
    struct dh_copy_progress *const progress = copy->progress;
    if (!progress->by_hand) {
        const int64_t count = copy_in_kernel(copy, progress->position, length);
        if (count > 0) {
            progress->position += count;
            progress->read += count;
            progress->written += count;
            return 0;
        }
        progress->by_hand = 1;
    }

    const int64_t source_position = copy->offset + progress->position;
    const int64_t target_position = copy->target_offset + progress->position;
    size_t size = length < (int64_t)copy->scratch_size ? (size_t)length : copy->scratch_size;
    size_t done;
    const int result = dh_read(copy->source_fd, copy->scratch, size, source_position, &done);
    if (result < 0 && done == 0) {
        return failed(progress, DH_SIDE_SOURCE, source_position, result);
    }
    size = done; /* what arrived before a failure is still copied; the next read meets the failure again */
    progress->read += (int64_t)size;
    const int64_t written =
        dh_write_sparse_to(copy->target_fd, copy->zero_target, copy->scratch, size, target_position, BLOCK_SIZE, &done);
    progress->position += (int64_t)done;
    if (written < 0) {
        return failed(progress, DH_SIDE_TARGET, target_position + (int64_t)done, (int)written);
    }
    progress->written += written;
    return 0;
}

static int copy_hole(const struct copy *copy, int64_t length)
{
    struct dh_copy_progress *const progress = copy->progress;
    const int64_t target_position = copy->target_offset + progress->position;
    if (copy->zero_target != NULL) {
        int64_t failed_at;
        const int result = dh_zero_target_range(copy->zero_target, target_position, length, &failed_at);
        if (result < 0) {
            return failed(progress, DH_SIDE_TARGET, failed_at, result);
        }
    }
    progress->position += length;
    return 0;
}

/* Copy what is left of the budget, or the range. */
static int copy_extents(const struct copy *copy, int64_t length, int64_t budget)
{
    struct dh_copy_progress *const progress = copy->progress;
    while (progress->position < length) {
        const int64_t position = copy->offset + progress->position;
        int64_t extent_end;
        if (budget <= 0) {
            return 1;
        }
        const int kind = dh_next_extent(copy->source_fd, position, copy->offset + length, &extent_end);
        if (kind < 0) {
            return failed(progress, DH_SIDE_SOURCE, extent_end, kind);
        }
        if (kind == DH_HOLE && copy->zero_target == NULL) {
            progress->position += extent_end - position;
            continue;
        }
        /* The whole of a data extent, so that its end is not searched for once a piece. */
        int64_t left = extent_end - position < budget ? extent_end - position : budget;
        budget -= left;
        while (left > 0) {
            const int64_t before = progress->position;
            const int result = kind == DH_HOLE ? copy_hole(copy, left) : copy_data(copy, left);
            if (result < 0) {
                return result;
            }
            left -= progress->position - before;
        }
    }
    return 0;
}

int dh_copy_range(int source_fd, int target_fd, int64_t offset, int64_t length, int64_t target_offset, int zero_holes, void *scratch,
                  size_t scratch_size, int64_t budget, struct dh_copy_progress *progress)
{
    struct dh_zero_target target;
    const struct copy copy = {
        .source_fd = source_fd,
        .target_fd = target_fd,
        .offset = offset,
        .target_offset = target_offset,
        .scratch = scratch,
        .scratch_size = scratch_size,
        .zero_target = zero_holes ? &target : NULL,
        .progress = progress,
    };
    int result;

    if (!dh_valid_range(offset, length) || !dh_valid_range(target_offset, length) || scratch_size < BLOCK_SIZE || budget <= 0) {
        return failed(progress, DH_SIDE_SOURCE, offset, -EINVAL);
    }
    result = overlaps(source_fd, target_fd, offset, target_offset, length, progress);
    if (result != 0) {
        return result < 0 ? result : failed(progress, DH_SIDE_TARGET, target_offset, -EINVAL);
    }
    if (zero_holes) {
        result = dh_zero_target_init(&target, target_fd);
        if (result < 0) {
            return failed(progress, DH_SIDE_TARGET, target_offset, result);
        }
    }
    return copy_extents(&copy, length, budget);
}

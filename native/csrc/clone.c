/* Sharing blocks between files of one filesystem (reflink). */
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "internal.h"

int dh_clone(int source_fd, int target_fd, int64_t source_offset, int64_t length, int64_t target_offset)
{
    int result;
    if (!dh_valid_range(source_offset, length) || !dh_valid_range(target_offset, length)) {
        return -EINVAL;
    }
    do {
        if (source_offset == 0 && length == 0 && target_offset == 0) {
            result = ioctl(target_fd, FICLONE, source_fd);
        } else {
            struct file_clone_range range = {
                .src_fd = source_fd,
                .src_offset = (uint64_t)source_offset,
                .src_length = (uint64_t)length,
                .dest_offset = (uint64_t)target_offset,
            };
            result = ioctl(target_fd, FICLONERANGE, &range);
        }
    } while (result < 0 && errno == EINTR);
    if (result < 0) {
        /* EINVAL is not among them: it also says that offsets are not aligned, which is the caller's to know. */
        return errno == ENOTTY || errno == ENOSYS ? -EOPNOTSUPP : -errno;
    }
    return 0;
}

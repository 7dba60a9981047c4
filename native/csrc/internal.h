/* What the files of the core share among themselves; not for callers. */
#ifndef DH_INTERNAL_H
#define DH_INTERNAL_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "dh_core.h"

_Static_assert(sizeof(off_t) == 8, "build with _FILE_OFFSET_BITS=64");

/* Is [offset, offset + length) something a file can have? */
static inline int dh_valid_range(int64_t offset, int64_t length)
{
    return offset >= 0 && length >= 0 && length <= INT64_MAX - offset;
}

/* Do these errnos say "not here" rather than "it failed"? EINVAL counts: the arguments were checked before. */
static inline int dh_unsupported(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == ENODEV || error == EINVAL;
}

/* Where the kernel shows an open descriptor: the way to what it refers to, whatever has become of the file's name. */
enum { DH_DESCRIPTOR_PATH_SIZE = sizeof("/proc/self/fd/-2147483648") };
static inline void dh_descriptor_path(int fd, char path[DH_DESCRIPTOR_PATH_SIZE])
{
    (void)snprintf(path, DH_DESCRIPTOR_PATH_SIZE, "/proc/self/fd/%d", fd);
}

typedef int dh_zero_scan(const unsigned char *bytes, size_t length);

/* The kernel's scan; NULL when it is not available. DH_KERNEL_BEST always is. */
dh_zero_scan *dh_find_scan(int kernel);

/* A target whose ranges are made zero: looked at once, and methods that it turned out not to have are not tried again. */
struct dh_zero_target {
    int fd;
    int is_regular;
    int is_block;
    int64_t size; /* regular files: a lower bound, they may grow; block devices: exact */
    int64_t sector; /* ranges for fallocate and ioctl are multiples of this */
    int first_method; /* the best one that is not known to be missing */
};

int dh_zero_target_init(struct dh_zero_target *target, int fd);

/* As dh_zero_range with DH_ZERO_AUTO. */
int dh_zero_target_range(struct dh_zero_target *target, int64_t offset, int64_t length, int64_t *failed_at);

/* dh_write_sparse, with the target looked at already (NULL: zero blocks are left alone). */
int64_t dh_write_sparse_to(int fd, struct dh_zero_target *zero_target, const unsigned char *bytes, size_t length, int64_t offset,
                           size_t block_size, size_t *done);

#endif

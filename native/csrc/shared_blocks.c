/*
 * Whether two files are made of the same blocks: their maps (FIEMAP) are walked side by side.
 *
 * A physical offset says which block it is only where the whole filesystem has one address space of blocks, and the map gives every
 * byte's place in it. That has been looked into for XFS (not for its realtime files, which lie on a device of their own) and for
 * btrfs (whose "physical" offsets are those of the address space that its devices lie under).
 */
#define _GNU_SOURCE
#include <linux/btrfs.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "internal.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

enum { EXTENTS_AT_ONCE = 128 }; /* of one file's map: 7 KiB */

/* Extents whose bytes are elsewhere than the map says, or whose map does not say where. ENCODED ones too: what is compressed there may
 * be a part of a longer run, and the map does not say which. */
static const uint32_t UNTOLD = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED |
                               FIEMAP_EXTENT_DATA_ENCRYPTED | FIEMAP_EXTENT_NOT_ALIGNED | FIEMAP_EXTENT_DATA_INLINE |
                               FIEMAP_EXTENT_DATA_TAIL;

union extent_map {
    struct fiemap head;
    unsigned char bytes[sizeof(struct fiemap) + EXTENTS_AT_ONCE * sizeof(struct fiemap_extent)];
};

/* A file whose map is walked: the part of the map at hand, and the first extent of it that is not behind the walk. */
struct walk {
    int fd;
    int64_t size;
    union extent_map *map;
    uint32_t next;
    int at_end; /* nothing is mapped behind what is at hand */
};

/* From where the walk is up to `end`: zeros (a hole, or blocks never written), or blocks that begin at `physical`. */
struct piece {
    int zeros;
    uint64_t physical;
    int64_t end;
};

static int ioctl_again(int fd, unsigned long request, void *argument)
{
    int result;
    do {
        result = ioctl(fd, request, argument);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

/* 0 when the maps of both files speak of the same blocks, and both files have `size` bytes; else as dh_shared_blocks. */
static int check_comparable(int first_fd, int second_fd, int64_t size, int64_t *position)
{
    struct statfs first, second;
    struct stat first_status, second_status;
    if (fstatfs(first_fd, &first) < 0 || fstatfs(second_fd, &second) < 0 || fstat(first_fd, &first_status) < 0 ||
        fstat(second_fd, &second_status) < 0) {
        return -errno;
    }
    if (!S_ISREG(first_status.st_mode) || !S_ISREG(second_status.st_mode)) {
        return -EOPNOTSUPP;
    }
    const int64_t shorter = first_status.st_size < second_status.st_size ? first_status.st_size : second_status.st_size;
    if (shorter < size) {
        *position = shorter;
        return -ENODATA; /* what is missing at an end must not pass for zeros */
    }
    if (first.f_type != second.f_type) {
        return -EXDEV;
    }
    if (first.f_type == XFS_SUPER_MAGIC) {
        struct fsxattr first_flags, second_flags;
        int result = ioctl_again(first_fd, FS_IOC_FSGETXATTR, &first_flags);
        if (result == 0) {
            result = ioctl_again(second_fd, FS_IOC_FSGETXATTR, &second_flags);
        }
        if (result < 0) {
            return dh_unsupported(-result) ? -EOPNOTSUPP : result;
        }
        if ((first_flags.fsx_xflags | second_flags.fsx_xflags) & FS_XFLAG_REALTIME) {
            return -EOPNOTSUPP;
        }
        return first_status.st_dev == second_status.st_dev ? 0 : -EXDEV;
    }
    if (first.f_type == BTRFS_SUPER_MAGIC) { /* its subvolumes have device numbers of their own */
        struct btrfs_ioctl_fs_info_args first_info, second_info;
        memset(&first_info, 0, sizeof first_info);
        memset(&second_info, 0, sizeof second_info);
        int result = ioctl_again(first_fd, BTRFS_IOC_FS_INFO, &first_info);
        if (result == 0) {
            result = ioctl_again(second_fd, BTRFS_IOC_FS_INFO, &second_info);
        }
        if (result < 0) {
            return dh_unsupported(-result) ? -EOPNOTSUPP : result;
        }
        return memcmp(first_info.fsid, second_info.fsid, sizeof first_info.fsid) == 0 ? 0 : -EXDEV;
    }
    return -EOPNOTSUPP;
}

/* Fetch the map from `position` on, after what is still to be written has been written. */
static int fetch(struct walk *walk, int64_t position)
{
    struct fiemap *head = &walk->map->head;
    memset(head, 0, sizeof *head);
    head->fm_start = (uint64_t)position;
    head->fm_length = (uint64_t)(walk->size - position);
    head->fm_flags = FIEMAP_FLAG_SYNC;
    head->fm_extent_count = EXTENTS_AT_ONCE;
    const int result = ioctl_again(walk->fd, FS_IOC_FIEMAP, head);
    if (result < 0) {
        return result == -EBADR || dh_unsupported(-result) ? -EOPNOTSUPP : result;
    }
    walk->next = 0;
    walk->at_end = head->fm_mapped_extents < EXTENTS_AT_ONCE;
    return 0;
}

/* The extent that holds `position`, or the next one behind it; NULL when there is none. */
static int find(struct walk *walk, int64_t position, const struct fiemap_extent **found)
{
    for (int fetched = 0;; fetched = 1) {
        const struct fiemap *head = &walk->map->head;
        for (; walk->next < head->fm_mapped_extents; walk->next++) {
            const struct fiemap_extent *extent = &head->fm_extents[walk->next];
            if (extent->fe_length > UINT64_MAX - extent->fe_logical) {
                return -EOPNOTSUPP;
            }
            if (extent->fe_logical + extent->fe_length > (uint64_t)position) {
                *found = extent;
                return 0;
            }
        }
        if (walk->at_end) {
            *found = NULL;
            return 0;
        }
        if (fetched) {
            return -EOPNOTSUPP; /* a map that does not get on is no map */
        }
        const int result = fetch(walk, position);
        if (result < 0) {
            return result;
        }
    }
}

static int piece_at(struct walk *walk, int64_t position, struct piece *piece)
{
    const struct fiemap_extent *extent;
    const int result = find(walk, position, &extent);
    if (result < 0) {
        return result;
    }
    piece->zeros = 1;
    piece->physical = 0;
    piece->end = walk->size;
    if (extent == NULL || extent->fe_logical >= (uint64_t)walk->size) {
        return 0;
    }
    if (extent->fe_logical > (uint64_t)position) {
        piece->end = (int64_t)extent->fe_logical;
        return 0;
    }
    const uint64_t end = extent->fe_logical + extent->fe_length;
    piece->end = end < (uint64_t)walk->size ? (int64_t)end : walk->size;
    if (extent->fe_flags & UNTOLD) {
        return -EOPNOTSUPP;
    }
    if (!(extent->fe_flags & FIEMAP_EXTENT_UNWRITTEN)) {
        piece->zeros = 0;
        piece->physical = extent->fe_physical + ((uint64_t)position - extent->fe_logical);
    }
    return 0;
}

int dh_shared_blocks(int first_fd, int second_fd, int64_t size, int64_t *position, int64_t *data)
{
    union extent_map first_map, second_map;
    struct walk first = {.fd = first_fd, .size = size, .map = &first_map};
    struct walk second = {.fd = second_fd, .size = size, .map = &second_map};
    *position = *data = 0;
    if (size < 0) {
        return -EINVAL;
    }
    int result = check_comparable(first_fd, second_fd, size, position);
    if (result < 0 || size == 0) {
        return result < 0 ? result : 1;
    }
    first_map.head.fm_mapped_extents = second_map.head.fm_mapped_extents = 0; /* nothing is at hand yet */
    while (*position < size) {
        struct piece ours, theirs;
        result = piece_at(&first, *position, &ours);
        if (result == 0) {
            result = piece_at(&second, *position, &theirs);
        }
        if (result < 0) {
            return result;
        }
        if (ours.zeros != theirs.zeros || ours.physical != theirs.physical) {
            return 0;
        }
        const int64_t end = ours.end < theirs.end ? ours.end : theirs.end;
        *data += ours.zeros ? 0 : end - *position;
        *position = end;
    }
    return 1;
}

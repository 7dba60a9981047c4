/* Leaving the disk to others. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

/* From linux/ioprio.h, which is younger than the system call. */
enum {
    WHO_PROCESS = 1, /* with 0 the calling thread, in spite of its name */
    CLASS_SHIFT = 13,
    CLASS_NONE = 0,
    CLASS_BEST_EFFORT = 2,
    CLASS_IDLE = 3,
    LOWEST_BEST_EFFORT = 7
};

int dh_set_io_priority(int level)
{
    int priority;
    switch (level) {
    case DH_IO_NORMAL:
        priority = CLASS_NONE << CLASS_SHIFT;
        break;
    case DH_IO_LOW:
        priority = CLASS_BEST_EFFORT << CLASS_SHIFT | LOWEST_BEST_EFFORT;
        break;
    case DH_IO_IDLE:
        priority = CLASS_IDLE << CLASS_SHIFT;
        break;
    default:
        return -EINVAL;
    }
    if (syscall(SYS_ioprio_set, WHO_PROCESS, 0, priority) < 0) {
        return errno == ENOSYS ? -EOPNOTSUPP : -errno;
    }
    return 0;
}

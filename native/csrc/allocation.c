/* What the C library does with memory that was freed. */
#include "internal.h"

#ifdef __GLIBC__
#include <malloc.h>

enum {
    LARGEST = 32 << 20, /* bytes: what is not larger comes from an arena; the most that glibc takes */
    KEPT = 256 << 20, /* bytes at the end of an arena */
    ARENAS = 2
};

int dh_keep_freed_memory(void)
{
    int done = mallopt(M_MMAP_THRESHOLD, LARGEST) && mallopt(M_TRIM_THRESHOLD, KEPT) && mallopt(M_ARENA_MAX, ARENAS);
    return done ? 0 : -EOPNOTSUPP;
}
#else
int dh_keep_freed_memory(void)
{
    return -EOPNOTSUPP;
}
#endif

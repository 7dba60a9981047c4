/*
 * Which bits of a bitmap are clear? Filesystems keep one bit for each block, the lowest bit of a byte first, so that is how bits are
 * counted here, whatever the processor's byte order. Nothing is assumed about alignment, and nothing outside the bitmap is read.
 */
#include <string.h>

#include "internal.h"

/* The 64 bits from bit `64 * index` on, the first one lowest; those beyond `bytes` bytes are clear. */
static inline uint64_t load_bits(const unsigned char *bitmap, size_t bytes, uint64_t index)
{
    uint64_t word = 0;
    size_t offset = (size_t)index * sizeof(word);
    size_t length = bytes - offset < sizeof(word) ? bytes - offset : sizeof(word);
    memcpy(&word, bitmap + offset, length);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The first bit from `position` on that is set (or clear, when `flip` is all ones); `end` when none of them is. */
static uint64_t find_bit(const unsigned char *bitmap, uint64_t position, uint64_t end, uint64_t flip)
{
    size_t bytes = (size_t)((end + 7) / 8);
    uint64_t below = UINT64_MAX << (position % 64); /* the bits of the first word that count */
    for (uint64_t index = position / 64; index * 64 < end; index++) {
        uint64_t word = (load_bits(bitmap, bytes, index) ^ flip) & below;
        if (word != 0) {
            uint64_t found = index * 64 + (uint64_t)__builtin_ctzll(word);
            return found < end ? found : end;
        }
        below = UINT64_MAX;
    }
    return end;
}

int64_t dh_clear_bit_runs(const void *bitmap, size_t length, uint64_t *position, uint64_t end, uint64_t *runs, size_t room)
{
    if (*position > end || end > INT64_MAX || (end + 7) / 8 > length || room == 0) {
        return -EINVAL;
    }
    size_t count = 0;
    while (*position < end && count < room) {
        uint64_t first = find_bit(bitmap, *position, end, UINT64_MAX);
        uint64_t last = first < end ? find_bit(bitmap, first, end, 0) : end;
        if (last > first) {
            runs[2 * count] = first;
            runs[2 * count + 1] = last - first;
            count++;
        }
        *position = last;
    }
    return (int64_t)count;
}

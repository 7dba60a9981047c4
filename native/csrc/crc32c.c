/*
 * CRC-32C (Castagnoli; RFC 3720, appendix B.4), the checksum of metadata in XFS, btrfs and ext4. With the processor's instruction where
 * there is one, else eight bits at a time from a table that is made anew on each call: it costs as much as a few hundred bytes.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

enum { POLYNOMIAL_BITS = 8, TABLE_SIZE = 1 << POLYNOMIAL_BITS };

uint32_t dh_crc32c_table(uint32_t crc, const void *buffer, size_t length)
{
    const unsigned char *bytes = buffer;
    uint32_t table[TABLE_SIZE];
    for (uint32_t i = 0; i < TABLE_SIZE; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < POLYNOMIAL_BITS; bit++) {
            value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78U : 0);
        }
        table[i] = value;
    }
    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc = (crc >> POLYNOMIAL_BITS) ^ table[(crc ^ bytes[i]) & (TABLE_SIZE - 1)];
    }
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const unsigned char *bytes, size_t length)
{
    uint64_t wide = (uint32_t)~crc;
    size_t i = 0;
    for (; length - i >= sizeof(uint64_t); i += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof(word));
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; i < length; i++) {
        crc = _mm_crc32_u8(crc, bytes[i]);
    }
    return ~crc;
}
#endif

uint32_t dh_crc32c(uint32_t crc, const void *buffer, size_t length)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        return crc32c_sse42(crc, buffer, length);
    }
#endif
    return dh_crc32c_table(crc, buffer, length);
}

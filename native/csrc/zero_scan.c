/*
 * Is a buffer all zeros? All kernels stop at the first stride that is not; the ones for wide registers leave what is shorter than a
 * stride to the word kernel. Nothing is assumed about alignment.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static int scan_scalar(const unsigned char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] != 0) {
            return 0;
        }
    }
    return 1;
}

static int scan_word(const unsigned char *bytes, size_t length)
{
    uint64_t words[8];
    size_t i = 0;
    for (; length - i >= sizeof(words); i += sizeof(words)) {
        memcpy(words, bytes + i, sizeof(words)); /* the compiler makes loads of this; a cast would be an unaligned access */
        if ((words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) != 0) {
            return 0;
        }
    }
    return scan_scalar(bytes + i, length - i);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int scan_avx2(const unsigned char *bytes, size_t length)
{
    size_t i = 0;
    for (; length - i >= 128; i += 128) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + i));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + i + 32));
        const __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + i + 64));
        const __m256i d = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + i + 96));
        const __m256i any = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
        if (!_mm256_testz_si256(any, any)) {
            return 0;
        }
    }
    return scan_word(bytes + i, length - i);
}
#endif

#if defined(__aarch64__)
static int scan_neon(const unsigned char *bytes, size_t length)
{
    size_t i = 0;
    for (; length - i >= 64; i += 64) {
        const uint8x16_t a = vorrq_u8(vld1q_u8(bytes + i), vld1q_u8(bytes + i + 16));
        const uint8x16_t b = vorrq_u8(vld1q_u8(bytes + i + 32), vld1q_u8(bytes + i + 48));
        if (vmaxvq_u8(vorrq_u8(a, b)) != 0) {
            return 0;
        }
    }
    return scan_word(bytes + i, length - i);
}
#endif

/* NULL when this build or this processor does not have the kernel. */
static dh_zero_scan *find_scan(int kernel)
{
    switch (kernel) {
    case DH_KERNEL_SCALAR:
        return scan_scalar;
    case DH_KERNEL_WORD:
        return scan_word;
#if defined(__x86_64__)
    case DH_KERNEL_AVX2:
        return __builtin_cpu_supports("avx2") ? scan_avx2 : NULL;
#endif
#if defined(__aarch64__)
    case DH_KERNEL_NEON:
        return scan_neon; /* every 64-bit ARM processor has it */
#endif
    default:
        return NULL;
    }
}

dh_zero_scan *dh_best_scan(void)
{
    for (int kernel = DH_KERNEL_COUNT - 1; kernel > DH_KERNEL_SCALAR; kernel--) {
        dh_zero_scan *const scan = find_scan(kernel);
        if (scan != NULL) {
            return scan;
        }
    }
    return scan_scalar;
}

const char *dh_kernel_name(int kernel)
{
    switch (kernel) {
    case DH_KERNEL_SCALAR:
        return "scalar";
    case DH_KERNEL_WORD:
        return "word";
    case DH_KERNEL_AVX2:
        return "avx2";
    case DH_KERNEL_NEON:
        return "neon";
    default:
        return NULL;
    }
}

int dh_kernel_available(int kernel)
{
    return find_scan(kernel) != NULL;
}

int dh_is_zero(int kernel, const void *buffer, size_t length)
{
    dh_zero_scan *const scan = kernel == DH_KERNEL_BEST ? dh_best_scan() : find_scan(kernel);
    return scan == NULL ? -EOPNOTSUPP : scan(buffer, length);
}

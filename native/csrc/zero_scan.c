/*
 * Is a buffer all zeros? And, for comparison, what merely reading it costs. All kernels stop within a few hundred bytes of the first one
 * that is not zero. Nothing is assumed about alignment, and nothing outside the buffer is read.
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

static inline uint64_t load_word(const unsigned char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof(word)); /* the compiler makes a load of this; a cast would be an unaligned access */
    return word;
}

/* For what is shorter than a register. */
static inline int scan_short(const unsigned char *bytes, size_t length)
{
    size_t i = 0;
    for (; length - i >= sizeof(uint64_t); i += sizeof(uint64_t)) {
        if (load_word(bytes + i) != 0) {
            return 0;
        }
    }
    return scan_scalar(bytes + i, length - i);
}

static uint64_t sum_short(const unsigned char *bytes, size_t length)
{
    uint64_t total = 0;
    uint64_t last = 0;
    size_t i = 0;
    for (; length - i >= sizeof(uint64_t); i += sizeof(uint64_t)) {
        total += load_word(bytes + i);
    }
    memcpy(&last, bytes + i, length - i);
    return total + last;
}

#define KERNEL(name) name##_word
#define WIDTH 16 /* what every 64-bit processor with vectors has; the compiler makes words of it elsewhere */
#define TARGET
#define ANY_BIT(v) (((v)[0] | (v)[1]) != 0)
#include "zero_scan_kernel.h"

#if defined(__x86_64__)
#define KERNEL(name) name##_avx2
#define WIDTH 32
#define TARGET __attribute__((target("avx2")))
#define ANY_BIT(v) (!_mm256_testz_si256((__m256i)(v), (__m256i)(v)))
#include "zero_scan_kernel.h"

#define KERNEL(name) name##_avx512
#define WIDTH 64
#define TARGET __attribute__((target("avx512f")))
#define ANY_BIT(v) (_mm512_test_epi64_mask((__m512i)(v), (__m512i)(v)) != 0)
#include "zero_scan_kernel.h"
#endif

#if defined(__aarch64__)
#define KERNEL(name) name##_neon
#define WIDTH 16
#define TARGET
#define ANY_BIT(v) (vmaxvq_u32(vreinterpretq_u32_u64((uint64x2_t)(v))) != 0)
#include "zero_scan_kernel.h"
#endif

struct kernel {
    dh_zero_scan *scan; /* NULL when this build or this processor does not have it */
    uint64_t (*sum)(const unsigned char *bytes, size_t length);
};

static struct kernel find_kernel(int number)
{
    switch (number) {
    case DH_KERNEL_SCALAR:
        return (struct kernel){scan_scalar, sum_short};
    case DH_KERNEL_WORD:
        return (struct kernel){scan_word, sum_word};
#if defined(__x86_64__)
    /* What the operating system does not save when it switches threads does not count as supported. */
    case DH_KERNEL_AVX2:
        return __builtin_cpu_supports("avx2") ? (struct kernel){scan_avx2, sum_avx2} : (struct kernel){NULL, NULL};
    case DH_KERNEL_AVX512:
        return __builtin_cpu_supports("avx512f") ? (struct kernel){scan_avx512, sum_avx512} : (struct kernel){NULL, NULL};
#endif
#if defined(__aarch64__)
    case DH_KERNEL_NEON:
        return (struct kernel){scan_neon, sum_neon}; /* every 64-bit ARM processor has it */
#endif
    default:
        return (struct kernel){NULL, NULL};
    }
}

int dh_best_kernel(void)
{
    int kernel = DH_KERNEL_COUNT - 1;
    while (find_kernel(kernel).scan == NULL) {
        kernel--;
    }
    return kernel;
}

dh_zero_scan *dh_find_scan(int kernel)
{
    return find_kernel(kernel == DH_KERNEL_BEST ? dh_best_kernel() : kernel).scan;
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
    case DH_KERNEL_AVX512:
        return "avx512";
    case DH_KERNEL_NEON:
        return "neon";
    default:
        return NULL;
    }
}

int dh_kernel_available(int kernel)
{
    return find_kernel(kernel).scan != NULL;
}

int dh_is_zero(int kernel, const void *buffer, size_t length)
{
    dh_zero_scan *const scan = dh_find_scan(kernel);
    return scan == NULL ? -EOPNOTSUPP : scan(buffer, length);
}

int dh_sum_words(int kernel, const void *buffer, size_t length, uint64_t *sum)
{
    const struct kernel found = find_kernel(kernel == DH_KERNEL_BEST ? dh_best_kernel() : kernel);
    if (found.sum == NULL) {
        return -EOPNOTSUPP;
    }
    *sum = found.sum(buffer, length);
    return 0;
}

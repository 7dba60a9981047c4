/*
 * One zero scan and one sum for registers of a given width; zero_scan.c includes this once for each kind. No include guard, for that.
 *
 *   KERNEL(name)   the name with the kernel's in it
 *   WIDTH          bytes of a register
 *   TARGET         attribute that lets the compiler use it
 *   ANY_BIT(v)     is any bit set?
 *
 * Eight registers are filled in each round, one after the other in the order of the addresses: hardware prefetchers follow that, and not
 * the order that the compiler likes for a tree of ORs (measured: a quarter slower out of cache). That is what the accumulators are
 * for: carried from round to round they are not rearranged, and zero at the end of each. Software prefetches made everything slower.
 */

typedef uint64_t KERNEL(lanes) __attribute__((vector_size(WIDTH)));

TARGET static inline KERNEL(lanes) KERNEL(fill)(const unsigned char *bytes)
{
    KERNEL(lanes) lanes;
    memcpy(&lanes, bytes, sizeof(lanes));
    return lanes;
}

TARGET static int KERNEL(scan)(const unsigned char *bytes, size_t length)
{
    const unsigned char *const end = bytes + length;
    KERNEL(lanes) a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;

    if (length < WIDTH) {
        return scan_short(bytes, length);
    }
    if (ANY_BIT(KERNEL(fill)(bytes))) {
        return 0;
    }
    /* From the first boundary on: no load touches two cache lines. The last register overlaps the one before. */
    bytes += WIDTH - (uintptr_t)bytes % WIDTH;
    for (; (size_t)(end - bytes) >= (size_t)8 * WIDTH; bytes += 8 * WIDTH) {
        const unsigned char *const aligned = __builtin_assume_aligned(bytes, WIDTH);
        a |= KERNEL(fill)(aligned);
        b |= KERNEL(fill)(aligned + 1 * WIDTH);
        c |= KERNEL(fill)(aligned + 2 * WIDTH);
        d |= KERNEL(fill)(aligned + 3 * WIDTH);
        e |= KERNEL(fill)(aligned + 4 * WIDTH);
        f |= KERNEL(fill)(aligned + 5 * WIDTH);
        g |= KERNEL(fill)(aligned + 6 * WIDTH);
        h |= KERNEL(fill)(aligned + 7 * WIDTH);
        const KERNEL(lanes) any = ((a | b) | (c | d)) | ((e | f) | (g | h));
        if (ANY_BIT(any)) {
            return 0;
        }
    }
    for (; end - bytes >= WIDTH; bytes += WIDTH) {
        if (ANY_BIT(KERNEL(fill)(bytes))) {
            return 0;
        }
    }
    const KERNEL(lanes) last = KERNEL(fill)(end - WIDTH);
    return !ANY_BIT(last);
}

TARGET static uint64_t KERNEL(sum)(const unsigned char *bytes, size_t length)
{
    const unsigned char *const end = bytes + length;
    KERNEL(lanes) a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    uint64_t total = 0;

    for (; (size_t)(end - bytes) >= (size_t)8 * WIDTH; bytes += 8 * WIDTH) {
        a += KERNEL(fill)(bytes);
        b += KERNEL(fill)(bytes + 1 * WIDTH);
        c += KERNEL(fill)(bytes + 2 * WIDTH);
        d += KERNEL(fill)(bytes + 3 * WIDTH);
        e += KERNEL(fill)(bytes + 4 * WIDTH);
        f += KERNEL(fill)(bytes + 5 * WIDTH);
        g += KERNEL(fill)(bytes + 6 * WIDTH);
        h += KERNEL(fill)(bytes + 7 * WIDTH);
    }
    a = ((a + b) + (c + d)) + ((e + f) + (g + h));
    for (size_t i = 0; i < WIDTH / sizeof(total); i++) {
        total += a[i];
    }
    return total + sum_short(bytes, (size_t)(end - bytes));
}

#undef KERNEL
#undef WIDTH
#undef TARGET
#undef ANY_BIT

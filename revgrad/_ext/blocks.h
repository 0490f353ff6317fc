/* Loops over many elements, in the instruction set of REVGRAD_ISA; their results are ratio.h's.
 *
 * No include guard: kernels.h takes this file once per instruction set. Elements are multiplied in
 * index order and divided in the opposite order, LANES at a time where a vector can, and one by one
 * by ratio.h at the ends, where a vector must refuse, and for n or d above SMALL.
 *
 * BLOCKS_EXACT: with up = above(1/k), 1/k < up < (1/k)*(1 + 1.5*2^-51), rounding included, and
 * integers 0 <= z < 2^50, 1 <= k <= SMALL:  z div k <= z*up < z/k + 1/k, so floor(z*up) = z div k;
 * and z*up is no integer unless z = 0. Here z < LOW*WORD*k <= 2^50.
 */
#include "lanes.h"

#ifdef LANES

/* What a vector of elements is multiplied by. */
typedef struct {
    vi n, d;
    vf n_up, d_up;
} NAME(ratios);

INLINE vf NAME(above)(vi k)
{
    return every_real(1.0) / small_real(k) * every_real(1.0 + 0x1p-51);
}

/* x div d and *r = x mod d, rounded down, for every int64 x and d <= SMALL; up = above(d).
 * first + LAG misses x/d by at most 2^12 + 2^63/d * 1.5*2^-51 < LAG, so that 0 <= x - first*d < 2^32
 * and its low half says all. Wrapping, at the ends of int64, is harmless. */
INLINE vi NAME(floor_divide)(vi x, vi d, vf up, vi *r)
{
    vi first = coarse(real(x), up);
    vi rest = (x - times_low(first, d)) & LOW_HALF;
    vi second = floor_times(small_real(rest), up);
    *r = rest - times_low(second, d);
    return first + second;
}

INLINE NAME(ratios) NAME(only_ratio)(columns c)
{
    NAME(ratios) by;
    by.n = every(*c.n);
    by.d = every(*c.d);
    by.n_up = NAME(above)(by.n);
    by.d_up = NAME(above)(by.d);
    return by;
}

/* Takes what there is one of per element; the compiler cannot know that x is not n. */
INLINE void NAME(next_ratios)(NAME(ratios) *by, columns c, int64_t i, int many_n, int many_d)
{
    if (many_n) {
        by->n = load_u32(c.n + i);
        by->n_up = NAME(above)(by->n);
    }
    if (many_d) {
        by->d = load_u32(c.d + i);
        by->d_up = NAME(above)(by->d);
    }
}

/* One vector of ratio_multiply. usual: d = 2^USUAL_BITS in all lanes. */
INLINE int64_t NAME(multiply_lanes)(int64_t *x, uint32_t *head, NAME(ratios) by, int usual,
                                    uint16_t *words, int64_t count)
{
    vi old = load(x), h = load_u32(head), q, r, z;
    vm spilled;
    if (usual) {
        q = shift_signed(old, USUAL_BITS);
        z = shift_left(h, USUAL_BITS) | (old & (by.d - every(1)));
    } else {
        q = NAME(floor_divide)(old, by.d, by.d_up, &r);
        z = times_low(h, by.d) + r;
    }
    /* z >= LOW*WORD*n */
    spilled = below(shift_left(by.n, RATIO_LOW_BITS + RATIO_WORD_BITS) - every(1), z);
    /* without a branch: one that is not foreseen costs 15 ns, at 0.9 every fourteenth vector */
    push_words(words + count, spilled, z);
    count += how_many(spilled);
    z = choose(spilled, shift_right(z, RATIO_WORD_BITS), z);
    h = floor_times(small_real(z), by.n_up);
    store(x, times(q - h, by.n) + z); /* q*n + (z - h*n) */
    store_u32(head, h);
    return count;
}

/* One vector of ratio_divide; -1 with nothing changed where ratio.h has to see to it. */
INLINE int64_t NAME(divide_lanes)(int64_t *x, uint32_t *head, NAME(ratios) by, int usual,
                                  const uint16_t *words, int64_t count)
{
    vi h = load_u32(head), s, z, new_h, new_x;
    vi q = NAME(floor_divide)(load(x), by.n, by.n_up, &s);
    vm spilled;
    int popped;
    vi least = times_low(h, by.n), threshold = shift_left(by.d, RATIO_LOW_BITS);
    /* z in [least, least + n): known from the head alone, long before s, but for one head */
    spilled = below(least, threshold);
    if (!none(differ_masks(spilled, below(least + by.n - every(1), threshold))))
        return -1;
    popped = how_many(spilled);
    z = least + s;
    if (popped) {
        if (!can_pop(count, popped))
            return -1;
        z = choose(spilled, shift_left(z, RATIO_WORD_BITS)
                                | pop_words(words, count, spilled, popped), z);
        count -= popped;
    }
    if (usual) {
        new_h = shift_right(z, USUAL_BITS);
        new_x = shift_left(q, USUAL_BITS) | (z & (by.d - every(1)));
        if (!none(differ(shift_signed(new_x, USUAL_BITS), q)))
            return -1;
    } else {
        /* q*d + r in halves, as ratio_join; high fits in 32 signed bits or x is no int64 */
        vi low, high;
        new_h = floor_times(small_real(z), by.d_up);
        low = times_low(q, by.d) + (z - times_low(new_h, by.d));
        high = times(shift_signed(q, 32), by.d) + shift_right(low, 32);
        if (!none(differ(shift_signed(shift_left(high, 32), 32), high)))
            return -1;
        new_x = shift_left(high, 32) | (low & LOW_HALF);
    }
    store(x, new_x);
    store_u32(head, new_h);
    return count;
}

INLINE int64_t NAME(multiply_vectors)(int64_t *x, uint32_t *heads, columns c, int64_t *from,
                                      int64_t size, uint16_t *words, int64_t count,
                                      int many_n, int many_d, int usual)
{
    NAME(ratios) by = NAME(only_ratio)(c);
    int64_t i;
    for (i = 0; i + LANES <= size; i += LANES) {
        NAME(next_ratios)(&by, c, i, many_n, many_d);
        count = NAME(multiply_lanes)(x + i, heads + i, by, usual, words, count);
    }
    *from = i;
    return count;
}

/* Elements [0, *left), *left a multiple of LANES, from the last; *left is what a vector refused. */
INLINE int64_t NAME(divide_vectors)(int64_t *x, uint32_t *heads, columns c, int64_t *left,
                                    const uint16_t *words, int64_t count,
                                    int many_n, int many_d, int usual)
{
    NAME(ratios) by = NAME(only_ratio)(c);
    int64_t i, now;
    for (i = *left; i > 0; i -= LANES) {
        NAME(next_ratios)(&by, c, i - LANES, many_n, many_d);
        now = NAME(divide_lanes)(x + i - LANES, heads + i - LANES, by, usual, words, count);
        if (now < 0)
            break;
        count = now;
    }
    *left = i;
    return count;
}

/* The loops are compiled apart for one ratio or many, and for the usual d. */
#define EACH_KIND(loop, ...) \
    (c.d_many ? (c.n_many ? loop(__VA_ARGS__, 1, 1, 0) : loop(__VA_ARGS__, 0, 1, 0)) \
     : c.usual ? (c.n_many ? loop(__VA_ARGS__, 1, 0, 1) : loop(__VA_ARGS__, 0, 0, 1)) \
               : (c.n_many ? loop(__VA_ARGS__, 1, 0, 0) : loop(__VA_ARGS__, 0, 0, 0)))

#endif /* LANES */

static int64_t NAME(multiply)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                              uint16_t *words, int64_t count)
{
    ratio_divisor n = divisor_at(c.n, c.n_many), d = divisor_at(c.d, c.d_many);
    int64_t i = 0;
#ifdef LANES
    if (c.small)
        count = EACH_KIND(NAME(multiply_vectors), x, heads, c, &i, size, words, count);
#endif
    if (c.usual && !c.n_many)
        for (; i < size; i++)
            count = ratio_multiply(&x[i], &heads[i], n, usual_divisor(), words, count);
    for (; i < size; i++) {
        next_divisors(&n, &d, c, i);
        count = ratio_multiply(&x[i], &heads[i], n, d, words, count);
    }
    return count;
}

static int64_t NAME(divide)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                            const uint16_t *words, int64_t count, int64_t *failed)
{
    ratio_divisor n = divisor_at(c.n, c.n_many), d = divisor_at(c.d, c.d_many);
    int64_t i = size, now;
    while (i > 0) {
#ifdef LANES
        if (c.small && i % LANES == 0) {
            count = EACH_KIND(NAME(divide_vectors), x, heads, c, &i, words, count);
            if (i == 0)
                break;
        }
#endif
        next_divisors(&n, &d, c, i - 1);
        now = ratio_divide(&x[i - 1], &heads[i - 1], n, d, words, count);
        if (now < 0)
            break;
        count = now;
        i--;
    }
    *failed = i - 1;
    return count;
}

/* x <- x + sign*rint(delta*scale) mod 2^64, whatever comes; the same call with -sign is the undo.
 * Returns whether some delta was not finite or some sum left int64. */
INLINE int NAME(add_as)(int64_t *x, const void *delta, int64_t size, double scale, int sign,
                        int is_float)
{
    const float *floats = (const float *)delta;
    const double *reals = (const double *)delta;
    int64_t i = 0;
    int bad = 0;
#ifdef LANES
    vi wrapped = every(0);
    for (; i + LANES <= size; i += LANES) {
        vf scaled = (is_float ? load_floats(floats + i) : load_reals(reals + i)) * every_real(scale);
        vi old = load(x + i), v = round_to_even(scaled);
        vi sum = sign > 0 ? old + v : old - v;
        /* the summands agree in sign and the sum does not; all ones where v is no int64 */
        vi against = sign > 0 ? v ^ sum : old ^ v;
        wrapped = wrapped | ((old ^ sum) & against) | lanes_as_ones(not_encodable(scaled));
        store(x + i, sum);
    }
    bad = !none(negative(wrapped));
#endif
    for (; i < size; i++) {
        int64_t v = 0;
        bad |= !fixed_encode(is_float ? floats[i] : reals[i], scale, &v);
        bad |= !fixed_sum(x[i], v, sign, &x[i]);
    }
    return bad;
}

static int NAME(add)(int64_t *x, const void *delta, int64_t size, double scale, int sign,
                     int is_float)
{
    if (is_float)
        return sign > 0 ? NAME(add_as)(x, delta, size, scale, 1, 1)
                        : NAME(add_as)(x, delta, size, scale, -1, 1);
    return sign > 0 ? NAME(add_as)(x, delta, size, scale, 1, 0)
                    : NAME(add_as)(x, delta, size, scale, -1, 0);
}

/* out <- x*ulp, rounded to double and then to float where is_float */
INLINE void NAME(decode_as)(const int64_t *x, double ulp, int64_t size, void *out, int is_float)
{
    float *floats = (float *)out;
    double *reals = (double *)out;
    int64_t i = 0;
#ifdef LANES
    for (; i + LANES <= size; i += LANES) {
        vf value = real(load(x + i)) * every_real(ulp);
        if (is_float)
            store_floats(floats + i, value);
        else
            store_reals(reals + i, value);
    }
#endif
    for (; i < size; i++) {
        double value = (double)x[i] * ulp;
        if (is_float)
            floats[i] = (float)value;
        else
            reals[i] = value;
    }
}

static void NAME(decode)(const int64_t *x, double ulp, int64_t size, void *out, int is_float)
{
    if (is_float)
        NAME(decode_as)(x, ulp, size, out, 1);
    else
        NAME(decode_as)(x, ulp, size, out, 0);
}

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
    vi old = load(x), h = load_u32(head), threshold = shift_left(by.d, RATIO_LOW_BITS);
    /* floor_divide, but that q is left with FLOOR_BITS added */
    vi first = coarse(real(old), by.n_up);
    vi rest = (old - times_low(first, by.n)) & LOW_HALF;
    vi second = floor_bits(small_real(rest), by.n_up);
    vi q = first + second, least = times_low(h, by.n), new_h, new_x;
    vi z = least + (rest - times_low(second, by.n));
    /* z in [least, least + n): known from the head alone, long before z, but for one head */
    vm spilled = below(least, threshold);
    int popped = how_many(spilled);
    if (popped) {
        if (!can_pop(count, popped) || !all_of(spilled, below(z, threshold)))
            return -1;
        z = choose(spilled, shift_left(z, RATIO_WORD_BITS)
                                | pop_words(words, count, spilled, popped), z);
        count -= popped;
    }
    if (usual) {
        /* q in [-2^(63 - USUAL_BITS), 2^(63 - USUAL_BITS)) or x is no int64; << drops FLOOR_BITS */
        if (any_bit(q + every((1ll << (63 - USUAL_BITS)) - FLOOR_BITS),
                    every(~((1ll << (64 - USUAL_BITS)) - 1))))
            return -1;
        new_h = shift_right(z, USUAL_BITS);
        new_x = shift_left(q, USUAL_BITS) | (z & (by.d - every(1)));
    } else {
        /* q*d + r in halves, as ratio_join; high fits in 32 signed bits or x is no int64 */
        vi low, high;
        q = q - every(FLOOR_BITS);
        new_h = floor_bits(small_real(z), by.d_up);
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
    for (i = *from; i + LANES <= size; i += LANES) {
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

INLINE int64_t NAME(multiply_alike)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                                    uint16_t *words, int64_t count)
{
    ratio_divisor n = divisor_at(c.n, c.n_many), d = divisor_at(c.d, c.d_many);
    int64_t i = 0;
#ifdef LANES
    if (c.small && c.usual && !c.n_many) /* until x is aligned */
        for (; i < size && ((uintptr_t)(x + i) & (LANES * 8 - 1)); i++)
            count = ratio_multiply(&x[i], &heads[i], n, usual_divisor(), words, count);
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

static int64_t NAME(multiply)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                              uint16_t *words, int64_t count)
{
    int64_t lo, hi;
    for (lo = 0; lo < size; lo = hi) {
        columns part;
        hi = size;
        part = columns_alike(c, &lo, &hi, 1);
        count = NAME(multiply_alike)(x + lo, heads + lo, part, hi - lo, words, count);
    }
    return count;
}

/* Elements [0, *left), from the last, one by one, until one refuses or (stop) until whole vectors are
 * left; all have one ratio where there are not many. */
INLINE int64_t NAME(divide_ones)(int64_t *x, uint32_t *heads, columns c, int64_t *left,
                                 const uint16_t *words, int64_t count, ratio_divisor n,
                                 ratio_divisor d, int many, int stop)
{
    int64_t i = *left, now;
    do {
        if (many)
            next_divisors(&n, &d, c, i - 1);
        now = ratio_divide(&x[i - 1], &heads[i - 1], n, d, words, count);
        if (now < 0)
            break;
        count = now;
        i--;
    } while (i > 0 && (i & (stop - 1)));
    *left = i;
    return now < 0 ? -1 : count;
}

INLINE int64_t NAME(divide_alike)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                                  const uint16_t *words, int64_t count, int64_t *failed)
{
    ratio_divisor n = divisor_at(c.n, c.n_many), d = divisor_at(c.d, c.d_many);
    int64_t i = size, now;
#ifdef LANES
    const int stop = c.small ? LANES : 1 << 30;
#else
    const int stop = 1 << 30;
#endif
    while (i > 0) {
#ifdef LANES
        if (c.small && i % LANES == 0) {
            count = EACH_KIND(NAME(divide_vectors), x, heads, c, &i, words, count);
            if (i == 0)
                break;
        }
#endif
        now = c.n_many || c.d_many
                  ? NAME(divide_ones)(x, heads, c, &i, words, count, n, d, 1, stop)
              : c.usual
                  ? NAME(divide_ones)(x, heads, c, &i, words, count, n, usual_divisor(), 0, stop)
                  : NAME(divide_ones)(x, heads, c, &i, words, count, n, d, 0, stop);
        if (now < 0)
            break;
        count = now;
    }
    *failed = i - 1;
    return count;
}

static int64_t NAME(divide)(int64_t *x, uint32_t *heads, columns c, int64_t size,
                            const uint16_t *words, int64_t count, int64_t *failed)
{
    int64_t lo, hi;
    *failed = -1;
    for (hi = size; hi > 0 && *failed < 0; hi = lo) {
        columns part;
        lo = 0;
        part = columns_alike(c, &lo, &hi, 0);
        count = NAME(divide_alike)(x + lo, heads + lo, part, hi - lo, words, count, failed);
        if (*failed >= 0)
            *failed += lo;
    }
    return count;
}

/* How many words dividing would take: known from the heads alone, but for one head in each case. */
static int64_t NAME(count_pops)(const int64_t *x, const uint32_t *heads, columns c, int64_t size)
{
    int64_t i = 0, j, count = 0, left;
    while (i < size) {
        left = size;
#ifdef LANES
        vi n = every(*c.n), threshold = shift_left(every(*c.d), RATIO_LOW_BITS);
        for (; i + LANES <= size; i += LANES) {
            vi least;
            vm pops;
            if (c.n_many)
                n = load_u32(c.n + i);
            if (c.d_many)
                threshold = shift_left(load_u32(c.d + i), RATIO_LOW_BITS);
            least = times_low(load_u32(heads + i), n);
            pops = below(least, threshold);
            if (!none(differ_masks(pops, below(least + n - every(1), threshold)))) {
                left = i + LANES;
                break;
            }
            count += how_many(pops);
        }
#endif
        for (j = i; j < left; j++) {
            uint64_t n_j = c.n[c.n_many ? j : 0], d_j = c.d[c.d_many ? j : 0];
            uint64_t least_j = heads[j] * n_j;
            int64_t s = 0;
            if (least_j < RATIO_LOW * d_j && least_j + n_j > RATIO_LOW * d_j)
                ratio_floor_divide(x[j], ratio_divisor_once((int64_t)n_j), &s);
            count += least_j + (uint64_t)s < RATIO_LOW * d_j;
        }
        i = left;
    }
    return count;
}

/* Element i of add_as. */
INLINE int NAME(add_one)(int64_t *x, real_source from, double scale, int sign, int kind, int how,
                         int64_t i)
{
    double read = kind == FROM_FLOATS ? ((const float *)from.at)[i]
                  : kind == FROM_DOUBLES ? ((const double *)from.at)[i]
                                         : (double)((const int64_t *)from.at)[i] * from.ulp;
    int64_t v = 0;
    int bad;
    read = how == BY_TIMES ? read * from.by[i] : how == BY_OVER ? read / from.by[i] : read;
    bad = !fixed_encode(read * from.factor, scale, &v);
    bad |= !fixed_sum(x[i], v, sign, &x[i]);
    if (from.floats)
        from.floats[i] = (float)((double)x[i] * from.sum_ulp);
    else if (from.doubles)
        from.doubles[i] = (double)x[i] * from.sum_ulp;
    return bad;
}

/* x <- x + sign*rint(delta*scale) mod 2^64, whatever comes; the same call with -sign is the undo.
 * delta: the doubles, the floats, or the decoded integers (times ulp) at `from`, times or over the
 * doubles at `by` where there are, times factor. Returns whether some delta was not finite or some sum left
 * int64. */
INLINE int NAME(add_as)(int64_t *x, real_source from, int64_t size, double scale, int sign, int kind,
                        int how)
{
    int64_t i = 0;
    int bad = 0;
#ifdef LANES
    const float *floats = (const float *)from.at;
    const double *reals = (const double *)from.at;
    const int64_t *integers = (const int64_t *)from.at;
    const double factor = from.factor, ulp = from.ulp;
    /* scale and ulp are powers of 2: in one factor with the other they round nothing differently but
     * what is 0 ulp, unless that factor itself over- or underflows */
    const double at_once = factor * scale
                           * (kind == FROM_INTEGERS && how == BY_FACTOR ? ulp : 1.0);
    const double size_of_it = __builtin_fabs(at_once);
    const int whole = factor == 0.0 || (size_of_it > 0x1p-900 && size_of_it < 0x1p900);
    vi wrapped = every(0);
    /* until x is aligned: a vector that lies in two lines of the cache is stored twice */
    for (; whole && i < size && ((uintptr_t)(x + i) & (LANES * 8 - 1)); i++)
        bad |= NAME(add_one)(x, from, scale, sign, kind, how, i);
    for (; whole && i + LANES <= size; i += LANES) {
        vi old = load(x + i), v, sum;
        vf scaled;
        if (kind == FROM_FLOATS)
            scaled = load_floats(floats + i);
        else if (kind == FROM_DOUBLES)
            scaled = load_reals(reals + i);
        else
            scaled = real(load(integers + i));
        if (kind == FROM_INTEGERS && how != BY_FACTOR)
            scaled = scaled * every_real(ulp);
        if (how == BY_TIMES)
            scaled = scaled * load_reals(from.by + i);
        else if (how == BY_OVER)
            scaled = scaled / load_reals(from.by + i);
        scaled = scaled * every_real(at_once);
        v = round_to_even(scaled);
        sum = sign > 0 ? old + v : old - v;
        /* the summands agree in sign and the sum does not; all ones where v is no int64 */
        vi against = sign > 0 ? v ^ sum : old ^ v;
        wrapped = wrapped | ((old ^ sum) & against);
        if (in_doubt(v))
            wrapped = wrapped | lanes_as_ones(not_encodable(scaled));
        store(x + i, sum);
        if (from.floats)
            store_floats(from.floats + i, real(sum) * every_real(from.sum_ulp));
        else if (from.doubles)
            store_reals(from.doubles + i, real(sum) * every_real(from.sum_ulp));
    }
    bad |= !none(negative(wrapped));
#endif
    for (; i < size; i++)
        bad |= NAME(add_one)(x, from, scale, sign, kind, how, i);
    return bad;
}

#define ADD_HOW(sign, kind) \
    (from.how == BY_FACTOR ? NAME(add_as)(x, from, size, scale, sign, kind, BY_FACTOR) \
     : from.how == BY_TIMES ? NAME(add_as)(x, from, size, scale, sign, kind, BY_TIMES) \
                            : NAME(add_as)(x, from, size, scale, sign, kind, BY_OVER))
#define ADD_KIND(sign) \
    (from.kind == FROM_FLOATS ? NAME(add_as)(x, from, size, scale, sign, FROM_FLOATS, BY_FACTOR) \
     : from.kind == FROM_DOUBLES ? ADD_HOW(sign, FROM_DOUBLES) : ADD_HOW(sign, FROM_INTEGERS))
static int NAME(add)(int64_t *x, real_source from, int64_t size, double scale, int sign)
{
    return sign > 0 ? ADD_KIND(1) : ADD_KIND(-1);
}
#undef ADD_HOW
#undef ADD_KIND

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

/* fused: operations on FUSED_BLOCK elements at a time, so that all they touch stays in cache. */
#define EACH(value) \
    NO_OVERLAP for (j = 0; j < size; j++) out[j] = value
#define REALS2(value_of) \
    if (sa && sb) EACH(value_of(a[j], b[j])); \
    else if (sa) EACH(value_of(a[j], one)); \
    else EACH(value_of(only, b[j])); \
    break
#define PLUS(u, v) ((u) + (v))
#define MINUS(u, v) ((u) - (v))
#define TIMES(u, v) ((u) * (v))
#define OVER(u, v) ((u) / (v))
#define GREATER(u, v) ((u) > (v) ? 1.0 : 0.0)
#define LESS(u, v) ((u) < (v) ? 1.0 : 0.0)
#define EQUAL(u, v) ((u) == (v) ? 1.0 : 0.0)

/* a, b and c have one real per element (step 1) or one for all (step 0), not all of them the
 * latter; out may be one of them, which makes no loop depend on itself. */
static void NAME(real_op)(int op, double *out, const double *a, int sa, const double *b, int sb,
                          const double *c, int sc, int64_t size)
{
    const double only = sa ? 0 : *a, one = b && !sb ? *b : 0, other = c && !sc ? *c : 0;
    int64_t j, vectors = 0;
    (void)vectors;
    switch (op) {
    case FUSED_PLUS: REALS2(PLUS);
    case FUSED_MINUS: REALS2(MINUS);
    case FUSED_TIMES: REALS2(TIMES);
    case FUSED_OVER: REALS2(OVER);
    case FUSED_GREATER: REALS2(GREATER);
    case FUSED_LESS: REALS2(LESS);
    case FUSED_EQUAL: REALS2(EQUAL);
    case FUSED_NEGATE: EACH(-a[j]); break;
    case FUSED_ROOT: EACH(__builtin_sqrt(a[j])); break;
    case FUSED_SAFE_ROOT: EACH(__builtin_sqrt(a[j]) + 0.0); break; /* -0 becomes 0 */
    case FUSED_MAGNITUDE: EACH(__builtin_fabs(a[j])); break;
    case FUSED_SIGN: EACH(a[j] > 0 ? 1.0 : a[j] < 0 ? -1.0 : a[j] == 0 ? 0.0 : a[j]); break;
    case FUSED_COPY:
        if (sa) EACH(a[j]);
        else EACH(only);
        break;
    case FUSED_WHERE:
#ifdef LANES
        for (; vectors + LANES <= size; vectors += LANES) {
            vf u = sb ? load_reals(b + vectors) : every_real(one);
            vf v = sc ? load_reals(c + vectors) : every_real(other);
            store_reals(out + vectors, choose_reals(load_reals(a + vectors), u, v));
        }
        for (j = vectors; j < size; j++)
            out[j] = a[j] != 0 ? (sb ? b[j] : one) : (sc ? c[j] : other);
        break;
#endif
        if (sb && sc) EACH(a[j] != 0 ? b[j] : c[j]);
        else if (sb) EACH(a[j] != 0 ? b[j] : other);
        else if (sc) EACH(a[j] != 0 ? one : c[j]);
        else EACH(a[j] != 0 ? one : other);
        break;
    }
}
#undef EACH
#undef REALS2
#undef PLUS
#undef MINUS
#undef TIMES
#undef OVER
#undef GREATER
#undef LESS
#undef EQUAL

/* The sum of a[j] or of a[j]*b[j], each product rounded: element j goes to column j mod
 * FUSED_COLUMNS, in order; then the upper half of the columns is added to the lower, and so on. */
INLINE double NAME(sum_as)(const double *a, const double *b, int64_t size, int product)
{
    double columns[FUSED_COLUMNS];
    int64_t j = 0;
    int k, w;
#ifdef LANES
    vf sums[FUSED_COLUMNS / LANES];
    for (k = 0; k < FUSED_COLUMNS / LANES; k++)
        sums[k] = every_real(0.0);
    for (; j + FUSED_COLUMNS <= size; j += FUSED_COLUMNS)
        for (k = 0; k < FUSED_COLUMNS / LANES; k++) {
            vf term = load_reals(a + j + k * LANES);
            if (product)
                term = term * load_reals(b + j + k * LANES);
            sums[k] = sums[k] + term;
        }
    for (k = 0; k < FUSED_COLUMNS / LANES; k++)
        store_reals(columns + k * LANES, sums[k]);
#else
    for (k = 0; k < FUSED_COLUMNS; k++)
        columns[k] = 0.0;
    for (; j + FUSED_COLUMNS <= size; j += FUSED_COLUMNS)
        for (k = 0; k < FUSED_COLUMNS; k++)
            columns[k] += product ? a[j + k] * b[j + k] : a[j + k];
#endif
    for (k = 0; j < size; j++, k++)
        columns[k] += product ? a[j] * b[j] : a[j];
    for (w = FUSED_COLUMNS / 2; w; w /= 2)
        for (k = 0; k < w; k++)
            columns[k] += columns[k + w];
    return columns[0];
}

static double NAME(sum)(const double *a, const double *b, int64_t size)
{
    return b ? NAME(sum_as)(a, b, size, 1) : NAME(sum_as)(a, a, size, 0);
}

/* Where the reals of a block begin; step: whether there is one for each of its elements. */
INLINE double *NAME(operand)(const fused_program *p, int k, int64_t block, int *step)
{
    const fused_slot *s = &p->slots[k];
    *step = s->kind != FUSED_CONSTANT;
    if (s->kind == FUSED_CONSTANT)
        return (double *)s->values + (s->many ? p->segments[block] : 0);
    if (s->kind == FUSED_REGISTER)
        return p->registers + s->at * FUSED_BLOCK;
    return s->kind == FUSED_DOUBLES ? (double *)s->array + p->starts[block]
                                    : (double *)((float *)s->array + p->starts[block]);
}

INLINE columns NAME(columns_of)(const fused_program *p, const fused_buffer *b, int64_t block)
{
    columns c = b->c;
    if (!b->by_segment)
        return columns_from(c, p->starts[block]);
    c.n += c.n_many ? p->segments[block] : 0;
    c.d += c.d_many ? p->segments[block] : 0;
    c.n_many = c.d_many = 0;
    c.usual = *c.d == 1u << USUAL_BITS;
    c.small = *c.d <= SMALL;
    c.kinds = NULL;
    return c;
}

/* One operation on a block; where it refuses, with nothing changed, the element or FUSED_SOMEWHERE is
 * returned, else -1. */
INLINE int64_t NAME(fused_op)(const fused_program *p, const fused_operation *o, int64_t block)
{
    const int64_t lo = p->starts[block], size = p->starts[block + 1] - lo;
    fused_variable *v = &p->variables[o->variable];
    fused_buffer *b;
    double *in[3], *out;
    int step[3] = {0, 0, 0}, k, sign;
    int64_t failed = -1, count, j;
    real_source from;
    columns c;
    for (k = 0; k < 3; k++)
        in[k] = o->in[k] < 0 ? NULL : NAME(operand)(p, o->in[k], block, &step[k]);
    switch (o->op) {
    case FUSED_DECODE:
    case FUSED_EMIT:
        out = NAME(operand)(p, o->out, block, &k);
        NAME(decode)(v->x + lo, v->ulp, size, out, p->slots[o->out].kind == FUSED_FLOATS);
        return -1;
    case FUSED_WIDEN:
        out = NAME(operand)(p, o->out, block, &k);
        NO_OVERLAP for (j = 0; j < size; j++) out[j] = ((const float *)in[0])[j];
        return -1;
    case FUSED_NARROW:
        out = NAME(operand)(p, o->out, block, &k);
        NO_OVERLAP for (j = 0; j < size; j++) ((float *)out)[j] = (float)in[0][j];
        return -1;
    case FUSED_SUM:
        p->partials[o->out * p->blocks + block] = NAME(sum)(in[0], in[1], size);
        return -1;
    case FUSED_ADD:
    case FUSED_SUBTRACT:
        sign = o->op == FUSED_ADD ? 1 : -1;
        from.at = o->in[0] < 0 ? (const void *)(p->variables[o->out].x + lo) : in[0];
        from.kind = o->in[0] < 0 ? FROM_INTEGERS
                    : p->slots[o->in[0]].kind == FUSED_FLOATS ? FROM_FLOATS : FROM_DOUBLES;
        from.factor = o->in[1] < 0 || step[1] ? 1.0 : *in[1];
        from.how = o->in[2] >= 0 ? BY_OVER : o->in[1] >= 0 && step[1] ? BY_TIMES : BY_FACTOR;
        from.by = o->in[2] >= 0 ? in[2] : in[1];
        from.ulp = p->variables[o->out].ulp;
        from.floats = NULL;
        from.doubles = NULL;
        if (o->buffer >= 0) {
            out = NAME(operand)(p, o->buffer, block, &k);
            if (p->slots[o->buffer].kind == FUSED_FLOATS)
                from.floats = (float *)out;
            else
                from.doubles = out;
            from.sum_ulp = v->ulp;
        }
        if (!NAME(add)(v->x + lo, from, size, v->scale, sign))
            return -1;
        NAME(add)(v->x + lo, from, size, v->scale, -sign);
        return FUSED_SOMEWHERE;
    case FUSED_SCALE:
    case FUSED_UNSCALE:
        b = &p->buffers[o->buffer];
        c = NAME(columns_of)(p, b, block);
        if (o->op == FUSED_SCALE) {
            b->count = NAME(multiply)(v->x + lo, b->heads + lo, c, size, b->words, b->count);
            return -1;
        }
        count = NAME(divide)(v->x + lo, b->heads + lo, c, size, b->words, b->count, &failed);
        if (failed < 0) {
            b->count = count;
            return -1;
        }
        failed++; /* multiplied again, they spill words that are still on the stack */
        NAME(multiply)(v->x + lo + failed, b->heads + lo + failed, columns_from(c, failed),
                       size - failed, p->spare, 0);
        return lo + failed - 1;
    default:
        NAME(real_op)(o->op, NAME(operand)(p, o->out, block, &k), in[0], step[0], in[1], step[1],
                      in[2], step[2], size);
        return -1;
    }
}

/* All operations on blocks [lo, hi), one after the other, from the last where p->backwards. Returns
 * -1, or the block at which operation *refused met element *element. */
static int64_t NAME(fused)(fused_program *p, int64_t lo, int64_t hi, int64_t *refused,
                           int64_t *element)
{
    int64_t i, k;
    for (i = lo; i < hi; i++) {
        int64_t block = p->backwards ? hi - 1 - (i - lo) : i;
        for (k = 0; k < p->length; k++) {
            *element = NAME(fused_op)(p, &p->operations[k], block);
            if (*element != -1) {
                *refused = k;
                return block;
            }
        }
    }
    return -1;
}

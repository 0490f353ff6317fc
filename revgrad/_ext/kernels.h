/* The kernels in each instruction set this compiler can make, and the choice between them. */
#ifndef REVGRAD_KERNELS_H
#define REVGRAD_KERNELS_H

#include "ratio.h"

#define REVGRAD_BASELINE 0
#define REVGRAD_AVX2 2
#define REVGRAD_AVX512 3

#if defined(__GNUC__) && defined(__x86_64__) && !defined(REVGRAD_BASELINE_ONLY)
#define REVGRAD_MULTIVERSION 1
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define NO_OVERLAP _Pragma("GCC ivdep")
#else
#define NO_OVERLAP
#endif

#ifdef __VERSION__
#if defined(__clang__)
#define COMPILED_BY __VERSION__
#else
#define COMPILED_BY "gcc " __VERSION__
#endif
#else
#define COMPILED_BY "unknown"
#endif

#define INT64_END 9223372036854775808.0
#define LOW_HALF every(0xffffffff)
/* Ratio falls back to this d, whose quotients are shifts. */
#define USUAL_BITS RATIO_LOW_BITS

#define LAG 12288 /* 3 * 2^12 > 2^12 + 6144; (2*LAG - 8192) * SMALL < 2^32 */

/* Numerators and denominators: one each, or one per element. Where there are kinds, usual and small
 * hold for all elements of a run of KINDS, the first of which is element -offset of these. */
#define KIND_BITS 11
#define KINDS (1 << KIND_BITS)
typedef struct {
    const uint32_t *n, *d;
    const uint8_t *kinds; /* usual + 2*small; NULL where the two below say all */
    int64_t offset;
    int n_many, d_many;
    int usual; /* d is one for all, 2^USUAL_BITS */
    int small; /* every n and d is at most SMALL */
} columns;

/* The part from element lo on. */
static inline columns columns_from(columns c, int64_t lo)
{
    c.n += c.n_many ? lo : 0;
    c.d += c.d_many ? lo : 0;
    c.offset += lo;
    return c;
}

/* Cuts out elements [lo, *hi), *hi lowered to the end of lo's run or (not up) lo raised to the start
 * of that of *hi - 1, so that usual and small say all of them. */
static inline columns columns_alike(columns c, int64_t *lo, int64_t *hi, int up)
{
    int64_t run, end;
    if (c.kinds) {
        run = (c.offset + (up ? *lo : *hi - 1)) >> KIND_BITS;
        end = ((run + up) << KIND_BITS) - c.offset;
        if (up)
            *hi = end < *hi ? end : *hi;
        else
            *lo = end > *lo ? end : *lo;
        c = columns_from(c, *lo);
        c.usual = c.kinds[run] & 1;
        c.small = c.kinds[run] >> 1;
        c.d_many = !c.usual; /* a usual d is read once */
        c.kinds = 0;
        return c;
    }
    return columns_from(c, *lo);
}

/* Reals to add: see add_as in blocks.h. */
enum { FROM_DOUBLES, FROM_FLOATS, FROM_INTEGERS };
enum { BY_FACTOR, BY_TIMES, BY_OVER };
typedef struct {
    const void *at;
    const double *by;   /* of BY_TIMES and BY_OVER, which floats do not take */
    double factor, ulp; /* ulp: of FROM_INTEGERS */
    int kind, how;
    float *floats; /* where the sums go, decoded, if anywhere: as floats, as doubles */
    double *doubles;
    double sum_ulp;
} real_source;

/* z < 2^32*SMALL = 2^50 must stay below 2^51/1.5: see BLOCKS_EXACT in blocks.h */
#define SMALL 262144

/* A divisor for all elements is prepared; one that serves a single element is not. */
INLINE ratio_divisor divisor_at(const uint32_t *k, int many)
{
    return many ? ratio_divisor_once(1) : ratio_divisor_of(*k);
}

INLINE ratio_divisor usual_divisor(void) { return ratio_divisor_power(USUAL_BITS); }

INLINE void next_divisors(ratio_divisor *n, ratio_divisor *d, columns c, int64_t i)
{
    if (c.n_many)
        *n = ratio_divisor_once(c.n[i]);
    if (c.d_many)
        *d = ratio_divisor_once(c.d[i]);
}

/* A statement list as operations on blocks of reals ("registers") and of integers; fused.py. */
#define FUSED_BLOCK 1024
#define FUSED_SLOTS 160
#define FUSED_VARIABLES 16
#define FUSED_SOMEWHERE -2
#define FUSED_COLUMNS 32 /* of a block whose sum is wanted: see sum in blocks.h */
enum { FUSED_PLUS, FUSED_MINUS, FUSED_TIMES, FUSED_OVER, FUSED_GREATER, FUSED_LESS, FUSED_EQUAL,
       FUSED_NEGATE, FUSED_ROOT, FUSED_SAFE_ROOT, FUSED_MAGNITUDE, FUSED_SIGN, FUSED_WHERE,
       FUSED_COPY, FUSED_DECODE, FUSED_EMIT, FUSED_ADD, FUSED_SUBTRACT, FUSED_SCALE, FUSED_UNSCALE, FUSED_WIDEN,
       FUSED_NARROW, FUSED_SUM };
enum { FUSED_CONSTANT, FUSED_REGISTER, FUSED_DOUBLES, FUSED_FLOATS };

/* Where a real operand comes from or a result goes; `in` and `out` of an operation number slots, -1
 * for none. A constant has one value, or one per segment. FUSED_ADD adds in[0], or where there is
 * none the variable `out`, times in[1], or 1. FUSED_SUM sums in[0] times in[1], or 1, as sum `out`.
 */
typedef struct {
    int kind, at; /* at: the register */
    int many;
    const double *values;
    void *array;
} fused_slot;

typedef struct {
    int op, out, in[3], variable, buffer;
} fused_operation;

typedef struct {
    int64_t *x;
    double scale, ulp;
} fused_variable;

typedef struct {
    uint32_t *heads;
    columns c;
    int by_segment; /* c has one n and d per segment */
    uint16_t *words;
    int64_t count;
} fused_buffer;

/* Block k is elements [starts[k], starts[k + 1]), at most FUSED_BLOCK, all in segments[k]. */
typedef struct {
    const fused_operation *operations;
    fused_slot *slots;
    fused_variable *variables;
    fused_buffer *buffers;
    double *registers;
    uint16_t *spare; /* FUSED_BLOCK words */
    const int64_t *starts;
    const int32_t *segments;
    double *partials; /* sum k of block b at k*blocks + b */
    int64_t blocks, length;
    int backwards;
} fused_program;

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, REVGRAD_SUFFIX)

#define REVGRAD_ISA REVGRAD_BASELINE
#define REVGRAD_SUFFIX baseline
#include "blocks.h"
#undef REVGRAD_ISA
#undef REVGRAD_SUFFIX

#ifdef REVGRAD_MULTIVERSION

#define REVGRAD_ISA REVGRAD_AVX2
#define REVGRAD_SUFFIX avx2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt"))), apply_to = function)
#include "blocks.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
#include "blocks.h"
#pragma GCC pop_options
#endif
#undef REVGRAD_ISA
#undef REVGRAD_SUFFIX

#define REVGRAD_ISA REVGRAD_AVX512
#define REVGRAD_SUFFIX avx512
#define REVGRAD_AVX512_TARGET "avx2,fma,popcnt,avx512f,avx512dq,avx512bw,avx512vl"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target(REVGRAD_AVX512_TARGET))), apply_to = function)
#include "blocks.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#include "blocks.h"
#pragma GCC pop_options
#endif
#undef REVGRAD_ISA
#undef REVGRAD_SUFFIX

#endif

/* See blocks.h, and for what follows "fused" there. */
typedef struct {
    const char *name;
    int64_t (*multiply)(int64_t *, uint32_t *, columns, int64_t, uint16_t *, int64_t);
    int64_t (*divide)(int64_t *, uint32_t *, columns, int64_t, const uint16_t *, int64_t,
                      int64_t *);
    int64_t (*count_pops)(const int64_t *, const uint32_t *, columns, int64_t);
    int (*add)(int64_t *, real_source, int64_t, double, int);
    void (*decode)(const int64_t *, double, int64_t, void *, int);
    int64_t (*fused)(fused_program *, int64_t, int64_t, int64_t *, int64_t *);
} kernel_table;

#define TABLE(isa) \
    {#isa, multiply_##isa, divide_##isa, count_pops_##isa, add_##isa, decode_##isa, fused_##isa}
static const kernel_table kernel_tables[] = {
    TABLE(baseline),
#ifdef REVGRAD_MULTIVERSION
    TABLE(avx2),
    TABLE(avx512),
#endif
};
#define KERNEL_TABLES ((int)(sizeof kernel_tables / sizeof *kernel_tables))

/* Copies digits into 32 bits; returns the first pair that ratio.h cannot take, or -1. */
static int64_t fill_columns(const int64_t *n, const int64_t *d, uint32_t *n_to, uint32_t *d_to,
                            int64_t size)
{
    int64_t i, bad = 0;
    NO_OVERLAP for (i = 0; i < size; i++) { /* without a branch, so that it costs little */
        n_to[i] = (uint32_t)n[i];
        d_to[i] = (uint32_t)d[i];
        /* n, d >= 0; d <= D_MAX; 1 <= n <= d; d <= n*WORD: what wraps is refused by another */
        bad |= n[i] | d[i] | (RATIO_D_MAX - d[i]) | (n[i] - 1) | (d[i] - n[i])
               | (n[i] * RATIO_WORD - d[i]);
    }
    for (i = 0; bad < 0 && i < size; i++)
        if (!ratio_usable(n[i], d[i]))
            return i;
    return -1;
}

/* What some pair does: 1: n or d below 1, 2: ratio.h cannot take it, 4: n < d, 8: n > d. */
static int compare_columns(const int64_t *n, const int64_t *d, int64_t size)
{
    int64_t i;
    int small = 0, bad = 0, less = 0, more = 0;
    for (i = 0; i < size; i++) {
        small |= (n[i] < 1) | (d[i] < 1);
        bad |= !ratio_usable(n[i], d[i]);
        less |= n[i] < d[i];
        more |= n[i] > d[i];
    }
    return small | bad << 1 | less << 2 | more << 3;
}

/* Finishes columns that are usable: one n or d that all share counts as one, and where d are many,
 * kinds (one per run, or NULL) are filled if they say more of some run than of all. */
static void finish_columns(columns *c, int64_t size, uint8_t *kinds)
{
    int64_t lo, i, runs_usual = 0;
    uint32_t large = 0, other_d = 0, other_n = 0;
    for (lo = 0; lo < (c->d_many ? size : 1); lo += KINDS) {
        int64_t hi = !c->d_many ? 1 : lo + KINDS < size ? lo + KINDS : size;
        uint32_t run_large = 0, other = 0;
        for (i = lo; i < hi; i++) {
            run_large |= c->d[i] > SMALL; /* n <= d */
            other_d |= c->d[i] ^ c->d[0];
            other |= c->d[i] ^ (1u << USUAL_BITS);
        }
        if (kinds)
            kinds[lo >> KIND_BITS] = (uint8_t)(!other + 2 * !run_large);
        large |= run_large;
        runs_usual += !other;
    }
    for (i = 0; c->n_many && i < size; i++)
        other_n |= c->n[i] ^ c->n[0];
    c->small = !large;
    c->n_many = c->n_many && other_n;
    c->d_many = c->d_many && other_d;
    c->usual = !c->d_many && c->d[0] == 1u << USUAL_BITS;
    c->offset = 0;
    c->kinds = c->d_many && (runs_usual || large) ? kinds : NULL;
}

/* Whether this machine has the instructions of kernel_tables[k]. */
static int kernel_runs(int k)
{
#ifdef REVGRAD_MULTIVERSION
    __builtin_cpu_init();
    if (k == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
               && __builtin_cpu_supports("popcnt");
    if (k == 2)
        return kernel_runs(1) && __builtin_cpu_supports("avx512f")
               && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
               && __builtin_cpu_supports("avx512vl");
#endif
    return k == 0;
}

#endif

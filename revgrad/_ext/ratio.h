/* The arithmetic of one element, for the C compiler and for NVRTC alike; reference.py specifies it.
 *
 * A head h in [LOW, LOW*WORD) and a stack of words in [0, WORD) keep what multiplying by n/d
 * destroys. With q = x div d and r = x mod d (floor), one multiply is
 *     z = h*d + r             in [LOW*d, LOW*WORD*d)
 *     z >= LOW*WORD*n:        push z mod WORD, z <- z div WORD       then z in [LOW*n, LOW*d)
 *     else                                                           z in [LOW*d, LOW*WORD*n)
 *     h <- z div n,           in [LOW, LOW*WORD)
 *     x <- q*n + z mod n.
 * The two cases leave z on either side of LOW*d, which is how the undo, having z again, knows them
 * apart. One word is enough because ratio_usable(n, d) asks for d <= n*WORD. All z < 2^56.
 */
#ifndef REVGRAD_RATIO_H
#define REVGRAD_RATIO_H

#ifdef __CUDACC__
#ifdef __CUDACC_RTC__ /* which has no headers */
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned short uint16_t;
#else
#include <stdint.h>
#endif
#define RATIO_INLINE static __device__ inline
#define RATIO_HIGH(a, b) __umul64hi(a, b)
#else
#include <stdint.h>
#ifdef __cplusplus
#include <math.h>
#else
double rint(double); /* C99 7.1.4: a library function may be declared without its header */
#endif
#define RATIO_INLINE static inline
#ifdef __SIZEOF_INT128__
#define RATIO_HIGH(a, b) ((uint64_t)(((unsigned __int128)(a) * (b)) >> 64))
#endif
#endif

/* LOW*WORD <= 2^32 and WORD <= 2^16; tests build with smaller ones. */
#ifndef RATIO_LOW_BITS
#define RATIO_LOW_BITS 16
#endif
#ifndef RATIO_WORD_BITS
#define RATIO_WORD_BITS 16
#endif
#define RATIO_LOW (1 << RATIO_LOW_BITS)
#define RATIO_WORD (1 << RATIO_WORD_BITS)
#define RATIO_D_MAX 16777216

RATIO_INLINE int ratio_usable(int64_t n, int64_t d)
{
    return 1 <= n && n <= d && d <= RATIO_D_MAX && d <= n * RATIO_WORD;
}

/* A divisor k in [1, 2^32). times != 0 replaces division by multiplication; times = 0 < shift says
 * that k = 2^shift. */
typedef struct {
    uint64_t k, times;
    int shift;
} ratio_divisor;

RATIO_INLINE ratio_divisor ratio_divisor_once(int64_t k)
{
    ratio_divisor by = {(uint64_t)k, 0, 0};
    return by;
}

RATIO_INLINE ratio_divisor ratio_divisor_power(int shift)
{
    ratio_divisor by = {(uint64_t)1 << shift, 0, shift};
    return by;
}

/* times = floor(2^(64+shift) / k) + 1 < 2^64, where 2^shift < k <= 2^(shift+1). For u < 2^63 that
 * makes u*times / 2^(64+shift) at most u/k + u/2^(64+shift) < u/k + 1/k: its floor is u div k. */
RATIO_INLINE ratio_divisor ratio_divisor_of(int64_t k)
{
    ratio_divisor by = ratio_divisor_once(k);
#ifdef RATIO_HIGH
    uint64_t rest, half;
    if (k < 2)
        return by;
    while (((uint64_t)2 << by.shift) < by.k)
        by.shift++;
    /* 2^(32+shift) / k first, then 32 bits more: the remainders are below k < 2^32 */
    half = ((uint64_t)1 << (32 + by.shift)) / by.k;
    rest = ((uint64_t)1 << (32 + by.shift)) % by.k;
    by.times = (half << 32) + (rest << 32) / by.k + 1;
#endif
    return by;
}

/* u div k, u < 2^63 */
RATIO_INLINE uint64_t ratio_quotient(uint64_t u, ratio_divisor by)
{
    if (!by.times && by.shift)
        return u >> by.shift;
#ifdef RATIO_HIGH
    if (by.times)
        return RATIO_HIGH(u, by.times) >> by.shift;
#endif
    return u / by.k;
}

/* x div k rounded down, and *r = x mod k in [0, k): x div k = ~(~x div k) for x < 0. */
RATIO_INLINE int64_t ratio_floor_divide(int64_t x, ratio_divisor by, int64_t *r)
{
    uint64_t sign = (uint64_t)-(x < 0), q;
    if (!by.times && by.shift) { /* the compilers at hand shift signs in */
        *r = x & ((int64_t)by.k - 1);
        return x >> by.shift;
    }
    q = ratio_quotient((uint64_t)x ^ sign, by) ^ sign;
    *r = (int64_t)((uint64_t)x - q * by.k);
    return (int64_t)q;
}

/* x <- x*n/d; a spilled word goes to words[count]. Returns the new count. */
RATIO_INLINE int64_t ratio_multiply(int64_t *x, uint32_t *head, ratio_divisor n, ratio_divisor d,
                                    uint16_t *words, int64_t count)
{
    int64_t r, q;
    uint64_t z, h;
    q = ratio_floor_divide(*x, d, &r);
    z = *head * d.k + (uint64_t)r;
    if (z >= (uint64_t)RATIO_LOW * RATIO_WORD * n.k) {
        words[count++] = (uint16_t)(z % RATIO_WORD);
        z /= RATIO_WORD;
    }
    h = ratio_quotient(z, n);
    *x = (int64_t)((uint64_t)q * n.k + (z - h * n.k)); /* n <= d, so it fits */
    *head = (uint32_t)h;
    return count;
}

/* q*d + r into *x, 0 where that is no int64. Exact in halves: |q >> 32| <= 2^31, d <= 2^24. */
RATIO_INLINE int ratio_join(int64_t *x, int64_t q, int64_t d, int64_t r)
{
    uint64_t low = ((uint64_t)q & 0xffffffffu) * (uint64_t)d + (uint64_t)r;
    int64_t high = (q >> 32) * d + (int64_t)(low >> 32);
    if (high < -2147483647 - 1 || high > 2147483647)
        return 0;
    *x = (int64_t)((uint64_t)high << 32 | (low & 0xffffffffu));
    return 1;
}

/* The undo of ratio_multiply. Returns the new count, or -1 with nothing changed where no multiply
 * by n/d can have led here: no word left, or an x that is no int64. */
RATIO_INLINE int64_t ratio_divide(int64_t *x, uint32_t *head, ratio_divisor n, ratio_divisor d,
                                  const uint16_t *words, int64_t count)
{
    int64_t s, q;
    uint64_t z, h;
    q = ratio_floor_divide(*x, n, &s);
    z = *head * n.k + (uint64_t)s;
    if (z < (uint64_t)RATIO_LOW * d.k) {
        if (count < 1)
            return -1;
        z = z * RATIO_WORD + words[--count];
    }
    h = ratio_quotient(z, d);
    if (!d.times && d.shift) { /* q in [-2^(63 - shift), 2^(63 - shift)), or x is no int64 */
        if (((uint64_t)q + ((uint64_t)1 << (63 - d.shift))) >> (64 - d.shift))
            return -1;
        *x = (int64_t)((uint64_t)q << d.shift | (z & (d.k - 1)));
    } else if (!ratio_join(x, q, (int64_t)d.k, (int64_t)(z - h * d.k))) {
        return -1;
    }
    *head = (uint32_t)h;
    return count;
}

/* rint(value*scale), half to even; 0 where that is NaN or outside [-2^63, 2^63). */
RATIO_INLINE int fixed_encode(double value, double scale, int64_t *out)
{
    double rounded = rint(value * scale);
    if (!(rounded >= -9223372036854775808.0 && rounded < 9223372036854775808.0))
        return 0;
    *out = (int64_t)rounded;
    return 1;
}

/* x + v, or x - v where sign < 0, mod 2^64; 0 where that leaves int64. */
RATIO_INLINE int fixed_sum(int64_t x, int64_t v, int sign, int64_t *sum)
{
    uint64_t a = (uint64_t)x, b = (uint64_t)v;
    uint64_t total = sign < 0 ? a - b : a + b;
    /* overflow: the summands agree in sign and the sum does not */
    uint64_t same = sign < 0 ? a ^ b : ~(a ^ b);
    *sum = (int64_t)total;
    return !((same & (a ^ total)) >> 63);
}

#endif

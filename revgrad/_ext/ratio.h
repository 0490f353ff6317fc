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

#ifdef __CUDACC_RTC__
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned short uint16_t;
#define RATIO_INLINE static __device__ inline
#else
#include <stdint.h>
double rint(double); /* C99 7.1.4: a library function may be declared without its header */
#define RATIO_INLINE static inline
#endif

/* Powers of two with LOW*WORD <= 2^32, WORD <= 2^16; tests build with smaller ones. */
#ifndef RATIO_LOW
#define RATIO_LOW 65536
#endif
#ifndef RATIO_WORD
#define RATIO_WORD 65536
#endif
#define RATIO_D_MAX 16777216

RATIO_INLINE int ratio_usable(int64_t n, int64_t d)
{
    return 1 <= n && n <= d && d <= RATIO_D_MAX && d <= n * RATIO_WORD;
}

/* x div d rounded down, and 0 <= *r < d; C's own / and % round towards zero. Requires d >= 1. */
RATIO_INLINE int64_t ratio_floor_divide(int64_t x, int64_t d, int64_t *r)
{
    int64_t q = x / d, rest = x % d;
    int64_t below = rest < 0;
    *r = rest + (below ? d : 0);
    return q - below;
}

/* x <- x*n/d; a spilled word goes to words[count]. Returns the new count. */
RATIO_INLINE int64_t ratio_multiply(int64_t *x, uint32_t *head, int64_t n, int64_t d,
                                    uint16_t *words, int64_t count)
{
    int64_t r, q;
    uint64_t z, radix = (uint64_t)n;
    if (n == d)
        return count;
    q = ratio_floor_divide(*x, d, &r);
    z = (uint64_t)*head * (uint64_t)d + (uint64_t)r;
    if (z >= (uint64_t)RATIO_LOW * RATIO_WORD * radix) {
        words[count++] = (uint16_t)(z % RATIO_WORD);
        z /= RATIO_WORD;
    }
    *x = q * n + (int64_t)(z % radix); /* n < d, so |q*n| < 2^63 for every int64 x */
    *head = (uint32_t)(z / radix);
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
RATIO_INLINE int64_t ratio_divide(int64_t *x, uint32_t *head, int64_t n, int64_t d,
                                  const uint16_t *words, int64_t count)
{
    int64_t s, q;
    uint64_t z, radix = (uint64_t)d;
    if (n == d)
        return count;
    q = ratio_floor_divide(*x, n, &s);
    z = (uint64_t)*head * (uint64_t)n + (uint64_t)s;
    if (z < (uint64_t)RATIO_LOW * radix) {
        if (count < 1)
            return -1;
        z = z * RATIO_WORD + words[--count];
    }
    if (!ratio_join(x, q, d, (int64_t)(z % radix)))
        return -1;
    *head = (uint32_t)(z / radix);
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

/* *x + v, or *x - v where sign < 0; 0 with *x unchanged where that leaves int64. */
RATIO_INLINE int fixed_add(int64_t *x, int64_t v, int sign)
{
    uint64_t a = (uint64_t)*x, b = (uint64_t)v;
    uint64_t sum = sign < 0 ? a - b : a + b;
    /* overflow: the summands agree in sign and the sum does not */
    uint64_t same = sign < 0 ? a ^ b : ~(a ^ b);
    if ((same & (a ^ sum)) >> 63)
        return 0;
    *x = (int64_t)sum;
    return 1;
}

#endif

/* Sums of a block of entries, in LANES running sums that the compiler makes a vector of. */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define ON_ANY __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ON_ANY
#endif

#define LANES 32

#define SUMS_OF(type, name)                                                              \
    ON_ANY static double dot_##name(const type *x, const type *y, npy_intp n) {          \
        type sums[LANES] = {0};                                                          \
        double all = 0.0;                                                                \
        npy_intp i = 0;                                                                  \
        for (; i + LANES <= n; i += LANES)                                               \
            for (int j = 0; j < LANES; j++) sums[j] += x[i + j] * y[i + j];              \
        for (; i < n; i++) all += (double)x[i] * y[i];                                   \
        for (int j = 0; j < LANES; j++) all += sums[j];                                  \
        return all;                                                                      \
    }                                                                                    \
    ON_ANY static double total_##name(const type *x, npy_intp n) {                       \
        type sums[LANES] = {0};                                                          \
        double all = 0.0;                                                                \
        npy_intp i = 0;                                                                  \
        for (; i + LANES <= n; i += LANES)                                               \
            for (int j = 0; j < LANES; j++) sums[j] += x[i + j];                         \
        for (; i < n; i++) all += x[i];                                                  \
        for (int j = 0; j < LANES; j++) all += sums[j];                                  \
        return all;                                                                      \
    }

SUMS_OF(float, float)
SUMS_OF(double, double)

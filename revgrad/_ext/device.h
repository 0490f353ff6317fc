/* What the kernels of device.py are made with, after ratio.h: one block of THREADS threads for one
 * block of at most TILE elements, PER to a thread.
 *
 * Element j of a tile is thread j mod THREADS's, so its 32 neighbours are one warp's: group j div 32.
 * Nothing here depends on which thread or block comes first, and nothing is atomic.
 *
 * status[0]: the number of the launch that was refused, or 0; status[1]: why. Later launches then do
 * nothing until the host has asked, so that what the refused one found is still there.
 */
#define TILE 1024
#define THREADS 256
#define PER 4
#define GROUPS 32 /* TILE / 32 */
#define SUMS 4    /* that wait in shared memory at once */
#define ALL 0xffffffffu
#define GOOD 0x7fffffff
#define REFUSED 1
#define EMPTY 2

#define EACH_ELEMENT \
    _Pragma("unroll") for (int k = 0, j = threadIdx.x; k < PER; k++, j += THREADS) if (j < size)
#define EVERY_LANE \
    _Pragma("unroll") for (int k = 0, j = threadIdx.x; k < PER; k++, j += THREADS)

/* counts[g] becomes the sum of those before it, counts[GROUPS] that of all. */
static __device__ inline void add_up(int *counts)
{
    const int lane = threadIdx.x;
    __syncthreads();
    if (lane < GROUPS) {
        const int own = counts[lane];
        int sum = own, step;
        for (step = 1; step < GROUPS; step *= 2) {
            int other = __shfl_up_sync(ALL, sum, step);
            sum += lane < step ? 0 : other;
        }
        counts[lane] = sum - own;
        if (lane == GROUPS - 1)
            counts[GROUPS] = sum;
    }
    __syncthreads();
}

/* How many lanes below this one are in the mask. */
static __device__ inline int before_me(unsigned mask)
{
    return __popc(mask & ((1u << (threadIdx.x & 31)) - 1u));
}

/* The sum of a tile, by one warp, in the order of sum in blocks.h; lane 0 has it. */
static __device__ inline double tile_sum(const double *terms, int size)
{
    double sum = 0.0;
    int j, width;
    for (j = threadIdx.x & 31; j < size; j += 32)
        sum += terms[j];
    for (width = 16; width; width /= 2)
        sum += __shfl_down_sync(ALL, sum, width);
    return sum;
}

/* Whether ratio_divide takes a word. */
RATIO_INLINE int ratio_pops(int64_t x, uint32_t head, ratio_divisor n, ratio_divisor d)
{
    int64_t s;
    ratio_floor_divide(x, n, &s);
    return head * n.k + (uint64_t)s < (uint64_t)RATIO_LOW * d.k;
}

/* The same where the head alone says so, for all but one head; else -1. */
RATIO_INLINE int ratio_pops_by_head(uint32_t head, uint64_t n, uint64_t d)
{
    const uint64_t least = head * n, threshold = (uint64_t)RATIO_LOW * d;
    return least + n - 1 < threshold ? 1 : least < threshold ? -1 : 0;
}

/* The least code of all threads; GOOD where none refuses, which is known at once. */
static __device__ inline int least_code(int code, int *codes)
{
    int k;
    if (!__syncthreads_or(code != GOOD))
        return GOOD;
    codes[threadIdx.x] = code;
    __syncthreads();
    for (k = 0; k < THREADS; k++)
        code = codes[k] < code ? codes[k] : code;
    return code;
}

/* By one block of THREADS: offsets[t] <- the sum of counts before tile t. Pushing, *base <- *count and
 * *count grows by all of them; popping, *base <- *count less all of them, or nothing is left to pop. */
extern "C" __global__ void line_up(const int32_t *counts, int64_t *offsets, int64_t tiles,
                                   int64_t *count, int64_t *base, int64_t pushing, int64_t *status,
                                   int64_t serial)
{
    __shared__ int64_t sums[THREADS];
    const int64_t each = (tiles + THREADS - 1) / THREADS, first = each * threadIdx.x;
    const int64_t last = first + each < tiles ? first + each : tiles;
    int64_t t, sum = 0, all = 0;
    if (status[0]) /* also by the launch before, of the same serial */
        return;
    for (t = first; t < last; t++)
        sum += counts[t];
    sums[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (t = 0; t < THREADS; t++) {
        sum += t < threadIdx.x ? sums[t] : 0;
        all += sums[t];
    }
    for (t = first; t < last; t++) {
        offsets[t] = sum;
        sum += counts[t];
    }
    if (threadIdx.x)
        return;
    if (pushing) {
        *base = *count;
        *count += all;
    } else if (all > *count) {
        status[0] = serial;
        status[1] = EMPTY;
    } else {
        *base = *count - all;
    }
}

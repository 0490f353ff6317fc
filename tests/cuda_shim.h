/* CUDA on a CPU, for tests: the threads of a block as fibers, run in an order that a test chooses.
 *
 * A warp goes on until all its lanes are at __syncthreads or at their end, other warps wait; within a
 * warp, lanes meet at __ballot_sync and the like alone. So what forgets to wait for other threads
 * reads what is not there yet, in one order or another. Threads that part at a meeting are counted in
 * shim_faults, as are accesses that no thread owned up to.
 */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(n)

struct shim_place { int x, y, z; };
static shim_place threadIdx, blockIdx, gridDim, blockDim;

enum { SHIM_RUNS, SHIM_WARP, SHIM_BLOCK, SHIM_ENDED };
enum { SHIM_MOST = 1024, SHIM_STACK = 1 << 16 };
struct shim_fiber {
    jmp_buf here;
    int started, at;
    char *stack;
};
static shim_fiber shim_fibers[SHIM_MOST];
static jmp_buf shim_scheduler;
static ucontext_t shim_first;
static int64_t shim_values[SHIM_MOST];
static void (*shim_body)(void *);
static void *shim_arguments;
extern "C" int shim_order, shim_faults;
int shim_order = 0, shim_faults = 0;

static void shim_yield(int at)
{
    shim_fiber *me = &shim_fibers[threadIdx.x];
    me->at = at;
    if (!_setjmp(me->here))
        _longjmp(shim_scheduler, 1);
}

static void shim_main()
{
    for (;;) {
        shim_body(shim_arguments);
        shim_yield(SHIM_ENDED);
    }
}

static void shim_resume(int thread)
{
    shim_fiber *f = &shim_fibers[thread];
    threadIdx.x = thread;
    if (_setjmp(shim_scheduler))
        return;
    if (f->started)
        _longjmp(f->here, 1);
    f->started = 1;
    f->stack = f->stack ? f->stack : (char *)malloc(SHIM_STACK);
    ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = f->stack;
    fresh.uc_stack.ss_size = SHIM_STACK;
    fresh.uc_link = 0;
    makecontext(&fresh, shim_main, 0);
    setcontext(&fresh);
}

/* Place k of n in the order of this test: as they are, backwards, or by steps of an odd stride. */
static int shim_nth(int k, int n)
{
    return shim_order == 0 ? k : shim_order == 1 ? n - 1 - k : (k * 5 + 3) % n;
}

static void shim_warp(int first, int lanes)
{
    for (;;) {
        int at = -1, k;
        for (k = 0; k < lanes; k++) {
            int thread = first + shim_nth(k, lanes);
            shim_resume(thread);
            shim_faults += at >= 0 && at != shim_fibers[thread].at;
            at = shim_fibers[thread].at;
        }
        if (at != SHIM_WARP)
            return;
    }
}

static void shim_launch(int64_t blocks, int threads, void (*body)(void *), void *arguments)
{
    const int warps = (threads + 31) / 32;
    int64_t b;
    int k;
    shim_body = body;
    shim_arguments = arguments;
    gridDim.x = (int)blocks;
    blockDim.x = threads;
    for (b = 0; b < blocks; b++) {
        int ended = 0;
        blockIdx.x = (int)(shim_order == 1 ? blocks - 1 - b : b);
        while (!ended) {
            for (k = 0; k < warps; k++) {
                int warp = shim_nth(k, warps);
                shim_warp(32 * warp, threads - 32 * warp < 32 ? threads - 32 * warp : 32);
            }
            ended = shim_fibers[0].at == SHIM_ENDED;
            for (k = 0; k < threads; k++)
                shim_faults += shim_fibers[k].at != shim_fibers[0].at;
        }
    }
}

/* Everyone of a block, or of a warp, leaves a value; then all read, and meet once more. */
static int64_t *shim_meet(int64_t value, int at)
{
    shim_values[threadIdx.x] = value;
    shim_yield(at);
    return shim_values;
}

static inline void __syncthreads() { shim_yield(SHIM_BLOCK); }

static inline int __syncthreads_count(int here)
{
    int64_t *values = shim_meet(here != 0, SHIM_BLOCK);
    int k, sum = 0;
    for (k = 0; k < blockDim.x; k++)
        sum += (int)values[k];
    shim_yield(SHIM_BLOCK);
    return sum;
}

static inline int __syncthreads_or(int here) { return __syncthreads_count(here) != 0; }

static inline unsigned __ballot_sync(unsigned, int here)
{
    int64_t *values = shim_meet(here != 0, SHIM_WARP);
    unsigned mask = 0;
    int k, first = threadIdx.x & ~31;
    for (k = 0; k < 32; k++)
        mask |= (unsigned)values[first + k] << k;
    shim_yield(SHIM_WARP);
    return mask;
}

template <class T> static inline T shim_shuffle(T value, int from)
{
    int64_t bits = 0, *values;
    memcpy(&bits, &value, sizeof value);
    values = shim_meet(bits, SHIM_WARP);
    if (from >= 0 && from < 32) /* else its own */
        memcpy(&value, &values[(threadIdx.x & ~31) + from], sizeof value);
    shim_yield(SHIM_WARP);
    return value;
}

template <class T> static inline T __shfl_up_sync(unsigned, T value, int by)
{
    return shim_shuffle(value, (threadIdx.x & 31) - by);
}

template <class T> static inline T __shfl_down_sync(unsigned, T value, int by)
{
    return shim_shuffle(value, (threadIdx.x & 31) + by);
}

static inline int __popc(unsigned mask) { return __builtin_popcount(mask); }

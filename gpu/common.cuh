/* common.cuh: what all .cu files of this directory stand on.
 *
 * First the seam itself (promot.h, in its GPU form), then the Device and how a kernel is launched, then the small
 * things that kernels are made of: bf16, sums over warps and blocks, dropout's random numbers, and the tensor-core
 * instructions of every card from sm_80 on. hopper.cuh adds those of sm_90a.
 *
 * The same sources also compile for the CPU: with -DGPU_EMULATOR, tests/gpu_emulator.h takes the place of CUDA's
 * headers and of every line of PTX below, so that the tests run each kernel without a card. */
#ifndef PROMOT_COMMON_CUH
#define PROMOT_COMMON_CUH

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PROMOT_GPU
#define PROMOT_GPU
#endif
#ifndef PROMOT_KERNELS_ONLY
#define PROMOT_KERNELS_ONLY
#endif
#include "../data/error.h"
extern "C" {
#include "../promot.h"
}

#ifdef GPU_EMULATOR
#include "../tests/gpu_emulator.h"
#else
#include <cuda_runtime.h>

/* A kernel's dynamic shared memory as `type *name`. Each kernel has one piece, aligned for TMA's 128-byte swizzle, and
 * cuts it up itself. (CUDA wants every declaration of it in a file to have one type, hence the cast.) */
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(dynamic_shared_memory)
#endif

enum { WARP = 32 };

/* ================================================================================================================
 * The device, and launching (host)
 *
 * One stream carries everything, so kernels, copies and clears happen in the order in which they were asked for, and
 * the host waits only where it takes numbers out. A second one brings weights that are streamed, and brings and
 * fetches the lower halves of those that are offloaded. */
enum { STAGING_SLOTS = 4, WEIGHT_SLOTS = 2 };

/* A piece of streamed weights on the card; or the lower half of an offloaded tensor. */
struct WeightSlot {
    WeightPiece piece; /* as the engine names it: by its address on the host */
    weight_t *memory;
    size_t capacity;      /* elements */
    cudaEvent_t filled;   /* its copy is done */
    cudaEvent_t released; /* the kernels that read (or change) the piece are */
};

struct Device {
    cudaStream_t stream;
    int threads;  /* of the host, for those who ask */
    int sm_count; /* multiprocessors: a persistent kernel has one block on each */
    int compute_major, compute_minor;
    bool hopper;   /* compute capability 9.0: kernels for sm_90a run here, and nowhere else */
    char *scratch; /* see device_scratch */
    size_t scratch_bytes;
    char *staging;                   /* pinned host memory, a ring of slots on their way to the card */
    cudaEvent_t sent[STAGING_SLOTS]; /* the copies out of this slot are done */
    size_t slot, slot_used;          /* where the next upload is staged */
    bool streams_weights;            /* see device_stream_weights */
    cudaStream_t fetching;           /* brings streamed weights, and offloaded ones both ways */
    WeightSlot weight_slots[WEIGHT_SLOTS];
    size_t weight_slot; /* the one that is in turn */
    WeightSlot lower_slots[LOWER_SLOTS];
    size_t lower_turn; /* the one that is filled next */
};

/* Where on the card a kernel finds these weights, which the engine names by an address of weights_alloc; and how far
 * apart there are pieces that lie w_stride apart. Anything else is where it is. */
const weight_t *weights_here(Device *dev, const weight_t *w);
size_t weights_stride_here(const weight_t *w, size_t w_stride);

/* The lower plane that belongs to an address in an upper plane, in its middle too (see weights_alloc). */
int16_t *weights_remainder(const weight_t *weights);

/* The same for an update of the n elements from `first` on, a whole tensor, wherever it is (see weights_offload): it
 * can be read and changed until it is returned. */
int16_t *lower_take(Device *dev, const weight_t *first, size_t n);
void lower_return(Device *dev, const weight_t *first);

/* At least so many bytes, 256-byte aligned, until the next call. Kernels return nothing, so when there is no memory
 * this ends the program. */
void *device_scratch(Device *dev, size_t bytes);

/* Ends the program with a line when a call of the runtime failed: nobody above can carry on with a lost card. */
inline void cuda_check(cudaError_t status, const char *what)
{
    if (status == cudaSuccess) return;
    fprintf(stderr, "promot: %s: %s\n", what, cudaGetErrorString(status));
    exit(EXIT_FAILED);
}

/* A grid without blocks (no rows) is no error here: there is nothing to do. Above 48 KB of shared memory a kernel must
 * be told that it may. */
template <typename... Parameters, typename... Arguments>
void launch_cluster(Device *dev, void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster,
                    size_t shared_bytes, Arguments... arguments)
{
    if (!grid.x || !grid.y || !grid.z) return;
    if (shared_bytes > 48 * 1024)
        cuda_check(
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes),
            "shared memory of a kernel");
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = dev->stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
    cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch of a kernel");
}

template <typename... Parameters, typename... Arguments>
void launch(Device *dev, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments)
{
    launch_cluster(dev, kernel, grid, block, 1, shared_bytes, arguments...);
}

/* ================================================================================================================
 * Numbers (device)
 *
 * An activation is a bf16, the upper half of an fp32. Reading one is a shift; writing one rounds to nearest, ties to
 * even, and a NaN is 0x7fff. All arithmetic between is fp32. */
template <typename T> __host__ __device__ constexpr T ceil_div(T a, T b)
{
    return (a + b - 1) / b;
}

__device__ __forceinline__ float bf16_to_float(bf16_t x)
{
    return __uint_as_float((uint32_t)x.bits << 16);
}

/* Two neighbours in memory share a register, the first in its low half. */
__device__ __forceinline__ float2 unpack_bf16x2(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

#ifndef GPU_EMULATOR
__device__ __forceinline__ bf16_t float_to_bf16(float x)
{
    bf16_t rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
}

__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low)); /* the first source is the upper half */
    return pair;
}

/* 2^x and tanh x in one instruction, with an error of about 2 ulp and 2^-11. */
__device__ __forceinline__ float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float tanh_approx(float x)
{
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

/* ================================================================================================================
 * Sums and maxima (device)
 *
 * All lanes of the warp, or threads of the block, take part and all get the result. The order of the additions is a
 * fixed tree, so the bits are always the same. */
__device__ __forceinline__ float warp_sum(float x)
{
    for (int step = WARP / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x)
{
    for (int step = WARP / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ __forceinline__ unsigned thread_in_block()
{
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

/* For blocks of whole warps. shared32: 32 floats of shared memory, free again when the function returns. */
__device__ __forceinline__ float block_reduce(float x, float *shared32, bool maximum)
{
    const unsigned thread = thread_in_block(), lane = thread % WARP, warp = thread / WARP;
    const unsigned warps = blockDim.x * blockDim.y * blockDim.z / WARP;
    x = maximum ? warp_max(x) : warp_sum(x);
    if (lane == 0) shared32[warp] = x;
    __syncthreads();
    x = lane < warps ? shared32[lane] : maximum ? -INFINITY : 0;
    x = maximum ? warp_max(x) : warp_sum(x);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_sum(float x, float *shared32)
{
    return block_reduce(x, shared32, false);
}

__device__ __forceinline__ float block_max(float x, float *shared32)
{
    return block_reduce(x, shared32, true);
}

/* ================================================================================================================
 * Sequences and dropout (device) */

/* The sequence that holds a row of a packed matrix: the last one that starts at or before it, 0 when none does. Rows
 * between sequences belong to nobody, so the caller compares row - start[b] with length[b]. */
__device__ __forceinline__ size_t sequence_of_row(const int32_t *start, size_t count, size_t row)
{
    size_t low = 0, high = count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if ((size_t)start[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Philox4x32-10 (Salmon et al. 2011), bit for bit that of promot.c. */
__device__ __forceinline__ void philox4x32(const uint32_t counter[4], uint64_t key, uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint32_t a_high = __umulhi(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
        const uint32_t b_high = __umulhi(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The factors of columns 4 * column_group … + 3: 0 where dropped, else 1 / (1 - rate). Four columns cost one Philox
 * call, so a thread should own whole groups. example counts first_example in, row is the place in the sequence. */
__device__ __forceinline__ void dropout_four(float factor[4], const Dropout &dropout, uint32_t site, uint32_t example,
                                             uint32_t row, uint32_t column_group)
{
    const uint32_t threshold = dropout.rate < 1 ? (uint32_t)((double)dropout.rate * 0x1p32) : UINT32_MAX;
    const float kept = dropout.rate < 1 ? (float)(1.0 / (1.0 - (double)dropout.rate)) : 0;
    const uint32_t counter[4] = {column_group, dropout.shared ? 0 : row, example, site};
    uint32_t bits[4] = {0, 0, 0, 0};
    if (threshold) philox4x32(counter, dropout.key, bits);
    for (int i = 0; i < 4; i++) factor[i] = bits[i] < threshold ? 0 : kept;
}

/* ================================================================================================================
 * Tensor cores of every card from sm_80 (device)
 *
 * One warp multiplies A [16, 16] by B [16, 8] and adds to C [16, 8]. With g = lane / 4 and q = lane % 4 a lane holds
 *     a[0] row g     k 2q, 2q+1      b[0] k 2q, 2q+1     column g      c[0], c[1] row g     columns 2q, 2q+1
 *     a[1] row g + 8 k 2q, 2q+1      b[1] k 2q+8, 2q+9   column g      c[2], c[3] row g + 8 columns 2q, 2q+1
 *     a[2] row g     k 2q+8, 2q+9
 *     a[3] row g + 8 k 2q+8, 2q+9
 * ldmatrix reads four 8 x 8 tiles of bf16: lane i names the address of row i % 8 of tile i / 8 (16 bytes, 16-byte
 * aligned), and r[j] is tile j at row g, columns 2q, 2q+1; with _trans at row 2q, 2q+1, column g. */
#ifndef GPU_EMULATOR
__device__ __forceinline__ uint32_t shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

__device__ __forceinline__ void mma_bf16_16816(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* Copies 16 bytes into shared memory while the thread goes on: `bytes` of them from global memory, the rest zeros. Both
 * addresses are 16-byte aligned. A thread commits what it has asked for as a group and waits until at most N of its
 * latest groups are under way; other threads see the bytes after a barrier behind that wait. */
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

#endif

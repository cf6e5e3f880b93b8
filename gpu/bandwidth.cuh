/* bandwidth.cuh: what the kernels share whose time is that of their bytes (elementwise.cu, rmsnorm.cu, head.cu,
 * adafactor.cu, lora.cu).
 *
 * Such a kernel is as fast as the memory when two things hold. Each access of a warp moves whole 32-byte sectors: a
 * thread takes four or eight neighbouring columns in one instruction, and its neighbour the next ones. And enough bytes
 * are under way: memory answers after about 1 us, in which an H200's 132 multiprocessors could each have taken
 * 4.3 TB/s / 132 * 1 us = 33 KB (Little's law). So every thread asks for several vectors before it looks at the first.
 *
 * Vectors need rows that begin at multiples of 16 bytes. Other shapes take the same kernels with WHOLE = false, where a
 * thread does the same columns in the same order one by one: slower, and the same bits. */
#ifndef PROMOT_BANDWIDTH_CUH
#define PROMOT_BANDWIDTH_CUH

#include "common.cuh"

/* May rows of so many columns be moved in vectors of `multiple` columns? */
template <typename... T> inline bool whole_vectors(size_t multiple, size_t columns, const T *...memory)
{
    return columns % multiple == 0 && (((uintptr_t)memory % 16 == 0) && ...);
}

/* The blocks of a grid in which each does `share` of the work. */
inline unsigned blocks_for(size_t work, size_t share)
{
    return (unsigned)ceil_div<size_t>(work, share);
}

/* The threads of a block that has so much to do: whole warps, at most `limit`. */
inline unsigned threads_for(size_t work, unsigned limit)
{
    const size_t threads = ceil_div<size_t>(work ? work : 1, WARP) * WARP;
    return threads < limit ? (unsigned)threads : limit;
}

/* ================================================================================================================
 * Columns in registers (device)
 *
 * `n` is what is left of the row, at least 1: it counts only where vectors are not whole, and what lies beyond it is
 * read as `fill` (or 0) and not written. Stores say __stcg, which is what stores do anyway, because the compiler takes
 * some plain stores of a vector apart. */

template <bool WHOLE> __device__ __forceinline__ uint4 load_eight(const bf16_t *from, size_t n)
{
    if (WHOLE) return *(const uint4 *)from;
    uint32_t pair[4] = {0, 0, 0, 0};
    for (unsigned i = 0; i < 8; i++)
        if (i < n) pair[i / 2] |= (uint32_t)from[i].bits << (i % 2 * 16);
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

__device__ __forceinline__ void unpack_eight(float x[8], uint4 packed)
{
    const uint32_t pair[4] = {packed.x, packed.y, packed.z, packed.w};
    for (unsigned i = 0; i < 4; i++) {
        const float2 two = unpack_bf16x2(pair[i]);
        x[2 * i] = two.x;
        x[2 * i + 1] = two.y;
    }
}

template <bool WHOLE> __device__ __forceinline__ void store_eight(bf16_t *to, size_t n, const float x[8])
{
    if (WHOLE) {
        __stcg((uint4 *)to, make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]), pack_bf16x2(x[4], x[5]),
                                       pack_bf16x2(x[6], x[7])));
    } else {
        for (unsigned i = 0; i < 8; i++)
            if (i < n) to[i] = float_to_bf16(x[i]);
    }
}

template <bool WHOLE> __device__ __forceinline__ void load_four(float x[4], const float *from, size_t n, float fill)
{
    if (WHOLE) {
        const float4 v = *(const float4 *)from;
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
        for (unsigned i = 0; i < 4; i++) x[i] = i < n ? from[i] : fill;
    }
}

template <bool WHOLE> __device__ __forceinline__ void store_four(float *to, size_t n, const float x[4])
{
    if (WHOLE) {
        __stcg((float4 *)to, make_float4(x[0], x[1], x[2], x[3]));
    } else {
        for (unsigned i = 0; i < 4; i++)
            if (i < n) to[i] = x[i];
    }
}

template <bool WHOLE> __device__ __forceinline__ void load_four(float x[4], const bf16_t *from, size_t n)
{
    if (WHOLE) {
        const uint2 v = *(const uint2 *)from;
        const float2 low = unpack_bf16x2(v.x), high = unpack_bf16x2(v.y);
        x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
    } else {
        for (unsigned i = 0; i < 4; i++) x[i] = i < n ? bf16_to_float(from[i]) : 0;
    }
}

template <bool WHOLE> __device__ __forceinline__ void store_four(bf16_t *to, size_t n, const float x[4])
{
    if (WHOLE) {
        __stcg((uint2 *)to, make_uint2(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3])));
    } else {
        for (unsigned i = 0; i < 4; i++)
            if (i < n) to[i] = float_to_bf16(x[i]);
    }
}

/* ================================================================================================================
 * Exact weights (device)
 *
 * An fp32 with the bits u is kept as high = (u + 0x8000) >> 16, its bf16 rounding (ties away from zero), and low =
 * u & 0xffff, read as a signed number: u = (high << 16) + low, modulo 2^32, gives back every bit. */
struct SplitWeights {
    bf16_t *high;
    int16_t *low;
};

struct ConstSplitWeights {
    const bf16_t *high;
    const int16_t *low;
};

inline SplitWeights split_weights(weight_t *w) /* host */
{
    return SplitWeights{w, weights_remainder(w)};
}

inline ConstSplitWeights split_weights(const weight_t *w) /* host */
{
    return ConstSplitWeights{w, weights_remainder(w)};
}

__device__ __forceinline__ float weight_join(uint32_t high, uint32_t low)
{
    return __uint_as_float((high << 16) + (uint32_t)(int32_t)(int16_t)low);
}

__device__ __forceinline__ void weight_split(float x, uint32_t *high, uint32_t *low)
{
    const uint32_t bits = __float_as_uint(x);
    *high = (bits + 0x8000u) >> 16;
    *low = bits & 0xffffu;
}

__device__ __forceinline__ float load_weight(const bf16_t *high, const int16_t *low, size_t at)
{
    return weight_join(high[at].bits, (uint16_t)low[at]);
}

__device__ __forceinline__ void store_weight(SplitWeights to, size_t at, float x)
{
    uint32_t high, low;
    weight_split(x, &high, &low);
    to.high[at].bits = (uint16_t)high;
    to.low[at] = (int16_t)(uint16_t)low;
}

/* Four weights in two 8-byte loads: 32 lanes read 256 bytes of each plane in a row. */
template <bool WHOLE>
__device__ __forceinline__ void load_weights(float x[4], const bf16_t *high, const int16_t *low, size_t at, size_t n)
{
    if (WHOLE) {
        const uint2 h = *(const uint2 *)(high + at), l = *(const uint2 *)(low + at);
        x[0] = weight_join(h.x & 0xffffu, l.x);
        x[1] = weight_join(h.x >> 16, l.x >> 16);
        x[2] = weight_join(h.y & 0xffffu, l.y);
        x[3] = weight_join(h.y >> 16, l.y >> 16);
    } else {
        for (unsigned i = 0; i < 4; i++) x[i] = i < n ? load_weight(high, low, at + i) : 0;
    }
}

template <bool WHOLE>
__device__ __forceinline__ void store_weights(SplitWeights to, size_t at, size_t n, const float x[4])
{
    if (WHOLE) {
        uint32_t h[4], l[4];
        for (unsigned i = 0; i < 4; i++) weight_split(x[i], &h[i], &l[i]);
        __stcg((uint2 *)(to.high + at), make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16));
        __stcg((uint2 *)(to.low + at), make_uint2(l[0] | l[1] << 16, l[2] | l[3] << 16));
    } else {
        for (unsigned i = 0; i < 4; i++)
            if (i < n) store_weight(to, at + i, x[i]);
    }
}

/* ================================================================================================================
 * Sums in double (device)
 *
 * Sums over a whole tensor are made in two steps: each block leaves its part, and whoever needs the sum adds all parts
 * in an order that follows from their number. There are always two sums to make at a time. */
struct Total {
    double first, second;
};

__device__ __forceinline__ Total operator+(Total a, Total b)
{
    return Total{a.first + b.first, a.second + b.second};
}

/* Over all threads of the block, which all get the result. shared: one Total for each thread. */
__device__ __forceinline__ Total block_total(Total mine, Total *shared)
{
    const unsigned thread = thread_in_block();
    shared[thread] = mine;
    for (unsigned n = blockDim.x * blockDim.y * blockDim.z; n > 1;) {
        const unsigned half = (n + 1) / 2;
        __syncthreads();
        if (thread + half < n) shared[thread] = shared[thread] + shared[thread + half];
        n = half;
    }
    __syncthreads();
    const Total sum = shared[0];
    __syncthreads();
    return sum;
}

/* Of n parts that other blocks have left. */
__device__ __forceinline__ Total sum_of_totals(const Total *parts, unsigned n, Total *shared)
{
    Total mine = {0, 0};
    for (unsigned i = thread_in_block(); i < n; i += blockDim.x * blockDim.y * blockDim.z) mine = mine + parts[i];
    return block_total(mine, shared);
}

/* --- sums over rows. A kernel that sums columns over many rows gives each block some rows, and each block leaves its
 * sums as one row of a matrix partial [parts, stride]. This adds up one column of it: blocks of SUM_COLUMNS x
 * SUM_GROUPS threads, group y takes rows y, y + SUM_GROUPS, …, and a tree adds the groups. The threads of group 0 get
 * the sum. */
enum { SUM_COLUMNS = 32, SUM_GROUPS = 32 };

struct SumOfColumns {
    double group[SUM_GROUPS][SUM_COLUMNS];
};

__device__ __forceinline__ double sum_of_column(const float *partial, size_t parts, size_t stride, size_t column,
                                                bool exists, SumOfColumns *shared)
{
    const unsigned x = threadIdx.x, y = threadIdx.y;
    double sum = 0;
    if (exists) {
#pragma unroll 8
        for (size_t part = y; part < parts; part += SUM_GROUPS) sum += (double)partial[part * stride + column];
    }
    shared->group[y][x] = sum;
    for (unsigned half = SUM_GROUPS / 2; half; half /= 2) {
        __syncthreads();
        if (y < half) shared->group[y][x] += shared->group[y + half][x];
    }
    __syncthreads();
    sum = shared->group[0][x];
    __syncthreads();
    return sum;
}

#endif

/* hopper.cuh: the instructions of sm_90a that promot's kernels use, one thin function for each.
 *
 * Three things make a Hopper kernel. TMA copies a box of a matrix between global and shared memory while no thread
 * waits. An mbarrier in shared memory counts arrivals and bytes, so that a thread can sleep until a copy is there. And
 * wgmma lets a warpgroup (four warps, 128 threads) multiply operands that it names by descriptors of shared memory,
 * again while its threads go on. What follows are their names, and the layout on which all three agree:
 *
 * Tiles. A tile is R rows of 64 bf16 (128 bytes; or of 32 fp32), one row behind another, beginning at a multiple of
 * 1024 bytes. Within a row the eight 16-byte chunks change places: chunk c of row r lies at chunk c ^ (r % 8), so that
 * neither a row nor a column of chunks falls on the same banks (swizzled(), below). TMA writes and reads it so when the
 * box is 128 bytes wide. A wider operand is several such tiles, one behind another.
 *
 * A kernel guards its body with HOPPER_CODE: for other cards it is a trap. device->hopper keeps them from it, and a
 * Hopper card whose code (sm_90a) was not built stops there and does not go on with what was in memory before. */
#ifndef PROMOT_HOPPER_CUH
#define PROMOT_HOPPER_CUH

#include "common.cuh"

#if defined(GPU_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

enum { WARPGROUP = 128, TILE_ROW_BYTES = 128, TILE_ALIGNMENT = 1024, SHARED_LIMIT = 232448 /* of a block, opted in */ };

/* The byte at which byte `at` of a tile really lies: both are counted from a multiple of 1024. */
__host__ __device__ constexpr uint32_t swizzled(uint32_t at)
{
    return at ^ (at >> 3 & 0x70);
}

/* Where column c (a bf16) of row r of a tile lies, in bytes. */
__host__ __device__ constexpr uint32_t tile_byte(uint32_t r, uint32_t c)
{
    return swizzled(r * TILE_ROW_BYTES + c * 2);
}

/* ================================================================================================================
 * Tensor maps (host): how TMA sees a matrix in global memory
 *
 * Sizes and boxes are counted in elements, innermost first; strides in bytes. The swizzle is always that of a tile, so
 * the box is 128 bytes wide: 64 bf16 or 32 fp32. What lies outside of the matrix is read as zeros and not written. */
enum TensorType { TENSOR_BF16, TENSOR_F32 };

struct TensorBox {
    const void *base;
    TensorType type;
    unsigned rank;
    uint64_t size[3], stride[3]; /* stride[0] is the element's own size */
    uint32_t box[3];
};

#ifdef GPU_EMULATOR
struct CUtensorMap { /* the driver's is opaque; here it is what it was made from */
    TensorBox facts;
};
#else
#include <cudaTypedefs.h>
#endif

/* NULL, or which rule the map would break. The driver has the same rules (cuda.h, above cuTensorMapEncodeTiled) but
 * names none of them; the box of exactly one tile's width is ours. */
inline const char *tensor_box_fault(const TensorBox *t)
{
    const unsigned element = t->type == TENSOR_BF16 ? 2 : 4;
    if ((uintptr_t)t->base % 16) return "the address is not a multiple of 16 bytes";
    if (t->box[0] * element != TILE_ROW_BYTES) return "the box is not 128 bytes wide";
    for (unsigned i = 0; i < t->rank; i++) {
        if (t->size[i] < 1 || t->size[i] > (uint64_t)1 << 32) return "a size is not in 1 ... 2^32";
        if (t->box[i] < 1 || t->box[i] > 256) return "a side of the box is not in 1 ... 256";
        if (i && t->stride[i] % 16) return "a stride is not a multiple of 16 bytes";
        if (t->stride[i] >= (uint64_t)1 << 40) return "a stride is not below 2^40 bytes";
    }
    return NULL;
}

#ifdef GPU_EMULATOR
inline bool tensor_map_encode(CUtensorMap *map, const TensorBox *t)
{
    map->facts = *t;
    return true;
}
#else
/* The encoder is the driver's. The runtime looks it up, so nothing links against libcuda. */
inline bool tensor_map_encode(CUtensorMap *map, const TensorBox *t)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    const cuuint32_t steps[3] = {1, 1, 1};
    if (!encode) {
        void *found = NULL;
        cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status) !=
                cudaSuccess ||
            status != cudaDriverEntryPointSuccess || !found)
            return false;
        encode = (PFN_cuTensorMapEncodeTiled_v12000)found;
    }
    static_assert(sizeof(cuuint64_t) == sizeof(uint64_t) && sizeof(cuuint32_t) == sizeof(uint32_t), "TensorBox");
    return encode(map, t->type == TENSOR_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                  t->rank, const_cast<void *>(t->base), (const cuuint64_t *)t->size,
                  (const cuuint64_t *)(t->stride + 1), t->box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
#endif

inline int tensor_map_make(CUtensorMap *map, const TensorBox *t)
{
    const char *fault = tensor_box_fault(t);
    if (!fault && !tensor_map_encode(map, t)) fault = "the driver refused it";
    if (!fault) return 0;
    fprintf(stderr, "promot: tensor map: %s\n", fault);
    return -1;
}

/* A row-major matrix [outer, inner], its rows stride_bytes apart. 0, or -1 after a line on stderr. */
inline int tensor_map_2d(CUtensorMap *map, const void *base, TensorType type, size_t inner, size_t outer,
                         size_t stride_bytes, unsigned box_inner, unsigned box_outer)
{
    const uint64_t element = type == TENSOR_BF16 ? 2 : 4;
    const TensorBox t = {base, type, 2, {inner, outer, 1}, {element, stride_bytes, 16}, {box_inner, box_outer, 1}};
    return tensor_map_make(map, &t);
}

/* [outer, middle, inner]. Several tiles side by side come in one copy as a box {64, rows, tiles} of the matrix seen as
 * {64, rows, columns / 64} with strides {row, 128 bytes}. */
inline int tensor_map_3d(CUtensorMap *map, const void *base, TensorType type, size_t inner, size_t middle, size_t outer,
                         size_t middle_stride_bytes, size_t outer_stride_bytes, unsigned box_inner, unsigned box_middle,
                         unsigned box_outer)
{
    const uint64_t element = type == TENSOR_BF16 ? 2 : 4;
    const TensorBox t = {base,
                         type,
                         3,
                         {inner, middle, outer},
                         {element, middle_stride_bytes, outer_stride_bytes},
                         {box_inner, box_middle, box_outer}};
    return tensor_map_make(map, &t);
}

#ifdef GPU_EMULATOR
#include "../tests/gpu_emulator_hopper.h"
#else
/* ================================================================================================================
 * mbarriers
 *
 * A phase is complete when `count` arrivals have come and all bytes that were expected. A fresh barrier is in phase 0;
 * waiting for parity p returns when the phase of that parity is complete, so p = 1 returns at once on a fresh barrier.
 * One thread initialises, fences (mbarrier_fence_init), and a block or cluster barrier follows before anybody else
 * touches it. */
__device__ __forceinline__ void mbarrier_init(uint64_t *bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_fence_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* Expects so many bytes of this phase, then arrives once. */
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}

/* Arrives at the barrier at the same place in block `cta` of the cluster. No order of ordinary memory goes with it
 * (.release.cluster would cost a fence of the whole card at every stage): what a stage holds is written by TMA and read
 * by wgmma, which has been waited for, and by nobody else. */
__device__ __forceinline__ void mbarrier_arrive_cluster(uint64_t *bar, uint32_t cta)
{
    asm volatile("{\n\t.reg .b32 remote;\n\tmapa.shared::cluster.u32 remote, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(shared_address(bar)),
                 "r"(cta)
                 : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n\t.reg .pred done;\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, done;\n\t}"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return done;
}

/* A wait that never ends is the usual first bug. -DPROMOT_BOUNDED_WAITS makes a line of it, and slower code: beside a
 * call such as printf's the assembler finishes every wgmma before the next. */
__device__ __forceinline__ void mbarrier_spin(bool done, uint32_t *polls, uint64_t *bar, uint32_t parity)
{
#ifdef PROMOT_BOUNDED_WAITS
    if (done || ++*polls < 1u << 22) return;
    printf("mbarrier at shared %u: phase of parity %u does not end: block (%u, %u, %u), thread %u\n",
           shared_address(bar), parity, blockIdx.x, blockIdx.y, blockIdx.z, thread_in_block());
    __trap();
#else
    (void)done, (void)polls, (void)bar, (void)parity;
#endif
}

__device__ __forceinline__ void mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t polls = 0;
    for (bool done = false; !done; mbarrier_spin(done, &polls, bar, parity)) done = mbarrier_try_wait(bar, parity);
}

/* ================================================================================================================
 * TMA: one thread asks, c0 is the innermost coordinate. A load credits all bytes of its box to the barrier, those
 * outside of the matrix too. */
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void tma_load_2d(void *shared, const CUtensorMap *map, int c0, int c1, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(c0), "r"(c1), "r"(shared_address(bar))
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(void *shared, const CUtensorMap *map, int c0, int c1, int c2, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(bar))
                 : "memory");
}

/* Into every block of the cluster whose bit is in the mask, at the same place, and to the barrier at the same place. */
__device__ __forceinline__ void tma_load_2d_multicast(void *shared, const CUtensorMap *map, int c0, int c1,
                                                      uint64_t *bar, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(c0), "r"(c1), "r"(shared_address(bar)), "h"(mask)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d_multicast(void *shared, const CUtensorMap *map, int c0, int c1, int c2,
                                                      uint64_t *bar, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(bar)), "h"(mask)
                 : "memory");
}

/* Stores read shared memory later. Whoever wrote it calls fence_proxy_async_shared and then a barrier; the thread that
 * stores commits its stores as a group and waits: _read until they have read, without it until they have written. */
__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, const void *shared, int c0, int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(c0),
                 "r"(c1), "r"(shared_address(shared))
                 : "memory");
}

__device__ __forceinline__ void tma_store_3d(const CUtensorMap *map, const void *shared, int c0, int c1, int c2)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(c0),
                 "r"(c1), "r"(c2), "r"(shared_address(shared))
                 : "memory");
}

/* Adds, in the map's type. The order among several adders is nobody's, so let there be one. */
__device__ __forceinline__ void tma_reduce_add_2d(const CUtensorMap *map, const void *shared, int c0, int c1)
{
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(c0), "r"(c1), "r"(shared_address(shared))
        : "memory");
}

__device__ __forceinline__ void tma_store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void tma_store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

template <int N> __device__ __forceinline__ void tma_store_wait()
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

/* The same without a map: a run of bytes, address and length multiples of 16. */
__device__ __forceinline__ void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

__device__ __forceinline__ void bulk_store(void *global, const void *shared, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_reduce_add_f32(float *global, const float *shared, uint32_t bytes)
{
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
}

/* ================================================================================================================
 * Fences, barriers, registers, clusters, grids */

/* Makes this thread's ordinary stores to shared memory visible to TMA and wgmma; a barrier follows. */
__device__ __forceinline__ void fence_proxy_async_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The same for global memory, in both directions. */
__device__ __forceinline__ void fence_proxy_async_global()
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/* Barriers 1 … 15 of the block (0 is __syncthreads), for so many threads, a multiple of 32: who syncs waits for all,
 * who arrives goes on. */
__device__ __forceinline__ void named_barrier(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Registers of each thread of a warpgroup, given back or taken from what others gave: a wrong sum waits for ever. The
 * kernel needs __launch_bounds__(threads, 1). */
template <int N> __device__ __forceinline__ void setmaxnreg_inc()
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void setmaxnreg_dec()
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Programmatic dependent launch: wait until the kernels before this one have written; let the next one begin. */
__device__ __forceinline__ void griddepcontrol_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void griddepcontrol_launch()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Four 8 x 8 tiles of bf16 into shared memory, ldmatrix backwards: lane i names row i % 8 of tile i / 8. */
__device__ __forceinline__ void stmatrix_x4(void *shared_row, const uint32_t r[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared_row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(void *shared_row, const uint32_t r[4])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared_row)),
        "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
        : "memory");
}

/* ================================================================================================================
 * wgmma: D [64, N] (+)= A [64, 16] · B [16, N], bf16 operands, fp32 sums
 *
 * Register i of thread t of the warpgroup (w = t / 32, g = t % 32 / 4, q = t % 4) is D at
 *     row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 q + i % 2,
 * and an A in registers, a[r] holding two k in its halves, is at row 16 w + g + 8 (r % 2), k = 2 q + 8 (r / 2) + half.
 *
 * An operand in shared memory is a tile and a descriptor. Its contraction runs along the tile's columns (K-major, TRANS
 * 0) or along its rows (MN-major, TRANS 1):
 *               lbo                                  sbo   the next 16 of k    the next 64 of m or n
 *     K-major   16 (ignored)                         1024  + 32 bytes          + 64 rows: 8192 bytes
 *     MN-major  bytes from one 64-wide tile to next  1024  + 16 rows: 2048     the next tile: + lbo
 * wgmma_advance moves a descriptor by bytes. */
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *shared, uint32_t lbo_bytes, uint32_t sbo_bytes)
{
    const uint64_t swizzle_128_bytes = (uint64_t)1 << 62;
    return swizzle_128_bytes | (uint64_t)(sbo_bytes >> 4 & 0x3fff) << 32 | (uint64_t)(lbo_bytes >> 4 & 0x3fff) << 16 |
           (shared_address(shared) >> 4 & 0x3fff);
}

/* Before the first wgmma, and after anything else touched its registers. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N of the latest groups are under way: only then may their registers be read and their tiles reused. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    static_assert(N >= 0 && N <= 7, "wgmma_wait");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Keeps the compiler from moving other uses of a product's registers across: before the fence and after the wait.
 * Accumulators, */
template <int R> __device__ __forceinline__ void warpgroup_fence_operand(float (&d)[R])
{
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* and an A operand in registers, which belongs to the product as long, even for reading. */
template <int R> __device__ __forceinline__ void warpgroup_fence_operand(uint32_t (&a)[R][4])
{
#pragma unroll
    for (int i = 0; i < 4 * R; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

/* The registers' names in the text, and their values behind it, eight at a time. */
#define WGMMA_NAMES_32                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_48 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_64 WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_96                                                                                                 \
    WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
                   "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_128                                                                                                \
    WGMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "    \
                   "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_8(i)                                                                                                     \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define WGMMA_VALUES_32 WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24)
#define WGMMA_VALUES_48 WGMMA_VALUES_32, WGMMA_8(32), WGMMA_8(40)
#define WGMMA_VALUES_64 WGMMA_VALUES_48, WGMMA_8(48), WGMMA_8(56)
#define WGMMA_VALUES_96 WGMMA_VALUES_64, WGMMA_8(64), WGMMA_8(72), WGMMA_8(80), WGMMA_8(88)
#define WGMMA_VALUES_128 WGMMA_VALUES_96, WGMMA_8(96), WGMMA_8(104), WGMMA_8(112), WGMMA_8(120)

/* N columns in R = N / 2 registers; the operands behind them are numbered from R on: I0 is R, I1 is R + 1, … */
#define WGMMA_SHAPE(N, R, I0, I1, I2, I3, I4, I5, I6)                                                                  \
    template <int TRANS_A, int TRANS_B> struct WgmmaShape<N, TRANS_A, TRANS_B> {                                       \
        static __device__ __forceinline__ void ss(float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate)          \
        {                                                                                                              \
            asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #I2 ", 0;\n\t"                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##R                  \
                         "}, %" #I0 ", %" #I1 ", p, 1, 1, %" #I3 ", %" #I4 ";\n\t}"                                    \
                         : WGMMA_VALUES_##R                                                                            \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B)                                 \
                         : "memory");                                                                                  \
        }                                                                                                              \
        static __device__ __forceinline__ void rs(float (&d)[R], const uint32_t (&a)[4], uint64_t b,                   \
                                                  uint32_t accumulate)                                                 \
        {                                                                                                              \
            asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #I5 ", 0;\n\t"                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##R                  \
                         "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", p, 1, 1, %" #I6 ";\n\t}"              \
                         : WGMMA_VALUES_##R                                                                            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B)           \
                         : "memory");                                                                                  \
        }                                                                                                              \
    };

template <int N, int TRANS_A, int TRANS_B> struct WgmmaShape;
WGMMA_SHAPE(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA_SHAPE(96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA_SHAPE(128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA_SHAPE(192, 96, 96, 97, 98, 99, 100, 101, 102)
WGMMA_SHAPE(256, 128, 128, 129, 130, 131, 132, 133, 134)

/* All four warps call these together. accumulate false: D (=), which is how a sum begins. */
template <int N, int TRANS_A, int TRANS_B>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate)
{
    WgmmaShape<N, TRANS_A, TRANS_B>::ss(d, a, b, accumulate);
}

template <int N, int TRANS_B>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate)
{
    WgmmaShape<N, 0, TRANS_B>::rs(d, a, b, accumulate);
}
#endif

__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes)
{
    return descriptor + (bytes >> 4);
}

#endif

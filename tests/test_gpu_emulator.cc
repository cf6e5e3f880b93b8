/* The wrappers of gpu/common.cuh and gpu/hopper.cuh, each against plain loops. In the emulator this tests the emulator;
 * compiled by nvcc, the same kernels ask a card whether descriptors, fragments, boxes and phases are as we believe.
 *
 * All inputs are small integers, exact in bf16 and in sums, so every comparison is for equality. The second half is for
 * the emulator alone: kernels with one mistake each, which it must notice. */
#include "test.h"

#include <algorithm>
#include <string>
#include <sys/wait.h>
#include <vector>

#include "../gpu/device.cu"
#include "../gpu/hopper.cuh"

static Device *device(void)
{
    static Device *dev;
    Error error;
    if (!dev && !(dev = device_open(1, MATMUL_FP32, &error))) {
        fprintf(stderr, "%s\n", error.text);
        exit(EXIT_FAILED);
    }
    return dev;
}

/* Host vectors and their copies on the device. */
template <typename T> static T *to_device(const std::vector<T> &host)
{
    T *memory = (T *)device_alloc(host.size() * sizeof(T));
    device_upload(device(), memory, host.data(), host.size() * sizeof(T));
    return memory;
}

template <typename T> static std::vector<T> from_device(const T *memory, size_t n)
{
    std::vector<T> host(n);
    device_download(device(), host.data(), memory, n * sizeof(T));
    return host;
}

static uint32_t random_state = 1;

static int random_integer(void) /* -8 … 8 */
{
    random_state = random_state * 1664525u + 1013904223u;
    return (int)(random_state >> 16) % 17 - 8;
}

static std::vector<bf16_t> random_matrix(size_t n)
{
    std::vector<bf16_t> matrix(n);
    for (bf16_t &x : matrix) {
        const float value = (float)random_integer();
        uint32_t u;
        memcpy(&u, &value, sizeof u);
        x.bits = (uint16_t)(u >> 16);
    }
    return matrix;
}

static float number(bf16_t x)
{
    const uint32_t u = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &u, sizeof value);
    return value;
}

/* ---------------------------------------------------------------------------------------------------------------- */

static __global__ void meet_kernel(uint32_t *out)
{
    __shared__ float shared32[32];
    DYNAMIC_SHARED(unsigned, turned);
    const unsigned t = threadIdx.x, n = blockDim.x;
    turned[n - 1 - t] = t;
    __syncthreads();
    uint32_t *own = out + (blockIdx.x * n + t) * 8;
    own[0] = turned[t];
    own[1] = (uint32_t)block_sum((float)t, shared32);
    own[2] = (uint32_t)block_max((float)(t ^ 5), shared32);
    own[3] = __ballot_sync(0xffffffffu, t % 3 == 0);
    own[4] = __shfl_down_sync(0xffffffffu, t, 3, 8);
    own[5] = __shfl_up_sync(0xffffffffu, t, 2);
    own[6] = t % 32 < 16 ? __shfl_xor_sync(0x0000ffffu, t, 1) : __shfl_sync(0xffff0000u, t, 17);
    own[7] = (uint32_t)__syncthreads_count(t % 2 == 0 && t < 40);
}

static void barriers_and_shuffles(void)
{
    const unsigned blocks = 5, n = 96;
    std::vector<uint32_t> zeros(blocks * n * 8);
    uint32_t *out = to_device(zeros);
    launch(device(), meet_kernel, dim3(blocks), dim3(n), n * 4, out);
    const std::vector<uint32_t> got = from_device(out, zeros.size());
    for (unsigned i = 0; i < blocks * n; i++) {
        const unsigned t = i % n, lane = t % 32, warp = t / 32 * 32;
        uint32_t ballot = 0;
        for (unsigned l = 0; l < 32; l++) ballot |= (uint32_t)((warp + l) % 3 == 0) << l;
        const uint32_t want[8] = {n - 1 - t,
                                  n * (n - 1) / 2,
                                  95,
                                  ballot,
                                  lane % 8 + 3 < 8 ? t + 3 : t,
                                  lane >= 2 ? t - 2 : t,
                                  lane < 16 ? t ^ 1 : warp + 17,
                                  20};
        for (int j = 0; j < 8; j++)
            CHECK(got[i * 8 + j] == want[j], "thread %u, item %d: %u, not %u", i, j, got[i * 8 + j], want[j]);
    }
    device_free(out);
}

/* ---------------------------------------------------------------------------------------------------------------- */

/* C [16, 8] = A [16, 16] · B [16, 8] where A lies as [m][k] or [k][m], B as [n][k] or [k][n], all in rows of 16. */
static __global__ void mma_kernel(float *c, const bf16_t *a, const bf16_t *b, bool a_turned, bool b_turned)
{
    DYNAMIC_SHARED(bf16_t, tile);
    const unsigned l = threadIdx.x, row = l % 8, i = l / 8;
    bf16_t *a_tile = tile, *b_tile = tile + 256;
    cp_async_16(a_tile + 8 * l, a + 8 * l, 16);
    cp_async_16(b_tile + 8 * l, b + 8 * l, l < 16 || b_turned ? 16 : 0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    uint32_t af[4], bf[4];
    float cf[4] = {0, 0, 0, 0};
    if (a_turned) /* the tiles in the order (m 0, k 0) (m 8, k 0) (m 0, k 8) (m 8, k 8), each read across */
        ldmatrix_x4_trans(af, a_tile + (row + 8 * (i / 2)) * 16 + 8 * (i % 2));
    else
        ldmatrix_x4(af, a_tile + (row + 8 * (i % 2)) * 16 + 8 * (i / 2));
    if (b_turned)
        ldmatrix_x4_trans(bf, b_tile + (row + 8 * (i % 2)) * 16);
    else
        ldmatrix_x4(bf, b_tile + row * 16 + 8 * (i % 2));
    mma_bf16_16816(cf, af, bf);
    for (unsigned j = 0; j < 4; j++) c[(l / 4 + 8 * (j / 2)) * 8 + 2 * (l % 4) + j % 2] = cf[j];
}

static void mma_in_all_layouts(void)
{
    for (int layout = 0; layout < 4; layout++) {
        const bool a_turned = layout & 1, b_turned = layout & 2;
        const std::vector<bf16_t> a = random_matrix(256), b = random_matrix(256);
        bf16_t *da = to_device(a), *db = to_device(b);
        float *dc = to_device(std::vector<float>(128, NAN));
        launch(device(), mma_kernel, dim3(1), dim3(32), 1024, dc, da, db, a_turned, b_turned);
        const std::vector<float> c = from_device(dc, 128);
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 8; n++) {
                float sum = 0;
                for (int k = 0; k < 16; k++)
                    sum +=
                        number(a[a_turned ? k * 16 + m : m * 16 + k]) * number(b[b_turned ? k * 16 + n : n * 16 + k]);
                CHECK(c[m * 8 + n] == sum, "layout %d, (%d, %d): %g, not %g", layout, m, n, c[m * 8 + n], sum);
            }
        device_free(da), device_free(db), device_free(dc);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- */

static void swizzle_is_a_permutation(void)
{
    std::vector<bool> seen(1024);
    for (uint32_t at = 0; at < 1024; at++) {
        CHECK(swizzled(at) < 1024 && !seen[swizzled(at)], "byte %u", at);
        seen[swizzled(at)] = true;
    }
    for (uint32_t r = 0; r < 64; r++)
        for (uint32_t c = 0; c < 64; c++)
            CHECK(tile_byte(r, c) == r * 128 + ((c / 8 ^ r % 8) << 4) + c % 8 * 2, "(%u, %u)", r, c);
}

/* Loads one box, shows the raw bytes, and stores it elsewhere: plainly, or added. */
template <int RANK, bool ADD>
static __global__ void box_kernel(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to,
                                  unsigned char *raw, int c0, int c1, int c2, unsigned bytes)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(unsigned char, tile);
    uint64_t *bar = (uint64_t *)(tile + bytes);
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        mbarrier_fence_init();
        tma_prefetch_map(&from);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(bar, bytes);
        if (RANK == 2)
            tma_load_2d(tile, &from, c0, c1, bar);
        else
            tma_load_3d(tile, &from, c0, c1, c2, bar);
    }
    mbarrier_wait(bar, 0);
    for (unsigned i = threadIdx.x; i < bytes; i += blockDim.x) raw[i] = tile[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        if (ADD)
            tma_reduce_add_2d(&to, tile, c0, c1);
        else if (RANK == 2)
            tma_store_2d(&to, tile, c0, c1);
        else
            tma_store_3d(&to, tile, c0, c1, c2);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
#endif
}

static void set_number(bf16_t *x, size_t i)
{
    x->bits = (uint16_t)i;
}

static void set_number(float *x, size_t i)
{
    *x = (float)i;
}

static bf16_t added(bf16_t, bf16_t b) /* only fp32 is added to in global memory */
{
    return b;
}

static float added(float a, float b)
{
    return a + b;
}

/* A matrix [2][20][size0] of distinct numbers whose rows are longer than what the map shows of them. */
template <typename T> static void check_box(TensorType type, int rank, bool add, int c0, int c1, int c2)
{
    const int width = 128 / sizeof(T), size0 = width + 5, pitch = width + 16, size1 = 20, size2 = 2;
    const int box1 = 24, box2 = rank == 3 ? 2 : 1;
    const unsigned bytes = 128u * box1 * (unsigned)box2;
    std::vector<T> matrix((size_t)(size2 * size1 * pitch)), want(matrix.size());
    for (size_t i = 0; i < matrix.size(); i++) {
        set_number(&matrix[i], i + 1);
        set_number(&want[i], i % 7);
    }
    T *from = to_device(matrix), *to = to_device(want);
    unsigned char *raw = to_device(std::vector<unsigned char>(bytes));
    CUtensorMap maps[2];
    for (int i = 0; i < 2; i++) {
        const size_t row = (size_t)pitch * sizeof(T);
        CHECK((rank == 2 ? tensor_map_2d(&maps[i], i ? to : from, type, size0, size1, row, width, box1)
                         : tensor_map_3d(&maps[i], i ? to : from, type, size0, size1, size2, row, size1 * row, width,
                                         box1, (unsigned)box2)) == 0);
    }
    auto kernel = rank == 3 ? box_kernel<3, false> : add ? box_kernel<2, true> : box_kernel<2, false>;
    launch(device(), kernel, dim3(1), dim3(64), bytes + 16, maps[0], maps[1], raw, c0, c1, c2, bytes);
    const std::vector<unsigned char> tile = from_device(raw, bytes);
    const std::vector<T> after = from_device(to, want.size());
    size_t wrong = 0;
    for (int i = 0; i < box2 * box1 * width; i++) {
        const int x = c0 + i % width, y = c1 + i / width % box1, z = rank == 3 ? c2 + i / width / box1 : 0;
        const bool inside = x >= 0 && x < size0 && y >= 0 && y < size1 && z >= 0 && z < size2;
        const size_t place = inside ? (size_t)((z * size1 + y) * pitch + x) : 0;
        const T expected = inside ? matrix[place] : T();
        wrong += memcmp(&tile[swizzled((uint32_t)(i * (int)sizeof(T)))], &expected, sizeof(T)) != 0;
        if (inside) want[place] = add ? added(want[place], matrix[place]) : matrix[place];
    }
    CHECK(wrong == 0, "%zu elements of the box at (%d, %d, %d) are wrong in shared memory", wrong, c0, c1, c2);
    CHECK(memcmp(after.data(), want.data(), want.size() * sizeof(T)) == 0, "the store at (%d, %d, %d)", c0, c1, c2);
    device_free(from), device_free(to), device_free(raw);
}

static void tma_boxes_at_the_edges(void)
{
    if (!device()->hopper) SKIP("no Hopper card");
    static const int places[][3] = {{0, 0, 0}, {3, 2, 0}, {-7, -3, -1}, {40, 15, 1}, {-200, 0, 0}};
    for (const int *at : places) {
        check_box<bf16_t>(TENSOR_BF16, 2, false, at[0], at[1], 0);
        check_box<bf16_t>(TENSOR_BF16, 3, false, at[0], at[1], at[2]);
        check_box<float>(TENSOR_F32, 2, false, at[0], at[1], 0);
        check_box<float>(TENSOR_F32, 2, true, at[0], at[1], 0);
    }
}

static void tensor_maps_are_checked(void)
{
    alignas(64) static char memory[256];
    const TensorBox good = {memory, TENSOR_BF16, 2, {64, 8, 1}, {2, 128, 16}, {64, 8, 1}};
    TensorBox bad[7] = {good, good, good, good, good, good, good};
    CHECK(!tensor_box_fault(&good));
    bad[0].base = memory + 8;
    bad[1].box[0] = 32;
    bad[2].size[1] = 0;
    bad[3].size[0] = ((uint64_t)1 << 32) + 1;
    bad[4].box[1] = 257;
    bad[5].stride[1] = 130;
    bad[6].stride[1] = (uint64_t)1 << 40;
    for (int i = 0; i < 7; i++) CHECK(tensor_box_fault(&bad[i]), "fault %d", i);
}

/* ---------------------------------------------------------------------------------------------------------------- */

static void fragments_are_bijective(void)
{
    for (unsigned n : {64u, 96u, 128u, 192u, 256u}) {
        std::vector<bool> seen(64 * n);
        for (unsigned t = 0; t < 128; t++)
            for (unsigned i = 0; i < n / 2; i++) {
                const unsigned row = t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2),
                               column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
                CHECK(!seen[row * n + column], "thread %u, register %u", t, i);
                seen[row * n + column] = true;
#ifdef GPU_EMULATOR
                CHECK(emulator::accumulator_place(t, i, n) == row * n + column);
#endif
            }
    }
}

/* D [64, N] = A · B over k = 64. A lies as [m][k] or [k][m], B as [n][k] or [k][n] (N rounded up to whole tiles). */
template <int N, int TA, int TB, bool RS>
static __global__ void __launch_bounds__(128, 1)
    wgmma_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map, const bf16_t *a,
                 float *out)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(unsigned char, shared);
    const int b_tiles = TB ? (N + 63) / 64 : 1, b_bytes = TB ? b_tiles * 8192 : N * 128;
    unsigned char *a_tile = shared, *b_tile = shared + 8192;
    uint64_t *bar = (uint64_t *)(b_tile + b_bytes);
    const unsigned t = threadIdx.x, g = t % 32 / 4, q = t % 4;
    float d[N / 2];
    if (t == 0) {
        mbarrier_init(bar, 1);
        mbarrier_fence_init();
    }
    __syncthreads();
    if (t == 0) {
        mbarrier_arrive_expect_tx(bar, 8192 + (uint32_t)b_bytes);
        tma_load_2d(a_tile, &a_map, 0, 0, bar);
        for (int i = 0; i < b_tiles; i++) tma_load_2d(b_tile + 8192 * i, &b_map, 64 * i, 0, bar);
    }
    mbarrier_wait(bar, 0);
    const uint64_t a_at = wgmma_descriptor(a_tile, 16, 1024);
    const uint64_t b_at = wgmma_descriptor(b_tile, TB ? 8192 : 16, 1024);
    warpgroup_fence_operand(d);
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
        const uint64_t b_now = wgmma_advance(b_at, TB ? 2048 * k : 32 * k);
        uint32_t fragment[4];
        for (unsigned r = 0; RS && r < 4; r++) { /* a holds [m][k] then */
            const bf16_t *pair = a + (t / 32 * 16 + g + 8 * (r % 2)) * 64 + 16 * k + 2 * q + 8 * (r / 2);
            fragment[r] = (uint32_t)pair[1].bits << 16 | pair[0].bits;
        }
        wgmma_fence();
        if (RS)
            wgmma_rs<N, TB>(d, fragment, b_now, k > 0);
        else
            wgmma_ss<N, TA, TB>(d, wgmma_advance(a_at, TA ? 2048 * k : 32 * k), b_now, k > 0);
        wgmma_commit();
        if (RS) wgmma_wait<0>(); /* the fragment's registers are used again */
    }
    wgmma_wait<0>();
    warpgroup_fence_operand(d);
#pragma unroll
    for (unsigned i = 0; i < N / 2; i++)
        out[(t / 32 * 16 + g + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * q + i % 2] = d[i];
#endif
}

template <int N, int TA, int TB, bool RS> static void check_wgmma(void)
{
    const size_t b_width = ((N + 63) / 64) * 64;
    const std::vector<bf16_t> a = random_matrix(64 * 64), b = random_matrix(TB ? 64 * b_width : N * 64);
    bf16_t *da = to_device(a), *db = to_device(b);
    float *out = to_device(std::vector<float>(64 * N, NAN));
    CUtensorMap a_map, b_map;
    CHECK(tensor_map_2d(&a_map, da, TENSOR_BF16, 64, 64, 128, 64, 64) == 0);
    CHECK(tensor_map_2d(&b_map, db, TENSOR_BF16, TB ? b_width : 64, TB ? 64 : N, TB ? b_width * 2 : 128, 64,
                        TB ? 64 : N) == 0);
    launch(device(), wgmma_kernel<N, TA, TB, RS>, dim3(1), dim3(128), 8192 + b_width * 128 + 16, a_map, b_map, da, out);
    const std::vector<float> d = from_device(out, 64 * N);
    size_t wrong = 0;
    for (size_t m = 0; m < 64; m++)
        for (size_t n = 0; n < N; n++) {
            float sum = 0;
            for (size_t k = 0; k < 64; k++)
                sum += number(a[TA ? k * 64 + m : m * 64 + k]) * number(b[TB ? k * b_width + n : n * 64 + k]);
            wrong += !(d[m * N + n] == sum);
        }
    CHECK(wrong == 0, "m64n%dk16, A %s, B %s: %zu of %d elements are wrong", N,
          RS   ? "in registers"
          : TA ? "M-major"
               : "K-major",
          TB ? "N-major" : "K-major", wrong, 64 * N);
    device_free(da), device_free(db), device_free(out);
}

template <int N> static void check_wgmma_shape(void)
{
    check_wgmma<N, 0, 0, false>();
    check_wgmma<N, 0, 1, false>();
    check_wgmma<N, 1, 0, false>();
    check_wgmma<N, 1, 1, false>();
    check_wgmma<N, 0, 0, true>();
    check_wgmma<N, 0, 1, true>();
}

static void wgmma_in_all_layouts(void)
{
    if (!device()->hopper) SKIP("no Hopper card");
    check_wgmma_shape<64>();
    check_wgmma_shape<96>();
    check_wgmma_shape<128>();
    check_wgmma_shape<192>();
    check_wgmma_shape<256>();
}

/* ----------------------------------------------------------------------------------------------------------------
 * A whole pipeline, and its mistakes. C [128 tiles, 64] = A [128 tiles, K] · B [64, K]ᵀ, a producer warpgroup and two
 * consumers of 64 rows each, three stages, persistent blocks, in pairs that share B by multicast. MISTAKE is a
 * compile-time number: with NONE the kernel is right. */
enum Mistake {
    NONE,
    EARLY_RELEASE,      /* a stage is given back before the products that read it are done */
    NO_FULL_WAIT,       /* products begin before their stage is there */
    NO_PRODUCT_WAIT,    /* sums are read before they are ready */
    NO_REGISTER_FENCE,  /* wgmma_fence is missing */
    NO_PROXY_FENCE,     /* staged results are stored without fence.proxy.async */
    NO_STAGE_BARRIER,   /* ... without a barrier between writers and the thread that stores */
    WRONG_BYTES,        /* fewer bytes expected than come */
    NO_FLIP,            /* the producer waits for the same parity for ever */
    NO_STORE_WAIT,      /* the block ends while a store reads */
    TOO_MANY_REGISTERS, /* setmaxnreg asks for more than there are */
    SECOND_ARRIVAL,     /* a consumer releases a stage twice */
    NO_FENCE_INIT,      /* mbarriers are used by TMA without fence.mbarrier_init */
    NO_LAST_CLUSTER_SYNC
};

enum { STAGES = 3, A_BYTES = 128 * 128, STAGE_BYTES = A_BYTES + 64 * 128, STAGING_BYTES = 128 * 128 };

#if HOPPER_CODE
template <int MISTAKE>
static __device__ void produce(const CUtensorMap *a_map, const CUtensorMap *b_map, unsigned char *stages,
                               uint64_t *full, uint64_t *empty, int tiles, int k_blocks)
{
    const uint32_t rank = cluster_rank();
    uint32_t stage = 0, phase = 1;
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x)
        for (int k = 0; k < k_blocks; k++) {
            unsigned char *a_tile = stages + stage * STAGE_BYTES, *b_tile = a_tile + A_BYTES;
            mbarrier_wait(&empty[stage], phase);
            mbarrier_arrive_expect_tx(&full[stage], MISTAKE == WRONG_BYTES ? STAGE_BYTES - 4096 : STAGE_BYTES);
            tma_load_2d(a_tile, a_map, 64 * k, 128 * tile, &full[stage]);
            tma_load_2d_multicast(b_tile + 4096 * rank, b_map, 64 * k, (int)(32 * rank), &full[stage], 3);
            if (++stage == STAGES) {
                stage = 0;
                if (MISTAKE != NO_FLIP) phase ^= 1;
            }
        }
}

template <int MISTAKE>
static __device__ void consume(const CUtensorMap *c_map, unsigned char *stages, unsigned char *staging, uint64_t *full,
                               uint64_t *empty, int tiles, int k_blocks)
{
    const unsigned t = threadIdx.x % WARPGROUP, l = t % 32, half = threadIdx.x / WARPGROUP - 1;
    uint32_t stage = 0, phase = 0;
    staging += 8192 * half;
    float d[32];
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
        for (int k = 0; k < k_blocks; k++) {
            const uint64_t a_at = wgmma_descriptor(stages + stage * STAGE_BYTES + 8192 * half, 16, 1024);
            const uint64_t b_at = wgmma_descriptor(stages + stage * STAGE_BYTES + A_BYTES, 16, 1024);
            if (MISTAKE != NO_FULL_WAIT) mbarrier_wait(&full[stage], phase);
            warpgroup_fence_operand(d);
            if (MISTAKE != NO_REGISTER_FENCE) wgmma_fence();
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                wgmma_ss<64, 0, 0>(d, wgmma_advance(a_at, 32 * i), wgmma_advance(b_at, 32 * i), k > 0 || i > 0);
            wgmma_commit();
            if (MISTAKE != EARLY_RELEASE && MISTAKE != NO_PRODUCT_WAIT) wgmma_wait<0>();
            warpgroup_fence_operand(d);
            if (t < (MISTAKE == SECOND_ARRIVAL ? 3 : 2)) mbarrier_arrive_cluster(&empty[stage], t % 2);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        if (MISTAKE == EARLY_RELEASE) wgmma_wait<0>();
        if (t == 0) tma_store_wait_read<0>();
        named_barrier(1 + half, WARPGROUP);
        for (unsigned j = 0; j < 4; j++) { /* 16 columns at a time, as stmatrix takes them */
            const uint32_t pairs[4] = {pack_bf16x2(d[8 * j], d[8 * j + 1]), pack_bf16x2(d[8 * j + 2], d[8 * j + 3]),
                                       pack_bf16x2(d[8 * j + 4], d[8 * j + 5]),
                                       pack_bf16x2(d[8 * j + 6], d[8 * j + 7])};
            stmatrix_x4(staging + tile_byte(t / 32 * 16 + l % 16, 16 * j + 8 * (l / 16)), pairs);
        }
        if (MISTAKE != NO_PROXY_FENCE) fence_proxy_async_shared();
        if (MISTAKE != NO_STAGE_BARRIER) named_barrier(1 + half, WARPGROUP);
        if (t == 0) {
            tma_store_2d(c_map, staging, 0, 128 * tile + 64 * (int)half);
            tma_store_commit();
        }
    }
    if (t == 0 && MISTAKE != NO_STORE_WAIT) tma_store_wait_read<0>();
    if (MISTAKE == NO_PRODUCT_WAIT) wgmma_wait<0>();
}
#endif

template <int MISTAKE>
static __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    pipeline_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                    const __grid_constant__ CUtensorMap c_map, int tiles, int k_blocks)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *staging = shared + STAGES * STAGE_BYTES;
    uint64_t *full = (uint64_t *)(staging + STAGING_BYTES), *empty = full + STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 4); /* two consumers in each of two blocks */
        }
        if (MISTAKE != NO_FENCE_INIT) mbarrier_fence_init();
    }
    __syncthreads();
    cluster_sync();
    if (threadIdx.x / WARPGROUP == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) produce<MISTAKE>(&a_map, &b_map, shared, full, empty, tiles, k_blocks);
    } else {
        setmaxnreg_inc<(MISTAKE == TOO_MANY_REGISTERS ? 240 : 232)>();
        consume<MISTAKE>(&c_map, shared, staging, full, empty, tiles, k_blocks);
    }
    if (MISTAKE != NO_LAST_CLUSTER_SYNC) cluster_sync();
#endif
}

/* The number of wrong elements. */
template <int MISTAKE> static size_t run_pipeline(void)
{
    const size_t tiles = 8, k_blocks = 5, rows = tiles * 128, width = k_blocks * 64;
    const std::vector<bf16_t> a = random_matrix(rows * width), b = random_matrix(64 * width);
    bf16_t *da = to_device(a), *db = to_device(b), *dc = to_device(random_matrix(rows * 64));
    CUtensorMap a_map, b_map, c_map;
    if (tensor_map_2d(&a_map, da, TENSOR_BF16, width, rows, width * 2, 64, 128) ||
        tensor_map_2d(&b_map, db, TENSOR_BF16, width, 64, width * 2, 64, 32) ||
        tensor_map_2d(&c_map, dc, TENSOR_BF16, 64, rows, 128, 64, 64))
        return SIZE_MAX;
    launch_cluster(device(), pipeline_kernel<MISTAKE>, dim3(4), dim3(3 * WARPGROUP), 2,
                   STAGES * STAGE_BYTES + STAGING_BYTES + 64, a_map, b_map, c_map, (int)tiles, (int)k_blocks);
    const std::vector<bf16_t> c = from_device(dc, rows * 64);
    size_t wrong = 0;
    for (size_t m = 0; m < rows; m++)
        for (size_t n = 0; n < 64; n++) {
            float sum = 0;
            uint32_t u;
            for (size_t k = 0; k < width; k++) sum += number(a[m * width + k]) * number(b[n * width + k]);
            memcpy(&u, &sum, sizeof u);
            wrong += c[m * 64 + n].bits != (u + 0x7fff + (u >> 16 & 1)) >> 16;
        }
    device_free(da), device_free(db), device_free(dc);
    return wrong;
}

static void pipeline_with_clusters(void)
{
    if (!device()->hopper) SKIP("no Hopper card");
    for (int i = 0; i < 3; i++) {
        const size_t wrong = run_pipeline<NONE>();
        CHECK(wrong == 0, "%zu elements are wrong, in run %d", wrong, i);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- */
#ifdef GPU_EMULATOR

/* Runs a program part in a child and gives what it said on stderr; "" when it ended well. */
static std::string last_words(const std::function<bool(void)> &part)
{
    int ends[2], status = 0;
    std::string text;
    char piece[512];
    if (pipe(ends)) return "no pipe";
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        if (!part()) fprintf(stderr, "wrong numbers\n");
        fflush(NULL);
        _exit(EXIT_SUCCESS);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) text.append(piece, (size_t)n);
    close(ends[0]);
    waitpid(child, &status, 0);
    if (text.empty() && (!WIFEXITED(status) || WEXITSTATUS(status))) text = "died without a word";
    return text;
}

/* A mistake shows in some order of the threads; each of `seeds` is another. */
static void expect(const char *name, const char *complaint, int seeds, const std::function<bool(void)> &part)
{
    int noticed = 0;
    std::string text;
    for (int i = 1; i <= seeds; i++) {
        text = last_words([&] {
            emulator::seed((uint64_t)i);
            return part();
        });
        noticed += text.find(complaint) != std::string::npos;
    }
    CHECK(noticed, "%s was not noticed in %d orders; the last said: %s", name, seeds, text.c_str());
}

template <int MISTAKE> static bool pipeline_is_right(void)
{
    return run_pipeline<MISTAKE>() == 0;
}

static void mistakes_of_a_pipeline(void)
{
    device();
    expect("an early release", "from which a wgmma still reads", 4, pipeline_is_right<EARLY_RELEASE>);
    expect("a missing wait for a stage", "more than 1 arrivals", 4, pipeline_is_right<NO_FULL_WAIT>);
    expect("a missing wait for a product", "from which a wgmma still reads", 4, pipeline_is_right<NO_PRODUCT_WAIT>);
    expect("a missing wgmma_fence", "has not fenced its accumulators", 1, pipeline_is_right<NO_REGISTER_FENCE>);
    expect("a missing proxy fence", "without fence.proxy.async", 1, pipeline_is_right<NO_PROXY_FENCE>);
    expect("a missing barrier before a store", "wrong numbers", 4, pipeline_is_right<NO_STAGE_BARRIER>);
    expect("wrong bytes", "which expects", 4, pipeline_is_right<WRONG_BYTES>);
    expect("a phase that is not flipped", "more than 1 arrivals", 1, pipeline_is_right<NO_FLIP>);
    expect("a block that ends before its store", "before a bulk store has read", 4, pipeline_is_right<NO_STORE_WAIT>);
    expect("too many registers", "registers that nobody gives", 1, pipeline_is_right<TOO_MANY_REGISTERS>);
    expect("a second arrival", "more than 1 arrivals", 4, pipeline_is_right<SECOND_ARRIVAL>);
    expect("a missing fence after mbarrier_init", "without mbarrier_fence_init", 1, pipeline_is_right<NO_FENCE_INIT>);
    expect("a missing last cluster barrier", "has ended", 8, pipeline_is_right<NO_LAST_CLUSTER_SYNC>);
}

/* --- kernels of a few lines, each with one mistake */
enum PlainMistake {
    FORGOTTEN_BARRIER,
    BARRIER_IN_A_BRANCH,
    LANES_DIVERGE,
    WRITE_BEHIND_SHARED,
    UNINITIALISED_SHARED,
    UNINITIALISED_STATIC,
    MISALIGNED_LDMATRIX,
    CP_ASYNC_NOT_WAITED,
    BARRIER_TWICE_INIT,
    BARRIER_NOT_INIT,
    RUN_AHEAD
};

static __global__ void plain_kernel(float *out, const float *in, int mistake)
{
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, shared);
    const unsigned t = threadIdx.x;
    uint32_t r[4];
    shared[t] = (float)t;
    if (t < 16) fixed[t] = 1;
    if (mistake != FORGOTTEN_BARRIER) __syncthreads();
    out[t] = shared[63 - t];
    if (mistake == BARRIER_IN_A_BRANCH && t < 32) named_barrier(1, 64);
    if (mistake == LANES_DIVERGE)
        out[t] = t % 2 ? __shfl_xor_sync(0xffffffffu, 1.0f, 1) : (float)__any_sync(0xffffffffu, 1);
    if (mistake == WRITE_BEHIND_SHARED && t == 63) shared[t + 129] = 1;
    if (mistake == UNINITIALISED_SHARED) out[t] = shared[64 + t];
    if (mistake == UNINITIALISED_STATIC) out[t] = fixed[t % 32];
    if (mistake == MISALIGNED_LDMATRIX) ldmatrix_x4(r, shared + t % 32);
    if (mistake == CP_ASYNC_NOT_WAITED) {
        cp_async_16(shared + 64 + 4 * (t % 16), in, 16);
        cp_async_commit();
        cp_async_wait<1>();
        out[t] = shared[64 + 4 * (t % 16)];
    }
    if (mistake == BARRIER_TWICE_INIT) mbarrier_init((uint64_t *)shared + 40, 1);
    if (mistake == BARRIER_NOT_INIT) mbarrier_wait((uint64_t *)shared + 40, 1);
    if (mistake == RUN_AHEAD) { /* the first warp may be so fast that the second reads what the next step wrote */
        for (int step = 0; step < 4; step++) {
            if (t < 32) shared[64 + t] = (float)step;
            __syncthreads();
            for (int busy = 0; busy < (t < 32 ? 30 : 2); busy++) __syncwarp();
            if (t >= 32 && shared[32 + t] != (float)step) out[t] = NAN;
        }
    }
}

static bool plain_is_right(int mistake)
{
    float *out = to_device(std::vector<float>(64)), *in = to_device(std::vector<float>(64, 7));
    launch(device(), plain_kernel, dim3(1), dim3(64), 128 * 4, out, in, mistake);
    const std::vector<float> got = from_device(out, 64);
    return std::none_of(got.begin(), got.end(), [](float x) { return std::isnan(x); });
}

static void mistakes_of_plain_kernels(void)
{
    static const struct {
        int mistake;
        const char *name, *complaint;
    } list[] = {
        {FORGOTTEN_BARRIER, "a forgotten barrier", "wrong numbers"},
        {BARRIER_IN_A_BRANCH, "a barrier that half of the threads miss", "deadlock"},
        {LANES_DIVERGE, "lanes that do different things", "that must act together do not"},
        {WRITE_BEHIND_SHARED, "a write behind shared memory",
         EMULATOR_ASAN ? "AddressSanitizer" : "write behind shared"},
        {UNINITIALISED_SHARED, "a read of uninitialised dynamic shared memory", "wrong numbers"},
        {UNINITIALISED_STATIC, "a read of uninitialised static shared memory", "wrong numbers"},
        {MISALIGNED_LDMATRIX, "a misaligned row", "not a multiple of 16"},
        {CP_ASYNC_NOT_WAITED, "a copy that was not waited for", "wrong numbers"},
        {BARRIER_TWICE_INIT, "an mbarrier that is initialised twice", "a second time"},
        {BARRIER_NOT_INIT, "an mbarrier that never was", "no mbarrier was initialised"},
        {RUN_AHEAD, "a warp that may be a step ahead of another", "wrong numbers"},
    };
    device();
    for (const auto &l : list) expect(l.name, l.complaint, 8, [&] { return plain_is_right(l.mistake); });
    CHECK(last_words([] { return plain_is_right(-1); }).empty(), "a kernel without a mistake");
}

static void mistakes_of_the_host(void)
{
    device();
    float *memory = to_device(std::vector<float>(64)), host[4] = {};
    expect("a copy into host memory as if it were the device's", "are not device memory", 1, [&] {
        device_upload(device(), host, host, sizeof host);
        return true;
    });
    expect("a copy behind the end", "are not device memory", 1, [&] {
        device_clear(device(), memory + 60, 20);
        return true;
    });
    expect("too much shared memory", "bytes of shared memory", 1, [&] {
        launch(device(), plain_kernel, dim3(1), dim3(64), SHARED_LIMIT + 1, memory, memory, -1);
        return true;
    });
    if (EMULATOR_ASAN)
        expect("the host reads device memory", "AddressSanitizer", 1, [&] { return *(volatile float *)memory == 0; });
    device_free(memory);
}
#endif

static const Test tests[] = {
    {"barriers_and_shuffles", barriers_and_shuffles},       {"mma_in_all_layouts", mma_in_all_layouts},
    {"swizzle_is_a_permutation", swizzle_is_a_permutation}, {"tma_boxes_at_the_edges", tma_boxes_at_the_edges},
    {"tensor_maps_are_checked", tensor_maps_are_checked},   {"fragments_are_bijective", fragments_are_bijective},
    {"wgmma_in_all_layouts", wgmma_in_all_layouts},         {"pipeline_with_clusters", pipeline_with_clusters},
#ifdef GPU_EMULATOR
    {"mistakes_of_a_pipeline", mistakes_of_a_pipeline},     {"mistakes_of_plain_kernels", mistakes_of_plain_kernels},
    {"mistakes_of_the_host", mistakes_of_the_host},
#endif
};

TEST_MAIN(tests)

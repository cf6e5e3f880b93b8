/* gpu/matmul_hopper.cu: the matrix product on Hopper (sm_90a).
 *
 * matmul.cuh says what is computed, how tiles lie in shared memory and what happens to the sums. What Hopper adds:
 *
 * TMA, the copy engine. One thread names a box of a tensor (64 wide, up to 256 rows, of one layer) by its
 * coordinates; the engine writes it into shared memory in the swizzled pattern, zeros where the box reaches outside,
 * and counts the bytes on a barrier. So the loop over k has no addresses, no masks and no edges.
 *
 * wgmma, the tensor cores' instruction. Four warps (a warpgroup) multiply 64 rows of a by up to 256 columns of b, 16
 * deep, straight out of shared memory, while their threads go on. Each warpgroup keeps 64 x 256 sums in 128
 * registers a thread. Both operands may be k-major or mn-major: a bit of the instruction says which.
 *
 * Roles. Reading 48 KB for each 4.2 MFLOP must never wait for anybody, so one warpgroup does nothing else: its first
 * thread fills a ring of stages, each with two barriers, `full` (all bytes have come) and `empty` (all consumers
 * have left). Two warpgroups consume, 64 rows of the tile each. The producer needs few registers and gives them
 * away.
 *
 * The grid is one block on each multiprocessor, and block i makes tiles i, i + blocks, … So the producer fills the
 * ring for the next tile while the consumers store this one: the ring goes on through all tiles, stage and phase are
 * never reset.
 *
 * One step of the large tile is 8 wgmma of 64 x 256 x 16, 1024 clocks at full rate, for 48 KB from the L2 cache: 132
 * multiprocessors at 5.98 TFLOP/s each read 9.3 TB/s of it. Where that is too much, two blocks can form a cluster:
 * their tiles lie one above the other, each block loads half of b and the copy engine writes it into both
 * (MATMUL_CLUSTER 2), so 6.2 TB/s remain. Which is faster only a card can tell. */
#include "matmul.cuh"
#include "hopper.cuh"

#ifndef MATMUL_CLUSTER
#define MATMUL_CLUSTER 1
#endif

/* A tile of 64 rows for each consumer. */
template <int CONSUMERS_, int COLUMNS, int STAGES_, int CLUSTER_> struct HopperTile {
    static constexpr int CONSUMERS = CONSUMERS_, M = 64 * CONSUMERS, N = COLUMNS, STAGES = STAGES_, CLUSTER = CLUSTER_;
    static constexpr int THREADS = 128 * (1 + CONSUMERS);
    static constexpr int A_BYTES = M * ROW_BYTES, STAGE_BYTES = A_BYTES + N * ROW_BYTES;
    static constexpr int SHARED_BYTES = STAGES * (STAGE_BYTES + 2 * (int)sizeof(uint64_t));
    static_assert(CLUSTER == 1 || CLUSTER == 2, "a block loads half of b, or all of it");
    static_assert(SHARED_BYTES <= SHARED_LIMIT, "shared memory of a block");
    static_assert(A_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "the swizzle's pattern begins with every tile");
};
typedef HopperTile<2, 256, 4, MATMUL_CLUSTER> HopperLarge; /* 128 x 256: 192 KB of stages */
typedef HopperTile<2, 128, 7, 1> HopperMiddle;             /* 128 x 128: 224 KB */
typedef HopperTile<1, 64, 14, 1> HopperSmall;              /* 64 x 64: 224 KB, of which half is w on its way */

/* Time for a FLOP beside the large tile's, a guess: the middle one reads 4/3 of the bytes from the L2 cache, the
 * small one 2.7 times, and with 64 columns wgmma needs all of shared memory's bandwidth. */
static const MatmulTile hopper_tiles[] = {{HopperLarge::M, HopperLarge::N, 1},
                                          {HopperMiddle::M, HopperMiddle::N, 1.15f},
                                          {HopperSmall::M, HopperSmall::N, 3}};

#if HOPPER_CODE

/* A place in the ring. A barrier's phase has parity 0 first; who waits for parity 1 of a fresh barrier goes through. */
struct RingPlace {
    uint32_t stage, parity;
};

template <int STAGES> static __device__ inline void ring_advance(RingPlace *place)
{
    if (++place->stage == STAGES) {
        place->stage = 0;
        place->parity ^= 1;
    }
}

template <typename Tile> struct StageRing {
    char *stages;
    uint64_t *full, *empty;
};

template <typename Tile> static __device__ inline StageRing<Tile> ring_of(char *shared)
{
    uint64_t *barriers = (uint64_t *)(shared + Tile::STAGES * Tile::STAGE_BYTES);
    return {shared, barriers, barriers + Tile::STAGES};
}

/* The tiles of one block, in turn: every blockIdx-th, or with clusters every cluster's, of which each block has a
 * part. */
template <typename Tile, MatmulEpilogue E> struct Turn {
    static constexpr uint32_t COLUMNS = E == GELU ? Tile::N / 2 : Tile::N; /* of c */
    uint32_t next, end;
};

template <typename Tile, MatmulEpilogue E> static __device__ inline Turn<Tile, E> first_turn(const Product &p)
{
    return {blockIdx.x / Tile::CLUSTER, tile_count(p, Tile::CLUSTER * Tile::M, Turn<Tile, E>::COLUMNS)};
}

/* The block's next tile. False: there is none. */
template <typename Tile, MatmulEpilogue E>
static __device__ inline bool take_turn(const Product &p, Turn<Tile, E> *turn, ProductTile *place)
{
    if (turn->next >= turn->end) return false;
    *place = tile_place(p, turn->next, Tile::CLUSTER * Tile::M, Turn<Tile, E>::COLUMNS);
    if constexpr (Tile::CLUSTER > 1) place->row += cluster_rank() * Tile::M;
    turn->next += gridDim.x / Tile::CLUSTER;
    return true;
}

/* ================================================================================================================
 * The producer */

/* Loads one box, into this block or into both. */
template <int CLUSTER>
static __device__ inline void load_box(char *to, const CUtensorMap *map, uint32_t c0, uint32_t c1, uint32_t layer,
                                       uint64_t *full)
{
    if constexpr (CLUSTER > 1)
        tma_load_3d_multicast(to, map, (int)c0, (int)c1, (int)layer, full, (1 << CLUSTER) - 1);
    else
        tma_load_3d(to, map, (int)c0, (int)c1, (int)layer, full);
}

/* One operand's part of a stage, SIDE of the tile and K_STEP deep. A k-major one comes in two boxes of half the side
 * each, which for the gated MLP are the gate's rows and up's rows; an mn-major one in boxes of 64. Of a cluster's
 * blocks each loads its share of them for both. */
template <int SIDE, bool MN_MAJOR, int CLUSTER>
static __device__ inline void load_operand(char *tile, const CUtensorMap *map, uint32_t first, uint32_t second,
                                           uint32_t k, uint32_t layer, uint32_t rank, uint64_t *full)
{
    constexpr int PARTS = MN_MAJOR ? SIDE / 64 : 2, EACH = PARTS / CLUSTER;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t part = rank * EACH + i;
        char *to = tile + part * (SIDE / PARTS) * ROW_BYTES;
        if (MN_MAJOR)
            load_box<CLUSTER>(to, map, first + 64 * part, k, layer, full);
        else
            load_box<CLUSTER>(to, map, k, part ? second : first, layer, full);
    }
}

template <typename Tile, MatmulLayout L, MatmulEpilogue E>
static __device__ inline void produce(const CUtensorMap *a, const CUtensorMap *b, const Product &p,
                                      StageRing<Tile> ring)
{
    const uint32_t of_layer = depth_blocks(p), rank = Tile::CLUSTER > 1 ? cluster_rank() : 0;
    Turn<Tile, E> turn = first_turn<Tile, E>(p);
    RingPlace at = {0, 1};
    ProductTile place;
    while (take_turn(p, &turn, &place)) {
        const uint32_t second = place.column + (E == GELU ? p.n : Tile::N / 2);
        uint32_t layer = place.first_block / of_layer, k = place.first_block % of_layer * K_STEP;
        for (uint32_t block = place.first_block; block < place.end_block; block++) {
            char *stage = ring.stages + at.stage * Tile::STAGE_BYTES;
            uint64_t *full = &ring.full[at.stage];
            mbarrier_wait(&ring.empty[at.stage], at.parity);
            mbarrier_arrive_expect_tx(full, Tile::STAGE_BYTES);
            load_operand<Tile::M, L == BACKWARD_WEIGHT, 1>(stage, a, place.row, place.row + Tile::M / 2, k, layer, 0,
                                                           full);
            load_operand<Tile::N, L != FORWARD, Tile::CLUSTER>(stage + Tile::A_BYTES, b, place.column, second, k,
                                                               layer + place.layer, rank, full);
            ring_advance<Tile::STAGES>(&at);
            k += K_STEP;
            if (k >= p.k) k = 0, layer++;
        }
    }
}

/* ================================================================================================================
 * The consumers */

/* What wgmma is told of an operand. k-major: eight rows of a 1024-byte pattern, 16 k are 32 bytes of each row.
 * mn-major: 16 k are 16 rows, and the next 64 columns lie a whole block of K_STEP rows further. */
template <bool MN_MAJOR> static __device__ inline uint64_t operand_descriptor(const char *tile)
{
    return wgmma_descriptor(tile, MN_MAJOR ? K_STEP * ROW_BYTES : 16, 8 * ROW_BYTES);
}

template <bool MN_MAJOR> static __device__ inline uint64_t operand_step(uint64_t descriptor, int k16)
{
    return wgmma_advance(descriptor, k16 * (MN_MAJOR ? 16 * ROW_BYTES : 32));
}

/* d (=) or (+=) the 64 rows of a at `tile_a` times b, over one stage. */
template <int COLUMNS, bool A_MN, bool B_MN>
static __device__ inline void wgmma_stage(float (&d)[COLUMNS / 2], const char *tile_a, const char *tile_b, bool add)
{
    const uint64_t a = operand_descriptor<A_MN>(tile_a), b = operand_descriptor<B_MN>(tile_b);
#pragma unroll
    for (int k16 = 0; k16 < K_STEP / 16; k16++)
        wgmma_ss<COLUMNS, A_MN, B_MN>(d, operand_step<A_MN>(a, k16), operand_step<B_MN>(b, k16), add || k16 > 0);
}

/* Every warp tells for itself that it has left a stage, for wgmma's four warps are not in step: all blocks that write
 * into it. */
template <int CLUSTER> static __device__ inline void leave_stage(uint64_t *empty)
{
    if constexpr (CLUSTER > 1) {
        if (threadIdx.x % WARP < CLUSTER) mbarrier_arrive_cluster(empty, threadIdx.x % WARP);
    } else {
        if (threadIdx.x % WARP == 0) mbarrier_arrive(empty);
    }
}

template <typename Tile, MatmulLayout L, MatmulEpilogue E>
static __device__ inline void consume(const Product &p, StageRing<Tile> ring, int consumer)
{
    constexpr bool A_MN = L == BACKWARD_WEIGHT, B_MN = L != FORWARD;
    const uint32_t warp = threadIdx.x / WARP % 4;
    Turn<Tile, E> turn = first_turn<Tile, E>(p);
    RingPlace at = {0, 0};
    ProductTile place;
    while (take_turn(p, &turn, &place)) {
        const uint32_t blocks = place.end_block - place.first_block;
        float d[Tile::N / 2];
        uint64_t *last = NULL;
        for (uint32_t block = 0; block < blocks; block++) {
            const char *stage = ring.stages + at.stage * Tile::STAGE_BYTES;
            mbarrier_wait(&ring.full[at.stage], at.parity);
            warpgroup_fence_operand(d);
            wgmma_fence();
            wgmma_stage<Tile::N, A_MN, B_MN>(d, stage + consumer * 64 * ROW_BYTES, stage + Tile::A_BYTES, block > 0);
            wgmma_commit();
            wgmma_wait<1>(); /* the tensor cores have this step to do while the one before is given back */
            warpgroup_fence_operand(d);
            if (last) leave_stage<Tile::CLUSTER>(last);
            last = &ring.empty[at.stage];
            ring_advance<Tile::STAGES>(&at);
        }
        wgmma_wait<0>();
        warpgroup_fence_operand(d);
        if (last) leave_stage<Tile::CLUSTER>(last);
        finish_strip<E, Tile::N, true>(p, place, d, place.row + 64 * consumer + 16 * warp, place.column);
    }
}

template <int CLUSTER> static __device__ inline void sync_all()
{
    __syncwarp();
    if constexpr (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
}
#endif

/* ================================================================================================================
 * The kernel */
template <typename Tile, MatmulLayout L, MatmulEpilogue E>
static __global__ void __launch_bounds__(Tile::THREADS, 1)
    matmul_hopper_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                         const __grid_constant__ Product p)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(char, shared);
    const StageRing<Tile> ring = ring_of<Tile>(shared);
    const int warpgroup =
        __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0); /* so the compiler sees that a warp agrees on it */
    if (threadIdx.x == 0) {
        for (int s = 0; s < Tile::STAGES; s++) {
            mbarrier_init(&ring.full[s], 1);
            mbarrier_init(&ring.empty[s], 4 * Tile::CONSUMERS * Tile::CLUSTER);
        }
        mbarrier_fence_init();
        tma_prefetch_map(&a);
        tma_prefetch_map(&b);
    }
    sync_all<Tile::CLUSTER>();
    /* Three warpgroups enter with 168 registers a thread: 3 * 168 = 40 + 2 * 232. Two have 255 from the start. */
    if (warpgroup == 0) {
        if constexpr (Tile::CONSUMERS == 2) setmaxnreg_dec<40>();
        if (threadIdx.x == 0) produce<Tile, L, E>(&a, &b, p, ring);
    } else {
        if constexpr (Tile::CONSUMERS == 2) setmaxnreg_inc<232>();
        consume<Tile, L, E>(p, ring, warpgroup - 1);
    }
    if constexpr (Tile::CLUSTER > 1) sync_all<Tile::CLUSTER>(); /* the other block may still write here */
#else
    __trap();
#endif
}

/* ================================================================================================================
 * Launching */

/* An operand as the copy engine sees it: layers of rows. `side`: of the tile; mn: the operand's rows that are not k. */
static CUtensorMap operand_map(const MatmulOperand *o, bool mn_major, uint32_t mn, uint32_t k, uint32_t layers,
                               uint32_t side)
{
    CUtensorMap map;
    const size_t row = o->stride * sizeof *o->data, layer = layers > 1 ? o->layer * sizeof *o->data : row;
    const uint32_t box_rows = mn_major ? (uint32_t)K_STEP : side / 2;
    if (tensor_map_3d(&map, o->data, TENSOR_BF16, mn_major ? mn : k, mn_major ? k : mn, layers, row, layer, 64,
                      box_rows, 1)) {
        fprintf(stderr, "promot: matmul: no tensor map for an operand of %u x %u\n", mn, k);
        exit(EXIT_FAILED);
    }
    return map;
}

template <typename Tile, MatmulLayout L, MatmulEpilogue E> static void launch_hopper(Device *dev, const Product *p)
{
    const uint32_t tiles = tile_count(*p, Tile::CLUSTER * Tile::M, E == GELU ? Tile::N / 2 : Tile::N);
    const uint32_t at_once = ceil_div((uint32_t)dev->sm_count, (uint32_t)Tile::CLUSTER);
    const uint32_t blocks = Tile::CLUSTER * (tiles < at_once ? tiles : at_once);
    const CUtensorMap a = operand_map(&p->a, L == BACKWARD_WEIGHT, p->m, p->k, p->depth_layers, Tile::M);
    const CUtensorMap b =
        operand_map(&p->b, L != FORWARD, E == GELU ? 2 * p->n : p->n, p->k, p->depth_layers * p->width_layers, Tile::N);
    launch_cluster(dev, matmul_hopper_kernel<Tile, L, E>, dim3(blocks), dim3(Tile::THREADS), Tile::CLUSTER,
                   Tile::SHARED_BYTES, a, b, *p);
}

void matmul_hopper(Device *dev, const Product *p)
{
    const int tile = matmul_choose_tile(p, hopper_tiles, 3, (uint32_t)dev->sm_count);
#define KIND(layout_, epilogue_)                                                                                       \
    if (p->layout == layout_ && p->epilogue == epilogue_) {                                                            \
        if (tile == 0)                                                                                                 \
            launch_hopper<HopperLarge, layout_, epilogue_>(dev, p);                                                    \
        else if (tile == 1)                                                                                            \
            launch_hopper<HopperMiddle, layout_, epilogue_>(dev, p);                                                   \
        else                                                                                                           \
            launch_hopper<HopperSmall, layout_, epilogue_>(dev, p);                                                    \
    }
    MATMUL_KINDS(KIND)
#undef KIND
}

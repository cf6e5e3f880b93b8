/* attention_hopper.cu: attention for head size 64 on sm_90a.
 *
 * The formulas are those of attention.cu. A score costs, forward, 4 * 64 = 256 FLOP, 1/16 of a cycle of an SM's tensor
 * cores, and one exponential, again 1/16 of a cycle: products and softmax must run at the same time, or half of the
 * machine is idle. Therefore
 *
 * - wgmma, which works while the threads that asked for it go on: the product of one tile of keys runs while the
 *   exponentials of the next are made (FlashAttention-3, Shah et al. 2024, arXiv 2407.08608);
 * - two warpgroups of consumers, so that one may multiply while the other exponentiates, and one warp that only has
 *   copies made (TMA) into a ring of tiles. It gives its registers to them (setmaxnreg);
 * - persistent blocks: one for each SM, going from item to item, so that the copies for the next item begin before
 *   this one is written.
 *
 * Tiles are 128 queries x 128 keys, 128 bytes a row, in the swizzle of hopper.cuh. Batches are packed, so a tile's last
 * rows may belong to the next sequence, or to nobody, and hold anything, NaN too. What a product sums over must be
 * zeros there (0 * NaN is NaN): the producer waits for such a ragged tile itself and clears its tail before it
 * announces it. Everywhere else it is enough not to look at the rows.
 *
 * T5's bias of a tile depends on key - query only: 255 numbers, its window. A small kernel writes the windows of each
 * head before (`far` ones, whose distances all have the same bucket, are marked), and a window comes by TMA with the
 * tile. Beyond T5's largest distance all windows are far, and the bias costs nothing there: it is one number, which
 * joins the softmax's maximum. Nothing here knows how buckets are made.
 *
 * T5X's dropout has one mask for all queries of a sequence and head: a factor for each key. (attention.cu does other
 * masks.) */
#include "attention.cuh"
#include "hopper.cuh"

enum {
    HEAD = 64,                               /* the head size */
    TILE_ROWS = 128,                         /* queries or keys of a tile */
    TILE_BYTES = TILE_ROWS * TILE_ROW_BYTES, /* 16 KB */
    STAGES = 2,                              /* of each ring */

    WINDOW = 256,                /* numbers of a bias window: 255 and the mark */
    WINDOW_FAR = 255,            /* where the mark is */
    WINDOW_ZERO = TILE_ROWS - 1, /* where the distance of the tiles' first rows is */

    CONSUMERS = 2, /* warpgroups, with 64 rows of a tile each */
    CONSUMER_THREADS = CONSUMERS * WARPGROUP,
    CONSUMER_WARPS = CONSUMER_THREADS / WARP,
    HOPPER_THREADS = WARPGROUP + CONSUMER_THREADS,

    BARRIER_CONSUMERS = 1, /* named barriers: of all consumers, */
    BARRIER_WARPGROUP = 2, /* and from here on of each warpgroup */
};

/* ================================================================================================================
 * Bias windows
 *
 * Window w of a head is that of all tiles whose places differ by key tile - query tile = w - first. */
struct Windows {
    const float *data; /* [heads, count, WINDOW], or NULL: no bias */
    int count, first;
};

/* The bucket of place t of window w. Distances that no pair of rows has get their nearest neighbour's. */
static __device__ __forceinline__ int window_bucket(const Attention &at, const Windows &windows, int w, int t)
{
    const int distance = (w - windows.first) * TILE_ROWS + t - WINDOW_ZERO;
    const int limit = (int)max(at.queries.longest, at.keys.longest) - 1;
    return at.bucket[max(-limit, min(limit, distance))];
}

/* Grid: (windows, heads), a thread for each place. */
static __global__ void __launch_bounds__(WINDOW) make_windows(float *to, const Attention at, const Windows windows)
{
    const int t = threadIdx.x, bucket = window_bucket(at, windows, blockIdx.x, min(t, WINDOW - 2));
    const int first_bucket = window_bucket(at, windows, blockIdx.x, 0);
    const bool far = __syncthreads_and(bucket == first_bucket);
    const float bias = at.bias_table ? bf16_to_float(at.bias_table[(size_t)bucket * at.heads + blockIdx.y]) * LOG2E : 0;
    to[((size_t)blockIdx.y * windows.count + blockIdx.x) * WINDOW + t] = t == WINDOW_FAR ? far : bias;
}

/* ================================================================================================================
 * What both passes do */
#if HOPPER_CODE
/* Where a role is in a ring of stages: carried from item to item, never reset. */
struct Ring {
    int stage;
    uint32_t phase;
};

static __device__ __forceinline__ void ring_next(Ring *ring)
{
    if (++ring->stage < STAGES) return;
    ring->stage = 0;
    ring->phase ^= 1;
}

/* The rows and columns of an accumulator [64, 8n] that a thread holds: rows `row` and row + 8 of its warpgroup's,
 * columns 8n + column and the next; register 4n + 2h + e is row + 8h, 8n + column + e. */
struct Place {
    int row, column;
};

static __device__ __forceinline__ Place place_of_thread()
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    return {16 * warp + lane / 4, lane % 4 * 2};
}

/* Which consumer the thread belongs to, in a form that shows the compiler that a warp has one answer: descriptors are
 * then computed once for the warp, in registers that threads do not have to give. */
static __device__ __forceinline__ int consumer_of_thread()
{
    return __shfl_sync(~0u, (int)threadIdx.x / WARPGROUP - 1, 0);
}

static __device__ __forceinline__ const float *window_of(const Windows &windows, int head, int query_tile, int key_tile)
{
    return windows.data + ((size_t)head * windows.count + key_tile - query_tile + windows.first) * WINDOW;
}

static __device__ __forceinline__ void arrive_warp(uint64_t *bar)
{
    __syncwarp(); /* all of its lanes have read */
    if (threadIdx.x % WARP == 0) mbarrier_arrive(bar);
}

/* d [64, 128] (=) 64 rows of a · bᵀ, both 64 wide: issues only. */
static __device__ __forceinline__ void issue_scores(float (&d)[64], const void *a, const void *b)
{
    const uint64_t left = wgmma_descriptor(a, 16, 1024), right = wgmma_descriptor(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++)
        wgmma_ss<128, 0, 0>(d, wgmma_advance(left, 32 * k), wgmma_advance(right, 32 * k), k > 0);
}

/* d [64, 64] (+=, or = when `begin`) the A operand in registers [64, 128] · b [128, 64]: issues only. */
static __device__ __forceinline__ void issue_registers(float (&d)[32], const uint32_t (&a)[8][4], const void *b,
                                                       bool begin)
{
    const uint64_t right = wgmma_descriptor(b, TILE_BYTES, 1024);
#pragma unroll
    for (int k = 0; k < TILE_ROWS / 16; k++) wgmma_rs<64, 1>(d, a[k], wgmma_advance(right, 2048 * k), k > 0 || !begin);
}

/* Four neighbouring lanes c hold word c of four pieces of four words each; afterwards lane c has all of piece c. */
static __device__ __forceinline__ uint4 transpose_quad(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3)
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    const uint32_t a = __shfl_xor_sync(~0u, odd ? w0 : w1, 1), b = __shfl_xor_sync(~0u, odd ? w2 : w3, 1);
    const uint32_t low0 = odd ? a : w0, low1 = odd ? w1 : a;   /* piece `odd`: words 0 and 1, or 2 and 3 */
    const uint32_t high0 = odd ? b : w2, high1 = odd ? w3 : b; /* piece 2 + `odd` */
    const uint32_t c = __shfl_xor_sync(~0u, high ? low0 : high0, 2), d = __shfl_xor_sync(~0u, high ? low1 : high1, 2);
    return high ? make_uint4(c, d, high0, high1) : make_uint4(low0, low1, c, d);
}

/* The warpgroup's 64 rows of x [64, 64] times factor, as bf16, as far as `rows` of them exist. */
static __device__ __forceinline__ void store_rows_64(bf16_t *to, size_t stride, int rows, const float (&x)[32],
                                                     const float (&factor)[2])
{
    const Place p = place_of_thread();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int m = 0; m < 8; m += 4) {
            uint32_t w[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
                w[n] = pack_bf16x2(x[4 * (m + n) + 2 * h] * factor[h], x[4 * (m + n) + 2 * h + 1] * factor[h]);
            const uint4 piece = transpose_quad(w[0], w[1], w[2], w[3]);
            if (p.row + 8 * h < rows) *(uint4 *)(to + (size_t)(p.row + 8 * h) * stride + 8 * m + 4 * p.column) = piece;
        }
}

/* Zeros from row `first` of a tile on, by one warp. */
static __device__ void clear_rows(void *tile, int first)
{
    uint4 *const pieces = (uint4 *)tile;
    for (int i = first * 8 + threadIdx.x % WARP; i < TILE_ROWS * 8; i += WARP) pieces[i] = make_uint4(0, 0, 0, 0);
}

/* The producer waits for a stage, all lanes of its warp for one another: a lane that lags behind for a whole turn of the
 * ring would find the barrier one phase further, and wait for ever. */
static __device__ __forceinline__ void producer_wait(uint64_t *empty, uint32_t phase)
{
    mbarrier_wait(empty, phase);
    __syncwarp();
}

/* The producer's way to announce a stage. Whole tiles are announced by their bytes: copies go to `full`. Those of a
 * ragged one go to a barrier of the producer's own, which then clears the tails and announces the stage itself. */
struct Landing {
    uint64_t *barrier;
    uint32_t phase;
};

static __device__ __forceinline__ uint64_t *landing_barrier(const Landing &landing, uint64_t *full, bool ragged)
{
    return ragged ? landing.barrier : full;
}

static __device__ __forceinline__ void landing_wait(Landing *landing)
{
    mbarrier_wait(landing->barrier, landing->phase);
    landing->phase ^= 1;
}

static __device__ __forceinline__ void landing_announce(uint64_t *full)
{
    fence_proxy_async_shared(); /* the zeros, for wgmma */
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(full);
}

#endif

/* ================================================================================================================
 * Forward
 *
 * An item is one tile of queries of one head of one sequence. */
struct ForwardShared {
    bf16_t q[TILE_ROWS * HEAD], k[STAGES][TILE_ROWS * HEAD], v[STAGES][TILE_ROWS * HEAD];
    float window[STAGES][WINDOW], keep[STAGES][TILE_ROWS]; /* these come with k */
    uint64_t q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES], landing;
};

#if HOPPER_CODE
struct ForwardItem {
    AttentionTask task;
    int query_tile, key_tiles; /* key_tiles 0: there are no such queries */
};

static __device__ __forceinline__ ForwardItem forward_item(const Attention &at, int query_tiles, int item)
{
    ForwardItem it;
    const int pair = item / query_tiles;
    it.query_tile = item % query_tiles;
    it.task = attention_task(at, pair / (int)at.heads, pair % (int)at.heads);
    it.key_tiles = ceil_div(it.task.keys, (int)TILE_ROWS);
    if (at.causal) it.key_tiles = min(it.key_tiles, it.query_tile + 1);
    if (it.query_tile * TILE_ROWS >= it.task.queries) it.key_tiles = 0;
    return it;
}

/* One stage of keys, with their bias and dropout. */
static __device__ __forceinline__ void forward_load_keys(ForwardShared *shared, const CUtensorMap *k_map,
                                                         const Attention &at, const Windows &windows,
                                                         const ForwardItem &it, int tile, int stage)
{
    const int lane = threadIdx.x % WARP;
    if (at.dropout.rate > 0)
        attention_keep(shared->keep[stage] + 4 * lane, at, it.task, 0, tile * TILE_ROWS / 4 + lane);
    __syncwarp();
    if (lane) return;
    uint64_t *const full = &shared->k_full[stage];
    mbarrier_arrive_expect_tx(full, TILE_BYTES + (windows.data ? sizeof shared->window[0] : 0));
    tma_load_2d(shared->k[stage], k_map, it.task.head * HEAD, it.task.first_key + tile * TILE_ROWS, full);
    if (windows.data)
        bulk_load(shared->window[stage], window_of(windows, it.task.head, it.query_tile, tile),
                  sizeof shared->window[0], full);
}

static __device__ __forceinline__ void forward_load_values(ForwardShared *shared, const CUtensorMap *v_map,
                                                           const ForwardItem &it, int tile, int stage, Landing *landing)
{
    const int rows = it.task.keys - tile * TILE_ROWS;
    uint64_t *const full = &shared->v_full[stage], *const bar = landing_barrier(*landing, full, rows < TILE_ROWS);
    if (threadIdx.x % WARP == 0) {
        mbarrier_arrive_expect_tx(bar, TILE_BYTES);
        tma_load_2d(shared->v[stage], v_map, it.task.head * HEAD, it.task.first_key + tile * TILE_ROWS, bar);
    }
    if (rows >= TILE_ROWS) return;
    landing_wait(landing);
    clear_rows(shared->v[stage], rows);
    landing_announce(full);
}

static __device__ __forceinline__ void forward_producer(ForwardShared *shared, const CUtensorMap *q_map,
                                                        const CUtensorMap *k_map, const CUtensorMap *v_map,
                                                        const Attention &at, const Windows &windows, int query_tiles,
                                                        int items)
{
    Ring ring = {0, 1};
    uint32_t q_phase = 1;
    Landing landing = {&shared->landing, 0};
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const ForwardItem it = forward_item(at, query_tiles, item);
        if (!it.key_tiles) continue;
        producer_wait(&shared->q_empty, q_phase);
        q_phase ^= 1;
        if (threadIdx.x % WARP == 0) {
            mbarrier_arrive_expect_tx(&shared->q_full, TILE_BYTES);
            tma_load_2d(shared->q, q_map, it.task.head * HEAD, it.task.first_query + it.query_tile * TILE_ROWS,
                        &shared->q_full);
        }
        for (int tile = 0; tile < it.key_tiles; tile++, ring_next(&ring)) {
            producer_wait(&shared->k_empty[ring.stage], ring.phase);
            forward_load_keys(shared, k_map, at, windows, it, tile, ring.stage);
            producer_wait(&shared->v_empty[ring.stage], ring.phase);
            forward_load_values(shared, v_map, it, tile, ring.stage, &landing);
        }
    }
}

/* The softmax of a thread's two rows so far, in units of log 2; sum: of the thread's own columns. */
struct RowState {
    float max[2], sum[2];
};

/* Products become exp(score - max). factor: for all that was summed under the old maximum. row: of the thread's first
 * row in the tile of queries. */
static __device__ __forceinline__ void forward_softmax(float (&s)[64], RowState *state, float (&factor)[2],
                                                       const float *window, const Attention &at, const ForwardItem &it,
                                                       int tile, int row, int column)
{
    float scale = LOG2E, offset = 0;
    if (window && window[WINDOW_FAR] != 0) {
        offset = window[0];
    } else if (window) {
#pragma unroll
        for (int i = 0; i < 64; i++) /* key - query of this score; only 34 of the 64 are different */
            s[i] = s[i] * LOG2E + window[WINDOW_ZERO - row + column + 8 * (i / 4) - 8 * (i / 2 % 2) + i % 2];
        scale = 1;
    }
    const int keys = it.task.keys - tile * TILE_ROWS;
    const bool diagonal = at.causal && tile == it.query_tile;
    if (keys < TILE_ROWS || diagonal) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            const int j = column + 8 * (i / 4) + i % 2;
            if (j >= keys || (diagonal && j > row + 8 * (i / 2 % 2))) s[i] = MASKED;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = MASKED, sum = 0;
#pragma unroll
        for (int i = 2 * h; i < 64; i += 4) max = fmaxf(max, fmaxf(s[i], s[i + 1]));
        max = fmaxf(state->max[h], quad_max(max) * scale + offset);
        const float shift = offset - max;
#pragma unroll
        for (int i = 2 * h; i < 64; i += 4) {
            s[i] = exp2_approx(s[i] * scale + shift);
            s[i + 1] = exp2_approx(s[i + 1] * scale + shift);
            sum += s[i] + s[i + 1];
        }
        factor[h] = exp2_approx(state->max[h] - max);
        state->sum[h] = state->sum[h] * factor[h] + sum;
        state->max[h] = max;
    }
}

/* P' as the A operand of the next product: two 8-column groups of the accumulator are one step of 16. */
static __device__ __forceinline__ void pack_operand(uint32_t (&a)[8][4], const float (&p)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++) a[i / 4][i % 4] = pack_bf16x2(p[2 * i], p[2 * i + 1]);
}

/* A consumer warpgroup, and where it is. */
struct ForwardConsumer {
    ForwardShared *shared;
    Ring k, v;
    uint32_t q_phase;
    int warpgroup;
};

/* Scores that have just been waited for become P'; then the stage of keys, and after the last tile q, is free. */
static __device__ __forceinline__ void forward_probabilities(ForwardConsumer *c, float (&s)[64], RowState *state,
                                                             float (&factor)[2], const Attention &at, bool biased,
                                                             const ForwardItem &it, int tile)
{
    ForwardShared *const shared = c->shared;
    const Place p = place_of_thread();
    warpgroup_fence_operand(s);
    if (tile == it.key_tiles - 1) arrive_warp(&shared->q_empty);
    forward_softmax(s, state, factor, biased ? shared->window[c->k.stage] : NULL, at, it, tile,
                    64 * c->warpgroup + p.row, p.column);
    if (at.dropout.rate > 0) { /* after the sum: dropout acts on probabilities */
#pragma unroll
        for (int n = 0; n < 16; n++) {
            const float2 keep = *(const float2 *)(shared->keep[c->k.stage] + 8 * n + p.column);
            s[4 * n] *= keep.x, s[4 * n + 1] *= keep.y;
            s[4 * n + 2] *= keep.x, s[4 * n + 3] *= keep.y;
        }
    }
    arrive_warp(&shared->k_empty[c->k.stage]);
    ring_next(&c->k);
}

/* What was summed under the last maximum, divided by the sum of exponentials. */
static __device__ __forceinline__ void forward_store(bf16_t *out, float *logsumexp, const float (&o)[32],
                                                     const RowState &state, const Attention &at, const ForwardItem &it,
                                                     int warpgroup)
{
    const int first = it.query_tile * TILE_ROWS + warpgroup * 64, rows = it.task.queries - first;
    const Place place = place_of_thread();
    const size_t row = it.task.first_query + first, width = at.heads * HEAD;
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float sum = quad_sum(state.sum[h]);
        factor[h] = __fdividef(1, sum);
        if (place.column == 0 && place.row + 8 * h < rows)
            logsumexp[it.task.head * at.queries.rows + row + place.row + 8 * h] = (state.max[h] + log2f(sum)) * LN2;
    }
    store_rows_64(out + row * width + it.task.head * HEAD, width, rows, o, factor);
}

/* A warpgroup's 64 queries of an item: the product of a tile's probabilities runs while the next tile's are made. */
static __device__ __forceinline__ void forward_rows(ForwardConsumer *c, bf16_t *out, float *logsumexp,
                                                    const Attention &at, bool biased, const ForwardItem &it)
{
    ForwardShared *const shared = c->shared;
    const bf16_t *const q = shared->q + c->warpgroup * 64 * HEAD;
    RowState state = {{MASKED, MASKED}, {0, 0}};
    float o[32], s[64], factor[2];
    uint32_t p[8][4];

    mbarrier_wait(&shared->q_full, c->q_phase);
    mbarrier_wait(&shared->k_full[c->k.stage], c->k.phase);
    warpgroup_fence_operand(s);
    wgmma_fence();
    issue_scores(s, q, shared->k[c->k.stage]);
    wgmma_commit();
    wgmma_wait<0>();
    forward_probabilities(c, s, &state, factor, at, biased, it, 0);
    pack_operand(p, s);
    for (int tile = 1; tile < it.key_tiles; tile++) {
        mbarrier_wait(&shared->v_full[c->v.stage], c->v.phase); /* of the tile before: it came before these keys */
        mbarrier_wait(&shared->k_full[c->k.stage], c->k.phase);
        warpgroup_fence_operand(s);
        warpgroup_fence_operand(p);
        warpgroup_fence_operand(o);
        wgmma_fence();
        issue_scores(s, q, shared->k[c->k.stage]);
        wgmma_commit();
        issue_registers(o, p, shared->v[c->v.stage], tile == 1);
        wgmma_commit();
        wgmma_wait<1>(); /* the scores; the other product runs while the exponentials are made */
        forward_probabilities(c, s, &state, factor, at, biased, it, tile);
        wgmma_wait<0>();
        warpgroup_fence_operand(p);
        warpgroup_fence_operand(o);
        arrive_warp(&shared->v_empty[c->v.stage]);
        ring_next(&c->v);
#pragma unroll
        for (int i = 0; i < 32; i++) o[i] *= factor[i / 2 % 2];
        pack_operand(p, s);
    }
    mbarrier_wait(&shared->v_full[c->v.stage], c->v.phase);
    warpgroup_fence_operand(p);
    warpgroup_fence_operand(o);
    wgmma_fence();
    issue_registers(o, p, shared->v[c->v.stage], it.key_tiles == 1);
    wgmma_commit();
    wgmma_wait<0>();
    warpgroup_fence_operand(o);
    arrive_warp(&shared->v_empty[c->v.stage]);
    ring_next(&c->v);
    c->q_phase ^= 1;

    forward_store(out, logsumexp, o, state, at, it, c->warpgroup);
}

#endif

static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
    forward_hopper(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map, bf16_t *out, float *logsumexp,
                   const __grid_constant__ Attention at, const Windows windows, int query_tiles, int items)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(ForwardShared, shared);
    if (threadIdx.x == 0) {
        mbarrier_init(&shared->q_full, 1);
        mbarrier_init(&shared->q_empty, CONSUMER_WARPS);
        mbarrier_init(&shared->landing, 1);
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&shared->k_full[s], 1);
            mbarrier_init(&shared->v_full[s], 1);
            mbarrier_init(&shared->k_empty[s], CONSUMER_WARPS);
            mbarrier_init(&shared->v_empty[s], CONSUMER_WARPS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        setmaxnreg_dec<24>();
        if (threadIdx.x < WARP) forward_producer(shared, &q_map, &k_map, &v_map, at, windows, query_tiles, items);
    } else {
        setmaxnreg_inc<240>();
        ForwardConsumer c = {shared, {0, 0}, {0, 0}, 0, consumer_of_thread()};
        for (int item = blockIdx.x; item < items; item += gridDim.x) {
            const ForwardItem it = forward_item(at, query_tiles, item);
            if (it.key_tiles) forward_rows(&c, out, logsumexp, at, windows.data != NULL, it);
        }
    }
#else
    __trap();
#endif
}

/* ================================================================================================================
 * Backward
 *
 *     S = q · kᵀ + bias    P = exp(S - logsumexp)    dP = dO · vᵀ    dS = P * (keep * dP - D),  D = rowsum(dO * out)
 *     dv = (P * keep)ᵀ · dO    dk = dSᵀ · q    dq = dS · k    dbias[bucket(j - i)] += dS_ij
 *
 * An item is one head of one sequence, and all of it belongs to one block: tiles of keys outside, tiles of queries
 * inside. So dk and dv are sums in registers, and dq, which all tiles of keys add to, is summed in the order of the
 * program: no block waits for another, and the bits are always the same. Between two touches of dq the block's own
 * fp32 copy lies in L2; the tensor cores' results are added to it by bulk copies (cp.reduce.async.bulk).
 *
 * A warpgroup has 64 keys of the tile and computes the transposes Sᵀ = k · qᵀ and dPᵀ = v · dOᵀ: rows are keys. Thus
 * P'ᵀ and dSᵀ lie in registers as the A operands of dv and dk (FlashAttention-3 does so, too). For dq, dSᵀ also goes to
 * shared memory, where wgmma reads it transposed; and there dbias is summed, along the diagonals.
 *
 * The logsumexp of a query is in each row of Sᵀ the same: it comes with the tile, padded to whole tiles with a large
 * number, which makes P = 0 for queries that do not exist. */
enum {
    STATS = 2 * TILE_ROWS, /* numbers that come with a tile of queries: logsumexp, then D */
    DQ_FLOATS = 64 * HEAD, /* of dq that a warpgroup adds in one step */
    DIAGONALS = 3,         /* of a tile that a thread adds to: neighbours share some */
    FOLD_BUCKETS = 32,     /* buckets that are summed up at a time */
};

struct BackwardShared {
    bf16_t k[TILE_ROWS * HEAD], v[TILE_ROWS * HEAD];
    bf16_t q[STAGES][TILE_ROWS * HEAD], dout[STAGES][TILE_ROWS * HEAD];
    bf16_t ds[STAGES][2][TILE_ROWS * 64]; /* [half of the queries][key][query]; then the buckets' sums */
    float dq[CONSUMERS][DQ_FLOATS];
    float window[STAGES][WINDOW], stats[STAGES][STATS];
    uint64_t kv_full, kv_empty, q_full[STAGES], q_empty[STAGES], landing;
};

/* Everything the blocks are told. */
struct BackwardSettings {
    bf16_t *dq, *dk, *dv;
    const float *stats; /* [items, query tiles, STATS] */
    float *dq_sums;     /* [blocks, query tiles, CONSUMERS, DQ_FLOATS] */
    float *window_sums; /* [blocks, windows, DIAGONALS, CONSUMER_THREADS], zeros; or NULL: no dbias */
    float *partial;     /* [items, buckets] (=) */
    Windows windows;
    int query_tiles, items;
};

/* Grid: (tiles of queries, heads, sequences): logsumexp, in units of log 2, and D. Eight threads for each row. */
static __global__ void __launch_bounds__(TILE_ROWS)
    backward_stats(float *to, const bf16_t *dout, const bf16_t *out, const float *logsumexp, const Attention at)
{
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    float *const stats = to + (((size_t)blockIdx.z * at.heads + blockIdx.y) * gridDim.x + blockIdx.x) * STATS;
    const int piece = threadIdx.x % 8;
    for (int i = threadIdx.x / 8; i < TILE_ROWS; i += TILE_ROWS / 8) {
        const int query = blockIdx.x * TILE_ROWS + i;
        const size_t row = task.first_query + query, at_row = row * at.heads * HEAD + task.head * HEAD + 8 * piece;
        float sum = 0;
        if (query < task.queries) {
            const uint4 a = *(const uint4 *)(dout + at_row), b = *(const uint4 *)(out + at_row);
            const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
            for (int n = 0; n < 4; n++) {
                const float2 x = unpack_bf16x2(left[n]), y = unpack_bf16x2(right[n]);
                sum += x.x * y.x + x.y * y.y;
            }
        }
        for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (piece) continue;
        stats[i] = query < task.queries ? logsumexp[task.head * at.queries.rows + row] * LOG2E : -MASKED;
        stats[TILE_ROWS + i] = sum;
    }
}

#if HOPPER_CODE
struct BackwardItem {
    AttentionTask task;
    int item;
};

static __device__ __forceinline__ int tiles_of_rows(int rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

static __device__ __forceinline__ BackwardItem backward_item(const Attention &at, int item)
{
    BackwardItem it;
    it.task = attention_task(at, item / (int)at.heads, item % (int)at.heads);
    it.item = item;
    return it;
}

/* Queries before this tile do not see the tile of keys. */
static __device__ __forceinline__ int first_query_tile(const Attention &at, int key_tile)
{
    return at.causal ? key_tile : 0;
}

static __device__ __forceinline__ void backward_load_keys(BackwardShared *shared, const CUtensorMap *k_map,
                                                          const CUtensorMap *v_map, const BackwardItem &it, int tile,
                                                          Landing *landing)
{
    const int rows = it.task.keys - tile * TILE_ROWS, row = it.task.first_key + tile * TILE_ROWS;
    uint64_t *const bar = landing_barrier(*landing, &shared->kv_full, rows < TILE_ROWS);
    if (threadIdx.x % WARP == 0) {
        mbarrier_arrive_expect_tx(bar, 2 * TILE_BYTES);
        tma_load_2d(shared->k, k_map, it.task.head * HEAD, row, bar);
        tma_load_2d(shared->v, v_map, it.task.head * HEAD, row, bar);
    }
    if (rows >= TILE_ROWS) return;
    landing_wait(landing);
    clear_rows(shared->k, rows);
    clear_rows(shared->v, rows);
    landing_announce(&shared->kv_full);
}

static __device__ __forceinline__ void backward_load_queries(BackwardShared *shared, const CUtensorMap *q_map,
                                                             const CUtensorMap *dout_map, const BackwardSettings &to,
                                                             const BackwardItem &it, int key_tile, int tile, int stage,
                                                             Landing *landing)
{
    const int rows = it.task.queries - tile * TILE_ROWS, row = it.task.first_query + tile * TILE_ROWS;
    uint64_t *const full = &shared->q_full[stage], *const bar = landing_barrier(*landing, full, rows < TILE_ROWS);
    const bool biased = to.windows.data != NULL;
    if (threadIdx.x % WARP == 0) {
        mbarrier_arrive_expect_tx(bar,
                                  2 * TILE_BYTES + sizeof shared->stats[0] + (biased ? sizeof shared->window[0] : 0));
        tma_load_2d(shared->q[stage], q_map, it.task.head * HEAD, row, bar);
        tma_load_2d(shared->dout[stage], dout_map, it.task.head * HEAD, row, bar);
        bulk_load(shared->stats[stage], to.stats + ((size_t)it.item * to.query_tiles + tile) * STATS,
                  sizeof shared->stats[0], bar);
        if (biased)
            bulk_load(shared->window[stage], window_of(to.windows, it.task.head, tile, key_tile),
                      sizeof shared->window[0], bar);
    }
    if (rows >= TILE_ROWS) return;
    landing_wait(landing);
    clear_rows(shared->q[stage], rows);
    clear_rows(shared->dout[stage], rows);
    landing_announce(full);
}

static __device__ __forceinline__ void backward_producer(BackwardShared *shared, const CUtensorMap *q_map,
                                                         const CUtensorMap *k_map, const CUtensorMap *v_map,
                                                         const CUtensorMap *dout_map, const Attention &at,
                                                         const BackwardSettings &to)
{
    Ring ring = {0, 1};
    uint32_t kv_phase = 1;
    Landing landing = {&shared->landing, 0};
    for (int item = blockIdx.x; item < to.items; item += gridDim.x) {
        const BackwardItem it = backward_item(at, item);
        for (int key_tile = 0; key_tile < tiles_of_rows(it.task.keys); key_tile++) {
            producer_wait(&shared->kv_empty, kv_phase);
            kv_phase ^= 1;
            backward_load_keys(shared, k_map, v_map, it, key_tile, &landing);
            for (int tile = first_query_tile(at, key_tile); tile < tiles_of_rows(it.task.queries);
                 tile++, ring_next(&ring)) {
                producer_wait(&shared->q_empty[ring.stage], ring.phase);
                backward_load_queries(shared, q_map, dout_map, to, it, key_tile, tile, ring.stage, &landing);
            }
        }
    }
}

/* A consumer warpgroup, and where it is. */
struct BackwardConsumer {
    BackwardShared *shared;
    Ring q;
    uint32_t kv_phase;
    int warpgroup;
};

/* Sᵀ becomes Pᵀ. key: the thread's first row within the tile of keys; keys, diagonal: what must be masked. */
static __device__ __forceinline__ void backward_probabilities(float (&s)[64], const float *window, const float *stats,
                                                              int key, int column, int keys, bool diagonal)
{
    float scale = LOG2E, offset = 0;
    if (window && window[WINDOW_FAR] != 0) {
        offset = window[0];
    } else if (window) { /* key - query of this score; only 34 of the 64 are different */
#pragma unroll
        for (int i = 0; i < 64; i++)
            s[i] = s[i] * LOG2E + window[WINDOW_ZERO + key - column + 8 * (i / 2 % 2) - 8 * (i / 4) - i % 2];
        scale = 1;
    }
#pragma unroll
    for (int n = 0; n < 16; n++) {
        const float2 logsumexp = *(const float2 *)(stats + 8 * n + column);
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[4 * n + e] = exp2_approx(s[4 * n + e] * scale + (offset - (e % 2 ? logsumexp.y : logsumexp.x)));
    }
    if (keys >= TILE_ROWS && !diagonal) return;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int j = key + 8 * (i / 2 % 2), query = 8 * (i / 4) + column + i % 2;
        if (j >= keys || (diagonal && j > query)) s[i] = 0;
    }
}

/* Pᵀ and dPᵀ become the A operands P'ᵀ and dSᵀ. */
static __device__ __forceinline__ void backward_scores(uint32_t (&p)[8][4], uint32_t (&ds)[8][4], const float (&s)[64],
                                                       const float (&dp)[64], const float (&keep)[2],
                                                       const float *stats, int column)
{
#pragma unroll
    for (int n = 0; n < 16; n++) {
        const float2 delta = *(const float2 *)(stats + TILE_ROWS + 8 * n + column);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = 4 * n + 2 * h;
            const float x = s[i] * (keep[h] * dp[i] - delta.x), y = s[i + 1] * (keep[h] * dp[i + 1] - delta.y);
            p[n / 2][n % 2 * 2 + h] = pack_bf16x2(s[i] * keep[h], s[i + 1] * keep[h]);
            ds[n / 2][n % 2 * 2 + h] = pack_bf16x2(x, y);
        }
    }
}

/* dSᵀ into shared memory as [half of the queries][key][query], a pair of queries at a time: at tile_byte(key, column +
 * 8n), with the part that depends on n taken out of it. */
static __device__ __forceinline__ void store_ds(BackwardShared *shared, int stage, const uint32_t (&ds)[8][4], int key,
                                                int column)
{
    const uint32_t at = offsetof(BackwardShared, ds) + stage * 2 * TILE_BYTES + tile_byte(key, column);
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            *(uint32_t *)((char *)shared + (at ^ 16 * (n % 8)) + n / 8 * TILE_BYTES + 8 * h * TILE_ROW_BYTES) =
                ds[n / 2][n % 2 * 2 + h];
}

/* d [64, 64] (=) dS of 64 queries · k: dSᵀ of these queries lies as [key][query], so the A operand is transposed. */
static __device__ __forceinline__ void issue_dq(float (&d)[32], const bf16_t *ds, const bf16_t *k)
{
    const uint64_t left = wgmma_descriptor(ds, TILE_BYTES, 1024), right = wgmma_descriptor(k, TILE_BYTES, 1024);
#pragma unroll
    for (int n = 0; n < TILE_ROWS / 16; n++)
        wgmma_ss<64, 1, 1>(d, wgmma_advance(left, 2048 * n), wgmma_advance(right, 2048 * n), n > 0);
}

/* A tile's dS, summed along the diagonals key - query = t - WINDOW_ZERO. Words of shared memory hold two queries, so a
 * thread looks after a pair: in the words of queries q, q + 1 of an even key and of the key after it, four numbers of
 * diagonals t = 2 pair + 1, 2 pair, and 2 pair + 2, 2 pair + 1. Neighbouring threads read neighbouring words. The
 * warpgroups take turns with the keys, and the pairs so that all four schedulers of the SM have the same work. */
static __device__ __forceinline__ int pair_of_thread(int warpgroup)
{
    return (threadIdx.x + warpgroup * TILE_ROWS / 2) % TILE_ROWS;
}

static __device__ __forceinline__ void diagonal_sums(float (&sum)[DIAGONALS], const bf16_t (*ds)[TILE_ROWS * 64],
                                                     int warpgroup)
{
    const int pair = pair_of_thread(warpgroup), first = 2 * (pair / WARP * WARP); /* of the warp's queries or keys */
    const int begin = max(0, first - WINDOW_ZERO + 1) / 4 * 4, end = min((int)TILE_ROWS, first + 2 * WARP);
#pragma unroll 4
    for (int key = begin + 2 * warpgroup; key < end; key += 4) {
        const int query = key + WINDOW_ZERO - 1 - 2 * pair;
        if (query < 0 || query >= TILE_ROWS) continue;
        const char *const half = (const char *)ds[query / 64];
        const float2 one = unpack_bf16x2(*(const uint32_t *)(half + tile_byte(key, query % 64)));
        const float2 next = unpack_bf16x2(*(const uint32_t *)(half + tile_byte(key + 1, query % 64)));
        sum[0] += one.y;
        sum[1] += one.x + next.y;
        sum[2] += next.x;
    }
}

/* The thread's own sums of a window, CONSUMER_THREADS apart. */
static __device__ __forceinline__ float *window_sums_of(const BackwardSettings &to, int window)
{
    const size_t before = (size_t)blockIdx.x * to.windows.count + window;
    return to.window_sums + before * DIAGONALS * CONSUMER_THREADS + threadIdx.x - WARPGROUP;
}

/* The sum of the thread's own dS. */
static __device__ __forceinline__ float operand_sum(const uint32_t (&ds)[8][4])
{
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const float2 pair = unpack_bf16x2(ds[i / 4][i % 4]);
        sum[i % 4] += pair.x + pair.y;
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Adds a tile's dS to the sums of its window. Far windows: each thread has one sum of its own scores, `whole`; near ones:
 * of its diagonals. Every number has one owner, who is always the same thread. */
static __device__ __forceinline__ void add_to_window(const BackwardConsumer &c, const BackwardSettings &to,
                                                     const bf16_t (*ds_tile)[TILE_ROWS * 64], bool far, float whole,
                                                     int query_tile, int key_tile)
{
    float *const sums = window_sums_of(to, key_tile - query_tile + to.windows.first);
    if (far) {
        sums[0] += whole;
        return;
    }
    float sum[DIAGONALS];
    for (int n = 0; n < DIAGONALS; n++) sum[n] = sums[n * CONSUMER_THREADS];
    diagonal_sums(sum, ds_tile, c.warpgroup);
    for (int n = 0; n < DIAGONALS; n++) sums[n * CONSUMER_THREADS] = sum[n];
}

/* Hands a step's dq to the bulk copies, which add it to the block's sums (the first tile of keys sets them). Numbers
 * lie in the order of the registers: the threads that read them back are those that wrote them. */
static __device__ __forceinline__ void add_dq(const BackwardConsumer &c, float *sums, const float (&dq)[32], bool first)
{
    const int thread = threadIdx.x % WARPGROUP;
    float *const stage = c.shared->dq[c.warpgroup];
    if (thread == 0) tma_store_wait<0>(); /* the step before: its sums are written, and the stage is free */
    named_barrier(BARRIER_WARPGROUP + c.warpgroup, WARPGROUP);
#pragma unroll
    for (int i = 0; i < 8; i++)
        ((float4 *)stage)[i * WARPGROUP + thread] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
    fence_proxy_async_shared();
    named_barrier(BARRIER_WARPGROUP + c.warpgroup, WARPGROUP);
    if (thread) return;
    if (first)
        bulk_store(sums, stage, DQ_FLOATS * sizeof(float));
    else
        bulk_reduce_add_f32(sums, stage, DQ_FLOATS * sizeof(float));
    tma_store_commit();
}

static __device__ __forceinline__ float *dq_sums_of(const BackwardSettings &to, int tile, int warpgroup)
{
    return to.dq_sums + (((size_t)blockIdx.x * to.query_tiles + tile) * CONSUMERS + warpgroup) * DQ_FLOATS;
}

/* One tile of queries against the tile of keys at hand. */
static __device__ __forceinline__ void backward_step(BackwardConsumer *c, float (&dk)[32], float (&dv)[32],
                                                     const float (&keep)[2], const Attention &at,
                                                     const BackwardSettings &to, const BackwardItem &it, int key_tile,
                                                     int tile)
{
    BackwardShared *const shared = c->shared;
    const Place place = place_of_thread();
    const int stage = c->q.stage, key = 64 * c->warpgroup + place.row;
    const bool first = tile == first_query_tile(at, key_tile);
    const bf16_t *const q = shared->q[stage], *const dout = shared->dout[stage];
    const bf16_t(*const ds_tile)[TILE_ROWS * 64] = shared->ds[stage];
    const float *const stats = shared->stats[stage];
    float dq[32];
    uint32_t p[8][4], ds[8][4];
    {
        float s[64], dp[64];
        mbarrier_wait(&shared->q_full[stage], c->q.phase);
        warpgroup_fence_operand(s);
        warpgroup_fence_operand(dp);
        wgmma_fence();
        issue_scores(s, shared->k + c->warpgroup * 64 * HEAD, q);
        wgmma_commit();
        issue_scores(dp, shared->v + c->warpgroup * 64 * HEAD, dout);
        wgmma_commit();
        wgmma_wait<1>();
        warpgroup_fence_operand(s);
        backward_probabilities(s, to.windows.data ? shared->window[stage] : NULL, stats, key, place.column,
                               it.task.keys - key_tile * TILE_ROWS, at.causal && tile == key_tile);
        wgmma_wait<0>();
        warpgroup_fence_operand(dp);
        backward_scores(p, ds, s, dp, keep, stats, place.column);
    }
    store_ds(shared, stage, ds, key, place.column);
    fence_proxy_async_shared();
    /* Before dS is an operand: from its product's issue to its end nobody else may read the registers. */
    const bool far = to.window_sums && shared->window[stage][WINDOW_FAR] != 0;
    const float whole = far ? operand_sum(ds) : 0;
    warpgroup_fence_operand(p);
    warpgroup_fence_operand(dv);
    wgmma_fence();
    issue_registers(dv, p, dout, first);
    wgmma_commit();
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS); /* dS of both warpgroups is there */
    warpgroup_fence_operand(ds);
    warpgroup_fence_operand(dk);
    warpgroup_fence_operand(dq);
    wgmma_fence();
    issue_dq(dq, ds_tile[c->warpgroup], shared->k);
    wgmma_commit();
    issue_registers(dk, ds, q, first);
    wgmma_commit();
    if (to.window_sums) add_to_window(*c, to, ds_tile, far, whole, tile, key_tile);
    wgmma_wait<1>(); /* dq leaves while the product for dk runs */
    warpgroup_fence_operand(p);
    warpgroup_fence_operand(dv);
    warpgroup_fence_operand(dq);
    add_dq(*c, dq_sums_of(to, tile, c->warpgroup), dq, key_tile == 0);
    wgmma_wait<0>();
    warpgroup_fence_operand(ds);
    warpgroup_fence_operand(dk);
    arrive_warp(&shared->q_empty[stage]);
    ring_next(&c->q);
}

/* dk and dv of a tile of keys. */
static __device__ __forceinline__ void backward_keys(BackwardConsumer *c, const Attention &at,
                                                     const BackwardSettings &to, const BackwardItem &it, int key_tile)
{
    const int first_key = key_tile * TILE_ROWS + 64 * c->warpgroup, rows = it.task.keys - first_key;
    const float one[2] = {1, 1};
    const int key = first_key + place_of_thread().row;
    const float keep[2] = {attention_keep_one(at, it.task, 0, key), attention_keep_one(at, it.task, 0, key + 8)};
    float dk[32], dv[32];
    mbarrier_wait(&c->shared->kv_full, c->kv_phase);
    c->kv_phase ^= 1;
    const int begin = first_query_tile(at, key_tile);
    for (int tile = begin; tile < tiles_of_rows(it.task.queries); tile++)
        backward_step(c, dk, dv, keep, at, to, it, key_tile, tile);
    arrive_warp(&c->shared->kv_empty);
    if (begin >= tiles_of_rows(it.task.queries)) { /* no query saw these keys */
#pragma unroll
        for (int i = 0; i < 32; i++) dk[i] = dv[i] = 0;
    }
    const size_t offset = (it.task.first_key + first_key) * at.kv_stride + it.task.head * HEAD;
    store_rows_64(to.dk + offset, at.kv_stride, rows, dk, one);
    store_rows_64(to.dv + offset, at.kv_stride, rows, dv, one);
}

/* The sums of dq, now complete, as bf16. */
static __device__ __forceinline__ void finish_dq(const BackwardConsumer &c, const Attention &at,
                                                 const BackwardSettings &to, const BackwardItem &it)
{
    const int thread = threadIdx.x % WARPGROUP;
    const float one[2] = {1, 1};
    if (thread == 0) tma_store_wait<0>();
    fence_proxy_async_global(); /* bulk copies wrote what ordinary loads read now */
    named_barrier(BARRIER_WARPGROUP + c.warpgroup, WARPGROUP);
    for (int tile = 0; tile < tiles_of_rows(it.task.queries); tile++) {
        const float4 *const sums = (const float4 *)dq_sums_of(to, tile, c.warpgroup);
        const int first = tile * TILE_ROWS + 64 * c.warpgroup;
        float dq[32];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 four = __ldcg(sums + i * WARPGROUP + thread); /* past L1, which does not see bulk copies */
            dq[4 * i] = four.x, dq[4 * i + 1] = four.y, dq[4 * i + 2] = four.z, dq[4 * i + 3] = four.w;
        }
        store_rows_64(to.dq + (it.task.first_query + first) * at.q_stride + it.task.head * HEAD, at.q_stride,
                      it.task.queries - first, dq, one);
    }
    fence_proxy_async_global(); /* and the next item's bulk copies write where they have read */
    named_barrier(BARRIER_WARPGROUP + c.warpgroup, WARPGROUP);
}

/* Adds the thread's sums of all windows to its column of `collected`, as far as they belong to buckets first … end-1. */
static __device__ __forceinline__ void collect_buckets(float *collected, const BackwardConsumer &c, const Attention &at,
                                                       const BackwardSettings &to, int head, int first, int end)
{
    for (int w = 0; w < to.windows.count; w++) {
        const float *const sums = window_sums_of(to, w);
        const bool far = to.windows.data[((size_t)head * to.windows.count + w) * WINDOW + WINDOW_FAR] != 0;
        for (int n = 0; n < (far ? 1 : DIAGONALS); n++) {
            const int t = far ? 0 : 2 * pair_of_thread(c.warpgroup) + n;
            if (t >= WINDOW_FAR) continue; /* there are only 255 diagonals */
            const int bucket = window_bucket(at, to.windows, w, t);
            if (bucket >= first && bucket < end)
                collected[(bucket - first) * CONSUMER_THREADS] += sums[n * CONSUMER_THREADS];
        }
    }
}

/* The windows' sums go to their buckets: every thread collects its own numbers by bucket, then a warp adds up what the
 * threads have. Leaves zeros for the next item. */
static __device__ __forceinline__ void finish_dbias(const BackwardConsumer &c, const Attention &at,
                                                    const BackwardSettings &to, const BackwardItem &it)
{
    const int thread = threadIdx.x - WARPGROUP, lane = thread % WARP, buckets = (int)at.buckets;
    float *const collected = (float *)c.shared->ds; /* [FOLD_BUCKETS, CONSUMER_THREADS] */
    for (int first = 0; first < buckets; first += FOLD_BUCKETS) {
        const int end = min(first + (int)FOLD_BUCKETS, buckets);
        named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
        for (int b = first; b < end; b++) collected[(b - first) * CONSUMER_THREADS + thread] = 0;
        collect_buckets(collected + thread, c, at, to, it.task.head, first, end);
        named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
        for (int b = first + thread / WARP; b < end; b += CONSUMER_WARPS) {
            float sum = 0;
            for (int t = lane; t < CONSUMER_THREADS; t += WARP) sum += collected[(b - first) * CONSUMER_THREADS + t];
            sum = warp_sum(sum);
            if (lane == 0) to.partial[(size_t)it.item * buckets + b] = sum;
        }
    }
    for (int w = 0; w < to.windows.count; w++)
        for (int n = 0; n < DIAGONALS; n++) window_sums_of(to, w)[n * CONSUMER_THREADS] = 0;
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
}
#endif

static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
    backward_hopper(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                    const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
                    const __grid_constant__ Attention at, const __grid_constant__ BackwardSettings to)
{
#if HOPPER_CODE
    DYNAMIC_SHARED(BackwardShared, shared);
    if (threadIdx.x == 0) {
        mbarrier_init(&shared->kv_full, 1);
        mbarrier_init(&shared->kv_empty, CONSUMER_WARPS);
        mbarrier_init(&shared->landing, 1);
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&shared->q_full[s], 1);
            mbarrier_init(&shared->q_empty[s], CONSUMER_WARPS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        setmaxnreg_dec<24>();
        if (threadIdx.x < WARP) backward_producer(shared, &q_map, &k_map, &v_map, &dout_map, at, to);
    } else {
        setmaxnreg_inc<240>();
        BackwardConsumer c = {shared, {0, 0}, 0, consumer_of_thread()};
        for (int item = blockIdx.x; item < to.items; item += gridDim.x) {
            const BackwardItem it = backward_item(at, item);
            for (int key_tile = 0; key_tile < tiles_of_rows(it.task.keys); key_tile++)
                backward_keys(&c, at, to, it, key_tile);
            finish_dq(c, at, to, it);
            if (to.window_sums) finish_dbias(c, at, to, it);
        }
    }
#else
    __trap();
#endif
}

/* ================================================================================================================
 * Host */
static_assert(sizeof(ForwardShared) <= SHARED_LIMIT && sizeof(BackwardShared) <= SHARED_LIMIT, "shared memory");
static_assert(offsetof(ForwardShared, window) % TILE_ALIGNMENT == 0 && offsetof(BackwardShared, window) % 1024 == 0,
              "tiles come first and are aligned");
static_assert(sizeof(((BackwardShared *)0)->ds) >= FOLD_BUCKETS * CONSUMER_THREADS * sizeof(float), "finish_dbias");
static_assert(24 + 2 * 240 <= 3 * 168, "setmaxnreg: what three warpgroups enter with is what they share");

/* Tiles of one head: the matrix as TMA sees it. */
static CUtensorMap tile_map(const act_t *base, const Attention *at, size_t rows, size_t stride)
{
    CUtensorMap map;
    if (tensor_map_2d(&map, base, TENSOR_BF16, at->heads * HEAD, rows, stride * sizeof(act_t), HEAD, TILE_ROWS))
        exit(EXIT_FAILED);
    return map;
}

static size_t tiles_of(const Sequences *seqs)
{
    return ceil_div(seqs->longest, (size_t)TILE_ROWS);
}

/* A piece of the scratch memory; memory NULL: only counts. */
static float *take_floats(float *memory, size_t *used, size_t n)
{
    float *const piece = memory ? memory + *used : NULL;
    *used += (n + 63) / 64 * 64;
    return piece;
}

static Windows windows_of(const Attention *at)
{
    return {NULL, (int)(tiles_of(&at->queries) + tiles_of(&at->keys) - 1), (int)tiles_of(&at->queries) - 1};
}

static size_t windows_size(const Attention *at, const Windows *windows)
{
    return at->bucket ? at->heads * windows->count * WINDOW : 0;
}

static void windows_fill(Device *dev, float *memory, const Attention *at, Windows *windows)
{
    if (!at->bucket) return;
    launch(dev, make_windows, dim3((unsigned)windows->count, (unsigned)at->heads), dim3(WINDOW), 0, memory, *at,
           *windows);
    windows->data = memory;
}

void attention_forward_hopper(Device *dev, act_t *out, stat_t *logsumexp, const Attention *at)
{
    Windows windows = windows_of(at);
    windows_fill(dev, (float *)device_scratch(dev, windows_size(at, &windows) * sizeof(float)), at, &windows);
    const size_t items = at->queries.count * at->heads * tiles_of(&at->queries);
    const dim3 grid((unsigned)min(items, (size_t)dev->sm_count));
    launch(dev, forward_hopper, grid, dim3(HOPPER_THREADS), sizeof(ForwardShared),
           tile_map(at->q, at, at->queries.rows, at->q_stride), tile_map(at->k, at, at->keys.rows, at->kv_stride),
           tile_map(at->v, at, at->keys.rows, at->kv_stride), out, logsumexp, *at, windows, (int)tiles_of(&at->queries),
           (int)items);
}

static size_t window_sums_size(size_t blocks, const Windows *windows)
{
    return blocks * windows->count * DIAGONALS * CONSUMER_THREADS;
}

/* Lays out the scratch memory of a backward pass: returns its size in floats. */
static size_t backward_layout(BackwardSettings *to, float *memory, float **windows, size_t blocks, const Attention *at,
                              bool dbias)
{
    size_t used = 0;
    *windows = take_floats(memory, &used, windows_size(at, &to->windows));
    to->stats = take_floats(memory, &used, (size_t)to->items * to->query_tiles * STATS);
    to->dq_sums = take_floats(memory, &used, blocks * to->query_tiles * CONSUMERS * DQ_FLOATS);
    if (dbias) {
        to->window_sums = take_floats(memory, &used, window_sums_size(blocks, &to->windows));
        to->partial = take_floats(memory, &used, to->items * at->buckets);
    }
    return used;
}

void attention_backward_hopper(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                               const act_t *out, const stat_t *logsumexp, const Attention *at)
{
    const size_t items = at->queries.count * at->heads, blocks = min(items, (size_t)dev->sm_count);
    BackwardSettings to = {};
    float *windows;
    to.dq = dq, to.dk = dk, to.dv = dv;
    to.query_tiles = (int)tiles_of(&at->queries), to.items = (int)items;
    to.windows = windows_of(at);
    float *const memory =
        (float *)device_scratch(dev, backward_layout(&to, NULL, &windows, blocks, at, dbias != NULL) * sizeof(float));
    backward_layout(&to, memory, &windows, blocks, at, dbias != NULL);
    windows_fill(dev, windows, at, &to.windows);
    launch(dev, backward_stats, dim3((unsigned)to.query_tiles, (unsigned)at->heads, (unsigned)at->queries.count),
           dim3(TILE_ROWS), 0, (float *)to.stats, dout, out, logsumexp, *at);
    if (dbias) device_clear(dev, to.window_sums, window_sums_size(blocks, &to.windows) * sizeof *to.window_sums);
    launch(dev, backward_hopper, dim3((unsigned)blocks), dim3(HOPPER_THREADS), sizeof(BackwardShared),
           tile_map(at->q, at, at->queries.rows, at->q_stride), tile_map(at->k, at, at->keys.rows, at->kv_stride),
           tile_map(at->v, at, at->keys.rows, at->kv_stride), tile_map(dout, at, at->queries.rows, at->heads * HEAD),
           *at, to);
    if (dbias) attention_sum_dbias(dev, dbias, to.partial, at->queries.count, at->heads, at->buckets);
}

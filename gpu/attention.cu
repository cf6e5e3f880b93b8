/* attention.cu: attention for any card, and the seam's three functions.
 *
 * For each head: S = q · kᵀ + bias, P = softmax(S) over the keys, P' = dropout(P), out = P' · v. T5's bias depends on
 * the distance key - query only, and its softmax has no 1/sqrt(d_kv). As on the CPU (chapter 2 of promot.c), S is never
 * whole in memory: it is made tile by tile, and the softmax is computed online (Milakov and Gimelshein 2018; Dao et al.
 * 2022, "FlashAttention").
 *
 * A tile of 64 queries x 64 keys with head size d costs 4 * 64 * 64 * d FLOP forward and reads 2 * 64 * d keys' and
 * values' numbers: 64 FLOP for each byte from L2, so the tensor cores are the limit, not memory. One query against a
 * cache is the opposite: 1 FLOP for each byte, and memory is the only limit.
 *
 * Four ways, from the plainest to the fastest; attention_path chooses:
 *
 *     [1] loops    one thread for each score. Any shape; what the others may be measured against.
 *     [2] tiles    mma.sync, head sizes that are multiples of 8 up to 128.
 *     [3] few      decoding: 1 to 8 queries, or one query and a cache; at the speed of memory.
 *     attention_hopper.cu: wgmma and TMA, head size 64.
 *
 * The backward pass of [1] and [2] goes over the scores twice: once with a block for each tile of queries, which owns
 * their dq, and once with a block for each tile of keys, which owns their dk and dv. That is 7 products instead of 5,
 * but no block waits for another, nothing needs scratch memory but one number for each row, and all sums have the order
 * of the program: the same bits each time. The keys' pass is the second one: it may write dk and dv over k and v, for a
 * block reads no keys but its own. */
#include "attention.cuh"

enum {
    TILE = 64,          /* queries, or keys, of a tile */
    THREADS = 128,      /* of every block here: 4 warps, each with 16 rows of a tile */
    LOOPS_COLUMNS = 8,  /* columns that a thread of [1] looks after: head sizes up to 8 * 128 */
    FEW_QUERIES = 8,    /* [3] serves that many, */
    FEW_KEYS_AHEAD = 4, /* and every thread has so many keys and values on their way */
};

/* ================================================================================================================
 * [1] Loops
 *
 * A block looks after one query (or key) at a time. Its threads first have a key (or query) each and make 128 scores,
 * then a column each, over which they sum. */

/* The keys and values of one head of one sequence: rows of a packed matrix, or of a decoder's cache, where the token of
 * place j was made by the row's ancestor. */
struct KeyRows {
    const bf16_t *k, *v;
    size_t stride;
    const int32_t *ancestors; /* NULL: packed rows */
    size_t capacity, row;     /* of the cache */
    int last;                 /* the place of the query's own token */
};

static __device__ __forceinline__ size_t key_offset(const KeyRows &rows, int j)
{
    if (!rows.ancestors) return (size_t)j * rows.stride;
    const size_t holder = j == rows.last ? rows.row : (size_t)rows.ancestors[j];
    return ((size_t)j * rows.capacity + holder) * rows.stride;
}

static __device__ KeyRows packed_rows(const Attention &at, const AttentionTask &task)
{
    const size_t offset = task.first_key * at.kv_stride + (size_t)task.head * at.d_kv;
    return {at.k + offset, at.v + offset, at.kv_stride, NULL, 0, 0, 0};
}

static __device__ KeyRows cached_rows(const Attention &at, const bf16_t *cache, const int32_t *ancestors, int row,
                                      int head, int steps, size_t max_steps, size_t capacity)
{
    const size_t inner = at.heads * at.d_kv;
    const bf16_t *const k = cache + inner + (size_t)head * at.d_kv;
    return {k, k + inner, 3 * inner, ancestors + (size_t)row * max_steps, capacity, (size_t)row, steps - 1};
}

static __device__ float dot_loop(const bf16_t *a, const bf16_t *b, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++) sum += bf16_to_float(a[i]) * bf16_to_float(b[i]);
    return sum;
}

/* sums[e] += p[0 … n-1] · column number threadIdx.x + e * THREADS of rows that begin at `rows + offset(j)` */
template <typename Offset>
static __device__ void add_columns(float sums[LOOPS_COLUMNS], const float *p, int n, const bf16_t *rows, int width,
                                   Offset offset)
{
#pragma unroll
    for (int e = 0, c = threadIdx.x; e < LOOPS_COLUMNS; e++, c += THREADS)
        for (int j = 0; c < width && j < n; j++) sums[e] += p[j] * bf16_to_float(rows[offset(j) + c]);
}

static __device__ void store_columns(bf16_t *to, const float sums[LOOPS_COLUMNS], int width, float factor)
{
#pragma unroll
    for (int e = 0, c = threadIdx.x; e < LOOPS_COLUMNS; e++, c += THREADS)
        if (c < width) to[c] = float_to_bf16(sums[e] * factor);
}

/* One query against `keys` keys, by the whole block: out [d_kv] (=). Returns the logsumexp in units of log 2. p
 * [THREADS] and reduction [32] are shared memory. */
static __device__ float attend_loops(bf16_t *out, const bf16_t *q, const KeyRows &rows, int keys, int place,
                                     const Attention &at, const AttentionTask &task, float *p, float *reduction)
{
    const int d = (int)at.d_kv;
    float max = MASKED, sum = 0, sums[LOOPS_COLUMNS] = {0};
    for (int k = 0; k < keys; k += THREADS) {
        const int j = k + (int)threadIdx.x, n = min(THREADS, keys - k);
        float s = MASKED;
        if (j < keys)
            s = dot_loop(q, rows.k + key_offset(rows, j), d) * LOG2E + attention_bias(at, task.head, j - place);
        const float new_max = fmaxf(max, block_max(s, reduction)), factor = exp2_approx(max - new_max);
        const float e = j < keys ? exp2_approx(s - new_max) : 0;
        sum = sum * factor + block_sum(e, reduction);
        p[threadIdx.x] = e * attention_keep_one(at, task, place, j); /* after the sum: dropout acts on probabilities */
        __syncthreads();
        for (int c = 0; c < LOOPS_COLUMNS; c++) sums[c] *= factor;
        add_columns(sums, p, n, rows.v, d, [&](int i) { return key_offset(rows, k + i); });
        __syncthreads();
        max = new_max;
    }
    store_columns(out, sums, d, 1 / sum);
    return max + log2f(sum);
}

/* Grid: (tiles of queries, heads, sequences), here and in [2]. */
static __global__ void __launch_bounds__(THREADS, 4) forward_loops(bf16_t *out, float *logsumexp, const Attention at)
{
    __shared__ float p[THREADS], reduction[32];
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    const KeyRows rows = packed_rows(at, task);
    const int end = min(task.queries, ((int)blockIdx.x + 1) * TILE);
    for (int i = blockIdx.x * TILE; i < end; i++) {
        const size_t row = task.first_query + i, column = (size_t)task.head * at.d_kv;
        const int visible = at.causal ? min(task.keys, i + 1) : task.keys;
        const float l = attend_loops(out + row * at.heads * at.d_kv + column, at.q + row * at.q_stride + column, rows,
                                     visible, i, at, task, p, reduction);
        if (threadIdx.x == 0) logsumexp[task.head * at.queries.rows + row] = l * LN2;
    }
}

static __global__ void __launch_bounds__(THREADS, 4)
    cached_loops(bf16_t *out, const bf16_t *cache, const int32_t *ancestors, int steps, size_t max_steps,
                 size_t capacity, const Attention at)
{
    __shared__ float p[THREADS], reduction[32];
    const int head = blockIdx.x % at.heads, row = blockIdx.x / at.heads;
    const KeyRows rows = cached_rows(at, cache, ancestors, row, head, steps, max_steps, capacity);
    AttentionTask task = {};
    task.head = head;
    const bf16_t *const q = rows.k + key_offset(rows, steps - 1) - at.heads * at.d_kv;
    attend_loops(out + blockIdx.x * at.d_kv, q, rows, steps, steps - 1, at, task, p, reduction);
}

/* --- backward. With P' = P * keep and dO the gradient of out:
 *
 *     dv = P'ᵀ · dO        dP = keep * (dO · vᵀ)
 *     dS = P * (dP - D),   D_i = sum over j of P_ij dP_ij = dO_i · out_i
 *     dq = dS · k          dk = dSᵀ · q          dbias[bucket(j - i)] += dS_ij
 *
 * One score of it. */
struct ScoreGradient {
    float dropped, ds; /* P' and dS */
};

static __device__ ScoreGradient score_gradient(const bf16_t *q, const bf16_t *k, const bf16_t *v, const bf16_t *dout,
                                               int i, int j, float logsumexp, float delta, const Attention &at,
                                               const AttentionTask &task)
{
    const int d = (int)at.d_kv;
    const float s = dot_loop(q, k, d) * LOG2E + attention_bias(at, task.head, j - i);
    const float p = exp2_approx(s - logsumexp * LOG2E), keep = attention_keep_one(at, task, i, j);
    return {p * keep, p * (keep * dot_loop(dout, v, d) - delta)};
}

/* dq, delta [heads, query rows] (=) D, and, unless it is NULL, the tile's share of dbias: partial [sequences, tiles,
 * heads, buckets] (=). */
static __global__ void __launch_bounds__(THREADS, 4)
    backward_queries_loops(bf16_t *dq, float *delta, float *partial, const bf16_t *dout, const bf16_t *out,
                           const float *logsumexp, const Attention at)
{
    DYNAMIC_SHARED(float, dbias); /* [buckets] */
    __shared__ float ds[THREADS], reduction[32];
    __shared__ int bucket[THREADS];
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    const KeyRows rows = packed_rows(at, task);
    const int d = (int)at.d_kv, buckets = partial ? (int)at.buckets : 0;
    const int end = min(task.queries, ((int)blockIdx.x + 1) * TILE);
    for (int b = threadIdx.x; b < buckets; b += THREADS) dbias[b] = 0;
    for (int i = blockIdx.x * TILE; i < end; i++) {
        const size_t row = task.first_query + i, column = (size_t)task.head * d, width = at.heads * d;
        const bf16_t *const q = at.q + row * at.q_stride + column, *const g = dout + row * width + column;
        const int visible = at.causal ? min(task.keys, i + 1) : task.keys;
        float products = 0, sums[LOOPS_COLUMNS] = {0};
        for (int c = threadIdx.x; c < d; c += THREADS)
            products += bf16_to_float(g[c]) * bf16_to_float(out[row * width + column + c]);
        const float D = block_sum(products, reduction), l = logsumexp[task.head * at.queries.rows + row];
        if (threadIdx.x == 0) delta[task.head * at.queries.rows + row] = D;
        for (int k = 0; k < visible; k += THREADS) {
            const int j = k + (int)threadIdx.x, n = min(THREADS, visible - k);
            if (j < visible) {
                const size_t offset = key_offset(rows, j);
                ds[threadIdx.x] = score_gradient(q, rows.k + offset, rows.v + offset, g, i, j, l, D, at, task).ds;
                if (partial) bucket[threadIdx.x] = at.bucket[j - i];
            }
            __syncthreads();
            add_columns(sums, ds, n, rows.k, d, [&](int o) { return key_offset(rows, k + o); });
            for (int b = threadIdx.x; b < buckets; b += THREADS)
                for (int o = 0; o < n; o++) dbias[b] += bucket[o] == b ? ds[o] : 0;
            __syncthreads();
        }
        store_columns(dq + row * at.q_stride + column, sums, d, 1);
    }
    const size_t part = ((size_t)blockIdx.z * gridDim.x + blockIdx.x) * at.heads + task.head;
    for (int b = threadIdx.x; b < buckets; b += THREADS) partial[part * buckets + b] = dbias[b];
}

/* dk and dv, a key after the other. Grid: (tiles of keys, heads, sequences). */
static __global__ void __launch_bounds__(THREADS, 4)
    backward_keys_loops(bf16_t *dk, bf16_t *dv, const float *delta, const bf16_t *dout, const float *logsumexp,
                        const Attention at)
{
    __shared__ float ds[THREADS], dropped[THREADS];
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    const KeyRows rows = packed_rows(at, task);
    const int d = (int)at.d_kv, end = min(task.keys, ((int)blockIdx.x + 1) * TILE);
    const size_t column = (size_t)task.head * d, width = at.heads * d;
    for (int j = blockIdx.x * TILE; j < end; j++) {
        const size_t offset = key_offset(rows, j);
        float dk_sums[LOOPS_COLUMNS] = {0}, dv_sums[LOOPS_COLUMNS] = {0};
        for (int first = at.causal ? j : 0; first < task.queries; first += THREADS) {
            const int i = first + (int)threadIdx.x, n = min(THREADS, task.queries - first);
            if (i < task.queries) {
                const size_t row = task.first_query + i, place = task.head * at.queries.rows + row;
                const ScoreGradient s =
                    score_gradient(at.q + row * at.q_stride + column, rows.k + offset, rows.v + offset,
                                   dout + row * width + column, i, j, logsumexp[place], delta[place], at, task);
                ds[threadIdx.x] = s.ds;
                dropped[threadIdx.x] = s.dropped;
            }
            __syncthreads();
            const size_t row = task.first_query + first;
            add_columns(dk_sums, ds, n, at.q + row * at.q_stride + column, d, [&](int o) { return o * at.q_stride; });
            add_columns(dv_sums, dropped, n, dout + row * width + column, d, [&](int o) { return o * width; });
            __syncthreads(); /* and after the last one, all have read k and v: their gradients may take the place */
        }
        const size_t to = task.first_key * at.kv_stride + column + offset;
        store_columns(dk + to, dk_sums, d, 1);
        store_columns(dv + to, dv_sums, d, 1);
    }
}

/* ================================================================================================================
 * [2] Tiles
 *
 * The tensor cores multiply 16x16 by 16x8 for each warp (m16n8k16). A warp has 16 rows of a tile; with g = lane / 4 and
 * c = lane % 4 a thread holds, of an accumulator of 16 rows, rows g and g + 8, columns 8n + 2c and the next: x[n][0] and
 * x[n][1] of row g, x[n][2] and x[n][3] of row g + 8. The four threads of a row are neighbours. Two 8-column groups side
 * by side, rounded to bf16, are the 16x16 left operand of the next product: probabilities never leave the registers.
 *
 * In shared memory a tile is 64 rows of D numbers, zeros where the sequence or the head ends. The 16-byte pieces of a
 * row change places, piece p of row r being at p ^ (r % 8), so that a piece of 8 rows lies in 8 groups of banks. */

template <int D> static __device__ __forceinline__ bf16_t *piece_of(bf16_t *tile, int row, int piece)
{
    return tile + row * D + ((piece ^ (row & 7)) << 3);
}

/* Brings `rows` rows (0 … 64) of d numbers on their way to a tile. */
template <int D> static __device__ void load_tile(bf16_t *tile, const bf16_t *from, size_t stride, int rows, int d)
{
    for (int i = threadIdx.x; i < TILE * D / 8; i += THREADS) {
        const int row = i / (D / 8), piece = i % (D / 8);
        const bool exists = row < rows && piece * 8 < d;
        cp_async_16(piece_of<D>(tile, row, piece), exists ? from + (size_t)row * stride + piece * 8 : from,
                    exists ? 16 : 0);
    }
}

/* 16 rows x 16 columns of a tile as four 8x8 matrices. ACROSS: matrices 0 and 1 lie side by side, else one above the
 * other. */
template <int D, bool ACROSS, bool TRANSPOSED>
static __device__ __forceinline__ void load_16x16(uint32_t r[4], bf16_t *tile, int row, int column)
{
    const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    bf16_t *const from =
        piece_of<D>(tile, row + lane % 8 + 8 * (ACROSS ? high : low), column / 8 + (ACROSS ? low : high));
    if (TRANSPOSED)
        ldmatrix_x4_trans(r, from);
    else
        ldmatrix_x4(r, from);
}

template <int N> static __device__ __forceinline__ void clear(float (&x)[N][4])
{
    for (int n = 0; n < N; n++) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
}

/* s [16, 8 N] (=) rows `row` … of a · the rows of bᵀ, both tiles of width D. */
template <int D, int N> static __device__ void multiply_rows(float (&s)[N][4], bf16_t *a, int row, bf16_t *b)
{
    clear(s);
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4], right[4];
        load_16x16<D, false, false>(left, a, row, k);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            load_16x16<D, true, false>(right, b, 16 * n, k);
            mma_bf16_16816(s[2 * n], left, right);
            mma_bf16_16816(s[2 * n + 1], left, right + 2);
        }
    }
}

/* sum [16, D] (+=) left [16, 16] · rows k … k + 15 of b */
template <int D>
static __device__ __forceinline__ void multiply_step(float (&sum)[D / 8][4], const uint32_t left[4], bf16_t *b, int k)
{
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t right[4];
        load_16x16<D, false, true>(right, b, k, 16 * n);
        mma_bf16_16816(sum[2 * n], left, right);
        mma_bf16_16816(sum[2 * n + 1], left, right + 2);
    }
}

/* sum [16, D] (+=) p [16, 64], rounded to bf16, · b */
template <int D> static __device__ void multiply_registers(float (&sum)[D / 8][4], const float (&p)[8][4], bf16_t *b)
{
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        const uint32_t left[4] = {pack_bf16x2(p[n][0], p[n][1]), pack_bf16x2(p[n][2], p[n][3]),
                                  pack_bf16x2(p[n + 1][0], p[n + 1][1]), pack_bf16x2(p[n + 1][2], p[n + 1][3])};
        multiply_step<D>(sum, left, b, 8 * n);
    }
}

/* sum [16, D] (+=) columns `column` … of the 64 x 64 tile a, transposed, · b */
template <int D> static __device__ void multiply_columns(float (&sum)[D / 8][4], bf16_t *a, int column, bf16_t *b)
{
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
        uint32_t left[4];
        load_16x16<TILE, true, true>(left, a, k, column);
        multiply_step<D>(sum, left, b, k);
    }
}

/* Which scores of a warp are whose: rows `row` and row + 8 of the tile, columns `column` + 8n and the next. */
struct Fragment {
    int row, column;
};

static __device__ __forceinline__ Fragment fragment_of_thread()
{
    const int lane = threadIdx.x % 32;
    return {(int)threadIdx.x / 32 * 16 + lane / 4, lane % 4 * 2};
}

/* A tile's place among the task's scores. */
struct TilePlace {
    int query, key;
};

/* The bias of each distance within a tile: bias[TILE - 1 - i + j] for query i, key j. */
static __device__ void load_bias(float *bias, int *bucket, const Attention &at, const AttentionTask &task,
                                 TilePlace tile)
{
    const int distance = tile.key - tile.query + (int)threadIdx.x - (TILE - 1), t = threadIdx.x;
    const bool exists = at.bucket && distance > -task.queries && distance < task.keys;
    bias[t] = exists ? attention_bias(at, task.head, distance) : 0;
    if (bucket) bucket[t] = exists ? at.bucket[distance] : -1;
}

/* Products become scores in units of log 2. (For the right half of a tile, tile.key and bias begin with the half.) */
template <int N>
static __device__ void finish_scores(float (&s)[N][4], const float *bias, const Attention &at,
                                     const AttentionTask &task, TilePlace tile)
{
    const Fragment f = fragment_of_thread();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = f.row + 8 * (e >> 1), j = 8 * n + f.column + (e & 1);
            const bool visible = tile.key + j < task.keys && (!at.causal || tile.key + j <= tile.query + i);
            s[n][e] = visible ? s[n][e] * LOG2E + bias[TILE - 1 - i + j] : MASKED;
        }
}

/* Dropout's factors of the scores s[n]. A generator call serves 4 keys of one query, which two neighbours share:
 * each makes one row's and they exchange halves. */
static __device__ void keep_of_fragment(float keep[4], const Attention &at, const AttentionTask &task, TilePlace tile,
                                        int n)
{
    const Fragment f = fragment_of_thread();
    const bool odd = threadIdx.x & 1;
    float made[4];
    attention_keep(made, at, task, tile.query + f.row + (odd ? 8 : 0), (tile.key + 8 * n + f.column) / 4);
    const float first = __shfl_xor_sync(~0u, odd ? made[0] : made[2], 1);
    const float second = __shfl_xor_sync(~0u, odd ? made[1] : made[3], 1);
    keep[0] = odd ? first : made[0], keep[1] = odd ? second : made[1];
    keep[2] = odd ? made[2] : first, keep[3] = odd ? made[3] : second;
}

/* Scores become exp(s - max); max and sum of the thread's two rows are brought up to date, the sum for the thread's own
 * columns only. factor: exp(old max - new max), for all that was summed under the old one. */
static __device__ void softmax_online(float (&s)[8][4], float max[2], float sum[2], float factor[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = max[h], l = 0;
#pragma unroll
        for (int n = 0; n < 8; n++) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        m = quad_max(m);
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) l += s[n][e] = exp2_approx(s[n][e] - m);
        factor[h] = exp2_approx(max[h] - m);
        sum[h] = sum[h] * factor[h] + l;
        max[h] = m;
    }
}

/* The warp's 16 rows of sums * factor, as far as the tile's `rows` and the head's d reach. */
template <int D>
static __device__ void store_rows(bf16_t *to, size_t stride, int rows, int d, const float (&sums)[D / 8][4],
                                  const float factor[2])
{
    const Fragment f = fragment_of_thread();
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = f.row + 8 * h, column = 8 * n + f.column;
            if (row < rows && column < d)
                *(uint32_t *)(to + row * stride + column) =
                    pack_bf16x2(sums[n][2 * h] * factor[h], sums[n][2 * h + 1] * factor[h]);
        }
}

/* Shared: tiles q, k, v, and the bias. K of the next tile is on its way during softmax and P · V, V of the next tile
 * during Q · Kᵀ; what is left of the waiting is hidden by the other blocks of the SM. */
template <int D>
static __global__ void __launch_bounds__(THREADS) forward_tiles(bf16_t *out, float *logsumexp, const Attention at)
{
    DYNAMIC_SHARED(bf16_t, shared);
    bf16_t *const q = shared, *const k = q + TILE * D, *const v = k + TILE * D;
    float *const bias = (float *)(v + TILE * D);
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    TilePlace tile = {(int)blockIdx.x * TILE, 0};
    if (tile.query >= task.queries) return;
    const int d = (int)at.d_kv, end = at.causal ? min(task.keys, tile.query + TILE) : task.keys;
    const size_t row = task.first_query + tile.query, column = (size_t)task.head * d;
    const KeyRows from = packed_rows(at, task);
    load_tile<D>(q, at.q + row * at.q_stride + column, at.q_stride, min(TILE, task.queries - tile.query), d);
    load_tile<D>(k, from.k, from.stride, min(TILE, end), d);
    cp_async_commit();
    load_tile<D>(v, from.v, from.stride, min(TILE, end), d);
    cp_async_commit();

    float sums[D / 8][4], max[2] = {MASKED, MASKED}, sum[2] = {0, 0}, factor[2];
    clear(sums);
    for (; tile.key < end; tile.key += TILE) {
        const int next = tile.key + TILE, next_rows = next < end ? min(TILE, end - next) : 0;
        const size_t next_offset = next_rows ? next * from.stride : 0;
        float s[8][4];
        load_bias(bias, NULL, at, task, tile);
        cp_async_wait<1>(); /* k is here */
        __syncthreads();
        multiply_rows<D>(s, q, threadIdx.x / 32 * 16, k);
        __syncthreads(); /* all have read it */
        load_tile<D>(k, from.k + next_offset, from.stride, next_rows, d);
        cp_async_commit();

        finish_scores(s, bias, at, task, tile);
        softmax_online(s, max, sum, factor);
        for (int n = 0; at.dropout.rate > 0 && n < 8; n++) { /* after the sum: dropout acts on probabilities */
            float keep[4];
            keep_of_fragment(keep, at, task, tile, n);
            for (int e = 0; e < 4; e++) s[n][e] *= keep[e];
        }
        for (int n = 0; n < D / 8; n++)
            for (int e = 0; e < 4; e++) sums[n][e] *= factor[e >> 1];
        cp_async_wait<1>(); /* v is here */
        __syncthreads();
        multiply_registers<D>(sums, s, v);
        __syncthreads();
        load_tile<D>(v, from.v + next_offset, from.stride, next_rows, d);
        cp_async_commit();
    }
    for (int h = 0; h < 2; h++) {
        const Fragment f = fragment_of_thread();
        const float whole = quad_sum(sum[h]);
        factor[h] = 1 / whole;
        if (f.column == 0 && tile.query + f.row + 8 * h < task.queries)
            logsumexp[task.head * at.queries.rows + row + f.row + 8 * h] = (max[h] + log2f(whole)) * LN2;
    }
    const size_t width = at.heads * at.d_kv;
    store_rows<D>(out + row * width + column, width, task.queries - tile.query, d, sums, factor);
}

/* The scores of a tile become P' and dO · vᵀ becomes dS, for the thread's rows with their logsumexp (in units of log 2)
 * and delta. */
template <int N>
static __device__ void softmax_backward(float (&s)[N][4], float (&ds)[N][4], const float logsumexp[2],
                                        const float delta[2], const Attention &at, const AttentionTask &task,
                                        TilePlace tile)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
        float keep[4] = {1, 1, 1, 1};
        if (at.dropout.rate > 0) keep_of_fragment(keep, at, task, tile, n);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float p = exp2_approx(s[n][e] - logsumexp[e >> 1]);
            s[n][e] = p * keep[e];
            ds[n][e] = p * (keep[e] * ds[n][e] - delta[e >> 1]);
        }
    }
}

/* D of the tile's queries: two threads for each row. Rows that do not exist get 0. */
static __device__ void sum_products(float *delta, const bf16_t *dout, const bf16_t *out, size_t width, int rows, int d)
{
    const int row = threadIdx.x / 2;
    float sum = 0;
    for (int c = threadIdx.x % 2 * 2; row < rows && c < d; c += 4) {
        const float2 a = unpack_bf16x2(*(const uint32_t *)(dout + row * width + c));
        const float2 b = unpack_bf16x2(*(const uint32_t *)(out + row * width + c));
        sum += a.x * b.x + a.y * b.y;
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (threadIdx.x % 2 == 0) delta[row] = sum;
}

enum { DIAGONALS_STRIDE = TILE + 1 }; /* odd: neighbouring diagonals lie in neighbouring banks */

/* Adds a tile's dS to the buckets: a thread sums along one distance, then gathers the distances of one bucket. */
static __device__ void add_to_buckets(float *dbias, const float (&ds)[8][4], float *whole, float *diagonal,
                                      const int *bucket, int buckets)
{
    const Fragment f = fragment_of_thread();
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            whole[(f.row + 8 * (e >> 1)) * DIAGONALS_STRIDE + 8 * n + f.column + (e & 1)] = ds[n][e];
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < TILE; i++) {
        const int j = (int)threadIdx.x - (TILE - 1) + i;
        if (j >= 0 && j < TILE) sum += whole[i * DIAGONALS_STRIDE + j];
    }
    diagonal[threadIdx.x] = sum;
    __syncthreads();
    for (int b = threadIdx.x; b < buckets; b += THREADS)
        for (int t = 0; t < 2 * TILE - 1; t++)
            if (bucket[t] == b) dbias[b] += diagonal[t];
}

/* Shared memory of the queries' pass: tiles q, dout, k, v, and the numbers for the bias. */
static size_t backward_queries_shared(int D, size_t buckets)
{
    return 4 * TILE * D * sizeof(bf16_t) + (3 * THREADS + TILE * DIAGONALS_STRIDE + TILE + buckets) * sizeof(float);
}

/* dq, delta and the tile's share of dbias, as backward_queries_loops. */
template <int D>
static __global__ void __launch_bounds__(THREADS)
    backward_queries_tiles(bf16_t *dq, float *delta, float *partial, const bf16_t *dout, const bf16_t *out,
                           const float *logsumexp, const Attention at)
{
    DYNAMIC_SHARED(bf16_t, shared);
    bf16_t *const q = shared, *const g = q + TILE * D, *const k = g + TILE * D, *const v = k + TILE * D;
    float *const bias = (float *)(v + TILE * D), *const diagonal = bias + THREADS, *const whole = diagonal + THREADS;
    float *const products = whole + TILE * DIAGONALS_STRIDE;
    int *const bucket = (int *)(products + TILE);
    float *const dbias = (float *)(bucket + THREADS);
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    TilePlace tile = {(int)blockIdx.x * TILE, 0};
    const int d = (int)at.d_kv, buckets = partial ? (int)at.buckets : 0, rows = min(TILE, task.queries - tile.query);
    const int end = rows <= 0 ? 0 : at.causal ? min(task.keys, tile.query + TILE) : task.keys;
    const size_t row = task.first_query + tile.query, column = (size_t)task.head * d, width = at.heads * at.d_kv;
    const KeyRows from = packed_rows(at, task);
    const Fragment f = fragment_of_thread();
    const int warp_row = threadIdx.x / 32 * 16;

    for (int b = threadIdx.x; b < buckets; b += THREADS) dbias[b] = 0;
    float sums[D / 8][4], l[2] = {0, 0}, D_of_row[2] = {0, 0};
    clear(sums);
    if (rows > 0) {
        load_tile<D>(q, at.q + row * at.q_stride + column, at.q_stride, rows, d);
        load_tile<D>(g, dout + row * width + column, width, rows, d);
        sum_products(products, dout + row * width + column, out + row * width + column, width, rows, d);
        __syncthreads();
        const size_t place = task.head * at.queries.rows + row;
        if ((int)threadIdx.x < rows) delta[place + threadIdx.x] = products[threadIdx.x];
        for (int h = 0; h < 2; h++) {
            D_of_row[h] = products[f.row + 8 * h];
            l[h] = f.row + 8 * h < rows ? logsumexp[place + f.row + 8 * h] * LOG2E : -MASKED; /* nobody's row: P = 0 */
        }
    }
    for (; tile.key < end; tile.key += TILE) {
        float s[8][4], ds[8][4];
        const size_t offset = tile.key * from.stride;
        load_tile<D>(k, from.k + offset, from.stride, min(TILE, end - tile.key), d);
        load_tile<D>(v, from.v + offset, from.stride, min(TILE, end - tile.key), d);
        cp_async_commit();
        load_bias(bias, buckets ? bucket : NULL, at, task, tile);
        cp_async_wait<0>();
        __syncthreads();
        multiply_rows<D>(s, q, warp_row, k);
        multiply_rows<D>(ds, g, warp_row, v);
        finish_scores(s, bias, at, task, tile);
        softmax_backward(s, ds, l, D_of_row, at, task, tile);
        multiply_registers<D>(sums, ds, k);
        if (buckets) add_to_buckets(dbias, ds, whole, diagonal, bucket, buckets);
        __syncthreads();
    }
    const float one[2] = {1, 1};
    if (rows > 0) store_rows<D>(dq + row * at.q_stride + column, at.q_stride, rows, d, sums, one);
    const size_t part = ((size_t)blockIdx.z * gridDim.x + blockIdx.x) * at.heads + task.head;
    for (int b = threadIdx.x; b < buckets; b += THREADS) partial[part * buckets + b] = dbias[b];
}

/* 8 N columns of the warp's 16 rows of a 64 x 64 tile, rounded to bf16, into shared memory. */
template <int N> static __device__ void store_tile(bf16_t *tile, int column, const float (&x)[N][4])
{
    const Fragment f = fragment_of_thread();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            *(uint32_t *)(piece_of<TILE>(tile, f.row + 8 * h, column / 8 + n) + f.column) =
                pack_bf16x2(x[n][2 * h], x[n][2 * h + 1]);
}

/* Shared: tiles k, v, q, dout, P' and dS, the bias, and logsumexp and D of the tile's queries. */
static size_t backward_keys_shared(int D)
{
    return (4 * TILE * D + 2 * TILE * TILE) * sizeof(bf16_t) + (THREADS + 2 * TILE) * sizeof(float);
}

/* dk and dv of a tile of keys. P' and dS are made with queries as rows, go through shared memory, and come back
 * transposed. Grid: (tiles of keys, heads, sequences). */
template <int D>
static __global__ void __launch_bounds__(THREADS)
    backward_keys_tiles(bf16_t *dk, bf16_t *dv, const float *delta, const bf16_t *dout, const float *logsumexp,
                        const Attention at)
{
    DYNAMIC_SHARED(bf16_t, shared);
    bf16_t *const k = shared, *const v = k + TILE * D, *const q = v + TILE * D, *const g = q + TILE * D;
    bf16_t *const dropped = g + TILE * D, *const dscores = dropped + TILE * TILE;
    float *const bias = (float *)(dscores + TILE * TILE), *const stats = bias + THREADS;
    const AttentionTask task = attention_task(at, blockIdx.z, blockIdx.y);
    TilePlace tile = {0, (int)blockIdx.x * TILE};
    if (tile.key >= task.keys) return;
    const int d = (int)at.d_kv, rows = min(TILE, task.keys - tile.key), warp_row = threadIdx.x / 32 * 16;
    const size_t column = (size_t)task.head * d, width = at.heads * at.d_kv;
    const size_t offset = (task.first_key + tile.key) * at.kv_stride + column;
    const Fragment f = fragment_of_thread();
    float dk_sums[D / 8][4], dv_sums[D / 8][4];
    clear(dk_sums);
    clear(dv_sums);
    load_tile<D>(k, at.k + offset, at.kv_stride, rows, d);
    load_tile<D>(v, at.v + offset, at.kv_stride, rows, d);
    for (tile.query = at.causal ? tile.key : 0; tile.query < task.queries; tile.query += TILE) {
        const int n = min(TILE, task.queries - tile.query), i = threadIdx.x % TILE;
        const size_t row = task.first_query + tile.query, place = task.head * at.queries.rows + row + i;
        load_tile<D>(q, at.q + row * at.q_stride + column, at.q_stride, n, d);
        load_tile<D>(g, dout + row * width + column, width, n, d);
        cp_async_commit();
        load_bias(bias, NULL, at, task, tile);
        if (threadIdx.x < TILE) /* for nobody's query P = dS = 0 */
            stats[i] = i < n ? logsumexp[place] * LOG2E : -MASKED;
        else
            stats[TILE + i] = i < n ? delta[place] : 0;
        cp_async_wait<0>();
        __syncthreads();
        const float l[2] = {stats[f.row], stats[f.row + 8]};
        const float D_of_row[2] = {stats[TILE + f.row], stats[TILE + f.row + 8]};
        for (int half = 0; half < TILE; half += TILE / 2) { /* the registers do not hold a whole one beside the sums */
            float s[4][4], ds[4][4];
            const TilePlace part = {tile.query, tile.key + half};
            multiply_rows<D>(s, q, warp_row, k + half * D);
            multiply_rows<D>(ds, g, warp_row, v + half * D);
            finish_scores(s, bias + half, at, task, part);
            softmax_backward(s, ds, l, D_of_row, at, task, part);
            store_tile(dropped, half, s);
            store_tile(dscores, half, ds);
        }
        __syncthreads();
        multiply_columns<D>(dv_sums, dropped, warp_row, g);
        multiply_columns<D>(dk_sums, dscores, warp_row, q);
        __syncthreads();
    }
    cp_async_wait<0>(); /* where no query saw these keys, they are still on their way */
    const float one[2] = {1, 1};
    store_rows<D>(dk + offset, at.kv_stride, rows, d, dk_sums, one);
    store_rows<D>(dv + offset, at.kv_stride, rows, d, dv_sums, one);
}

/* ================================================================================================================
 * [3] Few queries
 *
 * Decoding: the queries of one input (its beams) against the encoder's keys, or one query against its own past. The
 * keys and values are read once from memory, and nothing else takes time. D / 8 neighbouring threads take 16 bytes each
 * of a key and of a value: a group. A block has 16 groups (8 for D = 128), and group g looks after keys g, g + 16, …,
 * with a softmax of its own for each query. At the end the groups' results are put together, in the groups' order.
 *
 * A group reads FEW_KEYS_AHEAD keys and values before it works on them: 128 threads have 16 KB on their way. */

template <int D, int QUERIES> struct FewShared {
    enum { GROUPS = THREADS / (D / 8) };
    float max[GROUPS][QUERIES], sum[GROUPS][QUERIES], out[GROUPS][QUERIES][D];
};

static __device__ __forceinline__ void unpack_8(float x[8], uint4 bits)
{
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16x2(pairs[i]);
        x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
}

/* 8 numbers of a row, or zeros beyond its end. */
static __device__ __forceinline__ uint4 load_8(const bf16_t *row, int column, int d)
{
    return column < d ? *(const uint4 *)(row + column) : make_uint4(0, 0, 0, 0);
}

/* One key and value for each query of a group. */
template <int D, int QUERIES>
static __device__ __forceinline__ void few_key(float (&max)[QUERIES], float (&sum)[QUERIES], float (&out)[QUERIES][8],
                                               const float (&q)[QUERIES][8], int queries, uint4 k_bits, uint4 v_bits,
                                               int j, int keys, int first_place, const Attention &at, int head)
{
    float k[8], v[8];
    unpack_8(k, k_bits);
    unpack_8(v, v_bits);
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        float s = 0;
        for (int c = 0; c < 8; c++) s += q[i][c] * k[c];
        for (int lane = 1; lane < D / 8; lane *= 2) s += __shfl_xor_sync(~0u, s, lane);
        const int distance = j - first_place - i; /* of queries that do not exist perhaps beyond the table of buckets */
        const bool visible = i < queries && j < keys && (!at.causal || distance <= 0);
        s = visible ? s * LOG2E + attention_bias(at, head, distance) : MASKED;
        const float new_max = fmaxf(max[i], s), factor = exp2_approx(max[i] - new_max);
        const float p = exp2_approx(s - new_max); /* no key seen yet: 1, but the group's max makes it weigh nothing */
        sum[i] = sum[i] * factor + p;
        for (int c = 0; c < 8; c++) out[i][c] = out[i][c] * factor + p * v[c];
        max[i] = new_max;
    }
}

/* The groups' shares, put together: out row i (=), and its logsumexp in units of log 2 unless it is NULL. */
template <int D, int QUERIES>
static __device__ void few_combine(bf16_t *out, size_t out_stride, float *logsumexp,
                                   const FewShared<D, QUERIES> *shared, int queries, int d)
{
    for (int t = threadIdx.x; t < queries * D; t += THREADS) {
        const int i = t / D, c = t % D;
        float max = MASKED, sum = 0, total = 0;
        for (int g = 0; g < shared->GROUPS; g++) max = fmaxf(max, shared->max[g][i]);
        for (int g = 0; g < shared->GROUPS; g++) {
            const float factor = exp2_approx(shared->max[g][i] - max);
            sum += shared->sum[g][i] * factor;
            total += shared->out[g][i][c] * factor;
        }
        if (c < d) out[i * out_stride + c] = float_to_bf16(total / sum);
        if (logsumexp && c == 0) logsumexp[i] = (max + log2f(sum)) * LN2;
    }
}

/* `queries` rows of q, the first of which is at first_place among the keys, against all keys. */
template <int D, int QUERIES>
static __device__ void attend_few(bf16_t *out, float *logsumexp, const bf16_t *q_rows, size_t q_stride, int queries,
                                  const KeyRows &rows, int keys, int first_place, const Attention &at, int head)
{
    DYNAMIC_SHARED(char, memory);
    FewShared<D, QUERIES> *const shared = (FewShared<D, QUERIES> *)memory;
    const int group = threadIdx.x / (D / 8), column = threadIdx.x % (D / 8) * 8, d = (int)at.d_kv;
    float q[QUERIES][8], out_sums[QUERIES][8] = {}, max[QUERIES], sum[QUERIES] = {};
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        unpack_8(q[i], i < queries ? load_8(q_rows + i * q_stride, column, d) : make_uint4(0, 0, 0, 0));
        max[i] = MASKED;
    }
    for (int first = group; first - group < keys; first += shared->GROUPS * FEW_KEYS_AHEAD) {
        uint4 k[FEW_KEYS_AHEAD], v[FEW_KEYS_AHEAD];
#pragma unroll
        for (int a = 0; a < FEW_KEYS_AHEAD; a++) { /* beyond the end: the last key once more, and masked */
            const size_t offset = key_offset(rows, min(first + a * shared->GROUPS, keys - 1));
            k[a] = load_8(rows.k + offset, column, d);
            v[a] = load_8(rows.v + offset, column, d);
        }
#pragma unroll
        for (int a = 0; a < FEW_KEYS_AHEAD; a++)
            few_key<D, QUERIES>(max, sum, out_sums, q, queries, k[a], v[a], first + a * shared->GROUPS, keys,
                                first_place, at, head);
    }
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        for (int c = 0; c < 8; c++) shared->out[group][i][column + c] = out_sums[i][c];
        if (column == 0) shared->max[group][i] = max[i], shared->sum[group][i] = sum[i];
    }
    __syncthreads();
    few_combine<D, QUERIES>(out, at.heads * at.d_kv, logsumexp, shared, queries, d);
}

/* Grid: sequences * heads. */
template <int D, int QUERIES>
static __global__ void __launch_bounds__(THREADS) forward_few(bf16_t *out, float *logsumexp, const Attention at)
{
    const AttentionTask task = attention_task(at, blockIdx.x / at.heads, blockIdx.x % at.heads);
    const size_t column = (size_t)task.head * at.d_kv, row = task.first_query;
    attend_few<D, QUERIES>(out + row * at.heads * at.d_kv + column, logsumexp + task.head * at.queries.rows + row,
                           at.q + row * at.q_stride + column, at.q_stride, task.queries, packed_rows(at, task),
                           task.keys, 0, at, task.head);
}

/* Grid: rows * heads. */
template <int D>
static __global__ void __launch_bounds__(THREADS)
    cached_few(bf16_t *out, const bf16_t *cache, const int32_t *ancestors, int steps, size_t max_steps, size_t capacity,
               const Attention at)
{
    const int head = blockIdx.x % at.heads, row = blockIdx.x / at.heads;
    const KeyRows rows = cached_rows(at, cache, ancestors, row, head, steps, max_steps, capacity);
    const bf16_t *const q = rows.k + key_offset(rows, steps - 1) - at.heads * at.d_kv;
    attend_few<D, 1>(out + blockIdx.x * at.d_kv, NULL, q, 0, 1, rows, steps, steps - 1, at, head);
}

/* ================================================================================================================
 * The seam */

static bool aligned_16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

AttentionPath attention_path(const Attention *at, bool hopper, bool backward, bool aligned)
{
    enum { HOPPER_QUERIES = 32 }; /* below, most of a tile of 128 would be empty */
    const bool pieces = aligned && at->d_kv % 8 == 0 && at->q_stride % 8 == 0 && at->kv_stride % 8 == 0 &&
                        aligned_16(at->q) && aligned_16(at->k) && aligned_16(at->v);
    if (!pieces || at->d_kv > 128) return ATTENTION_LOOPS;
    if (!backward && at->queries.longest <= FEW_QUERIES && !(at->dropout.rate > 0)) return ATTENTION_FEW;
    const bool one_mask = at->dropout.shared || !(at->dropout.rate > 0);
    if (hopper && at->d_kv == 64 && one_mask && at->queries.longest >= HOPPER_QUERIES) return ATTENTION_HOPPER;
    return ATTENTION_TILES;
}

static dim3 tile_grid(const Sequences *seqs, size_t heads)
{
    return dim3((unsigned)ceil_div(seqs->longest, (size_t)TILE), (unsigned)heads, (unsigned)seqs->count);
}

template <int D> static void launch_forward_few(Device *dev, act_t *out, stat_t *logsumexp, const Attention *at)
{
    const dim3 grid((unsigned)(at->queries.count * at->heads));
    if (at->queries.longest == 1)
        launch(dev, forward_few<D, 1>, grid, dim3(THREADS), sizeof(FewShared<D, 1>), out, logsumexp, *at);
    else if (at->queries.longest <= 4)
        launch(dev, forward_few<D, 4>, grid, dim3(THREADS), sizeof(FewShared<D, 4>), out, logsumexp, *at);
    else
        launch(dev, forward_few<D, FEW_QUERIES>, grid, dim3(THREADS), sizeof(FewShared<D, FEW_QUERIES>), out, logsumexp,
               *at);
}

template <int D> static void launch_forward_tiles(Device *dev, act_t *out, stat_t *logsumexp, const Attention *at)
{
    const size_t shared = 3 * TILE * D * sizeof(bf16_t) + THREADS * sizeof(float);
    launch(dev, forward_tiles<D>, tile_grid(&at->queries, at->heads), dim3(THREADS), shared, out, logsumexp, *at);
}

static Attention attention_here(Device *dev, const Attention *attention)
{
    Attention here = *attention;
    here.bias_table = weights_here(dev, attention->bias_table);
    return here;
}

void attention_forward(Device *dev, act_t *out, stat_t *logsumexp, const Attention *attention)
{
    const Attention here = attention_here(dev, attention), *at = &here;
    const bool narrow = at->d_kv <= 64;
    switch (attention_path(at, dev->hopper, false, aligned_16(out))) {
    case ATTENTION_HOPPER:
        attention_forward_hopper(dev, out, logsumexp, at);
        break;
    case ATTENTION_FEW:
        (narrow ? launch_forward_few<64> : launch_forward_few<128>)(dev, out, logsumexp, at);
        break;
    case ATTENTION_TILES:
        (narrow ? launch_forward_tiles<64> : launch_forward_tiles<128>)(dev, out, logsumexp, at);
        break;
    case ATTENTION_LOOPS:
        launch(dev, forward_loops, tile_grid(&at->queries, at->heads), dim3(THREADS), 0, out, logsumexp, *at);
        break;
    }
}

static __global__ void sum_dbias(float *dbias, const float *partial, size_t n, size_t heads, size_t buckets)
{
    const size_t t = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= heads * buckets) return;
    float sum = 0;
#pragma unroll 8
    for (size_t i = 0; i < n; i++) sum += partial[i * heads * buckets + t];
    dbias[t % buckets * heads + t / buckets] += sum;
}

void attention_sum_dbias(Device *dev, stat_t *dbias, const float *partial, size_t n, size_t heads, size_t buckets)
{
    const dim3 grid((unsigned)ceil_div(heads * buckets, (size_t)THREADS));
    launch(dev, sum_dbias, grid, dim3(THREADS), 0, dbias, partial, n, heads, buckets);
}

template <int D>
static void launch_backward_tiles(Device *dev, act_t *dq, act_t *dk, act_t *dv, float *delta, float *partial,
                                  const act_t *dout, const act_t *out, const stat_t *logsumexp, const Attention *at)
{
    launch(dev, backward_queries_tiles<D>, tile_grid(&at->queries, at->heads), dim3(THREADS),
           backward_queries_shared(D, partial ? at->buckets : 0), dq, delta, partial, dout, out, logsumexp, *at);
    launch(dev, backward_keys_tiles<D>, tile_grid(&at->keys, at->heads), dim3(THREADS), backward_keys_shared(D), dk, dv,
           (const float *)delta, dout, logsumexp, *at);
}

void attention_backward(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                        const act_t *out, const stat_t *logsumexp, const Attention *attention)
{
    const Attention here = attention_here(dev, attention), *at = &here;
    const bool aligned = aligned_16(dq) && aligned_16(dk) && aligned_16(dv) && aligned_16(dout) && aligned_16(out);
    const AttentionPath path = attention_path(at, dev->hopper, true, aligned);
    if (path == ATTENTION_HOPPER) {
        attention_backward_hopper(dev, dq, dk, dv, dbias, dout, out, logsumexp, at);
        return;
    }
    const size_t parts = at->queries.count * ceil_div(at->queries.longest, (size_t)TILE);
    const size_t delta_size = at->heads * at->queries.rows, partial_size = parts * at->heads * at->buckets;
    float *const delta = (float *)device_scratch(dev, (delta_size + (dbias ? partial_size : 0)) * sizeof(float));
    float *const partial = dbias ? delta + delta_size : NULL;
    if (path == ATTENTION_TILES) {
        (at->d_kv <= 64 ? launch_backward_tiles<64> : launch_backward_tiles<128>)(dev, dq, dk, dv, delta, partial, dout,
                                                                                  out, logsumexp, at);
    } else {
        launch(dev, backward_queries_loops, tile_grid(&at->queries, at->heads), dim3(THREADS),
               (dbias ? at->buckets : 0) * sizeof(float), dq, delta, partial, dout, out, logsumexp, *at);
        launch(dev, backward_keys_loops, tile_grid(&at->keys, at->heads), dim3(THREADS), 0, dk, dv,
               (const float *)delta, dout, logsumexp, *at);
    }
    if (dbias) attention_sum_dbias(dev, dbias, partial, parts, at->heads, at->buckets);
}

void attention_cached_forward(Device *dev, act_t *out, const act_t *cache, const int32_t *ancestors, size_t rows,
                              size_t steps, size_t max_steps, size_t capacity, size_t heads, size_t d_kv,
                              const weight_t *bias_table, const int32_t *bucket, size_t buckets)
{
    Attention at = {};
    at.heads = heads, at.d_kv = d_kv;
    at.bias_table = weights_here(dev, bias_table), at.bucket = bucket, at.buckets = buckets;
    const dim3 grid((unsigned)(rows * heads));
    const bool pieces = d_kv % 8 == 0 && aligned_16(cache);
    if (pieces && d_kv <= 64)
        launch(dev, cached_few<64>, grid, dim3(THREADS), sizeof(FewShared<64, 1>), out, cache, ancestors, (int)steps,
               max_steps, capacity, at);
    else if (pieces && d_kv <= 128)
        launch(dev, cached_few<128>, grid, dim3(THREADS), sizeof(FewShared<128, 1>), out, cache, ancestors, (int)steps,
               max_steps, capacity, at);
    else
        launch(dev, cached_loops, grid, dim3(THREADS), 0, out, cache, ancestors, (int)steps, max_steps, capacity, at);
}

/* lora.cu: the thin products of LoRA (Hu et al. 2021), and the scalar product of two gradients.
 *
 *     w (=) base + scale b · a        a [rank, columns], b [rows, rank], all of them exact weights in two planes
 *     da (+=) scale bᵀ · dw           db (+=) scale dw · aᵀ
 *
 * The large operands are read once (dw: once for da, once for db) and the rank is small, so this is the memory's time
 * as long as `rank` multiply-adds for each number keep up: up to about rank 32 in plain fp32, which is enough for LoRA
 * and spares the product its rounding to bf16; w is what a merged model is saved as. For a matrix of 4096 x 4096 at 4.3
 * TB/s:
 *
 *     lora_merge_forward    r 4, w 4 bytes for each weight     0.13 GB   0.03 ms
 *     lora_backward         r 4, r 4                           0.13 GB   0.03 ms
 *     dot_product           r 4, r 4                           0.13 GB   0.03 ms
 */
#include "bandwidth.cuh"

/* ----------------------------------------------------------------------------------------------------------------
 * Merge. A block makes MERGE_ROWS x MERGE_COLUMNS weights, a thread four columns of every row. MERGE_RANKS columns of b
 * at a time lie in shared memory, transposed, where one access brings four rows' factors to all threads. */
enum { MERGE_ROWS = 16, MERGE_THREADS = 128, MERGE_COLUMNS = MERGE_THREADS * 4, MERGE_RANKS = 32 };
enum { MERGED = 8 }; /* rows of base under way at a time */

struct MergeShared {
    float b[MERGE_RANKS][MERGE_ROWS];
};

/* Columns [from, from + n) of the block's rows of b, and zeros. */
__device__ __forceinline__ void load_factors(MergeShared *shared, ConstSplitWeights b, size_t first, size_t rows,
                                             size_t rank, size_t from)
{
    for (unsigned e = threadIdx.x; e < MERGE_RANKS * MERGE_ROWS; e += blockDim.x) {
        const unsigned k = e % MERGE_RANKS, r = e / MERGE_RANKS;
        const bool exists = first + r < rows && from + k < rank;
        shared->b[k][r] = exists ? load_weight(b.high, b.low, (first + r) * rank + from + k) : 0;
    }
}

template <bool WHOLE>
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(SplitWeights w, ConstSplitWeights base, ConstSplitWeights a, ConstSplitWeights b, size_t rows,
                 size_t columns, size_t rank, float scale)
{
    __shared__ MergeShared shared;
    const size_t first = (size_t)blockIdx.y * MERGE_ROWS;
    const size_t column = (size_t)blockIdx.x * MERGE_COLUMNS + threadIdx.x * 4;
    const bool exists = column < columns;
    float sum[MERGE_ROWS][4] = {};
    for (size_t from = 0; from < rank; from += MERGE_RANKS) {
        const unsigned ranks = (unsigned)min(rank - from, (size_t)MERGE_RANKS);
        __syncthreads(); /* the factors before are done with */
        load_factors(&shared, b, first, rows, rank, from);
        __syncthreads();
        if (!exists) continue;
#pragma unroll 4
        for (unsigned k = 0; k < ranks; k++) {
            float x[4];
            load_weights<WHOLE>(x, a.high, a.low, (from + k) * columns + column, columns - column);
#pragma unroll
            for (int r = 0; r < MERGE_ROWS; r++)
                for (int i = 0; i < 4; i++) sum[r][i] = fmaf(shared.b[k][r], x[i], sum[r][i]);
        }
    }
    if (!exists) return;
#pragma unroll
    for (int r = 0; r < MERGE_ROWS; r += MERGED) {
        float x[MERGED][4];
#pragma unroll
        for (int k = 0; k < MERGED; k++)
            if (first + r + k < rows)
                load_weights<WHOLE>(x[k], base.high, base.low, (first + r + k) * columns + column, columns - column);
#pragma unroll
        for (int k = 0; k < MERGED; k++) {
            if (first + r + k >= rows) return;
            for (int i = 0; i < 4; i++) x[k][i] = fmaf(scale, sum[r + k][i], x[k][i]);
            store_weights<WHOLE>(w, (first + r + k) * columns + column, columns - column, x[k]);
        }
    }
}

extern "C" void lora_merge_forward(Device *dev, weight_t *w, const weight_t *base, const weight_t *a, const weight_t *b,
                                   size_t rows, size_t columns, size_t rank, float scale)
{
    const SplitWeights to = split_weights(w);
    const ConstSplitWeights from = split_weights(base), first = split_weights(a), second = split_weights(b);
    const bool whole = whole_vectors(8, columns, to.high, to.low, from.high, from.low, first.high, first.low);
    launch(dev, whole ? merge_kernel<true> : merge_kernel<false>,
           dim3(blocks_for(columns, MERGE_COLUMNS), blocks_for(rows, MERGE_ROWS)), dim3(MERGE_THREADS), 0, to, from,
           first, second, rows, columns, rank, scale);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Backward. Both gradients are products of dw with a thin matrix,
 *
 *     out(item, k) = sum over depth of x(item, depth) y(depth, k)
 *     da: an item is a column of dw, the depth its rows,    y = b          db: the other way round, y = aᵀ
 *
 * in tiles of ITEMS x RANKS, DEPTH steps at a time through shared memory; a thread has 4 x 4 sums. The depth is cut
 * into slices of SLICE steps, one block each, so that there are blocks enough; each leaves its sums in `partial`
 * [slices][the shape of out], and a second kernel adds them up in order. */
enum { ITEMS = 64, RANKS = 32, DEPTH = 32, SLICE = 512, THIN_THREADS = ITEMS / 4 * (RANKS / 4) };

struct ThinShared { /* four more in a row: they keep 16-byte alignment and spread columns over the banks */
    float x[DEPTH][ITEMS + 4], y[DEPTH][RANKS + 4];
};

struct ThinProduct {
    const float *dw; /* [rows, columns] */
    ConstSplitWeights factor;
    size_t rows, columns, rank;
};

/* The tiles that begin at this item, rank and depth; what does not exist is 0. Neighbouring threads read neighbours. */
template <bool FOR_A>
__device__ __forceinline__ void load_tiles(ThinShared *shared, const ThinProduct &p, size_t item, size_t rank,
                                           size_t depth)
{
#pragma unroll
    for (unsigned k = 0; k < ITEMS * DEPTH / THIN_THREADS; k++) {
        const unsigned e = k * THIN_THREADS + threadIdx.x;
        const unsigned i = FOR_A ? e % ITEMS : e / DEPTH, d = FOR_A ? e / ITEMS : e % DEPTH;
        const size_t row = FOR_A ? depth + d : item + i, column = FOR_A ? item + i : depth + d;
        shared->x[d][i] = row < p.rows && column < p.columns ? p.dw[row * p.columns + column] : 0;
    }
#pragma unroll
    for (unsigned n = 0; n < RANKS * DEPTH / THIN_THREADS; n++) {
        const unsigned e = n * THIN_THREADS + threadIdx.x;
        const unsigned k = FOR_A ? e % RANKS : e / DEPTH, d = FOR_A ? e / RANKS : e % DEPTH;
        const size_t at = FOR_A ? (depth + d) * p.rank + rank + k : (rank + k) * p.columns + depth + d;
        const bool exists = rank + k < p.rank && depth + d < (FOR_A ? p.rows : p.columns);
        shared->y[d][k] = exists ? load_weight(p.factor.high, p.factor.low, at) : 0;
    }
}

template <bool FOR_A>
static __global__ void __launch_bounds__(THIN_THREADS) thin_product_kernel(float *partial, ThinProduct p)
{
    __shared__ __align__(16) ThinShared shared;
    const size_t items = FOR_A ? p.columns : p.rows, depth = FOR_A ? p.rows : p.columns;
    const size_t first = (size_t)blockIdx.y * SLICE, last = min(first + SLICE, depth);
    const size_t item = (size_t)blockIdx.x * ITEMS, rank = (size_t)blockIdx.z * RANKS;
    const unsigned i0 = threadIdx.x % (ITEMS / 4) * 4, k0 = threadIdx.x / (ITEMS / 4) * 4;
    float sum[4][4] = {}; /* [k][i] */
    for (size_t at = first; at < last; at += DEPTH) {
        load_tiles<FOR_A>(&shared, p, item, rank, at);
        __syncthreads();
#pragma unroll 8
        for (unsigned d = 0; d < DEPTH; d++) {
            float x[4], y[4];
            load_four<true>(x, &shared.x[d][i0], 4, 0);
            load_four<true>(y, &shared.y[d][k0], 4, 0);
            for (int k = 0; k < 4; k++)
                for (int i = 0; i < 4; i++) sum[k][i] = fmaf(y[k], x[i], sum[k][i]);
        }
        __syncthreads();
    }
    partial += (size_t)blockIdx.y * items * p.rank;
    for (unsigned k = 0; k < 4; k++)
        for (unsigned i = 0; i < 4; i++)
            if (item + i0 + i < items && rank + k0 + k < p.rank)
                partial[FOR_A ? (rank + k0 + k) * items + item + i0 + i : (item + i0 + i) * p.rank + rank + k0 + k] =
                    sum[k][i];
}

/* out [n] (+=) scale times the sum of the slices. */
static __global__ void add_slices_kernel(float *out, const float *partial, size_t slices, size_t n, float scale)
{
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    float sum = 0;
#pragma unroll 8
    for (size_t slice = 0; slice < slices; slice++) sum += partial[slice * n + at];
    out[at] = fmaf(scale, sum, out[at]);
}

template <bool FOR_A> static void thin_product(Device *dev, stat_t *out, const ThinProduct &p, float scale)
{
    const size_t items = FOR_A ? p.columns : p.rows, n = items * p.rank;
    const unsigned slices = blocks_for(FOR_A ? p.rows : p.columns, SLICE);
    float *partial = (float *)device_scratch(dev, slices * n * sizeof *partial);
    launch(dev, thin_product_kernel<FOR_A>, dim3(blocks_for(items, ITEMS), slices, blocks_for(p.rank, RANKS)),
           dim3(THIN_THREADS), 0, partial, p);
    launch(dev, add_slices_kernel, dim3(blocks_for(n, 256)), dim3(256), 0, out, partial, slices, n, scale);
}

extern "C" void lora_backward(Device *dev, stat_t *da, stat_t *db, const stat_t *dw, const weight_t *a,
                              const weight_t *b, size_t rows, size_t columns, size_t rank, float scale)
{
    thin_product<true>(dev, da, ThinProduct{dw, split_weights(b), rows, columns, rank}, scale);
    thin_product<false>(dev, db, ThinProduct{dw, split_weights(a), rows, columns, rank}, scale);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The scalar product of two gradients. Blocks of DOT_BLOCK elements leave their sums, in double, and one thread adds
 * them in order. */
enum { DOT_BLOCK = 65536, DOT_THREADS = 256, DOT_VECTORS = 4 };

template <bool WHOLE> static __global__ void dot_kernel(double *partial, const float *a, const float *b, size_t n)
{
    __shared__ Total shared[DOT_THREADS];
    const size_t first = (size_t)blockIdx.x * DOT_BLOCK, last = min(first + DOT_BLOCK, n);
    double sum = 0;
    for (size_t base = first + threadIdx.x * 4; base < last; base += DOT_VECTORS * DOT_THREADS * 4) {
        float x[DOT_VECTORS][4], y[DOT_VECTORS][4];
#pragma unroll
        for (size_t v = 0; v < DOT_VECTORS; v++) {
            const size_t at = base + v * DOT_THREADS * 4;
            for (int i = 0; i < 4; i++) x[v][i] = y[v][i] = 0;
            if (at >= last) continue;
            load_four<WHOLE>(x[v], a + at, last - at, 0);
            load_four<WHOLE>(y[v], b + at, last - at, 0);
        }
#pragma unroll
        for (size_t v = 0; v < DOT_VECTORS; v++)
            for (int i = 0; i < 4; i++) sum += (double)x[v][i] * (double)y[v][i];
    }
    sum = block_total(Total{sum, 0}, shared).first;
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void add_blocks_kernel(double *dot, const double *partial, unsigned blocks)
{
    double sum = 0;
#pragma unroll 8
    for (unsigned k = 0; k < blocks; k++) sum += partial[k];
    *dot = sum;
}

extern "C" void dot_product(Device *dev, double *dot, const stat_t *a, const stat_t *b, size_t n)
{
    const unsigned blocks = blocks_for(n, DOT_BLOCK);
    double *partial = (double *)device_scratch(dev, blocks * sizeof *partial);
    launch(dev, whole_vectors(4, n, a, b) ? dot_kernel<true> : dot_kernel<false>, dim3(blocks), dim3(DOT_THREADS), 0,
           partial, a, b, n);
    launch(dev, add_blocks_kernel, dim3(1), dim3(1), 0, dot, partial, blocks);
}

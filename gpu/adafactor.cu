/* adafactor.cu: Adafactor (Shazeer and Stern 2018), as t5x/adafactor.py does it. For a tensor p with gradient g:
 *
 *     G = g^2 + epsilon1
 *     factored:  row = (1 - alpha) row + alpha mean over columns of G      whole:  v = (1 - alpha) v + alpha G
 *                column = (1 - alpha) column + alpha mean over rows of G
 *                y = g / sqrt(row column / mean)                                   y = g / sqrt(v)
 *     p <- (1 - weight_decay) p - lr max(epsilon2, RMS(p)) / max(1, RMS(y) / clip) y
 *
 * Nothing but RMS(p), RMS(y) and `mean` couples the elements, and
 *
 *     sum of y^2 = mean * sum over j of W_j / column_j,      W_j = sum over i of g_ij^2 / row_i,
 *
 * where row_i is final as soon as row i of g has been read. So g is read twice and p once, in three kernels:
 *
 *     statistics   g: row moments, and for each column the sums of g^2 and g^2 / row over the rows of a block
 *     columns      these sums: column moments; and everything that is one number for the tensor, as parts
 *     apply        g and p: the update, and each row's sum of squares for the next step's RMS(p)
 *
 * The last kernel's blocks each add up the parts for themselves, so no number ever visits the host. With an fp32
 * gradient and exact weights in two planes that is r 4, r 4, r 4, w 4 = 16 bytes for each parameter:
 *
 *     one matrix of 4096 x 4096       0.27 GB   0.06 ms at 4.3 TB/s
 *     one matrix of 10240 x 4096      0.67 GB   0.16 ms
 *     head of 250,112 x 4096          16.4 GB   3.8 ms
 *     all of mT5-XXL, 12.9 G          207 GB     48 ms
 *     embedding, 20,000 rows touched  1.3 GB    0.3 ms, and 3 MB for the moments and squares of the other rows
 *
 * and the partial sums of the columns, 8 bytes for every 16 rows or more: 3 % of 4096 x 4096, less of larger ones.
 *
 * Weights are exact: the update of one weight is fp32 arithmetic, rounded where the CPU's is. Sums over a row or over a
 * block's rows are fp32, everything beyond is double, as on the CPU. The order of every sum follows from the shape. */
#include "bandwidth.cuh"

struct FactoredUpdate {
    SplitWeights p;
    const float *g;
    const int32_t *index; /* row k of g belongs to row index[k] of p; NULL: to row k */
    size_t n;             /* rows of g */
    float *row, *column, *row_squares;
    size_t rows, columns;
    AdafactorStep step;
    double kept, least; /* a moment <- kept moment + least + alpha mean of g^2: 1 - alpha, and alpha epsilon1 */
    float keep;         /* a weight <- keep weight - …: 1 - weight_decay */
};

/* What the kernels hand each other, in scratch memory. */
struct FactoredScratch {
    Total *column_totals; /* [column_blocks] sums of column, and of W / column */
    Total *row_totals;    /* [row_blocks] sums of row, and of p^2 */
    float *partial;       /* [blocks][2][columns]: of each block of rows, the sums of g^2 and of g^2 / row */
    float *column_factor; /* [columns] 1 / sqrt(column) */
    float *squares;       /* [rows] of p, when nobody has kept them */
    unsigned blocks, column_blocks, row_blocks;
    size_t height; /* rows of a block */
};

enum { TOTAL_ROWS = 1024 }; /* rows of one part of row_totals */

__device__ __forceinline__ size_t touched_row(const FactoredUpdate &u, size_t k)
{
    return u.index ? (size_t)u.index[k] : k;
}

__device__ __forceinline__ float decayed(const FactoredUpdate &u, float moment)
{
    return (float)(u.kept * (double)moment + u.least);
}

/* row <- (1 - alpha) row + alpha epsilon1: of all rows of an embedding; the touched ones then get the rest. */
static __global__ void decay_rows_kernel(FactoredUpdate u)
{
    const size_t row = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < u.rows) u.row[row] = decayed(u, u.row[row]);
}

/* The row's moment, from its value before (after decay_rows_kernel, if there is an index) and the sum of its g^2. */
__device__ __forceinline__ float finished_row(const FactoredUpdate &u, float before, double sum)
{
    const float kept = u.index ? before : decayed(u, before);
    return kept + (float)(u.step.alpha * sum / (double)u.columns);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Statistics. A block takes `height` rows, a few TOGETHER, and spreads their columns over its threads: vector v of
 * thread t is at column slab + (v * threads + t) * 4. A row of g stays in registers while the block adds up its
 * squares, and so do the two sums of every column for as long as the block lives.
 *
 * Rows of more columns than that allows (wider than any T5 v1.1) have their moments made first, by finish_rows_kernel,
 * at the price of a third reading of g; then several blocks share a row, each with a slab of its columns. */
enum { STATISTICS_THREADS = 512, STATISTICS_VECTORS = 5, FUSED_COLUMNS = STATISTICS_THREADS * STATISTICS_VECTORS * 4 };

template <bool WHOLE> static __global__ void finish_rows_kernel(FactoredUpdate u)
{
    __shared__ float shared[WARP];
    const size_t row = touched_row(u, blockIdx.x);
    float sum = 0;
    for (size_t column = threadIdx.x * 4; column < u.columns; column += blockDim.x * 4) {
        float g[4];
        load_four<WHOLE>(g, u.g + blockIdx.x * u.columns + column, u.columns - column, 0);
        for (int i = 0; i < 4; i++) sum = fmaf(g[i], g[i], sum);
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) u.row[row] = finished_row(u, u.row[row], (double)sum);
}

/* What the threads of a block tell each other about the rows that go together. */
template <int TOGETHER> struct StatisticsShared {
    float sum[TOGETHER][STATISTICS_THREADS / WARP]; /* of each warp */
    float inverse[TOGETHER];                        /* 1 / row */
};

/* From the threads' sums of g^2 over their columns of rows k …: finishes the rows (thread i row i) and leaves their
 * inverses. `before` is what thread i has read of row i's moment. */
template <int TOGETHER>
__device__ __forceinline__ void finish_rows(const FactoredUpdate &u, size_t k, size_t last, const float sum[TOGETHER],
                                            float before, StatisticsShared<TOGETHER> *shared)
{
    const unsigned warps = blockDim.x / WARP, i = threadIdx.x;
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        const float of_warp = warp_sum(sum[r]);
        if (threadIdx.x % WARP == 0) shared->sum[r][threadIdx.x / WARP] = of_warp;
    }
    __syncthreads();
    if (i < TOGETHER && k + i < last) {
        float whole = 0;
        for (unsigned w = 0; w < warps; w++) whole += shared->sum[i][w];
        const float row = finished_row(u, before, (double)whole);
        u.row[touched_row(u, k + i)] = row;
        shared->inverse[i] = 1 / row;
    }
    __syncthreads();
}

/* FUSED: one slab holds all columns, and the block finishes the rows itself. */
template <int VECTORS, int TOGETHER, bool FUSED, bool WHOLE>
static __global__ void __launch_bounds__(STATISTICS_THREADS, VECTORS > 2 ? 1 : 2)
    statistics_kernel(FactoredUpdate u, FactoredScratch s)
{
    __shared__ StatisticsShared<TOGETHER> shared;
    const size_t first = blockIdx.x * s.height, last = min(first + s.height, u.n);
    const size_t slab = (size_t)blockIdx.y * FUSED_COLUMNS + threadIdx.x * 4, step = blockDim.x * 4;
    float squares[VECTORS][4] = {}, weighted[VECTORS][4] = {};
    for (size_t k = first; k < last; k += TOGETHER) {
        float g[TOGETHER][VECTORS][4], sum[TOGETHER], before = 0;
#pragma unroll
        for (int r = 0; r < TOGETHER; r++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                const size_t column = slab + v * step;
                for (int i = 0; i < 4; i++) g[r][v][i] = 0;
                if (k + r < last && column < u.columns)
                    load_four<WHOLE>(g[r][v], u.g + (k + r) * u.columns + column, u.columns - column, 0);
            }
        if (threadIdx.x < TOGETHER && k + threadIdx.x < last) before = u.row[touched_row(u, k + threadIdx.x)];
        if (FUSED) {
#pragma unroll
            for (int r = 0; r < TOGETHER; r++) {
                sum[r] = 0;
                for (int v = 0; v < VECTORS; v++)
                    for (int i = 0; i < 4; i++) sum[r] = fmaf(g[r][v][i], g[r][v][i], sum[r]);
            }
            finish_rows<TOGETHER>(u, k, last, sum, before, &shared);
        } else {
            __syncthreads(); /* the rows before are done with */
            if (threadIdx.x < TOGETHER) shared.inverse[threadIdx.x] = 1 / before;
            __syncthreads();
        }
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            if (k + r >= last) break;
            const float inverse = shared.inverse[r];
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                for (int i = 0; i < 4; i++) {
                    const float square = g[r][v][i] * g[r][v][i];
                    squares[v][i] += square;
                    weighted[v][i] = fmaf(square, inverse, weighted[v][i]);
                }
        }
    }
    float *to = s.partial + (size_t)blockIdx.x * 2 * u.columns;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const size_t column = slab + v * step;
        if (column >= u.columns) continue;
        store_four<WHOLE>(to + column, u.columns - column, squares[v]);
        store_four<WHOLE>(to + u.columns + column, u.columns - column, weighted[v]);
    }
}

/* The kernel for a tensor of so many columns. A thread should own no more than it needs, for each of its columns costs
 * two registers and one more for each row that goes along: four rows up to 2048 columns, two above. */
template <bool WHOLE> static void launch_statistics(Device *dev, const FactoredUpdate &u, const FactoredScratch &s)
{
    const size_t quarter = ceil_div<size_t>(u.columns, 4), columns = u.columns;
    const dim3 grid(s.blocks);
    if (columns <= 2048) {
        launch(dev, statistics_kernel<1, 4, true, WHOLE>, grid, dim3(threads_for(quarter, 512)), 0, u, s);
    } else if (columns <= 4096) {
        launch(dev, statistics_kernel<2, 2, true, WHOLE>, grid, dim3(threads_for(ceil_div<size_t>(quarter, 2), 512)), 0,
               u, s);
    } else if (columns <= FUSED_COLUMNS) {
        launch(dev, statistics_kernel<STATISTICS_VECTORS, 2, true, WHOLE>, grid,
               dim3(threads_for(ceil_div<size_t>(quarter, STATISTICS_VECTORS), 512)), 0, u, s);
    } else {
        launch(dev, finish_rows_kernel<WHOLE>, dim3((unsigned)u.n), dim3(STATISTICS_THREADS), 0, u);
        launch(dev, statistics_kernel<STATISTICS_VECTORS, 2, false, WHOLE>,
               dim3(s.blocks, blocks_for(columns, FUSED_COLUMNS)), dim3(STATISTICS_THREADS), 0, u, s);
    }
}

/* ----------------------------------------------------------------------------------------------------------------
 * Columns. The first column_blocks blocks finish SUM_COLUMNS columns each, the others add up TOTAL_ROWS rows' moments
 * and squares. */
__device__ __forceinline__ Total finish_column(const FactoredUpdate &u, const FactoredScratch &s, size_t column,
                                               SumOfColumns *sums)
{
    const bool exists = column < u.columns;
    const size_t stride = 2 * u.columns;
    const double square = sum_of_column(s.partial, s.blocks, stride, column, exists, sums);
    const double weight = sum_of_column(s.partial + u.columns, s.blocks, stride, column, exists, sums);
    if (!exists || threadIdx.y) return Total{0, 0};
    const float moment = (float)(u.kept * (double)u.column[column] + u.step.alpha * square / (double)u.rows + u.least);
    u.column[column] = moment;
    s.column_factor[column] = (float)(1 / sqrt((double)moment));
    return Total{(double)moment, (double)(float)weight / (double)moment};
}

static __global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS, 1) columns_kernel(FactoredUpdate u, FactoredScratch s)
{
    __shared__ SumOfColumns sums;
    __shared__ Total totals[SUM_COLUMNS * SUM_GROUPS];
    const bool of_columns = blockIdx.x < s.column_blocks;
    const size_t block = of_columns ? blockIdx.x : blockIdx.x - s.column_blocks;
    Total mine = {0, 0};
    if (of_columns) {
        mine = finish_column(u, s, block * SUM_COLUMNS + threadIdx.x, &sums);
    } else {
        const size_t row = block * TOTAL_ROWS + thread_in_block();
        const float *squares = u.row_squares ? u.row_squares : s.squares;
        if (row < u.rows) mine = Total{(double)u.row[row], squares ? (double)squares[row] : 0};
    }
    mine = block_total(mine, totals);
    if (thread_in_block() == 0) (of_columns ? s.column_totals : s.row_totals)[block] = mine;
}

/* ----------------------------------------------------------------------------------------------------------------
 * Apply. A warp takes a row, four columns for each lane at a time: 512 bytes of g and 256 of either plane of p in one
 * access each, and ROW_VECTORS of them under way. */
enum { APPLY_THREADS = 256, ROW_VECTORS = 4 };

/* lr max(epsilon2, RMS(p)) / max(1, RMS(y) / clip) from the sums of p^2 and y^2. */
__device__ __forceinline__ double update_scale(const AdafactorStep &step, Total squares, double elements)
{
    double scale = step.learning_rate;
    if (step.scale_by_parameter) scale *= fmax(step.epsilon2, sqrt(squares.first / elements));
    if (step.clip > 0) scale /= fmax(1.0, sqrt(squares.second / elements) / step.clip);
    return scale;
}

/* The update of one weight, p <- keep p - factor (g column_factor); the sums' only way into it are the factors. keep p is
 * not rounded by itself, which is what compilers make of the CPU's line too; without weight decay keep is 1 and there is
 * nothing to round. */
__device__ __forceinline__ float updated_weight(float p, float g, float keep, float factor, float column_factor)
{
    return fmaf(keep, p, -(factor * (g * column_factor)));
}

/* scale sqrt(mean), which is the same for all elements: y = g / sqrt(column) / sqrt(row) * sqrt(mean). `mean` is that
 * of the moment with fewer entries. */
__device__ __forceinline__ double common_factor(const FactoredUpdate &u, const FactoredScratch &s, Total *shared)
{
    const Total of_columns = sum_of_totals(s.column_totals, s.column_blocks, shared);
    const Total of_rows = sum_of_totals(s.row_totals, s.row_blocks, shared);
    if (threadIdx.x == 0) {
        const double mean = u.columns <= u.rows ? of_columns.first / (double)u.columns : of_rows.first / (double)u.rows;
        const Total squares = {of_rows.second, mean * of_columns.second};
        shared[0].first = update_scale(u.step, squares, (double)u.rows * (double)u.columns) * sqrt(mean);
    }
    __syncthreads();
    return shared[0].first;
}

/* The sum of squares of a row, as a warp makes it: each lane in the order of its columns, then a tree. One definition
 * for both who make it, so that a run that is resumed has the bits of one that was not. */
__device__ __forceinline__ float add_squares(float sum, const float x[4])
{
    for (int i = 0; i < 4; i++) sum = fmaf(x[i], x[i], sum);
    return sum;
}

template <bool WHOLE>
static __global__ void __launch_bounds__(APPLY_THREADS, 2) apply_kernel(FactoredUpdate u, FactoredScratch s)
{
    __shared__ Total shared[APPLY_THREADS];
    const double common = common_factor(u, s, shared);
    const size_t k = (size_t)blockIdx.x * (APPLY_THREADS / WARP) + threadIdx.x / WARP;
    if (k >= u.n) return;
    const size_t row = touched_row(u, k), lane = threadIdx.x % WARP;
    const float factor = (float)(common / sqrt((double)u.row[row]));
    const float *gradient = u.g + k * u.columns;
    float squares = 0;
    for (size_t base = lane * 4; base < u.columns; base += ROW_VECTORS * WARP * 4) {
        float g[ROW_VECTORS][4], p[ROW_VECTORS][4], column_factor[ROW_VECTORS][4];
#pragma unroll
        for (size_t v = 0; v < ROW_VECTORS; v++) {
            const size_t column = base + v * WARP * 4, left = u.columns - column;
            if (column >= u.columns) continue;
            load_four<WHOLE>(g[v], gradient + column, left, 0);
            load_weights<WHOLE>(p[v], u.p.high, u.p.low, row * u.columns + column, left);
            load_four<WHOLE>(column_factor[v], s.column_factor + column, left, 0);
        }
#pragma unroll
        for (size_t v = 0; v < ROW_VECTORS; v++) {
            const size_t column = base + v * WARP * 4;
            if (column >= u.columns) continue;
            for (int i = 0; i < 4; i++) p[v][i] = updated_weight(p[v][i], g[v][i], u.keep, factor, column_factor[v][i]);
            store_weights<WHOLE>(u.p, row * u.columns + column, u.columns - column, p[v]);
            squares = add_squares(squares, p[v]);
        }
    }
    squares = warp_sum(squares);
    if (lane == 0 && u.row_squares) u.row_squares[row] = squares;
}

/* A warp takes a row. */
template <bool WHOLE>
static __global__ void __launch_bounds__(APPLY_THREADS)
    rows_squares_kernel(float *out, ConstSplitWeights x, size_t rows, size_t columns)
{
    const size_t row = (size_t)blockIdx.x * (APPLY_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    float squares = 0;
    for (size_t base = lane * 4; base < columns; base += ROW_VECTORS * WARP * 4) {
        float a[ROW_VECTORS][4];
#pragma unroll
        for (size_t v = 0; v < ROW_VECTORS; v++) {
            const size_t column = base + v * WARP * 4;
            if (column < columns) load_weights<WHOLE>(a[v], x.high, x.low, row * columns + column, columns - column);
        }
#pragma unroll
        for (size_t v = 0; v < ROW_VECTORS; v++)
            if (base + v * WARP * 4 < columns) squares = add_squares(squares, a[v]);
    }
    squares = warp_sum(squares);
    if (lane == 0) out[row] = squares;
}

static void rows_squares(Device *dev, float *out, ConstSplitWeights planes, size_t rows, size_t columns)
{
    const bool whole = whole_vectors(8, columns, planes.high, planes.low);
    launch(dev, whole ? rows_squares_kernel<true> : rows_squares_kernel<false>,
           dim3(blocks_for(rows, APPLY_THREADS / WARP)), dim3(APPLY_THREADS), 0, out, planes, rows, columns);
}

extern "C" void rows_sum_of_squares(Device *dev, stat_t *out, const weight_t *x, size_t rows, size_t columns)
{
    rows_squares(dev, out, ConstSplitWeights{x, lower_take(dev, x, rows * columns)}, rows, columns);
    lower_return(dev, x);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The factored update, of all rows or of some. */

/* Rows of a block of the statistics: enough blocks to give every multiprocessor two, and no more partial sums than 8
 * bytes for 16 rows of 4-byte gradients. */
static size_t statistics_height(size_t n)
{
    const size_t height = ceil_div<size_t>(n, 256);
    return height > 16 ? height : 16;
}

static FactoredScratch factored_scratch(Device *dev, const FactoredUpdate &u)
{
    FactoredScratch s = {};
    const bool wants_squares = u.step.scale_by_parameter && !u.row_squares;
    s.height = statistics_height(u.n);
    s.blocks = blocks_for(u.n, s.height);
    s.column_blocks = blocks_for(u.columns, SUM_COLUMNS);
    s.row_blocks = blocks_for(u.rows, TOTAL_ROWS);
    const size_t totals = (s.column_blocks + s.row_blocks) * sizeof(Total),
                 columns = ceil_div<size_t>(u.columns, 4) * 4;
    const size_t floats = 2 * s.blocks * columns + columns + (wants_squares ? u.rows : 0);
    s.column_totals = (Total *)device_scratch(dev, totals + floats * sizeof(float));
    s.row_totals = s.column_totals + s.column_blocks;
    s.partial = (float *)(s.row_totals + s.row_blocks);
    s.column_factor = s.partial + 2 * s.blocks * columns;
    s.squares = wants_squares ? s.column_factor + columns : nullptr;
    return s;
}

static void factored_update(Device *dev, const FactoredUpdate &u)
{
    const FactoredScratch s = factored_scratch(dev, u);
    const bool whole = whole_vectors(8, u.columns, u.p.high, u.p.low, u.g);
    if (s.squares) rows_squares(dev, s.squares, ConstSplitWeights{u.p.high, u.p.low}, u.rows, u.columns);
    if (u.index) launch(dev, decay_rows_kernel, dim3(blocks_for(u.rows, 256)), dim3(256), 0, u);
    if (whole)
        launch_statistics<true>(dev, u, s);
    else
        launch_statistics<false>(dev, u, s);
    launch(dev, columns_kernel, dim3(s.column_blocks + s.row_blocks), dim3(SUM_COLUMNS, SUM_GROUPS), 0, u, s);
    launch(dev, whole ? apply_kernel<true> : apply_kernel<false>, dim3(blocks_for(u.n, APPLY_THREADS / WARP)),
           dim3(APPLY_THREADS), 0, u, s);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The update of a tensor that is not factored: norms, prompts, LoRA's A and B. All are small, and their arithmetic is
 * the CPU's, in double. Blocks of WHOLE_BLOCK elements; totals [blocks]: sums of y^2 and of p^2. */
enum { WHOLE_BLOCK = 4096, WHOLE_THREADS = 256, WHOLE_EACH = WHOLE_BLOCK / WHOLE_THREADS };

static __global__ void whole_moments_kernel(float *v, Total *totals, const float *g, ConstSplitWeights p, size_t n,
                                            AdafactorStep step)
{
    __shared__ Total shared[WHOLE_THREADS];
    Total mine = {0, 0};
#pragma unroll 4
    for (int k = 0; k < WHOLE_EACH; k++) {
        const size_t i = (size_t)blockIdx.x * WHOLE_BLOCK + k * WHOLE_THREADS + threadIdx.x;
        if (i >= n) break;
        const double square = (double)g[i] * (double)g[i], weight = load_weight(p.high, p.low, i);
        const float moment = (float)((1 - step.alpha) * (double)v[i] + step.alpha * (square + step.epsilon1));
        v[i] = moment;
        mine = mine + Total{square / (double)moment, weight * weight};
    }
    mine = block_total(mine, shared);
    if (threadIdx.x == 0) totals[blockIdx.x] = mine;
}

static __global__ void whole_apply_kernel(SplitWeights p, const float *g, const float *v, const Total *totals, size_t n,
                                          AdafactorStep step)
{
    __shared__ Total shared[WHOLE_THREADS];
    const Total sum = sum_of_totals(totals, gridDim.x, shared);
    const double scale = update_scale(step, Total{sum.second, sum.first}, (double)n), keep = 1 - step.weight_decay;
#pragma unroll 4
    for (int k = 0; k < WHOLE_EACH; k++) {
        const size_t i = (size_t)blockIdx.x * WHOLE_BLOCK + k * WHOLE_THREADS + threadIdx.x;
        if (i >= n) break;
        const double before = load_weight(p.high, p.low, i);
        store_weight(p, i, (float)(keep * before - scale * (double)g[i] / sqrt((double)v[i])));
    }
}

static void whole_update(Device *dev, SplitWeights p, const stat_t *g, stat_t *v, size_t n, const AdafactorStep &step)
{
    const unsigned blocks = blocks_for(n, WHOLE_BLOCK);
    Total *totals = (Total *)device_scratch(dev, blocks * sizeof *totals);
    launch(dev, whole_moments_kernel, dim3(blocks), dim3(WHOLE_THREADS), 0, v, totals, g,
           ConstSplitWeights{p.high, p.low}, n, step);
    launch(dev, whole_apply_kernel, dim3(blocks), dim3(WHOLE_THREADS), 0, p, g, v, totals, n, step);
}

static FactoredUpdate factored(SplitWeights p, const stat_t *g, const int32_t *index, size_t n,
                               const SecondMoment *moment, size_t rows, size_t columns, const AdafactorStep *step)
{
    return FactoredUpdate{p,
                          g,
                          index,
                          n,
                          moment->row,
                          moment->column,
                          moment->row_squares,
                          rows,
                          columns,
                          *step,
                          1 - step->alpha,
                          step->alpha * step->epsilon1,
                          (float)(1 - step->weight_decay)};
}

extern "C" void adafactor_update(Device *dev, weight_t *p, const stat_t *g, const SecondMoment *moment, size_t rows,
                                 size_t columns, const AdafactorStep *step)
{
    const SplitWeights planes = {p, lower_take(dev, p, rows * columns)};
    if (moment->whole)
        whole_update(dev, planes, g, moment->whole, rows * columns, *step);
    else
        factored_update(dev, factored(planes, g, nullptr, rows, moment, rows, columns, step));
    lower_return(dev, p);
}

extern "C" void adafactor_update_rows(Device *dev, weight_t *p, const stat_t *g, const int32_t *index, size_t n,
                                      const SecondMoment *moment, size_t rows, size_t columns,
                                      const AdafactorStep *step)
{
    const SplitWeights planes = {p, lower_take(dev, p, rows * columns)};
    factored_update(dev, factored(planes, g, index, n, moment, rows, columns, step));
    lower_return(dev, p);
}

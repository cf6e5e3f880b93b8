/* rmsnorm.cu: T5's layer norm, forward and backward.
 *
 *     r = 1 / sqrt(mean(x^2) + epsilon)      y = s x r
 *     with n = x r and h = s dy:  dx += r (h - n mean(h n)) = r (h - x r^2 mean(h x)),  ds += sum over rows of dy n
 *
 * A block takes a row, and its threads keep the row in registers, eight columns in a vector, so that the sum over the
 * row and what is made of it cost one reading. For mT5-XXL's encoder, 39,168 rows of 4096 at 4.3 TB/s:
 *
 *     forward    r 2, w 2 bytes for each element       0.64 GB   0.15 ms
 *     backward   r 2 + 2 + 2 (x, dy, dx), w 2          1.28 GB   0.30 ms, and 17 MB (0.004 ms) of partial sums
 *
 * The sum over rows in ds is cut into blocks of rows that follow from the number of rows alone; each block leaves one
 * row of partial sums, and a second kernel adds these in a fixed order: the same bits on every card. */
#include "bandwidth.cuh"

/* A thread holds VECTORS vectors of eight columns of its row, and vector v of thread t is at column
 * (v * threads + t) * 8. 128 threads do up to 4096 columns, which is the widest T5; 256 threads do twice that, and
 * launch bounds keep the registers of a thread down to what lets four blocks of 128 run on a multiprocessor. */
enum { NORM_THREADS = 128, NORM_THREADS_LIMIT = 256, NORM_VECTORS = 4 };
enum { NORM_COLUMNS_LIMIT = NORM_THREADS_LIMIT * NORM_VECTORS * 8 };

/* The vectors and the threads that a row of so many columns takes. */
static unsigned norm_vectors(size_t width)
{
    const size_t vectors = ceil_div<size_t>(width, NORM_THREADS * 8);
    return vectors <= 1 ? 1 : vectors <= 2 ? 2 : NORM_VECTORS;
}

static unsigned norm_threads(size_t width)
{
    if (width > NORM_COLUMNS_LIMIT) {
        fprintf(stderr, "promot: rmsnorm: rows of %zu columns are more than %d\n", width, NORM_COLUMNS_LIMIT);
        exit(EXIT_FAILED);
    }
    return threads_for(ceil_div<size_t>(width, 8 * norm_vectors(width)), NORM_THREADS_LIMIT);
}

template <int VECTORS, bool WHOLE>
static __global__ void __launch_bounds__(NORM_THREADS_LIMIT, 4)
    rmsnorm_forward_kernel(bf16_t *y, float *rstd, const bf16_t *x, const bf16_t *scale, size_t width, float epsilon)
{
    __shared__ float shared[WARP];
    const size_t row = blockIdx.x, start = threadIdx.x * 8, stride = blockDim.x * 8;
    uint4 in[VECTORS] = {}, weight[VECTORS] = {};
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const size_t column = start + v * stride;
        if (column >= width) continue;
        in[v] = load_eight<WHOLE>(x + row * width + column, width - column);
        weight[v] = load_eight<WHOLE>(scale + column, width - column);
    }
    float squares = 0;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float a[8];
        if (start + v * stride >= width) continue;
        unpack_eight(a, in[v]);
        for (int i = 0; i < 8; i++) squares = fmaf(a[i], a[i], squares);
    }
    const float r = 1 / sqrtf(block_sum(squares, shared) / (float)width + epsilon);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const size_t column = start + v * stride;
        float a[8], s[8];
        if (column >= width) continue;
        unpack_eight(a, in[v]);
        unpack_eight(s, weight[v]);
        for (int i = 0; i < 8; i++) a[i] = s[i] * (a[i] * r);
        store_eight<WHOLE>(y + row * width + column, width - column, a);
    }
    if (threadIdx.x == 0) rstd[row] = r;
}

template <int VECTORS>
static void rmsnorm_forward_launch(Device *dev, act_t *y, stat_t *rstd, const act_t *x, const weight_t *scale,
                                   size_t rows, size_t width, float epsilon)
{
    const bool whole = whole_vectors(8, width, y, x, scale);
    launch(dev, whole ? rmsnorm_forward_kernel<VECTORS, true> : rmsnorm_forward_kernel<VECTORS, false>,
           dim3((unsigned)rows), dim3(norm_threads(width)), 0, y, rstd, x, scale, width, epsilon);
}

extern "C" void rmsnorm_forward(Device *dev, act_t *y, stat_t *rstd, const act_t *x, const weight_t *scale, size_t rows,
                                size_t width, float epsilon)
{
    const unsigned vectors = norm_vectors(width);
    scale = weights_here(dev, scale);
    if (vectors == 1)
        rmsnorm_forward_launch<1>(dev, y, rstd, x, scale, rows, width, epsilon);
    else if (vectors == 2)
        rmsnorm_forward_launch<2>(dev, y, rstd, x, scale, rows, width, epsilon);
    else
        rmsnorm_forward_launch<NORM_VECTORS>(dev, y, rstd, x, scale, rows, width, epsilon);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Backward. Block b does rows b * height and on, and keeps its columns' share of dscale in registers meanwhile. dx is
 * asked for together with x and dy, long before it is needed; scale comes from the first cache each time, since there
 * is no register left for it. partial [blocks, width] (=), or NULL. */
template <int VECTORS, bool WHOLE>
static __global__ void __launch_bounds__(NORM_THREADS_LIMIT, 2)
    rmsnorm_backward_kernel(bf16_t *dx, float *partial, const bf16_t *dy, const bf16_t *x, const float *rstd,
                            const bf16_t *scale, size_t rows, size_t width, size_t height)
{
    __shared__ float shared[WARP];
    const size_t first = blockIdx.x * height, last = min(first + height, rows);
    const size_t start = threadIdx.x * 8, stride = blockDim.x * 8;
    const float share = 1 / (float)width;
    float dscale[VECTORS][8] = {};
    for (size_t row = first; row < last; row++) {
        uint4 in[VECTORS], out[VECTORS], stream[VECTORS]; /* x, dy, dx */
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const size_t column = start + v * stride, at = row * width + column;
            if (column >= width) continue;
            in[v] = load_eight<WHOLE>(x + at, width - column);
            out[v] = load_eight<WHOLE>(dy + at, width - column);
            stream[v] = load_eight<WHOLE>(dx + at, width - column);
        }
        const float r = rstd[row];
        float dot = 0; /* sum of h x; dscale on the way */
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const size_t column = start + v * stride;
            float a[8], d[8], s[8];
            if (column >= width) continue;
            unpack_eight(a, in[v]);
            unpack_eight(d, out[v]);
            unpack_eight(s, load_eight<WHOLE>(scale + column, width - column));
            for (int i = 0; i < 8; i++) {
                dot = fmaf(s[i] * d[i], a[i], dot);
                dscale[v][i] = fmaf(d[i] * a[i], r, dscale[v][i]);
            }
        }
        const float pull = block_sum(dot, shared) * r * r * share;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const size_t column = start + v * stride;
            float a[8], d[8], s[8], to[8];
            if (column >= width) continue;
            unpack_eight(a, in[v]);
            unpack_eight(d, out[v]);
            unpack_eight(s, load_eight<WHOLE>(scale + column, width - column));
            unpack_eight(to, stream[v]);
            for (int i = 0; i < 8; i++) to[i] = fmaf(r, fmaf(-a[i], pull, s[i] * d[i]), to[i]);
            store_eight<WHOLE>(dx + row * width + column, width - column, to);
        }
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        for (int i = 0; i < 8; i++) {
            const size_t column = start + v * stride + i;
            if (partial && column < width) partial[blockIdx.x * width + column] = dscale[v][i];
        }
}

/* dscale (+=) the sum of the blocks' partial sums. */
static __global__ void rmsnorm_scale_kernel(float *dscale, const float *partial, size_t blocks, size_t width)
{
    __shared__ SumOfColumns shared;
    const size_t column = (size_t)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    const double sum = sum_of_column(partial, blocks, width, column, column < width, &shared);
    if (threadIdx.y == 0 && column < width) dscale[column] = (float)((double)dscale[column] + sum);
}

/* Rows of a block: enough blocks for every multiprocessor to have four, but not more partial sums than that needs. */
static size_t norm_height(size_t rows)
{
    const size_t height = ceil_div<size_t>(rows, 512);
    return height > 8 ? height : 8;
}

template <int VECTORS>
static void rmsnorm_backward_launch(Device *dev, act_t *dx, stat_t *partial, const act_t *dy, const act_t *x,
                                    const stat_t *rstd, const weight_t *scale, size_t rows, size_t width)
{
    const size_t height = norm_height(rows);
    const bool whole = whole_vectors(8, width, dx, dy, x, scale);
    launch(dev, whole ? rmsnorm_backward_kernel<VECTORS, true> : rmsnorm_backward_kernel<VECTORS, false>,
           dim3(blocks_for(rows, height)), dim3(norm_threads(width)), 0, dx, partial, dy, x, rstd, scale, rows, width,
           height);
}

extern "C" void rmsnorm_backward(Device *dev, act_t *dx, stat_t *dscale, const act_t *dy, const act_t *x,
                                 const stat_t *rstd, const weight_t *scale, size_t rows, size_t width)
{
    const unsigned vectors = norm_vectors(width);
    const size_t blocks = blocks_for(rows, norm_height(rows));
    scale = weights_here(dev, scale);
    stat_t *partial = dscale ? (stat_t *)device_scratch(dev, blocks * width * sizeof *partial) : nullptr;
    if (vectors == 1)
        rmsnorm_backward_launch<1>(dev, dx, partial, dy, x, rstd, scale, rows, width);
    else if (vectors == 2)
        rmsnorm_backward_launch<2>(dev, dx, partial, dy, x, rstd, scale, rows, width);
    else
        rmsnorm_backward_launch<NORM_VECTORS>(dev, dx, partial, dy, x, rstd, scale, rows, width);
    if (dscale)
        launch(dev, rmsnorm_scale_kernel, dim3(blocks_for(width, SUM_COLUMNS)), dim3(SUM_COLUMNS, SUM_GROUPS), 0,
               dscale, partial, blocks, width);
}

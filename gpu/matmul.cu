/* gpu/matmul.cu: the matrix product on any card from sm_80, and the functions of the seam that stand on a product.
 *
 * matmul.cuh says what is computed and how tiles lie in shared memory. Here, in this order: how a tile of an operand
 * is read, the kernel, which tile it uses, and the seam.
 *
 * A warp owns 64 columns of a block's tile and 16 or 32 of its rows. In each step of 64 along k it takes four times
 * 16: ldmatrix brings a's 16 x 16 pieces and b's 16 x 16 pieces into the registers in the pattern that mma wants,
 * and each pair of them is one m16n8k16 for each 8 columns. mma wants both operands with k contiguous;
 * ldmatrix.trans turns 8 x 8 pieces over on the way, so an mn-major operand needs nothing else. Per step and warp of
 * 32 x 64: 24 ldmatrix, 64 mma.
 *
 * The copies run STAGES - 1 steps ahead by cp.async, which needs no registers and zero-fills what is outside. It
 * moves 16 bytes to 16-byte places; where rows of an operand do not begin at such places, the threads carry the
 * numbers themselves, slowly: no model has such shapes, tests do. */
#include "matmul.cuh"

/* ================================================================================================================
 * Shared memory */

/* 16-byte chunk c of row r, in the tile of a k-major operand. Every tile begins at a multiple of 1024 bytes. */
static __device__ inline char *tile_chunk(char *tile, int row, int chunk)
{
    return tile + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4);
}

/* … and of an mn-major one, where a row is one k and may be several times 64 wide. */
static __device__ inline char *tile_chunk_mn(char *tile, int k, int chunk)
{
    return tile_chunk(tile + chunk / 8 * K_STEP * ROW_BYTES, k, chunk % 8);
}

/* n numbers of 8 into a chunk, zeros behind them. */
static __device__ inline void copy_chunk(char *chunk, const bf16_t *from, int n, bool aligned)
{
    if (aligned) {
        cp_async_16(chunk, from, 2 * n);
        return;
    }
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < n) word[i / 2] |= (uint32_t)from[i].bits << 16 * (i % 2);
    *(uint4 *)chunk = make_uint4(word[0], word[1], word[2], word[3]);
}

static __device__ inline int within_eight(size_t place, size_t end)
{
    return place >= end ? 0 : end - place < 8 ? (int)(end - place) : 8;
}

/* SIDE rows of a k-major operand from row `first` on, of `extent`, and K_STEP columns from k on, of k_extent.
 * gate_width: where not 0, the tile is the gated MLP's: of each 64 rows the first half are rows of the gate, and the
 * second half the same ones of up, gate_width further. */
template <int SIDE, int THREADS>
static __device__ inline void copy_k_major(char *tile, const bf16_t *data, size_t stride, size_t first, size_t extent,
                                           size_t k, size_t k_extent, size_t gate_width, bool aligned)
{
#pragma unroll 1 /* the copies wait for nobody, and unrolled their addresses would take the registers of the sums */
    for (int step = 0; step < SIDE * 8 / THREADS; step++) {
        const int i = step * THREADS + threadIdx.x;
        const int row = i / 8, chunk = i % 8;
        const size_t of_gate = first + row / 64 * 32 + row % 32, column = k + 8 * chunk;
        const size_t logical = gate_width ? of_gate : first + row;
        const size_t from = gate_width && row & 32 ? of_gate + gate_width : logical;
        const int n = logical < extent ? within_eight(column, k_extent) : 0;
        copy_chunk(tile_chunk(tile, row, chunk), n ? data + from * stride + column : data, n, aligned);
    }
}

/* K_STEP rows of an mn-major operand, SIDE columns from column `first` on. */
template <int SIDE, int THREADS>
static __device__ inline void copy_mn_major(char *tile, const bf16_t *data, size_t stride, size_t first, size_t extent,
                                            size_t k, size_t k_extent, bool aligned)
{
#pragma unroll 1 /* the copies wait for nobody, and unrolled their addresses would take the registers of the sums */
    for (int step = 0; step < SIDE * 8 / THREADS; step++) {
        const int i = step * THREADS + threadIdx.x;
        const int row = i / (SIDE / 8), chunk = i % (SIDE / 8);
        const size_t column = first + 8 * chunk;
        const int n = k + row < k_extent ? within_eight(column, extent) : 0;
        copy_chunk(tile_chunk_mn(tile, row, chunk), n ? data + (k + row) * stride + column : data, n, aligned);
    }
}

/* a[16 rows from m][16 k from k16 * 16], in mma's pattern: 8 x 8 pieces (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8).
 * A lane names one row of one piece; in an mn-major tile a row is a k. */
template <bool MN_MAJOR> static __device__ inline void load_a(uint32_t a[4], char *tile, int m, int k16)
{
    const int lane = threadIdx.x % WARP, piece = lane / 8, row = lane % 8;
    if (MN_MAJOR)
        ldmatrix_x4_trans(a, tile_chunk_mn(tile, 16 * k16 + piece / 2 * 8 + row, m / 8 + piece % 2));
    else
        ldmatrix_x4(a, tile_chunk(tile, m + piece % 2 * 8 + row, 2 * k16 + piece / 2));
}

/* b[16 k][16 columns from n]: pieces (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8), the operands of two mma. */
template <bool MN_MAJOR> static __device__ inline void load_b(uint32_t b[4], char *tile, int n, int k16)
{
    const int lane = threadIdx.x % WARP, piece = lane / 8, row = lane % 8;
    if (MN_MAJOR)
        ldmatrix_x4_trans(b, tile_chunk_mn(tile, 16 * k16 + piece % 2 * 8 + row, n / 8 + piece / 2));
    else
        ldmatrix_x4(b, tile_chunk(tile, n + piece / 2 * 8 + row, 2 * k16 + piece % 2));
}

/* ================================================================================================================
 * The kernel */

/* A block's tile: WARPS_M x WARPS_N warps, each with ROWS rows and 64 columns. */
template <int WARPS_M, int WARPS_N, int ROWS, int STAGES_> struct PlainTile {
    static constexpr int M = WARPS_M * ROWS, N = WARPS_N * 64, THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WARPS_ACROSS = WARPS_N, STRIPS = ROWS / 16, STAGES = STAGES_;
    static constexpr int A_BYTES = M * ROW_BYTES, STAGE_BYTES = A_BYTES + N * ROW_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
};
typedef PlainTile<4, 2, 32, 3> PlainLarge; /* 128 x 128, 96 KB */
typedef PlainTile<4, 1, 16, 6> PlainSmall; /* 64 x 64, 96 KB: for few rows, where stages of w under way count */

/* Step `block` along the depth of all layers, into one stage of shared memory. */
template <typename Tile, MatmulLayout L, MatmulEpilogue E>
static __device__ inline void copy_stage(char *stage, const Product &p, const ProductTile &place, uint32_t block,
                                         bool a_aligned, bool b_aligned)
{
    const uint32_t of_layer = depth_blocks(p), layer = block / of_layer;
    const size_t k = (size_t)(block % of_layer) * K_STEP;
    const bf16_t *a = p.a.data + layer * p.a.layer, *b = p.b.data + (layer + place.layer) * p.b.layer;
    if (L == BACKWARD_WEIGHT)
        copy_mn_major<Tile::M, Tile::THREADS>(stage, a, p.a.stride, place.row, p.m, k, p.k, a_aligned);
    else
        copy_k_major<Tile::M, Tile::THREADS>(stage, a, p.a.stride, place.row, p.m, k, p.k, 0, a_aligned);
    if (L == FORWARD)
        copy_k_major<Tile::N, Tile::THREADS>(stage + Tile::A_BYTES, b, p.b.stride, place.column, p.n, k, p.k,
                                             E == GELU ? p.n : 0, b_aligned);
    else
        copy_mn_major<Tile::N, Tile::THREADS>(stage + Tile::A_BYTES, b, p.b.stride, place.column, p.n, k, p.k,
                                              b_aligned);
}

/* d += this warp's rows of a times its 64 columns of b, over one stage. */
template <typename Tile, MatmulLayout L>
static __device__ inline void multiply_stage(float (&d)[Tile::STRIPS][32], char *stage, int first_row, int first_column)
{
    constexpr bool A_MN = L == BACKWARD_WEIGHT, B_MN = L != FORWARD;
#pragma unroll
    for (int k16 = 0; k16 < K_STEP / 16; k16++) {
        uint32_t a[Tile::STRIPS][4];
#pragma unroll
        for (int s = 0; s < Tile::STRIPS; s++) load_a<A_MN>(a[s], stage, first_row + 16 * s, k16);
#pragma unroll
        for (int n = 0; n < 64; n += 16) {
            uint32_t b[4];
            load_b<B_MN>(b, stage + Tile::A_BYTES, first_column + n, k16);
#pragma unroll
            for (int s = 0; s < Tile::STRIPS; s++) {
                mma_bf16_16816(&d[s][n / 2], a[s], b);
                mma_bf16_16816(&d[s][n / 2 + 4], a[s], b + 2);
            }
        }
    }
}

/* Blocks on a multiprocessor: two leave a thread 128 registers, and for sm_100 the compiler needs a few more than that
 * where both operands are transposed on the way. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define BLOCKS_TOGETHER(layout) ((layout) == BACKWARD_WEIGHT ? 1 : 2)
#else
#define BLOCKS_TOGETHER(layout) 2
#endif

template <typename Tile, MatmulLayout L, MatmulEpilogue E>
static __global__ void __launch_bounds__(Tile::THREADS, BLOCKS_TOGETHER(L))
    matmul_kernel(Product p, bool a_aligned, bool b_aligned)
{
    constexpr int COLUMNS = E == GELU ? Tile::N / 2 : Tile::N, WARP_COLUMNS = E == GELU ? 32 : 64;
    DYNAMIC_SHARED(char, shared);
    const ProductTile place = tile_place(p, blockIdx.x, Tile::M, COLUMNS);
    const int warp = threadIdx.x / WARP, row = warp / Tile::WARPS_ACROSS * 16 * Tile::STRIPS;
    const int across = warp % Tile::WARPS_ACROSS, blocks = (int)(place.end_block - place.first_block);
    float d[Tile::STRIPS][32] = {};

    for (int ahead = 0; ahead < Tile::STAGES - 1; ahead++) {
        if (ahead < blocks)
            copy_stage<Tile, L, E>(shared + ahead * Tile::STAGE_BYTES, p, place, place.first_block + ahead, a_aligned,
                                   b_aligned);
        cp_async_commit(); /* an empty group where there is nothing to copy, so that the count stays right */
    }
    for (int block = 0; block < blocks; block++) {
        const int ahead = block + Tile::STAGES - 1;
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads(); /* this stage has come, and all warps have left the one that is filled next */
        if (ahead < blocks)
            copy_stage<Tile, L, E>(shared + ahead % Tile::STAGES * Tile::STAGE_BYTES, p, place,
                                   place.first_block + ahead, a_aligned, b_aligned);
        cp_async_commit();
        multiply_stage<Tile, L>(d, shared + block % Tile::STAGES * Tile::STAGE_BYTES, row, 64 * across);
    }
#pragma unroll
    for (int s = 0; s < Tile::STRIPS; s++) {
        const uint32_t first_row = place.row + row + 16 * s, first_column = place.column + WARP_COLUMNS * across;
        if (p.c.vectors)
            finish_strip<E, 64, true>(p, place, d[s], first_row, first_column);
        else
            finish_strip<E, 64, false>(p, place, d[s], first_row, first_column);
    }
}

template <typename Tile, MatmulLayout L, MatmulEpilogue E> static void launch_plain(Device *dev, const Product *p)
{
    const uint32_t tiles = tile_count(*p, Tile::M, E == GELU ? Tile::N / 2 : Tile::N);
    const bool a_aligned = matmul_aligned(&p->a, p->depth_layers);
    const bool b_aligned = matmul_aligned(&p->b, p->depth_layers * p->width_layers);
    launch(dev, matmul_kernel<Tile, L, E>, dim3(tiles), dim3(Tile::THREADS), Tile::SHARED_BYTES, *p, a_aligned,
           b_aligned);
}

/* A small tile moves twice the bytes for a FLOP, and loads as often as it multiplies. */
static const MatmulTile plain_tiles[] = {{PlainLarge::M, PlainLarge::N, 1}, {PlainSmall::M, PlainSmall::N, 1.8f}};

void matmul_plain(Device *dev, const Product *p)
{
    const bool large = matmul_choose_tile(p, plain_tiles, 2, (uint32_t)dev->sm_count) == 0;
#define KIND(layout_, epilogue_)                                                                                       \
    if (p->layout == layout_ && p->epilogue == epilogue_) {                                                            \
        if (large)                                                                                                     \
            launch_plain<PlainLarge, layout_, epilogue_>(dev, p);                                                      \
        else                                                                                                           \
            launch_plain<PlainSmall, layout_, epilogue_>(dev, p);                                                      \
    }
    MATMUL_KINDS(KIND)
#undef KIND
}

/* ================================================================================================================
 * The seam: products */

static void multiply(Device *dev, const Product *p)
{
    if (p->m == 0 || p->n == 0) return;
    if (dev->hopper && matmul_hopper_serves(p))
        matmul_hopper(dev, p);
    else
        matmul_plain(dev, p);
}

/* Eights of numbers lie at multiples of 16 bytes where the matrix begins at one and its rows are made of eights. */
static bool in_eights(const void *matrix, size_t width)
{
    return (uintptr_t)matrix % 16 == 0 && width % 8 == 0;
}

/* y [rows, out] = x · wᵀ, yet without its output. */
static Product forward_product(MatmulEpilogue epilogue, const act_t *x, const weight_t *w, size_t rows, size_t in,
                               size_t out)
{
    Product p = {};
    p.layout = FORWARD;
    p.epilogue = epilogue;
    p.a = {x, in, 0};
    p.b = {w, in, 0};
    p.m = (uint32_t)rows, p.n = (uint32_t)out, p.k = (uint32_t)in;
    p.width_layers = p.depth_layers = p.splits = 1;
    return p;
}

/* dx [rows, in] = dy · w, likewise. */
static Product backward_input_product(MatmulEpilogue epilogue, const act_t *dy, const weight_t *w, size_t rows,
                                      size_t in, size_t out)
{
    Product p = forward_product(epilogue, dy, w, rows, out, in);
    p.layout = BACKWARD_INPUT;
    p.b.stride = in;
    return p;
}

static void set_output(Product *p, bf16_t *out, size_t stride, size_t layer)
{
    p->c.out = out;
    p->c.stride = stride;
    p->c.layer = layer;
    p->c.vectors = in_eights(out, stride) && layer % 8 == 0 && p->n % 8 == 0;
}

void linear_forward_layers(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out,
                           size_t layers, size_t w_stride, size_t y_stride)
{
    Product p = forward_product(STORE_BF16, x, weights_here(dev, w), rows, in, out);
    p.width_layers = (uint32_t)layers;
    p.b.layer = weights_stride_here(w, w_stride);
    set_output(&p, y, out, y_stride);
    multiply(dev, &p);
}

void linear_forward(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out)
{
    linear_forward_layers(dev, y, x, w, rows, in, out, 1, 0, 0);
}

static Product head_product(MatmulEpilogue epilogue, logit_t *logits, const act_t *x, const weight_t *w, size_t rows,
                            size_t in, size_t vocabulary)
{
    Product p = forward_product(epilogue, x, w, rows, in, vocabulary);
    p.c.sums = logits;
    p.c.stride = vocabulary;
    p.c.vectors = in_eights(logits, vocabulary);
    return p;
}

void head_forward(Device *dev, logit_t *logits, const act_t *x, const weight_t *w, size_t rows, size_t in,
                  size_t vocabulary)
{
    const Product p = head_product(STORE_FP32, logits, x, weights_here(dev, w), rows, in, vocabulary);
    multiply(dev, &p);
}

void head_top_log_probabilities(Device *dev, stat_t *logp, int32_t *word, logit_t *logits, const act_t *x,
                                const weight_t *w, size_t rows, size_t in, size_t vocabulary, size_t k)
{
    Product p = head_product(WORD_GROUPS, logits, x, weights_here(dev, w), rows, in, vocabulary);
    p.c.groups = (WordGroup *)device_scratch(dev, rows * word_groups(vocabulary) * sizeof(WordGroup));
    multiply(dev, &p);
    head_best_words(dev, logp, word, logits, p.c.groups, rows, vocabulary, k);
}

/* To add is a residual connection whose other branch is dx itself. */
void linear_backward_input(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                           size_t out, bool accumulate)
{
    Product p = backward_input_product(accumulate ? RESIDUAL : STORE_BF16, dy, weights_here(dev, w), rows, in, out);
    p.c.in = dx;
    set_output(&p, dx, in, 0);
    multiply(dev, &p);
}

void linear_backward_input_layers(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                                  size_t out, size_t layers, size_t w_stride, size_t dy_stride)
{
    Product p = backward_input_product(STORE_BF16, dy, weights_here(dev, w), rows, in, out);
    p.depth_layers = (uint32_t)layers;
    p.a.layer = dy_stride;
    p.b.layer = weights_stride_here(w, w_stride);
    set_output(&p, dx, in, 0);
    multiply(dev, &p);
}

/* to (=) or (+=) the sum of the parts, in their order. */
static __global__ void add_parts_kernel(float *to, const float *parts, size_t n, uint32_t splits, bool accumulate)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = accumulate ? to[i] : 0;
    for (uint32_t s = 0; s < splits; s++) sum += parts[s * n + i];
    to[i] = sum;
}

void linear_backward_weight(Device *dev, stat_t *dw, const act_t *dy, const act_t *x, size_t rows, size_t in,
                            size_t out, bool accumulate)
{
    Product p = forward_product(STORE_FP32, dy, x, out, rows, in);
    p.layout = BACKWARD_WEIGHT;
    p.a.stride = out;
    p.b.stride = in;
    p.splits = depth_splits(p.m, p.n, p.k);
    p.c.sums = p.splits > 1 ? (float *)device_scratch(dev, p.splits * out * in * sizeof(float)) : dw;
    p.c.accumulate = accumulate && p.splits == 1;
    p.c.stride = in;
    p.c.split = out * in;
    p.c.vectors = in_eights(p.c.sums, in);
    multiply(dev, &p);
    if (p.splits > 1)
        launch(dev, add_parts_kernel, dim3((unsigned)ceil_div<size_t>(out * in, 256)), dim3(256), 0, dw, p.c.sums,
               out * in, p.splits, accumulate);
}

/* ================================================================================================================
 * The seam: products and what becomes of their numbers
 *
 * Without dropout, or with masks that the rows of a sequence share, everything happens in the epilogue: the masks are
 * one row of bits for each sequence, made once, and small enough to stay in the L2 cache. A mask for each element
 * costs a Philox call for each 4 of them, which an epilogue has no time for; there the product comes first and the
 * element-wise kernel after it. */

/* The sequence of every row, one for a thread; and the mask of every sequence, eight columns for a thread, or NULL. */
static __global__ void product_rows_kernel(int32_t *sequence, uint8_t *kept, MatmulRows rows, size_t n_rows,
                                           size_t width, Dropout dropout, size_t first_example)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, groups = ceil_div<size_t>(width, 8);
    if (i < n_rows) sequence[i] = row_sequence(rows, i);
    if (!kept || i >= rows.count * groups) return;
    const uint32_t example = (uint32_t)(first_example + i / groups), four = (uint32_t)(i % groups * 2);
    float factor[8];
    dropout_four(factor, dropout, dropout.site, example, 0, four);
    dropout_four(factor + 4, dropout, dropout.site, example, 0, four + 1);
    uint32_t bits = 0;
#pragma unroll
    for (int c = 0; c < 8; c++) bits |= (uint32_t)(factor[c] != 0) << c;
    kept[i] = (uint8_t)bits;
}

static bool dropout_for_each_element(const Dropout *dropout)
{
    return dropout->rate > 0 && !dropout->shared;
}

/* What an epilogue must know about the rows. For a few of them, without dropout, it finds their sequences itself: that
 * is sooner done than a kernel is launched. */
static MatmulRows product_rows(Device *dev, const Sequences *seqs, size_t width, const Dropout *dropout)
{
    const bool drops = dropout->rate > 0;
    MatmulRows rows = {seqs->start, seqs->length, seqs->count, NULL, NULL, 1};
    if (seqs->rows > PlainSmall::M || drops) {
        const size_t masks = drops ? seqs->count * ceil_div<size_t>(width, 8) : 0;
        const size_t work = masks > seqs->rows ? masks : seqs->rows;
        int32_t *sequence = (int32_t *)device_scratch(dev, seqs->rows * sizeof *sequence + masks);
        uint8_t *kept = drops ? (uint8_t *)(sequence + seqs->rows) : NULL;
        launch(dev, product_rows_kernel, dim3((unsigned)ceil_div<size_t>(work, 256)), dim3(256), 0, sequence, kept,
               rows, seqs->rows, width, *dropout, seqs->first_example);
        rows.sequence = sequence;
        rows.kept = kept;
        rows.scale = dropout->rate < 1 ? (float)(1.0 / (1.0 - (double)dropout->rate)) : 0;
    }
    return rows;
}

void linear_residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *y, const weight_t *w, act_t *scratch,
                             const Sequences *seqs, size_t in, size_t width, const Dropout *dropout)
{
    if (dropout_for_each_element(dropout)) {
        linear_forward(dev, scratch, y, w, seqs->rows, in, width);
        residual_forward(dev, out, x, scratch, seqs, width, dropout);
        return;
    }
    Product p = forward_product(RESIDUAL, y, weights_here(dev, w), seqs->rows, in, width);
    p.c.in = x;
    p.c.rows = product_rows(dev, seqs, width, dropout);
    set_output(&p, out, width, 0);
    p.c.vectors = p.c.vectors && in_eights(x, width);
    multiply(dev, &p);
}

void linear_mlp_forward(Device *dev, MlpKind kind, act_t *h, act_t *a, const act_t *x, const weight_t *w,
                        const Sequences *seqs, size_t in, size_t d_ff, const Dropout *dropout)
{
    const size_t width = kind == MLP_GATED_GELU ? 2 * d_ff : d_ff;
    if (dropout_for_each_element(dropout)) {
        linear_forward(dev, a, x, w, seqs->rows, in, width);
        mlp_activation_forward(dev, kind, h, a, seqs, d_ff, dropout);
        return;
    }
    Product p = forward_product(kind == MLP_GATED_GELU ? GELU : RELU, x, weights_here(dev, w), seqs->rows, in, d_ff);
    p.c.h = h;
    p.c.rows = product_rows(dev, seqs, d_ff, dropout);
    set_output(&p, a, width, 0);
    p.c.vectors = p.c.vectors && in_eights(h, d_ff);
    multiply(dev, &p);
}

void linear_mlp_backward(Device *dev, MlpKind kind, act_t *da, act_t *dh, act_t *h, const act_t *dy, const weight_t *w,
                         const act_t *a, const Sequences *seqs, size_t out, size_t d_ff, const Dropout *dropout)
{
    const size_t width = kind == MLP_GATED_GELU ? 2 * d_ff : d_ff;
    if (dropout_for_each_element(dropout)) {
        linear_backward_input(dev, dh, dy, w, seqs->rows, d_ff, out, false);
        mlp_activation_backward(dev, kind, da, dh, a, seqs, d_ff, dropout);
        if (h) mlp_activation_forward(dev, kind, h, a, seqs, d_ff, dropout);
        return;
    }
    Product p = backward_input_product(kind == MLP_GATED_GELU ? GELU_BACKWARD : RELU_BACKWARD, dy, weights_here(dev, w),
                                       seqs->rows, d_ff, out);
    p.c.in = a;
    p.c.h = h;
    p.c.rows = product_rows(dev, seqs, d_ff, dropout);
    set_output(&p, da, width, 0);
    p.c.vectors = p.c.vectors && in_eights(a, width) && in_eights(h, d_ff);
    multiply(dev, &p);
}

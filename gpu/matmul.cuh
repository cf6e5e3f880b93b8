/* gpu/matmul.cuh: what the two floors of the matrix product share. Read this first, then matmul.cu (any card from
 * sm_80), then matmul_hopper.cu (sm_90a).
 *
 * One product c [m, n] = a [m, k] · b [k, n] serves a linear layer three times. Its operands are never transposed in
 * memory; what changes is which side of an operand is contiguous, the contracted one (k-major) or the other
 * (mn-major):
 *
 *     forward           y  [rows, out] = x   [rows, in]  · w   [out, in]ᵀ    a: k-major    b: k-major
 *     backward, input   dx [rows, in]  = dy  [rows, out] · w   [out, in]     a: k-major    b: mn-major
 *     backward, weight  dw [out, in]   = dyᵀ [out, rows] · x   [rows, in]    a: mn-major   b: mn-major
 *
 * A block of threads makes one tile of c at a time. Both operands stream through shared memory in steps of 64 along
 * k, where a piece of an operand is stored as in global memory, in rows of 64 numbers = 128 bytes:
 *
 *     k-major:   row = one m (or n), columns = 64 k                    [tile side][64]
 *     mn-major:  row = one k,        columns = 64 m (or n)             [tile side / 64][64][64]
 *
 * and the eight 16-byte chunks of row r change places: chunk c lies at c ^ (r % 8). Without that, eight rows read at
 * the same chunk would meet in the same banks. It is the pattern that the Hopper copy engine writes by itself, and
 * the one that wgmma and ldmatrix read without conflicts, so both floors have the same picture of shared memory.
 *
 * The work is 2 m n k FLOP; the bytes are far fewer for large m: y of [39168, 12288] with in = 4096 takes 3.94 TFLOP
 * and 1.4 GB, 5 ms at 790 TFLOP/s and 0.3 ms at 4.3 TB/s. For few rows it is the other way round: w is read once, 2
 * bytes for 2 rows FLOP, and the small tile exists to keep all multiprocessors reading.
 *
 * The sum of an element runs over ascending k, in steps of 16 (one mma), in one fp32 accumulator, whatever the tile, so
 * a row of y has the same bits however many rows there are. How the hardware adds the 16 products of a step is not
 * documented. The two floors may differ in it, so the choice of floor looks at widths and addresses only, not at rows;
 * that wgmma does it alike for 64, 128 and 256 columns is assumed here, and tested (row_bits in test_gpu_matmul).
 * Weight gradients alone may be cut along k (depth_splits), into parts fixed by the shape, added in a fixed order. */
#ifndef PROMOT_MATMUL_CUH
#define PROMOT_MATMUL_CUH

#include "head.cuh"

enum MatmulLayout { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT };

/* What becomes of the sums. WORD_GROUPS is STORE_FP32 and what head.cuh wants to know. GELU and RELU lead into the MLP (a
 * and h), the BACKWARD ones back into it (da, h). */
enum MatmulEpilogue { STORE_BF16, STORE_FP32, WORD_GROUPS, RESIDUAL, GELU, RELU, GELU_BACKWARD, RELU_BACKWARD };

/* All products of the seam. Each is a kernel of its own on either floor and for each tile. */
#define MATMUL_KINDS(X)                                                                                                \
    X(FORWARD, STORE_BF16)                                                                                             \
    X(FORWARD, STORE_FP32)                                                                                             \
    X(FORWARD, WORD_GROUPS)                                                                                            \
    X(FORWARD, RESIDUAL)                                                                                               \
    X(FORWARD, GELU)                                                                                                   \
    X(FORWARD, RELU)                                                                                                   \
    X(BACKWARD_INPUT, STORE_BF16)                                                                                      \
    X(BACKWARD_INPUT, RESIDUAL)                                                                                        \
    X(BACKWARD_INPUT, GELU_BACKWARD)                                                                                   \
    X(BACKWARD_INPUT, RELU_BACKWARD)                                                                                   \
    X(BACKWARD_WEIGHT, STORE_FP32)

enum { K_STEP = 64, ROW_BYTES = 128 }; /* the step along k; a row of 64 bf16 in shared memory */

/* An operand in global memory: rows of `stride` numbers. Several layers lie `layer` numbers apart. */
struct MatmulOperand {
    const bf16_t *data;
    size_t stride, layer;
};

/* To which sequence a row belongs, and the dropout mask that the rows of a sequence share. */
struct MatmulRows {
    const int32_t *start, *length; /* [count] */
    size_t count;                  /* 0: every row counts and nothing is dropped */
    const int32_t *sequence;       /* [m] by row, -1 where none; NULL: to be searched for */
    const uint8_t *kept;           /* [count, n / 8], a bit for each column, the first one lowest; NULL: no dropout */
    float scale;                   /* of what is kept */
};

struct MatmulOutput {
    bf16_t *out;                 /* STORE_BF16, RESIDUAL: c; GELU, RELU: a; the BACKWARD ones: da */
    bf16_t *h;                   /* of the MLP; BACKWARD may do without */
    float *sums;                 /* STORE_FP32, WORD_GROUPS: c */
    WordGroup *groups;           /* WORD_GROUPS: [m, word_groups(n)] */
    const bf16_t *in;            /* RESIDUAL: what the product is added to; the BACKWARD ones: a */
    size_t stride, layer, split; /* numbers between rows, layers and parts of the depth */
    bool accumulate;             /* STORE_FP32 adds to what is there */
    bool vectors; /* all that is read and written beside the sums comes in eights at multiples of 16 bytes */
    MatmulRows rows;
};

struct Product {
    MatmulLayout layout;
    MatmulEpilogue epilogue;
    MatmulOperand a, b;
    uint32_t m, n, k;      /* of one layer. GELU: n is d_ff, and b has 2 n columns, gate and up */
    uint32_t width_layers; /* so many b and c side by side over the same a */
    uint32_t depth_layers; /* so many a and b whose products are added: one long k */
    uint32_t splits;       /* parts of the depth, each with its own c */
    MatmulOutput c;
};

/* ================================================================================================================
 * Which tile a block makes
 *
 * Tiles that run at the same time should share operands: a wave of 128 blocks that covers 2048 x 2048 of c, 16 x 8
 * tiles of 128 x 256, reads 24 pieces from memory and all others from the L2 cache. So tiles are counted down columns
 * of 2048 rows, from left to right, then come the next 2048 rows. Layers side by side are one wide row of tiles. The
 * parts of a split depth follow each other. */
enum { GROUP_ROWS = 2048 };

struct ProductTile {
    uint32_t row, column;            /* the first of the tile within its layer */
    uint32_t layer, split;           /* which b and c; which part of the depth */
    uint32_t first_block, end_block; /* steps of K_STEP along all layers of k */
};

static __host__ __device__ inline uint32_t depth_blocks(const Product &p) /* of one layer */
{
    return ceil_div<uint32_t>(p.k, K_STEP);
}

static __host__ __device__ inline uint32_t tile_count(const Product &p, uint32_t tile_rows, uint32_t tile_columns)
{
    return ceil_div<uint32_t>(p.m, tile_rows) * ceil_div<uint32_t>(p.n, tile_columns) * p.width_layers * p.splits;
}

static __host__ __device__ inline ProductTile tile_place(const Product &p, uint32_t index, uint32_t tile_rows,
                                                         uint32_t tile_columns)
{
    const uint32_t down = ceil_div<uint32_t>(p.m, tile_rows), of_layer = ceil_div<uint32_t>(p.n, tile_columns);
    const uint32_t across = of_layer * p.width_layers, split = index / (down * across), tile = index % (down * across);
    const uint32_t group = GROUP_ROWS / tile_rows, top = tile / (group * across) * group;
    const uint32_t height = down - top < group ? down - top : group, left_over = tile - top * across;
    const uint32_t column = left_over / height, blocks = depth_blocks(p) * p.depth_layers;
    const uint32_t each = ceil_div<uint32_t>(blocks, p.splits), first = split * each;
    ProductTile place;
    place.row = (top + left_over % height) * tile_rows;
    place.column = column % of_layer * tile_columns;
    place.layer = column / of_layer;
    place.split = split;
    place.first_block = first < blocks ? first : blocks;
    place.end_block = first + each < blocks ? first + each : blocks;
    return place;
}

/* ================================================================================================================
 * The epilogue
 *
 * mma and wgmma leave a warp with 16 rows of its tile, in the same pattern: with g = lane / 4 and q = lane % 4, the
 * registers 4j … 4j+3 are (row g, columns 8j+2q, +1) and (row g+8, the same columns). An fp32 result is stored as it
 * lies: four lanes fill a whole sector of 32 bytes. For bf16 that would be half a sector; there the four lanes of a row
 * exchange their registers over 32 columns, after which lane q has the 8 neighbours 8q … 8q+7, 16 bytes, and everything
 * that is to be read or written beside them goes by 16 bytes too.
 *
 * While an epilogue runs the tensor cores wait, so it must not wait for memory eight numbers at a time: what it reads
 * (Beside) is asked for in batches of 128 columns before any of them is finished. */

/* Lane q's w[j] becomes what lane j's w[q] was, among each four lanes: exchanges with the neighbour, then across. */
static __device__ inline void transpose_quad(uint32_t w[4])
{
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            const int low = step == 1 ? 2 * pair : pair, high = low + step;
            const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? w[low] : w[high], step);
            if (upper)
                w[low] = got;
            else
                w[high] = got;
        }
    }
}

/* The 8 neighbours of this lane, of row g (half 0) or g + 8 (half 1), out of the 16 registers of 32 columns. */
static __device__ inline void gather_eight(float v[8], const float *d, int half)
{
    uint32_t even[4], odd[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        even[j] = __float_as_uint(d[4 * j + 2 * half]);
        odd[j] = __float_as_uint(d[4 * j + 2 * half + 1]);
    }
    transpose_quad(even);
    transpose_quad(odd);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[2 * j] = __uint_as_float(even[j]);
        v[2 * j + 1] = __uint_as_float(odd[j]);
    }
}

/* 8 neighbours as bf16 in 4 words, and in memory. WHOLE: all exist, at a multiple of 16 bytes; else n of them. */
static __device__ inline void pack_eight(uint32_t word[4], const float v[8])
{
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = pack_bf16x2(v[2 * i], v[2 * i + 1]);
}

static __device__ inline void unpack_eight(float v[8], const uint32_t word[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16x2(word[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

template <bool WHOLE> static __device__ inline void load_words(uint32_t word[4], const bf16_t *from, int n)
{
    if constexpr (WHOLE) {
        const uint4 words = *(const uint4 *)from;
        word[0] = words.x, word[1] = words.y, word[2] = words.z, word[3] = words.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < n) word[i / 2] |= (uint32_t)from[i].bits << 16 * (i % 2);
    }
}

template <bool WHOLE> static __device__ inline void store_words(bf16_t *to, const uint32_t word[4], int n)
{
    if constexpr (WHOLE) {
        __stcg((uint4 *)to, make_uint4(word[0], word[1], word[2], word[3])); /* one instruction, in any case */
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < n) to[i].bits = (uint16_t)(word[i / 2] >> 16 * (i % 2));
    }
}

template <bool WHOLE> static __device__ inline void store_eight(bf16_t *to, const float v[8], int n)
{
    uint32_t word[4];
    pack_eight(word, v);
    store_words<WHOLE>(to, word, n);
}

/* The sequence that a row belongs to, or -1. */
static __device__ inline int row_sequence(const MatmulRows &rows, size_t row)
{
    if (rows.count == 0) return 0;
    if (rows.sequence) return rows.sequence[row];
    const size_t s = sequence_of_row(rows.start, rows.count, row);
    const ptrdiff_t place = (ptrdiff_t)row - rows.start[s];
    return place >= 0 && place < rows.length[s] ? (int)s : -1;
}

/* How many of the 8 columns from `column` on exist, at least one of which does. */
template <bool WHOLE> static __device__ inline int columns_here(const Product &p, size_t column)
{
    return WHOLE || p.n - column > 8 ? 8 : (int)(p.n - column);
}

/* What is read beside 8 neighbours of the product. */
struct Beside {
    uint32_t in[4], up[4]; /* RESIDUAL: what it is added to; the BACKWARD ones: a, the gate and up */
    uint32_t kept;         /* by dropout */
};

template <MatmulEpilogue E, bool WHOLE>
static __device__ inline Beside load_beside(const Product &p, size_t row, size_t column, int sequence)
{
    const MatmulOutput &c = p.c;
    const size_t at = row * c.stride + column;
    Beside beside = {};
    if (row >= p.m || column >= p.n || sequence < 0) return beside;
    const int n = columns_here<WHOLE>(p, column);
    if (c.rows.kept) beside.kept = c.rows.kept[sequence * ceil_div<size_t>(p.n, 8) + column / 8];
    if (E == RESIDUAL || E == GELU_BACKWARD || E == RELU_BACKWARD) load_words<WHOLE>(beside.in, c.in + at, n);
    if (E == GELU_BACKWARD) load_words<WHOLE>(beside.up, c.in + at + p.n, n);
    return beside;
}

static __device__ inline void drop_eight(float v[8], const MatmulRows &rows, uint32_t kept)
{
    if (!rows.kept) return;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = kept >> i & 1 ? v[i] * rows.scale : 0;
}

/* gelu(a) = a g with g = (1 + tanh u) / 2 = 1 / (1 + e^-2u), u = sqrt(2/pi) (a + 0.044715 a^3), and
 * gelu'(a) = g + a g (1 - g) 2 u'(a), as in promot.c. Two special functions, the power of two and the reciprocal, and
 * few others: while an epilogue runs the tensor cores wait. e^-2u = infinity gives the right limit. */
#define MATMUL_GELU_2C 1.5957691216057308f /* 2 sqrt(2 / pi) */
#define MATMUL_GELU_CUBIC 0.044715f
#define MATMUL_LOG2E 1.4426950408889634f

static __device__ inline float matmul_reciprocal(float x)
{
#ifdef GPU_EMULATOR
    return 1 / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); /* within 1 ulp; 0 for infinity */
    return y;
#endif
}

static __device__ inline float matmul_gelu_gate(float a)
{
    const float minus_2u = a * fmaf(a * a, -MATMUL_LOG2E * MATMUL_GELU_2C * MATMUL_GELU_CUBIC,
                                    -MATMUL_LOG2E * MATMUL_GELU_2C); /* in units of log 2 */
    return matmul_reciprocal(1.0f + exp2_approx(minus_2u));
}

/* The MLP's middle on the way in. What backward will see of a is its bf16 rounding, so h is made from that. */
template <MatmulEpilogue E, bool WHOLE>
static __device__ inline void mlp_eight(const Product &p, size_t row, size_t column, int sequence, const Beside &beside,
                                        float v[8], float up[8])
{
    const MatmulOutput &c = p.c;
    const int n = columns_here<WHOLE>(p, column);
    bf16_t *a = c.out + row * c.stride + column;
    uint32_t word[4];
    pack_eight(word, v);
    unpack_eight(v, word);
    store_words<WHOLE>(a, word, n);
    if (E == GELU) {
        pack_eight(word, up);
        unpack_eight(up, word);
        store_words<WHOLE>(a + p.n, word, n);
    }
    if (sequence < 0) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (E == GELU)
            v[i] = v[i] * matmul_gelu_gate(v[i]) * up[i];
        else
            v[i] = v[i] < 0 ? 0 : v[i]; /* lets a NaN through */
    }
    drop_eight(v, c.rows, beside.kept);
    store_eight<WHOLE>(c.h + row * p.n + column, v, n);
}

/* And on the way back: v is dh. da0 = dh a1 gelu'(a0), da1 = dh gelu(a0); and h once more. */
template <MatmulEpilogue E, bool WHOLE>
static __device__ inline void mlp_backward_eight(const Product &p, size_t row, size_t column, const Beside &beside,
                                                 float v[8])
{
    const MatmulOutput &c = p.c;
    const int n = columns_here<WHOLE>(p, column);
    bf16_t *da = c.out + row * c.stride + column;
    float gate[8], up[8], h[8];
    drop_eight(v, c.rows, beside.kept);
    unpack_eight(gate, beside.in);
    if (E == GELU_BACKWARD) unpack_eight(up, beside.up);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float a = gate[i], dh = v[i];
        if (E == GELU_BACKWARD) {
            const float g = matmul_gelu_gate(a), gelu = a * g;
            const float slope = fmaf(a * a, 3.0f * MATMUL_GELU_2C * MATMUL_GELU_CUBIC, MATMUL_GELU_2C); /* 2 u' */
            h[i] = gelu * up[i];
            v[i] = dh * up[i] * fmaf(fmaf(-gelu, g, gelu), slope, g);
            up[i] = dh * gelu;
        } else {
            h[i] = a < 0 ? 0 : a;
            v[i] = a > 0 ? dh : 0;
        }
    }
    store_eight<WHOLE>(da, v, n);
    if (E == GELU_BACKWARD) store_eight<WHOLE>(da + p.n, up, n);
    if (!c.h) return;
    drop_eight(h, c.rows, beside.kept);
    store_eight<WHOLE>(c.h + row * p.n + column, h, n);
}

template <bool WHOLE>
static __device__ inline void residual_eight(const Product &p, size_t row, size_t column, const Beside &beside,
                                             float v[8])
{
    float x[8];
    unpack_eight(x, beside.in);
    drop_eight(v, p.c.rows, beside.kept);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += x[i];
    store_eight<WHOLE>(p.c.out + row * p.c.stride + column, v, columns_here<WHOLE>(p, column));
}

/* 8 neighbours of one row, the first at (row, column) of c, outside of which there is nothing to do. */
template <MatmulEpilogue E, bool WHOLE>
static __device__ inline void finish_eight(const Product &p, size_t row, size_t column, int sequence,
                                           const Beside &beside, float v[8], float up[8])
{
    if (row >= p.m || column >= p.n) return;
    if (E == GELU || E == RELU) mlp_eight<E, WHOLE>(p, row, column, sequence, beside, v, up);
    if (sequence < 0) return;
    if (E == RESIDUAL) residual_eight<WHOLE>(p, row, column, beside, v);
    if (E == GELU_BACKWARD || E == RELU_BACKWARD) mlp_backward_eight<E, WHOLE>(p, row, column, beside, v);
}

/* fp32 results leave as they lie in the accumulators. To add means to read all of them first. */
template <int COLUMNS, bool WHOLE>
static __device__ inline void store_sums(const Product &p, const ProductTile &place, float (&d)[COLUMNS / 2],
                                         size_t first_row, size_t first_column)
{
    const int lane = threadIdx.x % WARP;
    const size_t row = first_row + lane / 4, column = first_column + 2 * (lane % 4);
    float *c = p.c.sums + place.split * p.c.split + row * p.c.stride + column;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2 && p.c.accumulate; i += 2) {
        const size_t down = i % 4 * 4, right = i / 4 * 8;
        const float *from = c + down * p.c.stride + right;
        const bool here = row + down < p.m && column + right < p.n;
        if constexpr (WHOLE) {
            const float2 pair = here ? *(const float2 *)from : make_float2(0, 0);
            d[i] += pair.x;
            d[i + 1] += pair.y;
        } else {
            d[i] += here ? from[0] : 0;
            d[i + 1] += here && column + right + 1 < p.n ? from[1] : 0;
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 2) {
        const size_t down = i % 4 * 4, right = i / 4 * 8;
        float *to = c + down * p.c.stride + right;
        if (row + down >= p.m || column + right >= p.n) continue;
        if constexpr (WHOLE) {
            *(float2 *)to = make_float2(d[i], d[i + 1]);
        } else {
            to[0] = d[i];
            if (column + right + 1 < p.n) to[1] = d[i + 1];
        }
    }
}

/* Over four lanes, which all get the result. */
static __device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Of every row, its groups of words. A row's 64 columns are in four lanes, 16 in each. Nothing here waits for memory: the
 * logits are on their way to it meanwhile. */
template <int COLUMNS>
static __device__ inline void store_word_groups(const Product &p, float (&d)[COLUMNS / 2], size_t first_row,
                                                size_t first_column)
{
    static_assert(COLUMNS % WORD_GROUP == 0, "whole groups; and every strip begins with one");
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += WORD_GROUP / 2) {
        const uint32_t first = (uint32_t)first_column + 2 * i, column = first + 2 * (lane % 4);
        if (first + WORD_GROUP > p.n) { /* words that do not exist */
#pragma unroll
            for (int j = 0; j < WORD_GROUP / 2; j++)
                if (column + j / 4 * 8 + j % 2 >= p.n) d[i + j] = -INFINITY;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) { /* the rows g, then the rows g + 8 */
            const float *x = d + i + 2 * half; /* four registers apart, two by two */
            const size_t row = first_row + 8 * half + lane / 4;
            WordGroup group = {-INFINITY, 0};
#pragma unroll
            for (int j = 0; j < WORD_GROUP / 2; j += 4) group.max = fmaxf(group.max, fmaxf(x[j], x[j + 1]));
            group.max = quad_max(group.max);
            const float offset = word_offset(group.max);
#pragma unroll
            for (int j = 0; j < WORD_GROUP / 2; j += 4)
                group.sum += exp2_approx(fmaf(x[j], LOG2_E, -offset)) + exp2_approx(fmaf(x[j + 1], LOG2_E, -offset));
            group.sum = quad_sum(group.sum);
            if (lane % 4 == 0 && row < p.m && first < p.n)
                p.c.groups[row * word_groups(p.n) + first / WORD_GROUP] = group;
        }
    }
}

/* A bf16 result that is stored and nothing else is rounded first: half as many registers change places. */
template <int COLUMNS, bool WHOLE>
static __device__ inline void store_rounded(const Product &p, const ProductTile &place, const float (&d)[COLUMNS / 2],
                                            size_t first_row, size_t first_column)
{
    const MatmulOutput &c = p.c;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 16) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const size_t row = first_row + 8 * half + lane / 4, column = first_column + 2 * i + 8 * (lane % 4);
            uint32_t word[4];
#pragma unroll
            for (int j = 0; j < 4; j++) word[j] = pack_bf16x2(d[i + 4 * j + 2 * half], d[i + 4 * j + 2 * half + 1]);
            transpose_quad(word);
            if (row >= p.m || column >= p.n) continue;
            store_words<WHOLE>(c.out + place.layer * c.layer + row * c.stride + column, word,
                               columns_here<WHOLE>(p, column));
        }
    }
}

/* The sums d of a warp's strip, 16 rows and COLUMNS columns from (first_row, first_column) of c. A strip of GELU
 * holds COLUMNS / 2 columns of the gate, then the same ones of up. All lanes of the warp come here together. WHOLE:
 * c.vectors. */
template <MatmulEpilogue E, int COLUMNS, bool WHOLE>
static __device__ inline void finish_strip(const Product &p, const ProductTile &place, float (&d)[COLUMNS / 2],
                                           size_t first_row, size_t first_column)
{
    if constexpr (E == STORE_FP32) {
        store_sums<COLUMNS, WHOLE>(p, place, d, first_row, first_column);
    } else if constexpr (E == WORD_GROUPS) {
        store_sums<COLUMNS, WHOLE>(p, place, d, first_row, first_column);
        store_word_groups<COLUMNS>(p, d, first_row, first_column);
    } else if constexpr (E == STORE_BF16) {
        store_rounded<COLUMNS, WHOLE>(p, place, d, first_row, first_column);
    } else {
        constexpr int WIDTH = E == GELU ? COLUMNS / 2 : COLUMNS, BATCH = WIDTH < 128 ? WIDTH : 128;
        static_assert(WIDTH % 32 == 0 && WIDTH % BATCH == 0, "32 columns are exchanged at a time");
        const int lane = threadIdx.x % WARP;
        int sequence[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const size_t row = first_row + 8 * half + lane / 4;
            sequence[half] = row < p.m ? row_sequence(p.c.rows, row) : -1;
        }
#pragma unroll
        for (int i = 0; i < 2 * WIDTH; i += BATCH) { /* the rows g, then the rows g + 8 */
            const int half = i / WIDTH, begin = i % WIDTH;
            const size_t row = first_row + 8 * half + lane / 4, column = first_column + begin + 8 * (lane % 4);
            Beside beside[BATCH / 32];
#pragma unroll
            for (int j = 0; j < BATCH / 32; j++)
                beside[j] = load_beside<E, WHOLE>(p, row, column + 32 * j, sequence[half]);
#pragma unroll
            for (int j = 0; j < BATCH / 32; j++) {
                float v[8], up[8];
                gather_eight(v, d + (begin + 32 * j) / 2, half);
                if (E == GELU) gather_eight(up, d + (WIDTH + begin + 32 * j) / 2, half);
                finish_eight<E, WHOLE>(p, row, column + 32 * j, sequence[half], beside[j], v, up);
            }
        }
    }
}

/* ================================================================================================================
 * The choices, as functions of the shape alone */

/* Can the copy engine of Hopper read this operand? It wants rows and layers at multiples of 16 bytes. */
static inline bool matmul_aligned(const MatmulOperand *o, uint32_t layers)
{
    return (uintptr_t)o->data % 16 == 0 && o->stride % 8 == 0 && (layers == 1 || o->layer % 8 == 0);
}

static inline bool matmul_hopper_serves(const Product *p)
{
    return p->k > 0 && p->c.vectors && matmul_aligned(&p->a, p->depth_layers) &&
           matmul_aligned(&p->b, p->depth_layers * p->width_layers);
}

/* Into how many parts the depth of a weight's gradient [m, n] is cut: as many as give 128 tiles of 128 x 128, about one
 * for each multiprocessor of a large card, but none shorter than 512. */
static inline uint32_t depth_splits(uint32_t m, uint32_t n, uint32_t k)
{
    const uint32_t tiles = ceil_div<uint32_t>(m, 128) * ceil_div<uint32_t>(n, 128), wanted = 128 / tiles,
                   longest = k / 512;
    const uint32_t splits = wanted < longest ? wanted : longest, blocks = ceil_div<uint32_t>(k, K_STEP);
    return splits < 2 ? 1 : ceil_div<uint32_t>(blocks, ceil_div<uint32_t>(blocks, splits)); /* none of them empty */
}

/* One of the tiles a floor has, and how much longer it takes for a FLOP than the best one. */
struct MatmulTile {
    uint32_t rows, columns;
    float cost;
};

/* The number of the tile with which the product is done first, when `blocks` tiles are made at a time. The last one is
 * the smallest. It serves few rows in any case: then the time is that of reading b, whatever is computed. */
static inline int matmul_choose_tile(const Product *p, const MatmulTile *tiles, int n_tiles, uint32_t blocks)
{
    int best = 0;
    if (p->m <= tiles[n_tiles - 1].rows) return n_tiles - 1;
    double best_time = 0;
    for (int i = 0; i < n_tiles; i++) {
        const uint32_t columns = p->epilogue == GELU ? tiles[i].columns / 2 : tiles[i].columns;
        const double waves = ceil_div<uint32_t>(tile_count(*p, tiles[i].rows, columns), blocks);
        const double time = waves * tiles[i].rows * tiles[i].columns * tiles[i].cost;
        if (i == 0 || time < best_time) best = i, best_time = time;
    }
    return best;
}

void matmul_plain(Device *dev, const Product *product);  /* matmul.cu */
void matmul_hopper(Device *dev, const Product *product); /* matmul_hopper.cu */

#endif

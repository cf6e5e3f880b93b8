/* elementwise.cu: embedding, dropout, the residual stream, the middle of the MLP, scaling.
 *
 * All of this is one or two arithmetic operations for each number that comes from memory, so a kernel's floor is its
 * bytes at the speed of the memory. For mT5-XXL (D = 4096, F = 10240), an encoder batch of 39,168 rows, bf16, and
 * 4.3 TB/s:
 *
 *     embedding_forward          r 2, w 2 bytes for each element of [rows, D]      0.64 GB   0.15 ms
 *     embedding_backward         r 2 each, and r 4, w 4 for each target row        0.32 GB + 0.13 GB per 4096 targets
 *     dropout_forward            r 2, w 2                                          0.64 GB   0.15 ms
 *     residual_forward           r 2 + 2, w 2                                      0.96 GB   0.22 ms
 *     residual_backward          r 2, w 2                                          0.64 GB   0.15 ms
 *     mlp_activation_forward     r 4, w 2 for each element of [rows, F]            2.41 GB   0.56 ms
 *     mlp_activation_backward    r 4 + 2, w 4                                      4.01 GB   0.93 ms
 *
 * The gate of the gelu is the only arithmetic that could be slower than that: with one 2^x and one reciprocal from the
 * special function units (16 per clock and multiprocessor) its 401 million elements need about 0.22 ms, in the shadow
 * of the memory. The libraries' exact exp and division would not be. */
#include "bandwidth.cuh"

/* ----------------------------------------------------------------------------------------------------------------
 * Embedding: out[r] = the upper plane of table[ids[r]]; a negative id -1-p is row p of the prompts. A block copies
 * EMBEDDING_ROWS rows of at most 1024 columns; a thread has all its loads under way before it stores. */
enum { EMBEDDING_ROWS = 4, EMBEDDING_COLUMNS = 1024, EMBEDDING_THREADS = EMBEDDING_COLUMNS / 8 };

template <bool WHOLE>
static __global__ void embedding_forward_kernel(bf16_t *out, const bf16_t *table, const bf16_t *prompts,
                                                const int32_t *ids, size_t rows, size_t width, uint32_t across)
{
    const size_t first = (size_t)(blockIdx.x / across) * EMBEDDING_ROWS;
    const size_t column = blockIdx.x % across * EMBEDDING_COLUMNS + threadIdx.x * 8;
    if (column >= width) return;
    int32_t id[EMBEDDING_ROWS];
    uint4 eight[EMBEDDING_ROWS];
#pragma unroll
    for (unsigned k = 0; k < EMBEDDING_ROWS; k++) id[k] = first + k < rows ? ids[first + k] : ids[first];
#pragma unroll
    for (unsigned k = 0; k < EMBEDDING_ROWS; k++) { /* beyond the last row: the first one's columns once more */
        const bf16_t *from = id[k] >= 0 ? table + (size_t)id[k] * width : prompts + (size_t)(-1 - id[k]) * width;
        eight[k] = load_eight<WHOLE>(from + column, width - column);
    }
#pragma unroll
    for (unsigned k = 0; k < EMBEDDING_ROWS; k++)
        if (first + k < rows) {
            float x[8]; /* to fp32 and back is exact */
            unpack_eight(x, eight[k]);
            store_eight<WHOLE>(out + (first + k) * width + column, width - column, x);
        }
}

extern "C" void embedding_forward(Device *dev, act_t *out, const weight_t *table, const weight_t *prompts,
                                  const int32_t *ids, size_t rows, size_t width)
{
    const uint32_t across = blocks_for(width, EMBEDDING_COLUMNS);
    table = weights_here(dev, table);
    const bool whole = whole_vectors(8, width, out, table, prompts);
    launch(dev, whole ? embedding_forward_kernel<true> : embedding_forward_kernel<false>,
           dim3(blocks_for(rows, EMBEDDING_ROWS) * across),
           dim3(threads_for(ceil_div<size_t>(width, 8), EMBEDDING_THREADS)), 0, out, table, prompts, ids, rows, width,
           across);
}

/* dtable[t] += the gradient rows listed for t, in the list's order, in fp32. A block owns some columns of one target, a
 * thread four of them (16 bytes of dtable, 8 of each gradient row); it asks for GATHERED rows before it adds the first.
 * Most targets have one or two rows. The rare ones with thousands are one block's work, and low ids, the frequent
 * words, come first, while there is other work to run beside them. */
enum { GATHER_THREADS = 256, GATHER_COLUMNS = GATHER_THREADS * 4, GATHERED = 8 };

template <bool WHOLE>
static __global__ void embedding_backward_kernel(float *dtable, const bf16_t *dout, const int32_t *first,
                                                 const int32_t *source, size_t width, uint32_t across)
{
    const size_t target = blockIdx.x / across;
    const size_t column = blockIdx.x % across * GATHER_COLUMNS + threadIdx.x * 4;
    if (column >= width) return;
    const size_t n = width - column;
    const int32_t last = first[target + 1];
    float *to = dtable + target * width + column;
    float sum[4];
    load_four<WHOLE>(sum, to, n, 0);
    for (int32_t i = first[target]; i < last; i += GATHERED) {
        float row[GATHERED][4];
#pragma unroll
        for (int k = 0; k < GATHERED; k++)
            if (i + k < last) load_four<WHOLE>(row[k], dout + (size_t)source[i + k] * width + column, n);
#pragma unroll
        for (int k = 0; k < GATHERED; k++)
            if (i + k < last)
                for (int c = 0; c < 4; c++) sum[c] += row[k][c];
    }
    store_four<WHOLE>(to, n, sum);
}

extern "C" void embedding_backward(Device *dev, stat_t *dtable, const act_t *dout, const int32_t *first,
                                   const int32_t *source, size_t targets, size_t width)
{
    const uint32_t across = blocks_for(width, GATHER_COLUMNS);
    launch(dev,
           whole_vectors(8, width, dtable, dout) ? embedding_backward_kernel<true> : embedding_backward_kernel<false>,
           dim3((unsigned)targets * across), dim3(threads_for(ceil_div<size_t>(width, 4), GATHER_THREADS)), 0, dtable,
           dout, first, source, width, across);
}

/* ----------------------------------------------------------------------------------------------------------------
 * Everything with dropout. The work is cut into pieces: PIECE_ROWS rows of one sequence, PIECE_COLUMNS columns. A block
 * does a piece, a thread eight of its columns: two Philox calls, whose factors serve all rows of the piece when the
 * mask is shared. Rows go TOGETHER: all their loads are under way before the first is worked on, which the compiler
 * could not arrange itself, since `out` may be `x`.
 *
 * An operation is a type that says what is loaded for eight columns of a row, and what is made of it. */
enum { PIECE_ROWS = 16, PIECE_COLUMNS = 1024, PIECE_THREADS = PIECE_COLUMNS / 8, TOGETHER = 4 };

struct Operands {
    bf16_t *out;
    const bf16_t *a, *b;
    size_t width; /* of the rows that dropout sees */
};

/* Where eight columns are: the row of the packed matrix, the first column, and how many there are from there on. */
struct ColumnPlace {
    size_t row, column, left;
};

__device__ __forceinline__ size_t offset_of(const Operands &o, const ColumnPlace &at)
{
    return at.row * o.width + at.column;
}

/* The same in a matrix that holds gate and up side by side; up is o.width further. */
__device__ __forceinline__ size_t pair_offset_of(const Operands &o, const ColumnPlace &at)
{
    return at.row * 2 * o.width + at.column;
}

/* out = dropout(a) */
struct ApplyDropout {
    uint4 a;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        a = load_eight<WHOLE>(o.a + offset_of(o, at), at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float x[8];
        unpack_eight(x, a);
        for (int i = 0; i < 8; i++) x[i] *= factor[i];
        store_eight<WHOLE>(o.out + offset_of(o, at), at.left, x);
    }
};

/* out = a + dropout(b) */
struct AddResidual {
    uint4 a, b;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        a = load_eight<WHOLE>(o.a + offset_of(o, at), at.left);
        b = load_eight<WHOLE>(o.b + offset_of(o, at), at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float x[8], branch[8];
        unpack_eight(x, a);
        unpack_eight(branch, b);
        for (int i = 0; i < 8; i++) x[i] = fmaf(branch[i], factor[i], x[i]);
        store_eight<WHOLE>(o.out + offset_of(o, at), at.left, x);
    }
};

/* gelu(a) = a g with g = (1 + tanh u) / 2 = 1 / (1 + e^-2u), u = sqrt(2/pi) (a + 0.044715 a^3). The approximate 2^x and
 * reciprocal err by about 2^-21, far below bf16's 2^-9. Where 2^x is infinite, g is 0. */
__device__ __forceinline__ float gelu_gate(float a)
{
    const float two_u = 1.5957691216057308f * a * fmaf(0.044715f, a * a, 1.0f); /* 2 sqrt(2/pi) … */
    return __fdividef(1.0f, 1.0f + exp2_approx(-1.4426950408889634f * two_u));
}

/* h = gelu(a0) a1, dropped. a is [rows, 2F]: gate a0 and up a1. */
struct GatedGelu {
    uint4 gate, up;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        gate = load_eight<WHOLE>(o.a + pair_offset_of(o, at), at.left);
        up = load_eight<WHOLE>(o.a + pair_offset_of(o, at) + o.width, at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float a0[8], a1[8];
        unpack_eight(a0, gate);
        unpack_eight(a1, up);
        for (int i = 0; i < 8; i++) a0[i] = a0[i] * gelu_gate(a0[i]) * a1[i] * factor[i];
        store_eight<WHOLE>(o.out + offset_of(o, at), at.left, a0);
    }
};

/* da0 = d a1 gelu'(a0), da1 = d gelu(a0) with d = dropout(dh) and gelu'(a) = g + a g (1 - g) 2 u'(a). Here a is dh, b
 * is the forward pass's a. */
struct GatedGeluBackward {
    uint4 dh, gate, up;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        dh = load_eight<WHOLE>(o.a + offset_of(o, at), at.left);
        gate = load_eight<WHOLE>(o.b + pair_offset_of(o, at), at.left);
        up = load_eight<WHOLE>(o.b + pair_offset_of(o, at) + o.width, at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float a0[8], a1[8], d[8];
        unpack_eight(a0, gate);
        unpack_eight(a1, up);
        unpack_eight(d, dh);
        for (int i = 0; i < 8; i++) {
            const float a = a0[i], g = gelu_gate(a), along = d[i] * factor[i];
            const float slope = 1.5957691216057308f * fmaf(3 * 0.044715f, a * a, 1.0f); /* 2 u'(a) */
            a0[i] = along * a1[i] * fmaf(a * g * (1 - g), slope, g);
            a1[i] = along * a * g;
        }
        store_eight<WHOLE>(o.out + pair_offset_of(o, at), at.left, a0);
        store_eight<WHOLE>(o.out + pair_offset_of(o, at) + o.width, at.left, a1);
    }
};

/* h = max(a, 0), dropped; "a < 0 ? 0 : a" lets a NaN through, to be seen. */
struct Relu {
    uint4 a;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        a = load_eight<WHOLE>(o.a + offset_of(o, at), at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float x[8];
        unpack_eight(x, a);
        for (int i = 0; i < 8; i++) x[i] = (x[i] < 0 ? 0 : x[i]) * factor[i];
        store_eight<WHOLE>(o.out + offset_of(o, at), at.left, x);
    }
};

/* da = dropout(dh) where a > 0. As above, a is dh, and b the forward pass's a. */
struct ReluBackward {
    uint4 dh, a;
    template <bool WHOLE> __device__ __forceinline__ void load(const Operands &o, const ColumnPlace &at)
    {
        dh = load_eight<WHOLE>(o.a + offset_of(o, at), at.left);
        a = load_eight<WHOLE>(o.b + offset_of(o, at), at.left);
    }
    template <bool WHOLE>
    __device__ __forceinline__ void finish(const Operands &o, const ColumnPlace &at, const float factor[8]) const
    {
        float d[8], x[8];
        unpack_eight(d, dh);
        unpack_eight(x, a);
        for (int i = 0; i < 8; i++) d[i] = x[i] > 0 ? d[i] * factor[i] : 0;
        store_eight<WHOLE>(o.out + offset_of(o, at), at.left, d);
    }
};

template <typename Operation, bool WHOLE>
static __global__ void __launch_bounds__(PIECE_THREADS)
    pieces_kernel(Operands o, Sequences seqs, Dropout dropout, uint32_t down, uint32_t across)
{
    const size_t b = blockIdx.x / (down * across);
    const uint32_t length = (uint32_t)seqs.length[b], first = (uint32_t)(blockIdx.x / across % down * PIECE_ROWS);
    const uint32_t last = min(first + PIECE_ROWS, length), example = (uint32_t)(seqs.first_example + b);
    const size_t column = blockIdx.x % across * PIECE_COLUMNS + threadIdx.x * 8;
    if (first >= length || column >= o.width) return;
    const bool each_row = !dropout.shared && dropout.rate > 0;
    const size_t start = (size_t)seqs.start[b];
    float factor[8];
    for (uint32_t row = first; row < last; row += TOGETHER) {
        Operation operation[TOGETHER];
#pragma unroll
        for (uint32_t k = 0; k < TOGETHER; k++)
            if (row + k < last)
                operation[k].template load<WHOLE>(o, ColumnPlace{start + row + k, column, o.width - column});
#pragma unroll
        for (uint32_t k = 0; k < TOGETHER; k++)
            if (row + k < last) {
                if (each_row || row + k == first) {
                    dropout_four(factor, dropout, dropout.site, example, row + k, (uint32_t)(column / 4));
                    dropout_four(factor + 4, dropout, dropout.site, example, row + k, (uint32_t)(column / 4 + 1));
                }
                operation[k].template finish<WHOLE>(o, ColumnPlace{start + row + k, column, o.width - column}, factor);
            }
    }
}

template <typename Operation>
static void for_each_piece(Device *dev, const Operands &o, const Sequences *seqs, const Dropout *dropout)
{
    const uint32_t down = blocks_for(seqs->longest, PIECE_ROWS), across = blocks_for(o.width, PIECE_COLUMNS);
    const bool whole = whole_vectors(8, o.width, o.out, o.a, o.b);
    launch(dev, whole ? pieces_kernel<Operation, true> : pieces_kernel<Operation, false>,
           dim3((unsigned)seqs->count * down * across), dim3(threads_for(ceil_div<size_t>(o.width, 8), PIECE_THREADS)),
           0, o, *seqs, *dropout, down, across);
}

extern "C" void dropout_forward(Device *dev, act_t *x, const Sequences *seqs, size_t width, const Dropout *dropout)
{
    if (dropout->rate > 0) for_each_piece<ApplyDropout>(dev, Operands{x, x, nullptr, width}, seqs, dropout);
}

extern "C" void residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *branch, const Sequences *seqs,
                                 size_t width, const Dropout *dropout)
{
    for_each_piece<AddResidual>(dev, Operands{out, x, branch, width}, seqs, dropout);
}

/* dbranch = dropout(dout); dx = dout needs no work. */
extern "C" void residual_backward(Device *dev, act_t *dbranch, const act_t *dout, const Sequences *seqs, size_t width,
                                  const Dropout *dropout)
{
    for_each_piece<ApplyDropout>(dev, Operands{dbranch, dout, nullptr, width}, seqs, dropout);
}

extern "C" void mlp_activation_forward(Device *dev, MlpKind kind, act_t *h, const act_t *a, const Sequences *seqs,
                                       size_t d_ff, const Dropout *dropout)
{
    const Operands o = {h, a, nullptr, d_ff};
    if (kind == MLP_RELU)
        for_each_piece<Relu>(dev, o, seqs, dropout);
    else
        for_each_piece<GatedGelu>(dev, o, seqs, dropout);
}

extern "C" void mlp_activation_backward(Device *dev, MlpKind kind, act_t *da, const act_t *dh, const act_t *a,
                                        const Sequences *seqs, size_t d_ff, const Dropout *dropout)
{
    const Operands o = {da, dh, a, d_ff};
    if (kind == MLP_RELU)
        for_each_piece<ReluBackward>(dev, o, seqs, dropout);
    else
        for_each_piece<GatedGeluBackward>(dev, o, seqs, dropout);
}

/* ----------------------------------------------------------------------------------------------------------------
 * x *= factor. A thread has SCALED vectors under way, a block's width apart. */
enum { SCALE_THREADS = 256, SCALED = 4 };

template <bool WHOLE> static __global__ void scale_forward_kernel(bf16_t *x, float factor, size_t n)
{
    const size_t first = ((size_t)blockIdx.x * SCALED * SCALE_THREADS + threadIdx.x) * 8;
    uint4 eight[SCALED];
#pragma unroll
    for (size_t k = 0; k < SCALED; k++) {
        const size_t at = first + k * SCALE_THREADS * 8;
        if (at < n) eight[k] = load_eight<WHOLE>(x + at, n - at);
    }
#pragma unroll
    for (size_t k = 0; k < SCALED; k++) {
        const size_t at = first + k * SCALE_THREADS * 8;
        if (at >= n) break;
        float v[8];
        unpack_eight(v, eight[k]);
        for (int i = 0; i < 8; i++) v[i] *= factor;
        store_eight<WHOLE>(x + at, n - at, v);
    }
}

extern "C" void scale_forward(Device *dev, act_t *x, float factor, size_t n)
{
    launch(dev, whole_vectors(8, n, x) ? scale_forward_kernel<true> : scale_forward_kernel<false>,
           dim3(blocks_for(n, SCALE_THREADS * SCALED * 8)), dim3(SCALE_THREADS), 0, x, factor, n);
}

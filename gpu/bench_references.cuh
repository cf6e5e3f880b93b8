/* bench_references.cuh: what a number of a result must be, computed in the plainest way by one warp. It shares nothing
 * with the kernels that are checked but the formulas of promot.c and dropout's random bits.
 *
 * A reference is called by all lanes of a warp for a place (row, column) and returns what is expected there and how far
 * off rounding may bring it. Results in bf16, which has 8 bits, are off by 2^-8 of themselves at most; twice that is
 * allowed, for the reference is fp32 arithmetic too. What kernels round inside is added where it happens. */
#ifndef PROMOT_BENCH_REFERENCES_CUH
#define PROMOT_BENCH_REFERENCES_CUH

#include "bench.cuh"

struct Expected {
    float value, slack;
};

static __device__ __forceinline__ Expected rounded(float value, float slack = 0)
{
    return {value, fabsf(value) / 128 + slack};
}

/* ================================================================================================================
 * Checking */
struct Result {
    const bf16_t *acts; /* one of the two */
    const float *stats;
    size_t stride;
};

static Result result_of(const act_t *acts, size_t stride)
{
    return {acts, nullptr, stride};
}

static Result result_of(const stat_t *stats, size_t stride)
{
    return {nullptr, stats, stride};
}

static __device__ __forceinline__ uint32_t mixed(uint32_t x) /* the finaliser of MurmurHash3 */
{
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

/* The four corners, then places anywhere. */
template <typename Reference>
static __global__ void check_kernel(float *error, Reference reference, Result result, size_t rows, size_t columns)
{
    const uint32_t i = blockIdx.x;
    const size_t row = i < 4 ? i % 2 * (rows - 1) : mixed(2 * i) % rows,
                 column = i < 4 ? i / 2 * (columns - 1) : mixed(2 * i + 1) % columns, at = row * result.stride + column;
    const Expected e = reference(row, column);
    const float got = result.acts ? bf16_to_float(result.acts[at]) : result.stats[at];
    if (threadIdx.x == 0) error[i] = got == e.value ? 0 : fabsf(got - e.value) / e.slack;
}

/* The worst error of so many samples, as a share of what is allowed; infinite where a result is no number. */
template <typename Reference>
static double check(Bench *b, const Reference &reference, Result result, size_t rows, size_t columns,
                    unsigned samples = SAMPLES)
{
    float error[SAMPLES];
    double worst = 0;
    launch(b->dev, check_kernel<Reference>, dim3(samples), dim3(WARP), 0, b->errors, reference, result, rows, columns);
    stats_download(b->dev, error, b->errors, samples);
    for (unsigned i = 0; i < samples; i++) worst = error[i] >= 0 ? fmax(worst, error[i]) : INFINITY;
    return worst;
}

/* ================================================================================================================
 * Products
 *
 * The sum over k of a[row, k] b[k, column], where k runs over layers of `inner` numbers. The hardware adds fp32 numbers
 * of the size of the partial sums and truncates: 2^-16 of the sum of magnitudes is far more than that comes to, and far
 * less than one missing block of 64 terms. */
struct ProductReference {
    const bf16_t *a, *b;
    size_t a_row, a_k, a_layer, b_column, b_k, b_layer, inner, layers;
    bool fp32; /* the result is not rounded */

    __device__ Expected operator()(size_t row, size_t column) const
    {
        float sum = 0, magnitude = 0;
        for (size_t k = threadIdx.x; k < inner * layers; k += WARP) {
            const size_t layer = k / inner, within = k % inner;
            const float term = bf16_to_float(a[row * a_row + within * a_k + layer * a_layer]) *
                               bf16_to_float(b[column * b_column + within * b_k + layer * b_layer]);
            sum += term;
            magnitude += fabsf(term);
        }
        sum = warp_sum(sum);
        magnitude = warp_sum(magnitude) * 0x1p-16f;
        return fp32 ? Expected{sum, magnitude} : rounded(sum, magnitude);
    }
};

/* A fused kernel beside the same in two steps, whose numbers were rounded once more between them. `size` is that of the
 * numbers that were rounded. */
struct SameReference {
    const bf16_t *data;
    size_t stride;
    float size;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const float value = bf16_to_float(data[row * stride + column]);
        return {value, fabsf(value) / 64 + size / 64};
    }
};

/* ================================================================================================================
 * One number at a time */

/* The factor of dropout at a place, as promot.h defines it. */
static __device__ __forceinline__ float dropout_one(const Dropout &dropout, const Sequences &seqs, size_t row,
                                                    size_t column)
{
    float factor[4] = {1, 1, 1, 1};
    const size_t sequence = sequence_of_row(seqs.start, seqs.count, row);
    if (dropout.rate > 0)
        dropout_four(factor, dropout, dropout.site, (uint32_t)(seqs.first_example + sequence),
                     (uint32_t)(row - (size_t)seqs.start[sequence]), (uint32_t)(column / 4));
    return factor[column % 4];
}

/* x + dropout(branch); without x, or without a branch's dropout, what remains of it. */
struct ResidualReference {
    const bf16_t *x, *branch;
    Sequences seqs;
    Dropout dropout;
    size_t width;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const size_t at = row * width + column;
        return rounded((x ? bf16_to_float(x[at]) : 0) +
                       dropout_one(dropout, seqs, row, column) * bf16_to_float(branch[at]));
    }
};

struct NormReference {
    const bf16_t *x, *scale;
    size_t width;

    __device__ float inverse(size_t row) const
    {
        float sum = 0;
        for (size_t c = threadIdx.x; c < width; c += WARP) {
            const float value = bf16_to_float(x[row * width + c]);
            sum += value * value;
        }
        return rsqrtf(warp_sum(sum) / (float)width + 1e-6f);
    }

    __device__ Expected operator()(size_t row, size_t column) const
    {
        return rounded(bf16_to_float(scale[column]) * bf16_to_float(x[row * width + column]) * inverse(row));
    }
};

/* With r = rstd and s = scale dy: dx = r (s - x r^2 mean(s x)), added to 0. */
struct NormBackwardReference {
    NormReference forward;
    const bf16_t *dy;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const size_t width = forward.width;
        const bf16_t *x = forward.x + row * width, *dy_row = dy + row * width;
        const float r = forward.inverse(row);
        float sum = 0;
        for (size_t c = threadIdx.x; c < width; c += WARP)
            sum += bf16_to_float(forward.scale[c]) * bf16_to_float(dy_row[c]) * bf16_to_float(x[c]);
        const float mean = warp_sum(sum) / (float)width;
        const float s = bf16_to_float(forward.scale[column]) * bf16_to_float(dy_row[column]);
        return rounded(r * (s - bf16_to_float(x[column]) * r * r * mean), 1e-5f);
    }
};

/* gelu_tanh of the gate and its derivative. The card's tanh is off by 2^-11. */
struct GeluReference {
    const bf16_t *a, *dh; /* dh NULL: the forward pass */
    Sequences seqs;
    Dropout dropout;
    size_t d_ff;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const size_t unit = column % d_ff;
        const float gate = bf16_to_float(a[row * 2 * d_ff + unit]), up = bf16_to_float(a[row * 2 * d_ff + d_ff + unit]);
        const float c = 0.7978845608f, t = tanhf(c * (gate + 0.044715f * gate * gate * gate));
        const float keep = dropout_one(dropout, seqs, row, unit), gelu = 0.5f * gate * (1 + t);
        if (!dh) return rounded(keep * gelu * up, fabsf(gate * up) * 0x1p-10f);
        const float g = keep * bf16_to_float(dh[row * d_ff + unit]);
        const float slope = 0.5f * (1 + t) + 0.5f * gate * (1 - t * t) * c * (1 + 3 * 0.044715f * gate * gate);
        return rounded(g * (column < d_ff ? slope * up : gelu), fabsf(g) * (1 + fabsf(up)) * 0x1p-8f);
    }
};

struct EmbeddingReference {
    const bf16_t *table;
    const int32_t *ids;
    size_t width;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        return {bf16_to_float(table[(size_t)ids[row] * width + column]), 0x1p-20f};
    }
};

struct EmbeddingBackwardReference {
    const bf16_t *dout;
    const int32_t *first, *source;
    size_t width;

    __device__ Expected operator()(size_t target, size_t column) const
    {
        float sum = 0;
        for (int32_t i = first[target]; i < first[target + 1]; i++)
            sum += bf16_to_float(dout[(size_t)source[i] * width + column]);
        return {sum, 1e-5f + 1e-5f * fabsf(sum)};
    }
};

/* ================================================================================================================
 * The vocabulary */

/* log of the sum of exponentials of a row of logits. */
static __device__ float log_sum(const float *logits, size_t vocabulary)
{
    float most = -INFINITY, sum = 0;
    for (size_t v = threadIdx.x; v < vocabulary; v += WARP) most = fmaxf(most, logits[v]);
    most = warp_max(most);
    for (size_t v = threadIdx.x; v < vocabulary; v += WARP) sum += expf(logits[v] - most);
    return most + logf(warp_sum(sum));
}

/* The gradient of T5X's loss, d = scale ((1 + 2 z logZ) p - smoothed target). */
struct LossGradientReference {
    const float *logits;
    const int32_t *targets;
    size_t vocabulary;
    LossSettings settings;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const float *x = logits + row * vocabulary;
        const float z = log_sum(x, vocabulary), p = expf(x[column] - z),
                    other = settings.label_smoothing / (float)(vocabulary - 1);
        const float target = column == (size_t)targets[row] ? 1 - settings.label_smoothing : other;
        return rounded(settings.scale * ((1 + 2 * settings.z_loss * z) * p - target), 1e-4f * p + 1e-4f * target);
    }
};

/* Place j among the best words of a row: its logarithm, when exactly j words are more probable. */
struct BestWordReference {
    const float *logits;
    const int32_t *word;
    size_t vocabulary, k;

    __device__ Expected operator()(size_t row, size_t place) const
    {
        const float *x = logits + row * vocabulary, mine = x[word[row * k + place]];
        float better = 0;
        for (size_t v = threadIdx.x; v < vocabulary; v += WARP) better += x[v] > mine;
        const float value = mine - log_sum(x, vocabulary);
        return {warp_sum(better) <= (float)place ? value : NAN, 1e-5f * (1 + fabsf(value))};
    }
};

/* ================================================================================================================
 * Adafactor: a column's moment after one step from zero, alpha times the mean of its squared gradients. */
struct ColumnMomentReference {
    const float *g;
    size_t n, columns;
    float alpha_over_rows;

    __device__ Expected operator()(size_t, size_t column) const
    {
        float sum = 0;
        for (size_t k = threadIdx.x; k < n; k += WARP) {
            const float x = g[k * columns + column];
            sum += x * x;
        }
        sum = warp_sum(sum) * alpha_over_rows;
        return {sum, 1e-4f * sum};
    }
};

/* ================================================================================================================
 * Attention
 *
 * Everything that an element of a result needs is one query's or one key's scores, O(length) of them, each lane its
 * share. A score is summed in fp32; kernels round P and dS to bf16 before they multiply, 2^-8 of each term. */
struct AttentionReference {
    Attention at;
    const bf16_t *dout, *out; /* of the backward pass */
    const float *logsumexp;

    struct Place {
        size_t sequence, query, key, head; /* rows of the packed matrices */
    };

    __device__ size_t head_of(size_t column) const
    {
        return column / at.d_kv;
    }

    __device__ float dot(const bf16_t *x, const bf16_t *y) const
    {
        float sum = 0;
        for (size_t c = 0; c < at.d_kv; c++) sum += bf16_to_float(x[c]) * bf16_to_float(y[c]);
        return sum;
    }

    __device__ long distance(const Place &p) const
    {
        return (long)(p.key - (size_t)at.keys.start[p.sequence]) -
               (long)(p.query - (size_t)at.queries.start[p.sequence]);
    }

    __device__ bool visible(const Place &p) const
    {
        return !at.causal || distance(p) <= 0;
    }

    __device__ float score(const Place &p) const
    {
        const float product =
            dot(at.q + p.query * at.q_stride + p.head * at.d_kv, at.k + p.key * at.kv_stride + p.head * at.d_kv);
        if (!at.bias_table) return product;
        return product + bf16_to_float(at.bias_table[(size_t)at.bucket[distance(p)] * at.heads + p.head]);
    }

    __device__ float keep(const Place &p) const
    {
        float factor[4] = {1, 1, 1, 1};
        const uint32_t key = (uint32_t)(p.key - (size_t)at.keys.start[p.sequence]);
        const uint32_t query = (uint32_t)(p.query - (size_t)at.queries.start[p.sequence]);
        if (at.dropout.rate > 0)
            dropout_four(factor, at.dropout, at.dropout.site + (uint32_t)p.head,
                         (uint32_t)(at.queries.first_example + p.sequence), query, key / 4);
        return factor[key % 4];
    }

    __device__ float probability(const Place &p) const
    {
        return expf(score(p) - logsumexp[p.head * at.queries.rows + p.query]);
    }

    /* dS = P (keep dO · v - dO · out). */
    __device__ float dscore(const Place &p) const
    {
        const size_t width = at.heads * at.d_kv, q = p.query * width + p.head * at.d_kv;
        const float dp = keep(p) * dot(dout + q, at.v + p.key * at.kv_stride + p.head * at.d_kv);
        return probability(p) * (dp - dot(dout + q, out + q));
    }
};

/* out: a softmax whose maximum grows as the lanes go on, put together at the end. */
struct AttentionForwardReference : AttentionReference {
    __device__ Expected operator()(size_t row, size_t column) const
    {
        const size_t sequence = sequence_of_row(at.queries.start, at.queries.count, row);
        const size_t first = (size_t)at.keys.start[sequence], end = first + (size_t)at.keys.length[sequence];
        float most = -1e30f, total = 0, sum = 0, magnitude = 0;
        for (size_t key = first + threadIdx.x; key < end; key += WARP) {
            const Place p = {sequence, row, key, head_of(column)};
            if (!visible(p)) continue;
            const float s = score(p), v = keep(p) * bf16_to_float(at.v[key * at.kv_stride + column]);
            const float higher = fmaxf(most, s), shrink = expf(most - higher), e = expf(s - higher);
            total = total * shrink + e;
            sum = sum * shrink + e * v;
            magnitude = magnitude * shrink + e * fabsf(v);
            most = higher;
        }
        const float shrink = expf(most - warp_max(most));
        total = warp_sum(total * shrink);
        return rounded(warp_sum(sum * shrink) / total, warp_sum(magnitude * shrink) / total / 128);
    }
};

/* dq [query] = sum over keys of dS k; dk [key] = sum over queries of dS q; dv [key] = sum over queries of P keep dO. */
enum AttentionGradient { GRADIENT_Q, GRADIENT_K, GRADIENT_V };

struct AttentionBackwardReference : AttentionReference {
    AttentionGradient gradient;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const bool of_query = gradient == GRADIENT_Q;
        const Sequences &own = of_query ? at.queries : at.keys, &others = of_query ? at.keys : at.queries;
        const size_t sequence = sequence_of_row(own.start, own.count, row), width = at.heads * at.d_kv;
        const size_t first = (size_t)others.start[sequence], end = first + (size_t)others.length[sequence];
        float sum = 0, magnitude = 0;
        for (size_t other = first + threadIdx.x; other < end; other += WARP) {
            const Place p = {sequence, of_query ? row : other, of_query ? other : row, head_of(column)};
            if (!visible(p)) continue;
            const float factor = gradient == GRADIENT_V   ? bf16_to_float(dout[other * width + column])
                                 : gradient == GRADIENT_K ? bf16_to_float(at.q[other * at.q_stride + column])
                                                          : bf16_to_float(at.k[other * at.kv_stride + column]);
            const float term = factor * (gradient == GRADIENT_V ? probability(p) * keep(p) : dscore(p));
            sum += term;
            magnitude += fabsf(term);
        }
        return rounded(warp_sum(sum), warp_sum(magnitude) / 128 + 1e-5f); /* dP - D may cancel to nothing */
    }
};

/* dbias [bucket, head]: the dS of all pairs whose distance has this bucket. There are up to millions of them, of either
 * sign, each rounded to bf16 on its own: 2^-8 of the root of the sum of their squares, four times over, is allowed. */
struct AttentionBiasReference : AttentionReference {
    __device__ Expected operator()(size_t bucket, size_t head) const
    {
        float sum = 0, squares = 0;
        for (size_t b = 0; b < at.queries.count; b++) {
            const size_t queries = (size_t)at.queries.length[b], keys = (size_t)at.keys.length[b];
            for (size_t pair = threadIdx.x; pair < queries * keys; pair += WARP) {
                const Place p = {b, (size_t)at.queries.start[b] + pair / keys, (size_t)at.keys.start[b] + pair % keys,
                                 head};
                if ((size_t)at.bucket[distance(p)] != bucket || !visible(p)) continue;
                const float ds = dscore(p);
                sum += ds;
                squares += ds * ds;
            }
        }
        sum = warp_sum(sum);
        return rounded(sum, 1e-6f + sqrtf(warp_sum(squares)) / 64);
    }
};

/* One step of decoding: row r's query is its own token's, at step steps - 1; its key of step t belongs to an ancestor. */
struct CachedAttentionReference {
    const bf16_t *cache;
    const int32_t *ancestors;
    const bf16_t *bias_table;
    const int32_t *bucket;
    size_t rows, steps, heads, d_kv;

    __device__ Expected operator()(size_t row, size_t column) const
    {
        const size_t width = heads * d_kv, head = column / d_kv;
        const bf16_t *q = cache + ((steps - 1) * rows + row) * 3 * width + head * d_kv;
        float total = 0, sum = 0, magnitude = 0; /* scores are about 1: no maximum is needed */
        for (size_t t = threadIdx.x; t < steps; t += WARP) {
            const bf16_t *k = cache + (t * rows + (size_t)ancestors[row * steps + t]) * 3 * width + width + head * d_kv;
            float score = bf16_to_float(bias_table[(size_t)bucket[(long)t - (long)steps + 1] * heads + head]);
            for (size_t c = 0; c < d_kv; c++) score += bf16_to_float(q[c]) * bf16_to_float(k[c]);
            const float e = expf(score), term = e * bf16_to_float(k[width + column % d_kv]);
            total += e;
            sum += term;
            magnitude += fabsf(term);
        }
        total = warp_sum(total);
        return rounded(warp_sum(sum) / total, warp_sum(magnitude) / total / 128);
    }
};

#endif

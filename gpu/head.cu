/* head.cu: the loss over the vocabulary and its gradient, and the most probable words.
 *
 * The head's product leaves fp32 logits [rows, V]. For V = 250,112 a row is 1 MB, far more than a block can hold, and
 * there may be few rows. So a row is cut into parts of PART logits, one block each, that fit into the block's
 * registers: maximum, sum of exponentials and plain sum of a part come from one reading, without the rescaling that a
 * running maximum would need. A warp for each row then puts the parts together, in an order that follows from V, and
 * for the gradient the blocks read their parts once more:
 *
 *     softmax_cross_entropy    r 4, r 4, w 2 bytes for each logit      10.2 GB for 4096 rows    2.4 ms at 4.3 TB/s
 *     without the gradient     r 4                                      4.1 GB                  1.0 ms
 *
 * The most probable words are another matter: what they need of a row comes with the product (head.cuh), 8 bytes for each
 * 64 logits, 8 MB for 256 rows.
 *
 * (Keeping a row in the shared memory of a cluster of blocks would save the second reading, 40 % of the bytes and 0.05
 * % of a step, at the price of a Hopper-only kernel.)
 *
 * Exponentials have base 2: e^(x - max) = 2^(x log2 e - m), m = max log2 e, is one multiply-add and one instruction of
 * the special function unit. m is a rounded number, but the same one everywhere, so its rounding cancels out of p. */
#include "bandwidth.cuh"
#include "head.cuh"

enum { PART_THREADS = 256, PART_VECTORS = 8, PART = PART_THREADS * PART_VECTORS * 4 };

#define LN_2 0.6931471805599453

/* Of a part of a row, or of a whole row: the sum over its logits x of 2^(x log2 e - offset), and of x. */
struct RowSums {
    float offset;
    double sum, total;
};

struct PartSums {
    float offset, sum, total;
};

__device__ __forceinline__ double log_normaliser(const RowSums &s)
{
    return (double)s.offset * LN_2 + log(s.sum);
}

/* Where a block's part is. The thread's vector v begins at logit column(v). */
struct Part {
    size_t row;
    unsigned part;
    __device__ __forceinline__ size_t column(int v) const
    {
        return (size_t)part * PART + (size_t)(v * PART_THREADS + threadIdx.x) * 4;
    }
};

__device__ __forceinline__ Part part_of_block(unsigned parts)
{
    return Part{blockIdx.x / parts, blockIdx.x % parts};
}

template <bool WHOLE>
__device__ __forceinline__ void load_part(float x[PART_VECTORS][4], const float *logits, const Part &at,
                                          size_t vocabulary)
{
#pragma unroll
    for (int v = 0; v < PART_VECTORS; v++) {
        const size_t column = at.column(v);
        for (int i = 0; i < 4; i++) x[v][i] = -INFINITY;
        if (column < vocabulary)
            load_four<WHOLE>(x[v], logits + at.row * vocabulary + column, vocabulary - column, -INFINITY);
    }
}

/* Logits that do not exist are -infinity here: they add 0 to `sum`, and are left out of `total` by their place. A row
 * whose every logit is -infinity must not subtract infinities. */
__device__ __forceinline__ PartSums part_sums(const float x[PART_VECTORS][4], const Part &at, size_t vocabulary,
                                              float *shared)
{
    float max = -1e30f, sum = 0, total = 0;
#pragma unroll
    for (int v = 0; v < PART_VECTORS; v++)
        for (int i = 0; i < 4; i++) max = fmaxf(max, x[v][i]);
    const float offset = block_max(max, shared) * LOG2_E;
#pragma unroll
    for (int v = 0; v < PART_VECTORS; v++)
        for (int i = 0; i < 4; i++) {
            sum += exp2_approx(fmaf(x[v][i], LOG2_E, -offset));
            if (at.column(v) + i < vocabulary) total += x[v][i];
        }
    return PartSums{offset, block_sum(sum, shared), block_sum(total, shared)};
}

/* Puts the parts of a row together; all 32 threads of the block get the result. */
__device__ __forceinline__ RowSums row_sums(const PartSums *sums, unsigned parts, Total *shared)
{
    float offset = -INFINITY;
    for (unsigned i = threadIdx.x; i < parts; i += WARP) offset = fmaxf(offset, sums[i].offset);
    offset = warp_max(offset);
    Total mine = {0, 0};
    for (unsigned i = threadIdx.x; i < parts; i += WARP) {
        mine.first += (double)(sums[i].sum * exp2f(sums[i].offset - offset));
        mine.second += (double)sums[i].total;
    }
    mine = block_total(mine, shared);
    return RowSums{offset, mine.first, mine.second};
}

/* ----------------------------------------------------------------------------------------------------------------
 * The loss (T5X losses.py). With q = 1 - e at the target and low = e / (V - 1) elsewhere, log p = x - log Z:
 *
 *     loss = scale (- sum q log p + z log^2 Z - constant)
 *          = scale ((1 - e) (log Z - x_target) + low ((V - 1) log Z - sum of the other x) + z log^2 Z - constant)
 *     d loss / d x = scale ((1 + 2 z log Z) p - q)
 *
 * and `constant` makes a perfect prediction cost 0. */
struct LossConstants {
    double smooth, low, others, constant, z_loss, scale;
};

static LossConstants loss_constants(const LossSettings *settings, size_t vocabulary)
{
    const double smooth = settings->label_smoothing, others = (double)vocabulary - 1, low = smooth / others;
    const double constant = -((1 - smooth) * log(1 - smooth) + others * low * log(low + 1e-20));
    return LossConstants{smooth, low, others, constant, settings->z_loss, settings->scale};
}

/* dlogits = factor 2^(x log2 e - offset) - shift, and at_target at the target. */
struct RowGradient {
    float offset, factor, shift, at_target;
};

template <bool WHOLE>
static __global__ void __launch_bounds__(PART_THREADS)
    loss_parts_kernel(PartSums *sums, const float *logits, size_t vocabulary, unsigned parts)
{
    __shared__ float shared[WARP];
    const Part at = part_of_block(parts);
    float x[PART_VECTORS][4];
    load_part<WHOLE>(x, logits, at, vocabulary);
    const PartSums s = part_sums(x, at, vocabulary, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = s;
}

/* One warp for each row. */
static __global__ void loss_rows_kernel(float *loss, RowGradient *gradient, const PartSums *sums, const float *logits,
                                        const int32_t *targets, size_t vocabulary, unsigned parts, LossConstants c)
{
    __shared__ Total shared[WARP];
    const size_t row = blockIdx.x;
    const RowSums s = row_sums(sums + row * parts, parts, shared);
    if (threadIdx.x) return;
    const double log_z = log_normaliser(s), at_target = (double)logits[row * vocabulary + (size_t)targets[row]];
    double cross_entropy = (1 - c.smooth) * (log_z - at_target);
    if (c.smooth > 0) cross_entropy += c.low * (c.others * log_z - (s.total - at_target));
    loss[row] = (float)(c.scale * (cross_entropy + c.z_loss * log_z * log_z - c.constant));
    const double factor = c.scale * (1 + 2 * c.z_loss * log_z) / s.sum;
    const double power = exp(at_target - (double)s.offset * LN_2);
    gradient[row] = RowGradient{s.offset, (float)factor, (float)(c.scale * c.low),
                                (float)(factor * power - c.scale * (1 - c.smooth))};
}

template <bool WHOLE>
static __global__ void __launch_bounds__(PART_THREADS)
    loss_gradient_kernel(bf16_t *dlogits, const RowGradient *gradient, const float *logits, const int32_t *targets,
                         size_t vocabulary, unsigned parts)
{
    const Part at = part_of_block(parts);
    float x[PART_VECTORS][4];
    load_part<WHOLE>(x, logits, at, vocabulary);
    const RowGradient row = gradient[at.row];
    const size_t target = (size_t)targets[at.row];
#pragma unroll
    for (int v = 0; v < PART_VECTORS; v++) {
        const size_t column = at.column(v);
        if (column >= vocabulary) continue;
        for (int i = 0; i < 4; i++) {
            x[v][i] = fmaf(row.factor, exp2_approx(fmaf(x[v][i], LOG2_E, -row.offset)), -row.shift);
            if (column + i == target) x[v][i] = row.at_target;
        }
        store_four<WHOLE>(dlogits + at.row * vocabulary + column, vocabulary - column, x[v]);
    }
}

extern "C" void softmax_cross_entropy(Device *dev, stat_t *loss, act_t *dlogits, const logit_t *logits,
                                      const int32_t *targets, size_t rows, size_t vocabulary,
                                      const LossSettings *settings)
{
    const unsigned parts = blocks_for(vocabulary, PART), blocks = (unsigned)rows * parts;
    RowGradient *gradient = (RowGradient *)device_scratch(dev, rows * sizeof *gradient + blocks * sizeof(PartSums));
    PartSums *sums = (PartSums *)(gradient + rows);
    const bool whole = whole_vectors(8, vocabulary, logits, dlogits);
    launch(dev, whole ? loss_parts_kernel<true> : loss_parts_kernel<false>, dim3(blocks), dim3(PART_THREADS), 0, sums,
           logits, vocabulary, parts);
    launch(dev, loss_rows_kernel, dim3((unsigned)rows), dim3(WARP), 0, loss, gradient, sums, logits, targets,
           vocabulary, parts, loss_constants(settings, vocabulary));
    if (dlogits)
        launch(dev, whole ? loss_gradient_kernel<true> : loss_gradient_kernel<false>, dim3(blocks), dim3(PART_THREADS),
               0, dlogits, gradient, logits, targets, vocabulary, parts);
}

/* ----------------------------------------------------------------------------------------------------------------
 * The k most probable words of each row, best first, the lower id first among equals.
 *
 * The head's product has left the largest logit of each group of words (head.cuh). The k best words lie in the k groups
 * that come first when these are put into the same order, by their largest logit and then by their number: were a word
 * of the k best in another group, each of those k would hold a word that comes before it. So a block finds k groups
 * among all of a row, and then k words in those groups.
 *
 * Logits are compared as integers in the same order, which leaves room for NOTHING below -infinity: a word that does not
 * exist. A NaN counts as -infinity (and shows in log Z), -0 as 0. Any two candidates have an order, so the next one to
 * be found is the best of those that come after the last one, and nobody keeps a list of what is taken. */
struct Candidate {
    int32_t key, id;
};

enum { TOP_THREADS = 128, NOTHING = INT32_MIN };

__device__ __forceinline__ int32_t key_of(float x)
{
    const int32_t bits = (int32_t)__float_as_uint(x == x ? x + 0.0f : -INFINITY);
    return bits ^ (bits >> 31 & INT32_MAX);
}

__device__ __forceinline__ float value_of(int32_t key)
{
    return __uint_as_float((uint32_t)(key ^ (key >> 31 & INT32_MAX)));
}

__device__ __forceinline__ bool better(const Candidate &a, const Candidate &b)
{
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

/* Among each LANES neighbours, which all get it. */
template <int LANES> __device__ __forceinline__ Candidate best_of_lanes(Candidate mine)
{
    for (int step = LANES / 2; step; step /= 2) {
        const Candidate other = {__shfl_xor_sync(0xffffffffu, mine.key, step),
                                 __shfl_xor_sync(0xffffffffu, mine.id, step)};
        const bool take = better(other, mine);
        mine.key = take ? other.key : mine.key;
        mine.id = take ? other.id : mine.id;
    }
    return mine;
}

/* The best of candidates 0 … n - 1 that come after `last`; all threads of the block get it. of_warps: one for each
 * warp. */
template <typename Candidates>
__device__ __forceinline__ Candidate next_best(Candidate last, unsigned n, Candidates candidate, Candidate *of_warps)
{
    constexpr unsigned WARPS = TOP_THREADS / WARP;
    Candidate best = {NOTHING, INT32_MAX};
    for (unsigned i = threadIdx.x; i < n; i += TOP_THREADS) {
        const Candidate c = candidate(i);
        if (better(last, c) && better(c, best)) best = c;
    }
    best = best_of_lanes<WARP>(best);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = best;
    __syncthreads();
    best = best_of_lanes<WARPS>(of_warps[threadIdx.x % WARPS]);
    __syncthreads(); /* all have read */
    return best;
}

/* Puts the groups of a row together, in an order that follows from V; all threads get the result. max: the largest
 * logit. */
__device__ __forceinline__ RowSums row_sums(const WordGroup *groups, unsigned n, float max, Total *shared)
{
    const float offset = word_offset(max);
    Total mine = {0, 0};
    for (unsigned g = threadIdx.x; g < n; g += TOP_THREADS)
        mine.first += (double)(groups[g].sum * exp2f(word_offset(groups[g].max) - offset));
    return RowSums{offset, block_total(mine, shared).first, 0};
}

/* One block for each row. */
static __global__ void __launch_bounds__(TOP_THREADS)
    best_words_kernel(float *logp, int32_t *word, const float *logits, const WordGroup *groups, size_t vocabulary,
                      unsigned n_groups, unsigned k)
{
    __shared__ Total totals[TOP_THREADS];
    __shared__ Candidate of_warps[TOP_THREADS / WARP];
    DYNAMIC_SHARED(int32_t, chosen); /* [n_chosen]: the groups that the words are in */
    const unsigned n_chosen = min(k, n_groups);
    const Candidate before_all = {INT32_MAX, -1};
    const size_t row = blockIdx.x;
    logits += row * vocabulary, groups += row * n_groups;

    const auto group = [&](unsigned g) { return Candidate{key_of(groups[g].max), (int32_t)g}; };
    Candidate last = before_all;
    float max = 0;
    for (unsigned i = 0; i < n_chosen; i++) {
        last = next_best(last, n_groups, group, of_warps);
        if (i == 0) max = value_of(last.key);
        if (threadIdx.x == 0) chosen[i] = last.id;
    }
    const double log_z = log_normaliser(row_sums(groups, n_groups, max, totals)); /* its barriers: `chosen` is there */

    const auto word_at = [&](unsigned i) {
        const size_t id = (size_t)chosen[i / WORD_GROUP] * WORD_GROUP + i % WORD_GROUP;
        return id < vocabulary ? Candidate{key_of(logits[id]), (int32_t)id} : Candidate{NOTHING, INT32_MAX};
    };
    last = before_all;
    for (unsigned i = 0; i < k; i++) {
        last = next_best(last, n_chosen * WORD_GROUP, word_at, of_warps);
        if (threadIdx.x == 0) {
            logp[row * k + i] = (float)((double)value_of(last.key) - log_z);
            word[row * k + i] = last.id;
        }
    }
}

void head_best_words(Device *dev, stat_t *logp, int32_t *word, const logit_t *logits, const WordGroup *groups,
                     size_t rows, size_t vocabulary, size_t k)
{
    const size_t n_groups = word_groups(vocabulary), n_chosen = k < n_groups ? k : n_groups;
    launch(dev, best_words_kernel, dim3((unsigned)rows), dim3(TOP_THREADS), n_chosen * sizeof(int32_t), logp, word,
           logits, groups, vocabulary, (unsigned)n_groups, (unsigned)k);
}

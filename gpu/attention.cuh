/* attention.cuh: what the two floors of attention share, and the rule that chooses between them.
 *
 * attention.cu has the seam's functions, kernels for any card, and for any shape; attention_hopper.cu has the kernels
 * for head size 64 on sm_90a. */
#ifndef PROMOT_ATTENTION_CUH
#define PROMOT_ATTENTION_CUH

#include "common.cuh"

/* exp(x) = exp2(x * LOG2E): the card has an instruction for exp2 only, so scores are kept in units of log 2 and the
 * factor goes into the multiplication that adds the bias. */
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

/* A score whose exponential is 0; finite, because infinity - infinity is not. */
static constexpr float MASKED = -1e30f;

/* One head of one sequence. */
struct AttentionTask {
    int sequence, head;
    int queries, keys;          /* how many */
    int first_query, first_key; /* rows of the packed matrices */
};

static __device__ __forceinline__ AttentionTask attention_task(const Attention &at, int sequence, int head)
{
    return {sequence,
            head,
            at.queries.length[sequence],
            at.keys.length[sequence],
            at.queries.start[sequence],
            at.keys.start[sequence]};
}

/* The bias of a distance key - query, in units of log 2. */
static __device__ __forceinline__ float attention_bias(const Attention &at, int head, int distance)
{
    if (!at.bias_table) return 0;
    return bf16_to_float(at.bias_table[(size_t)at.bucket[distance] * at.heads + head]) * LOG2E;
}

/* Dropout's factors of four keys, 4 * key_group and the three after it, for one query of a task. (The generator itself
 * takes every query for the first one when they share a mask.) */
static __device__ __forceinline__ void attention_keep(float factor[4], const Attention &at, const AttentionTask &task,
                                                      int query, int key_group)
{
    dropout_four(factor, at.dropout, at.dropout.site + (uint32_t)task.head,
                 (uint32_t)(at.queries.first_example + task.sequence), (uint32_t)query, (uint32_t)key_group);
}

/* Dropout's factor of one probability. */
static __device__ __forceinline__ float attention_keep_one(const Attention &at, const AttentionTask &task, int query,
                                                           int key)
{
    if (!(at.dropout.rate > 0)) return 1;
    float four[4];
    attention_keep(four, at, task, query, key / 4);
    return key % 4 < 2 ? (key % 4 ? four[1] : four[0]) : (key % 4 == 2 ? four[2] : four[3]);
}

/* Over the four neighbouring lanes that share the rows of an accumulator. */
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* The ways to compute an attention. */
enum AttentionPath {
    ATTENTION_LOOPS,  /* one thread for each score: any shape */
    ATTENTION_FEW,    /* few queries against many keys, forward only: as fast as memory */
    ATTENTION_TILES,  /* mma.sync: head sizes that are multiples of 8, up to 128 */
    ATTENTION_HOPPER, /* wgmma and TMA: head size 64 */
};

/* Which of them serves this attention: a function of its shape and the kind of card. aligned: the matrices that
 * Attention does not name begin at multiples of 16 bytes. */
AttentionPath attention_path(const Attention *at, bool hopper, bool backward, bool aligned);

void attention_forward_hopper(Device *dev, act_t *out, stat_t *logsumexp, const Attention *at);
void attention_backward_hopper(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                               const act_t *out, const stat_t *logsumexp, const Attention *at);

/* dbias [buckets, heads] (+=) the sum over n parts of partial [n, heads, buckets], in the order of the parts. */
void attention_sum_dbias(Device *dev, stat_t *dbias, const float *partial, size_t n, size_t heads, size_t buckets);

#endif

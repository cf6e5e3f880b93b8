/* head.cuh: what the head's product (matmul.cuh) and the search for the best words (head.cu) have in common.
 *
 * While a tile of logits is in registers, its epilogue leaves two numbers for every row and every 64 words beside the
 * logits. They are enough for log Z, and they say which 64 words a row's best ones can be among, so that of 250,112
 * logits a few hundred are read again. 64 words are the width of the narrowest tile: a group is always whole within a
 * warp's registers, and its numbers have the same bits whichever tile made it and however many rows there are. */
#ifndef PROMOT_HEAD_CUH
#define PROMOT_HEAD_CUH

#include "common.cuh"

#define LOG2_E 1.4426950408889634f

enum { WORD_GROUP = 64 };

/* Of a row's logits x in one group: the largest, and the sum of 2^(x log2 e - word_offset(max)). A NaN is left out of
 * the first and spoils the second. */
struct alignas(8) WordGroup {
    float max, sum;
};

/* The same number to the last bit wherever it is asked for, so no multiply-add. A group or row whose every logit is
 * -infinity must not subtract infinities. */
__device__ __forceinline__ float word_offset(float max)
{
    return __fmul_rn(fmaxf(max, -1e30f), LOG2_E);
}

static __host__ __device__ inline size_t word_groups(size_t vocabulary)
{
    return ceil_div<size_t>(vocabulary, WORD_GROUP);
}

/* logp [rows, k], word [rows, k] (=) the k best words of each row (head_top_log_probabilities), from its logits and
 * their groups [rows, word_groups(vocabulary)]. */
void head_best_words(Device *dev, stat_t *logp, int32_t *word, const logit_t *logits, const WordGroup *groups,
                     size_t rows, size_t vocabulary, size_t k);

#endif

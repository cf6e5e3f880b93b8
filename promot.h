/* promot.h: the face of promot. Read this first, then promot.c from top to bottom.
 *
 * promot fine-tunes T5-family models (mT5, T5 v1.1, Flan-T5, mT0, T5 1.0) with ProMoT, prompt tuning followed by model
 * tuning with the prompt attached and frozen (Wang et al. 2022, arXiv 2211.00635).
 *
 * This file has two halves. The first is the seam: the kernels on which everything stands, and the memory that they
 * work on. The CPU build defines them in chapter 2 of promot.c; a GPU build defines the same names in the .cu files
 * of gpu/ and links them instead. The second half is the engine itself, written once over those kernels.
 *
 * Notation: B sequences, S source and T target tokens, P prompt rows, D d_model, H heads, K d_kv, I = H*K the inner
 * width (not always D), F d_ff, V vocabulary, L layers. A batch is *packed*: the tokens of its sequences lie one behind
 * another as rows of a matrix, and `Sequences` says where each begins. No padding exists anywhere.
 *
 * Every output says how it is written: (=) it is overwritten, (+=) it is added to. */
#ifndef PROMOT_H
#define PROMOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/error.h"

/* ================================================================================================================
 * The seam: element types
 *
 * The CPU keeps all of them in fp32. A GPU (-DPROMOT_GPU) keeps activations in bf16, and a weight as two halves in two
 * places: its bf16 rounding, which products read, and the 16 bits that are missing to the exact fp32, which only
 * Adafactor and LoRA read and write. The tests compile everything in double (-DPROMOT_DOUBLE) to compare each backward
 * pass with finite differences. */
#ifdef PROMOT_GPU
typedef struct {
    uint16_t bits;
} bf16_t;
typedef bf16_t act_t;
typedef bf16_t weight_t; /* the upper half; gpu/device.cu knows where the lower one is */
typedef float logit_t, stat_t;
enum { WEIGHT_BYTES = 4, ON_A_CARD = 1 };
#else
#ifdef PROMOT_DOUBLE
typedef double real_t;
#else
typedef float real_t;
#endif
typedef real_t act_t;    /* activations and their gradients */
typedef real_t weight_t; /* weights and soft prompts */
typedef real_t logit_t;  /* the head's output */
typedef real_t stat_t;   /* weight gradients, second moments, softmax normalisers, losses */
enum { WEIGHT_BYTES = sizeof(weight_t), ON_A_CARD = 0 }; /* of memory for each weight; is this a GPU build? */
#endif

/* ================================================================================================================
 * The seam: memory
 *
 * A Device is where kernels run: its threads (or its stream) and their scratch space. Tensor memory belongs to it: only
 * kernels read or write it, everybody else moves numbers in and out with the functions below. */
typedef struct Device Device;

/* bf16: operands rounded to bf16, sums in fp32. A GPU always does so, and keeps activations in bf16 too. */
typedef enum { MATMUL_FP32, MATMUL_BF16 } MatmulPrecision;

Device *device_open(int threads, MatmulPrecision precision, Error *error); /* threads 0: one for each core */
void device_close(Device *dev);
int device_threads(const Device *dev);
bool device_has_bf16(void); /* this processor multiplies bf16 in hardware */

void device_wait(Device *dev);        /* until everything it was asked for is done; only a clock needs to */
size_t device_memory_available(void); /* bytes, roughly; 0: unknown */
void *device_alloc(size_t bytes);     /* 64-byte aligned, not cleared; NULL when there is no memory */
void device_free(void *memory);
weight_t *weights_alloc(size_t n); /* weights may lie in such memory only; NULL when there is none */
void weights_free(weight_t *weights);
/* Products of a frozen model read the upper halves alone. Parking moves the lower ones to the host and gives their
 * place back, until the weights are to be trained (parked: false); whole or parked, they can be uploaded, downloaded
 * and copied. A CPU has no halves, and nothing happens. -1: no memory. */
int weights_park(Device *dev, weight_t *weights, bool parked, Error *error);
/* For training with less memory: from here on, until weights_park, the lower halves of the first n weights of an
 * allocation are on the host too, and each tensor's comes to the device for its update alone, to one of LOWER_SLOTS
 * places. The same bits. A tensor is updated whole, and lies before or behind the n-th weight. -1: no memory. */
enum { LOWER_SLOTS = 4 };
int weights_offload(Device *dev, weight_t *weights, size_t n, Error *error);

/* A model's weights. Where a card has no room for both halves, the lower ones are parked from the start; where it has
 * none for the upper ones either, they are *streamed*: all of them stay on the host. Kernels read those of them that
 * are kept on the card, and the piece that is in turn, which comes to the card while the one before it is read.
 * Streamed weights are frozen, and nothing but uploads changes them. A CPU streams nothing. */
typedef struct {
    const weight_t *first;
    size_t n;
} WeightPiece;

void device_stream_weights(Device *dev);                    /* those of all models to come, whatever room there is */
weight_t *weights_alloc_model(const Device *dev, size_t n); /* NULL: no memory; freed by weights_free */
bool weights_are_streamed(const weight_t *weights);
size_t weights_device_bytes(const weight_t *weights, size_t n); /* that an allocation of n takes on the device now */
/* Keeps `count` pieces of streamed weights on the card, each of n elements, `stride` elements apart. -1: no memory. */
int weights_keep(const weight_t *first, size_t n, size_t count, size_t stride, Error *error);
/* From here on kernels read `now`, and the next call's will probably be `next` (n 0: not known). Nothing happens for
 * weights that are not streamed. */
void weights_stream(Device *dev, WeightPiece now, WeightPiece next);
void device_clear(Device *dev, void *memory, size_t bytes);
void device_copy(Device *dev, void *to, const void *from, size_t bytes);
void device_upload(Device *dev, void *to, const void *host, size_t bytes); /* raw bytes: indices */
void device_download(Device *dev, void *host, const void *from, size_t bytes);
void weights_copy(Device *dev, weight_t *to, const weight_t *from, size_t n);
void weights_upload(Device *dev, weight_t *to, const float *host, size_t n);
void weights_download(Device *dev, float *host, const weight_t *from, size_t n);
void activations_download(Device *dev, float *host, const act_t *from, size_t n);
void logits_download(Device *dev, float *host, const logit_t *from, size_t n);
void stats_upload(Device *dev, stat_t *to, const float *host, size_t n);
void stats_download(Device *dev, float *host, const stat_t *from, size_t n);

/* A download waits for the device. What a training step leaves for the host is copied in its turn instead, into host
 * memory of its own, and looked at when it is there: the next step has been asked for by then. */
typedef struct Readback Readback;

Readback *readback_create(Device *dev, size_t bytes); /* NULL when there is no memory */
void readback_free(Readback *readback);
void readback_copy(Readback *readback, size_t at, const void *from, size_t bytes); /* raw bytes, to offset `at` */
bool readback_is_there(const Readback *readback); /* all that was asked for; does not wait */
const void *readback_wait(Readback *readback);    /* until it is there; stays valid until the next copy */

/* ================================================================================================================
 * The seam: what kernels are told */

/* The sequences of a packed matrix: sequence b is rows start[b] … start[b] + length[b] - 1. Rows between sequences
 * belong to nobody and are left alone. */
typedef struct {
    const int32_t *start, *length; /* [count] in device memory; every length is at least 1 */
    size_t count, rows, longest;   /* rows: of the whole matrix; longest: the largest length */
    size_t first_example;          /* the number of sequence 0 within the whole batch: it names the dropout masks */
} Sequences;

/* Inverted dropout at one place of the network. The mask is a pure function of (key, site, example, row, column):
 * Philox4x32-10 (Salmon et al. 2011) with counter (column / 4, row, example, site) gives the bits of four columns, and
 * an element is dropped when its 32 bits are below rate * 2^32. shared: row counts as 0, so that one mask serves all
 * rows of a sequence (T5X's broadcast_dims=(-2,)). Rate 0 is the identity. Backward is the same mask on the
 * gradient. */
typedef struct {
    float rate;
    uint64_t key;  /* of this step */
    uint32_t site; /* which place; attention adds its head number to it */
    bool shared;
} Dropout;

typedef enum { MLP_GATED_GELU, MLP_RELU } MlpKind;

/* One attention: q, k, v are column slices of packed matrices, so that one projection can make all of them. Row r, head
 * h, of q is q + r * q_stride + h * d_kv. Sequence b of queries attends to sequence b of keys; causal: to keys at or
 * before the query's place. T5 does not scale by 1/sqrt(d_kv). */
typedef struct {
    const act_t *q, *k, *v;
    size_t q_stride, kv_stride;
    Sequences queries, keys;
    size_t heads, d_kv;
    bool causal;
    const weight_t *bias_table; /* [buckets, heads], or NULL (cross-attention) */
    const int32_t *bucket; /* device: bucket[key_place - query_place], valid for |distance| < the longest sequence */
    size_t buckets;
    Dropout dropout;
} Attention;

/* T5X's cross-entropy (losses.py): label smoothing e spreads e/(V-1) over the other words, less the constant that makes
 * a perfect prediction cost 0, plus z_loss * logZ^2. scale multiplies loss and gradient (1 / normalising factor). */
typedef struct {
    float label_smoothing, z_loss, scale;
} LossSettings;

/* One Adafactor update (t5x/adafactor.py): everything that is the same for all tensors of a step. */
typedef struct {
    double learning_rate;
    double alpha;        /* 1 - beta2 of this step = (step + 1)^-decay_rate */
    double clip;         /* clipping_threshold; 0: no clipping */
    double weight_decay; /* not multiplied by the learning rate; 0: none */
    double epsilon1, epsilon2;
    bool scale_by_parameter;
} AdafactorStep;

/* The second moments of one tensor [rows, columns]: factored when both sides are at least 128, else whole. */
typedef struct {
    stat_t *row, *column; /* factored: row[i] over the columns of row i, column[j] over the rows; else NULL */
    stat_t *whole;        /* not factored: [rows, columns]; else NULL */
    stat_t *row_squares;  /* factored: [rows] sum of squares of every row of p itself, kept up to date by the updates
                             (see rows_sum_of_squares); NULL: each update reads all of p for them */
} SecondMoment;

/* ================================================================================================================
 * The seam: kernels
 *
 * None of them keeps state. A Device's scratch grows when a larger batch comes (and ends the program with a line
 * when it cannot). The results do not depend on the number of threads. */

/* --- embedding. A negative id -1-p means row p of the prompts. out [rows, width] (=). */
void embedding_forward(Device *dev, act_t *out, const weight_t *table, const weight_t *prompts, const int32_t *ids,
                       size_t rows, size_t width);
/* Scatter-add, the deterministic way: the caller lists for each target row t the gradient rows that belong to it,
 * source[first[t] … first[t+1]-1]. dtable [targets, width] (+=). Serves the embedding (whose targets are the rows in
 * the batch only) and the prompts. */
void embedding_backward(Device *dev, stat_t *dtable, const act_t *dout, const int32_t *first, const int32_t *source,
                        size_t targets, size_t width);

/* --- dropout and the residual stream. */
void dropout_forward(Device *dev, act_t *x, const Sequences *seqs, size_t width, const Dropout *dropout); /* in place */
void residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *branch, const Sequences *seqs, size_t width,
                      const Dropout *dropout); /* out (=) x + dropout(branch); out may be x */
void residual_backward(Device *dev, act_t *dbranch, const act_t *dout, const Sequences *seqs, size_t width,
                       const Dropout *dropout); /* dbranch (=) dropout(dout); the gradient of x is dout itself */

/* --- T5's layer norm (RMS): y = scale * x * rstd, rstd = 1/sqrt(mean(x^2) + epsilon). y (=), rstd [rows] (=). */
void rmsnorm_forward(Device *dev, act_t *y, stat_t *rstd, const act_t *x, const weight_t *scale, size_t rows,
                     size_t width, float epsilon);
/* dx (+=), for it joins the residual stream; dscale [width] (+=), or NULL. */
void rmsnorm_backward(Device *dev, act_t *dx, stat_t *dscale, const act_t *dy, const act_t *x, const stat_t *rstd,
                      const weight_t *scale, size_t rows, size_t width);

/* --- linear layers without bias: y [rows, out] = x [rows, in] · w [out, in]ᵀ. A row of y has the same bits
 * however many rows there are. */
void linear_forward(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in,
                    size_t out); /* (=) */
void linear_backward_input(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                           size_t out, bool accumulate); /* dx = dy · w: (+=) when accumulate, else (=) */
void linear_backward_weight(Device *dev, stat_t *dw, const act_t *dy, const act_t *x, size_t rows, size_t in,
                            size_t out, bool accumulate); /* dw = dyᵀ · x: (+=) when accumulate, else (=) */
/* The same x for several layers, whose weights w lie w_stride elements apart and whose y (or dy) y_stride: a
 * decoder's keys and values of the encoder's output. */
void linear_forward_layers(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out,
                           size_t layers, size_t w_stride, size_t y_stride); /* every y (=) x · wᵀ */
void linear_backward_input_layers(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                                  size_t out, size_t layers, size_t w_stride,
                                  size_t dy_stride); /* dx (=) the sum over layers of dy · w */

/* --- a product, and what becomes of each of its numbers while it is at hand. */

/* The end of a sub-layer: out [rows, width] (=) x + dropout(y · wᵀ) for y [rows, in], w [width, in]. out may be x.
 * scratch [rows, width]: for a build that makes the product first, as the CPU's does. */
void linear_residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *y, const weight_t *w, act_t *scratch,
                             const Sequences *seqs, size_t in, size_t width, const Dropout *dropout);
/* Into the middle of the MLP: a (=) x · wᵀ, h (=) mlp_activation_forward of it; x [rows, in], w [2F or F, in]. */
void linear_mlp_forward(Device *dev, MlpKind kind, act_t *h, act_t *a, const act_t *x, const weight_t *w,
                        const Sequences *seqs, size_t in, size_t d_ff, const Dropout *dropout);
/* Back into it from dy [rows, out], the gradient of h · wᵀ with w [out, F]: dh (=) dy · w, da (=)
 * mlp_activation_backward of it. h (=) once more what the forward pass had there, or NULL. dh is scratch. */
void linear_mlp_backward(Device *dev, MlpKind kind, act_t *da, act_t *dh, act_t *h, const act_t *dy, const weight_t *w,
                         const act_t *a, const Sequences *seqs, size_t out, size_t d_ff, const Dropout *dropout);

/* --- LoRA: a weight w [rows, columns] is base + scale * b · a, with a [rank, columns] and b [rows, rank]. Its gradient
 * dw gives those of a and b by the chain rule: da = scale * bᵀ · dw, db = scale * dw · aᵀ. */
void lora_merge_forward(Device *dev, weight_t *w, const weight_t *base, const weight_t *a, const weight_t *b,
                        size_t rows, size_t columns, size_t rank, float scale); /* w (=) */
void lora_backward(Device *dev, stat_t *da, stat_t *db, const stat_t *dw, const weight_t *a, const weight_t *b,
                   size_t rows, size_t columns, size_t rank, float scale); /* da, db (+=) */

/* --- the middle of the MLP. Gated gelu: a [rows, 2F] holds x·wi_0 and x·wi_1 side by side, h = gelu_tanh(a0) * a1;
 * relu: a [rows, F], h = max(a, 0). Dropout on h. h [rows, F] (=), da (=). */
void mlp_activation_forward(Device *dev, MlpKind kind, act_t *h, const act_t *a, const Sequences *seqs, size_t d_ff,
                            const Dropout *dropout);
void mlp_activation_backward(Device *dev, MlpKind kind, act_t *da, const act_t *dh, const act_t *a,
                             const Sequences *seqs, size_t d_ff, const Dropout *dropout);

/* --- attention over packed sequences. out [query rows, heads * d_kv] (=), logsumexp [heads, query rows] (=). */
void attention_forward(Device *dev, act_t *out, stat_t *logsumexp, const Attention *attention);
/* Recomputes the probabilities block by block. dq, dk, dv (=) have the strides of q, k, v; dk and dv may take the
 * place of k and v. dbias [buckets, heads] (+=), or NULL. */
void attention_backward(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                        const act_t *out, const stat_t *logsumexp, const Attention *attention);
/* One decoding step against a cache. cache [steps so far, capacity, 3 * heads * d_kv] holds q|k|v of every step; row
 * r's own token is at (steps-1, r), and the token it saw at step t is at (t, ancestors[r * max_steps + t]), so that
 * beams are reordered without moving the cache. out [rows, heads * d_kv] (=). bucket as in Attention. */
void attention_cached_forward(Device *dev, act_t *out, const act_t *cache, const int32_t *ancestors, size_t rows,
                              size_t steps, size_t max_steps, size_t capacity, size_t heads, size_t d_kv,
                              const weight_t *bias_table, const int32_t *bucket, size_t buckets);

/* --- the head: logits [rows, V] (=) x · wᵀ, as linear_forward but for the type. */
void head_forward(Device *dev, logit_t *logits, const act_t *x, const weight_t *w, size_t rows, size_t in,
                  size_t vocabulary);
/* loss [rows] (=); dlogits [rows, V] (=), or NULL: not wanted. Where both types are one, dlogits may be logits. */
void softmax_cross_entropy(Device *dev, stat_t *loss, act_t *dlogits, const logit_t *logits, const int32_t *targets,
                           size_t rows, size_t vocabulary, const LossSettings *settings);
/* head_forward, and of its logits (=) the k most probable words of each row, best first, the lower id first among
 * equals: logp [rows, k] (=), word [rows, k] (=). */
void head_top_log_probabilities(Device *dev, stat_t *logp, int32_t *word, logit_t *logits, const act_t *x,
                                const weight_t *w, size_t rows, size_t in, size_t vocabulary, size_t k);
/* On a CPU, for greedy decoding: word [rows] (=) the most probable word of each row, the lowest id among equals, as all
 * logits would tell it but sooner, for up to HEAD_SKETCH_ROWS rows. -1: this row needs all its logits. A sketch is a
 * second copy of the head w in 8 bits; when w changes it must be made anew. head_sketch_create gives NULL where there
 * is no memory for it, or where products are not in fp32. */
typedef struct HeadSketch HeadSketch;
enum { HEAD_SKETCH_ROWS = 16 };
size_t head_sketch_bytes(size_t in, size_t vocabulary);
HeadSketch *head_sketch_create(Device *dev, const weight_t *w, size_t in, size_t vocabulary);
void head_sketch_free(HeadSketch *sketch);
void best_words(Device *dev, int32_t *word, const act_t *x, const weight_t *w, const HeadSketch *sketch, size_t rows,
                size_t in);
void scale_forward(Device *dev, act_t *x, float factor, size_t n); /* in place: T5 1.0 scales its logits' input */

/* --- Adafactor. p (+=) [rows, columns], its gradient g, its second moment (+=). */
void adafactor_update(Device *dev, weight_t *p, const stat_t *g, const SecondMoment *moment, size_t rows,
                      size_t columns, const AdafactorStep *step);
/* The same result as adafactor_update on a whole embedding, from the gradient of its touched rows only: g [n, columns]
 * belongs to rows index[n] (ascending, each once), all other rows have gradient 0. Only without weight decay, factored,
 * and with row_squares. */
void adafactor_update_rows(Device *dev, weight_t *p, const stat_t *g, const int32_t *index, size_t n,
                           const SecondMoment *moment, size_t rows, size_t columns, const AdafactorStep *step);
void rows_sum_of_squares(Device *dev, stat_t *out, const weight_t *x, size_t rows, size_t columns); /* out [rows] (=) */

/* --- measuring. The sum runs in double, in a fixed order. dot [1] (=), in device memory. */
void dot_product(Device *dev, double *dot, const stat_t *a, const stat_t *b, size_t n);

/* ================================================================================================================
 * The engine: the model (chapter 3)
 *
 * Functions that can fail take an Error, fill it and return -1 or NULL. */
#ifndef PROMOT_KERNELS_ONLY
#include "data/checkpoint.h"
#include "data/tasks.h"
#include "tokenizer/tokenizer.h"

enum { DKV_LIMIT = 1024, HEADS_LIMIT = 512, LAYERS_LIMIT = 512 }; /* no T5 comes near them */

/* config.json of a Hugging Face directory. */
typedef struct {
    char model_type[16]; /* "mt5", "t5", … */
    size_t vocab_size, d_model, d_kv, d_ff, num_heads, num_layers, num_decoder_layers;
    size_t buckets, max_distance; /* of the relative position bias */
    float layer_norm_epsilon;
    MlpKind mlp;
    bool tied_head; /* the head is shared.weight, and its input is scaled by d_model^-0.5 (T5 1.0) */
    int32_t pad, eos, decoder_start;
    char *json; /* the file's text: what is written with a tuned model starts from it */
} T5Config;

/* One tensor of the model: a row of the tensor table. A vector has one row. */
typedef struct {
    char name[96]; /* its Hugging Face name */
    bool is_vector;
    size_t rows, columns;
    size_t offset;  /* in elements: the same place in the weights, the kept gradients and a saved state */
    weight_t *data; /* [rows, columns] */
} Tensor;

/* The tensors of a layer: field, name in an encoder layer, name in a decoder layer (NULL: it has none), rows, columns.
 * q, k, v are neighbours, and so are wi_0 and wi_1: in memory they are one matrix, and one matmul serves them all.
 * A layer of T5 1.0 has no wi_1, and its wi_0 is called wi. */
#define T5_LAYER_TENSORS(X)                                                                                            \
    X(self_norm, "layer.0.layer_norm", "layer.0.layer_norm", 1, D)                                                     \
    X(self_q, "layer.0.SelfAttention.q", "layer.0.SelfAttention.q", I, D)                                              \
    X(self_k, "layer.0.SelfAttention.k", "layer.0.SelfAttention.k", I, D)                                              \
    X(self_v, "layer.0.SelfAttention.v", "layer.0.SelfAttention.v", I, D)                                              \
    X(self_o, "layer.0.SelfAttention.o", "layer.0.SelfAttention.o", D, I)                                              \
    X(cross_norm, NULL, "layer.1.layer_norm", 1, D)                                                                    \
    X(cross_q, NULL, "layer.1.EncDecAttention.q", I, D)                                                                \
    X(cross_k, NULL, "layer.1.EncDecAttention.k", I, D)                                                                \
    X(cross_v, NULL, "layer.1.EncDecAttention.v", I, D)                                                                \
    X(cross_o, NULL, "layer.1.EncDecAttention.o", D, I)                                                                \
    X(mlp_norm, "layer.1.layer_norm", "layer.2.layer_norm", 1, D)                                                      \
    X(wi_0, gated ? "layer.1.DenseReluDense.wi_0" : "layer.1.DenseReluDense.wi",                                       \
      gated ? "layer.2.DenseReluDense.wi_0" : "layer.2.DenseReluDense.wi", F, D)                                       \
    X(wi_1, gated ? "layer.1.DenseReluDense.wi_1" : NULL, gated ? "layer.2.DenseReluDense.wi_1" : NULL, F, D)          \
    X(wo, "layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo", D, F)

typedef struct {
#define X(field, encoder_name, decoder_name, rows, columns) Tensor *field;
    T5_LAYER_TENSORS(X)
#undef X
} Layer;

typedef struct {
    bool is_decoder;
    size_t n_layers;
    Layer *layers;
    Tensor *relative_bias; /* [buckets, heads], used by every layer's self-attention */
    Tensor *final_norm;
} Stack;

/* LoRA (Hu et al. 2021, arXiv 2106.09685): some matrices are W = W0 + scale * B·A, where A [rank, in] and B [out, rank]
 * are small. What lies in the model's memory is W, so the network knows nothing of it. */
typedef struct {
    const Tensor *tensor;   /* W [out, in] */
    weight_t *base, *a, *b; /* W0, A, B */
} LoraTarget;

typedef struct {
    size_t rank, count;
    double alpha;
    bool rank_stabilised; /* scale is alpha / sqrt(rank) (rsLoRA); otherwise alpha / rank */
    float scale;
    LoraTarget *targets;        /* [count], in the order of the tensor table */
    bool *wanted;               /* [n_tensors]: is this tensor of the table a target? */
    size_t n_adapters, n_bases; /* elements */
    weight_t *adapters;         /* A, then B, of each target in turn */
    weight_t *bases;            /* W0 of each target in turn */
} Lora;

typedef struct {
    T5Config config;
    Device *dev;
    Tensor *tensors; /* [n_tensors], the tensor table; shared is the last one */
    size_t n_tensors, n_weights;
    weight_t *weights; /* [n_weights] */
    Tensor *shared;    /* the embedding, [V, D] */
    Tensor *head;      /* lm_head, or shared when tied */
    Stack encoder, decoder;
    Lora *lora; /* the adapter that is attached; NULL: none */
} Model;

int config_read(T5Config *config, const char *directory, Error *error); /* config.json, or T5X; free config->json */
/* Opens a Hugging Face or T5X directory and loads its weights. Warnings (unknown tensors) go to `warn`, if not NULL. */
Model *model_open(const char *directory, Device *dev, void (*warn)(const char *text), Error *error);
/* A new model, initialised as T5X does (network.py): embedding N(0,1), matrices fan-in normal. */
Model *model_create(const char *config_file, Device *dev, uint64_t seed, Error *error);
void model_close(Model *model);
/* Writes config.json and model.safetensors into a directory, and copies the tokenizer's files from `origin` there. */
int model_write(const Model *model, const char *directory, const char *origin, Error *error);

/* Soft prompts: one for each task, all of one length, one behind another. */
typedef struct {
    size_t count, length;
    weight_t *rows; /* [count * length, D] */
} Prompts;

/* One example in ids. Its prompt goes in front of the input, in the encoder only. */
typedef struct {
    const int32_t *input, *target; /* both end in EOS as given */
    size_t input_length, target_length;
    int prompt;      /* number of its prompt; -1: none */
    uint64_t number; /* names its random numbers when an answer is sampled */
} TokenExample;

/* A packed batch on the device. The lists tell embedding_backward which gradient rows belong to which table row. */
typedef struct {
    size_t count;
    Sequences source, target;
    int32_t *source_ids, *target_inputs, *targets; /* target_inputs: targets shifted right behind decoder_start */
    int32_t *source_bucket, *target_bucket;        /* bias buckets by distance, see Attention */
    size_t n_touched;                              /* rows of the embedding's gradient */
    int32_t *touched; /* [n_touched] ascending ids; NULL when the gradient has all V rows */
    int32_t *source_first, *source_rows_of, *target_first, *target_rows_of; /* lists over touched rows */
    int32_t *prompt_first, *prompt_rows_of;                                 /* lists over prompt rows */
    int32_t *memory;                                                        /* device: holds all of the above */
    size_t capacity;                                                        /* of memory, in elements */
} Batch;

/* ================================================================================================================
 * The engine: LoRA (chapter 4). An adapter that is attached to a model is freed with it. */

/* A new one, as PEFT makes it: A uniform, B zero. targets: names of modules between commas, "q,v", matched as PEFT's
 * target_modules ("SelfAttention.q" is one too), or "all-linear": every matrix of every layer. */
int lora_create(Model *model, const char *targets, size_t rank, double alpha, uint64_t seed, Error *error);
int lora_open(Model *model, const char *directory, Error *error); /* a PEFT adapter */
int lora_write(const Model *model, const char *directory, const char *base_model, Error *error);
void lora_merge(const Model *model);   /* W = W0 + scale * B·A: after A, B or W0 changed */
void lora_unmerge(const Model *model); /* W = W0: the model without its adapter, until the next lora_merge */
void lora_detach(Model *model);        /* unmerges and frees it; nothing happens where none is attached */
/* The bytes that an adapter adds to a model: itself, the copies W0 of its targets and, when it is trained, its
 * gradients and moments. 0 and an error when the targets are none. */
size_t lora_bytes(const T5Config *config, const char *targets, size_t rank, bool trained, Error *error);

/* ================================================================================================================
 * The engine: Adafactor (chapter 5) */
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_WARMUP, SCHEDULE_RSQRT, SCHEDULE_LINEAR } Schedule;

typedef struct {
    double learning_rate, decay_rate, clip, weight_decay;
    bool scale_by_parameter;
    int64_t first_step; /* the step the count starts at: 1,000,000 continues as T5X does from a pretrained mT5 */
    Schedule schedule;
    int64_t warmup, total_steps;
} AdafactorSettings;

/* ================================================================================================================
 * The engine: decoding (chapter 6) */
typedef enum { LENGTH_T5X, LENGTH_HF } LengthRule;

typedef struct {
    size_t beams, n_best, max_length; /* max_length: generated tokens, EOS counted */
    LengthRule rule;
    double alpha, length_penalty;
    bool early_stopping;
    bool sample;
    double temperature, top_p;
    size_t top_k;
    uint64_t seed;
    bool unscored;         /* nobody asks for the scores: greedy decoding is faster without */
    struct Greedy *greedy; /* what greedy decoding keeps for later calls; NULL: nothing */
} DecodeSettings;

/* Greedy decoding finds the best words sooner with a sketch of the head. Begin with zeros. After a change of the
 * weights, and at the end, greedy_free is to be called. */
typedef struct Greedy {
    size_t steps; /* so far, of few enough rows for a sketch */
    bool tried;   /* to make the sketch */
    HeadSketch *sketch;
} Greedy;
void greedy_free(Greedy *greedy);

typedef struct {
    int32_t *ids; /* without start token and EOS */
    size_t length;
    double score; /* sum of log-probabilities after the length rule; NAN of a greedy one that is unscored */
} Hypothesis;

/* Decodes any number of inputs, longest first, in batches of bounded memory; the results do not depend on the
 * batches, to the last bit. out [count * n_best] must come zeroed; it is filled best first for each input, in the order
 * of the inputs, and is to be freed (with hypotheses_free) on an error too. progress, if not NULL, is called after each
 * batch. */
int decode(const Model *model, const Prompts *prompts, const TokenExample *inputs, size_t count,
           const DecodeSettings *settings, Hypothesis *out, void (*progress)(void *context, size_t done, size_t count),
           void *context, Error *error);
void hypotheses_free(Hypothesis *hypotheses, size_t count);

/* ================================================================================================================
 * The engine: analysis (chapter 9) */

/* The parts of a model for which gradients are compared. Every tensor belongs to one of them; TOTAL is all tensors of
 * the model together; the soft prompts are apart, for they are no weights. */
#define MODULES(X)                                                                                                     \
    X(ENCODER_SELF_ATTENTION, "encoder.SelfAttention")                                                                 \
    X(ENCODER_MLP, "encoder.DenseReluDense")                                                                           \
    X(ENCODER_NORMS, "encoder.norms")                                                                                  \
    X(DECODER_SELF_ATTENTION, "decoder.SelfAttention")                                                                 \
    X(DECODER_CROSS_ATTENTION, "decoder.EncDecAttention")                                                              \
    X(DECODER_MLP, "decoder.DenseReluDense")                                                                           \
    X(DECODER_NORMS, "decoder.norms")                                                                                  \
    X(RELATIVE_BIAS, "relative_attention_bias")                                                                        \
    X(SHARED, "shared")                                                                                                \
    X(LM_HEAD, "lm_head")                                                                                              \
    X(TOTAL, "total")                                                                                                  \
    X(PROMPT, "prompt")

typedef enum {
#define X(id, name) MODULE_##id,
    MODULES(X)
#undef X
        N_MODULES
} Module;

const char *module_name(Module module);
Module tensor_module(const char *tensor_name); /* of a tensor of the tensor table */

/* Two gradients, of the full task and of its format only, module by module. */
typedef struct {
    double dot[N_MODULES];           /* <full, format> */
    double full_square[N_MODULES];   /* |full|^2 */
    double format_square[N_MODULES]; /* |format|^2 */
} Alignment;

double alignment_cosine(const Alignment *alignment, Module module); /* NAN where a gradient is zero or absent */

/* Compares the gradients of two lists of `count` examples: full[i] and format[i] have the same input and (usually)
 * different targets. Each gradient is that of the loss summed over its whole list, without dropout; micro: so many
 * examples at a time (0: all), which changes the memory only. prompts NULL: none are attached, whatever the examples
 * say. For the spread over batches, call it for each slice of the lists. */
int alignment(const Model *model, const Prompts *prompts, const TokenExample *full, const TokenExample *format,
              size_t count, size_t micro, const LossSettings *loss, Alignment *out, Error *error);
/* The bytes that it takes, beside the model and the prompts. */
size_t alignment_bytes(const Model *model, const Prompts *prompts, const TokenExample *full, const TokenExample *format,
                       size_t count, size_t micro);

/* Targets for the format-only data: pure functions of (seed, i). Which of n_labels label words example i gets, each
 * equally likely, the true one among them; or, for tasks without label words, which other one of `count` examples lends
 * example i its target (with count 1: its own). */
size_t random_label(uint64_t seed, size_t i, size_t n_labels);
size_t random_other_example(uint64_t seed, size_t i, size_t count);

/* Is an answer (as task_postprocess leaves it) one of the label words of `target`, the task that was trained? A target
 * without label words has no format that could be told so: false for every answer, and the ratio is not a number. */
bool is_in_format(const Task *target, const char *answer);
/* The percentage of answers in the format of any of the targets; NAN: undefined. */
double format_ratio(const Task *const *targets, size_t n_targets, const char *const *answers, size_t count);

/* ================================================================================================================
 * The command line (chapter 10). Returns the exit status. */
int promot_main(int argc, char **argv);

#endif /* PROMOT_KERNELS_ONLY */
#endif

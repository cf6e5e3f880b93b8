/* test_work.c: how much is computed, without a clock. Chapter 2 is left out, as a GPU build does, and every kernel here
 * only counts what it is asked for: so the operations of a step and of decoding can be compared with the formulas by
 * which they are foretold and measured, to the last one. A row of padding, a product that is made twice, or one that
 * nobody needs would show. */
#define PROMOT_GPU
#pragma GCC diagnostic ignored "-Wunused-function" /* random numbers that only kernels draw */
#include "../promot.c"
#include "steps.h"

#include "test.h"

struct Device {
    int threads;
};

static struct {
    double linear, attention; /* operations, a multiply-add being two */
    size_t updated;           /* weights that Adafactor was asked to update, by rows or whole */
    size_t allocations;
} work;

/* ---------------------------------------------------------------------------------------------------------- the device */

Device *device_open(int threads, MatmulPrecision precision, Error *error)
{
    Device *dev = host_alloc(1, sizeof *dev);
    (void)precision, (void)error;
    dev->threads = threads;
    return dev;
}

void device_close(Device *dev)
{
    free(dev);
}

int device_threads(const Device *dev)
{
    return dev->threads;
}

void device_wait(Device *dev)
{
    (void)dev;
}

bool device_has_bf16(void)
{
    return false;
}

size_t device_memory_available(void)
{
    return 0;
}

void *device_alloc(size_t bytes)
{
    work.allocations++;
    return calloc(1, bytes ? bytes : 1);
}

void device_free(void *memory)
{
    free(memory);
}

void device_clear(Device *dev, void *memory, size_t bytes)
{
    (void)dev;
    memset(memory, 0, bytes);
}

void device_copy(Device *dev, void *to, const void *from, size_t bytes)
{
    (void)dev;
    memcpy(to, from, bytes);
}

void device_upload(Device *dev, void *to, const void *host, size_t bytes)
{
    device_copy(dev, to, host, bytes);
}

void device_download(Device *dev, void *host, const void *from, size_t bytes)
{
    device_copy(dev, host, from, bytes);
}

weight_t *weights_alloc(size_t n)
{
    return device_alloc(n * WEIGHT_BYTES);
}

void weights_free(weight_t *weights)
{
    device_free(weights);
}

void device_stream_weights(Device *dev)
{
    (void)dev;
}

weight_t *weights_alloc_model(const Device *dev, size_t n)
{
    (void)dev;
    return weights_alloc(n);
}

bool weights_are_streamed(const weight_t *weights)
{
    (void)weights;
    return false;
}

size_t weights_device_bytes(const weight_t *weights, size_t n)
{
    (void)weights;
    return n * WEIGHT_BYTES;
}

int weights_keep(const weight_t *first, size_t n, size_t count, size_t stride, Error *error)
{
    (void)first, (void)n, (void)count, (void)stride, (void)error;
    return 0;
}

void weights_stream(Device *dev, WeightPiece now, WeightPiece next)
{
    (void)dev, (void)now, (void)next;
}

int weights_park(Device *dev, weight_t *weights, bool parked, Error *error)
{
    (void)dev, (void)weights, (void)parked, (void)error;
    return 0;
}

int weights_offload(Device *dev, weight_t *weights, size_t n, Error *error)
{
    (void)dev, (void)weights, (void)n, (void)error;
    return 0;
}

void weights_copy(Device *dev, weight_t *to, const weight_t *from, size_t n)
{
    device_copy(dev, to, from, n * sizeof *to);
}

void weights_upload(Device *dev, weight_t *to, const float *host, size_t n)
{
    device_copy(dev, to, host, n * sizeof *to);
}

void weights_download(Device *dev, float *host, const weight_t *from, size_t n)
{
    device_copy(dev, host, from, n * sizeof *host);
}

void activations_download(Device *dev, float *host, const act_t *from, size_t n)
{
    device_copy(dev, host, from, n * sizeof *host);
}

void logits_download(Device *dev, float *host, const logit_t *from, size_t n)
{
    device_copy(dev, host, from, n * sizeof *host);
}

void stats_upload(Device *dev, stat_t *to, const float *host, size_t n)
{
    device_copy(dev, to, host, n * sizeof *to);
}

void stats_download(Device *dev, float *host, const stat_t *from, size_t n)
{
    device_copy(dev, host, from, n * sizeof *host);
}

Readback *readback_create(Device *dev, size_t bytes)
{
    (void)dev;
    return device_alloc(bytes);
}

void readback_free(Readback *readback)
{
    device_free(readback);
}

void readback_copy(Readback *readback, size_t at, const void *from, size_t bytes)
{
    memcpy((char *)readback + at, from, bytes);
}

bool readback_is_there(const Readback *readback)
{
    (void)readback;
    return true;
}

const void *readback_wait(Readback *readback)
{
    return readback;
}

/* --------------------------------------------------------------------------------------------------- kernels that count */

void linear_forward(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out)
{
    (void)dev, (void)y, (void)x, (void)w;
    work.linear += 2.0 * (double)rows * (double)in * (double)out;
}

void linear_backward_input(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                           size_t out, bool accumulate)
{
    (void)accumulate;
    linear_forward(dev, dx, dy, w, rows, in, out);
}

void linear_backward_weight(Device *dev, stat_t *dw, const act_t *dy, const act_t *x, size_t rows, size_t in,
                            size_t out, bool accumulate)
{
    (void)dw, (void)x, (void)accumulate;
    linear_forward(dev, NULL, dy, NULL, rows, in, out);
}

void linear_forward_layers(Device *dev, act_t *y, const act_t *x, const weight_t *w, size_t rows, size_t in, size_t out,
                           size_t layers, size_t w_stride, size_t y_stride)
{
    (void)w_stride, (void)y_stride;
    linear_forward(dev, y, x, w, rows, in, layers * out);
}

void linear_backward_input_layers(Device *dev, act_t *dx, const act_t *dy, const weight_t *w, size_t rows, size_t in,
                                  size_t out, size_t layers, size_t w_stride, size_t dy_stride)
{
    linear_forward_layers(dev, dx, dy, w, rows, in, out, layers, w_stride, dy_stride);
}

void linear_residual_forward(Device *dev, act_t *out, const act_t *x, const act_t *y, const weight_t *w, act_t *scratch,
                             const Sequences *seqs, size_t in, size_t width, const Dropout *dropout)
{
    (void)x, (void)scratch, (void)dropout;
    linear_forward(dev, out, y, w, seqs->rows, in, width);
}

void linear_mlp_forward(Device *dev, MlpKind kind, act_t *h, act_t *a, const act_t *x, const weight_t *w,
                        const Sequences *seqs, size_t in, size_t d_ff, const Dropout *dropout)
{
    (void)h, (void)dropout;
    linear_forward(dev, a, x, w, seqs->rows, in, kind == MLP_GATED_GELU ? 2 * d_ff : d_ff);
}

void linear_mlp_backward(Device *dev, MlpKind kind, act_t *da, act_t *dh, act_t *h, const act_t *dy, const weight_t *w,
                         const act_t *a, const Sequences *seqs, size_t out, size_t d_ff, const Dropout *dropout)
{
    (void)kind, (void)da, (void)h, (void)a, (void)dropout;
    linear_forward(dev, dh, dy, w, seqs->rows, d_ff, out);
}

void head_forward(Device *dev, logit_t *logits, const act_t *x, const weight_t *w, size_t rows, size_t in,
                  size_t vocabulary)
{
    (void)logits;
    linear_forward(dev, NULL, x, w, rows, in, vocabulary);
}

/* Two products for each pair of a query and a key; causal ones are counted whole, as the formulas do. */
void attention_forward(Device *dev, act_t *out, stat_t *logsumexp, const Attention *a)
{
    (void)dev, (void)out, (void)logsumexp;
    for (size_t s = 0; s < a->queries.count; s++)
        work.attention += 4.0 * (double)a->queries.length[s] * (double)a->keys.length[s] * (double)(a->heads * a->d_kv);
}

/* The four products of the gradients; the scores' own, made again, is no work of the model's. */
void attention_backward(Device *dev, act_t *dq, act_t *dk, act_t *dv, stat_t *dbias, const act_t *dout,
                        const act_t *out, const stat_t *logsumexp, const Attention *a)
{
    (void)dk, (void)dv, (void)dbias, (void)dout, (void)out, (void)logsumexp;
    attention_forward(dev, dq, NULL, a);
    attention_forward(dev, dq, NULL, a);
}

void attention_cached_forward(Device *dev, act_t *out, const act_t *cache, const int32_t *ancestors, size_t rows,
                              size_t steps, size_t max_steps, size_t capacity, size_t heads, size_t d_kv,
                              const weight_t *bias_table, const int32_t *bucket, size_t buckets)
{
    (void)dev, (void)out, (void)cache, (void)ancestors, (void)max_steps, (void)capacity;
    (void)bias_table, (void)bucket, (void)buckets;
    work.attention += 4.0 * (double)rows * (double)steps * (double)(heads * d_kv);
}

void adafactor_update(Device *dev, weight_t *p, const stat_t *g, const SecondMoment *moment, size_t rows,
                      size_t columns, const AdafactorStep *step)
{
    (void)dev, (void)p, (void)g, (void)moment, (void)step;
    work.updated += rows * columns;
}

void adafactor_update_rows(Device *dev, weight_t *p, const stat_t *g, const int32_t *index, size_t n,
                           const SecondMoment *moment, size_t rows, size_t columns, const AdafactorStep *step)
{
    (void)index, (void)rows;
    adafactor_update(dev, p, g, moment, n, columns, step);
}

/* Answers are never an end of sequence: decoding goes on as long as it may. */
void head_top_log_probabilities(Device *dev, stat_t *logp, int32_t *word, logit_t *logits, const act_t *x,
                                const weight_t *w, size_t rows, size_t in, size_t vocabulary, size_t k)
{
    head_forward(dev, logits, x, w, rows, in, vocabulary);
    for (size_t i = 0; i < rows * k; i++) word[i] = 5 + (int32_t)(i % k), logp[i] = -(stat_t)(1 + i % k);
}

/* ------------------------------------------------------------------------------- kernels that have nothing to multiply */

#define NOTHING(name, ...)                                                                                             \
    void name(Device *dev, __VA_ARGS__)                                                                                \
    {                                                                                                                  \
        (void)dev;                                                                                                     \
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
NOTHING(embedding_forward, act_t *out, const weight_t *table, const weight_t *prompts, const int32_t *ids, size_t rows,
        size_t width)
NOTHING(embedding_backward, stat_t *dtable, const act_t *dout, const int32_t *first, const int32_t *source,
        size_t targets, size_t width)
NOTHING(dropout_forward, act_t *x, const Sequences *seqs, size_t width, const Dropout *dropout)
NOTHING(residual_forward, act_t *out, const act_t *x, const act_t *branch, const Sequences *seqs, size_t width,
        const Dropout *dropout)
NOTHING(residual_backward, act_t *dbranch, const act_t *dout, const Sequences *seqs, size_t width,
        const Dropout *dropout)
NOTHING(rmsnorm_forward, act_t *y, stat_t *rstd, const act_t *x, const weight_t *scale, size_t rows, size_t width,
        float epsilon)
NOTHING(rmsnorm_backward, act_t *dx, stat_t *dscale, const act_t *dy, const act_t *x, const stat_t *rstd,
        const weight_t *scale, size_t rows, size_t width)
NOTHING(lora_merge_forward, weight_t *w, const weight_t *base, const weight_t *a, const weight_t *b, size_t rows,
        size_t columns, size_t rank, float scale)
NOTHING(lora_backward, stat_t *da, stat_t *db, const stat_t *dw, const weight_t *a, const weight_t *b, size_t rows,
        size_t columns, size_t rank, float scale)
NOTHING(mlp_activation_forward, MlpKind kind, act_t *h, const act_t *a, const Sequences *seqs, size_t d_ff,
        const Dropout *dropout)
NOTHING(mlp_activation_backward, MlpKind kind, act_t *da, const act_t *dh, const act_t *a, const Sequences *seqs,
        size_t d_ff, const Dropout *dropout)
NOTHING(softmax_cross_entropy, stat_t *loss, act_t *dlogits, const logit_t *logits, const int32_t *targets, size_t rows,
        size_t vocabulary, const LossSettings *settings)
NOTHING(scale_forward, act_t *x, float factor, size_t n)
NOTHING(rows_sum_of_squares, stat_t *out, const weight_t *x, size_t rows, size_t columns)

NOTHING(dot_product, double *dot, const stat_t *a, const stat_t *b, size_t n)
#pragma GCC diagnostic pop

/* --------------------------------------------------------------------------------------------------------------- tests */

static const char config_text[] = "{\"model_type\": \"mt5\", \"vocab_size\": 400, \"d_model\": 128, \"d_kv\": 4, "
                                  "\"d_ff\": 10, \"num_heads\": 3, \"num_layers\": 2, \"num_decoder_layers\": 3}";
enum { EXAMPLES = 5, PROMPT_ROWS = 7 };
static const Lengths lengths[EXAMPLES] = {{12, 3}, {5, 1}, {31, 9}, {2, 4}, {17, 6}};

static Model *open_model_of(const char *text)
{
    T5Config config = {0};
    Error error = {0};
    Model *model;
    CHECK(bench_config(&config, NULL, text, &error) == 0, "%s", error.text);
    model = bench_model(&config, device_open(1, MATMUL_FP32, &error), &error);
    free(config.json);
    return model;
}

static void close_model(Model *model)
{
    Device *dev = model->dev;
    model_close(model);
    device_close(dev);
}

/* Runs a few steps; the counts are those of the last. */
static void train(const Model *model, const Prompts *prompts, StepMethod method, const BenchExamples *e, size_t micro)
{
    const Stage stage = bench_stage(method);
    Trainer trainer;
    StepResult result;
    Error error = {0};
    CHECK(trainer_create(&trainer, model, prompts, &stage, 200, micro < e->count, &error) == 0, "%s", error.text);
    for (int64_t s = 0; s < 3; s++) {
        work.linear = work.attention = 0;
        work.updated = work.allocations = 0;
        CHECK(train_step(&trainer, model, prompts, &stage, e->examples, e->count, micro, s, 1, true, &result, &error) ==
                  0,
              "%s", error.text);
    }
    CHECK(work.allocations == 0, "%zu allocations in the third step", work.allocations);
    trainer_free(&trainer);
}

/* A step is three forward passes' worth of work, of the tokens that are there and no others. Micro-batches do not change
 * it. Of the embedding, only the rows of the batch are updated. */
static void test_finetuning(void)
{
    for (size_t micro = 2; micro <= EXAMPLES; micro += 3) {
        Model *model = open_model_of(config_text);
        const T5Config *c = &model->config;
        BenchExamples e;
        size_t n_touched;
        double flops;
        examples_of(&e, c, lengths, EXAMPLES, -1);
        free(touched_ids(c, e.examples, EXAMPLES, &n_touched));
        flops = forward_flops(c, e.examples, EXAMPLES, 0);
        train(model, NULL, STEP_FINETUNE, &e, micro);
        CHECK(work.linear + work.attention == 3 * flops, "%.0f operations (expected %.0f)",
              work.linear + work.attention, 3 * flops);
        CHECK(work.updated == model->n_weights - (c->vocab_size - n_touched) * c->d_model, "%zu weights updated",
              work.updated);
        examples_free(&e);
        close_model(model);
    }
}

/* With the prompt in front it is the same work for longer inputs. Prompt tuning makes no weight gradient, and of the lowest
 * decoder layer nothing that lies below the keys and values of its cross-attention: its queries, and its whole
 * self-attention. (This last is too little for promot bench to count.) */
static void test_prompts(void)
{
    Model *model = open_model_of(config_text);
    const double D = 128, I = 12;
    const Stage stage = bench_stage(STEP_PROMPT);
    double flops, saved = 0;
    Prompts prompts = {0};
    BenchExamples e;
    Error error = {0};
    CHECK(prompts_allocate(&prompts, model, 1, PROMPT_ROWS, &error) == 0, "%s", error.text);
    examples_of(&e, &model->config, lengths, EXAMPLES, 0);
    flops = forward_flops(&model->config, e.examples, EXAMPLES, PROMPT_ROWS);
    train(model, &prompts, STEP_PROMOT, &e, EXAMPLES);
    CHECK(work.linear + work.attention == 3 * flops, "%.0f operations (expected %.0f)", work.linear + work.attention,
          3 * flops);
    for (size_t i = 0; i < EXAMPLES; i++) {
        const double T = (double)lengths[i].target;
        saved += 2 * T * D * I + 2 * T * D * I + 2 * T * D * 3 * I + 2 * 4 * T * T * I;
    }
    flops = step_counts(&model->config, &stage, &e, PROMPT_ROWS).flops;
    train(model, &prompts, STEP_PROMPT, &e, EXAMPLES);
    CHECK(work.linear + work.attention == flops - saved, "%.0f operations (expected %.0f)",
          work.linear + work.attention, flops - saved);
    CHECK(work.updated == PROMPT_ROWS * 128, "%zu weights updated", work.updated);
    prompts_free(&prompts);
    examples_free(&e);
    close_model(model);
}

/* Greedy and by beams: what promot bench counts, and the attention to earlier tokens that it leaves out. */
static void test_decoding(void)
{
    for (size_t beams = 1; beams <= 4; beams += 3) {
        Model *model = open_model_of(config_text);
        const Bench bench = {.config = model->config, .threads = 1};
        const DecodeCase d = {"fp32", beams, 2};
        const DecodeCounts counts = decode_counts(&bench, &d);
        double seconds[1], past = 0;
        size_t tokens;
        BenchExamples e;
        Error error = {0};
        examples_even(&e, &model->config, 2, DECODE_INPUT, 1, -1);
        work.linear = work.attention = 0;
        CHECK(time_decoding(model, &d, &e, seconds, 0, &tokens, &error) == 0, "%s", error.text);
        for (int t = 1; t <= DECODE_OUTPUT; t++)
            past += (double)model->config.num_decoder_layers * 2.0 * (t == 1 ? 1.0 : (double)beams) * 4 * t * 12;
        CHECK(work.linear + work.attention == counts.flops + past, "%zu beams: %.0f operations (expected %.0f)", beams,
              work.linear + work.attention, counts.flops + past);
        CHECK(tokens == 2 * DECODE_OUTPUT, "%zu tokens", tokens);
        examples_free(&e);
        close_model(model);
    }
}

static const Test tests[] = {
    {"finetuning", test_finetuning},
    {"prompts", test_prompts},
    {"decoding", test_decoding},
};
TEST_MAIN(tests)

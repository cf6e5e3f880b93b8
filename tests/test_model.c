/* test_model.c: the model, soft prompts and Adafactor (chapters 3 to 5 of promot.c), and how training draws its examples
 * (the beginning of chapter 7). Tiny models of odd sizes, made on the spot.
 *
 * Built twice: as it is, and with every number a double, where finite differences check all gradients at once. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "test.h"

/* Every device_alloc asks aligned_alloc, and promot.c's calls of it are counted here. */
static size_t allocations, allocated_bytes;

static void *counted_aligned_alloc(size_t alignment, size_t bytes)
{
    allocations++;
    allocated_bytes += bytes;
    return aligned_alloc(alignment, bytes);
}

#define aligned_alloc counted_aligned_alloc
#include "../promot.c"
#include "steps.h"
#undef aligned_alloc

#define SCRATCH BUILD "/test/model"

/* Two ways to sum the same numbers differ by rounding: a few hundred terms of 6e-8 (1e-16) each, adding up at random
 * through some twenty layers of operations. */
static const double ROUNDING = sizeof(real_t) == sizeof(float) ? 2e-5 : 1e-12;

/* ------------------------------------------------------------------------------------------------- models and batches */

typedef struct {
    const char *name, *json;
} Shape;

/* Below 128 on a side Adafactor is not factored, and the embedding's gradient is dense. */
static const Shape SMALL = {"small",
                            "{\"model_type\": \"mt5\", \"vocab_size\": 53, \"d_model\": 12, \"d_kv\": 5, \"d_ff\": 19, "
                            "\"num_heads\": 3, \"num_layers\": 2, \"relative_attention_num_buckets\": 8, "
                            "\"relative_attention_max_distance\": 12}"};
static const Shape SMALL_TIED = {
    "small-tied", "{\"model_type\": \"t5\", \"vocab_size\": 47, \"d_model\": 10, \"d_kv\": 3, \"d_ff\": 21, "
                  "\"num_heads\": 2, \"num_layers\": 2, \"num_decoder_layers\": 1}"};
static const Shape LARGE = {
    "large", "{\"model_type\": \"mt5\", \"vocab_size\": 300, \"d_model\": 131, \"d_kv\": 26, \"d_ff\": 137, "
             "\"num_heads\": 5, \"num_layers\": 1}"};
static const Shape LARGE_TIED = {
    "large-tied", "{\"model_type\": \"t5\", \"vocab_size\": 150, \"d_model\": 129, \"d_kv\": 43, \"d_ff\": 128, "
                  "\"num_heads\": 3, \"num_layers\": 1, \"feed_forward_proj\": \"relu\"}"};

enum { EXAMPLES = 5, LONGEST = 11, PROMPTS = 2, PROMPT_LENGTH = 3 };

/* A model on a device of its own, with two prompts and a ragged batch. */
typedef struct {
    Device *dev;
    Model *model;
    Prompts prompts;
    int32_t ids[EXAMPLES][2][LONGEST];
    TokenExample examples[EXAMPLES];
} World;

static void world_draw_examples(World *w, uint64_t seed)
{
    static const size_t lengths[EXAMPLES][2] = {{7, 3}, {1, 1}, {LONGEST, 5}, {4, 2}, {9, 6}};
    int32_t vocabulary = (int32_t)w->model->config.vocab_size;
    for (size_t b = 0; b < EXAMPLES; b++) {
        for (int side = 0; side < 2; side++)
            for (size_t i = 0; i < LONGEST; i++)
                w->ids[b][side][i] = (int32_t)(random_uniform(seed, (b * 2 + (size_t)side) * LONGEST + i) * vocabulary);
        w->examples[b] = (TokenExample){.input = w->ids[b][0],
                                        .target = w->ids[b][1],
                                        .input_length = lengths[b][0],
                                        .target_length = lengths[b][1],
                                        .prompt = (int)(b % 3) - 1,
                                        .number = b};
    }
}

static bool world_open(World *w, const Shape *shape, int threads)
{
    Error error = {0};
    char path[256];
    memset(w, 0, sizeof *w);
    snprintf(path, sizeof path, SCRATCH "/%s.json", shape->name);
    CHECK(directory_create(SCRATCH, &error) == 0 && file_write_text(path, shape->json, &error) == 0, "%s", error.text);
    w->dev = device_open(threads, MATMUL_FP32, &error);
    w->model = w->dev ? model_create(path, w->dev, 5, &error) : NULL;
    CHECK(w->model != NULL, "%s", error.text);
    if (!w->model) return false;
    /* Norms of 1 would hide a forgotten scale. */
    for (size_t t = 0; t < w->model->n_tensors; t++)
        for (size_t i = 0; w->model->tensors[t].is_vector && i < w->model->tensors[t].columns; i++)
            w->model->tensors[t].data[i] = (real_t)(0.5 + random_uniform(900 + t, i));
    CHECK(prompts_allocate(&w->prompts, w->model, PROMPTS, PROMPT_LENGTH, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < PROMPTS * PROMPT_LENGTH * w->model->config.d_model; i++)
        w->prompts.rows[i] = (real_t)random_normal(77, i);
    world_draw_examples(w, 31);
    return true;
}

static void world_close(World *w)
{
    prompts_free(&w->prompts);
    model_close(w->model);
    device_close(w->dev);
}

/* Gradients of everything, kept. */
typedef struct {
    Gradients grads;
    char *memory;
    size_t n_model, n_prompts; /* elements; the embedding's lie behind the others in `model` */
} AllGradients;

static void all_gradients_open(AllGradients *all, const World *w, bool model)
{
    Error error = {0};
    GradientPlan plan = {.model = model, .prompts = true, .keep = true, .n_touched = w->model->config.vocab_size};
    CHECK(gradients_create(&all->grads, &all->memory, w->model, &plan, PROMPTS * PROMPT_LENGTH, &error) == 0, "%s",
          error.text);
    all->n_model = w->model->n_weights;
    all->n_prompts = PROMPTS * PROMPT_LENGTH * w->model->config.d_model;
}

static stat_t *gradient_of(const AllGradients *all, const Model *model, const Tensor *tensor)
{
    return gradient_place(&all->grads, model, tensor);
}

/* The loss in full precision: t5_loss itself hands losses over as floats. grads NULL: no gradients. */
static double loss_of(World *w, Pass *pass, Batch *batch, const TokenExample *examples, size_t count, size_t first,
                      const LossSettings *loss, const Gradients *grads)
{
    Error error = {0};
    double sum = 0;
    CHECK(batch_build(batch, w->model, examples, count, PROMPT_LENGTH, PROMPTS, first, NULL, 0, &error) == 0, "%s",
          error.text);
    CHECK(pass_prepare(pass, w->model, &w->prompts, batch, PASS_TRAIN, &error) == 0, "%s", error.text);
    t5_loss(pass, loss, grads);
    for (size_t i = 0; i < batch->target.rows; i++) sum += pass->loss[i];
    return sum;
}

static double distance(const stat_t *a, const stat_t *b, size_t n, double *norm)
{
    double difference = 0;
    *norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        *norm += (double)b[i] * b[i];
    }
    *norm = sqrt(*norm);
    return sqrt(difference);
}

/* ------------------------------------------------------------------------------------------- packed sequences, batches */

static void check_packed(const Shape *shape, bool shared)
{
    const LossSettings loss = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};
    World w;
    AllGradients together, alone;
    Pass pass = {.dropout = 0.3f, .dropout_shared = shared, .dropout_key = 99};
    Batch batch = {0};
    double loss_together, loss_alone = 0, norm, error;
    if (!world_open(&w, shape, 1)) return;
    all_gradients_open(&together, &w, true);
    all_gradients_open(&alone, &w, true);
    loss_together = loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &together.grads);
    for (size_t b = 0; b < EXAMPLES; b++) {
        alone.grads.accumulate = b > 0;
        loss_alone += loss_of(&w, &pass, &batch, &w.examples[b], 1, b, &loss, &alone.grads);
    }
    CHECK(fabs(loss_together - loss_alone) <= ROUNDING * fabs(loss_alone), "%s: %.9g and %.9g", shape->name,
          loss_together, loss_alone);
    for (size_t t = 0; t < w.model->n_tensors; t++) {
        const Tensor *tensor = &w.model->tensors[t];
        error = distance(gradient_of(&together, w.model, tensor), gradient_of(&alone, w.model, tensor),
                         tensor->rows * tensor->columns, &norm);
        CHECK(norm > 0, "%s: %s has no gradient", shape->name, tensor->name);
        CHECK(error <= ROUNDING * norm, "%s: gradient of %s differs by %g of %g", shape->name, tensor->name, error,
              norm);
    }
    error = distance(together.grads.prompts, alone.grads.prompts, together.n_prompts, &norm);
    CHECK(norm > 0 && error <= ROUNDING * norm, "%s: gradient of the prompts differs by %g of %g", shape->name, error,
          norm);
    device_free(together.memory);
    device_free(alone.memory);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

/* A batch of ragged rows is worth the sum of its sequences one by one: nothing leaks from one to its neighbour, and a
 * dropout mask belongs to the example, not to its place. */
static void test_packed_sequences(void)
{
    for (int shared = 0; shared < 2; shared++) {
        check_packed(&SMALL, shared);
        check_packed(&SMALL_TIED, shared);
        check_packed(&LARGE, shared);
    }
}

/* A layer that makes the first product of its MLP again, instead of keeping it, makes the same bits; and a pass with such
 * layers is smaller by what they do not keep. */
static void check_recomputed(const Shape *shape)
{
    const LossSettings loss = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};
    World w;
    AllGradients kept, again;
    Pass pass = {.dropout = 0.3f, .dropout_key = 99};
    Batch batch = {0};
    double of_kept, saved;
    if (!world_open(&w, shape, 1)) return;
    const T5Config *c = &w.model->config;
    all_gradients_open(&kept, &w, true);
    all_gradients_open(&again, &w, true);
    of_kept = loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &kept.grads);
    for (pass.recomputed = 1; pass.recomputed <= c->num_layers; pass.recomputed++) {
        CHECK(loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &again.grads) == of_kept, "%s: another loss",
              shape->name);
        for (size_t t = 0; t < w.model->n_tensors; t++) {
            const Tensor *tensor = &w.model->tensors[t];
            CHECK(memcmp(gradient_of(&again, w.model, tensor), gradient_of(&kept, w.model, tensor),
                         tensor->rows * tensor->columns * sizeof(stat_t)) == 0,
                  "%s: %s with %zu recomputed layers", shape->name, tensor->name, pass.recomputed);
        }
        saved = (double)pass_bytes(c, batch.source.rows, batch.target.rows, PASS_TRAIN, 0) -
                (double)pass_bytes(c, batch.source.rows, batch.target.rows, PASS_TRAIN, pass.recomputed);
        const double each = (double)(batch.source.rows * mlp_width(c) * sizeof(act_t));
        CHECK(fabs(saved - each * ((double)pass.recomputed - 1)) <= 64.0 * (double)c->num_layers,
              "%s: %zu layers save %.0f bytes", shape->name, pass.recomputed, saved);
        CHECK(recomputed_to_save(c, batch.source.rows, batch.target.rows, (size_t)saved) ==
                  (saved ? pass.recomputed : 0),
              "%s: more or fewer than %zu layers to save %.0f bytes", shape->name, pass.recomputed, saved);
    }
    CHECK(recomputed_to_save(c, batch.source.rows, batch.target.rows, SIZE_MAX) == c->num_layers, "not all layers");
    device_free(kept.memory);
    device_free(again.memory);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

static void test_recomputed(void)
{
    check_recomputed(&SMALL);
    check_recomputed(&SMALL_TIED);
    check_recomputed(&LARGE);
}

/* --------------------------------------------------------------------------------------------------- steps of training */

static Stage stage_of(bool model, bool prompts)
{
    AdafactorSettings settings = {.learning_rate = 0.03, .decay_rate = 0.8, .clip = 1, .scale_by_parameter = true};
    Stage stage = {.name = "test",
                   .trains_model = model,
                   .trains_prompts = prompts,
                   .uses_prompts = true,
                   .steps = 10,
                   .checkpoint_every = 10,
                   .model = settings,
                   .prompt = settings,
                   .dropout = 0.25f,
                   .loss = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1}};
    stage.prompt.scale_by_parameter = false;
    return stage;
}

/* Trains for some steps, each on a batch of its own. */
static void train(World *w, Trainer *trainer, const Stage *stage, size_t micro, int64_t steps, bool shared)
{
    Error error = {0};
    StepResult result;
    for (int64_t s = 0; s < steps; s++) {
        world_draw_examples(w, 31 + (uint64_t)s);
        CHECK(train_step(trainer, w->model, &w->prompts, stage, w->examples, EXAMPLES, micro, s,
                         random_fold(3, (uint64_t)s), shared, &result, &error) == 0,
              "%s", error.text);
    }
}

static void trainer_open(Trainer *trainer, const World *w, const Stage *stage, bool keep)
{
    Error error = {0};
    CHECK(trainer_create(trainer, w->model, &w->prompts, stage, EXAMPLES * 2 * LONGEST, keep, &error) == 0, "%s",
          error.text);
}

static bool same_bits(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n * sizeof(real_t)) == 0;
}

/* How far weights moved apart, as a share of how far they moved. */
static double apart(const weight_t *a, const weight_t *b, const weight_t *start, size_t n)
{
    double difference = 0, moved = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        moved += ((double)b[i] - start[i]) * ((double)b[i] - start[i]);
    }
    return sqrt(difference / moved);
}

static weight_t *copy_of_weights(const Model *model)
{
    weight_t *copy = host_alloc(model->n_weights, sizeof *copy);
    memcpy(copy, model->weights, model->n_weights * sizeof *copy);
    return copy;
}

/* Micro-batches of any size end in the update of the whole batch. One step: the first update of an element that is not
 * factored is only its gradient's sign, and a gradient that is nothing but rounding may have either. MOVEMENT allows a
 * few of them (one in 3e5 elements makes 2 / sqrt(3e5)); so little dropout that no column of a factored matrix is dropped
 * from all sequences but that of one target, whose own gradient is rounding. */
static void test_micro_batches(void)
{
    const double MOVEMENT = sizeof(real_t) == sizeof(float) ? 4e-3 : 1e-9;
    const Shape *shapes[] = {&SMALL, &SMALL_TIED, &LARGE, &LARGE_TIED};
    Stage stage = stage_of(true, true);
    stage.dropout = 0.1f;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int shared = 0; shared < 2; shared++) {
            World whole, parts;
            weight_t *start, prompts[PROMPTS * PROMPT_LENGTH * 256];
            Trainer trainer;
            size_t n_prompts;
            if (!world_open(&whole, shapes[i], 1)) return;
            start = copy_of_weights(whole.model);
            n_prompts = PROMPTS * PROMPT_LENGTH * whole.model->config.d_model;
            memcpy(prompts, whole.prompts.rows, n_prompts * sizeof *prompts);
            trainer_open(&trainer, &whole, &stage, false);
            train(&whole, &trainer, &stage, EXAMPLES, 1, shared);
            trainer_free(&trainer);
            for (size_t micro = 1; micro < EXAMPLES; micro++) {
                double error;
                world_open(&parts, shapes[i], 1);
                trainer_open(&trainer, &parts, &stage, true);
                train(&parts, &trainer, &stage, micro, 1, shared);
                error = apart(parts.model->weights, whole.model->weights, start, whole.model->n_weights);
                CHECK(error <= MOVEMENT, "%s, micro-batches of %zu: %g of the movement", shapes[i]->name, micro, error);
                error = apart(parts.prompts.rows, whole.prompts.rows, prompts, n_prompts);
                CHECK(error <= MOVEMENT, "%s, micro-batches of %zu: prompts, %g of the movement", shapes[i]->name,
                      micro, error);
                trainer_free(&trainer);
                world_close(&parts);
            }
            free(start);
            world_close(&whole);
        }
}

/* The update made inside the backward pass is the update made after it, bit for bit. */
static void test_fused_update(void)
{
    const Shape *shapes[] = {&SMALL, &SMALL_TIED, &LARGE, &LARGE_TIED};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int decay = 0; decay < 2; decay++) {
            Stage stage = stage_of(true, true);
            World fused, kept;
            Trainer fused_trainer, kept_trainer;
            stage.model.weight_decay = decay ? 1e-3 : 0;
            if (!world_open(&fused, shapes[i], 1) || !world_open(&kept, shapes[i], 1)) return;
            trainer_open(&fused_trainer, &fused, &stage, false);
            trainer_open(&kept_trainer, &kept, &stage, true);
            CHECK(fused_trainer.grads.finished && !kept_trainer.grads.finished, "the two ways are one");
            train(&fused, &fused_trainer, &stage, EXAMPLES, 3, true);
            train(&kept, &kept_trainer, &stage, EXAMPLES, 3, true);
            CHECK(same_bits(fused.model->weights, kept.model->weights, kept.model->n_weights), "%s: weights differ",
                  shapes[i]->name);
            CHECK(
                same_bits(fused.prompts.rows, kept.prompts.rows, PROMPTS * PROMPT_LENGTH * kept.model->config.d_model),
                "%s: prompts differ", shapes[i]->name);
            CHECK(fused_trainer.adafactor.size == kept_trainer.adafactor.size &&
                      same_bits(fused_trainer.adafactor.memory, kept_trainer.adafactor.memory,
                                kept_trainer.adafactor.size),
                  "%s: moments differ", shapes[i]->name);
            trainer_free(&fused_trainer);
            trainer_free(&kept_trainer);
            world_close(&fused);
            world_close(&kept);
        }
}

/* A trainer that holds the embedding's gradient whole where trainer_create would hold touched rows. */
static void trainer_open_dense(Trainer *trainer, const World *w, const Stage *stage)
{
    Error error = {0};
    GradientPlan plan = {.model = true, .n_touched = w->model->config.vocab_size};
    memset(trainer, 0, sizeof *trainer);
    CHECK(adafactor_create(&trainer->adafactor, w->model, &w->prompts, &stage->model, NULL, NULL, &error) == 0, "%s",
          error.text);
    trainer->adafactor.embedding_by_rows = false;
    CHECK(gradients_create(&trainer->grads, &trainer->gradient_memory, w->model, &plan, 0, &error) == 0, "%s",
          error.text);
    trainer->grads.finished = adafactor_update_tensor;
    trainer->grads.context = &trainer->adafactor;
    trainer->plan = plan;
}

static bool was_touched(const World *w, int32_t id)
{
    if (id == w->model->config.decoder_start) return true;
    for (size_t b = 0; b < EXAMPLES; b++) {
        for (size_t i = 0; i < w->examples[b].input_length; i++)
            if (w->ids[b][0][i] == id) return true;
        for (size_t i = 0; i + 1 < w->examples[b].target_length; i++)
            if (w->ids[b][1][i] == id) return true;
    }
    return false;
}

/* The embedding's update from its touched rows is the dense one; rows that were not looked up keep their bits; and the
 * sums of squares it carries along are those of the weights, bit for bit, so that a resumed run may compute them anew. */
static void test_embedding_by_rows(void)
{
    for (int late = 0; late < 2; late++) {
        Stage stage = stage_of(true, false);
        World rows, dense;
        Trainer by_rows, whole;
        weight_t *start;
        stat_t *squares;
        double error, norm;
        size_t V, D;
        stage.model.first_step = late ? 1000000 : 0;
        if (!world_open(&rows, &LARGE, 1) || !world_open(&dense, &LARGE, 1)) return;
        V = rows.model->config.vocab_size, D = rows.model->config.d_model;
        start = copy_of_weights(rows.model);
        trainer_open(&by_rows, &rows, &stage, false);
        trainer_open_dense(&whole, &dense, &stage);
        CHECK(by_rows.adafactor.embedding_by_rows, "not by rows");
        train(&rows, &by_rows, &stage, EXAMPLES, 1, true);
        for (size_t r = 0; r < V; r++) {
            bool kept = same_bits(rows.model->shared->data + r * D, start + rows.model->shared->offset + r * D, D);
            CHECK(kept != was_touched(&rows, (int32_t)r), "row %zu", r);
        }
        trainer_free(&by_rows);
        world_close(&rows);

        world_open(&rows, &LARGE, 1);
        trainer_open(&by_rows, &rows, &stage, false);
        train(&rows, &by_rows, &stage, EXAMPLES, 4, true);
        train(&dense, &whole, &stage, EXAMPLES, 4, true);
        /* The dense way sums a row's zeros too: only the order of sums differs. Later losses feel it, 1e-4 of the movement. */
        error = apart(rows.model->weights, dense.model->weights, start, rows.model->n_weights);
        CHECK(error <= (sizeof(real_t) == sizeof(float) ? 1e-3 : 1e-10), "weights: %g of the movement", error);
        error = apart(rows.model->shared->data, dense.model->shared->data, start + rows.model->shared->offset, V * D);
        CHECK(error <= (sizeof(real_t) == sizeof(float) ? 1e-3 : 1e-10), "embedding: %g of the movement", error);
        error = distance(by_rows.adafactor.memory, whole.adafactor.memory, whole.adafactor.size, &norm);
        CHECK(error <= 50 * ROUNDING * norm, "moments: %g of %g", error, norm);
        squares = host_alloc(V, sizeof *squares);
        rows_sum_of_squares(rows.dev, squares, rows.model->shared->data, V, D);
        CHECK(same_bits(squares, by_rows.adafactor.moments[rows.model->shared - rows.model->tensors].row_squares, V),
              "sums of squares");
        free(squares);
        free(start);
        trainer_free(&by_rows);
        trainer_free(&whole);
        world_close(&rows);
        world_close(&dense);
    }
}

/* Prompt tuning stops early on its way back, and still finds the gradient that full training finds. */
static void test_prompt_tuning(void)
{
    const Shape *shapes[] = {&SMALL, &SMALL_TIED, &LARGE};
    const LossSettings loss = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};
    const Stage stage = stage_of(false, true);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        World w;
        AllGradients full, only_prompts;
        Pass pass = {.dropout = 0.2f, .dropout_shared = true, .dropout_key = 12};
        Batch batch = {0};
        Trainer trainer;
        weight_t *start, first;
        if (!world_open(&w, shapes[i], 1)) return;
        all_gradients_open(&full, &w, true);
        all_gradients_open(&only_prompts, &w, false);
        loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &full.grads);
        loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &only_prompts.grads);
        CHECK(same_bits(full.grads.prompts, only_prompts.grads.prompts, full.n_prompts), "%s: gradients differ",
              shapes[i]->name);
        start = copy_of_weights(w.model);
        first = w.prompts.rows[0];
        for (size_t micro = 2; micro <= EXAMPLES; micro += EXAMPLES - 2) {
            trainer_open(&trainer, &w, &stage, micro < EXAMPLES);
            train(&w, &trainer, &stage, micro, 2, true);
            trainer_free(&trainer);
        }
        CHECK(w.prompts.rows[0] < first || w.prompts.rows[0] > first, "%s: the prompt stays as it is", shapes[i]->name);
        CHECK(same_bits(w.model->weights, start, w.model->n_weights), "%s: weights changed", shapes[i]->name);
        free(start);
        device_free(full.memory);
        device_free(only_prompts.memory);
        pass_free(&pass);
        batch_free(&batch);
        world_close(&w);
    }
}

static void test_threads(void)
{
    const Shape *shapes[] = {&SMALL, &LARGE, &LARGE_TIED};
    const Stage stage = stage_of(true, true);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int shared = 0; shared < 2; shared++) {
            World one, more;
            Trainer trainer;
            if (!world_open(&one, shapes[i], 1)) return;
            trainer_open(&trainer, &one, &stage, false);
            train(&one, &trainer, &stage, EXAMPLES, 2, shared);
            trainer_free(&trainer);
            for (int threads = 2; threads <= 3; threads++) {
                world_open(&more, shapes[i], threads);
                trainer_open(&trainer, &more, &stage, false);
                train(&more, &trainer, &stage, EXAMPLES, 2, shared);
                trainer_free(&trainer);
                CHECK(same_bits(one.model->weights, more.model->weights, one.model->n_weights) &&
                          same_bits(one.prompts.rows, more.prompts.rows,
                                    PROMPTS * PROMPT_LENGTH * one.model->config.d_model),
                      "%s: %d threads differ from 1", shapes[i]->name, threads);
                world_close(&more);
            }
            world_close(&one);
        }
}

/* ------------------------------------------------------------------------------------------------------------ the loss */

/* FACTS of T5X's losses.py, from logits, in double. */
static double reference_loss(const act_t *logits, size_t V, int32_t target, double smoothing, double z)
{
    double low = smoothing / ((double)V - 1), max = logits[0], sum = 0, log_z, loss = 0;
    for (size_t i = 0; i < V; i++) max = fmax(max, logits[i]);
    for (size_t i = 0; i < V; i++) sum += exp((double)logits[i] - max);
    log_z = max + log(sum);
    for (size_t i = 0; i < V; i++) loss -= (i == (size_t)target ? 1 - smoothing : low) * ((double)logits[i] - log_z);
    if (smoothing > 0) loss += (1 - smoothing) * log(1 - smoothing) + ((double)V - 1) * low * log(low + 1e-20);
    return loss + z * log_z * log_z;
}

static void test_loss_settings(void)
{
    static const LossSettings settings[] = {
        {0, 0, 1}, {0.1f, 0, 1}, {0, 1e-2f, 1}, {0.3f, 1e-3f, 1}, {0.1f, 1e-4f, 1.0f / 7}};
    World w;
    Pass pass = {0};
    Batch batch = {0};
    AllGradients one, scaled;
    double norm, error;
    if (!world_open(&w, &SMALL, 1)) return;
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        size_t row = 0, V = w.model->config.vocab_size;
        loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &settings[i], NULL);
        CHECK(pass.logits_rows == batch.target.rows, "all logits of so small a batch are there at once");
        for (size_t b = 0; b < EXAMPLES; b++)
            for (size_t t = 0; t < w.examples[b].target_length; t++, row++) {
                double expected = reference_loss(pass.logits + row * V, V, w.examples[b].target[t],
                                                 (double)settings[i].label_smoothing, (double)settings[i].z_loss) *
                                  (double)settings[i].scale;
                CHECK(fabs(pass.loss[row] - expected) <= 1e-5 * fabs(expected),
                      "settings %zu, row %zu: %.9g (expected %.9g)", i, row, (double)pass.loss[row], expected);
            }
    }
    /* Every gradient is proportional to the normalising factor's inverse. */
    all_gradients_open(&one, &w, true);
    all_gradients_open(&scaled, &w, true);
    loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &(LossSettings){0.1f, 1e-4f, 1}, &one.grads);
    loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &(LossSettings){0.1f, 1e-4f, 1.0f / 8}, &scaled.grads);
    for (size_t i = 0; i < w.model->n_weights - w.model->shared->rows * w.model->shared->columns; i++)
        scaled.grads.kept[i] *= 8;
    error = distance(scaled.grads.kept, one.grads.kept,
                     w.model->n_weights - w.model->shared->rows * w.model->shared->columns, &norm);
    CHECK(error <= ROUNDING * norm, "%g of %g", error, norm);
    device_free(one.memory);
    device_free(scaled.memory);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

#ifdef PROMOT_DOUBLE
/* d(loss)/d(*at) by central differences: their error is h^2 times a third derivative, and 1e-16 loss / h of rounding. */
static double slope(World *w, Pass *pass, Batch *batch, const LossSettings *loss, weight_t *at)
{
    const double h = 2e-5;
    weight_t before = *at;
    double up, down;
    *at = before + h;
    up = loss_of(w, pass, batch, w->examples, EXAMPLES, 0, loss, NULL);
    *at = before - h;
    down = loss_of(w, pass, batch, w->examples, EXAMPLES, 0, loss, NULL);
    *at = before;
    return (up - down) / (2 * h);
}

static void check_slopes(const Shape *shape, bool shared)
{
    enum { EACH = 3 };
    const LossSettings loss = {.label_smoothing = 0.1f, .z_loss = 1e-3f, .scale = 1};
    World w;
    Pass pass = {.dropout = 0.2f, .dropout_shared = shared, .dropout_key = 4};
    Batch batch = {0};
    AllGradients all;
    if (!world_open(&w, shape, 1)) return;
    all_gradients_open(&all, &w, true);
    loss_of(&w, &pass, &batch, w.examples, EXAMPLES, 0, &loss, &all.grads);
    for (size_t t = 0; t < w.model->n_tensors; t++) {
        const Tensor *tensor = &w.model->tensors[t];
        const stat_t *gradient = gradient_of(&all, w.model, tensor);
        size_t n = tensor->rows * tensor->columns;
        for (size_t k = 0; k < EACH; k++) {
            size_t at = (size_t)(random_uniform(t, k) * (double)n);
            double expected;
            for (size_t i = 0; i < n && gradient[at] * gradient[at] < 1e-12; i++)
                at = (at + 1) % n; /* one that says something */
            expected = slope(&w, &pass, &batch, &loss, tensor->data + at);
            /* 1e-7: h^2 = 4e-10 times third derivatives of some tens; 1e-8: 1e-16 times a loss of 100, over 2e-5, and more */
            CHECK(fabs(gradient[at] - expected) <= 1e-6 * fabs(expected) + 1e-7, "%s: %s[%zu]: %.12g (expected %.12g)",
                  shape->name, tensor->name, at, gradient[at], expected);
        }
    }
    for (size_t k = 0; k < all.n_prompts; k += 5) {
        double expected = slope(&w, &pass, &batch, &loss, w.prompts.rows + k);
        CHECK(fabs(all.grads.prompts[k] - expected) <= 1e-6 * fabs(expected) + 1e-7,
              "%s: prompts[%zu]: %.12g (expected %.12g)", shape->name, k, all.grads.prompts[k], expected);
    }
    device_free(all.memory);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

static void test_finite_differences(void)
{
    check_slopes(&SMALL, true);
    check_slopes(&SMALL, false);
    check_slopes(&SMALL_TIED, true);
}
#endif

/* -------------------------------------------------------------------------------------------------------------- memory */

static void test_no_allocation_after_the_first_step(void)
{
    const Shape *shapes[] = {&SMALL, &LARGE, &LARGE_TIED};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int method = 0; method < 3; method++) {
            const Stage stage = stage_of(method != 0, method != 1);
            World w;
            Trainer trainer;
            Error error = {0};
            StepResult result;
            size_t after_first;
            if (!world_open(&w, shapes[i], 2)) return;
            trainer_open(&trainer, &w, &stage, method == 2);
            train(&w, &trainer, &stage, method == 2 ? 2 : EXAMPLES, 1, true);
            after_first = allocations;
            for (int64_t s = 1; s < 4; s++)
                CHECK(train_step(&trainer, w.model, &w.prompts, &stage, w.examples, EXAMPLES - (size_t)(s % 2),
                                 method == 2 ? 2 : EXAMPLES, s, random_fold(3, (uint64_t)s), true, &result,
                                 &error) == 0,
                      "%s", error.text);
            CHECK(allocations == after_first, "%s: %zu allocations in later steps", shapes[i]->name,
                  allocations - after_first);
            trainer_free(&trainer);
            world_close(&w);
        }
}

/* No row of padding exists: the pass is as large as the tokens that are there. And what pass_bytes and training_bytes
 * foretell is what is used. */
static void test_memory_is_what_was_foretold(void)
{
    const Shape *shapes[] = {&SMALL, &SMALL_TIED, &LARGE, &LARGE_TIED};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int keep = 0; keep < 2; keep++) {
            const Stage stage = stage_of(true, true);
            World w;
            Trainer trainer;
            Error error = {0};
            size_t source = 0, target = 0, ids = 0, foretold, used;
            StepResult result;
            const T5Config *c;
            if (!world_open(&w, shapes[i], 1)) return;
            c = &w.model->config;
            for (size_t b = 0; b < EXAMPLES; b++) {
                source += w.examples[b].input_length + (w.examples[b].prompt >= 0 ? PROMPT_LENGTH : 0);
                target += w.examples[b].target_length;
                ids += w.examples[b].input_length + w.examples[b].target_length;
            }
            used = allocated_bytes;
            CHECK(trainer_create(&trainer, w.model, &w.prompts, &stage, ids, keep, &error) == 0, "%s", error.text);
            used = allocated_bytes - used; /* moments and gradients */
            CHECK(train_step(&trainer, w.model, &w.prompts, &stage, w.examples, EXAMPLES, EXAMPLES, 0, 1, true, &result,
                             &error) == 0,
                  "%s", error.text);
            CHECK(trainer.batch.source.rows == source && trainer.batch.target.rows == target,
                  "%zu and %zu rows (expected %zu and %zu)", trainer.batch.source.rows, trainer.batch.target.rows,
                  source, target);
            CHECK(result.tokens == ids && result.targets == target, "%zu tokens, %zu targets", result.tokens,
                  result.targets);
            CHECK(trainer.pass.capacity == pass_bytes(c, source, target, PASS_TRAIN, 0), "%zu bytes",
                  trainer.pass.capacity);
            CHECK((char *)(trainer.pass.dmlp + source * mlp_width(c)) <= trainer.pass.memory + trainer.pass.capacity &&
                      (char *)(trainer.pass.dmlp + source * mlp_width(c)) >
                          trainer.pass.memory + trainer.pass.capacity - 64,
                  "%s: the last buffer does not end where the memory ends", shapes[i]->name);
            used +=
                trainer.pass.capacity + (w.model->n_weights + PROMPTS * PROMPT_LENGTH * c->d_model) * sizeof(weight_t);
            foretold = training_bytes(c, w.model->n_weights, PROMPTS * PROMPT_LENGTH, true, true, source, target, ids,
                                      keep, 0, 0);
            /* Each of at most five blocks is rounded up to 64 bytes. */
            CHECK(foretold + 5 * 64 >= used && foretold <= used + used / 8, "%s: %zu bytes foretold, %zu used",
                  shapes[i]->name, foretold, used);
            trainer_free(&trainer);
            world_close(&w);
        }
}

/* ---------------------------------------------------------------------------------------------- Adafactor and schedules */

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fabs(b);
}

static void test_schedules(void)
{
    AdafactorSettings s = {
        .learning_rate = 0.5, .decay_rate = 0.8, .clip = 2, .weight_decay = 0.25, .scale_by_parameter = true};
    AdafactorStep step;
    CHECK(near(learning_rate_at(&s, 0), 0.5) && near(learning_rate_at(&s, 12345), 0.5), "constant");
    s.schedule = SCHEDULE_WARMUP, s.warmup = 100;
    CHECK(near(learning_rate_at(&s, 0), 1e-8) && near(learning_rate_at(&s, 30), 0.15) &&
              near(learning_rate_at(&s, 1000), 0.5),
          "warmup");
    s.schedule = SCHEDULE_RSQRT;
    CHECK(near(learning_rate_at(&s, 0), 0.05) && near(learning_rate_at(&s, 100), 0.05) &&
              near(learning_rate_at(&s, 400), 0.025),
          "rsqrt");
    s.first_step = 300;
    CHECK(near(learning_rate_at(&s, 100), 0.025), "the first step counts");
    s.schedule = SCHEDULE_LINEAR, s.total_steps = 10;
    CHECK(near(learning_rate_at(&s, 0), 0.5) && near(learning_rate_at(&s, 5), 0.25) &&
              near(learning_rate_at(&s, 10), 1e-8),
          "linear");
    s.schedule = SCHEDULE_CONSTANT, s.first_step = 0;
    step = adafactor_step(&s, 0);
    CHECK(near(step.alpha, 1) && near(step.learning_rate, 0.5) && near(step.clip, 2) && near(step.weight_decay, 0.25),
          "step 0");
    CHECK(near(step.epsilon1, 1e-30) && near(step.epsilon2, 1e-3) && step.scale_by_parameter, "constants");
    CHECK(fabs(adafactor_step(&s, 1).alpha - (1 - 0.425651)) < 1e-6 &&
              fabs(adafactor_step(&s, 4).alpha - (1 - 0.724054)) < 1e-6,
          "beta2");
    s.first_step = 1000000;
    CHECK(fabs(adafactor_step(&s, 0).alpha - 1.585e-5) < 1e-8, "%g", adafactor_step(&s, 0).alpha);
}

static void test_what_is_factored(void)
{
    Adafactor a;
    Error error = {0};
    World w;
    AdafactorSettings settings = {.decay_rate = 0.8};
    CHECK(is_factored(128, 128, false) && !is_factored(127, 4096, false) && !is_factored(4096, 127, false) &&
              !is_factored(1, 4096, true),
          "sides");
    if (!world_open(&w, &LARGE, 1)) return;
    CHECK(adafactor_create(&a, w.model, &w.prompts, &settings, NULL, NULL, &error) == 0, "%s", error.text);
    for (size_t t = 0; t < w.model->n_tensors; t++) {
        const Tensor *tensor = &w.model->tensors[t];
        bool factored = tensor->rows >= 128 && tensor->columns >= 128;
        CHECK(factored == (a.moments[t].row && a.moments[t].column && !a.moments[t].whole), "%s", tensor->name);
    }
    CHECK(!a.moments[w.model->n_tensors].whole && a.embedding_by_rows, "prompts that are not trained");
    adafactor_free(&a);
    settings.weight_decay = 1e-5; /* reaches every row */
    CHECK(adafactor_create(&a, w.model, &w.prompts, &settings, &settings, NULL, &error) == 0, "%s", error.text);
    CHECK(!a.embedding_by_rows && a.moments[w.model->n_tensors + 1].whole, "with weight decay");
    adafactor_free(&a);
    world_close(&w);
}

/* ------------------------------------------------------------------------------------------------------ relative places */

static void test_relative_position_buckets(void)
{
    /* Bucket b begins at distance first[b] (T5X, 32 buckets, max distance 128). */
    static const int both[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
    static const int causal[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113};
    for (int n = 0; n <= 2000; n++) {
        int b = 15, c = 31;
        while (both[b] > n) b--;
        while (causal[c] > n) c--;
        CHECK(relative_position_bucket(-n, true, 32, 128) == b, "key %d before", n);
        CHECK(n == 0 || relative_position_bucket(n, true, 32, 128) == 16 + b, "key %d behind", n);
        CHECK(relative_position_bucket(-n, false, 32, 128) == c, "causal, key %d before", n);
        CHECK(relative_position_bucket(n, false, 32, 128) == 0, "causal, key %d behind", n);
    }
}

static void check_bucket_rows(const cJSON *rows, bool bidirectional)
{
    const cJSON *row;
    CHECK(cJSON_GetArraySize(rows) > 100, "%d rows", cJSON_GetArraySize(rows));
    cJSON_ArrayForEach(row, rows)
    {
        int distance_of_row = (int)cJSON_GetNumberValue(cJSON_GetArrayItem(row, 0)),
            bucket = (int)cJSON_GetNumberValue(cJSON_GetArrayItem(row, 1));
        CHECK(relative_position_bucket(distance_of_row, bidirectional, 32, 128) == bucket, "distance %d",
              distance_of_row);
    }
}

/* Other sizes: places as a range "-20..20" or as a list; rows of queries and keys are left to the whole model's tests. */
static void check_other_buckets(const cJSON *other)
{
    const cJSON *args = cJSON_GetObjectItem(other, "args"), *places = cJSON_GetObjectItem(other, "relative_position"),
                *found;
    int place = 0, i = 0;
    if (!places) return;
    if (cJSON_IsString(places)) CHECK(sscanf(places->valuestring, "%d..", &place) == 1, "a range");
    cJSON_ArrayForEach(found, cJSON_GetObjectItem(other, "buckets"))
    {
        int at = cJSON_IsArray(places) ? cJSON_GetArrayItem(places, i)->valueint : place + i;
        CHECK(relative_position_bucket(at, cJSON_IsTrue(cJSON_GetObjectItem(args, "bidirectional")),
                                       (size_t)cJSON_GetNumberValue(cJSON_GetObjectItem(args, "num_buckets")),
                                       (size_t)cJSON_GetNumberValue(cJSON_GetObjectItem(args, "max_distance"))) ==
                  found->valueint,
              "distance %d", at);
        i++;
    }
}

static void test_relative_position_vectors(void)
{
    const char *shared = test_shared();
    char path[1024];
    MappedFile file = {0};
    Error error = {0};
    char *text;
    cJSON *json;
    const cJSON *other;
    if (!shared) SKIP("no shared fixtures");
    snprintf(path, sizeof path, "%s/reference-vectors/relative-position-buckets.json", shared);
    if (mapped_file_open(&file, path, &error)) SKIP("no relative-position-buckets.json");
    text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
    json = cJSON_Parse(text);
    check_bucket_rows(cJSON_GetObjectItem(json, "t5x_bidirectional"), true);
    check_bucket_rows(cJSON_GetObjectItem(json, "t5x_causal"), false);
    cJSON_ArrayForEach(other, cJSON_GetObjectItem(json, "others")) check_other_buckets(other);
    cJSON_Delete(json);
    free(text);
    mapped_file_close(&file);
}

/* ------------------------------------------------------------------------------------------------------------- prompts */

static const char *
vocabulary(void) /* a vocabulary of 256 bytes, 100 sentinels and a few pieces; NULL: it cannot be made */
{
    static const char path[] = SCRATCH "/spiece.model";
    Error error = {0};
    if (path_exists(path)) return path;
    if (directory_create(SCRATCH, &error) ||
        file_write_text(SCRATCH "/text.txt",
                        "the red cat sat on the mat\na blue dog ran to the red house\n"
                        "the cat and the dog sat\nwho ran to the house\n",
                        &error) ||
        tokenizer_train(SCRATCH "/text.txt", path, 380, &error)) {
        CHECK(false, "%s", error.text);
        return NULL;
    }
    return path;
}

/* Which row of the embedding a prompt's row is; -1: none. */
static long embedding_row(const World *w, const weight_t *row)
{
    size_t D = w->model->config.d_model;
    for (size_t v = 0; v < w->model->config.vocab_size; v++)
        if (same_bits(row, w->model->shared->data + v * D, D)) return (long)v;
    return -1;
}

static void test_prompt_initialisers(void)
{
    enum { VOCABULARY = 53 };
    World w;
    Error error = {0};
    Prompts long_prompts, text_prompts;
    Tokenizer *tokenizer = vocabulary() ? tokenizer_open(vocabulary(), &error) : NULL;
    Shape wide = {"wide", "{\"model_type\": \"mt5\", \"vocab_size\": 420, \"d_model\": 8, \"d_kv\": 2, \"d_ff\": 8, "
                          "\"num_heads\": 2, \"num_layers\": 1}"};
    size_t D, seen[VOCABULARY] = {0};
    int32_t *ids;
    size_t count;
    double sum = 0;
    CHECK(tokenizer != NULL, "%s", error.text);
    if (!tokenizer || !world_open(&w, &SMALL, 1)) return;
    D = w.model->config.d_model;

    /* sampled: rows of the embedding, none twice before all are used up, another draw for each prompt */
    CHECK(prompts_allocate(&long_prompts, w.model, 2, VOCABULARY + 5, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < 2; i++)
        CHECK(prompt_init(w.model, NULL, &long_prompts, i, "sampled", 8, &error) == 0, "%s", error.text);
    for (size_t p = 0; p < VOCABULARY + 5; p++) {
        long row = embedding_row(&w, long_prompts.rows + p * D);
        CHECK(row >= 0, "row %zu of the prompt is none of the embedding", p);
        if (row >= 0) seen[row]++;
        CHECK(row < 0 || seen[row] == 1 || p >= VOCABULARY, "row %ld is drawn twice", row);
    }
    CHECK(!same_bits(long_prompts.rows, long_prompts.rows + (VOCABULARY + 5) * D, D), "two prompts begin alike");

    /* uniform: [0, 0.5), one-sided */
    CHECK(prompt_init(w.model, NULL, &long_prompts, 1, "uniform", 8, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < (VOCABULARY + 5) * D; i++) {
        real_t x = long_prompts.rows[(VOCABULARY + 5) * D + i];
        CHECK(x >= 0 && x < (real_t)0.5, "%g", (double)x);
        sum += (double)x;
    }
    /* The mean of 696 numbers is off by 0.144 / sqrt(696) = 0.0055; 5 of these. */
    CHECK(fabs(sum / ((VOCABULARY + 5) * (double)D) - 0.25) < 0.028, "mean %g", sum / ((VOCABULARY + 5) * (double)D));
    CHECK(prompt_init(w.model, NULL, &long_prompts, 0, "normal", 8, &error) == -1 && error.exit_code == EXIT_USAGE,
          "an unknown one");
    CHECK(prompt_init(w.model, NULL, &long_prompts, 0, "file:" SCRATCH "/none", 8, &error) == -1,
          "a file that is not there");
    prompts_free(&long_prompts);
    world_close(&w);

    /* text: the tokens' rows, then sampled ones; and through a file and back */
    if (!world_open(&w, &wide, 1)) return;
    CHECK(prompts_allocate(&text_prompts, w.model, 2, 12, &error) == 0, "%s", error.text);
    CHECK(prompt_init(w.model, tokenizer, &text_prompts, 0, "text:the cat", 8, &error) == 0, "%s", error.text);
    CHECK(tokenizer_encode(tokenizer, "the cat", 7, &ids, &count, &error) == 0 && count < 12, "%zu tokens", count);
    for (size_t p = 0; p < 12; p++) {
        long row = embedding_row(&w, text_prompts.rows + p * w.model->config.d_model);
        CHECK(p < count ? row == ids[p] : row >= 0, "row %zu: %ld", p, row);
    }
    free(ids);
    CHECK(prompt_write(w.model, &text_prompts, 0, "base", "text:the cat", SCRATCH "/adapter", &error) == 0, "%s",
          error.text);
    CHECK(prompt_init(w.model, tokenizer, &text_prompts, 1, "file:" SCRATCH "/adapter", 8, &error) == 0, "%s",
          error.text);
    CHECK(same_bits(text_prompts.rows, text_prompts.rows + 12 * w.model->config.d_model, 12 * w.model->config.d_model),
          "written and read");
    prompts_free(&text_prompts);
    CHECK(prompts_open(&text_prompts, w.model, SCRATCH "/adapter", &error) == 0 && text_prompts.length == 12, "%s",
          error.text);
    CHECK(embedding_row(&w, text_prompts.rows) >= 0, "opened");
    prompts_free(&text_prompts);
    CHECK(prompt_init(w.model, tokenizer, &w.prompts, 0, "file:" SCRATCH "/adapter", 8, &error) == -1 &&
              strstr(error.text, "[3, 8]"),
          "%s", error.text);
    world_close(&w);
    if (world_open(&w, &SMALL, 1)) {
        CHECK(prompts_open(&text_prompts, w.model, SCRATCH "/adapter", &error) == -1 && error.exit_code == EXIT_USAGE,
              "the wrong width");
        world_close(&w);
    }
    tokenizer_close(tokenizer);
}

/* ----------------------------------------------------------------------------------------------------- span corruption */

/* Puts the target's spans back into the input's places: the document must come out. */
static bool reassembles(const Corpus *corpus, const Document *document, const TokenExample *e, size_t *n_spans)
{
    size_t at = 0, t = 0, n = 0;
    for (size_t i = 0; i + 1 < e->input_length; i++) {
        int32_t next = n < SENTINELS ? tokenizer_sentinel(corpus->tokenizer, (int)n) : -1;
        if (e->input[i] == next) {
            if (t >= e->target_length || e->target[t++] != next) return false;
            n++;
            next = n < SENTINELS ? tokenizer_sentinel(corpus->tokenizer, (int)n) : -1;
            while (t + 1 < e->target_length && e->target[t] != next) {
                if (at >= document->length || document->ids[at++] != e->target[t++]) return false;
            }
        } else if (at >= document->length || document->ids[at++] != e->input[i]) {
            return false;
        }
    }
    *n_spans = n;
    return at == document->length && t + 1 == e->target_length && e->target[t] == corpus->eos &&
           e->input[e->input_length - 1] == corpus->eos;
}

static void test_span_corruption(void)
{
    Error error = {0};
    int32_t ids[600];
    Corpus corpus = {.eos = 1, .noise_density = 0.15, .mean_span = 3};
    Tokenizer *tokenizer = vocabulary() ? tokenizer_open(vocabulary(), &error) : NULL;
    size_t hidden[60] = {0};
    CHECK(tokenizer != NULL, "%s", error.text);
    if (!tokenizer) return;
    corpus.tokenizer = tokenizer;
    for (size_t i = 0; i < 600; i++) ids[i] = 3 + (int32_t)(i % 250);
    for (size_t length = 2; length <= 600; length += length < 40 ? 1 : 37)
        for (uint64_t key = 0; key < 20; key++) {
            Document document = {.ids = ids, .length = length};
            TokenExample e = corrupt(&corpus, &document, key);
            size_t noise = (size_t)nearbyint(0.15 * (double)length), spans = 0, expected;
            noise = noise < 1 ? 1 : noise > length - 1 ? length - 1 : noise;
            expected = (size_t)nearbyint((double)noise / 3);
            expected = expected < 1 ? 1 : expected;
            CHECK(reassembles(&corpus, &document, &e, &spans), "length %zu, key %zu", length, (size_t)key);
            CHECK(spans == expected, "length %zu: %zu spans (expected %zu)", length, spans, expected);
            CHECK(e.target_length == noise + spans + 1 && e.input_length == length - noise + spans + 1,
                  "length %zu: %zu hidden tokens", length, e.target_length - spans - 1);
            CHECK(e.input[0] == ids[0], "starts with text");
            CHECK(e.input[e.input_length - 2] == tokenizer_sentinel(tokenizer, (int)spans - 1), "ends with a sentinel");
            CHECK(e.prompt == -1, "no prompt");
            token_example_free(&e);
        }
    /* Three spans hide 9 tokens of 60, the last of them always at the end; the two others may lie anywhere before. */
    for (uint64_t key = 0; key < 4000; key++) {
        size_t spans[61][2];
        Dice dice = {.key = key};
        size_t n = random_spans(spans, 60, &corpus, &dice);
        for (size_t i = 0; i < n; i++)
            for (size_t at = spans[i][0]; at < spans[i][1]; at++) hidden[at]++;
    }
    CHECK(hidden[0] == 0 && hidden[59] == 4000, "%zu, %zu", hidden[0], hidden[59]);
    /* 6 tokens over some 56 places: about 430 of 4000 times each, deviation 20; less towards the ends. */
    for (size_t at = 10; at < 45; at++)
        CHECK(hidden[at] > 215 && hidden[at] < 860, "place %zu: %zu times", at, hidden[at]);
    tokenizer_close(tokenizer);
}

/* Fields behind tabs are answers: the last one is always hidden, when answers are; none is split. */
static void test_answers_in_a_corpus(void)
{
    Error error = {0};
    Corpus corpus = {.eos = 1, .noise_density = 0.15, .mean_span = 3, .answer_share = 1};
    Tokenizer *tokenizer = vocabulary() ? tokenizer_open(vocabulary(), &error) : NULL;
    size_t one = 0, several = 0;
    CHECK(tokenizer != NULL, "%s", error.text);
    if (!tokenizer) return;
    corpus.tokenizer = tokenizer;
    CHECK(file_write_text(SCRATCH "/tabs.txt",
                          "who sat\tthe cat\twho ran\ta dog\twho\tthe mat\nplain text on a line\n\nx\n"
                          "the red cat sat on the mat and the blue dog ran to the red house\n",
                          &error) == 0,
          "%s", error.text);
    CHECK(corpus_read(&corpus, SCRATCH "/tabs.txt", 40, &error) == 0, "%s", error.text);
    CHECK(corpus.count >= 3 && corpus.documents[0].n_answers == 3 && corpus.documents[1].n_answers == 0,
          "%zu documents", corpus.count);
    for (uint64_t key = 0; key < 300; key++) {
        const Document *document = &corpus.documents[0];
        TokenExample e = corrupt(&corpus, document, key);
        size_t spans = 0, hidden = 0;
        CHECK(reassembles(&corpus, document, &e, &spans), "key %zu", (size_t)key);
        for (size_t k = 0; k < spans; k++) { /* each hidden span is an answer as a whole */
            size_t t = 0, length = 0;
            bool is_answer = false;
            while (e.target[t] != tokenizer_sentinel(tokenizer, (int)k)) t++;
            while (t + 1 + length < e.target_length - 1 &&
                   e.target[t + 1 + length] != tokenizer_sentinel(tokenizer, (int)k + 1))
                length++;
            for (size_t a = 0; a < 3; a++)
                is_answer |=
                    document->answers[a][1] - document->answers[a][0] == length &&
                    memcmp(document->ids + document->answers[a][0], e.target + t + 1, length * sizeof(int32_t)) == 0;
            CHECK(is_answer, "key %zu: span %zu is no answer", (size_t)key, k);
            hidden += is_answer;
        }
        CHECK(e.input[e.input_length - 2] == tokenizer_sentinel(tokenizer, (int)spans - 1),
              "the last answer is hidden");
        one += hidden == 1, several += hidden > 1;
        token_example_free(&e);
    }
    /* Half of the time the last alone, and of the other half 0.16: 0.58 of 300 = 174, deviation 9. */
    CHECK(one > 125 && one < 225 && several == 300 - one, "%zu with one answer, %zu with several", one, several);
    corpus_free(&corpus);

    corpus = (Corpus){.tokenizer = tokenizer, .eos = 1};
    CHECK(corpus_read(&corpus, SCRATCH "/tabs.txt", 4, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < corpus.count; i++)
        CHECK(corpus.documents[i].length >= 2 && corpus.documents[i].length <= 4 && !corpus.documents[i].n_answers,
              "document %zu", i);
    corpus_free(&corpus);
    corpus = (Corpus){.tokenizer = tokenizer, .eos = 1};
    CHECK(file_write_text(SCRATCH "/empty.txt", "\n\n", &error) == 0, "%s", error.text);
    CHECK(corpus_read(&corpus, SCRATCH "/empty.txt", 4, &error) == -1 && error.exit_code == EXIT_USAGE, "no text");
    corpus_free(&corpus);
    tokenizer_close(tokenizer);
}

/* ------------------------------------------------------------------------------------------------- drawing the examples */

static void test_permuted(void)
{
    static const size_t counts[] = {1, 2, 3, 4, 5, 16, 17, 40, 255, 256, 257};
    size_t at_first[5] = {0};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (uint64_t key = 0; key < 50; key++) {
            bool seen[257] = {false};
            for (size_t i = 0; i < counts[c]; i++) {
                size_t at = permuted(i, counts[c], key);
                CHECK(at < counts[c] && !seen[at], "key %zu of %zu: no permutation", (size_t)key, counts[c]);
                if (at < counts[c]) seen[at] = true;
            }
        }
    for (uint64_t key = 0; key < 50; key++) {
        bool same = true;
        for (size_t i = 0; i < 40; i++) same &= permuted(i, 40, key) == permuted(i, 40, key + 1);
        CHECK(!same, "another key, the same order");
    }
    for (uint64_t key = 0; key < 5000; key++) at_first[permuted(0, 5, key)]++;
    for (size_t i = 0; i < 5; i++)
        CHECK(at_first[i] > 840 && at_first[i] < 1160, "%zu comes first %zu times of 5000", i,
              at_first[i]); /* 1000, 6 deviations of 28 */
    CHECK(permuted(14999999, 15000000, 7) < 15000000, "of fifteen million");
}

/* A stream of `count` examples that needs no file: all of them are in its cache. */
static TaskStream cached_stream(size_t count)
{
    TaskStream stream = {.count = count, .cache = calloc(CACHE_PLACES, sizeof *stream.cache)};
    for (size_t i = 0; i < count; i++)
        stream.cache[i] = (TokenExample){.input = calloc(1, sizeof(int32_t)),
                                         .target = calloc(1, sizeof(int32_t)),
                                         .input_length = 1,
                                         .target_length = 1,
                                         .prompt = (int)count,
                                         .number = i};
    return stream;
}

/* Example `position`: its number, and in *of the size of the task that it came from. */
static size_t number_at(Mixture *mixture, size_t position, int *of)
{
    TokenExample e = {0};
    Error error;
    size_t number;
    CHECK(mixture_get(mixture, position, &e, &error) == 0, "no example");
    number = e.number;
    if (of) *of = e.prompt;
    token_example_free(&e);
    return number;
}

/* Every epoch holds every example once, in an order of its own, and may be entered anywhere. */
static void test_epochs(void)
{
    enum { COUNT = 7, EPOCHS = 4 };
    size_t orders[EPOCHS][COUNT];
    TaskStream stream = cached_stream(COUNT);
    Part part = {.stream = &stream, .count = COUNT, .share = 1}, again = part;
    Mixture mixture = {.parts = &part, .n_parts = 1, .key = 5}, other = {.parts = &again, .n_parts = 1, .key = 5};
    for (size_t e = 0; e < EPOCHS; e++) {
        unsigned seen = 0;
        for (size_t i = 0; i < COUNT; i++) {
            orders[e][i] = number_at(&mixture, e * COUNT + i, NULL);
            seen |= 1u << orders[e][i];
        }
        CHECK(seen == (1u << COUNT) - 1, "epoch %zu leaves one out", e);
        CHECK(e == 0 || memcmp(orders[e], orders[e - 1], sizeof orders[e]) != 0, "epoch %zu is like the one before", e);
    }
    CHECK(number_at(&other, 2 * COUNT + 3, NULL) == orders[2][3] && number_at(&other, 3, NULL) == orders[0][3],
          "entered in the middle");
    stream_free(&stream);
}

/* Two tasks of 5 and 20 examples: drawn by their shares, each in whole epochs, the same from wherever it is entered. */
static void test_mixture(void)
{
    enum { DRAWN = 5000 };
    TaskStream small = cached_stream(5), large = cached_stream(20);
    Part parts[2] = {{.stream = &small, .count = 5, .share = 5}, {.stream = &large, .count = 20, .share = 20}},
         again[2] = {parts[0], parts[1]};
    Mixture mixture = {.parts = parts, .n_parts = 2, .key = 11}, other = {.parts = again, .n_parts = 2, .key = 11};
    size_t of_small = 0, seen[5] = {0};
    int task;
    for (size_t i = 0; i < DRAWN; i++) {
        size_t number = number_at(&mixture, i, &task);
        if (task == 5 && ++seen[number] > of_small++ / 5 + 1) CHECK(false, "an epoch repeats example %zu", number);
    }
    CHECK(of_small > 830 && of_small < 1170, "%zu of 5000 from a fifth", of_small); /* 1000, 6 deviations of 28 */
    for (size_t i = 0; i < 3; i++) {
        static const size_t places[] = {4321, 17, 2500};
        int one, two;
        CHECK(number_at(&mixture, places[i], &one) == number_at(&other, places[i], &two) && one == two,
              "entered at %zu", places[i]);
    }
    parts[0].share = parts[1].share = 1; /* equal mixing */
    mixture_begin(&mixture, 11);
    of_small = 0;
    for (size_t i = 0; i < DRAWN; i++) {
        number_at(&mixture, i, &task);
        of_small += task == 5;
    }
    CHECK(of_small > 2288 && of_small < 2712, "%zu of 5000 from a half", of_small); /* 2500, 6 deviations of 35 */
    stream_free(&small);
    stream_free(&large);
}

/* ----------------------------------------------------------------------------------------- rows alone and in company */

enum { INPUTS = 37 };

/* Deeper than DEPTH_BLOCK, so that sums are made in several parts. */
static const Shape DEEP = {
    "deep", "{\"model_type\": \"mt5\", \"vocab_size\": 97, \"d_model\": 523, \"d_kv\": 13, \"d_ff\": 1031, "
            "\"num_heads\": 3, \"num_layers\": 1}"};

static void draw_inputs(const World *w, int32_t ids[INPUTS][2][LONGEST], TokenExample inputs[INPUTS])
{
    for (size_t i = 0; i < INPUTS; i++) {
        for (size_t k = 0; k < 2 * LONGEST; k++)
            ids[i][k / LONGEST][k % LONGEST] =
                (int32_t)(random_uniform(600 + i, k) * (double)w->model->config.vocab_size);
        inputs[i] = (TokenExample){.input = ids[i][0],
                                   .target = ids[i][1],
                                   .input_length = 1 + i * 7 % LONGEST,
                                   .target_length = 1 + i * 4 % LONGEST,
                                   .prompt = (int)(i % 3) - 1,
                                   .number = i};
    }
}

/* The logits of every target place, [rows, V]; returns rows. */
static size_t logits_of(World *w, const TokenExample *inputs, size_t count, act_t *logits)
{
    const int32_t no_rows[1] = {0};
    const T5Config *c = &w->model->config;
    Error error = {0};
    Batch batch = {0};
    Pass pass = {0};
    CHECK(batch_build(&batch, w->model, inputs, count, PROMPT_LENGTH, PROMPTS, 0, no_rows, 0, &error) == 0, "%s",
          error.text);
    CHECK(pass_prepare(&pass, w->model, &w->prompts, &batch, PASS_TRAIN, &error) == 0, "%s", error.text);
    t5_forward(&pass);
    const size_t rows = batch.target.rows;
    linear_forward(w->dev, logits, pass.decoder.out, w->model->head->data, rows, c->d_model, c->vocab_size);
    pass_free(&pass);
    batch_free(&batch);
    return rows;
}

static void check_logits_alone(World *w, const TokenExample *inputs, const char *name)
{
    const size_t V = w->model->config.vocab_size;
    act_t *together = host_alloc(INPUTS * LONGEST * V, sizeof *together),
          *alone = host_alloc(LONGEST * V, sizeof *alone);
    const size_t rows = logits_of(w, inputs, INPUTS, together);
    size_t row = 0;
    for (size_t i = 0; i < INPUTS; i++) {
        const size_t n = logits_of(w, &inputs[i], 1, alone);
        CHECK(same_bits(together + row * V, alone, n * V), "%s, logits of input %zu", name, i);
        row += n;
    }
    CHECK(row == rows, "%zu rows, not %zu", rows, row);
    free(together);
    free(alone);
}

static void check_decode_alone(World *w, const TokenExample *inputs, size_t beams, const char *name)
{
    const DecodeSettings settings = {
        .beams = beams, .n_best = beams, .max_length = 9, .alpha = 0.6, .length_penalty = 1, .temperature = 1};
    Error error = {0};
    Hypothesis *together = host_alloc(INPUTS * beams, sizeof *together), *alone;
    CHECK(decode(w->model, &w->prompts, inputs, INPUTS, &settings, together, NULL, NULL, &error) == 0, "%s",
          error.text);
    for (size_t i = 0; i < INPUTS; i++) {
        alone = host_alloc(beams, sizeof *alone);
        CHECK(decode(w->model, &w->prompts, &inputs[i], 1, &settings, alone, NULL, NULL, &error) == 0, "%s",
              error.text);
        for (size_t k = 0; k < beams; k++) {
            const Hypothesis *a = &together[i * beams + k], *b = &alone[k];
            CHECK(a->length == b->length && memcmp(a->ids, b->ids, b->length * sizeof *b->ids) == 0,
                  "%s, input %zu, %zu", name, i, k);
            CHECK(a->score == b->score, "%s, input %zu: %.17g and %.17g", name, i, a->score, b->score);
        }
        hypotheses_free(alone, beams);
    }
    hypotheses_free(together, INPUTS * beams);
}

/* What is computed for an example has the same bits alone and among others: the forward pass, greedy decoding and beam
 * search. */
static void test_alone_and_in_company(void)
{
    static const Shape *const shapes[] = {&SMALL_TIED, &LARGE, &DEEP};
    for (size_t s = 0; s < 3; s++)
        for (int precision = MATMUL_FP32; precision <= (device_has_bf16() ? MATMUL_BF16 : MATMUL_FP32); precision++) {
            int32_t ids[INPUTS][2][LONGEST];
            TokenExample inputs[INPUTS];
            World w;
            if (!world_open(&w, shapes[s], 1 + (int)s)) return;
            w.dev->precision = (MatmulPrecision)precision;
            draw_inputs(&w, ids, inputs);
            check_logits_alone(&w, inputs, shapes[s]->name);
            check_decode_alone(&w, inputs, 1, shapes[s]->name);
            check_decode_alone(&w, inputs, 4, shapes[s]->name);
            world_close(&w);
        }
}

static void check_unscored(World *w, const TokenExample *inputs, size_t count, DecodeSettings settings,
                           const Hypothesis *scored)
{
    Hypothesis *unscored = host_alloc(count, sizeof *unscored);
    Error error = {0};
    settings.unscored = true;
    CHECK(!decode(w->model, &w->prompts, inputs, count, &settings, unscored, NULL, NULL, &error), "%s", error.text);
    for (size_t i = 0; i < count; i++) {
        const Hypothesis *a = &scored[i], *b = &unscored[i];
        CHECK(a->length == b->length && memcmp(a->ids, b->ids, b->length * sizeof *b->ids) == 0, "input %zu of %zu", i,
              count);
        CHECK(isfinite(a->score) && isnan(b->score), "%g and %g", a->score, b->score);
    }
    hypotheses_free(unscored, count);
}

/* Greedy decoding whose scores nobody wants finds the same words, from a sketch of the head: made after some steps, or at
 * once where outputs may be long; for one call, or kept for the next ones. */
static void test_unscored(void)
{
    static const Shape *const shapes[] = {&SMALL_TIED, &LARGE, &DEEP};
    static const size_t counts[] = {1, HEAD_SKETCH_ROWS, INPUTS};
    for (size_t s = 0; s < 6; s++)
        for (size_t c = 0; c < 3; c++) {
            const size_t count = counts[c], max_length = s % 2 ? LONG_OUTPUT + SKETCH_AFTER : LONG_OUTPUT - 1;
            DecodeSettings settings = {.beams = 1, .n_best = 1, .max_length = max_length, .alpha = 0.6};
            int32_t ids[INPUTS][2][LONGEST];
            TokenExample inputs[INPUTS];
            Hypothesis *scored = host_alloc(count, sizeof *scored);
            Greedy kept = {0};
            Error error = {0};
            World w;
            if (!world_open(&w, shapes[s / 2], 1 + (int)s / 2)) return;
            draw_inputs(&w, ids, inputs);
            CHECK(!decode(w.model, &w.prompts, inputs, count, &settings, scored, NULL, NULL, &error), "%s", error.text);
            check_unscored(&w, inputs, count, settings, scored);
            settings.greedy = &kept;
            check_unscored(&w, inputs, count, settings, scored);
            const HeadSketch *const sketch = kept.sketch;
            CHECK(sketch || count > HEAD_SKETCH_ROWS, "no sketch was made");
            check_unscored(&w, inputs, count, settings, scored);
            CHECK(!sketch || kept.sketch == sketch, "a sketch was made again");
            greedy_free(&kept);
            CHECK(!kept.tried && !kept.sketch, "greedy_free");
            hypotheses_free(scored, count);
            world_close(&w);
        }
}

static const Test tests[] = {
    {"packed_sequences", test_packed_sequences},
    {"recomputed", test_recomputed},
    {"micro_batches", test_micro_batches},
    {"fused_update", test_fused_update},
    {"embedding_by_rows", test_embedding_by_rows},
    {"prompt_tuning", test_prompt_tuning},
    {"threads", test_threads},
    {"loss_settings", test_loss_settings},
#ifdef PROMOT_DOUBLE
    {"finite_differences", test_finite_differences},
#endif
    {"no_allocation_after_the_first_step", test_no_allocation_after_the_first_step},
    {"memory_is_what_was_foretold", test_memory_is_what_was_foretold},
    {"schedules", test_schedules},
    {"what_is_factored", test_what_is_factored},
    {"relative_position_buckets", test_relative_position_buckets},
    {"relative_position_vectors", test_relative_position_vectors},
    {"prompt_initialisers", test_prompt_initialisers},
    {"span_corruption", test_span_corruption},
    {"answers_in_a_corpus", test_answers_in_a_corpus},
    {"permuted", test_permuted},
    {"epochs", test_epochs},
    {"mixture", test_mixture},
    {"alone_and_in_company", test_alone_and_in_company},
    {"unscored", test_unscored},
};

TEST_MAIN(tests)

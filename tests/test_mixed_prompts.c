/* test_mixed_prompts.c: batches of several tasks, in which each example has its own task's prompt, or none (chapters 3 to
 * 5 and 7 of promot.c).
 *
 * tests/golden/mixed comes from tests/reference.py: batches of three tasks, and what PyTorch and T5X's Adafactor make of
 * them in double precision. cases.txt has a case a line:
 *     TRAINED NAME MODEL LABEL_SMOOTHING Z_LOSS LR WEIGHT_DECAY SCALE_BY_PARAMETER
 * where ten steps train TRAINED: "prompt" (all three, the model is frozen), "model" (the prompts are frozen) or "both".
 * NAME.batch.safetensors holds input_ids, labels, prompt.0 to prompt.2 and which [B]: the number of each example's prompt,
 * -1 for none. An expected tensor "n/NAME" holds every n-th element of NAME.
 *
 * Built twice: as it is, and with every number a double, where a mixed batch equals its tasks apart to 1e-12. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"
#include "steps.h"

#include "parity.h"

#define GOLDEN "tests/golden/mixed"
#define MODELS "tests/golden/model"

enum { TASKS = 3, STEPS = 10 };

/* The limits of test_parity.c, and for its reasons. */
static const double LOGITS_LIMIT = 1e-5, LOSS_LIMIT = 1e-6, GRADIENT_LIMIT = 1e-4, MOVEMENT_LIMIT = 1e-3;
static const double LATER_LOSS_LIMIT = 1e-5, ZERO_LIMIT = 1e-6;

/* A sum over the whole batch and the sum of three tasks' sums have the same terms in another order: a few hundred
 * roundings of 6e-8 (1e-16), adding up at random through some twenty layers of operations. */
static const double ROUNDING = sizeof(real_t) == sizeof(float) ? 2e-5 : 1e-12;

typedef struct {
    char trained[16], name[64], model[64];
    double smoothing, z_loss, rate, decay;
    int scale;
} Case;

static LossSettings loss_of_case(const Case *item)
{
    return (LossSettings){.label_smoothing = (float)item->smoothing, .z_loss = (float)item->z_loss, .scale = 1};
}

static Stage stage_of_case(const Case *item)
{
    AdafactorSettings settings = {.learning_rate = item->rate,
                                  .decay_rate = 0.8,
                                  .clip = 1,
                                  .weight_decay = item->decay,
                                  .scale_by_parameter = item->scale};
    return (Stage){.name = item->trained,
                   .trains_model = strcmp(item->trained, "prompt") != 0,
                   .trains_prompts = strcmp(item->trained, "model") != 0,
                   .uses_prompts = true,
                   .model = settings,
                   .prompt = settings,
                   .loss = loss_of_case(item)};
}

/* ------------------------------------------------------------------------------------------- models, batches, gradients */

/* A golden model on a device of its own, and a golden batch with its prompts. */
typedef struct {
    Device *dev;
    Model *model;
    DumpBatch batch;
    Prompts prompts;
} World;

static void world_read_prompts(World *w, const char *path)
{
    Error error = {0};
    Checkpoint *file = open_checked(path);
    const StoredTensor *which = checkpoint_find(file, "which"), *prompt = checkpoint_find(file, "prompt.0");
    int64_t numbers[64];
    CHECK(which && which->numel == w->batch.B && w->batch.B <= 64, "%s: which", path);
    CHECK(stored_tensor_read_int(which, 0, w->batch.B, numbers, &error) == 0, "%s", error.text);
    for (size_t b = 0; b < w->batch.B; b++) w->batch.examples[b].prompt = (int)numbers[b];
    CHECK(prompts_allocate(&w->prompts, w->model, TASKS, prompt->shape[0], &error) == 0, "%s", error.text);
    for (size_t t = 0; t < TASKS; t++) {
        char name[16];
        float *rows;
        snprintf(name, sizeof name, "prompt.%zu", t);
        prompt = checkpoint_find(file, name);
        CHECK(prompt && prompt->shape[0] == w->prompts.length, "%s: %s", path, name);
        rows = tensor_floats(prompt);
        weights_upload(w->dev, prompt_rows(&w->prompts, w->model, t), rows, prompt->numel);
        free(rows);
    }
    checkpoint_close(file);
}

static void world_open(World *w, const Case *item)
{
    Error error = {0};
    char path[256];
    memset(w, 0, sizeof *w);
    snprintf(path, sizeof path, MODELS "/%s", item->model);
    w->dev = device_open(2, MATMUL_FP32, &error);
    w->model = model_open(path, w->dev, NULL, &error);
    snprintf(path, sizeof path, GOLDEN "/%s.batch.safetensors", item->name);
    if (!w->model || dump_read(&w->batch, w->model, path, &error)) {
        CHECK(false, "%s", error.text);
        exit(1);
    }
    world_read_prompts(w, path);
}

static void world_close(World *w)
{
    prompts_free(&w->prompts);
    dump_batch_free(&w->batch);
    model_close(w->model);
    device_close(w->dev);
}

static size_t prompt_size(const World *w)
{
    return w->prompts.length * w->model->config.d_model;
}

/* A forward and backward pass over some examples, and what it leaves: gradients of all weights and prompts, the loss of
 * each example, and the logits of all target tokens. */
typedef struct {
    Gradients grads;
    char *memory;
    size_t count;
    double loss;
    double *losses; /* [count] */
    real_t *logits; /* [target tokens, V] */
    size_t *first;  /* [count] the first target token of each */
} Outcome;

static Outcome outcome_of(const World *w, const Prompts *prompts, const TokenExample *examples, size_t count,
                          const LossSettings *loss)
{
    Error error = {0};
    size_t V = w->model->config.vocab_size, D = w->model->config.d_model, at = 0;
    Outcome out = {.count = count};
    GradientPlan plan = {.model = true, .prompts = true, .keep = true, .n_touched = V};
    Pass pass = {0};
    Batch batch = {0};
    CHECK(gradients_create(&out.grads, &out.memory, w->model, &plan, prompts->count * prompts->length, &error) == 0,
          "%s", error.text);
    CHECK(batch_build(&batch, w->model, examples, count, prompts->length, prompts->count, 0, NULL, 0, &error) == 0,
          "%s", error.text);
    CHECK(pass_prepare(&pass, w->model, prompts, &batch, PASS_TRAIN, &error) == 0, "%s", error.text);
    t5_loss(&pass, loss, &out.grads);
    out.losses = host_alloc(count, sizeof *out.losses);
    out.first = host_alloc(count, sizeof *out.first);
    out.logits = host_alloc(batch.target.rows * V, sizeof *out.logits);
    linear_forward(w->dev, out.logits, pass.decoder.out, w->model->head->data, batch.target.rows, D, V);
    for (size_t b = 0; b < count; b++) {
        out.first[b] = at;
        for (size_t i = 0; i < examples[b].target_length; i++) out.losses[b] += pass.loss[at++];
        out.loss += out.losses[b];
    }
    pass_free(&pass);
    batch_free(&batch);
    return out;
}

static void outcome_free(Outcome *out)
{
    device_free(out->memory);
    free(out->losses);
    free(out->logits);
    free(out->first);
}

static real_t *copy_of(const real_t *x, size_t n)
{
    real_t *copy = host_alloc(n, sizeof *copy);
    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

static bool same_bits(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n * sizeof(real_t)) == 0;
}

/* |a - b| / |b|; `size`, if not NULL, is |b|. */
static double distance(const real_t *a, const real_t *b, size_t n, double *size)
{
    double difference = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        squares += (double)b[i] * b[i];
    }
    if (size) *size = sqrt(squares);
    return squares > 0 ? sqrt(difference / squares) : sqrt(difference);
}

/* --------------------------------------------------------------------------------------------- equal to PyTorch's numbers */

typedef struct {
    const Case *item;
    const Checkpoint *expected;
    double gradients; /* the norm of all expected gradients together */
    size_t compared;
} Comparison;

static double limit_of(const char *name)
{
    if (strcmp(name, "loss") == 0 || strcmp(name, "example_losses") == 0) return LOSS_LIMIT;
    if (strcmp(name, "losses") == 0) return LATER_LOSS_LIMIT;
    if (strncmp(name, "grad/", 5) == 0) return GRADIENT_LIMIT;
    if (strncmp(name, "moved/", 6) == 0) return MOVEMENT_LIMIT;
    return LOGITS_LIMIT;
}

/* The expected tensor "n/KINDNAME", and n. */
static const StoredTensor *expected_find(const Checkpoint *expected, const char *kind, const char *name, size_t *every)
{
    char wanted[256];
    snprintf(wanted, sizeof wanted, "/%s%s", kind, name);
    for (size_t i = 0; i < checkpoint_count(expected); i++) {
        const StoredTensor *tensor = checkpoint_at(expected, i);
        char *rest;
        *every = strtoul(tensor->name, &rest, 10);
        if (strcmp(rest, wanted) == 0) return tensor;
    }
    return NULL;
}

/* found less `before` (NULL: zeros) is the expected tensor KINDNAME. */
static void compare(Comparison *c, const char *kind, const char *name, const real_t *found, const real_t *before,
                    size_t n)
{
    size_t every;
    const StoredTensor *tensor = expected_find(c->expected, kind, name, &every);
    double off = 0, size = 0, limit = limit_of(*kind ? kind : name);
    float *wanted;
    CHECK(tensor && tensor->numel == (n + every - 1) / every, "%s: %s%s is not expected", c->item->name, kind, name);
    if (!tensor || tensor->numel != (n + every - 1) / every) return;
    wanted = tensor_floats(tensor);
    for (size_t i = 0; i < tensor->numel; i++) {
        double difference = (double)found[i * every] - (before ? (double)before[i * every] : 0) - wanted[i];
        off += difference * difference;
        size += (double)wanted[i] * wanted[i];
    }
    off = sqrt(off);
    if (size > 0)
        off /= sqrt(size);
    else
        limit = ZERO_LIMIT * c->gradients;
    CHECK(off <= limit, "%s: %s%s is off by %.2e (limit %.0e)", c->item->name, kind, name, off, limit);
    c->compared++;
    free(wanted);
}

static double expected_gradients(const Checkpoint *expected)
{
    double sum = 0;
    for (size_t i = 0; i < checkpoint_count(expected); i++) {
        const StoredTensor *tensor = checkpoint_at(expected, i);
        float *values = strstr(tensor->name, "/grad/") ? tensor_floats(tensor) : NULL;
        for (size_t k = 0; values && k < tensor->numel; k++) sum += (double)values[k] * values[k];
        free(values);
    }
    return sqrt(sum);
}

/* "grad/" or "moved/" of the three prompts, which lie one behind another. */
static void compare_prompts(Comparison *c, const World *w, const char *kind, const real_t *found, const real_t *before)
{
    size_t n = prompt_size(w);
    for (size_t t = 0; t < TASKS; t++) {
        char name[16];
        snprintf(name, sizeof name, "prompt.%zu", t);
        compare(c, kind, name, found + t * n, before ? before + t * n : NULL, n);
    }
}

static void compare_first_pass(Comparison *c, const World *w)
{
    const LossSettings loss = loss_of_case(c->item);
    size_t V = w->model->config.vocab_size, B = w->batch.B, T = w->batch.T;
    Outcome out = outcome_of(w, &w->prompts, w->batch.examples, B, &loss);
    real_t *losses = host_alloc(B, sizeof *losses), *padded = host_alloc(B * T * V, sizeof *padded),
           sum = (real_t)out.loss;
    for (size_t b = 0; b < B; b++) {
        losses[b] = (real_t)out.losses[b];
        memcpy(padded + b * T * V, out.logits + out.first[b] * V,
               w->batch.examples[b].target_length * V * sizeof *padded);
    }
    compare(c, "", "loss", &sum, NULL, 1);
    compare(c, "", "example_losses", losses, NULL, B);
    compare(c, "", "logits", padded, NULL, B * T * V);
    for (size_t i = 0; i < w->model->n_tensors; i++) {
        const Tensor *t = &w->model->tensors[i];
        compare(c, "grad/", t->name, gradient_place(&out.grads, w->model, t), NULL, t->rows * t->columns);
    }
    compare_prompts(c, w, "grad/", out.grads.prompts, NULL);
    free(losses);
    free(padded);
    outcome_free(&out);
}

/* Ten steps on the batch. */
static void train(const World *w, const Prompts *prompts, const TokenExample *examples, size_t count, size_t micro,
                  const Stage *stage, real_t *losses)
{
    Error error = {0};
    Trainer trainer;
    StepResult result;
    CHECK(trainer_create(&trainer, w->model, prompts, stage, w->model->config.vocab_size, micro < count, &error) == 0,
          "%s", error.text);
    for (int64_t s = 0; s < STEPS; s++) {
        CHECK(train_step(&trainer, w->model, prompts, stage, examples, count, micro, s, random_fold(3, (uint64_t)s),
                         true, &result, &error) == 0,
              "%s", error.text);
        if (losses) losses[s] = (real_t)result.loss;
    }
    trainer_free(&trainer);
}

/* micro: examples at a time, which cut through the tasks. What is frozen keeps its bits. */
static void compare_ten_steps(Comparison *c, size_t micro)
{
    const Stage stage = stage_of_case(c->item);
    World w;
    weight_t *weights, *prompts;
    real_t losses[STEPS];
    size_t n;
    world_open(&w, c->item);
    n = TASKS * prompt_size(&w);
    weights = copy_of(w.model->weights, w.model->n_weights);
    prompts = copy_of(w.prompts.rows, n);
    train(&w, &w.prompts, w.batch.examples, w.batch.B, micro ? micro : w.batch.B, &stage, losses);
    compare(c, "", "losses", losses, NULL, STEPS);
    for (size_t i = 0; stage.trains_model && i < w.model->n_tensors; i++) {
        const Tensor *t = &w.model->tensors[i];
        compare(c, "moved/", t->name, t->data, weights + t->offset, t->rows * t->columns);
    }
    if (stage.trains_prompts) compare_prompts(c, &w, "moved/", w.prompts.rows, prompts);
    CHECK(stage.trains_model || same_bits(w.model->weights, weights, w.model->n_weights), "%s: the model moved",
          c->item->name);
    CHECK(stage.trains_prompts || same_bits(w.prompts.rows, prompts, n), "%s: a prompt moved", c->item->name);
    free(weights);
    free(prompts);
    world_close(&w);
}

static void each_case(void (*run)(const Case *item))
{
    FILE *list = fopen(GOLDEN "/cases.txt", "r");
    size_t cases = 0;
    Case item;
    CHECK(list != NULL, GOLDEN "/cases.txt is not there");
    if (!list) return;
    for (; fscanf(list, "%15s %63s %63s %lf %lf %lf %lf %d", item.trained, item.name, item.model, &item.smoothing,
                  &item.z_loss, &item.rate, &item.decay, &item.scale) == 8;
         cases++)
        run(&item);
    fclose(list);
    CHECK(cases >= 4, "%zu cases", cases);
}

static void compare_case(const Case *item)
{
    char path[256];
    World w;
    Comparison c = {.item = item};
    snprintf(path, sizeof path, GOLDEN "/%s.expected.safetensors", item->name);
    c.expected = open_checked(path);
    c.gradients = expected_gradients(c.expected);
    world_open(&w, item);
    compare_first_pass(&c, &w);
    compare_ten_steps(&c, 0);
    CHECK(c.compared == checkpoint_count(c.expected), "%s: %zu of %zu tensors compared", item->name, c.compared,
          checkpoint_count(c.expected));
    compare_ten_steps(&c, 3);
    world_close(&w);
    checkpoint_close((Checkpoint *)c.expected);
}

static void test_equal_to_pytorch(void)
{
    each_case(compare_case);
}

/* ------------------------------------------------------------------------------------ equal to the tasks computed apart */

/* The examples of one task of a mixed batch, whose prompt (if it has one) is number 0 now, and that prompt alone. */
typedef struct {
    TokenExample *examples;
    size_t *places; /* [count] where they were */
    size_t count;
    Prompts prompts;
} TaskApart;

/* task -1: the examples without a prompt. */
static TaskApart task_apart(const World *w, int task)
{
    Error error = {0};
    TaskApart apart = {.examples = host_alloc(w->batch.B, sizeof *apart.examples),
                       .places = host_alloc(w->batch.B, sizeof *apart.places)};
    for (size_t b = 0; b < w->batch.B; b++) {
        if (w->batch.examples[b].prompt != task) continue;
        apart.examples[apart.count] = w->batch.examples[b];
        apart.examples[apart.count].prompt = task < 0 ? -1 : 0;
        apart.places[apart.count++] = b;
    }
    CHECK(apart.count > 0, "no examples of task %d", task);
    CHECK(prompts_allocate(&apart.prompts, w->model, 1, w->prompts.length, &error) == 0, "%s", error.text);
    memcpy(apart.prompts.rows, prompt_rows(&w->prompts, w->model, task < 0 ? 0 : (size_t)task),
           prompt_size(w) * sizeof(weight_t));
    return apart;
}

static void task_apart_free(TaskApart *apart)
{
    free(apart->examples);
    free(apart->places);
    prompts_free(&apart->prompts);
}

/* Each example has the loss and the logits that it has in the mixed batch. */
static void check_examples_apart(const World *w, const Case *item, const TaskApart *apart, const Outcome *alone,
                                 const Outcome *mixed)
{
    size_t V = w->model->config.vocab_size;
    for (size_t i = 0; i < apart->count; i++) {
        size_t b = apart->places[i];
        double off = distance(alone->logits + alone->first[i] * V, mixed->logits + mixed->first[b] * V,
                              apart->examples[i].target_length * V, NULL);
        CHECK(off <= ROUNDING, "%s: example %zu: its logits differ by %.2e", item->name, b, off);
        CHECK(fabs(alone->losses[i] - mixed->losses[b]) <= ROUNDING * mixed->losses[b],
              "%s: example %zu: loss %.9g (expected %.9g)", item->name, b, alone->losses[i], mixed->losses[b]);
    }
}

/* Losses and weight gradients of the tasks add up to those of the mixed batch; a prompt's gradient is its task's. */
static void apart_case(const Case *item)
{
    const LossSettings loss = loss_of_case(item);
    World w;
    Outcome mixed;
    stat_t *sum;
    double off, size, losses = 0;
    world_open(&w, item);
    sum = host_alloc(w.model->n_weights, sizeof *sum);
    mixed = outcome_of(&w, &w.prompts, w.batch.examples, w.batch.B, &loss);
    for (int task = -1; task < TASKS; task++) {
        TaskApart apart = task_apart(&w, task);
        Outcome alone = outcome_of(&w, &apart.prompts, apart.examples, apart.count, &loss);
        check_examples_apart(&w, item, &apart, &alone, &mixed);
        losses += alone.loss;
        for (size_t i = 0; i < w.model->n_tensors; i++) {
            const Tensor *t = &w.model->tensors[i];
            const stat_t *gradient = gradient_place(&alone.grads, w.model, t);
            for (size_t k = 0; k < t->rows * t->columns; k++) sum[t->offset + k] += gradient[k];
        }
        if (task >= 0) {
            off = distance(alone.grads.prompts, mixed.grads.prompts + (size_t)task * prompt_size(&w), prompt_size(&w),
                           &size);
            CHECK(size > 0 && off <= ROUNDING, "%s: gradient of prompt %d differs by %.2e", item->name, task, off);
        }
        outcome_free(&alone);
        task_apart_free(&apart);
    }
    CHECK(fabs(losses - mixed.loss) <= ROUNDING * mixed.loss, "%s: loss %.9g (expected %.9g)", item->name, losses,
          mixed.loss);
    for (size_t i = 0; i < w.model->n_tensors; i++) {
        const Tensor *t = &w.model->tensors[i];
        off = distance(sum + t->offset, gradient_place(&mixed.grads, w.model, t), t->rows * t->columns, &size);
        CHECK(size > 0 && off <= ROUNDING, "%s: gradient of %s differs by %.2e", item->name, t->name, off);
    }
    free(sum);
    outcome_free(&mixed);
    world_close(&w);
}

static void test_a_mixed_batch_is_its_tasks(void)
{
    each_case(apart_case);
}

/* With the model frozen, three prompts trained together on mixed batches are the three trained apart: Adafactor clips and
 * scales each prompt on its own. Ten steps make at most some hundred times as much of a gradient's rounding, and the
 * first one is the gradient's sign, which none of these batches leaves in doubt. */
static void prompts_apart_case(const Case *item)
{
    const double MOVEMENT = sizeof(real_t) == sizeof(float) ? MOVEMENT_LIMIT : 1e-9;
    Stage stage = stage_of_case(item);
    World w, mixed;
    size_t n;
    if (!stage.trains_prompts) return;
    stage.trains_model = false;
    world_open(&w, item);
    world_open(&mixed, item);
    n = prompt_size(&w);
    train(&mixed, &mixed.prompts, mixed.batch.examples, mixed.batch.B, mixed.batch.B, &stage, NULL);
    for (int task = 0; task < TASKS; task++) {
        TaskApart apart = task_apart(&w, task);
        const weight_t *together = prompt_rows(&mixed.prompts, w.model, (size_t)task),
                       *start = prompt_rows(&w.prompts, w.model, (size_t)task);
        double moved = 0, off = 0;
        train(&w, &apart.prompts, apart.examples, apart.count, apart.count, &stage, NULL);
        for (size_t k = 0; k < n; k++) {
            double here = apart.prompts.rows[k];
            moved += (together[k] - (double)start[k]) * (together[k] - (double)start[k]);
            off += (together[k] - here) * (together[k] - here);
        }
        CHECK(moved > 0 && sqrt(off) <= MOVEMENT * sqrt(moved), "%s: prompt %d ends %.2e of its movement away",
              item->name, task, sqrt(off / moved));
        task_apart_free(&apart);
    }
    world_close(&w);
    world_close(&mixed);
}

static void test_prompts_trained_together_and_apart(void)
{
    each_case(prompts_apart_case);
}

static const Test tests[] = {
    {"equal to PyTorch", test_equal_to_pytorch},
    {"a mixed batch is its tasks", test_a_mixed_batch_is_its_tasks},
    {"prompts trained together and apart", test_prompts_trained_together_and_apart},
};
TEST_MAIN(tests)

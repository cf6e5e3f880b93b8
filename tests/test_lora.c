/* test_lora.c: LoRA (chapters 3 to 5 of promot.c): adapters, their gradients, and both ways to train beside one.
 *
 * tests/golden/lora comes from tests/reference.py: adapters that peft wrote, and what peft, PyTorch and T5X's Adafactor
 * make of them in double precision; cases.txt has a case a line: TRAINED NAME MODEL LR WEIGHT_DECAY, where TRAINED is
 * "adapter" (A and B) or "model" (everything else). An expected tensor "n/NAME" holds every n-th element of NAME.
 *
 * Built twice: as it is, and with every number a double, where finite differences check the gradients. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "test.h"

/* Every device_alloc asks aligned_alloc, and promot.c's calls of it are counted here. */
static size_t allocated_bytes;

static void *counted_aligned_alloc(size_t alignment, size_t bytes)
{
    allocated_bytes += bytes;
    return aligned_alloc(alignment, bytes);
}

#define aligned_alloc counted_aligned_alloc
#include "../promot.c"
#include "steps.h"
#undef aligned_alloc

#define SCRATCH BUILD "/test/lora"
#define GOLDEN "tests/golden/lora"
#define MODELS "tests/golden/model"
#define ANY_BATCH MODELS "/t5_tied.ragged" /* whose ids every model below has */

/* The limits of test_parity.c, and for its reasons. */
static const double LOGITS_LIMIT = 1e-5, LOSS_LIMIT = 1e-6, GRADIENT_LIMIT = 1e-4, MOVEMENT_LIMIT = 1e-3;
static const double LATER_LOSS_LIMIT = 1e-5, ZERO_LIMIT = 1e-6;

/* Two ways to sum the same numbers differ by rounding: a few hundred terms of 6e-8 (1e-16) each, adding up at random
 * through some twenty layers of operations. */
static const double ROUNDING = sizeof(real_t) == sizeof(float) ? 2e-5 : 1e-12;

/* ------------------------------------------------------------------------------------------------- models and batches */

/* A golden model on a device of its own, and a batch of golden ids or of random ones. */
typedef struct {
    Device *dev;
    Model *model;
    DumpBatch batch;
    Prompts prompts;
} World;

static bool world_open(World *w, const char *model, const char *batch, int threads)
{
    Error error = {0};
    char path[256];
    memset(w, 0, sizeof *w);
    snprintf(path, sizeof path, MODELS "/%s", model);
    w->dev = device_open(threads, MATMUL_FP32, &error);
    w->model = model_open(path, w->dev, NULL, &error);
    CHECK(w->model != NULL, "%s", error.text);
    if (!w->model) return false;
    snprintf(path, sizeof path, "%s.batch.safetensors", batch);
    CHECK(dump_read(&w->batch, w->model, path, &error) == 0, "%s", error.text);
    if (w->batch.prompt) {
        CHECK(prompts_allocate(&w->prompts, w->model, 1, w->batch.P, &error) == 0, "%s", error.text);
        weights_upload(w->dev, w->prompts.rows, w->batch.prompt, w->batch.P * w->model->config.d_model);
    }
    return w->batch.examples != NULL;
}

static void world_close(World *w)
{
    prompts_free(&w->prompts);
    dump_batch_free(&w->batch);
    model_close(w->model);
    device_close(w->dev);
}

static const Prompts *attached(const World *w)
{
    return w->batch.prompt ? &w->prompts : NULL;
}

/* A LoRA of which B is not zero. */
static void attach(World *w, const char *targets, size_t rank)
{
    Error error = {0};
    Lora *lora;
    CHECK(lora_create(w->model, targets, rank, 5, 17, &error) == 0, "%s", error.text);
    lora = w->model->lora;
    for (size_t i = 0; lora && i < lora->count; i++)
        for (size_t k = 0; k < lora->targets[i].tensor->rows * rank; k++)
            lora->targets[i].b[k] = (real_t)(0.3 * random_normal(70 + i, k));
    lora_merge(w->model);
}

static const LossSettings LOSS = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};

/* The loss in full precision, of some of the batch's examples. grads NULL: none. */
static double loss_of(const World *w, Pass *pass, Batch *batch, size_t first, size_t count, const Gradients *grads)
{
    Error error = {0};
    double sum = 0;
    CHECK(batch_build(batch, w->model, w->batch.examples + first, count, w->prompts.length, w->prompts.count, first,
                      NULL, 0, &error) == 0,
          "%s", error.text);
    CHECK(pass_prepare(pass, w->model, attached(w), batch, PASS_TRAIN, &error) == 0, "%s", error.text);
    t5_loss(pass, &LOSS, grads);
    for (size_t i = 0; i < batch->target.rows; i++) sum += pass->loss[i];
    return sum;
}

static bool same_bits(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n * sizeof(real_t)) == 0;
}

static real_t *copy_of(const real_t *x, size_t n)
{
    real_t *copy = host_alloc(n, sizeof *copy);
    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

/* |a - b|, and |b|. */
static double distance(const real_t *a, const real_t *b, size_t n, double *norm)
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

/* Gradients of the adapter, or (adapter false) of every weight of the model, kept. */
static char *gradients_open(Gradients *grads, const World *w, bool adapter)
{
    Error error = {0};
    char *memory;
    GradientPlan plan = {.model = !adapter,
                         .keep = true,
                         .n_touched = w->model->config.vocab_size,
                         .n_adapters = adapter ? w->model->lora->n_adapters : 0};
    CHECK(gradients_create(grads, &memory, w->model, &plan, 0, &error) == 0, "%s", error.text);
    return memory;
}

/* ----------------------------------------------------------------------------------------------- peft's own numbers */

typedef struct {
    char trained[16], name[64], model[64];
    double rate, decay;
} Case;

/* What is compared: tensors by the names of the expected file, behind "n/". */
typedef struct {
    const Case *item;
    const Checkpoint *expected;
    double gradients; /* the norm of all expected gradients together */
} Comparison;

static double limit_of(const char *name)
{
    if (strcmp(name, "loss") == 0) return LOSS_LIMIT;
    if (strcmp(name, "losses") == 0) return LATER_LOSS_LIMIT;
    if (strncmp(name, "grad/", 5) == 0) return GRADIENT_LIMIT;
    if (strncmp(name, "moved/", 6) == 0) return MOVEMENT_LIMIT;
    return LOGITS_LIMIT;
}

/* The expected tensor behind "n/", and n. */
static const StoredTensor *expected_find(const Checkpoint *expected, const char *name, size_t *every)
{
    for (size_t i = 0; i < checkpoint_count(expected); i++) {
        const StoredTensor *tensor = checkpoint_at(expected, i);
        char *rest;
        *every = strtoul(tensor->name, &rest, 10);
        if (*rest == '/' && strcmp(rest + 1, name) == 0) return tensor;
    }
    return NULL;
}

static size_t compared; /* tensors of the running case */

/* found less `before` (NULL: zeros) is the expected tensor `name`. */
static void compare(const Comparison *c, const char *name, const real_t *found, const real_t *before, size_t n)
{
    Error error = {0};
    size_t every;
    const StoredTensor *tensor = expected_find(c->expected, name, &every);
    double off = 0, size = 0, limit = limit_of(name);
    float *wanted;
    CHECK(tensor && tensor->numel == (n + every - 1) / every, "%s: %s is not expected", c->item->name, name);
    if (!tensor || tensor->numel != (n + every - 1) / every) return;
    wanted = host_alloc(tensor->numel, sizeof *wanted);
    CHECK(stored_tensor_read_float(tensor, 0, tensor->numel, wanted, &error) == 0, "%s", error.text);
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
    CHECK(off <= limit, "%s: %s is off by %.2e (limit %.0e)", c->item->name, name, off, limit);
    compared++;
    free(wanted);
}

static void compare_formatted(const Comparison *c, const char *kind, const Tensor *tensor, const char *suffix,
                              const real_t *found, const real_t *before, size_t n)
{
    char name[256];
    snprintf(name, sizeof name, "%s/%.*s%s.weight", kind, (int)(strlen(tensor->name) - strlen(".weight")), tensor->name,
             suffix);
    compare(c, name, found, before, n);
}

static double expected_gradients(const Checkpoint *expected)
{
    Error error = {0};
    double sum = 0;
    for (size_t i = 0; i < checkpoint_count(expected); i++) {
        const StoredTensor *tensor = checkpoint_at(expected, i);
        float value;
        for (size_t k = 0; strstr(tensor->name, "/grad/") && k < tensor->numel; k++)
            if (stored_tensor_read_float(tensor, k, 1, &value, &error) == 0) sum += (double)value * value;
    }
    return sqrt(sum);
}

/* The logits as [B, T, V], zero at padding. */
static void compare_logits(const Comparison *c, const World *w, const Pass *pass)
{
    size_t V = w->model->config.vocab_size, D = w->model->config.d_model, row = 0;
    real_t *logits = host_alloc(w->batch.B * w->batch.T * V, sizeof *logits);
    for (size_t b = 0; b < w->batch.B; b++) {
        size_t length = w->batch.examples[b].target_length;
        linear_forward(w->dev, logits + b * w->batch.T * V, pass->decoder.out + row * D, w->model->head->data, length,
                       D, V);
        row += length;
    }
    compare(c, "logits", logits, NULL, w->batch.B * w->batch.T * V);
    free(logits);
}

static void compare_first_pass(const Comparison *c, const World *w)
{
    Pass pass = {0};
    Batch batch = {0};
    Gradients grads;
    char *memory = gradients_open(&grads, w, true);
    const Lora *lora = w->model->lora;
    real_t loss = (real_t)loss_of(w, &pass, &batch, 0, w->batch.B, &grads);
    compare(c, "loss", &loss, NULL, 1);
    compare_logits(c, w, &pass);
    for (size_t i = 0; i < lora->count; i++) {
        const LoraTarget *t = &lora->targets[i];
        compare_formatted(c, "grad", t->tensor, ".lora_A", grads.adapters + (t->a - lora->adapters), NULL,
                          lora->rank * t->tensor->columns);
        compare_formatted(c, "grad", t->tensor, ".lora_B", grads.adapters + (t->b - lora->adapters), NULL,
                          lora->rank * t->tensor->rows);
    }
    device_free(memory);
    pass_free(&pass);
    batch_free(&batch);
}

static Stage stage_of(bool adapter, const Case *item)
{
    AdafactorSettings settings = {.learning_rate = item->rate,
                                  .decay_rate = 0.8,
                                  .clip = 1,
                                  .weight_decay = item->decay,
                                  .scale_by_parameter = !adapter};
    return (Stage){.name = "test",
                   .trains_model = !adapter,
                   .trains_lora = adapter,
                   .uses_prompts = true,
                   .model = settings,
                   .lora = settings,
                   .loss = LOSS};
}

/* Trains on the world's batch; micro 0: all of it at once. */
static void train(World *w, Trainer *trainer, const Stage *stage, size_t micro, int64_t first, int64_t steps,
                  real_t *losses)
{
    Error error = {0};
    StepResult result;
    for (int64_t s = first; s < first + steps; s++) {
        CHECK(train_step(trainer, w->model, &w->prompts, stage, w->batch.examples, w->batch.B,
                         micro ? micro : w->batch.B, s, random_fold(3, (uint64_t)s), true, &result, &error) == 0,
              "%s", error.text);
        if (losses) losses[s] = (real_t)result.loss;
    }
}

static void trainer_open(Trainer *trainer, const World *w, const Stage *stage, bool keep)
{
    Error error = {0};
    CHECK(trainer_create(trainer, w->model, &w->prompts, stage, w->model->config.vocab_size, keep, &error) == 0, "%s",
          error.text);
}

static void compare_ten_steps(const Comparison *c, World *w)
{
    enum { STEPS = 10 };
    const Model *model = w->model;
    const Lora *lora = model->lora;
    const Stage stage = stage_of(strcmp(c->item->trained, "adapter") == 0, c->item);
    weight_t *weights, *adapters = copy_of(lora->adapters, lora->n_adapters);
    real_t losses[STEPS];
    Trainer trainer;
    lora_unmerge(model);
    weights = copy_of(model->weights, model->n_weights);
    lora_merge(model);
    trainer_open(&trainer, w, &stage, false);
    train(w, &trainer, &stage, 0, 0, STEPS, losses);
    compare(c, "losses", losses, NULL, STEPS);
    lora_unmerge(model);
    for (size_t i = 0; stage.trains_lora && i < lora->count; i++) {
        const LoraTarget *t = &lora->targets[i];
        compare_formatted(c, "moved", t->tensor, ".lora_A", t->a, adapters + (t->a - lora->adapters),
                          lora->rank * t->tensor->columns);
        compare_formatted(c, "moved", t->tensor, ".lora_B", t->b, adapters + (t->b - lora->adapters),
                          lora->rank * t->tensor->rows);
    }
    for (size_t i = 0; stage.trains_model && i < model->n_tensors; i++)
        compare_formatted(c, "moved", &model->tensors[i], "", model->tensors[i].data,
                          weights + model->tensors[i].offset, model->tensors[i].rows * model->tensors[i].columns);
    CHECK(!stage.trains_lora || same_bits(model->weights, weights, model->n_weights), "%s: the model moved",
          c->item->name);
    CHECK(!stage.trains_model || same_bits(lora->adapters, adapters, lora->n_adapters), "%s: the adapter moved",
          c->item->name);
    trainer_free(&trainer);
    free(weights);
    free(adapters);
}

static void run_case(const Case *item)
{
    Error error = {0};
    char path[256];
    World w;
    Comparison c = {.item = item};
    snprintf(path, sizeof path, GOLDEN "/%s", item->name);
    if (!world_open(&w, item->model, path, 2)) return;
    snprintf(path, sizeof path, GOLDEN "/%s.expected.safetensors", item->name);
    c.expected = checkpoint_open(path, &error);
    snprintf(path, sizeof path, GOLDEN "/%s.adapter", item->name);
    CHECK(c.expected && lora_open(w.model, path, &error) == 0, "%s", error.text);
    if (c.expected && w.model->lora) {
        compared = 0;
        c.gradients = expected_gradients(c.expected);
        compare_first_pass(&c, &w);
        compare_ten_steps(&c, &w);
        CHECK(compared == checkpoint_count(c.expected), "%s: %zu of %zu tensors compared", item->name, compared,
              checkpoint_count(c.expected));
    }
    checkpoint_close((Checkpoint *)c.expected);
    world_close(&w);
}

static void each_case(const char *trained)
{
    FILE *list = fopen(GOLDEN "/cases.txt", "r");
    size_t cases = 0;
    Case item;
    CHECK(list != NULL, GOLDEN "/cases.txt is not there");
    if (!list) return;
    while (fscanf(list, "%15s %63s %63s %lf %lf", item.trained, item.name, item.model, &item.rate, &item.decay) == 5)
        if (strcmp(item.trained, trained) == 0) run_case(&item), cases++;
    fclose(list);
    CHECK(cases >= 2, "%zu cases", cases);
}

static void test_adapters_are_trained_as_peft_does(void)
{
    each_case("adapter");
}

static void test_models_are_trained_beside_an_adapter(void)
{
    each_case("model");
}

/* --------------------------------------------------------------------------------------------- choosing the gradients */

/* Every tensor alone: its gradient is what it is among all, bit for bit, and no other's is written (but its
 * neighbours', which are one matrix with it). */
static void check_single(const World *w, const Gradients *all, size_t t, const bool *wanted)
{
    const Model *model = w->model;
    const Tensor *tensor = &model->tensors[t];
    size_t n = tensor->rows * tensor->columns;
    Gradients grads;
    Pass pass = {.dropout = 0.2f, .dropout_shared = true, .dropout_key = 12};
    Batch batch = {0};
    char *memory = gradients_open(&grads, w, false);
    memset(memory, 0xff, model->n_weights * sizeof(stat_t)); /* NaN */
    grads.wanted = wanted;
    loss_of(w, &pass, &batch, 0, w->batch.B, &grads);
    CHECK(same_bits(gradient_place(&grads, model, tensor), gradient_place(all, model, tensor), n), "%s: %s",
          model->config.model_type, tensor->name);
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *other = &model->tensors[i];
        if (i + 3 > t && i < t + 3) continue;
        CHECK(isnan(gradient_place(&grads, model, other)[0]), "%s was computed for %s", other->name, tensor->name);
    }
    device_free(memory);
    pass_free(&pass);
    batch_free(&batch);
}

static void test_single_gradients(void)
{
    static const char *const models[] = {"mt5_odd", "t5_tied", "deep_decoder"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        World w;
        Gradients all;
        Pass pass = {.dropout = 0.2f, .dropout_shared = true, .dropout_key = 12};
        Batch batch = {0};
        bool *wanted;
        char *memory;
        if (!world_open(&w, models[m], ANY_BATCH, 1)) return;
        memory = gradients_open(&all, &w, false);
        loss_of(&w, &pass, &batch, 0, w.batch.B, &all);
        wanted = host_alloc(w.model->n_tensors, sizeof *wanted);
        for (size_t t = 0; t < w.model->n_tensors; t++) {
            wanted[t] = true;
            check_single(&w, &all, t, wanted);
            wanted[t] = false;
        }
        free(wanted);
        device_free(memory);
        pass_free(&pass);
        batch_free(&batch);
        world_close(&w);
    }
}

/* Training A and B alone computes the gradients of its targets only, and these are those of a full backward pass: the
 * same bits of dW, and hence dA = s Bᵀ dW and dB = s dW Aᵀ. */
static void check_target_gradients(const char *name, const char *targets)
{
    World w;
    Gradients all, wanted, adapter;
    char *memory[3];
    Pass pass = {.dropout = 0.2f, .dropout_shared = true, .dropout_key = 12};
    Batch batch = {0};
    const Lora *lora;
    if (!world_open(&w, name, ANY_BATCH, 2)) return;
    attach(&w, targets, 3);
    lora = w.model->lora;
    memory[0] = gradients_open(&all, &w, false);
    memory[1] = gradients_open(&wanted, &w, false);
    memory[2] = gradients_open(&adapter, &w, true);
    wanted.wanted = lora->wanted;
    CHECK(!adapter.finished && !adapter.kept && !adapter.embedding && adapter.wanted == lora->wanted, "%s", name);
    loss_of(&w, &pass, &batch, 0, w.batch.B, &all);
    loss_of(&w, &pass, &batch, 0, w.batch.B, &wanted);
    loss_of(&w, &pass, &batch, 0, w.batch.B, &adapter);
    for (size_t i = 0; i < lora->count; i++) {
        const LoraTarget *t = &lora->targets[i];
        const Tensor *tensor = t->tensor;
        const stat_t *dw = gradient_place(&all, w.model, tensor);
        size_t n_a = lora->rank * tensor->columns, n_b = lora->rank * tensor->rows;
        stat_t *expected = host_alloc(n_a + n_b, sizeof *expected);
        CHECK(same_bits(dw, gradient_place(&wanted, w.model, tensor), tensor->rows * tensor->columns), "%s: %s", name,
              tensor->name);
        lora_backward(w.dev, expected, expected + n_a, dw, t->a, t->b, tensor->rows, tensor->columns, lora->rank,
                      lora->scale);
        CHECK(same_bits(expected, adapter.adapters + (t->a - lora->adapters), n_a + n_b), "%s: A, B of %s", name,
              tensor->name);
        free(expected);
    }
    for (size_t i = 0; i < 3; i++) device_free(memory[i]);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

static void test_gradients_of_the_targets(void)
{
    check_target_gradients("mt5_odd", "q,v");
    check_target_gradients("mt5_odd", "all-linear");
    check_target_gradients("t5_tied", "SelfAttention.k,wi");
    check_target_gradients("deep_decoder", "wo,EncDecAttention.o");
}

#ifdef PROMOT_DOUBLE
/* Central differences with step 2e-5: as in test_model.c, 1e-7 for h^2 times third derivatives and for rounding. */
static void check_slopes(const char *name, const char *targets, size_t rank)
{
    const double h = 2e-5;
    World w;
    Gradients grads;
    Pass pass = {.dropout = 0.2f, .dropout_shared = true, .dropout_key = 4};
    Batch batch = {0};
    char *memory;
    const Lora *lora;
    if (!world_open(&w, name, ANY_BATCH, 1)) return;
    attach(&w, targets, rank);
    lora = w.model->lora;
    memory = gradients_open(&grads, &w, true);
    loss_of(&w, &pass, &batch, 0, w.batch.B, &grads);
    for (size_t k = 0; k < lora->n_adapters; k += 11) {
        double before = lora->adapters[k], up, down, expected;
        lora->adapters[k] = before + h, lora_merge(w.model), up = loss_of(&w, &pass, &batch, 0, w.batch.B, NULL);
        lora->adapters[k] = before - h, lora_merge(w.model), down = loss_of(&w, &pass, &batch, 0, w.batch.B, NULL);
        lora->adapters[k] = before;
        expected = (up - down) / (2 * h);
        CHECK(fabs(grads.adapters[k] - expected) <= 1e-6 * fabs(expected) + 1e-7, "%s: [%zu]: %.12g (expected %.12g)",
              name, k, grads.adapters[k], expected);
    }
    device_free(memory);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

static void test_finite_differences(void)
{
    check_slopes("mt5_odd", "q,v,wi_1", 3);
    check_slopes("deep_decoder", "all-linear", 1);
}
#endif

/* ------------------------------------------------------------------------------------------------------------- training */

static const Case PLAIN = {.rate = 0.02};

/* What a training run left: everything of the model and of its adapter. */
typedef struct {
    weight_t *weights, *adapters, *bases;
} Outcome;

static Outcome outcome_of(const World *w)
{
    const Lora *lora = w->model->lora;
    return (Outcome){copy_of(w->model->weights, w->model->n_weights), copy_of(lora->adapters, lora->n_adapters),
                     copy_of(lora->bases, lora->n_bases)};
}

static bool outcome_is(const World *w, const Outcome *outcome)
{
    const Lora *lora = w->model->lora;
    return same_bits(w->model->weights, outcome->weights, w->model->n_weights) &&
           same_bits(lora->adapters, outcome->adapters, lora->n_adapters) &&
           same_bits(lora->bases, outcome->bases, lora->n_bases);
}

static void outcome_free(Outcome *outcome)
{
    free(outcome->weights);
    free(outcome->adapters);
    free(outcome->bases);
}

/* W is W0 + s B A, bit for bit; everything else of the model is as it was. */
static void check_merged(const World *w, const weight_t *start)
{
    const Model *model = w->model;
    weight_t *found = copy_of(model->weights, model->n_weights);
    bool others = true;
    lora_merge(model);
    CHECK(same_bits(found, model->weights, model->n_weights), "not merged");
    for (size_t t = 0; t < model->n_tensors; t++) {
        const Tensor *tensor = &model->tensors[t];
        if (!model->lora->wanted[t])
            others &= same_bits(found + tensor->offset, start + tensor->offset, tensor->rows * tensor->columns);
    }
    CHECK(others, "a tensor moved that is not trained");
    free(found);
}

/* Micro-batches of any size end in the update of the whole batch. dA and dB differ by the rounding of sums, of which an
 * update of ten steps makes at most some hundred times as much; the first update of an element is only its gradient's
 * sign, but none of these gradients is small. */
static void test_micro_batches(void)
{
    const double MOVEMENT = sizeof(real_t) == sizeof(float) ? 1e-3 : 1e-9;
    const Stage stage = stage_of(true, &PLAIN);
    World whole, parts;
    Trainer trainer;
    weight_t *start, *weights;
    if (!world_open(&whole, "mt5_odd", MODELS "/mt5_odd.prompt", 1)) return;
    attach(&whole, "q,v,wo", 3);
    start = copy_of(whole.model->lora->adapters, whole.model->lora->n_adapters);
    weights = copy_of(whole.model->weights, whole.model->n_weights);
    trainer_open(&trainer, &whole, &stage, false);
    train(&whole, &trainer, &stage, 0, 0, 3, NULL);
    trainer_free(&trainer);
    check_merged(&whole, weights);
    for (size_t micro = 1; micro < whole.batch.B; micro++) {
        double moved, off, norm;
        size_t n = whole.model->lora->n_adapters;
        world_open(&parts, "mt5_odd", MODELS "/mt5_odd.prompt", 1);
        attach(&parts, "q,v,wo", 3);
        trainer_open(&trainer, &parts, &stage, true);
        train(&parts, &trainer, &stage, micro, 0, 3, NULL);
        moved = distance(whole.model->lora->adapters, start, n, &norm);
        off = distance(parts.model->lora->adapters, whole.model->lora->adapters, n, &norm);
        CHECK(moved > 0 && off <= MOVEMENT * moved, "micro-batches of %zu: %g of the movement", micro, off / moved);
        trainer_free(&trainer);
        world_close(&parts);
    }
    free(start);
    free(weights);
    world_close(&whole);
}

/* dA and dB over micro-batches add up to those of the whole batch. */
static void test_gradients_add_up(void)
{
    World w;
    Gradients whole, parts;
    Pass pass = {.dropout = 0.3f, .dropout_key = 8};
    Batch batch = {0};
    char *memory[2];
    double off, norm;
    if (!world_open(&w, "t5_tied", ANY_BATCH, 1)) return;
    attach(&w, "all-linear", 2);
    memory[0] = gradients_open(&whole, &w, true);
    memory[1] = gradients_open(&parts, &w, true);
    loss_of(&w, &pass, &batch, 0, w.batch.B, &whole);
    for (size_t b = 0; b < w.batch.B; b++) {
        parts.accumulate = b > 0;
        loss_of(&w, &pass, &batch, b, 1, &parts);
    }
    off = distance(parts.adapters, whole.adapters, w.model->lora->n_adapters, &norm);
    CHECK(norm > 0 && off <= ROUNDING * norm, "%g of %g", off, norm);
    for (size_t i = 0; i < 2; i++) device_free(memory[i]);
    pass_free(&pass);
    batch_free(&batch);
    world_close(&w);
}

/* A run that goes on from A, B and the moments ends in the same bits, and the number of threads changes none. */
static void test_state_and_threads(void)
{
    Stage stage = stage_of(true, &PLAIN);
    World one, other;
    Trainer trainer, resumed;
    Outcome outcome;
    stage.dropout = 0.2f;
    if (!world_open(&one, "factored", ANY_BATCH, 1)) return;
    attach(&one, "q,v,wi", 3);
    trainer_open(&trainer, &one, &stage, false);
    train(&one, &trainer, &stage, 0, 0, 2, NULL);
    world_open(&other, "factored", ANY_BATCH, 3);
    attach(&other, "q,v,wi", 3);
    trainer_open(&resumed, &other, &stage, true);
    CHECK(trainer.adafactor.size == one.model->lora->n_adapters && resumed.adafactor.size == trainer.adafactor.size,
          "%zu moments", trainer.adafactor.size);
    memcpy(resumed.adafactor.memory, trainer.adafactor.memory, trainer.adafactor.size * sizeof(stat_t));
    memcpy(other.model->lora->adapters, one.model->lora->adapters, one.model->lora->n_adapters * sizeof(weight_t));
    lora_merge(other.model);
    train(&one, &trainer, &stage, 0, 2, 2, NULL);
    train(&other, &resumed, &stage, 0, 2, 2, NULL);
    outcome = outcome_of(&one);
    CHECK(outcome_is(&other, &outcome), "another end");
    outcome_free(&outcome);
    trainer_free(&trainer);
    trainer_free(&resumed);
    world_close(&one);
    world_close(&other);
}

/* Beside a frozen adapter the model learns: the update within the backward pass is the one after it, bit for bit, W0
 * moves, and W is merged with A and B as they were. */
static void test_second_stage(void)
{
    for (int decay = 0; decay < 2; decay++) {
        const Case settings = {.rate = 0.003, .decay = decay ? 1e-3 : 0};
        const Stage stage = stage_of(false, &settings);
        World fused, kept;
        Trainer trainer;
        Outcome start, end;
        const Lora *lora;
        if (!world_open(&fused, "factored", ANY_BATCH, 1)) return;
        world_open(&kept, "factored", ANY_BATCH, 2);
        attach(&fused, "q,v,wo", 3);
        attach(&kept, "q,v,wo", 3);
        lora = fused.model->lora;
        start = outcome_of(&fused);
        trainer_open(&trainer, &fused, &stage, false);
        CHECK(trainer.grads.finished && !trainer.grads.wanted && !trainer.grads.adapters, "a stage of the model");
        train(&fused, &trainer, &stage, 0, 0, 3, NULL);
        trainer_free(&trainer);
        trainer_open(&trainer, &kept, &stage, true);
        train(&kept, &trainer, &stage, 0, 0, 3, NULL);
        trainer_free(&trainer);
        end = outcome_of(&fused);
        CHECK(outcome_is(&kept, &end), "kept gradients end elsewhere");
        CHECK(same_bits(start.adapters, end.adapters, lora->n_adapters), "the adapter moved");
        for (size_t i = 0; i < lora->count; i++) {
            size_t at = (size_t)(lora->targets[i].base - lora->bases), n = lora->targets[i].tensor->rows;
            CHECK(!same_bits(start.bases + at, end.bases + at, n), "%s: W0 stays", lora->targets[i].tensor->name);
        }
        lora_merge(fused.model);
        CHECK(outcome_is(&fused, &end), "not merged");
        outcome_free(&start);
        outcome_free(&end);
        world_close(&fused);
        world_close(&kept);
    }
}

/* --------------------------------------------------------------------------------------------------- making an adapter */

static size_t count_targets(World *w, const char *targets)
{
    Error error = {0};
    CHECK(lora_create(w->model, targets, 2, 4, 3, &error) == 0, "%s", error.text);
    return w->model->lora ? w->model->lora->count : 0;
}

static void expect_no_targets(World *w, const char *targets, const char *named)
{
    Error error = {0};
    size_t bytes = lora_bytes(&w->model->config, targets, 2, true, &error);
    CHECK(bytes == 0 && error.exit_code == EXIT_USAGE, "%s: %zu bytes", targets, bytes);
    CHECK(lora_create(w->model, targets, 2, 4, 3, &error) == -1 && error.exit_code == EXIT_USAGE &&
              strstr(error.text, named),
          "%s: %s", targets, error.text);
    CHECK(!w->model->lora, "%s: attached", targets);
}

/* mt5_odd: two layers in each stack. */
static void test_targets(void)
{
    World w;
    if (!world_open(&w, "mt5_odd", ANY_BATCH, 1)) return;
    expect_no_targets(&w, "q,,v", "found \"\"");
    expect_no_targets(&w, "", "found \"\"");
    expect_no_targets(&w, "q,wi", "found \"wi\""); /* this model's are wi_0 and wi_1 */
    expect_no_targets(&w, "q,x,v", "found \"x\"");
    expect_no_targets(&w, "lm_head", "found \"lm_head\"");
    expect_no_targets(&w, "relative_attention_bias", "found");
    expect_no_targets(&w, "layer_norm", "found");
    expect_no_targets(&w, "Attention.q", "found"); /* only whole parts of a name */
    CHECK(count_targets(&w, "q,v") == 12, "q,v: %zu", w.model->lora->count);
    CHECK(count_targets(&w, "v,q,q") == 12, "v,q,q: %zu", w.model->lora->count);
    CHECK(count_targets(&w, "SelfAttention.q") == 4, "SelfAttention.q: %zu", w.model->lora->count);
    CHECK(count_targets(&w, "EncDecAttention.o,wi_1") == 6, "EncDecAttention.o,wi_1: %zu", w.model->lora->count);
    CHECK(count_targets(&w, "encoder.block.1.layer.0.SelfAttention.k") == 1, "one: %zu", w.model->lora->count);
    CHECK(count_targets(&w, "all-linear") == 2 * 7 + 2 * 11, "all-linear: %zu", w.model->lora->count);
    for (size_t t = 0; t < w.model->n_tensors; t++)
        CHECK(w.model->lora->wanted[t] == (strstr(w.model->tensors[t].name, ".block.") &&
                                           w.model->tensors[t].rows > 1 && !strstr(w.model->tensors[t].name, "bias")),
              "%s", w.model->tensors[t].name);
    world_close(&w);
}

/* A new adapter is PEFT's: A uniform within 1 / sqrt(in), B zero, and the model computes what it did. Setting it aside,
 * and taking it off, gives the model's own weights back. */
static void test_a_new_adapter(void)
{
    World w;
    Error error = {0};
    weight_t *start;
    double sum = 0, squares = 0, largest = 0, n = 0;
    if (!world_open(&w, "factored", ANY_BATCH, 1)) return;
    start = copy_of(w.model->weights, w.model->n_weights);
    CHECK(lora_create(w.model, "q,wo", 0, 1, 1, &error) == -1 && error.exit_code == EXIT_USAGE, "rank 0");
    CHECK(lora_create(w.model, "q,wo", 1, NAN, 1, &error) == -1 && error.exit_code == EXIT_USAGE, "alpha NaN");
    CHECK(lora_create(w.model, "q,wo", 40, 20, 1, &error) == 0, "%s", error.text);
    CHECK(w.model->lora->scale > 0.4999f && w.model->lora->scale < 0.5001f, "scale %g", (double)w.model->lora->scale);
    for (size_t i = 0; i < w.model->lora->count; i++) {
        const LoraTarget *t = &w.model->lora->targets[i];
        size_t columns = t->tensor->columns;
        for (size_t k = 0; k < 40 * columns; k++) {
            double a = (double)t->a[k] * sqrt((double)columns); /* uniform in [-1, 1) */
            sum += a, squares += a * a, largest = fmax(largest, fabs(a)), n++;
        }
        for (size_t k = 0; k < 40 * t->tensor->rows; k++) CHECK(!(t->b[k] < 0) && !(t->b[k] > 0), "B is not 0");
        CHECK(i == 0 || !same_bits(t->a, w.model->lora->targets[0].a, 6), "two targets have the same numbers");
    }
    /* Five standard errors: sqrt(1/3 / n) and sqrt(4/45 / n). */
    CHECK(largest <= 1.000001 && fabs(sum / n) < 5 * sqrt(1 / (3 * n)), "mean %g", sum / n);
    CHECK(fabs(squares / n - 1.0 / 3) < 5 * sqrt(4 / (45 * n)), "mean square %g", squares / n);
    lora_merge(w.model);
    CHECK(same_bits(start, w.model->weights, w.model->n_weights), "B = 0 changes the model");
    attach(&w, "q,wo", 3);
    CHECK(!same_bits(start, w.model->weights, w.model->n_weights), "a new adapter takes the place of the old one");
    lora_unmerge(w.model);
    CHECK(w.model->lora && same_bits(start, w.model->weights, w.model->n_weights), "set aside");
    lora_merge(w.model);
    lora_detach(w.model);
    CHECK(!w.model->lora && same_bits(start, w.model->weights, w.model->n_weights), "taken off");
    lora_detach(w.model);
    lora_merge(w.model);
    free(start);
    world_close(&w);
}

/* ---------------------------------------------------------------------------------------------------- adapters on disk */

static bool target_modules_are(const char *directory, const char *expected)
{
    Error error = {0};
    MappedFile file;
    char *path = path_join(directory, "adapter_config.json"), *text = NULL;
    cJSON *config = NULL;
    bool same;
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    config = cJSON_ParseWithLength((const char *)file.data, file.bytes);
    text = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(config, "target_modules"));
    same = text && strcmp(text, expected) == 0;
    CHECK(same, "%s: %s (expected %s)", path, text ? text : "none", expected);
    cJSON_Delete(config);
    cJSON_free(text);
    mapped_file_close(&file);
    free(path);
    return same;
}

/* The logits of the world's batch, [B, T, V]: tests/check_peft_lora.py compares them with peft's. */
static void write_logits(const World *w, const char *path)
{
    const TensorSpec spec = {"logits", DTYPE_F32, 3, {w->batch.B, w->batch.T, w->model->config.vocab_size}};
    Error error = {0};
    Pass pass = {0};
    Batch batch = {0};
    SafetensorsWriter *writer = safetensors_create(path, &spec, 1, &error);
    loss_of(w, &pass, &batch, 0, w->batch.B, NULL);
    CHECK(writer && dump_logits(writer, &pass, &w->batch, &error) == 0 && safetensors_commit(writer, &error) == 0, "%s",
          error.text);
    pass_free(&pass);
    batch_free(&batch);
}

/* What was written and is read again gives the same bits; in the double build, those that a float holds. */
static void check_round_trip(const char *name, const char *targets, bool stabilised, const char *modules)
{
    World w;
    Error error = {0};
    Outcome outcome;
    char directory[256], logits[256];
    snprintf(directory, sizeof directory, SCRATCH "/%s.adapter", name);
    snprintf(logits, sizeof logits, SCRATCH "/%s.logits.safetensors", name);
    if (!world_open(&w, "mt5_odd", ANY_BATCH, 1)) return;
    attach(&w, targets, 3);
    for (size_t i = 0; i < w.model->lora->n_adapters; i++)
        w.model->lora->adapters[i] = (real_t)(float)w.model->lora->adapters[i];
    if (stabilised) {
        w.model->lora->rank_stabilised = true;
        w.model->lora->scale = (float)(5 / sqrt(3.0));
    }
    lora_merge(w.model);
    outcome = outcome_of(&w);
    CHECK(directory_remove(directory, &error) == 0, "%s", error.text);
    CHECK(lora_write(w.model, directory, MODELS "/mt5_odd", &error) == 0, "%s", error.text);
    target_modules_are(directory, modules);
    write_logits(&w, logits);
    lora_detach(w.model);
    CHECK(lora_open(w.model, directory, &error) == 0, "%s", error.text);
    CHECK(w.model->lora && outcome_is(&w, &outcome), "%s: another adapter came back", targets);
    outcome_free(&outcome);
    world_close(&w);
}

static void test_round_trip(void)
{
    check_round_trip("q_v", "v,q", false, "[\"q\",\"v\"]");
    check_round_trip("stabilised", "wo", true, "[\"wo\"]");
    check_round_trip("one_and_all", "encoder.block.1.layer.0.SelfAttention.k,wi_0", false,
                     "[\"wi_0\",\"encoder.block.1.layer.0.SelfAttention.k\"]");
}

static void expect_misfit(const char *model, const char *adapter, const char *said)
{
    World w;
    Error error = {0};
    weight_t *start;
    if (!world_open(&w, model, ANY_BATCH, 1)) return;
    start = copy_of(w.model->weights, w.model->n_weights);
    CHECK(lora_open(w.model, adapter, &error) == -1 && error.exit_code == EXIT_USAGE && strstr(error.text, said),
          "exit %d, %s (expected: %s)", error.exit_code, error.text, said);
    CHECK(!w.model->lora && same_bits(start, w.model->weights, w.model->n_weights), "half attached");
    free(start);
    world_close(&w);
}

static void test_adapters_that_do_not_fit(void)
{
    expect_misfit("deep_decoder", GOLDEN "/mt5_odd.q_v.adapter",
                  "size of the matrix (expected 14 x 10, found 15 x 14)");
    expect_misfit("mt5_odd", GOLDEN "/deep_decoder.cross_mlp.adapter",
                  "size of the matrix (expected 15 x 14, found 14 x 10)");
    expect_misfit("factored", GOLDEN "/mt5_odd.q_v.adapter", "decoder.block.0.layer.0.SelfAttention.q: size");
    expect_misfit("mt5_odd", GOLDEN "/t5_tied.all.adapter", "size of the matrix");
    expect_misfit("mt5_odd", GOLDEN "/none", "expected a PEFT directory");
}

/* An adapter whose module this model has not: a copy of the golden one with another name in it. */
static void test_unknown_modules(void)
{
    static const char *const names[] = {"encoder.block.7.layer.0.SelfAttention.q", "lm_head", "encoder.block.0",
                                        "encoder.block.0.layer.0.layer_norm",
                                        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"};
    float numbers[64] = {0};
    Error error = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[96];
        LoraModule module = {.name = name, .in = 14, .out = 15, .a = numbers, .b = numbers};
        const LoraFile file = {.rank = 2, .alpha = 2, .count = 1, .modules = &module};
        const char *targets[] = {"q"};
        snprintf(name, sizeof name, "%s", names[i]);
        CHECK(directory_remove(SCRATCH "/unknown", &error) == 0, "%s", error.text);
        CHECK(lora_file_write(&file, SCRATCH "/unknown", NULL, targets, 1, &error) == 0, "%s", error.text);
        expect_misfit("mt5_odd", SCRATCH "/unknown", "is no matrix of a layer of this model");
    }
}

/* --------------------------------------------------------------------------------------------------------------- memory */

/* What lora_bytes foretells is what is allocated: an adapter, and, when it is trained, gradients and moments. */
static void test_memory_is_what_was_foretold(void)
{
    static const struct {
        const char *model, *targets;
        size_t rank;
    } cases[] = {{"mt5_odd", "q,v", 3}, {"t5_tied", "all-linear", 5}, {"factored", "wi,wo", 131}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Stage stage = stage_of(true, &PLAIN);
        Error error = {0};
        World w;
        Trainer trainer;
        size_t before, foretold;
        if (!world_open(&w, cases[i].model, ANY_BATCH, 1)) return;
        before = allocated_bytes;
        foretold = lora_bytes(&w.model->config, cases[i].targets, cases[i].rank, false, &error);
        attach(&w, cases[i].targets, cases[i].rank);
        before = allocated_bytes - before; /* two blocks, each rounded up to 64 bytes */
        CHECK(foretold <= before && before < foretold + 2 * 64, "%s: %zu foretold, %zu used", cases[i].model, foretold,
              before);
        before = allocated_bytes;
        foretold = lora_bytes(&w.model->config, cases[i].targets, cases[i].rank, true, &error) - foretold;
        trainer_open(&trainer, &w, &stage, true);
        before = allocated_bytes - before;
        CHECK(foretold <= before && before < foretold + 2 * 64, "%s: %zu foretold for training, %zu used",
              cases[i].model, foretold, before);
        trainer_free(&trainer);
        world_close(&w);
    }
}

static const Test tests[] = {
    {"adapters are trained as peft does", test_adapters_are_trained_as_peft_does},
    {"models are trained beside an adapter", test_models_are_trained_beside_an_adapter},
    {"single gradients", test_single_gradients},
    {"gradients of the targets", test_gradients_of_the_targets},
#ifdef PROMOT_DOUBLE
    {"finite differences", test_finite_differences},
#endif
    {"micro-batches", test_micro_batches},
    {"gradients add up", test_gradients_add_up},
    {"state and threads", test_state_and_threads},
    {"second stage", test_second_stage},
    {"targets", test_targets},
    {"a new adapter", test_a_new_adapter},
    {"round trip", test_round_trip},
    {"adapters that do not fit", test_adapters_that_do_not_fit},
    {"unknown modules", test_unknown_modules},
    {"memory is what was foretold", test_memory_is_what_was_foretold},
};
TEST_MAIN(tests)

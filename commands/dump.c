/* dump.c: promot dump: every number of a forward and backward pass, for other implementations to compare. A part of
 * chapter 10 of promot.c, which includes it. */

/* The padded batch of a dump, as examples. */
typedef struct {
    size_t B, S, T;
    int32_t *ids; /* behind the examples */
    TokenExample *examples;
    float *prompt; /* [P, D], or NULL */
    size_t P;
} DumpBatch;

/* One row of ids, whose padding may only be at its end; returns its length, 0 on an error. */
static size_t dump_row(const int64_t *row, size_t width, size_t vocab_size, const char *path, const char *name,
                       size_t number, int32_t *out, Error *error)
{
    size_t length = width;
    while (length > 0 && row[length - 1] == 0) length--;
    if (length == 0)
        error_set(error, EXIT_USAGE, "%s: %s: row %zu (expected ids, found only padding)", path, name, number);
    for (size_t i = 0; i < length; i++) {
        if (row[i] <= 0 || (uint64_t)row[i] >= vocab_size) {
            error_set(error, EXIT_USAGE, "%s: %s: row %zu, column %zu (expected an id from 1 to %zu, found %lld)", path,
                      name, number, i, vocab_size - 1, (long long)row[i]);
            return 0;
        }
        out[i] = (int32_t)row[i];
    }
    return length;
}

static const StoredTensor *dump_find(const Checkpoint *in, const char *path, const char *name, Error *error)
{
    const StoredTensor *stored = checkpoint_find(in, name);
    if (!stored)
        error_set(error, EXIT_USAGE, "%s: %s is missing", path, name);
    else if (stored->n_dims != 2 || stored->numel == 0)
        error_set(error, EXIT_USAGE,
                  "%s: %s (expected two dimensions with something in them, found %zu dimensions and %zu elements)",
                  path, name, stored->n_dims, stored->numel);
    else
        return stored;
    return NULL;
}

static int dump_read_prompt(DumpBatch *batch, const Model *model, const Checkpoint *in, const char *path, Error *error)
{
    const StoredTensor *prompt = checkpoint_find(in, "prompt");
    size_t D = model->config.d_model;
    if (!prompt) return 0;
    if (prompt->n_dims != 2 || prompt->numel == 0 || prompt->shape[1] != D)
        return error_set(error, EXIT_USAGE, "%s: prompt (expected [P, %zu], found %zu dimensions and %zu elements)",
                         path, D, prompt->n_dims, prompt->numel);
    batch->P = prompt->shape[0];
    batch->prompt = host_alloc(prompt->numel, sizeof *batch->prompt);
    if (stored_tensor_read_float(prompt, 0, prompt->numel, batch->prompt, error)) {
        error->exit_code = EXIT_USAGE;
        return -1;
    }
    for (size_t i = 0; i < prompt->numel; i++)
        if (!isfinite(batch->prompt[i]))
            return error_set(error, EXIT_USAGE, "%s: prompt: element %zu is not a number", path, i);
    return 0;
}

static int dump_read(DumpBatch *batch, const Model *model, const char *path, Error *error)
{
    Checkpoint *in = checkpoint_open(path, error);
    const StoredTensor *inputs, *labels;
    size_t V = model->config.vocab_size;
    int64_t *raw;
    int status = 0;
    if (!in) return -1;
    if (!(inputs = dump_find(in, path, "input_ids", error)) || !(labels = dump_find(in, path, "labels", error))) {
        checkpoint_close(in);
        return -1;
    }
    *batch = (DumpBatch){.B = inputs->shape[0], .S = inputs->shape[1], .T = labels->shape[1]};
    if (labels->shape[0] != batch->B)
        status = error_set(error, EXIT_USAGE, "%s: labels: rows (expected %zu as in input_ids, found %zu)", path,
                           batch->B, labels->shape[0]);
    raw = host_alloc(inputs->numel + labels->numel, sizeof *raw);
    batch->ids = host_alloc(inputs->numel + labels->numel, sizeof *batch->ids);
    batch->examples = host_alloc(batch->B, sizeof *batch->examples);
    if (!status) status = stored_tensor_read_int(inputs, 0, inputs->numel, raw, error);
    if (!status) status = stored_tensor_read_int(labels, 0, labels->numel, raw + inputs->numel, error);
    if (status) error->exit_code = EXIT_USAGE; /* ids that are not integers: a wrong input, not a damaged file */
    if (!status) status = dump_read_prompt(batch, model, in, path, error);
    for (size_t b = 0; !status && b < batch->B; b++) {
        TokenExample *e = &batch->examples[b];
        int32_t *input = batch->ids + b * batch->S, *target = batch->ids + inputs->numel + b * batch->T;
        e->input_length = dump_row(raw + b * batch->S, batch->S, V, path, "input_ids", b, input, error);
        if (e->input_length)
            e->target_length =
                dump_row(raw + inputs->numel + b * batch->T, batch->T, V, path, "labels", b, target, error);
        if (!e->input_length || !e->target_length) status = -1;
        e->input = input;
        e->target = target;
        e->prompt = batch->prompt ? 0 : -1;
    }
    free(raw);
    checkpoint_close(in);
    return status;
}

static void dump_batch_free(DumpBatch *batch)
{
    free(batch->ids);
    free(batch->examples);
    free(batch->prompt);
}

static int append_zeros(SafetensorsWriter *writer, size_t n, Error *error)
{
    float *zeros = host_alloc(TRANSFER, sizeof *zeros);
    int status = 0;
    for (size_t done = 0; !status && done < n; done += TRANSFER)
        status = safetensors_append(writer, zeros, min_size(TRANSFER, n - done) * sizeof *zeros, error);
    free(zeros);
    return status;
}

static int append_activations(SafetensorsWriter *writer, Device *dev, const act_t *x, size_t n, Error *error)
{
    float *host = host_alloc(n, sizeof *host);
    int status;
    activations_download(dev, host, x, n);
    status = safetensors_append(writer, host, n * sizeof *host, error);
    free(host);
    return status;
}

/* logits [B,T,V]: the head once more, a chunk of rows at a time; zeros at padding. */
static int dump_logits(SafetensorsWriter *writer, Pass *pass, const DumpBatch *batch, Error *error)
{
    const Model *model = pass->model;
    size_t D = model->config.d_model, V = model->config.vocab_size, row = 0;
    float *host = host_alloc(pass->logits_rows * V, sizeof *host);
    int status = 0;
    for (size_t b = 0; !status && b < batch->B; b++) {
        size_t length = batch->examples[b].target_length;
        for (size_t first = 0; !status && first < length; first += pass->logits_rows) {
            size_t n = min_size(pass->logits_rows, length - first);
            head_forward(model->dev, pass->logits, pass->decoder.out + (row + first) * D, model->head->data, n, D, V);
            logits_download(model->dev, host, pass->logits, n * V);
            status = safetensors_append(writer, host, n * V * sizeof *host, error);
        }
        if (!status) status = append_zeros(writer, (batch->T - length) * V, error);
        row += length;
    }
    free(host);
    return status;
}

static int dump_encoder_output(SafetensorsWriter *writer, const Pass *pass, const DumpBatch *batch, Error *error)
{
    size_t D = pass->model->config.d_model, row = 0;
    int status = 0;
    for (size_t b = 0; !status && b < batch->B; b++) {
        size_t length = batch->P + batch->examples[b].input_length;
        status = append_activations(writer, pass->model->dev, pass->encoder.out + row * D, length * D, error);
        if (!status) status = append_zeros(writer, (batch->P + batch->S - length) * D, error);
        row += length;
    }
    return status;
}

/* What a dump does: the options, as the engine takes them. */
typedef struct {
    Stage stage;
    size_t steps;
} DumpPlan;

static AdafactorSettings adafactor_settings(const Options *o, double learning_rate, double weight_decay, bool scale,
                                            const char *schedule, int64_t steps)
{
    static const char *const names[] = {"constant", "warmup", "rsqrt", "linear"};
    AdafactorSettings s = {.learning_rate = learning_rate,
                           .decay_rate = option_real(o, OPT_DECAY_RATE),
                           .clip = option_real(o, OPT_CLIP),
                           .weight_decay = weight_decay,
                           .scale_by_parameter = scale,
                           .first_step = (int64_t)option_real(o, OPT_OPTIMIZER_STEP),
                           .warmup = o->text[OPT_WARMUP] ? (int64_t)option_real(o, OPT_WARMUP) : 0,
                           .total_steps = steps};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(schedule, names[i]) == 0) s.schedule = (Schedule)i;
    return s;
}

static TensorSpec *dump_specs(const Model *model, const DumpBatch *batch, const DumpPlan *plan, size_t *count)
{
    const T5Config *c = &model->config;
    TensorSpec *grads = model_specs(model, "grad/"), *params = model_specs(model, "param/"),
               *specs = host_alloc(2 * model->n_tensors + 6, sizeof *specs);
    size_t n = 0;
    specs[n++] = (TensorSpec){text_format("loss"), DTYPE_F32, 1, {1}};
    specs[n++] = (TensorSpec){text_format("logits"), DTYPE_F32, 3, {batch->B, batch->T, c->vocab_size}};
    specs[n++] = (TensorSpec){text_format("encoder_output"), DTYPE_F32, 3, {batch->B, batch->P + batch->S, c->d_model}};
    memcpy(specs + n, grads, model->n_tensors * sizeof *specs);
    n += model->n_tensors;
    if (batch->prompt) specs[n++] = (TensorSpec){text_format("grad/prompt"), DTYPE_F32, 2, {batch->P, c->d_model}};
    if (plan->steps) {
        specs[n++] = (TensorSpec){text_format("losses"), DTYPE_F32, 1, {plan->steps}};
        if (plan->stage.trains_model)
            memcpy(specs + n, params, model->n_tensors * sizeof *specs), n += model->n_tensors;
        else
            specs_free(params, model->n_tensors), params = NULL;
        if (plan->stage.trains_prompts)
            specs[n++] = (TensorSpec){text_format("param/prompt"), DTYPE_F32, 2, {batch->P, c->d_model}};
    } else {
        specs_free(params, model->n_tensors);
        params = NULL;
    }
    free(grads);
    free(params);
    *count = n;
    return specs;
}

/* The first pass's results. */
static int dump_write_first(SafetensorsWriter *writer, Pass *pass, const Gradients *grads, const DumpBatch *batch,
                            double loss, Error *error)
{
    const Model *model = pass->model;
    float loss_f = (float)loss;
    int status = safetensors_append(writer, &loss_f, sizeof loss_f, error);
    if (!status) status = dump_logits(writer, pass, batch, error);
    if (!status) status = dump_encoder_output(writer, pass, batch, error);
    for (size_t i = 0; !status && i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        status = moments_append(writer, model->dev, gradient_place(grads, model, t), t->rows * t->columns, error);
    }
    if (!status && batch->prompt)
        status = moments_append(writer, model->dev, grads->prompts, batch->P * model->config.d_model, error);
    return status;
}

/* Forward, backward, and the updates; everything is written as it comes. */
static int dump_run(SafetensorsWriter *writer, Model *model, Prompts *prompts, const DumpBatch *in,
                    const DumpPlan *plan, Error *error)
{
    const Prompts *attached = in->prompt ? prompts : NULL;
    GradientPlan gradients = {
        .model = true, .prompts = in->prompt != NULL, .keep = true, .n_touched = model->config.vocab_size};
    float *losses = host_alloc(plan->steps, sizeof *losses);
    Adafactor adafactor = {0};
    Gradients grads;
    char *memory = NULL;
    Batch batch = {0};
    Pass pass = {0};
    int status = adafactor_create(&adafactor, model, attached, plan->stage.trains_model ? &plan->stage.model : NULL,
                                  plan->stage.trains_prompts ? &plan->stage.prompt : NULL, NULL, error);
    if (!status) status = gradients_create(&grads, &memory, model, &gradients, in->P, error);
    if (!status) status = batch_build(&batch, model, in->examples, in->B, in->P, in->prompt != NULL, 0, NULL, 0, error);
    if (!status) status = pass_prepare(&pass, model, attached, &batch, PASS_TRAIN, error);
    for (size_t step = 0; !status && step < max_size(1, plan->steps); step++) {
        double loss = t5_loss(&pass, &plan->stage.loss, &grads);
        if (!isfinite(loss)) status = error_set(error, EXIT_FAILED, "dump: the loss of step %zu is not a number", step);
        if (!status && step == 0) status = dump_write_first(writer, &pass, &grads, in, loss, error);
        if (status || !plan->steps) break;
        losses[step] = (float)loss;
        adafactor_begin_step(&adafactor, (int64_t)step, &batch);
        adafactor_update_kept(&adafactor, &grads, attached);
    }
    if (!status && plan->steps) status = safetensors_append(writer, losses, plan->steps * sizeof *losses, error);
    if (!status && plan->steps && plan->stage.trains_model)
        status = weights_append(writer, model->dev, model->weights, model->n_weights, error);
    if (!status && plan->steps && plan->stage.trains_prompts)
        status = weights_append(writer, model->dev, prompts->rows, in->P * model->config.d_model, error);
    adafactor_free(&adafactor);
    device_free(memory);
    batch_free(&batch);
    pass_free(&pass);
    free(losses);
    return status;
}

static int dump_plan(const Options *o, const DumpBatch *batch, DumpPlan *plan, Error *error)
{
    const char *train = o->text[OPT_DUMP_TRAIN];
    *plan = (DumpPlan){.steps = option_size(o, OPT_DUMP_STEPS)};
    plan->stage.trains_model = strcmp(train, "prompt") != 0;
    plan->stage.trains_prompts = strcmp(train, "model") != 0;
    if (plan->stage.trains_prompts && !batch->prompt)
        return error_set(error, EXIT_USAGE, "--train %s: expected a prompt in %s", train, o->text[OPT_BATCH_FILE]);
    plan->stage.loss = (LossSettings){.label_smoothing = (float)option_real(o, OPT_PLAIN_SMOOTHING),
                                      .z_loss = (float)option_real(o, OPT_Z_LOSS)};
    plan->stage.model = plan->stage.prompt = adafactor_settings(
        o, option_real(o, OPT_LR), option_real(o, OPT_WEIGHT_DECAY), option_true(o, OPT_SCALE), "constant", 0);
    return parse_normalizer(o, &plan->stage.loss.scale, error);
}

static int dump_with(const Options *o, Model *model, Error *error)
{
    DumpBatch batch = {0};
    DumpPlan plan;
    Prompts prompts = {0};
    TensorSpec *specs;
    SafetensorsWriter *writer;
    size_t n_specs;
    int status = dump_read(&batch, model, o->text[OPT_BATCH_FILE], error);
    if (!status) status = dump_plan(o, &batch, &plan, error);
    if (!status && batch.prompt) {
        status = prompts_allocate(&prompts, model, 1, batch.P, error);
        if (!status) weights_upload(model->dev, prompts.rows, batch.prompt, batch.P * model->config.d_model);
    }
    if (!status) {
        specs = dump_specs(model, &batch, &plan, &n_specs);
        writer = safetensors_create(o->text[OPT_OUT], specs, n_specs, error);
        specs_free(specs, n_specs);
        status = writer ? dump_run(writer, model, &prompts, &batch, &plan, error) : -1;
        if (writer && !status)
            status = safetensors_commit(writer, error);
        else if (writer)
            safetensors_abandon(writer);
    }
    prompts_free(&prompts);
    dump_batch_free(&batch);
    return status;
}

static int command_dump(Options *o, Error *error)
{
    Device *dev = NULL;
    Model *model = NULL;
    int status = option_need(o, OPT_BATCH_FILE, error) || option_need(o, OPT_OUT, error) ? -1 : 0;
    if (!status && !(dev = device_open((int)option_size(o, OPT_THREADS), MATMUL_FP32, error))) status = -1;
    if (!status && !(model = open_model(o, dev, error))) status = -1;
    if (!status) status = dump_with(o, model, error);
    model_close(model);
    device_close(dev);
    return status;
}

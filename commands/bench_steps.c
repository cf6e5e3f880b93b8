/* bench_steps.c: whole training steps, decoding, and how time grows. A part of chapter 10 of promot.c, which includes
 * it. Nothing here is made for the measurement: the steps are train_step and the answers decode, as promot train and
 * promot generate call them. */

typedef enum { STEP_FINETUNE, STEP_PROMPT, STEP_PROMOT } StepMethod;

static const char *const step_names[] = {"fine-tuning", "prompt tuning", "ProMoT stage 2"};

typedef enum { LENGTHS_EVEN, LENGTHS_REAL, LENGTHS_PADDED } StepLengths;

static const char *const length_names[] = {"even", "real", "padded"};

typedef struct {
    StepMethod method;
    const char *dtype;
    int threads;
    StepLengths lengths;
    size_t batch, input, target, vocabulary; /* even lengths; vocabulary 0: the model's */
} StepCase;

/* The stages of promot train, with its defaults. */
static Stage bench_stage(StepMethod method)
{
    const bool prompt = method == STEP_PROMPT;
    const AdafactorSettings settings = {.learning_rate = prompt ? 0.2 : 0.001,
                                        .decay_rate = 0.8,
                                        .clip = 1,
                                        .weight_decay = prompt ? 1e-5 : 0,
                                        .scale_by_parameter = !prompt};
    return (Stage){.name = step_names[method],
                   .trains_model = !prompt,
                   .trains_prompts = prompt,
                   .uses_prompts = method != STEP_FINETUNE,
                   .model = settings,
                   .prompt = settings,
                   .dropout = 0.1f,
                   .loss = {.label_smoothing = prompt ? 0 : 0.1f, .z_loss = 1e-4f, .scale = 1}};
}

typedef struct {
    double flops;  /* a backward pass is twice a forward pass; without weight gradients, linear layers are once */
    double tokens; /* of inputs and targets; what pads them is counted by the padded run alone */
    size_t source_rows, target_rows; /* first what there should be, then what the trainer's batch had */
    size_t foretold;                 /* bytes, as promot info says it */
    double grown;                    /* bytes by which the process grew after the first step */
} StepCounts;

/* Of a forward pass, those that attention makes: scores, and their sums of values. */
static double attention_flops(const T5Config *c, const BenchExamples *e, size_t prompt_length)
{
    const double I = (double)(c->num_heads * c->d_kv);
    double sum = 0;
    for (size_t i = 0; i < e->count; i++) {
        const double S = (double)(e->examples[i].input_length + prompt_length),
                     T = (double)e->examples[i].target_length;
        sum += (double)c->num_layers * 4 * S * S * I + (double)c->num_decoder_layers * 4 * T * (S + T) * I;
    }
    return sum;
}

static StepCounts step_counts(const T5Config *c, const Stage *stage, const BenchExamples *e, size_t prompt_length)
{
    const size_t P = stage->uses_prompts ? prompt_length : 0;
    const double forward = forward_flops(c, e->examples, e->count, P);
    Model model = {.config = *c};
    StepCounts counts = {0};
    table_build(&model);
    table_free(&model);
    counts.flops = stage->trains_model ? 3 * forward : 2 * forward + attention_flops(c, e, P);
    for (size_t i = 0; i < e->count; i++) {
        counts.source_rows += P + e->examples[i].input_length;
        counts.target_rows += e->examples[i].target_length;
    }
    counts.tokens = (double)(counts.source_rows + counts.target_rows - e->count * P);
    counts.foretold =
        PROCESS_BYTES + training_bytes(c, model.n_weights, P, stage->trains_model, stage->trains_prompts,
                                       counts.source_rows, counts.target_rows,
                                       counts.source_rows + counts.target_rows - e->count * P, false, 0, 0);
    return counts;
}

/* `seconds` of so many steps, behind one that is not counted: it gets the memory. As in training, a step is asked for
 * before the result of the one before it is taken, and its time is that between two results. */
static int time_steps(const Model *model, const Prompts *prompts, const Stage *stage, const BenchExamples *e,
                      double *seconds, size_t repeats, StepCounts *counts, Error *error)
{
    Trainer trainer;
    StepResult result;
    int status = 0;
    double since = seconds_now(), now, first = 0;
    if (trainer_create(&trainer, model, prompts, stage, (size_t)counts->tokens, false, error)) return -1;
    for (size_t queued = 0, done = 0; !status && done <= repeats;) {
        for (; !status && queued <= repeats && trainer.n_queued < QUEUED_STEPS && !train_step_is_done(&trainer);
             queued++)
            status = train_step_queue(&trainer, model, prompts, stage, e->examples, e->count, e->count, (int64_t)queued,
                                      random_fold(0, queued), true, error);
        if (!status) status = train_step_result(&trainer, stage, &result, error);
        now = seconds_now();
        if (done == 0) first = peak_memory();
        if (done > 0) seconds[done - 1] = now - since;
        since = now;
        done++;
    }
    counts->grown = peak_memory() - first;
    counts->source_rows = trainer.batch.source.rows;
    counts->target_rows = trainer.batch.target.rows;
    trainer_free(&trainer);
    return status;
}

static void add_step(const Bench *bench, const StepCase *s, const StepCounts *counts, Timing t, cJSON *row)
{
    const double peak = peak_memory(), rate = counts->flops / t.median;
    cJSON_AddStringToObject(row, "step", step_names[s->method]);
    cJSON_AddStringToObject(row, "dtype", s->dtype);
    cJSON_AddNumberToObject(row, "threads", s->threads);
    cJSON_AddStringToObject(row, "lengths", length_names[s->lengths]);
    cJSON_AddNumberToObject(row, "batch", (double)s->batch);
    cJSON_AddNumberToObject(row, "input", (double)s->input);
    cJSON_AddNumberToObject(row, "target", (double)s->target);
    cJSON_AddNumberToObject(row, "prompt", s->method == STEP_FINETUNE ? 0 : (double)bench->prompt_length);
    cJSON_AddNumberToObject(row, "vocabulary", (double)(s->vocabulary ? s->vocabulary : bench->config.vocab_size));
    cJSON_AddNumberToObject(row, "source_rows", (double)counts->source_rows);
    cJSON_AddNumberToObject(row, "target_rows", (double)counts->target_rows);
    cJSON_AddNumberToObject(row, "flops", counts->flops);
    add_timing(row, t);
    cJSON_AddNumberToObject(row, "tokens_per_second", counts->tokens / t.median);
    cJSON_AddNumberToObject(row, "flops_per_second", rate);
    if (isfinite(peak_rate(bench, s->dtype, s->threads)))
        cJSON_AddNumberToObject(row, "share", rate / peak_rate(bench, s->dtype, s->threads));
    cJSON_AddNumberToObject(row, "grown_bytes", counts->grown);
    cJSON_AddNumberToObject(row, "peak_bytes", peak);
    cJSON_AddNumberToObject(row, "foretold_bytes", (double)counts->foretold);
}

static void step_examples(BenchExamples *e, const Bench *bench, const StepCase *s)
{
    const int prompt = s->method == STEP_FINETUNE ? -1 : 0;
    if (s->lengths == LENGTHS_EVEN)
        examples_even(e, &bench->config, s->batch, s->input, s->target, prompt);
    else
        examples_real(e, &bench->config, s->batch, s->lengths == LENGTHS_PADDED);
}

static int measure_step(const Bench *bench, const void *what, cJSON *row, Error *error)
{
    const StepCase *s = what;
    const Stage stage = bench_stage(s->method);
    const size_t repeats = bench->repeats ? bench->repeats : bench->quick ? 1 : 3;
    Bench own = *bench;
    BenchExamples e;
    Prompts prompts = {0};
    StepCounts counts;
    Model *model = NULL;
    Device *dev = device_open(s->threads, strcmp(s->dtype, "bf16") == 0 ? MATMUL_BF16 : MATMUL_FP32, error);
    double seconds[MAX_REPEATS];
    int status = dev ? 0 : -1;
    if (s->vocabulary) own.config.vocab_size = s->vocabulary;
    step_examples(&e, &own, s);
    counts = step_counts(&own.config, &stage, &e, bench->prompt_length);
    if (device_memory_available() && counts.foretold > device_memory_available()) {
        cJSON_AddNumberToObject(row, "needs_bytes", (double)counts.foretold);
        cJSON_AddNumberToObject(row, "available_bytes", (double)device_memory_available());
        examples_free(&e);
        device_close(dev);
        return status;
    }
    if (!status && !(model = bench_model(&own.config, dev, error))) status = -1;
    if (!status && stage.uses_prompts) {
        status = prompts_allocate(&prompts, model, 1, bench->prompt_length, error);
        if (!status) status = prompt_init(model, NULL, &prompts, 0, "uniform", 0, error);
    }
    if (!status) status = weights_park(dev, model->weights, !stage.trains_model, error);
    if (!status)
        status = time_steps(model, stage.uses_prompts ? &prompts : NULL, &stage, &e, seconds, repeats, &counts, error);
    if (!status) add_step(bench, s, &counts, timing_of(seconds, repeats), row);
    prompts_free(&prompts);
    model_close(model);
    device_close(dev);
    examples_free(&e);
    return status;
}

/* --- decoding */

enum { DECODE_INPUT = 128, DECODE_OUTPUT = 32 };

typedef struct {
    const char *dtype;
    size_t beams, batch;
} DecodeCase;

/* The least time of decoding: the encoder once, its output projected for each decoder layer; then, a token at a time,
 * the decoder and the head, whose weights must be read in every step: of the head the 8 bits of a sketch, where one
 * suffices. Beams begin with one row for each input. What a step reads of the keys and values before it is small beside
 * them and not counted. */
typedef struct {
    double flops, bytes, bound;
} DecodeCounts;

static DecodeCounts decode_counts(const Bench *bench, const DecodeCase *d)
{
    const T5Config *c = &bench->config;
    const double D = (double)c->d_model, I = (double)(c->num_heads * c->d_kv), V = (double)c->vocab_size,
                 mlp = (c->mlp == MLP_GATED_GELU ? 3 : 2) * D * (double)c->d_ff, Le = (double)c->num_layers,
                 Ld = (double)c->num_decoder_layers, S = DECODE_INPUT, batch = (double)d->batch;
    const bool sketched = !ON_A_CARD && d->beams == 1 && d->batch <= HEAD_SKETCH_ROWS && strcmp(d->dtype, "fp32") == 0;
    const double encoder = Le * (4 * D * I + mlp) + Ld * 2 * D * I, decoder = Ld * (6 * D * I + mlp), head = D * V;
    const double encoder_flops = batch * (2 * S * encoder + Le * 4 * S * S * I),
                 first_flops = batch * (2 * (decoder + head) + Ld * 4 * S * I),
                 step_flops = (double)d->beams * first_flops, steps = DECODE_OUTPUT - 1,
                 step_bytes = 4 * decoder + (sketched ? 1 : 4) * head;
    const int n = bench->threads;
    return (DecodeCounts){.flops = encoder_flops + first_flops + steps * step_flops,
                          .bytes = 4 * encoder + DECODE_OUTPUT * step_bytes,
                          .bound = bound_seconds(bench, d->dtype, n, encoder_flops, 4 * encoder, 0) +
                                   bound_seconds(bench, d->dtype, n, first_flops, step_bytes, 0) +
                                   steps * bound_seconds(bench, d->dtype, n, step_flops, step_bytes, 0)};
}

static int time_decoding(const Model *model, const DecodeCase *d, const BenchExamples *e, double *seconds,
                         size_t repeats, size_t *tokens, Error *error)
{
    Greedy greedy = {0}; /* the first repetition, which does not count, makes a sketch of the head, as others load it */
    const DecodeSettings settings = {.beams = d->beams,
                                     .n_best = 1,
                                     .max_length = DECODE_OUTPUT,
                                     .rule = LENGTH_T5X,
                                     .alpha = 0.6,
                                     .top_p = 1,
                                     .unscored = true,
                                     .greedy = &greedy};
    int status = 0;
    for (size_t r = 0; !status && r <= repeats; r++) {
        Hypothesis *out = host_alloc(e->count, sizeof *out);
        const double begun = seconds_now();
        status = decode(model, NULL, e->examples, e->count, &settings, out, NULL, NULL, error);
        if (r > 0) seconds[r - 1] = seconds_now() - begun;
        *tokens = 0;
        for (size_t i = 0; i < e->count; i++) *tokens += min_size(out[i].length + 1, DECODE_OUTPUT); /* EOS too */
        hypotheses_free(out, e->count);
    }
    greedy_free(&greedy);
    return status;
}

static int measure_decoding(const Bench *bench, const void *what, cJSON *row, Error *error)
{
    const DecodeCase *d = what;
    const size_t repeats = bench->repeats ? bench->repeats : bench->quick ? 1 : 5;
    const DecodeCounts counts = decode_counts(bench, d);
    Device *dev = device_open(bench->threads, strcmp(d->dtype, "bf16") == 0 ? MATMUL_BF16 : MATMUL_FP32, error);
    Model *model = dev ? bench_model(&bench->config, dev, error) : NULL;
    double seconds[MAX_REPEATS];
    size_t tokens = 0;
    BenchExamples e;
    int status = model ? 0 : -1;
    examples_even(&e, &bench->config, d->batch, DECODE_INPUT, 1, -1);
    if (!status) status = time_decoding(model, d, &e, seconds, repeats, &tokens, error);
    if (!status) {
        const Timing t = timing_of(seconds, repeats);
        cJSON_AddStringToObject(row, "decoding", d->beams > 1 ? "beam search" : "greedy");
        cJSON_AddStringToObject(row, "dtype", d->dtype);
        cJSON_AddNumberToObject(row, "threads", bench->threads);
        cJSON_AddNumberToObject(row, "beams", (double)d->beams);
        cJSON_AddNumberToObject(row, "batch", (double)d->batch);
        cJSON_AddNumberToObject(row, "input", DECODE_INPUT);
        cJSON_AddNumberToObject(row, "output", DECODE_OUTPUT);
        cJSON_AddNumberToObject(row, "tokens", (double)tokens);
        cJSON_AddNumberToObject(row, "flops", counts.flops);
        cJSON_AddNumberToObject(row, "bytes", counts.bytes);
        add_timing(row, t);
        cJSON_AddNumberToObject(row, "tokens_per_second", (double)tokens / t.median);
        cJSON_AddNumberToObject(row, "bound_seconds", counts.bound);
        cJSON_AddNumberToObject(row, "share", counts.bound / t.median);
        cJSON_AddNumberToObject(row, "peak_bytes", peak_memory());
    }
    model_close(model);
    device_close(dev);
    examples_free(&e);
    return status;
}

/* info.c: promot info: what a model is, and the memory it will need. A part of chapter 10 of promot.c, which
 * includes it. */

/* What a process holds beside the engine's own buffers: code, libraries, stacks, scratch, the text being worked on; on
 * a card, scratch and what its allocator rounds up. */
enum { PROCESS_BYTES = (ON_A_CARD ? 256 : 24) << 20 };

/* What a method trains, in its stage that takes the most. */
typedef struct {
    const char *name;
    bool trains_model, trains_prompts, uses_prompts;
} Method;

static const Method methods_foretold[] = {
    {"finetune", true, false, false}, {"prompt", false, true, true}, {"promot", true, false, true}};
enum { METHODS_FORETOLD = sizeof methods_foretold / sizeof *methods_foretold };

/* How a method fits into the memory that there is. */
typedef struct {
    bool fits, streamed; /* streamed: the weights have no room, see weights_stream */
    Offload offload;
    size_t bytes, micro, recomputed; /* recomputed: encoder layers, see Pass */
} MemoryPlan;

/* Would a model of frozen weights be streamed in so much memory? */
static bool would_be_streamed(const Options *o, size_t n_weights, size_t available)
{
    return ON_A_CARD && (option_true(o, OPT_STREAM) || (available && n_weights * sizeof(weight_t) > available));
}

static size_t micro_batch(const Options *o)
{
    const size_t batch = option_size(o, OPT_BATCH), micro = option_size(o, OPT_MICRO_BATCH);
    return micro && micro < batch ? micro : batch;
}

/* The foretold memory of training at the sizes of the options, in bytes. */
static size_t foretell(const Options *o, const T5Config *c, size_t n_weights, const Method *m, size_t micro,
                       size_t recomputed)
{
    const size_t batch = option_size(o, OPT_BATCH), S = option_size(o, OPT_INPUT_LENGTH),
                 T = option_size(o, OPT_TARGET_LENGTH), P = m->uses_prompts ? option_size(o, OPT_PROMPT_LENGTH) : 0;
    return PROCESS_BYTES + training_bytes(c, n_weights, P, m->trains_model, m->trains_prompts, micro * (P + S),
                                          micro * T, batch * (S + T), micro < batch, 0, recomputed);
}

/* The least to offload and the fewest layers to recompute with which a micro-batch fits, if it does: see fit_stage. */
static void plan_micro_batch(MemoryPlan *plan, const Options *o, const T5Config *c, size_t n_weights, const Method *m,
                             size_t available)
{
    const size_t S = option_size(o, OPT_INPUT_LENGTH), T = option_size(o, OPT_TARGET_LENGTH),
                 P = m->uses_prompts ? option_size(o, OPT_PROMPT_LENGTH) : 0;
    const size_t streamed = plan->streamed ? n_weights * sizeof(weight_t) - streaming_of(c).resident : 0;
    const bool can_offload = ON_A_CARD && m->trains_model;
    plan->offload = can_offload && option_true(o, OPT_OFFLOAD) ? OFFLOAD_LAYERS : OFFLOAD_NOTHING;
    for (;; plan->offload++) {
        const size_t saved = streamed + offloading_of(c, plan->offload).saved;
        plan->recomputed = 0;
        plan->bytes = foretell(o, c, n_weights, m, plan->micro, 0) - saved;
        if (plan->bytes <= available) return;
        if (can_offload && plan->offload == OFFLOAD_NOTHING) continue;
        plan->recomputed = recomputed_to_save(c, plan->micro * (P + S), plan->micro * T, plan->bytes - available);
        plan->bytes = foretell(o, c, n_weights, m, plan->micro, plan->recomputed) - saved;
        if (plan->bytes <= available || !can_offload || plan->offload == OFFLOAD_LAYERS) return;
    }
}

/* With the whole micro-batch, if that fits; else with half of it, and so on. */
static MemoryPlan plan_memory(const Options *o, const T5Config *c, size_t n_weights, const Method *m, size_t available)
{
    MemoryPlan plan = {.micro = micro_batch(o),
                       .streamed = !m->trains_model && would_be_streamed(o, n_weights, available)};
    for (;; plan.micro = (plan.micro + 1) / 2) {
        plan_micro_batch(&plan, o, c, n_weights, m, available);
        plan.fits = plan.bytes <= available;
        if (plan.fits || plan.micro == 1) return plan;
    }
}

/* LoRA alone, or, `second`, with the model trained while it is attached. */
static size_t foretell_lora(const Options *o, const T5Config *c, size_t n_weights, bool second)
{
    Error ignored; /* command_info has checked the targets */
    const Method lora = {.trains_model = second};
    return foretell(o, c, n_weights, &lora, micro_batch(o), 0) +
           lora_bytes(c, o->text[OPT_LORA_TARGETS], option_size(o, OPT_LORA_RANK), !second, &ignored);
}

static size_t foretell_decoding(const Options *o, const T5Config *c, size_t n_weights)
{
    enum { BEAMS = 4 };
    size_t S = option_size(o, OPT_INPUT_LENGTH), T = option_size(o, OPT_TARGET_LENGTH);
    return PROCESS_BYTES + n_weights * WEIGHT_BYTES + decoding_bytes(c, BEAMS, T, S, DECODE_INPUTS);
}

/* The bytes that a step of training brings to the device: every layer once forward and once back, for each
 * micro-batch. */
static double streamed_each_step(const Options *o, const T5Config *c, size_t micro)
{
    return 2.0 * (double)streaming_of(c).layers * ceil((double)option_size(o, OPT_BATCH) / (double)micro);
}

static void print_streaming(const Options *o, const T5Config *c, size_t micro)
{
    const double step = streamed_each_step(o, c, micro);
    printf(
        "\n                           weights: %.2f GB resident, %.0f GB streamed a step, at least %.2f s at %.0f GB/s",
        (double)streaming_of(c).resident / 1e9, step / 1e9, step / PCIE_RATE, PCIE_RATE / 1e9);
}

/* The bytes that a step takes to the device and back of offloaded weights: once, for the batch as a whole. */
static double offloaded_each_step(const T5Config *c, Offload offload)
{
    return 2.0 * sizeof(int16_t) * (double)offloading_of(c, offload).weights;
}

/* Would a method be run in another way than with all its weights and activations on the device? */
static bool needs_a_plan(const Options *o, const Method *m, size_t n_weights, size_t bytes, size_t available)
{
    if (!available) return false;
    if (m->trains_model) return bytes > available || (ON_A_CARD && option_true(o, OPT_OFFLOAD));
    return bytes > available || would_be_streamed(o, n_weights, available);
}

/* "  train --method M   N GB", and how it fits where it does not at once. */
static void print_method(const Options *o, const T5Config *c, size_t n_weights, const Method *m, size_t available)
{
    const size_t bytes = foretell(o, c, n_weights, m, micro_batch(o), 0);
    printf("  train --method %-8s  %6.2f GB", m->name, (double)bytes / 1e9);
    if (needs_a_plan(o, m, n_weights, bytes, available)) {
        const MemoryPlan plan = plan_memory(o, c, n_weights, m, available);
        const char *joint = " ";
        printf(", of %.2f GB that there are", (double)available / 1e9);
        fputs(plan.fits ? ": fits with" : ": does not fit", stdout);
        if (plan.fits && plan.micro < micro_batch(o)) printf(" --micro-batch %zu", plan.micro), joint = " and ";
        if (plan.fits && plan.offload) {
            const char *whose = plan.offload == OFFLOAD_ENCODER ? "encoder's" : "layers'";
            printf("%slower halves of the %s weights offloaded", joint, whose), joint = " and ";
        }
        if (plan.fits && plan.recomputed) printf("%s%zu layers recomputed", joint, plan.recomputed), joint = " and ";
        if (plan.fits && plan.streamed) printf("%slayers streamed", joint);
        if (plan.fits) printf(" (%.2f GB)", (double)plan.bytes / 1e9);
        if (plan.fits && plan.offload) {
            const double step = offloaded_each_step(c, plan.offload);
            printf("\n                           weights: %.0f GB a step to the host and back, at least %.2f s at %.0f "
                   "GB/s",
                   step / 1e9, step / PCIE_RATE, PCIE_RATE / 1e9);
        }
        if (plan.fits && plan.streamed) print_streaming(o, c, plan.micro);
    }
    putchar('\n');
}

/* "  NAME   N GB", and what there is where that is less. */
static void print_bytes(const char *name, size_t bytes, size_t available)
{
    printf("  %-25s %*.2f GB", name, strlen(name) > 25 ? 4 : 5, (double)bytes / 1e9);
    if (available && bytes > available) printf(", of %.2f GB that there are", (double)available / 1e9);
    putchar('\n');
}

static void info_print(const Options *o, const Model *model, const char *storage)
{
    const T5Config *c = &model->config;
    const size_t available = device_memory_available(), decoding = foretell_decoding(o, c, model->n_weights);
    size_t encoder = 0, decoder = 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const Tensor *t = &model->tensors[i];
        if (strncmp(t->name, "encoder.", 8) == 0) encoder += t->rows * t->columns;
        if (strncmp(t->name, "decoder.", 8) == 0) decoder += t->rows * t->columns;
    }
    printf("model          %s, %s, %s\n", c->model_type, c->mlp == MLP_RELU ? "relu" : "gated-gelu",
           c->tied_head ? "head tied to the embedding, its input scaled by d_model^-0.5" : "head of its own");
    printf("sizes          vocabulary %zu, d_model %zu, heads %zu x %zu, d_ff %zu, layers %zu + %zu\n", c->vocab_size,
           c->d_model, c->num_heads, c->d_kv, c->d_ff, c->num_layers, c->num_decoder_layers);
    printf("position bias  %zu buckets, max distance %zu\n", c->buckets, c->max_distance);
    printf("parameters     %zu: encoder %zu, decoder %zu, embedding %zu, head %zu\n", model->n_weights, encoder,
           decoder, c->vocab_size * c->d_model, c->tied_head ? 0 : c->vocab_size * c->d_model);
    printf("stored as      %s\n", storage);
    printf("\nmemory at batch %s, input %s, target %s, prompt %s%s%s:\n", o->text[OPT_BATCH], o->text[OPT_INPUT_LENGTH],
           o->text[OPT_TARGET_LENGTH], o->text[OPT_PROMPT_LENGTH],
           option_size(o, OPT_MICRO_BATCH) ? ", micro-batch " : "",
           option_size(o, OPT_MICRO_BATCH) ? o->text[OPT_MICRO_BATCH] : "");
    for (size_t i = 0; i < METHODS_FORETOLD; i++) print_method(o, c, model->n_weights, &methods_foretold[i], available);
    print_bytes("train --method lora", foretell_lora(o, c, model->n_weights, false), available);
    print_bytes("train --method promot-lora", foretell_lora(o, c, model->n_weights, true), available);
    if (would_be_streamed(o, model->n_weights, available))
        printf("  eval, 4 beams            %6.2f GB, of %.2f GB that there are: with layers streamed %.2f GB\n",
               (double)decoding / 1e9, (double)available / 1e9,
               (double)(decoding - model->n_weights * WEIGHT_BYTES + streaming_of(c).resident) / 1e9);
    else
        print_bytes("eval, 4 beams", decoding, available);
}

/* The memory that there is, and how each method fits into it. */
static void add_plans(cJSON *json, const Options *o, const T5Config *c, size_t n_weights)
{
    const size_t available = device_memory_available();
    cJSON *plans;
    if (!available) return;
    cJSON_AddNumberToObject(json, "memory_available", (double)available);
    plans = cJSON_AddObjectToObject(json, "memory_plans");
    for (size_t i = 0; i < METHODS_FORETOLD; i++) {
        const MemoryPlan plan = plan_memory(o, c, n_weights, &methods_foretold[i], available);
        cJSON *one = cJSON_AddObjectToObject(plans, methods_foretold[i].name);
        cJSON_AddBoolToObject(one, "fits", plan.fits);
        cJSON_AddNumberToObject(one, "micro_batch", (double)plan.micro);
        cJSON_AddNumberToObject(one, "recomputed", (double)plan.recomputed);
        cJSON_AddNumberToObject(one, "bytes", (double)plan.bytes);
        if (plan.offload) cJSON_AddNumberToObject(one, "offloaded_each_step", offloaded_each_step(c, plan.offload));
        if (!plan.streamed) continue;
        cJSON_AddNumberToObject(one, "resident_weights", (double)streaming_of(c).resident);
        cJSON_AddNumberToObject(one, "streamed_each_step", streamed_each_step(o, c, plan.micro));
    }
}

static void info_print_json(const Options *o, const Model *model, const char *storage)
{
    const T5Config *c = &model->config;
    cJSON *json = cJSON_CreateObject(), *memory;
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {{"vocab_size", c->vocab_size},
                 {"d_model", c->d_model},
                 {"d_kv", c->d_kv},
                 {"d_ff", c->d_ff},
                 {"num_heads", c->num_heads},
                 {"num_layers", c->num_layers},
                 {"num_decoder_layers", c->num_decoder_layers},
                 {"relative_attention_num_buckets", c->buckets},
                 {"relative_attention_max_distance", c->max_distance},
                 {"parameters", model->n_weights}};
    cJSON_AddStringToObject(json, "model_type", c->model_type);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        cJSON_AddNumberToObject(json, sizes[i].name, (double)sizes[i].value);
    cJSON_AddStringToObject(json, "feed_forward_proj", c->mlp == MLP_RELU ? "relu" : "gated-gelu");
    cJSON_AddBoolToObject(json, "tied_head", c->tied_head);
    cJSON_AddStringToObject(json, "storage", storage);
    memory = cJSON_AddObjectToObject(json, "memory_bytes");
    for (size_t i = 0; i < METHODS_FORETOLD; i++)
        cJSON_AddNumberToObject(memory, methods_foretold[i].name,
                                (double)foretell(o, c, model->n_weights, &methods_foretold[i], micro_batch(o), 0));
    cJSON_AddNumberToObject(memory, "lora", (double)foretell_lora(o, c, model->n_weights, false));
    cJSON_AddNumberToObject(memory, "promot_lora", (double)foretell_lora(o, c, model->n_weights, true));
    cJSON_AddNumberToObject(memory, "eval", (double)foretell_decoding(o, c, model->n_weights));
    add_plans(json, o, c, model->n_weights);
    print_json(json);
}

/* Looks at the headers only: no weight is read, but to see whether a head is the embedding. */
static int command_info(Options *o, Error *error)
{
    Model model = {0};
    Checkpoint *checkpoint = NULL;
    const StoredTensor *shared;
    int status = option_need(o, OPT_MODEL, error);
    if (!status) status = config_read(&model.config, o->text[OPT_MODEL], error);
    if (!status && !(checkpoint = checkpoint_open(o->text[OPT_MODEL], error))) status = -1;
    if (!status) status = decide_tied_head(&model.config, checkpoint, o->text[OPT_MODEL], error);
    if (!status) {
        table_build(&model);
        status = model_check_tensors(&model, checkpoint, o->text[OPT_MODEL], error);
    }
    if (!status && !lora_bytes(&model.config, o->text[OPT_LORA_TARGETS], option_size(o, OPT_LORA_RANK), true, error))
        status = -1;
    if (!status) {
        shared = stored_find(checkpoint, "shared.weight");
        (option_true(o, OPT_JSON) ? info_print_json : info_print)(o, &model, dtype_name(shared->dtype));
    }
    table_free(&model);
    free(model.config.json);
    checkpoint_close(checkpoint);
    return status;
}

/* info.c: promot info: what a model is, and the memory it will need. A part of chapter 10 of promot.c, which
 * includes it. */

/* What a process holds beside the engine's own buffers: code, libraries, stacks, scratch, the text being worked on. */
enum { PROCESS_BYTES = 24 << 20 };

/* The foretold memory of training at the sizes of the options, in bytes. */
static size_t foretell(const Options *o, const T5Config *c, size_t n_weights, bool trains_model, bool trains_prompts,
                       bool uses_prompts)
{
    size_t batch = option_size(o, OPT_BATCH), micro = option_size(o, OPT_MICRO_BATCH);
    size_t P = uses_prompts ? option_size(o, OPT_PROMPT_LENGTH) : 0, S = option_size(o, OPT_INPUT_LENGTH),
           T = option_size(o, OPT_TARGET_LENGTH);
    micro = micro && micro < batch ? micro : batch;
    return PROCESS_BYTES + training_bytes(c, n_weights, P, trains_model, trains_prompts, micro * (P + S), micro * T,
                                          batch * (S + T), micro < batch, 0, 0);
}

/* LoRA alone, or, `second`, with the model trained while it is attached. */
static size_t foretell_lora(const Options *o, const T5Config *c, size_t n_weights, bool second)
{
    Error ignored; /* command_info has checked the targets */
    return foretell(o, c, n_weights, second, false, false) +
           lora_bytes(c, o->text[OPT_LORA_TARGETS], option_size(o, OPT_LORA_RANK), !second, &ignored);
}

static size_t foretell_decoding(const Options *o, const T5Config *c, size_t n_weights)
{
    enum { BEAMS = 4 };
    size_t S = option_size(o, OPT_INPUT_LENGTH), T = option_size(o, OPT_TARGET_LENGTH);
    return PROCESS_BYTES + n_weights * WEIGHT_BYTES + decoding_bytes(c, BEAMS, T, S, DECODE_INPUTS);
}

static void info_print(const Options *o, const Model *model, const char *storage)
{
    const T5Config *c = &model->config;
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
    printf("  train --method finetune  %6.2f GB\n", (double)foretell(o, c, model->n_weights, true, false, false) / 1e9);
    printf("  train --method prompt    %6.2f GB\n", (double)foretell(o, c, model->n_weights, false, true, true) / 1e9);
    printf("  train --method promot    %6.2f GB\n", (double)foretell(o, c, model->n_weights, true, false, true) / 1e9);
    printf("  train --method lora      %6.2f GB\n", (double)foretell_lora(o, c, model->n_weights, false) / 1e9);
    printf("  train --method promot-lora %4.2f GB\n", (double)foretell_lora(o, c, model->n_weights, true) / 1e9);
    printf("  eval, 4 beams            %6.2f GB\n", (double)foretell_decoding(o, c, model->n_weights) / 1e9);
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
    cJSON_AddNumberToObject(memory, "finetune", (double)foretell(o, c, model->n_weights, true, false, false));
    cJSON_AddNumberToObject(memory, "prompt", (double)foretell(o, c, model->n_weights, false, true, true));
    cJSON_AddNumberToObject(memory, "promot", (double)foretell(o, c, model->n_weights, true, false, true));
    cJSON_AddNumberToObject(memory, "lora", (double)foretell_lora(o, c, model->n_weights, false));
    cJSON_AddNumberToObject(memory, "promot_lora", (double)foretell_lora(o, c, model->n_weights, true));
    cJSON_AddNumberToObject(memory, "eval", (double)foretell_decoding(o, c, model->n_weights));
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

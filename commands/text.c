/* text.c: promot tokenize and promot generate: text to ids, ids to text, inputs to outputs. A part of chapter 10 of
 * promot.c, which includes it. */

static int tokenize_line(const Options *o, const Tokenizer *tokenizer, const char *text, size_t line, cJSON *rows,
                         Error *error)
{
    int32_t *ids, eos = tokenizer_eos(tokenizer);
    size_t count;
    cJSON *row;
    if (option_true(o, OPT_DECODE)) {
        char *decoded;
        if (parse_ids(text, (size_t)INT32_MAX, input_name(o), line, &ids, &count, error)) return -1;
        decoded = tokenizer_decode(tokenizer, ids, count, error);
        free(ids);
        if (!decoded) return -1;
        if (rows)
            cJSON_AddItemToArray(rows, cJSON_CreateString(decoded));
        else
            print_line(decoded);
        free(decoded);
        return 0;
    }
    if (tokenizer_encode(tokenizer, text, strlen(text), &ids, &count, error)) return -1;
    if (option_true(o, OPT_EOS)) {
        ids = host_grow(ids, count + 1, sizeof *ids);
        ids[count++] = eos;
    }
    row = rows ? cJSON_CreateArray() : NULL;
    for (size_t i = 0; i < count; i++) {
        bool pieces = option_true(o, OPT_PIECES);
        const char *piece = tokenizer_piece(tokenizer, ids[i]);
        if (rows)
            cJSON_AddItemToArray(row, pieces ? cJSON_CreateString(piece) : cJSON_CreateNumber(ids[i]));
        else if (pieces)
            printf(i ? " %s" : "%s", piece);
        else
            printf(i ? " %d" : "%d", (int)ids[i]);
    }
    if (rows)
        cJSON_AddItemToArray(rows, row);
    else
        putchar('\n');
    free(ids);
    return 0;
}

static int command_tokenize(Options *o, Error *error)
{
    Tokenizer *tokenizer;
    Lines lines;
    cJSON *json = NULL, *rows = NULL;
    int status;
    if (option_true(o, OPT_DECODE) && (option_true(o, OPT_EOS) || option_true(o, OPT_PIECES)))
        return error_set(error, EXIT_USAGE, "--decode: expected neither --eos nor --pieces beside it");
    if (option_need(o, OPT_MODEL, error) || !(tokenizer = open_tokenizer(o->text[OPT_MODEL], error))) return -1;
    status =
        option_true(o, OPT_EOS) && tokenizer_eos(tokenizer) < 0
            ? error_set(error, EXIT_FAILED, "%s/spiece.model: --eos: the vocabulary has no </s>", o->text[OPT_MODEL])
            : 0;
    if (!status) status = read_input_lines(o, &lines, error);
    if (!status) {
        if (option_true(o, OPT_JSON)) json = cJSON_CreateObject(), rows = cJSON_AddArrayToObject(json, "lines");
        for (size_t i = 0; !status && i < lines.count; i++)
            status = tokenize_line(o, tokenizer, lines.text[i], i + 1, rows, error);
        lines_free(&lines);
    }
    if (!status && json)
        print_json(json);
    else
        cJSON_Delete(json);
    tokenizer_close(tokenizer);
    return status;
}

/* --- promot generate */

static int generate_read_inputs(const Options *o, const Model *model, const Tokenizer *tokenizer, const Lines *lines,
                                TokenExample *inputs, Error *error)
{
    for (size_t i = 0; i < lines->count; i++) {
        int32_t *ids;
        size_t count;
        bool cut;
        char *text = text_format("%s%s", lines->text[i], o->text[OPT_ENDING]);
        int status =
            option_true(o, OPT_IDS_IN)
                ? parse_ids(lines->text[i], model->config.vocab_size, input_name(o), i + 1, &ids, &count, error)
                : encode_with_eos(tokenizer, &model->config, text, 0, &ids, &count, &cut, error);
        free(text);
        if (status) return -1;
        inputs[i] =
            (TokenExample){.input = ids, .input_length = count, .prompt = o->text[OPT_PROMPT] ? 0 : -1, .number = i};
        if (count == 0)
            return error_set(error, EXIT_USAGE, "%s:%zu: expected ids, found an empty line", input_name(o), i + 1);
    }
    return 0;
}

/* The ids of an output as they are printed: pads dropped. */
static char *ids_text(const Hypothesis *h, int32_t pad)
{
    char *text = host_alloc(h->length * 12 + 1, 1);
    size_t at = 0;
    for (size_t i = 0; i < h->length; i++)
        if (h->ids[i] != pad) at += (size_t)sprintf(text + at, at ? " %d" : "%d", (int)h->ids[i]);
    return text;
}

static int generate_print(const Options *o, const Model *model, const Tokenizer *tokenizer, const Hypothesis *outputs,
                          size_t count, Error *error)
{
    size_t n_best = option_size(o, OPT_N_BEST);
    cJSON *json = option_true(o, OPT_JSON) ? cJSON_CreateObject() : NULL,
          *rows = json ? cJSON_AddArrayToObject(json, "outputs") : NULL;
    for (size_t i = 0; i < count * n_best; i++) {
        const Hypothesis *h = &outputs[i];
        char *text = option_true(o, OPT_IDS_OUT) ? ids_text(h, model->config.pad)
                                                 : tokenizer_decode(tokenizer, h->ids, h->length, error);
        if (!text) {
            cJSON_Delete(json);
            return -1;
        }
        if (json) {
            cJSON *row = cJSON_CreateObject();
            cJSON_AddNumberToObject(row, "input", (double)(i / n_best));
            cJSON_AddNumberToObject(row, "score", h->score);
            cJSON_AddStringToObject(row, option_true(o, OPT_IDS_OUT) ? "ids" : "text", text);
            cJSON_AddItemToArray(rows, row);
        } else {
            if (option_true(o, OPT_SCORES)) printf("%.6f\t", h->score);
            print_line(text);
        }
        free(text);
    }
    if (json) print_json(json);
    return 0;
}

static int generate_with(const Options *o, const Model *model, const Tokenizer *tokenizer, Error *error)
{
    DecodeSettings settings = decode_settings(o, option_size(o, OPT_MAX_LENGTH));
    Prompts prompts = {0};
    Progress progress = progress_begin(true, 0);
    TokenExample *inputs;
    Hypothesis *outputs;
    Lines lines;
    int status = o->text[OPT_PROMPT] ? prompts_open(&prompts, model, o->text[OPT_PROMPT], error) : 0;
    if (status || read_input_lines(o, &lines, error)) {
        prompts_free(&prompts);
        return -1;
    }
    inputs = host_alloc(lines.count, sizeof *inputs);
    outputs = host_alloc(lines.count * settings.n_best, sizeof *outputs);
    status = generate_read_inputs(o, model, tokenizer, &lines, inputs, error);
    if (!status)
        status = decode(model, o->text[OPT_PROMPT] ? &prompts : NULL, inputs, lines.count, &settings, outputs,
                        evaluate_progress, &progress, error);
    if (!status) status = generate_print(o, model, tokenizer, outputs, lines.count, error);
    for (size_t i = 0; i < lines.count; i++) free((int32_t *)inputs[i].input);
    hypotheses_free(outputs, lines.count * settings.n_best);
    free(inputs);
    lines_free(&lines);
    prompts_free(&prompts);
    return status;
}

static int command_generate(Options *o, Error *error)
{
    bool needs_text = !option_true(o, OPT_IDS_IN) || !option_true(o, OPT_IDS_OUT);
    Device *dev = NULL;
    Model *model = NULL;
    Tokenizer *tokenizer = NULL;
    int status = option_need(o, OPT_MODEL, error);
    if (!status && option_size(o, OPT_N_BEST) > (option_true(o, OPT_SAMPLE) ? 1 : option_size(o, OPT_BEAMS)))
        status = error_set(error, EXIT_USAGE, "--n-best: expected at most %s, found %s",
                           option_true(o, OPT_SAMPLE) ? "1 with --sample" : "the number of beams", o->text[OPT_N_BEST]);
    if (!status && !(dev = device_from_options(o, error))) status = -1;
    if (!status && !(model = open_model(o, dev, error))) status = -1;
    if (!status && needs_text && !(tokenizer = open_tokenizer(o->text[OPT_MODEL], error))) status = -1;
    if (!status && o->text[OPT_LORA]) status = lora_open(model, o->text[OPT_LORA], error);
    if (!status) status = generate_with(o, model, tokenizer, error);
    tokenizer_close(tokenizer);
    model_close(model);
    device_close(dev);
    return status;
}

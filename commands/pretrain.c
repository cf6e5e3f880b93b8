/* pretrain.c: promot pretrain: span corruption on a text. A part of chapter 10 of promot.c, which includes it. */

/* Tells transformers that the sentinels are in the file: it would add a hundred of its own otherwise. */
static int write_tokenizer_config(const char *directory, Error *error)
{
    char *path = path_join(directory, "tokenizer_config.json");
    int status =
        file_write_text(path,
                        "{\"tokenizer_class\": \"T5Tokenizer\", \"extra_ids\": 0, \"additional_special_tokens\": [], "
                        "\"eos_token\": \"</s>\", \"unk_token\": \"<unk>\", \"pad_token\": \"<pad>\"}\n",
                        error);
    free(path);
    return status;
}

/* The vocabulary of a new model lies in its run from the beginning: trained on the text, or copied. */
static int pretrain_vocabulary(const Options *o, char **directory, Error *error)
{
    char *path;
    int status = 0;
    if (o->text[OPT_MODEL]) {
        *directory = text_format("%s", o->text[OPT_MODEL]);
        return 0;
    }
    if (!o->text[OPT_TOKENIZER] == !option_size(o, OPT_TRAIN_VOCAB))
        return error_set(error, EXIT_USAGE, "pretrain: a new model needs one of --tokenizer FILE and --train-vocab N");
    *directory = path_join(o->text[OPT_OUT], "vocabulary");
    path = path_join(*directory, "spiece.model");
    if (!path_exists(path)) {
        bool copied = o->text[OPT_TOKENIZER] != NULL;
        status = directory_create(*directory, error);
        if (!status && !copied) status = write_tokenizer_config(*directory, error);
        if (!status)
            status = copied
                         ? file_copy(o->text[OPT_TOKENIZER], path, error)
                         : tokenizer_train(o->text[OPT_TEXT_FILE], path, (int)option_size(o, OPT_TRAIN_VOCAB), error);
    }
    free(path);
    return status;
}

static int pretrain_run(const Options *o, Run *run, bool resumed, Error *error)
{
    Corpus corpus = {.tokenizer = run->tokenizer,
                     .eos = run->model->config.eos,
                     .noise_density = option_real(o, OPT_NOISE_DENSITY),
                     .mean_span = option_real(o, OPT_MEAN_SPAN),
                     .answer_share = option_real(o, OPT_ANSWER_SHARE)};
    double noise = corpus.noise_density, spans_each = noise / corpus.mean_span;
    /* The longest text whose input, with its noise replaced by sentinels, and EOS, fits the input length. */
    size_t longest = (size_t)((option_real(o, OPT_INPUT_LENGTH) - 1) / (1 - noise + spans_each));
    Part part;
    int status;
    if (tokenizer_sentinel(run->tokenizer, SENTINELS - 1) < 0)
        return error_set(error, EXIT_FAILED, "%s/spiece.model: sentinels (expected <extra_id_0> to <extra_id_99>)",
                         run->model_directory);
    run_settings(o, run);
    run->n_stages = 1;
    run->stages[0] = model_stage(o, "pretrain", false, false);
    status = parse_normalizer(o, &run->stages[0].loss.scale, error);
    if (!status) status = check_vocabulary(run->tokenizer, run->model, run->model_directory, error);
    if (!status) status = corpus_read(&corpus, o->text[OPT_TEXT_FILE], max_size(longest, 2), error);
    part = (Part){.corpus = &corpus, .count = corpus.count, .share = 1};
    run->mixture = (Mixture){.parts = &part, .n_parts = 1};
    if (!status) status = train_with(o, run, resumed, error);
    corpus_free(&corpus);
    return status;
}

/* A new run that was refused before it began leaves no directory behind: all that is in it is the vocabulary. */
static void forget_if_not_begun(const Options *o)
{
    char *path = path_join(o->text[OPT_OUT], "run.json");
    Error ignored;
    if (!path_exists(path)) directory_remove(o->text[OPT_OUT], &ignored);
    free(path);
}

static int command_pretrain(Options *o, Error *error)
{
    Device *dev = NULL;
    Model *model = NULL;
    Tokenizer *tokenizer = NULL;
    cJSON *settings = NULL;
    char *directory = NULL;
    bool resumed;
    int status = run_find(o, &resumed, error);
    if (!status && resumed) status = resume_options(o, &settings, error);
    if (!status && resumed && run_is_done(o)) {
        status = print_done(o, error);
        cJSON_Delete(settings);
        return status;
    }
    if (!status) status = option_need(o, OPT_TEXT_FILE, error);
    if (!status && !o->text[OPT_MODEL] == !o->text[OPT_CONFIG])
        status = error_set(error, EXIT_USAGE, "pretrain: one of --model DIR and --config FILE is needed");
    if (!status && !(dev = device_from_options(o, error))) status = -1;
    if (!status && o->text[OPT_CONFIG] &&
        !(model = model_create(o->text[OPT_CONFIG], dev, random_fold(option_size(o, OPT_SEED), 400), error)))
        status = -1;
    if (!status && !model && !(model = open_model(o, dev, error))) status = -1;
    if (!status) {
        status = pretrain_vocabulary(o, &directory, error);
        if (!status && !(tokenizer = open_tokenizer(directory, error))) status = -1;
        if (!status) {
            Run run = {.model = model, .tokenizer = tokenizer, .model_directory = directory};
            status = pretrain_run(o, &run, resumed, error);
        }
        if (status && !option_true(o, OPT_RESUME)) forget_if_not_begun(o);
    }
    free(directory);
    cJSON_Delete(settings);
    tokenizer_close(tokenizer);
    model_close(model);
    device_close(dev);
    return status;
}

/* train.c: promot train: from the options to the stages of a run. A part of chapter 10 of promot.c, which includes
 * it. */

static Stage prompt_stage(const Options *o)
{
    Stage stage = {.name = "prompt",
                   .trains_prompts = true,
                   .uses_prompts = true,
                   .steps = (int64_t)option_real(o, OPT_PROMPT_STEPS),
                   .checkpoint_every = (int64_t)option_real(o, OPT_PROMPT_CHECKPOINT),
                   .dropout = (float)option_real(o, OPT_PROMPT_DROPOUT),
                   .loss = {.label_smoothing = (float)option_real(o, OPT_PROMPT_SMOOTHING),
                            .z_loss = (float)option_real(o, OPT_Z_LOSS)}};
    stage.prompt = adafactor_settings(o, option_real(o, OPT_PROMPT_LR), option_real(o, OPT_PROMPT_DECAY),
                                      option_true(o, OPT_PROMPT_SCALE), o->text[OPT_PROMPT_SCHEDULE], stage.steps);
    return stage;
}

static Stage model_stage(const Options *o, const char *name, bool uses_prompts, bool trains_prompts)
{
    Stage stage = {
        .name = name,
        .trains_model = true,
        .trains_prompts = trains_prompts,
        .uses_prompts = uses_prompts,
        .steps = (int64_t)option_real(o, OPT_STEPS),
        .checkpoint_every = (int64_t)option_real(o, OPT_CHECKPOINT),
        .dropout = (float)option_real(o, o->which == FOR_TRAIN ? OPT_DROPOUT : OPT_PRETRAIN_DROPOUT),
        .loss = {.label_smoothing = (float)option_real(o, o->which == FOR_TRAIN ? OPT_SMOOTHING : OPT_PLAIN_SMOOTHING),
                 .z_loss = (float)option_real(o, OPT_Z_LOSS)}};
    stage.model = adafactor_settings(o, option_real(o, OPT_LR), option_real(o, OPT_WEIGHT_DECAY),
                                     option_true(o, OPT_SCALE), o->text[OPT_SCHEDULE], stage.steps);
    stage.prompt = stage.model; /* joint training: one optimizer, but a prompt keeps its own scaling and decay */
    if (trains_prompts) {
        stage.prompt.weight_decay = option_real(o, OPT_PROMPT_DECAY);
        stage.prompt.scale_by_parameter = option_true(o, OPT_PROMPT_SCALE);
    }
    return stage;
}

/* LoRA alone, the paper's rival, and as the first stage of ProMoT. Its A and B keep the prompts' scaling. */
static Stage lora_stage(const Options *o)
{
    Stage stage = model_stage(o, "lora", false, false);
    stage.trains_model = false;
    stage.trains_lora = true;
    stage.steps = (int64_t)option_real(o, OPT_LORA_STEPS);
    stage.checkpoint_every = (int64_t)option_real(o, OPT_LORA_CHECKPOINT);
    stage.lora = adafactor_settings(o, option_real(o, OPT_LORA_LR), option_real(o, OPT_WEIGHT_DECAY),
                                    option_true(o, OPT_PROMPT_SCALE), o->text[OPT_SCHEDULE], stage.steps);
    return stage;
}

/* A number of steps or a learning rate for a stage that the method does not have was most likely meant for another. */
static void warn_of_other_stages(const Options *o, const Run *run)
{
    static const struct {
        OptionId id;
        const char *stage;
    } settings[] = {{OPT_PROMPT_STEPS, "prompt"}, {OPT_PROMPT_LR, "prompt"}, {OPT_STEPS, "model"}, {OPT_LR, "model"},
                    {OPT_LORA_STEPS, "lora"},     {OPT_LORA_LR, "lora"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        bool used = false;
        for (size_t s = 0; s < run->n_stages; s++) {
            const char *name = run->stages[s].name;
            used |= strcmp(strcmp(name, "joint") == 0 ? "model" : name, settings[i].stage) == 0;
        }
        if (!used && o->given[settings[i].id] && !option_true(o, OPT_QUIET))
            fprintf(stderr, "warning: --%s has no effect, for this run has no stage of its own for the %s\n",
                    option_table[settings[i].id].name, settings[i].stage);
    }
}

/* The stages of a method. Joint training learns both at once; random-prompt puts a fixed random prompt where ProMoT
 * puts a learnt one: the paper's controls. */
static int plan_stages(const Options *o, Run *run, Error *error)
{
    const char *method = o->text[OPT_METHOD];
    bool given = o->text[OPT_PROMPT] != NULL, lora_given = o->text[OPT_LORA] != NULL;
    if (given && strcmp(method, "promot") != 0)
        return error_set(error, EXIT_USAGE,
                         "--prompt: expected --method promot, whose first stage it takes the place of, found %s",
                         method);
    if (lora_given && strcmp(method, "promot-lora") != 0)
        return error_set(error, EXIT_USAGE,
                         "--lora: expected --method promot-lora, whose first stage it takes the place of, found %s",
                         method);
    if (strcmp(method, "finetune") == 0) run->stages[run->n_stages++] = model_stage(o, "model", false, false);
    if (strcmp(method, "prompt") == 0 || (strcmp(method, "promot") == 0 && !given))
        run->stages[run->n_stages++] = prompt_stage(o);
    if (strcmp(method, "promot") == 0 || strcmp(method, "random-prompt") == 0)
        run->stages[run->n_stages++] = model_stage(o, "model", true, false);
    if (strcmp(method, "lora") == 0 || (strcmp(method, "promot-lora") == 0 && !lora_given))
        run->stages[run->n_stages++] = lora_stage(o);
    if (strcmp(method, "promot-lora") == 0) run->stages[run->n_stages++] = model_stage(o, "model", false, false);
    if (strcmp(method, "joint") == 0) run->stages[run->n_stages++] = model_stage(o, "joint", true, true);
    for (size_t i = 0; i < run->n_stages; i++)
        if (parse_normalizer(o, &run->stages[i].loss.scale, error)) return -1;
    warn_of_other_stages(o, run);
    return 0;
}

/* --prompt: one adapter, or a directory of them, each under its task's name (a run's prompt/). The path of a task's
 * prompt, to be freed; NULL: the directory has none for it. */
static char *prompt_path(const char *path, const char *task)
{
    char *config = path_join(path, "adapter_config.json"), *own = path_join(path, task);
    bool one = !path_is_directory(path) || path_exists(config), there = path_exists(own);
    free(config);
    if (!one && there) return own;
    free(own);
    return one ? text_format("%s", path) : NULL;
}

/* The prompts of a run whose first stage is skipped. */
static int prompts_from_files(const Options *o, Run *run, Error *error)
{
    int status = 0;
    for (size_t i = 0; !status && i < run->n_tasks; i++) {
        char *path = prompt_path(o->text[OPT_PROMPT], run->tasks[i].name);
        Prompts first = {0};
        if (!path)
            return error_set(error, EXIT_USAGE, "--prompt: no prompt for %s in %s", run->tasks[i].name,
                             o->text[OPT_PROMPT]);
        if (i == 0) { /* its length is that of all */
            status = prompts_open(&first, run->model, path, error);
            if (!status) status = prompts_allocate(&run->prompts, run->model, run->n_tasks, first.length, error);
            prompts_free(&first);
        }
        if (!status) status = prompt_load(run->model, &run->prompts, i, path, error);
        free(path);
    }
    return status;
}

/* The soft prompts, or the LoRA, that a run begins with. */
static int prepare_adapters(const Options *o, Run *run, Error *error)
{
    bool random = strcmp(o->text[OPT_METHOD], "random-prompt") == 0;
    const char *init = random ? "uniform" : o->text[OPT_PROMPT_INIT];
    run->prompt_init = init;
    if (o->text[OPT_LORA]) return lora_open(run->model, o->text[OPT_LORA], error);
    if (run->stages[0].trains_lora)
        return lora_create(run->model, o->text[OPT_LORA_TARGETS], option_size(o, OPT_LORA_RANK),
                           option_real(o, OPT_LORA_ALPHA), random_fold(run->seed, 350), error);
    if (!run->stages[0].uses_prompts) return 0;
    if (o->text[OPT_PROMPT]) return prompts_from_files(o, run, error);
    if (prompts_allocate(&run->prompts, run->model, run->n_tasks, option_size(o, OPT_PROMPT_LENGTH), error)) return -1;
    for (size_t i = 0; i < run->n_tasks; i++)
        if (prompt_init(run->model, run->tokenizer, &run->prompts, i, init, random_fold(run->seed, 300), error))
            return -1;
    return 0;
}

/* How the dev rows of a trained task are encoded. */
static TaskEncoder dev_encoder(const Options *o, const Run *run, const TaskData *data, size_t shots, int prompt)
{
    TaskEncoder e = task_encoder(o, &run->model->config, run->tokenizer, data, false, shots, prompt);
    e.seed = random_fold(e.seed, 1); /* the dev set is shown other examples */
    return e;
}

/* Opens every task's splits: training rows as a stream, those to score in ids. */
static int prepare_tasks(const Options *o, Run *run, TaskArgument *arguments, size_t count, Error *error)
{
    size_t shots, cap = option_size(o, OPT_MIXING_CAP);
    bool equal = strcmp(o->text[OPT_MIXING], "equal") == 0;
    if (parse_count(o->text[OPT_SHOTS], "shots", &shots, error)) return -1;
    run->tasks = host_alloc(count, sizeof *run->tasks);
    run->n_tasks = count;
    run->mixture.parts = host_alloc(count, sizeof *run->mixture.parts);
    run->mixture.n_parts = count;
    for (size_t i = 0; i < count; i++) {
        TaskData *data = &run->tasks[i];
        TaskEncoder e;
        int prompt = run->stages[0].uses_prompts ? (int)i : -1,
            status = open_splits(&arguments[i], SPLIT_DEV, true, error);
        *data = arguments[i].data; /* from here on they are the run's */
        arguments[i].data = (TaskData){0};
        if (status) return -1;
        e = task_encoder(o, &run->model->config, run->tokenizer, data, true, shots, prompt);
        if (stream_open(&data->train, &e, error)) return -1;
        run->mixture.parts[i] =
            (Part){.stream = &data->train,
                   .count = data->train.count,
                   .share = equal ? 1 : (double)(cap ? min_size(cap, data->train.count) : data->train.count)};
        if (option_size(o, OPT_SHOW)) {
            if (show_examples(data->name, &e, option_size(o, OPT_SHOW), error)) return -1;
            continue;
        }
        e = dev_encoder(o, run, data, shots, prompt);
        if (encode_split(&data->dev, &e, 0, error)) return -1;
    }
    return 0;
}

/* The dev rows of the trained tasks, in ids at each number of --probe-shots: what --probe-trained asks. */
static int prepare_trained_probes(const Options *o, Run *run, Error *error)
{
    run->trained_inputs = host_alloc(run->n_probe_shots * run->n_tasks, sizeof *run->trained_inputs);
    for (size_t i = 0; i < run->n_tasks; i++) {
        const TaskData *data = &run->tasks[i];
        for (size_t s = 0; s < run->n_probe_shots; s++) {
            TaskEncoder e = dev_encoder(o, run, data, run->probe_shots[s], data->dev.encoder.prompt);
            if (encode_split(&run->trained_inputs[s * run->n_tasks + i], &e, option_size(o, OPT_PROBE_LIMIT), error))
                return -1;
        }
    }
    return 0;
}

/* The held-out tasks of --probe, in ids at each number of --probe-shots. */
static int prepare_probes(const Options *o, Run *run, TaskArgument *arguments, size_t count, Error *error)
{
    size_t *shots = run->probe_shots = host_alloc(MAX_SHOT_COUNTS, sizeof *run->probe_shots);
    if (parse_shots(o, OPT_PROBE_SHOTS, shots, &run->n_probe_shots, error)) return -1;
    run->probes = host_alloc(count, sizeof *run->probes);
    run->probe_inputs = host_alloc(run->n_probe_shots * count, sizeof *run->probe_inputs);
    run->n_probes = count;
    run->probe_every = (int64_t)option_real(o, OPT_PROBE_EVERY);
    for (size_t i = 0; i < count; i++) {
        TaskData *data = &run->probes[i];
        int status = open_splits(&arguments[i], SPLIT_TEST, has_shots(shots, run->n_probe_shots), error);
        *data = arguments[i].data; /* from here on they are the run's */
        arguments[i].data = (TaskData){0};
        for (size_t s = 0; !status && s < run->n_probe_shots; s++) {
            TaskEncoder e = task_encoder(o, &run->model->config, run->tokenizer, data, false, shots[s], -1);
            e.ending = o->text[OPT_PROBE_ENDING];
            status = encode_split(&run->probe_inputs[s * count + i], &e, option_size(o, OPT_PROBE_LIMIT), error);
        }
        if (status) return -1;
    }
    return option_true(o, OPT_PROBE_TRAINED) ? prepare_trained_probes(o, run, error) : 0;
}

static void run_settings(const Options *o, Run *run)
{
    size_t micro = option_size(o, OPT_MICRO_BATCH);
    run->directory = o->text[OPT_OUT];
    run->seed = random_fold(option_size(o, OPT_SEED), 0);
    run->batch = option_size(o, OPT_BATCH);
    run->micro = micro && micro < run->batch ? micro : run->batch;
    run->recompute = (int)option_real(o, OPT_RECOMPUTE);
    run->offload = option_true(o, OPT_OFFLOAD);
    run->dropout_shared = strcmp(o->text[OPT_DROPOUT_SHARING], "t5x") == 0;
    run->quiet = option_true(o, OPT_QUIET);
    run->save_every = (int64_t)option_real(o, OPT_SAVE_EVERY);
    for (size_t i = 0; i < MAX_STAGES; i++) run->best_score[i] = NAN;
}

/* The run itself, when everything it needs is there. */
static int train_with(const Options *o, Run *run, bool resumed, Error *error)
{
    char *state = run_file(run, "checkpoints/state.safetensors");
    int lock = -1, status = 0;
    bool restore;
    /* A run is locked before its state is read; a new one is announced before its directory is made. */
    if (resumed && (lock = run_begin(o, device_threads(run->model->dev), true, error)) < 0) status = -1;
    if (!status && resumed && run_is_done(o))
        status = error_set(error, EXIT_USAGE, "%s: another process has just finished this run", run->directory);
    restore = !status && resumed && path_exists(state);
    if (restore) status = state_read(run, state, true, NULL, error);
    free(state);
    if (!status) status = announce(run, error);
    if (!status && !resumed && (lock = run_begin(o, device_threads(run->model->dev), false, error)) < 0) status = -1;
    if (!status) status = run_execute(run, resumed, error);
    if (!status) {
        cJSON *results = run_results(run);
        print_results(o, results);
        cJSON_Delete(results);
    }
    if (lock >= 0) close(lock);
    return status;
}

static int train_run(const Options *o, Run *run, bool resumed, Error *error)
{
    TaskArgument *arguments = NULL, *probes = NULL;
    size_t count = 0, n_probes = 0;
    int status = parse_task_arguments(o, OPT_TASK, &arguments, &count, error);
    if (!status) status = parse_task_arguments(o, OPT_PROBE, &probes, &n_probes, error);
    run_settings(o, run);
    run->model_directory = o->text[OPT_MODEL];
    run->dev_decode = decode_settings(o, option_size(o, OPT_EVAL_MAX_LENGTH));
    run->keep_checkpoints = option_true(o, OPT_KEEP);
    run->writes_npy = option_true(o, OPT_NPY);
    run->lora_comes_off = strcmp(o->text[OPT_METHOD], "promot-lora") == 0;
    if (!status) status = plan_stages(o, run, error);
    if (!status) status = prepare_tasks(o, run, arguments, count, error);
    if (!status && !option_size(o, OPT_SHOW)) {
        status = prepare_adapters(o, run, error);
        if (!status) status = prepare_probes(o, run, probes, n_probes, error);
        if (!status) status = train_with(o, run, resumed, error);
    }
    prompts_free(&run->prompts);
    for (size_t i = 0; i < run->n_tasks; i++) task_data_free(&run->tasks[i]);
    for (size_t i = 0; i < run->n_probe_shots * run->n_probes; i++) encoded_free(&run->probe_inputs[i]);
    for (size_t i = 0; run->trained_inputs && i < run->n_probe_shots * run->n_tasks; i++)
        encoded_free(&run->trained_inputs[i]);
    for (size_t i = 0; i < run->n_probes; i++) task_data_free(&run->probes[i]);
    free(run->trained_inputs);
    free(run->probe_shots);
    free(run->mixture.parts);
    free(run->tasks);
    free(run->probe_inputs);
    free(run->probes);
    task_arguments_free(arguments, count);
    task_arguments_free(probes, n_probes);
    return status;
}

static int command_train(Options *o, Error *error)
{
    Device *dev = NULL;
    Model *model = NULL;
    Tokenizer *tokenizer = NULL;
    cJSON *settings = NULL;
    bool resumed = false;
    int status = option_size(o, OPT_SHOW) ? 0 : run_find(o, &resumed, error);
    if (!status && resumed) status = resume_options(o, &settings, error);
    if (!status && resumed && run_is_done(o)) {
        status = print_done(o, error);
        cJSON_Delete(settings);
        return status;
    }
    if (!status) status = option_need(o, OPT_MODEL, error);
    if (!status) status = need_task(o, error);
    if (!status && !(dev = device_from_options(o, error))) status = -1;
    if (!status && !(tokenizer = open_tokenizer(o->text[OPT_MODEL], error))) status = -1;
    if (!status && !(model = open_model(o, dev, error))) status = -1;
    if (!status) {
        Run run = {.model = model, .tokenizer = tokenizer};
        status = train_run(o, &run, resumed, error);
    }
    cJSON_Delete(settings);
    tokenizer_close(tokenizer);
    model_close(model);
    device_close(dev);
    return status;
}

/* run.c: a run's directory and settings, and what is told before a long job: for train and pretrain. A part of
 * chapter 10 of promot.c, which includes it. */

/* What run.json does not record, and a resumed run may change: where the run is, and how it is told and computed. */
static bool is_not_recorded(size_t id)
{
    return id == OPT_RESUME || id == OPT_QUIET || id == OPT_JSON || id == OPT_HELP || id == OPT_SHOW ||
           id == OPT_THREADS || id == OPT_RECOMPUTE || id == OPT_STREAM || id == OPT_OUT;
}

static char *run_json(const Options *o, int threads)
{
    cJSON *json = cJSON_CreateObject();
    char *text;
    cJSON_AddStringToObject(json, "promot", PROMOT_VERSION);
    cJSON_AddStringToObject(json, "command", o->command);
    cJSON_AddStringToObject(json, "compiler", __VERSION__);
    cJSON_AddNumberToObject(json, "threads", threads);
    options_record(o, is_not_recorded, cJSON_AddObjectToObject(json, "settings"));
    text = cJSON_Print(json);
    cJSON_Delete(json);
    return text;
}

/* A resumed run takes its settings from run.json; what is given again must be the same. *settings keeps the texts
 * that the options then point into. */
static int resume_options(Options *o, cJSON **settings, Error *error)
{
    char *path = path_join(o->text[OPT_OUT], "run.json"), *text;
    MappedFile file = {0};
    const char *command;
    cJSON *json;
    int status = mapped_file_open(&file, path, error);
    if (!status) {
        text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
        json = cJSON_Parse(text);
        command = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "command"));
        *settings = cJSON_DetachItemFromObjectCaseSensitive(json, "settings");
        if (!cJSON_IsObject(*settings) || !command)
            status = error_set(error, EXIT_FAILED, "%s: not the settings of a run", path);
        else if (strcmp(command, o->command) != 0)
            status = error_set(error, EXIT_USAGE, "%s: a run of promot %s (expected one of promot %s)", path, command,
                               o->command);
        else
            status = options_recall(o, is_not_recorded, *settings, path, error);
        cJSON_Delete(json);
        free(text);
        mapped_file_close(&file);
    }
    free(path);
    return status;
}

/* Keeps two processes from working on one run: an exclusive lock on run.json while this process lives. */
static int run_lock(const char *path, Error *error)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat locked, there;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return error_set(error, EXIT_FAILED, "%s: cannot open: %s", path, strerror(errno));
    errno = 0;
    /* A second start of the same new run renames a file of its own over ours: then the one that is there is not
     * locked. */
    if (fcntl(fd, F_SETLK, &lock) == 0 && fstat(fd, &locked) == 0 && stat(path, &there) == 0 &&
        locked.st_ino == there.st_ino)
        return fd;
    if (errno != EACCES && errno != EAGAIN && errno != 0)
        error_set(error, EXIT_FAILED, "%s: cannot be locked: %s", path, strerror(errno));
    else
        error_set(error, EXIT_USAGE, "%s: another process is at work on this run", path);
    close(fd);
    return -1;
}

/* Is a directory empty, but for what a kill may have left there before the first run.json? */
static bool holds_no_files(const char *path, bool pretrain)
{
    DIR *directory = opendir(path);
    const struct dirent *entry;
    bool empty = directory != NULL;
    while (directory && (entry = readdir(directory)))
        empty &= strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                 strncmp(entry->d_name, "run.json.", strlen("run.json.")) == 0 ||
                 (pretrain && strcmp(entry->d_name, "vocabulary") == 0);
    if (directory) closedir(directory);
    return empty;
}

/* Makes a new run's directory. It must not be there by now, for another process may have begun in it since run_find
 * looked; but an empty one may be resumed, and pretraining has put its vocabulary there. */
static int run_make_directory(const Options *o, Error *error)
{
    char *path = text_format("%s", o->text[OPT_OUT]), *slash;
    int status = 0, number = 0;
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = '\0';
    if ((slash = strrchr(path, '/')) && slash != path) {
        *slash = '\0';
        status = directory_create(path, error);
        *slash = '/';
    }
    if (!status && mkdir(path, 0777) != 0) number = errno;
    if (number && number != EEXIST)
        status = error_set(error, number == ENOSPC || number == EDQUOT || number == EIO ? EXIT_FAILED : EXIT_USAGE,
                           "%s: cannot be created: %s", path, strerror(number));
    else if (number && !((option_true(o, OPT_RESUME) || o->which == FOR_PRETRAIN) &&
                         holds_no_files(path, o->which == FOR_PRETRAIN)))
        status = error_set(error, EXIT_USAGE, "%s: exists already (--resume continues a run)", path);
    free(path);
    return status;
}

/* Begins a run's directory, or checks that it is one to resume. Returns the lock's file descriptor, -1 on an error. */
static int run_begin(const Options *o, int threads, bool resumed, Error *error)
{
    const char *out = o->text[OPT_OUT];
    char *path = path_join(out, "run.json"), *text;
    int status = 0;
    if (!resumed) {
        status = run_make_directory(o, error);
        text = run_json(o, threads);
        if (!status) status = file_write_text(path, text, error);
        free(text);
    }
    if (!status) status = run_lock(path, error);
    free(path);
    return status;
}

/* A new run needs a directory that is not there; a run to resume has a run.json (an empty directory is begun anew). */
static int run_find(const Options *o, bool *resumed, Error *error)
{
    char *path;
    *resumed = false;
    if (option_need(o, OPT_OUT, error)) return -1;
    path = path_join(o->text[OPT_OUT], "run.json");
    if (option_true(o, OPT_RESUME)) *resumed = path_exists(path);
    free(path);
    if (!*resumed && path_exists(o->text[OPT_OUT]) && !option_true(o, OPT_RESUME))
        return error_set(error, EXIT_USAGE, "%s: exists already (--resume continues a run)", o->text[OPT_OUT]);
    if (!*resumed && path_exists(o->text[OPT_OUT]) && !holds_no_files(o->text[OPT_OUT], o->which == FOR_PRETRAIN))
        return error_set(error, EXIT_USAGE, "%s: is no run to resume (expected a run.json in it)", o->text[OPT_OUT]);
    return 0;
}

static bool run_is_done(const Options *o)
{
    char *path = path_join(o->text[OPT_OUT], "DONE");
    bool done = path_exists(path);
    free(path);
    return done;
}

static void print_results(const Options *o, cJSON *results)
{
    const cJSON *stage;
    if (option_true(o, OPT_JSON)) {
        cJSON_AddStringToObject(results, "run", o->text[OPT_OUT]);
        print_json(cJSON_Duplicate(results, true));
        return;
    }
    printf("%-12s %8s %10s %8s\n", "stage", "steps", "best step", "dev");
    cJSON_ArrayForEach(stage, cJSON_GetObjectItemCaseSensitive(results, "stages"))
    {
        const cJSON *dev = cJSON_GetObjectItemCaseSensitive(stage, "dev");
        printf("%-12s %8.0f %10.0f ", cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(stage, "stage")),
               cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(stage, "steps")),
               cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(stage, "best_step")));
        if (dev)
            printf("%8.2f\n", dev->valuedouble);
        else
            printf("%8s\n", "-");
    }
}

/* A run that is done: prints what it found, and removes what a kill after its end may have left. */
static int print_done(const Options *o, Error *error)
{
    char *path = path_join(o->text[OPT_OUT], "DONE"), *checkpoints = path_join(o->text[OPT_OUT], "checkpoints"), *text;
    MappedFile file = {0};
    cJSON *results;
    int status = mapped_file_open(&file, path, error);
    if (!status) {
        text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
        results = cJSON_Parse(text);
        if (cJSON_IsObject(results))
            print_results(o, results);
        else
            status = error_set(error, EXIT_FAILED, "%s: not the results of a run", path);
        cJSON_Delete(results);
        free(text);
        mapped_file_close(&file);
    }
    if (!status) status = directory_remove(checkpoints, error);
    free(path);
    free(checkpoints);
    return status;
}

/* --- what is told before a long job */

/* What this machine does in large matrix products, in FLOP/s: one of a typical layer's shape, tried for a moment. */
static double measure_flops(Device *dev)
{
    enum { ROWS = 512, IN = 512, OUT = 2048 };
    const double tried_seconds = 0.05;
    act_t *x = device_alloc(ROWS * IN * sizeof *x), *y = device_alloc(ROWS * OUT * sizeof *y);
    weight_t *w = weights_alloc(OUT * IN);
    double begun, elapsed = 0, flops = 0;
    if (x && y && w) {
        device_clear(dev, x, ROWS * IN * sizeof *x);
        device_clear(dev, w, OUT * IN * sizeof *w); /* the halves that products read */
        linear_forward(dev, y, x, w, ROWS, IN, OUT);
        device_wait(dev);
        for (begun = seconds_now(); elapsed < tried_seconds; elapsed = seconds_now() - begun) {
            linear_forward(dev, y, x, w, ROWS, IN, OUT);
            device_wait(dev);
            flops += 2.0 * ROWS * IN * OUT;
        }
    }
    device_free(x);
    device_free(y);
    weights_free(w);
    return elapsed > 0 ? flops / elapsed : 1e9;
}

/* What the batches of a stage hold: the largest one, and the arithmetic of a step on average. */
typedef struct {
    size_t source_rows, target_rows; /* of the largest micro-batch */
    size_t all_rows;                 /* of the largest batch, both sides */
    double forward_flops;            /* of a batch */
} StagePlan;

/* Batches are drawn by pure functions of the seed, so the ones to come can be looked at beforehand. */
static int plan_stage(Run *run, size_t s, StagePlan *plan, Error *error)
{
    enum {
        KEPT = 1 << 20,
        READ = 1 << 15,
        DOCUMENTS = 2000
    }; /* looked at, at most: what comes out of the caches of
                                                                 * small splits, is read, is corrupted */
    const Stage *stage = &run->stages[s];
    size_t P = stage->uses_prompts ? run->prompts.length : 0, limit = KEPT;
    int64_t first = s == run->stage ? run->step : 0, steps = stage->steps - first;
    *plan = (StagePlan){0};
    for (size_t p = 0; p < run->mixture.n_parts; p++)
        limit = min_size(limit, run->mixture.parts[p].corpus                 ? DOCUMENTS
                                : run->mixture.parts[p].count > CACHE_PLACES ? READ
                                                                             : KEPT);
    steps = steps < (int64_t)(limit / run->batch) + 1 ? steps : (int64_t)(limit / run->batch) + 1;
    mixture_begin(&run->mixture, stage_key(run, s));
    for (int64_t step = first; step < first + steps; step++) {
        size_t source_rows = 0, target_rows = 0, all_rows = 0;
        for (size_t b = 0; b < run->batch; b++) {
            TokenExample e;
            if (mixture_get(&run->mixture, (size_t)step * run->batch + b, &e, error)) return -1;
            if (b % run->micro == 0) source_rows = target_rows = 0;
            source_rows += e.input_length + (e.prompt >= 0 ? P : 0);
            target_rows += e.target_length;
            all_rows += e.input_length + e.target_length;
            plan->source_rows = max_size(plan->source_rows, source_rows);
            plan->target_rows = max_size(plan->target_rows, target_rows);
            plan->forward_flops += forward_flops(&run->model->config, &e, 1, P) / (double)steps;
            token_example_free(&e);
        }
        plan->all_rows = max_size(plan->all_rows, all_rows);
    }
    return 0;
}

/* What decoding a batch of these inputs takes. */
static size_t split_decoding_bytes(const Run *run, const EncodedSplit *split, size_t prompt_length)
{
    size_t steps = run->dev_decode.max_length ? run->dev_decode.max_length : split->longest_target + EXTRA_TOKENS;
    return split->count ? decoding_bytes(&run->model->config, run->dev_decode.beams, steps,
                                         split->longest_input + prompt_length, split->count)
                        : 0;
}

/* The most that decoding a batch of the dev sets or of the probes takes. */
static size_t dev_decoding_bytes(const Run *run, size_t prompt_length)
{
    size_t most = 0;
    for (size_t i = 0; i < run->n_tasks; i++)
        most = max_size(most, split_decoding_bytes(run, &run->tasks[i].dev, prompt_length));
    for (size_t i = 0; i < run->n_probe_shots * run->n_probes; i++)
        most = max_size(most, split_decoding_bytes(run, &run->probe_inputs[i], 0));
    for (size_t i = 0; run->trained_inputs && i < run->n_probe_shots * run->n_tasks; i++)
        most = max_size(most, split_decoding_bytes(run, &run->trained_inputs[i], prompt_length));
    return most;
}

/* The most that a stage takes at a time; decoding the dev sets takes the place of its activations. */
static size_t stage_bytes(const Run *run, const Stage *stage, const StagePlan *plan)
{
    const T5Config *c = &run->model->config;
    const size_t activations = pass_bytes(c, plan->source_rows, plan->target_rows, PASS_TRAIN, stage->recomputed);
    const size_t decoding = dev_decoding_bytes(run, stage->uses_prompts ? run->prompts.length : 0);
    const bool streamed = weights_are_streamed(run->model->weights) && !stage->trains_model && !run->model->lora;
    return PROCESS_BYTES - (streamed ? run->model->n_weights * sizeof(weight_t) - streaming_of(c).resident : 0) -
           offloading_of(c, stage->offload).saved +
           training_bytes(c, run->model->n_weights, run->prompts.count * run->prompts.length, stage->trains_model,
                          stage->trains_prompts, plan->source_rows, plan->target_rows, plan->all_rows,
                          run->micro < run->batch, stage->model.weight_decay, stage->recomputed) +
           (run->model->lora ? lora_memory(run->model, stage->trains_lora) : 0) +
           (decoding > activations ? decoding - activations : 0);
}

/* Chooses what is offloaded and how many layers are recomputed: no more than asked for, where that fits. A model with a
 * LoRA stays whole: it is merged and taken out again on the device. */
static void fit_stage(const Run *run, Stage *stage, const StagePlan *plan, size_t available)
{
    const T5Config *c = &run->model->config;
    const bool can_offload =
        ON_A_CARD && stage->trains_model && !run->model->lora && !weights_are_streamed(run->model->weights);
    size_t bytes;
    stage->offload = can_offload && run->offload ? OFFLOAD_LAYERS : OFFLOAD_NOTHING;
    for (;; stage->offload++) {
        stage->recomputed = run->recompute < 0 ? 0 : min_size((size_t)run->recompute, c->num_layers);
        bytes = stage_bytes(run, stage, plan);
        if (bytes <= available) return;
        if (can_offload && stage->offload == OFFLOAD_NOTHING) continue; /* before anything is computed again */
        if (run->recompute < 0) {
            stage->recomputed = recomputed_to_save(c, plan->source_rows, plan->target_rows, bytes - available);
            bytes = stage_bytes(run, stage, plan);
        }
        if (bytes <= available || !can_offload || stage->offload == OFFLOAD_LAYERS) return;
    }
}

/* Says what a stage will take, and refuses what cannot fit. */
static int announce_stage(Run *run, size_t s, double speed, Error *error)
{
    Stage *stage = &run->stages[s];
    StagePlan plan;
    int64_t steps = stage->steps - (s == run->stage ? run->step : 0);
    size_t weights = weights_device_bytes(run->model->weights, run->model->n_weights),
           available = device_memory_available() + weights, bytes;
    double seconds, all;
    if (plan_stage(run, s, &plan, error)) return -1;
    run->most_rows[s] = plan.all_rows + 1; /* and the token that decoders start with */
    if (steps == 0) return 0;
    seconds = plan.forward_flops * (stage->trains_model ? 3 : 2) / speed;
    all = seconds * (double)steps;
    fit_stage(run, stage, &plan, available > weights ? available : SIZE_MAX);
    bytes = stage_bytes(run, stage, &plan);
    if (!run->quiet)
        fprintf(stderr,
                "stage %s: %lld steps of %zu examples, %.2f GB of memory, about %.2f s a step, %.0f min %02.0f s\n",
                stage->name, (long long)steps, run->batch, (double)bytes / 1e9, seconds, floor(all / 60),
                floor(fmod(all, 60)));
    if (!run->quiet && stage->recomputed)
        fprintf(stderr, "stage %s: %zu layers of the encoder make their MLP's first product again, to save memory\n",
                stage->name, stage->recomputed);
    if (!run->quiet && stage->offload) {
        const double step = offloaded_each_step(&run->model->config, stage->offload);
        fprintf(stderr,
                "stage %s: the lower halves of the %s weights are on the host, %.0f GB a step there and back: at least "
                "%.2f s at %.0f GB/s\n",
                stage->name, stage->offload == OFFLOAD_ENCODER ? "encoder's" : "layers'", step / 1e9, step / PCIE_RATE,
                PCIE_RATE / 1e9);
    }
    if (!run->quiet && run->offload && !stage->offload)
        fprintf(stderr, "stage %s: --offload has nothing to offload\n", stage->name);
    if (!run->quiet && weights_are_streamed(run->model->weights) && !stage->trains_model) {
        const double step =
            2.0 * (double)streaming_of(&run->model->config).layers * ceil((double)run->batch / (double)run->micro);
        fprintf(stderr, "stage %s: layers are streamed from the host, %.0f GB a step: at least %.2f s at %.0f GB/s\n",
                stage->name, step / 1e9, step / PCIE_RATE, PCIE_RATE / 1e9);
    }
    if (available > weights && bytes > available)
        return error_set(error, EXIT_FAILED,
                         "memory: stage %s needs %.1f GB (there are %.1f GB; --micro-batch below %zu needs less)",
                         stage->name, (double)bytes / 1e9, (double)available / 1e9, run->micro);
    if (weights_are_streamed(run->model->weights) && stage->trains_model)
        return error_set(error, EXIT_USAGE, "--stream: stage %s trains the model (expected --method prompt)",
                         stage->name);
    return 0;
}

/* What stands at the end of an input that is cut may be the question. */
static void warn_of_cuts(const char *name, const EncodedSplit *inputs)
{
    if (inputs->n_cut)
        fprintf(stderr, "warning: %s, %zu-shot: %zu of %zu inputs to be scored were longer than allowed and are cut\n",
                name, inputs->encoder.shots, inputs->n_cut, inputs->count);
}

static int announce(Run *run, Error *error)
{
    const double share_of_matmul = 0.7; /* what a whole step reaches of the speed of its matrix products */
    double speed = run->quiet ? 1 : measure_flops(run->model->dev) * share_of_matmul;
    int status = 0;
    for (size_t s = run->stage; !status && s < run->n_stages; s++) status = announce_stage(run, s, speed, error);
    for (size_t i = 0; !status && !run->quiet && i < run->n_tasks; i++) {
        const TaskStream *train = &run->tasks[i].train;
        fprintf(stderr, "%s: %zu training examples, longest input %zu ids", run->tasks[i].name, train->count,
                train->longest_input);
        if (train->n_seen < train->count) fprintf(stderr, " (of the %zu looked at beforehand)", train->n_seen);
        fputc('\n', stderr);
        if (train->n_cut)
            fprintf(stderr, "warning: %s: %zu of %zu training examples were longer than allowed and are cut\n",
                    run->tasks[i].name, train->n_cut, train->n_seen);
        warn_of_cuts(run->tasks[i].name, &run->tasks[i].dev);
    }
    for (size_t s = 0; !status && !run->quiet && s < run->n_probe_shots; s++) {
        for (size_t i = 0; i < run->n_probes; i++)
            warn_of_cuts(run->probes[i].name, &run->probe_inputs[s * run->n_probes + i]);
        for (size_t i = 0; run->trained_inputs && i < run->n_tasks; i++)
            warn_of_cuts(run->tasks[i].name, &run->trained_inputs[s * run->n_tasks + i]);
    }
    return status;
}

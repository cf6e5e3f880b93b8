/* align.c: promot align: how much of the gradient on a task is its format (Figures 3 and 7). A part of chapter 10
 * of promot.c, which includes it. */

/* Two lists of examples to compare: the task, and the same inputs with another task's, or random, targets. */
typedef struct {
    TokenExample *full, *format; /* [count] */
    size_t count;
} AlignLists;

static void align_lists_free(AlignLists *lists)
{
    for (size_t i = 0; i < lists->count; i++) {
        token_example_free(&lists->full[i]);
        token_example_free(&lists->format[i]);
    }
    free(lists->full);
    free(lists->format);
}

/* A line of examples.jsonl, for who wants to compute the same with other software. gradient: "full" or "format",
 * whichever this example is part of. file NULL: nobody asked. */
static int align_write_example(AtomicFile *file, const char *gradient, const TaskEncoder *e, size_t i,
                               const Example *row, const TokenExample *ids, Error *error)
{
    char *input = NULL, *text, *line;
    cJSON *json;
    int status;
    if (!file) return 0;
    if (input_with_shots(e, i, row, &input, error)) return -1;
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "gradient", gradient);
    cJSON_AddStringToObject(json, "id", row->id);
    cJSON_AddStringToObject(json, "input", input);
    cJSON_AddStringToObject(json, "target", row->targets[0]);
    cJSON_AddItemToObject(json, "input_ids", cJSON_CreateIntArray(ids->input, (int)ids->input_length));
    cJSON_AddItemToObject(json, "target_ids", cJSON_CreateIntArray(ids->target, (int)ids->target_length));
    text = cJSON_PrintUnformatted(json);
    line = text_format("%s\n", text);
    status = atomic_file_write(file, line, strlen(line), error);
    free(line);
    free(text);
    free(input);
    cJSON_Delete(json);
    return status;
}

/* The target of the format-only example i: a random label word, or of a task that writes text another example's. */
static int format_only_target(const TaskEncoder *e, uint64_t seed, size_t i, size_t of, size_t count, Example *row,
                              Error *error)
{
    const char *const *words;
    size_t n_words = task_labels(e->task, &words);
    Example other;
    char *target;
    if (n_words) {
        target = text_format("%s", words[random_label(seed, i, n_words)]);
    } else {
        if (dataset_get(e->rows, permuted(random_other_example(seed, i, count), of, seed), &other, error)) return -1;
        target = text_format("%s", other.targets[0]);
        example_free(&other);
    }
    free(row->targets[0]);
    row->targets[0] = target;
    return 0;
}

/* against: "labels" (drawn at random), "same" (a control: alignment 1), or the other task's encoder. file NULL: the
 * examples are not written. */
static int align_lists(AlignLists *lists, const TaskEncoder *e, const TaskEncoder *other, bool same, size_t limit,
                       uint64_t seed, AtomicFile *file, Error *error)
{
    size_t of = dataset_count(e->rows), of_other = other ? dataset_count(other->rows) : of;
    size_t count = min_size(of, of_other);
    if (limit) count = min_size(count, limit);
    lists->full = host_alloc(count, sizeof *lists->full);
    lists->format = host_alloc(count, sizeof *lists->format);
    for (size_t i = 0; i < count; i++) {
        size_t at = permuted(i, of, seed);
        const TaskEncoder *second = other ? other : e;
        Example row;
        bool cut;
        int status;
        if (dataset_get(e->rows, at, &row, error)) return -1;
        lists->count++;
        status = encode_row(e, at, &row, &lists->full[i], &cut, error);
        if (!status) status = align_write_example(file, "full", e, at, &row, &lists->full[i], error);
        if (!status && other) {
            example_free(&row);
            at = permuted(i, of_other, seed);
            if (dataset_get(other->rows, at, &row, error)) return -1;
        } else if (!status && !same) {
            status = format_only_target(e, seed, i, of, count, &row, error);
        }
        if (!status) status = encode_row(second, at, &row, &lists->format[i], &cut, error);
        if (!status) status = align_write_example(file, "format", second, at, &row, &lists->format[i], error);
        example_free(&row);
        if (status) return -1;
    }
    return 0;
}

/* One model that is looked at: a checkpoint of a run, or the model of --model. */
typedef struct {
    char *model, *prompt; /* paths; prompt NULL: none */
    double step;
    Alignment without, with;
} AlignPoint;

typedef struct {
    AlignPoint *points;
    size_t count;
} AlignPoints;

static void align_points_free(AlignPoints *p)
{
    for (size_t i = 0; i < p->count; i++) {
        free(p->points[i].model);
        free(p->points[i].prompt);
    }
    free(p->points);
}

static void align_points_add(AlignPoints *p, double step, char *model, char *prompt) /* takes both paths */
{
    p->points = host_grow(p->points, p->count + 1, sizeof *p->points);
    p->points[p->count++] = (AlignPoint){.model = model, .prompt = prompt, .step = step};
}

static int compare_points(const void *a, const void *b)
{
    double x = ((const AlignPoint *)a)->step, y = ((const AlignPoint *)b)->step;
    return (x > y) - (x < y);
}

/* The prompt of a run's checkpoint: its own (joint training), or the run's. To be freed; NULL: there is none. */
static char *point_prompt(const char *run, const char *checkpoint, const char *task)
{
    char *own = text_format("%s/prompt/%s", checkpoint, task), *trained = text_format("%s/prompt/%s", run, task);
    bool has_own = path_exists(own), has_trained = path_exists(trained);
    if (!has_own) free(own);
    if (has_own || !has_trained) free(trained);
    return has_own ? own : has_trained ? trained : NULL;
}

/* The model that a run started from, and the checkpoints that it kept (train --keep-checkpoints). */
static int align_points_of_run(const char *run, const char *task, AlignPoints *p, Error *error)
{
    char *settings = path_join(run, "run.json"), *steps = path_join(run, "steps"), *text;
    MappedFile file = {0};
    cJSON *json;
    const char *model;
    DIR *directory;
    const struct dirent *entry;
    int status = mapped_file_open(&file, settings, error);
    if (!status) {
        text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
        json = cJSON_Parse(text);
        model = cJSON_GetStringValue(
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "settings"), "model"));
        if (model)
            align_points_add(p, 0, text_format("%s", model), point_prompt(run, model, task));
        else
            status = error_set(error, EXIT_FAILED, "%s: not the settings of a run", settings);
        cJSON_Delete(json);
        free(text);
        mapped_file_close(&file);
    }
    directory = status ? NULL : opendir(steps);
    while (directory && (entry = readdir(directory))) {
        char *checkpoint = path_join(steps, entry->d_name), *config = path_join(checkpoint, "config.json");
        const char *number = strrchr(entry->d_name, '-');
        if (number && path_exists(config))
            align_points_add(p, strtod(number + 1, NULL), text_format("%s", checkpoint),
                             point_prompt(run, checkpoint, task));
        free(config);
        free(checkpoint);
    }
    if (directory) closedir(directory);
    if (!status && p->count < 2)
        status =
            error_set(error, EXIT_USAGE,
                      "%s: no models in it (a run that trains the model keeps them with --keep-checkpoints)", steps);
    if (!status) qsort(p->points, p->count, sizeof *p->points, compare_points);
    free(steps);
    free(settings);
    return status;
}

/* The alignment at one model, without a prompt and, where there is one, with it. */
static int align_point(const Options *o, Device *dev, const AlignLists *lists, AlignPoint *point, Error *error)
{
    LossSettings loss = {.label_smoothing = (float)option_real(o, OPT_PLAIN_SMOOTHING),
                         .z_loss = (float)option_real(o, OPT_Z_LOSS),
                         .scale = 1};
    size_t micro = option_size(o, OPT_ALIGN_MICRO), bytes, available;
    Prompts prompts = {0};
    Model *model = model_open(point->model, dev, option_true(o, OPT_QUIET) ? NULL : print_warning, error);
    int status = model ? 0 : -1;
    if (!status && point->prompt) status = prompts_open(&prompts, model, point->prompt, error);
    for (int with = 0; !status && with < (point->prompt ? 2 : 1); with++) {
        for (size_t i = 0; i < lists->count; i++) lists->full[i].prompt = lists->format[i].prompt = with ? 0 : -1;
        bytes = alignment_bytes(model, with ? &prompts : NULL, lists->full, lists->format, lists->count, micro);
        available = device_memory_available();
        if (available && bytes > available)
            status = error_set(error, EXIT_FAILED, "memory: align needs %.1f GB more (there are %.1f GB)",
                               (double)bytes / 1e9, (double)available / 1e9);
        if (!status)
            status = alignment(model, with ? &prompts : NULL, lists->full, lists->format, lists->count, micro, &loss,
                               with ? &point->with : &point->without, error);
    }
    prompts_free(&prompts);
    model_close(model);
    return status;
}

static cJSON *alignment_json(const Alignment *a)
{
    cJSON *json = cJSON_CreateObject();
    for (int m = 0; m < N_MODULES; m++) {
        double cosine = alignment_cosine(a, (Module)m);
        cJSON *module;
        if (!isfinite(cosine)) continue; /* this model has no such module */
        module = cJSON_AddObjectToObject(json, module_name((Module)m));
        cJSON_AddNumberToObject(module, "cosine", cosine);
        cJSON_AddNumberToObject(module, "dot", a->dot[m]);
        cJSON_AddNumberToObject(module, "full_norm", sqrt(a->full_square[m]));
        cJSON_AddNumberToObject(module, "format_norm", sqrt(a->format_square[m]));
    }
    return json;
}

static cJSON *align_results(const Options *o, const char *task, const AlignLists *lists, const AlignPoints *p)
{
    cJSON *json = cJSON_CreateObject(), *points;
    cJSON_AddStringToObject(json, "task", task);
    cJSON_AddStringToObject(json, "against", o->text[OPT_AGAINST]);
    cJSON_AddNumberToObject(json, "n", (double)lists->count);
    points = cJSON_AddArrayToObject(json, "points");
    for (size_t i = 0; i < p->count; i++) {
        cJSON *point = cJSON_CreateObject();
        cJSON_AddNumberToObject(point, "step", p->points[i].step);
        cJSON_AddStringToObject(point, "model", p->points[i].model);
        if (p->points[i].prompt) cJSON_AddStringToObject(point, "prompt", p->points[i].prompt);
        cJSON_AddItemToObject(point, "without_prompt", alignment_json(&p->points[i].without));
        if (p->points[i].prompt) cJSON_AddItemToObject(point, "with_prompt", alignment_json(&p->points[i].with));
        cJSON_AddItemToArray(points, point);
    }
    return json;
}

/* A row for each module, a column for each model. */
static void print_alignment(const AlignPoints *p, bool with)
{
    printf("%-26s", with ? "with the prompt, step" : "without a prompt, step");
    for (size_t i = 0; i < p->count; i++) printf(" %8.0f", p->points[i].step);
    putchar('\n');
    for (int m = 0; m < N_MODULES; m++) {
        bool there = false;
        for (size_t i = 0; i < p->count; i++)
            there |= isfinite(alignment_cosine(with ? &p->points[i].with : &p->points[i].without, (Module)m));
        if (!there) continue;
        printf("%-26s", module_name((Module)m));
        for (size_t i = 0; i < p->count; i++)
            printf(" %8.4f", alignment_cosine(with ? &p->points[i].with : &p->points[i].without, (Module)m));
        putchar('\n');
    }
}

/* alignment.svg, .csv, .json: a curve for each module over the steps. */
static int write_alignment_figure(const char *directory, const AlignPoints *p, bool with, Error *error)
{
    PlotSeries series[N_MODULES];
    double *numbers = host_alloc((N_MODULES + 1) * p->count, sizeof *numbers), *x = numbers;
    size_t n = 0;
    int status;
    for (size_t i = 0; i < p->count; i++) x[i] = p->points[i].step;
    for (int m = 0; m < N_MODULES; m++) {
        double *y = numbers + ((size_t)m + 1) * p->count;
        bool there = false;
        for (size_t i = 0; i < p->count; i++) {
            y[i] = alignment_cosine(with ? &p->points[i].with : &p->points[i].without, (Module)m);
            there |= isfinite(y[i]);
        }
        if (there) series[n++] = (PlotSeries){.name = module_name((Module)m), .n = p->count, .x = x, .y = y};
    }
    status = figure_write(directory, with ? "alignment_with_prompt" : "alignment",
                          &(Plot){.title = with ? "Gradient alignment with the trained prompt attached"
                                                : "Gradient alignment without a prompt",
                                  .x_label = "step",
                                  .y_label = "cosine",
                                  .caption = "The paper's Figures 3 and 7: the gradient on the task against the "
                                             "gradient on its format alone (random labels). Near 1, what is learnt "
                                             "is the format.",
                                  .y_low = -1,
                                  .y_high = 1,
                                  .count = n,
                                  .series = series},
                          error);
    free(numbers);
    return status;
}

static int align_write(const char *directory, const AlignPoints *p, const cJSON *json, Error *error)
{
    char *path = path_join(directory, "align.json"), *text = cJSON_Print(json);
    bool with = false;
    int status = directory_create(directory, error);
    for (size_t i = 0; i < p->count; i++) with |= p->points[i].prompt != NULL;
    if (!status) status = file_write_text(path, text, error);
    if (!status) status = write_alignment_figure(directory, p, false, error);
    if (!status && with) status = write_alignment_figure(directory, p, true, error);
    if (!status) status = report_write(directory, ANALYSIS_TITLE, ANALYSIS_INTRODUCTION, NULL, 0, error);
    free(text);
    free(path);
    return status;
}

/* The first --task, and with --against NAME the second one, as encoders of their training rows. */
static int align_encoders(const Options *o, const T5Config *config, const Tokenizer *tokenizer, TaskArgument *tasks,
                          size_t count, TaskEncoder *e, const TaskEncoder **other, bool *same, Error *error)
{
    const char *against = o->text[OPT_AGAINST];
    bool labels = strcmp(against, "labels") == 0;
    size_t shots;
    *same = strcmp(against, "same") == 0;
    if (parse_count(o->text[OPT_SHOTS], "shots", &shots, error)) return -1;
    if (count > 2 || (count == 2) == (labels || *same))
        return error_set(error, EXIT_USAGE, "--against %s: expected %s --task, found %zu", against,
                         labels || *same ? "one" : "a second", count);
    if (count == 2 && strcmp(against, tasks[1].name) != 0)
        return error_set(error, EXIT_USAGE, "--against: expected the second task's name %s, found %s", tasks[1].name,
                         against);
    for (size_t i = 0; i < count; i++) {
        if (!(tasks[i].data.train_rows = open_split(&tasks[i], SPLIT_TRAIN, error))) return -1;
        e[i] = task_encoder(o, config, tokenizer, &tasks[i].data, true, shots, -1);
        if (encoder_check(&e[i], error)) return -1;
    }
    *other = count == 2 ? &e[1] : NULL;
    return 0;
}

/* The examples of both gradients; with a directory also as examples.jsonl in it. */
static int align_read(const Options *o, const char *directory, AlignLists *lists, const TaskEncoder *e,
                      const TaskEncoder *other, bool same, Error *error)
{
    char *path = directory ? path_join(directory, "examples.jsonl") : NULL;
    AtomicFile *file = NULL;
    int status = directory ? directory_create(directory, error) : 0;
    if (!status && directory && !(file = atomic_file_create(path, error))) status = -1;
    if (!status)
        status = align_lists(lists, e, other, same, option_size(o, OPT_ALIGN_LIMIT),
                             random_fold(option_size(o, OPT_SEED), 600), file, error);
    if (!status && file)
        status = atomic_file_commit(file, error);
    else
        atomic_file_abandon(file);
    free(path);
    return status;
}

/* Everything once the models to look at are known. The first one's vocabulary is that of all. */
static int align_with(const Options *o, Device *dev, AlignPoints *p, TaskArgument *tasks, size_t count, Error *error)
{
    Tokenizer *tokenizer = open_tokenizer(p->points[0].model, error);
    T5Config config = {0};
    TaskEncoder e[2];
    const TaskEncoder *other = NULL;
    AlignLists lists = {0};
    bool same = false;
    char *directory = o->text[OPT_OUT]   ? text_format("%s", o->text[OPT_OUT])
                      : o->text[OPT_RUN] ? path_join(o->text[OPT_RUN], "analysis")
                                         : NULL;
    int status = tokenizer ? config_read(&config, p->points[0].model, error) : -1;
    if (!status) status = align_encoders(o, &config, tokenizer, tasks, count, e, &other, &same, error);
    if (!status) status = align_read(o, directory, &lists, &e[0], other, same, error);
    for (size_t i = 0; !status && i < p->count; i++) {
        if (!option_true(o, OPT_QUIET))
            fprintf(stderr, "step %.0f: %s%s\n", p->points[i].step, p->points[i].model,
                    p->points[i].prompt ? ", without and with the prompt" : "");
        status = align_point(o, dev, &lists, &p->points[i], error);
    }
    if (!status) {
        cJSON *json = align_results(o, tasks[0].name, &lists, p);
        bool with = false;
        for (size_t i = 0; i < p->count; i++) with |= p->points[i].prompt != NULL;
        if (directory) status = align_write(directory, p, json, error);
        if (!status && option_true(o, OPT_JSON)) {
            print_json(json);
            json = NULL;
        } else if (!status) {
            print_alignment(p, false);
            if (with) print_alignment(p, true);
        }
        cJSON_Delete(json);
    }
    align_lists_free(&lists);
    free(directory);
    free(config.json);
    tokenizer_close(tokenizer);
    return status;
}

static int command_align(Options *o, Error *error)
{
    TaskArgument *tasks = NULL;
    AlignPoints p = {0};
    Device *dev = NULL;
    size_t count = 0;
    int status = need_task(o, error);
    if (!status && !o->text[OPT_MODEL] == !o->text[OPT_RUN])
        status = error_set(error, EXIT_USAGE, "align: expected --model DIR or --run RUN, found %s",
                           o->text[OPT_RUN] ? "both" : "neither");
    if (!status && o->text[OPT_RUN] && o->text[OPT_PROMPT])
        status = error_set(error, EXIT_USAGE, "--prompt: goes with --model (a run has its own)");
    if (!status) status = parse_task_arguments(o, OPT_TASK, &tasks, &count, error);
    if (!status && o->text[OPT_RUN]) status = align_points_of_run(o->text[OPT_RUN], tasks[0].name, &p, error);
    if (!status && o->text[OPT_MODEL])
        align_points_add(&p, 0, text_format("%s", o->text[OPT_MODEL]),
                         o->text[OPT_PROMPT] ? prompt_path(o->text[OPT_PROMPT], tasks[0].name) : NULL);
    if (!status && o->text[OPT_PROMPT] && !p.points[0].prompt)
        status = error_set(error, EXIT_USAGE, "--prompt: no prompt for %s in %s", tasks[0].name, o->text[OPT_PROMPT]);
    if (!status && !(dev = device_from_options(o, error))) status = -1;
    if (!status) status = align_with(o, dev, &p, tasks, count, error);
    device_close(dev);
    align_points_free(&p);
    task_arguments_free(tasks, count);
    return status;
}

/* eval.c: promot eval: the paper's table of one model. A part of chapter 10 of promot.c, which includes it. */

/* What an evaluation measures: scores [task, number of shots, draw]. Without shots there is one draw only. */
typedef struct {
    size_t shots[MAX_SHOT_COUNTS], n_shots, n_draws;
    const TaskArgument *examples_of; /* whose examples are shown; NULL: each task's own */
    double *scores;
} ShotTable;

static size_t draws_of(const ShotTable *table, size_t s)
{
    return table->shots[s] ? table->n_draws : 1;
}

static double *score_at(const ShotTable *table, size_t task, size_t s, size_t draw)
{
    return &table->scores[(task * table->n_shots + s) * table->n_draws + draw];
}

/* --examples-of, whose training split is opened first of all: every task's inputs need it. */
static int find_examples(const Options *o, TaskArgument *tasks, size_t count, ShotTable *table, Error *error)
{
    const char *name = o->text[OPT_EXAMPLES_OF];
    if (!name) return 0;
    if (!has_shots(table->shots, table->n_shots))
        return error_set(error, EXIT_USAGE, "--examples-of: expected a number of --shots above 0, found %s",
                         o->text[OPT_SHOTS]);
    for (size_t i = 0; i < count; i++)
        if (strcmp(tasks[i].name, name) == 0) {
            table->examples_of = &tasks[i];
            return open_splits(&tasks[i], SPLIT_TEST, true, error);
        }
    return error_set(error, EXIT_USAGE, "--examples-of: expected the name of one of the tasks, found %s", name);
}

/* The examples come from the training split of `from`. When that is the very file of the rows, they have the same
 * numbers, and the row must not be shown its own answer, in whichever task's words. */
static void show_examples_of(TaskEncoder *e, const TaskArgument *task, const TaskArgument *from)
{
    const char *rows = split_path(task, SPLIT_TEST), *shown = split_path(from, SPLIT_TRAIN);
    e->shown = from->data.train_rows;
    e->same_rows = strcmp(rows, shown) == 0 && !path_is_directory(rows);
}

/* One line of a predictions file. */
static cJSON *prediction_json(const EncodedSplit *split, const Evaluation *outputs, size_t i, const char *input)
{
    const Example *row = &split->rows[i];
    References references = {(const char *const *)row->targets, row->n_targets};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", row->id);
    cJSON_AddStringToObject(json, "input", input);
    if (row->n_targets == 1)
        cJSON_AddStringToObject(json, "target", row->targets[0]);
    else
        cJSON_AddItemToObject(json, "target", cJSON_CreateStringArray(references.texts, (int)references.count));
    cJSON_AddStringToObject(json, "raw_output", outputs->raw[i]);
    cJSON_AddStringToObject(json, "processed_output", outputs->answers[i]);
    cJSON_AddNumberToObject(json, "score",
                            metric_one(task_metric(split->encoder.task), outputs->answers[i], &references));
    return json;
}

/* predictions/NAME.SHOTS.jsonl, of further draws predictions/NAME.SHOTS.draw2.jsonl, … */
static int write_predictions(const Options *o, const char *task, size_t draw, const EncodedSplit *split,
                             const Evaluation *outputs, Error *error)
{
    char *suffix = draw ? text_format(".draw%zu", draw + 1) : text_format("%s", "");
    char *name = text_format("predictions/%s.%zu%s.jsonl", task, split->encoder.shots, suffix),
         *path = path_join(o->text[OPT_OUT], name), *directory = path_join(o->text[OPT_OUT], "predictions");
    AtomicFile *file = directory_create(directory, error) ? NULL : atomic_file_create(path, error);
    int status = file ? 0 : -1;
    for (size_t i = 0; !status && i < split->count; i++) {
        char *input = NULL, *text, *line;
        cJSON *json;
        status = input_with_shots(&split->encoder, i, &split->rows[i], &input, error);
        if (status) break;
        json = prediction_json(split, outputs, i, input);
        text = cJSON_PrintUnformatted(json);
        line = text_format("%s\n", text);
        status = atomic_file_write(file, line, strlen(line), error);
        free(line);
        free(text);
        free(input);
        cJSON_Delete(json);
    }
    if (file && !status)
        status = atomic_file_commit(file, error);
    else
        atomic_file_abandon(file);
    free(directory);
    free(path);
    free(name);
    free(suffix);
    return status;
}

/* Does --prompt-tasks, or its absence, let this task have the prompt, or the LoRA? */
static bool wants_prompt(const Options *o, const char *name)
{
    return !o->text[OPT_PROMPT_TASKS] || is_listed(o->text[OPT_PROMPT_TASKS], name);
}

/* One task at number s of the numbers of shots, one draw of the examples. prompts: of this task, or NULL. */
static int eval_task(const Options *o, const Model *model, const Tokenizer *tokenizer, const Prompts *prompts,
                     Greedy *greedy, const TaskArgument *task, const ShotTable *table, size_t s, size_t draw,
                     double *score, Error *error)
{
    size_t shots = table->shots[s];
    TaskEncoder e = task_encoder(o, &model->config, tokenizer, &task->data, false, shots, prompts ? 0 : -1);
    DecodeSettings decoding = decode_settings(o, option_size(o, OPT_EVAL_MAX_LENGTH));
    Progress progress = progress_begin(option_true(o, OPT_QUIET), 0);
    EncodedSplit split;
    Evaluation outputs;
    int status;
    decoding.greedy = greedy;
    if (draw) e.seed = random_fold(e.seed, 1000 + draw);
    if (shots && table->examples_of) show_examples_of(&e, task, table->examples_of);
    if (option_size(o, OPT_SHOW)) return show_examples(task->name, &e, option_size(o, OPT_SHOW), error);
    status = encode_split(&split, &e, option_size(o, OPT_LIMIT), error);
    if (!status) {
        if (!decoding.max_length) decoding.max_length = split.longest_target + EXTRA_TOKENS;
        if (!progress.quiet)
            fprintf(stderr, "%s, %zu-shot, draw %zu: %zu examples, longest input %zu ids%s%s\n", task->name, shots,
                    draw + 1, split.count, split.longest_input, prompts ? ", with the prompt" : "",
                    o->text[OPT_LORA] && wants_prompt(o, task->name) ? ", with the LoRA" : "");
        if (split.n_cut && !progress.quiet)
            fprintf(stderr, "warning: %s: %zu examples were longer than allowed and are cut\n", task->name,
                    split.n_cut);
        status = evaluate_split(model, prompts, &split, &decoding, &progress, &outputs, error);
    }
    if (!status) {
        if (o->text[OPT_OUT]) status = write_predictions(o, task->name, draw, &split, &outputs, error);
        *score = outputs.metric.score;
        evaluation_free(&outputs);
    }
    encoded_free(&split);
    return status;
}

/* The path of a task's prompt, to be freed; NULL: it gets none. */
static char *eval_prompt_path(const Options *o, const char *name)
{
    return o->text[OPT_PROMPT] && wants_prompt(o, name) ? prompt_path(o->text[OPT_PROMPT], name) : NULL;
}

/* Norm. Avg. of the paper: the plain mean over the tasks that were not trained on, which are those without a prompt. */
static bool is_averaged(const Options *o, const char *name)
{
    char *prompt;
    bool prompted;
    if (o->text[OPT_NORM_AVG_OVER]) return is_listed(o->text[OPT_NORM_AVG_OVER], name);
    if (o->text[OPT_LORA] && wants_prompt(o, name)) return false;
    prompt = eval_prompt_path(o, name);
    prompted = prompt != NULL;
    free(prompt);
    return !prompted;
}

/* Adds NAME: the mean of n numbers to `means`, and, of several, {"sd", "draws"} to `spreads`. */
static void add_mean(cJSON *means, cJSON *spreads, const char *name, const double *x, size_t n)
{
    double mean = 0, squares = 0;
    cJSON *spread;
    for (size_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    cJSON_AddNumberToObject(means, name, mean);
    if (n < 2) return;
    spread = cJSON_AddObjectToObject(spreads, name);
    cJSON_AddNumberToObject(spread, "sd", sqrt(squares / (double)(n - 1)));
    cJSON_AddItemToObject(spread, "draws", cJSON_CreateDoubleArray(x, (int)n));
}

/* results.json. */
static cJSON *eval_results(const Options *o, const TaskArgument *tasks, size_t count, const ShotTable *table)
{
    cJSON *json = cJSON_CreateObject(), *of_tasks = cJSON_AddObjectToObject(json, "tasks"),
          *average = cJSON_AddObjectToObject(json, "norm_avg"), *average_spread = cJSON_CreateObject();
    double *means = host_alloc(table->n_draws, sizeof *means);
    size_t limit = option_size(o, OPT_LIMIT);
    char name[16];
    for (size_t i = 0; i < count; i++) {
        cJSON *task = cJSON_AddObjectToObject(of_tasks, tasks[i].name), *row, *spread = cJSON_CreateObject();
        size_t n = dataset_count(tasks[i].data.rows);
        cJSON_AddStringToObject(task, "metric", metric_name(task_metric(tasks[i].task)));
        cJSON_AddNumberToObject(task, "n", (double)(limit ? min_size(limit, n) : n));
        row = cJSON_AddObjectToObject(task, "scores");
        for (size_t s = 0; s < table->n_shots; s++) {
            snprintf(name, sizeof name, "%zu", table->shots[s]);
            add_mean(row, spread, name, score_at(table, i, s, 0), draws_of(table, s));
        }
        if (table->n_draws > 1)
            cJSON_AddItemToObject(task, "spread", spread);
        else
            cJSON_Delete(spread);
    }
    for (size_t s = 0; s < table->n_shots; s++) {
        size_t averaged = 0;
        memset(means, 0, table->n_draws * sizeof *means);
        for (size_t i = 0; i < count; i++) averaged += is_averaged(o, tasks[i].name);
        for (size_t i = 0; i < count; i++)
            for (size_t d = 0; is_averaged(o, tasks[i].name) && d < draws_of(table, s); d++)
                means[d] += *score_at(table, i, s, d) / (double)averaged;
        snprintf(name, sizeof name, "%zu", table->shots[s]);
        if (averaged) add_mean(average, average_spread, name, means, draws_of(table, s));
    }
    if (table->n_draws > 1)
        cJSON_AddItemToObject(json, "norm_avg_spread", average_spread);
    else
        cJSON_Delete(average_spread);
    free(means);
    return json;
}

/* A row of the table: a score for each number of shots, with its spread over the draws. */
static void print_scores(const cJSON *scores, const cJSON *spreads, bool with_spread)
{
    const cJSON *score;
    cJSON_ArrayForEach(score, scores)
    {
        const cJSON *spread = cJSON_GetObjectItemCaseSensitive(spreads, score->string);
        printf("  %7.2f", score->valuedouble);
        if (spread)
            printf(" ± %-5.2f", cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(spread, "sd")));
        else if (with_spread)
            printf("%8s", "");
    }
    putchar('\n');
}

static void print_eval_table(const ShotTable *table, const cJSON *json)
{
    const cJSON *task, *average = cJSON_GetObjectItemCaseSensitive(json, "norm_avg"),
                       *average_spread = cJSON_GetObjectItemCaseSensitive(json, "norm_avg_spread");
    bool with_spread = table->n_draws > 1;
    printf("%-16s %-10s %6s", "task", "metric", "n");
    for (size_t s = 0; s < table->n_shots; s++) printf("  %2zu-shot%s", table->shots[s], with_spread ? "        " : "");
    putchar('\n');
    cJSON_ArrayForEach(task, cJSON_GetObjectItemCaseSensitive(json, "tasks"))
    {
        printf("%-16s %-10s %6.0f", task->string,
               cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(task, "metric")),
               cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(task, "n")));
        print_scores(cJSON_GetObjectItemCaseSensitive(task, "scores"), cJSON_GetObjectItemCaseSensitive(task, "spread"),
                     with_spread);
    }
    if (!average->child) return;
    printf("%-16s %-10s %6s", "Norm. Avg.", "", "");
    print_scores(average, average_spread, with_spread);
}

static int eval_finish(const Options *o, const TaskArgument *tasks, size_t count, const ShotTable *table, Error *error)
{
    cJSON *json = eval_results(o, tasks, count, table);
    char *path, *text;
    int status = 0;
    if (o->text[OPT_OUT]) {
        path = path_join(o->text[OPT_OUT], "results.json");
        text = cJSON_Print(json);
        status = file_write_text(path, text, error);
        free(text);
        free(path);
    }
    if (!status && option_true(o, OPT_JSON)) {
        print_json(json);
        return 0;
    }
    if (!status) print_eval_table(table, json);
    cJSON_Delete(json);
    return status;
}

static int check_task_list(const Options *o, OptionId id, const TaskArgument *tasks, size_t count, Error *error)
{
    for (const char *at = o->text[id]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char *name = text_format("%.*s", (int)strcspn(at, ","), at);
        bool known = false;
        for (size_t i = 0; i < count; i++) known |= strcmp(tasks[i].name, name) == 0;
        if (!known)
            error_set(error, EXIT_USAGE, "--%s: expected names of the given tasks, found %s", option_table[id].name,
                      name);
        free(name);
        if (!known) return -1;
    }
    return 0;
}

/* A --prompt that no task gets, or that a named task lacks, is a slip. */
static int check_prompts(const Options *o, const TaskArgument *tasks, size_t count, Error *error)
{
    size_t found = 0;
    for (size_t i = 0; o->text[OPT_PROMPT] && i < count; i++) {
        char *path = eval_prompt_path(o, tasks[i].name);
        bool missing = !path && o->text[OPT_PROMPT_TASKS] && wants_prompt(o, tasks[i].name);
        found += path != NULL;
        free(path);
        if (missing)
            return error_set(error, EXIT_USAGE, "--prompt: no prompt for %s in %s", tasks[i].name, o->text[OPT_PROMPT]);
    }
    if (o->text[OPT_PROMPT] && !found)
        return error_set(error, EXIT_USAGE, "--prompt: no prompt for any of the tasks in %s", o->text[OPT_PROMPT]);
    return 0;
}

/* A task at all numbers of shots and all draws. */
static int eval_one(const Options *o, const Model *model, const Tokenizer *tokenizer, TaskArgument *tasks, size_t i,
                    const ShotTable *table, Error *error)
{
    Prompts prompts = {0};
    Greedy greedy = {0};
    char *path = eval_prompt_path(o, tasks[i].name);
    int status = 0;
    if (o->text[OPT_LORA] && wants_prompt(o, tasks[i].name))
        lora_merge(model);
    else
        lora_unmerge(model);
    if (!tasks[i].data.rows)
        status =
            open_splits(&tasks[i], SPLIT_TEST, has_shots(table->shots, table->n_shots) && !table->examples_of, error);
    if (!status && path) status = prompts_open(&prompts, model, path, error);
    for (size_t s = 0; !status && s < table->n_shots; s++)
        for (size_t d = 0; !status && d < draws_of(table, s); d++)
            status = eval_task(o, model, tokenizer, path ? &prompts : NULL, &greedy, &tasks[i], table, s, d,
                               score_at(table, i, s, d), error);
    greedy_free(&greedy);
    prompts_free(&prompts);
    free(path);
    return status;
}

/* --out. The predictions of an earlier evaluation there, whose results this one replaces, go. */
static int eval_make_directory(const Options *o, Error *error)
{
    char *results = path_join(o->text[OPT_OUT], "results.json"),
         *predictions = path_join(o->text[OPT_OUT], "predictions");
    int status = directory_create(o->text[OPT_OUT], error);
    if (!status && path_exists(results)) status = directory_remove(predictions, error);
    free(results);
    free(predictions);
    return status;
}

static int eval_with(const Options *o, const Model *model, const Tokenizer *tokenizer, Error *error)
{
    TaskArgument *tasks = NULL;
    size_t count = 0;
    ShotTable table = {.n_draws = option_size(o, OPT_DRAWS)};
    int status = parse_task_arguments(o, OPT_TASK, &tasks, &count, error);
    if (!status) status = parse_shots(o, OPT_SHOTS, table.shots, &table.n_shots, error);
    if (!status) status = check_task_list(o, OPT_PROMPT_TASKS, tasks, count, error);
    if (!status) status = check_task_list(o, OPT_NORM_AVG_OVER, tasks, count, error);
    if (!status) status = check_prompts(o, tasks, count, error);
    if (!status) status = find_examples(o, tasks, count, &table, error);
    if (!status && o->text[OPT_OUT] && !option_size(o, OPT_SHOW)) status = eval_make_directory(o, error);
    if (!status) table.scores = host_alloc(count * table.n_shots * table.n_draws, sizeof *table.scores);
    for (size_t i = 0; !status && i < count; i++) status = eval_one(o, model, tokenizer, tasks, i, &table, error);
    if (!status && !option_size(o, OPT_SHOW)) status = eval_finish(o, tasks, count, &table, error);
    free(table.scores);
    task_arguments_free(tasks, count);
    return status;
}

static int command_eval(Options *o, Error *error)
{
    Device *dev = NULL;
    Model *model = NULL;
    Tokenizer *tokenizer = NULL;
    int status;
    if (o->n_list[OPT_COMPARE]) return compare_runs(o, error);
    status = option_need(o, OPT_MODEL, error);
    if (!status) status = need_task(o, error);
    if (!status && o->text[OPT_PROMPT_TASKS] && !o->text[OPT_PROMPT] && !o->text[OPT_LORA])
        status = error_set(error, EXIT_USAGE, "--prompt-tasks: expected a --prompt or --lora");
    if (!status && !(dev = device_from_options(o, error))) status = -1;
    if (!status && !(tokenizer = open_tokenizer(o->text[OPT_MODEL], error))) status = -1;
    if (!status && !(model = open_model(o, dev, error))) status = -1;
    if (!status && o->text[OPT_LORA]) status = lora_open(model, o->text[OPT_LORA], error);
    if (!status) status = eval_with(o, model, tokenizer, error);
    tokenizer_close(tokenizer);
    model_close(model);
    device_close(dev);
    return status;
}

/* tasks.c: the tasks of a command line: --task, --probe and --show, as train, eval and align have them. A part of
 * chapter 10 of promot.c, which includes it. */

/* One --task: its name, and where its splits are. */
typedef struct {
    char *name;
    const char *option; /* "task" or "probe" */
    const char *path, *train, *dev, *test;
    Task *task;
    TaskData data;
} TaskArgument;

static void task_arguments_free(TaskArgument *tasks, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        task_data_free(&tasks[i].data);
        task_free(tasks[i].task);
        free(tasks[i].name);
    }
    free(tasks);
}

/* The task of a name: an own one from a --task-file that has this name, or a built-in one. */
static Task *find_task(const Options *o, const char *name, Error *error)
{
    for (size_t i = 0; i < o->n_list[OPT_TASK_FILE]; i++) {
        Task *task = task_from_file(o->list[OPT_TASK_FILE][i], error);
        if (!task || strcmp(task_name(task), name) == 0) return task;
        task_free(task);
    }
    return task_builtin(name, error);
}

/* The place that an argument's name fills: of NAME its path, of NAME.train, NAME.dev and NAME.test a split's file.
 * *length: of NAME. */
static const char **argument_place(TaskArgument *task, const char *name, size_t *length)
{
    static const char *const endings[] = {".train", ".dev", ".test"};
    const char **places[] = {&task->train, &task->dev, &task->test}, *dot = strrchr(name, '.');
    *length = strlen(name);
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0) {
            *length = (size_t)(dot - name);
            return places[i];
        }
    return &task->path;
}

static int need_task(const Options *o, Error *error)
{
    if (o->n_list[OPT_TASK]) return 0;
    return error_set(error, EXIT_USAGE, "%s: --task NAME=PATH is needed", o->command);
}

/* NAME=PATH, NAME.train=FILE, NAME.dev=FILE or NAME.test=FILE, as --task and --probe have them: one TaskArgument for
 * each NAME, in the order of the command line. */
static int parse_task_arguments(const Options *o, OptionId id, TaskArgument **tasks, size_t *count, Error *error)
{
    enum { LONGEST_NAME = 100 };
    const char *option = option_table[id].name;
    *tasks = host_alloc(o->n_list[id], sizeof **tasks);
    *count = 0;
    for (size_t i = 0; i < o->n_list[id]; i++) {
        const char *argument = o->list[id][i], *equals = strchr(argument, '='), **place;
        TaskArgument *task = NULL;
        size_t length;
        char *name;
        if (!equals || equals == argument || !equals[1])
            return error_set(error, EXIT_USAGE, "--%s: expected NAME=PATH, found %s", option, argument);
        name = text_format("%.*s", (int)(equals - argument), argument);
        argument_place(&(TaskArgument){0}, name, &length);
        for (size_t t = 0; t < *count; t++)
            if (strlen((*tasks)[t].name) == length && strncmp((*tasks)[t].name, name, length) == 0) task = &(*tasks)[t];
        if (!task) {
            task = &(*tasks)[(*count)++];
            task->name = text_format("%.*s", (int)length, name);
            task->option = option;
        }
        place = argument_place(task, name, &length);
        free(name);
        if (*place)
            return error_set(error, EXIT_USAGE, "--%s: expected each split of a task once, found %s again", option,
                             argument);
        *place = equals + 1;
        if (strchr(task->name, '/') || strlen(task->name) > LONGEST_NAME || task->name[0] == '.')
            return error_set(error, EXIT_USAGE, "--%s: expected a name that can be a directory's, found %s", option,
                             task->name);
        if (!task->task && !(task->task = find_task(o, task->name, error))) return -1;
        task->data.name = task->name;
        task->data.task = task->task;
    }
    return 0;
}

/* The file of a split, or where it is looked for; NULL: nothing says it. */
static const char *split_path(const TaskArgument *task, Split split)
{
    const char *named = split == SPLIT_TRAIN ? task->train : split == SPLIT_TEST && task->test ? task->test : task->dev;
    return named ? named : task->path;
}

static Dataset *open_split(const TaskArgument *task, Split split, Error *error)
{
    const char *path = split_path(task, split);
    if (!path) {
        error_set(error, EXIT_USAGE, "--%s: %s.%s=FILE is needed%s (or %s=PATH)", task->option, task->name,
                  split == SPLIT_TRAIN ? "train" : "dev", split == SPLIT_TRAIN ? " to draw worked examples from" : "",
                  task->name);
        return NULL;
    }
    return dataset_open(task->task, path, split, error);
}

/* Opens the split that is scored and, when it is needed, the training split. A file given as NAME=FILE is both, and is
 * opened once, so that no example is shown in front of itself. */
static int open_splits(TaskArgument *task, Split scored, bool needs_train, Error *error)
{
    const char *named = scored == SPLIT_TEST && task->test ? task->test : task->dev;
    bool one_file = !named && !task->train && task->path && path_exists(task->path) && !path_is_directory(task->path);
    if (!(task->data.rows = open_split(task, scored, error))) return -1;
    if (one_file)
        task->data.train_rows = task->data.rows;
    else if (needs_train && !(task->data.train_rows = open_split(task, SPLIT_TRAIN, error)))
        return -1;
    return 0;
}

/* How a command encodes a task's rows: the training split's, or those that are scored. */
static TaskEncoder task_encoder(const Options *o, const T5Config *config, const Tokenizer *tokenizer,
                                const TaskData *data, bool training, size_t shots, int prompt)
{
    size_t max_input = option_size(o, OPT_MAX_INPUT);
    return (TaskEncoder){.task = data->task,
                         .rows = training ? data->train_rows : data->rows,
                         .shown = shots ? data->train_rows : NULL,
                         .same_rows = training || data->train_rows == data->rows,
                         .tokenizer = tokenizer,
                         .config = config,
                         .max_input = max_input ? max_input : task_max_input(data->task),
                         .max_target = option_size(o, OPT_MAX_TARGET),
                         .shots = shots,
                         .separator = o->text[OPT_SEPARATOR],
                         .ending = o->text[OPT_ENDING],
                         .seed = random_fold(option_size(o, OPT_SEED), 200),
                         .prompt = prompt};
}

/* --show N: the first rows exactly as the model will see them, one JSON object a line. */
static int show_examples(const char *name, const TaskEncoder *e, size_t n, Error *error)
{
    int status = encoder_check(e, error);
    for (size_t i = 0; !status && i < n && i < dataset_count(e->rows); i++) {
        Example row;
        TokenExample ids = {0};
        char *input = NULL;
        bool cut;
        cJSON *json = cJSON_CreateObject();
        int32_t *full = NULL;
        size_t full_length = 0;
        status = dataset_get(e->rows, i, &row, error);
        if (status) {
            cJSON_Delete(json);
            break;
        }
        status = encode_row(e, i, &row, &ids, &cut, error);
        if (!status) status = input_with_shots(e, i, &row, &input, error);
        if (!status) status = tokenizer_encode(e->tokenizer, input, strlen(input), &full, &full_length, error);
        if (!status) {
            cJSON_AddStringToObject(json, "task", name);
            cJSON_AddStringToObject(json, "id", row.id);
            cJSON_AddStringToObject(json, "input", input);
            cJSON_AddItemToObject(json, "targets",
                                  cJSON_CreateStringArray((const char *const *)row.targets, (int)row.n_targets));
            cJSON_AddItemToObject(json, "input_ids", cJSON_CreateIntArray(ids.input, (int)ids.input_length));
            cJSON_AddItemToObject(json, "target_ids", cJSON_CreateIntArray(ids.target, (int)ids.target_length));
            cJSON_AddNumberToObject(json, "input_ids_cut", (double)(full_length + 1 - ids.input_length));
            print_json(cJSON_Duplicate(json, true));
        }
        cJSON_Delete(json);
        example_free(&row);
        token_example_free(&ids);
        free(input);
        free(full);
    }
    return status;
}

static int parse_count(const char *text, const char *name, size_t *out, Error *error)
{
    const Option number = {.name = name, .kind = WHOLE, .least = 0, .most = 1000};
    if (option_check(&number, text, error)) return -1;
    *out = (size_t)strtod(text, NULL);
    return 0;
}

enum { MAX_SHOT_COUNTS = 16 };

/* Numbers of worked examples, each once, as --shots of eval and --probe-shots have them: 0,1,4. */
static int parse_shots(const Options *o, OptionId id, size_t shots[MAX_SHOT_COUNTS], size_t *count, Error *error)
{
    const char *option = option_table[id].name;
    *count = 0;
    for (const char *at = o->text[id]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char *one = text_format("%.*s", (int)strcspn(at, ","), at);
        int status = *count == MAX_SHOT_COUNTS
                         ? error_set(error, EXIT_USAGE, "--%s: expected at most %d numbers", option, MAX_SHOT_COUNTS)
                         : parse_count(one, option, &shots[(*count)++], error);
        free(one);
        for (size_t s = 0; !status && s + 1 < *count; s++)
            if (shots[s] == shots[*count - 1])
                status =
                    error_set(error, EXIT_USAGE, "--%s: expected each number once, found %zu again", option, shots[s]);
        if (status) return -1;
    }
    return 0;
}

/* Is any of the numbers above 0, so that a training split is needed? */
static bool has_shots(const size_t *shots, size_t count)
{
    bool some = false;
    for (size_t s = 0; s < count; s++) some |= shots[s] > 0;
    return some;
}

/* Is `name` one of a comma-separated list? */
static bool is_listed(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strcspn(at, ",") == length && strncmp(at, name, length) == 0) return true;
    return false;
}

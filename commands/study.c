/* study.c: promot study: the paper's claim in miniature, from training to the report. A part of chapter 10 of promot.c,
 * which includes it. study_jobs.c has what is run, study_results.c what is read from it. */

/* A directory of data/demo: as seen from here, or in the checkout where the program was built, however it was called
 * (through PATH, or a link). To be freed. */
static char *demo_path(const Options *o, const char *name)
{
    static const char *const CHECKOUT[] = {".", "..", "../.."}; /* from promot, build/promot, build/sanitized/promot */
    char *here = path_join("data/demo", name), *program = NULL, *there = NULL;
    if (path_exists(here)) return here;
#ifdef __linux__
    program = realpath("/proc/self/exe", NULL);
#endif
    if (!program) program = realpath(o->program, NULL);
    if (program) *strrchr(program, '/') = '\0';
    for (size_t i = 0; program && !there && i < sizeof CHECKOUT / sizeof *CHECKOUT; i++) {
        there = text_format("%s/%s/%s", program, CHECKOUT[i], here);
        if (path_exists(there)) break;
        free(there);
        there = NULL;
    }
    free(program);
    if (!there) return here;
    free(here);
    return there;
}

/* How many commands run at a time: --threads, or one for each core. */
static size_t study_width(const Options *o, Error *error)
{
    Device *dev = device_open((int)option_size(o, OPT_THREADS), MATMUL_FP32, error);
    size_t width = dev ? (size_t)device_threads(dev) : 0;
    device_close(dev);
    return width;
}

/* A pretrained model that can be read whole, and is none of those before it. */
static int study_check_model(const Study *s, size_t base, Device *dev, Error *error)
{
    Tokenizer *tokenizer = open_tokenizer(s->bases[base], error);
    Model *model = tokenizer ? model_open(s->bases[base], dev, s->quiet ? NULL : print_warning, error) : NULL;
    struct stat this, other;
    int status = model ? 0 : -1;
    for (size_t b = 0; !status && b < base; b++)
        if (stat(s->bases[base], &this) == 0 && stat(s->bases[b], &other) == 0 && this.st_dev == other.st_dev &&
            this.st_ino == other.st_ino)
            status = error_set(error, EXIT_USAGE, "--model: %s and %s are the same model", s->bases[b], s->bases[base]);
    model_close(model);
    tokenizer_close(tokenizer);
    return status;
}

/* A task with its three splits. trained: the one in RTE's layout, whose test rows are named as its dev split. */
static int study_check_task(const Study *s, const char *name, bool trained, Error *error)
{
    char *path = path_join(s->tasks, name), *description = text_format("%s.json", path),
         *test = path_join(path, "test.jsonl");
    Task *task = NULL;
    int status = 0;
    if (!path_is_directory(path))
        status = error_set(error, EXIT_USAGE, "%s: no such directory of task files (--tasks DIR)", path);
    else if (!trained && !path_exists(description))
        status = error_set(error, EXIT_USAGE, "%s: no such description of a task (--tasks DIR)", description);
    if (!status && !(task = trained ? task_builtin("rte", error) : task_from_file(description, error))) status = -1;
    for (Split split = SPLIT_TRAIN; !status && split <= SPLIT_TEST; split++) {
        bool as_dev = trained && split == SPLIT_TEST;
        Dataset *rows = dataset_open(task, as_dev ? test : path, as_dev ? SPLIT_DEV : split, error);
        if (!rows) status = -1;
        dataset_close(rows);
    }
    task_free(task);
    free(test);
    free(description);
    free(path);
    return status;
}

/* What a study needs is looked for before anything begins, so that a slip is told in one line. */
static int study_check(const Study *s, Error *error)
{
    Device *dev = device_open(1, MATMUL_FP32, error);
    int status = dev ? 0 : -1;
    for (size_t b = 0; !status && b < s->n_bases; b++) status = study_check_model(s, b, dev, error);
    for (size_t i = 0; !status && i < N_STUDY_TASKS; i++)
        status = study_check_task(s, STUDY_TASKS[i].name, false, error);
    device_close(dev);
    return status ? status : study_check_task(s, "nli", true, error);
}

static int study_begin(const Options *o, const Study *s, int *lock, Error *error)
{
    char *logs = path_join(s->out, "logs");
    *lock = run_begin(o, (int)s->at_once, s->resumed, error);
    if (*lock >= 0 && directory_create(logs, error)) {
        close(*lock);
        *lock = -1;
    }
    free(logs);
    return *lock < 0 ? -1 : 0;
}

static int study_with(const Options *o, Study *s, Error *error)
{
    int lock = -1, status = study_check(s, error);
    cJSON *results = NULL;
    if (!status) status = study_begin(o, s, &lock, error);
    study_plan(s);
    for (size_t i = 0; i < s->n_jobs; i++)
        if (job_is_done(s, &s->jobs[i])) s->jobs[i].state = FINISHED;
    s->begun = seconds_now();
    if (!status) status = study_record_commands(s, error);
    if (!status) status = study_run(s, error);
    if (!status) status = study_results(s, &results, error);
    if (!status) status = study_write(s, &results, error);
    if (!status && option_true(o, OPT_JSON)) {
        print_json(results);
        results = NULL;
    } else if (!status) {
        status = study_print(s, results, error);
    }
    cJSON_Delete(results);
    if (lock >= 0) close(lock);
    free(s->jobs);
    return status;
}

/* What was not given is found beside the program. The run records where: a resumption works on the same. The
 * texts are to be freed when the options are read no more. */
static void study_defaults(Options *o, char **model, char **tasks)
{
    *model = demo_path(o, "model");
    *tasks = demo_path(o, "tasks");
    if (!o->n_list[OPT_STUDY_MODEL]) {
        o->list[OPT_STUDY_MODEL] = host_grow(o->list[OPT_STUDY_MODEL], 1, sizeof **o->list);
        o->list[OPT_STUDY_MODEL][0] = *model;
        o->n_list[OPT_STUDY_MODEL] = 1;
    }
    if (!o->text[OPT_TASKS]) o->text[OPT_TASKS] = *tasks;
}

static int command_study(Options *o, Error *error)
{
    cJSON *recorded = NULL;
    bool resumed = false;
    int status = ON_A_CARD ? error_set(error, EXIT_USAGE,
                                       "study: its runs are processes side by side, which do not share "
                                       "a card (expected a CPU build)")
                           : run_find(o, &resumed, error);
    char *tasks, *model, *out;
    if (!status && resumed) status = resume_options(o, &recorded, error);
    if (!status) {
        size_t seeds = option_size(o, OPT_SEEDS);
        Study s = {.program = o->program,
                   .out = out = text_format("%s", o->text[OPT_OUT]),
                   .full = option_true(o, OPT_FULL),
                   .first_seed = option_size(o, OPT_SEED),
                   .at_once = study_width(o, error),
                   .quiet = option_true(o, OPT_QUIET),
                   .bf16 = strcmp(o->text[OPT_DTYPE], "bf16") == 0,
                   .resumed = resumed};
        for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) out[n - 1] = '\0';
        study_defaults(o, &model, &tasks);
        s.bases = o->list[OPT_STUDY_MODEL];
        s.n_bases = o->n_list[OPT_STUDY_MODEL];
        s.tasks = o->text[OPT_TASKS];
        s.n_seeds = seeds ? seeds : s.full ? SEEDS_OF_FULL : SEEDS_OF_DEMO;
        status = s.at_once ? study_with(o, &s, error) : -1;
        free(tasks);
        free(model);
        free(out);
    }
    cJSON_Delete(recorded);
    return status;
}

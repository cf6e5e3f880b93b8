/* study.c: promot study: the paper's claim in miniature, from training to the report. A part of chapter 10 of promot.c,
 * which includes it. study_jobs.c has what is run, study_results.c what is read from it. */

/* A directory of data/demo: as seen from here, or from where the program is. To be freed. */
static char *demo_path(const Options *o, const char *name)
{
    char *here = path_join("data/demo", name), *beside;
    const char *slash = strrchr(o->program, '/');
    if (path_exists(here) || !slash) return here;
    beside = text_format("%.*s/%s", (int)(slash - o->program), o->program, here);
    free(here);
    return beside;
}

/* How many commands run at a time: --threads, or one for each core. */
static size_t study_width(const Options *o, Error *error)
{
    Device *dev = device_open((int)option_size(o, OPT_THREADS), MATMUL_FP32, error);
    size_t width = dev ? (size_t)device_threads(dev) : 0;
    device_close(dev);
    return width;
}

/* What a study needs is looked for before anything begins, so that a slip is told in one line. */
static int study_check(const Study *s, Error *error)
{
    int status = 0;
    for (size_t b = 0; !status && b < s->n_bases; b++) {
        Tokenizer *tokenizer = open_tokenizer(s->bases[b], error);
        T5Config config = {0};
        status = tokenizer ? config_read(&config, s->bases[b], error) : -1;
        free(config.json);
        tokenizer_close(tokenizer);
    }
    for (size_t i = 0; !status && i <= N_STUDY_TASKS; i++) {
        const char *name = i < N_STUDY_TASKS ? STUDY_TASKS[i].name : "nli";
        char *path = path_join(s->tasks, name);
        char *description = text_format("%s.json", path);
        if (!path_is_directory(path))
            status = error_set(error, EXIT_USAGE, "%s: no such directory of task files (--tasks DIR)", path);
        else if (i < N_STUDY_TASKS && !path_exists(description))
            status = error_set(error, EXIT_USAGE, "%s: no such description of a task (--tasks DIR)", description);
        free(description);
        free(path);
    }
    return status;
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
    bool resumed;
    int status = run_find(o, &resumed, error);
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

/* study_jobs.c: the commands of promot study, and the processes that run them. A part of chapter 10 of promot.c, which
 * includes it.
 *
 * The study is nothing but promot commands on files, the ones that a user would type for a task of their own: the
 * tables STUDY_METHODS and STUDY_PARTS hold them, and OUT/commands.sh what became of them for the first seed. Each runs
 * as a process of its own, a fork of this one that calls the same functions, with one thread; as many run at a time as
 * there are cores. (Small models use two cores better as two processes, and no result depends on the threads.) Then
 * study_results.c reads what they wrote. */

/* What is not trained: the tasks of the held-out average, and last one more, which is related to the trained one: what
 * training teaches about it can show there. */
static const struct {
    const char *name, *about;
} STUDY_TASKS[] = {
    {"qa", "questions about what the model was told in pretraining"},
    {"cqa", "questions about a text"},
    {"fr", "translation into a toy French"},
    {"de", "translation into a toy German"},
    {"summary", "a text in one sentence"},
    {"map_french", "a phrase in French: told by its examples only"},
    {"map_category", "what kind of thing a phrase names: told by its examples only"},
    {"map_adjective", "a phrase's adjective: told by its examples only"},
    {"yesno", "does a statement follow, yes or no"},
    {"nli_reworded", "the trained task in another template, as CB is to RTE in the paper"},
};
enum { N_STUDY_TASKS = sizeof STUDY_TASKS / sizeof *STUDY_TASKS, N_HELDOUT = N_STUDY_TASKS - 1 };
static const char STUDY_EXAMPLES_OF[] = "cqa";
enum { SEEDS_OF_DEMO = 3, SEEDS_OF_FULL = 10 };

/* The second rule for a checkpoint, beside "the last one": the first with this dev accuracy. */
static const double FIRST_RULE = 99;

/* The settings of everything that tunes the model: the same steps, data and checkpoints for all methods. */
#define STUDY_TUNING                                                                                                   \
    "--batch 32 --label-smoothing 0 --lr 0.01 --schedule linear --steps 100 --checkpoint-every 10 --beams 1"
#define STUDY_PAPER "--batch 32 --lr 0.001 --steps 1000 --checkpoint-every 100 --beams 1"

/* How all tasks are asked along training: by few rows of each, or it would take longer than the training. */
#define STUDY_PROBES "--probe-trained --probe-shots 1,0,4 --probe-limit"
enum { PROBE_ROWS = 25 };

/* How each method trains. Places in braces are filled by study_fill. after: the method whose run it needs. */
typedef enum {
    PRETRAINED,
    FINETUNE,
    PROMPT_TUNING,
    PROMOT,
    RANDOM_PROMPT,
    JOINT,
    PAPER_FINETUNE,
    PAPER_PROMOT,
    N_METHODS
} StudyMethod;
static const struct {
    const char *name, *label;
    const char *train; /* NULL: nothing is trained */
    StudyMethod after;
    bool full; /* a part of the full study only */
    bool tunes_model;
} STUDY_METHODS[N_METHODS] = {
    [PRETRAINED] = {"pretrained", "before tuning", NULL, PRETRAINED, false, false},
    [FINETUNE] = {"finetune", "plain fine-tuning", "--method finetune " STUDY_TUNING, PRETRAINED, false, true},
    [PROMPT_TUNING] = {"prompt", "prompt tuning",
                       "--method prompt --batch 32 --prompt-length 10 --prompt-lr 0.2 --prompt-schedule linear "
                       "--prompt-steps 300 --prompt-checkpoint-every 100 --prompt-dropout 0 --prompt-weight-decay 0 "
                       "--beams 1",
                       PRETRAINED, false, false},
    [PROMOT] = {"promot", "ProMoT", "--method promot --prompt {dir}/prompt/prompt/rte " STUDY_TUNING, PROMPT_TUNING,
                false, true},
    [RANDOM_PROMPT] = {"random-prompt", "random prompt", "--method random-prompt --prompt-length 10 " STUDY_TUNING,
                       PRETRAINED, true, true},
    [JOINT] = {"joint", "joint", "--method joint --prompt-length 10 " STUDY_TUNING, PRETRAINED, true, true},
    [PAPER_FINETUNE] = {"paper-finetune", "fine-tuning, paper's settings", "--method finetune " STUDY_PAPER, PRETRAINED,
                        true, true},
    [PAPER_PROMOT] = {"paper-promot", "ProMoT, paper's settings",
                      "--method promot --prompt {dir}/prompt/prompt/rte " STUDY_PAPER, PROMPT_TUNING, true, true},
};

/* What is done for each method and seed. Held-out tasks are asked without a prompt, and in the form that the model was
 * pretrained in: with a sentinel where the answer belongs. The trained one's test rows are named as its dev split, for
 * that is the one that `eval` scores of RTE, whose test rows have no labels in SuperGLUE. done: the file that is there
 * when the part is. */
typedef enum { TRAIN, TARGET, HELDOUT, FIRST_TARGET, FIRST_HELDOUT, OTHER_EXAMPLES, ALIGN, N_PARTS } StudyPart;
static const struct {
    const char *label, *command, *out, *done;
} STUDY_PARTS[N_PARTS] = {
    [TRAIN] = {"training", "train --model {base} --task rte={tasks}/nli --keep-checkpoints", "{dir}/{method}", "DONE"},
    [TARGET] = {"the trained task",
                "eval --model {model} --task rte.train={tasks}/nli/train.jsonl --task rte.dev={tasks}/nli/test.jsonl "
                "--shots 0,1,4 --beams 1",
                "{dir}/eval/{method}/target", "results.json"},
    [HELDOUT] = {"held-out tasks", "eval --model {model} --shots 0,1,4 --beams 1", "{dir}/eval/{method}/heldout",
                 "results.json"},
    [FIRST_TARGET] = {"the trained task, when first learnt",
                      "eval --model {model} --task rte.dev={tasks}/nli/test.jsonl --shots 0 --beams 1",
                      "{dir}/eval/{method}/first_target", "results.json"},
    [FIRST_HELDOUT] = {"held-out tasks, when the trained one was first learnt",
                       "eval --model {model} --shots 1 --beams 1", "{dir}/eval/{method}/first_heldout", "results.json"},
    [OTHER_EXAMPLES] = {"held-out tasks, with examples of another task",
                        "eval --model {model} --shots 1 --beams 1 --examples-of {other}",
                        "{dir}/eval/{method}/other_examples", "results.json"},
    [ALIGN] = {"gradient alignment", "align --run {dir}/{method} --task rte={tasks}/nli --limit 64",
               "{dir}/{method}/analysis", "align.json"},
};

typedef enum { WAITING, RUNNING, FINISHED, LEFT_OUT } JobState;
typedef struct {
    StudyPart part;
    StudyMethod method;
    size_t base, seed;
    int after; /* the number of the job that must come first; -1: none */
    JobState state;
    pid_t process;
    double begun, seconds;
} StudyJob;

typedef struct {
    const char *program; /* as it was called: what commands.sh calls */
    const char *out, *tasks;
    const char *const *bases; /* [n_bases] pretrained models; the first is the one that everything is done with */
    size_t n_bases, n_seeds, first_seed, at_once;
    bool full, quiet, resumed, bf16;
    StudyJob *jobs; /* [n_jobs] */
    size_t n_jobs;
    double begun;
} Study;

/* --- from the tables to commands */

/* A text of the tables with its places filled in; to be freed. model: what stands for {model}, or NULL. */
static char *study_fill(const Study *s, const StudyJob *job, const char *model, const char *text)
{
    char *base = job->base ? text_format("base-%zu/", job->base + 1) : text_format("%s", ""),
         *directory = text_format("%s/%sseed-%zu", s->out, base, s->first_seed + job->seed),
         *filled = text_format("%s", "");
    const struct {
        const char *place, *value;
    } places[] = {
        {"{base}", s->bases[job->base]}, {"{tasks}", s->tasks},          {"{method}", STUDY_METHODS[job->method].name},
        {"{model}", model ? model : ""}, {"{other}", STUDY_EXAMPLES_OF}, {"{dir}", directory}};
    for (size_t plain; *text; text += plain) {
        const char *value = "";
        char *longer;
        size_t found = 0;
        plain = strcspn(text, "{");
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            size_t length = strlen(places[i].place);
            if (strncmp(text + plain, places[i].place, length) == 0) found = length, value = places[i].value;
        }
        plain += !found && text[plain]; /* a brace of its own */
        longer = text_format("%s%.*s%s", filled, (int)plain, text, value);
        free(filled);
        filled = longer;
        plain += found;
    }
    free(directory);
    free(base);
    return filled;
}

/* Where the results of a part are, for one method, base and seed. To be freed. */
static char *study_place(const Study *s, StudyPart part, StudyMethod method, size_t base, size_t seed)
{
    const StudyJob job = {.part = part, .method = method, .base = base, .seed = seed};
    return study_fill(s, &job, NULL, STUDY_PARTS[part].out);
}

/* The words of a command, as argv has them. */
typedef struct {
    char **word; /* [count + 1], the last one NULL */
    size_t count;
} Words;

static void words_add(Words *w, char *word) /* takes the word over */
{
    w->word = host_grow(w->word, w->count + 2, sizeof *w->word);
    w->word[w->count++] = word;
    w->word[w->count] = NULL;
}

static void words_free(Words *w)
{
    for (size_t i = 0; i < w->count; i++) free(w->word[i]);
    free(w->word);
    *w = (Words){0};
}

/* The words of a line of the tables. */
static void words_add_line(Words *w, const Study *s, const StudyJob *job, const char *model, const char *line)
{
    while (*line) {
        size_t length = strcspn(line, " ");
        char *word = text_format("%.*s", (int)length, line);
        words_add(w, study_fill(s, job, model, word));
        free(word);
        line += length + strspn(line + length, " ");
    }
}

/* The tasks that are not trained, each after `option` ("--task" or "--probe"): `count` of them. */
static void words_add_heldout(Words *w, const Study *s, const char *option, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *name = STUDY_TASKS[i].name;
        words_add(w, text_format("--task-file"));
        words_add(w, text_format("%s/%s.json", s->tasks, name));
        words_add(w, text_format("%s", option));
        words_add(w, text_format("%s=%s/%s", name, s->tasks, name));
    }
    words_add(w, text_format("%s", strcmp(option, "--probe") == 0 ? "--probe-input-ending" : "--input-ending"));
    words_add(w, text_format(" <extra_id_0>"));
}

/* A run's kept checkpoint of a step: steps/model-000100 or steps/joint-000100. To be freed; NULL: there is none. */
static char *study_checkpoint(const char *run, double step)
{
    static const char *const STAGES[] = {"model", "joint"};
    for (size_t i = 0; i < sizeof STAGES / sizeof *STAGES; i++) {
        char *path = text_format("%s/steps/%s-%06.0f", run, STAGES[i], step);
        if (path_exists(path)) return path;
        free(path);
    }
    return NULL;
}

static int read_json(const char *directory, const char *name, cJSON **out, Error *error)
{
    char *path = path_join(directory, name);
    MappedFile file;
    int status = mapped_file_open(&file, path, error);
    *out = NULL;
    if (!status) {
        *out = cJSON_ParseWithLength((const char *)file.data, file.bytes);
        mapped_file_close(&file);
        if (!*out) status = error_set(error, EXIT_FAILED, "%s: not JSON", path);
    }
    free(path);
    return status;
}

/* The steps at which the two rules choose a finished run's checkpoint, from its log: the last one, and the first whose
 * dev score is FIRST_RULE or more (NAN: none is). */
static int study_rules(const char *run, double *last, double *first, Error *error)
{
    char *path = path_join(run, "log.jsonl");
    Lines lines = {0};
    cJSON *done;
    const cJSON *stages;
    double steps = NAN;
    int status = read_json(run, "DONE", &done, error);
    *last = *first = NAN;
    stages = cJSON_GetObjectItemCaseSensitive(done, "stages");
    steps = record_number(cJSON_GetArrayItem(stages, cJSON_GetArraySize(stages) - 1), "steps");
    if (!status) status = lines_read(&lines, path, error);
    for (size_t i = 0; !status && i < lines.count; i++) {
        cJSON *record = cJSON_Parse(lines.text[i]);
        if (!record) status = error_set(error, EXIT_FAILED, "%s:%zu: not JSON", path, i + 1);
        if (cJSON_GetObjectItemCaseSensitive(record, "dev")) {
            *last = record_number(record, "step");
            if (isnan(*first) && record_number(record, "mean") >= FIRST_RULE) *first = *last;
        }
        cJSON_Delete(record);
    }
    if (!status && *last != steps)
        status = error_set(error, EXIT_FAILED, "%s: ends before the last step, %.0f", path, steps);
    lines_free(&lines);
    cJSON_Delete(done);
    free(path);
    return status;
}

/* The model that a part looks at, and the prompt that goes with it on the trained task: both to be freed, NULL where
 * there is none. No model and no error: the run never reached FIRST_RULE. */
static int study_model(const Study *s, const StudyJob *job, char **model, char **prompt, Error *error)
{
    bool is_first = job->part == FIRST_TARGET || job->part == FIRST_HELDOUT;
    char *run = study_place(s, TRAIN, job->method, job->base, job->seed);
    double last = NAN, first = NAN;
    int status = 0;
    *model = *prompt = NULL;
    if (!STUDY_METHODS[job->method].tunes_model) {
        *model = text_format("%s", s->bases[job->base]);
    } else {
        status = study_rules(run, &last, &first, error);
        if (!status) *model = study_checkpoint(run, is_first ? first : last);
        if (!status && !*model && !(is_first && isnan(first)))
            status = error_set(error, EXIT_FAILED, "%s/steps: the checkpoint of a rule is not there", run);
    }
    if (!status && *model && STUDY_METHODS[job->method].train) *prompt = point_prompt(run, *model, "rte");
    free(run);
    return status;
}

/* The words of a job's command. None, and no error: there is nothing to do. */
static int study_command(const Study *s, const StudyJob *job, Words *w, Error *error)
{
    char *model = NULL, *prompt = NULL, *average, *longer;
    int status = 0;
    *w = (Words){0};
    if (job->part != TRAIN && job->part != ALIGN) {
        status = study_model(s, job, &model, &prompt, error);
        if (status || !model) return status;
    }
    words_add(w, text_format("%s", s->program));
    words_add_line(w, s, job, model, STUDY_PARTS[job->part].command);
    if (job->part == TRAIN) {
        words_add_line(w, s, job, model, STUDY_METHODS[job->method].train);
        if (STUDY_METHODS[job->method].tunes_model) words_add_heldout(w, s, "--probe", N_HELDOUT);
        words_add_line(w, s, job, model, STUDY_PROBES);
        words_add(w, text_format("%d", PROBE_ROWS));
    }
    if (job->part == HELDOUT || job->part == FIRST_HELDOUT || job->part == OTHER_EXAMPLES) {
        words_add_heldout(w, s, "--task", N_STUDY_TASKS);
        average = text_format("%s", STUDY_TASKS[0].name);
        for (size_t i = 1; i < N_HELDOUT; i++) {
            longer = text_format("%s,%s", average, STUDY_TASKS[i].name);
            free(average);
            average = longer;
        }
        words_add_line(w, s, job, model, "--norm-avg-over");
        words_add(w, average);
    }
    if (prompt && (job->part == TARGET || job->part == FIRST_TARGET)) {
        words_add(w, text_format("--prompt"));
        words_add(w, text_format("%s", prompt));
    }
    words_add(w, text_format("--seed"));
    words_add(w, text_format("%zu", s->first_seed + job->seed));
    words_add_line(w, s, job, model, s->bf16 ? "--dtype bf16 --threads 1 --out" : "--threads 1 --out");
    words_add(w, study_place(s, job->part, job->method, job->base, job->seed));
    if (s->resumed && job->part == TRAIN) words_add_line(w, s, job, model, "--resume");
    free(prompt);
    free(model);
    return 0;
}

/* A command as a shell reads it, on a line of its own. To be freed. */
static char *command_line(const Words *w)
{
    char *line = text_format("%s", "");
    for (size_t i = 0; i < w->count; i++) {
        const char *word = w->word[i], *end = i + 1 < w->count ? " " : "\n";
        bool plain = *word && strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,") ==
                                  strlen(word);
        char *longer = text_format("%s%s", line, plain ? word : "'");
        for (; !plain && *word; word++) { /* within quotes all but the quote stands for itself */
            free(line);
            line = longer;
            longer = *word == '\'' ? text_format("%s'\\''", line) : text_format("%s%c", line, *word);
        }
        free(line);
        line = text_format("%s%s%s", longer, plain ? "" : "'", end);
        free(longer);
    }
    return line;
}

/* OUT/commands.sh: what was begun of the first seed, in the order of the plan, so that it can be copied and changed. It
 * is written anew each time: neither the order in which jobs happened to run nor a kill shows in it. */
static const char COMMANDS_HEADING[] =
    "# The commands of the first seed, to be run where the study was: relative paths begin there.\n";
static int study_record_commands(const Study *s, Error *error)
{
    char *path = path_join(s->out, "commands.sh"), *all = text_format("%s", COMMANDS_HEADING);
    Study fresh = *s;
    int status = 0;
    fresh.resumed = false;
    for (size_t i = 0; !status && i < s->n_jobs; i++) {
        const StudyJob *job = &s->jobs[i];
        Words words = {0};
        if (job->base || job->seed || (job->state != RUNNING && job->state != FINISHED)) continue;
        status = study_command(&fresh, job, &words, error);
        if (!status) {
            char *line = command_line(&words), *longer = text_format("%s%s", all, line);
            free(line);
            free(all);
            all = longer;
        }
        words_free(&words);
    }
    if (!status) status = file_write_text(path, all, error);
    free(all);
    free(path);
    return status;
}

/* --- the list of jobs */

static int study_add_job(Study *s, StudyPart part, StudyMethod method, size_t base, size_t seed, int after)
{
    s->jobs = host_grow(s->jobs, s->n_jobs + 1, sizeof *s->jobs);
    s->jobs[s->n_jobs] =
        (StudyJob){.part = part, .method = method, .base = base, .seed = seed, .after = after, .state = WAITING};
    return (int)s->n_jobs++;
}

/* Everything, seed by seed. Further bases are there to see whether the main result holds on them: no controls. */
static void study_plan(Study *s)
{
    for (size_t base = 0; base < s->n_bases; base++) {
        for (size_t seed = 0; seed < s->n_seeds; seed++) {
            int trained[N_METHODS] = {[PRETRAINED] = -1};
            for (StudyMethod m = 0; m < N_METHODS; m++) {
                if (STUDY_METHODS[m].full && (!s->full || base)) continue;
                if (STUDY_METHODS[m].train)
                    trained[m] = study_add_job(s, TRAIN, m, base, seed, trained[STUDY_METHODS[m].after]);
                for (StudyPart part = TARGET; part < N_PARTS; part++) {
                    bool wanted = part == TARGET;
                    if (part == HELDOUT) wanted = m != PROMPT_TUNING; /* without its prompt that is the base */
                    if (part == FIRST_TARGET || part == FIRST_HELDOUT) wanted = STUDY_METHODS[m].tunes_model;
                    if (part == OTHER_EXAMPLES) wanted = m == PRETRAINED && !base;
                    if (part == ALIGN) wanted = m == PROMOT && !base;
                    if (wanted) study_add_job(s, part, m, base, seed, trained[m]);
                }
            }
        }
    }
}

/* Is it done, and its last file whole? What is damaged is made again. */
static bool job_is_done(const Study *s, const StudyJob *job)
{
    char *place = study_place(s, job->part, job->method, job->base, job->seed);
    cJSON *json = NULL;
    Error ignored;
    bool whole = !read_json(place, STUDY_PARTS[job->part].done, &json, &ignored) && cJSON_IsObject(json);
    cJSON_Delete(json);
    free(place);
    return whole;
}

/* --- running them */

/* In a process of its own: the command, with everything that it prints in a file. Does not return. Where the system
 * can, it dies with the study: a SIGKILL leaves that no time to stop it. */
__attribute__((noreturn)) static void study_child(const Words *w, const char *log, pid_t study)
{
    sigset_t none;
    int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
    if (getppid() != study) _exit(EXIT_FAILED);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0) _exit(EXIT_FAILED);
    close(fd);
    exit(promot_main((int)w->count, w->word));
}

/* The file that takes what a job prints. To be freed. */
static char *study_log(const Study *s, const StudyJob *job)
{
    char *place = study_place(s, job->part, job->method, job->base, job->seed), *log;
    for (char *at = place + strlen(s->out) + 1; *at; at++)
        if (*at == '/') *at = '.';
    log = text_format("%s/logs/%s.txt", s->out, place + strlen(s->out) + 1);
    free(place);
    return log;
}

/* Kept checkpoints are large: those of all seeds but the first go when everything has looked at them. */
static int study_tidy(const Study *s, const StudyJob *finished, Error *error)
{
    bool all = finished->base || finished->seed;
    char *run, *steps;
    int status;
    for (size_t i = 0; i < s->n_jobs; i++) {
        const StudyJob *job = &s->jobs[i];
        if (job->method == finished->method && job->base == finished->base && job->seed == finished->seed)
            all &= job->state == FINISHED || job->state == LEFT_OUT;
    }
    if (!all) return 0;
    run = study_place(s, TRAIN, finished->method, finished->base, finished->seed);
    steps = path_join(run, "steps");
    status = directory_remove(steps, error);
    free(steps);
    free(run);
    return status;
}

static int study_start(Study *s, StudyJob *job, Error *error)
{
    Words words;
    char *log;
    pid_t study = getpid();
    int status = study_command(s, job, &words, error);
    if (status || !words.count) {
        job->state = LEFT_OUT;
        return status ? status : study_tidy(s, job, error);
    }
    log = study_log(s, job);
    fflush(NULL); /* or the child would write what waits in the buffers once more */
    if ((job->process = fork()) == 0) study_child(&words, log, study);
    if (job->process < 0)
        status = error_set(error, EXIT_FAILED, "study: no new process: %s", strerror(errno));
    else
        job->state = RUNNING;
    job->begun = seconds_now();
    if (!status && job->base == 0 && job->seed == 0) status = study_record_commands(s, error);
    free(log);
    words_free(&words);
    return status;
}

/* The seconds until all is done: what is left takes as long as the same part took so far with the same method, or,
 * where that was not done yet, with any, or as long as an average part. */
static double study_seconds_left(const Study *s)
{
    double sum[N_PARTS][N_METHODS] = {{0}}, count[N_PARTS][N_METHODS] = {{0}}, left = 0;
    double part_sum[N_PARTS] = {0}, part_count[N_PARTS] = {0}, all = 0, n = 0;
    for (size_t i = 0; i < s->n_jobs; i++) {
        const StudyJob *job = &s->jobs[i];
        if (job->state != FINISHED || job->seconds == 0) continue;
        sum[job->part][job->method] += job->seconds;
        count[job->part][job->method]++;
        part_sum[job->part] += job->seconds;
        part_count[job->part]++;
        all += job->seconds;
        n++;
    }
    for (size_t i = 0; i < s->n_jobs; i++) {
        const StudyJob *job = &s->jobs[i];
        double known = count[job->part][job->method], mean = all / fmax(n, 1);
        if (part_count[job->part] > 0) mean = part_sum[job->part] / part_count[job->part];
        if (known > 0) mean = sum[job->part][job->method] / known;
        if (job->state == WAITING) left += mean;
        if (job->state == RUNNING) left += fmax(mean - (seconds_now() - job->begun), 0);
    }
    return left / (double)s->at_once;
}

/* What a finished job found, in a few words. To be freed. */
static char *job_finding(const Study *s, const StudyJob *job)
{
    char *place = study_place(s, job->part, job->method, job->base, job->seed), *text = NULL;
    cJSON *json = NULL, *average, *score;
    Error ignored;
    read_json(place, STUDY_PARTS[job->part].done, &json, &ignored);
    average = cJSON_GetObjectItemCaseSensitive(json, "norm_avg");
    score = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "tasks"), "rte");
    score = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(score, "scores"), "0");
    if (job->part == TRAIN)
        text =
            text_format(": dev %.1f",
                        record_number(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(json, "stages"), 0), "dev"));
    else if (score)
        text = text_format(": %.1f", score->valuedouble);
    else if (cJSON_GetObjectItemCaseSensitive(average, "1"))
        text = text_format(": %.1f after one example", record_number(average, "1"));
    cJSON_Delete(json);
    free(place);
    return text ? text : text_format("%s", "");
}

static void study_report_progress(const Study *s, const StudyJob *job)
{
    size_t over = 0;
    int now = (int)(seconds_now() - s->begun), left = (int)(study_seconds_left(s) + 0.5);
    char *base = job->base ? text_format("base %zu, ", job->base + 1) : text_format("%s", ""),
         *finding = job_finding(s, job);
    for (size_t i = 0; i < s->n_jobs; i++) over += s->jobs[i].state == FINISHED || s->jobs[i].state == LEFT_OUT;
    if (!s->quiet)
        fprintf(stderr, "[%3zu/%zu] %d:%02d, about %d:%02d left   %sseed %zu, %s: %s%s\n", over, s->n_jobs, now / 60,
                now % 60, left / 60, left % 60, base, s->first_seed + job->seed, STUDY_METHODS[job->method].label,
                STUDY_PARTS[job->part].label, finding);
    free(finding);
    free(base);
}

/* A job failed: its last line says why. */
static int study_failed(const Study *s, const StudyJob *job, int how, Error *error)
{
    char *log = study_log(s, job);
    Lines lines = {0};
    Error ignored;
    const char *last = "";
    if (!lines_read(&lines, log, &ignored) && lines.count) last = lines.text[lines.count - 1];
    if (strncmp(last, "promot: ", 8) == 0) last += 8;
    if (WIFSIGNALED(how))
        error_set(error, EXIT_FAILED, "%s: the command was killed (signal %d)", log, WTERMSIG(how));
    else
        error_set(error, WEXITSTATUS(how) == EXIT_USAGE ? EXIT_USAGE : EXIT_FAILED,
                  *last ? "%s" : "%s: the command failed", *last ? last : log);
    lines_free(&lines);
    free(log);
    return -1;
}

/* Takes note of the processes that have ended. */
static int study_reap(Study *s, Error *error)
{
    int how, status = 0;
    for (size_t i = 0; i < s->n_jobs; i++) {
        StudyJob *job = &s->jobs[i];
        if (job->state != RUNNING || waitpid(job->process, &how, WNOHANG) != job->process) continue;
        job->state = FINISHED;
        job->seconds = seconds_now() - job->begun;
        if (status) continue;
        if (!WIFEXITED(how) || WEXITSTATUS(how) != 0)
            status = study_failed(s, job, how, error);
        else
            status = study_tidy(s, job, error);
        if (!status) study_report_progress(s, job);
    }
    return status;
}

/* Stops what runs, and what somebody has halted, and waits for its end. */
static void study_stop(Study *s)
{
    for (size_t i = 0; i < s->n_jobs; i++)
        if (s->jobs[i].state == RUNNING) {
            kill(s->jobs[i].process, SIGTERM);
            kill(s->jobs[i].process, SIGCONT);
        }
    for (size_t i = 0; i < s->n_jobs; i++)
        if (s->jobs[i].state == RUNNING) waitpid(s->jobs[i].process, NULL, 0);
}

/* Starts what can start now. Returns how many run, -1 on an error. */
static int study_start_some(Study *s, Error *error)
{
    size_t running = 0;
    for (size_t i = 0; i < s->n_jobs; i++) running += s->jobs[i].state == RUNNING;
    for (size_t i = 0; i < s->n_jobs && running < s->at_once; i++) {
        StudyJob *job = &s->jobs[i];
        if (job->state != WAITING || (job->after >= 0 && s->jobs[job->after].state != FINISHED)) continue;
        if (study_start(s, job, error)) return -1;
        running += job->state == RUNNING;
    }
    return (int)running;
}

static void study_wake(int signal)
{
    (void)signal;
}

/* The signals that a study waits for: the end of a child, and what ends programs, but not what the study was started
 * to ignore (nohup, or a shell's background). SIGCHLD gets a handler that does nothing: a signal that is ignored, by
 * default or because whoever started the study said so, need not come, and its children would not wait to be reaped. */
static void study_signals(sigset_t *waited, struct sigaction *before)
{
    static const int ENDING[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction wake = {.sa_handler = study_wake}, found;
    sigemptyset(&wake.sa_mask);
    sigaction(SIGCHLD, &wake, before);
    sigemptyset(waited);
    sigaddset(waited, SIGCHLD);
    for (size_t i = 0; i < sizeof ENDING / sizeof *ENDING; i++)
        if (sigaction(ENDING[i], NULL, &found) == 0 && found.sa_handler != SIG_IGN) sigaddset(waited, ENDING[i]);
}

/* The command that goes on with a stopped study, as a shell reads it: who ran `make demo` has typed none. A line, to be
 * freed. */
static char *study_resumption(const Study *s)
{
    Words words = {0};
    char *line;
    words_add(&words, text_format("%s", s->program));
    words_add(&words, text_format("study"));
    words_add(&words, text_format("--resume"));
    words_add(&words, text_format("--out"));
    words_add(&words, text_format("%s", s->out));
    line = command_line(&words);
    words_free(&words);
    return line;
}

/* Runs all jobs. A signal that ends programs ends the processes of the study too, then the study itself. */
static int study_run(Study *s, Error *error)
{
    sigset_t waited, before;
    struct sigaction child_before;
    int status = 0, running = -1, caught = 0;
    study_signals(&waited, &child_before);
    sigprocmask(SIG_BLOCK, &waited, &before);
    while (!status && (caught == 0 || caught == SIGCHLD)) {
        if ((running = study_start_some(s, error)) <= 0) {
            status = running;
            break;
        }
        sigwait(&waited, &caught);
        if (caught == SIGCHLD) status = study_reap(s, error);
    }
    if (status || (caught && caught != SIGCHLD)) study_stop(s);
    for (size_t i = 0; !status && running == 0 && i < s->n_jobs; i++) /* what a kill has kept from being tidied */
        status = study_tidy(s, &s->jobs[i], error);
    if (!status && caught && caught != SIGCHLD && !s->quiet) { /* before a second such signal can end everything */
        char *resumption = study_resumption(s);
        fprintf(stderr, "study: stopped; this goes on with it: %s", resumption);
        free(resumption);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    sigaction(SIGCHLD, &child_before, NULL);
    if (!status && caught && caught != SIGCHLD) {
        raise(caught);
        status = error_set(error, EXIT_FAILED, "study: stopped (signal %d)", caught); /* it was blocked from outside */
    }
    return status;
}

/* test_study.c: promot study (commands/study_jobs.c, study_results.c, study.c): its commands and its numbers by hand,
 * and whole studies in child processes (children.h), killed and resumed. The model is one of a few thousand weights
 * that knows nothing, so that a study takes seconds; what it finds is rubbish, and it has to say so. The tasks are the
 * first rows of data/demo/tasks. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT */
#endif
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"

#include <ftw.h>

#define SCRATCH "build/test/study"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* not all of what it has is needed here */
#include "children.h"
#pragma GCC diagnostic pop

/* ---------------------------------------------------------------------------------------------------------- helpers */

static void write_file(const char *path, const char *text)
{
    Error error = {0};
    CHECK(file_write_text(path, text, &error) == 0, "%s", error.text);
}

/* Makes a directory and empties it first. */
static void fresh_directory(const char *path)
{
    Error error = {0};
    CHECK(directory_remove(path, &error) == 0 && directory_create(path, &error) == 0, "%s", error.text);
}

static void check_text(char *found, const char *expected, const char *what) /* frees what was found */
{
    CHECK(found && strcmp(found, expected) == 0, "%s: found '%s', expected '%s'", what, found, expected);
    free(found);
}

static const cJSON *at(const cJSON *json, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(json, name);
}

/* The words with a blank between, each in brackets. To be freed. */
static char *bracketed(const Words *w)
{
    char *all = text_format("%s", "");
    for (size_t i = 0; i < w->count; i++) {
        char *longer = text_format("%s[%s] ", all, w->word[i]);
        free(all);
        all = longer;
    }
    return all;
}

/* What a shell makes of a line, bracketed in the same way. To be freed. */
static char *shell_bracketed(const char *line)
{
    char *command = text_format("printf '[%%s] ' %s", line), *all = text_format("%s", "");
    FILE *shell = popen(command, "r");
    for (int c; shell && (c = fgetc(shell)) != EOF;) {
        char *longer = text_format("%s%c", all, c);
        free(all);
        all = longer;
    }
    if (shell) pclose(shell);
    free(command);
    return all;
}

static const char *const BASES[] = {"base one", "base two"};

/* The command of a job as bracketed words. To be freed. */
static char *command_of(const Study *s, const StudyJob *job)
{
    Words words;
    Error error = {0};
    char *all;
    CHECK(study_command(s, job, &words, &error) == 0, "%s", error.text);
    all = bracketed(&words);
    words_free(&words);
    return all;
}

static void check_begins(char *found, const char *expected) /* frees what was found */
{
    CHECK(strncmp(found, expected, strlen(expected)) == 0, "found '%s', expected '%s'", found, expected);
    free(found);
}

static void check_ends(char *found, const char *expected) /* frees what was found */
{
    size_t have = strlen(found), want = strlen(expected);
    CHECK(have >= want && strcmp(found + have - want, expected) == 0, "found '%s', expected '%s' at its end", found,
          expected);
    free(found);
}

/* ------------------------------------------------------------------------------------------ from tables to commands */

static void test_places_are_filled(void)
{
    Study s = {
        .program = "promot", .out = "an out", .tasks = "the tasks", .bases = BASES, .n_bases = 2, .first_seed = 5};
    StudyJob job = {.method = PROMOT, .seed = 2}, further = {.method = FINETUNE, .base = 1};
    check_text(study_fill(&s, &job, NULL, ""), "", "no text");
    check_text(study_fill(&s, &job, NULL, "--steps 100"), "--steps 100", "no places");
    check_text(study_fill(&s, &job, "a model", "{base}|{tasks}|{method}|{model}|{other}|{dir}/x"),
               "base one|the tasks|promot|a model|cqa|an out/seed-7/x", "every place");
    check_text(study_fill(&s, &job, NULL, "a{model}b{method}{method}"), "abpromotpromot", "no model, places twice");
    check_text(study_fill(&s, &further, NULL, "{base}:{dir}"), "base two:an out/base-2/seed-5", "a further base");
    check_text(study_place(&s, TRAIN, FINETUNE, 0, 0), "an out/seed-5/finetune", "a run's place");
    check_text(study_place(&s, HELDOUT, PRETRAINED, 1, 1), "an out/base-2/seed-6/eval/pretrained/heldout",
               "an evaluation's place");
    check_text(study_log(&s, &job), "an out/logs/seed-7.promot.txt", "a log");
}

static void test_commands_of_jobs(void)
{
    Study s = {
        .program = "promot", .out = "out dir", .tasks = "my tasks", .bases = BASES, .n_bases = 2, .first_seed = 5};
    StudyJob tuning = {.part = TRAIN, .method = FINETUNE, .seed = 1}, promot_tuning = {.part = TRAIN, .method = PROMOT},
             prompts = {.part = TRAIN, .method = PROMPT_TUNING},
             heldout = {.part = HELDOUT, .method = PRETRAINED, .base = 1}, align = {.part = ALIGN, .method = PROMOT},
             other = {.part = OTHER_EXAMPLES, .method = PRETRAINED};
    char *command = command_of(&s, &tuning);
    CHECK(strstr(command, "[--probe] [yesno=my tasks/yesno] [--probe-input-ending] [ <extra_id_0>] "
                          "[--probe-trained] [--probe-shots] [1,0,4] [--probe-limit] [25] ") &&
              !strstr(command, "nli_reworded") && !strstr(command, "--resume"),
          "%s", command);
    check_begins(command, "[promot] [train] [--model] [base one] [--task] [rte=my tasks/nli] [--keep-checkpoints] "
                          "[--method] [finetune] [--batch] [32] ");
    check_ends(command_of(&s, &tuning), "[--seed] [6] [--threads] [1] [--out] [out dir/seed-6/finetune] ");
    command = command_of(&s, &promot_tuning);
    CHECK(strstr(command, "[--prompt] [out dir/seed-5/prompt/prompt/rte] "), "%s", command);
    free(command);
    command = command_of(&s, &prompts);
    CHECK(!strstr(command, "[--probe] ") && strstr(command, "[--method] [prompt] ") &&
              strstr(command, "[--probe-trained] [--probe-shots] [1,0,4] "),
          "%s", command);
    free(command);
    command = command_of(&s, &heldout);
    CHECK(strstr(command, "[--task-file] [my tasks/nli_reworded.json] [--task] [nli_reworded=my tasks/nli_reworded] "
                          "[--input-ending] [ <extra_id_0>] [--norm-avg-over] "
                          "[qa,cqa,fr,de,summary,map_french,map_category,map_adjective,yesno] "),
          "%s", command);
    check_begins(command, "[promot] [eval] [--model] [base two] [--shots] [0,1,4] [--beams] [1] [--task-file] ");
    command = command_of(&s, &other);
    CHECK(strstr(command, "[--examples-of] [cqa] "), "%s", command);
    free(command);
    check_text(command_of(&s, &align),
               "[promot] [align] [--run] [out dir/seed-5/promot] [--task] [rte=my tasks/nli] [--limit] [64] [--seed] "
               "[5] [--threads] [1] [--out] [out dir/seed-5/promot/analysis] ",
               "align");
    s.resumed = true;
    check_ends(command_of(&s, &tuning), "[--out] [out dir/seed-6/finetune] [--resume] ");
    check_ends(command_of(&s, &heldout), "[--out] [out dir/base-2/seed-5/eval/pretrained/heldout] ");
    s.bf16 = true;
    check_ends(command_of(&s, &align), "[--dtype] [bf16] [--threads] [1] [--out] [out dir/seed-5/promot/analysis] ");
}

/* A run as train leaves it, of 20 steps with checkpoints of steps 10 and 20; log: its log.jsonl. */
static void make_up_run(const char *run, const char *log)
{
    static const char *const NAMES[] = {"steps/model-000010", "steps/model-000020", "prompt/rte"};
    char *path = path_join(run, "log.jsonl"), *done = path_join(run, "DONE");
    fresh_directory(run);
    write_file(path, log);
    write_file(done, "{\"stages\": [{\"stage\": \"model\", \"steps\": 20}]}");
    free(path);
    free(done);
    for (size_t i = 0; i < 3; i++) {
        path = path_join(run, NAMES[i]);
        fresh_directory(path);
        free(path);
    }
}

static const char LOG[] = "{\"step\": 0, \"mean\": 100, \"probe\": {}}\n"
                          "{\"step\": 10, \"loss\": 1}\n"
                          "{\"step\": 10, \"mean\": 99, \"dev\": {\"rte\": 99}}\n"
                          "{\"step\": 20, \"mean\": 100, \"dev\": {\"rte\": 100}}\n"
                          "{\"step\": 20, \"mean\": 1, \"probe\": {}}\n",
                  LOG_BELOW[] = "{\"step\": 10, \"mean\": 98.9, \"dev\": {\"rte\": 98.9}}\n"
                                "{\"step\": 20, \"mean\": 50, \"dev\": {\"rte\": 50}}\n";

static void test_rules_choose_checkpoints(void)
{
    double last, first;
    Error error = {0};
    char *path;
    make_up_run(SCRATCH "-unit/run", LOG);
    CHECK(study_rules(SCRATCH "-unit/run", &last, &first, &error) == 0 && last == 20 && first == 10, "%g %g", last,
          first);
    check_text(study_checkpoint(SCRATCH "-unit/run", 10), SCRATCH "-unit/run/steps/model-000010", "a checkpoint");
    CHECK((path = study_checkpoint(SCRATCH "-unit/run", 30)) == NULL);
    free(path);
    make_up_run(SCRATCH "-unit/run", LOG_BELOW);
    CHECK(study_rules(SCRATCH "-unit/run", &last, &first, &error) == 0 && last == 20 && isnan(first), "%g %g", last,
          first);
    CHECK(study_rules(SCRATCH "-unit/nowhere", &last, &first, &error) == -1 && error.exit_code == EXIT_USAGE);
}

/* A log that is not whole must not choose another checkpoint in silence. */
static void test_rules_on_damaged_runs(void)
{
    static const struct {
        const char *log, *error;
    } CASES[] = {{"", "log.jsonl: ends before the last step, 20"},
                 {"{\"step\": 10, \"mean\": 99, \"dev\": {}}\n", "log.jsonl: ends before the last step, 20"},
                 {"{\"step\": 10}\n{\"step\": 20, \"mea", "log.jsonl:2: not JSON"}};
    double last, first;
    Error error = {0};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        make_up_run(SCRATCH "-unit/run", CASES[i].log);
        CHECK(study_rules(SCRATCH "-unit/run", &last, &first, &error) == -1 && error.exit_code == EXIT_FAILED &&
                  strstr(error.text, CASES[i].error),
              "%s", error.text);
    }
    make_up_run(SCRATCH "-unit/run", LOG);
    write_file(SCRATCH "-unit/run/DONE", "{");
    CHECK(study_rules(SCRATCH "-unit/run", &last, &first, &error) == -1 && strstr(error.text, "run/DONE: not JSON"),
          "%s", error.text);
}

static void test_commands_on_checkpoints(void)
{
    Study s = {.program = "promot", .out = SCRATCH "-unit", .tasks = "T", .bases = BASES, .n_bases = 1};
    StudyJob target = {.part = TARGET, .method = PROMOT}, first = {.part = FIRST_TARGET, .method = PROMOT},
             first_heldout = {.part = FIRST_HELDOUT, .method = PROMOT};
    Words words;
    Error error = {0};
    char *command;
    make_up_run(SCRATCH "-unit/seed-0/promot", LOG);
    check_text(command_of(&s, &target),
               "[promot] [eval] [--model] [" SCRATCH "-unit/seed-0/promot/steps/model-000020] [--task] "
               "[rte.train=T/nli/train.jsonl] [--task] [rte.dev=T/nli/test.jsonl] [--shots] [0,1,4] [--beams] [1] "
               "[--prompt] [" SCRATCH "-unit/seed-0/promot/prompt/rte] [--seed] [0] [--threads] [1] [--out] [" SCRATCH
               "-unit/seed-0/eval/promot/target] ",
               "the last checkpoint, with its prompt");
    check_begins(command_of(&s, &first),
                 "[promot] [eval] [--model] [" SCRATCH "-unit/seed-0/promot/steps/model-000010] ");
    command = command_of(&s, &first_heldout);
    CHECK(!strstr(command, "--prompt"), "held-out tasks get no prompt: %s", command);
    free(command);
    make_up_run(SCRATCH "-unit/seed-0/promot", LOG_BELOW);
    CHECK(study_command(&s, &first, &words, &error) == 0 && words.count == 0, "never reached: nothing to do");
    CHECK(study_command(&s, &target, &words, &error) == 0 && words.count, "the last step is always there");
    words_free(&words);
    CHECK(directory_remove(SCRATCH "-unit/seed-0/promot/steps/model-000020", &error) == 0);
    CHECK(study_command(&s, &target, &words, &error) == -1 && error.exit_code == EXIT_FAILED &&
              strstr(error.text, "seed-0/promot/steps: the checkpoint of a rule is not there"),
          "%s", error.text);
    CHECK(words.count == 0);
}

/* What a shell reads is what the program gets. */
static void test_recorded_commands(void)
{
    static const char *const ODD[] = {"promot",        "a b",   "it's",     "'", "",
                                      " <extra_id_0>", "$HOME", "a\\b\"c*", "é", "k=v,w"};
    StudyJob jobs[] = {{.part = TRAIN, .method = FINETUNE, .state = FINISHED},
                       {.part = TRAIN, .method = FINETUNE, .state = RUNNING, .seed = 1},
                       {.part = TRAIN, .method = FINETUNE, .state = RUNNING, .base = 1},
                       {.part = TARGET, .method = PRETRAINED, .state = WAITING},
                       {.part = TARGET, .method = PRETRAINED, .state = LEFT_OUT},
                       {.part = HELDOUT, .method = PRETRAINED, .state = RUNNING}};
    Study s = {
        .program = "promot", .out = SCRATCH "-unit/it's here", .tasks = "T", .bases = BASES, .jobs = jobs, .n_jobs = 6};
    Words words = {0};
    Lines lines;
    Error error = {0};
    char *line;
    for (size_t i = 0; i < sizeof ODD / sizeof *ODD; i++) words_add(&words, text_format("%s", ODD[i]));
    line = command_line(&words);
    CHECK(strncmp(line, "promot 'a b' ", 13) == 0 && line[strlen(line) - 1] == '\n', "%s", line);
    check_text(shell_bracketed(line), "[promot] [a b] [it's] ['] [] [ <extra_id_0>] [$HOME] [a\\b\"c*] [é] [k=v,w] ",
               "odd words");
    free(line);
    words_free(&words);

    fresh_directory(s.out);
    s.resumed = true;
    for (int again = 0; again < 2; again++) {
        CHECK(study_record_commands(&s, &error) == 0, "%s", error.text);
        CHECK(lines_read(&lines, SCRATCH "-unit/it's here/commands.sh", &error) == 0 && lines.count == 3,
              "a heading and the first seed's that were begun, each once: %zu", lines.count);
        CHECK(lines.text[0][0] == '#', "%s", lines.text[0]);
        s.resumed = false; /* a resumption does not show */
        for (size_t i = 1; i < lines.count; i++) {
            line = command_of(&s, &jobs[i > 1 ? 5 : 0]);
            check_text(shell_bracketed(lines.text[i]), line, "a recorded command");
            free(line);
        }
        lines_free(&lines);
    }
    line = study_resumption(&s);
    check_text(shell_bracketed(line), "[promot] [study] [--resume] [--out] [" SCRATCH "-unit/it's here] ",
               "what is told to whom stops it");
    free(line);
    s.out = SCRATCH "-unit/nowhere";
    CHECK(study_record_commands(&s, &error) == -1 && strstr(error.text, SCRATCH "-unit/nowhere/commands.sh"), "%s",
          error.text);
}

/* ---------------------------------------------------------------------------------------------------------- the plan */

static size_t count_jobs(const Study *s, StudyPart part, StudyMethod method, size_t base)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_jobs; i++)
        n += s->jobs[i].part == part && s->jobs[i].method == method && s->jobs[i].base == base;
    return n;
}

/* What a job reads comes before it: the run of its own base, seed and method; a run that needs a prompt, that one's. */
static void check_order(const Study *s)
{
    for (size_t i = 0; i < s->n_jobs; i++) {
        const StudyJob *job = &s->jobs[i], *before;
        StudyMethod needs = job->part == TRAIN ? STUDY_METHODS[job->method].after : job->method;
        CHECK(job->after < (int)i && job->state == WAITING);
        if (!STUDY_METHODS[needs].train) {
            CHECK(job->after == -1, "job %zu waits for %d", i, job->after);
            continue;
        }
        CHECK(job->after >= 0, "job %zu waits for nothing", i);
        if (job->after < 0) continue;
        before = &s->jobs[job->after];
        CHECK(before->part == TRAIN && before->method == needs && before->base == job->base &&
                  before->seed == job->seed,
              "job %zu waits for a strange one", i);
    }
}

static void test_plan(void)
{
    Study demo = {.n_bases = 1, .n_seeds = 3}, full = {.n_bases = 2, .n_seeds = 2, .full = true};
    study_plan(&demo);
    study_plan(&full);
    check_order(&demo);
    check_order(&full);
    CHECK(demo.n_jobs == 3 * 16, "%zu", demo.n_jobs);
    CHECK(full.n_jobs == 2 * (36 + 14), "%zu", full.n_jobs);
    for (StudyMethod m = 0; m < N_METHODS; m++) {
        bool trained = m != PRETRAINED, tuned = trained && m != PROMPT_TUNING, control = m > PROMOT;
        for (StudyPart part = 0; part < N_PARTS; part++) {
            bool wanted = part == TRAIN                                   ? trained
                          : part == TARGET                                ? true
                          : part == HELDOUT                               ? m != PROMPT_TUNING
                          : part == FIRST_TARGET || part == FIRST_HELDOUT ? tuned
                          : part == OTHER_EXAMPLES                        ? m == PRETRAINED
                                                                          : m == PROMOT;
            bool once = part == OTHER_EXAMPLES || part == ALIGN; /* the report has them of the first base only */
            CHECK(count_jobs(&demo, part, m, 0) == (wanted && !control ? 3 : 0), "part %d of %s", part,
                  STUDY_METHODS[m].name);
            CHECK(count_jobs(&full, part, m, 0) == (wanted ? 2 : 0), "part %d of %s", part, STUDY_METHODS[m].name);
            CHECK(count_jobs(&full, part, m, 1) == (wanted && !control && !once ? 2 : 0), "part %d of %s", part,
                  STUDY_METHODS[m].name);
        }
    }
    free(demo.jobs);
    free(full.jobs);
}

static void test_seconds_left(void)
{
    StudyJob jobs[] = {{.part = TRAIN, .method = FINETUNE, .state = FINISHED, .seconds = 10},
                       {.part = TRAIN, .method = FINETUNE, .state = FINISHED, .seconds = 20},
                       {.part = TARGET, .method = FINETUNE, .state = FINISHED, .seconds = 3},
                       {.part = TARGET, .method = PROMOT, .state = FINISHED}, /* before this resumption */
                       {.part = TARGET, .method = JOINT, .state = LEFT_OUT},
                       {.part = TRAIN, .method = FINETUNE, .state = WAITING},
                       {.part = TARGET, .method = PROMOT, .state = WAITING},
                       {.part = TRAIN, .method = FINETUNE, .state = RUNNING, .begun = seconds_now() - 5},
                       {.part = TARGET, .method = FINETUNE, .state = RUNNING, .begun = seconds_now() - 1000},
                       {.part = ALIGN, .method = PROMOT, .state = WAITING}};
    Study s = {.program = "promot", .jobs = jobs, .n_jobs = sizeof jobs / sizeof *jobs, .at_once = 2};
    double left = study_seconds_left(&s);
    /* 15 for the run that waits, 3 for its like with another method, 11 (the mean of all) for what was never seen, 10
     * left of the one that runs, 0 of the one that is late, by two at a time; a second for the clock that runs on. */
    CHECK(left <= 19.5 && left > 19, "%g", left);
    s.jobs = jobs + 3;
    s.n_jobs = 4;
    CHECK(study_seconds_left(&s) == 0, "nothing is known yet: %g", study_seconds_left(&s));
}

/* -------------------------------------------------------------------------------------------------------- the numbers */

static void test_numbers_over_seeds(void)
{
    cJSON *json = cJSON_CreateObject(), *list, *none;
    static const double VALUES[] = {1, 2, 6};
    for (int i = 0; i < 3; i++) add_value(json, "three", VALUES[i]);
    add_value(json, "one", 7.5);
    add_value(json, "never", NAN);
    add_value(json, "once", INFINITY);
    add_value(json, "once", 4);
    add_value(object_at(object_at(json, "a"), "b"), "deep", 2);
    add_value(object_at(object_at(json, "a"), "b"), "deep", 4);
    add_value_at(json, "places", 0, NAN);
    add_value_at(json, "places", 2, 8);
    add_value_at(json, "places", 2, 8);
    none = object_at(json, "none");
    cJSON_AddArrayToObject(none, "values");
    cJSON_AddStringToObject(json, "text", "stays");
    finish_numbers(json);
    /* (1 + 2 + 6) / 3 = 3; (4 + 1 + 9) / 2 = 7 */
    CHECK(MEAN_AT(json, "three") == 3 && fabs(number_in(at(json, "three"), "sd") - sqrt(7)) < 1e-15);
    CHECK(MEAN_AT(json, "one") == 7.5 && number_in(at(json, "one"), "sd") == 0);
    CHECK(!at(json, "never") && isnan(MEAN_AT(json, "never")));
    CHECK(MEAN_AT(json, "once") == 4 && cJSON_GetArraySize(at(at(json, "once"), "values")) == 1);
    CHECK(MEAN_AT(json, "a", "b", "deep") == 3 && isnan(MEAN_AT(json, "a", "c", "deep")) && isnan(MEAN_AT(json, "a")));
    list = cJSON_GetObjectItemCaseSensitive(json, "places");
    CHECK(cJSON_GetArraySize(list) == 3 && cJSON_IsNull(cJSON_GetArrayItem(list, 0)) &&
          cJSON_IsNull(cJSON_GetArrayItem(list, 1)) && record_number(cJSON_GetArrayItem(list, 2), "mean") == 8);
    CHECK(cJSON_IsNull(at(json, "none")) && is_text(json, "text", "stays"));
    cJSON_Delete(json);
}

/* Two seeds with the same log: a record for each number of worked examples is one point of as many curves. */
static void test_curves_of_a_log(void)
{
    static const char log[] =
        "{\"step\": 0, \"shots\": 1, \"mean\": 90, \"format_ratio\": 1, \"probe\": {\"qa\": {\"format_ratio\": 2}},"
        " \"trained\": {\"rte\": 61}, \"trained_mean\": 61}\n"
        "{\"step\": 0, \"shots\": 0, \"mean\": 30, \"format_ratio\": 3, \"probe\": {\"qa\": {\"format_ratio\": 4}},"
        " \"trained\": {\"rte\": 62}, \"trained_mean\": 62}\n"
        "{\"step\": 10, \"mean\": 99, \"dev\": {\"rte\": 99}}\n"
        "{\"step\": 10, \"shots\": 1, \"mean\": 80, \"format_ratio\": 5, \"probe\": {\"qa\": {\"format_ratio\": 6}},"
        " \"trained\": {\"rte\": 63}, \"trained_mean\": 63}\n"
        "{\"step\": 10, \"shots\": 0, \"mean\": 20, \"format_ratio\": 7, \"probe\": {\"qa\": {\"format_ratio\": 8}},"
        " \"trained\": {\"rte\": 64}, \"trained_mean\": 64}\n";
    static const char curves[] = "{\"step\": [0, 10], \"dev\": [{\"values\": []}, {\"values\": [99, 99]}],"
                                 " \"target\": {\"1\": [{\"values\": [61, 61]}, {\"values\": [63, 63]}],"
                                 " \"0\": [{\"values\": [62, 62]}, {\"values\": [64, 64]}]},"
                                 " \"heldout\": {\"1\": [{\"values\": [90, 90]}, {\"values\": [80, 80]}],"
                                 " \"0\": [{\"values\": [30, 30]}, {\"values\": [20, 20]}]},"
                                 " \"format_ratio\": {\"1\": [{\"values\": [1, 1]}, {\"values\": [5, 5]}],"
                                 " \"0\": [{\"values\": [3, 3]}, {\"values\": [7, 7]}]},"
                                 " \"qa_format_ratio\": {\"1\": [{\"values\": [2, 2]}, {\"values\": [6, 6]}],"
                                 " \"0\": [{\"values\": [4, 4]}, {\"values\": [8, 8]}]}}";
    cJSON *curve = cJSON_CreateObject(), *expected = cJSON_Parse(curves);
    Error error = {0};
    char *text;
    make_up_run(SCRATCH "-unit/run", log);
    for (int seed = 0; seed < 2; seed++) CHECK(add_curves(SCRATCH "-unit/run", curve, &error) == 0, "%s", error.text);
    text = cJSON_PrintUnformatted(curve);
    CHECK(cJSON_Compare(curve, expected, true), "%s", text);
    free(text);
    make_up_run(SCRATCH "-unit/run", LOG);
    CHECK(add_curves(SCRATCH "-unit/run", curve, &error) == -1 && error.exit_code == EXIT_FAILED &&
              strstr(error.text, "run/log.jsonl: shots is not there"),
          "probes that do not say how they asked: %s", error.text);
    cJSON_Delete(expected);
    cJSON_Delete(curve);
}

/* Prompt tuning as studies of before left it, not asked along its steps, has no curve; and the rest has one. */
static void test_curves_of_earlier_studies(void)
{
    static const char log[] = "{\"step\": 0, \"shots\": 1, \"mean\": 90, \"format_ratio\": 1, \"probe\": {}}\n";
    Study s = {.program = "promot", .out = SCRATCH "-unit", .tasks = "T", .bases = BASES, .n_bases = 1, .n_seeds = 1};
    cJSON *json = cJSON_CreateObject();
    Error error = {0};
    make_up_run(SCRATCH "-unit/seed-0/finetune", log);
    make_up_run(SCRATCH "-unit/seed-0/prompt", LOG_BELOW);
    make_up_run(SCRATCH "-unit/seed-0/promot", log);
    CHECK(add_all_curves(&s, json, &error) == 0, "%s", error.text);
    CHECK(!at(at(json, "curves"), "prompt") && cJSON_GetArraySize(at(json, "curves")) == 2);
    CHECK(cJSON_GetArraySize(at(at(at(at(json, "curves"), "promot"), "target"), "1")) == 1, "a place without a number");
    cJSON_Delete(json);
}

/* A list of two numbers, the first of which may be left out: NAN. */
static void add_two(cJSON *curve, const char *what, const char *shots, double first, double second)
{
    cJSON *to = shots ? object_at(curve, what) : curve;
    add_value_at(to, shots ? shots : what, 0, first);
    add_value_at(to, shots ? shots : what, 1, second);
}

/* What study_print says of curves: as a child of this process, for its output goes to a file. */
static void test_printed_curves(void)
{
    static const char expected[] =
        "\nAlong training: the trained task on dev rows, held-out tasks after one example (25 test rows of each at "
        "most),\npercent of their answers in the format\n"
        "                plain fine-tuning                     ProMoT         cosine with format\n"
        "step     target held-out   format   target held-out   format    without prompt     with\n"
        "0             -     11.0     17.0        -     41.0     47.0              0.99     0.25\n"
        "100        51.0     21.0     27.0     81.0     52.0     57.0                 -     0.50\n"
        "\nThe trained task (the first dev rows) along training, by the number of worked examples\n"
        "                plain fine-tuning                     ProMoT\n"
        "step          0        1        4        0        1        4\n"
        "0           1.0      2.0      3.0     31.0     32.0     33.0\n"
        "100         4.0      5.0      6.0     34.0     35.0     36.0\n"
        "\nThe held-out tasks along training, by the number of worked examples\n"
        "                plain fine-tuning                     ProMoT\n"
        "step          0        1        4        0        1        4\n"
        "0          10.0     11.0     14.0     40.0     41.0     44.0\n"
        "100        20.0     21.0     24.0     50.0     52.0     54.0\n";
    static const char *const METHODS[] = {"finetune", "promot"};
    cJSON *json = cJSON_CreateObject(), *alignment = object_at(json, "alignment");
    pid_t pid;
    for (int m = 0; m < 2; m++) {
        cJSON *curve = object_at(object_at(json, "curves"), METHODS[m]);
        static const double STEPS[] = {0, 100};
        cJSON_AddItemToObject(curve, "step", cJSON_CreateDoubleArray(STEPS, 2));
        add_two(curve, "dev", NULL, NAN, 51 + 30 * m);
        add_two(curve, "target", "0", 1 + 30 * m, 4 + 30 * m);
        add_two(curve, "target", "1", 2 + 30 * m, 5 + 30 * m);
        add_two(curve, "target", "4", 3 + 30 * m, 6 + 30 * m);
        add_two(curve, "heldout", "1", 11 + 30 * m, 21 + 31 * m);
        add_two(curve, "heldout", "0", 10 + 30 * m, 20 + 30 * m);
        add_two(curve, "heldout", "4", 14 + 30 * m, 24 + 30 * m);
        add_two(curve, "format_ratio", "0", 1, 2);
        add_two(curve, "format_ratio", "1", 17 + 30 * m, 27 + 30 * m);
    }
    add_two(object_at(alignment, "without_prompt"), "cosine", NULL, 0.99, NAN);
    add_two(object_at(alignment, "with_prompt"), "cosine", NULL, 0.25, 0.5);
    finish_numbers(json);
    fresh_directory(SCRATCH "-unit");
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        if (!freopen(SCRATCH "-unit/printed", "w", stdout)) _exit(99);
        print_curves(json);
        print_curves_by_shots(json, "target", "The trained task (the first dev rows)");
        print_curves_by_shots(json, "heldout", "The held-out tasks");
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    check_text(read_text(SCRATCH "-unit/printed"), expected, "curves");
    cJSON_Delete(json);
}

/* Results with the numbers that the finding and the checks read; NAN: left out. */
static cJSON *made_up(double before, double tuned, double tuned_target, double kept, double kept_target)
{
    cJSON *json = cJSON_CreateObject(), *m = object_at(json, "methods");
    add_value(object_at(object_at(m, "pretrained"), "heldout"), "1", before);
    add_value(object_at(object_at(m, "finetune"), "heldout"), "1", tuned);
    add_value(object_at(object_at(m, "finetune"), "format_ratio"), "1", 88.8);
    add_value(object_at(object_at(m, "finetune"), "target"), "0", tuned_target);
    add_value(object_at(object_at(m, "promot"), "heldout"), "1", kept);
    add_value(object_at(object_at(m, "promot"), "format_ratio"), "1", 1.5);
    add_value(object_at(object_at(m, "promot"), "target"), "0", kept_target);
    finish_numbers(json);
    return json;
}

static void test_finding(void)
{
    static const struct {
        double before, tuned, tuned_target, kept, kept_target;
        const char *verdict;
    } CASES[] = {
        {80, 20, 99, 79, 98, "ProMoT learns the task without losing the rest"},
        {80, 52, 99, 76, 97, "ProMoT learns the task without losing the rest"}, /* all on the bounds */
        {80, 52.1, 99, 79, 98, "No collapse to prevent: plain fine-tuning keeps most of the rest"},
        {80, 79, 99, 10, 50, "No collapse to prevent: plain fine-tuning keeps most of the rest"},
        {80, 20, 99, 79, 96.9, "ProMoT does not learn the task as well as fine-tuning"},
        {80, 20, 99, 75.9, 99, "ProMoT loses less than plain fine-tuning, but does lose"},
        {80, 20, 99, 20, 99, "ProMoT keeps no more than plain fine-tuning"},
        {80, 20, 99, 3, 99, "ProMoT keeps no more than plain fine-tuning"},
        {0, 0, 50, 0, 50, "Inconclusive, for the pretrained model can do too little to lose it"},
        {19.9, 0, 99, 19.9, 99, "Inconclusive, for the pretrained model can do too little to lose it"},
        {80, 0, 74.9, 80, 74.9, "Inconclusive, for fine-tuning does not learn the task"},
    };
    cJSON *json;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *verdict = text_format("%s: with the trained task at ", CASES[i].verdict);
        const char *finding;
        json = made_up(CASES[i].before, CASES[i].tuned, CASES[i].tuned_target, CASES[i].kept, CASES[i].kept_target);
        add_finding(json, 3);
        finding = cJSON_GetStringValue(at(json, "finding"));
        CHECK(finding && strncmp(finding, verdict, strlen(verdict)) == 0, "case %zu: %s", i, finding);
        free(verdict);
        cJSON_Delete(json);
    }
    json = made_up(80, 20, 99, 79, 98);
    add_finding(json, 1);
    CHECK(is_text(json, "finding",
                  "ProMoT learns the task without losing the rest: with the trained task at 99.0, plain fine-tuning "
                  "leaves 20.0 of 80.0 on the held-out tasks after one example (88.8 % of its answers are words of the "
                  "trained task's format); ProMoT, at 98.0, leaves 79.0 (1.5 %). Means of 1 seed."),
          "%s", cJSON_GetStringValue(at(json, "finding")));
    cJSON_Delete(json);
    for (int same = 0; same < 2; same++) {
        cJSON *further = same ? made_up(90, 30, 99, 90, 99) : made_up(90, 30, 99, 31, 99), *base;
        json = made_up(80, 20, 99, 79, 98);
        cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "bases"), base = cJSON_CreateObject());
        cJSON_AddStringToObject(base, "model", "another");
        cJSON_AddItemToObject(base, "methods", cJSON_DetachItemFromObject(further, "methods"));
        add_finding(json, 1);
        check_ends(text_format("%s", cJSON_GetStringValue(at(json, "finding"))),
                   same ? " On another the same: of 90.0, plain fine-tuning leaves 30.0 and ProMoT 90.0."
                        : " On another not so: ProMoT loses less than plain fine-tuning, but does lose: of 90.0, plain "
                          "fine-tuning leaves 30.0 and ProMoT 31.0.");
        cJSON_Delete(further);
        cJSON_Delete(json);
    }
}

/* What became of a check: 1 reached, 0 not, -1 it was not made. */
static int reached(const cJSON *json, const char *what)
{
    const cJSON *check;
    cJSON_ArrayForEach(check, at(json, "checks"))
    {
        if (is_text(check, "what", what)) return cJSON_IsTrue(at(check, "ok"));
    }
    return -1;
}

/* The whole of what the checks read, as a paper's dream or the opposite of it. good: 1 or 0. */
static cJSON *made_up_study(int good)
{
    cJSON *json = good ? made_up(80, 20, 99, 79, 98) : made_up(59.9, 50, 94.9, 40, 92), *m = object_at(json, "methods"),
          *tuned = object_at(m, "finetune"), *promot = object_at(m, "promot"), *first = object_at(promot, "first");
    cJSON_AddStringToObject(object_at(json, "related"), "name", "akin");
    cJSON_AddStringToObject(promot, "label", "ProMoT");
    add_value(object_at(object_at(m, "pretrained"), "heldout"), "0", good ? 8 : 50);
    add_value(object_at(object_at(object_at(m, "pretrained"), "tasks"), "akin"), "1", 5);
    add_value(object_at(object_at(tuned, "task_format_ratio"), "qa"), "1", good ? 90 : 88);
    add_value(object_at(object_at(promot, "tasks"), "akin"), "1", good ? 24 : 5);
    add_value(object_at(object_at(promot, "task_format_ratio"), "akin"), "1", good ? 40 : 10);
    for (int seed = 0; seed < (good ? 2 : 1); seed++) add_value(first, "step", 10);
    add_value(object_at(first, "heldout"), "1", good ? 78 : 50);
    add_value(object_at(first, "format_ratio"), "1", good ? 0 : 3);
    add_value(object_at(object_at(m, "prompt"), "target"), "0", good ? 99 : 95);
    add_value(object_at(json, "context"), "own", 80);
    add_value(object_at(json, "context"), "other", good ? 10 : 70);
    add_value_at(object_at(object_at(json, "alignment"), "without_prompt"), "cosine", 0, good ? 0.95 : 0.8);
    add_value_at(object_at(object_at(json, "alignment"), "with_prompt"), "cosine", 0, good ? 0.5 : 0.6);
    finish_numbers(json);
    return json;
}

/* Every check of the main result and of what goes with it is made, and can be reached and missed. */
static void test_checks(void)
{
    static const char *const WHAT[] = {
        "before tuning: held-out tasks, 1 shot",
        "before tuning: 0 shots, percent of 1 shot",
        "fine-tuning: trained task",
        "fine-tuning: held-out tasks, percent of before",
        "fine-tuning: answers in the trained format, closed-book questions' less the average",
        "ProMoT: trained task, less fine-tuning's",
        "ProMoT: held-out tasks, percent of before",
        "ProMoT: seeds that learn the task, percent",
        "ProMoT: first checkpoint that has learnt it: held-out tasks, percent of before",
        "ProMoT: first checkpoint that has learnt it: answers in the trained format, percent",
        "ProMoT: the related task, more than before",
        "ProMoT: the related task, percent right of its answers in the trained format",
        "prompt tuning: trained task, less fine-tuning's",
        "before tuning: an example of another task, percent of its own",
        "gradient alignment without the prompt, first step",
        "gradient alignment with the prompt, first step"};
    const size_t n = sizeof WHAT / sizeof *WHAT;
    for (int good = 0; good < 2; good++) {
        cJSON *json = made_up_study(good);
        add_checks(json, 2);
        for (size_t i = 0; i < n; i++) CHECK(reached(json, WHAT[i]) == good, "%s", WHAT[i]);
        CHECK(reached(json, "ProMoT: answers in the trained format, percent") == 1);
        CHECK(cJSON_GetArraySize(at(json, "checks")) == (int)n + 1, "%d", cJSON_GetArraySize(at(json, "checks")));
        cJSON_Delete(json);
    }
}

static void test_checks_of_the_full_study(void)
{
    static const struct {
        const char *what;
        int good, bad;
    } CASES[] = {{"random prompt: held-out tasks, lost in percent of fine-tuning's loss", 1, 0},
                 {"joint: held-out tasks, lost in percent of fine-tuning's loss", 0, 1},
                 {"fine-tuning, paper's settings: held-out tasks, percent of before", 1, 0},
                 {"ProMoT, paper's settings: held-out tasks, percent of before", 1, 0},
                 {"ProMoT, paper's settings: answers in the trained format, percent", 1, 0},
                 {"ProMoT, paper's settings: seeds that learn the task, percent", 0, 0},
                 {"base 2, fine-tuning: trained task", 0, 1},
                 {"base 2, ProMoT: held-out tasks, percent of before", 0, 1}};
    for (int good = 0; good < 2; good++) {
        cJSON *json = made_up_study(good), *m = object_at(json, "methods"), *other = made_up_study(!good), *base;
        cJSON *papers = object_at(m, "paper-promot");
        add_value(object_at(object_at(m, "random-prompt"), "heldout"), "1", good ? 32 : 52.1); /* lost: 80, 78.8 % */
        add_value(object_at(object_at(m, "joint"), "heldout"), "1", good ? 32.1 : 50);
        add_value(object_at(object_at(m, "paper-finetune"), "heldout"), "1", good ? 0 : 59.9);
        add_value(object_at(papers, "heldout"), "1", good ? 79 : 10);
        add_value(object_at(papers, "format_ratio"), "1", good ? 2 : 2.1);
        cJSON_AddStringToObject(papers, "label", "ProMoT, paper's settings");
        finish_numbers(m);
        cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "bases"), base = cJSON_CreateObject());
        cJSON_AddItemToObject(base, "methods", cJSON_DetachItemFromObject(other, "methods"));
        add_checks(json, 2);
        for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
            CHECK(reached(json, CASES[i].what) == (good ? CASES[i].good : CASES[i].bad), "%s", CASES[i].what);
        cJSON_Delete(other);
        cJSON_Delete(json);
    }
}

/* The bound itself is reached, on both sides; what there is not is not. */
static void test_bounds_of_checks(void)
{
    cJSON *json = cJSON_CreateObject(), *checks = cJSON_AddArrayToObject(json, "checks");
    add_check(checks, "", "a", 65, true, 65);
    add_check(checks, "b 2, ", "b", 65, false, 65);
    add_check(checks, "", "c", INFINITY, true, 65); /* a percentage of nothing */
    add_check(checks, "", "d", NAN, false, 65);
    CHECK(cJSON_GetArraySize(checks) == 4 && reached(json, "a") == 1 && reached(json, "b 2, b") == 1 &&
          reached(json, "c") == 0 && reached(json, "d") == 0);
    CHECK(is_text(cJSON_GetArrayItem(checks, 1), "limit", "at most 65.00") &&
          is_text(cJSON_GetArrayItem(checks, 0), "value", "65.00") &&
          is_text(cJSON_GetArrayItem(checks, 2), "value", "none"));
    cJSON_Delete(json);
}

/* Kept checkpoints go when all parts of a run are over, but not those of the first seed. */
static void test_tidying(void)
{
    StudyJob jobs[] = {{.part = TRAIN, .method = FINETUNE, .seed = 1, .state = FINISHED},
                       {.part = TARGET, .method = FINETUNE, .seed = 1, .state = FINISHED},
                       {.part = FIRST_TARGET, .method = FINETUNE, .seed = 1, .state = RUNNING},
                       {.part = TARGET, .method = PROMOT, .seed = 1, .state = RUNNING},
                       {.part = TARGET, .method = FINETUNE, .seed = 0, .state = FINISHED}};
    Study s = {.program = "promot", .out = SCRATCH "-unit", .bases = BASES, .jobs = jobs, .n_jobs = 5};
    Error error = {0};
    make_up_run(SCRATCH "-unit/seed-1/finetune", LOG_BELOW);
    make_up_run(SCRATCH "-unit/seed-0/finetune", LOG_BELOW);
    CHECK(study_tidy(&s, &jobs[1], &error) == 0 && path_exists(SCRATCH "-unit/seed-1/finetune/steps"));
    CHECK(study_tidy(&s, &jobs[4], &error) == 0 && path_exists(SCRATCH "-unit/seed-0/finetune/steps"));
    jobs[2].state = WAITING; /* and it will turn out that there is nothing to do */
    CHECK(study_start(&s, &jobs[2], &error) == 0 && jobs[2].state == LEFT_OUT, "%s", error.text);
    CHECK(!path_exists(SCRATCH "-unit/seed-1/finetune/steps") &&
          path_exists(SCRATCH "-unit/seed-1/finetune/log.jsonl"));
}

/* --------------------------------------------------------------------------------------------------- a whole study */

#define TINY SCRATCH "/tiny/model"
/* The recipe as it is, on the first rows of each split. */
#define STUDY "study --model " TINY " --tasks " SCRATCH "/tasks --seeds 1 --out " SCRATCH "/study"

/* The first lines of a file of data/demo/tasks. */
static void shorten(const char *name, const char *file, size_t rows)
{
    char *from = text_format("data/demo/tasks/%s/%s", name, file),
         *to = text_format(SCRATCH "/tasks/%s/%s", name, file);
    Lines lines = {0};
    Error error = {0};
    FILE *out = fopen(to, "w");
    CHECK(out && lines_read(&lines, from, &error) == 0, "%s: %s", to, error.text);
    for (size_t i = 0; out && i < lines.count && i < rows; i++) fprintf(out, "%s\n", lines.text[i]);
    if (out) fclose(out);
    lines_free(&lines);
    free(from);
    free(to);
}

/* Splits are files of several forms: each keeps the rows for worked examples and training, and few to be asked. The
 * trained task keeps its dev rows (val.jsonl): on fewer, guessing could come to 99 %. */
static void make_tasks(void)
{
    for (size_t i = 0; i <= N_STUDY_TASKS; i++) {
        const char *name = i < N_STUDY_TASKS ? STUDY_TASKS[i].name : "nli";
        char *directory = path_join(SCRATCH "/tasks", name), *from = path_join("data/demo/tasks", name),
             *description = text_format("%s.json", from), *copy = text_format("%s.json", directory);
        DIR *files = opendir(from);
        const struct dirent *file;
        Error error = {0};
        fresh_directory(directory);
        CHECK(files && file_copy(description, copy, &error) == 0, "%s: %s", from, error.text);
        while (files && (file = readdir(files))) {
            bool many = strncmp(file->d_name, "train", 5) == 0 || strncmp(file->d_name, "val", 3) == 0;
            if (file->d_name[0] != '.') shorten(name, file->d_name, many ? 200 : 20);
        }
        if (files) closedir(files);
        free(copy);
        free(description);
        free(from);
        free(directory);
    }
}

/* SCRATCH/tiny, a model that knows nothing, and SCRATCH/tasks. */
static bool tiny(void)
{
    static bool made, tried;
    if (tried) return made;
    tried = true;
    fresh_directory(SCRATCH);
    make_tasks();
    write_file(
        SCRATCH "/config.json",
        "{\"model_type\": \"mt5\", \"vocab_size\": 896, \"d_model\": 16, \"d_kv\": 8, \"d_ff\": 24, \"num_heads\": 2, "
        "\"num_layers\": 1, \"pad_token_id\": 0, \"eos_token_id\": 1, \"decoder_start_token_id\": 0}");
    write_file(SCRATCH "/text.txt", "the cat saw the red house\na dog took the blue hat\na bird found a stone\n");
    made = promot("pretrain --config " SCRATCH "/config.json --tokenizer data/demo/model/spiece.model --text " SCRATCH
                  "/text.txt --steps 1 --batch 2 --quiet --threads 1 --out " SCRATCH "/tiny") == 0;
    CHECK(made, "no tiny model");
    if (!made) errors_contain("(what it said)");
    return made;
}

/* SCRATCH/whole: an uninterrupted study, made in SCRATCH/study; its outputs are SCRATCH/whole.out and whole.err. */
static bool whole(void)
{
    static bool made, tried;
    if (!tried && tiny()) {
        int status = promot(STUDY " --threads 2");
        made = status == 0 && rename(SCRATCH "/study", SCRATCH "/whole") == 0 &&
               rename(SCRATCH "/stdout", SCRATCH "/whole.out") == 0 &&
               rename(SCRATCH "/stderr", SCRATCH "/whole.err") == 0;
        if (status) errors_contain("(what it said)");
    }
    tried = true;
    CHECK(made, "no study");
    return made;
}

static void check_number(const cJSON *json, const char *name)
{
    const cJSON *number = at(json, name);
    CHECK(cJSON_IsNumber(at(number, "mean")) && number_in(number, "sd") == 0 &&
              cJSON_GetArraySize(at(number, "values")) == 1,
          "%s is no number over one seed", name);
}

/* The curves of the one seed are what its run's log says, at each number of worked examples. */
static void check_curves(const cJSON *results, const char *method)
{
    char *path = text_format(SCRATCH "/whole/seed-0/%s/log.jsonl", method);
    const cJSON *curve = at(at(results, "curves"), method);
    Lines lines = {0};
    Error error = {0};
    int probes = 0;
    CHECK(lines_read(&lines, path, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < lines.count; i++) {
        cJSON *record = cJSON_Parse(lines.text[i]);
        char *shots = text_format("%g", number_in(record, "shots"));
        if (at(record, "probe")) {
            int place = probes++ / 3; /* three records for each step */
            CHECK(cJSON_GetArrayItem(at(curve, "step"), place)->valuedouble == number_in(record, "step"));
            CHECK(number_in(cJSON_GetArrayItem(at(at(curve, "heldout"), shots), place), "mean") ==
                          number_in(record, "mean") &&
                      number_in(cJSON_GetArrayItem(at(at(curve, "target"), shots), place), "mean") ==
                          number_in(record, "trained_mean") &&
                      number_in(cJSON_GetArrayItem(at(at(curve, "format_ratio"), shots), place), "mean") ==
                          number_in(record, "format_ratio") &&
                      number_in(cJSON_GetArrayItem(at(at(curve, "qa_format_ratio"), shots), place), "mean") ==
                          number_in(at(at(record, "probe"), "qa"), "format_ratio"),
                  "%s, %s-shot, point %d: %s", method, shots, place, lines.text[i]);
        }
        free(shots);
        cJSON_Delete(record);
    }
    CHECK(probes == 3 * 11 && cJSON_GetArraySize(at(curve, "step")) == 11, "%s: %d", path, probes);
    for (int k = 0; k < 3; k++) {
        static const char *const SHOTS[] = {"0", "1", "4"};
        CHECK(cJSON_GetArraySize(at(at(curve, "heldout"), SHOTS[k])) == 11 &&
                  cJSON_GetArraySize(at(at(curve, "target"), SHOTS[k])) == 11,
              "%s-shot", SHOTS[k]);
    }
    lines_free(&lines);
    free(path);
}

static void test_results_of_a_study(void)
{
    static const char *const KEYS[] = {"seeds",   "model",   "settings",   "first_rule", "target",    "heldout",
                                       "related", "methods", "context",    "curves",     "alignment", "samples",
                                       "bases",   "finding", "curve_rows", "checks",     "commands"},
                             *const METHODS[] = {"pretrained", "finetune", "prompt", "promot"},
                             *const SHOTS[] = {"0", "1", "4"};
    cJSON *json;
    const cJSON *methods;
    if (!whole()) return;
    json = run_read_json("whole", "results.json");
    methods = at(json, "methods");
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) CHECK(at(json, KEYS[i]), "%s is missing", KEYS[i]);
    CHECK(cJSON_GetArraySize(json) == sizeof KEYS / sizeof *KEYS && cJSON_GetArraySize(methods) == 4);
    CHECK(number_in(json, "seeds") == 1 && is_text(json, "model", TINY) && number_in(json, "first_rule") == 99);
    CHECK(cJSON_GetArraySize(at(json, "heldout")) == 9 && cJSON_GetArraySize(at(json, "samples")) == 10);
    CHECK(number_in(at(json, "target"), "n") == 20 && is_text(at(json, "target"), "name", "rte") &&
          is_text(at(json, "related"), "name", "nli_reworded"));
    for (size_t m = 0; m < 4; m++) {
        const cJSON *method = at(methods, METHODS[m]);
        CHECK(!at(method, "first"), "%s never learns the task to 99 %%", METHODS[m]);
        CHECK(number_in(at(method, "target"), "mean") == number_in(at(at(method, "target"), "0"), "mean") &&
                  number_in(at(method, "target"), "sd") == number_in(at(at(method, "target"), "0"), "sd"),
              "%s: the trained task's own numbers", METHODS[m]);
        for (size_t k = 0; k < 3; k++) {
            check_number(at(method, "target"), SHOTS[k]);
            check_number(at(method, "heldout"), SHOTS[k]);
            check_number(at(method, "format_ratio"), SHOTS[k]);
            check_number(at(at(method, "tasks"), "qa"), SHOTS[k]);
            check_number(at(at(method, "task_format_ratio"), "nli_reworded"), SHOTS[k]);
        }
    }
    CHECK(number_in(json, "curve_rows") == 25 && !at(at(json, "curves"), "pretrained"));
    CHECK(strstr(cJSON_GetStringValue(at(at(json, "settings"), "along training")), "--probe-limit 25"));
    check_curves(json, "finetune");
    check_curves(json, "promot");
    CHECK(cJSON_GetArraySize(at(at(at(at(json, "curves"), "prompt"), "target"), "1")) == 4 &&
              cJSON_IsNull(cJSON_GetArrayItem(at(at(at(at(json, "curves"), "prompt"), "heldout"), "1"), 0)),
          "prompt tuning asks the trained task alone, at four checkpoints");
    CHECK(cJSON_IsNull(cJSON_GetArrayItem(at(at(at(json, "curves"), "finetune"), "dev"), 0)));
    CHECK(cJSON_GetArraySize(at(at(at(json, "alignment"), "with_prompt"), "cosine")) == 11);
    CHECK(strncmp(cJSON_GetStringValue(at(json, "finding")), "Inconclusive, ", 14) == 0);
    CHECK(reached(json, "before tuning: held-out tasks, 1 shot") == 0);
    CHECK(cJSON_GetArraySize(at(json, "commands")) == 12, "%d commands", cJSON_GetArraySize(at(json, "commands")));
    /* The numbers are those of the evaluations. */
    {
        cJSON *target = run_read_json("whole", "seed-0/eval/promot/target/results.json"),
              *heldout = run_read_json("whole", "seed-0/eval/finetune/heldout/results.json");
        for (size_t k = 0; k < 3; k++)
            CHECK(MEAN_AT(methods, "promot", "target", SHOTS[k]) == score_of(target, "rte", SHOTS[k]));
        CHECK(MEAN_AT(methods, "finetune", "heldout", "4") == number_in(at(heldout, "norm_avg"), "4"));
        CHECK(MEAN_AT(methods, "finetune", "tasks", "fr", "1") == score_of(heldout, "fr", "1"));
        cJSON_Delete(target);
        cJSON_Delete(heldout);
    }
    cJSON_Delete(json);
}

static size_t count_of(const char *text, const char *what)
{
    size_t n = 0;
    for (const char *found = text; (found = strstr(found, what)); found++) n++;
    return n;
}

static void test_outputs_of_a_study(void)
{
    char *text;
    if (!whole()) return;
    CHECK(run_has("whole", "report.html") && run_has("whole", "overview.svg") && run_has("whole", "logs"));
    text = read_text(SCRATCH "/whole.out");
    CHECK(strncmp(text, "method ", 7) == 0 && strstr(text, "\nplain fine-tuning ") && strstr(text, "NOT REACHED ") &&
              strstr(text, "\nInconclusive, ") && strstr(text, "The report is " SCRATCH "/study/report.html.\n"),
          "%s", text);
    /* The curves: eleven checkpoints, the first before any step, where no dev score is. */
    CHECK(strstr(text, "\n0             -     ") && strstr(text, "\n100     "), "%s", text);
    CHECK(strstr(text, " after one example (25 test rows of each at most),\n"), "%s", text);
    CHECK(strstr(text, "\nThe held-out tasks along training, by the number of worked examples\n"), "%s", text);
    CHECK(!strchr(text, '\r') && !strchr(text, '\033') && count_of(text, "\n    expected ") == 5);
    /* Whatever a model says, a sample stays on its line, which is indented. */
    for (const char *line = strchr(strstr(text, "\nThe first question of ") + 1, '\n'); line;
         line = strchr(line + 1, '\n')) {
        if (strstr(line, "reached") == line + 1 || strstr(line, "NOT REACHED") == line + 1) break;
        CHECK(line[1] == '\n' || line[1] == ' ', "%.60s", line + 1);
    }
    CHECK(!strstr(text, "/16] ") && !strstr(text, "best step"), "what the commands print is in the logs");
    free(text);
    text = read_text(SCRATCH "/whole.err");
    CHECK(count_of(text, "/16] ") == 12 && strstr(text, "[ 16/16] ") && !strstr(text, "promot: "),
          "a line for each job but the four that were left out: %s", text);
    CHECK(strstr(text, "seed 0, ProMoT: the trained task: ") &&
          strstr(text, "seed 0, plain fine-tuning: training: dev "));
    free(text);
}

/* ----------------------------------------------------------------------------------------------- killed and resumed */

/* Begins a study in a process group of its own, so that all of its processes can be asked for. */
static pid_t begin(const char *command)
{
    static Disk counted;
    pid_t pid;
    if (!counted.count) counted.count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    counted.first_of_model = counted.count + 1;
    pid = start(command, &counted, 0);
    setpgid(pid, pid);
    return pid;
}

/* Waits until a file is there, or the process has ended. */
static bool wait_for(pid_t pid, const char *path)
{
    siginfo_t ended = {0};
    while (!path_exists(path)) {
        if (waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT) || ended.si_pid == pid) return false;
        usleep(2000);
    }
    return true;
}

static int end_of(pid_t pid) /* the exit status, or minus the signal */
{
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static bool group_lives(pid_t group)
{
    return kill(-group, 0) == 0;
}

static void check_refused(const char *command, const char *what)
{
    int status = promot("%s", command);
    CHECK(status == 2 && error_lines() == 1 && errors_contain(what), "exit %d, %d lines (expected %s): promot %s",
          status, error_lines(), what, command);
}

static void check_same_as_whole(const char *name)
{
    char *a = run_path("whole", name), *b = run_path("study", name);
    CHECK(same_file(a, b), "%s and %s differ", a, b);
    free(a);
    free(b);
}

/* The first kill, after the first finished job: SIGTERM, one job at a time. */
static void stop_study(void)
{
    pid_t pid = begin(STUDY " --threads 1 --quiet");
    int status;
    CHECK(wait_for(pid, SCRATCH "/study/seed-0/eval/pretrained/target/results.json"));
    check_refused(STUDY " --resume", "another process is at work on this run");
    check_refused(STUDY, "exists already (--resume continues a run)");
    CHECK(group_lives(pid), "it was refused too late to say so");
    kill(pid, SIGTERM);
    status = end_of(pid);
    CHECK(status == -SIGTERM, "%d", status);
    CHECK(!group_lives(pid), "a process outlives the study");
    CHECK(!run_has("study", "results.json") && run_has("study", "commands.sh"));
}

/* The second: SIGKILL, of which the study itself knows nothing, seven jobs at once. */
static void kill_study(void)
{
    pid_t pid = begin(STUDY " --resume --threads 7 --quiet");
    CHECK(wait_for(pid, SCRATCH "/study/seed-0/finetune/log.jsonl"));
    kill(pid, SIGKILL);
    CHECK(end_of(pid) == -SIGKILL);
#ifdef __linux__
    for (int i = 0; i < 6000 && group_lives(pid); i++) usleep(5000); /* until it has reached them */
    CHECK(!run_has("study", "seed-0/finetune/DONE"), "a job went on without the study");
#else
    while (group_lives(pid)) usleep(5000); /* the jobs that ran go on to their end */
#endif
    CHECK(!group_lives(pid), "a process outlives the study");
    CHECK(!run_has("study", "results.json"));
}

/* The last resumption: started by a program that ignores the ends of its children, under nohup. */
static void finish_study(void)
{
    pid_t pid;
    int status;
    cJSON *printed, *written;
    char *text;
    signal(SIGCHLD, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    pid = begin("study --resume --threads 2 --quiet --json --out " SCRATCH "/study/");
    signal(SIGHUP, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    CHECK(wait_for(pid, SCRATCH "/study/seed-0/eval/finetune/target/results.json"));
    kill(pid, SIGHUP);
    status = end_of(pid);
    CHECK(status == 0, "exit %d", status);
    text = standard_error();
    CHECK(!*text, "--quiet, but it said: %s", text);
    free(text);
    text = standard_output();
    CHECK(count_of(text, "\n") == 1 && strchr(text, '\n')[1] == '\0', "one line: %.200s", text);
    printed = cJSON_Parse(text);
    written = run_read_json("study", "results.json");
    CHECK(printed && cJSON_Compare(printed, written, true), "--json prints what is written");
    cJSON_Delete(printed);
    cJSON_Delete(written);
    free(text);
}

/* A line of commands.sh does again what the study did. */
static void repeat_command(void)
{
    Error error = {0};
    Lines lines = {0};
    char *before = read_text(SCRATCH "/study/seed-0/eval/finetune/target/results.json"), *after;
    int found = 0;
    CHECK(lines_read(&lines, SCRATCH "/study/commands.sh", &error) == 0, "%s", error.text);
    for (size_t i = 1; i < lines.count; i++) { /* 0: the heading */
        CHECK(strncmp(lines.text[i], "promot ", 7) == 0 && !strstr(lines.text[i], "--resume"), "%s", lines.text[i]);
        if (!strstr(lines.text[i], "/eval/finetune/target")) continue;
        found++;
        CHECK(directory_remove(SCRATCH "/study/seed-0/eval/finetune/target/predictions", &error) == 0);
        CHECK(promot("%s", lines.text[i] + 7) == 0, "%s", lines.text[i]);
        CHECK(run_has("study", "seed-0/eval/finetune/target/predictions"), "nothing was evaluated");
    }
    after = read_text(SCRATCH "/study/seed-0/eval/finetune/target/results.json");
    CHECK(found == 1 && *before && strcmp(before, after) == 0, "%d such lines", found);
    lines_free(&lines);
    free(before);
    free(after);
}

/* Three processes one after the other come to what one came to, whatever runs at a time. With sanitizers a study takes
 * more than half a minute: one whole study has to do there, and a second one that is stopped. */
static void test_killed_and_resumed(void)
{
    static const char *const SAME[] = {"results.json", "commands.sh", "report.html", "overview.svg"};
    char *log;
    int status;
    if (!whole()) return;
    stop_study();
#ifdef __SANITIZE_ADDRESS__
    return;
#endif
    check_refused(STUDY, "exists already (--resume continues a run)");
    check_refused("study --resume --seeds 2 --out " SCRATCH "/study", "--seeds 2: differs from ");
    check_refused("study --resume --full --out " SCRATCH "/study", "--full");
    kill_study();
    finish_study();
    for (size_t i = 0; i < sizeof SAME / sizeof *SAME; i++) check_same_as_whole(SAME[i]);
    repeat_command();
    log = read_text(SCRATCH "/study/logs/seed-0.eval.promot.target.txt");
    status = promot(STUDY " --resume"); /* nothing is left to be done */
    CHECK(status == 0, "exit %d", status);
    check_text(read_text(SCRATCH "/study/logs/seed-0.eval.promot.target.txt"), log, "a log of what is not done again");
    free(log);
    for (size_t i = 0; i < sizeof SAME / sizeof *SAME; i++) check_same_as_whole(SAME[i]);
    {
        char *text = standard_output(), *expected = read_text(SCRATCH "/whole.out");
        CHECK(strcmp(text, expected) == 0, "the same table");
        free(text);
        free(expected);
    }
    check_refused(STUDY, "exists already (--resume continues a run)");
}

/* ------------------------------------------------------------------------------------------------------------ errors */

/* What a finished study's files say is checked before it replaces anything: a number from a damaged file would be worse
 * than none. A file that is no JSON object at all is made again. */
static void test_damaged_results(void)
{
#define EVALUATION "/seed-0/eval/finetune/heldout"
    static const struct {
        const char *file, *text, *error; /* error NULL: it is made again */
    } CASES[] = {
        {EVALUATION "/predictions/qa.1.jsonl", "{\"processed_output\": \"a\"}\n", "qa.1.jsonl: 1 lines (expected 20)"},
        {EVALUATION "/predictions/qa.1.jsonl", NULL, "qa.1.jsonl:1: no prediction"},
        {EVALUATION "/results.json", "{\"norm_avg\": {\"1\": \"a\"}, \"tasks\": []}", "heldout: 1 is not there"},
        {EVALUATION "/results.json", "{\"norm_avg\": {\"1\": 5}, \"tasks\": []}", "results.json: qa: n is not there"},
        {EVALUATION "/results.json", "{}", "norm_avg is not there"},
        {"/seed-0/eval/promot/target/results.json", "{\"tasks\": {\"rte\": {\"scores\": {\"0\": 5, \"1\": \"a\"}}}}",
         "promot/target: 1 is not there, or no number"},
        {"/seed-0/promot/analysis/align.json", "{\"points\": [1, 2]}", "analysis: step is not there"},
        {"/seed-0/promot/analysis/align.json", "{}", "points are not there"},
        {"/seed-0/promot/log.jsonl", "", "log.jsonl: ends before the last step"},
        {"/seed-0/promot/log.jsonl",
         "{\"step\": 100, \"mean\": 9, \"dev\": {}}\n{\"step\": 100, \"mean\": 9, \"probe\": {}}\n",
         "promot/log.jsonl: shots is not there"},
        {"/seed-0/eval/finetune/target/results.json", "null", NULL},
        {"/commands.sh", "null", NULL},
    };
    char *before;
    if (!whole()) return;
    before = read_text(SCRATCH "/whole/results.json");
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *path = text_format(SCRATCH "/hurt%s", CASES[i].file), *after, *lines = NULL;
        int status;
        CHECK(system("rm -rf " SCRATCH "/hurt; cp -r " SCRATCH "/whole " SCRATCH "/hurt") == 0);
        for (int line = 0; !CASES[i].text && line < 20; line++) {
            char *longer = text_format("%s{}\n", lines ? lines : "");
            free(lines);
            lines = longer;
        }
        write_file(path, CASES[i].text ? CASES[i].text : lines);
        status = promot("study --quiet --resume --out " SCRATCH "/hurt");
        if (CASES[i].error)
            CHECK(status == 1 && error_lines() == 1 && errors_contain(CASES[i].error), "exit %d", status);
        else
            CHECK(status == 0, "exit %d", status);
        after = read_text(SCRATCH "/hurt/results.json");
        CHECK(strlen(after) > 1000 && (!CASES[i].error || strcmp(before, after) == 0), "%s: results.json has changed",
              path);
        free(after);
        free(lines);
        free(path);
    }
    free(before);
#undef EVALUATION
}

static void test_errors(void)
{
    struct stat weights;
    int status;
    Error error = {0};
    if (!tiny()) return;
    check_refused("study", "--out");
    check_refused("study --model " SCRATCH "/nowhere --out " SCRATCH "/refused", "/nowhere: no such model directory");
    check_refused("study --model " TINY " --model " SCRATCH "/nowhere --out " SCRATCH "/refused", "/nowhere");
    check_refused("study --model " TINY " --tasks " SCRATCH "/nowhere --out " SCRATCH "/refused",
                  "/nowhere/qa: no such directory of task files (--tasks DIR)");
    CHECK(directory_create(SCRATCH "/no-nli", &error) == 0, "%s", error.text);
    for (size_t i = 0; i < N_STUDY_TASKS; i++) {
        const char *name = STUDY_TASKS[i].name;
        char *directory = path_join(SCRATCH "/no-nli", name), *description = text_format("%s.json", directory);
        fresh_directory(directory);
        if (i == 0)
            check_refused("study --model " TINY " --tasks " SCRATCH "/no-nli --out " SCRATCH "/refused",
                          "/no-nli/qa.json: no such description of a task");
        write_file(description,
                   "{\"name\": \"a\", \"template\": \"{a}\", \"target\": \"{b}\", \"metric\": \"accuracy\"}");
        if (i == 0)
            check_refused("study --model " TINY " --tasks " SCRATCH "/no-nli --out " SCRATCH "/refused",
                          "/no-nli/qa: no train split in it");
        for (size_t split = 0; split < 3; split++) {
            static const char *const FILES[] = {"train.jsonl", "dev.jsonl", "test.jsonl"};
            char *path = path_join(directory, FILES[split]);
            write_file(path, "{\"a\": \"x\", \"b\": \"y\"}\n");
            free(path);
        }
        free(description);
        free(directory);
    }
    check_refused("study --model " TINY " --tasks " SCRATCH "/no-nli --out " SCRATCH "/refused", "/no-nli/nli: ");
    check_refused("study --model " TINY " --model " TINY "/. --tasks " SCRATCH "/tasks --out " SCRATCH "/refused",
                  " are the same model");
    check_refused("study --seeds -1 --out " SCRATCH "/refused", "--seeds");
    check_refused("study --seeds 1001 --out " SCRATCH "/refused", "--seeds");
    check_refused("study --seeds three --out " SCRATCH "/refused", "--seeds");
    check_refused("study --epochs 3 --out " SCRATCH "/refused", "--epochs");
    CHECK(!run_has("refused", ""), "what is refused leaves nothing behind");
#ifdef __linux__ /* a directory in which nobody, root neither, makes another: the reason that is told is that one's */
    check_refused("study --model " TINY " --tasks " SCRATCH "/tasks --out /sys/study",
                  "promot: /sys/study: cannot be created: ");
    char *text = standard_error();
    CHECK(!strstr(text, strerror(ENOENT)), "%s", text);
    free(text);
#endif

    /* A model is read whole before anything begins. */
    fresh_directory(SCRATCH "/damaged");
    CHECK(file_copy(TINY "/config.json", SCRATCH "/damaged/config.json", &error) == 0, "%s", error.text);
    CHECK(file_copy(TINY "/spiece.model", SCRATCH "/damaged/spiece.model", &error) == 0, "%s", error.text);
    write_file(SCRATCH "/damaged/model.safetensors", "these are no weights");
    status = promot("study --model " SCRATCH "/damaged --tasks " SCRATCH "/tasks --seeds 1 --out " SCRATCH "/failed");
    CHECK(status == 1 && error_lines() == 1 && errors_contain("promot: " SCRATCH "/damaged/model.safetensors: "),
          "exit %d, %d lines", status, error_lines());
    CHECK(!run_has("failed", ""));

    /* A command that fails: it cannot write its model. */
    CHECK(stat(TINY "/model.safetensors", &weights) == 0);
    status = promot_with(&(Disk){0}, (size_t)weights.st_size / 2,
                         "study --model " TINY " --tasks " SCRATCH "/tasks --seeds 1 --out " SCRATCH "/failed");
    CHECK(status == 1 && error_lines() == 1 && errors_contain("promot: " SCRATCH "/failed/seed-0/"),
          "exit %d, %d lines", status, error_lines());
    CHECK(run_has("failed", "run.json") && !run_has("failed", "results.json"));
}

/* A command that a signal ends: the line names its log. */
static void test_failed_jobs(void)
{
    Study s = {.program = "promot", .out = SCRATCH "-unit", .bases = BASES};
    StudyJob job = {.part = TRAIN, .method = FINETUNE};
    Error error = {0};
    fresh_directory(SCRATCH "-unit/logs");
    CHECK(study_failed(&s, &job, 0x100 * 1, &error) == -1 && error.exit_code == EXIT_FAILED &&
              strcmp(error.text, SCRATCH "-unit/logs/seed-0.finetune.txt: the command failed") == 0,
          "no log: %s", error.text);
    write_file(SCRATCH "-unit/logs/seed-0.finetune.txt", "warning: odd\npromot: a file: what is wrong\n");
    CHECK(study_failed(&s, &job, 0x100 * 2, &error) == -1 && error.exit_code == EXIT_USAGE &&
              strcmp(error.text, "a file: what is wrong") == 0,
          "%s", error.text);
    CHECK(study_failed(&s, &job, 0x100 * 23, &error) == -1 && error.exit_code == EXIT_FAILED, "%d", error.exit_code);
    CHECK(study_failed(&s, &job, SIGKILL, &error) == -1 && error.exit_code == EXIT_FAILED &&
              strstr(error.text, "seed-0.finetune.txt: the command was killed (signal 9)"),
          "%s", error.text);
}

/* ------------------------------------------------------------------------------------- the model and tasks that ship */

/* In a child that works in `directory`, for a program of this name: is data/demo/NAME found? */
static bool finds_demo(const char *directory, const char *program, const char *name)
{
    pid_t pid = fork();
    if (pid == 0) {
        Options o = {.program = program};
        char *path = chdir(directory) == 0 ? demo_path(&o, name) : NULL;
        bool found = path && path_is_directory(path);
        free(path);
        _exit(found ? 0 : 1);
    }
    return end_of(pid) == 0;
}

static void test_demo_is_found_beside_the_program(void)
{
    char here[4096], *program;
    CHECK(getcwd(here, sizeof here) != NULL);
    program = text_format("%s/promot", here);
    CHECK(finds_demo(".", "promot", "model") && finds_demo(".", "./promot", "tasks"));
    CHECK(finds_demo("build", "../promot", "model") && finds_demo("build/test", "../../promot", "tasks"));
    CHECK(finds_demo("/", program, "model") && finds_demo("/", program, "tasks"));
    CHECK(!finds_demo("build", "../promot", "nothing") && !finds_demo("/", program, "nothing"));
#ifdef __linux__
    CHECK(finds_demo("/", "promot", "model"), "the system knows where a program is that was found through PATH");
#endif
    free(program);
}

static long long bytes_seen;

static int add_bytes(const char *path, const struct stat *file, int kind)
{
    (void)path;
    if (kind == FTW_F) bytes_seen += file->st_size;
    return 0;
}

/* A clone brings the demo's model and tasks along, so they stay small. */
static void test_demo_stays_small(void)
{
    const long long most = 8000000;
    bytes_seen = 0;
    CHECK(ftw("data/demo/model", add_bytes, 8) == 0 && bytes_seen > 0, "data/demo/model is not there");
    CHECK(ftw("data/demo/tasks", add_bytes, 8) == 0);
    CHECK(bytes_seen < most, "%lld bytes (expected below %lld)", bytes_seen, most);
}

/* A file's text, runs of white space as one space. To be freed. */
static char *words_of(const char *path)
{
    char *text = read_text(path), *to = text;
    for (const char *from = text; *from; from++)
        if (!isspace((unsigned char)*from))
            *to++ = *from;
        else if (to > text && to[-1] != ' ')
            *to++ = ' ';
    *to = '\0';
    return text;
}

__attribute__((format(printf, 2, 3))) static void check_says(const char *text, const char *format, ...)
{
    char expected[400];
    va_list numbers;
    va_start(numbers, format);
    vsnprintf(expected, sizeof expected, format, numbers);
    va_end(numbers);
    CHECK(strstr(text, expected), "it does not say: %s", expected);
}

/* A mean of a curve at 1 shot, at a step. */
static double curve_at(const cJSON *curve, const char *what, double step)
{
    const cJSON *steps = at(curve, "step"), *s;
    int place = 0;
    cJSON_ArrayForEach(s, steps)
    {
        if (s->valuedouble == step) return record_number(cJSON_GetArrayItem(at(at(curve, what), "1"), place), "mean");
        place++;
    }
    return NAN;
}

/* How many checks are not reached whose names begin so, or do not. */
static int count_missed(const cJSON *results, const char *start, bool begin)
{
    int missed = 0;
    const cJSON *check;
    cJSON_ArrayForEach(check, at(results, "checks")) missed +=
        !cJSON_IsTrue(at(check, "ok")) &&
        (strncmp(cJSON_GetStringValue(at(check, "what")), start, strlen(start)) == 0) == begin;
    return missed;
}

/* The numbers in data/demo/README.md's sentences are those of the study that is kept beside it. */
static void test_demo_readme(void)
{
    cJSON *results = NULL;
    const cJSON *m, *other, *papers, *kept;
    char *text = words_of("data/demo/README.md");
    Error error = {0};
    double most = 0, right, others_right;
    CHECK(read_json("data/demo/study", "results.json", &results, &error) == 0, "%s", error.text);
    m = at(results, "methods");
    other = at(cJSON_GetArrayItem(at(results, "bases"), 0), "methods");
    papers = at(at(results, "curves"), "paper-finetune");
    check_says(text, "The model reaches %.0f of 100 on the held-out tasks after one example, %.0f without any; ",
               MEAN_AT(m, "pretrained", "heldout", "1"), MEAN_AT(m, "pretrained", "heldout", "0"));
    check_says(text,
               "(`--probe-trained --probe-shots 1,0,4 --probe-limit %.0f`): the held-out ones on the first %.0f test",
               record_number(results, "curve_rows"), record_number(results, "curve_rows"));
    check_says(text,
               "with one in front plain fine-tuning falls from %.0f to %.0f, with four to %.0f, and ProMoT, with its "
               "prompt, to %.0f and %.0f, no better than guessing",
               MEAN_AT(m, "finetune", "target", "0"), MEAN_AT(m, "finetune", "target", "1"),
               MEAN_AT(m, "finetune", "target", "4"), MEAN_AT(m, "promot", "target", "1"),
               MEAN_AT(m, "promot", "target", "4"));
    check_says(text, "On the second model it mostly does the same, and has %.0f and %.0f.",
               MEAN_AT(other, "promot", "target", "1"), MEAN_AT(other, "promot", "target", "4"));
    check_says(text,
               "without the reading task, %.1f after one of the task itself and %.1f after one of the reading task.",
               MEAN_AT(results, "context", "own"), MEAN_AT(results, "context", "other"));
    for (size_t i = 0; i < N_HELDOUT; i++)
        most = fmax(most, MEAN_AT(other, "finetune", "tasks", STUDY_TASKS[i].name, "1"));
    check_says(text,
               "no task keeps more than %.0f of 100, translation into French %.0f, into German %.0f. ProMoT keeps %.0f "
               "of %.0f.",
               most, MEAN_AT(other, "finetune", "tasks", "fr", "1"), MEAN_AT(other, "finetune", "tasks", "de", "1"),
               MEAN_AT(other, "promot", "heldout", "1"), MEAN_AT(other, "pretrained", "heldout", "1"));
    check_says(text, "On the shipped model %d of them are NOT REACHED, on the second one %d.",
               count_missed(results, "base 2, ", false), count_missed(results, "base 2, ", true));
    CHECK(reached(results, "fine-tuning: answers in the trained format, closed-book questions' less the average") == 0);
    check_says(text, "fine-tuning answers True or False to %.0f %% of them, to %.0f %% of all tasks' questions",
               MEAN_AT(m, "finetune", "task_format_ratio", "qa", "1"), MEAN_AT(m, "finetune", "format_ratio", "1"));
    check_says(text, "the curves have %.0f %% of them and %.0f %% of all at step 300, %.0f %% of both at the end.",
               curve_at(papers, "qa_format_ratio", 300), curve_at(papers, "format_ratio", 300),
               fmin(curve_at(papers, "qa_format_ratio", 1000), curve_at(papers, "format_ratio", 1000)));
    check_says(text, "On the second model they lag behind as well: %.0f %% of them, %.0f %% of all.",
               MEAN_AT(other, "finetune", "task_format_ratio", "qa", "1"),
               MEAN_AT(other, "finetune", "format_ratio", "1"));
    CHECK(reached(results,
                  "base 2, fine-tuning: answers in the trained format, closed-book questions' less the average") == 0);
    CHECK(reached(results, "base 2, ProMoT: answers in the trained format, percent") == 0);
    check_says(text, "in 2 of 100 cases at most, and are in %.1f.", MEAN_AT(other, "promot", "format_ratio", "1"));
    check_says(text, "When the task is first learnt it is %.1f of 100.",
               MEAN_AT(other, "promot", "first", "format_ratio", "1"));
    CHECK(reached(results, "ProMoT, paper's settings: held-out tasks, percent of before") == 0 &&
          reached(results, "ProMoT, paper's settings: answers in the trained format, percent") == 0);
    check_says(text,
               "(%.0f of %.0f). ProMoT has %.0f when the task is learnt (at step %.0f, mostly) and ends at %.0f, ",
               MEAN_AT(m, "paper-finetune", "heldout", "1"), MEAN_AT(m, "pretrained", "heldout", "1"),
               MEAN_AT(m, "paper-promot", "first", "heldout", "1"), MEAN_AT(m, "paper-promot", "first", "step"),
               MEAN_AT(m, "paper-promot", "heldout", "1"));
    check_says(text, "with %.0f %% of its answers in the trained format.",
               MEAN_AT(m, "paper-promot", "format_ratio", "1"));
    kept = at(at(at(at(m, "paper-promot"), "heldout"), "1"), "values");
    check_says(text, "at the constant rate they end at %.0f and %.0f.", cJSON_GetArrayItem(kept, 0)->valuedouble,
               cJSON_GetArrayItem(kept, 1)->valuedouble);
    CHECK(reached(results, "ProMoT: the related task, percent right of its answers in the trained format") == 0);
    right = MEAN_AT(m, "promot", "tasks", "nli_reworded", "1");
    others_right = MEAN_AT(other, "promot", "tasks", "nli_reworded", "1");
    check_says(text, "The pretrained model scores %.0f:", MEAN_AT(m, "pretrained", "tasks", "nli_reworded", "1"));
    check_says(text, "ProMoT %.0f %% of its answers are True or False, and of these %.0f %% are right,",
               MEAN_AT(m, "promot", "task_format_ratio", "nli_reworded", "1"),
               100 * right / MEAN_AT(m, "promot", "task_format_ratio", "nli_reworded", "1"));
    check_says(text, "though the score is %.0f.", right);
    check_says(text, "it is a gain: %.0f %% of its answers are True or False, %.0f %% of these right.",
               MEAN_AT(other, "promot", "task_format_ratio", "nli_reworded", "1"),
               100 * others_right / MEAN_AT(other, "promot", "task_format_ratio", "nli_reworded", "1"));
    CHECK(MEAN_AT(m, "finetune", "task_format_ratio", "nli_reworded", "1") == 100, "fine-tuning always answers so");
    check_says(text, "and is right in %.0f %%.", MEAN_AT(m, "finetune", "tasks", "nli_reworded", "1"));
    free(text);
    cJSON_Delete(results);
}

/* README shows the study that is kept in data/demo/study, and nothing was typed. */
static void test_readme_table(void)
{
    cJSON *results = NULL;
    char *table, *text;
    MappedFile readme;
    Error error = {0};
    CHECK(read_json("data/demo/study", "results.json", &results, &error) == 0, "%s", error.text);
    table = study_table(results);
    CHECK(mapped_file_open(&readme, "README.md", &error) == 0, "%s", error.text);
    text = text_format("%.*s", (int)readme.bytes, (const char *)readme.data);
    CHECK(strstr(text, table), "%s", table);
    mapped_file_close(&readme);
    free(text);
    free(table);
    cJSON_Delete(results);
}

/* Takes from every number what finish_numbers makes of its values. */
static void forget_means(cJSON *json)
{
    cJSON *child;
    bool is_number = cJSON_IsArray(at(json, "values"));
    if (is_number) cJSON_DeleteItemFromObjectCaseSensitive(json, "mean");
    if (is_number) cJSON_DeleteItemFromObjectCaseSensitive(json, "sd");
    cJSON_ArrayForEach(child, json) forget_means(child);
}

/* The same names and texts in the same order, and numbers that differ by no more than another compiler's rounding. */
static bool same_but_rounding(const cJSON *a, const cJSON *b)
{
    const cJSON *x = a->child, *y = b->child;
    if ((a->type & 0xFF) != (b->type & 0xFF)) return false;
    if (cJSON_IsNumber(a)) return fabs(a->valuedouble - b->valuedouble) <= 1e-9 * fmax(1, fabs(a->valuedouble));
    if (cJSON_IsString(a)) return strcmp(a->valuestring, b->valuestring) == 0;
    for (; x && y; x = x->next, y = y->next)
        if ((x->string && strcmp(x->string, y->string) != 0) || !same_but_rounding(x, y)) return false;
    return !x && !y;
}

/* The study that is kept in data/demo/study: its means, checks, finding and report are what the code makes of the
 * seeds' values, byte by byte. */
static void test_kept_study(void)
{
    static const char *const FILES[] = {"report.html", "overview.svg"};
    cJSON *results = NULL, *again;
    Error error = {0};
    CHECK(read_json("data/demo/study", "results.json", &results, &error) == 0, "%s", error.text);
    again = cJSON_Duplicate(results, true);
    forget_means(again);
    CHECK(!at(at(at(at(at(again, "methods"), "promot"), "target"), "0"), "mean"), "a mean is still there");
    cJSON_DeleteItemFromObject(again, "checks");
    cJSON_DeleteItemFromObject(again, "finding");
    finish_numbers(again);
    add_checks(again, (size_t)record_number(again, "seeds"));
    add_finding(again, (size_t)record_number(again, "seeds"));
    CHECK(cJSON_GetArraySize(at(results, "checks")) > 30 && same_but_rounding(results, again));
    fresh_directory(SCRATCH "/kept");
    CHECK(study_report_write(SCRATCH "/kept", results, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char *kept = path_join("data/demo/study", FILES[i]), *made = path_join(SCRATCH "/kept", FILES[i]),
             *text = read_text(kept), *expected = read_text(made);
        CHECK(*text && strcmp(text, expected) == 0, "%s is not what results.json makes", kept);
        free(expected);
        free(text);
        free(made);
        free(kept);
    }
    cJSON_Delete(again);
    cJSON_Delete(results);
}

static const Test tests[] = {
    {"places_are_filled", test_places_are_filled},
    {"commands_of_jobs", test_commands_of_jobs},
    {"rules_choose_checkpoints", test_rules_choose_checkpoints},
    {"rules_on_damaged_runs", test_rules_on_damaged_runs},
    {"commands_on_checkpoints", test_commands_on_checkpoints},
    {"recorded_commands", test_recorded_commands},
    {"plan", test_plan},
    {"seconds_left", test_seconds_left},
    {"numbers_over_seeds", test_numbers_over_seeds},
    {"curves_of_a_log", test_curves_of_a_log},
    {"curves_of_earlier_studies", test_curves_of_earlier_studies},
    {"printed_curves", test_printed_curves},
    {"finding", test_finding},
    {"checks", test_checks},
    {"checks_of_the_full_study", test_checks_of_the_full_study},
    {"bounds_of_checks", test_bounds_of_checks},
    {"tidying", test_tidying},
    {"failed_jobs", test_failed_jobs},
    {"results_of_a_study", test_results_of_a_study},
    {"outputs_of_a_study", test_outputs_of_a_study},
    {"killed_and_resumed", test_killed_and_resumed},
    {"damaged_results", test_damaged_results},
    {"errors", test_errors},
    {"demo_is_found_beside_the_program", test_demo_is_found_beside_the_program},
    {"demo_stays_small", test_demo_stays_small},
    {"readme_table", test_readme_table},
    {"demo_readme", test_demo_readme},
    {"kept_study", test_kept_study},
};

TEST_MAIN(tests)

/* test_paper.c: what the paper compares ProMoT with, and how it compares (chapters 7 to 10 of promot.c), through the
 * command line, in child processes (children.h): every method, LoRA, mixtures of tasks, probes along training, kept
 * checkpoints, draws of worked examples, tables of several evaluations, gradient alignment. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT */
#endif
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"

#include "data/text_buffer.h"

#define SCRATCH "build/test/paper"
#include "children.h"

/* ---------------------------------------------------------------------------------------------------------- helpers */

static void check_promot(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void check_promot(const char *format, ...) /* a command that must succeed */
{
    char command[4096];
    va_list arguments;
    int status;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    status = promot("%s", command);
    CHECK(status == 0, "exit %d: promot %s", status, command);
    if (status) errors_contain("(what it said)");
}

/* Makes SCRATCH/RUN by `promot COMMAND --out SCRATCH/RUN`, unless an earlier test has (fixture() removed what older
 * programs left). */
static void make_run(const char *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void make_run(const char *run, const char *format, ...)
{
    char command[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    if (!run_has(run, "")) check_promot("%s --out " SCRATCH "/%s", command, run);
}

/* The command is refused as wrong usage, in one line that says `what`. */
static void check_refused(const char *command, const char *what)
{
    int status = promot("%s", command);
    CHECK(status == 2 && error_lines() == 1 && errors_contain(what), "exit %d, %d lines (expected %s): promot %s",
          status, error_lines(), what, command);
}

static void write_file(const char *path, const char *text)
{
    Error error = {0};
    CHECK(file_write_text(path, text, &error) == 0, "%s", error.text);
}

static void check_text(char *found, const char *expected, const char *what) /* frees what was found */
{
    CHECK(strcmp(found, expected) == 0, "%s: %s(expected %s)", what, found, expected);
    free(found);
}

/* Every line of a file as JSON; to be deleted. */
static cJSON *read_json_lines(const char *path)
{
    cJSON *all = cJSON_CreateArray();
    Lines lines = {0};
    Error error = {0};
    CHECK(lines_read(&lines, path, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < lines.count; i++) {
        cJSON *one = cJSON_Parse(lines.text[i]);
        CHECK(one != NULL, "%s:%zu: %s", path, i + 1, lines.text[i]);
        if (one) cJSON_AddItemToArray(all, one);
    }
    lines_free(&lines);
    return all;
}

static cJSON *run_log(const char *run)
{
    char *path = run_path(run, "log.jsonl");
    cJSON *log = read_json_lines(path);
    free(path);
    return log;
}

/* A run's log in short: "lora 1 2 2d model 0p 1 2 2d 2p" are two steps in each of two stages, with dev scores after the
 * second, and probes before and after the model's; "2t" asks what is trained alone. To be freed. */
static char *log_in_short(const char *run)
{
    cJSON *log = run_log(run);
    const cJSON *record;
    const char *stage = "";
    TextBuffer text = {0};
    cJSON_ArrayForEach(record, log)
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(record, "stage"));
        const char *kind = cJSON_GetObjectItem(record, "probe")     ? "p"
                           : cJSON_GetObjectItem(record, "dev")     ? "d"
                           : cJSON_GetObjectItem(record, "trained") ? "t"
                                                                    : "";
        if (!name) continue;
        if (strcmp(name, stage) != 0) text_put_format(&text, "%s ", name);
        stage = name;
        text_put_format(&text, "%.0f%s ", number_in(record, "step"), kind);
    }
    text_put(&text, "");
    cJSON_Delete(log);
    return text_take(&text);
}

static char *list_run(const char *run, const char *name)
{
    char *path = run_path(run, name), *names = list_directory(path);
    free(path);
    return names;
}

static double dev_score(const char *run, const char *stage)
{
    cJSON *done = run_read_json(run, "DONE");
    double score = number_in(stage_in(done, stage), "dev");
    cJSON_Delete(done);
    return score;
}

/* Of what eval wrote into RUN. */
static double result_of(const char *run, const char *task, const char *shots)
{
    cJSON *results = run_read_json(run, "results.json");
    double score = score_of(results, task, shots);
    cJSON_Delete(results);
    return score;
}

#define SAME(a, b) CHECK(same_file(SCRATCH "/" a, SCRATCH "/" b), "%s and %s differ", a, b)
#define DIFFERENT(a, b) CHECK(!same_file(SCRATCH "/" a, SCRATCH "/" b), "%s and %s are the same", a, b)

/* A task of answers that are no label words: SCRATCH/qa and qa.json. */
static void write_qa(void)
{
    static const char *const splits[] = {"train", "dev"}, *const answers[] = {"cat", "dog", "old man", "bird"};
    Error error = {0};
    if (path_exists(SCRATCH "/qa")) return;
    CHECK(directory_create(SCRATCH "/qa", &error) == 0, "%s", error.text);
    write_file(SCRATCH "/qa.json",
               "{\"name\": \"qa\", \"template\": \"say {question} answer:\", \"target\": \"{answer}\", "
               "\"metric\": \"squad-f1\"}");
    for (int s = 0; s < 2; s++) {
        TextBuffer text = {0};
        char *path = text_format(SCRATCH "/qa/%s.jsonl", splits[s]), *whole;
        for (int i = 0; i < 9; i++)
            text_put_format(&text, "{\"question\": \"what likes the %s hat number %d\", \"answer\": \"%s\"}\n",
                            (i + s) % 2 ? "red" : "blue", i, answers[i % 4]);
        whole = text_take(&text);
        write_file(path, whole);
        free(whole);
        free(path);
    }
}

#define QA "--task-file " SCRATCH "/qa.json"
#define PROBES                                                                                                         \
    QA " --task-file " SCRATCH "/other.json --probe qa=" SCRATCH "/qa --probe other=" SCRATCH "/data --probe-limit 7"
/* ----------------------------------------------------------------------------------------------------- every method */
/* How eval asks the same. */
#define PROBED_AT(shots)                                                                                               \
    QA " --task-file " SCRATCH "/other.json --task qa=" SCRATCH "/qa --task other=" SCRATCH                            \
       "/data --limit 7 --max-length 20 " COMMON " --shots " shots
#define PROBED PROBED_AT("1")

#define DEMO "data/demo/model"
#define NLI                                                                                                            \
    "--threads 1 --quiet --beams 1 --batch 4 --lr 0.01 --lora-lr 0.1 --task rte=" SCRATCH "/nli --prompt-length 3 "    \
    "--steps 3 --checkpoint-every 2 --prompt-steps 2 --lora-steps 2 --lora-checkpoint-every 2 --max-length 3"

/* Two splits in the words of the demo's world, as RTE is distributed. */
static void write_nli(void)
{
    static const char *const splits[] = {"train", "val"};
    static const char *const names[] = {"xena", "kurt", "jane", "max"}, *const things[] = {"duck", "sled", "scarf"};
    Error error = {0};
    CHECK(directory_create(SCRATCH "/nli", &error) == 0, "%s", error.text);
    for (int s = 0; s < 2; s++) {
        TextBuffer text = {0};
        char *path = text_format(SCRATCH "/nli/%s.jsonl", splits[s]), *whole;
        for (int i = 0; i < (s ? 4 : 12); i++)
            text_put_format(&text,
                            "{\"premise\": \"%s %s that %s lost a %s in luxor .\", \"hypothesis\": \"%s lost a %s\", "
                            "\"label\": \"%s\", \"idx\": %d}\n",
                            names[i % 4], i % 2 ? "denied" : "insisted", names[(i + s + 1) % 4], things[i % 3],
                            names[(i + s + 1) % 4], things[i % 3], i % 2 ? "not_entailment" : "entailment", i);
        whole = text_take(&text);
        write_file(path, whole);
        free(whole);
        free(path);
    }
}

/* Each method once without and once with a worked example in front ("+1-shot"), on the demo's model. */
static void test_methods(void)
{
    static const struct {
        const char *method, *holds, *prompts, *log;
        bool keeps_model; /* bytewise */
    } methods[] = {
        {"finetune", "DONE log.jsonl model run.json ", "", "model 1 2 2d 3 3d ", false},
        {"prompt", "DONE log.jsonl model prompt run.json ", "rte ", "prompt 1 2 2d ", true},
        {"promot", "DONE log.jsonl model prompt run.json ", "rte ", "prompt 1 2 2d model 1 2 2d 3 3d ", false},
        {"joint", "DONE log.jsonl model prompt run.json ", "rte ", "joint 1 2 2d 3 3d ", false},
        {"random-prompt", "DONE log.jsonl model prompt run.json ", "rte ", "model 1 2 2d 3 3d ", false},
        {"lora", "DONE log.jsonl lora model run.json ", "", "lora 1 2 2d ", false},
        {"promot-lora", "DONE log.jsonl lora model run.json ", "", "lora 1 2 2d model 1 2 2d 3 3d ", false},
    };
    if (!fixture()) return;
    write_nli();
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        for (int shots = 0; shots < 2; shots++) {
            const char *method = methods[i].method;
            char *run = text_format("%s-%d", method, shots), *model = run_path(run, "model/model.safetensors");
            make_run(run, "train --model " DEMO " " NLI " --method %s --shots %d", method, shots);
            check_text(list_run(run, ""), methods[i].holds, run);
            check_text(list_run(run, "prompt"), methods[i].prompts, run);
            check_text(list_run(run, "model"), "config.json model.safetensors spiece.model tokenizer_config.json ",
                       run);
            check_text(log_in_short(run), methods[i].log, run);
            CHECK(same_file(model, DEMO "/model.safetensors") == methods[i].keeps_model, "%s: the model", run);
            free(model);
            free(run);
        }
    SAME("random-prompt-0/prompt/rte/adapter_model.safetensors",
         "random-prompt-1/prompt/rte/adapter_model.safetensors");
    DIFFERENT("finetune-0/model/model.safetensors", "finetune-1/model/model.safetensors");
    DIFFERENT("lora-0/model/model.safetensors", "lora-1/model/model.safetensors");
    DIFFERENT("joint-0/prompt/rte/adapter_model.safetensors", "joint-1/prompt/rte/adapter_model.safetensors");
}

/* ------------------------------------------------------------------------------------------------------------- LoRA */

/* The rate is one at which each of eight seeds learns the task in stage 2; at 0.3 it took luck with the rounding. */
#define LORA LEARNING " --lora-steps 30 --lora-checkpoint-every 10 --lora-lr 0.1 --lora-rank 3 --lora-alpha 6"
#define LORA_RUN LORA " --method lora --lora-targets q,wo"
#define TO_GENERATE "--file " SCRATCH "/text.txt --scores --threads 1 --beams 2 --max-length 5"

static const LoraModule *lora_module(const LoraFile *lora, const char *tensor)
{
    for (size_t i = 0; i < lora->count; i++)
        if (strncmp(lora->modules[i].name, tensor, strlen(lora->modules[i].name)) == 0) return &lora->modules[i];
    return NULL;
}

/* A stored weight is its base's, bit for bit, and beside a module of the LoRA plus scale · B·A. */
static void check_merged(const StoredTensor *merged, const StoredTensor *base, const LoraModule *m,
                         const LoraFile *lora)
{
    float *w = host_alloc(base->numel, sizeof *w), *w0 = host_alloc(base->numel, sizeof *w0);
    Error error = {0};
    double most = 0, moved = 0;
    CHECK(stored_tensor_read_float(merged, 0, base->numel, w, &error) == 0 &&
              stored_tensor_read_float(base, 0, base->numel, w0, &error) == 0,
          "%s", error.text);
    for (size_t i = 0; i < base->numel; i++) {
        double change = 0;
        for (size_t r = 0; m && r < lora->rank; r++)
            change += lora->alpha / (double)lora->rank * m->b[i / m->in * lora->rank + r] * m->a[r * m->in + i % m->in];
        most = fmax(most, fabs(w[i] - (w0[i] + change)));
        moved = fmax(moved, fabs(w[i] - w0[i]));
    }
    /* Sums of 3 products of numbers below 10, in fp32: a few roundings of 1e-6. */
    CHECK(most <= (m ? 2e-5 : 0), "%s is %g from its base", base->name, most);
    CHECK((moved > 1e-3) == (m != NULL), "%s moved by %g", base->name, moved);
    free(w);
    free(w0);
}

static void test_lora(void)
{
    LoraFile adapter = {0};
    Checkpoint *merged, *base;
    Error error = {0};
    cJSON *config;
    char *apart, *together;
    if (!fixture()) return;
    make_run("l", LORA_RUN);
    config = run_read_json("l", "lora/adapter_config.json");
    CHECK(is_text(config, "peft_type", "LORA") && is_text(config, "base_model_name_or_path", SCRATCH "/model") &&
              fabs(number_in(config, "r") - 3) < 0.5 && fabs(number_in(config, "lora_alpha") - 6) < 1e-9,
          "adapter_config.json");
    cJSON_Delete(config);
    CHECK(lora_file_read(&adapter, SCRATCH "/l/lora", &error) == 0, "%s", error.text);
    CHECK(adapter.count == 3 + 2, "%zu modules (expected q of 3 attentions and wo of 2 layers)", adapter.count);
    merged = checkpoint_open(SCRATCH "/l/model", &error);
    base = checkpoint_open(SCRATCH "/model", &error);
    for (size_t i = 0; merged && base && i < checkpoint_count(base); i++) {
        const StoredTensor *of = checkpoint_at(base, i), *with = checkpoint_find(merged, of->name);
        CHECK(with && with->numel == of->numel, "%s", of->name);
        if (with) check_merged(with, of, lora_module(&adapter, of->name), &adapter);
    }
    CHECK(merged && base && checkpoint_count(base) > 10, "%s", error.text);
    checkpoint_close(merged);
    checkpoint_close(base);
    lora_file_free(&adapter);

    check_promot("generate --model " SCRATCH "/model --lora " SCRATCH "/l/lora " TO_GENERATE);
    apart = standard_output();
    check_promot("generate --model " SCRATCH "/l/model " TO_GENERATE);
    together = standard_output();
    CHECK(strlen(apart) > 500 && strcmp(apart, together) == 0, "base and adapter generate other text than the sum");
    free(together);
    check_promot("generate --model " SCRATCH "/model " TO_GENERATE);
    together = standard_output();
    CHECK(strcmp(apart, together) != 0, "the adapter changes nothing");
    free(apart);
    free(together);
}

#define PROMOT_LORA LORA " --method promot-lora --keep-checkpoints --max-length 20 " PROBES
#define EVAL_TOY "--task-file " SCRATCH "/toy.json --task toy=" SCRATCH "/data --threads 1 --quiet --beams 1"

/* ProMoT with a LoRA in the prompt's place: model/ is without it, and the two together are what was scored. A given
 * adapter takes the place of the first stage, and comes through as it was. */
static void test_promot_lora(void)
{
    cJSON *config;
    if (!fixture()) return;
    write_qa();
    make_run("pl", PROMOT_LORA);
    CHECK(dev_score("pl", "model") > 99, "dev %g", dev_score("pl", "model"));
    make_run("pl-with", "eval --model " SCRATCH "/pl/model --lora " SCRATCH "/pl/lora " EVAL_TOY);
    make_run("pl-without", "eval --model " SCRATCH "/pl/model " EVAL_TOY);
    CHECK(fabs(result_of("pl-with", "toy", "0") - dev_score("pl", "model")) < 1e-9, "%g with the adapter (expected %g)",
          result_of("pl-with", "toy", "0"), dev_score("pl", "model"));
    CHECK(result_of("pl-without", "toy", "0") < 50, "%g without it", result_of("pl-without", "toy", "0"));
    config = run_read_json("pl", "lora/adapter_config.json");
    CHECK(is_text(config, "base_model_name_or_path", SCRATCH "/pl/model"), "the adapter's model");
    cJSON_Delete(config);
    DIFFERENT("pl/model/model.safetensors", "model/model.safetensors");

    make_run("l", LORA_RUN);
    make_run("pl-given", SHORT " --method promot-lora --lora " SCRATCH "/l/lora --checkpoint-every 24 --steps 2");
    check_text(log_in_short("pl-given"), "model 1 2 2d ", "a given LoRA");
    SAME("pl-given/lora/adapter_model.safetensors", "l/lora/adapter_model.safetensors");
    DIFFERENT("pl-given/model/model.safetensors", "model/model.safetensors");

    /* --prompt-tasks chooses who gets the adapter, and Norm. Avg. is over the others. */
    make_run("pl-some",
             "eval --model " SCRATCH "/pl/model --lora " SCRATCH "/pl/lora --prompt-tasks toy --task other=" SCRATCH
             "/data --task-file " SCRATCH "/other.json " EVAL_TOY);
    SAME("pl-some/predictions/toy.0.jsonl", "pl-with/predictions/toy.0.jsonl");
    make_run("pl-other", "eval --model " SCRATCH "/pl/model --task other=" SCRATCH "/data --task-file " SCRATCH
                         "/other.json --threads 1 --quiet --beams 1");
    SAME("pl-some/predictions/other.0.jsonl", "pl-other/predictions/other.0.jsonl");
}

/* The probes of promot-lora ask the model without its adapter: here is what eval says of the last kept one. */
static void test_probes_of_promot_lora(void)
{
    cJSON *log;
    const cJSON *record, *last = NULL;
    char *found;
    if (!fixture()) return;
    write_qa();
    make_run("pl", PROMOT_LORA);
    found = log_in_short("pl");
    CHECK(strstr(found, " 30 30d model 0p 1 ") && strstr(found, " 200 200d 200p "), "%s", found);
    free(found);
    log = run_log("pl");
    cJSON_ArrayForEach(record, log) if (cJSON_GetObjectItem(record, "probe")) last =
        cJSON_GetObjectItem(record, "probe");
    make_run("pl-probed", "eval --model " SCRATCH "/pl/steps/model-000200 " PROBED);
    make_run("pl-probed-with", "eval --model " SCRATCH "/pl/steps/model-000200 --lora " SCRATCH "/pl/lora " PROBED);
    CHECK(result_of("pl-probed", "other", "1") != result_of("pl-probed-with", "other", "1"), "the test is not sharp");
    CHECK(number_in(cJSON_GetObjectItem(last, "other"), "score") == result_of("pl-probed", "other", "1"),
          "the probe says %g (expected %g)", number_in(cJSON_GetObjectItem(last, "other"), "score"),
          result_of("pl-probed", "other", "1"));
    cJSON_Delete(log);
}

static void test_wrong_adapters(void)
{
#define REFUSED "train --model " SCRATCH "/model " TOY " --quiet --out " SCRATCH "/refused "
#define REFUSED_SHOTS REFUSED "--method finetune --steps 1 --probe-shots " /* if not, it soon ends */
    static const char *const wrong[][2] = {
        {REFUSED "--method finetune --lora " SCRATCH "/l/lora", "--method promot-lora"},
        {REFUSED "--method lora --lora " SCRATCH "/l/lora", "--method promot-lora"},
        {REFUSED "--method promot --lora " SCRATCH "/l/lora", "--method promot-lora"},
        {REFUSED "--method promot-lora --prompt " SCRATCH "/p/prompt/toy", "--method promot"},
        {REFUSED "--method lora --lora-targets q,nonsense", "nonsense"},
        {REFUSED "--method lora --lora-rank 0", "--lora-rank"},
        {REFUSED "--method promot-lora --lora " SCRATCH "/nowhere", "nowhere"},
        {REFUSED "--method promot-lora --lora " SCRATCH "/wide", "expected"},
        {REFUSED "--method promot --prompt " SCRATCH "/p/prompt-of-none", "prompt-of-none"},
        {REFUSED "--method lora-promot", "--method"},
        {REFUSED "--mixing weight", "--mixing"},
        {REFUSED "--probe", "--probe"},
        {REFUSED "--probe qa", "--probe"},
        {REFUSED "--probe toy=" SCRATCH "/nowhere", "nowhere"},
        {REFUSED_SHOTS "1,0,1", "--probe-shots: expected each number once, found 1 again"},
        {REFUSED_SHOTS "1,,0", "--probe-shots"},
        {REFUSED_SHOTS "1,", "--probe-shots"},
        {REFUSED_SHOTS "0,one", "--probe-shots"},
        {REFUSED_SHOTS "-1", "--probe-shots"},
        {REFUSED_SHOTS "1001", "--probe-shots"},
        {REFUSED_SHOTS "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", "--probe-shots: expected at most 16 numbers"},
        {"eval --model " SCRATCH "/model --lora " SCRATCH "/wide " EVAL_TOY, "expected"},
        {"eval --model " SCRATCH "/model --lora " SCRATCH "/nowhere " EVAL_TOY, "nowhere"},
        {"eval --model " SCRATCH "/model --prompt-tasks toy " EVAL_TOY, "--lora"},
        {"generate --model " SCRATCH "/model --lora " SCRATCH "/wide --input the", "expected"},
    };
    Error error = {0};
    Device *dev;
    Model *demo;
    if (!fixture()) return;
    make_run("l", LORA_RUN);
    CHECK(directory_create(SCRATCH "/p/prompt-of-none", &error) == 0, "%s", error.text);
    dev = device_open(1, MATMUL_FP32, &error);
    demo = model_open(DEMO, dev, NULL, &error); /* wider than the toy model */
    CHECK(demo && lora_create(demo, "q", 2, 2, 1, &error) == 0 && lora_write(demo, SCRATCH "/wide", DEMO, &error) == 0,
          "%s", error.text);
    model_close(demo);
    device_close(dev);
    forget_run("refused");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) check_refused(wrong[i][0], wrong[i][1]);
    CHECK(!run_has("refused", ""), "a refused run has left a directory");
}

/* -------------------------------------------------------------------------------------------- probes along training */

/* ProMoT that answers everything with True and False soon, and is watched. */
#define WATCHED                                                                                                        \
    LEARNING " --prompt-steps 2 --steps 60 --checkpoint-every 30 --max-length 20 " PROBES                              \
             " --probe-every 20 --keep-checkpoints --npy"
#define UNWATCHED SHORT " --method finetune --steps 2"

/* In percent: the lines of a predictions file that answer in the toy task's format. */
static double share_in_format(const char *path)
{
    cJSON *all = read_json_lines(path);
    const cJSON *one;
    double n = 0;
    cJSON_ArrayForEach(one, all) n +=
        is_text(one, "processed_output", "True") || is_text(one, "processed_output", "False");
    n = 100 * n / cJSON_GetArraySize(all);
    cJSON_Delete(all);
    return n;
}

/* The last probes of a run are what eval says of its last checkpoint. */
static void check_last_probe(const cJSON *probe)
{
    const cJSON *qa = cJSON_GetObjectItem(probe, "qa"), *other = cJSON_GetObjectItem(probe, "other");
    double ratio;
    make_run("watched-eval", "eval --model " SCRATCH "/watched/steps/model-000060 " PROBED);
    ratio = share_in_format(SCRATCH "/watched-eval/predictions/qa.1.jsonl");
    CHECK(fabs(number_in(qa, "score") - result_of("watched-eval", "qa", "1")) < 1e-9 &&
              fabs(number_in(other, "score") - result_of("watched-eval", "other", "1")) < 1e-9,
          "%g and %g (eval: %g and %g)", number_in(qa, "score"), number_in(other, "score"),
          result_of("watched-eval", "qa", "1"), result_of("watched-eval", "other", "1"));
    CHECK(fabs(number_in(qa, "format_ratio") - ratio) < 1e-9 && ratio > 50, "format ratio %g (eval: %g)",
          number_in(qa, "format_ratio"), ratio);
}

static void test_probes(void)
{
    cJSON *log;
    const cJSON *record, *probe, *last = NULL;
    char *expected, *found;
    size_t at = 0;
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    found = log_in_short("watched");
    expected = strstr(found, "model 0p 1 ");
    CHECK(expected && strstr(found, " 19 20 20p 21 ") && strstr(found, " 30 30d 31 ") && strstr(found, " 60 60d 60p "),
          "%s", found);
    CHECK(strncmp(found, "prompt 1 2 2d model ", 20) == 0, "probes of a stage that leaves the model alone: %s", found);
    free(found);
    log = run_log("watched");
    cJSON_ArrayForEach(record, log)
    {
        const cJSON *qa, *other;
        if (!(probe = cJSON_GetObjectItem(record, "probe"))) continue;
        qa = cJSON_GetObjectItem(probe, "qa");
        other = cJSON_GetObjectItem(probe, "other");
        CHECK(cJSON_GetObjectItem(qa, "format_ratio") && !cJSON_GetObjectItem(other, "format_ratio"),
              "a task that says True and False itself has no format ratio");
        CHECK(fabs(number_in(record, "mean") - (number_in(qa, "score") + number_in(other, "score")) / 2) < 1e-9,
              "mean %g", number_in(record, "mean"));
        CHECK(number_in(record, "format_ratio") == number_in(qa, "format_ratio"), "the mean ratio is of qa alone");
        if (at++ == 0) CHECK(number_in(qa, "format_ratio") == 0, "before training: %g", number_in(qa, "format_ratio"));
        last = probe;
    }
    CHECK(at == 4, "%zu probes", at);
    if (last) check_last_probe(last);
    cJSON_Delete(log);
}

/* Fine-tuning that is watched at several numbers of worked examples, not in ascending order. */
#define SEVERAL                                                                                                        \
    LEARNING " --method finetune --steps 60 --checkpoint-every 30 --max-length 20 --keep-checkpoints " PROBES          \
             " --probe-limit 0 --probe-shots 4,0,1 --probe-trained"

/* The last probes of a run at a number of worked examples are what eval says of its last checkpoint at the same. */
static void check_last_probe_at(const cJSON *record, const char *shots)
{
    static const char *const NAMES[] = {"qa", "other"};
    const cJSON *probe = cJSON_GetObjectItem(record, "probe");
    char *answers = text_format(SCRATCH "/several-eval/predictions/qa.%s.jsonl", shots);
    double mean = 0;
    for (int i = 0; i < 2; i++) {
        double score = result_of("several-eval", NAMES[i], shots);
        CHECK(fabs(number_in(cJSON_GetObjectItem(probe, NAMES[i]), "score") - score) < 1e-9, "%s, %s-shot: eval: %g",
              NAMES[i], shots, score);
        mean += score / 2;
    }
    CHECK(fabs(number_in(record, "mean") - mean) < 1e-9, "%s-shot: %g (eval: %g)", shots, number_in(record, "mean"),
          mean);
    CHECK(fabs(number_in(record, "format_ratio") - share_in_format(answers)) < 1e-9, "%s-shot: format ratio %g", shots,
          number_in(record, "format_ratio"));
    free(answers);
}

/* A record for each number at each due step, in the order of the option. */
static void test_probes_at_several_shots(void)
{
    static const char *const SHOTS[] = {"4", "0", "1"};
    cJSON *log;
    const cJSON *record;
    char *found;
    int at = 0;
    if (!fixture()) return;
    write_qa();
    make_run("several", SEVERAL);
    make_run("several-eval", "eval --model " SCRATCH "/several/steps/model-000060 " PROBED_AT("4,0,1") " --limit 0");
    CHECK(result_of("several-eval", "other", "4") != result_of("several-eval", "other", "0") &&
              result_of("several-eval", "other", "4") != result_of("several-eval", "other", "1"),
          "the test is not sharp");
    found = log_in_short("several");
    CHECK(strncmp(found, "model 0p 0p 0p 1 ", 17) == 0 && strstr(found, " 29 30 30d 30p 30p 30p 31 ") &&
              strstr(found, " 59 60 60d 60p 60p 60p "),
          "%s", found);
    free(found);
    log = run_log("several");
    cJSON_ArrayForEach(record, log)
    {
        if (!cJSON_GetObjectItem(record, "probe")) continue;
        CHECK(number_in(record, "shots") == atof(SHOTS[at % 3]) && number_in(record, "step") == 30 * (at / 3),
              "record %d of probes: %g-shot at step %g", at, number_in(record, "shots"), number_in(record, "step"));
        if (at / 3 == 2) check_last_probe_at(record, SHOTS[at % 3]);
        at++;
    }
    CHECK(at == 9, "%d probes", at);
    cJSON_Delete(log);
}

/* What is trained, asked at two numbers of worked examples along both stages of ProMoT, which trains without any. */
#define ASKED                                                                                                          \
    LEARNING " --prompt-steps 2 --steps 60 --checkpoint-every 30 --keep-checkpoints --probe-limit 0"                   \
             " --probe-trained --probe-shots 2,0"
/* A run whose model stays as it is: its dev score is of the last of ASKED's checkpoints, asked otherwise. */
#define STILL                                                                                                          \
    LEARNING " --model " SCRATCH "/asked/steps/model-000060 --prompt " SCRATCH                                         \
             "/asked/prompt/toy --steps 1 --checkpoint-every 1 --lr 0 --shots 2"

static void test_trained_probes(void)
{
    cJSON *log;
    const cJSON *record;
    char *found;
    double dev = NAN, trained[2] = {NAN, NAN};
    if (!fixture()) return;
    make_run("asked", ASKED);
    make_run("still", STILL);
    found = log_in_short("asked");
    CHECK(strncmp(found, "prompt 0t 0t 1 2 2d 2t 2t model 0t 0t 1 ", 40) == 0 && strstr(found, " 30 30d 30t 30t 31 ") &&
              strstr(found, " 60 60d 60t 60t "),
          "%s", found);
    free(found);
    log = run_log("asked");
    cJSON_ArrayForEach(record, log)
    {
        double shots = number_in(record, "shots"), mean = number_in(record, "trained_mean");
        if (cJSON_GetObjectItem(record, "dev")) dev = number_in(record, "mean");
        if (!cJSON_GetObjectItem(record, "trained")) continue;
        CHECK(!cJSON_GetObjectItem(record, "mean"), "a mean of no held-out tasks");
        CHECK(number_in(cJSON_GetObjectItem(record, "trained"), "toy") == mean, "the mean of one task: %g", mean);
        trained[shots == 2] = mean;
        if (number_in(record, "step") > 0 && shots == 0) CHECK(mean == dev, "as trained: %g (dev: %g)", mean, dev);
    }
    cJSON_Delete(log);
    CHECK(trained[1] != trained[0], "the test is not sharp");
    CHECK(trained[1] == dev_score("still", "model"), "2-shot: %g (dev of such a run: %g)", trained[1],
          dev_score("still", "model"));
    check_text(list_run("asked", "analysis"),
               "report.html trained_by_shots.csv trained_by_shots.json trained_by_shots.svg ", "analysis/");
}

/* What is asked cut off, and with how many worked examples: of some there is room for none. */
static void test_cut_probes_are_told(void)
{
    if (!fixture()) return;
    write_qa();
    forget_run("cut");
    check_promot("train --model " SCRATCH "/model " TOY
                 " --threads 1 --beams 1 --method finetune --batch 4 --steps 1 " PROBES
                 " --max-input-length 12 --probe-trained --probe-shots 0,2 --probe-limit 3 --out " SCRATCH "/cut");
    CHECK(errors_contain("warning: qa, 2-shot: 3 of 3 inputs to be scored were longer than allowed and are cut") &&
          errors_contain("warning: toy, 2-shot: 3 of 3 inputs to be scored were longer than allowed and are cut"));
}

/* A figure of a run's analysis/ as it lies there, or NULL: drawn well-formed, and read back. */
static Figure *read_figure(const char *run, const char *name)
{
    char *svg = text_format(SCRATCH "/%s/analysis/%s.svg", run, name), *text = read_text(svg);
    char *json = text_format(SCRATCH "/%s/analysis/%s.json", run, name);
    Figure *figure = NULL;
    Error error = {0};
    size_t length = strlen(text);
    CHECK(strncmp(text, "<svg", 4) == 0 && length > 200 && strstr(text + length - 10, "</svg>"), "%s", svg);
    CHECK(figure_read(json, &figure, &error) == 0, "%s", error.text);
    free(text);
    free(svg);
    free(json);
    return figure;
}

static const PlotSeries *series_of(const Plot *plot, const char *name)
{
    for (size_t i = 0; plot && i < plot->count; i++)
        if (strcmp(plot->series[i].name, name) == 0) return &plot->series[i];
    return NULL;
}

/* The figures hold the numbers of the log at so many worked examples, at their steps. series: a probe, or what stands
 * for the mean of them. */
static void check_curve(const char *run, const char *figure_name, const char *series, const char *of, double shots)
{
    Figure *figure = read_figure(run, figure_name);
    const PlotSeries *curve = figure ? series_of(figure_plot(figure), series) : NULL;
    cJSON *log = run_log(run);
    const cJSON *record, *probe;
    size_t at = 0;
    cJSON_ArrayForEach(record, log)
    {
        if (!(probe = cJSON_GetObjectItem(record, "probe")) || number_in(record, "shots") != shots) continue;
        probe = strcmp(series, "qa") == 0 || strcmp(series, "other") == 0 ? cJSON_GetObjectItem(probe, series) : record;
        CHECK(curve && at < curve->n && curve->x[at] == number_in(record, "step") &&
                  (curve->y[at] == number_in(probe, of) || (isnan(curve->y[at]) && isnan(number_in(probe, of)))),
              "%s of %s, point %zu: %g at %g (expected %g)", figure_name, series, at, curve ? curve->y[at] : NAN,
              curve ? curve->x[at] : NAN, number_in(probe, of));
        at++;
    }
    CHECK(curve && at == curve->n && at > 2, "%zu points", at);
    figure_free(figure);
    cJSON_Delete(log);
}

static void test_analysis(void)
{
    Figure *figure;
    const PlotSeries *path;
    char *report;
    cJSON *log;
    const cJSON *record;
    double dev = NAN, mean = NAN;
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    check_text(list_run("watched", "analysis"),
               "format_ratio.csv format_ratio.json format_ratio.svg held_out.csv held_out.json held_out.svg "
               "report.html tradeoff.csv tradeoff.json tradeoff.svg ",
               "analysis/");
    check_curve("watched", "format_ratio", "qa", "format_ratio", 1);
    check_curve("watched", "format_ratio", "mean", "format_ratio", 1);
    check_curve("watched", "held_out", "qa", "score", 1);
    check_curve("watched", "held_out", "other", "score", 1);
    check_curve("watched", "held_out", "mean", "mean", 1);
    log = run_log("watched"); /* dev and probes were both measured at step 60 alone */
    cJSON_ArrayForEach(record, log)
    {
        if (cJSON_GetObjectItem(record, "dev")) dev = number_in(record, "mean");
        if (cJSON_GetObjectItem(record, "probe")) mean = number_in(record, "mean");
    }
    cJSON_Delete(log);
    figure = read_figure("watched", "tradeoff");
    path = figure ? series_of(figure_plot(figure), "checkpoints") : NULL;
    CHECK(path && path->n == 1 && path->x[0] == dev && path->y[0] == mean, "tradeoff (expected %g, %g)", dev, mean);
    figure_free(figure);
    report = read_text(SCRATCH "/watched/analysis/report.html");
    CHECK(strncmp(report, "<!", 2) == 0 && strstr(report, "</html>") && !strstr(report, "<script"), "report.html");
    for (int n = 0; n < 3; n++) {
        const char *at = report;
        for (int i = 0; at && i <= n; i++) at = strstr(at + 1, "<svg");
        CHECK(at != NULL, "the report lacks figure %d", n + 1);
    }
    free(report);
    make_run("unwatched", UNWATCHED);
    CHECK(!run_has("unwatched", "analysis"), "analysis of nothing");
}

/* Task by task the first number of --probe-shots is drawn, and the figures say which; one more has the mean at each. */
static void test_analysis_of_several_shots(void)
{
    static const char *const SHOWN[][2] = {{"format_ratio", "title"}, {"held_out", "title"}, {"tradeoff", "y_label"}};
    Figure *figure;
    const PlotSeries *path;
    cJSON *log;
    const cJSON *record;
    double mean = NAN;
    char *names;
    if (!fixture()) return;
    write_qa();
    make_run("several", SEVERAL);
    names = list_run("several", "analysis");
    CHECK(strstr(names, "held_out_by_shots.csv held_out_by_shots.json held_out_by_shots.svg ") &&
              strstr(names, "trained_by_shots.csv trained_by_shots.json trained_by_shots.svg "),
          "%s", names);
    free(names);
    check_curve("several", "held_out_by_shots", "4-shot", "mean", 4);
    check_curve("several", "held_out_by_shots", "0-shot", "mean", 0);
    check_curve("several", "held_out_by_shots", "1-shot", "mean", 1);
    check_curve("several", "trained_by_shots", "4-shot", "trained_mean", 4);
    check_curve("several", "trained_by_shots", "0-shot", "trained_mean", 0);
    check_curve("several", "held_out", "other", "score", 4);
    check_curve("several", "held_out", "mean", "mean", 4);
    check_curve("several", "format_ratio", "mean", "format_ratio", 4);
    for (int i = 0; i < 3; i++) {
        char *json = text_format("analysis/%s.json", SHOWN[i][0]);
        cJSON *of_several = run_read_json("several", json);
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(of_several, SHOWN[i][1]));
        CHECK(text && strstr(text, ", 4-shot"), "%s: %s", SHOWN[i][0], text);
        cJSON_Delete(of_several);
        free(json);
    }
    log = run_log("several");
    cJSON_ArrayForEach(record, log) if (cJSON_GetObjectItem(record, "probe") && number_in(record, "shots") == 4) mean =
        number_in(record, "mean");
    cJSON_Delete(log);
    figure = read_figure("several", "tradeoff");
    path = figure ? series_of(figure_plot(figure), "checkpoints") : NULL;
    CHECK(path && path->n == 2 && path->y[1] == mean, "tradeoff (expected %g at last)", mean);
    figure_free(figure);
}

/* steps/: models that eval takes, prompts that eval takes; NAME.npy: the prompt once more. */
static void test_kept_checkpoints(void)
{
    cJSON *log;
    const cJSON *record;
    float *peft = NULL, *npy = NULL;
    size_t length[2] = {0}, width[2] = {0};
    Error error = {0};
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    check_text(list_run("watched", "steps"), "model-000030 model-000060 prompt-000002 ", "steps/");
    check_text(list_run("watched", "steps/model-000030"), "config.json model.safetensors spiece.model ",
               "a kept model");
    check_text(list_run("watched", "steps/prompt-000002"), "toy toy.npy ", "a kept prompt");
    SAME("watched/steps/prompt-000002/toy/adapter_model.safetensors", "watched/prompt/toy/adapter_model.safetensors");
    SAME("watched/steps/prompt-000002/toy.npy", "watched/prompt/toy.npy");
    DIFFERENT("watched/steps/model-000030/model.safetensors", "watched/steps/model-000060/model.safetensors");
    make_run("kept", "eval --model " SCRATCH "/watched/steps/model-000060 --prompt " SCRATCH
                     "/watched/steps/prompt-000002/toy.npy " EVAL_TOY " --max-length 20");
    log = run_log("watched");
    cJSON_ArrayForEach(record, log) if (cJSON_GetObjectItem(record, "dev") && number_in(record, "step") == 60)
        CHECK(fabs(number_in(record, "mean") - result_of("kept", "toy", "0")) < 1e-9, "dev %g, eval %g",
              number_in(record, "mean"), result_of("kept", "toy", "0"));
    cJSON_Delete(log);
    CHECK(prompt_file_read(SCRATCH "/watched/prompt/toy", &peft, &length[0], &width[0], &error) == 0 &&
              prompt_file_read(SCRATCH "/watched/prompt/toy.npy", &npy, &length[1], &width[1], &error) == 0,
          "%s", error.text);
    CHECK(length[0] == 4 && width[0] == 16 && length[1] == 4 && width[1] == 16 &&
              memcmp(peft, npy, 4 * 16 * sizeof *npy) == 0,
          "the .npy is another prompt");
    free(peft);
    free(npy);
    make_run("kept-lora", SHORT " --method lora --lora-steps 2 --lora-checkpoint-every 1 --keep-checkpoints");
    check_text(list_run("kept-lora", "steps"), "lora-000001 lora-000002 ", "steps/");
    check_text(list_run("kept-lora", "steps/lora-000001"), "adapter_config.json adapter_model.safetensors ", "LoRA");
    make_run("kept-joint", SHORT " --method joint --steps 2 --checkpoint-every 1 --keep-checkpoints");
    check_text(list_run("kept-joint", "steps/joint-000001/prompt"), "toy ", "a kept prompt with its model");
}

/* --------------------------------------------------------------------------------------------- runs that are killed */

/* The same names and bytes in both trees; logs but for their seconds. */
static void check_same_tree(const char *a, const char *b)
{
    char *in_a = list_directory(a), *in_b = list_directory(b), *rest = NULL;
    CHECK(strcmp(in_a, in_b) == 0, "%s: %s(expected %s)", a, in_a, in_b);
    for (char *name = strtok_r(in_b, " ", &rest); name; name = strtok_r(NULL, " ", &rest)) {
        char *x = path_join(a, name), *y = path_join(b, name);
        if (path_is_directory(y)) {
            check_same_tree(x, y);
        } else if (strcmp(name, "log.jsonl") == 0) {
            cJSON *of_x = read_json_lines(x), *of_y = read_json_lines(y), *record;
            cJSON_ArrayForEach(record, of_x) cJSON_DeleteItemFromObject(record, "seconds");
            cJSON_ArrayForEach(record, of_y) cJSON_DeleteItemFromObject(record, "seconds");
            CHECK(cJSON_Compare(of_x, of_y, true), "%s differs from %s", x, y);
            cJSON_Delete(of_x);
            cJSON_Delete(of_y);
        } else {
            CHECK(same_file(x, y), "%s differs from %s", x, y);
        }
        free(x);
        free(y);
    }
    free(in_a);
    free(in_b);
}

#define KEPT " --keep-checkpoints --npy --probe-every 4 " PROBES

/* With everything that a run may leave. */
static void test_kills_of_promot_lora(void)
{
#define KILLED SHORT " --method promot-lora --lora-steps 60 --lora-checkpoint-every 9 --steps 60 --lora-rank 2" KEPT
    int kills[2] = {0};
    if (!fixture()) return;
    write_qa();
    make_run("killed", KILLED);
    CHECK(rename(SCRATCH "/killed", SCRATCH "/whole") == 0, "rename"); /* an adapter names the run's model */
    kill_until_done(KILLED " --out " SCRATCH "/killed", "killed", 11, "model", 250, kills);
    CHECK(kills[0] >= 8 && kills[1] >= 8, "%d and %d kills are too few", kills[0], kills[1]);
    check_same_tree(SCRATCH "/killed", SCRATCH "/whole");
}

/* Dies at each operation around the probes before the first step. */
static void test_kills_before_the_first_step(void)
{
#define BEGINNING SHORT " --method finetune --steps 2" KEPT
    int status = -SIGKILL;
    long operation;
    if (!fixture()) return;
    write_qa();
    for (operation = 1; status == -SIGKILL && operation < 16; operation++) {
        forget_run("begin");
        status = promot_with(&(Disk){.at = operation, .fate = DIE}, 0, BEGINNING " --out " SCRATCH "/begin");
        check_promot(BEGINNING " --resume --out " SCRATCH "/begin");
        check_text(log_in_short("begin"), "model 0p 1 2 2d 2p ", "resumed");
    }
    CHECK(operation == 16, "only %ld operations", operation);
}

static int count_probes(const char *run)
{
    char *path = run_path(run, "log.jsonl"), *text = read_text(path);
    int n = 0;
    for (const char *at = text; (at = strstr(at, "\"probe\":")); at++) n++;
    free(path);
    free(text);
    return n;
}

/* Dies between the records of a step, before a state was saved and after: a resumed run leaves none twice or out. */
static void test_kills_between_probes_of_a_step(void)
{
#define THREEFOLD SHORT " --method finetune --steps 4" KEPT " --probe-every 2 --probe-shots 2,0,1 --probe-trained"
    int probes = 0, between = 0;
    if (!fixture()) return;
    write_qa();
    make_run("threefold", THREEFOLD);
    check_text(log_in_short("threefold"), "model 0p 0p 0p 1 2 2p 2p 2p 3 4 4d 4p 4p 4p ", "a record for each number");
    for (long operation = 1; probes < 9 && operation < 200; operation++) {
        forget_run("between");
        CHECK(promot_with(&(Disk){.at = operation, .fate = DIE}, 0, THREEFOLD " --out " SCRATCH "/between") == -SIGKILL,
              "not killed at operation %ld", operation);
        probes = count_probes("between");
        if (probes % 3 == 0) continue;
        check_promot(THREEFOLD " --resume --out " SCRATCH "/between");
        check_same_tree(SCRATCH "/between", SCRATCH "/threefold");
        between++;
    }
    CHECK(probes == 9 && between >= 6, "%d kills between %d probes", between, probes);
}

/* Dies at each operation of the final writing in turn: model, prompts, .npy, what the probes showed. */
static void test_kills_while_the_analysis_is_written(void)
{
#define ENDING SHORT " --steps 4 --prompt-steps 2" KEPT
    long operation, begin;
    int status = -SIGKILL;
    if (!fixture()) return;
    write_qa();
    make_run("end-whole", ENDING);
    CHECK(promot_with(&(Disk){.at = disk.microseconds - 4, .fate = DIE}, 0, ENDING " --out " SCRATCH "/end") ==
              -SIGKILL,
          "killed before its end");
    begin = (long)log_length("end");
    for (operation = begin; status == -SIGKILL && operation < begin + 400; operation++)
        status = promot_with(&(Disk){.at = operation, .fate = DIE}, 0, ENDING " --resume --out " SCRATCH "/end");
    CHECK(status == 0 && operation > begin + 60, "exit %d after %ld operations", status, operation - begin);
    check_promot(ENDING " --resume --out " SCRATCH "/end");
    check_same_tree(SCRATCH "/end", SCRATCH "/end-whole");
}

/* ---------------------------------------------------------------------------------------------------- several tasks */

#define THREE "--task a=" SCRATCH "/a.jsonl --task b=" SCRATCH "/b.jsonl --task c=" SCRATCH "/c.jsonl"
#define THREE_FILES "--task-file " SCRATCH "/a.json --task-file " SCRATCH "/b.json --task-file " SCRATCH "/c.json"

/* Tasks a, b and c of 60, 20 and 10 rows. All rows of a task have the same number of ids, and another one than those of
 * the other tasks, so that a batch of one row tells where it came from. */
static void write_three(void)
{
    static const char *const inputs[] = {"the cat", "the cat the cat the cat",
                                         "the cat the cat the cat the cat the cat"};
    static const int sizes[] = {60, 20, 10};
    if (path_exists(SCRATCH "/a.json")) return;
    for (int t = 0; t < 3; t++) {
        char *path = text_format(SCRATCH "/%c.json", 'a' + t), *whole;
        TextBuffer text = {0};
        whole = text_format("{\"name\": \"%c\", \"template\": \"say {text} answer:\", \"labels\": {\"0\": \"False\", "
                            "\"1\": \"True\"}}",
                            'a' + t);
        write_file(path, whole);
        free(whole);
        free(path);
        for (int i = 0; i < sizes[t]; i++)
            text_put_format(&text, "{\"text\": \"%s\", \"label\": \"%d\"}\n", inputs[t], t == 1);
        path = text_format(SCRATCH "/%c.jsonl", 'a' + t);
        whole = text_take(&text);
        write_file(path, whole);
        free(whole);
        free(path);
    }
}

/* The share of each task in a run's batches of one. */
static void check_shares(const char *run, double a, double b, double c)
{
    enum { MOST = 200 };
    const double expected[3] = {a, b, c};
    size_t seen[MOST] = {0}, task = 0;
    double n = 0;
    cJSON *log = run_log(run);
    const cJSON *record;
    cJSON_ArrayForEach(record, log)
    {
        double tokens = number_in(record, "tokens");
        if (tokens >= 0 && tokens < MOST) seen[(size_t)tokens]++, n++;
    }
    for (size_t tokens = 0; tokens < MOST; tokens++) {
        if (!seen[tokens]) continue;
        /* 600 draws: a share of 0.4 has a standard deviation of 0.02 */
        CHECK(task < 3 && fabs((double)seen[tokens] / n - expected[task]) < 0.06, "%s: %zu of %g are from task %zu",
              run, seen[tokens], n, task);
        task++;
    }
    CHECK(task == 3 && n > 599, "%s: %zu tasks in %g batches", run, task, n);
    cJSON_Delete(log);
}

static void test_mixtures(void)
{
#define MIXED                                                                                                          \
    "train --model " SCRATCH "/model " THREE " " THREE_FILES                                                           \
    " --threads 1 --quiet --method finetune --seed 5 --batch 1 --steps 600 --checkpoint-every 600 --beams 1 "          \
    "--max-length 2"
    if (!fixture()) return;
    write_three();
    make_run("mixed", MIXED);
    check_shares("mixed", 60. / 90, 20. / 90, 10. / 90);
    make_run("mixed-cap", MIXED " --mixing size --mixing-cap 20");
    check_shares("mixed-cap", .4, .4, .2);
    make_run("mixed-equal", MIXED " --mixing equal");
    check_shares("mixed-equal", 1. / 3, 1. / 3, 1. / 3);
}

#define OTHER "--task other=" SCRATCH "/data --task-file " SCRATCH "/other.json"
#define EVAL_THREE "--threads 1 --quiet --beams 1 --max-length 3 --limit 2 " THREE_FILES " "

/* One prompt for each task; eval --prompt RUN/prompt gives each task its own, and tasks that have none, none. */
static void test_prompts_of_several_tasks(void)
{
    if (!fixture()) return;
    write_three();
    make_run("three", "train --model " SCRATCH "/model " THREE " " THREE_FILES
                      " --threads 1 --quiet --beams 1 --prompt-length 5 --prompt-lr 3 --prompt-steps 30 --batch 12 "
                      "--mixing equal --steps 30 --lr 0.03 --label-smoothing 0 --dropout 0 --max-length 3");
    check_text(list_run("three", "prompt"), "a b c ", "a prompt each");
    make_run("three-all",
             "eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt " THREE " " OTHER " " EVAL_THREE);
    make_run("three-a", "eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt/a --task a=" SCRATCH
                        "/a.jsonl " EVAL_THREE);
    make_run("three-b", "eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt/b --task b=" SCRATCH
                        "/b.jsonl " EVAL_THREE);
    make_run("three-wrong", "eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt/a --task b=" SCRATCH
                            "/b.jsonl " EVAL_THREE);
    make_run("three-none", "eval --model " SCRATCH "/three/model " OTHER " " EVAL_THREE);
    make_run("three-other",
             "eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt/a " OTHER " " EVAL_THREE);
    SAME("three-all/predictions/a.0.jsonl", "three-a/predictions/a.0.jsonl");
    SAME("three-all/predictions/b.0.jsonl", "three-b/predictions/b.0.jsonl");
    SAME("three-all/predictions/other.0.jsonl", "three-none/predictions/other.0.jsonl");
    DIFFERENT("three-b/predictions/b.0.jsonl", "three-wrong/predictions/b.0.jsonl");
    DIFFERENT("three-other/predictions/other.0.jsonl", "three-none/predictions/other.0.jsonl");
    check_refused("eval --model " SCRATCH "/three/model --prompt " SCRATCH "/three/prompt " OTHER, "prompt");
    check_refused("eval --model " SCRATCH "/three/model --prompt " SCRATCH
                  "/three/prompt --prompt-tasks a,other --task a=" SCRATCH "/a.jsonl " THREE_FILES " " OTHER,
                  "other");
}

/* One task after the other: the second run's prompt/ serves both, and starts a run of both without a first stage. */
static void test_sequential_tasks(void)
{
    if (!fixture()) return;
    make_run("first", SHORT " --steps 2 --prompt-steps 2");
    make_run("second", "train --model " SCRATCH "/first/model " OTHER " " COMMON
                       " --prompt-length 6 --batch 4 --prompt-steps 2 --steps 2 --max-length 3");
    check_text(list_run("second", "prompt"), "other toy ", "prompts");
    check_text(list_run("second", "prompt/toy"), "adapter_config.json adapter_model.safetensors ", "prompts");
    SAME("first/prompt/toy/adapter_model.safetensors", "second/prompt/toy/adapter_model.safetensors");
    SAME("first/prompt/toy/adapter_config.json", "second/prompt/toy/adapter_config.json");
    make_run("third", "train --model " SCRATCH "/first/model " TOY " " COMMON
                      " --prompt-length 4 --batch 4 --prompt-steps 2 --steps 2 --max-length 3 --prompt-lr 1");
    check_text(list_run("third", "prompt"), "toy ", "prompts");
    DIFFERENT("first/prompt/toy/adapter_model.safetensors", "third/prompt/toy/adapter_model.safetensors");
    check_refused("train --model " SCRATCH "/second/model --prompt " SCRATCH "/second/prompt " BOTH
                  " --quiet --out " SCRATCH "/refused",
                  "4");
    make_run("fourth", "train --model " SCRATCH "/first/model " OTHER " " COMMON
                       " --prompt-length 4 --batch 4 --prompt-steps 2 --steps 2 --max-length 3");
    make_run("both", "train --model " SCRATCH "/fourth/model --prompt " SCRATCH "/fourth/prompt " BOTH " " COMMON
                     " --batch 4 --steps 2 --max-length 3");
    check_text(log_in_short("both"), "model 1 2 2d ", "with given prompts");
    SAME("both/prompt/toy/adapter_model.safetensors", "first/prompt/toy/adapter_model.safetensors");
    SAME("both/prompt/other/adapter_model.safetensors", "fourth/prompt/other/adapter_model.safetensors");
    check_refused("train --model " SCRATCH "/model --prompt " SCRATCH "/first/prompt " BOTH " --quiet --out " SCRATCH
                  "/refused",
                  "no prompt for other");
    CHECK(!run_has("refused", ""), "a refused run has left a directory");
}

/* ------------------------------------------------------------------------------------------------------- evaluation */

/* The mean of the scores in a predictions file. */
static double mean_score(const char *run, const char *name)
{
    char *path = text_format(SCRATCH "/%s/predictions/%s", run, name);
    cJSON *all = read_json_lines(path);
    const cJSON *one;
    double mean = 0;
    cJSON_ArrayForEach(one, all) mean += number_in(one, "score") / cJSON_GetArraySize(all);
    cJSON_Delete(all);
    free(path);
    return mean;
}

static void check_spread(const cJSON *scores, const cJSON *spreads, const char *shots, const double draws[3])
{
    double mean = (draws[0] + draws[1] + draws[2]) / 3, squares = 0;
    const cJSON *spread = cJSON_GetObjectItem(spreads, shots);
    for (int d = 0; d < 3; d++) squares += (draws[d] - mean) * (draws[d] - mean);
    CHECK(fabs(number_in(scores, shots) - mean) < 1e-9 && fabs(number_in(spread, "sd") - sqrt(squares / 2)) < 1e-9,
          "%s shots: %g, sd %g (expected %g, %g)", shots, number_in(scores, shots), number_in(spread, "sd"), mean,
          sqrt(squares / 2));
    for (int d = 0; d < 3; d++)
        CHECK(fabs(cJSON_GetNumberValue(cJSON_GetArrayItem(cJSON_GetObjectItem(spread, "draws"), d)) - draws[d]) < 1e-9,
              "draw %d", d + 1);
}

#define DRAWN                                                                                                          \
    "eval --model " SCRATCH "/watched/steps/model-000060 " BOTH " --shots 0,2 --draws 3 --threads 1 --quiet "          \
    "--beams 1 --max-length 8"

/* Worked examples drawn three times: results.json has the mean and the spread of what the predictions say. */
static void test_draws(void)
{
    static const char *const names[3] = {"2.jsonl", "2.draw2.jsonl", "2.draw3.jsonl"};
    double draws[3][3]; /* of toy, of other, of their mean */
    cJSON *results;
    const cJSON *toy;
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    make_run("drawn", DRAWN);
    for (int d = 0; d < 3; d++) {
        char *of_toy = text_format("toy.%s", names[d]), *of_other = text_format("other.%s", names[d]);
        draws[0][d] = mean_score("drawn", of_toy);
        draws[1][d] = mean_score("drawn", of_other);
        draws[2][d] = (draws[0][d] + draws[1][d]) / 2;
        free(of_toy);
        free(of_other);
    }
    CHECK(draws[0][0] != draws[0][1] || draws[0][1] != draws[0][2], "the test is not sharp: all draws score %g",
          draws[0][0]);
    results = run_read_json("drawn", "results.json");
    toy = cJSON_GetObjectItem(cJSON_GetObjectItem(results, "tasks"), "toy");
    check_spread(cJSON_GetObjectItem(toy, "scores"), cJSON_GetObjectItem(toy, "spread"), "2", draws[0]);
    CHECK(fabs(score_of(results, "toy", "0") - mean_score("drawn", "toy.0.jsonl")) < 1e-9 &&
              !cJSON_GetObjectItem(cJSON_GetObjectItem(toy, "spread"), "0"),
          "without shots there is one draw");
    check_spread(cJSON_GetObjectItem(results, "norm_avg"), cJSON_GetObjectItem(results, "norm_avg_spread"), "2",
                 draws[2]);
    cJSON_Delete(results);
    check_text(list_run("drawn", "predictions"),
               "other.0.jsonl other.2.draw2.jsonl other.2.draw3.jsonl other.2.jsonl toy.0.jsonl toy.2.draw2.jsonl "
               "toy.2.draw3.jsonl toy.2.jsonl ",
               "predictions/");
    DIFFERENT("drawn/predictions/toy.2.jsonl", "drawn/predictions/toy.2.draw2.jsonl");
    DIFFERENT("drawn/predictions/toy.2.draw2.jsonl", "drawn/predictions/toy.2.draw3.jsonl");
    make_run("drawn-again", DRAWN);
    check_same_tree(SCRATCH "/drawn-again", SCRATCH "/drawn");
    make_run("drawn-once", "eval --model " SCRATCH "/watched/steps/model-000060 " BOTH
                           " --shots 2 --threads 1 --quiet --beams 1 --max-length 8");
    SAME("drawn-once/predictions/toy.2.jsonl", "drawn/predictions/toy.2.jsonl");
    make_run("drawn-otherwise", DRAWN " --seed 1");
    DIFFERENT("drawn-otherwise/predictions/toy.2.jsonl", "drawn/predictions/toy.2.jsonl");
    SAME("drawn-otherwise/predictions/toy.0.jsonl", "drawn/predictions/toy.0.jsonl");
}

/* Evaluations side by side: what is printed and written is data/results.c's table of the two, under their names. */
/* Resuming is for runs: what else lies in a directory is not touched. */
static void test_no_run_to_resume(void)
{
    char *text;
    if (!fixture()) return;
    mkdir(SCRATCH "/keep", 0777);
    mkdir(SCRATCH "/keep/model", 0777);
    Error error = {0};
    CHECK(file_write_text(SCRATCH "/keep/model/thesis.txt", "years", &error) == 0, "%s", error.text);
    CHECK(promot("train --resume --model " SCRATCH "/model --task-file " SCRATCH "/toy.json --task toy=" SCRATCH
                 "/data --out " SCRATCH "/keep") == 2 &&
              errors_contain("no run to resume") && error_lines() == 1,
          "not refused");
    text = read_text(SCRATCH "/keep/model/thesis.txt");
    CHECK(strcmp(text, "years") == 0, "thesis.txt: %s", text);
    free(text);
    CHECK(promot("train --model " SCRATCH "/model --task-file " SCRATCH "/toy.json --task toy=" SCRATCH
                 "/data --prompt " SCRATCH "/nowhere --out " SCRATCH "/none") == 2 &&
              errors_contain("nowhere") && error_lines() == 1,
          "a prompt that is not there");
}

static void test_compare(void)
{
    static const char *const formats[] = {"text", "csv", "markdown"}, *const files[] = {"txt", "csv", "md"};
    static const char *const labels[2] = {"spread", SCRATCH "/watched/scores"};
    cJSON *results[2] = {NULL}, *printed;
    Error error = {0};
    char *text;
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    make_run("drawn", DRAWN);
    make_run("watched/scores", "eval --model " SCRATCH "/watched/model --prompt " SCRATCH "/watched/prompt " BOTH
                               " --shots 0,2 --threads 1 --quiet --beams 1 --limit 5 --max-length 8");
    CHECK(results_read(SCRATCH "/drawn", &results[0], &error) == 0 &&
              results_read(SCRATCH "/watched/scores", &results[1], &error) == 0,
          "%s", error.text);
    check_promot("eval --compare spread=" SCRATCH "/drawn " SCRATCH "/watched/scores --json --out " SCRATCH
                 "/compared");
    text = standard_output();
    printed = cJSON_Parse(text);
    CHECK(cJSON_GetArraySize(printed) == 2 &&
              cJSON_Compare(cJSON_GetObjectItem(printed, labels[0]), results[0], true) &&
              cJSON_Compare(cJSON_GetObjectItem(printed, labels[1]), results[1], true),
          "--json prints %s", text);
    cJSON_Delete(printed);
    free(text);
    check_text(list_run("compared", ""),
               "format_ratio.csv format_ratio.json format_ratio.svg held_out.csv held_out.json held_out.svg "
               "report.html table.csv table.md table.txt tradeoff.csv tradeoff.json tradeoff.svg ",
               "--out");
    for (int f = 0; f < 3; f++) {
        char *path = text_format(SCRATCH "/compared/table.%s", files[f]),
             *expected = results_compare((const cJSON *const *)results, labels, 2, (TableFormat)f);
        CHECK(strstr(expected, "spread") && strstr(expected, labels[1]), "%s", expected);
        check_text(read_text(path), expected, path);
        check_promot("eval --compare spread=" SCRATCH "/drawn " SCRATCH "/watched/scores --format %s", formats[f]);
        check_text(standard_output(), expected, formats[f]);
        free(expected);
        free(path);
    }
    text = read_text(SCRATCH "/compared/report.html");
    CHECK(strstr(text, "<table") && strstr(text, "spread") && strstr(text, "<svg") && strstr(text, "</html>"),
          "report.html");
    free(text);
    text = read_text(SCRATCH "/compared/held_out.json");
    CHECK(strstr(text, SCRATCH) && strstr(text, "/scores"), "the curve has its run's name: %s", text);
    free(text);
    cJSON_Delete(results[0]);
    cJSON_Delete(results[1]);
    make_run("several", SEVERAL); /* whose figures show 4 worked examples first, and those of the other run 1 */
    make_run("several/scores", "eval --model " SCRATCH "/several/model " BOTH
                               " --shots 0 --threads 1 --quiet --beams 1 --limit 5 --max-length 8");
    check_refused("eval --compare " SCRATCH "/watched/scores " SCRATCH "/several/scores --out " SCRATCH "/unlike",
                  ", 4-shot");
    check_refused("eval --compare " SCRATCH "/nowhere", "nowhere");
    check_refused("eval --compare " SCRATCH "/drawn --format table", "--format");
}

/* Rows that are told apart by their numbers. */
static void write_rows(const char *path, int first, int count)
{
    TextBuffer text = {0};
    char *whole;
    for (int i = first; i < first + count; i++)
        text_put_format(&text, "{\"text\": \"number %d\", \"label\": \"%d\"}\n", i, i % 2);
    whole = text_take(&text);
    write_file(path, whole);
    free(whole);
}

/* The scored split is the test split where there is one, unless the command says which. */
static void test_splits_to_score(void)
{
#define SCORED                                                                                                         \
    "eval --model " SCRATCH "/model --task-file " SCRATCH "/toy.json --task-file " SCRATCH                             \
    "/tested.json --threads 1 --quiet --beams 1 --max-length 2 "
    static const struct {
        const char *run, *tasks;
        double n;
    } cases[] = {{"split-test", "--task tested=" SCRATCH "/splits", 4},
                 {"split-no-test", "--task toy=" SCRATCH "/splits", 3}, /* the task does not say that it has one */
                 {"split-named", "--task toy=" SCRATCH "/splits --task toy.test=" SCRATCH "/one.jsonl", 1},
                 {"split-dev", "--task toy=" SCRATCH "/data", 20},
                 {"split-dev-named", "--task toy.dev=" SCRATCH "/splits/dev.jsonl", 3},
                 {"split-file", "--task toy=" SCRATCH "/splits/train.jsonl", 6}};
    Error error = {0};
    if (!fixture()) return;
    CHECK(directory_create(SCRATCH "/splits", &error) == 0, "%s", error.text);
    write_file(SCRATCH "/tested.json", "{\"name\": \"tested\", \"template\": \"{text}\", \"target\": \"{label}\", "
                                       "\"metric\": \"squad-em\", \"test\": \"test.jsonl\"}");
    write_rows(SCRATCH "/splits/train.jsonl", 0, 6);
    write_rows(SCRATCH "/splits/dev.jsonl", 10, 3);
    write_rows(SCRATCH "/splits/test.jsonl", 20, 4);
    write_rows(SCRATCH "/one.jsonl", 30, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *results;
        make_run(cases[i].run, SCORED "%s", cases[i].tasks);
        results = run_read_json(cases[i].run, "results.json");
        CHECK(fabs(number_in(cJSON_GetObjectItem(results, "tasks")->child, "n") - cases[i].n) < 0.5, "%s",
              cases[i].run);
        cJSON_Delete(results);
    }
}

/* The input of example number i that --show has just printed, and how many ids were cut; to be freed. */
static char *shown_input(int i, double *ids, double *cut)
{
    char *path = text_format(SCRATCH "/stdout"), *input;
    cJSON *all = read_json_lines(path);
    const cJSON *one = cJSON_GetArrayItem(all, i), *list = cJSON_GetObjectItem(one, "input_ids");
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(one, "input"));
    const cJSON *last = cJSON_GetArrayItem(list, cJSON_GetArraySize(list) - 1);
    CHECK(last && last->valueint == 1, "EOS at the end");
    if (ids) *ids = cJSON_GetArraySize(list);
    if (cut) *cut = number_in(one, "input_ids_cut");
    input = text_format("%s", text ? text : "");
    cJSON_Delete(all);
    free(path);
    return input;
}

/* One file for everything: its examples stand in front of each other, never of themselves. */
static void test_worked_examples(void)
{
#define SHOWN "eval --model " SCRATCH "/model --task-file " SCRATCH "/toy.json --quiet --task toy=" SCRATCH
    if (!fixture()) return;
    write_rows(SCRATCH "/two.jsonl", 0, 2);
    write_rows(SCRATCH "/five.jsonl", 0, 5);
    check_promot(SHOWN "/two.jsonl --shots 1 --show 2");
    check_text(shown_input(0, NULL, NULL), "say number 1 answer: True say number 0 answer:", "the first");
    check_text(shown_input(1, NULL, NULL), "say number 0 answer: False say number 1 answer:", "the second");
    check_promot(SHOWN "/two.jsonl --shots 1 --show 2 --separator ### --input-ending <end>");
    check_text(shown_input(0, NULL, NULL), "say number 1 answer: True###say number 0 answer:<end>", "separated");
    check_promot(SHOWN "/five.jsonl --shots 4 --show 5");
    for (int i = 0; i < 5; i++) { /* all five are there, so each of the others once; its own is the last */
        char *input = shown_input(i, NULL, NULL);
        for (int k = 0; k < 5; k++) {
            char *row = text_format("say number %d answer:", k);
            const char *at = strstr(input, row);
            CHECK(at && !strstr(at + 1, row) && (strlen(at) == strlen(row)) == (k == i), "row %d in: %s", k, input);
            free(row);
        }
        free(input);
    }
    check_refused(SHOWN "/five.jsonl --shots 5", "found 4");
}

/* Every input in a predictions file of eval's begins with so many examples in the words of other.json (a number from
 * `first` to `last`, and the answer that it has: odd numbers are True), and ends with toy's own question. */
static void check_examples_of_other(const char *file, int shots, int first, int last, int own)
{
    char *path = text_format(SCRATCH "/of-other/predictions/%s", file), *expected;
    cJSON *all = read_json_lines(path);
    const cJSON *one;
    CHECK(cJSON_GetArraySize(all) == 3, "%s: %d lines", file, cJSON_GetArraySize(all));
    cJSON_ArrayForEach(one, all)
    {
        const char *input = cJSON_GetStringValue(cJSON_GetObjectItem(one, "input")), *at = input ? input : "";
        for (int k = 0; k < shots; k++) {
            int number = -1, length = 0;
            char label[8] = "";
            sscanf(at, "number %d was it blue? %7s %n", &number, label, &length);
            CHECK(length > 0 && first <= number && number <= last && strcmp(label, number % 2 ? "True" : "False") == 0,
                  "%s: example %d of: %s", file, k, input);
            at += length;
        }
        expected = text_format("say number %d answer:", own++);
        CHECK(strcmp(at, expected) == 0, "%s: %s (expected %s at its end)", file, input, expected);
        free(expected);
    }
    cJSON_Delete(all);
    free(path);
}

#define TOY_AND_OTHER                                                                                                  \
    "eval --model " SCRATCH "/model --task-file " SCRATCH "/toy.json --task-file " SCRATCH                             \
    "/other.json --threads 1 --quiet --beams 1 --max-length 2 "
#define OWN_FILES                                                                                                      \
    TOY_AND_OTHER "--task toy.dev=" SCRATCH "/own.jsonl --task other.train=" SCRATCH                                   \
                  "/examples.jsonl --task other.dev=" SCRATCH "/asked.jsonl "

/* --examples-of other: toy, whose training split nobody has named, is asked after other's examples. */
static void test_examples_of_another_task(void)
{
    char *input;
    if (!fixture()) return;
    write_rows(SCRATCH "/own.jsonl", 10, 3);
    write_rows(SCRATCH "/examples.jsonl", 20, 4);
    write_rows(SCRATCH "/asked.jsonl", 30, 2);
    make_run("of-other", OWN_FILES "--examples-of other --shots 0,1,3 --draws 2");
    check_examples_of_other("toy.0.jsonl", 0, 0, 0, 10);
    check_examples_of_other("toy.1.jsonl", 1, 20, 23, 10);
    check_examples_of_other("toy.3.jsonl", 3, 20, 23, 10);
    check_examples_of_other("toy.3.draw2.jsonl", 3, 20, 23, 10);
    DIFFERENT("of-other/predictions/toy.3.jsonl", "of-other/predictions/toy.3.draw2.jsonl");
    make_run("of-itself", OWN_FILES "--task toy.train=" SCRATCH "/own.jsonl --shots 0,1,3 --draws 2");
    SAME("of-other/predictions/other.0.jsonl", "of-itself/predictions/other.0.jsonl"); /* the task of the examples */
    SAME("of-other/predictions/other.3.draw2.jsonl", "of-itself/predictions/other.3.draw2.jsonl");
    DIFFERENT("of-other/predictions/toy.3.jsonl", "of-itself/predictions/toy.3.jsonl");
    check_promot(OWN_FILES "--examples-of other --shots 1 --show 3");
    input = shown_input(2, NULL, NULL);
    CHECK(strstr(input, " was it blue? ") && strstr(input, "say number 12 answer:"), "--show: %s", input);
    free(input);
}

/* One file for both tasks: no row is shown its own answer, in the other task's words or in its own. */
static void test_examples_of_the_same_file(void)
{
#define ONE_FILE TOY_AND_OTHER "--task toy=" SCRATCH "/both.jsonl --task other=" SCRATCH "/both.jsonl "
    if (!fixture()) return;
    write_rows(SCRATCH "/both.jsonl", 0, 2);
    check_promot(ONE_FILE "--examples-of other --shots 1 --show 2");
    check_text(shown_input(0, NULL, NULL), "number 1 was it blue? True say number 0 answer:", "toy's first");
    check_text(shown_input(1, NULL, NULL), "number 0 was it blue? False say number 1 answer:", "toy's second");
    check_text(shown_input(2, NULL, NULL), "number 1 was it blue? True number 0 was it blue?", "other's first");
    check_text(shown_input(3, NULL, NULL), "number 0 was it blue? False number 1 was it blue?", "other's second");
    check_refused(ONE_FILE "--examples-of other --shots 2", "found 1");
    check_refused(ONE_FILE "--examples-of third --shots 1",
                  "--examples-of: expected the name of one of the tasks, found third");
    check_refused(ONE_FILE "--examples-of other", "--examples-of: expected a number of --shots above 0, found 0");
    check_refused(TOY_AND_OTHER "--task toy=" SCRATCH "/both.jsonl --task other.dev=" SCRATCH
                                "/both.jsonl --examples-of other --shots 1",
                  "other.train=FILE is needed");
}

/* Summaries are cut at 1024 ids, as in the paper, or where the command says; the longest input is told. */
static void test_long_inputs(void)
{
#define XSUM "eval --model " SCRATCH "/model --threads 1 --beams 1 --max-length 2 --task xsum=" SCRATCH "/xsum.jsonl"
    TextBuffer text = {0};
    double ids, cut;
    char *whole;
    if (!fixture()) return;
    text_put(&text, "{\"summary\": \"the cat\", \"document\": \"");
    for (int i = 0; i < 700; i++) text_put(&text, "the cat ");
    text_put(&text, "\"}\n{\"summary\": \"a dog\", \"document\": \"a dog\"}\n");
    whole = text_take(&text);
    write_file(SCRATCH "/xsum.jsonl", whole);
    write_rows(SCRATCH "/short.jsonl", 0, 3);
    free(whole);
    check_promot(XSUM " --show 2");
    free(shown_input(0, &ids, &cut));
    CHECK(ids == 1024 && cut > 1000, "%g ids, %g cut", ids, cut);
    free(shown_input(1, &ids, &cut));
    CHECK(ids < 100 && cut == 0, "%g ids, %g cut", ids, cut);
    check_promot(XSUM " --show 2 --max-input-length 50");
    free(shown_input(0, &ids, &cut));
    CHECK(ids == 50 && cut > 2000, "%g ids, %g cut", ids, cut);
    check_promot(XSUM " --show 2 --max-input-length 100000");
    free(shown_input(0, &ids, &cut));
    CHECK(ids > 2000 && cut == 0, "%g ids, %g cut", ids, cut);
    check_promot(XSUM);
    CHECK(errors_contain("longest input 1024 ids") && errors_contain("1 examples were longer"), "what is told");
    check_promot(SHOWN "/short.jsonl --show 1");
    free(shown_input(0, &ids, &cut));
    whole = text_format("longest input %g ids\n", ids);
    check_promot("eval --model " SCRATCH "/model --threads 1 --beams 1 --max-length 2 --task-file " SCRATCH
                 "/toy.json --task toy=" SCRATCH "/short.jsonl");
    CHECK(errors_contain(whole), "what is told");
    free(whole);
}

/* -------------------------------------------------------------------------------------------------------- alignment */

#define ALIGN "align --task-file " SCRATCH "/toy.json --task toy=" SCRATCH "/data --threads 1 --quiet"

/* What align --json has just printed; to be deleted. */
static cJSON *printed_json(void)
{
    char *text = standard_output();
    cJSON *json = cJSON_Parse(text);
    CHECK(json != NULL, "%s", text);
    free(text);
    return json;
}

static double total_cosine(const cJSON *json, int point, const char *with)
{
    const cJSON *of = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "points"), point);
    return number_in(cJSON_GetObjectItem(cJSON_GetObjectItem(of, with), "total"), "cosine");
}

static void test_align_at_a_model(void)
{
    cJSON *json, *file;
    const cJSON *point, *module;
    size_t n = 0;
    double labels;
    if (!fixture()) return;
    check_promot(ALIGN " --model " SCRATCH "/model --against same --json --out " SCRATCH "/align");
    json = printed_json();
    point = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "points"), 0);
    CHECK(is_text(json, "task", "toy") && is_text(json, "against", "same") && number_in(json, "n") == 64 &&
              cJSON_GetArraySize(cJSON_GetObjectItem(json, "points")) == 1 && number_in(point, "step") == 0 &&
              is_text(point, "model", SCRATCH "/model") && !cJSON_GetObjectItem(point, "with_prompt"),
          "the JSON");
    cJSON_ArrayForEach(module, cJSON_GetObjectItem(point, "without_prompt"))
    {
        double product = number_in(module, "full_norm") * number_in(module, "format_norm");
        CHECK(fabs(number_in(module, "cosine") - 1) < 1e-6 && product > 0 &&
                  fabs(number_in(module, "dot") / product - 1) < 1e-6,
              "%s: cosine %.9g", module->string, number_in(module, "cosine"));
        n++;
    }
    CHECK(n == 11 && isfinite(total_cosine(json, 0, "without_prompt")), "%zu modules", n); /* all but the prompt */
    file = run_read_json("align", "align.json");
    CHECK(cJSON_Compare(json, file, true), "align.json is not what was printed");
    cJSON_Delete(json);
    cJSON_Delete(file);
    check_text(list_run("align", ""),
               "align.json alignment.csv alignment.json alignment.svg examples.jsonl report.html ", "--out");

    check_promot(ALIGN " --model " SCRATCH "/model --json");
    json = printed_json();
    labels = total_cosine(json, 0, "without_prompt");
    CHECK(is_text(json, "against", "labels") && labels < 0.999 && labels > -1, "random labels: %g", labels);
    cJSON_Delete(json);
    check_promot(ALIGN " --model " SCRATCH "/model --against other --limit 9 --task other=" SCRATCH
                       "/data --task-file " SCRATCH "/other.json --json");
    json = printed_json();
    CHECK(is_text(json, "against", "other") && number_in(json, "n") == 9 &&
              total_cosine(json, 0, "without_prompt") < 0.999,
          "another task: %g", total_cosine(json, 0, "without_prompt"));
    cJSON_Delete(json);
    check_promot(ALIGN " --model " SCRATCH "/model --micro-batch 7 --json");
    json = printed_json();
    /* Gradients of 10 micro-batches are added in fp32, in another order than those of 2. */
    CHECK(fabs(total_cosine(json, 0, "without_prompt") - labels) < 1e-5, "%.9g and %.9g", labels,
          total_cosine(json, 0, "without_prompt"));
    cJSON_Delete(json);
    check_text(standard_error(), "", "--quiet");
}

/* Along the kept checkpoints of a run, whose own prompt is attached and not. */
static void test_align_along_a_run(void)
{
    static const double steps[] = {0, 30, 60};
    cJSON *json, *alone;
    char *text;
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    check_promot(ALIGN " --run " SCRATCH "/watched --json --limit 16 --out " SCRATCH "/along");
    json = printed_json();
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(json, "points")) == 3, "the start and two checkpoints");
    for (int i = 0; i < 3; i++) {
        const cJSON *point = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "points"), i);
        const char *model = cJSON_GetStringValue(cJSON_GetObjectItem(point, "model"));
        CHECK(number_in(point, "step") == steps[i], "point %d is at %g", i, number_in(point, "step"));
        check_promot(ALIGN " --model %s --prompt " SCRATCH "/watched/prompt --json --limit 16", model ? model : "");
        alone = printed_json();
        CHECK(total_cosine(json, i, "without_prompt") == total_cosine(alone, 0, "without_prompt") &&
                  total_cosine(json, i, "with_prompt") == total_cosine(alone, 0, "with_prompt") &&
                  total_cosine(json, i, "with_prompt") != total_cosine(json, i, "without_prompt"),
              "point %d", i);
        cJSON_Delete(alone);
    }
    cJSON_Delete(json);
    check_text(list_run("along", ""),
               "align.json alignment.csv alignment.json alignment.svg alignment_with_prompt.csv "
               "alignment_with_prompt.json alignment_with_prompt.svg examples.jsonl report.html ",
               "--out");
    check_promot(ALIGN " --run " SCRATCH "/watched --limit 16");
    text = standard_output();
    CHECK(strstr(text, "without a prompt, step") && strstr(text, "with the prompt, step") && strstr(text, "\nprompt "),
          "%s", text);
    free(text);
    CHECK(run_has("watched", "analysis/alignment.svg") && run_has("watched", "analysis/align.json"),
          "without --out it goes into the run's analysis/");
}

static void test_wrong_alignments(void)
{
    static const char *const wrong[][2] = {
        {ALIGN, "--model"},
        {ALIGN " --model " SCRATCH "/model --run " SCRATCH "/watched", "both"},
        {"align --model " SCRATCH "/model", "--task"},
        {ALIGN " --model " SCRATCH "/model --against other", "second"},
        {ALIGN " --model " SCRATCH "/model " OTHER, "one"},
        {ALIGN " --model " SCRATCH "/model --against third " OTHER, "other"},
        {ALIGN " --run " SCRATCH "/watched --prompt " SCRATCH "/watched/prompt", "--prompt"},
        {ALIGN " --run " SCRATCH "/nowhere", "nowhere"},
        {ALIGN " --run " SCRATCH "/unwatched", "--keep-checkpoints"},
        {ALIGN " --model " SCRATCH "/model --prompt " SCRATCH "/nowhere", "nowhere"},
        {"align --model " SCRATCH "/model --prompt " SCRATCH "/watched/prompt --quiet " OTHER, "no prompt for other"},
    };
    if (!fixture()) return;
    write_qa();
    make_run("watched", WATCHED);
    make_run("unwatched", UNWATCHED);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) check_refused(wrong[i][0], wrong[i][1]);
}

/* ------------------------------------------------------------------------------------------------------ large files */

/* A training file of 200,000 rows costs no more memory than one of 2,000, but for the file itself, which is mapped,
 * and an index of it that has a limit. */
static void test_a_large_file(void)
{
    enum { ROWS = 200000 };
    FILE *file;
    long peak[2], bytes = 0;
    if (!fixture()) return;
    write_file(SCRATCH "/dev.tsv", "a\tb\ncat 1\thouse\n");
    write_file(SCRATCH "/pairs.json",
               "{\"name\": \"pairs\", \"template\": \"say {a}\", \"target\": \"{b}\", \"metric\": \"squad-em\"}");
    for (int large = 0; large < 2; large++) {
        file = fopen(large ? SCRATCH "/large.tsv" : SCRATCH "/small.tsv", "w");
        fprintf(file, "a\tb\n");
        for (int i = 0; i < (large ? ROWS : ROWS / 100); i++) fprintf(file, "cat %d\thouse\n", i);
        bytes = ftell(file);
        fclose(file);
        check_promot("train --model " SCRATCH "/model --task-file " SCRATCH "/pairs.json --task pairs.train=" SCRATCH
                     "/%s.tsv --task pairs.dev=" SCRATCH "/dev.tsv --method finetune --steps 3 --batch 8 --threads 1 "
                     "--quiet --beams 1 --max-length 2 --out " SCRATCH "/pairs-%d",
                     large ? "large" : "small", large);
        peak[large] = peak_kilobytes;
    }
    CHECK(bytes > 3000000, "%ld bytes", bytes);
    if (dlsym(RTLD_DEFAULT, "__asan_init")) return; /* it keeps what was freed for a while */
    /* Of 200,000 rows the text alone, with malloc's own, is some 130 bytes each: 26 MB. The index is 2.6 MB. */
    CHECK(peak[1] - peak[0] < bytes / 1024 + 8 * 1024, "%ld KB more than for a small file", peak[1] - peak[0]);
}

static const Test tests[] = {
    {"methods", test_methods},
    {"lora", test_lora},
    {"promot_lora", test_promot_lora},
    {"probes_of_promot_lora", test_probes_of_promot_lora},
    {"wrong_adapters", test_wrong_adapters},
    {"probes", test_probes},
    {"probes_at_several_shots", test_probes_at_several_shots},
    {"trained_probes", test_trained_probes},
    {"cut_probes_are_told", test_cut_probes_are_told},
    {"analysis", test_analysis},
    {"analysis_of_several_shots", test_analysis_of_several_shots},
    {"kept_checkpoints", test_kept_checkpoints},
    {"kills_of_promot_lora", test_kills_of_promot_lora},
    {"kills_before_the_first_step", test_kills_before_the_first_step},
    {"kills_between_probes_of_a_step", test_kills_between_probes_of_a_step},
    {"kills_while_the_analysis_is_written", test_kills_while_the_analysis_is_written},
    {"mixtures", test_mixtures},
    {"prompts_of_several_tasks", test_prompts_of_several_tasks},
    {"sequential_tasks", test_sequential_tasks},
    {"draws", test_draws},
    {"no_run_to_resume", test_no_run_to_resume},
    {"compare", test_compare},
    {"splits_to_score", test_splits_to_score},
    {"worked_examples", test_worked_examples},
    {"examples_of_another_task", test_examples_of_another_task},
    {"examples_of_the_same_file", test_examples_of_the_same_file},
    {"long_inputs", test_long_inputs},
    {"align_at_a_model", test_align_at_a_model},
    {"align_along_a_run", test_align_along_a_run},
    {"wrong_alignments", test_wrong_alignments},
    {"a_large_file", test_a_large_file},
};

TEST_MAIN(tests)

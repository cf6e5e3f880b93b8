/* test_alignment.c: gradient alignment and format ratio (chapter 9 of promot.c).
 *
 * The numbers are compared with PyTorch's (tests/reference.py, cases "align"); the controls show that the measure
 * measures: 1 for the same data, -1 for opposite gradients, about 0 for unrelated ones. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "test.h"

/* Every device_alloc asks aligned_alloc, and promot.c's calls of it are counted here; call number `failing` gets
 * nothing. */
static size_t allocations, allocated_bytes, failing;

static void *counted_aligned_alloc(size_t alignment, size_t bytes)
{
    allocations++;
    allocated_bytes += bytes;
    return allocations == failing ? NULL : aligned_alloc(alignment, bytes);
}

#define aligned_alloc counted_aligned_alloc
#include "../promot.c"
#undef aligned_alloc

#include "parity.h"

#define SCRATCH "build/test/alignment"
#define GOLDEN "tests/golden/model"

/* The project's promise is 1e-4. Found on these cases: cosines, norms and dot products 1e-6 away (in double 4e-8, for
 * label smoothing and z-loss are floats in LossSettings). Rounding of single precision, 6e-8, through some hundred
 * operations in a row makes 1e-6 of a gradient, and a cosine moves by no more than its gradients' relative errors. */
static const double GOLDEN_LIMIT = 1e-5;
/* Two ways to sum the same gradients: rounding again, of which these sums feel up to 5e-7. */
static const double SUM_LIMIT = 1e-6;

/* ------------------------------------------------------------------------------------------------- models and examples */

static const char UNTIED[] = "{\"model_type\": \"mt5\", \"vocab_size\": 211, \"d_model\": 37, \"d_kv\": 11, "
                             "\"d_ff\": 43, \"num_heads\": 3, \"num_layers\": 2}";
static const char TIED[] = "{\"model_type\": \"t5\", \"vocab_size\": 89, \"d_model\": 21, \"d_kv\": 5, \"d_ff\": 19, "
                           "\"num_heads\": 2, \"num_layers\": 1, \"num_decoder_layers\": 2}";
static const char TWO_WORDS[] = "{\"model_type\": \"mt5\", \"vocab_size\": 2, \"d_model\": 13, \"d_kv\": 3, "
                                "\"d_ff\": 17, \"num_heads\": 3, \"num_layers\": 2}";

static const LossSettings PLAIN = {.scale = 1}, SMOOTHED = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};

static Model *model_of(const char *json, Device *dev, uint64_t seed)
{
    Error error = {0};
    Model *model = NULL;
    if (directory_create(SCRATCH, &error) == 0 && file_write_text(SCRATCH "/config.json", json, &error) == 0)
        model = model_create(SCRATCH "/config.json", dev, seed, &error);
    CHECK(model != NULL, "%s", error.text);
    return model;
}

static Device *device_of(int threads)
{
    Error error = {0};
    Device *dev = device_open(threads, MATMUL_FP32, &error);
    CHECK(dev != NULL, "%s", error.text);
    return dev;
}

enum { EXAMPLES = 48, LONGEST_INPUT = 23, LONGEST_TARGET = 7 };

/* Examples of random ids; lengths vary with their number. */
typedef struct {
    int32_t ids[EXAMPLES][2][LONGEST_INPUT];
    TokenExample examples[EXAMPLES];
} List;

static void list_draw(List *list, const Model *model, uint64_t input_seed, uint64_t target_seed)
{
    for (size_t b = 0; b < EXAMPLES; b++) {
        for (size_t i = 0; i < LONGEST_INPUT; i++) {
            double V = (double)model->config.vocab_size;
            list->ids[b][0][i] = (int32_t)(random_uniform(random_fold(input_seed, b), i) * V);
            list->ids[b][1][i] = (int32_t)(random_uniform(random_fold(target_seed, b), i) * V);
        }
        list->examples[b] = (TokenExample){.input = list->ids[b][0],
                                           .target = list->ids[b][1],
                                           .input_length = LONGEST_INPUT - b % 5 * 4,
                                           .target_length = LONGEST_TARGET - b % 3 * 3,
                                           .prompt = b % 4 == 3 ? -1 : 0};
    }
}

static void align_checked(const Model *model, const Prompts *prompts, const List *full, const List *format,
                          size_t count, size_t micro, const LossSettings *loss, Alignment *out)
{
    Error error = {0};
    CHECK(alignment(model, prompts, full->examples, format->examples, count, micro, loss, out, &error) == 0, "%s",
          error.text);
}

static void prompts_draw(Prompts *prompts, const Model *model, size_t length)
{
    Error error = {0};
    CHECK(prompts_allocate(prompts, model, 1, length, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < length * model->config.d_model; i++) prompts->rows[i] = (real_t)random_normal(77, i);
}

/* ------------------------------------------------------------------------------------------------------------- modules */

/* The module's name is told from the tensor's: "decoder.norms" are the decoder's tensors with "norm" in their names. */
static void check_module(const char *tensor)
{
    const char *module = module_name(tensor_module(tensor)), *dot = strchr(module, '.');
    if (dot) {
        const char *part = strcmp(dot, ".norms") == 0 ? "norm" : dot + 1;
        CHECK(strncmp(tensor, module, (size_t)(dot - module)) == 0, "%s is in %s", tensor, module);
        CHECK(strstr(tensor, part) && !strstr(tensor, "bias"), "%s is in %s", tensor, module);
    } else
        CHECK(strstr(tensor, module) != NULL, "%s is in %s", tensor, module);
}

static void test_every_tensor_has_its_module(void)
{
    const char *shapes[] = {UNTIED, TIED};
    Device *dev = device_of(1);
    for (size_t s = 0; s < 2; s++) {
        Model *model = model_of(shapes[s], dev, 1);
        size_t members[N_MODULES] = {0};
        if (!model) return;
        for (size_t i = 0; i < model->n_tensors; i++) {
            check_module(model->tensors[i].name);
            members[tensor_module(model->tensors[i].name)]++;
        }
        for (Module m = 0; m < MODULE_TOTAL; m++)
            CHECK((members[m] > 0) == (m != MODULE_LM_HEAD || !model->config.tied_head), "%s has %zu tensors",
                  module_name(m), members[m]);
        CHECK(members[MODULE_RELATIVE_BIAS] == 2, "%zu position biases", members[MODULE_RELATIVE_BIAS]);
        model_close(model);
    }
    device_close(dev);
}

/* -------------------------------------------------------------------------------------------------------------- PyTorch */

typedef struct {
    char name[64], model[64];
    LossSettings loss;
} GoldenCase;

static double number_of(const cJSON *module, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(module, name);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static void compare_with_golden(const GoldenCase *item, const Alignment *found, size_t micro)
{
    Error error = {0};
    MappedFile file = {0};
    char path[256], *text;
    cJSON *expected;
    snprintf(path, sizeof path, GOLDEN "/%s.expected.json", item->name);
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
    expected = cJSON_Parse(text);
    CHECK(cJSON_GetArraySize(expected) >= 10, "%s: %d modules", path, cJSON_GetArraySize(expected));
    for (Module m = 0; m < N_MODULES; m++) {
        const cJSON *module = cJSON_GetObjectItemCaseSensitive(expected, module_name(m));
        double full = number_of(module, "full"), format = number_of(module, "format");
        double dot = number_of(module, "dot") / (full * format), cosine = number_of(module, "cosine");
        double off[4] = {sqrt(found->full_square[m]) / full - 1, sqrt(found->format_square[m]) / format - 1,
                         found->dot[m] / (full * format) - dot, alignment_cosine(found, m) - cosine};
        if (!module) CHECK(isnan(alignment_cosine(found, m)), "%s: %s is found", item->name, module_name(m));
        for (int i = 0; module && i < 4; i++)
            CHECK(fabs(off[i]) <= GOLDEN_LIMIT, "%s (%zu at a time): number %d of %s is off by %.1e", item->name, micro,
                  i, module_name(m), off[i]);
    }
    cJSON_Delete(expected);
    free(text);
    mapped_file_close(&file);
}

static void golden_case(const GoldenCase *item, Device *dev)
{
    Error error = {0};
    DumpBatch full = {0}, format = {0};
    Prompts prompts = {0};
    Alignment found;
    char directory[256], full_path[256], format_path[256];
    Model *model;
    snprintf(directory, sizeof directory, GOLDEN "/%s", item->model);
    snprintf(full_path, sizeof full_path, GOLDEN "/%s.batch.safetensors", item->name);
    snprintf(format_path, sizeof format_path, GOLDEN "/%s.format.safetensors", item->name);
    model = model_open(directory, dev, NULL, &error);
    CHECK(model && dump_read(&full, model, full_path, &error) == 0 &&
              dump_read(&format, model, format_path, &error) == 0,
          "%s", error.text);
    if (!model || !full.B || full.B != format.B) return;
    if (full.prompt) {
        CHECK(prompts_allocate(&prompts, model, 1, full.P, &error) == 0, "%s", error.text);
        weights_upload(dev, prompts.rows, full.prompt, full.P * model->config.d_model);
    }
    for (size_t micro = 0; micro < full.B; micro++) {
        CHECK(alignment(model, full.prompt ? &prompts : NULL, full.examples, format.examples, full.B, micro,
                        &item->loss, &found, &error) == 0,
              "%s", error.text);
        compare_with_golden(item, &found, micro);
    }
    if (full.prompt) prompts_free(&prompts);
    dump_batch_free(&full);
    dump_batch_free(&format);
    model_close(model);
}

static void test_equal_to_pytorch(void)
{
    FILE *list = fopen(GOLDEN "/cases.txt", "r");
    GoldenCase item = {.loss = {.scale = 1}};
    Device *dev = device_of(1);
    char line[1024];
    int cases = 0;
    CHECK(list != NULL, GOLDEN "/cases.txt is not there");
    while (list && fgets(line, sizeof line, list)) {
        if (sscanf(line, "align %63s %63s --label-smoothing %f --z-loss %f --loss-normalizing-factor none", item.name,
                   item.model, &item.loss.label_smoothing, &item.loss.z_loss) != 4)
            continue;
        golden_case(&item, dev);
        cases++;
    }
    if (list) fclose(list);
    CHECK(cases == 4, "%d cases", cases);
    device_close(dev);
}

/* ------------------------------------------------------------------------------------------------------------- controls */

static void test_the_same_data_aligns_wholly(void)
{
    const char *shapes[] = {UNTIED, TIED};
    const size_t sizes[] = {0, 1, 4};
    Device *dev = device_of(1);
    static List list;
    for (size_t s = 0; s < 2; s++) {
        Model *model = model_of(shapes[s], dev, 2);
        Prompts prompts;
        Alignment found;
        if (!model) return;
        prompts_draw(&prompts, model, 3);
        list_draw(&list, model, 1, 2);
        for (size_t k = 0; k < 3; k++) {
            align_checked(model, &prompts, &list, &list, 9, sizes[k], &SMOOTHED, &found);
            for (Module m = 0; m < N_MODULES; m++)
                if (m != MODULE_LM_HEAD || !model->config.tied_head)
                    CHECK(fabs(alignment_cosine(&found, m) - 1) <= SUM_LIMIT, "%s: 1 - %g", module_name(m),
                          1 - alignment_cosine(&found, m));
        }
        align_checked(model, NULL, &list, &list, 9, 0, &SMOOTHED, &found);
        CHECK(isnan(alignment_cosine(&found, MODULE_PROMPT)), "a prompt that is not attached has a gradient");
        CHECK(fabs(alignment_cosine(&found, MODULE_TOTAL) - 1) <= SUM_LIMIT, "without the prompt");
        prompts_free(&prompts);
        model_close(model);
    }
    device_close(dev);
}

/* With two words the logits' gradient is (-p1, p1) for one target and (p0, -p0) for the other, whatever the model:
 * one token, and everything behind it points the opposite way. */
static void test_opposite_targets_align_negatively(void)
{
    static const int32_t input[] = {0, 1, 1, 0, 1, 0, 0}, words[] = {0, 1};
    const TokenExample full = {.input = input, .target = &words[0], .input_length = 7, .target_length = 1};
    TokenExample format = full;
    Device *dev = device_of(1);
    Model *model = model_of(TWO_WORDS, dev, 3);
    Prompts prompts;
    Error error = {0};
    Alignment found;
    if (!model) return;
    format.target = &words[1];
    prompts_draw(&prompts, model, 5);
    CHECK(alignment(model, &prompts, &full, &format, 1, 0, &PLAIN, &found, &error) == 0, "%s", error.text);
    for (Module m = 0; m < N_MODULES; m++)
        CHECK(fabs(alignment_cosine(&found, m) + 1) <= SUM_LIMIT, "%s: -1 + %g", module_name(m),
              1 + alignment_cosine(&found, m));
    prompts_free(&prompts);
    model_close(model);
    device_close(dev);
}

/* Unrelated gradients. It needs more than unrelated data: the gradient of a random label is p - onehot(label), and its
 * mean over the labels is p - 1/V. A model that prefers some words is told by every label to give that up, and its
 * gradients have this in common whatever the data. Only a model that prefers nothing, p = 1/V, has gradients of mean
 * zero: a head near zero makes one (the cosine does not feel the gradients' size). Then what is left is the chance
 * alignment of two directions, 1/sqrt(directions): measured over many pairs, 0.02 in total and up to 0.05 in a module
 * of matrices. */
enum { PAIRS = 6 };

typedef struct {
    double mean[N_MODULES], largest_total;
} Controls;

static void align_unrelated(Controls *controls, float head_scale_down, bool one_format)
{
    static List full, format;
    Device *dev = device_of(1);
    memset(controls, 0, sizeof *controls);
    for (uint64_t pair = 0; pair < PAIRS; pair++) {
        Model *model = model_of(UNTIED, dev, pair);
        Alignment found;
        if (!model) return;
        for (size_t i = 0; i < model->head->rows * model->head->columns; i++) model->head->data[i] *= head_scale_down;
        list_draw(&full, model, 10 * pair, 10 * pair + 1);
        list_draw(&format, model, 10 * pair + 2, 10 * pair + 3);
        for (size_t b = 0; one_format && b < EXAMPLES; b++)
            for (int i = 0; i < LONGEST_TARGET; i++) full.ids[b][1][i] = format.ids[b][1][i] = 5 + i;
        align_checked(model, NULL, &full, &format, EXAMPLES, 0, &PLAIN, &found);
        for (Module m = 0; m < N_MODULES; m++) controls->mean[m] += alignment_cosine(&found, m) / PAIRS;
        controls->largest_total = fmax(controls->largest_total, fabs(alignment_cosine(&found, MODULE_TOTAL)));
        model_close(model);
    }
    device_close(dev);
}

static void test_unrelated_data_do_not_align(void)
{
    static const Module matrices[] = {MODULE_ENCODER_SELF_ATTENTION,
                                      MODULE_ENCODER_MLP,
                                      MODULE_DECODER_SELF_ATTENTION,
                                      MODULE_DECODER_CROSS_ATTENTION,
                                      MODULE_DECODER_MLP,
                                      MODULE_SHARED,
                                      MODULE_LM_HEAD,
                                      MODULE_TOTAL};
    Controls flat, one_format, opinionated;
    align_unrelated(&flat, 1e-3f, false);
    align_unrelated(&one_format, 1e-3f, true);
    align_unrelated(&opinionated, 1, false);
    CHECK(flat.largest_total <= 0.1, "a pair's total is %.3f", flat.largest_total); /* five standard deviations */
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) /* over PAIRS pairs: five of 0.05 / sqrt(6) */
        CHECK(fabs(flat.mean[matrices[i]]) <= 0.1, "%s: mean %.3f", module_name(matrices[i]), flat.mean[matrices[i]]);
    CHECK(one_format.mean[MODULE_TOTAL] >= 0.9, "one format, other inputs: %.3f", one_format.mean[MODULE_TOTAL]);
    CHECK(opinionated.mean[MODULE_LM_HEAD] >= 0.1, "what a model with preferences must give up: %.3f",
          opinionated.mean[MODULE_LM_HEAD]);
}

/* ------------------------------------------------------------------------------------------------ micro-batches, memory */

static void test_micro_batches_change_nothing(void)
{
    const char *shapes[] = {UNTIED, TIED};
    Device *dev = device_of(1);
    static List full, format;
    for (size_t s = 0; s < 2; s++) {
        Model *model = model_of(shapes[s], dev, 6);
        Prompts prompts;
        Alignment whole, parts;
        if (!model) return;
        prompts_draw(&prompts, model, 3);
        list_draw(&full, model, 1, 2);
        list_draw(&format, model, 1, 3);
        align_checked(model, &prompts, &full, &format, 7, 0, &SMOOTHED, &whole);
        for (size_t micro = 1; micro <= 8; micro++) {
            align_checked(model, &prompts, &full, &format, 7, micro, &SMOOTHED, &parts);
            for (Module m = 0; m < N_MODULES; m++) {
                double norms = sqrt(whole.full_square[m]) * sqrt(whole.format_square[m]);
                CHECK(fabs(parts.dot[m] - whole.dot[m]) <= SUM_LIMIT * norms, "%zu at a time: %s %g and %g", micro,
                      module_name(m), parts.dot[m], whole.dot[m]);
                CHECK(fabs(parts.full_square[m] - whole.full_square[m]) <= 2 * SUM_LIMIT * whole.full_square[m] &&
                          fabs(parts.format_square[m] - whole.format_square[m]) <=
                              2 * SUM_LIMIT * whole.format_square[m],
                      "%zu at a time: the norms of %s", micro, module_name(m));
            }
        }
        prompts_free(&prompts);
        model_close(model);
    }
    device_close(dev);
}

/* What is foretold is what is asked for, but for the batch's integers. */
static void test_memory_is_foretold(void)
{
    const char *shapes[] = {UNTIED, TIED};
    Device *dev = device_of(1);
    static List full, format;
    for (size_t s = 0; s < 2; s++) {
        Model *model = model_of(shapes[s], dev, 6);
        Prompts prompts;
        Alignment found;
        size_t foretold[2], kept, integers = 4 * 20 * (LONGEST_INPUT + LONGEST_TARGET + 3) * sizeof(int32_t);
        if (!model) return;
        prompts_draw(&prompts, model, 3);
        list_draw(&full, model, 1, 2);
        list_draw(&format, model, 1, 3);
        for (size_t b = 0; b < 4; b++) { /* of one length, so that the first pass is as large as any */
            full.examples[b].input_length = format.examples[b].input_length = LONGEST_INPUT;
            full.examples[b].target_length = format.examples[b].target_length = LONGEST_TARGET;
            full.examples[b].prompt = format.examples[b].prompt = 0;
        }
        align_checked(model, &prompts, &full, &format, 4, 0, &PLAIN, &found); /* the device's scratch has grown now */
        for (int k = 0; k < 2; k++) {
            size_t micro = k ? 2 : 0;
            foretold[k] = alignment_bytes(model, &prompts, full.examples, format.examples, 4, micro);
            allocations = allocated_bytes = 0;
            align_checked(model, &prompts, &full, &format, 4, micro, &PLAIN, &found);
            CHECK(allocations == 5, "%zu allocations (expected two gradients, their products, a batch and a pass)",
                  allocations);
            CHECK(allocated_bytes >= foretold[k] && allocated_bytes <= foretold[k] + integers,
                  "%zu bytes foretold, %zu", foretold[k], allocated_bytes);
        }
        kept = (model->n_weights - model->shared->rows * model->shared->columns) * sizeof(stat_t);
        CHECK(foretold[1] + pass_bytes(&model->config, 4 * (LONGEST_INPUT + 3), 4 * LONGEST_TARGET, PASS_TRAIN, 0) >
                  foretold[0] + kept / 2,
              "a second kept gradient costs nothing");
        prompts_free(&prompts);
        model_close(model);
    }
    device_close(dev);
}

static void test_errors(void)
{
    Device *dev = device_of(1);
    Model *model = model_of(TIED, dev, 6);
    static List list;
    Error error = {0};
    Alignment found;
    if (!model) return;
    list_draw(&list, model, 1, 2);
    CHECK(alignment(model, NULL, list.examples, list.examples, 0, 0, &PLAIN, &found, &error) == -1 &&
              error.exit_code == EXIT_USAGE,
          "no examples: %s", error.text);
    CHECK(isnan(alignment_cosine(&found, MODULE_TOTAL)), "the cosine of nothing");
    align_checked(model, NULL, &list, &list, 3, 0, &PLAIN, &found); /* the device's scratch has grown now */
    for (failing = 1; failing <= 4; failing++) {                    /* two gradients, a batch, a pass */
        allocations = 0;
        CHECK(alignment(model, NULL, list.examples, list.examples, 3, 0, &PLAIN, &found, &error) == -1 &&
                  error.exit_code == EXIT_FAILED && strstr(error.text, "memory"),
              "allocation %zu fails: %s", failing, error.text);
    }
    failing = 0;
    model->encoder.final_norm->data[0] = (weight_t)NAN;
    CHECK(alignment(model, NULL, list.examples, list.examples, 3, 0, &PLAIN, &found, &error) == -1 &&
              error.exit_code == EXIT_FAILED,
          "a weight that is not a number: %s", error.text);
    model_close(model);
    device_close(dev);
}

/* ----------------------------------------------------------------------------------------------------------- the format */

static void test_random_labels(void)
{
    enum { N = 3000, LABELS = 3 };
    size_t seen[LABELS] = {0}, same = 0;
    for (size_t i = 0; i < N; i++) {
        size_t label = random_label(5, i, LABELS);
        CHECK(label < LABELS && label == random_label(5, i, LABELS), "label %zu of example %zu", label, i);
        if (label < LABELS) seen[label]++;
        same += label == random_label(6, i, LABELS);
    }
    for (size_t k = 0; k < LABELS; k++) /* N/3 expected, standard deviation sqrt(N 2/9) = 26: five of them */
        CHECK(fabs((double)seen[k] - N / 3.0) < 130, "label %zu: %zu times", k, seen[k]);
    CHECK(fabs((double)same - N / 3.0) < 130, "another seed: %zu times the same label", same);
}

static void test_other_examples_are_drawn_evenly(void)
{
    enum { N = 3000, COUNT = 4 };
    size_t seen[COUNT] = {0};
    for (uint64_t seed = 0; seed < N; seed++) {
        size_t other = random_other_example(seed, 2, COUNT);
        CHECK(other < COUNT && other == random_other_example(seed, 2, COUNT), "example %zu", other);
        if (other < COUNT) seen[other]++;
    }
    CHECK(seen[2] == 0, "its own target");
    for (size_t k = 0; k < COUNT; k++)
        CHECK(k == 2 || fabs((double)seen[k] - N / 3.0) < 130, "example %zu: %zu times", k, seen[k]);
    for (size_t i = 0; i < 7; i++) CHECK(random_other_example(5, i, 7) != i, "example %zu: its own target", i);
    CHECK(random_other_example(5, 0, 1) == 0, "a single example");
}

static void test_format_ratio(void)
{
    static const char *const answers[] = {"True", "the moon", "False", "", "true", "True story", "Neither"};
    enum { N = sizeof answers / sizeof *answers };
    Error error = {0};
    Task *rte = task_builtin("rte", &error), *cb = task_builtin("cb", &error), *xsum = task_builtin("xsum", &error);
    CHECK(rte && cb && xsum, "%s", error.text);
    if (!rte || !cb || !xsum) return;
    const Task *of_rte = rte, *of_xsum = xsum, *both[] = {cb, rte}, *mixed[] = {xsum, rte};
    CHECK(is_in_format(rte, "True") && is_in_format(rte, "False"), "label words");
    CHECK(!is_in_format(rte, "Neither") && is_in_format(cb, "Neither"), "a word of another task");
    CHECK(!is_in_format(rte, "") && !is_in_format(rte, "true") && !is_in_format(rte, "Tru"), "no label words");
    CHECK(fabs(format_ratio(&of_rte, 1, answers, N) - 100 * 2 / 7.0) < 1e-12, "%f",
          format_ratio(&of_rte, 1, answers, N));
    CHECK(fabs(format_ratio(both, 2, answers, N) - 100 * 3 / 7.0) < 1e-12, "%f", format_ratio(both, 2, answers, N));
    CHECK(fabs(format_ratio(mixed, 2, answers, N) - 100 * 2 / 7.0) < 1e-12, "%f", format_ratio(mixed, 2, answers, N));
    CHECK(isnan(format_ratio(&of_rte, 1, answers, 0)), "of no answers");
    CHECK(!is_in_format(xsum, "True") && isnan(format_ratio(&of_xsum, 1, answers, N)), "a task without label words");
    task_free(rte);
    task_free(cb);
    task_free(xsum);
}

/* ---------------------------------------------------------------------------------------------------------- the command */

static const char TOY_TASK[] = "{\"name\": \"toy\", \"template\": \"{text} good or bad? answer:\", "
                               "\"label_field\": \"stars\", \"labels\": {\"1\": \"bad\", \"5\": \"good\"}, "
                               "\"metric\": \"accuracy\"}";
static const char TOY_ROWS[] =
    "{\"text\": \"a red dog\", \"stars\": \"5\"}\n{\"text\": \"rain\", \"stars\": \"1\"}\n"
    "{\"text\": \"the long way home\", \"stars\": \"1\"}\n{\"text\": \"y\", \"stars\": \"5\"}\n"
    "{\"text\": \"it was a book .\", \"stars\": \"5\"}\n";

static size_t read_ids(const cJSON *line, const char *name, int32_t **out)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(line, name);
    size_t count = (size_t)cJSON_GetArraySize(list);
    CHECK(count > 0, "no %s", name);
    *out = host_alloc(count, sizeof **out);
    for (size_t i = 0; i < count; i++) (*out)[i] = cJSON_GetArrayItem(list, (int)i)->valueint;
    return count;
}

static const char *text_of(const cJSON *line, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(line, name));
    CHECK(text != NULL, "no %s", name);
    return text ? text : "";
}

/* Lines 2i and 2i+1 of examples.jsonl: the same row, its own target and a label word. */
static void read_pair(char *const *lines, TokenExample pair[2])
{
    cJSON *json[2] = {cJSON_Parse(lines[0]), cJSON_Parse(lines[1])};
    const char *word = text_of(json[1], "target");
    CHECK(strcmp(text_of(json[0], "gradient"), "full") == 0 && strcmp(text_of(json[1], "gradient"), "format") == 0,
          "%s\n%s", lines[0], lines[1]);
    CHECK(strcmp(text_of(json[0], "id"), text_of(json[1], "id")) == 0, "ids");
    CHECK(strcmp(text_of(json[0], "input"), text_of(json[1], "input")) == 0, "inputs");
    CHECK(strcmp(word, "good") == 0 || strcmp(word, "bad") == 0, "%s", word);
    for (int k = 0; k < 2; k++) {
        int32_t *input, *target;
        pair[k] = (TokenExample){.prompt = -1};
        pair[k].input_length = read_ids(json[k], "input_ids", &input);
        pair[k].target_length = read_ids(json[k], "target_ids", &target);
        pair[k].input = input;
        pair[k].target = target;
        cJSON_Delete(json[k]);
    }
    CHECK(pair[0].input_length == pair[1].input_length &&
              memcmp(pair[0].input, pair[1].input, pair[0].input_length * sizeof(int32_t)) == 0,
          "ids of the input");
}

/* What align.json says of the whole model is what these examples give: the same sums in the same order. */
static void check_align_json(const char *path, const TokenExample *full, const TokenExample *format, size_t count)
{
    Error error = {0};
    MappedFile file = {0};
    Alignment found;
    Device *dev = device_of(1);
    Model *model = model_open("data/demo/model", dev, NULL, &error);
    const LossSettings loss = {.z_loss = 1e-4f, .scale = 1};
    cJSON *json, *total;
    CHECK(model && mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    json = cJSON_ParseWithLength((const char *)file.data, file.bytes);
    total = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(json, "points"), 0);
    total = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(total, "without_prompt"), "total");
    CHECK(total != NULL, "%s: no total", path);
    CHECK(alignment(model, NULL, full, format, count, 2, &loss, &found, &error) == 0, "%s", error.text);
    for (int k = 0; total && k < 2; k++) {
        double wanted = k ? found.dot[MODULE_TOTAL] : alignment_cosine(&found, MODULE_TOTAL),
               said = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(total, k ? "dot" : "cosine"));
        CHECK(fabs(said - wanted) <= 1e-12 * fabs(wanted), "%.17g (expected %.17g)", said, wanted);
    }
    cJSON_Delete(json);
    mapped_file_close(&file);
    model_close(model);
    device_close(dev);
}

/* examples.jsonl holds exactly what was compared: tests/check_align.py computes the same from it with PyTorch. */
static void test_the_examples_are_written(void)
{
    enum { COUNT = 4 };
    Error error = {0};
    Lines lines = {0};
    TokenExample full[COUNT], format[COUNT], pair[2];
    CHECK(directory_create(SCRATCH, &error) == 0 && directory_remove(SCRATCH "/out", &error) == 0 &&
              file_write_text(SCRATCH "/toy.json", TOY_TASK, &error) == 0 &&
              file_write_text(SCRATCH "/toy.jsonl", TOY_ROWS, &error) == 0,
          "%s", error.text);
    CHECK(run_promot("align --model data/demo/model --task-file " SCRATCH "/toy.json --task toy=" SCRATCH
                     "/toy.jsonl --limit 4 --micro-batch 2 --quiet --out " SCRATCH "/out",
                     "/dev/null") == 0,
          "align");
    CHECK(lines_read(&lines, SCRATCH "/out/examples.jsonl", &error) == 0, "%s", error.text);
    CHECK(lines.count == 2 * COUNT, "%zu lines", lines.count);
    for (size_t i = 0; lines.count == 2 * COUNT && i < COUNT; i++) {
        read_pair(lines.text + 2 * i, pair);
        full[i] = pair[0];
        format[i] = pair[1];
    }
    if (lines.count == 2 * COUNT) {
        check_align_json(SCRATCH "/out/align.json", full, format, COUNT);
        for (size_t i = 0; i < COUNT; i++) token_example_free(&full[i]), token_example_free(&format[i]);
    }
    lines_free(&lines);
}

static const Test tests[] = {
    {"every tensor has its module", test_every_tensor_has_its_module},
    {"equal to PyTorch", test_equal_to_pytorch},
    {"the same data align wholly", test_the_same_data_aligns_wholly},
    {"opposite targets align negatively", test_opposite_targets_align_negatively},
    {"unrelated data do not align", test_unrelated_data_do_not_align},
    {"micro-batches change nothing", test_micro_batches_change_nothing},
    {"memory is foretold", test_memory_is_foretold},
    {"errors", test_errors},
    {"random labels", test_random_labels},
    {"other examples are drawn evenly", test_other_examples_are_drawn_evenly},
    {"format ratio", test_format_ratio},
    {"the examples are written", test_the_examples_are_written},
};
TEST_MAIN(tests)

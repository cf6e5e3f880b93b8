/* test_no_memory.c: the file formats of data/ when memory runs out.
 *
 * Each case is run again and again, with the first, the second, the third, … allocation failing, until it needs no more
 * of them. Every run before must end in an error, free what it had (which the leak checker of -fsanitize=address sees),
 * and leave no half-written file. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

static size_t allocations_left; /* until one fails */
static bool allocation_failed;

static bool may_allocate(void)
{
    if (allocations_left > 0) {
        allocations_left--;
        return true;
    }
    allocation_failed = true;
    errno = ENOMEM; /* as malloc does */
    return false;
}

static void *failing_malloc(size_t bytes)
{
    return may_allocate() ? malloc(bytes) : NULL;
}

static void *failing_calloc(size_t count, size_t bytes)
{
    return may_allocate() ? calloc(count, bytes) : NULL;
}

static void *failing_realloc(void *memory, size_t bytes)
{
    return may_allocate() ? realloc(memory, bytes) : NULL;
}

static char *failing_strdup(const char *text)
{
    return may_allocate() ? strdup(text) : NULL;
}

static char *failing_strndup(const char *text, size_t length)
{
    return may_allocate() ? strndup(text, length) : NULL;
}

#define malloc(bytes) failing_malloc(bytes)
#define calloc(count, bytes) failing_calloc(count, bytes)
#define realloc(memory, bytes) failing_realloc(memory, bytes)
#undef strdup
#define strdup(text) failing_strdup(text)
#undef strndup
#define strndup(text, length) failing_strndup(text, length)

#include "../data/files.c"
#include "../data/checkpoint.c"
#include "../data/safetensors.c"
#include "../data/torch_file.c"
#include "../data/t5x.c"
#include "../data/prompt_file.c"
#include "../data/lora_file.c"
#include "../data/text_buffer.c"
#include "../data/task_rows.c"
#include "../data/tasks.c"
#include "../data/dataset_files.c"
#include "../data/dataset.c"
#include "../data/results.c"
#include "../data/report.c"

#include "test.h"

#define SCRATCH "build/test/no_memory"
#define GOLDEN "tests/golden/formats"

/* A case returns 0 or -1 as the library does, with its error. */
typedef int (*Case)(const char *argument, Error *error);

static int open_checkpoint(const char *path, Error *error)
{
    Checkpoint *checkpoint = checkpoint_open(path, error);
    checkpoint_close(checkpoint);
    return checkpoint ? 0 : -1;
}

/* T5X's arrays need memory when they are read, too. */
static int unpack_checkpoint(const char *path, Error *error)
{
    Checkpoint *checkpoint = checkpoint_open(path, error);
    int status = checkpoint ? 0 : -1;
    float number;
    for (size_t i = 0; status == 0 && i < checkpoint_count(checkpoint); i++)
        status = stored_tensor_read_float(checkpoint_at(checkpoint, i), 0, 1, &number, error);
    checkpoint_close(checkpoint);
    return status;
}

static int make_config(const char *directory, Error *error)
{
    char *text = t5x_config_json(directory, error);
    free(text);
    return text ? 0 : -1;
}

static int read_prompt(const char *path, Error *error)
{
    float *rows;
    size_t length, width;
    int status = prompt_file_read(path, &rows, &length, &width, error);
    free(rows);
    return status;
}

static int write_prompt(const char *directory, Error *error)
{
    static const float rows[6];
    const PromptInfo info = {
        .base_model = "m", .num_layers = 1, .num_attention_heads = 1, .token_dim = 2, .init = "TEXT", .init_text = "t"};
    return prompt_file_write(directory, rows, 3, &info, error);
}

static int read_lora(const char *path, Error *error)
{
    LoraFile lora;
    int status = lora_file_read(&lora, path, error);
    lora_file_free(&lora);
    return status;
}

static int write_lora(const char *directory, Error *error)
{
    static float numbers[6];
    static char name[] = "encoder.block.0.layer.0.SelfAttention.q";
    LoraModule module = {.name = name, .in = 3, .out = 1, .a = numbers, .b = numbers};
    const LoraFile lora = {.rank = 2, .alpha = 4, .count = 1, .modules = &module};
    const char *const targets[] = {"q"};
    return lora_file_write(&lora, directory, "m", targets, 1, error);
}

static int write_matrix(const char *path, Error *error)
{
    static const float rows[6];
    return npy_write(path, rows, 3, 2, error);
}

static int copy_file(const char *path, Error *error)
{
    return file_copy(path, SCRATCH "/copy", error);
}

static int read_lines(const char *path, Error *error)
{
    Lines lines;
    int status = lines_read(&lines, path, error);
    lines_free(&lines);
    return status;
}

/* The task is called like the directory, or is the own one that lies in it; every row is read. */
static int read_dataset(const char *path, Error *error)
{
    const char *name = strrchr(path, '/') + 1;
    Task *task = strcmp(name, "own") == 0 ? task_from_file(SCRATCH "/own/task.json", error) : task_builtin(name, error);
    Dataset *dataset = task ? dataset_open(task, path, SPLIT_TRAIN, error) : NULL;
    int status = dataset ? 0 : -1;
    for (size_t i = 0; status == 0 && i < dataset_count(dataset); i++) {
        Example example;
        status = dataset_get(dataset, i, &example, error);
        if (status == 0) example_free(&example);
    }
    dataset_close(dataset);
    task_free(task);
    return status;
}

/* Of the results of a run and of themselves again. */
static int compare_results(const char *path, Error *error)
{
    cJSON *json;
    int status = results_read(path, &json, error);
    for (TableFormat format = TABLE_TEXT; status == 0 && format <= TABLE_MARKDOWN; format++) {
        char *table = results_compare((const cJSON *const[]){json, json}, (const char *const[]){"a", "b"}, 2, format);
        if (!table) status = error_set(error, EXIT_FAILED, "%s: no memory", path);
        free(table);
    }
    cJSON_Delete(json);
    return status;
}

static int copy_figure(const char *path, Error *error)
{
    Figure *figure;
    int status = figure_read(path, &figure, error);
    if (status == 0) status = figure_write(SCRATCH, "figure", figure_plot(figure), error);
    figure_free(figure);
    return status;
}

static int write_report(const char *directory, Error *error)
{
    const ReportTable table = {"scores", "run,score\n\"a\",1\n"};
    return report_write(directory, "title", "introduction", &table, 1, error);
}

static bool left_behind(const char *directory)
{
    DIR *open = opendir(directory);
    bool found = false;
    for (struct dirent *entry; open && (entry = readdir(open));) found |= strstr(entry->d_name, ".tmp") != NULL;
    if (open) closedir(open);
    return found;
}

static void survives(Case run, const char *argument)
{
    Error error;
    size_t failures = 0;
    for (;; failures++) {
        memset(&error, 0, sizeof error);
        allocations_left = failures;
        allocation_failed = false;
        int status = run(argument, &error);
        bool failed = allocation_failed;
        allocations_left = SIZE_MAX;
        CHECK(status == 0 || *error.text, "%s: an error without a text", argument);
        if (!failed) {
            CHECK(status == 0, "%s: %s", argument, error.text);
            break;
        }
        CHECK(status == 0 || error.exit_code == EXIT_FAILED, "%s: exit %d: %s", argument, error.exit_code, error.text);
        CHECK(!left_behind(SCRATCH), "%s: a temporary file is left", argument);
        if (failures > 10000) break;
    }
    CHECK(failures > 0 && failures < 10000, "%s: %zu allocations", argument, failures);
}

static void reading(void)
{
    static const char *const files[] = {
        "reference.safetensors", "zip.bin", "legacy.bin", "nested.bin", "bare.pt", "sharded_torch",
        "sharded_safetensors"};
    char path[256];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, GOLDEN "/%s", files[i]);
        survives(open_checkpoint, path);
    }
    survives(unpack_checkpoint, "tests/golden/t5x/files");
    survives(unpack_checkpoint, "tests/golden/t5x/inline");
    survives(unpack_checkpoint, "tests/golden/t5x/stacked");
    survives(make_config, "tests/golden/t5x/stacked");
    survives(read_prompt, GOLDEN "/adapter");
    survives(read_prompt, GOLDEN "/adapter_bin");
    survives(read_prompt, GOLDEN "/f8.npy");
    survives(read_prompt, GOLDEN "/bare.pt");
    survives(read_lora, GOLDEN "/../lora/deep_decoder.cross_mlp.adapter");
    survives(read_lines, GOLDEN "/adapter/adapter_config.json");
    survives(compare_results, GOLDEN "/results.json");
}

static void writing(void)
{
    Error error;
    allocations_left = SIZE_MAX;
    CHECK(directory_remove(SCRATCH, &error) == 0 && directory_create(SCRATCH, &error) == 0, "%s", error.text);
    survives(write_prompt, SCRATCH);
    survives(write_lora, SCRATCH);
    survives(write_matrix, SCRATCH "/a.npy");
    survives(copy_file, GOLDEN "/f8.npy");
    survives(copy_figure, GOLDEN "/figure.json");
    survives(write_report, SCRATCH);
}

static void put(const char *name, const char *text)
{
    char path[256];
    Error error;
    allocations_left = SIZE_MAX;
    snprintf(path, sizeof path, SCRATCH "/%s", name);
    *strrchr(path, '/') = '\0';
    CHECK(directory_create(path, &error) == 0, "%s", error.text);
    snprintf(path, sizeof path, SCRATCH "/%s", name);
    CHECK(file_write_text(path, text, &error) == 0, "%s", error.text);
}

/* Every kind of file that a data set may have. */
static void data_sets(void)
{
    put("rte/train.tsv", "premise\thypothesis\tlabel\na\tb\t0\nc\td\t1\n");
    put("openbookqa/train.jsonl", "{\"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"a\", \"label\": \"A\"}, "
                                  "{\"text\": \"b\", \"label\": \"B\"}, {\"text\": \"c\", \"label\": \"C\"}, "
                                  "{\"text\": \"d\", \"label\": \"D\"}]}, \"answerKey\": \"B\"}\n");
    put("triviaqa/qa/web-train.json", "{\"Data\": [{\"Question\": \"q\", \"Answer\": {\"Value\": \"a\", "
                                      "\"Aliases\": [\"b\", \" \"]}}]}");
    put("webquestions/train.json", "[{\"utterance\": \"q\", \"targetValue\": \"(list (description a))\"}]");
    put("wmt14_en_fr/a.en", "one\n");
    put("wmt14_en_fr/a.fr", "un\n");
    put("wmt14_en_fr/b.en", "two\n");
    put("wmt14_en_fr/b.fr", "deux\n");
    put("wmt16_en_de/train-src.en.sgm", "<seg id=\"1\">one &amp; two</seg>");
    put("wmt16_en_de/train-ref.de.sgm", "<seg id=\"1\">eins</seg>");
    put("own/task.json", "{\"name\": \"own\", \"template\": \"{en}\", \"target\": \"{de}\", \"metric\": \"bleu\", "
                         "\"parallel\": [\"en\", \"de\"], \"train\": \"pairs.tsv\"}");
    put("own/pairs.tsv", "one\teins\n");
    survives(read_dataset, SCRATCH "/rte");
    survives(read_dataset, SCRATCH "/openbookqa");
    survives(read_dataset, SCRATCH "/triviaqa");
    survives(read_dataset, SCRATCH "/webquestions");
    survives(read_dataset, SCRATCH "/wmt14_en_fr");
    survives(read_dataset, SCRATCH "/wmt16_en_de");
    survives(read_dataset, SCRATCH "/own");
}

/* cJSON takes its memory from here as well. */
static void *json_malloc(size_t bytes)
{
    return failing_malloc(bytes);
}

static void with_json(void (*run)(void))
{
    cJSON_Hooks hooks = {.malloc_fn = json_malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
    run();
    cJSON_InitHooks(NULL);
    allocations_left = SIZE_MAX;
}

static void reading_without_memory(void)
{
    with_json(reading);
}

static void writing_without_memory(void)
{
    with_json(writing);
}

static void data_sets_without_memory(void)
{
    with_json(data_sets);
}

static const Test tests[] = {
    {"reading_without_memory", reading_without_memory},
    {"writing_without_memory", writing_without_memory},
    {"data_sets_without_memory", data_sets_without_memory},
};

TEST_MAIN(tests)

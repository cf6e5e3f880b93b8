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
#include "../data/prompt_file.c"

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
    survives(read_prompt, GOLDEN "/adapter");
    survives(read_prompt, GOLDEN "/adapter_bin");
    survives(read_prompt, GOLDEN "/f8.npy");
    survives(read_prompt, GOLDEN "/bare.pt");
    survives(read_lines, GOLDEN "/adapter/adapter_config.json");
}

static void writing(void)
{
    Error error;
    allocations_left = SIZE_MAX;
    CHECK(directory_remove(SCRATCH, &error) == 0 && directory_create(SCRATCH, &error) == 0, "%s", error.text);
    survives(write_prompt, SCRATCH);
    survives(write_matrix, SCRATCH "/a.npy");
    survives(copy_file, GOLDEN "/f8.npy");
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

static const Test tests[] = {
    {"reading_without_memory", reading_without_memory},
    {"writing_without_memory", writing_without_memory},
};

TEST_MAIN(tests)

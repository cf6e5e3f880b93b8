/* test_prompt_file.c: data/prompt_file.c.
 *
 * The golden files come from tests/make_format_goldens.py; their rows are 0, 1/8, 2/8, … */
#include "../data/files.c"
#include "../data/checkpoint.c"
#include "../data/safetensors.c"
#include "../data/torch_file.c"
#include "../data/prompt_file.c"

#include "test.h"

#define SCRATCH "build/test/prompt_file"
#define GOLDEN "tests/golden/formats"

static Error error;

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    remove(path);
    FILE *file = fopen(path, "wb");
    CHECK(file && (bytes == 0 || fwrite(data, 1, bytes, file) == bytes), "%s", path);
    if (file) fclose(file);
}

static void expect_eighths(const char *path)
{
    float *rows;
    size_t length, width, wrong = 0;
    int status = prompt_file_read(path, &rows, &length, &width, &error);
    CHECK(status == 0 && length == 3 && width == 4, "%s: %s", path, status == 0 ? "wrong size" : error.text);
    for (size_t i = 0; status == 0 && i < length * width; i++) wrong += rows[i] != (float)i / 8;
    CHECK(wrong == 0, "%s: %zu wrong", path, wrong);
    free(rows);
}

static void expect_refused(const char *path, int exit_code, const char *said)
{
    float *rows;
    size_t length, width;
    memset(&error, 0, sizeof error);
    CHECK(prompt_file_read(path, &rows, &length, &width, &error) == -1, "%s was read (expected: %s)", path, said);
    CHECK(error.exit_code == exit_code && strstr(error.text, said), "exit %d, %s (expected: %s)", error.exit_code,
          error.text, said);
    CHECK(!rows, "no rows on failure");
    free(rows);
}

static void reads_the_golden_files(void)
{
    expect_eighths(GOLDEN "/adapter");
    expect_eighths(GOLDEN "/adapter_bin");
    expect_eighths(GOLDEN "/f4.npy");
    expect_eighths(GOLDEN "/f8.npy");
    expect_eighths(GOLDEN "/version2.npy");
    expect_eighths(GOLDEN "/version3.npy");
    expect_refused(GOLDEN "/fortran.npy", EXIT_FAILED, "Fortran order");
    expect_refused(GOLDEN "/bigendian.npy", EXIT_FAILED, "'<f4' or '<f8'");
    expect_refused(GOLDEN "/integers.npy", EXIT_FAILED, "'<f4' or '<f8'");
    expect_refused(GOLDEN "/cube.npy", EXIT_FAILED, "two dimensions");
}

/* A file that holds nothing but one tensor is a prompt; a whole model is not. */
static void reads_single_tensors(void)
{
    float *rows;
    size_t length, width;
    CHECK(prompt_file_read(GOLDEN "/bare.pt", &rows, &length, &width, &error) == 0 && length == 3 && width == 3, "%s",
          error.text);
    free(rows);
    expect_refused(GOLDEN "/zip.bin", EXIT_FAILED, "expected one tensor");
    expect_refused(GOLDEN "/expected.json", EXIT_FAILED, "expected a PEFT directory or a NumPy file");
    expect_refused(SCRATCH "/none", EXIT_USAGE, "No such file");
}

static void reads_the_shared_prompts(void)
{
    static const struct {
        const char *name;
        size_t length, width;
    } cases[] = {
        {"prompts/t5_1_1_lm100k_base/rte.npy", 100, 768},
        {"prompts/mt0-small_sentiment/encoder.pt", 8, 512},
        {"checkpoints/t5x-t5_1_1-tiny/prompt_5x256.npy", 5, 256},
        {"checkpoints/t5x-t5_1_1-tiny/tiny_embeddings_32128x4.npy", 32128, 4},
    };
    char path[1200];
    const char *shared = test_shared();
    if (!shared) SKIP("no shared fixtures");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *rows;
        size_t length, width;
        snprintf(path, sizeof path, "%s/%s", shared, cases[i].name);
        int status = prompt_file_read(path, &rows, &length, &width, &error);
        CHECK(status == 0 && length == cases[i].length && width == cases[i].width, "%s: %s", path, error.text);
        free(rows);
    }
}

/* -------------------------------------------------------------------------------------------------------------- npy */

/* A .npy file of this dictionary in version 1, and so many zero bytes of numbers. */
static void write_npy(const char *path, const char *dictionary, size_t data_bytes)
{
    size_t length = strlen(dictionary), total = 10 + length + data_bytes;
    unsigned char *file = calloc(1, total);
    memcpy(file, NPY_MAGIC, NPY_MAGIC_BYTES);
    file[6] = 1;
    file[8] = (unsigned char)length;
    file[9] = (unsigned char)(length >> 8);
    memcpy(file + 10, dictionary, length);
    write_bytes(path, file, total);
    free(file);
}

static void accepts_any_spelling_of_the_header(void)
{
    static const char *const headers[] = {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }",
        "{\"shape\":(1,2),\"fortran_order\":False,\"descr\":\"<f4\"}  \n",
        " { 'shape' : ( 1L , 2L , ) , 'descr' : '<f4' , 'fortran_order' : False , } ",
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        float *rows;
        size_t length, width;
        write_npy(SCRATCH "/a", headers[i], 8);
        CHECK(prompt_file_read(SCRATCH "/a", &rows, &length, &width, &error) == 0, "%s: %s", headers[i], error.text);
        CHECK(length == 1 && width == 2);
        free(rows);
    }
}

static void refuses_damaged_npy_files(void)
{
    static const struct {
        const char *dictionary;
        size_t data_bytes;
        const char *said;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}", 7, "expected 8 bytes of numbers, found 7"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}", 9, "expected 8 bytes of numbers, found 9"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2)}", 0, "impossible size"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", 0, "impossible size"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 2)}", 0, "two dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}", 0, "two dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 8, "two dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': ()}", 4, "two dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2", 8, "two dimensions"},
        {"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1, 2)}", 8, "'<f4' or '<f8'"},
        {"{'descr': '<f2', 'fortran_order': False, 'shape': (1, 2)}", 4, "'<f4' or '<f8'"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1, 2)}", 4, "'<f4' or '<f8'"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2)}", 8, "Fortran"},
        {"{'descr': '<f4', 'fortran_order': False}", 8, "incomplete"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}", 8, "repeated key"},
        {"{'descr': '<f4', 'extra': 1, 'fortran_order': False, 'shape': (1, 2)}", 8, "unknown or repeated key"},
        {"{'descr': '<f4' 'fortran_order': False}", 8, "not a dictionary"},
        {"{'descr", 8, "not a dictionary"},
        {"[]", 8, "not a dictionary"},
        {"", 0, "not a dictionary"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_npy(SCRATCH "/a", cases[i].dictionary, cases[i].data_bytes);
        expect_refused(SCRATCH "/a", EXIT_FAILED, cases[i].said);
        CHECK(strstr(error.text, SCRATCH "/a"), "the file is not named: %s", error.text);
    }
    write_bytes(SCRATCH "/a", "\x93NUMPY\x04\0\0\0\0\0\0\0", 14);
    expect_refused(SCRATCH "/a", EXIT_FAILED, "unknown npy version (expected 1, 2 or 3, found 4)");
}

static void refuses_every_truncation(void)
{
    MappedFile file;
    fresh_scratch();
    CHECK(mapped_file_open(&file, GOLDEN "/version2.npy", &error) == 0, "%s", error.text);
    for (size_t bytes = 0; bytes < file.bytes; bytes++) {
        write_bytes(SCRATCH "/a", file.data, bytes);
        expect_refused(SCRATCH "/a", EXIT_FAILED, SCRATCH "/a");
    }
    mapped_file_close(&file);
}

static void refuses_numbers_that_are_none(void)
{
    static const float rows[6] = {0, 1, 2, 3, NAN, 5}, infinite[2] = {0, -INFINITY};
    fresh_scratch();
    CHECK(npy_write(SCRATCH "/a", rows, 3, 2, &error) == 0, "%s", error.text);
    expect_refused(SCRATCH "/a", EXIT_FAILED, "row 2, column 0 of the prompt is NaN");
    CHECK(npy_write(SCRATCH "/a", infinite, 1, 2, &error) == 0, "%s", error.text);
    expect_refused(SCRATCH "/a", EXIT_FAILED, "row 0, column 1 of the prompt is infinite");
}

/* The bytes are those that numpy writes. */
static void writes_npy_as_numpy_does(void)
{
    float rows[12];
    MappedFile golden, written;
    fresh_scratch();
    for (int i = 0; i < 12; i++) rows[i] = (float)i / 8;
    CHECK(npy_write(SCRATCH "/a.npy", rows, 3, 4, &error) == 0, "%s", error.text);
    CHECK(mapped_file_open(&golden, GOLDEN "/f4.npy", &error) == 0, "%s", error.text);
    CHECK(mapped_file_open(&written, SCRATCH "/a.npy", &error) == 0, "%s", error.text);
    CHECK(golden.bytes == written.bytes && memcmp(golden.data, written.data, golden.bytes) == 0);
    mapped_file_close(&golden);
    mapped_file_close(&written);
    /* T5X's name of a prompt has no suffix of a kind. */
    CHECK(npy_write(SCRATCH "/encoder.prompt.prompt.prompt", rows, 3, 4, &error) == 0, "%s", error.text);
    expect_eighths(SCRATCH "/encoder.prompt.prompt.prompt");
    CHECK(npy_write(SCRATCH "/none/a.npy", rows, 3, 4, &error) == -1 && error.exit_code == EXIT_USAGE);
}

/* ------------------------------------------------------------------------------------------------------------- PEFT */

static const PromptInfo INFO = {.base_model = "google/mt5-\"small\"",
                                .num_layers = 8,
                                .num_attention_heads = 6,
                                .token_dim = 4,
                                .init = "SAMPLE_VOCAB"};

static void expect_file(const char *path, const char *text)
{
    MappedFile file;
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    CHECK(file.bytes == strlen(text) && memcmp(file.data, text, file.bytes) == 0, "%.*s", (int)file.bytes,
          (const char *)file.data);
    mapped_file_close(&file);
}

/* Also read by tests/check_formats.py, with PEFT itself. */
static void writes_adapters(void)
{
    float rows[12];
    fresh_scratch();
    for (int i = 0; i < 12; i++) rows[i] = (float)i / 8;
    CHECK(prompt_file_write(SCRATCH "/run/prompt/rte", rows, 3, &INFO, &error) == 0, "%s", error.text);
    expect_eighths(SCRATCH "/run/prompt/rte");
    expect_file(SCRATCH "/run/prompt/rte/adapter_config.json",
                "{\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": \"google/mt5-\\\"small\\\"\",\n"
                "  \"inference_mode\": true,\n  \"modules_to_save\": null,\n  \"num_attention_heads\": 6,\n"
                "  \"num_layers\": 8,\n  \"num_transformer_submodules\": 1,\n  \"num_virtual_tokens\": 3,\n"
                "  \"peft_type\": \"PROMPT_TUNING\",\n  \"peft_version\": null,\n"
                "  \"prompt_tuning_init\": \"SAMPLE_VOCAB\",\n  \"prompt_tuning_init_text\": null,\n"
                "  \"revision\": null,\n  \"task_type\": \"SEQ_2_SEQ_LM\",\n  \"token_dim\": 4,\n"
                "  \"tokenizer_kwargs\": null,\n  \"tokenizer_name_or_path\": null\n}");
    PromptInfo text = {.base_model = "m",
                       .num_layers = 1,
                       .num_attention_heads = 1,
                       .token_dim = 4,
                       .init = "TEXT",
                       .init_text = "Is it so? \xc3\xa9"};
    CHECK(prompt_file_write(SCRATCH "/text", rows, 3, &text, &error) == 0, "%s", error.text);
    expect_eighths(SCRATCH "/text");
    CHECK(file_write_text(SCRATCH "/file", "", &error) == 0);
    CHECK(prompt_file_write(SCRATCH "/file", rows, 3, &INFO, &error) == -1 && error.exit_code == EXIT_USAGE);
}

static void write_adapter(const char *config, size_t length, size_t width)
{
    static const float rows[64];
    fresh_scratch();
    write_bytes(SCRATCH "/adapter_config.json", config, strlen(config));
    CHECK(write_tensor(SCRATCH "/adapter_model.safetensors", rows, length, width, &error) == 0, "%s", error.text);
}

#define CONFIG(tokens, dim, submodules)                                                                                \
    "{\"peft_type\":\"PROMPT_TUNING\",\"num_virtual_tokens\":" tokens ",\"token_dim\":" dim                            \
    ",\"num_transformer_submodules\":" submodules "}"

static void accepts_one_or_several_submodules(void)
{
    static const struct {
        const char *config;
        size_t rows;
    } cases[] = {
        {CONFIG("3", "2", "1"), 3},
        {CONFIG("3", "2", "2"), 6},
        {CONFIG("3", "2", "2"), 3},
        {CONFIG("3", "2", "null"), 3},
        {CONFIG("3", "2", "null"), 6},
        {CONFIG("3", "2", "3"), 9},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"num_virtual_tokens\":3,\"token_dim\":2}", 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *rows;
        size_t length, width;
        write_adapter(cases[i].config, cases[i].rows, 2);
        CHECK(prompt_file_read(SCRATCH, &rows, &length, &width, &error) == 0, "case %zu: %s", i, error.text);
        CHECK(length == 3 && width == 2, "case %zu", i);
        free(rows);
    }
}

static void refuses_adapters_that_do_not_fit(void)
{
    static const struct {
        const char *config, *said;
    } cases[] = {
        {CONFIG("3", "2", "1"), "expected 3 x 2, or 1 times the rows, found 4 x 2"},
        {CONFIG("4", "3", "1"), "expected 4 x 3"},
        {CONFIG("4", "1", "2"), "expected 4 x 1"},
        {CONFIG("1", "2", "2"), "does not fit"},
        {CONFIG("0", "2", "1"), "\"num_virtual_tokens\" is not a positive"},
        {CONFIG("4", "1.5", "1"), "\"token_dim\" is not a positive"},
        {CONFIG("4", "2", "-1"), "\"num_transformer_submodules\" is not"},
        {CONFIG("\"4\"", "2", "1"), "\"num_virtual_tokens\" is not"},
        {CONFIG("1e300", "2", "1"), "\"num_virtual_tokens\" is not"},
        {"{\"peft_type\":\"LORA\"}", "expected peft_type PROMPT_TUNING, found LORA"},
        {"{\"peft_type\":3}", "found none"},
        {"[]", "not a JSON object"},
        {"{", "not a JSON object"},
        {"", "not a JSON object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_adapter(cases[i].config, 4, 2);
        expect_refused(SCRATCH, EXIT_FAILED, cases[i].said);
        CHECK(strstr(error.text, SCRATCH "/adapter_"), "the file is not named: %s", error.text);
    }
    write_adapter(CONFIG("2", "2", "2"), 5, 2);
    expect_refused(SCRATCH, EXIT_FAILED, "expected 2 x 2, or 2 times the rows, found 5 x 2");
}

static void says_which_file_is_missing(void)
{
    fresh_scratch();
    expect_refused(SCRATCH, EXIT_USAGE, SCRATCH "/adapter_config.json");
    write_adapter(CONFIG("4", "2", "1"), 4, 2);
    remove(SCRATCH "/adapter_model.safetensors");
    expect_refused(SCRATCH, EXIT_USAGE, "looked for adapter_model.safetensors, adapter_model.bin");
    CHECK(file_copy(GOLDEN "/reference.safetensors", SCRATCH "/adapter_model.safetensors", &error) == 0);
    expect_refused(SCRATCH, EXIT_FAILED, "has no tensor prompt_embeddings");
    const TensorSpec flat = {.name = TENSOR_NAME, .dtype = DTYPE_F32, .n_dims = 1, .shape = {0}};
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/adapter_model.safetensors", &flat, 1, &error);
    CHECK(writer && safetensors_commit(writer, &error) == 0, "%s", error.text);
    expect_refused(SCRATCH, EXIT_FAILED, "expected 2 dimensions, found 1");
}

static const Test tests[] = {
    {"reads_the_golden_files", reads_the_golden_files},
    {"reads_single_tensors", reads_single_tensors},
    {"reads_the_shared_prompts", reads_the_shared_prompts},
    {"accepts_any_spelling_of_the_header", accepts_any_spelling_of_the_header},
    {"refuses_damaged_npy_files", refuses_damaged_npy_files},
    {"refuses_every_truncation", refuses_every_truncation},
    {"refuses_numbers_that_are_none", refuses_numbers_that_are_none},
    {"writes_npy_as_numpy_does", writes_npy_as_numpy_does},
    {"accepts_one_or_several_submodules", accepts_one_or_several_submodules},
    {"refuses_adapters_that_do_not_fit", refuses_adapters_that_do_not_fit},
    {"says_which_file_is_missing", says_which_file_is_missing},
    {"writes_adapters", writes_adapters}, /* the last: tests/check_formats.py reads what it leaves */
};

TEST_MAIN(tests)

/* test_checkpoint.c: data/checkpoint.c and data/safetensors.c (the torch form of files has its own test).
 *
 * The golden files and what they hold come from tests/make_format_goldens.py. The sources are included, so that a write
 * can be made to fail: see break_stream. */
#include "../data/files.c"
#include "../data/checkpoint.c"
#include "../data/safetensors.c"
#include "../data/torch_file.c"

#include "test.h"

#define SCRATCH "build/test/checkpoint"
#define GOLDEN "tests/golden/formats"

static Error error;

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    remove(path); /* ext4 flushes a file that is truncated and written anew, which is slow */
    FILE *file = fopen(path, "wb");
    CHECK(file && (bytes == 0 || fwrite(data, 1, bytes, file) == bytes), "%s", path);
    if (file) fclose(file);
}

/* A safetensors file of this header and so many bytes of data (0, 1, 2, …). length < 0: the header's own length. */
static void write_safetensors(const char *path, const char *header, long long length, size_t data_bytes)
{
    uint64_t prefix = length < 0 ? strlen(header) : (uint64_t)length;
    size_t used = 8 + strlen(header);
    unsigned char *file = malloc(used + data_bytes);
    memcpy(file, &prefix, 8);
    memcpy(file + 8, header, strlen(header));
    for (size_t i = 0; i < data_bytes; i++) file[used + i] = (unsigned char)i;
    write_bytes(path, file, used + data_bytes);
    free(file);
}

static void expect_refused(const char *path, int exit_code, const char *said)
{
    memset(&error, 0, sizeof error);
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(!checkpoint, "%s was opened (expected: %s)", path, said);
    CHECK(error.exit_code == exit_code && strstr(error.text, said), "exit %d, %s (expected: %s)", error.exit_code,
          error.text, said);
    CHECK(!strchr(error.text, '\n'), "one line: %s", error.text);
    checkpoint_close(checkpoint);
}

/* ------------------------------------------------------------------------------------------------- the golden files */

static double json_number(const cJSON *item)
{
    return cJSON_IsString(item) ? strtod(item->valuestring, NULL) : item->valuedouble;
}

static int same_float(float a, float b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

/* Reads elements [first, first + count) and compares; `values` is where element `first` is in the expected list. */
static size_t wrong_elements(const StoredTensor *tensor, size_t first, size_t count, const cJSON *values)
{
    size_t wrong = 0;
    float *floats = malloc((count + 1) * sizeof *floats);
    int64_t *ints = malloc((count + 1) * sizeof *ints);
    int is_float = tensor->dtype <= DTYPE_F64;
    int status = is_float ? stored_tensor_read_float(tensor, first, count, floats, &error)
                          : stored_tensor_read_int(tensor, first, count, ints, &error);
    CHECK(status == 0, "%s", error.text);
    for (size_t i = 0; i < count; i++, values = values->next) {
        double expected = json_number(values);
        wrong += is_float ? !same_float(floats[i], (float)expected) : (double)ints[i] != expected;
    }
    free(floats);
    free(ints);
    return wrong;
}

static void check_tensor(const char *path, const StoredTensor *tensor, const cJSON *expected)
{
    const cJSON *shape = cJSON_GetObjectItem(expected, "shape"), *values = cJSON_GetObjectItem(expected, "values");
    size_t d = 0, numel = (size_t)cJSON_GetArraySize(values);
    const cJSON *item;
    CHECK(strcmp(dtype_name(tensor->dtype), cJSON_GetObjectItem(expected, "dtype")->valuestring) == 0, "%s %s", path,
          tensor->name);
    CHECK(tensor->n_dims == (size_t)cJSON_GetArraySize(shape) && tensor->numel == numel, "%s %s", path, tensor->name);
    cJSON_ArrayForEach(item, shape) CHECK(tensor->shape[d++] == (size_t)item->valuedouble, "%s %s", path, tensor->name);
    for (size_t first = 0; first <= numel; first++)
        for (size_t count = 0; count <= numel - first; count += count < 3 ? 1 : 4) {
            size_t wrong = wrong_elements(tensor, first, count, cJSON_GetArrayItem(values, (int)first));
            CHECK(wrong == 0, "%s %s: %zu of [%zu, %zu)", path, tensor->name, wrong, first, first + count);
        }
    float one[1];
    int64_t one_int[1];
    if (tensor->dtype <= DTYPE_F64) {
        CHECK(stored_tensor_read_float(tensor, numel, 1, one, &error) == -1);
        CHECK(stored_tensor_read_float(tensor, numel + 1, 0, one, &error) == -1);
        CHECK(stored_tensor_read_float(tensor, 1, SIZE_MAX, one, &error) == -1);
        CHECK(stored_tensor_read_int(tensor, 0, 0, one_int, &error) == -1, "a float is not read as an integer");
    } else {
        CHECK(stored_tensor_read_int(tensor, numel, 1, one_int, &error) == -1);
        CHECK(stored_tensor_read_float(tensor, 0, 0, one, &error) == -1, "an integer is not read as a float");
    }
}

static void check_golden(const char *name, const cJSON *expected)
{
    char path[256];
    const cJSON *tensor;
    snprintf(path, sizeof path, GOLDEN "/%s", name);
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(checkpoint, "%s", error.text);
    if (!checkpoint) return;
    CHECK(checkpoint_count(checkpoint) == (size_t)cJSON_GetArraySize(expected), "%s", path);
    cJSON_ArrayForEach(tensor, expected)
    {
        const StoredTensor *found = checkpoint_find(checkpoint, tensor->string);
        CHECK(found, "%s: no %s", path, tensor->string);
        if (found) check_tensor(path, found, tensor);
    }
    for (size_t i = 1; i < checkpoint_count(checkpoint); i++)
        CHECK(strcmp(checkpoint_at(checkpoint, i - 1)->name, checkpoint_at(checkpoint, i)->name) < 0, "not sorted");
    CHECK(!checkpoint_find(checkpoint, "no such tensor"));
    checkpoint_close(checkpoint);
}

/* Every golden file, in slices of many sizes: safetensors, zip, legacy, nested, bare, sharded. */
static void reads_the_golden_files(void)
{
    MappedFile file;
    CHECK(mapped_file_open(&file, GOLDEN "/expected.json", &error) == 0, "%s", error.text);
    cJSON *expected = json_parse((const char *)file.data, file.bytes), *item;
    CHECK(cJSON_GetArraySize(expected) >= 9, "expected.json is damaged");
    cJSON_ArrayForEach(item, expected) if (*item->string != '_') check_golden(item->string, item);
    cJSON_Delete(expected);
    mapped_file_close(&file);
}

static void reads_the_shared_checkpoints(void)
{
    char path[1200];
    const char *shared = test_shared();
    if (!shared) SKIP("no shared fixtures");
    static const struct {
        const char *directory, *tensor;
        size_t count, shape[2];
    } cases[] = {
        {"checkpoints/hf-tiny-t5-safetensors", "shared.weight", 47, {1024, 8}},
        {"checkpoints/hf-tiny-t5-torchbin", "shared.weight", 113, {1302, 32}},
        {"prompts/mt0-small_sentiment/encoder.pt", "", 1, {8, 512}},
        {"prompts/mt0-small_sentiment/decoder.pt", "", 1, {8, 512}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(path, sizeof path, "%s/%s", shared, cases[i].directory);
        Checkpoint *checkpoint = checkpoint_open(path, &error);
        CHECK(checkpoint, "%s", error.text);
        if (!checkpoint) continue;
        CHECK(checkpoint_count(checkpoint) == cases[i].count, "%s: %zu", path, checkpoint_count(checkpoint));
        const StoredTensor *tensor = checkpoint_find(checkpoint, cases[i].tensor);
        CHECK(tensor && tensor->n_dims == 2 && tensor->shape[0] == cases[i].shape[0] &&
                  tensor->shape[1] == cases[i].shape[1],
              "%s", path);
        checkpoint_close(checkpoint);
    }
}

/* ------------------------------------------------------------------------------------------------------ conversions */

/* Every half and every bfloat16, against the definition of the formats in double. */
static void converts_every_16_bit_float(void)
{
    size_t wrong_f16 = 0, wrong_bf16 = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        int sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
        float expected = (float)(sign * (exponent == 0    ? ldexp(fraction, -24)
                                         : exponent == 31 ? (fraction ? NAN : INFINITY)
                                                          : ldexp(1024 + fraction, exponent - 25)));
        wrong_f16 += !same_float(float_from_f16((uint16_t)bits), expected);
        exponent = bits >> 7 & 255, fraction = bits & 127;
        expected = (float)(sign * (exponent == 0     ? ldexp(fraction, -133)
                                   : exponent == 255 ? (fraction ? NAN : INFINITY)
                                                     : ldexp(128 + fraction, exponent - 134)));
        wrong_bf16 += !same_float(float_from_bf16((uint16_t)bits), expected);
    }
    CHECK(wrong_f16 == 0, "%zu halves", wrong_f16);
    CHECK(wrong_bf16 == 0, "%zu bfloat16s", wrong_bf16);
}

/* Strided in every way that three dimensions allow: element (i, j, k) of the view is i * s0 + j * s1 + k * s2. */
static void walks_views(void)
{
    static const size_t shapes[][3] = {{2, 3, 5}, {1, 4, 3}, {3, 1, 1}, {5, 2, 1}, {1, 1, 7}};
    static const size_t strides[][3] = {{15, 5, 1}, {1, 2, 6}, {0, 1, 3}, {7, 0, 2}, {2, 2, 2}, {30, 10, 2}};
    float storage[256], out[64];
    for (size_t i = 0; i < 256; i++) storage[i] = (float)i;
    for (size_t s = 0; s < 5; s++) {
        for (size_t t = 0; t < 6; t++) {
            StoredTensor tensor = {.name = "view", .file = "memory", .dtype = DTYPE_F32, .n_dims = 3};
            memcpy(tensor.shape, shapes[s], sizeof shapes[s]);
            CHECK(tensor_set_row_major(&tensor) == 0);
            memcpy(tensor.strides, strides[t], sizeof strides[t]);
            tensor.data = (const unsigned char *)storage;
            for (size_t first = 0; first < tensor.numel; first++) {
                size_t wrong = 0, count = tensor.numel - first;
                CHECK(stored_tensor_read_float(&tensor, first, count, out, &error) == 0, "%s", error.text);
                for (size_t e = first; e < tensor.numel; e++) {
                    size_t k = e % shapes[s][2], j = e / shapes[s][2] % shapes[s][1];
                    size_t i = e / (shapes[s][2] * shapes[s][1]);
                    wrong += out[e - first] != (float)(i * strides[t][0] + j * strides[t][1] + k * strides[t][2]);
                }
                CHECK(wrong == 0, "shape %zu strides %zu first %zu", s, t, first);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------ what safetensors may be */

#define F32_AT(name, shape, begin, end)                                                                                \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void accepts_unusual_headers(void)
{
    static const struct {
        const char *header;
        size_t data_bytes, count;
    } cases[] = {
        {"{}", 0, 0},
        {"{\"__metadata__\":{}}", 0, 0},
        {"{" F32_AT("b", "[2]", 4, 12) "," F32_AT("a", "[]", 0, 4) "}   \n ", 12, 2},
        {"{" F32_AT("a", "[0,3]", 0, 0) "," F32_AT("b", "[1]", 0, 4) "," F32_AT("c", "[0]", 4, 4) "}", 4, 3},
        {"{\"x\":{\"shape\":[3],\"extra\":null,\"data_offsets\":[0,5],\"dtype\":\"F4\"}}", 5, 1},
        {"{" F32_AT("\\u00e9\\ud83d\\ude00\\\"", "[1]", 0, 4) "}", 4, 1},
        {"{" F32_AT("", "[1,1,1,1,1,1,1,1]", 0, 4) "}", 4, 1},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_safetensors(SCRATCH "/a.safetensors", cases[i].header, -1, cases[i].data_bytes);
        Checkpoint *checkpoint = checkpoint_open(SCRATCH "/a.safetensors", &error);
        CHECK(checkpoint, "case %zu: %s", i, error.text);
        if (checkpoint) CHECK(checkpoint_count(checkpoint) == cases[i].count, "case %zu", i);
        checkpoint_close(checkpoint);
    }
}

static void an_unknown_type_is_an_error_only_when_read(void)
{
    float value[1];
    int64_t integer[1];
    fresh_scratch();
    write_safetensors(SCRATCH "/a", "{\"x\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[0,5]}}", -1, 5);
    Checkpoint *checkpoint = checkpoint_open(SCRATCH "/a", &error);
    CHECK(checkpoint, "%s", error.text);
    const StoredTensor *tensor = checkpoint_find(checkpoint, "x");
    CHECK(tensor && tensor->dtype == DTYPE_OTHER && tensor->numel == 5);
    CHECK(stored_tensor_read_float(tensor, 0, 1, value, &error) == -1 && strstr(error.text, "tensor x"), "%s",
          error.text);
    CHECK(stored_tensor_read_int(tensor, 0, 1, integer, &error) == -1 && error.exit_code == EXIT_FAILED);
    checkpoint_close(checkpoint);
}

static void refuses_damaged_headers(void)
{
    static const struct {
        const char *header;
        long long length;
        size_t data_bytes;
        const char *said;
    } cases[] = {
        {"{" F32_AT("a", "[2]", 0, 8) "}", -1, 7, "not within"},
        {"{" F32_AT("a", "[2]", 0, 8) "}", -1, 9, "belong to no tensor (expected 8 bytes of data, found 9)"},
        {"{" F32_AT("a", "[2]", 4, 12) "}", -1, 12, "hole"},
        {"{" F32_AT("a", "[1]", 0, 4) "," F32_AT("b", "[1]", 8, 12) "}", -1, 12, "tensor b: its data leaves a hole"},
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 4, 12) "}", -1, 12, "overlap"},
        {"{" F32_AT("a", "[1]", 0, 4) "," F32_AT("b", "[1]", 0, 4) "}", -1, 4, "overlap"},
        {"{" F32_AT("a", "[1]", 8, 4) "}", -1, 8, "not within"},
        {"{" F32_AT("a", "[3]", 0, 8) "}", -1, 8, "tensor a: has the wrong number of bytes (expected 12"},
        {"{" F32_AT("a", "[4294967296,4294967296]", 0, 8) "}", -1, 8, "overflows"},
        {"{" F32_AT("a", "[4611686018427387904]", 0, 8) "}", -1, 8, "whole numbers"},
        {"{" F32_AT("a", "[4503599627370496,1024]", 0, 8) "}", -1, 8, "overflows"},
        {"{" F32_AT("a", "[0,9007199254740992,9007199254740992]", 0, 0) "}", -1, 0, "overflows"},
        {"{" F32_AT("a", "[-1]", 0, 4) "}", -1, 4, "whole numbers"},
        {"{" F32_AT("a", "[1.5]", 0, 4) "}", -1, 4, "whole numbers"},
        {"{" F32_AT("a", "[\"1\"]", 0, 4) "}", -1, 4, "whole numbers"},
        {"{" F32_AT("a", "[1e999]", 0, 4) "}", -1, 4, "whole numbers"},
        {"{" F32_AT("a", "[[1]]", 0, 4) "}", -1, 4, "whole numbers"},
        {"{" F32_AT("a", "1", 0, 4) "}", -1, 4, "not a list"},
        {"{" F32_AT("a", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", -1, 4, "more than 8 dimensions"},
        {"{" F32_AT("a", "[1]", 0, -4) "}", -1, 4, "data_offsets"},
        {"{" F32_AT("a", "[1]", 0.5, 4) "}", -1, 4, "data_offsets"},
        {"{" F32_AT("a", "[1]", 0, 18446744073709551615) "}", -1, 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,2,4]}}", -1, 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{\"x\":0,\"y\":4}}}", -1, 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, "lacks"},
        {"{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "not a string"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "twice"},
        {"{\"a\":[]}", -1, 0, "not a JSON object"},
        {"{" F32_AT("a", "[1]", 0, 4) "," F32_AT("a", "[1]", 4, 8) "}", -1, 8, "tensor a: is there twice"},
        {"{\"__metadata__\":{\"format\":1}}", -1, 0, "__metadata__"},
        {"{\"__metadata__\":[]}", -1, 0, "__metadata__"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", -1, 0, "twice"},
        {"{\"a\":{\"dtype\":\"F32\"", -1, 0, "not JSON"},
        {"{} {}", -1, 0, "not JSON"},
        {"{}x", -1, 0, "not JSON"},
        {"{\"a\":1,", -1, 0, "not JSON"},
        {"[]", -1, 0, "does not begin with '{'"},
        {" {}", -1, 0, "does not begin with '{'"},
        {"{}", 0, 0, "does not begin with '{'"},
        {"{}", 3, 0, "is truncated in its header (expected 3 bytes, found 2)"},
        {"{}", 99999999, 0, "is truncated in its header"},
        {"{}", 100000001, 0, "at most 100000000"},
        {"{}", 0x7fffffffffffffff, 0, "at most 100000000"},
        {"{" F32_AT("\xff", "[1]", 0, 4) "}", -1, 4, "not UTF-8"},
        {"{" F32_AT("a\\nb\\u001b", "[2]", 0, 4) "}", -1, 4, "tensor a?b?: has the wrong number"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_safetensors(SCRATCH "/a.safetensors", cases[i].header, cases[i].length, cases[i].data_bytes);
        expect_refused(SCRATCH "/a.safetensors", EXIT_FAILED, cases[i].said);
        CHECK(strstr(error.text, SCRATCH "/a.safetensors"), "the file is not named: %s", error.text);
    }
}

static void refuses_deep_nesting(void)
{
    static char header[200001];
    fresh_scratch();
    memcpy(header, "{\"a\":", 5);
    memset(header + 5, '[', sizeof header - 6);
    write_safetensors(SCRATCH "/a.safetensors", header, -1, 0);
    expect_refused(SCRATCH "/a.safetensors", EXIT_FAILED, "not JSON");
}

/* Cut at every length, and with a byte too many, a file must be refused, never be read short. */
static void refuses_every_truncation(void)
{
    static const char *const names[] = {"reference.safetensors", "zip.bin", "legacy.bin", "nested.bin"};
    fresh_scratch();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        MappedFile file;
        char path[256];
        size_t opened = 0;
        snprintf(path, sizeof path, GOLDEN "/%s", names[i]);
        CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
        snprintf(path, sizeof path, SCRATCH "/%s", names[i]);
        for (size_t bytes = 0; bytes < file.bytes; bytes += bytes % 7 + 1) {
            write_bytes(path, file.data, bytes);
            Checkpoint *checkpoint = checkpoint_open(path, &error);
            opened += checkpoint != NULL;
            checkpoint_close(checkpoint);
        }
        CHECK(opened == 0, "%s: %zu truncated files were opened", names[i], opened);
        mapped_file_close(&file);
    }
}

static void says_what_a_file_is_not(void)
{
    fresh_scratch();
    write_bytes(SCRATCH "/a.safetensors", "", 0);
    expect_refused(SCRATCH "/a.safetensors", EXIT_FAILED, "is empty");
    write_bytes(SCRATCH "/a.bin", "abc", 3);
    expect_refused(SCRATCH "/a.bin", EXIT_FAILED, "neither");
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    write_bytes(SCRATCH "/b.bin", pointer, sizeof pointer - 1);
    expect_refused(SCRATCH "/b.bin", EXIT_FAILED, "Git LFS");
    expect_refused(SCRATCH "/none", EXIT_USAGE, "No such file");
    expect_refused(SCRATCH "/none/model.safetensors", EXIT_USAGE, "No such file");
}

/* ---------------------------------------------------------------------------------------------- directories, shards */

static void looks_for_files_in_order(void)
{
    fresh_scratch();
    expect_refused(SCRATCH, EXIT_USAGE,
                   "looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin");
    CHECK(file_copy(GOLDEN "/nested.bin", SCRATCH "/pytorch_model.bin", &error) == 0, "%s", error.text);
    Checkpoint *checkpoint = checkpoint_open(SCRATCH, &error);
    CHECK(checkpoint && checkpoint_find(checkpoint, "bias"), "%s", error.text);
    checkpoint_close(checkpoint);
    write_safetensors(SCRATCH "/model.safetensors", "{" F32_AT("a", "[1]", 0, 4) "}", -1, 4);
    checkpoint = checkpoint_open(SCRATCH, &error);
    CHECK(checkpoint && checkpoint_count(checkpoint) == 1 && checkpoint_find(checkpoint, "a"), "%s", error.text);
    checkpoint_close(checkpoint);
    checkpoint = checkpoint_open(SCRATCH "/pytorch_model.bin", &error);
    CHECK(checkpoint && checkpoint_find(checkpoint, "bias"), "one file by its name");
    checkpoint_close(checkpoint);
    /* What a file holds counts, not what it is called. */
    CHECK(file_copy(GOLDEN "/nested.bin", SCRATCH "/model.safetensors", &error) == 0);
    checkpoint = checkpoint_open(SCRATCH, &error);
    CHECK(checkpoint && checkpoint_find(checkpoint, "bias"), "%s", error.text);
    checkpoint_close(checkpoint);
}

static void refuses_damaged_indexes(void)
{
    static const struct {
        const char *index;
        int exit_code;
        const char *said;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"gone\"}}", EXIT_USAGE, "gone: is not there"},
        {"{\"weight_map\":{\"a\":\"../one\"}}", EXIT_FAILED, "same directory"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", EXIT_FAILED, "same directory"},
        {"{\"weight_map\":{\"a\":\"..\"}}", EXIT_FAILED, "same directory"},
        {"{\"weight_map\":{\"a\":\"\"}}", EXIT_FAILED, "same directory"},
        {"{\"weight_map\":{\"a\":1}}", EXIT_FAILED, "something else"},
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"one\"}}", EXIT_FAILED, "tensor c: expected in one, found not there"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"x\":\"two\"}}", EXIT_FAILED,
         "tensor b: expected in one, found in two"},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", EXIT_FAILED, "tensor a: expected in two, found in one"},
        {"{\"weight_map\":{\"a\":\"one\",\"x\":\"three\"}}", EXIT_FAILED, "tensor a: is there twice"},
        {"{\"weight_map\":{\"a\":\"index.index.json\"}}", EXIT_FAILED, "neither"},
        {"{\"weight_map\":{}}", EXIT_FAILED, "empty"},
        {"{\"weight_map\":[]}", EXIT_FAILED, "weight_map"},
        {"{}", EXIT_FAILED, "weight_map"},
        {"[1,2", EXIT_FAILED, "not JSON"},
        {"", EXIT_FAILED, "not JSON"},
    };
    fresh_scratch();
    write_safetensors(SCRATCH "/one", "{" F32_AT("a", "[1]", 0, 4) "}", -1, 4);
    write_safetensors(SCRATCH "/two", "{" F32_AT("b", "[1]", 0, 4) "," F32_AT("x", "[1]", 4, 8) "}", -1, 8);
    write_safetensors(SCRATCH "/three", "{" F32_AT("a", "[1]", 0, 4) "," F32_AT("x", "[1]", 4, 8) "}", -1, 8);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(SCRATCH "/index.index.json", cases[i].index, strlen(cases[i].index));
        expect_refused(SCRATCH "/index.index.json", cases[i].exit_code, cases[i].said);
    }
    static const char good[] = "{\"weight_map\":{\"b\":\"two\",\"a\":\"one\"}}";
    write_bytes(SCRATCH "/index.index.json", good, sizeof good - 1);
    Checkpoint *checkpoint = checkpoint_open(SCRATCH "/index.index.json", &error);
    CHECK(checkpoint && checkpoint_count(checkpoint) == 3, "%s", error.text);
    checkpoint_close(checkpoint);
}

/* ------------------------------------------------------------------------------------------------------ large files */

/* 5 GiB, nearly all of it a hole that takes no room on disk. */
static void reads_beyond_four_gigabytes(void)
{
    static const char header[] = "{\"big\":{\"dtype\":\"U8\",\"shape\":[5368709120],\"data_offsets\":[0,5368709120]},"
                                 "\"end\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[5368709120,5368709128]}}";
    static const float values[2] = {1.5f, -2.25f};
    const off_t place = 8 + (off_t)(sizeof header - 1) + 5368709120;
    float read[2];
    int64_t last[1];
    fresh_scratch();
    write_safetensors(SCRATCH "/big.safetensors", header, -1, 0);
    int fd = open(SCRATCH "/big.safetensors", O_WRONLY);
    bool sparse = ftruncate(fd, place) == 0 && pwrite(fd, values, sizeof values, place) == sizeof values;
    close(fd);
    if (!sparse) SKIP("no sparse files here");
    Checkpoint *checkpoint = checkpoint_open(SCRATCH "/big.safetensors", &error);
    CHECK(checkpoint, "%s", error.text);
    if (checkpoint) {
        CHECK(stored_tensor_read_float(checkpoint_find(checkpoint, "end"), 0, 2, read, &error) == 0, "%s", error.text);
        CHECK(read[0] == 1.5f && read[1] == -2.25f);
        CHECK(stored_tensor_read_int(checkpoint_find(checkpoint, "big"), 5368709119, 1, last, &error) == 0);
        CHECK(last[0] == 0);
    }
    checkpoint_close(checkpoint);
    remove(SCRATCH "/big.safetensors");
}

/* ---------------------------------------------------------------------------------------------------------- writing */

static const TensorSpec SPECS[] = {
    {.name = "w", .dtype = DTYPE_F32, .n_dims = 2, .shape = {2, 3}},
    {.name = "scalar", .dtype = DTYPE_F32},
    {.name = "none", .dtype = DTYPE_F32, .n_dims = 2, .shape = {0, 5}},
    {.name = "i\"d\n\xc3\xa9", .dtype = DTYPE_I64, .n_dims = 1, .shape = {2}},
};
enum { N_SPECS = 4, SPEC_BYTES = 24 + 4 + 16 };

/* Also read by tests/check_formats.py, with the reference library. */
static void writes_what_it_reads(void)
{
    static const float w[7] = {1, -2, 3.5f, 1e-40f, INFINITY, 0, 42};
    static const int64_t ids[2] = {-1, INT64_MAX};
    float floats[6];
    int64_t ints[2];
    MappedFile file;
    fresh_scratch();
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/written.safetensors", SPECS, N_SPECS, &error);
    CHECK(writer, "%s", error.text);
    CHECK(safetensors_append(writer, w, 10, &error) == 0, "any pieces will do");
    CHECK(safetensors_append(writer, (const char *)w + 10, 18, &error) == 0);
    CHECK(safetensors_append(writer, ids, 16, &error) == 0);
    CHECK(!path_exists(SCRATCH "/written.safetensors"), "nothing is there before the commit");
    CHECK(safetensors_commit(writer, &error) == 0, "%s", error.text);
    CHECK(mapped_file_open(&file, SCRATCH "/written.safetensors", &error) == 0);
    static const char start[] = "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],"
                                "\"data_offsets\":[0,24]},";
    CHECK(file.bytes > 8 && read_u64(file.data) % 8 == 0 && file.bytes == 8 + read_u64(file.data) + SPEC_BYTES);
    CHECK(memcmp(file.data + 8, start, sizeof start - 1) == 0, "%.120s", (const char *)file.data + 8);
    mapped_file_close(&file);
    Checkpoint *checkpoint = checkpoint_open(SCRATCH "/written.safetensors", &error);
    CHECK(checkpoint && checkpoint_count(checkpoint) == N_SPECS, "%s", error.text);
    CHECK(stored_tensor_read_float(checkpoint_find(checkpoint, "w"), 0, 6, floats, &error) == 0);
    CHECK(memcmp(floats, w, sizeof floats) == 0);
    CHECK(stored_tensor_read_float(checkpoint_find(checkpoint, "scalar"), 0, 1, floats, &error) == 0);
    CHECK(floats[0] == 42);
    CHECK(stored_tensor_read_int(checkpoint_find(checkpoint, SPECS[3].name), 0, 2, ints, &error) == 0);
    CHECK(memcmp(ints, ids, sizeof ids) == 0);
    checkpoint_close(checkpoint);
}

static void an_unfinished_file_never_appears(void)
{
    static const char data[SPEC_BYTES + 1];
    fresh_scratch();
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/a", SPECS, N_SPECS, &error);
    CHECK(safetensors_append(writer, data, SPEC_BYTES - 1, &error) == 0);
    CHECK(safetensors_append(writer, data, 2, &error) == -1 && strstr(error.text, "too much"), "%s", error.text);
    CHECK(safetensors_commit(writer, &error) == -1 && strstr(error.text, "too little"), "%s", error.text);
    writer = safetensors_create(SCRATCH "/a", SPECS, N_SPECS, &error);
    CHECK(safetensors_append(writer, data, SPEC_BYTES, &error) == 0);
    safetensors_abandon(writer);
    safetensors_abandon(NULL);
    CHECK(rmdir(SCRATCH) == 0, "something was left behind");
}

static void break_stream(SafetensorsWriter *writer)
{
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    dup2(full, fileno(writer->file->stream));
    close(full);
}

static void a_full_disk_is_noticed(void)
{
    static char data[1 << 20];
    const TensorSpec large = {.name = "x", .dtype = DTYPE_U8, .n_dims = 1, .shape = {sizeof data}};
    fresh_scratch();
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/a", &large, 1, &error);
    break_stream(writer);
    CHECK(safetensors_append(writer, data, sizeof data, &error) == -1 && error.exit_code == EXIT_FAILED);
    CHECK(strstr(error.text, SCRATCH "/a") && strstr(error.text, "No space left"), "%s", error.text);
    safetensors_abandon(writer);
    writer = safetensors_create(SCRATCH "/a", SPECS, N_SPECS, &error);
    break_stream(writer);
    CHECK(safetensors_append(writer, data, SPEC_BYTES, &error) == 0, "buffered");
    CHECK(safetensors_commit(writer, &error) == -1 && strstr(error.text, "No space left"), "%s", error.text);
    CHECK(rmdir(SCRATCH) == 0, "something was left behind");
}

static void refuses_impossible_specs(void)
{
    static const TensorSpec twice[] = {{.name = "a", .dtype = DTYPE_U8}, {.name = "a", .dtype = DTYPE_U8}};
    static const TensorSpec metadata = {.name = "__metadata__", .dtype = DTYPE_U8};
    static const TensorSpec other = {.name = "a", .dtype = DTYPE_OTHER};
    static const TensorSpec deep = {.name = "a", .dtype = DTYPE_U8, .n_dims = CHECKPOINT_MAX_DIMS + 1};
    static const TensorSpec huge = {.name = "a", .dtype = DTYPE_F32, .n_dims = 2, .shape = {SIZE_MAX / 2, 3}};
    fresh_scratch();
    CHECK(!safetensors_create(SCRATCH "/a", twice, 2, &error) && strstr(error.text, "twice"), "%s", error.text);
    CHECK(!safetensors_create(SCRATCH "/a", &metadata, 1, &error), "%s", error.text);
    CHECK(!safetensors_create(SCRATCH "/a", &other, 1, &error), "%s", error.text);
    CHECK(!safetensors_create(SCRATCH "/a", &deep, 1, &error), "%s", error.text);
    CHECK(!safetensors_create(SCRATCH "/a", &huge, 1, &error), "%s", error.text);
    CHECK(!safetensors_create(SCRATCH "/none/a", SPECS, N_SPECS, &error) && error.exit_code == EXIT_USAGE);
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/a", NULL, 0, &error);
    CHECK(writer && safetensors_commit(writer, &error) == 0, "no tensors at all is a file: %s", error.text);
}

static const Test tests[] = {
    {"reads_the_golden_files", reads_the_golden_files},
    {"reads_the_shared_checkpoints", reads_the_shared_checkpoints},
    {"converts_every_16_bit_float", converts_every_16_bit_float},
    {"walks_views", walks_views},
    {"accepts_unusual_headers", accepts_unusual_headers},
    {"an_unknown_type_is_an_error_only_when_read", an_unknown_type_is_an_error_only_when_read},
    {"refuses_damaged_headers", refuses_damaged_headers},
    {"refuses_deep_nesting", refuses_deep_nesting},
    {"refuses_every_truncation", refuses_every_truncation},
    {"says_what_a_file_is_not", says_what_a_file_is_not},
    {"looks_for_files_in_order", looks_for_files_in_order},
    {"refuses_damaged_indexes", refuses_damaged_indexes},
    {"reads_beyond_four_gigabytes", reads_beyond_four_gigabytes},
    {"an_unfinished_file_never_appears", an_unfinished_file_never_appears},
    {"a_full_disk_is_noticed", a_full_disk_is_noticed},
    {"refuses_impossible_specs", refuses_impossible_specs},
    {"writes_what_it_reads", writes_what_it_reads}, /* the last: tests/check_formats.py reads what it leaves */
};

TEST_MAIN(tests)

/* test_t5x.c: data/t5x.c, and promot on T5X checkpoints.
 *
 * The golden files come from tests/make_t5x_goldens.py. Damaged ones are made here: of the index in memory, where it can
 * lie in a block of exactly its size and still name the arrays beside the golden one, of the rest in a scratch copy. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"

#include "../data/t5x.c"
#include "parity.h"

#define SCRATCH "build/test/t5x"
#define GOLDEN "tests/golden/t5x"

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

/* Maps a file that must be there; of no bytes when it is not. */
static MappedFile map_checked(const char *path)
{
    MappedFile file = {0};
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    return file;
}

/* Refused, in one line that says this. */
static void expect_refused(const char *path, const char *said)
{
    memset(&error, 0, sizeof error);
    Checkpoint *checkpoint = checkpoint_open(path, &error);
    CHECK(!checkpoint, "%s was opened (expected: %s)", path, said);
    CHECK(error.exit_code == EXIT_FAILED && strstr(error.text, said), "exit %d, %s (expected: %s)", error.exit_code,
          error.text, said);
    CHECK(!strchr(error.text, '\n'), "one line: %s", error.text);
    checkpoint_close(checkpoint);
}

/* ----------------------------------------------------------------------------------------------------- golden files */

/* Every tensor of the twin, in its shape and with its values; and `extra` tensors besides. */
static void check_twin(const char *directory, const char *twin_directory, size_t extra)
{
    Checkpoint *found = open_checked(directory), *twin = open_checked(twin_directory);
    for (size_t i = 0; found && twin && i < checkpoint_count(twin); i++) {
        const StoredTensor *wanted = checkpoint_at(twin, i), *tensor = checkpoint_find(found, wanted->name);
        CHECK(tensor, "%s: %s is missing", directory, wanted->name);
        if (!tensor) continue;
        bool same_shape = tensor->n_dims == wanted->n_dims &&
                          memcmp(tensor->shape, wanted->shape, wanted->n_dims * sizeof *wanted->shape) == 0;
        CHECK(same_shape, "%s: %s", directory, wanted->name);
        float *a = same_shape ? tensor_floats(tensor) : NULL, *b = tensor_floats(wanted);
        CHECK(a && b && memcmp(a, b, wanted->numel * sizeof *a) == 0, "%s: %s", directory, wanted->name);
        free(a);
        free(b);
    }
    if (found && twin)
        CHECK(checkpoint_count(found) == checkpoint_count(twin) + extra, "%zu and %zu tensors", checkpoint_count(found),
              checkpoint_count(twin));
    checkpoint_close(found);
    checkpoint_close(twin);
}

static void checkpoints_equal_their_twins(void)
{
    check_twin(GOLDEN "/files", GOLDEN "/gated_twin", 1);
    check_twin(GOLDEN "/stacked", GOLDEN "/gated_twin", 0);
    check_twin(GOLDEN "/inline", GOLDEN "/relu_twin", 0);
    check_twin(GOLDEN "/files/checkpoint", GOLDEN "/gated_twin", 1); /* the index named instead of its directory */
}

static void unknown_parameters_keep_their_path(void)
{
    Checkpoint *checkpoint = open_checked(GOLDEN "/files");
    const StoredTensor *prompt = checkpoint ? checkpoint_find(checkpoint, "encoder/prompt/prompt/prompt") : NULL;
    CHECK(prompt && prompt->n_dims == 2 && prompt->shape[0] == 3 && prompt->shape[1] == 6 && prompt->strides[0] == 6);
    checkpoint_close(checkpoint);
}

static void every_type_is_read(void)
{
    MappedFile file = map_checked(GOLDEN "/expected.json");
    cJSON *expected = json_parse((const char *)file.data, file.bytes), *entry;
    Checkpoint *checkpoint = open_checked(GOLDEN "/types");
    size_t compared = 0;
    cJSON_ArrayForEach(entry, expected)
    {
        const cJSON *values = cJSON_GetObjectItem(entry, "values"), *shape = cJSON_GetObjectItem(entry, "shape");
        for (int form = 0; values && checkpoint && form < 2; form++) {
            char name[64];
            snprintf(name, sizeof name, "%s/%s", entry->string, form ? "files" : "inline");
            const StoredTensor *tensor = checkpoint_find(checkpoint, name);
            size_t n = (size_t)cJSON_GetArraySize(values);
            CHECK(tensor && tensor->numel == n && tensor->n_dims == (size_t)cJSON_GetArraySize(shape), "%s", name);
            for (size_t i = 0; tensor && i < n; i++) { /* one by one: the others stay unpacked */
                double wanted = strtod(cJSON_GetArrayItem(values, (int)i)->valuestring, NULL);
                float real = 0;
                int64_t whole = 0;
                bool is_float = tensor->dtype <= DTYPE_F64;
                int status = is_float ? stored_tensor_read_float(tensor, i, 1, &real, &error)
                                      : stored_tensor_read_int(tensor, i, 1, &whole, &error);
                double got = is_float ? (double)real : (double)whole;
                CHECK(status == 0 && ((isnan(got) && isnan(wanted)) || got == (is_float ? (float)wanted : wanted)),
                      "%s[%zu] is %g (expected %g)", name, i, got, wanted);
                compared++;
            }
        }
    }
    CHECK(compared == 2 * (4 * 10 + 4 * 3 + 2 + 1 + 30), "%zu numbers", compared);
    checkpoint_close(checkpoint);
    cJSON_Delete(expected);
    mapped_file_close(&file);
}

static size_t count_unpacked(const Checkpoint *checkpoint)
{
    size_t count = 0;
    for (const T5xArray *array = checkpoint->arrays; array; array = array->next) count += array->bytes != NULL;
    return count;
}

/* A tensor read in pieces of any size gives the same, unpacks its array once, and not more than two arrays stay. */
static void slices_unpack_once(void)
{
    Checkpoint *checkpoint = open_checked(GOLDEN "/files");
    if (!checkpoint) return;
    CHECK(count_unpacked(checkpoint) == 0, "opening unpacked something");
    for (size_t i = 0; i < checkpoint_count(checkpoint); i++) {
        const StoredTensor *tensor = checkpoint_at(checkpoint, i);
        float *whole = tensor_floats(tensor), piece[7];
        const unsigned char *bytes = tensor->packed ? tensor->packed->bytes : NULL;
        CHECK(!tensor->packed || bytes, "%s", tensor->name);
        for (size_t first = 0; whole && first < tensor->numel; first += 7) {
            size_t count = tensor->numel - first < 7 ? tensor->numel - first : 7;
            CHECK(stored_tensor_read_float(tensor, first, count, piece, &error) == 0, "%s", error.text);
            CHECK(memcmp(piece, whole + first, count * sizeof *piece) == 0, "%s from %zu", tensor->name, first);
            CHECK(!tensor->packed || tensor->packed->bytes == bytes, "%s was unpacked again", tensor->name);
        }
        free(whole);
        CHECK(count_unpacked(checkpoint) <= 2, "%zu arrays are unpacked", count_unpacked(checkpoint));
    }
    /* Two arrays in turn, as when a head is compared with the embedding: both stay. */
    const StoredTensor *a = checkpoint_find(checkpoint, "lm_head.weight");
    const StoredTensor *b = checkpoint_find(checkpoint, "shared.weight");
    float one;
    CHECK(stored_tensor_read_float(a, 0, 1, &one, &error) == 0 && stored_tensor_read_float(b, 0, 1, &one, &error) == 0);
    const unsigned char *kept = a->packed->bytes;
    for (size_t i = 0; i < 4; i++) CHECK(stored_tensor_read_float(i % 2 ? b : a, i, 1, &one, &error) == 0);
    CHECK(kept && a->packed->bytes == kept && b->packed->bytes, "an array was thrown out");
    checkpoint_close(checkpoint);
}

/* ------------------------------------------------------------------------------------------------------ config.json */

/* What is made from the shapes says the same as the config of the twin. */
static void check_config(const char *directory, const char *config_file)
{
    MappedFile file = map_checked(config_file);
    char *text = t5x_config_json(directory, &error);
    CHECK(text, "%s", error.text);
    cJSON *made = cJSON_Parse(text ? text : ""), *wanted = json_parse((const char *)file.data, file.bytes), *item;
    CHECK(cJSON_GetArraySize(wanted) == 17, "%d members", cJSON_GetArraySize(wanted));
    cJSON_ArrayForEach(item, wanted)
        CHECK(cJSON_Compare(cJSON_GetObjectItem(made, item->string), item, true), "%s: %s", item->string, text);
    cJSON_Delete(made);
    cJSON_Delete(wanted);
    mapped_file_close(&file);
    free(text);
}

static void config_is_made_from_shapes(void)
{
    check_config(GOLDEN "/files", GOLDEN "/gated_twin/config.json");
    check_config(GOLDEN "/stacked", GOLDEN "/gated_twin/config.json");
    check_config(GOLDEN "/inline", GOLDEN "/relu_twin/config.json");
}

/* mT5's vocabulary tells its kind; only shapes are looked at. In name order, for checkpoint_find. */
static void vocabulary_tells_mt5(void)
{
    StoredTensor tensors[] = {
        {.name = "encoder.block.0.layer.0.SelfAttention.q.weight", .n_dims = 2, .shape = {384, 512}},
        {.name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", .n_dims = 2, .shape = {32, 6}},
        {.name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", .n_dims = 2, .shape = {1024, 512}},
        {.name = "lm_head.weight", .n_dims = 2, .shape = {250112, 512}},
        {.name = "shared.weight", .n_dims = 2, .shape = {250112, 512}},
    };
    Checkpoint checkpoint = {.tensors = tensors, .count = 5};
    char *text = t5x_format_config(&checkpoint, "here", &error);
    cJSON *made = cJSON_Parse(text ? text : "");
    CHECK(text && strstr(text, "\"mt5\"") && strstr(text, "MT5ForConditionalGeneration"), "%s", text);
    CHECK(made && cJSON_GetObjectItem(made, "d_kv")->valuedouble == 64, "%s", text);
    cJSON_Delete(made);
    free(text);
    tensors[0].shape[0] = 385; /* is not of 6 heads */
    CHECK(!t5x_format_config(&checkpoint, "here", &error) && strstr(error.text, "is no T5 model"), "%s", error.text);
}

/* ---------------------------------------------------------------------------------------------------- promot itself */

/* Logits, loss and gradients of a checkpoint are those of its twin, to the bit: it is the same model. */
static void check_dump(const char *directory, const char *twin)
{
    char command[512];
    const char *const models[] = {directory, twin};
    Checkpoint *dumps[2];
    for (size_t i = 0; i < 2; i++) {
        snprintf(command, sizeof command,
                 "dump --quiet --model %s --batch " SCRATCH "/batch.safetensors --out " SCRATCH "/%zu.safetensors",
                 models[i], i);
        CHECK(run_promot(command, NULL) == 0, "%s", command);
        snprintf(command, sizeof command, SCRATCH "/%zu.safetensors", i);
        dumps[i] = open_checked(command);
    }
    for (size_t i = 0; dumps[0] && dumps[1] && i < checkpoint_count(dumps[1]); i++) {
        const StoredTensor *wanted = checkpoint_at(dumps[1], i), *found = checkpoint_find(dumps[0], wanted->name);
        CHECK(found && found->numel == wanted->numel, "%s: %s", directory, wanted->name);
        CHECK(found && memcmp(found->data, wanted->data, wanted->numel * 4) == 0, "%s: %s", directory, wanted->name);
    }
    checkpoint_close(dumps[0]);
    checkpoint_close(dumps[1]);
}

static void write_batch(int32_t largest)
{
    const int32_t ids[] = {largest, 3, 2, 9, 1}, labels[] = {4, largest, 1};
    const TensorSpec specs[] = {{"input_ids", DTYPE_I32, 2, {1, 5}}, {"labels", DTYPE_I32, 2, {1, 3}}};
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/batch.safetensors", specs, 2, &error);
    CHECK(writer && safetensors_append(writer, ids, sizeof ids, &error) == 0 &&
              safetensors_append(writer, labels, sizeof labels, &error) == 0 && safetensors_commit(writer, &error) == 0,
          "%s", error.text);
}

static void promot_computes_the_same(void)
{
    fresh_scratch();
    write_batch(10);
    check_dump(GOLDEN "/files", GOLDEN "/gated_twin");
    check_dump(GOLDEN "/stacked", GOLDEN "/gated_twin");
    check_dump(GOLDEN "/inline", GOLDEN "/relu_twin");
}

static void own_config_wins(void)
{
    T5Config config;
    static const char text[] =
        "{\"model_type\": \"mt5\", \"vocab_size\": 11, \"d_model\": 6, \"d_kv\": 2, \"d_ff\": 5, \"num_heads\": 2, "
        "\"num_layers\": 2, \"num_decoder_layers\": 3, \"relative_attention_num_buckets\": 4, "
        "\"relative_attention_max_distance\": 20}";
    fresh_scratch();
    CHECK(file_copy(GOLDEN "/inline/checkpoint", SCRATCH "/checkpoint", &error) == 0, "%s", error.text);
    CHECK(config_read(&config, SCRATCH, &error) == 0 && config.max_distance == 128, "%s", error.text);
    free(config.json);
    CHECK(file_write_text(SCRATCH "/config.json", text, &error) == 0, "%s", error.text);
    CHECK(config_read(&config, SCRATCH, &error) == 0 && config.max_distance == 20, "%s", error.text);
    free(config.json);
}

/* The checkpoint of google-research/prompt-tuning's tests, and its embedding as they publish it. */
static void shared_fixture(void)
{
    const char *shared = test_shared();
    char path[1200], command[2600];
    if (!shared) SKIP("no shared fixtures");
    fresh_scratch();
    snprintf(path, sizeof path, "%s/checkpoints/t5x-t5_1_1-tiny/tiny_embeddings_32128x4.npy", shared);
    MappedFile npy = map_checked(path);
    snprintf(path, sizeof path, "%s/checkpoints/t5x-t5_1_1-tiny/checkpoint_3", shared);
    Checkpoint *checkpoint = open_checked(path);
    const StoredTensor *embedding = checkpoint ? checkpoint_find(checkpoint, "shared.weight") : NULL;
    CHECK(embedding && embedding->numel == 32128 * 4 && npy.bytes == 128 + 4 * 32128 * 4);
    float *values = embedding ? tensor_floats(embedding) : NULL;
    CHECK(values && memcmp(values, npy.data + 128, 4 * 32128 * 4) == 0, "the embedding differs");
    CHECK(checkpoint_count(checkpoint) == 2 + 2 * 2 + 2 * 9 + 2 * 14, "%zu tensors", checkpoint_count(checkpoint));
    const StoredTensor *bias =
        checkpoint_find(checkpoint, "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    CHECK(bias && bias->shape[0] == 4 && bias->shape[1] == 2);
    free(values);
    checkpoint_close(checkpoint);
    mapped_file_close(&npy);

    write_batch(32127);
    snprintf(command, sizeof command, "info --model %s", path);
    CHECK(run_promot(command, SCRATCH "/info.txt") == 0);
    snprintf(command, sizeof command,
             "dump --quiet --model %s --batch " SCRATCH "/batch.safetensors --out " SCRATCH "/out.safetensors", path);
    CHECK(run_promot(command, NULL) == 0);
    Checkpoint *out = open_checked(SCRATCH "/out.safetensors");
    const StoredTensor *logits = out ? checkpoint_find(out, "logits") : NULL;
    float *found = logits ? tensor_floats(logits) : NULL;
    double square = 0;
    for (size_t i = 0; found && i < logits->numel; i++) square += (double)found[i] * (double)found[i];
    CHECK(logits && logits->numel == 3 * 32128 && square > 1 && isfinite(square), "%g", square);
    free(found);
    checkpoint_close(out);
}

/* -------------------------------------------------------------------------------------------------- what is refused */

static void other_kinds_get_a_sentence(void)
{
    static const char tensorflow[] = "model_checkpoint_path: \"model.ckpt-1000000\"\n";
    expect_refused(GOLDEN "/umt5", "is another in every layer, as in umT5");
    expect_refused(GOLDEN "/orbax", "is an Orbax checkpoint");
    fresh_scratch();
    write_bytes(SCRATCH "/checkpoint", tensorflow, sizeof tensorflow - 1);
    expect_refused(SCRATCH, "is of a TensorFlow checkpoint");
    write_bytes(SCRATCH "/checkpoint", "", 0);
    expect_refused(SCRATCH, "is empty");
    write_bytes(SCRATCH "/checkpoint", "nonsense", 8);
    expect_refused(SCRATCH, "nor T5X's index");
    remove(SCRATCH "/checkpoint");
    CHECK(!t5x_directory(SCRATCH));
    write_bytes(SCRATCH "/manifest.ocdbt", "", 0);
    CHECK(t5x_directory(SCRATCH));
    expect_refused(SCRATCH, "is an Orbax checkpoint");
    T5Config config;
    CHECK(config_read(&config, SCRATCH, &error) != 0 && strstr(error.text, "Orbax"), "%s", error.text);
}

/* Opens an index from memory, as if it were the file of this path, and reads all of it. 0 when everything was good. */
static int try_index(const unsigned char *data, size_t bytes, const char *path)
{
    unsigned char *exact = malloc(bytes ? bytes : 1);
    char *name = strdup(path);
    memcpy(exact, data, bytes);
    MappedFile file = {.path = name, .data = exact, .bytes = bytes};
    Checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    float numbers[512];
    memset(&error, 0, sizeof error);
    int status = t5x_read(checkpoint, &file, &error);
    for (size_t i = 0; status == 0 && i < checkpoint->count; i++) {
        const StoredTensor *tensor = &checkpoint->tensors[i];
        size_t count = tensor->numel < 512 ? tensor->numel : 512;
        if (tensor->dtype > DTYPE_F64) continue;
        status = stored_tensor_read_float(tensor, 0, count, numbers, &error);
        if (status == 0) status = stored_tensor_read_float(tensor, tensor->numel - count, count, numbers, &error);
    }
    if (status != 0) CHECK(error.exit_code == EXIT_FAILED && strstr(error.text, ": "), "%s", error.text);
    checkpoint_close(checkpoint);
    free(exact);
    free(name);
    return status;
}

static void truncated_indexes_are_refused(void)
{
    static const char *const paths[] = {GOLDEN "/files/checkpoint", GOLDEN "/stacked/checkpoint",
                                        GOLDEN "/inline/checkpoint"};
    for (size_t p = 0; p < 3; p++) {
        MappedFile file = map_checked(paths[p]);
        CHECK(try_index(file.data, file.bytes, paths[p]) == 0, "%s", error.text);
        for (size_t bytes = 0; bytes < file.bytes; bytes++)
            CHECK(try_index(file.data, bytes, paths[p]) != 0, "%s: its first %zu bytes are taken", paths[p], bytes);
        unsigned char *longer = calloc(1, file.bytes + 1);
        memcpy(longer, file.data, file.bytes);
        CHECK(try_index(longer, file.bytes + 1, paths[p]) != 0 && strstr(error.text, "behind its end"), "%s",
              error.text);
        free(longer);
        mapped_file_close(&file);
    }
}

/* Any byte may be any other: never a crash, always an answer. The sanitizers watch. */
static void changed_indexes_do_no_harm(void)
{
    static const char *const paths[] = {GOLDEN "/files/checkpoint", GOLDEN "/stacked/checkpoint",
                                        GOLDEN "/inline/checkpoint"};
    static const unsigned char values[] = {0x00, 0x01, 0x7f, 0x80, 0x8f, 0xc0, 0xc1,
                                           0xc6, 0xc9, 0xcf, 0xdd, 0xdf, 0xff};
    size_t refused = 0;
    for (size_t p = 0; p < 3; p++) {
        MappedFile file = map_checked(paths[p]);
        unsigned char *copy = malloc(file.bytes);
        for (size_t i = p; i < file.bytes; i += 2) { /* every byte takes long under the sanitizers */
            memcpy(copy, file.data, file.bytes);
            copy[i] = values[(i + p) % sizeof values];
            refused += try_index(copy, file.bytes, paths[p]) != 0;
        }
        free(copy);
        mapped_file_close(&file);
    }
    CHECK(refused > 1000, "%zu", refused);
}

/* An index written by hand: {"target": {"x": VALUE}}, VALUE given byte by byte. */
static int try_value(const void *value, size_t bytes)
{
    static const unsigned char head[] = "\x81\xa6target\x81\xa1x";
    unsigned char *index = malloc(sizeof head - 1 + bytes);
    memcpy(index, head, sizeof head - 1);
    memcpy(index + sizeof head - 1, value, bytes);
    int status = try_index(index, sizeof head - 1 + bytes, SCRATCH "/checkpoint");
    free(index);
    return status;
}

#define REFUSES(value, said)                                                                                           \
    do {                                                                                                               \
        CHECK(try_value(value, sizeof(value) - 1) != 0, "taken (expected: %s)", said);                                 \
        CHECK(strstr(error.text, said), "%s (expected: %s)", error.text, said);                                        \
    } while (0)

static void lying_arrays_are_refused(void)
{
    static const char good[] = "\xc7\x12\x01\x93\x92\x01\x01\xa7"
                               "float32\xc4\x04\0\0\0\0";
    CHECK(try_value(good, sizeof good - 1) == 0, "%s", error.text);
    REFUSES("\xc7\x12\x01\x93\x92\x01\x02\xa7"
            "float32\xc4\x04\0\0\0\0",
            "has the wrong number of bytes (expected 8");
    REFUSES("\xc7\x12\x01\x93\x92\x01\x00\xa7"
            "float32\xc4\x04\0\0\0\0",
            "positive whole numbers");
    REFUSES("\xc7\x12\x01\x93\x92\x01\xff\xa7"
            "float32\xc4\x04\0\0\0\0",
            "positive whole numbers");
    REFUSES("\xc7\x12\x01\x93\x92\x01\x01\xa7"
            "complex\xc4\x04\0\0\0\0",
            "has an unknown type");
    REFUSES("\xc7\x12\x01\x92\x92\x01\x01\xa7"
            "float32\xc4\x04\0\0\0\0",
            "expected a list of 3");
    REFUSES("\xc7\x12\x02\x93\x92\x01\x01\xa7"
            "float32\xc4\x04\0\0\0\0",
            "is neither an array nor a map");
    REFUSES("\xc7\x22\x01\x93\x92\xcf\x40\0\0\0\0\0\0\0\xcf\x40\0\0\0\0\0\0\0\xa7"
            "float32\xc4\x04\0\0\0\0",
            "positive whole numbers"); /* 2^62: above what a double holds exactly */
    REFUSES("\xc7\x22\x01\x93\x92\xcf\0\x10\0\0\0\0\0\0\xcf\0\x10\0\0\0\0\0\0\xa7"
            "float32\xc4\x04\0\0\0\0",
            "overflows"); /* 2^52 x 2^52 */
    REFUSES("\xc9\xff\xff\xff\xff\x01", "is truncated");
    REFUSES("\xdf\xff\xff\xff\xff", "expected at least 8589934590 more bytes, found 0");
    REFUSES("\x01", "is neither an array nor a map");
    REFUSES("\xaePLACEHOLDER://", "is an Orbax checkpoint");
    REFUSES("\xc1", "0xc1");
    REFUSES("\x80", "holds no array");
}

/* Nested deeper than any stack: 100,000 maps, or lists, within one another. */
static void deep_nesting_is_refused(void)
{
    enum { DEEP = 100000 };
    unsigned char *deep = malloc(3 * DEEP + 1);
    for (size_t i = 0; i < DEEP; i++) memcpy(deep + 3 * i, "\x81\xa1k", 3);
    deep[3 * DEEP] = 0xc0;
    CHECK(try_value(deep, 3 * DEEP + 1) != 0 && strstr(error.text, "nested too deeply"), "%s", error.text);
    static const char spec[] = "\x82\xa6"
                               "driver\xa4zarr\xa1m";
    memcpy(deep, spec, sizeof spec - 1);
    memset(deep + sizeof spec - 1, 0x91, 60000);
    deep[sizeof spec - 1 + 60000] = 0xc0;
    CHECK(try_value(deep, sizeof spec + 60000) != 0 && strstr(error.text, "nested too deeply"), "%s", error.text);
    memset(deep, 0x91, DEEP);
    deep[DEEP] = 0xc0;
    CHECK(try_value(deep, DEEP + 1) != 0 && strstr(error.text, "is neither an array nor a map"), "%s", error.text);
    free(deep);
}

/* {"driver": "zarr", "kvstore": {"path": PATH}, "metadata": …} of a [4, 2] array in one raw chunk. */
static int try_path(const char *path)
{
    unsigned char spec[512];
    static const char head[] = "\x83\xa6"
                               "driver\xa4zarr\xa7kvstore\x81\xa4path";
    static const char tail[] = "\xa8metadata\x84\xa5shape\x92\x04\x02\xa6"
                               "chunks\x92\x04\x02\xa5"
                               "dtype\xa3<f4\xaa"
                               "compressor\xc0";
    size_t at = sizeof head - 1;
    memcpy(spec, head, at);
    spec[at++] = 0xd9;
    spec[at++] = (unsigned char)strlen(path);
    memcpy(spec + at, path, strlen(path));
    at += strlen(path);
    memcpy(spec + at, tail, sizeof tail - 1);
    return try_value(spec, at + sizeof tail - 1);
}

static void paths_stay_in_the_directory(void)
{
    static const char *const bad[] = {"", "/", ".", "..", "a/..", "../b", "a/../array", "..//", "/.", "a/./"};
    unsigned char numbers[32] = {0};
    fresh_scratch();
    CHECK(directory_create(SCRATCH "/array", &error) == 0, "%s", error.text);
    write_bytes(SCRATCH "/array/0.0", numbers, sizeof numbers);
    CHECK(try_path("array") == 0, "%s", error.text);
    CHECK(try_path("array/") == 0, "%s", error.text);
    CHECK(try_path("gs://bucket/model/checkpoint_1/array") == 0, "%s", error.text);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(try_path(bad[i]) != 0 && strstr(error.text, "beside the index"), "\"%s\": %s", bad[i], error.text);
    CHECK(try_path("..array") != 0 && strstr(error.text, "is not there"), "%s", error.text);
    CHECK(try_path("other") != 0 && strstr(error.text, "is not there"), "%s", error.text);
    write_bytes(SCRATCH "/array/0.0", numbers, sizeof numbers - 1);
    CHECK(try_path("array") != 0 && strstr(error.text, "has the wrong size (expected 32"), "%s", error.text);
}

/* Writes .zarray of the array above, with one of its members replaced. */
static void write_zarray(const char *key, const char *value)
{
    static const char *const members[][2] = {
        {"shape", "[4, 2]"},    {"chunks", "[4, 2]"}, {"dtype", "\"<f4\""}, {"compressor", "null"},
        {"fill_value", "null"}, {"filters", "null"},  {"order", "\"C\""},   {"zarr_format", "2"},
    };
    char text[1024] = "{";
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        size_t used = strlen(text);
        const char *member = strcmp(members[i][0], key) == 0 ? value : members[i][1];
        snprintf(text + used, sizeof text - used, "%s\"%s\": %s", i ? ", " : "", members[i][0], member);
    }
    strcat(text, "}");
    write_bytes(SCRATCH "/array/.zarray", text, strlen(text));
}

static void refuses_zarray(const char *key, const char *value, const char *said)
{
    write_zarray(key, value);
    CHECK(try_path("array") != 0 && strstr(error.text, said), "%s %s: %s (expected: %s)", key, value, error.text, said);
}

static void lying_metadata_is_refused(void)
{
    unsigned char numbers[32] = {0};
    fresh_scratch();
    CHECK(directory_create(SCRATCH "/array", &error) == 0, "%s", error.text);
    write_bytes(SCRATCH "/array/0.0", numbers, sizeof numbers);
    write_zarray("", "");
    CHECK(try_path("array") == 0, "%s", error.text);
    refuses_zarray("shape", "[2, 4]", "another shape or type");
    refuses_zarray("shape", "[8]", "chunks of 2 dimensions (expected 1");
    refuses_zarray("shape", "[4, -2]", "positive whole numbers");
    refuses_zarray("shape", "[4, 1e300]", "positive whole numbers");
    refuses_zarray("shape", "[1, 1, 1, 1, 1, 1, 1, 4, 2]", "more than 8 dimensions");
    refuses_zarray("shape", "8", "lacks its");
    refuses_zarray("chunks", "[0, 2]", "positive whole numbers");
    refuses_zarray("chunks", "[1, 2]", "has the wrong size (expected 8");
    refuses_zarray("chunks", "[4, 1125899906842624]", "has the wrong size");
    refuses_zarray("chunks", "[4503599627370496, 4503599627370496]", "overflow");
    refuses_zarray("chunks", "[4, 1125899906842624], \"compressor\": {\"id\": \"gzip\"}", "bytes when unpacked");
    refuses_zarray("dtype", "\"<f8\"", "another shape or type");
    refuses_zarray("dtype", "\">f4\"", "has an unknown type");
    refuses_zarray("dtype", "7", "lacks its \"dtype\"");
    refuses_zarray("order", "\"F\"", "row-major");
    refuses_zarray("filters", "[{\"id\": \"delta\"}]", "has filters");
    refuses_zarray("compressor", "{\"id\": \"blosc\"}", "has an unknown compression");
    refuses_zarray("compressor", "{\"id\": \"gzip\"}", "is no gzip of a chunk");
    refuses_zarray("fill_value", "null, \"dimension_separator\": \"/\"", "in directories");
    write_bytes(SCRATCH "/array/.zarray", "{", 1);
    CHECK(try_path("array") != 0 && strstr(error.text, "is not a JSON object"), "%s", error.text);
}

static void compress_chunk(const void *data, size_t bytes, size_t missing, size_t extra)
{
    unsigned char out[65536] = {0};
    z_stream stream = {0};
    CHECK(deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    stream.next_in = (unsigned char *)(uintptr_t)data;
    stream.avail_in = (uInt)bytes;
    stream.next_out = out;
    stream.avail_out = sizeof out;
    CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    size_t made = sizeof out - stream.avail_out;
    deflateEnd(&stream);
    write_bytes(SCRATCH "/array/0.0", out, made - missing + extra);
}

/* A chunk must hold exactly its bytes: not fewer, not more, nothing behind them, and no bomb. */
static void damaged_chunks_are_refused(void)
{
    enum { BOMB = 10000000 };
    unsigned char numbers[40] = {1, 2, 3}, *zeros = calloc(1, BOMB);
    fresh_scratch();
    CHECK(directory_create(SCRATCH "/array", &error) == 0, "%s", error.text);
    write_zarray("compressor", "{\"id\": \"gzip\", \"level\": 1}");
    CHECK(try_path("array") != 0 && strstr(error.text, "array/0.0: is not there"), "%s", error.text);
    compress_chunk(numbers, 32, 0, 0);
    CHECK(try_path("array") == 0, "%s", error.text);
    for (size_t missing = 1; missing < 20; missing++) {
        compress_chunk(numbers, 32, missing, 0);
        CHECK(try_path("array") != 0 && strstr(error.text, "is no gzip"), "%zu: %s", missing, error.text);
    }
    const struct {
        const void *data;
        size_t bytes, extra;
    } bad[] = {{numbers, 31, 0}, {numbers, 33, 0}, {numbers, 32, 1}, {zeros, BOMB, 0}, {zeros, 0, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        compress_chunk(bad[i].data, bad[i].bytes, 0, bad[i].extra);
        CHECK(try_path("array") != 0 && strstr(error.text, "is no gzip"), "case %zu: %s", i, error.text);
    }
    write_bytes(SCRATCH "/array/0.0", "", 0);
    CHECK(try_path("array") != 0, "an empty chunk is taken");
    remove(SCRATCH "/array/0.0");
    CHECK(directory_create(SCRATCH "/array/0.0", &error) == 0 && try_path("array") != 0, "a directory is taken");
    free(zeros);
}

static const Test tests[] = {
    {"checkpoints_equal_their_twins", checkpoints_equal_their_twins},
    {"unknown_parameters_keep_their_path", unknown_parameters_keep_their_path},
    {"every_type_is_read", every_type_is_read},
    {"slices_unpack_once", slices_unpack_once},
    {"config_is_made_from_shapes", config_is_made_from_shapes},
    {"vocabulary_tells_mt5", vocabulary_tells_mt5},
    {"promot_computes_the_same", promot_computes_the_same},
    {"own_config_wins", own_config_wins},
    {"shared_fixture", shared_fixture},
    {"other_kinds_get_a_sentence", other_kinds_get_a_sentence},
    {"truncated_indexes_are_refused", truncated_indexes_are_refused},
    {"changed_indexes_do_no_harm", changed_indexes_do_no_harm},
    {"lying_arrays_are_refused", lying_arrays_are_refused},
    {"deep_nesting_is_refused", deep_nesting_is_refused},
    {"paths_stay_in_the_directory", paths_stay_in_the_directory},
    {"lying_metadata_is_refused", lying_metadata_is_refused},
    {"damaged_chunks_are_refused", damaged_chunks_are_refused},
};

TEST_MAIN(tests)

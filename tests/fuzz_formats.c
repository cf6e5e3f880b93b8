/* fuzz_formats.c: no file, however damaged, makes a reader of data/ crash, read out of bounds, leak or take undefined
 * steps. To be built with -fsanitize=address,undefined, which is what sees it.
 *
 * As a test: damages golden files and rows at random, from a fixed seed. PROMOT_FUZZ_ROUNDS=N: mutations of each.
 * With clang -DFUZZ_TARGET -fsanitize=fuzzer,address,undefined: a libFuzzer target (corpus: tests/golden/formats).
 *
 * The bytes lie in a heap block of exactly their number, where one byte too far is noticed, which it is not in a mapped
 * page. Hence the sources are included, and the functions behind mapped_file_open are called. */
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

/* ----------------------------------------------------------------------------------------------- reading everything */

static volatile double seen; /* so that no reading is optimised away */

static void read_some(const StoredTensor *tensor, size_t first, size_t count)
{
    float floats[64];
    int64_t ints[64];
    Error error;
    while (count > 0) {
        size_t piece = count < 64 ? count : 64;
        if (tensor->dtype <= DTYPE_F64 && stored_tensor_read_float(tensor, first, piece, floats, &error) == 0)
            for (size_t i = 0; i < piece; i++) seen += isfinite(floats[i]);
        else if (stored_tensor_read_int(tensor, first, piece, ints, &error) == 0)
            for (size_t i = 0; i < piece; i++) seen += ints[i] > 0;
        first += piece;
        count -= piece;
    }
}

/* The start and the end of a tensor: a view of stride 0 may claim any number of elements. */
static void read_tensor(const StoredTensor *tensor)
{
    size_t count = tensor->numel < 4096 ? tensor->numel : 4096;
    seen += (double)(strlen(tensor->name) + strlen(tensor->file) + tensor->n_dims);
    read_some(tensor, 0, count);
    read_some(tensor, tensor->numel - count, count);
    read_some(tensor, tensor->numel, 1); /* beyond the end: refused */
}

static void try_checkpoint(const MappedFile *file)
{
    Error error = {0};
    MappedFile borrowed = *file;
    Checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    checkpoint->files = &borrowed;
    if (read_by_content(checkpoint, file, &error) == 0 && sort_by_name(checkpoint, &error) == 0)
        for (size_t i = 0; i < checkpoint_count(checkpoint); i++) {
            const StoredTensor *tensor = checkpoint_at(checkpoint, i);
            CHECK(checkpoint_find(checkpoint, tensor->name) == tensor, "%s is not found", tensor->name);
            read_tensor(tensor);
        }
    else
        CHECK(error.exit_code == EXIT_FAILED && *error.text, "an error without a text");
    checkpoint->files = NULL; /* n_files is 0: nothing is unmapped */
    checkpoint_close(checkpoint);
}

static void try_prompt(const MappedFile *file)
{
    Error error;
    float *rows = NULL;
    size_t length, width;
    AdapterConfig config;
    if (file->bytes >= NPY_MAGIC_BYTES && npy_read(file, &rows, &length, &width, &error) == 0)
        for (size_t i = 0; i < length * width; i++) seen += rows[i] > 0;
    free(rows);
    if (config_parse(file, &config, &error) == 0) seen += (double)config.tokens;
}

/* As the config of an adapter, and as its tensors, of rank 2. */
static void try_lora(const MappedFile *file)
{
    Error error = {0};
    LoraFile lora = {0};
    MappedFile borrowed = *file;
    Checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (lora_config_parse(file, &lora, &error) == 0) seen += (double)lora.rank;
    checkpoint->files = &borrowed;
    if (read_by_content(checkpoint, file, &error) == 0 && sort_by_name(checkpoint, &error) == 0) {
        lora.rank = 2;
        if (lora_modules_read(&lora, checkpoint, "fuzzed", &error) == 0)
            for (size_t i = 0; i < lora.count; i++)
                seen += (double)strlen(lora.modules[i].name) + (lora.modules[i].a[2 * lora.modules[i].in - 1] > 0) +
                        (lora.modules[i].b[2 * lora.modules[i].out - 1] > 0);
        else
            CHECK(error.exit_code == EXIT_FAILED && *error.text, "an error without a text");
    }
    lora_file_free(&lora);
    checkpoint->files = NULL;
    checkpoint_close(checkpoint);
}

static void try_text(const MappedFile *file)
{
    Error error;
    Lines lines;
    IndexEntry *entries = NULL;
    size_t count;
    if (lines_split(&lines, (const char *)file->data, file->bytes, file->path, &error) == 0) {
        for (size_t i = 0; i < lines.count; i++) seen += (double)strlen(lines.text[i]);
        lines_free(&lines);
    }
    cJSON *index = json_parse((const char *)file->data, file->bytes);
    if (index && index_entries(index, file->path, &entries, &count, &error) == 0) seen += (double)count;
    free(entries);
    cJSON_Delete(index);
}

/* The bytes as a file of a data set: alone, in the layouts that the name and the task stand for, or beside
 * themselves. An index of four entries makes getting a row step over others. */
static void try_rows(const MappedFile *file, const char *task_name_, const char *name, bool pair)
{
    Error error = {0};
    Example example;
    char path[32];
    Task *task = task_builtin(task_name_, &error);
    Source source = {.file = {*file, *file}};
    Dataset dataset = {.task = task, .sources = &source, .n_sources = 1};
    snprintf(path, sizeof path, "%s", name);
    source.file[0].path = source.file[1].path = path;
    if (!pair) source.file[1] = (MappedFile){0};
    if (source_begin(&source, task, &error) == 0 && count_rows(&dataset, 4, &error) == 0) {
        for (size_t i = 0; i < dataset_count(&dataset); i += 1 + i / 8) {
            CHECK(dataset_get(&dataset, i, &example, &error) == 0, "row %zu: %s", i, error.text);
            seen += (double)strlen(example.input);
            example_free(&example);
        }
    } else {
        CHECK(*error.text, "an error without a text");
    }
    free(source.header_line);
    free(source.names);
    free(dataset.index);
    task_free(task);
}

static void try_data_set(const MappedFile *file)
{
    try_rows(file, "triviaqa", "fuzzed.json", false);
    try_rows(file, "openbookqa", "fuzzed.json", false);
    try_rows(file, "webquestions", "fuzzed.json", false);
    try_rows(file, "snli", "fuzzed.tsv", false);
    try_rows(file, "wmt14_en_fr", "fuzzed", false);
    try_rows(file, "wmt14_en_fr", "fuzzed.en", true);
    try_rows(file, "wmt14_en_fr", "fuzzed.sgm", true);
}

/* What was read is written again: nothing in a file may trouble the table or the picture. */
static void try_results(const MappedFile *file)
{
    Error error = {0};
    cJSON *json;
    const char *const labels[] = {"a", "b"};
    if (results_parse(file, &json, &error) != 0)
        CHECK(error.exit_code == EXIT_FAILED && *error.text, "an error without a text");
    for (TableFormat format = TABLE_TEXT; json && format <= TABLE_MARKDOWN; format++) {
        char *table = results_compare((const cJSON *const[]){json, json}, labels, 2, format);
        seen += (double)strlen(table);
        free(table);
    }
    cJSON_Delete(json);
}

static void try_figure(const MappedFile *file)
{
    static const char *const bad[] = {"Mnan", "M-nan", "Lnan", "L-nan", "Minf", "M-inf", "Linf", "L-inf"};
    Error error = {0};
    Figure *figure;
    if (figure_parse(file, &figure, &error) != 0) {
        CHECK(error.exit_code == EXIT_FAILED && *error.text, "an error without a text");
        return;
    }
    char *svg = plot_svg(figure_plot(figure)), *json = figure_json(figure_plot(figure));
    seen += (double)(strlen(svg) + strlen(json));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!strstr(svg, bad[i]), "%s: %s", bad[i], svg);
    free(svg);
    free(json);
    figure_free(figure);
}

static void try_bytes(const unsigned char *data, size_t bytes)
{
    char path[] = "fuzzed";
    unsigned char *exact = malloc(bytes ? bytes : 1);
    if (bytes > 0) memcpy(exact, data, bytes);
    MappedFile file = {.path = path, .data = exact, .bytes = bytes};
    try_checkpoint(&file);
    try_prompt(&file);
    try_lora(&file);
    try_text(&file);
    try_results(&file);
    try_figure(&file);
    try_data_set(&file);
    free(exact);
}

#ifdef FUZZ_TARGET

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    try_bytes(data, bytes);
    return 0;
}

#else

/* -------------------------------------------------------------------------------------------------------- mutations */

enum { MAX_BYTES = 1 << 16, DEFAULT_ROUNDS = 1500 };

/* SplitMix64 (Steele et al. 2014): good enough, and the same everywhere. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static size_t random_below(uint64_t *state, size_t bound)
{
    return bound ? (size_t)(random_next(state) % bound) : 0;
}

/* Numbers that overflow something, in 1, 2, 4 or 8 bytes. */
static void overwrite_number(uint64_t *state, unsigned char *data, size_t bytes)
{
    static const uint64_t numbers[] = {0,
                                       1,
                                       0x7f,
                                       0x80,
                                       0xff,
                                       0x7fff,
                                       0xffff,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x7fffffffffffffff,
                                       0x8000000000000000,
                                       0xffffffffffffffff,
                                       0x100000000};
    size_t width = (size_t)1 << random_below(state, 4);
    if (bytes < width) return;
    memcpy(data + random_below(state, bytes - width + 1), &numbers[random_below(state, 14)], width);
}

/* Another digit, where there is one: sizes and offsets in JSON and in npy headers. */
static void change_digit(uint64_t *state, unsigned char *data, size_t bytes)
{
    size_t start = random_below(state, bytes);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char *at = &data[(start + i) % bytes];
        if (*at < '0' || *at > '9') continue;
        *at = (unsigned char)"0123456789-.e\"[]"[random_below(state, 16)];
        return;
    }
}

/* Moves a piece of the data, or of another file, over some place of it, or in between. Returns the new length. */
static size_t splice(uint64_t *state, unsigned char *data, size_t bytes, const MappedFile *other)
{
    static unsigned char piece[256];
    const unsigned char *from = random_below(state, 2) ? other->data : data;
    size_t room = from == data ? bytes : other->bytes, start = random_below(state, room);
    size_t length = random_below(state, room - start < sizeof piece ? room - start + 1 : sizeof piece);
    size_t to = random_below(state, bytes + 1);
    memcpy(piece, from + start, length);
    if (random_below(state, 2)) { /* insert */
        if (bytes + length > MAX_BYTES) return bytes;
        memmove(data + to + length, data + to, bytes - to);
        bytes += length;
    } else if (length > bytes - to) {
        length = bytes - to;
    }
    memcpy(data + to, piece, length);
    return bytes;
}

static size_t mutate(uint64_t *state, unsigned char *data, size_t bytes, const MappedFile *other)
{
    size_t place = random_below(state, bytes), length;
    if (bytes == 0) return 0;
    switch (random_below(state, 8)) {
    case 0:
        data[place] ^= (unsigned char)(1 << random_below(state, 8));
        return bytes;
    case 1:
        data[place] = (unsigned char)random_next(state);
        return bytes;
    case 2:
    case 3:
        overwrite_number(state, data, bytes);
        return bytes;
    case 4:
        change_digit(state, data, bytes);
        return bytes;
    case 5: /* delete */
        length = random_below(state, bytes - place < 16 ? bytes - place : 16) + 1;
        memmove(data + place, data + place + length, bytes - place - length);
        return bytes - length;
    case 6:
        return splice(state, data, bytes, other);
    default: /* truncate, but not often by much */
        return random_below(state, 4) ? bytes - random_below(state, bytes < 32 ? bytes : 32) : place;
    }
}

/* --------------------------------------------------------------------------------------------------------- the test */

static const char *const GOLDEN[] = {
    "reference.safetensors",
    "zip.bin",
    "zip_protocol4.bin",
    "legacy.bin",
    "nested.bin",
    "bare.pt",
    "hostile.bin",
    "hostile_legacy.bin",
    "compressed.bin",
    "f4.npy",
    "version3.npy",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "sharded_safetensors/model.safetensors.index.json",
    "results.json",
    "figure.json",
    "../lora/deep_decoder.cross_mlp.adapter/adapter_config.json",
    "../lora/deep_decoder.cross_mlp.adapter/adapter_model.safetensors",
    "../t5x/inline/checkpoint",
    "../t5x/stacked/checkpoint",
    "../t5x/types/checkpoint",
};

/* Rows of data sets. */
static const char *const ROWS[] = {
    "{\"gold_label\": \"neutral\", \"sentence1\": \"a\", \"sentence2\": \"\\u00e9\\\"\"}\n\n"
    "{\"gold_label\": \"-\", \"sentence1\": \"a\", \"sentence2\": \"b\"}\r\n"
    "{\"label\": 2, \"premise\": \"a\", \"hypothesis\": \"b\"}",
    "{\"Data\": [{\"Question\": \"q]\", \"QuestionId\": \"1\", \"Answer\": {\"Value\": \"a\", \"Aliases\": "
    "[\"b\", \" \"]}},\n {\"Question\": \"\\\"}\", \"Answer\": {\"Value\": \"c\"}}], \"Domain\": {\"x\": []}}\n",
    "[{\"utterance\": \"q\", \"targetValue\": \"(list (description \\\"a (b)\\\") (description c))\"}, "
    "{\"question\": \"q\", \"answers\": [\"x\", \"y\"]},\n{\"qText\": \"q\", \"answer\": \"x\"}]\n",
    "{\"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"a\", \"label\": \"A\"}, {\"text\": \"b\", \"label\": "
    "\"B\"}, {\"text\": \"c\", \"label\": \"C\"}, {\"text\": \"d\", \"label\": \"D\"}]}, \"answerKey\": \"B\"}\n"
    "{\"question_stem\": \"s\", \"choices\": {\"text\": [\"a\", \"b\", \"c\", \"d\"], \"label\": [\"A\", \"B\", "
    "\"C\", \"D\"]}, \"answerKey\": \"A\"}\n",
    "\xef\xbb\xbfpremise\tid\thypothesis\tlabel\na\tx\t\"b "
    "\"\"c\"\"\"\t1\n\n\"\ty\t\"\"\t0\r\nd\tz\te\t-1\nf\tz\tg\t2\n",
    "one\tun\tnote\ntwo\tdeux\n\tx\n\"three\"\ttrois\tmore\t\n\nfour\tquatre\nfive\tcinq\nsix\tsix",
    "en\tfr\na\tb\nc\t\nd\te\n",
    "{\"translation\": {\"en\": \"a\", \"fr\": \"b\"}}\n{\"translation\": {\"en\": \"\", \"fr\": \"b\"}}\n{\"en\": "
    "\"c\", "
    "\"fr\": \"d\"}\n",
    "<srcset setid=\"n\">\n<doc><p>\n<seg id=\"1\">a &amp; b &lt;</seg>\n<seg id=\"2\"> two\nlines </seg>\n"
    "<SEG>x &quot</SEG><seg id=\"4\"></seg><seg id=\"5\">&apos;</seg>\n</p></doc></srcset>\n",
};
enum { N_GOLDEN = sizeof GOLDEN / sizeof *GOLDEN, N_SEEDS = N_GOLDEN + sizeof ROWS / sizeof *ROWS };

/* The golden files, and the rows as if they were files. */
static void open_seed(MappedFile *file, size_t i)
{
    Error error;
    char path[256];
    if (i < N_GOLDEN) {
        snprintf(path, sizeof path, "tests/golden/formats/%s", GOLDEN[i]);
        CHECK(mapped_file_open(file, path, &error) == 0, "%s", error.text);
    } else {
        *file = (MappedFile){.data = (const unsigned char *)ROWS[i - N_GOLDEN], .bytes = strlen(ROWS[i - N_GOLDEN])};
    }
    CHECK(file->bytes > 0 && file->bytes < MAX_BYTES);
}

static void survives_damaged_files(void)
{
    MappedFile files[N_SEEDS];
    uint64_t state = 20221101;
    const char *wanted = getenv("PROMOT_FUZZ_ROUNDS");
    long rounds = wanted ? atol(wanted) : DEFAULT_ROUNDS;
    unsigned char *data = malloc(MAX_BYTES);
    for (size_t i = 0; i < N_SEEDS; i++) open_seed(&files[i], i);
    for (size_t i = 0; i < N_SEEDS && test_failures == 0; i++) {
        for (long round = 0; round < rounds; round++) {
            size_t bytes = files[i].bytes;
            memcpy(data, files[i].data, bytes);
            for (size_t n = 1 + random_below(&state, 4); n > 0; n--)
                bytes = mutate(&state, data, bytes, &files[random_below(&state, N_SEEDS)]);
            try_bytes(data, bytes);
        }
    }
    for (size_t i = 0; i < N_GOLDEN; i++) mapped_file_close(&files[i]);
    free(data);
    CHECK(seen > 0, "nothing was read at all");
}

static const Test tests[] = {{"survives_damaged_files", survives_damaged_files}};

TEST_MAIN(tests)

#endif

/* test_cli.c: promot as a person or a script meets it: exit status, standard output, standard error, and files.
 *
 * Every call runs in a child of this program that enters promot_main as main does, so the sanitizers and the leak
 * checker see it whole. The models are tiny and random, made by promot's own functions; what their numbers should be is
 * the subject of other tests. Here it is the contract of the command line. */
#include "../promot.c"

#include <sys/stat.h>
#include <sys/wait.h>

#include "test.h"

#define SCRATCH "build/test/cli"
#define MT5 SCRATCH "/mt5"         /* a head of its own */
#define T5 SCRATCH "/t5"           /* tied, no lm_head stored */
#define BLANK SCRATCH "/blank"     /* its head is zero: all words are equally likely */
#define VOCABULARY SCRATCH "/text" /* holds spiece.model, and no model */
#define VARIANT SCRATCH "/variant" /* made anew by each test that needs a damaged or an altered model */

/* d_model 16 makes the tied head's scale, d_model^-0.5, a power of two: exact. */
enum { VOCAB = 400, WIDTH = 16, PIECES = 394 };
#define SIZES                                                                                                          \
    "\"vocab_size\": 400, \"d_model\": 16, \"d_kv\": 4, \"d_ff\": 10, \"num_heads\": 3, \"num_layers\": 1, "           \
    "\"num_decoder_layers\": 2"
static const char mt5_config[] = "{\"model_type\": \"mt5\", \"feed_forward_proj\": \"gated-gelu\", " SIZES "}";
static const char t5_config[] = "{\"model_type\": \"t5\", \"feed_forward_proj\": \"relu\", " SIZES "}";

static Error error;

/* --------------------------------------------------------------------------------------------------- running promot */

typedef enum { STDIO_USUAL, STDIN_CLOSED, STDOUT_CLOSED, STDOUT_FULL, STDERR_CLOSED } Stdio;

/* What the last call said. */
static struct {
    int status; /* -1: it was killed by a signal */
    char out[1 << 16], err[1 << 16], command[1024];
} ran;

static void read_all(const char *path, char *text, size_t room)
{
    FILE *file = fopen(path, "rb");
    size_t got = file ? fread(text, 1, room - 1, file) : 0;
    text[got] = '\0';
    if (file) fclose(file);
}

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    FILE *file;
    remove(path);
    file = fopen(path, "wb");
    CHECK(file && (bytes == 0 || fwrite(data, 1, bytes, file) == bytes), "%s", path);
    if (file) fclose(file);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static void redirect(int fd, const char *path, int flags)
{
    int opened = open(path, flags, 0666);
    if (opened < 0 || dup2(opened, fd) < 0) _exit(99);
    close(opened);
}

_Noreturn static void child(char **argv, int argc, Stdio stdio)
{
    redirect(STDIN_FILENO, SCRATCH "/stdin", O_RDONLY);
    redirect(STDOUT_FILENO, stdio == STDOUT_FULL ? "/dev/full" : SCRATCH "/stdout", O_WRONLY | O_CREAT | O_TRUNC);
    redirect(STDERR_FILENO, SCRATCH "/stderr", O_WRONLY | O_CREAT | O_TRUNC);
    if (stdio == STDIN_CLOSED) close(STDIN_FILENO);
    if (stdio == STDOUT_CLOSED) close(STDOUT_FILENO);
    if (stdio == STDERR_CLOSED) close(STDERR_FILENO);
    exit(promot_main(argc, argv));
}

static void run_with(Stdio stdio, const char *input, const char *const *words)
{
    char *argv[64] = {(char *)"promot"};
    int argc = 1, status;
    pid_t pid;
    write_text(SCRATCH "/stdin", input);
    write_text(SCRATCH "/stdout", "");
    write_text(SCRATCH "/stderr", "");
    *ran.command = '\0';
    for (size_t i = 0; words[i] && argc < 60; i++) {
        size_t used = strlen(ran.command);
        argv[argc++] = (char *)words[i];
        snprintf(ran.command + used, sizeof ran.command - used, " %s", words[i]);
        if (i == 0 && *words[0] != '-') /* one thread: this is about words, and a fork must not inherit a team */
            argv[argc++] = (char *)"--threads", argv[argc++] = (char *)"1";
    }
    argv[argc] = NULL;
    pid = fork();
    if (pid == 0) child(argv, argc, stdio);
    ran.status = pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    read_all(SCRATCH "/stdout", ran.out, sizeof ran.out);
    read_all(SCRATCH "/stderr", ran.err, sizeof ran.err);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* How many lines of standard error begin with this. */
static size_t lines_beginning(const char *start)
{
    size_t count = 0;
    for (const char *line = ran.err; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        count += strncmp(line, start, strlen(start)) == 0;
    return count;
}

static void check_success(int line)
{
    CHECK(ran.status == 0, "line %d:%s: exit %d: %s", line, ran.command, ran.status, ran.err);
    CHECK(lines_beginning("promot: ") == 0, "line %d:%s: %s", line, ran.command, ran.err);
}

/* A failure: the status, nothing on standard output, and one line that says why. */
static void check_failure(int line, int status, const char *said)
{
    size_t length = strlen(ran.err);
    CHECK(ran.status == status && strstr(ran.err, said), "line %d:%s: exit %d: %s (expected exit %d: %s)", line,
          ran.command, ran.status, ran.err, status, said);
    CHECK(lines_beginning("promot: ") == 1 && length > 0 && ran.err[length - 1] == '\n', "line %d:%s: %s", line,
          ran.command, ran.err);
    CHECK(!*ran.out, "line %d:%s: printed %s", line, ran.command, ran.out);
}

#define RUN(...) (run_with(STDIO_USUAL, "", WORDS(__VA_ARGS__)), check_success(__LINE__))
#define RUN_ON(input, ...) (run_with(STDIO_USUAL, input, WORDS(__VA_ARGS__)), check_success(__LINE__))
#define REFUSES(status, said, ...)                                                                                     \
    (run_with(STDIO_USUAL, "", WORDS(__VA_ARGS__)), check_failure(__LINE__, status, said))
#define REFUSES_ON(status, said, input, ...)                                                                           \
    (run_with(STDIO_USUAL, input, WORDS(__VA_ARGS__)), check_failure(__LINE__, status, said))

static size_t count_lines(const char *text)
{
    size_t count = 0;
    for (; *text; text++) count += *text == '\n';
    return count;
}

/* What was printed with --json: one object on one line. To be deleted. */
static cJSON *printed_json(void)
{
    cJSON *json = cJSON_ParseWithOpts(ran.out, NULL, true);
    CHECK(cJSON_IsObject(json) && count_lines(ran.out) == 1, "%s: %s", ran.command, ran.out);
    return json;
}

static double json_number(const cJSON *json, const char *name)
{
    return cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, name)); /* NaN when it is not there */
}

/* ------------------------------------------------------------------------------------------------ models and batches */

/* A new model of a config, with the test's vocabulary. */
static void make_model(const char *directory, const char *config)
{
    Device *dev = device_open(1, MATMUL_FP32, &error);
    Model *model;
    write_text(SCRATCH "/new.json", config);
    model = dev ? model_create(SCRATCH "/new.json", dev, 7, &error) : NULL;
    CHECK(model && model_write(model, directory, VOCABULARY, &error) == 0, "%s", error.text);
    model_close(model);
    device_close(dev);
}

/* How a variant differs from the model it is made of; a NULL names no tensor. */
typedef struct {
    const char *config;       /* its config.json; NULL: the model's own */
    const char *drop;         /* a tensor that is left out */
    const char *reshaped;     /* one that becomes a vector */
    const char *set;          /* one whose last element becomes `value` */
    const char *cleared;      /* one that is all zeros */
    const char *embedding_as; /* a tensor with the embedding's numbers is stored under this name (replacing that one) */
    const char *integers;     /* one that is said to hold integers */
    const char *extra;        /* tensors of this name, with a letter behind it, are added: */
    size_t n_extra;           /* so many */
    float value;
} Change;

static bool is_named(const char *change, const char *name)
{
    return change && strcmp(change, name) == 0;
}

static float *read_tensor(const StoredTensor *tensor)
{
    float *values = host_alloc(tensor->numel, sizeof *values);
    CHECK(stored_tensor_read_float(tensor, 0, tensor->numel, values, &error) == 0, "%s", error.text);
    return values;
}

static void write_variant(const Checkpoint *from, const Change *change)
{
    const StoredTensor *sources[128], *embedding = checkpoint_find(from, "shared.weight");
    TensorSpec specs[128];
    SafetensorsWriter *writer;
    char extra[26][64];
    size_t n = 0;
    for (size_t i = 0; i < checkpoint_count(from); i++) {
        const StoredTensor *t = checkpoint_at(from, i);
        if (is_named(change->drop, t->name) || is_named(change->embedding_as, t->name)) continue;
        specs[n] = (TensorSpec){t->name, DTYPE_F32, t->n_dims, {t->shape[0], t->n_dims > 1 ? t->shape[1] : 0}};
        if (is_named(change->reshaped, t->name)) specs[n].n_dims = 1, specs[n].shape[0] = t->numel;
        if (is_named(change->integers, t->name)) specs[n].dtype = DTYPE_I32;
        sources[n++] = t;
    }
    if (change->embedding_as)
        sources[n] = embedding, specs[n++] = (TensorSpec){change->embedding_as, DTYPE_F32, 2, {VOCAB, WIDTH}};
    for (size_t i = 0; i < change->n_extra; i++) {
        snprintf(extra[i], sizeof extra[i], "%s%c", change->extra, (char)('a' + i));
        sources[n] = embedding;
        specs[n++] = (TensorSpec){extra[i], DTYPE_F32, 2, {VOCAB, WIDTH}};
    }
    writer = safetensors_create(VARIANT "/model.safetensors", specs, n, &error);
    for (size_t i = 0; writer && i < n; i++) {
        float *values = read_tensor(sources[i]);
        if (is_named(change->cleared, specs[i].name)) memset(values, 0, sources[i]->numel * sizeof *values);
        if (is_named(change->set, specs[i].name)) values[sources[i]->numel - 1] = change->value;
        CHECK(safetensors_append(writer, values, sources[i]->numel * sizeof *values, &error) == 0, "%s", error.text);
        free(values);
    }
    CHECK(writer && safetensors_commit(writer, &error) == 0, "%s", error.text);
}

static void make_variant(const char *model, Change change)
{
    char *config = path_join(model, "config.json");
    Checkpoint *from = checkpoint_open(model, &error);
    CHECK(directory_remove(VARIANT, &error) == 0 && directory_create(VARIANT, &error) == 0, "%s", error.text);
    if (change.config)
        write_text(VARIANT "/config.json", change.config);
    else
        CHECK(file_copy(config, VARIANT "/config.json", &error) == 0, "%s", error.text);
    CHECK(file_copy(VOCABULARY "/spiece.model", VARIANT "/spiece.model", &error) == 0, "%s", error.text);
    CHECK(from, "%s", error.text);
    if (from) write_variant(from, &change);
    checkpoint_close(from);
    free(config);
}

/* The batch of a dump, as it is written; rows < 0 of a side leave it out. */
typedef struct {
    size_t rows, inputs, labels, label_rows, prompt_rows, prompt_width;
    const int64_t *input_ids, *label_ids;
    const float *prompt;
    Dtype dtype;
} BatchFile;

static void append_ids(SafetensorsWriter *writer, const int64_t *ids, size_t n, Dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        int32_t narrow = (int32_t)ids[i];
        float real = (float)ids[i];
        const void *data = dtype == DTYPE_I64   ? (const void *)&ids[i]
                           : dtype == DTYPE_I32 ? (const void *)&narrow
                                                : &real;
        CHECK(safetensors_append(writer, data, dtype_bytes(dtype), &error) == 0, "%s", error.text);
    }
}

#define BATCH SCRATCH "/batch.safetensors"
#define DUMPED SCRATCH "/dumped.safetensors"

static void write_batch(BatchFile b)
{
    TensorSpec specs[3];
    SafetensorsWriter *writer;
    size_t n = 0;
    if (!b.label_rows) b.label_rows = b.rows;
    if (b.input_ids) specs[n++] = (TensorSpec){"input_ids", b.dtype, 2, {b.rows, b.inputs}};
    if (b.label_ids) specs[n++] = (TensorSpec){"labels", b.dtype, 2, {b.label_rows, b.labels}};
    if (b.prompt) specs[n++] = (TensorSpec){"prompt", DTYPE_F32, 2, {b.prompt_rows, b.prompt_width}};
    writer = safetensors_create(BATCH, specs, n, &error);
    CHECK(writer, "%s", error.text);
    if (!writer) return;
    if (b.input_ids) append_ids(writer, b.input_ids, b.rows * b.inputs, b.dtype);
    if (b.label_ids) append_ids(writer, b.label_ids, b.label_rows * b.labels, b.dtype);
    if (b.prompt) safetensors_append(writer, b.prompt, b.prompt_rows * b.prompt_width * sizeof(float), &error);
    CHECK(safetensors_commit(writer, &error) == 0, "%s", error.text);
}

/* A batch of two rows with padding in both, in int64; a prompt of two rows comes with it when it is asked for. */
static const int64_t usual_inputs[2 * 4] = {5, 6, 7, 1, 300, 1, 0, 0}, usual_labels[2 * 3] = {9, 1, 0, 399, 12, 1};

static BatchFile usual_batch(bool prompted)
{
    static float prompt[2 * WIDTH];
    for (size_t i = 0; i < 2 * WIDTH; i++) prompt[i] = 0.1f * (float)(i % 7) - 0.2f;
    return (BatchFile){.rows = 2,
                       .inputs = 4,
                       .labels = 3,
                       .input_ids = usual_inputs,
                       .label_ids = usual_labels,
                       .prompt = prompted ? prompt : NULL,
                       .prompt_rows = 2,
                       .prompt_width = WIDTH,
                       .dtype = DTYPE_I64};
}

/* A tensor of the last dump; to be freed. n: the number of elements it must have. */
static float *dumped(const char *name, size_t n)
{
    Checkpoint *out = checkpoint_open(DUMPED, &error);
    const StoredTensor *tensor = out ? checkpoint_find(out, name) : NULL;
    float *values = host_alloc(n, sizeof *values);
    CHECK(tensor && tensor->numel == n && tensor->dtype == DTYPE_F32, "%s: %s", ran.command, name);
    if (tensor && tensor->numel == n) {
        free(values);
        values = read_tensor(tensor);
    }
    checkpoint_close(out);
    return values;
}

static bool was_dumped(const char *name)
{
    Checkpoint *out = checkpoint_open(DUMPED, &error);
    bool found = out && checkpoint_find(out, name);
    checkpoint_close(out);
    return found;
}

static double dumped_loss(void)
{
    float *loss = dumped("loss", 1);
    double value = *loss;
    free(loss);
    return value;
}

/* Everything that the tests share, made once. */
static void make_world(void)
{
    static const char *const words[] = {"the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "größer"};
    uint32_t state = 1;
    FILE *text;
    if (path_exists(SCRATCH) && directory_remove(SCRATCH, &error)) fprintf(stderr, "%s\n", error.text);
    CHECK(directory_create(VOCABULARY, &error) == 0, "%s", error.text);
    text = fopen(SCRATCH "/text.txt", "wb");
    for (size_t i = 0; text && i < 3000; i++) {
        state = state * 1664525u + 1013904223u; /* Numerical Recipes' generator */
        fprintf(text, "%s%c", words[(state >> 16) % 10], i % 10 == 9 ? '\n' : ' ');
    }
    if (text) fclose(text);
    CHECK(tokenizer_train(SCRATCH "/text.txt", VOCABULARY "/spiece.model", PIECES, &error) == 0, "%s", error.text);
    make_model(MT5, mt5_config);
    make_model(T5, t5_config);
    make_variant(MT5, (Change){.cleared = "lm_head.weight"});
    CHECK(rename(VARIANT, BLANK) == 0, "%s", strerror(errno));
}

/* ---------------------------------------------------------------------------------------- the program and its options */

static void the_program(void)
{
    static const char *const names[] = {"info", "tokenize", "generate", "score", "dump", "train", "eval", "pretrain"};
    RUN("--version");
    CHECK(strcmp(ran.out, "promot " PROMOT_VERSION "\n") == 0, "%s", ran.out);
    REFUSES(2, "--help", "");
    REFUSES(2, "no such command", "frobnicate");
    run_with(STDIO_USUAL, "", WORDS(NULL));
    check_failure(__LINE__, 2, "usage: promot COMMAND");
    RUN("--help");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char listed[32];
        snprintf(listed, sizeof listed, "\n  %s ", names[i]);
        CHECK(strstr(ran.out, listed), "--help does not list %s", names[i]);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        RUN(names[i], "--help");
        CHECK(strstr(ran.out, names[i]) && strstr(ran.out, "--threads N") && strstr(ran.out, "--quiet"), "%s", ran.out);
        REFUSES(2, "is needed", names[i]);
    }
    RUN("generate", "--help"); /* names and defaults */
    CHECK(strstr(ran.out, "--beams K") && strstr(ran.out, "[4]") && strstr(ran.out, "--alpha R") &&
              strstr(ran.out, "[0.6]"),
          "%s", ran.out);
}

static void options_are_checked(void)
{
    REFUSES(2, "did you mean --beams?", "generate", "--model", MT5, "--baems", "2");
    REFUSES(2, "no such option of info", "info", "--model", MT5, "--beams", "2");
    REFUSES(2, "--help lists them", "info", "--model", MT5, "--qqqqqqqqqqqqqqqqqqqqqqq");
    REFUSES(2, "expected a value", "info", "--model");
    REFUSES(2, "expected an option", "info", MT5);
    REFUSES(2, "takes no value", "info", "--model", MT5, "--json=yes");
    REFUSES(2, "expected fp32|bf16, found fp16", "info", "--model", MT5, "--dtype", "fp16");
    RUN("info", "--model=" MT5, "--batch=8");
    REFUSES(2, "expected a whole number", "info", "--model", MT5, "--batch=");
    static const char *const no_numbers[] = {"",     "x",        "8x",   " 8",  "8 ",    "nan", "NaN", "inf",
                                             "-inf", "infinity", "0x10", "1.5", "1e999", "1,5", "8\n"};
    for (size_t i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++)
        REFUSES(2, "--batch: expected a whole number", "info", "--model", MT5, "--batch", no_numbers[i]);
    static const char *const beyond[] = {"0", "-1", "1000001", "1e300"};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++)
        REFUSES(2, "--batch: expected a number from 1 to", "info", "--model", MT5, "--batch", beyond[i]);
    REFUSES(2, "--threads", "info", "--model", MT5, "--threads", "-1");
    REFUSES(2, "--seed", "info", "--model", MT5, "--seed", "1.5");
    REFUSES(2, "one line", "info", "--model", "more than\none line"); /* a path is quoted without its line break */
}

/* What an operating system can do to the three streams. */
static void streams(void)
{
    const char *const *const calls[] = {WORDS("--version"), WORDS("--help"), WORDS("info", "--model", MT5),
                                        WORDS("tokenize", "--model", MT5, "--input", "the fox")};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        run_with(STDOUT_CLOSED, "", calls[i]);
        check_failure(__LINE__, 1, "standard output: closed");
        run_with(STDERR_CLOSED, "", calls[i]);
        CHECK(ran.status == 0 && *ran.out, "%s: %d", ran.command, ran.status);
        if (!path_exists("/dev/full")) continue;
        run_with(STDOUT_FULL, "", calls[i]);
        check_failure(__LINE__, 1, "standard output: cannot write");
    }
    run_with(STDIN_CLOSED, "", WORDS("tokenize", "--model", MT5, "--input", "the fox"));
    check_success(__LINE__);
    CHECK(count_lines(ran.out) == 1, "%s", ran.out);
    write_batch(usual_batch(false));
    if (path_exists("/dev/full"))
        REFUSES(1, "/dev/full", "dump", "--model", MT5, "--batch", BATCH, "--out", "/dev/full");
}

/* ------------------------------------------------------------------------------------------------- text and vocabulary */

static void text_is_utf8(void)
{
    REFUSES_ON(2, "standard input:2", "fine\nbad \xff\n", "tokenize", "--model", MT5);
    REFUSES_ON(2, "UTF-8", "\xc3", "generate", "--model", MT5);
    REFUSES(2, "--input:1", "tokenize", "--model", MT5, "--input", "\xed\xa0\x80");
    write_bytes(SCRATCH "/nul.txt", "a\nb\nc\0d\n", 8);
    REFUSES(2, "nul.txt:3: has a NUL", "tokenize", "--model", MT5, "--file", SCRATCH "/nul.txt");
    REFUSES(2, "nul.txt:3", "score", "--metric", "bleu", "--predictions", SCRATCH "/nul.txt", "--references",
            SCRATCH "/text.txt");
    REFUSES(2, "none.txt", "tokenize", "--model", MT5, "--file", SCRATCH "/none.txt");
    REFUSES(2, "is a directory", "tokenize", "--model", MT5, "--file", SCRATCH);
    REFUSES(2, "--input and --file", "tokenize", "--model", MT5, "--file", SCRATCH "/text.txt", "--input", "x");
}

static void tokenize_round_trip(void)
{
    const char *const text = "the lazy dog\n\nQuick größer 日本\n the fox";
    Tokenizer *tokenizer = tokenizer_open(VOCABULARY "/spiece.model", &error);
    char expected[1024] = "";
    int32_t *ids;
    size_t count, at = 0;
    CHECK(tokenizer && tokenizer_encode(tokenizer, "the lazy dog", 12, &ids, &count, &error) == 0, "%s", error.text);
    if (!tokenizer) return;
    for (size_t i = 0; i < count; i++) at += (size_t)sprintf(expected + at, at ? " %d" : "%d", (int)ids[i]);
    free(ids);
    tokenizer_close(tokenizer);

    RUN("tokenize", "--model", VOCABULARY, "--input", "the lazy dog"); /* needs no weights */
    CHECK(strncmp(ran.out, expected, at) == 0 && strcmp(ran.out + at, "\n") == 0, "%s", ran.out);
    RUN("tokenize", "--model", VOCABULARY, "--input", "the lazy dog", "--eos");
    CHECK(strncmp(ran.out, expected, at) == 0 && strcmp(ran.out + at, " 1\n") == 0, "%s", ran.out);
    RUN("tokenize", "--model", VOCABULARY, "--input", "the dog", "--pieces");
    CHECK(strstr(ran.out, "\xe2\x96\x81"), "%s", ran.out); /* the mark of a space */

    RUN_ON(text, "tokenize", "--model", VOCABULARY, "--eos");
    CHECK(count_lines(ran.out) == 4 && strstr(ran.out, "\n1\n"), "%s", ran.out);
    snprintf(expected, sizeof expected, "%.1000s", ran.out);
    RUN_ON(expected, "tokenize", "--model", VOCABULARY, "--decode");
    CHECK(strcmp(ran.out, "the lazy dog\n\nQuick größer 日本\nthe fox\n") == 0, "%s", ran.out);
    RUN("tokenize", "--model", VOCABULARY, "--input", "");
    CHECK(strcmp(ran.out, "\n") == 0, "%s", ran.out);
    RUN("tokenize", "--model", VOCABULARY, "--file", "/dev/null");
    CHECK(!*ran.out, "%s", ran.out);
}

static void tokenize_ids(void)
{
    char line[64];
    snprintf(line, sizeof line, "%d 1 %d", PIECES - 1, PIECES - 2); /* cut at EOS */
    RUN("tokenize", "--model", VOCABULARY, "--decode", "--input", line);
    CHECK(strstr(ran.out, "<extra_id_0>") && !strstr(ran.out, "<extra_id_1>"), "%s", ran.out);
    static const char *const wrong[] = {"x", "-1", "3.5", "5,6", "99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        REFUSES_ON(2, "standard input:1: expected ids", wrong[i], "tokenize", "--model", VOCABULARY, "--decode");
    REFUSES(2, "--decode", "tokenize", "--model", VOCABULARY, "--decode", "--eos", "--input", "5");
    RUN("tokenize", "--model", VOCABULARY, "--json", "--input", "the\nfox");
    cJSON *json = printed_json();
    const cJSON *lines = cJSON_GetObjectItemCaseSensitive(json, "lines");
    CHECK(cJSON_GetArraySize(lines) == 2 && cJSON_GetArraySize(lines->child) > 0, "%s", ran.out);
    cJSON_Delete(json);
    REFUSES(2, "no such model directory", "tokenize", "--model", SCRATCH "/none", "--input", "x");
    REFUSES(2, "spiece.model", "tokenize", "--model", SCRATCH, "--input", "x");
    make_variant(MT5, (Change){0});
    write_text(VARIANT "/spiece.model", "not a vocabulary");
    REFUSES(1, "spiece.model", "tokenize", "--model", VARIANT, "--input", "x");
}

static void sentinels_of_a_t5_vocabulary(void)
{
    const char *shared = test_shared();
    char file[1100];
    if (!shared) SKIP("no shared fixtures");
    snprintf(file, sizeof file, "%s/tokenizers/t5.spiece.model", shared);
    CHECK(directory_remove(VARIANT, &error) == 0 && directory_create(VARIANT, &error) == 0, "%s", error.text);
    CHECK(file_copy(file, VARIANT "/spiece.model", &error) == 0, "%s", error.text);
    RUN("tokenize", "--model", VARIANT, "--input", "<extra_id_0> a <extra_id_99>");
    CHECK(strncmp(ran.out, "32099 ", 6) == 0 && strstr(ran.out, " 32000\n"), "%s", ran.out);
}

/* ---------------------------------------------------------------------------------------------------- models and info */

static void info_tells(void)
{
    static const struct {
        const char *name;
        double value;
    } numbers[] = {{"vocab_size", VOCAB},
                   {"d_model", WIDTH},
                   {"d_kv", 4},
                   {"d_ff", 10},
                   {"num_heads", 3},
                   {"num_layers", 1},
                   {"num_decoder_layers", 2},
                   {"relative_attention_num_buckets", 32},
                   {"relative_attention_max_distance", 128}};
    Checkpoint *stored = checkpoint_open(MT5, &error);
    double parameters = 0;
    cJSON *json;
    RUN("info", "--model", MT5, "--json");
    json = printed_json();
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        CHECK(json_number(json, numbers[i].name) == numbers[i].value, "%s: %s", numbers[i].name, ran.out);
    for (size_t i = 0; i < checkpoint_count(stored); i++) parameters += (double)checkpoint_at(stored, i)->numel;
    CHECK(json_number(json, "parameters") == parameters, "%g: %s", parameters, ran.out);
    CHECK(strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(json, "model_type")), "mt5") == 0, "%s", ran.out);
    CHECK(strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(json, "feed_forward_proj")), "gated-gelu") == 0, "%s",
          ran.out);
    CHECK(cJSON_IsFalse(cJSON_GetObjectItem(json, "tied_head")), "%s", ran.out);
    cJSON_Delete(json);
    checkpoint_close(stored);
    RUN("info", "--model", T5);
    CHECK(strstr(ran.out, "tied") && strstr(ran.out, "F32") && strstr(ran.out, "finetune") && strstr(ran.out, "eval"),
          "%s", ran.out);
    RUN("info", "--model", MT5, "--batch", "1e6", "--input-length", "1e6", "--target-length", "1e6");
}

/* A batch that is far too large is planned in micro-batches that fit. */
static void info_plans(void)
{
    const double batch = 1e6;
    const char *const sizes[] = {"--input-length", "400", "--target-length", "40"};
    cJSON *json, *plan;
    char micro[32];
    double available, bytes;
    RUN("info", "--model", MT5, "--json", "--batch", "1e6", sizes[0], sizes[1], sizes[2], sizes[3]);
    json = printed_json();
    available = json_number(json, "memory_available");
    if (!cJSON_HasObjectItem(json, "memory_available")) {
        cJSON_Delete(json);
        SKIP("this system does not tell how much memory it has");
    }
    plan = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "memory_plans"), "finetune");
    CHECK(cJSON_IsTrue(cJSON_GetObjectItem(plan, "fits")), "%s", ran.out);
    CHECK(json_number(plan, "bytes") <= available, "%s", ran.out);
    CHECK(json_number(plan, "micro_batch") < batch && json_number(plan, "recomputed") <= 1, "%s", ran.out);
    snprintf(micro, sizeof micro, "%.0f", json_number(plan, "micro_batch"));
    bytes = json_number(plan, "bytes");
    cJSON_Delete(json);
    RUN("info", "--model", MT5, "--json", "--batch", "1e6", "--micro-batch", micro, sizes[0], sizes[1], sizes[2],
        sizes[3]);
    json = printed_json();
    plan = cJSON_GetObjectItem(json, "memory_bytes");
    CHECK(json_number(plan, "finetune") >= bytes, "%.0f as it is, %.0f as planned: %s", json_number(plan, "finetune"),
          bytes, ran.out);
    cJSON_Delete(json);
    RUN("info", "--model", MT5, "--batch", "1e6", sizes[0], sizes[1], sizes[2], sizes[3]);
    CHECK(strstr(ran.out, "that there are: fits with --micro-batch"), "%s", ran.out);
    CHECK(strstr(strstr(ran.out, "promot-lora"), " GB that there are\n"), "%s", ran.out);
}

static void models_that_are_not_there(void)
{
    REFUSES(2, SCRATCH "/none: no such model directory", "info", "--model", SCRATCH "/none");
    REFUSES(2, "no such model directory", "info", "--model", SCRATCH "/text.txt");
    REFUSES(2, "--model DIR is needed", "generate", "--model", "", "--input", "x");
    REFUSES(2, "config.json", "generate", "--model", VOCABULARY, "--input", "x");
    make_variant(MT5, (Change){0});
    remove(VARIANT "/model.safetensors");
    REFUSES(2, VARIANT, "info", "--model", VARIANT);
    make_variant(MT5, (Change){0});
    remove(VARIANT "/spiece.model");
    REFUSES(2, "spiece.model", "generate", "--model", VARIANT, "--input", "x");
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5 1", "--max-length", "2"); /* needs none */
}

static void configs_that_are_broken(void)
{
#define CONFIG(rest) "{\"model_type\": \"mt5\", \"feed_forward_proj\": \"gated-gelu\", " rest "}"
    static const char *const broken[][2] = {
        {"", "not a JSON object"},
        {"{", "not a JSON object"},
        {"[1]", "not a JSON object"},
        {CONFIG(SIZES) " and more", "not a JSON object"},
        {"{}", "vocab_size (expected a whole number"},
        {CONFIG(SIZES ", \"relative_attention_num_buckets\": 1e300"), "relative_attention_num_buckets"},
        {CONFIG(SIZES ", \"relative_attention_num_buckets\": 7"), "relative attention"},
        {CONFIG(SIZES ", \"relative_attention_max_distance\": 2"), "relative attention"},
        {CONFIG("\"vocab_size\": 400.5"), "vocab_size (expected a whole number from 1 to"},
        {CONFIG("\"vocab_size\": -1"), "found -1"},
        {CONFIG("\"vocab_size\": \"400\""), "found \"400\""},
        {CONFIG("\"vocab_size\": 1e18"), "vocab_size"},
        {CONFIG(SIZES ", \"eos_token_id\": 400"), "eos_token_id (expected an id below 400"},
        {"{\"model_type\": \"bert\", " SIZES "}", "model_type"},
        {"{\"feed_forward_proj\": \"silu\", " SIZES "}", "feed_forward_proj"}};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        make_variant(MT5, (Change){.config = broken[i][0]});
        REFUSES(1, broken[i][1], "info", "--model", VARIANT);
        CHECK(strstr(ran.err, VARIANT "/config.json"), "%s", ran.err);
        REFUSES(1, broken[i][1], "generate", "--model", VARIANT, "--input", "x");
    }
    /* Sizes that are possible, but not those of the file: no attempt to find memory for them. */
    make_variant(MT5, (Change){.config = CONFIG(
                                   "\"vocab_size\": 67108864, \"d_model\": 1048576, \"d_kv\": 1024, \"d_ff\": 1048576, "
                                   "\"num_heads\": 512, \"num_layers\": 512")});
    REFUSES(1, "model.safetensors: shape of", "info", "--model", VARIANT);
    REFUSES(1, "model.safetensors: shape of", "generate", "--model", VARIANT, "--input", "x");
#undef CONFIG
}

static void tensors_that_are_wrong(void)
{
    static const char *const names[] = {"shared.weight", "lm_head.weight", "encoder.final_layer_norm.weight",
                                        "decoder.block.1.layer.1.EncDecAttention.o.weight"};
    char said[200];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        make_variant(MT5, (Change){.drop = names[i]});
        snprintf(said, sizeof said, "model.safetensors: %s is missing", names[i]);
        REFUSES(1, said, "info", "--model", VARIANT);
        REFUSES(1, said, "generate", "--model", VARIANT, "--input", "x");
        make_variant(MT5, (Change){.reshaped = strstr(names[i], "norm") ? "shared.weight" : names[i]});
        snprintf(said, sizeof said, "shape of %s (expected [", strstr(names[i], "norm") ? "shared.weight" : names[i]);
        REFUSES(1, said, "info", "--model", VARIANT);
        REFUSES(1, said, "generate", "--model", VARIANT, "--input", "x");
        for (size_t v = 0; v < 2; v++) {
            make_variant(MT5, (Change){.set = names[i], .value = v ? NAN : INFINITY});
            snprintf(said, sizeof said, "model.safetensors: %s: element", names[i]);
            REFUSES(1, said, "generate", "--model", VARIANT, "--input", "x");
        }
    }
    make_variant(MT5, (Change){.integers = "shared.weight"});
    REFUSES(1, "type of shared.weight (expected F32, F16, BF16 or F64, found I32)", "info", "--model", VARIANT);
    write_text(VARIANT "/model.safetensors", "\x20");
    REFUSES(1, "model.safetensors", "generate", "--model", VARIANT, "--input", "x");
}

/* A vocabulary may have more pieces than the model has rows, as long as no text needs them. */
static void vocabularies_must_fit(void)
{
    CHECK(directory_remove(VARIANT, &error) == 0, "%s", error.text);
    make_model(VARIANT,
               "{\"vocab_size\": 390, \"d_model\": 8, \"d_kv\": 4, \"d_ff\": 8, \"num_heads\": 1, \"num_layers\": 1}");
    RUN("generate", "--model", VARIANT, "--input", "the fox", "--max-length", "2");
    REFUSES(2, "<extra_id_0> (expected an id below the model's vocabulary 390, found 393)", "generate", "--model",
            VARIANT, "--input", "the <extra_id_0>");
    REFUSES(1, "pieces (expected at most the model's vocabulary 390, found 394)", "pretrain", "--model", VARIANT,
            "--text", SCRATCH "/text.txt", "--out", SCRATCH "/none");
}

static void extra_tensors_are_told(void)
{
    make_variant(MT5, (Change){.extra = "adapter\npromot: ", .n_extra = 1});
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5 1", "--max-length", "2");
    CHECK(lines_beginning("warning: ") == 1 && strstr(ran.err, "unknown tensor adapter promot: a"), "%s", ran.err);
    CHECK(count_lines(ran.out) == 1, "%s", ran.out);
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5 1", "--max-length", "2", "--quiet");
    CHECK(!*ran.err, "%s", ran.err);
    make_variant(MT5, (Change){.extra = "many.", .n_extra = 25}); /* ten by name, then how many more */
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5 1", "--max-length", "2");
    CHECK(lines_beginning("warning: ") == 11 && strstr(ran.err, "ignored 15 more"), "%s", ran.err);
    make_variant(MT5,
                 (Change){.embedding_as = "encoder.embed_tokens.weight"}); /* known: another name of the embedding */
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5 1", "--max-length", "2");
    CHECK(!*ran.err, "%s", ran.err);
}

/* Dumps the usual batch at a variant of T5, and returns its logits; to be freed. */
static float *variant_logits(Change change, bool tied)
{
    cJSON *json;
    make_variant(T5, change);
    RUN("info", "--model", VARIANT, "--json");
    json = printed_json();
    CHECK(cJSON_IsBool(cJSON_GetObjectItem(json, "tied_head")) &&
              cJSON_IsTrue(cJSON_GetObjectItem(json, "tied_head")) == tied,
          "%s", ran.out);
    cJSON_Delete(json);
    write_batch(usual_batch(false));
    RUN("dump", "--model", VARIANT, "--batch", BATCH, "--out", DUMPED);
    CHECK(was_dumped("grad/shared.weight") && was_dumped("grad/lm_head.weight") == !tied, "%d", tied);
    return dumped("logits", 2 * 3 * VOCAB);
}

static void tied_heads(void)
{
    static const char silent[] = "{\"model_type\": \"t5\", " SIZES "}";
    static const char denied[] = "{\"model_type\": \"t5\", \"tie_word_embeddings\": false, " SIZES "}";
    static const char affirmed[] = "{\"model_type\": \"t5\", \"tie_word_embeddings\": true, " SIZES "}";
    static const char head[] = "lm_head.weight";
    float *absent = variant_logits((Change){.config = silent}, true);
    float *absent_denied = variant_logits((Change){.config = denied}, true);
    float *identical = variant_logits((Change){.config = silent, .embedding_as = head}, true);
    float *identical_denied = variant_logits((Change){.config = denied, .embedding_as = head}, false);
    float *different =
        variant_logits((Change){.config = silent, .embedding_as = head, .set = head, .value = 0.5f}, false);
    float *different_affirmed =
        variant_logits((Change){.config = affirmed, .embedding_as = head, .set = head, .value = 0.5f}, false);
    CHECK(memcmp(absent, identical, 6 * VOCAB * sizeof *absent) == 0);
    CHECK(memcmp(absent, absent_denied, 6 * VOCAB * sizeof *absent) == 0);
    CHECK(memcmp(different, different_affirmed, 6 * VOCAB * sizeof *absent) == 0);
    for (size_t i = 0; i < 6 * VOCAB; i++) {
        /* The scale of a tied head, 16^-0.5, is a power of two, so nothing is rounded. */
        CHECK(absent[i] == 0.25f * identical_denied[i], "%zu: %g %g", i, absent[i], identical_denied[i]);
        if (i % VOCAB != VOCAB - 1)
            CHECK(different[i] == identical_denied[i], "%zu", i); /* the altered row is the last */
        if (test_failures) break;
    }
    CHECK(different[VOCAB - 1] != identical_denied[VOCAB - 1]);
    free(absent), free(absent_denied), free(identical), free(identical_denied), free(different),
        free(different_affirmed);
    make_variant(MT5, (Change){.drop = "lm_head.weight"});
    REFUSES(1, "lm_head.weight is missing", "dump", "--model", VARIANT, "--batch", BATCH, "--out", DUMPED);
}

/* ------------------------------------------------------------------------------------------------------------ generate */

static void generate_prints(void)
{
    char line[64] = "";
    RUN_ON("the fox\n\nlazy dog", "generate", "--model", MT5, "--max-length", "5");
    CHECK(count_lines(ran.out) == 3, "%s", ran.out);
    RUN("generate", "--model", MT5, "--file", "/dev/null");
    CHECK(!*ran.out, "%s", ran.out);
    RUN("generate", "--model", MT5, "--input", "", "--max-length", "2"); /* an empty text is an input */
    CHECK(count_lines(ran.out) == 1, "%s", ran.out);
    RUN("generate", "--model", MT5, "--input", "the fox\nthe dog", "--n-best", "3", "--max-length", "4", "--scores");
    CHECK(count_lines(ran.out) == 6, "%s", ran.out);
    double last = 0;
    size_t n = 0;
    for (char *at = strtok(ran.out, "\n"); at; at = strtok(NULL, "\n"), n++) {
        double score = atof(at);
        snprintf(line, sizeof line, "%.6f\t", score);
        CHECK(strncmp(at, line, strlen(line)) == 0, "%s", at);
        CHECK(n % 3 == 0 || score <= last, "best first: %s", at);
        last = score;
    }
    RUN("generate", "--model", MT5, "--input", "the fox", "--n-best", "2", "--max-length", "4", "--json");
    cJSON *json = printed_json();
    const cJSON *outputs = cJSON_GetObjectItemCaseSensitive(json, "outputs");
    CHECK(cJSON_GetArraySize(outputs) == 2 && cJSON_IsString(cJSON_GetObjectItem(outputs->child, "text")) &&
              json_number(outputs->child, "score") < 0,
          "%s", ran.out);
    cJSON_Delete(json);
}

static void generate_takes_ids(void)
{
    REFUSES_ON(2, "standard input:2: expected ids, found an empty line", "5 1\n\n6 1\n", "generate", "--model", MT5,
               "--ids-in");
    REFUSES(2, "expected ids", "generate", "--model", MT5, "--ids-in", "--input", "");
    REFUSES(2, "expected ids from 0 to 399, found 400", "generate", "--model", MT5, "--ids-in", "--input", "5 400");
    REFUSES(2, "expected ids from 0 to 399, found -1", "generate", "--model", MT5, "--ids-in", "--input", "-1");
    REFUSES(2, "found the", "generate", "--model", MT5, "--ids-in", "--input", "5 the");
    REFUSES(2, "--n-best", "generate", "--model", MT5, "--input", "x", "--beams", "2", "--n-best", "3");
    REFUSES(2, "--n-best", "generate", "--model", MT5, "--input", "x", "--sample", "--n-best", "2");
    REFUSES(2, "--beams", "generate", "--model", MT5, "--input", "x", "--beams", "0");
    REFUSES(2, "--top-p", "generate", "--model", MT5, "--input", "x", "--top-p", "1.5");
    REFUSES(2, "--length-rule", "generate", "--model", MT5, "--input", "x", "--length-rule", "gnmt");
}

/* With --beams 1 each id is the arg-max of the logits that a dump gives for the ids before it. */
static void greedy_is_arg_max(void)
{
    enum { LENGTH = 6 };
    static const int64_t inputs[] = {5, 77, 200, 1};
    int64_t labels[LENGTH + 1] = {0};
    char *at = ran.out;
    float *logits;
    size_t n = 0;
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 77 200 1", "--beams", "1", "--max-length", "6");
    for (char *end; n < LENGTH && *at != '\n'; at = end) labels[n++] = strtol(at, &end, 10);
    CHECK(n == LENGTH && *at == '\n', "%s", ran.out);
    write_batch(
        (BatchFile){.rows = 1, .inputs = 4, .labels = n, .input_ids = inputs, .label_ids = labels, .dtype = DTYPE_I32});
    RUN("dump", "--model", MT5, "--batch", BATCH, "--out", DUMPED);
    logits = dumped("logits", n * VOCAB);
    for (size_t t = 0; t < n; t++) {
        size_t best = 0;
        for (size_t v = 1; v < VOCAB; v++)
            if (logits[t * VOCAB + v] > logits[t * VOCAB + best]) best = v;
        CHECK((int64_t)best == labels[t], "token %zu: %zu, not %lld", t, best, (long long)labels[t]);
    }
    free(logits);
}

/* Runs the blank model and compares the scores of its outputs; fp32 sums over the vocabulary allow 1e-4. */
#define BLANK_SCORES(n, expected, ...)                                                                                 \
    (RUN("generate", "--model", BLANK, "--ids-in", "--ids", "--scores", "--input", "5", "--max-length", "5",           \
         __VA_ARGS__),                                                                                                 \
     check_scores(__LINE__, n, expected))

static void check_scores(int line, size_t n, const double *expected)
{
    const char *at = ran.out;
    CHECK(count_lines(ran.out) == n, "line %d: %s", line, ran.out);
    for (size_t i = 0; i < n && at; i++, at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        CHECK(fabs(atof(at) - expected[i]) < 1e-4, "line %d: %g: %s", line, expected[i], ran.out);
}

/* A head of zeros makes every word equally likely. Of equals the first ids win: pad, which goes on, and EOS, which ends.
 * So the outputs are EOS; pad, EOS; pad, pad, EOS; …, and n ids (EOS counted) have -n ln V under the length rule. None of
 * these ids is printed. */
static void scores_and_hidden_ids(void)
{
    static const char ends_with_0[] = "{\"model_type\": \"mt5\", \"eos_token_id\": 0, \"pad_token_id\": 1, " SIZES "}";
    const double each = -log(VOCAB);
    double t5x[4], plain[4], hf[4], unfinished = 5 * each;
    for (int n = 1; n <= 4; n++) {
        t5x[n - 1] = n * each / pow((5 + n) / 6.0, 0.6);
        plain[n - 1] = n * each;
        hf[n - 1] = each;
    }
    BLANK_SCORES(4, t5x, "--n-best", "4");
    CHECK(strlen(ran.out) == strlen("-5.991465\t\n-10.924333\t\n-15.124848\t\n-18.790495\t\n"), "%s", ran.out);
    BLANK_SCORES(4, plain, "--n-best", "4", "--alpha", "0");
    BLANK_SCORES(4, hf, "--n-best", "4", "--length-rule", "hf");
    BLANK_SCORES(4, plain, "--n-best", "4", "--length-rule", "hf", "--length-penalty", "0");
    BLANK_SCORES(1, &unfinished, "--beams", "1"); /* never ends: T5X leaves such a score undivided */
    make_variant(BLANK, (Change){.config = ends_with_0});
    RUN("generate", "--model", VARIANT, "--ids-in", "--ids", "--input", "5", "--beams", "1");
    CHECK(strcmp(ran.out, "\n") == 0, "%s", ran.out);
}

static void samples_repeat(void)
{
    char first[256];
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 1", "--sample", "--seed", "3", "--max-length",
        "9");
    snprintf(first, sizeof first, "%.255s", ran.out);
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 1", "--sample", "--seed", "3", "--max-length",
        "9");
    CHECK(strcmp(first, ran.out) == 0, "%s%s", first, ran.out);
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 1", "--sample", "--seed", "4", "--max-length",
        "9");
    CHECK(strcmp(first, ran.out) != 0, "%s", first);
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 1", "--beams", "1", "--max-length", "9");
    snprintf(first, sizeof first, "%.255s", ran.out);
    RUN("generate", "--model", MT5, "--ids-in", "--ids", "--input", "5 1", "--sample", "--top-k", "1", "--max-length",
        "9");
    CHECK(strcmp(first, ran.out) == 0, "%s%s", first, ran.out); /* the one most probable: greedy */
}

static void prompts_are_read(void)
{
    const PromptInfo info = {
        .base_model = "m", .num_layers = 1, .num_attention_heads = 3, .token_dim = WIDTH, .init = "RANDOM"};
    const char *const forms[] = {SCRATCH "/adapter", SCRATCH "/prompt"}; /* T5X's NumPy files have no suffix */
    float rows[3 * (WIDTH + 1)];
    char plain[256], prompted[2][256];
    for (size_t i = 0; i < 3 * (WIDTH + 1); i++) rows[i] = 3 * sinf((float)i);
    CHECK(prompt_file_write(forms[0], rows, 3, &info, &error) == 0 && npy_write(forms[1], rows, 3, WIDTH, &error) == 0,
          "%s", error.text);
    RUN("generate", "--model", MT5, "--input", "the fox", "--scores", "--max-length", "4");
    snprintf(plain, sizeof plain, "%.255s", ran.out);
    for (size_t i = 0; i < 2; i++) {
        RUN("generate", "--model", MT5, "--input", "the fox", "--scores", "--max-length", "4", "--prompt", forms[i]);
        snprintf(prompted[i], sizeof prompted[i], "%.255s", ran.out);
    }
    CHECK(strcmp(prompted[0], prompted[1]) == 0 && strcmp(plain, prompted[0]) != 0, "%s%s%s", plain, prompted[0],
          prompted[1]);
    CHECK(npy_write(SCRATCH "/wide", rows, 3, WIDTH + 1, &error) == 0, "%s", error.text);
    REFUSES(2, "/wide: width of the prompt (expected d_model 16, found 17)", "generate", "--model", MT5, "--prompt",
            SCRATCH "/wide", "--input", "x");
    rows[5] = NAN;
    CHECK(npy_write(SCRATCH "/nan", rows, 3, WIDTH, &error) == 0, "%s", error.text);
    REFUSES(1, SCRATCH "/nan", "generate", "--model", MT5, "--prompt", SCRATCH "/nan", "--input", "x");
    REFUSES(2, SCRATCH "/none", "generate", "--model", MT5, "--prompt", SCRATCH "/none", "--input", "x");
    REFUSES(1, "text.txt", "generate", "--model", MT5, "--prompt", SCRATCH "/text.txt", "--input", "x");
    REFUSES(2, "adapter_config.json", "generate", "--model", MT5, "--prompt", VOCABULARY, "--input", "x");
}

/* --------------------------------------------------------------------------------------------------------------- score */

#define PREDICTIONS SCRATCH "/predictions.txt"
#define REFERENCES SCRATCH "/references.txt"
#define LISTS SCRATCH "/references.jsonl"
#define SCORE(metric, references) "score", "--metric", metric, "--predictions", PREDICTIONS, "--references", references

static void score_knows_its_metrics(void)
{
    static const char *const names[] = {"accuracy", "trivia-em", "trivia-f1", "squad-em", "squad-f1", "bleu",
                                        "bleu-13a", "rouge1",    "rouge2",    "rougeL",   "rougeLsum"};
    char expected[64];
    write_text(PREDICTIONS, "the quick brown fox jumps\na lazy dog sleeps today\n");
    write_text(REFERENCES, "the quick brown fox jumps\na lazy dog sleeps today"); /* the last line may lack its end */
    write_text(LISTS, "[\"no\", \"the quick brown fox jumps\"]\n[\"a lazy dog sleeps today\"]\n");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(expected, sizeof expected, "%s 100.0000\n", names[i]);
        RUN(SCORE(names[i], REFERENCES));
        CHECK(strcmp(ran.out, expected) == 0, "%s", ran.out);
        RUN(SCORE(names[i], LISTS));
        CHECK(strcmp(ran.out, expected) == 0, "%s", ran.out);
        RUN(SCORE(names[i], LISTS), "--json");
        cJSON *json = printed_json();
        bool bleu = strncmp(names[i], "bleu", 4) == 0, rouge = strncmp(names[i], "rouge", 5) == 0;
        CHECK(strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(json, "metric")), names[i]) == 0, "%s", ran.out);
        CHECK(fabs(json_number(json, "score") - 100) < 1e-9 && json_number(json, "n") == 2, "%s", ran.out);
        CHECK(!bleu ||
                  (cJSON_GetArraySize(cJSON_GetObjectItem(json, "precisions")) == 4 && json_number(json, "bp") == 1 &&
                   json_number(json, "sys_len") == 10 && json_number(json, "ref_len") == 10),
              "%s", ran.out);
        CHECK(!rouge || (json_number(json, "precision") == 100 && json_number(json, "recall") == 100 &&
                         json_number(json, "fmeasure") == 100),
              "%s", ran.out);
        cJSON_Delete(json);
    }
    write_text(REFERENCES, "the quick brown fox jumps\nanother\n");
    RUN(SCORE("accuracy", REFERENCES));
    CHECK(strcmp(ran.out, "accuracy 50.0000\n") == 0, "%s", ran.out);
    REFUSES(2, "--metric: expected accuracy, trivia-em", SCORE("meteor", REFERENCES));
    REFUSES(2, "--references", "score", "--metric", "bleu", "--predictions", PREDICTIONS);
}

static void score_checks_its_files(void)
{
    static const char *const wrong[][2] = {{"[]", "list of one or more"},        {"\"a\"", "list of one or more"},
                                           {"", "list of one or more"},          {"[\"a\", 3]", "texts in the list"},
                                           {"[\"a\"] b", "list of one or more"}, {"[\"a\"", "list of one or more"}};
    char lines[100];
    write_text(PREDICTIONS, "a\nb\n");
    write_text(REFERENCES, "a\n");
    REFUSES(2, "lines (expected 2", SCORE("bleu", REFERENCES));
    write_text(REFERENCES, "a\nb\n\n");
    REFUSES(2, "found 3)", SCORE("bleu", REFERENCES));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(lines, sizeof lines, "[\"a\"]\n%s\n", wrong[i][0]);
        write_text(LISTS, lines);
        REFUSES(2, LISTS ":2: expected", SCORE("bleu", LISTS));
        CHECK(strstr(ran.err, wrong[i][1]), "%s", ran.err);
    }
    write_text(PREDICTIONS, "");
    write_text(REFERENCES, "");
    REFUSES(2, "empty", SCORE("bleu", REFERENCES));
    REFUSES(2, "none.txt", SCORE("bleu", SCRATCH "/none.txt"));
}

/* ---------------------------------------------------------------------------------------------------------------- dump */

#define DUMP "dump", "--model", MT5, "--batch", BATCH, "--out", DUMPED

/* Every tensor of the model under PREFIX/NAME, in its shape. */
static void check_tensors(const char *prefix)
{
    Checkpoint *out = checkpoint_open(DUMPED, &error), *model = checkpoint_open(MT5, &error);
    CHECK(out && model, "%s", error.text);
    for (size_t i = 0; out && model && i < checkpoint_count(model); i++) {
        const StoredTensor *t = checkpoint_at(model, i), *found;
        char name[200];
        snprintf(name, sizeof name, "%s/%s", prefix, t->name);
        found = checkpoint_find(out, name);
        CHECK(found && found->n_dims == t->n_dims && memcmp(found->shape, t->shape, t->n_dims * sizeof *t->shape) == 0,
              "%s", name);
    }
    checkpoint_close(out);
    checkpoint_close(model);
}

/* Are the numbers of [from, to) zero (or, all of them, not)? */
static bool all_zero(const float *x, size_t from, size_t to)
{
    bool zero = true;
    for (size_t i = from; i < to; i++) zero = zero && x[i] == 0;
    return zero;
}

/* T5X's loss, from the logits: summed over tokens, cross-entropy plus z_loss * logZ^2. */
static double loss_of(const float *logits, double z_loss)
{
    double loss = 0;
    for (size_t t = 0; t < 6; t++) {
        double sum = 0, log_z;
        if (usual_labels[t] == 0) continue;
        for (size_t v = 0; v < VOCAB; v++) sum += exp((double)logits[t * VOCAB + v]);
        log_z = log(sum);
        loss += log_z - (double)logits[t * VOCAB + (size_t)usual_labels[t]] + z_loss * log_z * log_z;
    }
    return loss;
}

static void dump_writes(void)
{
    enum { P = 2, S = 4 };
    for (int prompted = 0; prompted < 2; prompted++) {
        size_t source = prompted ? P + S : S;
        float *logits, *encoded;
        write_batch(usual_batch(prompted));
        RUN(DUMP);
        CHECK(!*ran.out, "%s", ran.out);
        check_tensors("grad");
        CHECK(was_dumped("grad/prompt") == prompted && !was_dumped("losses") && !was_dumped("param/shared.weight"));
        logits = dumped("logits", 2 * 3 * VOCAB);
        encoded = dumped("encoder_output", 2 * source * WIDTH);
        CHECK(all_zero(logits, 2 * VOCAB, 3 * VOCAB) && !all_zero(logits, 5 * VOCAB, 6 * VOCAB), "zero at padding");
        CHECK(all_zero(encoded, (2 * source - 2) * WIDTH, 2 * source * WIDTH), "zero at padding");
        CHECK(!all_zero(encoded, (2 * source - 3) * WIDTH, (2 * source - 2) * WIDTH));
        CHECK(fabs(dumped_loss() - loss_of(logits, 1e-4)) < 1e-3, "%g %g", dumped_loss(),
              loss_of(logits, 1e-4)); /* fp32 */
        RUN(DUMP, "--z-loss", "0");
        CHECK(fabs(dumped_loss() - loss_of(logits, 0)) < 1e-3, "%g %g", dumped_loss(), loss_of(logits, 0));
        free(logits), free(encoded);
    }
}

static void dump_takes_its_options(void)
{
    double loss;
    write_batch(usual_batch(true));
    RUN(DUMP);
    loss = dumped_loss();
    RUN(DUMP, "--loss-normalizing-factor", "4");
    CHECK(fabs(dumped_loss() - loss / 4) < 1e-5 * loss, "%g %g", dumped_loss(), loss);
    RUN(DUMP, "--label-smoothing", "0.5");
    CHECK(dumped_loss() != loss, "%g", loss);
    RUN(DUMP, "--steps", "3", "--lr", "0.01");
    float *losses = dumped("losses", 3), *before = dumped("loss", 1), *grad, *prompt;
    CHECK(losses[0] == *before && losses[2] != losses[0], "%g %g %g", losses[0], losses[1], losses[2]);
    free(losses), free(before);
    check_tensors("grad");
    check_tensors("param");
    CHECK(!was_dumped("param/prompt"));
    RUN(DUMP, "--steps", "1", "--train", "prompt", "--lr", "0.5", "--scale-by-parameter", "false");
    grad = dumped("grad/prompt", 2 * WIDTH), prompt = dumped("param/prompt", 2 * WIDTH);
    BatchFile batch = usual_batch(true);
    for (size_t i = 0; i < 2 * WIDTH; i++) /* a first step of Adafactor goes against the gradient's sign */
        CHECK((prompt[i] - batch.prompt[i]) * grad[i] < 0, "%zu: %g %g", i, prompt[i] - batch.prompt[i], grad[i]);
    free(grad), free(prompt);
    RUN(DUMP, "--steps", "1", "--train", "both");
    check_tensors("param");
    CHECK(was_dumped("param/prompt"));
    write_batch(usual_batch(false));
    REFUSES(1, "is not a number", DUMP, "--steps", "5", "--lr", "1e6"); /* a NaN is never written */
    REFUSES(1, "is not a number", DUMP, "--steps", "2", "--lr", "1e6");
    REFUSES(2, "--train prompt: expected a prompt", DUMP, "--steps", "1", "--train", "prompt");
    static const char *const outside[][2] = {{"label-smoothing", "1"},
                                             {"label-smoothing", "-0.1"},
                                             {"z-loss", "-1"},
                                             {"z-loss", "nan"},
                                             {"loss-normalizing-factor", "0"},
                                             {"loss-normalizing-factor", "-2"},
                                             {"loss-normalizing-factor", "x"},
                                             {"loss-normalizing-factor", "inf"},
                                             {"lr", "-1"},
                                             {"lr", "inf"},
                                             {"steps", "-1"},
                                             {"steps", "0.5"},
                                             {"train", "all"},
                                             {"optimizer-step", "-1"},
                                             {"scale-by-parameter", "yes"},
                                             {"weight-decay", "-1"},
                                             {"decay-rate", "0"},
                                             {"clip", "-1"},
                                             {"clip", "nan"}};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char option[64];
        snprintf(option, sizeof option, "--%s", outside[i][0]);
        REFUSES(2, option, DUMP, option, outside[i][1]);
    }
}

static void dump_refuses(BatchFile batch, const char *said)
{
    write_batch(batch);
    remove(DUMPED);
    REFUSES(2, BATCH, DUMP);
    CHECK(strstr(ran.err, said), "%s (expected: %s)", ran.err, said);
    CHECK(!path_exists(DUMPED), "%s: a file is left", said);
}

static void dump_checks_its_batch(void)
{
    static const int64_t padding[8] = {5, 6, 7, 1}, inside[8] = {5, 0, 7, 1, 5, 1}, negative[8] = {5, -100, 1, 0, 5, 1},
                         large[8] = {5, 400, 1, 0, 5, 1}, huge[8] = {5, ((int64_t)1 << 32) + 5, 1, 0, 5, 1};
    static const int64_t *const wrong[] = {padding, inside, negative, large, huge};
    static const char *const said[] = {"row 1 (expected ids, found only padding)",
                                       "row 0, column 1 (expected an id from 1 to 399, found 0)", "found -100",
                                       "found 400", "found 4294967301"};
    BatchFile batch;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        batch = usual_batch(false), batch.input_ids = wrong[i];
        dump_refuses(batch, said[i]);
        CHECK(strstr(ran.err, "input_ids"), "%s", ran.err);
        batch = usual_batch(false), batch.labels = 4, batch.label_ids = wrong[i];
        dump_refuses(batch, said[i]);
        CHECK(strstr(ran.err, "labels"), "%s", ran.err);
    }
    batch = usual_batch(false), batch.input_ids = NULL;
    dump_refuses(batch, "input_ids is missing");
    batch = usual_batch(false), batch.label_ids = NULL;
    dump_refuses(batch, "labels is missing");
    batch = usual_batch(false), batch.label_rows = 1;
    dump_refuses(batch, "labels: rows (expected 2 as in input_ids, found 1)");
    batch = usual_batch(false), batch.inputs = 0;
    dump_refuses(batch, "two dimensions with something in them");
    batch = usual_batch(false), batch.dtype = DTYPE_F32;
    dump_refuses(batch, "integer");
    batch = usual_batch(true), batch.prompt_rows = 1, batch.prompt_width = WIDTH + 1;
    dump_refuses(batch, "prompt (expected [P, 16]");
    batch = usual_batch(true), batch.prompt_rows = 0;
    dump_refuses(batch, "prompt (expected [P, 16]");
    const float not_a_number[WIDTH] = {1, NAN};
    batch = usual_batch(true), batch.prompt = not_a_number, batch.prompt_rows = 1;
    dump_refuses(batch, "prompt: element 1 is not a number");
    remove(BATCH);
    REFUSES(2, BATCH, DUMP);
    write_text(BATCH, "no tensors");
    REFUSES(1, BATCH, DUMP);
    write_batch(usual_batch(false));
    REFUSES(2, "none/out", "dump", "--model", MT5, "--batch", BATCH, "--out", SCRATCH "/none/out");
    REFUSES(2, "is a directory", "dump", "--model", MT5, "--batch", BATCH, "--out", VOCABULARY);
}

/* ------------------------------------------------------------------------------------------------ train, eval, pretrain */

#define RUN_DIR SCRATCH "/run"
#define TASK                                                                                                           \
    "--task-file", SCRATCH "/own.json", "--task", "own.train=" SCRATCH "/rows.jsonl", "--task",                        \
        "own.dev=" SCRATCH "/rows.jsonl"
#define TRAIN                                                                                                          \
    "train", "--model", MT5, TASK, "--prompt-length", "3", "--prompt-steps", "1", "--steps", "1", "--batch", "2",      \
        "--quiet"

static void write_task(void)
{
    write_text(SCRATCH "/own.json",
               "{\"name\": \"own\", \"template\": \"Q: {q} A:\", \"target\": \"{a}\", \"metric\": \"accuracy\"}");
    write_text(SCRATCH "/rows.jsonl", "{\"q\": \"the fox\", \"a\": \"dog\"}\n{\"q\": \"the dog\", \"a\": \"fox\"}\n");
}

/* Steps and learning rates of a stage that the method does not have. */
static void train_warns_of_other_stages(void)
{
    write_task();
    RUN("train", "--model", MT5, TASK, "--method", "lora", "--steps", "2", "--prompt-lr", "0.1", "--lora-steps", "1",
        "--lora-lr", "0.1", "--batch", "2", "--out", SCRATCH "/lora-run");
    CHECK(lines_beginning("warning: ") == 2 && strstr(ran.err, "--steps has no effect") &&
              strstr(ran.err, "--prompt-lr has no effect"),
          "%s", ran.err);
    RUN("train", "--model", MT5, TASK, "--method", "joint", "--lr", "0.1", "--steps", "1", "--prompt-length", "2",
        "--batch", "2", "--out", SCRATCH "/joint-run");
    CHECK(lines_beginning("warning: ") == 0, "%s", ran.err);
}

static void train_leaves_a_run(void)
{
    static const char *const files[] = {"run.json",
                                        "log.jsonl",
                                        "DONE",
                                        "model/config.json",
                                        "model/model.safetensors",
                                        "model/spiece.model",
                                        "prompt/own/adapter_config.json",
                                        "prompt/own/adapter_model.safetensors"};
    char config[2048];
    write_task();
    RUN(TRAIN, "--out", RUN_DIR, "--json");
    cJSON_Delete(printed_json());
    CHECK(!*ran.err, "%s", ran.err); /* --quiet */
    REFUSES(2, "is a run (its model is " RUN_DIR "/model)", "info", "--model", RUN_DIR);
    REFUSES(2, "is a run (its model is " RUN_DIR "/model)", "tokenize", "--model", RUN_DIR, "--input", "x");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[200];
        snprintf(path, sizeof path, RUN_DIR "/%s", files[i]);
        CHECK(path_exists(path), "%s", path);
    }
    CHECK(!path_exists(RUN_DIR "/checkpoints"), "checkpoints stay only until the run is done");
    read_all(RUN_DIR "/model/config.json", config, sizeof config);
    CHECK(strstr(config, "\"tie_word_embeddings\":\tfalse"), "%s", config);
    REFUSES(2, RUN_DIR ": exists already", TRAIN, "--out", RUN_DIR);
    RUN(TRAIN, "--out", RUN_DIR, "--resume"); /* nothing is left to do */
    RUN("info", "--model", RUN_DIR "/model");
    CHECK(directory_create(SCRATCH "/damaged", &error) == 0, "%s", error.text);
    write_text(SCRATCH "/damaged/run.json", "{\"command\": \"train\", \"settings\": {\"model\": \"" MT5 "\"}}");
    REFUSES(1, "damaged/run.json: method is missing", "train", "--out", SCRATCH "/damaged", "--resume");
    write_text(SCRATCH "/damaged/run.json", "{\"command\": \"train\", \"settings\": {\"model\": 5}}");
    REFUSES(1, "damaged/run.json: model is not what", "train", "--out", SCRATCH "/damaged", "--resume");
    write_text(SCRATCH "/damaged/run.json", "{\"command\": \"pretrain\", \"settings\": {}}");
    REFUSES(2, "damaged/run.json: a run of promot pretrain", "train", "--out", SCRATCH "/damaged", "--resume");
    write_text(SCRATCH "/damaged/run.json", "{\"settings\": {}}");
    REFUSES(1, "damaged/run.json: not the settings of a run", "train", "--out", SCRATCH "/damaged", "--resume");
    write_text(SCRATCH "/damaged/run.json", "{\"settings\"");
    REFUSES(1, "damaged/run.json: not the settings of a run", "train", "--out", SCRATCH "/damaged", "--resume");
    RUN(TRAIN, "--show", "1");
    cJSON *json = printed_json();
    CHECK(cJSON_IsString(cJSON_GetObjectItem(json, "input")) && cJSON_IsArray(cJSON_GetObjectItem(json, "targets")) &&
              cJSON_IsArray(cJSON_GetObjectItem(json, "input_ids")),
          "%s", ran.out);
    cJSON_Delete(json);
    REFUSES(2, "--method: expected promot|finetune|prompt|joint|random-prompt", TRAIN, "--out", SCRATCH "/none",
            "--method", "sgd");
    REFUSES(2, "--prompt-init", TRAIN, "--out", SCRATCH "/none", "--prompt-init", "zeros");
    REFUSES(2, "own: no such task", "train", "--model", MT5, "--task", "own=x", "--out", SCRATCH "/none");
    REFUSES(2, "expected NAME=PATH", "train", "--model", MT5, "--task", "rte", "--out", SCRATCH "/none");
    REFUSES(2, SCRATCH "/absent", "train", "--model", MT5, "--task", "rte=" SCRATCH "/absent", "--out",
            SCRATCH "/none");
    CHECK(!path_exists(SCRATCH "/none"), "a run that was refused leaves nothing");
}

static void eval_scores(void)
{
    char *text = host_alloc(1 << 16, 1);
    const cJSON *task, *line;
    cJSON *json;
    write_task();
    RUN("eval", "--model", MT5, TASK, "--shots", "0,1", "--out", SCRATCH "/eval", "--json", "--quiet", "--max-length",
        "3");
    json = printed_json();
    task = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "tasks"), "own");
    CHECK(json_number(task, "n") == 2 && json_number(cJSON_GetObjectItem(task, "scores"), "0") >= 0 &&
              json_number(cJSON_GetObjectItem(task, "scores"), "1") >= 0 &&
              json_number(cJSON_GetObjectItem(json, "norm_avg"), "1") >= 0,
          "%s", ran.out);
    read_all(SCRATCH "/eval/results.json", text, 1 << 16);
    cJSON *written = cJSON_Parse(text);
    CHECK(cJSON_Compare(json, written, true), "%s", text);
    cJSON_Delete(json);
    cJSON_Delete(written);
    read_all(SCRATCH "/eval/predictions/own.1.jsonl", text, 1 << 16);
    CHECK(count_lines(text) == 2, "%s", text);
    json = cJSON_Parse(text); /* the first line */
    static const char *const fields[] = {"id", "input", "target", "raw_output", "processed_output"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        line = cJSON_GetObjectItemCaseSensitive(json, fields[i]);
        CHECK(cJSON_IsString(line), "%s: %s", fields[i], text);
    }
    CHECK(json_number(json, "score") >= 0, "%s", text);
    cJSON_Delete(json);
    free(text);
    RUN("eval", "--model", MT5, TASK, "--limit", "1", "--max-length", "2", "--quiet");
    CHECK(strstr(ran.out, "own") && strstr(ran.out, "0-shot") && strstr(ran.out, "Norm. Avg."), "%s", ran.out);
    REFUSES(2, "--shots", "eval", "--model", MT5, TASK, "--shots", "0,x");
    REFUSES(2, "--prompt-tasks", "eval", "--model", MT5, TASK, "--prompt-tasks", "own");
    REFUSES(2, "--norm-avg-over", "eval", "--model", MT5, TASK, "--norm-avg-over", "other");
}

static void pretrain_begins(void)
{
    write_text(SCRATCH "/new.json", mt5_config);
    RUN("pretrain", "--config", SCRATCH "/new.json", "--tokenizer", VOCABULARY "/spiece.model", "--text",
        SCRATCH "/text.txt", "--out", SCRATCH "/pretrained", "--steps", "1", "--batch", "2", "--input-length", "24",
        "--quiet");
    RUN("info", "--model", SCRATCH "/pretrained/model");
    REFUSES(2, "one of --model DIR and --config FILE", "pretrain", "--text", SCRATCH "/text.txt", "--out",
            SCRATCH "/none");
    REFUSES(2, "one of --tokenizer FILE and --train-vocab N", "pretrain", "--config", SCRATCH "/new.json", "--text",
            SCRATCH "/text.txt", "--out", SCRATCH "/none");
}

static const Test tests[] = {
    {"the_program", the_program},
    {"options_are_checked", options_are_checked},
    {"streams", streams},
    {"text_is_utf8", text_is_utf8},
    {"tokenize_round_trip", tokenize_round_trip},
    {"tokenize_ids", tokenize_ids},
    {"sentinels_of_a_t5_vocabulary", sentinels_of_a_t5_vocabulary},
    {"info_tells", info_tells},
    {"info_plans", info_plans},
    {"models_that_are_not_there", models_that_are_not_there},
    {"configs_that_are_broken", configs_that_are_broken},
    {"tensors_that_are_wrong", tensors_that_are_wrong},
    {"vocabularies_must_fit", vocabularies_must_fit},
    {"extra_tensors_are_told", extra_tensors_are_told},
    {"tied_heads", tied_heads},
    {"generate_prints", generate_prints},
    {"generate_takes_ids", generate_takes_ids},
    {"greedy_is_arg_max", greedy_is_arg_max},
    {"scores_and_hidden_ids", scores_and_hidden_ids},
    {"samples_repeat", samples_repeat},
    {"prompts_are_read", prompts_are_read},
    {"score_knows_its_metrics", score_knows_its_metrics},
    {"score_checks_its_files", score_checks_its_files},
    {"dump_writes", dump_writes},
    {"dump_takes_its_options", dump_takes_its_options},
    {"dump_checks_its_batch", dump_checks_its_batch},
    {"train_warns_of_other_stages", train_warns_of_other_stages},
    {"train_leaves_a_run", train_leaves_a_run},
    {"eval_scores", eval_scores},
    {"pretrain_begins", pretrain_begins},
};

int main(int argc, char **argv)
{
    make_world();
    return test_failures ? 1 : test_run(__FILE__, tests, sizeof tests / sizeof *tests, argc, argv);
}

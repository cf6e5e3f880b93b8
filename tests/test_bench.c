/* test_bench.c: promot bench. No time is checked, for times are nobody's to promise; but what is counted is: the
 * operations and bytes of kernels, steps and decoding against numbers worked out by hand, that every row is there and
 * holds finite numbers, and what the command line says. */
#include "../promot.c"

#include <sys/wait.h>

#include "test.h"

#define SCRATCH "build/test/bench"
#define CONFIG SCRATCH "/config.json"

/* D 16, I 3 x 4 = 12, F 10, V 400; a batch of two examples of 12 / 5 ids: N 24 source rows, M 10 target rows. */
static const char config_text[] = "{\"model_type\": \"mt5\", \"vocab_size\": 400, \"d_model\": 16, \"d_kv\": 4, "
                                  "\"d_ff\": 10, \"num_heads\": 3, \"num_layers\": 1, \"num_decoder_layers\": 2}";
#define SIZES "--batch", "2", "--input-length", "12", "--target-length", "5", "--prompt-length", "3", "--threads", "1"

static bool open_scratch(void)
{
    Error error = {0};
    const bool made = directory_create(SCRATCH, &error) == 0 && file_write_text(CONFIG, config_text, &error) == 0;
    CHECK(made, "%s", error.text);
    return made;
}

static T5Config config_with_width(size_t width)
{
    T5Config config = {0};
    Error error = {0};
    CHECK(bench_config(&config, NULL, config_text, &error) == 0, "%s", error.text);
    free(config.json);
    config.json = NULL;
    config.d_model = width;
    return config;
}

/* ------------------------------------------------------------------------------------------------------------- counts */

typedef struct {
    Device *dev;
    Model model; /* without weights */
    Batch batch;
    BenchExamples examples;
    size_t n_touched;
    KernelList list;
} Listed;

static void listed_open(Listed *l, size_t width)
{
    Error error = {0};
    int32_t *touched;
    memset(l, 0, sizeof *l);
    l->dev = device_open(1, MATMUL_FP32, &error);
    l->model = (Model){.config = config_with_width(width), .dev = l->dev};
    examples_even(&l->examples, &l->model.config, 2, 12, 5, -1);
    touched = touched_ids(&l->model.config, l->examples.examples, 2, &l->n_touched);
    CHECK(batch_build(&l->batch, &l->model, l->examples.examples, 2, 0, 0, 0, touched, l->n_touched, &error) == 0, "%s",
          error.text);
    free(touched);
    kernels_list(&l->list, &l->model.config, &l->batch);
}

static void listed_close(Listed *l)
{
    batch_free(&l->batch);
    examples_free(&l->examples);
    device_close(l->dev);
}

/* The first of a name. */
static void check_kernel(const Listed *l, const char *name, double flops, double bytes)
{
    for (size_t i = 0; i < l->list.count; i++) {
        const Kernel *k = &l->list.kernels[i];
        const double found = kernel_bytes(k).read + kernel_bytes(k).written;
        if (strcmp(k->name, name) != 0) continue;
        CHECK(k->flops == flops && found == bytes, "%s: %.0f operations, %.0f bytes (expected %.0f, %.0f)", name,
              k->flops, found, flops, bytes);
        return;
    }
    CHECK(false, "%s is not in the list", name);
}

static void test_kernels_are_counted(void)
{
    Listed l;
    listed_open(&l, 16);
    /* 2 x 24 x 16 x 36; x 24 x 16 = 384, w 36 x 16 = 576, y 24 x 36 = 864: 1824 numbers in each layout */
    check_kernel(&l, "q k v forward", 27648, 4 * 1824);
    check_kernel(&l, "q k v d input", 27648, 4 * 1824);
    check_kernel(&l, "q k v d weight", 27648, 4 * 1824);
    /* wi_0 and wi_1 in one: 16 -> 20; 384 + 320 + 480 */
    check_kernel(&l, "mlp wi forward", 15360, 4 * 1184);
    /* all 10 target rows at once, for their logits fit: 2 x 10 x 16 x 400; 160 + 6400 + 4000 */
    check_kernel(&l, "head forward", 128000, 4 * 10560);
    check_kernel(&l, "head, decoding", 12800, 4 * (16 + 6400 + 400));
    /* two sequences of 12 x 12 scores for 12 columns of q, k and v: 2 products x 2 x 2 x 144 x 12; out 288, logsumexp 72,
     * q|k|v 864, bias 32 x 3. Backward 5 products; dqkv 864, logsumexp 72, q|k|v 864, bias 96, dout and out 576, dbias
     * read and written */
    check_kernel(&l, "attention forward", 13824, 4 * (288 + 72 + 864 + 96));
    check_kernel(&l, "attention backward", 34560, 4 * (864 + 72 + 864 + 96 + 576 + 2 * 96));
    /* scores of 5 x 12 */
    check_kernel(&l, "cross attention forward", 5760, 4 * (120 + 30 + 120 + 576));
    check_kernel(&l, "cross attention backward", 14400, 4 * (120 + 576 + 240 + 30 + 120 + 576));
    check_kernel(&l, "rmsnorm forward", 1536, 4 * (384 + 24 + 384 + 16));
    check_kernel(&l, "rmsnorm backward", 3840, 4 * (2 * 384 + 2 * 16 + 384 + 384 + 24 + 16));
    check_kernel(&l, "gated gelu forward", 9 * 240, 4 * (240 + 480));
    check_kernel(&l, "gated gelu backward", 19 * 240, 4 * (480 + 240 + 480));
    check_kernel(&l, "residual forward", 768, 4 * 3 * 384);
    check_kernel(&l, "embedding forward", 0, 4 * 2 * 384);
    check_kernel(&l, "softmax cross-entropy", 28000, 4 * (2 * 4000 + 10));
    /* 10 x 400 logits, as above, and 4 operations for each; of each row the 8 best words */
    check_kernel(&l, "head, best words", 128000 + 16000, 4 * (10560 + 2 * 80));
    check_kernel(&l, "Adafactor", 70400, 4 * (2 * 6400 + 2 * 6400 + 2 * 6400)); /* 16 wide: not factored */
    listed_close(&l);
}

/* 128 wide, the embedding is factored: the gradient is read twice, the weights and the moments read and written. */
static void test_adafactor_is_counted(void)
{
    Listed l;
    size_t distinct = 0;
    bool seen[400] = {false};
    listed_open(&l, 128);
    for (size_t b = 0; b < 2; b++) {
        const TokenExample *e = &l.examples.examples[b];
        for (size_t i = 0; i < 12; i++) seen[e->input[i]] = true;
        for (size_t i = 0; i < 4; i++) seen[e->target[i]] = true;
    }
    seen[0] = true; /* where decoding starts */
    for (size_t i = 0; i < 400; i++) distinct += seen[i];
    CHECK(l.n_touched == distinct, "%zu rows (expected %zu)", l.n_touched, distinct);
    check_kernel(&l, "Adafactor", 11.0 * 51200, 4.0 * (2 * 51200 + 2 * 51200 + 2 * (400 + 128) + 2 * 400));
    check_kernel(&l, "Adafactor, rows", 11.0 * 128 * (double)distinct,
                 4.0 * (4 * 128 * (double)distinct + 2 * (400 + 128) + 400 + (double)distinct));
    listed_close(&l);
}

/* What mT5 is: 300,176,768 and 582,401,280 parameters (SPEED.md and the hub's model card). */
static void test_sizes(void)
{
    const char *const texts[] = {mt5_small, mt5_base};
    const size_t parameters[] = {300176768, 582401280};
    for (size_t i = 0; i < 2; i++) {
        Model model = {0};
        Error error = {0};
        CHECK(bench_config(&model.config, NULL, texts[i], &error) == 0, "%s", error.text);
        CHECK(!model.config.tied_head && model.config.mlp == MLP_GATED_GELU, "not an mT5");
        table_build(&model);
        CHECK(model.n_weights == parameters[i], "%zu parameters", model.n_weights);
        table_free(&model);
        free(model.config.json);
    }
}

/* One example of S 3 (1 of them a prompt row) and T 2, worked out in the order of the network; a multiply-add is 2. */
static void test_steps_are_counted(void)
{
    const T5Config c = config_with_width(16);
    const Stage finetune = bench_stage(STEP_FINETUNE), prompt = bench_stage(STEP_PROMPT),
                promot = bench_stage(STEP_PROMOT);
    const double D = 16, I = 12, F = 10, V = 400;
    double forward[2], attention = 0; /* without the prompt, with it; what of the latter is attention */
    BenchExamples plain, with;
    StepCounts counts;
    for (int p = 0; p < 2; p++) {
        const double S = 2 + p, T = 2;
        const double encoder =
            2 * S * D * 3 * I + 2 * 2 * S * S * I + 2 * S * I * D + 2 * S * D * 2 * F + 2 * S * F * D;
        const double decoder = 2 * T * D * 3 * I + 2 * 2 * T * T * I + 2 * T * I * D + /* self-attention */
                               2 * T * D * I + 2 * S * D * 2 * I + 2 * 2 * T * S * I + 2 * T * I * D + /* cross */
                               2 * T * D * 2 * F + 2 * T * F * D;
        forward[p] = encoder + 2 * decoder + 2 * T * D * V;
        attention = 2 * 2 * S * S * I + 2 * (2 * 2 * T * T * I + 2 * 2 * T * S * I);
    }
    examples_even(&plain, &c, 1, 2, 2, -1);
    examples_even(&with, &c, 1, 2, 2, 0);
    counts = step_counts(&c, &finetune, &plain, 1);
    CHECK(counts.flops == 3 * forward[0], "%.0f operations (expected %.0f)", counts.flops, 3 * forward[0]);
    CHECK(counts.source_rows == 2 && counts.target_rows == 2 && counts.tokens == 4, "rows");
    counts = step_counts(&c, &prompt, &with, 1);
    CHECK(counts.flops == 2 * forward[1] + attention, "%.0f operations (expected %.0f)", counts.flops,
          2 * forward[1] + attention);
    CHECK(counts.source_rows == 3 && counts.tokens == 4, "%zu rows, %.0f tokens", counts.source_rows, counts.tokens);
    counts = step_counts(&c, &promot, &with, 1);
    CHECK(counts.flops == 3 * forward[1], "%.0f operations (expected %.0f)", counts.flops, 3 * forward[1]);
    examples_free(&plain);
    examples_free(&with);
}

/* Two inputs and two beams. Weights: 1 x (4 x 192 + 3 x 160) of the encoder and 2 x 2 x 192 that project its output;
 * 2 x (6 x 192 + 3 x 160) and 16 x 400 that each of the 32 tokens needs; the first one's step has half the rows. */
static void test_decoding_is_counted(void)
{
    static const char peaks_text[] = "[{\"peak\": \"fp32\", \"threads\": 1, \"rate\": 1e6},"
                                     " {\"peak\": \"read\", \"threads\": 1, \"rate\": 1e3},"
                                     " {\"peak\": \"copy\", \"threads\": 1, \"rate\": 2e3},"
                                     " {\"peak\": \"update\", \"threads\": 1, \"rate\": 5e2}]";
    cJSON *peaks = cJSON_Parse(peaks_text);
    const Bench bench = {.config = config_with_width(16), .threads = 1, .peaks = peaks};
    const DecodeCase d = {"fp32", 2, 2};
    const DecodeCounts counts = decode_counts(&bench, &d);
    const double encoder = 2016, decoder = 9664, encoder_flops = 2 * (2 * 128 * encoder + 4 * 128 * 128 * 12),
                 step_flops = 4 * (2 * decoder + 2 * 4 * 128 * 12);
    CHECK(counts.flops == encoder_flops + 31.5 * step_flops, "%.0f operations", counts.flops);
    CHECK(counts.bytes == 4 * (encoder + 32 * decoder), "%.0f bytes", counts.bytes);
    /* at 1 kB/s the weights take longer than the arithmetic at 1 MFLOP/s */
    CHECK(fabs(counts.bound - (4 * encoder / 1e3 + 32 * 4 * decoder / 1e3)) < 1e-9 * counts.bound, "%g s",
          counts.bound);
    /* a sketch's 8 bits, where it is used */
    const DecodeCase greedy[] = {{"fp32", 1, 16}, {"fp32", 1, 17}, {"bf16", 1, 16}};
    for (int i = 0; i < 3; i++)
        CHECK(decode_counts(&bench, &greedy[i]).bytes == 4 * (encoder + 32 * (decoder - (i ? 0 : 0.75 * 6400))),
              "greedy, case %d", i);
    CHECK(bound_seconds(&bench, "fp32", 1, 5e6, 2e3, 2e3) == 5, "computing is the longer part");
    CHECK(bound_seconds(&bench, "fp32", 1, 1, 4e3, 1e3) == 4, "reading is"); /* at 1 kB/s, as while copying */
    CHECK(bound_seconds(&bench, "fp32", 1, 1, 0, 3e3) == 3, "writing is");
    CHECK(bound_seconds(&bench, "fp32", 1, 1, 3e3, 3e3) == 3, "both are");
    cJSON_Delete(peaks);
}

/* Real lengths are the same each time, and padding makes every example as long as the longest. */
static void test_real_lengths(void)
{
    const T5Config c = config_with_width(16);
    BenchExamples real, again, padded;
    size_t longest = 0, sum = 0, most = 0;
    examples_real(&real, &c, 64, false);
    examples_real(&again, &c, 64, false);
    examples_real(&padded, &c, 64, true);
    for (size_t i = 0; i < 64; i++) {
        longest = max_size(longest, real.examples[i].input_length);
        most = max_size(most, real.examples[i].target_length);
        sum += real.examples[i].input_length;
        CHECK(real.examples[i].input_length == again.examples[i].input_length, "example %zu", i);
        CHECK(real.examples[i].input[real.examples[i].input_length - 1] == c.eos, "example %zu does not end", i);
    }
    for (size_t i = 0; i < 64; i++)
        CHECK(padded.examples[i].input_length == longest && padded.examples[i].target_length == most, "example %zu", i);
    CHECK(sum > 64 * 60 && sum < 64 * 130 && longest <= 320, "%zu ids, %zu at most", sum, longest);
    examples_free(&real);
    examples_free(&again);
    examples_free(&padded);
}

static void test_a_busy_machine_is_told(void)
{
    const struct {
        int threads;
        double rate;
        bool doubtful;
    } cases[] = {{1, 100, false}, {2, 130, false}, {2, 119, true}, {8, 479, true}, {8, 481, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        Bench bench = {.threads = cases[i].threads};
        cJSON *peaks;
        snprintf(text, sizeof text,
                 "[{\"peak\": \"fp32\", \"threads\": %d, \"rate\": %g}, {\"peak\": \"fp32\", \"threads\": 1, \"rate\": "
                 "100}]",
                 cases[i].threads, cases[i].rate);
        bench.peaks = peaks = cJSON_Parse(text);
        CHECK(peaks_are_doubtful(&bench) == cases[i].doubtful, "%d threads at %g", cases[i].threads, cases[i].rate);
        cJSON_Delete(peaks);
    }
}

static void test_timing(void)
{
    double odd[] = {3, 1, 2}, even[] = {4, 1, 3, 2};
    Timing t = timing_of(odd, 3);
    CHECK(t.median == 2 && t.fastest == 1 && t.spread == 1, "%g %g %g", t.median, t.fastest, t.spread);
    t = timing_of(even, 4);
    CHECK(t.median == 2.5 && t.spread == 1.2, "%g %g", t.median, t.spread);
}

/* -------------------------------------------------------------------------------------------------- the command line */

static struct {
    int status;
    char *out, *err;
} ran;

static char *read_text(const char *path)
{
    Error error = {0};
    MappedFile file = {0};
    char *text;
    if (mapped_file_open(&file, path, &error)) return text_format("%s", "");
    text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
    mapped_file_close(&file);
    return text;
}

static void run_free(void)
{
    free(ran.out);
    free(ran.err);
    ran.out = ran.err = NULL;
}

/* In a child, as main would call it. */
static void run(const char *const *words)
{
    char *argv[32] = {(char *)"promot", (char *)"bench"};
    int argc = 2, how;
    pid_t pid;
    while (words[argc - 2]) argv[argc] = (char *)words[argc - 2], argc++;
    run_free();
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        if (!freopen(SCRATCH "/stdout", "w", stdout) || !freopen(SCRATCH "/stderr", "w", stderr)) _exit(99);
        exit(promot_main(argc, argv));
    }
    ran.status = pid > 0 && waitpid(pid, &how, 0) == pid && WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    ran.out = read_text(SCRATCH "/stdout");
    ran.err = read_text(SCRATCH "/stderr");
}

#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

/* Every number of every row is finite; what must be positive is. */
static void check_rows(const cJSON *report, const char *part, size_t count, const char *const *positive)
{
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(report, part), *row, *item;
    CHECK((size_t)cJSON_GetArraySize(rows) == count, "%s: %d rows (expected %zu)", part, cJSON_GetArraySize(rows),
          count);
    cJSON_ArrayForEach(row, rows)
    {
        cJSON_ArrayForEach(item, row) CHECK(!cJSON_IsNull(item) && (!cJSON_IsNumber(item) || item->valuedouble >= 0),
                                            "%s: %s is %g", part, item->string, item->valuedouble);
        for (size_t i = 0; positive[i]; i++)
            CHECK(isfinite(record_number(row, positive[i])) && record_number(row, positive[i]) > 0, "%s: %s is %g",
                  part, positive[i], record_number(row, positive[i]));
    }
}

#define POSITIVE(...) ((const char *const[]){__VA_ARGS__, NULL})

static const cJSON *row_at(const cJSON *report, const char *part, int at)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(report, part), at);
}

static void test_json(void)
{
    const size_t peaks = device_has_bf16() ? 5 : 4;
    double source = 0, target = 0;
    BenchExamples real;
    T5Config c;
    cJSON *report;
    if (!open_scratch()) return;
    c = config_with_width(16);
    RUN("--quick", "--json", "--quiet", "--config", CONFIG, "--only", "growth,decoding,steps,kernels", SIZES);
    CHECK(ran.status == 0 && !*ran.err, "exit %d: %s", ran.status, ran.err);
    report = cJSON_Parse(ran.out);
    CHECK(cJSON_IsObject(report), "%s", ran.out);
    check_rows(report, "peaks", peaks, POSITIVE("rate", "threads"));
    check_rows(report, "kernels", 46, POSITIVE("bytes", "seconds", "fastest", "bound_seconds", "share"));
    check_rows(report, "steps", 4,
               POSITIVE("flops", "seconds", "share", "tokens_per_second", "flops_per_second", "peak_bytes",
                        "foretold_bytes", "source_rows", "target_rows"));
    check_rows(report, "decoding", 4,
               POSITIVE("flops", "bytes", "seconds", "tokens_per_second", "share", "tokens", "peak_bytes"));
    check_rows(report, "growth", 13, POSITIVE("value", "flops", "seconds", "tokens_per_second"));
    check_rows(report, "ratios", 9, POSITIVE(NULL));
    /* fine-tuning, prompt tuning with 3 rows more, real lengths, and their padded form, as the trainer's batches were */
    CHECK(record_number(row_at(report, "steps", 0), "source_rows") == 24, "rows of fine-tuning");
    CHECK(record_number(row_at(report, "steps", 1), "source_rows") == 30, "rows of prompt tuning");
    examples_real(&real, &c, 16, false);
    for (size_t i = 0; i < 16; i++) {
        source += (double)real.examples[i].input_length;
        target += (double)real.examples[i].target_length;
    }
    CHECK(record_number(row_at(report, "steps", 2), "source_rows") == source, "rows of real lengths");
    CHECK(record_number(row_at(report, "steps", 2), "target_rows") == target, "rows of real lengths");
    CHECK(record_number(row_at(report, "steps", 3), "source_rows") > source, "rows of padded lengths");
    examples_free(&real);
    cJSON_Delete(report);
    run_free();
}

static void test_table(void)
{
    const char *const said[] = {"What this machine can do", "fp32",    "update", "Training steps", "prompt tuning",
                                "16, padded lengths",       "In short"};
    cJSON *report;
    char *text;
    if (!open_scratch()) return;
    remove(SCRATCH "/out.json");
    RUN("--quick", "--config", CONFIG, "--only", "steps", "--repeat", "2", "--out", SCRATCH "/out.json", SIZES);
    CHECK(ran.status == 0 && strstr(ran.err, "measuring fine-tuning"), "exit %d: %s", ran.status, ran.err);
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        CHECK(strstr(ran.out, said[i]), "no \"%s\" in: %s", said[i], ran.out);
    CHECK(!strstr(ran.out, "nan") && !strstr(ran.out, "inf") && !strstr(ran.out, "Kernels"), "%s", ran.out);
    text = read_text(SCRATCH "/out.json");
    report = cJSON_Parse(text);
    check_rows(report, "steps", 4, POSITIVE("seconds"));
    CHECK(!cJSON_GetObjectItemCaseSensitive(report, "kernels"), "kernels were not asked for");
    CHECK(cJSON_GetObjectItemCaseSensitive(report, "config"), "no config");
    cJSON_Delete(report);
    free(text);
    run_free();
}

static void test_wrong_options(void)
{
    if (!open_scratch()) return;
#define REFUSED(status_, said, ...)                                                                                    \
    do {                                                                                                               \
        RUN(__VA_ARGS__);                                                                                              \
        CHECK(ran.status == (status_) && strstr(ran.err, said) && !*ran.out, "exit %d: %s", ran.status, ran.err);      \
    } while (0)
    REFUSED(2, "--only: expected some of kernels,steps,decoding,growth, found speed", "--only", "kernels,speed");
    REFUSED(2, "--only", "--only", "kernel");
    REFUSED(2, "--dtype: expected both|fp32|bf16, found fp64", "--dtype", "fp64");
    REFUSED(2, "--batch", "--batch", "0");
    REFUSED(2, "--repeat", "--repeat", "1001");
    REFUSED(2, "--model: no such option of bench", "--model", "m");
    REFUSED(2, "No such file", "--config", SCRATCH "/not/there.json");
    CHECK(file_write_text(SCRATCH "/broken.json", "{\"vocab_size\": 10}", &(Error){0}) == 0, "not written");
    REFUSED(1, "d_model", "--config", SCRATCH "/broken.json");
    REFUSED(2, "out.json", "--out", SCRATCH "/not/there/out.json", "--config", CONFIG);
    if (!device_has_bf16()) REFUSED(2, "bf16", "--dtype", "bf16");
    run_free();
}

/* A measurement that fails says why, in the words and with the exit status of what failed in its process. */
static int fail(const Bench *bench, const void *what, cJSON *result, Error *error)
{
    (void)bench, (void)what, (void)result;
    return error_set(error, EXIT_USAGE, "here: it does not work");
}

static int die(const Bench *bench, const void *what, cJSON *result, Error *error)
{
    (void)bench, (void)what, (void)result, (void)error;
    raise(SIGKILL);
    return 0;
}

static void test_failing(void)
{
    const Bench bench = {0};
    Error error = {0};
    CHECK(!measure_apart(&bench, fail, NULL, &error) && error.exit_code == EXIT_USAGE &&
              strcmp(error.text, "here: it does not work") == 0,
          "%d: %s", error.exit_code, error.text);
    CHECK(!measure_apart(&bench, die, NULL, &error) && error.exit_code == EXIT_FAILED && strstr(error.text, "signal 9"),
          "%d: %s", error.exit_code, error.text);
}

static const Test tests[] = {
    {"json", test_json},
    {"table", test_table},
    {"wrong_options", test_wrong_options},
    {"failing", test_failing},
    {"kernels_are_counted", test_kernels_are_counted},
    {"adafactor_is_counted", test_adafactor_is_counted},
    {"sizes", test_sizes},
    {"steps_are_counted", test_steps_are_counted},
    {"decoding_is_counted", test_decoding_is_counted},
    {"real_lengths", test_real_lengths},
    {"timing", test_timing},
    {"a_busy_machine_is_told", test_a_busy_machine_is_told},
};
TEST_MAIN(tests)

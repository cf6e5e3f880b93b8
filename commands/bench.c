/* bench.c: promot bench: how near the machine's limits the engine comes. A part of chapter 10 of promot.c, which
 * includes it. What is measured, and how, is in bench_measure.c, bench_kernels.c and bench_steps.c; here it is chosen,
 * put into tables and collected in JSON, whose rows hold the same numbers in plain units: seconds, bytes, operations.
 */

/* mT5's sizes (google/mt5-small and mt5-base on the hub). */
static const char mt5_small[] = "{\"model_type\": \"mt5\", \"vocab_size\": 250112, \"d_model\": 512, \"d_kv\": 64, "
                                "\"d_ff\": 1024, \"num_heads\": 6, \"num_layers\": 8}";
static const char mt5_base[] = "{\"model_type\": \"mt5\", \"vocab_size\": 250112, \"d_model\": 768, \"d_kv\": 64, "
                               "\"d_ff\": 2048, \"num_heads\": 12, \"num_layers\": 12}";

static const char *const bench_parts[] = {"kernels", "steps", "decoding", "growth"};
enum { N_BENCH_PARTS = sizeof bench_parts / sizeof *bench_parts };

typedef struct {
    Bench bench;     /* of the model whose steps are measured */
    bool prints;     /* tables; else JSON at the end */
    const char *out; /* NULL: no file */
    bool parts[N_BENCH_PARTS];
    cJSON *report;
} BenchRun;

/* --- options */

static int parse_parts(const char *text, bool parts[N_BENCH_PARTS], Error *error)
{
    for (const char *at = text; *at;) {
        const size_t length = strcspn(at, ",");
        size_t part = 0;
        while (part < N_BENCH_PARTS &&
               (strlen(bench_parts[part]) != length || strncmp(bench_parts[part], at, length) != 0))
            part++;
        if (part == N_BENCH_PARTS)
            return error_set(error, EXIT_USAGE, "--only: expected some of kernels,steps,decoding,growth, found %.*s",
                             (int)length, at);
        parts[part] = true;
        at += length + (at[length] == ',');
    }
    return 0;
}

/* Random weights, so a config.json is all there is to a model. It comes as model_create would have it. */
static int bench_config(T5Config *config, const char *file, const char *text, Error *error)
{
    int status = file ? config_read_file(config, file, error)
                      : config_read_text(config, text_format("%s", text), "mT5's sizes", error);
    if (!status) config->tied_head = config->mlp == MLP_RELU && config_says_tied(config) != 0;
    return status;
}

static int bench_options(BenchRun *run, const Options *o, Error *error)
{
    Bench *b = &run->bench;
    const char *dtype = o->text[OPT_BENCH_DTYPE], *file = o->text[OPT_BENCH_CONFIG], *only = o->text[OPT_ONLY];
    const bool quick = option_true(o, OPT_QUICK);
    const MatmulPrecision precision = strcmp(dtype, "bf16") == 0 ? MATMUL_BF16 : MATMUL_FP32;
    /* A process that has opened a card cannot hand it to its children, and every measurement is a child. */
    Device *dev = ON_A_CARD ? NULL : device_open((int)option_size(o, OPT_THREADS), precision, error);
    if (!dev && !ON_A_CARD) return -1;
    *b = (Bench){.name = file ? file : "mt5-small",
                 .threads = dev ? device_threads(dev) : 1,
                 .fp32 = strcmp(dtype, "bf16") != 0 && !ON_A_CARD, /* which computes in bf16 alone */
                 .bf16 = ON_A_CARD ||
                         (strcmp(dtype, "fp32") != 0 && device_has_bf16() && !(quick && !o->given[OPT_BENCH_DTYPE])),
                 .quick = quick,
                 .quiet = option_true(o, OPT_QUIET),
                 .repeats = option_size(o, OPT_REPEAT),
                 .batch = option_size(o, OPT_BENCH_BATCH),
                 .input_length = option_size(o, OPT_INPUT_LENGTH),
                 .target_length = option_size(o, OPT_TARGET_LENGTH),
                 .prompt_length = option_size(o, OPT_PROMPT_LENGTH)};
    device_close(dev);
    run->prints = !option_true(o, OPT_JSON);
    run->out = o->text[OPT_BENCH_OUT];
    if (quick && !o->given[OPT_ONLY]) only = "kernels,steps,decoding";
    if (parse_parts(only, run->parts, error)) return -1;
    return bench_config(&b->config, file, mt5_small, error);
}

/* --- what is shown and kept */

/* What is being measured, on stderr: on a terminal, only until it is done. */
static void bench_say(const Bench *bench, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void bench_say(const Bench *bench, const char *format, ...)
{
    va_list arguments;
    if (bench->quiet) return;
    va_start(arguments, format);
    fputs("measuring ", stderr);
    vfprintf(stderr, format, arguments);
    fputs(isatty(STDERR_FILENO) ? " ..." : "\n", stderr);
    va_end(arguments);
}

static void bench_say_no_more(const Bench *bench)
{
    if (!bench->quiet && isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
}

/* Each part is kept as soon as it is there: a long run that is stopped has not been for nothing. */
static int bench_write(const BenchRun *run, Error *error)
{
    char *text;
    int status;
    if (!run->out) return 0;
    text = cJSON_Print(run->report);
    status = text ? file_write_text(run->out, text, error) : error_set(error, EXIT_FAILED, "bench: no memory");
    free(text);
    return status;
}

static cJSON *bench_describe(const BenchRun *run)
{
    cJSON *report = cJSON_CreateObject(), *machine;
    const Bench *b = &run->bench;
    char line[256], *name;
    FILE *file = fopen("/proc/cpuinfo", "r");
    cJSON_AddStringToObject(report, "promot", PROMOT_VERSION);
    cJSON_AddStringToObject(report, "model", b->name);
    cJSON_AddItemToObject(report, "config", cJSON_Parse(b->config.json));
    machine = cJSON_AddObjectToObject(report, "machine");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "model name", 10) == 0 && (name = strchr(line, ':'))) {
            name[strcspn(name, "\n")] = '\0';
            cJSON_AddStringToObject(machine, "processor", name + strspn(name, ": "));
            break;
        }
    if (file) fclose(file);
    cJSON_AddNumberToObject(machine, "threads", b->threads);
    cJSON_AddBoolToObject(machine, "bf16", device_has_bf16());
    cJSON_AddNumberToObject(machine, "last_level_cache", (double)last_level_cache());
    if (!ON_A_CARD) cJSON_AddNumberToObject(machine, "memory_available", (double)device_memory_available());
    return report;
}

/* The title and the columns of a table, above its first row. */
typedef struct {
    const char *title, *columns;
    bool shown;
} Heading;

static void show_heading(const BenchRun *run, Heading *heading)
{
    if (run->prints && !heading->shown)
        printf("\n%s\n\n%s%s", heading->title, heading->columns, *heading->columns ? "\n" : "");
    heading->shown = true;
}

static double percent(double share)
{
    return 100 * share;
}

static void show_peak(const cJSON *row)
{
    printf("%-8s %7.0f %10.1f %-8s %5.0f\n", text_in(row, "peak"), record_number(row, "threads"),
           record_number(row, "rate") / 1e9, strcmp(text_in(row, "unit"), "B/s") == 0 ? "GB/s" : "GFLOP/s",
           percent(record_number(row, "spread")));
}

static void show_kernel(const cJSON *row)
{
    const cJSON *in_cache = cJSON_GetObjectItemCaseSensitive(row, "in_cache");
    printf("%-24s %-22s %-5s %8.3f %8.2f %9.3f %4.0f %8.1f %6.1f %4.0f %% %s%s\n", text_in(row, "kernel"),
           text_in(row, "shape"), text_in(row, "dtype"), record_number(row, "flops") / 1e9,
           record_number(row, "bytes") / 1e6, 1e3 * record_number(row, "seconds"),
           percent(record_number(row, "spread")), record_number(row, "flops_per_second") / 1e9,
           record_number(row, "bytes_per_second") / 1e9, percent(record_number(row, "share")), text_in(row, "bound"),
           cJSON_IsTrue(in_cache) ? ", from cache" : "");
}

static void show_step(const cJSON *row)
{
    char shape[64];
    if (strcmp(text_in(row, "lengths"), "even") == 0)
        snprintf(shape, sizeof shape, "%.0f x %.0f / %.0f", record_number(row, "batch"), record_number(row, "input"),
                 record_number(row, "target"));
    else
        snprintf(shape, sizeof shape, "%.0f, %s lengths", record_number(row, "batch"), text_in(row, "lengths"));
    printf("%-15s %-20s %-5s %7.0f %8.3f %4.0f %9.0f %8.1f %5.0f %% %8.2f %8.2f %8.2f\n", text_in(row, "step"), shape,
           text_in(row, "dtype"), record_number(row, "threads"), record_number(row, "seconds"),
           percent(record_number(row, "spread")), record_number(row, "tokens_per_second"),
           record_number(row, "flops_per_second") / 1e9, percent(record_number(row, "share")),
           record_number(row, "peak_bytes") / 1e9, record_number(row, "foretold_bytes") / 1e9,
           record_number(row, "grown_bytes") / 1e9);
}

static void show_decoding(const cJSON *row)
{
    printf("%-12s %5.0f %5.0f %-5s %9.3f %4.0f %9.1f %5.0f %% %8.2f\n", text_in(row, "decoding"),
           record_number(row, "beams"), record_number(row, "batch"), text_in(row, "dtype"),
           record_number(row, "seconds"), percent(record_number(row, "spread")),
           record_number(row, "tokens_per_second"), percent(record_number(row, "share")),
           record_number(row, "peak_bytes") / 1e9);
}

static void show_growth(const cJSON *row)
{
    printf("%-12s %8.0f %9.3f %4.0f %9.0f %8.1f %8.2f\n", text_in(row, "by"), record_number(row, "value"),
           record_number(row, "seconds"), percent(record_number(row, "spread")),
           record_number(row, "tokens_per_second"), record_number(row, "flops_per_second") / 1e9,
           record_number(row, "peak_bytes") / 1e9);
}

/* Measures apart, shows what came back and keeps it in the report's list `part`. A measurement may hand back one row,
 * or several as "rows", or say that it needs more memory than there is. */
static int bench_take(BenchRun *run, const Bench *bench, const char *part, Measure *measure, const void *what,
                      void (*show)(const cJSON *row), Heading *heading, Error *error)
{
    cJSON *list = cJSON_GetObjectItemCaseSensitive(run->report, part), *rows, *row;
    cJSON *result = measure_apart(bench, measure, what, error);
    bench_say_no_more(bench);
    if (!result) return -1;
    show_heading(run, heading);
    if (isfinite(record_number(result, "needs_bytes"))) {
        if (run->prints)
            printf("left out: it needs %.1f GB, and %.1f are there\n", record_number(result, "needs_bytes") / 1e9,
                   record_number(result, "available_bytes") / 1e9);
        cJSON_Delete(result);
        return 0;
    }
    rows = cJSON_DetachItemFromObjectCaseSensitive(result, "rows");
    if (!rows) {
        rows = cJSON_CreateArray();
        cJSON_AddItemToArray(rows, result);
        result = NULL;
    }
    while ((row = cJSON_DetachItemFromArray(rows, 0))) {
        if (run->prints) show(row);
        cJSON_AddItemToArray(list, row);
    }
    cJSON_Delete(rows);
    cJSON_Delete(result);
    fflush(stdout);
    return bench_write(run, error);
}

/* --- the parts */

/* Multiply-adds in registers share nothing but the clock: all threads should reach nearly the sum. */
static bool peaks_are_doubtful(const Bench *b)
{
    return b->threads > 1 && peak_rate(b, "fp32", b->threads) < 0.6 * b->threads * peak_rate(b, "fp32", 1);
}

static int bench_peaks(BenchRun *run, Error *error)
{
    Heading heading = {"What this machine can do: multiply-adds in registers, and memory that no cache can hold",
                       "peak     threads       rate unit     +-%", false};
    int status;
    cJSON_AddArrayToObject(run->report, "peaks");
    bench_say(&run->bench, "the machine's peaks");
    status = bench_take(run, &run->bench, "peaks", measure_peaks, NULL, show_peak, &heading, error);
    run->bench.peaks = cJSON_GetObjectItemCaseSensitive(run->report, "peaks");
    if (!status && run->prints && peaks_are_doubtful(&run->bench))
        printf(
            "%d threads did not reach much more than one: the machine is busy, and shares of these peaks say little\n",
            run->bench.threads);
    return status;
}

static int bench_kernels_of(BenchRun *run, const Bench *bench, Error *error)
{
    const char *const dtypes[] = {"fp32", "bf16"};
    char *title = text_format("Kernels of %s, %d threads, against the least time for their operations or their bytes",
                              bench->name, bench->threads);
    Heading heading = {
        title,
        "kernel                   shape                  dtype    GFLOP       MB        ms  +-%  GFLOP/s "
        "  GB/s of bound by",
        false};
    int status = 0;
    for (size_t d = 0; !status && d < 2; d++) {
        if (!(d == 0 ? bench->fp32 : bench->bf16)) continue;
        bench_say(bench, "kernels of %s, %s", bench->name, dtypes[d]);
        status = bench_take(run, bench, "kernels", measure_kernels, dtypes[d], show_kernel, &heading, error);
    }
    free(title);
    return status;
}

static int bench_kernels(BenchRun *run, Error *error)
{
    Bench base = run->bench;
    int status = bench_kernels_of(run, &run->bench, error);
    if (status || run->bench.quick || strcmp(run->bench.name, "mt5-small") != 0) return status;
    if (bench_config(&base.config, NULL, mt5_base, error)) return -1;
    base.name = "mt5-base";
    status = bench_kernels_of(run, &base, error);
    free(base.config.json);
    return status;
}

static int bench_steps(BenchRun *run, Error *error)
{
    enum { REAL_BATCH = 64, QUICK_BATCH = 16 };
    const Bench *b = &run->bench;
    const size_t B = b->batch, S = b->input_length, T = b->target_length, real = b->quick ? QUICK_BATCH : REAL_BATCH;
    const int n = b->threads;
    const struct {
        StepCase step;
        bool quick;
    } cases[] = {{{STEP_FINETUNE, "fp32", n, LENGTHS_EVEN, B, S, T, 0}, true},
                 {{STEP_PROMPT, "fp32", n, LENGTHS_EVEN, B, S, T, 0}, true},
                 {{STEP_PROMOT, "fp32", n, LENGTHS_EVEN, B, S, T, 0}, false},
                 {{STEP_FINETUNE, "bf16", n, LENGTHS_EVEN, B, S, T, 0}, true},
                 {{STEP_PROMPT, "bf16", n, LENGTHS_EVEN, B, S, T, 0}, false},
                 {{STEP_PROMOT, "bf16", n, LENGTHS_EVEN, B, S, T, 0}, false},
                 {{STEP_FINETUNE, "fp32", n, LENGTHS_REAL, real, 0, 0, 0}, true},
                 {{STEP_FINETUNE, "fp32", n, LENGTHS_PADDED, real, 0, 0, 0}, true},
                 {{STEP_FINETUNE, "fp32", 1, LENGTHS_EVEN, B, S, T, 0}, false}};
    const size_t count = sizeof cases / sizeof *cases - (n == 1); /* one thread may be all there is */
    Heading heading = {"Training steps, Adafactor included: examples x ids of inputs / targets; memory in GB",
                       "step            batch                dtype threads  seconds  +-%  tokens/s  GFLOP/s of peak   "
                       "memory foretold   growth",
                       false};
    int status = 0;
    for (size_t i = 0; !status && i < count; i++) {
        const StepCase *s = &cases[i].step;
        if ((b->quick && !cases[i].quick) || !(strcmp(s->dtype, "bf16") == 0 ? b->bf16 : b->fp32)) continue;
        bench_say(b, "%s, %s, %d threads, %s lengths", step_names[s->method], s->dtype, s->threads,
                  length_names[s->lengths]);
        status = bench_take(run, b, "steps", measure_step, s, show_step, &heading, error);
    }
    return status;
}

static int bench_decoding(BenchRun *run, Error *error)
{
    const Bench *b = &run->bench;
    const char *const dtypes[] = {"fp32", "bf16"};
    const size_t beams[] = {1, 4}, batches[] = {1, 8};
    Heading heading = {"Decoding, 128 ids in, 32 out, against the least time to read the weights; memory in GB",
                       "decoding     beams batch dtype   seconds  +-%  tokens/s of bound   memory", false};
    int status = 0;
    for (size_t i = 0; !status && i < 8; i++) {
        const DecodeCase d = {dtypes[i / 4], beams[i / 2 % 2], batches[i % 2]};
        if (!(i < 4 ? b->fp32 : b->bf16)) continue;
        bench_say(b, "decoding, %zu beams, batch %zu, %s", d.beams, d.batch, d.dtype);
        status = bench_take(run, b, "decoding", measure_decoding, &d, show_decoding, &heading, error);
    }
    return status;
}

/* A fine-tuning step in which one size is changed. */
typedef struct {
    const char *by;
    size_t value;
    StepCase step;
} GrowthCase;

static int measure_growth(const Bench *bench, const void *what, cJSON *row, Error *error)
{
    const GrowthCase *g = what;
    cJSON_AddStringToObject(row, "by", g->by);
    cJSON_AddNumberToObject(row, "value", (double)g->value);
    return measure_step(bench, &g->step, row, error);
}

/* From half of every size on, one of them alone goes from a quarter of that to its double; the vocabulary from an
 * eighth of the model's to all of it; the threads from one to all. */
static int bench_growth(BenchRun *run, Error *error)
{
    enum { MOST = 32 };
    const Bench *b = &run->bench;
    const size_t batch = max_size(1, b->batch / 2), input = max_size(1, b->input_length / 2);
    const StepCase middle = {.dtype = b->fp32 ? "fp32" : "bf16",
                             .threads = b->threads,
                             .batch = batch,
                             .input = input,
                             .target = max_size(1, b->target_length / 2)};
    Heading heading = {"Fine-tuning steps, one size changed at a time; memory in GB",
                       "by              value   seconds  +-%  tokens/s  GFLOP/s   memory", false};
    GrowthCase cases[MOST];
    size_t count = 0;
    int status = 0;
    for (size_t i = 1; i <= 8; i *= 2) {
        cases[count] = (GrowthCase){"input", max_size(1, input * i / 4), middle};
        cases[count].step.input = cases[count].value, count++;
    }
    for (size_t i = 1; i <= 8; i *= 2) {
        cases[count] = (GrowthCase){"batch", max_size(1, batch * i / 4), middle};
        cases[count].step.batch = cases[count].value, count++;
    }
    for (size_t i = 1; i <= 8; i *= 2) {
        cases[count] = (GrowthCase){"vocabulary", max_size(8, b->config.vocab_size * i / 8), middle};
        cases[count].step.vocabulary = cases[count].value, count++;
    }
    for (size_t threads = 1; count < MOST; threads = min_size(2 * threads, (size_t)b->threads)) {
        cases[count] = (GrowthCase){"threads", threads, middle};
        cases[count++].step.threads = (int)threads;
        if (threads == (size_t)b->threads) break;
    }
    for (size_t i = 0; !status && i < count; i++) {
        bench_say(b, "growth, %s %zu", cases[i].by, cases[i].value);
        status = bench_take(run, b, "growth", measure_growth, &cases[i], show_growth, &heading, error);
    }
    return status;
}

/* --- what it comes to */

static bool row_is(const cJSON *row, const char *name, const char *value)
{
    return !value || strcmp(text_in(row, name), value) == 0;
}

/* A number of the step that is like this; NAN: it was not measured. */
static double step_number(const BenchRun *run, StepMethod method, const char *dtype, int threads, StepLengths lengths,
                          const char *name)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, cJSON_GetObjectItemCaseSensitive(run->report, "steps"))
    {
        if (row_is(row, "step", step_names[method]) && row_is(row, "dtype", dtype) &&
            row_is(row, "lengths", length_names[lengths]) && (int)record_number(row, "threads") == threads)
            return record_number(row, name);
    }
    return NAN;
}

static double kernel_number(const BenchRun *run, const char *kernel, const char *name)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, cJSON_GetObjectItemCaseSensitive(run->report, "kernels"))
    {
        if (row_is(row, "kernel", kernel)) return record_number(row, name);
    }
    return NAN;
}

static void add_ratio(const BenchRun *run, Heading *heading, cJSON *ratios, const char *name, double ratio)
{
    if (!isfinite(ratio)) return;
    show_heading(run, heading);
    cJSON_AddNumberToObject(ratios, name, ratio);
    if (run->prints) printf("%-58s %6.2f\n", name, ratio);
}

/* The few numbers that say whether all is well; only those whose parts were measured. */
static void bench_ratios(BenchRun *run)
{
    const int n = run->bench.threads;
    const double step = step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_EVEN, "seconds");
    cJSON *ratios = cJSON_AddObjectToObject(run->report, "ratios");
    Heading heading = {"In short", "", false};
    add_ratio(run, &heading, ratios, "square matmul, of the peak: y = x w'",
              kernel_number(run, "square forward", "share"));
    add_ratio(run, &heading, ratios, "square matmul, of the peak: dx = dy w",
              kernel_number(run, "square d input", "share"));
    add_ratio(run, &heading, ratios, "square matmul, of the peak: dw = dy' x",
              kernel_number(run, "square d weight", "share"));
    add_ratio(run, &heading, ratios, "Adafactor, of the bandwidth of copying",
              kernel_number(run, "Adafactor", "bytes_per_second") / peak_rate(&run->bench, "copy", n));
    add_ratio(run, &heading, ratios, "the head read for one row, of the bandwidth of reading",
              kernel_number(run, "head, decoding", "bytes_per_second") / peak_rate(&run->bench, "read", n));
    add_ratio(run, &heading, ratios, "fine-tuning step, of the peak",
              step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_EVEN, "share"));
    add_ratio(run, &heading, ratios, "prompt-tuning step, of the fine-tuning step's time",
              step_number(run, STEP_PROMPT, "fp32", n, LENGTHS_EVEN, "seconds") / step);
    add_ratio(run, &heading, ratios, "bf16 over fp32, speed of the fine-tuning step",
              step / step_number(run, STEP_FINETUNE, "bf16", n, LENGTHS_EVEN, "seconds"));
    add_ratio(run, &heading, ratios, "real lengths over padded ones, speed",
              step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_PADDED, "seconds") /
                  step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_REAL, "seconds"));
    if (n > 1)
        add_ratio(run, &heading, ratios, "all threads over one, speed of the fine-tuning step",
                  step_number(run, STEP_FINETUNE, "fp32", 1, LENGTHS_EVEN, "seconds") / step);
    add_ratio(run, &heading, ratios, "peak memory of the fine-tuning step, of what was foretold",
              step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_EVEN, "peak_bytes") /
                  step_number(run, STEP_FINETUNE, "fp32", n, LENGTHS_EVEN, "foretold_bytes"));
}

typedef int BenchPart(BenchRun *run, Error *error);

static int command_bench(Options *o, Error *error)
{
    BenchPart *const parts[N_BENCH_PARTS] = {bench_kernels, bench_steps, bench_decoding, bench_growth};
    BenchRun run = {0};
    int status = bench_options(&run, o, error);
    if (!status) {
        run.report = bench_describe(&run);
        status = bench_write(&run, error); /* a place that cannot be written to is told now */
    }
    if (!status) status = bench_peaks(&run, error);
    for (size_t p = 0; !status && p < N_BENCH_PARTS; p++)
        if (run.parts[p]) {
            cJSON_AddArrayToObject(run.report, bench_parts[p]);
            status = parts[p](&run, error);
        }
    if (!status) {
        bench_ratios(&run);
        status = bench_write(&run, error);
    }
    if (!status && !run.prints) {
        print_json(run.report);
        run.report = NULL;
    }
    cJSON_Delete(run.report);
    free(run.bench.config.json);
    return status;
}

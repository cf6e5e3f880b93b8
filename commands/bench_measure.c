/* bench_measure.c: what all parts of promot bench stand on: settings, clock, a process for each measurement, and the
 * peaks of the machine. A part of chapter 10 of promot.c, which includes it.
 *
 * A time says little alone: the same kernel is good on one machine and poor on another. So the machine is measured
 * first, in the same run, by loops that do nothing else, and everything after it is told as a share of what these
 * reached: of the floating-point operations when it computes, of the bytes when it waits for memory. */

typedef struct {
    const char *name; /* of the model */
    T5Config config;
    int threads;
    bool fp32, bf16; /* what is measured */
    bool quick, quiet;
    size_t repeats; /* of a kernel, of a step */
    size_t batch, input_length, target_length, prompt_length;
    const cJSON *peaks; /* NULL until they are there */
} Bench;

/* --- the clock */

enum { MAX_REPEATS = 1000 };

typedef struct {
    double median, fastest, spread; /* seconds; the longest less the shortest, as a share of the median */
} Timing;

static int compare_seconds(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Timing timing_of(double *seconds, size_t n)
{
    Timing t;
    qsort(seconds, n, sizeof *seconds, compare_seconds);
    t.median = n % 2 ? seconds[n / 2] : (seconds[n / 2 - 1] + seconds[n / 2]) / 2;
    t.fastest = seconds[0];
    t.spread = (seconds[n - 1] - seconds[0]) / t.median;
    return t;
}

/* Times a short call: so many in a row that the clock's grain does not matter, after as many to warm up. */
static Timing time_calls(void (*call)(void *context), void *context, size_t repeats, double least)
{
    double seconds[MAX_REPEATS], begun, took = 0;
    size_t times = 1;
    for (;; times *= 2) {
        begun = seconds_now();
        for (size_t i = 0; i < times; i++) call(context);
        if ((took = seconds_now() - begun) >= least) break;
    }
    for (size_t r = 0; r < repeats; r++) {
        begun = seconds_now();
        for (size_t i = 0; i < times; i++) call(context);
        seconds[r] = (seconds_now() - begun) / (double)times;
    }
    return timing_of(seconds, repeats);
}

static void add_timing(cJSON *row, Timing t)
{
    cJSON_AddNumberToObject(row, "seconds", t.median);
    cJSON_AddNumberToObject(row, "fastest", t.fastest);
    cJSON_AddNumberToObject(row, "spread", t.spread);
}

static const char *text_in(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    return cJSON_IsString(item) ? item->valuestring : "";
}

/* --- a process for each measurement
 *
 * None finds memory that another has left behind or threads that it has started, each can be measured for the most
 * memory that it held, and one that dies takes no other with it. It hands back its numbers as JSON. */

typedef int Measure(const Bench *bench, const void *what, cJSON *result, Error *error);

_Noreturn static void measure_child(const Bench *bench, Measure *measure, const void *what, int to, pid_t parent)
{
    cJSON *result = cJSON_CreateObject();
    Error error = {0};
    char *text;
    int status;
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
    if (getppid() != parent) _exit(EXIT_FAILED);
    status = measure(bench, what, result, &error);
    if (status) cJSON_AddStringToObject(result, "error", error.text);
    text = cJSON_PrintUnformatted(result);
    for (size_t at = 0, length = strlen(text); at < length;) {
        ssize_t wrote = write(to, text + at, length - at);
        if (wrote <= 0) _exit(EXIT_FAILED);
        at += (size_t)wrote;
    }
    free(text);
    cJSON_Delete(result);
    close(to);
    exit(status ? error.exit_code : 0);
}

static char *read_pipe(int from)
{
    size_t used = 0;
    char *text = host_alloc(TRANSFER + 1, 1);
    for (ssize_t got; (got = read(from, text + used, TRANSFER)) > 0;) {
        used += (size_t)got;
        text = host_grow(text, used + TRANSFER + 1, 1);
    }
    text[used] = '\0';
    return text;
}

/* What `measure` found, to be deleted; NULL after an error. */
static cJSON *measure_apart(const Bench *bench, Measure *measure, const void *what, Error *error)
{
    const pid_t parent = getpid();
    pid_t child;
    cJSON *result;
    char *text;
    int ends[2], how = 0;
    fflush(NULL); /* or the child would write what waits in the buffers once more */
    if (pipe(ends) || (child = fork()) < 0) {
        error_set(error, EXIT_FAILED, "bench: no new process: %s", strerror(errno));
        return NULL;
    }
    if (child == 0) {
        close(ends[0]);
        measure_child(bench, measure, what, ends[1], parent);
    }
    close(ends[1]);
    text = read_pipe(ends[0]);
    close(ends[0]);
    waitpid(child, &how, 0);
    result = cJSON_Parse(text);
    free(text);
    if (WIFEXITED(how) && WEXITSTATUS(how) == 0 && result) return result;
    if (WIFSIGNALED(how))
        error_set(error, EXIT_FAILED, "bench: a measurement was killed by signal %d (is there enough memory?)",
                  WTERMSIG(how));
    else
        error_set(error, WIFEXITED(how) ? WEXITSTATUS(how) : EXIT_FAILED, "%s",
                  result ? text_in(result, "error") : "bench: a measurement ended without a result");
    cJSON_Delete(result);
    return NULL;
}

/* The most memory that this process has held so far. */
static double peak_memory(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss;
#else
    return (double)usage.ru_maxrss * 1024;
#endif
}

static size_t last_level_cache(void)
{
    long bytes = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return bytes > 0 ? (size_t)bytes : (size_t)32 << 20;
}

/* --- the peaks */

/* A peak is what was reached once; everything else is told by its median. */
static void add_peak(cJSON *rows, const char *name, int threads, double amount, Timing t, const char *unit)
{
    cJSON *row = cJSON_CreateObject();
    cJSON_AddItemToArray(rows, row);
    cJSON_AddStringToObject(row, "peak", name);
    cJSON_AddNumberToObject(row, "threads", threads);
    cJSON_AddNumberToObject(row, "rate", amount / t.fastest);
    cJSON_AddStringToObject(row, "unit", unit);
    cJSON_AddNumberToObject(row, "spread", t.spread);
}

#ifndef PROMOT_GPU
/* As wide as the processor's registers; CHAINS: enough independent sums to fill its pipelines (about 4 steps deep, 2 to
 * 4 side by side), and few enough to stay in registers. */
#if defined __AVX512F__
enum { PEAK_BYTES = 64, CHAINS = 24 };
#elif defined __AVX__
enum { PEAK_BYTES = 32, CHAINS = 12 };
#elif defined __aarch64__
enum { PEAK_BYTES = 16, CHAINS = 24 };
#else
enum { PEAK_BYTES = 16, CHAINS = 12 };
#endif
enum { PEAK_LANES = PEAK_BYTES / sizeof(float) };
typedef float peak_t __attribute__((vector_size(PEAK_BYTES), may_alias));

/* sum * x + y is one fused multiply-add where there is one. x and y are such that the sums stay ordinary numbers. */
static double multiply_add_loop(size_t times, float x, float y)
{
    peak_t sum[CHAINS], total = {0};
    for (int i = 0; i < CHAINS; i++) sum[i] = (peak_t){0} + (float)i;
    for (size_t t = 0; t < times; t++) {
        _Pragma("GCC unroll 24") for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * x + y;
    }
    for (int i = 0; i < CHAINS; i++) total += sum[i];
    return (double)total[0];
}

/* Each lane adds the products of two pairs of bf16 numbers. */
static double bf16_dot_loop(size_t times, float x, float y)
{
#if defined __AVX512BF16__
    __m512 sum[CHAINS], total = _mm512_setzero_ps();
    const __m512bh a = (__m512bh)_mm512_set1_ps(x), b = (__m512bh)_mm512_set1_ps(y);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (size_t t = 0; t < times; t++) {
        _Pragma("GCC unroll 24") for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
    for (int i = 0; i < CHAINS; i++) total = _mm512_add_ps(total, sum[i]);
    return (double)total[0];
#else
    (void)times;
    return (double)(x + y);
#endif
}

typedef struct {
    int threads;
    size_t times, bytes; /* of a loop in registers; of one buffer */
    char *from, *to;     /* two buffers, one behind the other */
    double (*loop)(size_t times, float x, float y);
    void (*stream)(char *to, const char *from, size_t bytes);
    volatile float x, y;  /* volatile: nothing is computed before it is asked for */
    volatile double sink; /* and everything is wanted */
} PeakLoop;

static void run_in_registers(void *context)
{
    PeakLoop *p = context;
    double sum = 0;
#pragma omp parallel num_threads(p->threads) reduction(+ : sum)
    sum += p->loop(p->times, p->x, p->y);
    p->sink = sum;
}

static void read_stream(char *to, const char *from, size_t bytes)
{
    enum { SUMS = 8 };
    const peak_t *at = (const peak_t *)from;
    peak_t sum[SUMS] = {{0}};
    for (size_t i = 0; i + SUMS <= bytes / PEAK_BYTES; i += SUMS) {
        _Pragma("GCC unroll 8") for (int s = 0; s < SUMS; s++) sum[s] += at[i + (size_t)s];
    }
    for (int s = 1; s < SUMS; s++) sum[0] += sum[s];
    memcpy(to, &sum[0], sizeof sum[0]);
}

static void copy_stream(char *to, const char *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static void update_stream(char *to, const char *from, size_t bytes)
{
    peak_t *at = (peak_t *)to;
    (void)from;
    for (size_t i = 0; i < bytes / PEAK_BYTES; i++) at[i] = at[i] * 0.5f + 1.0f;
}

static void run_stream(void *context)
{
    PeakLoop *p = context;
    const size_t share = p->bytes / (size_t)p->threads / 4096 * 4096;
#pragma omp parallel num_threads(p->threads)
    {
        const size_t at = (size_t)omp_get_thread_num() * share;
        p->stream(p->to + at, p->from + at, share);
    }
}

static void clear_stream(char *to, const char *from, size_t bytes)
{
    (void)from;
    memset(to, 0, bytes);
}

/* A page lies near the thread that wrote to it first: that should be the one that will use it. */
static void first_touch(PeakLoop *p, int threads)
{
    char *const from = p->from, *const to = p->to;
    p->threads = threads;
    p->stream = clear_stream;
    run_stream(p);
    p->to = from;
    run_stream(p);
    p->to = to;
}

static void measure_peaks_with(cJSON *rows, PeakLoop *p, size_t repeats)
{
    const struct {
        const char *name;
        void (*stream)(char *to, const char *from, size_t bytes);
        double passes; /* over a buffer: read or written */
    } streams[] = {{"read", read_stream, 1}, {"copy", copy_stream, 2}, {"update", update_stream, 2}};
    const double steps = (double)p->times * CHAINS * p->threads, share = (double)(p->bytes / (size_t)p->threads / 4096);
    p->loop = multiply_add_loop;
    add_peak(rows, "fp32", p->threads, 2 * steps * PEAK_LANES, time_calls(run_in_registers, p, repeats, 0), "FLOP/s");
    if (device_has_bf16()) {
        p->loop = bf16_dot_loop;
        add_peak(rows, "bf16", p->threads, 4 * steps * PEAK_LANES, time_calls(run_in_registers, p, repeats, 0),
                 "FLOP/s");
    }
    for (size_t s = 0; s < sizeof streams / sizeof *streams; s++) {
        p->stream = streams[s].stream;
        add_peak(rows, streams[s].name, p->threads, streams[s].passes * share * 4096 * p->threads,
                 time_calls(run_stream, p, repeats, 0), "B/s");
    }
}

/* The buffers together are at least a gigabyte and four times the last cache, where there is memory for it; half of it
 * when it must be quick. */
static int measure_peaks(const Bench *bench, const void *what, cJSON *result, Error *error)
{
    const size_t available = device_memory_available(), share = bench->quick ? 2 : 1,
                 wanted = max_size((size_t)512 << 20, 2 * last_level_cache()) / share;
    PeakLoop p = {.bytes = available ? min_size(wanted, available / 8) : wanted, .x = 0.999f, .y = 0.001f};
    cJSON *rows = cJSON_AddArrayToObject(result, "rows");
    (void)what;
    p.bytes = p.bytes / 4096 * 4096;
    p.times = bench->quick ? (size_t)1 << 20 : (size_t)1 << 22;
    p.from = device_alloc(2 * p.bytes);
    if (!p.from) return error_set(error, EXIT_FAILED, "memory: no room for %zu MB to read and write", p.bytes >> 19);
    p.to = p.from + p.bytes;
    first_touch(&p, bench->threads);
    for (p.threads = bench->threads; p.threads > 0; p.threads = p.threads > 1 ? 1 : 0)
        measure_peaks_with(rows, &p, bench->quick ? 5 : 11);
    device_free(p.from);
    return 0;
}

#endif /* PROMOT_GPU */

static double peak_rate(const Bench *bench, const char *name, int threads)
{
    const cJSON *row;
    double rate = NAN;
    cJSON_ArrayForEach(row, bench->peaks) if (strcmp(text_in(row, "peak"), name) == 0 &&
                                              (int)record_number(row, "threads") == threads) rate =
        record_number(row, "rate");
    return rate;
}

/* The least time for so many floating-point operations, bytes read and bytes written: nothing computes faster than the
 * peak, and nothing reads, writes, or does both, faster than the best of the loops above did. (Copying and updating
 * read as much as they write.) */
static double bound_seconds(const Bench *bench, const char *dtype, int threads, double flops, double read,
                            double written)
{
    const double both = fmax(peak_rate(bench, "copy", threads), peak_rate(bench, "update", threads)),
                 reading = fmax(peak_rate(bench, "read", threads), both / 2);
    const double memory = fmax(fmax(read / reading, written / (both / 2)), (read + written) / fmax(both, reading));
    return fmax(flops / peak_rate(bench, dtype, threads), memory);
}

/* --- what is worked on: examples of random ids */

typedef struct {
    TokenExample *examples;
    int32_t *ids;
    size_t count;
} BenchExamples;

typedef struct {
    size_t input, target;
} Lengths;

static void examples_of(BenchExamples *e, const T5Config *c, const Lengths *lengths, size_t count, int prompt)
{
    enum { FIRST_WORD = 3, DRAWN = 32000 }; /* behind padding, EOS and unknown; T5's vocabulary is as large */
    const size_t words = min_size(DRAWN, c->vocab_size - FIRST_WORD);
    size_t n = 0;
    for (size_t i = 0; i < count; i++) n += lengths[i].input + lengths[i].target;
    e->count = count;
    e->examples = host_alloc(count, sizeof *e->examples);
    e->ids = host_alloc(n, sizeof *e->ids);
    for (size_t i = 0; i < n; i++) e->ids[i] = FIRST_WORD + (int32_t)(random_mix(i + 1) % words);
    n = 0;
    for (size_t i = 0; i < count; i++) {
        e->examples[i] = (TokenExample){.input = e->ids + n,
                                        .target = e->ids + n + lengths[i].input,
                                        .input_length = lengths[i].input,
                                        .target_length = lengths[i].target,
                                        .prompt = prompt,
                                        .number = i};
        n += lengths[i].input + lengths[i].target;
        e->ids[n - lengths[i].target - 1] = e->ids[n - 1] = c->eos;
    }
}

static void examples_even(BenchExamples *e, const T5Config *c, size_t count, size_t input, size_t target, int prompt)
{
    Lengths *lengths = host_alloc(count, sizeof *lengths);
    for (size_t i = 0; i < count; i++) lengths[i] = (Lengths){input, target};
    examples_of(e, c, lengths, count, prompt);
    free(lengths);
}

/* Lengths such as a classification task of short texts has, RTE for one, in pieces of mT5: log-normal about a median of
 * 70 with a long tail, answers of two or three pieces. padded: all as long as the longest, which is what a program
 * without packing computes. */
static void examples_real(BenchExamples *e, const T5Config *c, size_t count, bool padded)
{
    enum { SHORTEST = 24, LONGEST = 320, MEDIAN = 70 };
    Lengths *lengths = host_alloc(count, sizeof *lengths), longest = {0};
    for (size_t i = 0; i < count; i++) {
        double length = MEDIAN * exp(0.6 * random_normal(random_fold(0, 70), i));
        lengths[i].input = (size_t)fmin(LONGEST, fmax(SHORTEST, length));
        lengths[i].target = 2 + i % 2;
        longest.input = max_size(longest.input, lengths[i].input);
        longest.target = max_size(longest.target, lengths[i].target);
    }
    for (size_t i = 0; padded && i < count; i++) lengths[i] = longest;
    examples_of(e, c, lengths, count, -1);
    free(lengths);
}

static void examples_free(BenchExamples *e)
{
    free(e->examples);
    free(e->ids);
}

/* A model of random weights. They are not T5X's (model_create), whose normal numbers take longer to draw than a step
 * takes: each tensor has the same deviation, of uniform numbers. */
static Model *bench_model(const T5Config *config, Device *dev, Error *error)
{
    Model *model = host_alloc(1, sizeof *model);
    float *slice;
    model->config = *config;
    model->config.json = NULL;
    model->dev = dev;
    table_build(model);
    if (weights_allocate(model, error)) {
        model_close(model);
        return NULL;
    }
    slice = host_alloc(TRANSFER, sizeof *slice);
    for (size_t t = 0; t < model->n_tensors; t++) {
        const Tensor *tensor = &model->tensors[t];
        const size_t n = tensor->rows * tensor->columns;
        double deviation;
        const bool ones = tensor_draw(model, tensor, &deviation) == DRAW_ONES;
        const float width = ones ? 0 : (float)(2 * sqrt(3) * deviation), least = ones ? 1 : -width / 2;
        for (size_t first = 0; first < n; first += TRANSFER) {
            const size_t count = min_size(TRANSFER, n - first);
            for (size_t i = 0; i < count; i++)
                slice[i] = least + width * 0x1p-24f * (float)(random_mix(tensor->offset + first + i) >> 40);
            weights_upload(dev, tensor->data + first, slice, count);
        }
    }
    free(slice);
    return model;
}

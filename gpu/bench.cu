/* bench.cu: how fast the kernels are, on the card that is here. The program of `make gpu-bench`:
 *
 *     gpu-bench [--only GROUPS] [FILE]      FILE gets every measurement as a line of JSON
 *
 * First the card's two ceilings, measured in the same run: the vendor's library (cuBLAS, used here and nowhere else; where
 * it is not installed, our own product) on a large product of random numbers, for seconds, and a long copy. Everything
 * after it is a share of one of them:
 *
 *     products     the three layouts of a linear layer at the shapes of mT5-XXL, large and small, in turn with cuBLAS
 *     epilogues    products that do something with their results at once, in turn with the bare product of ours
 *     attention    forward and backward, with T5's bias; a score counts 4 d_kv operations forward and 10 backward, a
 *                  causal one only where key <= query
 *     bandwidth    kernels that do little with each number, as bytes that they cannot do without
 *     decoding     few rows: what it takes to read the weights, or the cache
 *
 * All of them are called as promot.c calls them, on random numbers, and each result is checked (bench.cuh says how the
 * clock and the checks work). The last lines say which marks are reached. A batch that does not fit into this card's
 * memory is halved until it does. */
#include "bench.cuh"
#include "bench_references.cuh"

/* ================================================================================================================
 * What is measured: models, batches */
struct ModelSizes {
    const char *name;
    size_t width, inner, d_ff, heads, vocabulary; /* D, I, F, H, V */
};

static const ModelSizes xxl = {"XXL", 4096, 4096, 10240, 64, 250112};
static const ModelSizes large = {"large", 1024, 1024, 2816, 16, 250112};
static const ModelSizes small = {"small", 512, 384, 1024, 6, 250112};

enum {
    BATCH = 64,
    SOURCE = 612, /* 512 input tokens behind a prompt of 100 */
    TARGET = 64,
    PROMPT = 100,
    DECODER_LAYERS = 24,
    HEAD_SIZE = 64,
    BEAMS = 4,
    SMALL_ROWS = 8 * (512 + 64),
    LOGITS_CHUNK = ((size_t)2 << 30) / (250112 * 4), /* rows of the head at a time at least: logits_rows in promot.c */
    CEILING_SIDE = 8192,
};

/* A linear layer, y [rows, out] = x [rows, in] · wᵀ, in one of its three products. */
enum Layout { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, HEAD_FORWARD };

static const char *const layout_names[] = {"", " d input", " d weight", ""};

/* Lengths of RTE's inputs in pieces of mT5, behind the prompt: log-normal about a median of 70, cut at 24 and 320. */
static void real_lengths(int32_t *length, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const double u = (host_random() + 1.0) / 2147483649.0, v = host_random() / 2147483648.0;
        const double pieces = 70 * exp(0.6 * sqrt(-2 * log(u)) * cos(6.283185307 * v));
        length[i] = PROMPT + (int32_t)fmin(320, fmax(24, pieces));
    }
}

struct Packed {
    Sequences seqs;
    size_t pairs[2]; /* of a query and a key of the same sequence; those with key <= query */
};

static Packed pack(Bench *b, const int32_t *length, size_t count)
{
    int32_t start[SEQUENCES_MOST];
    Packed packed = {};
    for (size_t i = 0; i < count; i++) {
        const size_t n = (size_t)length[i];
        start[i] = (int32_t)packed.seqs.rows;
        packed.seqs.rows += n;
        packed.seqs.longest = n > packed.seqs.longest ? n : packed.seqs.longest;
        packed.pairs[0] += n * n;
        packed.pairs[1] += n * (n + 1) / 2;
    }
    packed.seqs.count = count;
    packed.seqs.start = take_indices(b, start, count);
    packed.seqs.length = take_indices(b, length, count);
    return packed;
}

static Packed pack_even(Bench *b, size_t count, size_t length)
{
    int32_t lengths[SEQUENCES_MOST];
    for (size_t i = 0; i < count; i++) lengths[i] = (int32_t)length;
    return pack(b, lengths, count);
}

/* So many rows in all, as sequences of SOURCE rows; the last one is shorter. */
static Sequences sequences_of(Bench *b, size_t rows)
{
    int32_t lengths[SEQUENCES_MOST];
    size_t count = 0;
    for (size_t done = 0; done < rows; done += SOURCE) lengths[count++] = (int32_t)at_most(rows - done, SOURCE);
    return pack(b, lengths, count).seqs;
}

/* As training has it: one mask for all rows of a sequence. */
static Dropout dropout_of(float rate)
{
    return {rate, 0x123456789abcdef, 512, true};
}

/* Few rows wait for weights. Then each call of a sample reads other ones, as each layer of a model has its own. */
static size_t turns_of(const Bench *b, size_t rows, size_t n_weights)
{
    const size_t fitting = b->n_weights / n_weights;
    return rows > 1024 || !fitting ? 1 : at_most(fitting, MOST_CALLS);
}

/* Are there weights enough, and memory for at least one row? Otherwise a line says that this is left out. */
static bool fits(const Bench *b, const char *what, size_t rows, size_t n_weights)
{
    if (rows && n_weights <= b->n_weights) return true;
    printf("%-34s left out: it needs more memory\n", what);
    return false;
}

/* ================================================================================================================
 * A layer's product: ours and the vendor's. first and second are its two operands: x and w, dy and w, or dy and x. */
static void our_product(Bench *b, Layout layout, void *c, const act_t *first, const bf16_t *second, size_t rows,
                        size_t in, size_t out)
{
    if (layout == FORWARD) linear_forward(b->dev, (act_t *)c, first, second, rows, in, out);
    if (layout == BACKWARD_INPUT) linear_backward_input(b->dev, (act_t *)c, first, second, rows, in, out, false);
    if (layout == BACKWARD_WEIGHT) linear_backward_weight(b->dev, (stat_t *)c, first, second, rows, in, out, false);
    if (layout == HEAD_FORWARD) head_forward(b->dev, (logit_t *)c, first, second, rows, in, out);
}

#if HAS_CUBLAS
static const char yardstick[] = "cuBLAS";

static void cublas_check(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "gpu-bench: cuBLAS: %s: status %d\n", what, (int)status);
    exit(EXIT_FAILED);
}

/* The library counts columns first: its matrices are our transposes, so it computes cᵀ = bᵀ · aᵀ. */
static void cublas_product(Bench *b, Layout layout, void *c, const act_t *first, const bf16_t *second, size_t rows,
                           size_t in, size_t out)
{
    const bool weight = layout == BACKWARD_WEIGHT, forward = layout == FORWARD || layout == HEAD_FORWARD;
    const float one = 1, zero = 0;
    const int width = (int)(forward ? out : in), height = (int)(weight ? out : rows),
              depth = (int)(forward  ? in
                            : weight ? rows
                                     : out);
    cublas_check(cublasGemmEx(b->cublas, forward ? CUBLAS_OP_T : CUBLAS_OP_N, weight ? CUBLAS_OP_T : CUBLAS_OP_N, width,
                              height, depth, &one, second, CUDA_R_16BF, (int)in, first, CUDA_R_16BF,
                              (int)(forward ? in : out), &zero, c,
                              weight || layout == HEAD_FORWARD ? CUDA_R_32F : CUDA_R_16BF, width, CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT),
                 "product");
}

/* What all products are a share of. */
static void yardstick_product(Bench *b, void *y, const act_t *x, const bf16_t *w, size_t side)
{
    cublas_product(b, FORWARD, y, x, w, side, side, side);
}

static void vendor_open(Bench *b)
{
    cublas_check(cublasCreate(&b->cublas), "no handle");
    cublas_check(cublasSetStream(b->cublas, b->dev->stream), "stream");
}

static void vendor_close(Bench *b)
{
    cublasDestroy(b->cublas);
}

/* The i-th call of a measurement, with the i-th of `turns` weights. */
static auto vendor_product(Bench *b, Layout layout, void *c, const act_t *first, const bf16_t *second, size_t turns,
                           size_t rows, size_t in, size_t out)
{
    return [=](size_t i) { cublas_product(b, layout, c, first, second + i % turns * in * out, rows, in, out); };
}
#else
static const char yardstick[] = "our product";

static void yardstick_product(Bench *b, void *y, const act_t *x, const bf16_t *w, size_t side)
{
    our_product(b, FORWARD, y, x, w, side, side, side);
}

static void vendor_open(Bench *)
{
}

static void vendor_close(Bench *)
{
}

static Nobody vendor_product(Bench *, Layout, void *, const act_t *, const bf16_t *, size_t, size_t, size_t, size_t)
{
    return {};
}
#endif

/* ================================================================================================================
 * The ceilings */
template <typename Call> static double seconds_of_many(Bench *b, size_t times, Call call)
{
    cuda_check(cudaEventRecord(b->event[0][0][0], b->dev->stream), "clock");
    for (size_t i = 0; i < times; i++) call();
    cuda_check(cudaEventRecord(b->event[0][0][1], b->dev->stream), "clock");
    return seconds_between(b->event[0][0]);
}

/* Two seconds of it, of which the last one counts: by then the clock has settled where the power allows. */
static void measure_product_ceiling(Bench *b)
{
    take_anew(b);
    const size_t side = rows_that_fit(b, CEILING_SIDE, 6 * CEILING_SIDE, 0);
    act_t *y = take_acts(b, side * side), *x = random_acts(b, side * side, 1), *w = random_acts(b, side * side, 1);
    const auto call = [&] { yardstick_product(b, y, x, w, side); };
    seconds_of_many(b, 1, call);
    const size_t times = between(4, 4 / seconds_of_many(b, 4, call), 2000);
    seconds_of_many(b, times, call);
    b->product_rate = 2.0 * (double)side * (double)(side * side) * (double)times / seconds_of_many(b, times, call);
    printf("%s, bf16, %zu x %zu x %zu of random numbers, sustained %10.1f TFLOP/s\n", yardstick, side, side, side,
           b->product_rate / 1e12);
    if (b->out) fprintf(b->out, "{\"ceiling\": \"product\", \"flops_per_second\": %.6g}\n", b->product_rate);
}

static void measure_copy_ceiling(Bench *b)
{
    const size_t bytes = between(1, (double)b->arena_bytes / 2 - 4096, 4e9) / 4096 * 4096;
    Row row = {};
    take_anew(b);
    char *from = (char *)take(b, bytes), *to = (char *)take(b, bytes);
    measure(b, &row, [&](size_t) { device_copy(b->dev, to, from, bytes); });
    b->copy_rate = 2 * (double)bytes / row.ours.seconds;
    printf("copy within the card, %.1f GB, read and written %24.2f TB/s\n", (double)bytes / 1e9, b->copy_rate / 1e12);
    if (b->out) fprintf(b->out, "{\"ceiling\": \"copy\", \"bytes_per_second\": %.6g}\n", b->copy_rate);
}

/* Between the card and pinned memory of the host: one way, the other, both at once. */
static void measure_host_copies(Bench *b)
{
    const size_t bytes = 512 << 20;
    const char *const names[] = {"host to card", "card to host", "both at once, each way"};
    cudaEvent_t *event = b->event[0][0];
    cudaStream_t other;
    char *host[2] = {};
    take_anew(b);
    if (!rows_that_fit(b, 1, 2 * bytes, 0) || cudaMallocHost((void **)&host[0], bytes) != cudaSuccess ||
        cudaMallocHost((void **)&host[1], bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        printf("copies between host and card left out: no memory\n");
        cudaFreeHost(host[0]);
        return;
    }
    char *card[2] = {(char *)take(b, bytes), (char *)take(b, bytes)};
    cuda_check(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), "stream");
    for (int way = 0; way < 3; way++) {
        double fastest = INFINITY;
        for (int i = 0; i < 5; i++) {
            device_wait(b->dev);
            cuda_check(cudaEventRecord(event[0], b->dev->stream), "clock");
            cuda_check(cudaStreamWaitEvent(other, event[0], 0), "clock");
            if (way != 1)
                cuda_check(cudaMemcpyAsync(card[0], host[0], bytes, cudaMemcpyHostToDevice, b->dev->stream), "a copy");
            if (way != 0) cuda_check(cudaMemcpyAsync(host[1], card[1], bytes, cudaMemcpyDeviceToHost, other), "a copy");
            cuda_check(cudaEventRecord(b->event[1][0][0], other), "clock");
            cuda_check(cudaStreamWaitEvent(b->dev->stream, b->event[1][0][0], 0), "clock");
            cuda_check(cudaEventRecord(event[1], b->dev->stream), "clock");
            fastest = fmin(fastest, seconds_between(event));
        }
        printf("%-28s %36.1f GB/s\n", names[way], (double)bytes / fastest / 1e9);
        if (b->out)
            fprintf(b->out, "{\"ceiling\": \"%s\", \"bytes_per_second\": %.6g}\n", names[way], (double)bytes / fastest);
    }
    cudaStreamDestroy(other);
    cudaFreeHost(host[0]), cudaFreeHost(host[1]);
}

/* ================================================================================================================
 * Products */

/* What the elements of a layer's product must be. first and second as in our_product. */
static ProductReference product_reference(Layout layout, const act_t *first, const bf16_t *second, size_t rows,
                                          size_t in, size_t out)
{
    const bool fp32 = layout == BACKWARD_WEIGHT || layout == HEAD_FORWARD;
    if (layout == BACKWARD_INPUT) return {first, second, out, 1, 0, 1, in, 0, out, 1, fp32};
    if (layout == BACKWARD_WEIGHT) return {first, second, 1, out, 0, 1, in, 0, rows, 1, fp32};
    return {first, second, in, 1, 0, in, 1, 0, in, 1, fp32};
}

/* One layer and layout beside the library. is_large: the mark of large products counts it; is_marked: the other one. */
static void product(Bench *b, const ModelSizes *model, Layout layout, const char *name, size_t rows, size_t in,
                    size_t out, bool is_large, bool is_marked)
{
    const bool weight = layout == BACKWARD_WEIGHT, fp32 = weight || layout == HEAD_FORWARD;
    char kernel[64];
    Row row = {};
    snprintf(kernel, sizeof kernel, "%s %s%s", model->name, name, layout_names[layout]);
    const size_t wanted = rows, c_bytes = fp32 ? 4 : 2;
    rows = rows_that_fit(b, rows, 2 * (in + out) + 4 * out, weight ? 4 * in * out : 0);
    if (!fits(b, kernel, rows, in * out)) return;
    take_anew(b);
    const size_t height = weight ? out : rows, width = weight || layout == BACKWARD_INPUT ? in : out;
    const size_t turns = weight ? 1 : turns_of(b, rows, in * out);
    act_t *first = random_acts(b, rows * (layout == FORWARD || layout == HEAD_FORWARD ? in : out), 1);
    const bf16_t *second = weight ? random_acts(b, rows * in, 1) : b->weights;
    void *c = take(b, height * width * c_bytes);
    poison(b, c, height * width * c_bytes);
    our_product(b, layout, c, first, second, rows, in, out);
    row.error = check(b, product_reference(layout, first, second, rows, in, out),
                      fp32 ? result_of((stat_t *)c, width) : result_of((act_t *)c, width), height, width);
    measure(
        b, &row, [&](size_t i) { our_product(b, layout, c, first, second + i % turns * in * out, rows, in, out); },
        vendor_product(b, layout, c, first, second, turns, rows, in, out));
    row.kernel = kernel;
    row.flops = 2.0 * (double)rows * (double)in * (double)out;
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, in, out);
    report(b, "products", &row);
    if (!HAS_CUBLAS) return;
    const double ratio = row.theirs.seconds / row.ours.seconds;
    if (is_marked) mark(b, MARK_PRODUCTS_ALL, ratio, &row);
    if (is_large && rows == wanted) mark(b, MARK_PRODUCTS_LARGE, ratio, &row);
}

static void products_of(Bench *b, const ModelSizes *m, size_t rows, bool is_large, bool is_marked)
{
    const struct {
        const char *name;
        size_t in, out;
    } layers[] = {{"q k v", m->width, 3 * m->inner},
                  {"o", m->inner, m->width},
                  {"wi", m->width, 2 * m->d_ff},
                  {"wo", m->d_ff, m->width}};
    for (const auto &layer : layers)
        for (int layout = FORWARD; layout <= BACKWARD_WEIGHT; layout++)
            product(b, m, (Layout)layout, layer.name, rows, layer.in, layer.out, is_large, is_marked);
}

static void measure_products(Bench *b)
{
    int32_t length[BATCH];
    size_t real = 0;
    real_lengths(length, BATCH);
    for (int32_t n : length) real += (size_t)n;
    table_head("Linear layers: rows x in -> out, in turn with cuBLAS", "cuBLAS ms");
    products_of(b, &xxl, BATCH * SOURCE, true, true);
    products_of(b, &xxl, BATCH * TARGET, false, true);
    products_of(b, &xxl, real, false, true); /* RTE */
    const size_t heads[] = {BATCH * TARGET, LOGITS_CHUNK};
    for (size_t rows : heads) {
        const bool whole = rows == heads[0];
        product(b, &xxl, HEAD_FORWARD, "head", rows, xxl.width, xxl.vocabulary, whole, true);
        product(b, &xxl, BACKWARD_INPUT, "head", rows, xxl.width, xxl.vocabulary, whole, true);
        product(b, &xxl, BACKWARD_WEIGHT, "head", rows, xxl.width, xxl.vocabulary, whole, true);
    }
    products_of(b, &large, BATCH * SOURCE, false, false);
    products_of(b, &small, SMALL_ROWS, false, false);
}

/* ================================================================================================================
 * Products with their epilogues. The other contestant is our own product without it. */

/* rows x in -> width and back to the residual stream: o and wo. */
static void residual_epilogue(Bench *b, const char *group, const char *kernel, size_t rows, size_t in, size_t width,
                              float rate)
{
    const Dropout dropout = dropout_of(rate);
    Row row = {};
    row.kernel = kernel;
    rows = rows_that_fit(b, rows, 2 * in + 10 * width, 0);
    if (!fits(b, kernel, rows, in * width)) return;
    take_anew(b);
    const size_t n = rows * width, turns = turns_of(b, rows, in * width);
    const Sequences seqs = sequences_of(b, rows);
    act_t *x = random_acts(b, n, 1), *y = random_acts(b, rows * in, 1), *out = take_acts(b, n),
          *branch = take_acts(b, n), *want = take_acts(b, n);
    linear_residual_forward(b->dev, out, x, y, b->weights, branch, &seqs, in, width, &dropout);
    linear_forward(b->dev, branch, y, b->weights, rows, in, width);
    residual_forward(b->dev, want, x, branch, &seqs, width, &dropout);
    row.error = fmax(
        check(b, product_reference(FORWARD, y, b->weights, rows, in, width), result_of(branch, width), rows, width),
        check(b, SameReference{want, width, 1}, result_of(out, width), rows, width));
    measure(
        b, &row,
        [&](size_t i) {
            linear_residual_forward(b->dev, out, x, y, b->weights + i % turns * in * width, branch, &seqs, in, width,
                                    &dropout);
        },
        [&](size_t i) { linear_forward(b->dev, out, y, b->weights + i % turns * in * width, rows, in, width); });
    row.flops = 2.0 * (double)n * (double)in;
    row.bytes = 2.0 * (double)(rows * in + in * width + 2 * n);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, in, width);
    report(b, group, &row);
}

/* rows x in -> 2 d_ff -> d_ff: wi and the gated gelu. */
static void mlp_epilogue(Bench *b, const char *group, const char *kernel, size_t rows, size_t in, size_t d_ff,
                         float rate)
{
    const Dropout dropout = dropout_of(rate);
    Row row = {};
    row.kernel = kernel;
    rows = rows_that_fit(b, rows, 2 * in + 10 * d_ff, 0);
    if (!fits(b, kernel, rows, 2 * in * d_ff)) return;
    take_anew(b);
    const size_t n = rows * d_ff, n_weights = 2 * in * d_ff, turns = turns_of(b, rows, n_weights);
    const Sequences seqs = sequences_of(b, rows);
    act_t *x = random_acts(b, rows * in, 1), *a = take_acts(b, 2 * n), *h = take_acts(b, n);
    linear_mlp_forward(b->dev, MLP_GATED_GELU, h, a, x, b->weights, &seqs, in, d_ff, &dropout);
    row.error = fmax(
        check(b, product_reference(FORWARD, x, b->weights, rows, in, 2 * d_ff), result_of(a, 2 * d_ff), rows, 2 * d_ff),
        check(b, GeluReference{a, nullptr, seqs, dropout, d_ff}, result_of(h, d_ff), rows, d_ff) / 4);
    measure(
        b, &row,
        [&](size_t i) {
            linear_mlp_forward(b->dev, MLP_GATED_GELU, h, a, x, b->weights + i % turns * n_weights, &seqs, in, d_ff,
                               &dropout);
        },
        [&](size_t i) { linear_forward(b->dev, a, x, b->weights + i % turns * n_weights, rows, in, 2 * d_ff); });
    row.flops = 4.0 * (double)n * (double)in;
    row.bytes = 2.0 * (double)(rows * in + n_weights + 3 * n);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, in, 2 * d_ff);
    report(b, group, &row);
}

/* From the gradient behind wo back through the gated gelu. */
static void mlp_backward_epilogue(Bench *b, const char *kernel, size_t rows, size_t width, size_t d_ff, float rate)
{
    const Dropout dropout = dropout_of(rate);
    Row row = {};
    row.kernel = kernel;
    rows = rows_that_fit(b, rows, 2 * width + 16 * d_ff, 0);
    if (!fits(b, kernel, rows, width * d_ff)) return;
    take_anew(b);
    const size_t n = rows * d_ff;
    const Sequences seqs = sequences_of(b, rows);
    act_t *dy = random_acts(b, rows * width, 1), *a = random_acts(b, 2 * n, 1), *da = take_acts(b, 2 * n),
          *dh = take_acts(b, n), *h = take_acts(b, n), *want = take_acts(b, 2 * n);
    linear_mlp_backward(b->dev, MLP_GATED_GELU, da, dh, h, dy, b->weights, a, &seqs, width, d_ff, &dropout);
    row.error = check(b, GeluReference{a, nullptr, seqs, dropout, d_ff}, result_of(h, d_ff), rows, d_ff);
    linear_backward_input(b->dev, dh, dy, b->weights, rows, d_ff, width, false);
    row.error = fmax(row.error, check(b, product_reference(BACKWARD_INPUT, dy, b->weights, rows, d_ff, width),
                                      result_of(dh, d_ff), rows, d_ff));
    mlp_activation_backward(b->dev, MLP_GATED_GELU, want, dh, a, &seqs, d_ff, &dropout);
    row.error = fmax(row.error, check(b, SameReference{want, 2 * d_ff, 1}, result_of(da, 2 * d_ff), rows, 2 * d_ff));
    measure(
        b, &row,
        [&](size_t) {
            linear_mlp_backward(b->dev, MLP_GATED_GELU, da, dh, h, dy, b->weights, a, &seqs, width, d_ff, &dropout);
        },
        [&](size_t) { linear_backward_input(b->dev, dh, dy, b->weights, rows, d_ff, width, false); });
    row.flops = 2.0 * (double)n * (double)width;
    row.bytes = 2.0 * (double)(rows * width + width * d_ff + 5 * n);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, width, d_ff);
    report(b, "epilogues", &row);
}

/* The keys and values of all decoder layers, whose weights are `stride` apart, and the gradient of the encoder's output
 * from theirs. Beside them, layer after layer. */
static void layers_epilogue(Bench *b, const ModelSizes *m, size_t rows)
{
    const size_t out = 2 * m->inner, in = m->width, stride = out * in,
                 layers = at_most(b->n_weights / stride, DECODER_LAYERS);
    Row row = {};
    rows = rows_that_fit(b, rows, 2 * (in + layers * out), 0);
    if (!fits(b, "cross k v of all layers", layers ? rows : 0, stride)) return;
    take_anew(b);
    act_t *x = random_acts(b, rows * in, 1), *y = take_acts(b, rows * layers * out);
    const size_t last = layers - 1;
    linear_forward_layers(b->dev, y, x, b->weights, rows, in, out, layers, stride, rows * out);
    for (size_t l = 0; l < layers; l += last ? last : 1)
        row.error = fmax(row.error, check(b, product_reference(FORWARD, x, b->weights + l * stride, rows, in, out),
                                          result_of(y + l * rows * out, out), rows, out));
    measure(
        b, &row,
        [&](size_t) { linear_forward_layers(b->dev, y, x, b->weights, rows, in, out, layers, stride, rows * out); },
        [&](size_t) {
            for (size_t l = 0; l < layers; l++)
                linear_forward(b->dev, y + l * rows * out, x, b->weights + l * stride, rows, in, out);
        });
    row.kernel = "cross k v of all layers";
    row.flops = 2.0 * (double)(rows * layers) * (double)(in * out);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zux%zu", rows, in, layers, out);
    report(b, "epilogues", &row);

    fill(b, y, rows * layers * out, 0, 1);
    poison(b, x, rows * in * sizeof *x);
    linear_backward_input_layers(b->dev, x, y, b->weights, rows, in, out, layers, stride, rows * out);
    ProductReference reference = product_reference(BACKWARD_INPUT, y, b->weights, rows, in, out);
    reference.layers = layers, reference.a_layer = rows * out, reference.b_layer = stride;
    row.error = check(b, reference, result_of(x, in), rows, in);
    measure(
        b, &row,
        [&](size_t) {
            linear_backward_input_layers(b->dev, x, y, b->weights, rows, in, out, layers, stride, rows * out);
        },
        [&](size_t) {
            for (size_t l = 0; l < layers; l++)
                linear_backward_input(b->dev, x, y + l * rows * out, b->weights + l * stride, rows, in, out, l > 0);
        });
    row.kernel = "cross k v of all layers d input";
    report(b, "epilogues", &row);
}

/* The same product with fp32 and with bf16 results. */
static void head_epilogue(Bench *b, const ModelSizes *m, size_t rows)
{
    const size_t V = m->vocabulary, D = m->width;
    Row row = {};
    row.kernel = "head forward, fp32 logits";
    rows = rows_that_fit(b, rows, 2 * D + 4 * V, 0);
    if (!fits(b, row.kernel, rows, V * D)) return;
    take_anew(b);
    act_t *x = random_acts(b, rows * D, 1);
    logit_t *logits = take_stats(b, rows * V);
    head_forward(b->dev, logits, x, b->weights, rows, D, V);
    row.error = check(b, product_reference(HEAD_FORWARD, x, b->weights, rows, D, V), result_of(logits, V), rows, V);
    measure(
        b, &row, [&](size_t) { head_forward(b->dev, logits, x, b->weights, rows, D, V); },
        [&](size_t) { linear_forward(b->dev, (act_t *)logits, x, b->weights, rows, D, V); });
    row.flops = 2.0 * (double)rows * (double)D * (double)V;
    row.bytes = 2.0 * (double)(rows * D + V * D) + 4.0 * (double)(rows * V);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, D, V);
    report(b, "epilogues", &row);
}

static void measure_epilogues(Bench *b)
{
    const size_t rows = BATCH * SOURCE, decoder = BATCH * TARGET;
    const ModelSizes *m = &xxl;
    table_head("Products and what becomes of them, XXL, in turn with the bare product of ours (ratio 1: at no cost)",
               "bare ms");
    residual_epilogue(b, "epilogues", "o + residual, dropout", rows, m->inner, m->width, 0.1f);
    residual_epilogue(b, "epilogues", "wo + residual, dropout", rows, m->d_ff, m->width, 0.1f);
    residual_epilogue(b, "epilogues", "wo + residual", rows, m->d_ff, m->width, 0);
    residual_epilogue(b, "epilogues", "wo + residual, dropout", decoder, m->d_ff, m->width, 0.1f);
    mlp_epilogue(b, "epilogues", "wi, gated gelu, dropout", rows, m->width, m->d_ff, 0.1f);
    mlp_epilogue(b, "epilogues", "wi, gated gelu", rows, m->width, m->d_ff, 0);
    mlp_epilogue(b, "epilogues", "wi, gated gelu, dropout", decoder, m->width, m->d_ff, 0.1f);
    mlp_backward_epilogue(b, "wo d input, gated gelu, dropout", rows, m->width, m->d_ff, 0.1f);
    mlp_backward_epilogue(b, "wo d input, gated gelu, dropout", decoder, m->width, m->d_ff, 0.1f);
    layers_epilogue(b, m, rows);
    head_epilogue(b, m, decoder);
    head_epilogue(b, m, LOGITS_CHUNK);
}

/* ================================================================================================================
 * Attention */

/* T5's bucket of a distance key - query (transformers' _relative_position_bucket, maximum 128). */
static int32_t bucket_of(long distance, bool causal)
{
    const long buckets = causal ? BUCKETS : BUCKETS / 2, exact = buckets / 2;
    const long base = !causal && distance > 0 ? buckets : 0,
               n = causal ? (distance < 0 ? -distance : 0) : labs(distance);
    if (n < exact) return (int32_t)(base + n);
    const long beyond =
        (long)(logf((float)n / (float)exact) / (float)log(128.0 / (double)exact) * (float)(buckets - exact));
    return (int32_t)(base + (exact + beyond < buckets - 1 ? exact + beyond : buckets - 1));
}

static const int32_t *take_buckets(Bench *b, size_t longest, bool causal)
{
    int32_t *host = (int32_t *)calloc(2 * longest, sizeof *host);
    if (!host) cuda_check(cudaErrorMemoryAllocation, "bias buckets");
    for (size_t i = 0; i < 2 * longest - 1; i++) host[i] = bucket_of((long)i - (long)longest + 1, causal);
    const int32_t *device = take_indices(b, host, 2 * longest - 1);
    free(host);
    return device + longest - 1;
}

struct AttentionCase {
    const char *name;
    size_t count, queries, keys; /* lengths; keys 0: self-attention, with a bias; queries 0: lengths of RTE */
    bool causal;
    float dropout;
    bool is_marked;
};

/* The bytes of everything that one row of queries, and one of keys, needs in both passes. */
static size_t attention_row_bytes(size_t width, size_t heads, bool cross)
{
    return (cross ? 8 : 16) * width + 4 * heads;
}

/* q, k, v as the engine has them: one matrix for self-attention, two for the cross one. Numbers of deviation 0.35 make
 * scores of deviation 1: T5 does not divide by sqrt(d_kv), so its weights keep scores that small. */
static Attention take_attention(Bench *b, const AttentionCase *c, const ModelSizes *m, size_t *pairs)
{
    int32_t lengths[BATCH];
    const size_t width = m->heads * HEAD_SIZE;
    Packed queries, keys;
    if (!c->queries) real_lengths(lengths, c->count);
    queries = c->queries ? pack_even(b, c->count, c->queries) : pack(b, lengths, c->count);
    keys = c->keys ? pack_even(b, c->count, c->keys) : queries;
    Attention at = {};
    at.queries = queries.seqs, at.keys = keys.seqs;
    at.heads = m->heads, at.d_kv = HEAD_SIZE;
    at.causal = c->causal, at.dropout = dropout_of(c->dropout);
    if (c->keys) {
        const act_t *q = random_acts(b, at.queries.rows * width, 0.35f),
                    *kv = random_acts(b, at.keys.rows * 2 * width, 0.35f);
        at.q = q, at.k = kv, at.v = kv + width;
        at.q_stride = width, at.kv_stride = 2 * width;
    } else {
        const act_t *qkv = random_acts(b, at.queries.rows * 3 * width, 0.35f);
        at.q = qkv, at.k = qkv + width, at.v = qkv + 2 * width;
        at.q_stride = at.kv_stride = 3 * width;
        at.bias_table = b->bias;
        at.bucket = take_buckets(b, at.queries.longest, c->causal);
        at.buckets = BUCKETS;
    }
    *pairs = c->keys ? c->count * c->queries * c->keys : queries.pairs[c->causal];
    return at;
}

static void attention_shape(Row *row, const AttentionCase *c, const ModelSizes *m)
{
    if (!c->queries)
        snprintf(row->shape, sizeof row->shape, "%zu x RTE, %zu heads", c->count, m->heads);
    else if (c->keys)
        snprintf(row->shape, sizeof row->shape, "%zu x %zu, %zu; %zu heads", c->count, c->queries, c->keys, m->heads);
    else
        snprintf(row->shape, sizeof row->shape, "%zu x %zu, %zu heads", c->count, c->queries, m->heads);
}

static void attention_backward_case(Bench *b, Row *row, const Attention *at, act_t *out, const stat_t *logsumexp,
                                    bool is_marked, double flops)
{
    const size_t width = at->heads * at->d_kv, R = at->queries.rows, K = at->keys.rows;
    const act_t *dout = random_acts(b, R * width, 1);
    act_t *dq = take_acts(b, R * at->q_stride), *dkv = at->bias_table ? dq + width : take_acts(b, K * at->kv_stride),
          *dv = dkv + width;
    stat_t *dbias = at->bias_table ? take_stats(b, at->buckets * at->heads) : nullptr;
    const AttentionReference reference = {*at, dout, out, logsumexp};
    if (dbias) device_clear(b->dev, dbias, at->buckets * at->heads * sizeof *dbias);
    attention_backward(b->dev, dq, dkv, dv, dbias, dout, out, logsumexp, at);
    row->error = 0;
    const struct {
        AttentionGradient gradient;
        Result result;
        size_t rows;
    } results[] = {{GRADIENT_Q, result_of(dq, at->q_stride), R},
                   {GRADIENT_K, result_of(dkv, at->kv_stride), K},
                   {GRADIENT_V, result_of(dv, at->kv_stride), K}};
    for (const auto &r : results)
        row->error =
            fmax(row->error, check(b, AttentionBackwardReference{reference, r.gradient}, r.result, r.rows, width, 128));
    if (dbias)
        row->error = fmax(row->error, check(b, AttentionBiasReference{reference}, result_of(dbias, at->heads),
                                            at->buckets, at->heads, 32));
    measure(b, row, [&](size_t) { attention_backward(b->dev, dq, dkv, dv, dbias, dout, out, logsumexp, at); });
    row->flops = flops;
    report(b, "attention", row);
    if (is_marked) mark(b, MARK_ATTENTION_BACKWARD, row->flops / row->ours.seconds / 1e12, row);
}

static void attention_case(Bench *b, AttentionCase c, const ModelSizes *m)
{
    const size_t width = m->heads * HEAD_SIZE, wanted = c.count;
    char forward[64], backward[64];
    size_t pairs = 0;
    Row row = {};
    snprintf(forward, sizeof forward, "%s forward", c.name);
    snprintf(backward, sizeof backward, "%s backward", c.name);
    const size_t queries = c.queries ? c.queries : (size_t)SOURCE;
    c.count = rows_that_fit(b, c.count, queries * attention_row_bytes(width, m->heads, c.keys > 0) + 8 * c.keys * width,
                            1 << 20);
    if (!fits(b, c.name, c.count, 0)) return;
    take_anew(b);
    const Attention at = take_attention(b, &c, m, &pairs);
    act_t *out = take_acts(b, at.queries.rows * width);
    stat_t *logsumexp = take_stats(b, m->heads * at.queries.rows);
    attention_forward(b->dev, out, logsumexp, &at);
    const AttentionForwardReference reference = {{at, nullptr, nullptr, nullptr}};
    row.kernel = forward;
    row.error = check(b, reference, result_of(out, width), at.queries.rows, width);
    measure(b, &row, [&](size_t) { attention_forward(b->dev, out, logsumexp, &at); });
    row.flops = 4.0 * (double)pairs * (double)width;
    attention_shape(&row, &c, m);
    report(b, "attention", &row);
    const bool is_marked = c.is_marked && c.count == wanted;
    if (is_marked) mark(b, MARK_ATTENTION_FORWARD, row.flops / row.ours.seconds / 1e12, &row);
    row.kernel = backward;
    attention_backward_case(b, &row, &at, out, logsumexp, is_marked, 2.5 * row.flops);
}

static void measure_attention(Bench *b)
{
    const AttentionCase cases[] = {{"encoder", BATCH, SOURCE, 0, false, 0, true},
                                   {"encoder, dropout", BATCH, SOURCE, 0, false, 0.1f, true},
                                   {"encoder", BATCH, 128, 0, false, 0, false},
                                   {"encoder", 16, 2048, 0, false, 0, false},
                                   {"encoder, RTE", BATCH, 0, 0, false, 0, false},
                                   {"decoder, causal", BATCH, TARGET, 0, true, 0, false},
                                   {"decoder, causal", BATCH, SOURCE, 0, true, 0, false},
                                   {"cross", BATCH, TARGET, SOURCE, false, 0, false},
                                   {"cross, dropout", BATCH, TARGET, SOURCE, false, 0.1f, false}};
    table_head("Attention with T5's bias: sequences x length, or queries, keys", "");
    for (const AttentionCase &c : cases) attention_case(b, c, &xxl);
    attention_case(b, {"large: encoder", BATCH, SOURCE, 0, false, 0, false}, &large);
}

/* ================================================================================================================
 * Kernels that wait for memory */
static void bandwidth_row(Bench *b, const char *group, Row *row, size_t rows, size_t width, double bytes, MarkName name)
{
    snprintf(row->shape, sizeof row->shape, "%zu x %zu", rows, width);
    row->bytes = bytes;
    report(b, group, row);
    mark(b, name, bytes / row->ours.seconds / b->copy_rate, row);
}

static void bandwidth_norms(Bench *b, size_t rows, size_t D)
{
    Row row = {};
    rows = rows_that_fit(b, rows, 6 * D + 4, 8 * D);
    if (!fits(b, "rmsnorm", rows, D)) return;
    take_anew(b);
    act_t *x = random_acts(b, rows * D, 1), *y = take_acts(b, rows * D), *dx = take_acts(b, rows * D);
    stat_t *rstd = take_stats(b, rows), *dscale = take_stats(b, D);
    const NormReference forward = {x, b->weights, D};
    rmsnorm_forward(b->dev, y, rstd, x, b->weights, rows, D, 1e-6f);
    row.kernel = "rmsnorm forward";
    row.error = check(b, forward, result_of(y, D), rows, D);
    measure(b, &row, [&](size_t) { rmsnorm_forward(b->dev, y, rstd, x, b->weights, rows, D, 1e-6f); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 4.0 * (double)(rows * D), MARK_BANDWIDTH);

    fill(b, y, rows * D, 0, 1); /* now the gradient */
    device_clear(b->dev, dx, rows * D * sizeof *dx);
    device_clear(b->dev, dscale, D * sizeof *dscale);
    rmsnorm_backward(b->dev, dx, dscale, y, x, rstd, b->weights, rows, D);
    row.kernel = "rmsnorm backward";
    row.error = check(b, NormBackwardReference{forward, y}, result_of(dx, D), rows, D);
    measure(b, &row, [&](size_t) { rmsnorm_backward(b->dev, dx, dscale, y, x, rstd, b->weights, rows, D); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 8.0 * (double)(rows * D), MARK_BANDWIDTH);
}

static void bandwidth_residual(Bench *b, size_t rows, size_t D)
{
    const Dropout dropout = dropout_of(0.1f);
    Row row = {};
    rows = rows_that_fit(b, rows, 6 * D, 0);
    if (!fits(b, "residual", rows, D)) return;
    take_anew(b);
    const Sequences seqs = sequences_of(b, rows);
    const size_t n = rows * D;
    act_t *x = random_acts(b, n, 1), *branch = random_acts(b, n, 1), *out = take_acts(b, n);
    residual_forward(b->dev, out, x, branch, &seqs, D, &dropout);
    row.kernel = "residual forward, dropout";
    row.error = check(b, ResidualReference{x, branch, seqs, dropout, D}, result_of(out, D), rows, D);
    measure(b, &row, [&](size_t) { residual_forward(b->dev, out, x, branch, &seqs, D, &dropout); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 6.0 * (double)n, NO_MARK);

    poison(b, out, n * sizeof *out);
    residual_backward(b->dev, out, branch, &seqs, D, &dropout);
    row.kernel = "residual backward, dropout";
    row.error = check(b, ResidualReference{nullptr, branch, seqs, dropout, D}, result_of(out, D), rows, D);
    measure(b, &row, [&](size_t) { residual_backward(b->dev, out, branch, &seqs, D, &dropout); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 4.0 * (double)n, NO_MARK);

    device_copy(b->dev, out, branch, n * sizeof *out);
    dropout_forward(b->dev, out, &seqs, D, &dropout);
    row.kernel = "dropout";
    row.error = check(b, ResidualReference{nullptr, branch, seqs, dropout, D}, result_of(out, D), rows, D);
    const Dropout weak = dropout_of(1e-6f); /* many in place leave few zeros and no infinities */
    measure(b, &row, [&](size_t) { dropout_forward(b->dev, out, &seqs, D, &weak); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 4.0 * (double)n, NO_MARK);
}

static void bandwidth_gelu(Bench *b, size_t rows, size_t F)
{
    const Dropout dropout = dropout_of(0.1f);
    Row row = {};
    rows = rows_that_fit(b, rows, 10 * F, 0);
    if (!fits(b, "gated gelu", rows, 1)) return;
    take_anew(b);
    const Sequences seqs = sequences_of(b, rows);
    const size_t n = rows * F;
    act_t *a = random_acts(b, 2 * n, 1), *h = take_acts(b, n), *da = take_acts(b, 2 * n);
    mlp_activation_forward(b->dev, MLP_GATED_GELU, h, a, &seqs, F, &dropout);
    row.kernel = "gated gelu forward, dropout";
    row.error = check(b, GeluReference{a, nullptr, seqs, dropout, F}, result_of(h, F), rows, F);
    measure(b, &row, [&](size_t) { mlp_activation_forward(b->dev, MLP_GATED_GELU, h, a, &seqs, F, &dropout); });
    bandwidth_row(b, "bandwidth", &row, rows, F, 6.0 * (double)n, NO_MARK);

    fill(b, h, n, 0, 1); /* now the gradient */
    mlp_activation_backward(b->dev, MLP_GATED_GELU, da, h, a, &seqs, F, &dropout);
    row.kernel = "gated gelu backward, dropout";
    row.error = check(b, GeluReference{a, h, seqs, dropout, F}, result_of(da, 2 * F), rows, 2 * F);
    measure(b, &row, [&](size_t) { mlp_activation_backward(b->dev, MLP_GATED_GELU, da, h, a, &seqs, F, &dropout); });
    bandwidth_row(b, "bandwidth", &row, rows, F, 10.0 * (double)n, NO_MARK);
}

/* Every target row of the gradient gets two rows of the batch, from places far apart. */
static void bandwidth_embedding(Bench *b, size_t rows, const ModelSizes *m)
{
    const size_t D = m->width, known = b->n_weights / D;
    Row row = {};
    rows = rows_that_fit(b, rows, 4 * D + 16, 0);
    if (!fits(b, "embedding", rows / 2, D)) return;
    take_anew(b);
    const size_t targets = rows / 2, vocabulary = known < m->vocabulary ? known : m->vocabulary;
    int32_t *host = (int32_t *)calloc(3 * rows + 1, sizeof *host), *first = host + rows, *source = first + targets + 1;
    if (!host) cuda_check(cudaErrorMemoryAllocation, "ids");
    for (size_t i = 0; i < rows; i++) host[i] = (int32_t)(host_random() % vocabulary);
    for (size_t i = 0; i < targets; i++) source[2 * i] = (int32_t)i, source[2 * i + 1] = (int32_t)(i + targets);
    for (size_t i = 0; i <= targets; i++) first[i] = (int32_t)(2 * i);
    const int32_t *ids = take_indices(b, host, rows), *firsts = take_indices(b, first, targets + 1),
                  *sources = take_indices(b, source, 2 * targets);
    free(host);
    act_t *out = take_acts(b, rows * D);
    stat_t *dtable = take_stats(b, targets * D);
    embedding_forward(b->dev, out, b->weights, nullptr, ids, rows, D);
    row.kernel = "embedding forward";
    row.error = check(b, EmbeddingReference{b->weights, ids, D}, result_of(out, D), rows, D);
    measure(b, &row, [&](size_t) { embedding_forward(b->dev, out, b->weights, nullptr, ids, rows, D); });
    bandwidth_row(b, "bandwidth", &row, rows, D, 4.0 * (double)(rows * D), NO_MARK);

    device_clear(b->dev, dtable, targets * D * sizeof *dtable);
    embedding_backward(b->dev, dtable, out, firsts, sources, targets, D);
    row.kernel = "embedding backward";
    row.error = check(b, EmbeddingBackwardReference{out, firsts, sources, D}, result_of(dtable, D), targets, D);
    measure(b, &row, [&](size_t) { embedding_backward(b->dev, dtable, out, firsts, sources, targets, D); });
    bandwidth_row(b, "bandwidth", &row, rows, D, (double)(2 * rows + 8 * targets) * (double)D, NO_MARK);
}

/* The loss must read a logit twice, for the gradient needs the sum over all of them first: 10 bytes with its bf16
 * result. (A chunk that stays in the cache can do better than that.) */
static void bandwidth_loss(Bench *b, size_t rows, size_t V)
{
    const LossSettings settings = {0.1f, 1e-4f, 1};
    Row row = {};
    rows = rows_that_fit(b, rows, 6 * V + 64, 0);
    if (!fits(b, "cross-entropy", rows, 1)) return;
    take_anew(b);
    int32_t host[BATCH * TARGET];
    for (size_t i = 0; i < rows; i++) host[i] = (int32_t)(host_random() % V);
    const int32_t *targets = take_indices(b, host, rows);
    logit_t *logits = random_stats(b, rows * V, 1);
    act_t *dlogits = take_acts(b, rows * V);
    stat_t *loss = take_stats(b, rows);
    softmax_cross_entropy(b->dev, loss, dlogits, logits, targets, rows, V, &settings);
    row.kernel = "softmax cross-entropy";
    row.error = check(b, LossGradientReference{logits, targets, V, settings}, result_of(dlogits, V), rows, V, 128);
    measure(b, &row,
            [&](size_t) { softmax_cross_entropy(b->dev, loss, dlogits, logits, targets, rows, V, &settings); });
    bandwidth_row(b, "bandwidth", &row, rows, V, 10.0 * (double)(rows * V), MARK_BANDWIDTH);
}

/* One step from moments of 0 with a gradient g of N(0,1): whatever alpha is, an update is learning rate * RMS(p) * g
 * when all rows have a gradient, up to a few percent by which the moments of single rows and columns differ; with n of R
 * rows, RMS(update) before clipping is sqrt(n / R / alpha). Returns the worst deviation as a share of a tenth. */
static double adafactor_error(Bench *b, const float *before, const weight_t *p, const stat_t *g, size_t row,
                              size_t columns, double expected)
{
    double worst = 0;
    float *after = (float *)calloc(2 * columns, sizeof *after), *gradient = after + columns;
    if (!after) return INFINITY;
    weights_download(b->dev, after, p, columns);
    stats_download(b->dev, gradient, g + row * columns, columns);
    for (size_t i = 0; i < columns; i++)
        if (fabsf(gradient[i]) > 0.1f) {
            const double factor = ((double)before[i] - (double)after[i]) / (double)gradient[i];
            worst = isfinite(factor) ? fmax(worst, fabs(factor / expected - 1) / 0.1) : INFINITY;
        }
    free(after);
    return worst;
}

/* All rows of p have a gradient, or n of them (every step-th). 16 bytes for each number that is updated. */
static void bandwidth_adafactor(Bench *b, const char *kernel, size_t rows, size_t columns, size_t n)
{
    const AdafactorStep step = {1e-3, 0.01, 1, 0, 1e-30, 1e-3, true};
    const bool by_rows = n < rows;
    Row row = {};
    row.kernel = kernel;
    n = rows_that_fit(b, n, 4 * columns + 4, 8 * rows + 4 * columns);
    if (!by_rows) rows = n;
    if (!fits(b, kernel, n, rows * columns)) return;
    take_anew(b);
    stat_t *g = random_stats(b, n * columns, 1), *moments = take_stats(b, 2 * rows + columns);
    const SecondMoment moment = {moments, moments + rows, nullptr, moments + rows + columns};
    int32_t *host = (int32_t *)calloc(n, sizeof *host);
    float *before = (float *)calloc(columns, sizeof *before);
    if (!host || !before) cuda_check(cudaErrorMemoryAllocation, "rows");
    for (size_t i = 0; i < n; i++) host[i] = (int32_t)(i * (rows / n));
    const int32_t *index = by_rows ? take_indices(b, host, n) : nullptr;
    const size_t checked = n / 2, at = (size_t)host[checked] * columns;
    weight_t *p = b->weights;
    const auto update = [&](size_t) {
        if (by_rows)
            adafactor_update_rows(b->dev, p, g, index, n, &moment, rows, columns, &step);
        else
            adafactor_update(b->dev, p, g, &moment, rows, columns, &step);
    };
    fill_weights(b, rows * columns); /* the update before this one has changed them */
    weights_download(b->dev, before, p + at, columns);
    device_clear(b->dev, moments, (2 * rows + columns) * sizeof *moments);
    rows_sum_of_squares(b->dev, moment.row_squares, p, rows, columns);
    update(0);
    const double size = sqrt((double)n / (double)rows / step.alpha);
    row.error = fmax(adafactor_error(b, before, p + at, g, checked, columns,
                                     step.learning_rate * WEIGHT_DEVIATION / sqrt(step.alpha) / fmax(1, size)),
                     check(b, ColumnMomentReference{g, n, columns, (float)(step.alpha / (double)rows)},
                           result_of(moment.column, columns), 1, columns, 64));
    measure(b, &row, update);
    bandwidth_row(b, "bandwidth", &row, n, columns, 16.0 * (double)(n * columns), MARK_BANDWIDTH);
    free(host);
    free(before);
}

static void measure_bandwidth(Bench *b)
{
    const size_t rows = BATCH * SOURCE;
    const ModelSizes *m = &xxl;
    table_head("Kernels that wait for memory, XXL, against the copy", "");
    bandwidth_norms(b, rows, m->width);
    bandwidth_residual(b, rows, m->width);
    bandwidth_gelu(b, rows, m->d_ff);
    bandwidth_embedding(b, rows, m);
    bandwidth_loss(b, BATCH * TARGET, m->vocabulary);
    bandwidth_loss(b, LOGITS_CHUNK, m->vocabulary);
    bandwidth_adafactor(b, "Adafactor", m->inner, m->width, m->inner);
    bandwidth_adafactor(b, "Adafactor", m->d_ff, m->width, m->d_ff);
    bandwidth_adafactor(b, "Adafactor, head", m->vocabulary, m->width, m->vocabulary);
    bandwidth_adafactor(b, "Adafactor, rows of the embedding", m->vocabulary, m->width, 20000);
}

/* ================================================================================================================
 * Decoding */

/* One step of self-attention: each row sees the tokens before it, of random ancestors among its own beams. */
static void cached_attention(Bench *b, size_t rows, size_t steps, const ModelSizes *m)
{
    const size_t width = m->heads * HEAD_SIZE;
    Row row = {};
    row.kernel = "self-attention against the cache";
    rows = rows_that_fit(b, rows, steps * 6 * width + 4 * steps + 2 * width, 1 << 16);
    if (!fits(b, row.kernel, rows / BEAMS, 0)) return;
    take_anew(b);
    int32_t *host = (int32_t *)calloc(rows * steps, sizeof *host);
    if (!host) cuda_check(cudaErrorMemoryAllocation, "ancestors");
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < steps; t++)
            host[r * steps + t] = (int32_t)(t == steps - 1 ? r : r / BEAMS * BEAMS + host_random() % BEAMS);
    const int32_t *ancestors = take_indices(b, host, rows * steps), *bucket = take_buckets(b, steps, true);
    free(host);
    const act_t *cache = random_acts(b, steps * rows * 3 * width, 0.35f);
    act_t *out = take_acts(b, rows * width);
    const auto step = [&](size_t) {
        attention_cached_forward(b->dev, out, cache, ancestors, rows, steps, steps, rows, m->heads, HEAD_SIZE, b->bias,
                                 bucket, BUCKETS);
    };
    step(0);
    row.error = check(b, CachedAttentionReference{cache, ancestors, b->bias, bucket, rows, steps, m->heads, HEAD_SIZE},
                      result_of(out, width), rows, width, 128);
    measure(b, &row, step);
    bandwidth_row(b, "decoding", &row, rows, steps, (double)(rows * width) * (4.0 * (double)steps + 4), NO_MARK);
}

/* The beams of an input are so many queries against its keys. */
static void cross_attention(Bench *b, size_t count, const ModelSizes *m)
{
    const AttentionCase c = {"cross-attention of beams", count, BEAMS, SOURCE, false, 0, false};
    const size_t width = m->heads * HEAD_SIZE;
    size_t pairs;
    Row row = {};
    row.kernel = c.name;
    if (!fits(b, c.name, rows_that_fit(b, 1, count * (SOURCE + 4 * BEAMS) * 4 * width, 1 << 20), 1)) return;
    take_anew(b);
    const Attention at = take_attention(b, &c, m, &pairs);
    act_t *out = take_acts(b, at.queries.rows * width);
    stat_t *logsumexp = take_stats(b, m->heads * at.queries.rows);
    const AttentionForwardReference reference = {{at, nullptr, nullptr, nullptr}};
    attention_forward(b->dev, out, logsumexp, &at);
    row.error = check(b, reference, result_of(out, width), at.queries.rows, width);
    measure(b, &row, [&](size_t) { attention_forward(b->dev, out, logsumexp, &at); });
    bandwidth_row(b, "decoding", &row, at.queries.rows, SOURCE,
                  4.0 * (double)(at.keys.rows + at.queries.rows) * (double)width, NO_MARK);
}

/* q k v and the head, beside the library. */
static void decoding_product(Bench *b, Layout layout, const char *kernel, size_t rows, size_t in, size_t out)
{
    Row row = {};
    row.kernel = kernel;
    rows = rows_that_fit(b, rows, 2 * in + 4 * out, 0);
    if (!fits(b, kernel, rows, in * out)) return;
    take_anew(b);
    const size_t turns = turns_of(b, rows, in * out), size = layout == HEAD_FORWARD ? 4 : 2;
    act_t *x = random_acts(b, rows * in, 1);
    void *y = take(b, rows * out * size);
    poison(b, y, rows * out * size);
    our_product(b, layout, y, x, b->weights, rows, in, out);
    row.error = check(b, product_reference(layout, x, b->weights, rows, in, out),
                      size == 4 ? result_of((stat_t *)y, out) : result_of((act_t *)y, out), rows, out);
    measure(
        b, &row, [&](size_t i) { our_product(b, layout, y, x, b->weights + i % turns * in * out, rows, in, out); },
        vendor_product(b, layout, y, x, b->weights, turns, rows, in, out));
    row.flops = 2.0 * (double)rows * (double)in * (double)out;
    row.bytes = 2.0 * (double)(rows * in + in * out) + (double)(size * rows * out);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, in, out);
    report(b, "decoding", &row);
}

/* The head and the beams' 8 best words, in turn with the head alone. */
static void decoding_head(Bench *b, size_t rows, size_t D, size_t V)
{
    const size_t k = 2 * BEAMS;
    Row row = {};
    row.kernel = "head and 8 best words";
    rows = rows_that_fit(b, rows, 2 * D + 4 * V + 8 * k, 0);
    if (!fits(b, row.kernel, rows, V * D)) return;
    take_anew(b);
    const size_t turns = turns_of(b, rows, V * D);
    act_t *x = random_acts(b, rows * D, 1);
    logit_t *logits = take_stats(b, rows * V);
    stat_t *logp = take_stats(b, rows * k);
    int32_t *word = (int32_t *)take(b, rows * k * sizeof *word);
    poison(b, logits, rows * V * sizeof *logits);
    device_clear(b->dev, word, rows * k * sizeof *word); /* a word that is not written must be one still */
    head_top_log_probabilities(b->dev, logp, word, logits, x, b->weights, rows, D, V, k);
    row.error =
        fmax(check(b, product_reference(HEAD_FORWARD, x, b->weights, rows, D, V), result_of(logits, V), rows, V),
             check(b, BestWordReference{logits, word, V, k}, result_of(logp, k), rows, k, 128));
    measure(
        b, &row,
        [&](size_t i) {
            head_top_log_probabilities(b->dev, logp, word, logits, x, b->weights + i % turns * V * D, rows, D, V, k);
        },
        [&](size_t i) { head_forward(b->dev, logits, x, b->weights + i % turns * V * D, rows, D, V); });
    row.flops = 2.0 * (double)rows * (double)D * (double)V;
    row.bytes = 2.0 * (double)(rows * D + V * D) + 4.0 * (double)(rows * V);
    snprintf(row.shape, sizeof row.shape, "%zu x %zu -> %zu", rows, D, V);
    report(b, "decoding", &row);
}

static void measure_decoding(Bench *b)
{
    const size_t rows_of[] = {1, 8 * BEAMS, BATCH * BEAMS};
    const ModelSizes *m = &xxl;
    table_head("A step of decoding, XXL, against the copy; in turn with cuBLAS, or the bare product of ours",
               "other ms");
    for (size_t rows : rows_of) {
        decoding_product(b, FORWARD, "q k v (cuBLAS)", rows, m->width, 3 * m->inner);
        residual_epilogue(b, "decoding", "o + residual", rows, m->inner, m->width, 0);
        mlp_epilogue(b, "decoding", "wi, gated gelu", rows, m->width, m->d_ff, 0);
        residual_epilogue(b, "decoding", "wo + residual", rows, m->d_ff, m->width, 0);
        decoding_product(b, HEAD_FORWARD, "head (cuBLAS)", rows, m->width, m->vocabulary);
        decoding_head(b, rows, m->width, m->vocabulary);
    }
    cached_attention(b, BATCH * BEAMS, 16, m);
    cached_attention(b, BATCH * BEAMS, 64, m);
    cross_attention(b, 8, m);
    cross_attention(b, BATCH, m);
}

/* ================================================================================================================
 * The program */
static const struct {
    const char *name;
    void (*measure)(Bench *b);
} groups[] = {{"products", measure_products},
              {"epilogues", measure_epilogues},
              {"attention", measure_attention},
              {"bandwidth", measure_bandwidth},
              {"decoding", measure_decoding}};

static void bench_describe(const Bench *b)
{
    cudaDeviceProp card;
    cuda_check(cudaGetDeviceProperties(&card, 0), "card");
    printf("%s: %d multiprocessors, compute capability %d.%d, %.1f GB (%.1f free), %.0f MB of L2 cache\n\n", card.name,
           card.multiProcessorCount, card.major, card.minor, (double)card.totalGlobalMem / 1e9,
           (double)device_memory_available() / 1e9, (double)card.l2CacheSize / 1e6);
    if (b->out)
        fprintf(b->out, "{\"card\": \"%s\", \"multiprocessors\": %d, \"bytes\": %zu}\n", card.name,
                card.multiProcessorCount, card.totalGlobalMem);
}

/* The weights are the head of XXL, of which the decoder's cross k and v are a part, or as much of it as a quarter of the
 * memory holds. Operands get up to 24 GB; the kernels' own scratch memory must find room beside them. */
static int bench_memory(Bench *b, Error *error)
{
    const double least = 64 << 20, available = (double)device_memory_available();
    int l2 = 0;
    cuda_check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0), "card");
    b->flush_bytes = between(least, 8.0 * l2, 512 << 20);
    b->n_weights = between(1 << 20, available / 16, (double)(xxl.vocabulary * xxl.width)) / 64 * 64;
    b->arena_bytes = between(least, available / 2, 24e9);
    b->flush = (char *)device_alloc(b->flush_bytes);
    b->arena = (char *)device_alloc(b->arena_bytes);
    b->weights = weights_alloc(b->n_weights);
    b->errors = (float *)device_alloc(SAMPLES * sizeof *b->errors);
    b->bias = weights_alloc(BUCKETS * MOST_HEADS);
    if (!b->flush || !b->arena || !b->weights || !b->bias || !b->errors)
        return error_set(error, EXIT_FAILED, "memory: the card has %.1f GB free, which is too little", available / 1e9);
    fill_weights(b, b->n_weights);
    fill(b, b->bias, BUCKETS * MOST_HEADS, 0, 1);
    return 0;
}

static int bench_open(Bench *b, Error *error)
{
    b->dev = device_open(0, MATMUL_BF16, error);
    if (!b->dev) return -1;
    for (auto &contestant : b->event)
        for (auto &round : contestant)
            for (cudaEvent_t &event : round) cuda_check(cudaEventCreate(&event), "clock");
    vendor_open(b);
    marks_begin(b);
    bench_describe(b);
    return bench_memory(b, error);
}

static int bench_close(Bench *b)
{
    const bool broken = b->out && (ferror(b->out) || fclose(b->out));
    if (broken) fprintf(stderr, "gpu-bench: the file cannot be written\n");
    vendor_close(b);
    for (auto &contestant : b->event)
        for (auto &round : contestant)
            for (cudaEvent_t event : round) cudaEventDestroy(event);
    device_free(b->flush), device_free(b->arena), device_free(b->errors);
    weights_free(b->weights), weights_free(b->bias);
    device_close(b->dev);
    return broken || b->wrong ? EXIT_FAILED : 0;
}

static const char usage[] = "usage: gpu-bench [--only GROUPS] [FILE]\n"
                            "  GROUPS   some of products,epilogues,attention,bandwidth,decoding\n"
                            "  FILE     gets every measurement as a line of JSON\n";

static bool groups_are_known(const char *only)
{
    for (const char *at = only; *at; at += strspn(at, ",")) {
        const size_t n = strcspn(at, ",");
        bool known = false;
        for (const auto &group : groups) known |= strlen(group.name) == n && strncmp(group.name, at, n) == 0;
        if (!known) return false;
        at += n;
    }
    return *only != '\0';
}

static int wrong_usage(const char *what, const char *which)
{
    fprintf(stderr, "gpu-bench: %s%s\n%s", what, which, usage);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    static Bench bench;
    const char *file = nullptr;
    Error error = {};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) return fputs(usage, stdout) < 0;
        if (strcmp(argv[i], "--only") == 0)
            bench.only = i + 1 < argc ? argv[++i] : "";
        else if (argv[i][0] == '-' || file)
            return wrong_usage("expected at most one file, found ", argv[i]);
        else
            file = argv[i];
    }
    if (bench.only && !groups_are_known(bench.only))
        return wrong_usage("--only: expected some of the groups, found ", bench.only);
    if (file && !(bench.out = fopen(file, "w"))) return wrong_usage("the file cannot be written: ", file);
    if (bench_open(&bench, &error)) {
        fprintf(stderr, "gpu-bench: %s\n", error.text);
        return EXIT_FAILED;
    }
    measure_product_ceiling(&bench);
    measure_copy_ceiling(&bench);
    measure_host_copies(&bench);
    for (const auto &group : groups)
        if (group_wanted(&bench, group.name)) group.measure(&bench);
    marks_report(&bench);
    return bench_close(&bench);
}

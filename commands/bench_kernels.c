/* bench_kernels.c: the kernels of chapter 2 at a model's shapes, each as a share of its bound. A part of chapter 10 of
 * promot.c, which includes it.
 *
 * What is counted is what the mathematics cannot do without, not what the code does: a multiply-add is two operations,
 * an exponential is one; every operand is read once and every result written once (what is added to, both), in 4 bytes.
 * Two exceptions: the backward pass of attention computes its scores again, which is the price of not storing them
 * (FlashAttention counts as we do); and Adafactor reads a gradient twice, because it clips by the size of the whole
 * update. Small kernels run on several sets of operands in turn, together larger than the last cache where memory
 * allows it, or they would be measured against the wrong memory. */

enum { MOST_OPERANDS = 6, MOST_KERNELS = 64, MOST_SETS = 64 };

/* What an operand is made of: numbers of chapter 2's kinds, or indices (see Kernel). Where weights are two halves,
 * products touch the upper ones of WEIGHTS alone, Adafactor and LoRA both of EXACT_WEIGHTS. */
typedef enum { ACTIVATIONS, WEIGHTS, EXACT_WEIGHTS, STATS, INDICES } OperandKind;

typedef struct {
    OperandKind kind;
    size_t elements, read, written; /* of them, by the kernel */
} KernelOperand;

typedef struct KernelRun KernelRun;

typedef struct {
    const char *name;
    char shape[64];
    size_t rows, in, out; /* as the kernel's function takes them: rows and widths */
    size_t index_run;     /* element e of an INDICES operand is e / index_run */
    bool target;          /* works on the batch's target sequences, not its sources */
    bool matmul;          /* is there a difference between fp32 and bf16? */
    double flops;
    KernelOperand operands[MOST_OPERANDS];
    size_t n_operands;
    void (*run)(const KernelRun *k, void *const *operand);
} Kernel;

struct KernelRun {
    const Kernel *kernel;
    Device *dev;
    const T5Config *config;
    const Batch *batch;
    size_t n_sets, next; /* sets of operands, used in turn */
    void *operands[MOST_SETS][MOST_OPERANDS];
};

typedef struct {
    const T5Config *config;
    const Batch *batch;
    Kernel kernels[MOST_KERNELS];
    size_t count;
} KernelList;

typedef struct {
    double read, written;
} KernelBytes;

static bool is_weights(const KernelOperand *operand)
{
    return operand->kind == WEIGHTS || operand->kind == EXACT_WEIGHTS;
}

static size_t operand_size(const KernelOperand *operand)
{
    return operand->kind == INDICES         ? sizeof(int32_t)
           : operand->kind == ACTIVATIONS   ? sizeof(act_t)
           : operand->kind == WEIGHTS       ? sizeof(weight_t)
           : operand->kind == EXACT_WEIGHTS ? WEIGHT_BYTES
                                            : sizeof(stat_t);
}

static KernelBytes kernel_bytes(const Kernel *kernel)
{
    KernelBytes bytes = {0};
    for (size_t i = 0; i < kernel->n_operands; i++) {
        const double each = (double)operand_size(&kernel->operands[i]);
        bytes.read += each * (double)kernel->operands[i].read;
        bytes.written += each * (double)kernel->operands[i].written;
    }
    return bytes;
}

static Kernel *kernel_add(KernelList *list, const char *name, void (*run)(const KernelRun *k, void *const *operand),
                          size_t rows, size_t in, size_t out, double flops)
{
    Kernel *kernel = &list->kernels[list->count++];
    *kernel = (Kernel){.name = name, .run = run, .rows = rows, .in = in, .out = out, .flops = flops, .index_run = 1};
    if (out)
        snprintf(kernel->shape, sizeof kernel->shape, "%zu x %zu -> %zu", rows, in, out);
    else
        snprintf(kernel->shape, sizeof kernel->shape, "%zu x %zu", rows, in);
    return kernel;
}

static void operand_add(Kernel *kernel, OperandKind kind, size_t elements, size_t read, size_t written)
{
    kernel->operands[kernel->n_operands++] = (KernelOperand){kind, elements, read, written};
}

/* The two usual cases. */
static void operand_in(Kernel *kernel, OperandKind kind, size_t elements)
{
    operand_add(kernel, kind, elements, elements, 0);
}

static void operand_out(Kernel *kernel, OperandKind kind, size_t elements)
{
    operand_add(kernel, kind, elements, 0, elements);
}

static void operand_in_out(Kernel *kernel, OperandKind kind, size_t elements)
{
    operand_add(kernel, kind, elements, elements, elements);
}

/* --- linear layers */

static void run_linear_forward(const KernelRun *k, void *const *o)
{
    linear_forward(k->dev, o[0], o[1], o[2], k->kernel->rows, k->kernel->in, k->kernel->out);
}

static void run_linear_backward_input(const KernelRun *k, void *const *o)
{
    linear_backward_input(k->dev, o[0], o[1], o[2], k->kernel->rows, k->kernel->in, k->kernel->out, false);
}

static void run_linear_backward_weight(const KernelRun *k, void *const *o)
{
    linear_backward_weight(k->dev, o[0], o[1], o[2], k->kernel->rows, k->kernel->in, k->kernel->out, false);
}

static void add_linear_forward(KernelList *list, const char *name, size_t rows, size_t in, size_t out)
{
    Kernel *k =
        kernel_add(list, name, run_linear_forward, rows, in, out, 2.0 * (double)rows * (double)in * (double)out);
    k->matmul = true;
    operand_out(k, ACTIVATIONS, rows * out);
    operand_in(k, ACTIVATIONS, rows * in);
    operand_in(k, WEIGHTS, in * out);
}

/* The three layouts of training: y = x · wᵀ, dx = dy · w, dw = dyᵀ · x. */
static void add_linear(KernelList *list, const char *names[3], size_t rows, size_t in, size_t out)
{
    const double flops = 2.0 * (double)rows * (double)in * (double)out;
    Kernel *k;
    add_linear_forward(list, names[0], rows, in, out);
    k = kernel_add(list, names[1], run_linear_backward_input, rows, in, out, flops);
    k->matmul = true;
    operand_out(k, ACTIVATIONS, rows * in);
    operand_in(k, ACTIVATIONS, rows * out);
    operand_in(k, WEIGHTS, in * out);
    k = kernel_add(list, names[2], run_linear_backward_weight, rows, in, out, flops);
    k->matmul = true;
    operand_out(k, STATS, in * out);
    operand_in(k, ACTIVATIONS, rows * out);
    operand_in(k, ACTIVATIONS, rows * in);
}

#define LAYOUTS(name) ((const char *[3]){name " forward", name " d input", name " d weight"})

static void add_matmuls(KernelList *list)
{
    enum { LARGE = 2048 };
    const T5Config *c = list->config;
    const size_t N = list->batch->source.rows, M = list->batch->target.rows, D = c->d_model, V = c->vocab_size,
                 I = c->num_heads * c->d_kv, F = c->d_ff, A = c->mlp == MLP_GATED_GELU ? 2 * F : F;
    const size_t chunk = logits_rows(c, M, 0);
    const size_t few[] = {1, 8, 32}; /* greedy and beam decoding, batch 1 and 8 */
    add_linear(list, LAYOUTS("square"), min_size(LARGE, N), min_size(LARGE, N), min_size(LARGE, N));
    add_linear(list, LAYOUTS("q k v"), N, D, 3 * I);
    add_linear(list, LAYOUTS("cross k v"), N, D, 2 * I);
    add_linear(list, LAYOUTS("attention o"), N, I, D);
    add_linear(list, LAYOUTS("mlp wi"), N, D, A);
    add_linear(list, LAYOUTS("mlp wo"), N, F, D);
    add_linear(list, LAYOUTS("head"), chunk, D, V);
    for (size_t i = 0; i < sizeof few / sizeof *few; i++) add_linear_forward(list, "head, decoding", few[i], D, V);
}

/* --- attention */

static Dropout bench_dropout(float rate)
{
    return (Dropout){.rate = rate, .key = 1, .shared = true};
}

/* The encoder's, with T5's bias: operands out, logsumexp, q|k|v, bias table. */
static Attention bench_self_attention(const KernelRun *k, const act_t *qkv, const weight_t *bias)
{
    const T5Config *c = k->config;
    const size_t I = c->num_heads * c->d_kv;
    return (Attention){.q = qkv,
                       .k = qkv + I,
                       .v = qkv + 2 * I,
                       .q_stride = 3 * I,
                       .kv_stride = 3 * I,
                       .queries = k->batch->source,
                       .keys = k->batch->source,
                       .heads = c->num_heads,
                       .d_kv = c->d_kv,
                       .bias_table = bias,
                       .buckets = c->buckets,
                       .bucket = k->batch->source_bucket,
                       .dropout = bench_dropout(0.1f)};
}

static Attention bench_cross_attention(const KernelRun *k, const act_t *q, const act_t *kv)
{
    const T5Config *c = k->config;
    const size_t I = c->num_heads * c->d_kv;
    return (Attention){.q = q,
                       .k = kv,
                       .v = kv + I,
                       .q_stride = I,
                       .kv_stride = 2 * I,
                       .queries = k->batch->target,
                       .keys = k->batch->source,
                       .heads = c->num_heads,
                       .d_kv = c->d_kv,
                       .dropout = bench_dropout(0.1f)};
}

static void run_attention_forward(const KernelRun *k, void *const *o)
{
    const Attention attention = bench_self_attention(k, o[2], o[3]);
    attention_forward(k->dev, o[0], o[1], &attention);
}

static void run_attention_backward(const KernelRun *k, void *const *o)
{
    const size_t I = k->config->num_heads * k->config->d_kv, M = k->batch->source.rows;
    const Attention attention = bench_self_attention(k, o[2], o[3]);
    act_t *const dqkv = o[0], *const dout = o[4], *const out = dout + M * I;
    attention_backward(k->dev, dqkv, dqkv + I, dqkv + 2 * I, o[5], dout, out, o[1], &attention);
}

static void run_cross_attention_forward(const KernelRun *k, void *const *o)
{
    const Attention attention = bench_cross_attention(k, o[2], o[3]);
    attention_forward(k->dev, o[0], o[1], &attention);
}

static void run_cross_attention_backward(const KernelRun *k, void *const *o)
{
    const size_t I = k->config->num_heads * k->config->d_kv, M = k->batch->target.rows, N = k->batch->source.rows;
    const Attention attention = bench_cross_attention(k, o[2], o[3]);
    act_t *const dq = o[0], *const dkv = dq + M * I, *const dout = dkv + N * 2 * I, *const out = dout + M * I;
    attention_backward(k->dev, dq, dkv, dkv + I, NULL, dout, out, o[1], &attention);
}

static void run_attention_cached(const KernelRun *k, void *const *o)
{
    const size_t rows = k->kernel->rows, steps = k->kernel->in;
    attention_cached_forward(k->dev, o[0], o[1], o[2], rows, steps, steps, rows, k->config->num_heads, k->config->d_kv,
                             o[3], k->batch->target_bucket, k->config->buckets);
}

/* Forward two products of queries x keys x d_kv for each head, backward five: the scores again, and the gradients of
 * probabilities, q, k and v. The softmax is not counted. */
static void add_attention(KernelList *list)
{
    const T5Config *c = list->config;
    const Batch *batch = list->batch;
    const size_t N = batch->source.rows, M = batch->target.rows, H = c->num_heads, I = H * c->d_kv,
                 S = batch->source.longest, T = batch->target.longest, bias = c->buckets * H, rows = batch->count;
    const double self = 2.0 * (double)(N * S) * (double)I, cross = 2.0 * (double)(M * S) * (double)I;
    Kernel *k = kernel_add(list, "attention forward", run_attention_forward, N, I, 0, 2 * self);
    operand_out(k, ACTIVATIONS, N * I);
    operand_out(k, STATS, H * N);
    operand_in(k, ACTIVATIONS, N * 3 * I);
    operand_in(k, WEIGHTS, bias);
    k = kernel_add(list, "attention backward", run_attention_backward, N, I, 0, 5 * self);
    operand_out(k, ACTIVATIONS, N * 3 * I);
    operand_in(k, STATS, H * N);
    operand_in(k, ACTIVATIONS, N * 3 * I);
    operand_in(k, WEIGHTS, bias);
    operand_in(k, ACTIVATIONS, 2 * N * I); /* dout, out */
    operand_in_out(k, STATS, bias);
    k = kernel_add(list, "cross attention forward", run_cross_attention_forward, M, I, 0, 2 * cross);
    operand_out(k, ACTIVATIONS, M * I);
    operand_out(k, STATS, H * M);
    operand_in(k, ACTIVATIONS, M * I);
    operand_in(k, ACTIVATIONS, N * 2 * I);
    k = kernel_add(list, "cross attention backward", run_cross_attention_backward, M, I, 0, 5 * cross);
    operand_add(k, ACTIVATIONS, M * I + N * 2 * I + 2 * M * I, 2 * M * I, M * I + N * 2 * I); /* dq, dkv; dout, out */
    operand_in(k, STATS, H * M);
    operand_in(k, ACTIVATIONS, M * I);
    operand_in(k, ACTIVATIONS, N * 2 * I);
    k = kernel_add(list, "attention, decoding", run_attention_cached, rows, T, 0, 4.0 * (double)(rows * T * I));
    operand_out(k, ACTIVATIONS, rows * I);
    operand_add(k, ACTIVATIONS, T * rows * 3 * I, T * rows * 2 * I + rows * I, 0);
    operand_in(k, INDICES, rows * T);
    operand_in(k, WEIGHTS, bias);
    k->index_run = T; /* a row's past is its own */
    for (size_t i = 1; i <= 5; i++) list->kernels[list->count - i].matmul = true;
}

/* --- one number at a time */

static const Sequences *kernel_sequences(const KernelRun *k)
{
    return k->kernel->target ? &k->batch->target : &k->batch->source;
}

static void run_rmsnorm_forward(const KernelRun *k, void *const *o)
{
    rmsnorm_forward(k->dev, o[0], o[1], o[2], o[3], k->kernel->rows, k->kernel->in, 1e-6f);
}

static void run_rmsnorm_backward(const KernelRun *k, void *const *o)
{
    rmsnorm_backward(k->dev, o[0], o[1], o[2], o[3], o[4], o[5], k->kernel->rows, k->kernel->in);
}

static void run_mlp_forward(const KernelRun *k, void *const *o)
{
    const Dropout dropout = bench_dropout(0.1f);
    mlp_activation_forward(k->dev, k->config->mlp, o[0], o[1], kernel_sequences(k), k->config->d_ff, &dropout);
}

static void run_mlp_backward(const KernelRun *k, void *const *o)
{
    const Dropout dropout = bench_dropout(0.1f);
    mlp_activation_backward(k->dev, k->config->mlp, o[0], o[1], o[2], kernel_sequences(k), k->config->d_ff, &dropout);
}

static void run_dropout(const KernelRun *k, void *const *o)
{
    const Dropout dropout = bench_dropout(0.1f);
    dropout_forward(k->dev, o[0], kernel_sequences(k), k->kernel->in, &dropout);
}

static void run_residual_forward(const KernelRun *k, void *const *o)
{
    const Dropout dropout = bench_dropout(0.1f);
    residual_forward(k->dev, o[0], o[1], o[2], kernel_sequences(k), k->kernel->in, &dropout);
}

static void run_residual_backward(const KernelRun *k, void *const *o)
{
    const Dropout dropout = bench_dropout(0.1f);
    residual_backward(k->dev, o[0], o[1], kernel_sequences(k), k->kernel->in, &dropout);
}

static void run_scale(const KernelRun *k, void *const *o)
{
    scale_forward(k->dev, o[0], 1, k->kernel->rows * k->kernel->in);
}

static void run_embedding_forward(const KernelRun *k, void *const *o)
{
    embedding_forward(k->dev, o[0], o[1], NULL, k->batch->source_ids, k->kernel->rows, k->kernel->in);
}

static void run_embedding_backward(const KernelRun *k, void *const *o)
{
    embedding_backward(k->dev, o[0], o[1], k->batch->source_first, k->batch->source_rows_of, k->batch->n_touched,
                       k->kernel->in);
}

/* The operations of an element stand beside each kernel: those of its formula in promot.c. */
static void add_elementwise(KernelList *list)
{
    const T5Config *c = list->config;
    const size_t N = list->batch->source.rows, D = c->d_model, F = c->d_ff, U = list->batch->n_touched,
                 A = c->mlp == MLP_GATED_GELU ? 2 * F : F;
    const double each = (double)(N * D), hidden = (double)(N * F);
    const bool gated = c->mlp == MLP_GATED_GELU;
    Kernel *k = kernel_add(list, "rmsnorm forward", run_rmsnorm_forward, N, D, 0, 4 * each);
    operand_out(k, ACTIVATIONS, N * D);
    operand_out(k, STATS, N);
    operand_in(k, ACTIVATIONS, N * D);
    operand_in(k, WEIGHTS, D);
    k = kernel_add(list, "rmsnorm backward", run_rmsnorm_backward, N, D, 0, 10 * each);
    operand_in_out(k, ACTIVATIONS, N * D);
    operand_in_out(k, STATS, D);
    operand_in(k, ACTIVATIONS, N * D);
    operand_in(k, ACTIVATIONS, N * D);
    operand_in(k, STATS, N);
    operand_in(k, WEIGHTS, D);
    k = kernel_add(list, gated ? "gated gelu forward" : "relu forward", run_mlp_forward, N, F, 0,
                   (gated ? 9 : 2) * hidden);
    operand_out(k, ACTIVATIONS, N * F);
    operand_in(k, ACTIVATIONS, N * A);
    k = kernel_add(list, gated ? "gated gelu backward" : "relu backward", run_mlp_backward, N, F, 0,
                   (gated ? 19 : 2) * hidden);
    operand_out(k, ACTIVATIONS, N * A);
    operand_in(k, ACTIVATIONS, N * F);
    operand_in(k, ACTIVATIONS, N * A);
    k = kernel_add(list, "dropout", run_dropout, N, D, 0, each);
    operand_in_out(k, ACTIVATIONS, N * D);
    k = kernel_add(list, "residual forward", run_residual_forward, N, D, 0, 2 * each);
    operand_out(k, ACTIVATIONS, N * D);
    operand_in(k, ACTIVATIONS, N * D);
    operand_in(k, ACTIVATIONS, N * D);
    k = kernel_add(list, "residual backward", run_residual_backward, N, D, 0, each);
    operand_out(k, ACTIVATIONS, N * D);
    operand_in(k, ACTIVATIONS, N * D);
    k = kernel_add(list, "scale", run_scale, N, D, 0, each);
    operand_in_out(k, ACTIVATIONS, N * D);
    k = kernel_add(list, "embedding forward", run_embedding_forward, N, D, 0, 0);
    operand_out(k, ACTIVATIONS, N * D);
    operand_add(k, WEIGHTS, c->vocab_size * D, N * D, 0);
    k = kernel_add(list, "embedding backward", run_embedding_backward, N, D, 0, each);
    operand_in_out(k, STATS, U * D);
    operand_in(k, ACTIVATIONS, N * D);
}

/* --- the vocabulary */

/* The operand that the gradient of the logits goes to: the logits', where both are of one type. */
enum { LOGITS_GRADIENT = sizeof(act_t) == sizeof(logit_t) ? 0 : 2 };

static void run_cross_entropy(const KernelRun *k, void *const *o)
{
    const LossSettings settings = {.label_smoothing = 0.1f, .z_loss = 1e-4f, .scale = 1};
    softmax_cross_entropy(k->dev, o[1], o[LOGITS_GRADIENT], o[0], k->batch->targets, k->kernel->rows, k->kernel->in,
                          &settings);
}

enum { TOP_WORDS = 8 }; /* twice the 4 beams */

static void run_top_words(const KernelRun *k, void *const *o)
{
    head_top_log_probabilities(k->dev, o[0], o[1], o[2], o[3], o[4], k->kernel->rows, k->kernel->in, k->kernel->out,
                               TOP_WORDS);
}

static void add_vocabulary(KernelList *list)
{
    const size_t V = list->config->vocab_size, D = list->config->d_model;
    const size_t rows = logits_rows(list->config, list->batch->target.rows, 0);
    const size_t decoding = min_size(32, rows);
    Kernel *k = kernel_add(list, "softmax cross-entropy", run_cross_entropy, rows, V, 0, 7.0 * (double)(rows * V));
    if (LOGITS_GRADIENT)
        operand_in(k, STATS, rows * V);
    else
        operand_in_out(k, STATS, rows * V);
    operand_out(k, STATS, rows);
    if (LOGITS_GRADIENT) operand_out(k, ACTIVATIONS, rows * V);
    k = kernel_add(list, "head, best words", run_top_words, decoding, D, V,
                   (2.0 * (double)D + 4) * (double)(decoding * V));
    k->matmul = true;
    operand_out(k, STATS, decoding * TOP_WORDS);
    operand_out(k, INDICES, decoding * TOP_WORDS);
    operand_out(k, STATS, decoding * V);
    operand_in(k, ACTIVATIONS, decoding * D);
    operand_in(k, WEIGHTS, V * D);
}

/* --- Adafactor, LoRA, sums */

static const AdafactorStep bench_update = {
    .learning_rate = 1e-3, .alpha = 0.01, .clip = 1, .epsilon1 = 1e-30, .epsilon2 = 1e-3, .scale_by_parameter = true};

static void run_adafactor(const KernelRun *k, void *const *o)
{
    const bool factored = is_factored(k->kernel->rows, k->kernel->in, false);
    const SecondMoment moment = {.row = factored ? o[2] : NULL,
                                 .column = factored ? (stat_t *)o[2] + k->kernel->rows : NULL,
                                 .whole = factored ? NULL : o[2],
                                 .row_squares = factored ? o[3] : NULL};
    adafactor_update(k->dev, o[0], o[1], &moment, k->kernel->rows, k->kernel->in, &bench_update);
}

static void run_adafactor_rows(const KernelRun *k, void *const *o)
{
    const size_t V = k->config->vocab_size, D = k->config->d_model;
    const SecondMoment moment = {.row = o[2], .column = o[3], .row_squares = o[4]};
    adafactor_update_rows(k->dev, o[0], o[1], k->batch->touched, k->batch->n_touched, &moment, V, D, &bench_update);
}

enum { BENCH_RANK = 8 };

static void run_lora_merge(const KernelRun *k, void *const *o)
{
    lora_merge_forward(k->dev, o[0], o[1], o[2], o[3], k->kernel->rows, k->kernel->in, BENCH_RANK, 1);
}

static void run_lora_backward(const KernelRun *k, void *const *o)
{
    lora_backward(k->dev, o[0], o[1], o[2], o[3], o[4], k->kernel->rows, k->kernel->in, BENCH_RANK, 1);
}

static void run_sum_of_squares(const KernelRun *k, void *const *o)
{
    rows_sum_of_squares(k->dev, o[0], o[1], k->kernel->rows, k->kernel->in);
}

static void run_dot_product(const KernelRun *k, void *const *o)
{
    dot_product(k->dev, o[0], o[1], o[2], k->kernel->rows * k->kernel->in);
}

static void add_weights(KernelList *list)
{
    const T5Config *c = list->config;
    const size_t V = c->vocab_size, D = c->d_model, F = c->d_ff, U = list->batch->n_touched, R = BENCH_RANK;
    const double weights = (double)(V * D), touched = (double)(U * D), product = 2.0 * (double)R * (double)(F * D);
    const size_t moments = is_factored(V, D, false) ? V + D : V * D;
    Kernel *k = kernel_add(list, "Adafactor", run_adafactor, V, D, 0, 11 * weights);
    operand_in_out(k, EXACT_WEIGHTS, V * D);
    operand_add(k, STATS, V * D, 2 * V * D, 0);
    operand_in_out(k, STATS, moments);
    if (is_factored(V, D, false)) operand_in_out(k, STATS, V); /* the rows' sums of squares */
    if (is_factored(V, D, false)) {
        k = kernel_add(list, "Adafactor, rows", run_adafactor_rows, U, D, 0, 11 * touched);
        operand_add(k, EXACT_WEIGHTS, V * D, U * D, U * D);
        operand_add(k, STATS, U * D, 2 * U * D, 0);
        operand_in_out(k, STATS, V);
        operand_in_out(k, STATS, D);
        operand_add(k, STATS, V, V, U); /* the rows' sums of squares */
    }
    k = kernel_add(list, "LoRA merge", run_lora_merge, F, D, 0, product + (double)(2 * F * D));
    operand_out(k, EXACT_WEIGHTS, F * D);
    operand_in(k, EXACT_WEIGHTS, F * D);
    operand_in(k, EXACT_WEIGHTS, R * D);
    operand_in(k, EXACT_WEIGHTS, F * R);
    k = kernel_add(list, "LoRA backward", run_lora_backward, F, D, 0, 2 * product);
    operand_in_out(k, STATS, R * D);
    operand_in_out(k, STATS, F * R);
    operand_in(k, STATS, F * D);
    operand_in(k, EXACT_WEIGHTS, R * D);
    operand_in(k, EXACT_WEIGHTS, F * R);
    k = kernel_add(list, "sums of squares", run_sum_of_squares, V, D, 0, 2 * weights);
    operand_out(k, STATS, V);
    operand_in(k, EXACT_WEIGHTS, V * D);
    k = kernel_add(list, "dot product", run_dot_product, F, D, 0, (double)(2 * F * D));
    operand_out(k, STATS, sizeof(double) / sizeof(stat_t));
    operand_in(k, STATS, F * D);
    operand_in(k, STATS, F * D);
}

static void kernels_list(KernelList *list, const T5Config *config, const Batch *batch)
{
    list->config = config;
    list->batch = batch;
    list->count = 0;
    add_matmuls(list);
    add_attention(list);
    add_elementwise(list);
    add_vocabulary(list);
    add_weights(list);
}

/* --- operands */

enum { FILL_WIDTH = 64, FILL_ROWS = 4096 }; /* random numbers are drawn once and repeated */

/* Fills memory of whole FILL_WIDTHs. Activations come from an embedding, the one kernel that makes them of weights. */
static int fill_activations(Device *dev, act_t *to, size_t elements, const float *numbers, Error *error)
{
    const size_t rows = elements / FILL_WIDTH;
    weight_t *table = weights_alloc(FILL_ROWS * FILL_WIDTH);
    int32_t *ids = device_alloc(rows * sizeof *ids), *host = host_alloc(rows, sizeof *host);
    int status = table && ids ? 0 : error_set(error, EXIT_FAILED, "memory: no room for a kernel's operands");
    for (size_t r = 0; r < rows; r++) host[r] = (int32_t)(r % FILL_ROWS);
    if (!status) {
        weights_upload(dev, table, numbers, FILL_ROWS * FILL_WIDTH);
        device_upload(dev, ids, host, rows * sizeof *ids);
        embedding_forward(dev, to, table, NULL, ids, rows, FILL_WIDTH);
    }
    free(host);
    device_free(ids);
    weights_free(table);
    return status;
}

/* Numbers between 0.5 and 1.5: second moments must be positive. Activations and weights are less 1. */
static int fill_operand(Device *dev, void *to, const KernelOperand *operand, size_t elements, size_t index_run,
                        Error *error)
{
    enum { NUMBERS = FILL_WIDTH * FILL_ROWS };
    const float shift = operand->kind == STATS ? 0.5f : -0.5f;
    float *numbers = host_alloc(NUMBERS, sizeof *numbers);
    int status = 0;
    for (size_t i = 0; i < NUMBERS; i++) numbers[i] = (float)(random_mix(i) >> 40) * 0x1p-24f + shift;
    if (operand->kind == ACTIVATIONS) status = fill_activations(dev, to, elements, numbers, error);
    for (size_t first = 0; operand->kind != ACTIVATIONS && first < elements; first += NUMBERS) {
        const size_t n = min_size(NUMBERS, elements - first);
        int32_t *indices = (int32_t *)(void *)numbers;
        for (size_t i = 0; operand->kind == INDICES && i < n; i++)
            indices[i] = (int32_t)(min_size(first + i, operand->elements - 1) / index_run);
        if (is_weights(operand)) weights_upload(dev, (weight_t *)to + first, numbers, n);
        if (operand->kind == STATS) stats_upload(dev, (stat_t *)to + first, numbers, n);
        if (operand->kind == INDICES) device_upload(dev, (int32_t *)to + first, indices, n * sizeof *indices);
    }
    free(numbers);
    return status;
}

static size_t operand_elements(const KernelOperand *operand)
{
    return (operand->elements + FILL_WIDTH - 1) / FILL_WIDTH * FILL_WIDTH;
}

static void kernel_operands_free(KernelRun *k)
{
    for (size_t s = 0; s < k->n_sets; s++)
        for (size_t i = 0; i < k->kernel->n_operands; i++)
            if (is_weights(&k->kernel->operands[i]))
                weights_free(k->operands[s][i]);
            else
                device_free(k->operands[s][i]);
}

/* Lays out and fills the sets of operands, to be freed also where there was no memory for all. Only what waits for
 * memory needs more than one. */
static int kernel_operands(KernelRun *k, bool waits_for_memory, Error *error)
{
    const Kernel *kernel = k->kernel;
    const KernelBytes bytes = kernel_bytes(kernel);
    const size_t touched = (size_t)(bytes.read + bytes.written), available = device_memory_available();
    size_t set = 0;
    for (size_t i = 0; i < kernel->n_operands; i++)
        set += operand_elements(&kernel->operands[i]) * operand_size(&kernel->operands[i]);
    k->n_sets = waits_for_memory ? min_size(2 * last_level_cache() / touched + 1, MOST_SETS) : 1;
    if (available) k->n_sets = max_size(1, min_size(k->n_sets, available / 2 / set));
    for (size_t s = 0; s < k->n_sets; s++)
        for (size_t i = 0; i < kernel->n_operands; i++) {
            const KernelOperand *operand = &kernel->operands[i];
            const size_t n = operand_elements(operand);
            void *memory = is_weights(operand) ? (void *)weights_alloc(n) : device_alloc(n * operand_size(operand));
            k->operands[s][i] = memory;
            if (!memory)
                return error_set(error, EXIT_FAILED, "memory: no room for the operands of %s (%zu MB)", kernel->name,
                                 set >> 20);
            if (fill_operand(k->dev, memory, operand, n, kernel->index_run, error)) return -1;
        }
    return 0;
}

static void run_kernel(void *context)
{
    KernelRun *k = context;
    k->kernel->run(k, k->operands[k->next]);
    device_wait(k->dev);
    k->next = (k->next + 1) % k->n_sets;
}

static int measure_kernel(const Bench *bench, KernelRun *k, const char *dtype, cJSON *rows, Error *error)
{
    const Kernel *kernel = k->kernel;
    const KernelBytes each = kernel_bytes(kernel);
    const double bytes = each.read + each.written, peak = peak_rate(bench, dtype, bench->threads),
                 bound = bound_seconds(bench, dtype, bench->threads, kernel->flops, each.read, each.written);
    const bool waits = kernel->flops / peak < bound;
    cJSON *row;
    Timing t;
    if (kernel_operands(k, waits, error)) {
        kernel_operands_free(k);
        return -1;
    }
    t = time_calls(run_kernel, k, bench->repeats ? bench->repeats : bench->quick ? 3 : 7, bench->quick ? 0.002 : 0.02);
    kernel_operands_free(k);
    row = cJSON_CreateObject();
    cJSON_AddItemToArray(rows, row);
    cJSON_AddStringToObject(row, "model", bench->name);
    cJSON_AddStringToObject(row, "kernel", kernel->name);
    cJSON_AddStringToObject(row, "shape", kernel->shape);
    cJSON_AddStringToObject(row, "dtype", dtype);
    cJSON_AddNumberToObject(row, "threads", bench->threads);
    cJSON_AddNumberToObject(row, "flops", kernel->flops);
    cJSON_AddNumberToObject(row, "bytes_read", each.read);
    cJSON_AddNumberToObject(row, "bytes_written", each.written);
    cJSON_AddNumberToObject(row, "bytes", bytes);
    add_timing(row, t);
    cJSON_AddNumberToObject(row, "flops_per_second", kernel->flops / t.median);
    cJSON_AddNumberToObject(row, "bytes_per_second", bytes / t.median);
    cJSON_AddNumberToObject(row, "bound_seconds", bound);
    cJSON_AddStringToObject(row, "bound", waits ? "memory" : "arithmetic");
    cJSON_AddBoolToObject(row, "in_cache", waits && bytes * (double)k->n_sets < (double)last_level_cache());
    cJSON_AddNumberToObject(row, "share", bound / t.median);
    return 0;
}

/* All kernels in one precision; in bf16 only those that differ. */
static int measure_kernels(const Bench *bench, const void *dtype, cJSON *result, Error *error)
{
    const bool bf16 = strcmp(dtype, "bf16") == 0;
    Device *dev = device_open(bench->threads, bf16 ? MATMUL_BF16 : MATMUL_FP32, error);
    Model model = {.config = bench->config, .dev = dev};
    cJSON *rows = cJSON_AddArrayToObject(result, "rows");
    KernelList list = {0};
    Batch batch = {0};
    BenchExamples e;
    int32_t *touched;
    size_t n_touched;
    int status = 0;
    if (!dev) return -1;
    examples_even(&e, &bench->config, bench->batch, bench->input_length, bench->target_length, -1);
    touched = touched_ids(&bench->config, e.examples, e.count, &n_touched);
    status = batch_build(&batch, &model, e.examples, e.count, 0, 0, 0, touched, n_touched, error);
    if (!status) kernels_list(&list, &bench->config, &batch);
    for (size_t i = 0; !status && i < list.count; i++) {
        KernelRun k = {.kernel = &list.kernels[i], .dev = dev, .config = &bench->config, .batch = &batch};
        if (bf16 && !list.kernels[i].matmul) continue;
        status = measure_kernel(bench, &k, dtype, rows, error);
    }
    free(touched);
    examples_free(&e);
    batch_free(&batch);
    device_close(dev);
    return status;
}

/* --- the peaks of a card */

#ifdef PROMOT_GPU
/* A card's ceilings, from its own large product and its own copy. (gpu/bench.cu holds the products against the vendor's
 * library.) */
enum { PEAK_SIDE = 8192 };

typedef struct {
    Device *dev;
    act_t *x, *y;
    weight_t *w;
} PeakProduct;

static void run_peak_product(void *context)
{
    const PeakProduct *p = context;
    linear_forward(p->dev, p->y, p->x, p->w, PEAK_SIDE, PEAK_SIDE, PEAK_SIDE);
    device_wait(p->dev);
}

static void run_peak_copy(void *context)
{
    const PeakProduct *p = context;
    device_copy(p->dev, p->y, p->x, (size_t)PEAK_SIDE * PEAK_SIDE * sizeof *p->x);
    device_wait(p->dev);
}

static int measure_peaks(const Bench *bench, const void *what, cJSON *result, Error *error)
{
    const size_t n = (size_t)PEAK_SIDE * PEAK_SIDE, repeats = bench->quick ? 5 : 11;
    const char *const streams[] = {"read", "copy", "update"};
    cJSON *rows = cJSON_AddArrayToObject(result, "rows");
    PeakProduct p = {.dev = device_open(bench->threads, MATMUL_BF16, error)};
    int status = -1;
    (void)what;
    if (!p.dev) return -1;
    p.x = device_alloc(n * sizeof *p.x);
    p.y = device_alloc(n * sizeof *p.y);
    p.w = weights_alloc(n);
    if (p.x && p.y && p.w) {
        const KernelOperand activations = {.kind = ACTIVATIONS, .elements = n}, weights = {WEIGHTS, n, n, 0};
        status = fill_operand(p.dev, p.x, &activations, n, 1, error);
        if (!status) status = fill_operand(p.dev, p.w, &weights, n, 1, error);
    } else {
        error_set(error, EXIT_FAILED, "memory: no room for a product of %d x %d", PEAK_SIDE, PEAK_SIDE);
    }
    if (!status)
        add_peak(rows, "bf16", bench->threads, 2.0 * PEAK_SIDE * (double)n,
                 time_calls(run_peak_product, &p, repeats, 0.05), "FLOP/s");
    for (size_t s = 0; !status && s < sizeof streams / sizeof *streams; s++)
        add_peak(rows, streams[s], bench->threads, 2.0 * (double)(n * sizeof *p.x),
                 time_calls(run_peak_copy, &p, repeats, 0.01), "B/s");
    device_free(p.x);
    device_free(p.y);
    weights_free(p.w);
    device_close(p.dev);
    return status;
}
#endif

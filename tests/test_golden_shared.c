/* test_golden_shared.c: promot's logits against numbers that T5X and Hugging Face computed, published as .npz files
 * (shared fixtures, golden/; their NOTES.txt says how the members are to be read, but for one thing: the v1.0 file's
 * logits come from its lm_head, unscaled, not from a tied head). Skipped when they are not there.
 *
 * Each file's weights are written as a Hugging Face directory, row for row of its batch: `dump` always starts the
 * decoder with token 0, while these decoder inputs start with any token x. So the directory of a row has x's embedding
 * as row 0, which nothing else reads: the encoder never sees 0, and the head is another matrix. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"

#include "../data/files.h"
#include "parity.h"

#define SCRATCH "build/test/golden_shared"

/* The files' own distance from an exact evaluation, 4.7e-6 of numbers of size 1 to 5 (NOTES.txt), and that of fp32. */
static const double LOGITS_LIMIT = 1e-5;
static const double LOSS_LIMIT = 1e-6;

/* ----------------------------------------------------------------------------------------------------------------
 * .npz: a zip of .npy members, here all of them stored, not compressed */

typedef struct {
    MappedFile file;
    char path[512];
} Npz;

typedef struct {
    const unsigned char *data; /* little-endian float32, int32 or float64 */
    size_t n_dims, shape[4], numel;
} Array;

static uint32_t little_endian(const unsigned char *bytes, size_t count)
{
    uint32_t value = 0;
    for (size_t i = 0; i < count; i++) value |= (uint32_t)bytes[i] << (8 * i);
    return value;
}

/* Reads "'descr': '<f4', … 'shape': (2, 3), }". False when it is not a C-ordered array of such numbers. */
static bool parse_npy(const unsigned char *npy, size_t bytes, Array *out)
{
    size_t header = bytes < 10 || memcmp(npy, "\x93NUMPY", 6) != 0 ? 0 : little_endian(npy + 8, 2);
    char text[512] = {0}, *shape;
    size_t item;
    if (header == 0 || header >= sizeof text || 10 + header > bytes) return false;
    memcpy(text, npy + 10, header);
    item = strstr(text, "'<f8'") ? 8 : 4;
    if ((item == 4 && !strstr(text, "'<f4'") && !strstr(text, "'<i4'")) || strstr(text, "'fortran_order': True"))
        return false;
    shape = strstr(text, "'shape': (");
    if (!shape) return false;
    shape += strlen("'shape': (");
    *out = (Array){.data = npy + 10 + header, .numel = 1};
    while (*shape >= '0' && *shape <= '9' && out->n_dims < 4) {
        out->shape[out->n_dims] = strtoul(shape, &shape, 10);
        out->numel *= out->shape[out->n_dims++];
        shape += strspn(shape, ", ");
    }
    return 10 + header + item * out->numel <= bytes;
}

/* Finds a member through the zip's central directory: 46 bytes and three fields of variable length an entry. */
static bool npz_find(const Npz *npz, const char *name, Array *out)
{
    const unsigned char *data = npz->file.data, *entry, *local;
    size_t bytes = npz->file.bytes, length = strlen(name), entries, at;
    if (bytes < 22) return false;
    entries = little_endian(data + bytes - 22 + 10, 2); /* the end record: these archives have no comment behind it */
    at = little_endian(data + bytes - 22 + 16, 4);
    for (size_t i = 0; i < entries && at + 46 <= bytes; i++) {
        size_t name_length, start, size;
        entry = data + at;
        name_length = little_endian(entry + 28, 2);
        size = little_endian(entry + 24, 4);
        at += 46 + name_length + little_endian(entry + 30, 2) + little_endian(entry + 32, 2);
        if (name_length != length + 4 || memcmp(entry + 46, name, length) != 0) continue;
        if (memcmp(entry + 46 + length, ".npy", 4) != 0 || little_endian(entry + 10, 2) != 0) continue;
        start = little_endian(entry + 42, 4);
        if (start + 30 > bytes) return false;
        local = data + start;
        start += 30 + little_endian(local + 26, 2) + little_endian(local + 28, 2);
        return start + size <= bytes && parse_npy(data + start, size, out);
    }
    return false;
}

static float array_float(const Array *array, size_t i)
{
    float value;
    memcpy(&value, array->data + 4 * i, 4);
    return value;
}

static int32_t array_int(const Array *array, size_t i)
{
    return (int32_t)little_endian(array->data + 4 * i, 4);
}

/* ----------------------------------------------------------------------------------------------------------------
 * From their names to Hugging Face's */

/* How a tensor is stored there. T5X stores every kernel as (in, out). The other two files store attention as
 * (d, heads, d_kv), input and output side alike, q multiplied by sqrt(d_kv) = 2, and the tables as they are here. */
typedef enum { PLAIN, KERNEL, TABLE, ATTENTION_Q, ATTENTION_IN, ATTENTION_OUT } Kind;

typedef struct {
    const char *hugging_face, *t5x, *hf; /* names; the middle of those that a layer has */
    Kind kind;
} Rule;

static const Rule WHOLE_MODEL[] = {
    {"shared.weight", "params/token_embedder/embedding", "params/shared_token_emb/weight", PLAIN},
    {"lm_head.weight", "params/decoder/logits_dense/kernel", "params/decoder/lm_head/weight", TABLE},
    {"encoder.final_layer_norm.weight", "params/encoder/encoder_norm/scale", "params/encoder/output/norm/scale", PLAIN},
    {"decoder.final_layer_norm.weight", "params/decoder/decoder_norm/scale", "params/decoder/output_norm/scale", PLAIN},
    {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "params/encoder/relpos_bias/rel_embedding",
     "params/encoder/relative_pos_emb/emb/weight", TABLE},
    {"decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "params/decoder/relpos_bias/rel_embedding",
     "params/decoder/relative_pos_emb/emb/weight", TABLE},
};

/* Members of another stack or of the other MLP are not there, and are passed over. */
static const Rule LAYER[] = {
    {"encoder 0.layer_norm", "pre_attention_layer_norm/scale", "self_attention/norm/scale", PLAIN},
    {"encoder 0.SelfAttention.q", "attention/query/kernel", "self_attention/attention/i_proj/q_proj/weight",
     ATTENTION_Q},
    {"encoder 0.SelfAttention.k", "attention/key/kernel", "self_attention/attention/i_proj/k_proj/weight",
     ATTENTION_IN},
    {"encoder 0.SelfAttention.v", "attention/value/kernel", "self_attention/attention/i_proj/v_proj/weight",
     ATTENTION_IN},
    {"encoder 0.SelfAttention.o", "attention/out/kernel", "self_attention/attention/o_proj/weight", ATTENTION_OUT},
    {"encoder 1.layer_norm", "pre_mlp_layer_norm/scale", "feed_forward/norm/scale", PLAIN},
    {"encoder 1.DenseReluDense.wi", "mlp/wi/kernel", "feed_forward/linear1/weight", KERNEL},
    {"encoder 1.DenseReluDense.wi_0", "mlp/wi_0/kernel", "feed_forward/linear1_0/weight", KERNEL},
    {"encoder 1.DenseReluDense.wi_1", "mlp/wi_1/kernel", "feed_forward/linear1_1/weight", KERNEL},
    {"encoder 1.DenseReluDense.wo", "mlp/wo/kernel", "feed_forward/linear2/weight", KERNEL},
    {"decoder 0.layer_norm", "pre_self_attention_layer_norm/scale", "self_attention/norm/scale", PLAIN},
    {"decoder 0.SelfAttention.q", "self_attention/query/kernel", "self_attention/attention/i_proj/q_proj/weight",
     ATTENTION_Q},
    {"decoder 0.SelfAttention.k", "self_attention/key/kernel", "self_attention/attention/i_proj/k_proj/weight",
     ATTENTION_IN},
    {"decoder 0.SelfAttention.v", "self_attention/value/kernel", "self_attention/attention/i_proj/v_proj/weight",
     ATTENTION_IN},
    {"decoder 0.SelfAttention.o", "self_attention/out/kernel", "self_attention/attention/o_proj/weight", ATTENTION_OUT},
    {"decoder 1.layer_norm", "pre_cross_attention_layer_norm/scale", "cross_attention/norm/scale", PLAIN},
    {"decoder 1.EncDecAttention.q", "encoder_decoder_attention/query/kernel",
     "cross_attention/attention/i_proj/q_proj/weight", ATTENTION_Q},
    {"decoder 1.EncDecAttention.k", "encoder_decoder_attention/key/kernel",
     "cross_attention/attention/i_proj/k_proj/weight", ATTENTION_IN},
    {"decoder 1.EncDecAttention.v", "encoder_decoder_attention/value/kernel",
     "cross_attention/attention/i_proj/v_proj/weight", ATTENTION_IN},
    {"decoder 1.EncDecAttention.o", "encoder_decoder_attention/out/kernel", "cross_attention/attention/o_proj/weight",
     ATTENTION_OUT},
    {"decoder 2.layer_norm", "pre_mlp_layer_norm/scale", "feed_forward/norm/scale", PLAIN},
    {"decoder 2.DenseReluDense.wi", "mlp/wi/kernel", "feed_forward/linear1/weight", KERNEL},
    {"decoder 2.DenseReluDense.wi_0", "mlp/wi_0/kernel", "feed_forward/linear1_0/weight", KERNEL},
    {"decoder 2.DenseReluDense.wi_1", "mlp/wi_1/kernel", "feed_forward/linear1_1/weight", KERNEL},
    {"decoder 2.DenseReluDense.wo", "mlp/wo/kernel", "feed_forward/linear2/weight", KERNEL},
};

enum { COUNT_WHOLE = sizeof WHOLE_MODEL / sizeof *WHOLE_MODEL, COUNT_LAYER = sizeof LAYER / sizeof *LAYER };
enum { MAX_TENSORS = 256 };

/* One published file: what its config says, and where inputs and results are in it. */
typedef struct {
    const char *file, *config;
    const char *source, *decoder_inputs, *labels, *logits, *loss; /* loss: the mean over the labels, or NULL */
    bool t5x;
    size_t layers, mlp_inputs, vocabulary; /* mlp_inputs: wi_0 and wi_1, or wi */
} Golden;

#define CONFIG(MODEL, VOCABULARY, D, HEADS, D_FF, LAYERS, MLP)                                                         \
    "{\"model_type\": \"" MODEL "\", \"vocab_size\": " VOCABULARY ", \"d_model\": " D                                  \
    ", \"d_kv\": 4, \"num_heads\": " HEADS ", \"d_ff\": " D_FF ", \"num_layers\": " LAYERS                             \
    ", \"num_decoder_layers\": " LAYERS ", \"feed_forward_proj\": \"" MLP                                              \
    "\", \"tie_word_embeddings\": false, \"layer_norm_epsilon\": 1e-6, "                                               \
    "\"relative_attention_num_buckets\": 32, \"relative_attention_max_distance\": 128, \"is_encoder_decoder\": true, " \
    "\"pad_token_id\": 0, \"eos_token_id\": 1, \"decoder_start_token_id\": 0}\n"

static const Golden T5X_V1_1 = {
    .file = "t5x_v1_1_d16_l4", .config = CONFIG("mt5", "48", "16", "4", "64", "4", "gated-gelu"),
    .source = "source_ids", .decoder_inputs = "target_ids", .labels = "target_labels", .logits = "outputs",
    .t5x = true, .layers = 4, .mlp_inputs = 2, .vocabulary = 48,
};
static const Golden HF_V1_1 = {
    .file = "hf_v1_1_d12_l2", .config = CONFIG("t5", "128", "12", "3", "32", "2", "gated-gelu"),
    .source = "inputs/source_ids", .decoder_inputs = "inputs/target_ids", .labels = "inputs/target_labels",
    .logits = "outputs/ref_logits", .layers = 2, .mlp_inputs = 2, .vocabulary = 128,
};
static const Golden HF_V1_0 = {
    .file = "hf_v1_0_d12_l2", .config = CONFIG("t5", "128", "12", "3", "48", "2", "relu"),
    .source = "inputs/source_ids", .decoder_inputs = "inputs/target_ids", .labels = "inputs/target_labels",
    .logits = "outputs/ref_logits", .loss = "outputs/ref_loss", .layers = 2, .mlp_inputs = 1, .vocabulary = 128,
};

/* ----------------------------------------------------------------------------------------------------------------
 * Writing a Hugging Face directory */

typedef struct {
    TensorSpec specs[MAX_TENSORS];
    char names[MAX_TENSORS][96];
    float *values[MAX_TENSORS];
    size_t count;
} Weights;

static void npz_weights_free(Weights *weights)
{
    for (size_t i = 0; i < weights->count; i++) free(weights->values[i]);
    free(weights);
}

/* The shape in Hugging Face's layout (out, in), and whether the stored order is (in, out). */
static bool is_transposed(const Golden *golden, Kind kind, const Array *array, size_t *rows, size_t *columns)
{
    *rows = array->shape[0];
    *columns = array->numel / array->shape[0];
    if (golden->t5x) return kind != PLAIN;
    return kind == KERNEL || kind == ATTENTION_Q || kind == ATTENTION_IN;
}

/* Adds a member as a tensor; nothing when the file has no such member. */
static void add_tensor(Weights *weights, const Golden *golden, const Npz *npz, const char *name, const char *member,
                       Kind kind)
{
    Array array;
    size_t rows, columns, at = weights->count;
    bool transposed;
    float scale = kind == ATTENTION_Q && !golden->t5x ? 0.5F : 1.0F;
    if (!npz_find(npz, member, &array) || at == MAX_TENSORS) return;
    transposed = is_transposed(golden, kind, &array, &rows, &columns);
    weights->values[at] = malloc(array.numel * sizeof(float));
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            weights->values[at][transposed ? j * rows + i : i * columns + j] =
                scale * array_float(&array, i * columns + j);
    snprintf(weights->names[at], sizeof weights->names[at], "%s", name);
    weights->specs[at] = (TensorSpec){weights->names[at],
                                      DTYPE_F32,
                                      array.n_dims > 1 ? 2 : 1,
                                      {transposed ? columns : rows, transposed ? rows : columns}};
    weights->count++;
}

static Weights *read_weights(const Golden *golden, const Npz *npz)
{
    Weights *weights = calloc(1, sizeof *weights);
    char name[128], member[160];
    for (const Rule *rule = WHOLE_MODEL; rule < WHOLE_MODEL + COUNT_WHOLE; rule++)
        add_tensor(weights, golden, npz, rule->hugging_face, golden->t5x ? rule->t5x : rule->hf, rule->kind);
    for (size_t layer = 0; layer < golden->layers; layer++)
        for (size_t i = 0; i < COUNT_LAYER; i++) {
            const Rule *rule = &LAYER[i];
            snprintf(name, sizeof name, "%.7s.block.%zu.layer.%s.weight", rule->hugging_face, layer,
                     rule->hugging_face + 8);
            snprintf(member, sizeof member,
                     golden->t5x ? "params/%.7s/layers_%zu/%s" : "params/%.7s/transformer/layer%zu/%s",
                     rule->hugging_face, layer, golden->t5x ? rule->t5x : rule->hf);
            add_tensor(weights, golden, npz, name, member, rule->kind);
        }
    return weights;
}

static bool write_safetensors(const char *path, const TensorSpec *specs, const void *const *data, size_t count)
{
    Error error = {0};
    SafetensorsWriter *writer = safetensors_create(path, specs, count, &error);
    int code = writer ? 0 : -1;
    for (size_t i = 0; code == 0 && i < count; i++) {
        size_t bytes = dtype_bytes(specs[i].dtype);
        for (size_t d = 0; d < specs[i].n_dims; d++) bytes *= specs[i].shape[d];
        code = safetensors_append(writer, data[i], bytes, &error);
        if (code) safetensors_abandon(writer);
    }
    if (code == 0) code = safetensors_commit(writer, &error);
    CHECK(code == 0, "%s: %s", path, error.text);
    return code == 0;
}

/* Row 0 of the embedding becomes that of the token which the decoder starts with. */
static bool write_model(const Golden *golden, const Npz *npz, int32_t decoder_start)
{
    Weights *weights = read_weights(golden, npz);
    float *embedding = weights->values[0]; /* shared.weight is the first of WHOLE_MODEL */
    size_t expected = COUNT_WHOLE + golden->layers * (COUNT_LAYER - 6 + 2 * golden->mlp_inputs);
    Error error = {0};
    bool written = false;
    CHECK(weights->count == expected, "%s: %zu tensors (expected %zu)", golden->file, weights->count, expected);
    if (weights->count == expected) {
        size_t width = weights->specs[0].shape[1];
        memcpy(embedding, embedding + (size_t)decoder_start * width, width * sizeof *embedding);
        written = directory_create(SCRATCH "/model", &error) == 0 &&
                  file_write_text(SCRATCH "/model/config.json", golden->config, &error) == 0 &&
                  write_safetensors(SCRATCH "/model/model.safetensors", weights->specs,
                                    (const void *const *)weights->values, weights->count);
    }
    CHECK(written, "%s", error.text);
    npz_weights_free(weights);
    return written;
}

/* ----------------------------------------------------------------------------------------------------------------
 * Comparing */

/* One row of a published batch: its source and labels up to the padding, and where its decoder starts. */
typedef struct {
    int32_t source[64], labels[64], start;
    size_t source_length, labels_length;
} Row;

static Row read_row(const Array *source, const Array *inputs, const Array *labels, size_t row)
{
    Row out = {.start = array_int(inputs, row * inputs->shape[1])};
    for (size_t i = 0; i < source->shape[1] && i < 64 && array_int(source, row * source->shape[1] + i) > 0; i++)
        out.source[out.source_length++] = array_int(source, row * source->shape[1] + i);
    for (size_t i = 0; i < labels->shape[1] && i < 64 && array_int(labels, row * labels->shape[1] + i) > 0; i++)
        out.labels[out.labels_length++] = array_int(labels, row * labels->shape[1] + i);
    return out;
}

/* promot's logits [labels, vocabulary] for one row, to be freed. NULL when it failed. */
static float *promot_logits(const Golden *golden, const Npz *npz, const Row *row)
{
    size_t n = row->labels_length;
    TensorSpec specs[2] = {{"input_ids", DTYPE_I32, 2, {1, row->source_length}}, {"labels", DTYPE_I32, 2, {1, n}}};
    Checkpoint *out = NULL;
    const StoredTensor *logits;
    float *found = NULL;
    int code;
    if (!write_model(golden, npz, row->start)) return NULL;
    if (!write_safetensors(SCRATCH "/batch.safetensors", specs, (const void *[]){row->source, row->labels}, 2))
        return NULL;
    code = run_promot("dump --quiet --model " SCRATCH "/model --batch " SCRATCH "/batch.safetensors --out " SCRATCH
                      "/out.safetensors",
                      NULL);
    CHECK(code == 0, "%s: exit code %d", golden->file, code);
    if (code == 0) out = open_checked(SCRATCH "/out.safetensors");
    logits = out ? checkpoint_find(out, "logits") : NULL;
    CHECK(logits && logits->numel == n * golden->vocabulary, "%s: no logits of the right size", golden->file);
    if (logits && logits->numel == n * golden->vocabulary) found = tensor_floats(logits);
    checkpoint_close(out);
    return found;
}

/* -log softmax(logits)[label], summed over the labels. */
static double cross_entropy(const float *logits, const Row *row, size_t vocabulary)
{
    double sum = 0;
    for (size_t i = 0; i < row->labels_length; i++) {
        double z = 0;
        for (size_t j = 0; j < vocabulary; j++) z += exp((double)logits[i * vocabulary + j]);
        sum += log(z) - logits[i * vocabulary + (size_t)row->labels[i]];
    }
    return sum;
}

/* Compares one row, and adds its cross-entropy and number of labels. */
static void compare_row(const Golden *golden, const Npz *npz, const Row *row, size_t number, const Array *expected,
                        double *entropy, size_t *labels)
{
    size_t n = row->labels_length * golden->vocabulary, first = number * expected->shape[1] * golden->vocabulary;
    float *found = promot_logits(golden, npz, row);
    double *difference = malloc((n + 1) * sizeof *difference), *wanted = malloc((n + 1) * sizeof *wanted), error;
    if (found) {
        for (size_t i = 0; i < n; i++) {
            wanted[i] = array_float(expected, first + i);
            difference[i] = found[i] - wanted[i];
        }
        error = norm(difference, n) / norm(wanted, n);
        CHECK(error <= LOGITS_LIMIT, "%s, row %zu: logits are off by %.2e (limit %.0e)", golden->file, number, error,
              LOGITS_LIMIT);
        *entropy += cross_entropy(found, row, golden->vocabulary);
        *labels += row->labels_length;
    }
    free(found);
    free(difference);
    free(wanted);
}

static void compare_file(const Golden *golden)
{
    Npz npz = {0};
    Array source, inputs, labels, logits, loss;
    Error error = {0};
    double entropy = 0;
    size_t count = 0;
    if (!test_shared()) SKIP("the shared fixtures are not there");
    snprintf(npz.path, sizeof npz.path, "%.400s/golden/%s.npz", test_shared(), golden->file);
    CHECK(mapped_file_open(&npz.file, npz.path, &error) == 0, "%s", error.text);
    if (npz_find(&npz, golden->source, &source) && npz_find(&npz, golden->decoder_inputs, &inputs) &&
        npz_find(&npz, golden->labels, &labels) && npz_find(&npz, golden->logits, &logits)) {
        for (size_t i = 0; i < source.shape[0]; i++) {
            Row row = read_row(&source, &inputs, &labels, i);
            compare_row(golden, &npz, &row, i, &logits, &entropy, &count);
        }
        CHECK(count > 0, "%s: nothing was compared", golden->file);
    } else
        CHECK(false, "%s: a member is missing", npz.path);
    if (golden->loss && npz_find(&npz, golden->loss, &loss)) {
        double wanted;
        memcpy(&wanted, loss.data, sizeof wanted);
        CHECK(fabs(entropy / (double)count - wanted) <= LOSS_LIMIT * wanted, "%s: loss %.8f (expected %.8f)",
              golden->file, entropy / (double)count, wanted);
    }
    mapped_file_close(&npz.file);
}

static void test_t5x_v1_1(void)
{
    compare_file(&T5X_V1_1);
}

static void test_hf_v1_1(void)
{
    compare_file(&HF_V1_1);
}

static void test_hf_v1_0(void)
{
    compare_file(&HF_V1_0);
}

static const Test tests[] = {
    {"T5X's own logits, v1.1", test_t5x_v1_1},
    {"Hugging Face's logits, v1.1", test_hf_v1_1},
    {"Hugging Face's logits and loss, v1.0", test_hf_v1_0},
};
TEST_MAIN(tests)

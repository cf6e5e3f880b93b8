/* prompt_file.c: soft prompts on disk. See prompt_file.h.
 *
 * A PEFT adapter (peft/tuners/prompt_tuning) is a directory: adapter_config.json says what was trained, and
 * adapter_model.safetensors holds one tensor, "prompt_embeddings" [num_transformer_submodules * num_virtual_tokens,
 * token_dim]. For an encoder-decoder PEFT stores two submodules by default, and its forward pass puts the first
 * num_virtual_tokens rows in front of the encoder's input; the others are never used. promot writes one submodule.
 *
 * A .npy file (numpy/lib/format.py) is:
 *
 *     0   93 'NUMPY'
 *     6   the version: 1 0, 2 0 or 3 0
 *     8   the header's length, little-endian: 2 bytes in version 1, 4 bytes in the others
 *     10  (12) the header: a Python dictionary as text, padded with spaces and ended by a newline
 *         {'descr': '<f4', 'fortran_order': False, 'shape': (100, 512), }
 *     then the numbers
 *
 * The T5X prompt-tuning code saves its prompts with numpy.save, under names without a suffix; hence a .npy file is
 * known by its first bytes. */
#include "prompt_file.h"
#include "checkpoint_internal.h"

#include <math.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

/* 2^28 numbers are a gigabyte; the paper's largest prompt is 100 x 4096. A larger one is a damaged file. */
static const size_t PROMPT_MAX_NUMBERS = (size_t)1 << 28;

static const char CONFIG_NAME[] = "adapter_config.json";
static const char TENSOR_NAME[] = "prompt_embeddings";

static int prompt_error(Error *error, const char *path, const char *what)
{
    return error_set(error, EXIT_FAILED, "%.700s: %s", path, what);
}

static int prompt_check_size(size_t length, size_t width, const char *path, Error *error)
{
    size_t numbers;
    if (length > 0 && width > 0 && !__builtin_mul_overflow(length, width, &numbers) && numbers <= PROMPT_MAX_NUMBERS)
        return 0;
    return error_set(error, EXIT_FAILED, "%.700s: has an impossible size for a soft prompt (%zu x %zu)", path, length,
                     width);
}

/* A prompt with a NaN makes every output NaN, long after anybody would think of the file. */
static int prompt_check_finite(const float *rows, size_t length, size_t width, const char *path, Error *error)
{
    for (size_t i = 0; i < length * width; i++)
        if (!isfinite(rows[i]))
            return error_set(error, EXIT_FAILED, "%.700s: row %zu, column %zu of the prompt is %s", path, i / width,
                             i % width, isnan(rows[i]) ? "NaN" : "infinite");
    return 0;
}

/* The first `length` rows of a stored matrix. */
static int rows_read(const StoredTensor *tensor, size_t length, float **rows, Error *error)
{
    size_t width = tensor->shape[1];
    if (prompt_check_size(length, width, tensor->file, error) != 0) return -1;
    float *read = malloc(length * width * sizeof *read);
    if (!read) return checkpoint_no_memory(error, tensor->file);
    int status = stored_tensor_read_float(tensor, 0, length * width, read, error);
    if (status == 0) status = prompt_check_finite(read, length, width, tensor->file, error);
    if (status == 0)
        *rows = read;
    else
        free(read);
    return status;
}

/* -------------------------------------------------------------------------------------------------------------- npy */

static const char NPY_MAGIC[] = "\x93NUMPY";
enum { NPY_MAGIC_BYTES = 6, NPY_ALIGNMENT = 64 };

/* What the header of a .npy file says, and a place in its text while it is parsed. */
typedef struct {
    const char *at, *end;
    size_t item_bytes; /* 4 or 8; 0: not said yet */
    size_t length, width;
    bool has_order, has_shape;
} NpyHeader;

/* The parser below takes what Python's literal syntax allows in these three entries, and nothing else. */
static void npy_skip_spaces(NpyHeader *header)
{
    while (header->at < header->end && strchr(" \t\r\n", *header->at) && *header->at) header->at++;
}

/* Steps over the text if it comes next. */
static bool npy_accept(NpyHeader *header, const char *text)
{
    size_t length = strlen(text);
    npy_skip_spaces(header);
    if ((size_t)(header->end - header->at) < length || memcmp(header->at, text, length) != 0) return false;
    header->at += length;
    return true;
}

/* A Python string without escapes, in either kind of quotes. */
static bool npy_string(NpyHeader *header, char *text, size_t room)
{
    npy_skip_spaces(header);
    if (header->at == header->end || (*header->at != '\'' && *header->at != '"')) return false;
    const char *start = header->at + 1;
    const char *stop = memchr(start, *header->at, (size_t)(header->end - start));
    if (!stop || (size_t)(stop - start) >= room) return false;
    memcpy(text, start, (size_t)(stop - start));
    text[stop - start] = '\0';
    header->at = stop + 1;
    return true;
}

/* A whole number without sign; false when there is none, or when it overflows. */
static bool npy_number(NpyHeader *header, size_t *number)
{
    npy_skip_spaces(header);
    const char *start = header->at;
    *number = 0;
    for (; header->at < header->end && *header->at >= '0' && *header->at <= '9'; header->at++)
        if (__builtin_mul_overflow(*number, 10, number) || __builtin_add_overflow(*number, *header->at - '0', number))
            return false;
    bool good = header->at > start;
    npy_accept(header, "L"); /* Python 2 */
    return good;
}

/* One "key: value" of the dictionary; what is wrong with it, or NULL. */
static const char *npy_entry(NpyHeader *header)
{
    char key[16], type[16];
    if (!npy_string(header, key, sizeof key) || !npy_accept(header, ":")) return "its header is not a dictionary";
    if (strcmp(key, "descr") == 0 && header->item_bytes == 0) {
        bool read = npy_string(header, type, sizeof type);
        header->item_bytes = read && strcmp(type, "<f4") == 0 ? 4 : read && strcmp(type, "<f8") == 0 ? 8 : 0;
        return header->item_bytes ? NULL : "its numbers are not '<f4' or '<f8'";
    }
    if (strcmp(key, "fortran_order") == 0 && !header->has_order) {
        header->has_order = true;
        return npy_accept(header, "False") ? NULL : "it is in Fortran order (expected fortran_order False)";
    }
    if (strcmp(key, "shape") == 0 && !header->has_shape) {
        header->has_shape = npy_accept(header, "(") && npy_number(header, &header->length) && npy_accept(header, ",") &&
                            npy_number(header, &header->width) && (npy_accept(header, ","), npy_accept(header, ")"));
        return header->has_shape ? NULL : "its shape is not of two dimensions";
    }
    return "its header has an unknown or repeated key";
}

/* The whole dictionary; what is wrong with it, or NULL. A comma may follow the last entry. */
static const char *npy_parse(NpyHeader *header)
{
    if (!npy_accept(header, "{")) return "its header is not a dictionary";
    while (!npy_accept(header, "}")) {
        const char *wrong = npy_entry(header);
        if (wrong) return wrong;
        if (npy_accept(header, ",")) continue;
        if (!npy_accept(header, "}")) return "its header is not a dictionary";
        break;
    }
    if (header->item_bytes == 0 || !header->has_order || !header->has_shape) return "its header is incomplete";
    return NULL;
}

/* Finds the header; *data is where the numbers begin. */
static int npy_header(NpyHeader *header, const MappedFile *file, size_t *data, Error *error)
{
    unsigned version = file->bytes >= 8 ? file->data[6] : 1;
    size_t start = version == 1 ? 10 : 12;
    if (version < 1 || version > 3)
        return error_set(error, EXIT_FAILED, "%.700s: is of an unknown npy version (expected 1, 2 or 3, found %u)",
                         file->path, version);
    if (file->bytes < start) return prompt_error(error, file->path, "is truncated in its header");
    size_t length = version == 1 ? read_u16(file->data + 8) : read_u32(file->data + 8);
    if (length > file->bytes - start) return prompt_error(error, file->path, "is truncated in its header");
    header->at = (const char *)file->data + start;
    header->end = header->at + length;
    *data = start + length;
    const char *wrong = npy_parse(header);
    return wrong ? prompt_error(error, file->path, wrong) : 0;
}

/* The numbers are a stored tensor like any other, once the header is understood. */
static int npy_read(const MappedFile *file, float **rows, size_t *length, size_t *width, Error *error)
{
    NpyHeader header = {0};
    size_t start = 0;
    if (npy_header(&header, file, &start, error) != 0) return -1;
    if (prompt_check_size(header.length, header.width, file->path, error) != 0) return -1;
    size_t wanted = header.length * header.width * header.item_bytes;
    if (wanted != file->bytes - start)
        return error_set(error, EXIT_FAILED, "%.700s: has the wrong size (expected %zu bytes of numbers, found %zu)",
                         file->path, wanted, file->bytes - start);
    StoredTensor tensor = {.file = file->path,
                           .name = "",
                           .dtype = header.item_bytes == 4 ? DTYPE_F32 : DTYPE_F64,
                           .n_dims = 2,
                           .shape = {header.length, header.width},
                           .strides = {header.width, 1},
                           .numel = header.length * header.width,
                           .data = file->data + start};
    *length = header.length;
    *width = header.width;
    return rows_read(&tensor, header.length, rows, error);
}

/* The bytes are the same as numpy.save's: the header is padded so that the numbers begin at a multiple of 64. */
int npy_write(const char *path, const float *rows, size_t length, size_t width, Error *error)
{
    char header[256] = {0};
    int used = snprintf(header + 10, sizeof header - 10,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", length, width);
    size_t total = ((size_t)used + 10 + 1 + NPY_ALIGNMENT - 1) / NPY_ALIGNMENT * NPY_ALIGNMENT;
    memset(header + 10 + used, ' ', total - 10 - (size_t)used);
    header[total - 1] = '\n';
    memcpy(header, NPY_MAGIC, NPY_MAGIC_BYTES);
    header[6] = 1; /* version 1.0 */
    header[8] = (char)((total - 10) & 0xff);
    header[9] = (char)((total - 10) >> 8);
    AtomicFile *file = atomic_file_create(path, error);
    if (!file) return -1;
    if (atomic_file_write(file, header, total, error) != 0 ||
        atomic_file_write(file, rows, length * width * sizeof *rows, error) != 0) {
        atomic_file_abandon(file);
        return -1;
    }
    return atomic_file_commit(file, error);
}

/* ----------------------------------------------------------------------------------------------------- PEFT: reading
 */

/* What a reader needs of adapter_config.json; 0 where it is null. */
typedef struct {
    size_t tokens, token_dim, submodules;
} AdapterConfig;

/* A positive whole number of the config, or 0 for null where that is allowed. */
static int config_number(const cJSON *config, const char *key, bool may_be_null, size_t *number, const char *path,
                         Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);
    double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
    *number = 0;
    if (may_be_null && (!item || cJSON_IsNull(item))) return 0;
    if (!(value >= 1 && value <= (double)PROMPT_MAX_NUMBERS) || value != floor(value))
        return error_set(error, EXIT_FAILED, "%.700s: its \"%s\" is not a positive whole number", path, key);
    *number = (size_t)value;
    return 0;
}

/* adapter_config.json has more members, which say how the prompt was trained; reading needs these four. */
static int config_parse(const MappedFile *file, AdapterConfig *result, Error *error)
{
    cJSON *config = json_parse((const char *)file->data, file->bytes);
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(config, "peft_type");
    int status = 0;
    *result = (AdapterConfig){0};
    if (!cJSON_IsObject(config))
        status = prompt_error(error, file->path, "is not a JSON object");
    else if (!cJSON_IsString(type) || strcmp(type->valuestring, "PROMPT_TUNING") != 0)
        status = error_set(error, EXIT_FAILED,
                           "%.500s: is not of a soft prompt (expected peft_type PROMPT_TUNING, "
                           "found %.100s)",
                           file->path, cJSON_IsString(type) ? type->valuestring : "none");
    if (status == 0) status = config_number(config, "num_virtual_tokens", false, &result->tokens, file->path, error);
    if (status == 0) status = config_number(config, "token_dim", false, &result->token_dim, file->path, error);
    if (status == 0)
        status = config_number(config, "num_transformer_submodules", true, &result->submodules, file->path, error);
    cJSON_Delete(config);
    return status;
}

static int config_read(const char *directory, AdapterConfig *config, Error *error)
{
    MappedFile file;
    char *path = path_join(directory, CONFIG_NAME);
    if (!path) return checkpoint_no_memory(error, directory);
    int status = mapped_file_open(&file, path, error);
    if (status == 0) {
        status = config_parse(&file, config, error);
        mapped_file_close(&file);
    }
    free(path);
    return status;
}

/* The tensor has the rows of one submodule, or of as many as the config says (null: two, PEFT's default). */
static int adapter_check(const Checkpoint *adapter, const AdapterConfig *config, const char *directory,
                         const StoredTensor **tensor, Error *error)
{
    *tensor = checkpoint_find(adapter, TENSOR_NAME);
    if (!*tensor) return error_set(error, EXIT_FAILED, "%.700s: has no tensor %s", directory, TENSOR_NAME);
    const StoredTensor *found = *tensor;
    size_t submodules = config->submodules ? config->submodules : 2;
    if (found->n_dims != 2)
        return error_set(error, EXIT_FAILED,
                         "%.700s: tensor %s: has the wrong shape (expected 2 dimensions, found %zu)", found->file,
                         TENSOR_NAME, found->n_dims);
    bool one = found->shape[0] == config->tokens;
    bool several = found->shape[0] % submodules == 0 && found->shape[0] / submodules == config->tokens;
    if ((one || several) && found->shape[1] == config->token_dim) return 0;
    return error_set(error, EXIT_FAILED,
                     "%.700s: tensor %s: does not fit %s (expected %zu x %zu, or %zu times the rows, found %zu x %zu)",
                     found->file, TENSOR_NAME, CONFIG_NAME, config->tokens, config->token_dim, submodules,
                     found->shape[0], found->shape[1]);
}

static int adapter_read(const char *directory, float **rows, size_t *length, size_t *width, Error *error)
{
    AdapterConfig config = {0};
    const StoredTensor *tensor;
    if (config_read(directory, &config, error) != 0) return -1;
    Checkpoint *adapter = adapter_open(directory, "soft prompt", error);
    if (!adapter) return -1;
    int status = adapter_check(adapter, &config, directory, &tensor, error);
    if (status == 0) status = rows_read(tensor, config.tokens, rows, error);
    if (status == 0) {
        *length = config.tokens;
        *width = config.token_dim;
    }
    checkpoint_close(adapter);
    return status;
}

/* A torch or safetensors file that holds nothing but the prompt. */
static int tensor_file_read(const char *path, float **rows, size_t *length, size_t *width, Error *error)
{
    Checkpoint *checkpoint = checkpoint_open(path, error);
    if (!checkpoint) return -1;
    const StoredTensor *tensor = checkpoint_count(checkpoint) == 1 ? checkpoint_at(checkpoint, 0) : NULL;
    int status = tensor && tensor->n_dims == 2
                     ? rows_read(tensor, tensor->shape[0], rows, error)
                     : prompt_error(error, path, "is not a soft prompt (expected one tensor of two dimensions)");
    if (status == 0) {
        *length = tensor->shape[0];
        *width = tensor->shape[1];
    }
    checkpoint_close(checkpoint);
    return status;
}

int prompt_file_read(const char *path, float **rows, size_t *length, size_t *width, Error *error)
{
    MappedFile file;
    *rows = NULL;
    *length = *width = 0;
    if (path_is_directory(path)) return adapter_read(path, rows, length, width, error);
    if (mapped_file_open(&file, path, error) != 0) return -1;
    bool is_npy = file.bytes >= NPY_MAGIC_BYTES && memcmp(file.data, NPY_MAGIC, NPY_MAGIC_BYTES) == 0;
    bool is_tensor_file = torch_recognised(&file) || (file.bytes > 8 && file.data[8] == '{');
    int status = is_npy ? npy_read(&file, rows, length, width, error)
                        : error_set(error, EXIT_FAILED,
                                    "%.700s: is not a soft prompt (expected a PEFT directory or a NumPy file)", path);
    mapped_file_close(&file);
    return is_tensor_file ? tensor_file_read(path, rows, length, width, error) : status;
}

/* ----------------------------------------------------------------------------------------------------- PEFT: writing
 */

/* A JSON string, or null; NULL when there is no memory. Freed by cJSON_free. */
static char *json_text(const char *text)
{
    cJSON *item = text ? cJSON_CreateString(text) : cJSON_CreateNull();
    char *printed = item ? cJSON_PrintUnformatted(item) : NULL;
    cJSON_Delete(item);
    return printed;
}

/* PEFT sorts the keys and indents by two. */
static const char CONFIG_FORMAT[] = "{\n"
                                    "  \"auto_mapping\": null,\n"
                                    "  \"base_model_name_or_path\": %s,\n"
                                    "  \"inference_mode\": true,\n"
                                    "  \"modules_to_save\": null,\n"
                                    "  \"num_attention_heads\": %zu,\n"
                                    "  \"num_layers\": %zu,\n"
                                    "  \"num_transformer_submodules\": 1,\n"
                                    "  \"num_virtual_tokens\": %zu,\n"
                                    "  \"peft_type\": \"PROMPT_TUNING\",\n"
                                    "  \"peft_version\": null,\n"
                                    "  \"prompt_tuning_init\": %s,\n"
                                    "  \"prompt_tuning_init_text\": %s,\n"
                                    "  \"revision\": null,\n"
                                    "  \"task_type\": \"SEQ_2_SEQ_LM\",\n"
                                    "  \"token_dim\": %zu,\n"
                                    "  \"tokenizer_kwargs\": null,\n"
                                    "  \"tokenizer_name_or_path\": %s\n"
                                    "}";

static char *format_config(size_t length, const PromptInfo *info)
{
    char *model = json_text(info->base_model), *init = json_text(info->init ? info->init : "RANDOM");
    char *init_text = json_text(info->init_text), *text = NULL;
    if (model && init && init_text) {
        /* PEFT refuses the initialiser TEXT without the name of a tokenizer. */
        const char *tokenizer = info->init && strcmp(info->init, "TEXT") == 0 ? model : "null";
        size_t room = sizeof CONFIG_FORMAT + 2 * strlen(model) + strlen(init) + strlen(init_text) + 4 * 20;
        text = malloc(room);
        if (text)
            snprintf(text, room, CONFIG_FORMAT, model, info->num_attention_heads, info->num_layers, length, init,
                     init_text, info->token_dim, tokenizer);
    }
    cJSON_free(model);
    cJSON_free(init);
    cJSON_free(init_text);
    return text;
}

/* adapter_model.safetensors. */
static int write_tensor(const char *path, const float *rows, size_t length, size_t width, Error *error)
{
    TensorSpec spec = {.name = TENSOR_NAME, .dtype = DTYPE_F32, .n_dims = 2, .shape = {length, width}};
    SafetensorsWriter *writer = safetensors_create(path, &spec, 1, error);
    if (!writer) return -1;
    if (safetensors_append(writer, rows, length * width * sizeof *rows, error) != 0) {
        safetensors_abandon(writer);
        return -1;
    }
    return safetensors_commit(writer, error);
}

/* The config comes last: a directory that has one is complete. */
int prompt_file_write(const char *directory, const float *rows, size_t length, const PromptInfo *info, Error *error)
{
    if (directory_create(directory, error) != 0) return -1;
    char *tensor_path = path_join(directory, "adapter_model.safetensors");
    char *config_path = path_join(directory, CONFIG_NAME);
    char *config = format_config(length, info);
    int status = tensor_path && config_path && config ? 0 : checkpoint_no_memory(error, directory);
    if (status == 0) status = write_tensor(tensor_path, rows, length, info->token_dim, error);
    if (status == 0) status = file_write_text(config_path, config, error);
    free(config);
    free(config_path);
    free(tensor_path);
    return status;
}

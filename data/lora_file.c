/* lora_file.c: LoRA adapters on disk. See lora_file.h.
 *
 * A PEFT adapter (peft/tuners/lora) is a directory: adapter_config.json says what was trained, and
 * adapter_model.safetensors holds two tensors for each module,
 *
 *     base_model.model.MODULE.lora_A.weight [r, in]      base_model.model.MODULE.lora_B.weight [out, r]
 *
 * The config has some forty members by now. Most of them say how the adapter was trained; a few change what the two
 * tensors mean, and an adapter that uses one of these is refused: whoever ignored them would compute something else. */
#include "lora_file.h"
#include "checkpoint_internal.h"

#include <math.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

static const char LORA_CONFIG_NAME[] = "adapter_config.json";
static const char NAME_PREFIX[] = "base_model.model.";
static const char A_SUFFIX[] = ".lora_A.weight", B_SUFFIX[] = ".lora_B.weight";

/* 2^28 numbers are a gigabyte, for one matrix; a larger one is a damaged file. */
static const size_t LORA_MAX_NUMBERS = (size_t)1 << 28;
static const size_t LORA_MAX_RANK = (size_t)1 << 16;

void lora_file_free(LoraFile *lora)
{
    for (size_t i = 0; i < lora->count; i++) {
        free(lora->modules[i].name);
        free(lora->modules[i].a);
        free(lora->modules[i].b);
    }
    free(lora->modules);
    memset(lora, 0, sizeof *lora);
}

/* --------------------------------------------------------------------------------------------- reading: the config */

/* Members that must be null, false or empty: what they ask for is not in A and B. */
static const char *const NOT_SUPPORTED[] = {
    "use_dora",          "use_qalora",        "use_bdlora",    "lora_bias",
    "modules_to_save",   "layer_replication", "arrow_config",  "trainable_token_indices",
    "rank_pattern",      "alpha_pattern",     "kasa_config",   "alora_invocation_tokens",
    "target_parameters", "monteclora_config", "velora_config", "megatron_config",
};

/* null, false, [], {} or not there at all. */
static bool is_unused(const cJSON *item)
{
    return !item || cJSON_IsNull(item) || cJSON_IsFalse(item) ||
           ((cJSON_IsArray(item) || cJSON_IsObject(item)) && cJSON_GetArraySize(item) == 0);
}

/* Ways to begin that leave W0 as it is. The others (PiSSA, OLoRA, CorDA, LoftQ …) train beside another W0, which is not
 * that of the model's directory. */
static bool leaves_base_alone(const cJSON *init)
{
    static const char *const names[] = {"gaussian", "eva", "orthogonal"};
    bool known = !init || cJSON_IsNull(init) || cJSON_IsBool(init);
    for (size_t i = 0; cJSON_IsString(init) && i < sizeof names / sizeof *names; i++)
        known |= strcmp(init->valuestring, names[i]) == 0;
    return known;
}

static int lora_config_check(const cJSON *config, const char *path, Error *error)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(config, "peft_type");
    const cJSON *bias = cJSON_GetObjectItemCaseSensitive(config, "bias");
    const cJSON *init = cJSON_GetObjectItemCaseSensitive(config, "init_lora_weights");
    if (!cJSON_IsObject(config)) return error_set(error, EXIT_FAILED, "%.700s: is not a JSON object", path);
    if (!cJSON_IsString(type) || strcmp(type->valuestring, "LORA") != 0)
        return error_set(error, EXIT_FAILED, "%.600s: is not of a LoRA (expected peft_type LORA, found %.100s)", path,
                         cJSON_IsString(type) ? type->valuestring : "none");
    for (size_t i = 0; i < sizeof NOT_SUPPORTED / sizeof *NOT_SUPPORTED; i++)
        if (!is_unused(cJSON_GetObjectItemCaseSensitive(config, NOT_SUPPORTED[i])))
            return error_set(error, EXIT_FAILED, "%.700s: uses %s, which is not supported (expected null or false)",
                             path, NOT_SUPPORTED[i]);
    if (!is_unused(bias) && !(cJSON_IsString(bias) && strcmp(bias->valuestring, "none") == 0))
        return error_set(error, EXIT_FAILED, "%.600s: trains biases (expected bias \"none\", found %.100s)", path,
                         cJSON_IsString(bias) ? bias->valuestring : "no text");
    if (!leaves_base_alone(init))
        return error_set(
            error, EXIT_FAILED,
            "%.600s: init_lora_weights changes the base model (expected true, false, \"gaussian\", \"eva\" "
            "or \"orthogonal\", found %.100s)",
            path, cJSON_IsString(init) ? init->valuestring : "no text");
    return 0;
}

static int lora_config_parse(const MappedFile *file, LoraFile *lora, Error *error)
{
    cJSON *config = json_parse((const char *)file->data, file->bytes);
    int status = lora_config_check(config, file->path, error);
    const cJSON *rank = cJSON_GetObjectItemCaseSensitive(config, "r");
    const cJSON *alpha = cJSON_GetObjectItemCaseSensitive(config, "lora_alpha");
    double r = cJSON_IsNumber(rank) ? rank->valuedouble : 0;
    if (status == 0 && (!(r >= 1 && r <= (double)LORA_MAX_RANK) || r != floor(r)))
        status = error_set(error, EXIT_FAILED, "%.700s: its \"r\" is not a rank (expected 1 to %zu)", file->path,
                           LORA_MAX_RANK);
    if (status == 0 && !(cJSON_IsNumber(alpha) && isfinite(alpha->valuedouble)))
        status = error_set(error, EXIT_FAILED, "%.700s: its \"lora_alpha\" is not a number", file->path);
    if (status == 0) {
        lora->rank = (size_t)r;
        lora->alpha = alpha->valuedouble;
        lora->rank_stabilised = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(config, "use_rslora"));
    }
    cJSON_Delete(config);
    return status;
}

static int lora_config_read(const char *directory, LoraFile *lora, Error *error)
{
    MappedFile file;
    char *path = path_join(directory, LORA_CONFIG_NAME);
    if (!path) return checkpoint_no_memory(error, directory);
    int status = mapped_file_open(&file, path, error);
    if (status == 0) {
        status = lora_config_parse(&file, lora, error);
        mapped_file_close(&file);
    }
    free(path);
    return status;
}

/* -------------------------------------------------------------------------------------------- reading: the tensors */

static int lora_tensor_error(Error *error, const StoredTensor *tensor, const char *what)
{
    return error_set(error, EXIT_FAILED, "%.500s: tensor %.300s: %s", tensor->file, tensor->name, what);
}

/* The bytes of MODULE in base_model.model.MODULE.lora_A.weight; 0 when the name is none. */
static size_t module_length(const char *name, const char *suffix)
{
    size_t prefix = strlen(NAME_PREFIX), ending = strlen(suffix), length = strlen(name);
    if (length <= prefix + ending || strncmp(name, NAME_PREFIX, prefix) != 0) return 0;
    return strcmp(name + length - ending, suffix) == 0 ? length - prefix - ending : 0;
}

/* A matrix of `rank` rows, or of `rank` columns. A matrix with a NaN makes every output NaN. */
static int lora_matrix_read(const StoredTensor *tensor, size_t rank, bool rank_is_rows, float **out, size_t *other,
                            Error *error)
{
    if (tensor->n_dims != 2) return lora_tensor_error(error, tensor, "has the wrong shape (expected 2 dimensions)");
    size_t found = rank_is_rows ? tensor->shape[0] : tensor->shape[1], numbers;
    if (found != rank)
        return error_set(error, EXIT_FAILED, "%.400s: tensor %.300s: does not fit %s (expected %zu %s, found %zu)",
                         tensor->file, tensor->name, LORA_CONFIG_NAME, rank, rank_is_rows ? "rows" : "columns", found);
    *other = rank_is_rows ? tensor->shape[1] : tensor->shape[0];
    if (*other == 0 || __builtin_mul_overflow(*other, rank, &numbers) || numbers > LORA_MAX_NUMBERS)
        return lora_tensor_error(error, tensor, "has an impossible size for a LoRA");
    *out = malloc(numbers * sizeof **out);
    if (!*out) return checkpoint_no_memory(error, tensor->file);
    if (stored_tensor_read_float(tensor, 0, numbers, *out, error) != 0) return -1;
    for (size_t i = 0; i < numbers; i++)
        if (!isfinite((*out)[i]))
            return lora_tensor_error(error, tensor, isnan((*out)[i]) ? "holds a NaN" : "holds an infinite number");
    return 0;
}

/* In name order, the two tensors of a module are neighbours. */
static int lora_module_read(LoraModule *module, const StoredTensor *a, const StoredTensor *b, size_t rank, Error *error)
{
    size_t length = module_length(a->name, A_SUFFIX);
    if (length == 0 && module_length(a->name, B_SUFFIX) > 0)
        return lora_tensor_error(error, a, "has no lora_A beside it");
    if (length == 0)
        return lora_tensor_error(error, a, "is no part of a LoRA (expected base_model.model.MODULE.lora_A.weight)");
    if (!b || module_length(b->name, B_SUFFIX) != length ||
        strncmp(a->name, b->name, strlen(NAME_PREFIX) + length) != 0)
        return lora_tensor_error(error, a, "has no lora_B beside it");
    module->name = strndup(a->name + strlen(NAME_PREFIX), length);
    if (!module->name) return checkpoint_no_memory(error, a->file);
    if (lora_matrix_read(a, rank, true, &module->a, &module->in, error) != 0) return -1;
    return lora_matrix_read(b, rank, false, &module->b, &module->out, error);
}

static int lora_modules_read(LoraFile *lora, const Checkpoint *adapter, const char *directory, Error *error)
{
    size_t count = checkpoint_count(adapter);
    if (count == 0) return error_set(error, EXIT_FAILED, "%.700s: its LoRA has no tensors", directory);
    lora->modules = calloc((count + 1) / 2, sizeof *lora->modules);
    if (!lora->modules) return checkpoint_no_memory(error, directory);
    for (size_t i = 0; i < count; i += 2) {
        const StoredTensor *b = i + 1 < count ? checkpoint_at(adapter, i + 1) : NULL;
        LoraModule *module = &lora->modules[lora->count++]; /* counted before it is whole, so that it is freed */
        if (lora_module_read(module, checkpoint_at(adapter, i), b, lora->rank, error) != 0) return -1;
    }
    return 0;
}

int lora_file_read(LoraFile *lora, const char *directory, Error *error)
{
    memset(lora, 0, sizeof *lora);
    if (!path_is_directory(directory))
        return error_set(error, EXIT_USAGE, "%.700s: is not a LoRA (expected a PEFT directory)", directory);
    int status = lora_config_read(directory, lora, error);
    Checkpoint *adapter = status == 0 ? adapter_open(directory, "LoRA", error) : NULL;
    status = adapter ? lora_modules_read(lora, adapter, directory, error) : -1;
    checkpoint_close(adapter);
    if (status != 0) lora_file_free(lora);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- writing */

/* A text as JSON, or null; false when there is no memory. */
static bool print_json_text(FILE *out, const char *text)
{
    cJSON *item = text ? cJSON_CreateString(text) : cJSON_CreateNull();
    char *printed = item ? cJSON_PrintUnformatted(item) : NULL;
    if (printed) fputs(printed, out);
    cJSON_free(printed);
    cJSON_Delete(item);
    return printed != NULL;
}

/* adapter_config.json with the members that every version of PEFT since 0.8 knows, as PEFT prints them: keys sorted,
 * indented by two. NULL when there is no memory. */
static char *lora_format_config(const LoraFile *lora, const char *base_model, const char *const *targets,
                                size_t n_targets)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return NULL;
    fputs("{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": ", out);
    bool whole = print_json_text(out, base_model);
    fputs(",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
          "  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n",
          out);
    fprintf(out, "  \"lora_alpha\": %.17g,\n  \"lora_dropout\": 0.0,\n  \"modules_to_save\": null,\n", lora->alpha);
    fprintf(out, "  \"peft_type\": \"LORA\",\n  \"r\": %zu,\n  \"rank_pattern\": {},\n  \"revision\": null,\n",
            lora->rank);
    fputs("  \"target_modules\": [\n", out);
    for (size_t i = 0; i < n_targets; i++) {
        fputs("    ", out);
        whole &= print_json_text(out, targets[i]);
        fputs(i + 1 < n_targets ? ",\n" : "\n", out);
    }
    fprintf(out, "  ],\n  \"task_type\": \"SEQ_2_SEQ_LM\",\n  \"use_rslora\": %s\n}",
            lora->rank_stabilised ? "true" : "false");
    whole &= !ferror(out);
    if (fclose(out) == 0 && whole) return text;
    free(text);
    return NULL;
}

static void lora_specs_free(TensorSpec *specs, size_t count)
{
    for (size_t i = 0; specs && i < count; i++) free((char *)specs[i].name);
    free(specs);
}

/* The specs of A and B of each module in turn. NULL when there is no memory. */
static TensorSpec *lora_specs(const LoraFile *lora)
{
    TensorSpec *specs = calloc(2 * lora->count + 1, sizeof *specs);
    for (size_t i = 0; specs && i < 2 * lora->count; i++) {
        const LoraModule *module = &lora->modules[i / 2];
        const char *suffix = i % 2 ? B_SUFFIX : A_SUFFIX;
        size_t room = strlen(NAME_PREFIX) + strlen(module->name) + strlen(suffix) + 1;
        char *name = malloc(room);
        if (!name) {
            lora_specs_free(specs, i);
            return NULL;
        }
        snprintf(name, room, "%s%s%s", NAME_PREFIX, module->name, suffix);
        specs[i] = (TensorSpec){.name = name, .dtype = DTYPE_F32, .n_dims = 2};
        specs[i].shape[0] = i % 2 ? module->out : lora->rank;
        specs[i].shape[1] = i % 2 ? lora->rank : module->in;
    }
    return specs;
}

static int lora_write_tensors(const LoraFile *lora, const char *path, Error *error)
{
    TensorSpec *specs = lora_specs(lora);
    if (!specs) return checkpoint_no_memory(error, path);
    SafetensorsWriter *writer = safetensors_create(path, specs, 2 * lora->count, error);
    int status = writer ? 0 : -1;
    for (size_t i = 0; status == 0 && i < lora->count; i++) {
        const LoraModule *module = &lora->modules[i];
        status = safetensors_append(writer, module->a, lora->rank * module->in * sizeof *module->a, error);
        if (status == 0)
            status = safetensors_append(writer, module->b, lora->rank * module->out * sizeof *module->b, error);
    }
    lora_specs_free(specs, 2 * lora->count);
    if (!writer) return -1;
    if (status == 0) return safetensors_commit(writer, error);
    safetensors_abandon(writer);
    return -1;
}

/* No reader would take them. */
static int lora_check_finite(const LoraFile *lora, const char *directory, Error *error)
{
    for (size_t i = 0; i < lora->count; i++) {
        const LoraModule *module = &lora->modules[i];
        bool finite = true;
        for (size_t k = 0; k < lora->rank * module->in; k++) finite &= isfinite(module->a[k]) != 0;
        for (size_t k = 0; k < lora->rank * module->out; k++) finite &= isfinite(module->b[k]) != 0;
        if (!finite)
            return error_set(error, EXIT_FAILED,
                             "%.600s: the LoRA of %.200s holds a number that is not finite (the training diverged)",
                             directory, module->name);
    }
    return 0;
}

/* The config comes last: a directory that has one is complete. */
int lora_file_write(const LoraFile *lora, const char *directory, const char *base_model,
                    const char *const *target_modules, size_t n_targets, Error *error)
{
    if (lora_check_finite(lora, directory, error) != 0 || directory_create(directory, error) != 0) return -1;
    char *tensor_path = path_join(directory, "adapter_model.safetensors");
    char *config_path = path_join(directory, LORA_CONFIG_NAME);
    char *config = lora_format_config(lora, base_model, target_modules, n_targets);
    int status = tensor_path && config_path && config ? 0 : checkpoint_no_memory(error, directory);
    if (status == 0) status = lora_write_tensors(lora, tensor_path, error);
    if (status == 0) status = file_write_text(config_path, config, error);
    free(config);
    free(config_path);
    free(tensor_path);
    return status;
}

/* test_lora_file.c: data/lora_file.c.
 *
 * The golden adapters are written by peft: tests/reference.py. What they hold is compared with their tensors as
 * data/safetensors.c reads them, which has tests of its own. */
#include "../data/files.c"
#include "../data/checkpoint.c"
#include "../data/safetensors.c"
#include "../data/torch_file.c"
#include "../data/lora_file.c"

#include "test.h"

#define SCRATCH "build/test/lora_file"
#define GOLDEN "tests/golden/lora"

static Error error;

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    remove(path);
    FILE *file = fopen(path, "wb");
    CHECK(file && (bytes == 0 || fwrite(data, 1, bytes, file) == bytes), "%s", path);
    if (file) fclose(file);
}

static void expect_refused(int exit_code, const char *said)
{
    LoraFile lora;
    memset(&error, 0, sizeof error);
    CHECK(lora_file_read(&lora, SCRATCH, &error) == -1, "it was read (expected: %s)", said);
    CHECK(error.exit_code == exit_code && strstr(error.text, said), "exit %d, %s (expected: %s)", error.exit_code,
          error.text, said);
    CHECK(strstr(error.text, SCRATCH), "the file is not named: %s", error.text);
    CHECK(!lora.modules && lora.count == 0, "something is left on failure");
    lora_file_free(&lora);
}

/* --------------------------------------------------------------------------------------------------- what peft wrote */

static bool tensor_holds(const Checkpoint *adapter, const char *module, const char *suffix, const float *numbers,
                         size_t rows, size_t columns)
{
    char name[256];
    float value;
    snprintf(name, sizeof name, "base_model.model.%s%s", module, suffix);
    const StoredTensor *tensor = checkpoint_find(adapter, name);
    bool same = tensor && tensor->shape[0] == rows && tensor->shape[1] == columns;
    for (size_t i = 0; same && i < rows * columns; i++)
        same = stored_tensor_read_float(tensor, i, 1, &value, &error) == 0 && memcmp(&value, &numbers[i], 4) == 0;
    return same;
}

static void reads_what_peft_wrote(void)
{
    static const struct {
        const char *name;
        size_t rank, count;
        double alpha;
        bool stabilised;
    } cases[] = {
        {"mt5_odd.q_v", 3, 12, 5, false},
        {"t5_tied.all", 5, 32, 8, false},
        {"deep_decoder.cross_mlp", 2, 10, 3, true},
        {"factored.wide", 131, 1, 16, false},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char path[256];
        LoraFile lora;
        snprintf(path, sizeof path, GOLDEN "/%s.adapter", cases[c].name);
        CHECK(lora_file_read(&lora, path, &error) == 0, "%s", error.text);
        CHECK(lora.rank == cases[c].rank && lora.count == cases[c].count && lora.rank_stabilised == cases[c].stabilised,
              "%s: rank %zu, %zu modules", path, lora.rank, lora.count);
        CHECK(!(lora.alpha < cases[c].alpha) && !(lora.alpha > cases[c].alpha), "%s: alpha %g", path, lora.alpha);
        Checkpoint *adapter = adapter_open(path, "LoRA", &error);
        CHECK(adapter && checkpoint_count(adapter) == 2 * lora.count, "%s", error.text);
        for (size_t i = 0; adapter && i < lora.count; i++) {
            const LoraModule *m = &lora.modules[i];
            CHECK(i == 0 || strcmp(lora.modules[i - 1].name, m->name) < 0, "%s is not in order", m->name);
            CHECK(tensor_holds(adapter, m->name, ".lora_A.weight", m->a, lora.rank, m->in), "A of %s", m->name);
            CHECK(tensor_holds(adapter, m->name, ".lora_B.weight", m->b, m->out, lora.rank), "B of %s", m->name);
        }
        checkpoint_close(adapter);
        lora_file_free(&lora);
    }
}

/* ----------------------------------------------------------------------------------------------------------- writing */

/* Two modules of rank 2: A and B count up in quarters. */
static float a_numbers[2 * 3], b_numbers[5 * 2];
static char q_name[] = "decoder.block.0.layer.1.EncDecAttention.q",
            o_name[] = "encoder.block.11.layer.0.SelfAttention.o";
static LoraModule two_modules[] = {{q_name, 3, 5, a_numbers, b_numbers}, {o_name, 3, 5, a_numbers, b_numbers}};
static const char *const two_targets[] = {"q", "encoder.\"o\""};

static void fill_numbers(void)
{
    for (int i = 0; i < 6; i++) a_numbers[i] = (float)i / 4;
    for (int i = 0; i < 10; i++) b_numbers[i] = -(float)i / 4;
}

static void expect_file(const char *path, const char *text)
{
    MappedFile file;
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    CHECK(file.bytes == strlen(text) && memcmp(file.data, text, file.bytes) == 0, "%.*s", (int)file.bytes,
          (const char *)file.data);
    mapped_file_close(&file);
}

static void reads_what_it_wrote(void)
{
    static const double alphas[] = {16, 1, 0.1, 1.0 / 3, -2.5e-7};
    fresh_scratch();
    fill_numbers();
    for (size_t i = 0; i < sizeof alphas / sizeof *alphas; i++) {
        const LoraFile lora = {2, 2, alphas[i], i % 2, two_modules};
        LoraFile read;
        CHECK(lora_file_write(&lora, SCRATCH "/a/b", "m", two_targets, 2, &error) == 0, "%s", error.text);
        CHECK(lora_file_read(&read, SCRATCH "/a/b", &error) == 0, "%s", error.text);
        CHECK(read.rank == 2 && read.count == 2 && read.rank_stabilised == (i % 2), "%zu, %zu", read.rank, read.count);
        CHECK(memcmp(&read.alpha, &alphas[i], sizeof read.alpha) == 0, "alpha %g", read.alpha);
        for (size_t m = 0; m < read.count; m++) {
            const LoraModule *module = &read.modules[m];
            CHECK(strcmp(module->name, two_modules[m].name) == 0 && module->in == 3 && module->out == 5, "%s",
                  module->name);
            CHECK(memcmp(module->a, a_numbers, sizeof a_numbers) == 0, "A");
            CHECK(memcmp(module->b, b_numbers, sizeof b_numbers) == 0, "B");
        }
        lora_file_free(&read);
    }
    lora_file_free(&(LoraFile){0});
}

static void writes_the_config_as_peft_does(void)
{
    const LoraFile lora = {2, 2, 16, true, two_modules};
    fresh_scratch();
    CHECK(lora_file_write(&lora, SCRATCH, "a \"base\"", two_targets, 2, &error) == 0, "%s", error.text);
    expect_file(SCRATCH "/adapter_config.json",
                "{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n"
                "  \"base_model_name_or_path\": \"a \\\"base\\\"\",\n  \"bias\": \"none\",\n"
                "  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n"
                "  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n  \"lora_alpha\": 16,\n"
                "  \"lora_dropout\": 0.0,\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": 2,\n"
                "  \"rank_pattern\": {},\n  \"revision\": null,\n  \"target_modules\": [\n    \"q\",\n"
                "    \"encoder.\\\"o\\\"\"\n  ],\n  \"task_type\": \"SEQ_2_SEQ_LM\",\n  \"use_rslora\": true\n}");
}

static void refuses_to_write_what_nobody_reads(void)
{
    const LoraFile lora = {2, 2, 16, false, two_modules};
    fresh_scratch();
    fill_numbers();
    b_numbers[9] = NAN;
    CHECK(lora_file_write(&lora, SCRATCH "/none", "m", two_targets, 1, &error) == -1 && error.exit_code == EXIT_FAILED,
          "a NaN was written");
    CHECK(strstr(error.text, q_name) && !path_exists(SCRATCH "/none"), "%s", error.text);
    b_numbers[9] = 0;
    a_numbers[0] = -INFINITY;
    CHECK(lora_file_write(&lora, SCRATCH "/none", "m", two_targets, 1, &error) == -1, "an infinity was written");
    fill_numbers();
    CHECK(file_write_text(SCRATCH "/file", "", &error) == 0);
    CHECK(lora_file_write(&lora, SCRATCH "/file", "m", two_targets, 1, &error) == -1 && error.exit_code == EXIT_USAGE);
}

/* ----------------------------------------------------------------------------------------------------------- configs */

/* An adapter that is well but for its config. */
static void write_config(const char *config)
{
    const LoraFile lora = {2, 2, 16, false, two_modules};
    CHECK(lora_file_write(&lora, SCRATCH, "m", two_targets, 1, &error) == 0, "%s", error.text);
    write_bytes(SCRATCH "/adapter_config.json", config, strlen(config));
}

#define CONFIG(more) "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4" more "}"

static void refuses_what_it_cannot_compute(void)
{
    static const struct {
        const char *config, *said;
    } cases[] = {
        {"{\"peft_type\": \"PROMPT_TUNING\", \"r\": 2, \"lora_alpha\": 4}",
         "expected peft_type LORA, found PROMPT_TUNING"},
        {"{\"r\": 2, \"lora_alpha\": 4}", "found none"},
        {"[]", "not a JSON object"},
        {"{", "not a JSON object"},
        {"", "not a JSON object"},
        {"{\"peft_type\": \"LORA\", \"lora_alpha\": 4}", "\"r\" is not a rank"},
        {"{\"peft_type\": \"LORA\", \"r\": 0, \"lora_alpha\": 4}", "\"r\" is not a rank"},
        {"{\"peft_type\": \"LORA\", \"r\": 2.5, \"lora_alpha\": 4}", "\"r\" is not a rank"},
        {"{\"peft_type\": \"LORA\", \"r\": 1e300, \"lora_alpha\": 4}", "\"r\" is not a rank"},
        {"{\"peft_type\": \"LORA\", \"r\": \"2\", \"lora_alpha\": 4}", "\"r\" is not a rank"},
        {"{\"peft_type\": \"LORA\", \"r\": 2}", "\"lora_alpha\" is not a number"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1e999}", "\"lora_alpha\" is not a number"},
        {"{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 4}", "expected 3 rows, found 2"},
        {CONFIG(", \"use_dora\": true"), "uses use_dora"},
        {CONFIG(", \"use_qalora\": true"), "uses use_qalora"},
        {CONFIG(", \"lora_bias\": true"), "uses lora_bias"},
        {CONFIG(", \"rank_pattern\": {\"q\": 8}"), "uses rank_pattern"},
        {CONFIG(", \"alpha_pattern\": {\"q\": 8}"), "uses alpha_pattern"},
        {CONFIG(", \"modules_to_save\": [\"lm_head\"]"), "uses modules_to_save"},
        {CONFIG(", \"layer_replication\": [[0, 4]]"), "uses layer_replication"},
        {CONFIG(", \"alora_invocation_tokens\": [1]"), "uses alora_invocation_tokens"},
        {CONFIG(", \"bias\": \"all\""), "expected bias \"none\", found all"},
        {CONFIG(", \"bias\": 3"), "trains biases"},
        {CONFIG(", \"init_lora_weights\": \"pissa_niter_4\""), "found pissa_niter_4"},
        {CONFIG(", \"init_lora_weights\": 1"), "changes the base model"},
    };
    fresh_scratch();
    fill_numbers();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_config(cases[i].config);
        expect_refused(EXIT_FAILED, cases[i].said);
    }
}

static void accepts_what_does_not_matter(void)
{
    static const struct {
        const char *config;
        bool stabilised;
    } cases[] = {
        {CONFIG(""), false},
        {CONFIG(", \"use_rslora\": true"), true},
        {CONFIG(", \"use_rslora\": null, \"bias\": null, \"rank_pattern\": null, \"alpha_pattern\": {}"), false},
        {CONFIG(", \"target_modules\": \".*[qv]\", \"lora_dropout\": 0.5, \"init_lora_weights\": false"), false},
        {CONFIG(", \"init_lora_weights\": \"gaussian\", \"use_dora\": false, \"modules_to_save\": []"), false},
        {CONFIG(", \"some_member_of_the_future\": 12"), false},
    };
    fresh_scratch();
    fill_numbers();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        LoraFile lora;
        write_config(cases[i].config);
        CHECK(lora_file_read(&lora, SCRATCH, &error) == 0, "%s", error.text);
        CHECK(lora.rank == 2 && lora.count == 2 && lora.rank_stabilised == cases[i].stabilised, "case %zu", i);
        lora_file_free(&lora);
    }
}

/* ----------------------------------------------------------------------------------------------------------- tensors */

#define Q "base_model.model.encoder.q"

/* Some float tensors, all zeros but for the last number. */
static void write_tensors(const TensorSpec *specs, size_t count, float last)
{
    static float numbers[64];
    SafetensorsWriter *writer = safetensors_create(SCRATCH "/adapter_model.safetensors", specs, count, &error);
    CHECK(writer != NULL, "%s", error.text);
    for (size_t i = 0; writer && i < count; i++) {
        size_t numel = 1;
        for (size_t d = 0; d < specs[i].n_dims; d++) numel *= specs[i].shape[d];
        if (numel) numbers[numel - 1] = i + 1 == count ? last : 0;
        CHECK(safetensors_append(writer, numbers, numel * dtype_bytes(specs[i].dtype), &error) == 0, "%s", error.text);
        if (numel) numbers[numel - 1] = 0;
    }
    if (writer) CHECK(safetensors_commit(writer, &error) == 0, "%s", error.text);
}

#define A_2X3                                                                                                          \
    {                                                                                                                  \
        Q ".lora_A.weight", DTYPE_F32, 2,                                                                              \
        {                                                                                                              \
            2, 3                                                                                                       \
        }                                                                                                              \
    }
#define B_5X2                                                                                                          \
    {                                                                                                                  \
        Q ".lora_B.weight", DTYPE_F32, 2,                                                                              \
        {                                                                                                              \
            5, 2                                                                                                       \
        }                                                                                                              \
    }

static void refuses_tensors_that_do_not_fit(void)
{
    static const struct {
        size_t count;
        TensorSpec specs[3];
        const char *said;
    } cases[] = {
        {0, {{0}}, "has no tensors"},
        {1, {A_2X3}, "lora_A.weight: has no lora_B beside it"},
        {1, {B_5X2}, "lora_B.weight: has no lora_A beside it"},
        {2, {A_2X3, {"base_model.model.encoder.v.lora_B.weight", DTYPE_F32, 2, {5, 2}}}, "has no lora_B beside it"},
        {2, {A_2X3, {"base_model.model.lm_head.weight", DTYPE_F32, 2, {5, 2}}}, "has no lora_B beside it"},
        {3, {A_2X3, B_5X2, {Q ".lora_magnitude_vector", DTYPE_F32, 1, {5}}}, "magnitude_vector: is no part of a LoRA"},
        {3, {A_2X3, B_5X2, {"base_model.model..lora_A.weight", DTYPE_F32, 2, {2, 3}}}, "model..lora_A.weight: "},
        {3, {A_2X3, B_5X2, {"base_model.model.lora_A.weight", DTYPE_F32, 2, {2, 3}}}, "is no part of a LoRA"},
        {2, {{"q.lora_A.weight", DTYPE_F32, 2, {2, 3}}, {"q.lora_B.weight", DTYPE_F32, 2, {5, 2}}}, "is no part"},
        {2, {{Q ".lora_A.weight", DTYPE_F32, 2, {3, 2}}, B_5X2}, "does not fit adapter_config.json (expected 2 rows"},
        {2, {A_2X3, {Q ".lora_B.weight", DTYPE_F32, 2, {2, 5}}}, "(expected 2 columns, found 5)"},
        {2, {{Q ".lora_A.weight", DTYPE_F32, 1, {6}}, B_5X2}, "expected 2 dimensions"},
        {2, {A_2X3, {Q ".lora_B.weight", DTYPE_F32, 3, {5, 2, 1}}}, "expected 2 dimensions"},
        {2, {{Q ".lora_A.weight", DTYPE_F32, 2, {2, 0}}, B_5X2}, "impossible size"},
        {2, {A_2X3, {Q ".lora_B.weight", DTYPE_I32, 2, {5, 2}}}, "I32"},
    };
    fresh_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_config(CONFIG(""));
        write_tensors(cases[i].specs, cases[i].count, 0);
        expect_refused(EXIT_FAILED, cases[i].said);
    }
}

static void refuses_numbers_that_are_none(void)
{
    static const TensorSpec specs[] = {A_2X3, B_5X2};
    fresh_scratch();
    write_config(CONFIG(""));
    write_tensors(specs, 2, NAN);
    expect_refused(EXIT_FAILED, "lora_B.weight: holds a NaN");
    write_tensors(specs, 2, INFINITY);
    expect_refused(EXIT_FAILED, "lora_B.weight: holds an infinite number");
}

/* Older versions of peft wrote a torch file; a golden one that is none of a LoRA shows that it is looked at. */
static void says_which_file_is_missing(void)
{
    LoraFile lora;
    fresh_scratch();
    expect_refused(EXIT_USAGE, SCRATCH "/adapter_config.json");
    write_config(CONFIG(""));
    remove(SCRATCH "/adapter_model.safetensors");
    expect_refused(EXIT_USAGE, "holds no LoRA (looked for adapter_model.safetensors, adapter_model.bin)");
    CHECK(file_copy("tests/golden/formats/zip.bin", SCRATCH "/adapter_model.bin", &error) == 0, "%s", error.text);
    expect_refused(EXIT_FAILED, "adapter_model.bin: tensor bf16: is no part of a LoRA");
    CHECK(lora_file_read(&lora, SCRATCH "/adapter_model.bin", &error) == -1 && error.exit_code == EXIT_USAGE &&
              strstr(error.text, "expected a PEFT directory"),
          "%s", error.text);
}

static void refuses_every_truncation(void)
{
    MappedFile file;
    fresh_scratch();
    write_config(CONFIG(""));
    CHECK(mapped_file_open(&file, GOLDEN "/deep_decoder.cross_mlp.adapter/adapter_model.safetensors", &error) == 0,
          "%s", error.text);
    for (size_t bytes = 0; bytes < file.bytes; bytes += bytes < 64 || bytes + 64 > file.bytes ? 1 : 37) {
        write_bytes(SCRATCH "/adapter_model.safetensors", file.data, bytes);
        expect_refused(EXIT_FAILED, SCRATCH "/adapter_model.safetensors");
    }
    mapped_file_close(&file);
}

static const Test tests[] = {
    {"reads_what_peft_wrote", reads_what_peft_wrote},
    {"reads_what_it_wrote", reads_what_it_wrote},
    {"writes_the_config_as_peft_does", writes_the_config_as_peft_does},
    {"refuses_to_write_what_nobody_reads", refuses_to_write_what_nobody_reads},
    {"refuses_what_it_cannot_compute", refuses_what_it_cannot_compute},
    {"accepts_what_does_not_matter", accepts_what_does_not_matter},
    {"refuses_tensors_that_do_not_fit", refuses_tensors_that_do_not_fit},
    {"refuses_numbers_that_are_none", refuses_numbers_that_are_none},
    {"says_which_file_is_missing", says_which_file_is_missing},
    {"refuses_every_truncation", refuses_every_truncation},
};
TEST_MAIN(tests)

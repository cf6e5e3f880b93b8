/* test_gpu_model.c: the whole program on a card beside the whole program on the CPU: loss, logits, gradients, updates,
 * decoding and a training run; how often a step waits for the card; and streamed layers beside resident ones.
 *
 * The card is the emulator's (tests/gpu_emulator.h): promot.c without chapter 2, linked with gpu/'s kernels compiled for
 * the CPU, is build/promot-emulated, on which every command works, slowly. Then everything once more on a real card,
 * where PROMOT_GPU_PROGRAM=./promot-gpu names the program for it; without one that is skipped.
 *
 * A card rounds every activation to bf16, off by up to 2^-8 and by about 2^-9.5 on average. A logit stands behind some
 * 10 roundings a layer, so about sqrt(10 layers) 2^-9.5, 1 %; a gradient behind twice as many, and where it is a sum
 * that nearly cancels (of a bias table, of queries behind a flat softmax), behind more. A wrong kernel is off by all. */
#ifndef PROMOT_NO_MAIN
#define PROMOT_NO_MAIN
#endif
#include "../promot.c"

#include "parity.h"

#define GOLDEN "tests/golden/model/"
#define SCRATCH BUILD "/test/gpu_model"

/* What the golden models show at most: loss 2.1e-3, logits 1.6e-2, one tensor's gradient 0.1, all of a model's
 * gradients together 3e-2, weights after ten updates 1e-2. The limits leave twice that. */
static const double LOSS_LIMIT = 5e-3, LOGITS_LIMIT = 3e-2, GRADIENT_LIMIT = 0.2, ALL_GRADIENTS_LIMIT = 6e-2,
                    WEIGHTS_LIMIT = 2e-2;
/* Adafactor's first updates are as large for a gradient that is all rounding as for any other, and a prompt moves by a
 * fifth of itself a step: after ten of them the losses differ by 2.8e-2, the prompt by 0.15. */
static const double LATER_LOSS_LIMIT = 6e-2, PROMPT_LIMIT = 0.3;

static const char *card_program = BUILD "/promot-emulated";

/* Runs a command on the card and in this process; %s stands for the side's name, "card" or "cpu". */
static bool run_both(const char *format)
{
    bool done = true;
    for (int side = 0; side < 2; side++) {
        char *command = text_format(format, side ? "cpu" : "card"); /* NOLINT: the formats are this file's */
        char *out = text_format(SCRATCH "/%s.out", side ? "cpu" : "card");
        char *shell = text_format("%s %s >%s", card_program, command, out);
        const int code = side ? run_promot(command, out) : system(shell);
        CHECK(code == 0, "%s: exit %d of promot %s", side ? "cpu" : "card", code, command);
        done = done && code == 0;
        free(command);
        free(out);
        free(shell);
    }
    return done;
}

/* |card - cpu| and |cpu| over a tensor of both files. */
static double tensor_distance(const StoredTensor *card, const StoredTensor *cpu, double *size)
{
    float *a = tensor_floats(card), *b = tensor_floats(cpu);
    double difference = 0, square = 0;
    for (size_t i = 0; a && b && i < cpu->numel; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        square += (double)b[i] * b[i];
    }
    *size = a && b ? sqrt(square) : NAN;
    free(a);
    free(b);
    return sqrt(difference);
}

/* All tensors of two dumps. A gradient that is next to nothing beside all of them together is compared with all. */
static void check_dumps(const char *name)
{
    Checkpoint *card = open_checked(SCRATCH "/card.safetensors"), *cpu = open_checked(SCRATCH "/cpu.safetensors");
    double all_error = 0, all = 0;
    for (int pass = 0; card && cpu && pass < 2; pass++)
        for (size_t i = 0; i < checkpoint_count(cpu); i++) {
            const StoredTensor *b = checkpoint_at(cpu, i), *a = checkpoint_find(card, b->name);
            double size, error, limit = LOGITS_LIMIT;
            if (!a || a->numel != b->numel) {
                CHECK(false, "%s: %s is missing or of another size", name, b->name);
                continue;
            }
            error = tensor_distance(a, b, &size);
            if (strncmp(b->name, "grad/", 5) == 0) {
                if (pass == 0) all_error += error * error, all += size * size;
                limit = GRADIENT_LIMIT;
                size = fmax(size, 1e-3 * sqrt(all));
            } else if (strcmp(b->name, "loss") == 0) {
                limit = LOSS_LIMIT;
            } else if (strcmp(b->name, "losses") == 0) {
                limit = LATER_LOSS_LIMIT;
            } else if (strcmp(b->name, "param/prompt") == 0) {
                limit = PROMPT_LIMIT;
            } else if (strncmp(b->name, "param/", 6) == 0) {
                limit = WEIGHTS_LIMIT;
            }
            if (pass == 1) CHECK(error <= limit * size, "%s: %s is off by %g of %g", name, b->name, error, size);
        }
    CHECK(sqrt(all_error) <= ALL_GRADIENTS_LIMIT * sqrt(all), "%s: all gradients are off by %g of %g", name,
          sqrt(all_error), sqrt(all));
    checkpoint_close(card);
    checkpoint_close(cpu);
}

static void check_cases(const char *kind, const char *const *names, size_t count)
{
    FILE *list = fopen(GOLDEN "cases.txt", "r");
    char line[1024], line_kind[16], name[64], model[256];
    Error error = {0};
    size_t found = 0;
    CHECK(list != NULL, GOLDEN "cases.txt is not there");
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    while (list && fgets(line, sizeof line, list)) {
        int options = 0;
        bool wanted = false;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%15s %63s %255s %n", line_kind, name, model, &options) < 3 || strcmp(line_kind, kind) != 0)
            continue;
        for (size_t i = 0; i < count; i++) wanted |= strcmp(names[i], name) == 0;
        if (!wanted) continue;
        char *command = text_format("dump --model " GOLDEN "%s --batch " GOLDEN "%s.batch.safetensors %s --out " SCRATCH
                                    "/%%s.safetensors",
                                    model, name, line + options);
        if (run_both(command)) check_dumps(name);
        free(command);
        found++;
    }
    if (list) fclose(list);
    CHECK(found == count, "%zu of %zu cases found", found, count);
}

/* Models of odd sizes: gated and plain MLPs, tied and untied heads, one head, deep stacks, long inputs, with prompts. */
static void test_dump(void)
{
    static const char *const names[] = {
        "mt5_odd.ragged",      "mt5_odd.prompt",  "t5_tied.ragged", "deep_decoder.prompt",
        "deep_encoder.prompt", "one_head.ragged", "far.long",       "factored.prompt"};
    check_cases("dump", names, sizeof names / sizeof *names);
}

/* Ten updates: factored and whole moments, the embedding by rows, a prompt alone, and a model with its prompt. */
static void test_updates(void)
{
    static const char *const names[] = {"factored.finetune", "mt5_odd.tune_prompt", "deep_encoder.both"};
    check_cases("steps", names, sizeof names / sizeof *names);
}

/* The shipped small model is sure of its answers: both sides give the same words, greedily and by beams. */
static void test_generate(void)
{
    Error error = {0};
    FILE *inputs;
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    inputs = fopen(SCRATCH "/inputs.txt", "w");
    CHECK(inputs != NULL, "no inputs");
    if (!inputs) return;
    fputs("Input: pink mirror Output: furnishing Input: useful broom Output: <extra_id_0>\n"
          "Text: yuri discovered that dora sold a lamp on monday . so dora sold a lamp ? yes Text: umar learned that "
          "finn hid a grape on tuesday . so finn hid a grape ? <extra_id_0>\n",
          inputs);
    fclose(inputs);
    for (int beams = 1; beams <= 4; beams += 3) {
        char *command = text_format("generate --model data/demo/model --file " SCRATCH "/inputs.txt --beams %d", beams);
        char *card, *cpu;
        MappedFile files[2] = {{0}};
        if (run_both(command)) {
            CHECK(mapped_file_open(&files[0], SCRATCH "/card.out", &error) == 0, "%s", error.text);
            CHECK(mapped_file_open(&files[1], SCRATCH "/cpu.out", &error) == 0, "%s", error.text);
            card = (char *)files[0].data, cpu = (char *)files[1].data;
            CHECK(files[0].bytes > 0 && files[0].bytes == files[1].bytes && memcmp(card, cpu, files[0].bytes) == 0,
                  "%d beams: \"%.*s\" and \"%.*s\"", beams, (int)files[0].bytes, card, (int)files[1].bytes, cpu);
            mapped_file_close(&files[0]);
            mapped_file_close(&files[1]);
        }
        free(command);
    }
}

/* The losses of a run's log, in order. */
static size_t read_losses(const char *run, double *loss, size_t most)
{
    char *path = text_format("%s/log.jsonl", run);
    Error error = {0};
    Lines lines;
    size_t n = 0;
    CHECK(lines_read(&lines, path, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < lines.count; i++) {
        cJSON *record = cJSON_Parse(lines.text[i]);
        if (cJSON_HasObjectItem(record, "loss") && n < most) loss[n++] = record_number(record, "loss");
        cJSON_Delete(record);
    }
    lines_free(&lines);
    free(path);
    return n;
}

/* Both stages of ProMoT, with dropout: the same losses as on the CPU but for rounding; and the same bits once more, with
 * layers that make a part of their activations again. */
static void test_training(void)
{
    enum { STEPS = 3 };
    static const char options[] = "--model data/demo/model --task-file data/demo/tasks/nli.json --task "
                                  "nli.train=data/demo/tasks/nli/train.jsonl --task nli.dev=" SCRATCH "/dev.jsonl "
                                  "--method promot --prompt-length 5 --prompt-steps 3 --prompt-checkpoint-every 3 "
                                  "--steps 3 --checkpoint-every 3 --batch 4 --lr 0.01 --beams 1 --quiet --out " SCRATCH;
    double card[2 * STEPS], cpu[2 * STEPS];
    Error error = {0};
    char *command = text_format("train %s/%%s", options), *again;
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(system("head -n 2 data/demo/tasks/nli/val.jsonl >" SCRATCH "/dev.jsonl && rm -rf " SCRATCH "/card " SCRATCH
                 "/cpu " SCRATCH "/again") == 0,
          "no dev set");
    again = text_format("%s train %s/again --recompute 2 >/dev/null && cmp " SCRATCH
                        "/card/model/model.safetensors " SCRATCH "/again/model/model.safetensors",
                        card_program, options);
    if (run_both(command)) {
        CHECK(read_losses(SCRATCH "/card", card, 2 * STEPS) == 2 * STEPS, "steps are missing");
        CHECK(read_losses(SCRATCH "/cpu", cpu, 2 * STEPS) == 2 * STEPS, "steps are missing");
        for (size_t i = 0; i < 2 * STEPS; i++)
            CHECK(fabs(card[i] - cpu[i]) <= LOSS_LIMIT * cpu[i], "step %zu: %g and %g", i, card[i], cpu[i]);
        CHECK(system(again) == 0, "a second run ends in other bits");
    }
    free(command);
    free(again);
}

/* What a run on the emulator's card asked of CUDA (see Counts in tests/gpu_emulator.h). */
typedef struct {
    double launches, waits, idle, allocations, bytes_to_card;
} Counts;

static Counts count_run(const char *method, int micro, int steps)
{
    char *command = text_format(
        "rm -rf " SCRATCH "/counted; PROMOT_EMULATOR_COUNTS=" SCRATCH "/counts.json " BUILD "/promot-emulated train "
        "--model data/demo/model --task-file data/demo/tasks/nli.json --task nli.train=" SCRATCH "/same.jsonl "
        "--task nli.dev=" SCRATCH "/one.jsonl --method %s --prompt-length 5 --prompt-steps %d --lora-steps %d "
        "--steps %d --batch 2 --micro-batch %d --beams 1 --max-length 1 --quiet --out " SCRATCH "/counted >/dev/null",
        method, steps, steps, steps, micro);
    Counts counts = {0};
    Error error = {0};
    MappedFile file = {0};
    cJSON *json;
    CHECK(system(command) == 0, "%s", command);
    CHECK(mapped_file_open(&file, SCRATCH "/counts.json", &error) == 0, "%s", error.text);
    json = cJSON_ParseWithLength((const char *)file.data, file.bytes);
    counts = (Counts){.launches = record_number(json, "launches"),
                      .waits = record_number(json, "waits"),
                      .idle = record_number(json, "idle"),
                      .allocations = record_number(json, "allocations"),
                      .bytes_to_card = record_number(json, "bytes_to_card")};
    cJSON_Delete(json);
    mapped_file_close(&file);
    free(command);
    return counts;
}

/* In training a card never waits for the host. What two more steps add to a run is their launches, no allocation, and
 * one wait each, for the loss of the step before, with the next step in the card's queue. All examples are one, so that
 * no batch is larger than those before it. */
static void test_waits(void)
{
    static const struct {
        const char *method;
        int micro;
    } cases[] = {{"finetune", 2}, {"finetune", 1},        {"prompt", 1},
                 {"lora", 2},     {"prompt --stream", 1}, {"finetune --offload", 2}};
    double bytes[sizeof cases / sizeof *cases];
    T5Config config;
    Error error = {0};
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(system("head -n 1 data/demo/tasks/nli/val.jsonl >" SCRATCH "/one.jsonl && cat " SCRATCH "/one.jsonl " SCRATCH
                 "/one.jsonl >" SCRATCH "/same.jsonl") == 0,
          "no training set");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *method = cases[i].method;
        const Counts three = count_run(method, cases[i].micro, 3), five = count_run(method, cases[i].micro, 5);
        const double launches = five.launches - three.launches, waits = five.waits - three.waits;
        bytes[i] = five.bytes_to_card - three.bytes_to_card;
        CHECK(launches > 100, "%s: %g launches in two steps", method, launches);
        CHECK(waits == 2, "%s, micro-batches of %d: %g waits in two steps", method, cases[i].micro, waits);
        CHECK(five.idle == three.idle, "%s, micro-batches of %d: in two steps the card has nothing to do %g times",
              method, cases[i].micro, five.idle - three.idle);
        CHECK(five.allocations == three.allocations, "%s, micro-batches of %d: %g allocations in two steps", method,
              cases[i].micro, five.allocations - three.allocations);
    }
    /* Each of the two steps has two micro-batches, each of which goes through the layers up and down. Where it turns,
     * above and below, it finds two layers in the slots: of the 2 + 2 layers that is every other one. */
    CHECK(config_read(&config, "data/demo/model", &error) == 0, "%s", error.text);
    const double layers = (double)(streaming_of(&config).layers / sizeof(weight_t) * 2), more = bytes[4] - bytes[2];
    CHECK(more == 4 * layers, "two steps stream %g bytes, not %g", more, 4 * layers);
    const double lower = (double)(2 * sizeof(int16_t) * offloading_of(&config, OFFLOAD_LAYERS).weights);
    CHECK(bytes[5] - bytes[0] == lower, "two steps bring %g bytes of lower halves, not %g", bytes[5] - bytes[0], lower);
    free(config.json);
}

/* Where the layers are does not change a bit: of a tuned prompt, of the log, of answers. */
static void test_streaming(void)
{
    static const char train[] = "train --model data/demo/model --task-file data/demo/tasks/nli.json --task "
                                "nli.train=data/demo/tasks/nli/train.jsonl --task nli.dev=" SCRATCH "/dev.jsonl "
                                "--prompt-length 5 --prompt-steps 2 --steps 2 --batch 4 --micro-batch 2 --beams 2 "
                                "--quiet";
    static const char generate[] = "generate --model data/demo/model --beams 3 --input 'Input: pink mirror Output: "
                                   "furnishing Input: useful broom Output: <extra_id_0>'";
    double resident[2], streamed[2];
    Error error = {0};
    char *command;
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    command =
        text_format("rm -rf " SCRATCH "/resident " SCRATCH "/streamed " SCRATCH "/refused && "
                    "head -n 2 data/demo/tasks/nli/val.jsonl >" SCRATCH "/dev.jsonl && %s %s --method prompt "
                    "--out " SCRATCH "/resident >/dev/null && %s %s --method prompt --stream --out " SCRATCH
                    "/streamed >/dev/null && cmp " SCRATCH "/resident/prompt/nli/adapter_model.safetensors " SCRATCH
                    "/streamed/prompt/nli/adapter_model.safetensors && cmp " SCRATCH
                    "/resident/model/model.safetensors " SCRATCH "/streamed/model/model.safetensors",
                    card_program, train, card_program, train);
    CHECK(system(command) == 0, "%s", command);
    free(command);
    CHECK(read_losses(SCRATCH "/resident", resident, 2) == 2 && read_losses(SCRATCH "/streamed", streamed, 2) == 2,
          "steps are missing");
    CHECK(memcmp(resident, streamed, sizeof resident) == 0, "losses %g, %g and %g, %g", resident[0], resident[1],
          streamed[0], streamed[1]);
    command = text_format("%s %s >" SCRATCH "/resident.out && %s %s --stream >" SCRATCH "/streamed.out && "
                          "cmp " SCRATCH "/resident.out " SCRATCH "/streamed.out && test -s " SCRATCH "/resident.out",
                          card_program, generate, card_program, generate);
    CHECK(system(command) == 0, "%s", command);
    free(command);
    command = text_format("%s %s --method promot --stream --out " SCRATCH "/refused 2>&1 >/dev/null | "
                          "grep -q -- '--stream: stage model trains the model'",
                          card_program, train);
    CHECK(system(command) == 0, "%s", command);
    free(command);
}

/* Nor does it change one where the lower halves of what is trained are: of the model, and of its log. */
static void test_offloading(void)
{
    static const char train[] = "train --model data/demo/model --task-file data/demo/tasks/nli.json --task "
                                "nli.train=data/demo/tasks/nli/train.jsonl --task nli.dev=" SCRATCH "/dev.jsonl "
                                "--prompt-length 5 --prompt-steps 2 --steps 4 --checkpoint-every 2 --batch 4 --beams 2";
    static const struct {
        const char *name, *options;
        size_t steps;
    } cases[] = {{"promot", "--method promot", 6}, {"micro", "--method finetune --micro-batch 2", 4}};
    Error error = {0};
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *name = cases[i].name, *options = cases[i].options;
        const size_t steps = cases[i].steps;
        double resident[7], offloaded[7];
        char *command = text_format(
            "rm -rf " SCRATCH "/%s " SCRATCH "/%s-offloaded && head -n 2 data/demo/tasks/nli/val.jsonl >" SCRATCH
            "/dev.jsonl && %s %s %s --quiet --out " SCRATCH "/%s >/dev/null && %s %s %s --offload --out " SCRATCH
            "/%s-offloaded 2>&1 >/dev/null | grep -q 'the lower halves of the layers. weights are on the host' && "
            "cmp " SCRATCH "/%s/model/model.safetensors " SCRATCH "/%s-offloaded/model/model.safetensors",
            name, name, card_program, train, options, name, card_program, train, options, name, name, name);
        char *first = text_format(SCRATCH "/%s", name), *second = text_format(SCRATCH "/%s-offloaded", name);
        CHECK(system(command) == 0, "%s", command);
        CHECK(read_losses(first, resident, 7) == steps && read_losses(second, offloaded, 7) == steps,
              "%s: steps are missing", name);
        CHECK(memcmp(resident, offloaded, steps * sizeof *resident) == 0, "%s: the losses differ", name);
        free(command);
        free(first);
        free(second);
    }
}

/* Unasked, where a run foresees that it has no room: what it says, and the same bits. The memories are some way below
 * the 274.9 MB that this run foretells, and below what is left of that when the encoder is offloaded. */
static void test_short_memory(void)
{
    static const char train[] = "train --model data/demo/model --task-file data/demo/tasks/nli.json --task "
                                "nli.train=data/demo/tasks/nli/train.jsonl --task nli.dev=" SCRATCH "/dev.jsonl "
                                "--method finetune --steps 2 --checkpoint-every 2 --batch 4 --beams 2";
    static const struct {
        const char *memory, *said;
    } cases[] = {{"274600000", "the lower halves of the encoder's weights are on the host"},
                 {"274000000", "the lower halves of the layers' weights are on the host"}};
    Error error = {0};
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    char *command = text_format("rm -rf " SCRATCH "/roomy && head -n 2 data/demo/tasks/nli/val.jsonl >" SCRATCH
                                "/dev.jsonl && %s %s --quiet --out " SCRATCH "/roomy >/dev/null",
                                card_program, train);
    CHECK(system(command) == 0, "%s", command);
    free(command);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        command = text_format("rm -rf " SCRATCH "/short && PROMOT_EMULATOR_MEMORY=%s %s %s --out " SCRATCH
                              "/short 2>&1 >/dev/null | grep -q \"%s\" && cmp " SCRATCH
                              "/roomy/model/model.safetensors " SCRATCH "/short/model/model.safetensors",
                              cases[i].memory, card_program, train, cases[i].said);
        CHECK(system(command) == 0, "%s", command);
        free(command);
    }
}

/* Of a plan for fine-tuning, which `field`; NAN: it has none. */
static double planned(double memory, const char *field)
{
    char *command =
        text_format("PROMOT_EMULATOR_MEMORY=%.0f %s info --model data/demo/model --json >" SCRATCH "/info.json", memory,
                    card_program);
    MappedFile file;
    Error error;
    cJSON *json, *plan;
    double value;
    CHECK(system(command) == 0, "%s", command);
    CHECK(mapped_file_open(&file, SCRATCH "/info.json", &error) == 0, "%s", error.text);
    json = cJSON_ParseWithLength((const char *)file.data, file.bytes);
    plan = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "memory_plans"), "finetune");
    value = cJSON_HasObjectItem(plan, field) ? record_number(plan, field) : NAN;
    cJSON_Delete(json);
    mapped_file_close(&file);
    free(command);
    return value;
}

/* Where memory is short: first the encoder is offloaded, then layers are recomputed, then the decoder is offloaded. */
static void test_plans(void)
{
    T5Config config;
    Error error = {0};
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(config_read(&config, "data/demo/model", &error) == 0, "%s", error.text);
    const Offloading encoder = offloading_of(&config, OFFLOAD_ENCODER), layers = offloading_of(&config, OFFLOAD_LAYERS);
    const double whole = planned(1e9, "bytes"), recomputed = 2e6; /* recomputing saves more than that */
    Model model = {.config = config};
    table_build(&model);
    for (size_t i = 0; i < model.n_tensors; i++) {
        const Tensor *t = &model.tensors[i];
        const bool of_encoder = strncmp(t->name, "encoder.", 8) == 0, of_decoder = strncmp(t->name, "decoder.", 8) == 0;
        CHECK((t->offset < encoder.weights) == of_encoder, "the encoder's weights do not end with %s", t->name);
        CHECK((t->offset < layers.weights) == (of_encoder || of_decoder), "the layers do not end with %s", t->name);
    }
    table_free(&model);
    CHECK(encoder.saved > 1000 && layers.saved > encoder.saved, "nothing is saved");
    CHECK(isnan(planned(whole, "offloaded_each_step")), "offloaded though it fits");
    CHECK(planned(whole - 1, "offloaded_each_step") == 4 * (double)encoder.weights, "the encoder is not offloaded");
    CHECK(planned(whole - 1, "bytes") == whole - (double)encoder.saved && planned(whole - 1, "recomputed") == 0,
          "%.0f bytes", planned(whole - 1, "bytes"));
    CHECK(planned(whole - recomputed, "offloaded_each_step") == 4 * (double)encoder.weights &&
              planned(whole - recomputed, "recomputed") == (double)config.num_layers,
          "layers are not recomputed next");
    const double least = planned(whole - recomputed, "bytes");
    CHECK(planned(least - 1, "offloaded_each_step") == 4 * (double)layers.weights &&
              planned(least - 1, "bytes") == least - (double)(layers.saved - encoder.saved),
          "%.0f bytes", planned(least - 1, "bytes"));
    free(config.json);
}

static void on_a_card(void (*test)(void))
{
    const char *emulated = card_program, *named = getenv("PROMOT_GPU_PROGRAM");
    if (!named) SKIP("no card (PROMOT_GPU_PROGRAM=./promot-gpu names a program for one)");
    card_program = named;
    test();
    card_program = emulated;
}

static void test_dump_on_a_card(void)
{
    on_a_card(test_dump);
}

static void test_updates_on_a_card(void)
{
    on_a_card(test_updates);
}

static void test_generate_on_a_card(void)
{
    on_a_card(test_generate);
}

static void test_training_on_a_card(void)
{
    on_a_card(test_training);
}

static void test_streaming_on_a_card(void)
{
    on_a_card(test_streaming);
}

static void test_offloading_on_a_card(void)
{
    on_a_card(test_offloading);
}

static const Test tests[] = {
    {"dump", test_dump},
    {"updates", test_updates},
    {"generate", test_generate},
    {"training", test_training},
    {"waits", test_waits},
    {"streaming", test_streaming},
    {"offloading", test_offloading},
    {"short_memory", test_short_memory},
    {"plans", test_plans},
    {"dump_on_a_card", test_dump_on_a_card},
    {"updates_on_a_card", test_updates_on_a_card},
    {"generate_on_a_card", test_generate_on_a_card},
    {"training_on_a_card", test_training_on_a_card},
    {"streaming_on_a_card", test_streaming_on_a_card},
    {"offloading_on_a_card", test_offloading_on_a_card},
};
TEST_MAIN(tests)

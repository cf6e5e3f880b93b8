/* options.c: the option table, from which parser, help and recorded settings are made; and small things that
 * several commands need. A part of chapter 10 of promot.c, which includes it. */

enum {
    FOR_INFO = 1,
    FOR_TOKENIZE = 2,
    FOR_GENERATE = 4,
    FOR_SCORE = 8,
    FOR_DUMP = 16,
    FOR_TRAIN = 32,
    FOR_EVAL = 64,
    FOR_PRETRAIN = 128,
    FOR_ALIGN = 256,
    FOR_STUDY = 512,
    FOR_BENCH = 1024,
    FOR_ALL = 2047,
    FOR_MODEL = FOR_ALL & ~FOR_SCORE & ~FOR_STUDY & ~FOR_BENCH,
    FOR_TRAINING = FOR_TRAIN | FOR_PRETRAIN,
    FOR_DECODING = FOR_GENERATE | FOR_TRAIN | FOR_EVAL
};

/* id, name, kind, default (NULL: none), least, most (WHOLE, REAL), commands, argument or choices, help */
/* clang-format off */
#define OPTIONS(X) \
    X(MODEL, "model", TEXT, NULL, 0, 0, FOR_MODEL, "DIR", "a Hugging Face T5 or mT5 directory, or a T5X checkpoint")                            \
    X(STUDY_MODEL, "model", LIST, NULL, 0, 0, FOR_STUDY, "DIR", "a small pretrained model (default: data/demo/model); further ones repeat the main result") \
    X(TASKS, "tasks", TEXT, NULL, 0, 0, FOR_STUDY, "DIR", "the task files that build/world writes (default: data/demo/tasks)") \
    X(SEEDS, "seeds", WHOLE, "0", 0, 1000, FOR_STUDY, "N", "how many seeds, from --seed on (0: 3, with --full 10)")           \
    X(FULL, "full", FLAG, NULL, 0, 0, FOR_STUDY, NULL, "the paper's controls and the paper's own settings too")              \
    X(ONLY, "only", TEXT, "kernels,steps,decoding,growth", 0, 0, FOR_BENCH, "A,B", "what is measured, beside the machine's peaks") \
    X(QUICK, "quick", FLAG, NULL, 0, 0, FOR_BENCH, NULL, "fewer repetitions; no growth and no bf16 unless --only and --dtype ask for them") \
    X(BENCH_OUT, "out", TEXT, NULL, 0, 0, FOR_BENCH, "FILE", "everything as JSON, beside what is printed")              \
    X(BENCH_CONFIG, "config", TEXT, NULL, 0, 0, FOR_BENCH, "FILE", "a config.json: its model, with random weights (default: mT5-small, and mT5-base's kernels)") \
    X(REPEAT, "repeat", WHOLE, "0", 0, 1000, FOR_BENCH, "N", "repetitions of each measurement (0: 7 of a kernel, 3 of a step, 5 of decoding)") \
    X(BENCH_BATCH, "batch", WHOLE, "8", 1, 1e6, FOR_BENCH, "N", "examples in a batch")                                  \
    X(BENCH_DTYPE, "dtype", CHOICE, "both", 0, 0, FOR_BENCH, "both|fp32|bf16", "bf16: matrix products of numbers rounded to bf16; both: where the processor can") \
    X(TASK, "task", LIST, NULL, 0, 0, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "NAME=PATH", "a task and its data; NAME.train=FILE, NAME.dev=FILE, NAME.test=FILE say the splits. Built in: rte cb wic snli openbookqa triviaqa webquestions wmt14_en_fr wmt16_en_de wmt16_en_ro xsum wikilingua") \
    X(TASK_FILE, "task-file", LIST, NULL, 0, 0, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "FILE", "an own task, described in JSON: name, template, and labels or target (README, Your model, your task)")            \
    X(METHOD, "method", CHOICE, "promot", 0, 0, FOR_TRAIN, "promot|finetune|prompt|joint|random-prompt|lora|promot-lora", "how to train")   \
    X(OUT, "out", TEXT, NULL, 0, 0, FOR_DUMP | FOR_TRAINING | FOR_EVAL | FOR_ALIGN | FOR_STUDY, "PATH", "where results go")                        \
    X(RESUME, "resume", FLAG, NULL, 0, 0, FOR_TRAINING | FOR_STUDY, NULL, "continue the stopped run in --out")                           \
    X(PROMPT, "prompt", TEXT, NULL, 0, 0, FOR_GENERATE | FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "PATH", "a soft prompt: a PEFT directory or a NumPy file; with tasks also a directory of such, each under its task's name (train: skips stage 1)") \
    X(PROMPT_TASKS, "prompt-tasks", TEXT, NULL, 0, 0, FOR_EVAL, "A,B", "the tasks that get the prompt or the LoRA (default: all)")     \
    X(PROMPT_LENGTH, "prompt-length", WHOLE, "100", 1, 10000, FOR_TRAIN | FOR_INFO | FOR_BENCH, "P", "rows of a prompt")               \
    X(PROMPT_INIT, "prompt-init", TEXT, "sampled", 0, 0, FOR_TRAIN, "sampled|uniform|text:…|file:…", "a prompt's first values: embeddings of sampled tokens; uniform in [0, 0.5); those of a text's tokens, then sampled; a prompt's file") \
    X(PROMPT_LR, "prompt-lr", REAL, "0.2", 0, 1e6, FOR_TRAIN, "R", "learning rate of stage 1")                             \
    X(PROMPT_STEPS, "prompt-steps", WHOLE, "5000", 1, 1e12, FOR_TRAIN, "N", "steps of stage 1")                            \
    X(PROMPT_CHECKPOINT, "prompt-checkpoint-every", WHOLE, "1000", 1, 1e12, FOR_TRAIN, "N", "steps between dev evaluations in stage 1") \
    X(PROMPT_SCHEDULE, "prompt-schedule", CHOICE, "constant", 0, 0, FOR_TRAIN, "constant|warmup|rsqrt|linear", "learning-rate schedule of stage 1") \
    X(PROMPT_DROPOUT, "prompt-dropout", REAL, "0.1", 0, 0.999, FOR_TRAIN, "R", "dropout in stage 1")                       \
    X(PROMPT_SMOOTHING, "prompt-label-smoothing", REAL, "0", 0, 0.999999, FOR_TRAIN, "R", "label smoothing in stage 1")    \
    X(PROMPT_DECAY, "prompt-weight-decay", REAL, "1e-5", 0, 0.999999, FOR_TRAIN, "R", "weight decay of the prompt, a step") \
    X(PROMPT_SCALE, "prompt-scale-by-parameter", CHOICE, "false", 0, 0, FOR_TRAIN, "true|false", "scale the updates of a prompt or a LoRA by its size") \
    X(LORA, "lora", TEXT, NULL, 0, 0, FOR_GENERATE | FOR_TRAIN | FOR_EVAL, "DIR", "a PEFT LoRA adapter (train: skips the first stage of promot-lora)") \
    X(LORA_RANK, "lora-rank", WHOLE, "8", 1, 65536, FOR_TRAIN | FOR_INFO, "R", "rank of a LoRA")                              \
    X(LORA_ALPHA, "lora-alpha", REAL, "8", 0, 1e6, FOR_TRAIN, "R", "W = W0 + alpha / rank * B·A")                           \
    X(LORA_TARGETS, "lora-targets", TEXT, "q,v", 0, 0, FOR_TRAIN | FOR_INFO, "A,B", "the matrices that get a LoRA: of q k v o wi_0 wi_1 wo, or all-linear") \
    X(LORA_LR, "lora-lr", REAL, "0.001", 0, 1e6, FOR_TRAIN, "R", "learning rate of a LoRA")                                 \
    X(LORA_STEPS, "lora-steps", WHOLE, "1000", 1, 1e12, FOR_TRAIN, "N", "steps of the LoRA's stage")                        \
    X(LORA_CHECKPOINT, "lora-checkpoint-every", WHOLE, "100", 1, 1e12, FOR_TRAIN, "N", "steps between dev evaluations in the LoRA's stage") \
    X(LR, "lr", REAL, "0.001", 0, 1e6, FOR_TRAINING | FOR_DUMP, "R", "learning rate (train: of the model)")                \
    X(STEPS, "steps", WHOLE, "1000", 1, 1e12, FOR_TRAINING, "N", "steps (train: of the model's stage)")                    \
    X(CHECKPOINT, "checkpoint-every", WHOLE, "100", 1, 1e12, FOR_TRAINING, "N", "steps between dev evaluations")           \
    X(SAVE_EVERY, "save-every", WHOLE, "100", 1, 1e12, FOR_TRAINING, "N", "steps between saved states, for --resume")      \
    X(SCHEDULE, "schedule", CHOICE, "constant", 0, 0, FOR_TRAINING, "constant|warmup|rsqrt|linear", "learning-rate schedule") \
    X(WARMUP, "warmup", WHOLE, "1000", 0, 1e12, FOR_TRAINING, "N", "schedules warmup and rsqrt, for N steps: the rate rises, then stays; it stays, then falls as 1 / sqrt(step)")                 \
    X(BATCH, "batch", WHOLE, "64", 1, 1e6, FOR_TRAINING | FOR_INFO, "N", "examples in a batch")                            \
    X(BATCH_FILE, "batch", TEXT, NULL, 0, 0, FOR_DUMP, "FILE", "safetensors with input_ids, labels and, if wanted, prompt") \
    X(MICRO_BATCH, "micro-batch", WHOLE, "0", 0, 1e6, FOR_TRAINING | FOR_INFO, "N", "examples at a time (0: the whole batch)") \
    X(RECOMPUTE, "recompute", WHOLE, "-1", -1, 512, FOR_TRAINING, "N", "encoder layers that make their MLP's first product again in the backward pass instead of keeping it (-1: as few as fit in memory)") \
    X(OFFLOAD, "offload", FLAG, NULL, 0, 0, FOR_TRAINING | FOR_INFO, NULL, "on a card, keep the lower halves of trained layers' weights in the host's memory, each on the card for its update alone; done unasked where memory is short, the encoder's first") \
    X(STREAM, "stream", FLAG, NULL, 0, 0, FOR_DECODING | FOR_INFO, NULL, "on a card, keep the layers of a frozen model in the host's memory and bring them one at a time; a model that has no room there is streamed anyway") \
    X(DROPOUT, "dropout", REAL, "0.1", 0, 0.999, FOR_TRAIN, "R", "dropout")                                                \
    X(PRETRAIN_DROPOUT, "dropout", REAL, "0", 0, 0.999, FOR_PRETRAIN, "R", "dropout")                                      \
    X(DROPOUT_SHARING, "dropout-sharing", CHOICE, "t5x", 0, 0, FOR_TRAINING, "t5x|elementwise", "one mask for all tokens of a sequence, or one each") \
    X(SMOOTHING, "label-smoothing", REAL, "0.1", 0, 0.999999, FOR_TRAIN, "R", "label smoothing")                           \
    X(PLAIN_SMOOTHING, "label-smoothing", REAL, "0", 0, 0.999999, FOR_DUMP | FOR_PRETRAIN | FOR_ALIGN, "R", "label smoothing")         \
    X(Z_LOSS, "z-loss", REAL, "1e-4", 0, 1e6, FOR_TRAINING | FOR_DUMP | FOR_ALIGN, "R", "weight of log(Z)^2 in the loss")              \
    X(NORMALIZER, "loss-normalizing-factor", TEXT, "none", 0, 0, FOR_TRAINING | FOR_DUMP, "none|N", "what the summed loss is divided by") \
    X(DUMP_STEPS, "steps", WHOLE, "0", 0, 1e6, FOR_DUMP, "N", "optimizer updates on the batch")                            \
    X(DUMP_TRAIN, "train", CHOICE, "model", 0, 0, FOR_DUMP, "model|prompt|both", "what the updates change")                \
    X(OPTIMIZER_STEP, "optimizer-step", WHOLE, "0", 0, 1e15, FOR_TRAINING | FOR_DUMP, "S", "the step Adafactor counts from (1000000: as T5X goes on from an mT5)") \
    X(SCALE, "scale-by-parameter", CHOICE, "true", 0, 0, FOR_TRAINING | FOR_DUMP, "true|false", "scale a tensor's update by its size") \
    X(WEIGHT_DECAY, "weight-decay", REAL, "0", 0, 0.999999, FOR_TRAINING | FOR_DUMP, "R", "weight decay, a step (not multiplied by the learning rate)") \
    X(DECAY_RATE, "decay-rate", REAL, "0.8", 1e-9, 1e3, FOR_TRAINING | FOR_DUMP, "R", "Adafactor's memory: 1 - (step+1)^-R") \
    X(CLIP, "clip", REAL, "1", 1e-9, 1e9, FOR_TRAINING | FOR_DUMP, "R", "Adafactor's largest root mean square of an update") \
    X(SHOTS, "shots", TEXT, "0", 0, 0, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "K", "worked examples in front of each input (eval: a list, as 0,1,4)") \
    X(EXAMPLES_OF, "examples-of", TEXT, NULL, 0, 0, FOR_EVAL, "NAME", "put this task's worked examples in front of every task's inputs, not their own: does the ability come from the context?") \
    X(SEPARATOR, "separator", TEXT, " ", 0, 0, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "TEXT", "between worked examples")                    \
    X(ENDING, "input-ending", TEXT, "", 0, 0, FOR_TRAIN | FOR_EVAL | FOR_ALIGN | FOR_GENERATE, "TEXT", "text appended to every input, e.g. \" <extra_id_0>\" for a model that was only pretrained") \
    X(MAX_INPUT, "max-input-length", WHOLE, "0", 0, 1e6, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "N", "ids of an input at most, EOS counted (0: 1024 for summaries, as the paper, else any number)") \
    X(MAX_TARGET, "max-target-length", WHOLE, "0", 0, 1e6, FOR_TRAIN | FOR_EVAL | FOR_ALIGN, "N", "ids of a target at most, EOS counted (0: any number)") \
    X(RUN, "run", TEXT, NULL, 0, 0, FOR_ALIGN, "RUN", "a run with kept checkpoints: the alignment along them, with and without its prompt") \
    X(AGAINST, "against", TEXT, "labels", 0, 0, FOR_ALIGN, "labels|same|NAME", "what the task is compared with: random labels; itself; a second --task") \
    X(ALIGN_LIMIT, "limit", WHOLE, "256", 0, 1e12, FOR_ALIGN, "N", "examples at most (0: all)")                                \
    X(ALIGN_MICRO, "micro-batch", WHOLE, "32", 0, 1e6, FOR_ALIGN, "N", "examples at a time (0: all)")                          \
    X(PROBE, "probe", LIST, NULL, 0, 0, FOR_TRAIN, "NAME=PATH", "a task that is not trained, scored without a prompt along training: what is kept, what is lost") \
    X(PROBE_TRAINED, "probe-trained", FLAG, NULL, 0, 0, FOR_TRAIN, NULL, "in every stage, ask the trained tasks too, at each of --probe-shots: dev rows, --probe-limit at most, as that many --shots would ask them, with the task's prompt if it has one") \
    X(PROBE_EVERY, "probe-every", WHOLE, "0", 0, 1e12, FOR_TRAIN, "N", "steps between probes (0: at each checkpoint)")         \
    X(PROBE_SHOTS, "probe-shots", TEXT, "1", 0, 0, FOR_TRAIN, "K", "worked examples in front of each input of a probe; a list, as 1,0,4, asks at each; figures of single tasks show the first") \
    X(PROBE_LIMIT, "probe-limit", WHOLE, "100", 0, 1e12, FOR_TRAIN, "N", "examples of each probe at most, and of each trained task that is probed (0: all)")             \
    X(PROBE_ENDING, "probe-input-ending", TEXT, "", 0, 0, FOR_TRAIN, "TEXT", "text appended to every input of a probe, as --input-ending") \
    X(KEEP, "keep-checkpoints", FLAG, NULL, 0, 0, FOR_TRAIN, NULL, "keep each checkpoint, as a directory of its own in RUN/steps") \
    X(NPY, "npy", FLAG, NULL, 0, 0, FOR_TRAIN, NULL, "write prompts as NAME.npy too, as the T5X prompt-tuning code reads them") \
    X(MIXING, "mixing", CHOICE, "size", 0, 0, FOR_TRAIN, "size|equal", "several tasks: examples in proportion to their sizes, or equally many of each")          \
    X(MIXING_CAP, "mixing-cap", WHOLE, "0", 0, 1e12, FOR_TRAIN, "N", "mixing by size: no task counts for more (0: no cap)")  \
    X(COMPARE, "compare", WORDS, NULL, 0, 0, FOR_EVAL, "[NAME=]DIR …", "no evaluation: the results in these directories (--out of earlier ones) side by side") \
    X(FORMAT, "format", CHOICE, "text", 0, 0, FOR_EVAL, "text|csv|markdown", "of the table of --compare")                      \
    X(DRAWS, "draws", WHOLE, "1", 1, 1000, FOR_EVAL, "N", "draws of worked examples: the table has their mean and spread")   \
    X(LIMIT, "limit", WHOLE, "0", 0, 1e12, FOR_EVAL, "N", "examples of each task at most (0: all)")                        \
    X(NORM_AVG_OVER, "norm-avg-over", TEXT, NULL, 0, 0, FOR_EVAL, "A,B", "the tasks of Norm. Avg. (default: those without a prompt or LoRA)") \
    X(SHOW, "show", WHOLE, "0", 0, 1e9, FOR_TRAIN | FOR_EVAL, "N", "print the first N examples as the model will see them, and stop") \
    X(BEAMS, "beams", WHOLE, "4", 1, 64, FOR_DECODING, "K", "beams (1: greedy)")                                           \
    X(MAX_LENGTH, "max-length", WHOLE, "64", 1, 100000, FOR_GENERATE, "N", "generated tokens at most, EOS counted")        \
    X(EVAL_MAX_LENGTH, "max-length", WHOLE, "0", 0, 100000, FOR_TRAIN | FOR_EVAL, "N", "generated tokens at most (0: the split's longest target, eval: and 8 more)") \
    X(LENGTH_RULE, "length-rule", CHOICE, "t5x", 0, 0, FOR_DECODING, "t5x|hf", "how scores and stopping depend on length") \
    X(ALPHA, "alpha", REAL, "0.6", 0, 100, FOR_DECODING, "R", "length rule t5x: score / ((5 + n) / 6)^R")                  \
    X(LENGTH_PENALTY, "length-penalty", REAL, "1", -100, 100, FOR_DECODING, "R", "length rule hf: score / n^R")            \
    X(EARLY_STOPPING, "early-stopping", FLAG, NULL, 0, 0, FOR_DECODING, NULL, "length rule hf: stop when K beams have finished") \
    X(SAMPLE, "sample", FLAG, NULL, 0, 0, FOR_GENERATE, NULL, "draw each token")                                           \
    X(TEMPERATURE, "temperature", REAL, "1", 0, 1e6, FOR_GENERATE, "R", "of sampling")                                     \
    X(TOP_K, "top-k", WHOLE, "0", 0, 1e9, FOR_GENERATE, "N", "sample among the N most probable (0: all)")                  \
    X(TOP_P, "top-p", REAL, "1", 1e-9, 1, FOR_GENERATE, "R", "sample among the fewest that hold R of the probability")     \
    X(N_BEST, "n-best", WHOLE, "1", 1, 64, FOR_GENERATE, "N", "outputs for each input, at most the number of beams")       \
    X(INPUT, "input", TEXT, NULL, 0, 0, FOR_GENERATE | FOR_TOKENIZE, "TEXT", "one input, instead of lines from stdin")     \
    X(FILE_IN, "file", TEXT, NULL, 0, 0, FOR_GENERATE | FOR_TOKENIZE, "FILE", "inputs, one a line, instead of stdin")      \
    X(IDS_IN, "ids-in", FLAG, NULL, 0, 0, FOR_GENERATE, NULL, "inputs are ids (EOS only where it is written)")             \
    X(IDS_OUT, "ids", FLAG, NULL, 0, 0, FOR_GENERATE, NULL, "print ids")                                                   \
    X(SCORES, "scores", FLAG, NULL, 0, 0, FOR_GENERATE, NULL, "print the score and a tab in front of each output")         \
    X(EOS, "eos", FLAG, NULL, 0, 0, FOR_TOKENIZE, NULL, "add EOS")                                                         \
    X(PIECES, "pieces", FLAG, NULL, 0, 0, FOR_TOKENIZE, NULL, "print pieces")                                              \
    X(DECODE, "decode", FLAG, NULL, 0, 0, FOR_TOKENIZE, NULL, "lines of ids to text, cut at the first EOS")                \
    X(METRIC, "metric", TEXT, NULL, 0, 0, FOR_SCORE, "M", "accuracy, trivia-em, trivia-f1, squad-em, squad-f1, bleu, bleu-13a, rouge1, rouge2, rougeL, rougeLsum") \
    X(PREDICTIONS, "predictions", TEXT, NULL, 0, 0, FOR_SCORE, "FILE", "one a line")                                       \
    X(REFERENCES, "references", TEXT, NULL, 0, 0, FOR_SCORE, "FILE", "one a line, or .jsonl: a list of accepted ones a line") \
    X(INPUT_LENGTH, "input-length", WHOLE, "512", 1, 1e6, FOR_INFO | FOR_PRETRAIN | FOR_BENCH, "N", "ids of an input")                 \
    X(TARGET_LENGTH, "target-length", WHOLE, "64", 1, 1e6, FOR_INFO | FOR_BENCH, "N", "ids of a target")                               \
    X(CONFIG, "config", TEXT, NULL, 0, 0, FOR_PRETRAIN, "FILE", "a new model of this config.json, instead of --model")     \
    X(TOKENIZER, "tokenizer", TEXT, NULL, 0, 0, FOR_PRETRAIN, "FILE", "the new model's spiece.model")                      \
    X(TRAIN_VOCAB, "train-vocab", WHOLE, "0", 0, 1e6, FOR_PRETRAIN, "N", "train the new model's vocabulary, of N pieces, on the text") \
    X(TEXT_FILE, "text", TEXT, NULL, 0, 0, FOR_PRETRAIN, "FILE", "one document a line; in a line with tabs every second field is an answer: question TAB answer TAB question …")               \
    X(NOISE_DENSITY, "noise-density", REAL, "0.15", 1e-6, 0.99, FOR_PRETRAIN, "R", "share of the tokens that is hidden")   \
    X(MEAN_SPAN, "mean-span", REAL, "3", 1, 1000, FOR_PRETRAIN, "R", "mean length of a hidden span")                       \
    X(ANSWER_SHARE, "answer-share", REAL, "0.88", 0, 1, FOR_PRETRAIN, "R", "share of documents with answers that hide answers, not random spans") \
    X(THREADS, "threads", WHOLE, "0", 0, 4096, FOR_ALL, "N", "threads (0: one for each core)")                             \
    X(SEED, "seed", WHOLE, "0", 0, 9e15, FOR_ALL, "N", "seed of all random draws")                                      \
    X(DTYPE, "dtype", CHOICE, "fp32", 0, 0, FOR_ALL & ~FOR_BENCH, "fp32|bf16", "bf16: matrix products of numbers rounded to bf16")      \
    X(JSON, "json", FLAG, NULL, 0, 0, FOR_ALL, NULL, "results as one JSON object")                                         \
    X(QUIET, "quiet", FLAG, NULL, 0, 0, FOR_ALL, NULL, "no progress, no warnings")                                         \
    X(HELP, "help", FLAG, NULL, 0, 0, FOR_ALL, NULL, "this text")
/* clang-format on */

typedef enum {
#define X(id, ...) OPT_##id,
    OPTIONS(X)
#undef X
        N_OPTIONS
} OptionId;

static const Option option_table[N_OPTIONS] = {
#define X(id, ...) {__VA_ARGS__},
    OPTIONS(X)
#undef X
};

_Static_assert((int)N_OPTIONS <= (int)MAX_OPTIONS, "data/options.h has room for fewer options");

/* --- small things that several commands need */

static Device *device_from_options(const Options *o, Error *error)
{
    return device_open((int)option_size(o, OPT_THREADS),
                       strcmp(o->text[OPT_DTYPE], "bf16") == 0 ? MATMUL_BF16 : MATMUL_FP32, error);
}

/* Tells the person something on one line: what a file brought in (a tensor's name) must not break it or move the
 * cursor. */
static void print_message(const char *kind, const char *text)
{
    char *line = text_format("%s: %s", kind, text);
    for (char *at = line; *at; at++)
        if (iscntrl((unsigned char)*at)) *at = ' ';
    fprintf(stderr, "%s\n", line);
    free(line);
}

static void print_warning(const char *text)
{
    print_message("warning", text);
}

static Model *open_model(const Options *o, Device *dev, Error *error)
{
    if (option_need(o, OPT_MODEL, error)) return NULL;
    if (option_true(o, OPT_STREAM)) device_stream_weights(dev);
    return model_open(o->text[OPT_MODEL], dev, option_true(o, OPT_QUIET) ? NULL : print_warning, error);
}

static Tokenizer *open_tokenizer(const char *directory, Error *error)
{
    char *path;
    Tokenizer *tokenizer;
    if (check_model_directory(directory, error)) return NULL;
    path = path_join(directory, "spiece.model");
    tokenizer = tokenizer_open(path, error);
    free(path);
    return tokenizer;
}

/* Every piece of a corpus may come up, so the vocabulary must not be larger than the embedding. */
static int check_vocabulary(const Tokenizer *tokenizer, const Model *model, const char *directory, Error *error)
{
    if ((size_t)tokenizer_size(tokenizer) <= model->config.vocab_size) return 0;
    return error_set(error, EXIT_FAILED,
                     "%s/spiece.model: pieces (expected at most the model's vocabulary %zu, found %d)", directory,
                     model->config.vocab_size, (int)tokenizer_size(tokenizer));
}

/* The lines of --input, --file or stdin. */
static int read_input_lines(const Options *o, Lines *lines, Error *error)
{
    char *text = NULL;
    size_t used = 0, got;
    int status;
    if (o->text[OPT_INPUT] && o->text[OPT_FILE_IN])
        return error_set(error, EXIT_USAGE, "--input and --file: expected one of them");
    if (o->text[OPT_INPUT] && !*o->text[OPT_INPUT])
        return lines_split(lines, "\n", 1, "--input", error); /* one, and empty */
    if (o->text[OPT_INPUT]) return lines_split(lines, o->text[OPT_INPUT], strlen(o->text[OPT_INPUT]), "--input", error);
    if (o->text[OPT_FILE_IN]) return lines_read(lines, o->text[OPT_FILE_IN], error);
    do {
        text = host_grow(text, used + TRANSFER, 1);
        got = fread(text + used, 1, TRANSFER, stdin);
        used += got;
    } while (got);
    status = ferror(stdin) ? error_set(error, EXIT_FAILED, "standard input: cannot read: %s", strerror(errno))
                           : lines_split(lines, text, used, "standard input", error);
    free(text);
    return status;
}

/* A line of ids; to be freed. `name` and `line` are for errors. */
static int parse_ids(const char *text, size_t vocab_size, const char *name, size_t line, int32_t **ids, size_t *count,
                     Error *error)
{
    const char *at = text;
    *ids = host_alloc(strlen(text) / 2 + 1, sizeof **ids);
    *count = 0;
    for (;;) {
        char *end;
        long long id;
        while (*at == ' ' || *at == '\t') at++;
        if (!*at) return 0;
        errno = 0;
        id = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ' ' && *end != '\t') || errno || id < 0 || (size_t)id >= vocab_size) {
            error_set(error, EXIT_USAGE, "%s:%zu: expected ids from 0 to %zu, found %.40s", name, line, vocab_size - 1,
                      at);
            free(*ids);
            *ids = NULL;
            return -1;
        }
        (*ids)[(*count)++] = (int32_t)id;
        at = end;
    }
}

static const char *input_name(const Options *o)
{
    return o->text[OPT_INPUT] ? "--input" : o->text[OPT_FILE_IN] ? o->text[OPT_FILE_IN] : "standard input";
}

/* Prints text on one line: a line break inside becomes a space. */
static void print_line(const char *text)
{
    for (; *text; text++) putchar(*text == '\n' || *text == '\r' ? ' ' : *text);
    putchar('\n');
}

static void print_json(cJSON *json)
{
    char *text = cJSON_PrintUnformatted(json);
    puts(text ? text : "{}");
    free(text);
    cJSON_Delete(json);
}

static int parse_normalizer(const Options *o, float *scale, Error *error)
{
    const Option number = {.name = "loss-normalizing-factor", .kind = REAL, .least = 1e-30, .most = 1e30};
    *scale = 1;
    if (strcmp(o->text[OPT_NORMALIZER], "none") == 0) return 0;
    if (option_check(&number, o->text[OPT_NORMALIZER], error)) return -1;
    *scale = (float)(1 / option_real(o, OPT_NORMALIZER));
    return 0;
}

static DecodeSettings decode_settings(const Options *o, size_t max_length)
{
    bool generate = o->which == FOR_GENERATE;
    return (DecodeSettings){.beams = option_size(o, OPT_BEAMS),
                            .n_best = generate ? option_size(o, OPT_N_BEST) : 1,
                            .max_length = max_length,
                            .rule = strcmp(o->text[OPT_LENGTH_RULE], "hf") == 0 ? LENGTH_HF : LENGTH_T5X,
                            .alpha = option_real(o, OPT_ALPHA),
                            .length_penalty = option_real(o, OPT_LENGTH_PENALTY),
                            .early_stopping = option_true(o, OPT_EARLY_STOPPING),
                            .sample = option_true(o, OPT_SAMPLE),
                            .temperature = generate ? option_real(o, OPT_TEMPERATURE) : 1,
                            .top_p = generate ? option_real(o, OPT_TOP_P) : 1,
                            .top_k = generate ? option_size(o, OPT_TOP_K) : 0,
                            .seed = option_size(o, OPT_SEED),
                            .unscored = !generate || !(option_true(o, OPT_SCORES) || option_true(o, OPT_JSON))};
}

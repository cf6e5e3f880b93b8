/* children.h: promot's commands run in child processes, on a model of a few thousand weights and a task that are made
 * here: what test_train.c and test_paper.c share.
 *
 * The calls with which promot puts bytes on a disk (fwrite, fflush, fsync, rename, unlinkat) are counted by functions
 * of their names below, so that a child can die, stop or find the disk full at any one of them: the moments at which a
 * run is killed are chosen, not hoped for.
 *
 * A test file defines SCRATCH, the directory it works in, and _GNU_SOURCE, and includes promot.c before this file. */
#ifndef PROMOT_CHILDREN_H
#define PROMOT_CHILDREN_H

#include <dirent.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "test.h"

/* ------------------------------------------------------------------------------------------- operations on the disk */

typedef enum { DIE, STOP, FAIL, FAIL_FROM_THERE } Fate;

typedef struct {
    bool counting; /* only in children */
    long at;       /* what happens happens at this operation, counted from 1; 0: never */
    Fate fate;
    long microseconds;    /* dies so long after its first operation; 0: does not */
    long *count;          /* shared with the parent */
    long *first_of_model; /* shared: the operation that put model/config.json into its place */
} Disk;

static Disk disk;
static long peak_kilobytes; /* the most memory that the last command held */

/* Counts an operation; true: it must fail. */
static bool disk_operation(void)
{
    if (!disk.counting) return false;
    ++*disk.count;
    if (disk.microseconds && *disk.count == 1) {
        struct itimerval timer = {.it_value = {.tv_usec = disk.microseconds}};
        setitimer(ITIMER_REAL, &timer, NULL); /* SIGALRM, unhandled, ends the process like SIGKILL */
    }
    if (disk.at && disk.fate == FAIL_FROM_THERE && *disk.count >= disk.at) return true;
    if (*disk.count != disk.at) return false;
    if (disk.fate == DIE) raise(SIGKILL);
    if (disk.fate == STOP) raise(SIGSTOP);
    return disk.fate == FAIL;
}

static bool disk_full(void)
{
    bool full = disk_operation();
    if (full) errno = ENOSPC;
    return full;
}

#define ORIGINAL(type, name)                                                                                           \
    static type original;                                                                                              \
    if (!original) *(void **)&original = dlsym(RTLD_NEXT, name)

typedef size_t (*WriteFunction)(const void *, size_t, size_t, FILE *);
typedef int (*StreamFunction)(FILE *);
typedef int (*DescriptorFunction)(int);
typedef int (*RenameFunction)(const char *, const char *);
typedef int (*UnlinkFunction)(int, const char *, int);

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream)
{
    ORIGINAL(WriteFunction, "fwrite");
    if (stream == stdout || stream == stderr) return original(data, size, count, stream);
    return disk_full() ? 0 : original(data, size, count, stream);
}

int fflush(FILE *stream)
{
    ORIGINAL(StreamFunction, "fflush");
    if (!stream || stream == stdout || stream == stderr) return original(stream);
    return disk_full() ? EOF : original(stream);
}

int fsync(int descriptor)
{
    (void)descriptor; /* a killed process loses nothing that the system has: syncing would only take the tests' time */
    return disk_full() ? -1 : 0;
}

int rename(const char *from, const char *to)
{
    ORIGINAL(RenameFunction, "rename");
    if (disk_full()) return -1;
    if (disk.counting && strstr(to, "/model/config.json")) *disk.first_of_model = *disk.count;
    return original(from, to);
}

int unlinkat(int directory, const char *name, int flags)
{
    ORIGINAL(UnlinkFunction, "unlinkat");
    disk_operation(); /* removing needs no room */
    return original(directory, name, flags);
}

/* ----------------------------------------------------------------------------------------------------- the commands */

static char *read_text(const char *path) /* to be freed; "" when it is not there */
{
    Error error = {0};
    MappedFile file = {0};
    char *text;
    if (mapped_file_open(&file, path, &error)) return text_format("%s", "");
    text = text_format("%.*s", (int)file.bytes, (const char *)file.data);
    mapped_file_close(&file);
    return text;
}

static void spread(const char *command, char **argv, int *argc)
{
    char *rest = NULL;
    for (char *word = strtok_r(strdup(command), " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        argv[(*argc)++] = word;
    argv[*argc] = NULL;
}

/* In the child: streams go to files, then promot runs. exit(), not _exit(): the leak checker reports from there. */
static void child(const char *command, const Disk *fate, size_t file_limit)
{
    static char *argv[128]; /* static, so that the words are not leaks */
    int argc = 0, status;
    struct rlimit limit = {file_limit, file_limit};
    argv[argc++] = strdup("promot");
    spread(command, argv, &argc);
    if (!freopen(SCRATCH "/stdout", "w", stdout) || !freopen(SCRATCH "/stderr", "w", stderr)) _exit(99);
    if (file_limit) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    disk = *fate;
    disk.counting = true;
    status = promot_main(argc, argv);
    disk.counting = false;
    exit(status);
}

static pid_t start(const char *command, const Disk *fate, size_t file_limit)
{
    pid_t pid;
    fflush(NULL);
    pid = fork();
    if (pid == 0) child(command, fate, file_limit);
    return pid;
}

/* Runs `promot COMMAND`. Returns the exit status, or minus the signal that killed it. */
static int promot_with(const Disk *fate, size_t file_limit, const char *command)
{
    int status = 0;
    pid_t pid;
    struct rusage usage = {0};
    Disk with = *fate;
    with.count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    with.first_of_model = with.count + 1;
    pid = start(command, &with, file_limit);
    wait4(pid, &status, 0, &usage);
    peak_kilobytes = usage.ru_maxrss;
    disk.at = *with.count; /* for whoever wants to know how many there were */
    disk.microseconds = *with.first_of_model;
    munmap(with.count, 4096);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int promot(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int promot(const char *format, ...)
{
    char command[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    return promot_with(&(Disk){0}, 0, command);
}

/* Of the last command. */
static char *standard_output(void)
{
    return read_text(SCRATCH "/stdout");
}

static char *standard_error(void)
{
    return read_text(SCRATCH "/stderr");
}

static bool errors_contain(const char *what)
{
    char *text = standard_error();
    bool found = strstr(text, what) != NULL;
    if (!found) fprintf(stderr, "    stderr: %s", text);
    free(text);
    return found;
}

/* A run that fails says so in exactly one line that begins "promot: ". */
static int error_lines(void)
{
    char *text = standard_error();
    int n = 0;
    for (const char *at = text; (at = strstr(at, "promot: ")); at++) n += at == text || at[-1] == '\n';
    free(text);
    return n;
}

/* --------------------------------------------------------------------------------------------- a model and its task */

static void write_examples(const char *path, uint64_t key, int count)
{
    static const char *const subjects[] = {"the cat", "a dog", "the old man", "a bird"};
    static const char *const verbs[] = {"saw", "took", "likes", "found"};
    static const char *const things[] = {"house", "car", "hat", "ball", "stone"};
    FILE *file = fopen(path, "w");
    for (int i = 0; i < count; i++) {
        uint64_t n = (uint64_t)i * 4;
        int label = random_uniform(key, n) < 0.5;
        fprintf(file, "{\"id\": \"%d\", \"text\": \"%s %s the %s %s\", \"label\": \"%d\"}\n", i,
                subjects[(int)(random_uniform(key, n + 1) * 4)], verbs[(int)(random_uniform(key, n + 2) * 4)],
                label ? "blue" : "red", things[(int)(random_uniform(key, n + 3) * 5)], label);
    }
    fclose(file);
}

static const char CONFIG[] =
    "{\"model_type\": \"mt5\", \"vocab_size\": 400, \"d_model\": 16, \"d_kv\": 8, \"d_ff\": 24, \"num_heads\": 2, "
    "\"num_layers\": 1, \"pad_token_id\": 0, \"eos_token_id\": 1, \"decoder_start_token_id\": 0}";

/* Makes everything once: SCRATCH/model, SCRATCH/toy.json and its data, SCRATCH/text.txt. False: it failed. */
static bool fixture(void)
{
    static bool made;
    Error error = {0};
    Device *dev;
    Model *model;
    FILE *text;
    if (made) return true;
    CHECK(directory_remove(SCRATCH, &error) == 0 && directory_create(SCRATCH "/model", &error) == 0 &&
              directory_create(SCRATCH "/data", &error) == 0,
          "%s", error.text);
    write_examples(SCRATCH "/data/train.jsonl", 1, 64);
    write_examples(SCRATCH "/data/dev.jsonl", 2, 20);
    text = fopen(SCRATCH "/text.txt", "w");
    for (int i = 0; i < 40; i++)
        fprintf(text, "the cat saw the %s house and a dog took the %s hat number %d\n", i % 2 ? "red" : "blue",
                i % 3 ? "blue" : "red", i);
    for (int i = 0; i < 40; i++)
        fprintf(text, "say the old man likes the %s ball\t%s\tsay a bird found the stone\t%s\n", i % 2 ? "red" : "blue",
                i % 2 ? "False" : "True", i % 3 ? "True" : "False");
    fclose(text);
    if (file_write_text(SCRATCH "/config.json", CONFIG, &error) ||
        file_write_text(SCRATCH "/toy.json",
                        "{\"name\": \"toy\", \"template\": \"say {text} answer:\", \"labels\": {\"0\": \"False\", "
                        "\"1\": \"True\"}}",
                        &error) ||
        file_write_text(SCRATCH "/other.json",
                        "{\"name\": \"other\", \"template\": \"{text} was it blue?\", \"labels\": {\"0\": \"False\", "
                        "\"1\": \"True\"}}",
                        &error) ||
        tokenizer_train(SCRATCH "/text.txt", SCRATCH "/spiece.model", 400, &error)) {
        CHECK(false, "%s", error.text);
        return false;
    }
    dev = device_open(1, MATMUL_FP32, &error);
    model = model_create(SCRATCH "/config.json", dev, 1, &error);
    made = model && model_write(model, SCRATCH "/model", SCRATCH, &error) == 0;
    CHECK(made, "%s", error.text);
    model_close(model);
    device_close(dev);
    return made;
}

#define TOY "--task toy=" SCRATCH "/data --task-file " SCRATCH "/toy.json"
#define BOTH TOY " --task other=" SCRATCH "/data --task-file " SCRATCH "/other.json"
#define COMMON "--threads 1 --quiet --beams 1 --seed 4"
/* Learns the task; stage 1 alone cannot, on a model that was never pretrained. */
#define LEARNING                                                                                                       \
    "train --model " SCRATCH "/model " TOY " " COMMON                                                                  \
    " --prompt-length 4 --batch 16 --lr 0.02 --steps 200 --checkpoint-every 50 "                                       \
    "--prompt-steps 10 --prompt-checkpoint-every 5 --dropout 0 --label-smoothing 0"
/* So short that it can be killed often. */
#define SHORT                                                                                                          \
    "train --model " SCRATCH "/model " TOY " " COMMON " --prompt-length 4 --batch 4 --steps 24 --checkpoint-every 6 "  \
    "--prompt-steps 24 --prompt-checkpoint-every 6 --save-every 2 --max-length 3"

static char *run_path(const char *run, const char *name)
{
    return text_format(SCRATCH "/%s/%s", run, name);
}

static bool run_has(const char *run, const char *name)
{
    char *path = run_path(run, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

static cJSON *run_read_json(const char *run, const char *name)
{
    char *path = run_path(run, name), *text = read_text(path);
    cJSON *json = cJSON_Parse(text);
    free(path);
    free(text);
    return json;
}

static void forget_run(const char *run)
{
    Error error = {0};
    char *path = run_path(run, "");
    CHECK(directory_remove(path, &error) == 0, "%s", error.text);
    free(path);
}

static double number_in(const cJSON *json, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static bool is_text(const cJSON *json, const char *name, const char *expected)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, name));
    return text && strcmp(text, expected) == 0;
}

static const cJSON *stage_in(const cJSON *done, const char *name)
{
    const cJSON *stage;
    cJSON_ArrayForEach(
        stage, cJSON_GetObjectItemCaseSensitive(done, "stages")) if (is_text(stage, "stage", name)) return stage;
    return NULL;
}

static bool same_file(const char *a, const char *b)
{
    MappedFile x = {0}, y = {0};
    Error error = {0};
    bool same = mapped_file_open(&x, a, &error) == 0 && mapped_file_open(&y, b, &error) == 0 && x.bytes == y.bytes &&
                memcmp(x.data, y.data, x.bytes) == 0;
    mapped_file_close(&x);
    mapped_file_close(&y);
    return same;
}

/* ------------------------------------------------------------------------------------------------------------ kills */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names of a directory, sorted, each followed by a space. To be freed. */
static char *list_directory(const char *path)
{
    DIR *directory = opendir(path);
    const struct dirent *entry;
    char *names[64], *all = text_format("%s", "");
    size_t n = 0;
    while (directory && n < 64 && (entry = readdir(directory)))
        if (entry->d_name[0] != '.') names[n++] = text_format("%s", entry->d_name);
    if (directory) closedir(directory);
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 0; i < n; i++) {
        char *longer = text_format("%s%s ", all, names[i]);
        free(all);
        free(names[i]);
        all = longer;
    }
    return all;
}

/* How far a run's log has come: 0 its first stage (or not begun), 1 the second. */
static int stage_reached(const char *run, const char *second)
{
    char *path = run_path(run, "log.jsonl"), *text = read_text(path), *name = text_format("\"stage\":\"%s\"", second);
    int stage = strstr(text, name) != NULL;
    free(path);
    free(text);
    free(name);
    return stage;
}

/* The lines of a run's log: a resumed run writes as many of them again, first of all. */
static size_t log_length(const char *run)
{
    char *path = run_path(run, "log.jsonl"), *text = read_text(path);
    size_t n = 0;
    for (const char *at = text; *at; at++) n += *at == '\n';
    free(path);
    free(text);
    return n;
}

/* Kills a run again and again until it comes through: at operations that the seed chooses, now and then among those
 * with which the log is opened, and every third time after so many microseconds. within: about as many
 * operations as lie between two saved states; the more kills there were, the further the next may come, so that each is
 * passed on a slow machine too, where no time of a few milliseconds is long enough. kills: by stage. */
static void kill_until_done(const char *command, const char *run, uint64_t seed, const char *second_stage, long within,
                            int kills[2])
{
    enum { LIMIT = 500 };
    char *resumed = text_format("%s --resume", command);
    int status = -SIGKILL, attempt = 0;
    for (; attempt < LIMIT && status < 0; attempt++) {
        int stage = stage_reached(run, second_stage);
        double drawn = random_uniform(seed, (uint64_t)attempt);
        size_t opening = log_length(run) + 4;
        Disk fate = {.fate = DIE};
        if (attempt % 3 == 2)
            fate.microseconds = 1 + (long)(drawn * 5000);
        else if (attempt % 4 == 0)
            fate.at = 1 + (long)(drawn * (double)opening);
        else
            fate.at = 1 + (long)opening + (long)(drawn * drawn * (double)(within + attempt / 2));
        status = promot_with(&fate, 0, resumed);
        kills[stage] += status < 0;
    }
    CHECK(status == 0, "%s: exit %d after %d attempts", run, status, attempt);
    if (status > 0) errors_contain("(what it said)");
    free(resumed);
}

/* ------------------------------------------------------------------------------------------ what an evaluation says */

static double score_of(const cJSON *results, const char *task, const char *shots)
{
    return number_in(cJSON_GetObjectItem(cJSON_GetObjectItem(cJSON_GetObjectItem(results, "tasks"), task), "scores"),
                     shots);
}

#endif

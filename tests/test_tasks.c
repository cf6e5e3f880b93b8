/* test_tasks.c: data/tasks.c. Every template is written out by hand here, byte for byte as in the paper's table 7. */
#include "test.h"

#include "../data/tasks.c"

static const char scratch[] = "build/test/tasks";

/* ------------------------------------------------------------------------------------------------------- helpers */

static char *scratch_path(const char *name)
{
    static char path[300];
    Error error;
    if (directory_create(scratch, &error) != 0) abort();
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static const char *write_bytes(const char *name, const char *data, size_t bytes)
{
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes) abort();
    fclose(file);
    return path;
}

static const char *write_file(const char *name, const char *text)
{
    return write_bytes(name, text, strlen(text));
}

static Task *builtin(const char *name)
{
    Error error = {0};
    Task *task = task_builtin(name, &error);
    CHECK(task != NULL, "%s", error.text);
    if (!task) exit(1);
    return task;
}

static Task *own(const char *json)
{
    Error error = {0};
    Task *task = task_from_file(write_file("own.json", json), &error);
    CHECK(task != NULL, "%s", error.text);
    if (!task) exit(1);
    return task;
}

/* A whole split in memory. */
typedef struct {
    Example *items;
    size_t count;
} Examples;

static void examples_free(Examples *examples)
{
    for (size_t i = 0; i < examples->count; i++) example_free(&examples->items[i]);
    free(examples->items);
    *examples = (Examples){0};
}

static int task_read(const Task *task, const char *path, Split split, Examples *out, Error *error)
{
    Dataset *dataset = dataset_open(task, path, split, error);
    int status = dataset ? 0 : -1;
    *out = (Examples){0};
    if (dataset) out->items = calloc(dataset_count(dataset), sizeof *out->items);
    for (size_t i = 0; status == 0 && i < dataset_count(dataset); i++) {
        status = dataset_get(dataset, i, &out->items[i], error);
        if (status == 0) out->count++;
    }
    if (status != 0) examples_free(out);
    dataset_close(dataset);
    return status;
}

/* Reads a text as a file of that name; on failure count is 0 and error says why. */
static Examples read_text(const Task *task, const char *name, const char *text, Error *error)
{
    Examples examples;
    *error = (Error){0};
    if (task_read(task, write_file(name, text), SPLIT_DEV, &examples, error) != 0) {
        CHECK(examples.count == 0 && examples.items == NULL);
    }
    return examples;
}

/* The only example of a text: id, input, first answer. */
static void check_one(const char *task_name_, const char *name, const char *text, const char *id, const char *input,
                      const char *target)
{
    Task *task = builtin(task_name_);
    Error error;
    Examples examples = read_text(task, name, text, &error);
    CHECK(examples.count == 1, "%s: %zu examples %s", task_name_, examples.count, error.text);
    if (examples.count == 1) {
        CHECK(strcmp(examples.items[0].id, id) == 0, "%s", examples.items[0].id);
        CHECK(strcmp(examples.items[0].input, input) == 0, "%s", examples.items[0].input);
        CHECK(examples.items[0].n_targets == 1);
        CHECK(strcmp(examples.items[0].targets[0], target) == 0, "%s", examples.items[0].targets[0]);
    }
    examples_free(&examples);
    task_free(task);
}

/* The text must be refused with a message that holds `expected`. */
static void check_refused(const Task *task, const char *name, const char *text, const char *expected)
{
    Error error;
    Examples examples = read_text(task, name, text, &error);
    CHECK(examples.count == 0 && error.exit_code == EXIT_USAGE, "%s: not refused", text);
    CHECK(strstr(error.text, expected) && strstr(error.text, name), "expected \"%s\", found \"%s\"", expected,
          error.text);
    CHECK(!strchr(error.text, '\n'));
    examples_free(&examples);
}

static void check_postprocess(const Task *task, const char *raw, const char *expected)
{
    char *found = task_postprocess(task, raw);
    CHECK(found && strcmp(found, expected) == 0, "\"%s\": expected \"%s\", found \"%s\"", raw, expected, found);
    free(found);
}

/* -------------------------------------------------------------------------------------------------- built-in tasks */

static void test_templates(void)
{
    check_one("rte", "rte.jsonl",
              "{\"premise\": \"No Weapons of Mass Destruction Found in Iraq Yet.\", \"hypothesis\": \"Weapons of Mass "
              "Destruction Found in Iraq.\", \"label\": \"not_entailment\", \"idx\": 0}\n",
              "0",
              "No Weapons of Mass Destruction Found in Iraq Yet. question: Weapons of Mass Destruction Found in Iraq. "
              "Is it true or false? answer:",
              "False");
    check_one("cb", "cb.jsonl",
              "{\"premise\": \"A: Yeah.\", \"hypothesis\": \"they do\", \"label\": \"neutral\", \"idx\": 17}\n", "17",
              "A: Yeah. question: they do Is it true or false or neither? answer:", "Neither");
    check_one(
        "wic", "wic.jsonl",
        "{\"word\": \"place\", \"sentence1\": \"Do you want to come over to my place later?\", \"sentence2\": \"A "
        "political system with no place for the less prominent groups.\", \"idx\": 3, \"label\": false, "
        "\"start1\": 31, \"start2\": 27, \"end1\": 36, \"end2\": 32, \"version\": 1.1}\n",
        "3",
        "Do you want to come over to my place later? A political system with no place for the less prominent "
        "groups. question: The word place is used in the same way in the two sentences. Is it true or False? "
        "answer:",
        "False");
    check_one(
        "snli", "snli_1.0_dev.jsonl",
        "{\"gold_label\": \"contradiction\", \"pairID\": \"4705552913.jpg#2r1c\", \"captionID\": \"x\", "
        "\"annotator_labels\": [\"contradiction\"], \"sentence1\": \"Two women are embracing.\", \"sentence2\": "
        "\"The men are fighting.\"}\n",
        "4705552913.jpg#2r1c",
        "Two women are embracing. question: The men are fighting. Is it true or false or neither? answer:", "False");
    check_one("xsum", "xsum.jsonl", "{\"document\": \"One.\\nTwo.\", \"summary\": \"Both.\", \"id\": \"29750031\"}\n",
              "29750031", "Article: One.\nTwo. One sentence summary:", "Both.");
    check_one("wikilingua", "wikilingua.jsonl",
              "{\"gem_id\": \"wiki_lingua_en-val-7\", \"source\": \"Do it.\", \"target\": \"How.\", \"references\": "
              "[\"How.\"]}\n",
              "wiki_lingua_en-val-7", "Article: Do it. One sentence summary:", "How.");
    check_one("rte", "rte.tsv", "premise\thypothesis\tlabel\nA.\tB.\tentailment\n", "2",
              "A. question: B. Is it true or false? answer:", "True");
}

/* Every stored label of every task, by word, by number and as true or false. */
static void test_labels(void)
{
    static const struct {
        const char *task, *label, *word;
    } cases[] = {
        {"rte", "\"entailment\"", "True"},
        {"rte", "\"not_entailment\"", "False"},
        {"rte", "0", "True"},
        {"rte", "1", "False"},
        {"rte", "\"neutral\"", "False"},
        {"rte", "\"contradiction\"", "False"},
        {"cb", "\"entailment\"", "True"},
        {"cb", "\"contradiction\"", "False"},
        {"cb", "\"neutral\"", "Neither"},
        {"cb", "0", "True"},
        {"cb", "1", "False"},
        {"cb", "2", "Neither"},
        {"snli", "\"entailment\"", "True"},
        {"snli", "\"contradiction\"", "False"},
        {"snli", "\"neutral\"", "Neither"},
        {"snli", "0", "True"},
        {"snli", "1", "Neither"},
        {"snli", "\"2\"", "False"},
        {"wic", "true", "True"},
        {"wic", "false", "False"},
        {"wic", "\"True\"", "True"},
        {"wic", "\"false\"", "False"},
        {"wic", "0", "False"},
        {"wic", "1", "True"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Task *task = builtin(cases[i].task);
        char text[300];
        Error error;
        Examples examples;
        snprintf(
            text, sizeof text,
            "{\"premise\": \"a\", \"hypothesis\": \"b\", \"sentence1\": \"a\", \"sentence2\": \"b\", \"word\": \"c\", "
            "\"label\": %s}\n",
            cases[i].label);
        examples = read_text(task, "label.jsonl", text, &error);
        CHECK(examples.count == 1 && strcmp(examples.items[0].targets[0], cases[i].word) == 0, "%s %s: %s",
              cases[i].task, cases[i].label, error.text);
        examples_free(&examples);
        task_free(task);
    }
}

static void test_task_properties(void)
{
    static const struct {
        const char *name, *words[4];
    } cases[] = {{"rte", {"True", "False"}},
                 {"cb", {"True", "False", "Neither"}},
                 {"wic", {"False", "True"}},
                 {"snli", {"True", "Neither", "False"}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Task *task = builtin(cases[i].name);
        const char *const *words;
        size_t n = task_labels(task, &words), expected = 0;
        while (cases[i].words[expected]) expected++;
        CHECK(strcmp(task_name(task), cases[i].name) == 0);
        CHECK(task_metric(task) == METRIC_ACCURACY);
        CHECK(task_is_classification(task));
        CHECK(n == expected, "%s: %zu", cases[i].name, n);
        for (size_t k = 0; k < n && k < expected; k++) CHECK(strcmp(words[k], cases[i].words[k]) == 0, "%s", words[k]);
        task_free(task);
    }
    task_free(NULL);
}

static void test_unknown_task(void)
{
    Error error = {0};
    CHECK(task_builtin("nosuch", &error) == NULL);
    CHECK(error.exit_code == EXIT_USAGE &&
              strstr(error.text, "rte cb wic snli openbookqa triviaqa webquestions wmt14_en_fr"),
          "%s", error.text);
    CHECK(task_builtin("", &error) == NULL && task_builtin("RTE", &error) == NULL);
}

/* --------------------------------------------------------------------------------------------------------- reading */

static void test_layouts(void)
{
    Task *task = builtin("snli");
    Error error;
    /* no majority: left out; blank lines and CRLF; a last line without an end; a byte order mark */
    Examples examples =
        read_text(task, "layout.jsonl",
                  "\xef\xbb\xbf{\"sentence1\": \"a\", \"sentence2\": \"b\", \"gold_label\": \"neutral\"}\r\n"
                  "\r\n"
                  "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"gold_label\": \"-\"}\r\n"
                  "{\"sentence1\": \"\\u00e9\\\"\\t\", \"sentence2\": \"d\", \"gold_label\": \"entailment\"}",
                  &error);
    CHECK(examples.count == 2, "%zu %s", examples.count, error.text);
    if (examples.count == 2) {
        CHECK(strcmp(examples.items[0].id, "1") == 0 && strcmp(examples.items[1].id, "4") == 0);
        CHECK(strcmp(examples.items[1].input, "é\"\t question: d Is it true or false or neither? answer:") == 0, "%s",
              examples.items[1].input);
    }
    examples_free(&examples);
    examples = read_text(task, "layout.tsv",
                         "\xef\xbb\xbfpremise\tid\thypothesis\tlabel\r\n"
                         "a\tx7\tb\t2\r\n"
                         "a\tx8\tb\t-1\r\n"
                         "\"say \"\"hi\"\"\"\tx9\t\"no\" and \"yes\"\tneutral\r\n"
                         "\"\tx10\t\"\"\t0\n"
                         "x\"\"y\"\tx11\tb\t0\n",
                         &error);
    CHECK(examples.count == 4, "%zu %s", examples.count, error.text);
    if (examples.count == 4) {
        static const char *const inputs[] = {
            "a question: b Is it true or false or neither? answer:",
            "say \"hi\" question: \"no\" and \"yes\" Is it true or false or neither? answer:",
            "\" question:  Is it true or false or neither? answer:",
            "x\"\"y\" question: b Is it true or false or neither? answer:"};
        static const char *const ids[] = {"x7", "x9", "x10", "x11"};
        static const char *const words[] = {"False", "Neither", "True", "True"};
        for (size_t i = 0; i < 4; i++) {
            CHECK(strcmp(examples.items[i].input, inputs[i]) == 0, "%s", examples.items[i].input);
            CHECK(strcmp(examples.items[i].id, ids[i]) == 0, "%s", examples.items[i].id);
            CHECK(strcmp(examples.items[i].targets[0], words[i]) == 0, "%s", examples.items[i].targets[0]);
        }
    }
    examples_free(&examples);
    /* JSON lines are also known by their first character */
    examples = read_text(
        task, "noname",
        "\xef\xbb\xbf {\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 0, \"id\": 1234567890123}\n", &error);
    CHECK(examples.count == 1 && strcmp(examples.items[0].id, "1234567890123") == 0, "%s", error.text);
    examples_free(&examples);
    task_free(task);
}

static void test_malformed_rows(void)
{
#define GOOD "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 0}\n"
    Task *task = builtin("rte");
    check_refused(task, "bad.jsonl", GOOD "{\"premise\": \"a\", \n", "bad.jsonl:2: malformed JSON");
    check_refused(task, "bad.jsonl", GOOD "{\"premise\": \"a\"} x\n", "bad.jsonl:2: malformed JSON at byte 18");
    check_refused(task, "bad.jsonl", GOOD "\n[1, 2]\n", "bad.jsonl:3: expected a JSON object, found a list");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"label\": 0}\n", "bad.jsonl:1: no field hypothesis");
    check_refused(task, "bad.jsonl", "{\"premise\": 5, \"hypothesis\": \"b\", \"label\": 0}\n",
                  "bad.jsonl:1: wrong type in field premise (expected a string, found a number)");
    check_refused(task, "bad.jsonl", "{\"premise\": null, \"hypothesis\": \"b\", \"label\": 0}\n", "found null");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": [\"b\"], \"label\": 0}\n", "found a list");
    check_refused(task, "bad.jsonl", GOOD GOOD "{\"premise\": \"a\", \"hypothesis\": \"b\", \"idx\": 1}\n",
                  "bad.jsonl:3: no field label");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": \"maybe\"}\n",
                  "unknown label (expected entailment, not_entailment, neutral, contradiction, found \"maybe\")");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": -1}\n", "found \"-1\"");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 2}\n", "found \"2\"");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 0.5}\n", "found \"0.5\"");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": {}}\n", "found an object");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\\u0000b\", \"hypothesis\": \"b\", \"label\": 0}\n", "1: NUL");
    check_refused(task, "bad.jsonl", "{\"premise\": \"a\\ud800\", \"hypothesis\": \"b\", \"label\": 0}\n", "malformed");
    check_refused(task, "bad.jsonl", GOOD "{\"premise\": \"\xff\", \"hypothesis\": \"b\", \"label\": 0}\n",
                  "is not valid UTF-8");
    check_refused(task, "bad.tsv", "premise\thypothesis\tlabel\na\tb\t0\na\tb\n",
                  "bad.tsv:3: malformed row (expected 3 columns, found 2)");
    check_refused(task, "bad.tsv", "premise\thypothesis\tlabel\na\tb\t0\t1\n", "expected 3 columns, found 4");
    check_refused(task, "bad.tsv", "premise\tother\tlabel\na\tb\t0\n", "bad.tsv:2: no field hypothesis");
    check_refused(task, "bad.tsv", "premise\tlabel\tpremise\na\tb\t0\n", "bad.tsv:1: two columns have the name");
    check_refused(task, "bad.jsonl", "", "no examples");
    check_refused(task, "bad.tsv", "premise\thypothesis\tlabel\n", "no examples");
    task_free(task);
    task = builtin("rte");
    Examples examples = {0};
    Error error = {0};
    /* an escaped backslash in front of u0000 is text */
    examples =
        read_text(task, "good.jsonl", "{\"premise\": \"a\\\\u0000\", \"hypothesis\": \"b\", \"label\": 0}\n", &error);
    CHECK(examples.count == 1 && strncmp(examples.items[0].input, "a\\u0000 question", 16) == 0, "%s", error.text);
    examples_free(&examples);
    const char nul[] = GOOD "{\"premise\": \"a\0\"}\n";
    CHECK(task_read(task, write_bytes("nul.jsonl", nul, sizeof nul - 1), SPLIT_DEV, &examples, &error) == -1);
    CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "nul.jsonl") && strstr(error.text, "NUL"), "%s",
          error.text);
    task_free(task);
}

static void test_split_files(void)
{
    static const char *const orders[] = {"val.jsonl", "dev.jsonl", "validation.jsonl", "rte_valid.tsv"};
    Task *task = builtin("rte");
    Examples examples;
    Error error = {0};
    char directory[200];
    snprintf(directory, sizeof directory, "%s/splits", scratch);
    if (directory_remove(directory, &error) != 0 || directory_create(directory, &error) != 0) abort();
    CHECK(task_read(task, directory, SPLIT_DEV, &examples, &error) == -1);
    CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "no dev split"), "%s", error.text);
    CHECK(task_read(task, directory, SPLIT_TRAIN, &examples, &error) == -1);
    CHECK(strstr(error.text, "no train split"), "%s", error.text);
    write_file("splits/train.jsonl", "{\"premise\": \"train\", \"hypothesis\": \"b\", \"label\": 0}\n");
    for (int i = 3; i >= 0; i--) { /* each new one goes before those that are there */
        char name[100], text[200];
        snprintf(name, sizeof name, "splits/%s", orders[i]);
        if (i == 3)
            snprintf(text, sizeof text, "premise\thypothesis\tlabel\n%s\tb\t1\n", orders[i]);
        else
            snprintf(text, sizeof text, "{\"premise\": \"%s\", \"hypothesis\": \"b\", \"label\": 0}\n", orders[i]);
        write_file(name, text);
        CHECK(task_read(task, directory, SPLIT_DEV, &examples, &error) == 0, "%s", error.text);
        CHECK(examples.count == 1 && strncmp(examples.items[0].input, orders[i], strlen(orders[i])) == 0, "%s",
              orders[i]);
        examples_free(&examples);
    }
    CHECK(task_read(task, directory, SPLIT_TRAIN, &examples, &error) == 0, "%s", error.text);
    CHECK(examples.count == 1 && strncmp(examples.items[0].input, "train ", 6) == 0);
    examples_free(&examples);
    task_free(task);

    task = builtin("snli");
    write_file("splits/snli_1.0_train.jsonl",
               "{\"sentence1\": \"s\", \"sentence2\": \"t\", \"gold_label\": \"neutral\"}\n");
    remove(scratch_path("splits/train.jsonl"));
    CHECK(task_read(task, directory, SPLIT_TRAIN, &examples, &error) == 0, "%s", error.text);
    CHECK(examples.count == 1 && strcmp(examples.items[0].targets[0], "Neither") == 0);
    examples_free(&examples);
    CHECK(task_read(task, "build/test/tasks/none", SPLIT_TRAIN, &examples, &error) == -1);
    CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "build/test/tasks/none"), "%s", error.text);
    task_free(task);
}

/* The real text of the shared fixtures. */
static void test_shared_files(void)
{
    char path[1200];
    Task *snli = builtin("snli"), *rte = builtin("rte");
    Examples examples = {0};
    Error error = {0};
    size_t counts[3] = {0};
    if (!test_shared()) {
        task_free(snli);
        task_free(rte);
        SKIP("no shared fixtures");
    }
    snprintf(path, sizeof path, "%s/tasks/nli", test_shared());
    CHECK(task_read(snli, path, SPLIT_DEV, &examples, &error) == 0, "%s", error.text); /* snli_validation.tsv */
    CHECK(examples.count == 9842, "%zu", examples.count);
    for (size_t i = 0; i < examples.count; i++) {
        const char *word = examples.items[i].targets[0];
        counts[0] += strcmp(word, "True") == 0;
        counts[1] += strcmp(word, "Neither") == 0;
        counts[2] += strcmp(word, "False") == 0;
        CHECK(!strstr(examples.items[i].input, "\"\""), "%s", examples.items[i].input); /* its cells are quoted */
    }
    CHECK(counts[0] == 3329 && counts[1] == 3235 && counts[2] == 3278, "%zu %zu %zu", counts[0], counts[1], counts[2]);
    if (examples.count > 1)
        CHECK(
            strcmp(examples.items[1].input,
                   "Two women are embracing while holding to go packages. question: Two woman are holding packages. Is "
                   "it true or false or neither? answer:") == 0,
            "%s", examples.items[1].input);
    examples_free(&examples);
    snprintf(path, sizeof path, "%s/tasks/nli/med.tsv", test_shared());
    CHECK(task_read(rte, path, SPLIT_TRAIN, &examples, &error) == 0, "%s", error.text);
    CHECK(examples.count == 3588, "%zu", examples.count);
    counts[0] = 0;
    for (size_t i = 0; i < examples.count; i++) counts[0] += strcmp(examples.items[i].targets[0], "True") == 0;
    CHECK(counts[0] == 1799, "%zu", counts[0]);
    if (examples.count > 2) CHECK(strcmp(examples.items[2].id, "4") == 0, "%s", examples.items[2].id);
    examples_free(&examples);
    task_free(snli);
    task_free(rte);
}

/* ------------------------------------------------------------------------------------------------------- own tasks */

static void test_own_classes(void)
{
    Task *task =
        own("{\"name\": \"toxic\", \"template\": \"{{{text}}} by {who|author}. Rude?\", \"label_field\": \"y\",\n"
            " \"labels\": {\"true\": \"Yes\", \"false\": \"No\", \"2\": \"Not sure\", \"x\": \"No\"}, \"train\": "
            "\"a.tsv\", \"dev\": \"b.jsonl\"}");
    const char *const *words;
    Error error = {0};
    Examples examples;
    char directory[200];
    CHECK(strcmp(task_name(task), "toxic") == 0 && task_metric(task) == METRIC_ACCURACY &&
          task_is_classification(task));
    CHECK(task_labels(task, &words) == 3 && strcmp(words[0], "Yes") == 0 && strcmp(words[2], "Not sure") == 0);
    snprintf(directory, sizeof directory, "%s/own", scratch);
    if (directory_create(directory, &error) != 0) abort();
    write_file("own/a.tsv", "text\tauthor\ty\nhi {x}\tme\tx\n");
    write_file("own/b.jsonl", "{\"text\": \"hey\", \"who\": \"you\", \"author\": \"me\", \"y\": true}\n"
                              "{\"text\": \"hey\", \"who\": \"you\", \"y\": 2}\n");
    CHECK(task_read(task, directory, SPLIT_TRAIN, &examples, &error) == 0, "%s", error.text);
    CHECK(examples.count == 1 && strcmp(examples.items[0].input, "{hi {x}} by me. Rude?") == 0);
    CHECK(examples.count == 1 && strcmp(examples.items[0].targets[0], "No") == 0);
    examples_free(&examples);
    CHECK(task_read(task, directory, SPLIT_DEV, &examples, &error) == 0, "%s", error.text);
    CHECK(examples.count == 2 && strcmp(examples.items[0].input, "{hey} by you. Rude?") == 0);
    CHECK(examples.count == 2 && strcmp(examples.items[0].targets[0], "Yes") == 0);
    CHECK(examples.count == 2 && strcmp(examples.items[1].targets[0], "Not sure") == 0);
    examples_free(&examples);
    remove(scratch_path("own/a.tsv"));
    CHECK(task_read(task, directory, SPLIT_TRAIN, &examples, &error) == -1);
    CHECK(strstr(error.text, "no file a.tsv"), "%s", error.text);
    check_postprocess(task, "Not sure, really", "Not sure");
    check_postprocess(task, "Not today", "Not");
    task_free(task);
}

static void test_own_text(void)
{
    Task *task = own(
        "{\"name\": \"nq\", \"template\": \"Q: {question} A:\", \"target\": \"{answer}\", \"accepted\": \"aliases\","
        " \"metric\": \"trivia-em\", \"prefix\": \"Q:\"}");
    Error error = {0};
    Examples examples =
        read_text(task, "nq.jsonl",
                  "{\"question\": \"who\", \"answer\": [\"Bob\", \"Rob\"], \"aliases\": [\"Robert\", \"Bob\"]}\n"
                  "{\"question\": \"what\", \"answer\": \"it\", \"aliases\": \"that\"}\n"
                  "{\"question\": \"why\", \"answer\": \"so\", \"aliases\": []}\n",
                  &error);
    CHECK(task_metric(task) == METRIC_TRIVIA_EM && !task_is_classification(task));
    CHECK(examples.count == 3, "%s", error.text);
    if (examples.count == 3) {
        const Example *who = &examples.items[0];
        CHECK(strcmp(who->input, "Q: who A:") == 0, "%s", who->input);
        CHECK(who->n_targets == 3, "%zu", who->n_targets);
        CHECK(strcmp(who->targets[0], "Bob") == 0 && strcmp(who->targets[2], "Robert") == 0);
        CHECK(examples.items[1].n_targets == 2 && examples.items[2].n_targets == 1);
    }
    examples_free(&examples);
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": [], \"aliases\": []}\n",
                  "nq.jsonl:1: no answer");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": \"\", \"aliases\": []}\n",
                  "nq.jsonl:1: an empty answer");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": \"a\", \"aliases\": [\"\"]}\n",
                  "an empty answer");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": [1], \"aliases\": []}\n", "expected strings");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": 1, \"aliases\": []}\n", "found a number");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"answer\": \"a\"}\n", "nq.jsonl:1: no field aliases");
    check_refused(task, "nq.jsonl", "{\"question\": \"q\", \"aliases\": []}\n", "nq.jsonl:1: no field answer");
    task_free(task);
    task = own("{\"name\": \"two\", \"template\": \"{a}\", \"target\": \"{b}, {c}\", \"metric\": \"bleu\"}");
    examples = read_text(task, "two.tsv", "a\tb\tc\nx\ty\tz\n", &error);
    CHECK(examples.count == 1 && strcmp(examples.items[0].targets[0], "y, z") == 0, "%s", error.text);
    examples_free(&examples);
    check_refused(task, "two.jsonl", "{\"a\": \"x\", \"b\": [\"y\"], \"c\": \"z\"}\n", "found a list");
    task_free(task);
}

static void test_own_refused(void)
{
#define WITH(rest) "{\"name\": \"n\", \"template\": \"{a}\", " rest "}"
    static const struct {
        const char *json, *expected;
    } cases[] = {
        {"", "own.json:1: malformed JSON"},
        {"{\"name\": \"n\",\n \"template\": }", "own.json:2: malformed JSON at byte 14"},
        {"[]", "expected a JSON object, found a list"},
        {"{}", "no \"name\""},
        {"{\"name\": \"n\"}", "no \"template\""},
        {WITH("\"metric\": \"bleu\""), "either \"labels\" or \"target\", found neither"},
        {WITH("\"target\": \"{b}\", \"labels\": {\"a\": \"b\"}"), "found both"},
        {WITH("\"target\": \"{b}\""), "no \"metric\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"blue\""), "unknown \"metric\""},
        {WITH("\"target\": \"{b}\", \"metric\": 5"),
         "wrong value of \"metric\" (expected a string that is not empty, found a number)"},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"prefx\": \"Q:\""), "unknown key \"prefx\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"prefix\": \"\""), "wrong value of \"prefix\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"label_field\": \"y\""), "\"label_field\" goes with"},
        {WITH("\"target\": \"b\", \"metric\": \"bleu\""), "\"target\" has no {field} place"},
        {WITH("\"target\": \"{b\", \"metric\": \"bleu\""), "\"target\" has a brace without a partner"},
        {WITH("\"labels\": {\"a\": \"b\"}, \"accepted\": \"c\""), "\"accepted\" goes with"},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"max_input\": 0"), "wrong value of \"max_input\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"max_input\": 1.5"), "wrong value of \"max_input\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"max_input\": \"9\""), "wrong value of \"max_input\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"max_input\": 1e99"), "wrong value of \"max_input\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": [\"en\"]"), "wrong value of \"parallel\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": [\"a\", \"b\", \"c\"]"),
         "value of \"parallel\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": [\"a\", \"a\"]"), "value of \"parallel\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": [\"a\", 1]"), "wrong value of \"parallel\""},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": \"en\""), "wrong value of \"parallel\""},
        {WITH("\"labels\": {\"a\": \"b\"}, \"parallel\": [\"a\", \"b\"]"), "\"parallel\" goes with"},
        {WITH("\"target\": \"{b}\", \"metric\": \"bleu\", \"test\": 1"), "wrong value of \"test\""},
        {WITH("\"a\\nb\": 1"), "unknown key \"a b\""}, /* an error is one line */
        {WITH("\"labels\": {}"), "wrong value of \"labels\""},
        {WITH("\"labels\": \"a\""), "found a string"},
        {WITH("\"labels\": {\"a\": 1}"), "wrong word of label \"a\""},
        {"{\"name\": \"a/b\", \"template\": \"{a}\", \"labels\": {\"a\": \"b\"}}", "wrong \"name\""},
        {"{\"name\": \"..\", \"template\": \"{a}\", \"labels\": {\"a\": \"b\"}}", "wrong \"name\""},
        {"{\"name\": \"n\", \"template\": \"a}\", \"labels\": {\"a\": \"b\"}}", "\"template\" has a brace"},
        {"{\"name\": \"n\", \"template\": \"{}\", \"labels\": {\"a\": \"b\"}}", "\"template\" has a brace"},
        {"{\"name\": \"n\", \"template\": \"{a{b}}\", \"labels\": {\"a\": \"b\"}}", "\"template\" has a brace"},
        {"{\"name\": \"n\", \"template\": \"{{a}}\", \"labels\": {\"a\": \"b\"}}", "\"template\" has no {field} place"},
        {"{\"name\": \"n\xff\"}", "is not valid UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        Task *task = task_from_file(write_file("own.json", cases[i].json), &error);
        CHECK(task == NULL, "%s", cases[i].json);
        CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "own.json") && strstr(error.text, cases[i].expected),
              "%s: expected \"%s\", found \"%s\"", cases[i].json, cases[i].expected, error.text);
        task_free(task);
    }
    Error error = {0};
    CHECK(task_from_file("build/test/tasks/none.json", &error) == NULL);
    CHECK(error.exit_code == EXIT_USAGE && strstr(error.text, "none.json"), "%s", error.text);
    CHECK(task_from_file(scratch, &error) == NULL && error.exit_code == EXIT_USAGE, "%s", error.text);
}

/* -------------------------------------------------------------------------------------------- few shots and outputs */

static void test_few_shot(void)
{
    char *true_[] = {"True"}, *neither[] = {"Neither", "unused"}, *none[] = {"False"};
    Example a = {"1", "P1 question: H1 Is it true or false or neither? answer:", true_, 1};
    Example b = {"2", "P2 question: H2 Is it true or false or neither? answer:", neither, 2};
    Example query = {"3", "P3 question: H3 Is it true or false or neither? answer:", none, 1};
    const Example *shots[] = {&a, &b};
    char *found = few_shot_input(shots, 2, &query, "\n\n");
    CHECK(strcmp(found, "P1 question: H1 Is it true or false or neither? answer: True\n\n"
                        "P2 question: H2 Is it true or false or neither? answer: Neither\n\n"
                        "P3 question: H3 Is it true or false or neither? answer:") == 0,
          "%s", found);
    free(found);
    found = few_shot_input(shots, 1, &query, " ");
    CHECK(strcmp(found, "P1 question: H1 Is it true or false or neither? answer: True "
                        "P3 question: H3 Is it true or false or neither? answer:") == 0,
          "%s", found);
    free(found);
    found = few_shot_input(NULL, 0, &query, "\n\n");
    CHECK(strcmp(found, query.input) == 0, "%s", found);
    free(found);
}

static void test_postprocess_classes(void)
{
    Task *task = builtin("cb");
    static const char *const cases[][2] = {
        {"True", "True"},
        {"", ""},
        {"   ", ""},
        {"<extra_id_0> True <extra_id_1> False", "True"},
        {"<extra_id_0>Neither<extra_id_1>", "Neither"},
        {"<extra_id_0> False", "False"},
        {"<extra_id_0> <extra_id_1> True", ""},
        {"<extra_id_0>", ""},
        {"so <extra_id_0> Neither nor <extra_id_1> x <extra_id_2>", "Neither"},
        {"True <extra_id_1> False", "True"},
        {"True. question: more", "True"},
        {"True, because", "True"},
        {"Trueish", "Trueish"},
        {"Trueé", "Trueé"},
        {"true", "true"}, /* another first token than True: the wrong format */
        {" The answer is True", "The"},
        {"Truefalse or", "Truefalse"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_postprocess(task, cases[i][0], cases[i][1]);
    task_free(task);
}

static void test_postprocess_text(void)
{
    Task *task = own("{\"name\": \"qa\", \"template\": \"Q: {q} A:\", \"target\": \"{a}\", \"metric\": \"trivia-em\", "
                     "\"prefix\": \"Q:\"}");
    check_postprocess(task, "Paris", "Paris");
    check_postprocess(task, " the city of Paris ", "the city of Paris");
    check_postprocess(task, "Paris Q: What is the capital of Spain? A: Madrid", "Paris");
    check_postprocess(task, "<extra_id_0> Paris <extra_id_1> Q: What?", "Paris");
    check_postprocess(task, "Q: x <extra_id_0> Paris, France. Q: What? <extra_id_1> x", "Paris, France.");
    check_postprocess(task, "<extra_id_0>  <extra_id_1> Paris", "");
    check_postprocess(task, "<extra_id_2> Paris", "<extra_id_2> Paris");
    check_postprocess(task, "Квест: Q", "Квест: Q");
    task_free(task);
    task = own("{\"name\": \"plain\", \"template\": \"Q: {q} A:\", \"target\": \"{a}\", \"metric\": \"trivia-em\"}");
    check_postprocess(task, "Paris Q: What?", "Paris Q: What?");
    task_free(task);
    task = builtin("xsum");
    check_postprocess(task, "Two men ran. Article: A third", "Two men ran.");
    task_free(task);
}

static const Test tests[] = {
    {"templates", test_templates},
    {"labels", test_labels},
    {"task_properties", test_task_properties},
    {"unknown_task", test_unknown_task},
    {"layouts", test_layouts},
    {"malformed_rows", test_malformed_rows},
    {"split_files", test_split_files},
    {"shared_files", test_shared_files},
    {"own_classes", test_own_classes},
    {"own_text", test_own_text},
    {"own_refused", test_own_refused},
    {"few_shot", test_few_shot},
    {"postprocess_classes", test_postprocess_classes},
    {"postprocess_text", test_postprocess_text},
};

TEST_MAIN(tests)

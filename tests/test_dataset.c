/* test_dataset.c: data/dataset.c and data/dataset_files.c: the twelve data sets in the layouts they are distributed in,
 * row by row. What the examples say is written out by hand, byte for byte. */
#include "test.h"

#include "../data/dataset.c"

#define SCRATCH "build/test/dataset"

/* ---------------------------------------------------------------------------------------------------------- helpers */

static void put_bytes(const char *name, const char *data, size_t bytes)
{
    char path[400];
    Error error;
    FILE *file;
    snprintf(path, sizeof path, SCRATCH "/%s", name);
    *strrchr(path, '/') = '\0';
    if (directory_create(path, &error) != 0) abort();
    snprintf(path, sizeof path, SCRATCH "/%s", name);
    file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes) abort();
    fclose(file);
}

static void put(const char *name, const char *text)
{
    put_bytes(name, text, strlen(text));
}

static void put_buffer(const char *name, TextBuffer *buffer) /* which is empty then */
{
    char *text = text_take(buffer);
    put(name, text ? text : "no memory");
    free(text);
}

static void start_afresh(void)
{
    Error error;
    if (directory_remove(SCRATCH, &error) != 0 || directory_create(SCRATCH, &error) != 0) abort();
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
    put("own.json", json);
    Task *task = task_from_file(SCRATCH "/own.json", &error);
    CHECK(task != NULL, "%s", error.text);
    if (!task) exit(1);
    return task;
}

/* One row of a data set: its input and its accepted answers, with | between. */
static void check_row_of(const Dataset *dataset, size_t number, const char *input, const char *answers)
{
    Error error = {0};
    Example example;
    TextBuffer all = {0};
    char *joined;
    if (dataset_get(dataset, number, &example, &error) != 0) {
        CHECK(false, "row %zu: %s", number, error.text);
        return;
    }
    for (size_t i = 0; i < example.n_targets; i++) {
        if (i) text_put_bytes(&all, "|", 1);
        text_put_bytes(&all, example.targets[i], strlen(example.targets[i]));
    }
    CHECK(strcmp(example.input, input) == 0, "row %zu: %s", number, example.input);
    joined = text_take(&all);
    CHECK(joined && strcmp(joined, answers) == 0, "row %zu: %s", number, joined ? joined : "no memory");
    free(joined);
    example_free(&example);
    CHECK(example.input == NULL && example.n_targets == 0);
}

/* A split: its number of rows, and one of them. */
static void check_split(const Task *task, const char *path, Split split, size_t count, size_t number, const char *input,
                        const char *answers)
{
    Error error = {0};
    char full[300];
    snprintf(full, sizeof full, SCRATCH "/%s", path);
    Dataset *dataset = dataset_open(task, full, split, &error);
    CHECK(dataset != NULL, "%s %s: %s", task_name(task), path, error.text);
    if (!dataset) return;
    CHECK(dataset_count(dataset) == count, "%s %s: %zu rows", task_name(task), path, dataset_count(dataset));
    if (number < dataset_count(dataset)) check_row_of(dataset, number, input, answers);
    dataset_close(dataset);
}

static void check_refused(const Task *task, const char *path, Split split, const char *expected)
{
    Error error = {0};
    char full[300];
    snprintf(full, sizeof full, SCRATCH "/%s", path);
    Dataset *dataset = dataset_open(task, full, split, &error);
    CHECK(!dataset && error.exit_code == EXIT_USAGE, "%s is not refused (%s)", path, expected);
    CHECK(dataset || strstr(error.text, expected), "expected \"%s\", found \"%s\"", expected, error.text);
    CHECK(dataset || !strchr(error.text, '\n'));
    dataset_close(dataset);
}

/* A text as a file must be refused. */
static void check_text_refused(const Task *task, const char *name, const char *text, const char *expected)
{
    put(name, text);
    check_refused(task, name, SPLIT_TRAIN, expected);
}

/* ----------------------------------------------------------------------------------------------- the twelve layouts */

#define RTE_ROW(premise, rest) "{\"premise\": \"" premise "\", \"hypothesis\": \"h\"" rest "}\n"
#define RTE_INPUT(premise) premise " question: h Is it true or false? answer:"

/* SuperGLUE: the public test split has no labels, so the dev split is scored. */
static void test_superglue(void)
{
    Task *rte = builtin("rte"), *cb = builtin("cb"), *wic = builtin("wic");
    start_afresh();
    put("RTE/train.jsonl", RTE_ROW("a", ", \"label\": \"entailment\", \"idx\": 0")
                               RTE_ROW("b", ", \"label\": \"not_entailment\", \"idx\": 1"));
    put("RTE/val.jsonl", RTE_ROW("c", ", \"label\": \"not_entailment\", \"idx\": 0"));
    put("RTE/old/train.jsonl", RTE_ROW("farther", ", \"label\": 0")); /* the nearer one is taken */
    put("RTE/test.jsonl", RTE_ROW("d", ", \"idx\": 0"));
    check_split(rte, "RTE", SPLIT_TRAIN, 2, 1, RTE_INPUT("b"), "False");
    check_split(rte, "RTE", SPLIT_DEV, 1, 0, RTE_INPUT("c"), "False");
    check_split(rte, "RTE", SPLIT_TEST, 1, 0, RTE_INPUT("c"), "False");
    put("CB/train.jsonl", RTE_ROW("a", ", \"label\": \"neutral\", \"idx\": 0"));
    put("CB/val.jsonl", RTE_ROW("a", ", \"label\": \"contradiction\", \"idx\": 0"));
    check_split(cb, "CB", SPLIT_TEST, 1, 0, "a question: h Is it true or false or neither? answer:", "False");
    put("WiC/val.jsonl", "{\"word\": \"w\", \"sentence1\": \"s\", \"sentence2\": \"t\", \"idx\": 0, \"label\": true, "
                         "\"start1\": 0, \"end1\": 1, \"start2\": 0, \"end2\": 1, \"version\": 1.1}\n");
    check_split(
        wic, "WiC", SPLIT_TEST, 1, 0,
        "s t question: The word w is used in the same way in the two sentences. Is it true or False? answer:", "True");
    /* Several sets in one directory: which one is meant? */
    check_refused(rte, "", SPLIT_TRAIN, "have the same name");
    check_refused(rte, "WiC", SPLIT_TRAIN, "no train split in it (expected train;");
    put("only_test/test.jsonl", RTE_ROW("d", ", \"idx\": 0"));
    check_refused(rte, "only_test", SPLIT_DEV, "no dev split in it (expected val, dev, validation, valid;");
    task_free(rte);
    task_free(cb);
    task_free(wic);
}

#define SNLI_ROW(label, first)                                                                                         \
    "{\"gold_label\": \"" label "\", \"sentence1\": \"" first "\", \"sentence2\": \"h\", \"pairID\": \"p\"}\n"
#define SNLI_INPUT(first) first " question: h Is it true or false or neither? answer:"

static void test_snli(void)
{
    Task *task = builtin("snli");
    start_afresh();
    put("snli_1.0/snli_1.0_train.jsonl",
        SNLI_ROW("-", "a") SNLI_ROW("neutral", "b") SNLI_ROW("-", "c") SNLI_ROW("contradiction", "d"));
    put("snli_1.0/snli_1.0_dev.jsonl", SNLI_ROW("entailment", "e"));
    put("__MACOSX/snli_1.0/snli_1.0_dev.jsonl", "junk");
    put("snli_1.0/._snli_1.0_dev.jsonl", "junk");
    check_split(task, "snli_1.0", SPLIT_TRAIN, 2, 1, SNLI_INPUT("d"), "False");
    check_split(task, "", SPLIT_DEV, 1, 0, SNLI_INPUT("e"), "True");
    check_split(task, "", SPLIT_TEST, 1, 0, SNLI_INPUT("e"), "True"); /* no test split: dev */
    put("snli_1.0/snli_1.0_test.jsonl", SNLI_ROW("neutral", "f"));
    check_split(task, "", SPLIT_TEST, 1, 0, SNLI_INPUT("f"), "Neither");
    remove(SCRATCH "/snli_1.0/snli_1.0_dev.jsonl");
    check_split(task, "", SPLIT_DEV, 1, 0, SNLI_INPUT("f"), "Neither"); /* no dev split: test */
    task_free(task);
}

#define OPENBOOK_INPUT "Q: The sun is A) a star B) a moon C) cold D) flat A:"

static void test_openbookqa(void)
{
    Task *task = builtin("openbookqa");
    start_afresh();
#define OPENBOOK_ROW(key)                                                                                              \
    "{\"id\": \"7-980\", \"question\": {\"stem\": \"The sun is\", \"choices\": [{\"text\": \"a star\", \"label\": "    \
    "\"A\"}, {\"text\": \" a moon \", \"label\": \"B\"}, {\"text\": \"cold\", \"label\": \"C\"}, {\"text\": "          \
    "\"flat\", \"label\": \"D\"}]}, \"answerKey\": \"" key "\"}\n"
    put("Data/Main/train.jsonl", OPENBOOK_ROW("A") OPENBOOK_ROW("B"));
    put("Data/Main/train.tsv", "ID\tQuestion Stem\tChoices\tAnswer Key\n");
    put("Data/Main/dev.jsonl", OPENBOOK_ROW("C"));
    put("Data/Main/test.jsonl", OPENBOOK_ROW("D"));
    put("Data/Additional/train_complete.jsonl", "junk");
    check_split(task, "", SPLIT_TRAIN, 2, 1, OPENBOOK_INPUT, "a moon");
    check_split(task, "", SPLIT_DEV, 1, 0, OPENBOOK_INPUT, "cold");
    check_split(task, "Data/Main", SPLIT_TEST, 1, 0, OPENBOOK_INPUT, "flat");
    put("hub.jsonl", "{\"id\": \"7-980\", \"question_stem\": \"The sun is\", \"choices\": {\"text\": [\"a star\", "
                     "\"a moon\", \"cold\", \"flat\"], \"label\": [\"A\", \"B\", \"C\", \"D\"]}, \"answerKey\": "
                     "\"A\"}\n");
    check_split(task, "hub.jsonl", SPLIT_TRAIN, 1, 0, OPENBOOK_INPUT, "a star");
    put("flat.tsv", "question\tA\tB\tC\tD\tanswer\nThe sun is\ta star\ta moon\tcold\tflat\ta star\n");
    check_split(task, "flat.tsv", SPLIT_TRAIN, 1, 0, OPENBOOK_INPUT, "a star");
    check_text_refused(task, "bad.jsonl", OPENBOOK_ROW("E"),
                       "bad.jsonl:1: no choice has the answerKey's label (\"E\")");
    check_text_refused(task, "bad.jsonl", "{\"question\": {\"stem\": \"s\", \"choices\": []}}\n",
                       "1: no field answerKey");
    check_text_refused(task, "bad.jsonl",
                       "{\"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"x\"}]}, "
                       "\"answerKey\": \"A\"}\n",
                       "bad.jsonl:1: a choice without a text or a label");
    check_text_refused(task, "bad.jsonl",
                       "{\"question_stem\": \"s\", \"choices\": {\"text\": [\"x\"], \"label\": "
                       "[\"A\", \"B\"]}, \"answerKey\": \"A\"}\n",
                       "bad.jsonl:1: a choice without a text or a label");
    check_text_refused(task, "bad.jsonl",
                       "{\"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"x\", \"label\": "
                       "\"A\"}]}, \"answerKey\": \"A\"}\n",
                       "bad.jsonl:1: no field B");
    task_free(task);
}

/* One question of TriviaQA's own JSON, over several lines; brackets and quotes in strings are no brackets and
 * quotes. */
#define TRIVIA(question, value, aliases)                                                                               \
    "    {\n      \"Answer\": {\"Aliases\": [" aliases "], \"Value\": \"" value "\", \"Type\": \"x\"},\n"              \
    "      \"Question\": \"" question "\",\n      \"QuestionId\": \"tc_1\",\n"                                         \
    "      \"SearchResults\": [{\"Description\": \"]}, \\\"Data\\\": [{ \\\\\"}]\n    }"
#define TRIVIA_FILE(rows) "{\n  \"Data\": [\n" rows "\n  ],\n  \"Domain\": \"Web\", \"Version\": 1.0\n}\n"

static void test_triviaqa(void)
{
    Task *task = builtin("triviaqa");
    start_afresh();
    put("qa/web-train.json", TRIVIA_FILE(TRIVIA("web?", "A", "\"A\"") ",\n" TRIVIA("web 2?", "B", "")));
    put("qa/wikipedia-train.json", TRIVIA_FILE(TRIVIA(" wiki? ", " C ", "\"see\", \" \", \"C\", \"sea \"")));
    put("qa/web-dev.json", TRIVIA_FILE(TRIVIA("d1?", "D", "")));
    put("qa/wikipedia-dev.json", TRIVIA_FILE(TRIVIA("d2?", "E", "")));
    put("qa/verified-web-dev.json", TRIVIA_FILE(TRIVIA("d3?", "F", "")));
    put("qa/verified-wikipedia-dev.json", TRIVIA_FILE(TRIVIA("d4?", "G", "")));
    put("qa/web-test-without-answers.json", "{\"Data\": [{\"Question\": \"t?\", \"QuestionId\": \"q\"}]}");
    check_split(task, "", SPLIT_TRAIN, 3, 1, "Q: web 2? A:", "B");
    check_split(task, "", SPLIT_TRAIN, 3, 2, "Q: wiki? A:", "C|see|sea");
    check_split(task, "qa", SPLIT_DEV, 4, 0, "Q: d3? A:", "F"); /* by name: verified-… before web-… */
    check_split(task, "qa", SPLIT_TEST, 4, 3, "Q: d2? A:", "E");
    check_refused(task, "qa/web-test-without-answers.json", SPLIT_TEST, "1: no field Answer.Value|answer.value|answer");
    put("reordered.json", "{\"Domain\": {\"Data\": [1]}, \"Data\":[" TRIVIA("q?", "A", "") "]}");
    check_split(task, "reordered.json", SPLIT_TEST, 1, 0, "Q: q? A:", "A");
    put("validation.jsonl",
        "{\"question\": \"q?\", \"question_id\": \"tc_1\", \"answer\": {\"aliases\": [\"a\", \"b\"], "
        "\"normalized_aliases\": [\"c\"], \"value\": \"b\"}}\n");
    check_split(task, "validation.jsonl", SPLIT_TEST, 1, 0, "Q: q? A:", "b|a");
    put("nq.jsonl", "{\"question\": \"who\", \"answer\": [\"Bob\", \"Rob\"]}\n");
    check_split(task, "nq.jsonl", SPLIT_TEST, 1, 0, "Q: who A:", "Bob|Rob");
    CHECK(task_metric(task) == METRIC_TRIVIA_EM);
    task_free(task);
}

#define WEB(question, target) "{\"url\": \"u\", \"utterance\": \"" question "\", \"targetValue\": \"" target "\"}"

static void test_webquestions(void)
{
    Task *task = builtin("webquestions");
    start_afresh();
    put("webquestions.examples.train.json",
        "[\n" WEB(
            "a?",
            "(list (description \\\"Jazmyn Bieber\\\") (description "
            "Jaxon))") ",\n" WEB("b?",
                                 "(list (description \\\"Foo "
                                 "(bar)\\\"))") ",\n" WEB("c?",
                                                          "(list (description A \\\"B\\\" C))") ",\n" WEB("d?",
                                                                                                          "(list "
                                                                                                          "(description"
                                                                                                          " "
                                                                                                          "\\\"A\\\" "
                                                                                                          "or "
                                                                                                          "B))") "]\n");
    put("webquestions.examples.test.json", "[" WEB("t?", "(list (description T))") "]");
    check_split(task, "", SPLIT_TRAIN, 4, 3, "Q: d? A:", "\"A\" or B");
    check_split(task, "", SPLIT_TRAIN, 4, 0, "Q: a? A:", "Jazmyn Bieber|Jaxon");
    check_split(task, "", SPLIT_TRAIN, 4, 1, "Q: b? A:", "Foo (bar)");
    check_split(task, "", SPLIT_TRAIN, 4, 2, "Q: c? A:", "A \"B\" C");
    check_split(task, "", SPLIT_DEV, 1, 0, "Q: t? A:", "T");
    check_split(task, "", SPLIT_TEST, 1, 0, "Q: t? A:", "T");
    put("val.jsonl", "{\"question\": \"v?\", \"answers\": [\"x\", \"y\"]}\n");
    check_split(task, "", SPLIT_DEV, 1, 0, "Q: v? A:", "x|y");
    check_split(task, "", SPLIT_TEST, 1, 0, "Q: t? A:", "T");
    put("brmson.json", "[\n {\"qId\": \"wqr0\", \"answers\": [\"Bahamas\"], \"qText\": \"what country?\"}\n]\n");
    check_split(task, "brmson.json", SPLIT_DEV, 1, 0, "Q: what country? A:", "Bahamas");
    check_text_refused(task, "bad.json", "[\n" WEB("a?", "(list (description A))") ",\n" WEB("b?", "(list)") "]",
                       "bad.json:3: no answer");
    check_text_refused(task, "bad.json", "[{\"utterance\": \"a\", \"targetValue\": 5}]",
                       "bad.json:1: wrong type in field targetValue (expected a string, found a number)");
    CHECK(task_metric(task) == METRIC_SQUAD_EM);
    task_free(task);
}

#define SGM(kind, rows)                                                                                                \
    "<" kind " setid=\"x\" srclang=\"any\">\n<doc docid=\"1\">\n<p>\n" rows "</p>\n</doc>\n</" kind ">\n"
#define SEG(id, text) "<seg id=\"" id "\">" text "</seg>\n"

static void test_wmt_corpora(void)
{
    Task *task = builtin("wmt14_en_fr");
    start_afresh();
    put("training/europarl-v7.fr-en.en", "One.\n\nThree.\r\nFour.\n");
    put("training/europarl-v7.fr-en.fr", "Un.\nDeux.\nTrois.\n \n");
    put("commoncrawl.fr-en.en", "\xef\xbb\xbf"
                                " Zero. ");
    put("commoncrawl.fr-en.fr", "\xef\xbb\xbfZéro.");
    put("training/news.2013.en", "English alone.\n");
    put("training/stray.json", "junk");
    put("dev/newstest2012.en", "old\n");
    put("dev/newstest2012.fr", "vieux\n");
    put("dev/newstest2013.en", "dev\n");
    put("dev/newstest2013.fr", "essai\n");
    put("test-full/newstest2014-fren-src.en.sgm",
        SGM("srcset",
            SEG("1", "A &amp; B &lt;i&gt; &quot;c&quot; &apos;d&apos; &unknown; 1 & 2") "<hl>\n<SEG "
                                                                                        "id=\"2\">\nTwo\nlines\n</"
                                                                                        "SEG>\n</hl>\n" SEG("3", "x")));
    put("test-full/newstest2014-fren-ref.fr.sgm",
        SGM("refset", SEG("1", " un ") "<seg id=\"2\">deux</seg>" SEG("3", "")));
    put("test-full/newstest2014-fren-src.fr.sgm", "junk");
    put("test-full/newstest2014-fren-ref.en.sgm", "junk");
    check_split(task, "", SPLIT_TRAIN, 3, 0, "Translate English to French: Zero.", "Zéro.");
    check_split(task, "", SPLIT_TRAIN, 3, 1, "Translate English to French: One.", "Un.");
    check_split(task, "", SPLIT_TRAIN, 3, 2, "Translate English to French: Three.", "Trois.");
    check_split(task, "", SPLIT_DEV, 1, 0, "Translate English to French: dev", "essai");
    check_split(task, "", SPLIT_TEST, 2, 0, "Translate English to French: A & B <i> \"c\" 'd' &unknown; 1 & 2", "un");
    check_split(task, "", SPLIT_TEST, 2, 1, "Translate English to French: Two lines", "deux");
    /* a file by its name, or by what two have in common */
    check_split(task, "dev/newstest2012.en", SPLIT_TEST, 1, 0, "Translate English to French: old", "vieux");
    check_split(task, "dev/newstest2012.fr", SPLIT_TEST, 1, 0, "Translate English to French: old", "vieux");
    check_split(task, "dev/newstest2012", SPLIT_TEST, 1, 0, "Translate English to French: old", "vieux");
    check_split(task, "test-full/newstest2014-fren-ref.fr.sgm", SPLIT_DEV, 2, 1,
                "Translate English to French: Two lines", "deux");
    check_refused(task, "training/news.2013.en", SPLIT_TRAIN, "the two files that go side by side are not both there");
    /* a compressed corpus is not left out without a word */
    put("training/giga-fren.en.gz", "\x1f\x8b\x08");
    check_split(task, "", SPLIT_TRAIN, 3, 1, "Translate English to French: One.", "Un.");
    put("training/giga-fren.fr.gz", "\x1f\x8b\x08");
    check_refused(task, "", SPLIT_TRAIN, "giga-fren.en.gz: is compressed (gunzip it first)");
    check_refused(task, "training/giga-fren.en.gz", SPLIT_TRAIN, "giga-fren.en.gz: is compressed (gunzip it first)");
    put("train.en", "only\n"); /* a corpus made for the purpose goes first */
    put("train.fr", "seul\n");
    check_split(task, "", SPLIT_TRAIN, 1, 0, "Translate English to French: only", "seul");
    task_free(task);
}

static void test_wmt_others(void)
{
    Task *german = builtin("wmt16_en_de"), *romanian = builtin("wmt16_en_ro");
    start_afresh();
    put("de/dev/newstest2014.en", "2014\n");
    put("de/dev/newstest2014.de", "vierzehn\n");
    check_split(german, "de", SPLIT_DEV, 1, 0, "Translate English to German: 2014", "vierzehn");
    check_split(german, "de", SPLIT_TEST, 1, 0, "Translate English to German: 2014", "vierzehn");
    put("de/dev/newstest2015-ende-src.en.sgm", SGM("srcset", SEG("1", "dog")));
    put("de/dev/newstest2015-ende-ref.de.sgm", SGM("refset", SEG("1", "Hund")));
    put("de/test/newstest2016-ende-src.en.sgm", SGM("srcset", SEG("1", "cat")));
    put("de/test/newstest2016-ende-ref.de.sgm", SGM("refset", SEG("1", "Katze")));
    put("de/val.txt", "junk");
    check_split(german, "de", SPLIT_DEV, 1, 0, "Translate English to German: dog", "Hund");
    check_split(german, "de", SPLIT_TEST, 1, 0, "Translate English to German: cat", "Katze");
    check_refused(german, "de", SPLIT_TRAIN,
                  "no train split in it (expected train; *; with .jsonl, .tsv or .json, or .en "
                  "and .de)");
    put("ro/newsdev2016-enro-src.en.sgm", SGM("srcset", SEG("1", "yes")));
    put("ro/newsdev2016-enro-ref.ro.sgm", SGM("refset", SEG("1", "da")));
    put("ro/newsdev2016-roen-src.ro.sgm", "junk");
    put("ro/newsdev2016-roen-ref.en.sgm", "junk");
    put("ro/newstest2016-enro-src.en.sgm", SGM("srcset", SEG("1", "no")));
    put("ro/newstest2016-enro-ref.ro.sgm", SGM("refset", SEG("1", "nu")));
    put("ro/SETIMES.en-ro.en", "set\n");
    put("ro/SETIMES.en-ro.ro", "times\n");
    check_split(romanian, "ro", SPLIT_TRAIN, 1, 0, "Translate English to Romanian: set", "times");
    check_split(romanian, "ro", SPLIT_DEV, 1, 0, "Translate English to Romanian: yes", "da");
    check_split(romanian, "ro", SPLIT_TEST, 1, 0, "Translate English to Romanian: no", "nu");
    /* other layouts of the same pairs */
    put("pairs.json", "{ \"translation\": { \"en\": \"a\", \"ro\": \"b\" } }\n{\"translation\": {\"en\": \"\", \"ro\": "
                      "\"c\"}}\n{\"en\": \"d\", \"ro\": \"e\"}\n{\"en\": \"f\", \"ro\": \" \"}\n");
    check_split(romanian, "pairs.json", SPLIT_TEST, 2, 1, "Translate English to Romanian: d", "e");
    put("pairs.tsv", "a\tb\tattribution #1 \xc2\xa9\tmore\n\"q\"\t\"r\"\nx\t \n[\t{\n");
    check_split(romanian, "pairs.tsv", SPLIT_TEST, 3, 1, "Translate English to Romanian: \"q\"", "\"r\"");
    check_split(romanian, "pairs.tsv", SPLIT_TEST, 3, 2, "Translate English to Romanian: [", "{");
    put("bracket.tsv", "[Music]\t[Muzic\xc4\x83]\n");
    check_split(romanian, "bracket.tsv", SPLIT_TEST, 1, 0, "Translate English to Romanian: [Music]", "[Muzic\xc4\x83]");
    put("header.tsv", "ro\tnote\ten\n\"b\"\tx\ta\n");
    check_split(romanian, "header.tsv", SPLIT_TEST, 1, 0, "Translate English to Romanian: a", "b");
    check_text_refused(romanian, "bad.tsv", "a\tb\nc\n", "bad.tsv:2: malformed row (expected 2 columns, found 1)");
    check_text_refused(romanian, "bad.jsonl", "{\"translation\": {\"en\": \"a\", \"fr\": \"b\"}}\n",
                       "bad.jsonl:1: no field ro|translation.ro");
    check_text_refused(romanian, "empty.tsv", "\t\n \tx\n", "no examples in it");
    CHECK(task_metric(german) == METRIC_BLEU && task_max_input(german) == 0);
    task_free(german);
    task_free(romanian);
}

static void test_summaries(void)
{
    Task *xsum = builtin("xsum"), *wiki = builtin("wikilingua");
    start_afresh();
    put("xsum/train.jsonl", "{\"document\": \"One.\\nTwo.\", \"summary\": \"Both.\", \"id\": \"29750031\"}\n");
    put("xsum/validation.jsonl", "{\"gem_id\": \"v\", \"document\": \"V.\", \"target\": \"v\", \"references\": []}\n");
    put("xsum/test.source", "Text.\n");
    put("xsum/test.target", "Short.\n");
    check_split(xsum, "xsum", SPLIT_TRAIN, 1, 0, "Article: One.\nTwo. One sentence summary:", "Both.");
    check_split(xsum, "xsum", SPLIT_DEV, 1, 0, "Article: V. One sentence summary:", "v");
    check_split(xsum, "xsum", SPLIT_TEST, 1, 0, "Article: Text. One sentence summary:", "Short.");
    put("gem/validation.jsonl", "{\"gem_id\": \"w-1\", \"source\": \"Do it.\", \"target\": \"How.\", \"references\": "
                                "[\"How.\", \"So.\"]}\n");
    check_split(wiki, "gem", SPLIT_TEST, 1, 0, "Article: Do it. One sentence summary:", "How.|So.");
    put("raw/english/train.src.en", "A.\nB.\n");
    put("raw/english/train.tgt.en", "a\nb\n");
    put("raw/english/val.src", "C.\n");
    put("raw/english/val.tgt", "c\n");
    check_split(wiki, "raw", SPLIT_TRAIN, 2, 1, "Article: B. One sentence summary:", "b");
    check_split(wiki, "raw", SPLIT_DEV, 1, 0, "Article: C. One sentence summary:", "c");
    check_text_refused(xsum, "two.tsv", "a\tb\n", "no examples");
    CHECK(task_max_input(xsum) == 1024 && task_max_input(wiki) == 1024);
    CHECK(task_metric(xsum) == METRIC_ROUGE2 && task_metric(wiki) == METRIC_ROUGE2);
    task_free(xsum);
    task_free(wiki);
}

/* ------------------------------------------------------------------------------------------- one template, two rows */

/* Two rows of each task, the first shown and the second asked. */
static void test_few_shot_of_every_task(void)
{
    static const struct {
        const char *task, *name, *rows, *expected;
    } cases[] = {
        {"rte", "a.tsv", "premise\thypothesis\tlabel\nP\tH\tentailment\nR\tI\tnot_entailment\n",
         "P question: H Is it true or false? answer: True\n\nR question: I Is it true or false? answer:"},
        {"cb", "a.tsv", "premise\thypothesis\tlabel\nP\tH\tneutral\nR\tI\tcontradiction\n",
         "P question: H Is it true or false or neither? answer: Neither\n\n"
         "R question: I Is it true or false or neither? answer:"},
        {"wic", "a.tsv", "word\tsentence1\tsentence2\tlabel\nw\tS.\tT.\tfalse\nx\tU.\tV.\ttrue\n",
         "S. T. question: The word w is used in the same way in the two sentences. Is it true or False? answer: "
         "False\n\n"
         "U. V. question: The word x is used in the same way in the two sentences. Is it true or False? answer:"},
        {"snli", "a.tsv", "sentence1\tsentence2\tgold_label\nP\tH\tcontradiction\nR\tI\tneutral\n",
         "P question: H Is it true or false or neither? answer: False\n\n"
         "R question: I Is it true or false or neither? answer:"},
        {"openbookqa", "a.tsv", "question\tA\tB\tC\tD\tanswer\nq\t1\t2\t3\t4\t3\nr\t5\t6\t7\t8\t5\n",
         "Q: q A) 1 B) 2 C) 3 D) 4 A: 3\n\nQ: r A) 5 B) 6 C) 7 D) 8 A:"},
        {"triviaqa", "a.tsv", "question\tanswer\nwho?\tBob\nwhat?\tit\n", "Q: who? A: Bob\n\nQ: what? A:"},
        {"webquestions", "a.tsv", "question\tanswer\nwho?\tBob\nwhat?\tit\n", "Q: who? A: Bob\n\nQ: what? A:"},
        {"wmt14_en_fr", "a.tsv", "One.\tUn.\nTwo.\tDeux.\n",
         "Translate English to French: One. Un.\n\nTranslate English to French: Two."},
        {"wmt16_en_de", "a.tsv", "One.\tEins.\nTwo.\tZwei.\n",
         "Translate English to German: One. Eins.\n\nTranslate English to German: Two."},
        {"wmt16_en_ro", "a.tsv", "One.\tUnu.\nTwo.\tDoi.\n",
         "Translate English to Romanian: One. Unu.\n\nTranslate English to Romanian: Two."},
        {"xsum", "a.tsv", "document\tsummary\nLong.\tl\nLonger.\tm\n",
         "Article: Long. One sentence summary: l\n\nArticle: Longer. One sentence summary:"},
        {"wikilingua", "a.tsv", "source\ttarget\nLong.\tl\nLonger.\tm\n",
         "Article: Long. One sentence summary: l\n\nArticle: Longer. One sentence summary:"},
    };
    start_afresh();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Task *task = builtin(cases[i].task);
        Example shown, asked;
        Error error = {0};
        put(cases[i].name, cases[i].rows);
        Dataset *dataset = dataset_open(task, SCRATCH "/a.tsv", SPLIT_TRAIN, &error);
        CHECK(dataset != NULL, "%s: %s", cases[i].task, error.text);
        if (dataset && dataset_get(dataset, 0, &shown, &error) == 0 && dataset_get(dataset, 1, &asked, &error) == 0) {
            char *found = few_shot_input(&(const Example *){&shown}, 1, &asked, "\n\n");
            CHECK(strcmp(found, cases[i].expected) == 0, "%s: %s", cases[i].task, found);
            free(found);
            example_free(&shown);
            example_free(&asked);
        }
        dataset_close(dataset);
        task_free(task);
    }
}

/* ------------------------------------------------------------------------------------------------------------ index */

/* A data set of which the index is as small as is wanted. */
static Dataset *open_with_index(const Task *task, const char *path, size_t max_index)
{
    Error error = {0};
    SplitFiles files;
    Dataset *dataset = calloc(1, sizeof *dataset);
    if (!dataset || split_files_find(&files, &task->spec, path, SPLIT_TRAIN, &error) != 0) abort();
    dataset->task = task;
    CHECK(open_sources(dataset, &files, &error) == 0 && count_rows(dataset, max_index, &error) == 0, "%s", error.text);
    split_files_free(&files);
    return dataset;
}

/* Every row, forwards and backwards, whatever the number of index entries. */
static void check_all_rows(const Task *task, const char *path, size_t count, const char *input_format)
{
    for (size_t max_index = 1; max_index <= 128; max_index = max_index * 2 + (max_index == 2)) {
        Dataset *dataset = open_with_index(task, path, max_index);
        CHECK(dataset_count(dataset) == count, "%s: %zu rows", path, dataset_count(dataset));
        CHECK(dataset->n_index <= max_index, "%zu entries", dataset->n_index);
        CHECK(dataset->n_index * dataset->stride >= dataset->count && dataset->n_index > max_index / 4);
        for (size_t i = 0; i < 2 * count; i++) {
            const size_t number = i < count ? i : 2 * count - 1 - i;
            char input[200];
            snprintf(input, sizeof input, input_format, number);
            check_row_of(dataset, number, input, "True");
        }
        dataset_close(dataset);
    }
}

static void test_index(void)
{
    enum { ROWS = 117 };
    Task *snli = builtin("snli");
    Task *pairs =
        own("{\"name\": \"p\", \"template\": \"{a}.\", \"target\": \"{b}\", \"metric\": \"bleu\", \"parallel\": "
            "[\"a\", \"b\"]}");
    TextBuffer lines = {0}, list = {0}, tsv = {0}, left = {0}, right = {0};
    char row[200];
    start_afresh();
    text_put_bytes(&list, "[", 1);
    text_put_bytes(&tsv, "label\tpremise\thypothesis\n", 25);
    for (int i = 0; i < ROWS; i++) {
        /* before some rows there are others, which do not count */
        const int skipped = i % 7 == 3 ? 2 : i % 5 == 0;
        for (int k = 0; k <= skipped; k++) {
            const char *label = k < skipped ? "-" : "entailment";
            snprintf(row, sizeof row, "{\"gold_label\": \"%s\",\n\"premise\": \"%d\", \"hypothesis\": \"]\"}", label,
                     i);
            if (list.length > 1) text_put_bytes(&list, " , ", 3);
            text_put_bytes(&list, row, strlen(row));
            *strchr(row, '\n') = ' ';
            text_put_bytes(&lines, row, strlen(row));
            text_put_bytes(&lines, "\n\n", (size_t)(1 + i % 2));
            snprintf(row, sizeof row, "%s\t%d\t]\n", label, i);
            text_put_bytes(&tsv, row, strlen(row));
            snprintf(row, sizeof row, "%d\n", i);
            text_put_bytes(&left, row, strlen(row));
            text_put_bytes(&right, k < skipped ? "\n" : "True\n", k < skipped ? 1 : 5);
        }
    }
    text_put_bytes(&list, "]", 1);
    put_buffer("a.jsonl", &lines);
    put_buffer("a.json", &list);
    put_buffer("a.tsv", &tsv);
    put_buffer("one.a", &left);
    put_buffer("one.b", &right);
    check_all_rows(snli, SCRATCH "/a.jsonl", ROWS, "%zu question: ] Is it true or false or neither? answer:");
    check_all_rows(snli, SCRATCH "/a.json", ROWS, "%zu question: ] Is it true or false or neither? answer:");
    check_all_rows(snli, SCRATCH "/a.tsv", ROWS, "%zu question: ] Is it true or false or neither? answer:");
    check_all_rows(pairs, SCRATCH "/one", ROWS, "%zu.");
    task_free(snli);
    task_free(pairs);
}

/* Rows of several files are counted through, and one index serves all. */
static void test_index_over_files(void)
{
    Task *task = builtin("wmt14_en_fr");
    Error error = {0};
    Example example;
    start_afresh();
    for (int file = 0; file < 9; file++) {
        TextBuffer left = {0}, right = {0};
        char row[100], name[100];
        for (int i = 0; i < file * 3; i++) { /* the first corpus is empty */
            snprintf(row, sizeof row, "%d %d\n", file, i);
            text_put_bytes(&left, row, strlen(row));
            text_put_bytes(&right, "True\n", 5);
        }
        snprintf(name, sizeof name, "corpus%d.en", file);
        put_buffer(name, &left);
        snprintf(name, sizeof name, "corpus%d.fr", file);
        put_buffer(name, &right);
    }
    for (size_t max_index = 1; max_index < 40; max_index += 6) {
        Dataset *dataset = open_with_index(task, SCRATCH, max_index);
        size_t number = 0;
        CHECK(dataset_count(dataset) == 108 && dataset->n_index <= max_index);
        for (int file = 0; file < 9; file++) {
            for (int i = 0; i < file * 3; i++) {
                char input[100];
                snprintf(input, sizeof input, "Translate English to French: %d %d", file, i);
                check_row_of(dataset, number++, input, "True");
            }
        }
        CHECK(dataset_get(dataset, number, &example, &error) == -1 && strstr(error.text, "no row 108"), "%s",
              error.text);
        CHECK(dataset_get(dataset, SIZE_MAX, &example, &error) == -1);
        dataset_close(dataset);
    }
    task_free(task);
    dataset_close(NULL);
}

/* -------------------------------------------------------------------------------------------------------- malformed */

static void test_malformed_lists(void)
{
#define GOOD "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 0}"
    Task *task = builtin("rte"), *trivia = builtin("triviaqa");
    start_afresh();
    check_text_refused(task, "l.json", "[\n" GOOD ",\n{\"premise\": \"a\"\n",
                       "l.json:3: malformed JSON: the file ends");
    check_text_refused(task, "l.json", "[\n" GOOD, "l.json:2: malformed JSON: expected another element");
    check_text_refused(task, "l.json", "[\n" GOOD ",", "l.json:2: malformed JSON: the file ends");
    check_text_refused(task, "l.json", "[", "l.json:1: malformed JSON: the file ends");
    check_text_refused(task, "l.json", "[" GOOD ",\n]", "l.json:2: malformed JSON: expected another element");
    check_text_refused(task, "l.json", "[" GOOD "\n" GOOD "]", "l.json:2: malformed JSON: expected another element");
    check_text_refused(task, "l.json", "[" GOOD ",,\n" GOOD "]", "l.json:1: malformed JSON at byte 1");
    check_text_refused(task, "l.json", "[" GOOD "}\n]", "l.json:1: malformed JSON");
    check_text_refused(task, "l.json", "[" GOOD "]\n x", "l.json:2: malformed JSON: more text after its end");
    check_text_refused(task, "l.json", "[" GOOD ",\n5]", "l.json:2: expected a JSON object, found a number");
    check_text_refused(task, "l.json", "[" GOOD ",\n\"s\"]", "l.json:2: expected a JSON object, found a string");
    check_text_refused(task, "l.json", "[" GOOD ",\n\n{\"premise\": \"a\",\n \"label\" 0}]",
                       "l.json:4: malformed JSON at byte 10");
    check_text_refused(task, "l.json", "[" GOOD ",\n{\"premise\": \"a]\n", "l.json:2: malformed JSON: the file ends");
    check_text_refused(task, "l.json", "[" GOOD ",\n{\"premise\": \"a\\", "l.json:2: malformed JSON: the file ends");
    check_text_refused(task, "l.json", "[" GOOD ",\n{\n\"premise\": \"\xff\"}]", "l.json:3: is not valid UTF-8");
    check_text_refused(task, "l.json", "[" GOOD ",\n{\"premise\": \"a\\u0000\"}]", "l.json:2: NUL");
    check_text_refused(task, "l.json", "[{\"premise\": \"\n\", \"hypothesis\": \"b\", \"label\": 0}, 5]",
                       "l.json:2: expected a JSON object, found a number");
    check_text_refused(task, "l.json", "[]", "no examples in it");
    put("l.json", "[{\"premise\": \"\\\"]}\", \"hypothesis\": \"\\\\\", \"label\": 0}," GOOD "]");
    check_split(task, "l.json", SPLIT_DEV, 2, 0, "\"]} question: \\ Is it true or false? answer:", "True");
    check_text_refused(task, "l.json", "[" GOOD ",\n\n{\"premise\": \"a\", \"label\": 0}]",
                       "l.json:3: no field hypothesis");
    put_bytes("l.json", "[" GOOD ",\n{\"premise\": \"\0\"}]", sizeof("[" GOOD ",\n{\"premise\": \"\0\"}]") - 1);
    check_refused(task, "l.json", SPLIT_DEV, "l.json:2: has a NUL byte");
    check_text_refused(trivia, "t.json", "{\"Data\": [" TRIVIA("q", "a", "") "\n], \"Domain\": \"x\"",
                       "t.json:1: malformed JSON: the object that begins here does not end");
    check_text_refused(trivia, "t.json", "{\"Data\": [" TRIVIA("q", "a", "") "]}\n}",
                       "t.json:7: malformed JSON: more text");
    check_text_refused(trivia, "t.json", "{\"Data\": []}", "no examples in it");
    check_text_refused(trivia, "t.json", "{\"Data\" []}", "t.json:1: malformed JSON at byte");
    check_text_refused(trivia, "t.json", "{\"Dat", "t.json:1: malformed JSON at byte");
    check_text_refused(trivia, "t.json", "{\"Data\": [\n{\"Question\": \"q\", \"Answer\": {\"Value\": 1}}]}",
                       "t.json:2: wrong type in field Value");
    check_text_refused(trivia, "t.json", "{\"Data\": [\n{\"Question\": \"q\", \"Answer\": {\"Value\": \" \"}}]}",
                       "t.json:2: an empty answer");
    task_free(task);
    task_free(trivia);
}

/* A million brackets: neither the scanner nor the parser may follow them into the depth. */
static void test_nesting_bomb(void)
{
    enum { DEPTH = 1000000 };
    Task *task = builtin("rte");
    char *text = malloc(2 * DEPTH + 1);
    if (!text) abort();
    start_afresh();
    memset(text, '[', DEPTH);
    memset(text + DEPTH, ']', DEPTH);
    put_bytes("bomb.json", text, 2 * DEPTH);
    check_refused(task, "bomb.json", SPLIT_DEV, "bomb.json:1: malformed JSON");
    put_bytes("bomb.json", text, DEPTH);
    check_refused(task, "bomb.json", SPLIT_DEV, "bomb.json:1: malformed JSON: the file ends");
    memset(text, '{', DEPTH);
    put_bytes("bomb.jsonl", text, DEPTH);
    check_refused(task, "bomb.jsonl", SPLIT_DEV, "bomb.jsonl:1: malformed JSON");
    free(text);
    task_free(task);
}

static void test_malformed_pairs(void)
{
    Task *task = builtin("wmt14_en_fr");
    start_afresh();
    put("u.en", "1\n2\n3\n");
    put("u.fr", "1\n2\n3\n4\n5");
    check_refused(task, "u.en", SPLIT_TRAIN, "u.en has 3 lines, build/test/dataset/u.fr has 5 (expected as many)");
    put("u.fr", "");
    check_refused(task, "u", SPLIT_TRAIN, "u.en has 3 lines, build/test/dataset/u.fr has 0 (expected as many)");
    put("u.fr", "1\n\xff\n3\n");
    check_refused(task, "u", SPLIT_TRAIN, "u.fr:2: is not valid UTF-8");
    put_bytes("u.en", "1\n2\n\0\n", 6);
    put("u.fr", "1\n2\n3\n");
    check_refused(task, "u", SPLIT_TRAIN, "u.en:3: has a NUL byte");
    put("s-src.en.sgm", SGM("srcset", SEG("1", "a") SEG("2", "b")));
    put("s-ref.fr.sgm", SGM("refset", SEG("1", "a")));
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN,
                  "s-src.en.sgm has 2 segments, build/test/dataset/s-ref.fr.sgm has 1 (expected as many)");
    put("s-ref.fr.sgm", SGM("refset", SEG("1", "a") "<seg id=\"2\">b\n"));
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "s-ref.fr.sgm:5: <seg> without </seg>");
    put("s-ref.fr.sgm", SGM("refset", "<seg id=\"1\">a\n" SEG("2", "b")));
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "s-ref.fr.sgm:4: <seg> without </seg>");
    put("s-ref.fr.sgm", "<seg id");
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "s-ref.fr.sgm:1: <seg> without </seg>");
    put("s-ref.fr.sgm", "<seg id=\"1\"");
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "s-ref.fr.sgm:1: <seg> without </seg>");
    put("s-ref.fr.sgm", SGM("refset", SEG("1", "a") "\n" SEG("2", "\xff")));
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "s-ref.fr.sgm:6: is not valid UTF-8");
    put("s-src.en.sgm", "<segment>no</segment>");
    put("s-ref.fr.sgm", "");
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "no examples in it");
    remove(SCRATCH "/s-ref.fr.sgm");
    check_refused(task, "s-src.en.sgm", SPLIT_TRAIN, "the two files that go side by side are not both there");
    check_refused(task, "none", SPLIT_TRAIN, "none: no such file or directory");
    check_refused(task, "none.en", SPLIT_TRAIN, "none.en: the two files");
    put("zipped/train.jsonl.gz", "\x1f\x8b\x08");
    check_refused(task, "zipped", SPLIT_TRAIN, "train.jsonl.gz: is compressed (gunzip it first)");
    put("zipped/train.tsv", "a\tb\n"); /* what is unpacked goes first, even in another layout */
    check_split(task, "zipped", SPLIT_TRAIN, 1, 0, "Translate English to French: a", "b");
    put("x.tsv", "\x1f\x8b\x08");
    check_refused(task, "x.tsv", SPLIT_TRAIN, "x.tsv: is compressed (gunzip it first)");
    task_free(task);
}

/* -------------------------------------------------------------------------------------------------------- own tasks */

static void test_own_pairs(void)
{
    Task *task = own("{\"name\": \"t\", \"template\": \"{en} in Czech:\", \"target\": \"{cs}\", \"metric\": \"bleu\", "
                     "\"parallel\": [\"en\", \"cs\"], \"max_input\": 64, \"train\": \"big.en\", \"test\": \"t.tsv\"}");
    start_afresh();
    put("d/big.en", "one\ntwo\n");
    put("d/big.cs", "jedna\ndva\n");
    put("d/t.tsv", "three\ttři\n");
    check_split(task, "d", SPLIT_TRAIN, 2, 1, "two in Czech:", "dva");
    check_split(task, "d", SPLIT_TEST, 1, 0, "three in Czech:", "tři");
    check_split(task, "d", SPLIT_DEV, 1, 0, "three in Czech:", "tři");
    put("d/val.en", "four\n");
    put("d/val.cs", "čtyři\n");
    check_split(task, "d", SPLIT_DEV, 1, 0, "four in Czech:", "čtyři");
    CHECK(task_max_input(task) == 64);
    task_free(task);
    task = own("{\"name\": \"t\", \"template\": \"{en}{x}\", \"target\": \"{cs}\", \"metric\": \"bleu\", "
               "\"parallel\": [\"en\", \"cs\"], \"dev\": \"none.tsv\"}");
    put("p.en", "\none\n");
    put("p.cs", "x\njedna\n");
    check_refused(task, "p", SPLIT_TRAIN, "p.en:2: no field x"); /* the first row that counts is looked at */
    check_refused(task, "d", SPLIT_DEV, "no file none.tsv in it");
    check_refused(task, "d", SPLIT_TEST, "no file none.tsv in it"); /* without a "test" the dev split is scored */
    task_free(task);
}

static void test_places(void)
{
    Task *task = own("{\"name\": \"t\", \"template\": \"{a.b.1.c|d} {e.f} {a.b.2|a.b.0}\", \"target\": \"{g.0}\", "
                     "\"metric\": \"bleu\"}");
    start_afresh();
    put("a.jsonl",
        "{\"a\": {\"b\": [\"x\", {\"c\": \"y\"}]}, \"e\": {\"f\": \"no\"}, \"e.f\": \"z\", \"g\": [\"t\"]}\n"
        "{\"a\": {\"b\": [\"x\", \"y\", \"w\"]}, \"d\": \"D\", \"e\": {\"f\": \"F\"}, \"g\": [\"t\", 5]}\n"
        "{\"a.b\": [\"x\"], \"d\": \"D\", \"e\": {\"f\": \"F\"}, \"g\": [\"t\"], \"a\": {\"b.0\": \"u\"}}\n");
    check_split(task, "a.jsonl", SPLIT_DEV, 3, 0, "y z x", "t");
    check_split(task, "a.jsonl", SPLIT_DEV, 3, 1, "D F w", "t");
    check_split(task, "a.jsonl", SPLIT_DEV, 3, 2, "D F u", "t");
    check_text_refused(task, "b.jsonl", "{\"d\": \"D\", \"e\": \"F\", \"g\": []}\n", "b.jsonl:1: no field e.f");
    check_text_refused(task, "b.jsonl", "{\"d\": \"D\", \"e\": {\"f\": \"F\"}, \"a\": {\"b\": [1]}, \"g\": [\"t\"]}\n",
                       "b.jsonl:1: wrong type in field of a list (expected a string, found a number)");
    task_free(task);
}

/* -------------------------------------------------------------------------------------------------------- real text */

static void check_shared(const char *name, const char *file, size_t count, size_t number, const char *input,
                         const char *answers)
{
    Task *task = builtin(name);
    Error error = {0};
    char path[1200];
    snprintf(path, sizeof path, "%s/tasks/%s", test_shared(), file);
    Dataset *dataset = dataset_open(task, path, SPLIT_DEV, &error);
    CHECK(dataset != NULL, "%s", error.text);
    if (dataset) {
        CHECK(dataset_count(dataset) == count, "%s: %zu rows", file, dataset_count(dataset));
        check_row_of(dataset, number, input, answers);
    }
    dataset_close(dataset);
    task_free(task);
}

static void test_shared_text(void)
{
    if (!test_shared()) SKIP("no shared fixtures");
    check_shared(
        "snli", "nli", 9842, 1,
        "Two women are embracing while holding to go packages. question: Two woman are holding packages. Is it "
        "true or false or neither? answer:",
        "True");
    check_shared("triviaqa", "qa/triviaqa_sample.json", 1, 0,
                 "Q: Which Lloyd Webber musical premiered in the US on 10th December 1993? A:",
                 "Sunset Boulevard|Sunset Blvd|West Sunset Boulevard|Sunset Bulevard|Sunset Blvd.");
    check_shared("triviaqa", "qa/nq_open_dev.jsonl", 3610, 1,
                 "Q: who wrote he ain't heavy he's my brother lyrics A:", "Bobby Scott|Bob Russell");
    check_shared("webquestions", "qa/webquestions_trainmodel.json", 2834, 0,
                 "Q: what character did natalie portman play in star wars? A:", "Padmé Amidala");
    check_shared("webquestions", "qa/webquestions_devtest.json", 189, 0,
                 "Q: what is the name of justin bieber brother? A:", "Jazmyn Bieber|Jaxon Bieber");
    check_shared("wmt14_en_fr", "translation/tatoeba_en-fr.tsv", 667, 1,
                 "Translate English to French: We agree with you.", "Nous sommes de votre avis.");
    check_shared("wmt14_en_fr", "translation/tatoeba_short_en-fr.tsv", 3310, 0, "Translate English to French: Run!",
                 "Cours\u202f!");
    check_shared("wmt14_en_fr", "translation/tatoeba_short2_en-fr.tsv", 11990, 2, "Translate English to French: Wow!",
                 "Ça alors\u202f!");
    check_shared("wmt16_en_de", "translation/tatoeba_en-de.tsv", 667, 0,
                 "Translate English to German: Mary said she didn't know where Tom was.",
                 "Maria sagte, sie wisse nicht, wo Tom sei.");
    check_shared("wmt16_en_ro", "translation/tatoeba_en-ro.tsv", 667, 0,
                 "Translate English to Romanian: He is nice to me.", "El este prietenos cu mine.");
    check_shared("wmt16_en_ro", "translation/wmt16_en_ro_train.json", 11, 10,
                 "Translate English to Romanian: Written statements for entry", "Declaraţii scrise înscrise");
    check_shared(
        "rte", "nli/med.tsv", 3588, 0,
        "An Irishman won the nobel prize for literature. question: An Irishman won a nobel prize. Is it true or "
        "false? answer:",
        "True");
}

/* SciTLDR keeps an article as a list of sentences: an own task takes the first of them. */
static void test_shared_summaries(void)
{
    if (!test_shared()) SKIP("no shared fixtures");
    Task *task = own("{\"name\": \"scitldr\", \"template\": \"Article: {source.0} One sentence summary:\", \"target\": "
                     "\"{target}\", \"metric\": \"rouge2\", \"prefix\": \"Article:\", \"max_input\": 1024}");
    Error error = {0};
    Example example;
    char path[1200];
    snprintf(path, sizeof path, "%s/tasks/summarization/scitldr_a_dev.jsonl", test_shared());
    Dataset *dataset = dataset_open(task, path, SPLIT_DEV, &error);
    CHECK(dataset && dataset_count(dataset) == 619, "%s", error.text);
    if (dataset && dataset_get(dataset, 0, &example, &error) == 0) {
        CHECK(strncmp(example.input, "Article: Mixed precision training (MPT) is becoming a practical technique", 72) ==
                  0,
              "%s", example.input);
        CHECK(example.n_targets >= 1);
        example_free(&example);
    }
    dataset_close(dataset);
    task_free(task);
}

static const Test tests[] = {
    {"superglue", test_superglue},
    {"snli", test_snli},
    {"openbookqa", test_openbookqa},
    {"triviaqa", test_triviaqa},
    {"webquestions", test_webquestions},
    {"wmt_corpora", test_wmt_corpora},
    {"wmt_others", test_wmt_others},
    {"summaries", test_summaries},
    {"few_shot_of_every_task", test_few_shot_of_every_task},
    {"index", test_index},
    {"index_over_files", test_index_over_files},
    {"malformed_lists", test_malformed_lists},
    {"nesting_bomb", test_nesting_bomb},
    {"malformed_pairs", test_malformed_pairs},
    {"own_pairs", test_own_pairs},
    {"places", test_places},
    {"shared_text", test_shared_text},
    {"shared_summaries", test_shared_summaries},
};

TEST_MAIN(tests)

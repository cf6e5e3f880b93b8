/* test_results.c: data/results.c, and the text_buffer.c that it writes with. */
#include "../data/text_buffer.c"
#include "../data/results.c"

#include "test.h"

#define SCRATCH "build/test/results"

/* ------------------------------------------------------------------------------------------------------------- help */

static const char PLAIN[] =
    "{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":277,\"scores\":{\"0\":47.65,\"1\":52.7}},"
    "\"wmt14_en_fr\":{\"metric\":\"bleu\",\"n\":10,\"scores\":{\"1\":9.875,\"0\":100}}},\"norm_avg\":{\"0\":7,\"1\":-3}"
    "}";
static const char SPREAD[] = "{\"tasks\":{\"cb\":{\"metric\":\"accuracy\",\"n\":56,\"scores\":{\"16\":null}},"
                             "\"rte\":{\"metric\":\"accuracy\",\"n\":277,\"scores\":{\"1\":86.281,\"4\":9.5},"
                             "\"spread\":{\"1\":{\"sd\":0.499,\"draws\":[86,87]},\"4\":{\"sd\":10}}}},\"norm_avg\":{}}";

/* The table of several runs, to be freed. */
static char *compare(const char *const *texts, const char *const *labels, size_t count, TableFormat format)
{
    cJSON *results[4] = {NULL};
    CHECK(count <= 4);
    for (size_t i = 0; i < count; i++) {
        results[i] = cJSON_Parse(texts[i]);
        CHECK(results[i], "run %zu is not JSON", i);
    }
    char *table = results_compare((const cJSON *const *)results, labels, count, format);
    for (size_t i = 0; i < count; i++) cJSON_Delete(results[i]);
    return table;
}

static void check_table(const char *const *labels, TableFormat format, const char *expected)
{
    const char *texts[] = {PLAIN, SPREAD};
    char *table = compare(texts, labels, 2, format);
    CHECK(table && strcmp(table, expected) == 0, "\n%s\nexpected\n%s", table ? table : "(null)", expected);
    free(table);
}

/* ----------------------------------------------------------------------------------------------------------- tables */

static const char *const LABELS[] = {"before", "ProMoT"};

static void test_text(void)
{
    check_table(LABELS, TABLE_TEXT,
                "0-shot             rte  wmt14_en_fr  cb  Norm. Avg.\n"
                "before   47.65               100.00   -        7.00\n"
                "ProMoT       -                    -   -           -\n"
                "\n"
                "1-shot             rte  wmt14_en_fr  cb  Norm. Avg.\n"
                "before   52.70                 9.88   -       -3.00\n"
                "ProMoT   86.28 ±  0.50            -   -           -\n"
                "\n"
                "4-shot             rte  wmt14_en_fr  cb  Norm. Avg.\n"
                "before       -                    -   -           -\n"
                "ProMoT    9.50 ± 10.00            -   -           -\n"
                "\n"
                "16-shot            rte  wmt14_en_fr  cb  Norm. Avg.\n"
                "before       -                    -   -           -\n"
                "ProMoT       -                    -   -           -\n");
}

static void test_csv(void)
{
    check_table(LABELS, TABLE_CSV,
                "shots,run,rte,rte_sd,wmt14_en_fr,cb,norm_avg\n"
                "0,before,47.65,,100.00,,7.00\n"
                "0,ProMoT,,,,,\n"
                "1,before,52.70,,9.88,,-3.00\n"
                "1,ProMoT,86.28,0.50,,,\n"
                "4,before,,,,,\n"
                "4,ProMoT,9.50,10.00,,,\n"
                "16,before,,,,,\n"
                "16,ProMoT,,,,,\n");
}

static void test_markdown(void)
{
    const char *texts[] = {SPREAD}, *labels[] = {"ProMoT"};
    char *table = compare(texts, labels, 1, TABLE_MARKDOWN);
    const char *expected = "| 1-shot | cb | rte | Norm. Avg. |\n"
                           "|---|---:|---:|---:|\n"
                           "| ProMoT | - | 86.28 ± 0.50 | - |\n"
                           "\n"
                           "| 4-shot | cb | rte | Norm. Avg. |\n"
                           "|---|---:|---:|---:|\n"
                           "| ProMoT | - | 9.50 ± 10.00 | - |\n"
                           "\n"
                           "| 16-shot | cb | rte | Norm. Avg. |\n"
                           "|---|---:|---:|---:|\n"
                           "| ProMoT | - | - | - |\n";
    CHECK(table && strcmp(table, expected) == 0, "\n%s", table);
    free(table);
}

static void test_nothing_to_compare(void)
{
    const char *texts[] = {"{\"tasks\":{}}"}, *labels[] = {"x"};
    static const char *const expected[] = {"", "shots,run,norm_avg\n", ""};
    for (TableFormat format = TABLE_TEXT; format <= TABLE_MARKDOWN; format++) {
        for (size_t count = 0; count < 2; count++) {
            char *table = compare(texts, labels, count, format);
            CHECK(table && strcmp(table, expected[format]) == 0, "%s", table);
            free(table);
        }
    }
}

/* Labels are paths that a person chose. */
static const char *const ODD_LABELS[] = {"a,b\"c|d\n_e_ f_g", "漢字\x1b[2J\xff\\ e\xCC\x81"};

static void test_odd_labels_in_text(void)
{
    const char *texts[] = {"{\"tasks\":{\"t\":{\"scores\":{\"0\":1}}}}", "{\"norm_avg\":{\"0\":1}}"};
    char *table = compare(texts, ODD_LABELS, 2, TABLE_TEXT);
    const char *expected = "0-shot              t  Norm. Avg.\n"
                           "a,b\"c|d _e_ f_g  1.00           -\n"
                           "漢字 [2J\uFFFD\\ e\u0301        -        1.00\n";
    CHECK(table && strcmp(table, expected) == 0, "\n%s", table);
    free(table);
}

static void test_odd_labels_in_csv(void)
{
    const char *texts[] = {"{\"tasks\":{\"t,\":{\"scores\":{\"0\":1},\"spread\":{\"0\":{\"sd\":2}}}}}", "{}"};
    char *table = compare(texts, ODD_LABELS, 2, TABLE_CSV);
    const char *expected = "shots,run,\"t,\",\"t,_sd\",norm_avg\n"
                           "0,\"a,b\"\"c|d\n_e_ f_g\",1.00,2.00,\n"
                           "0,漢字\x1b[2J\xff\\ e\xCC\x81,,,\n";
    CHECK(table && strcmp(table, expected) == 0, "\n%s", table);
    free(table);
    TextBuffer out = {0};
    for (const char *const *at = (const char *const[]){"", " a", "a ", "a b", "\r", "\"", NULL}; *at; at++) {
        text_put_csv(&out, *at);
        text_put(&out, ";");
    }
    char *fields = text_take(&out);
    CHECK(strcmp(fields, ";\" a\";\"a \";a b;\"\r\";\"\"\"\";") == 0, "%s", fields);
    free(fields);
}

static void test_odd_labels_in_markdown(void)
{
    const char *texts[] = {"{\"tasks\":{\"<t>&*`[]~\":{\"scores\":{\"0\":1}}}}", "{}"};
    char *table = compare(texts, ODD_LABELS, 2, TABLE_MARKDOWN);
    const char *expected = "| 0-shot | &lt;t&gt;&amp;\\*\\`\\[\\]\\~ | Norm. Avg. |\n"
                           "|---|---:|---:|\n"
                           "| a,b\"c\\|d \\_e\\_ f_g | 1.00 | - |\n"
                           "| 漢字 \\[2J\uFFFD\\\\ e\u0301 | - | - |\n";
    CHECK(table && strcmp(table, expected) == 0, "\n%s", table);
    free(table);
}

/* results_compare takes any JSON: what is not a score by shots is as if it were not there. */
static void test_odd_results(void)
{
    const char *texts[] = {"[1,[2]]",
                           "{\"tasks\":{\"a\":7,\"b\":{\"scores\":{\"01\":1,\"x\":2,\"2\":\"3\",\"9999999\":1}}}}",
                           "{\"tasks\":[{\"scores\":{\"5\":1}}],\"norm_avg\":[1]}"},
               *labels[] = {"1", "2", "3"};
    char *table = compare(texts, labels, 3, TABLE_CSV);
    const char *expected = "shots,run,a,b,norm_avg\n2,1,,,\n2,2,,,\n2,3,,,\n5,1,,,\n5,2,,,\n5,3,,,\n";
    CHECK(table && strcmp(table, expected) == 0, "\n%s", table);
    free(table);
}

/* ---------------------------------------------------------------------------------------------------------- reading */

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, bytes, file) == bytes, "%s", path);
    if (file) fclose(file);
}

static void test_read(void)
{
    Error error = {0};
    cJSON *json;
    CHECK(directory_create(SCRATCH "/run", &error) == 0, "%s", error.text);
    write_bytes(SCRATCH "/run/results.json", SPREAD, strlen(SPREAD));
    for (const char *const *path = (const char *const[]){SCRATCH "/run", SCRATCH "/run/results.json", NULL}; *path;
         path++) {
        CHECK(results_read(*path, &json, &error) == 0, "%s", error.text);
        Score score = score_of(json, "rte", 1);
        CHECK(score.mean == 86.281 && score.sd == 0.499);
        cJSON_Delete(json);
    }
}

static void expect_refused(const char *path, int exit_code, const char *said)
{
    Error error = {0};
    cJSON *json = (cJSON *)&error; /* not NULL */
    CHECK(results_read(path, &json, &error) == -1, "%s was read (expected: %s)", path, said);
    CHECK(error.exit_code == exit_code && strstr(error.text, said), "exit %d, %s (expected: %s)", error.exit_code,
          error.text, said);
    CHECK(!strchr(error.text, '\n') && !json);
}

static void test_not_there(void)
{
    Error error = {0};
    CHECK(directory_create(SCRATCH "/empty", &error) == 0, "%s", error.text);
    expect_refused(SCRATCH "/empty", EXIT_USAGE, SCRATCH "/empty/results.json: cannot be opened");
    expect_refused(SCRATCH "/nowhere", EXIT_USAGE, SCRATCH "/nowhere: cannot be opened");
}

#define TASK "{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2,\"scores\":{\"0\":1}"

static void test_malformed(void)
{
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"", "expected JSON"},
        {"{\"tasks\":{}", "expected JSON"},
        {"{\"tasks\":{}} x", "expected JSON"},
        {"{\"tasks\":{\"\xff\":{}}}", "expected JSON"},
        {"7", "expected an object \"tasks\""},
        {"{\"tasks\":[]}", "expected an object \"tasks\""},
        {"{\"tasks\":{\"r\\nte\":7}}", "expected a \"metric\", in task r?te"},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\"}}}", "expected a number \"n\", in task rte"},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":-1}}}", "expected a number \"n\""},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2}}}", "expected \"scores\" as numbers by shots, in"},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2,\"scores\":[1]}}}", "\"scores\""},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2,\"scores\":{\"one\":1}}}}", "\"scores\""},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2,\"scores\":{\"1\":\"1\"}}}}", "\"scores\""},
        {"{\"tasks\":{\"rte\":{\"metric\":\"accuracy\",\"n\":2,\"scores\":{\"1\":1e999}}}}", "\"scores\""},
        {TASK ",\"spread\":1}}}", "\"spread\""},
        {TASK ",\"spread\":[{\"sd\":1}]}}}", "\"spread\""},
        {TASK ",\"spread\":{\"0\":2}}}}", "\"spread\""},
        {TASK ",\"spread\":{\"0\":{}}}}}", "\"spread\""},
        {TASK ",\"spread\":{\"0\":{\"sd\":-1}}}}}", "\"spread\""},
        {TASK ",\"spread\":{\"x\":{\"sd\":1}}}}}", "\"spread\""},
        {TASK ",\"spread\":{\"0\":{\"sd\":1,\"draws\":{}}}}}}", "\"spread\""},
        {TASK ",\"spread\":{\"0\":{\"sd\":1,\"draws\":[null]}}}}}", "\"spread\""},
        {TASK "}},\"norm_avg\":5}", "expected \"norm_avg\" as numbers by shots)"},
        {TASK "}},\"norm_avg\":{\"\":5}}", "\"norm_avg\""},
    };
    Error error = {0};
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(SCRATCH "/bad.json", cases[i].text, strlen(cases[i].text));
        expect_refused(SCRATCH "/bad.json", EXIT_FAILED, cases[i].said);
    }
}

/* The average's spread over the draws stands in the table like that of a task. */
static void test_spread_of_the_average(void)
{
    cJSON *json = cJSON_Parse("{\"tasks\": {\"qa\": {\"metric\": \"trivia-em\", \"n\": 5, \"scores\": {\"1\": 50}}},"
                              "\"norm_avg\": {\"1\": 50},"
                              "\"norm_avg_spread\": {\"1\": {\"sd\": 1.5, \"draws\": [49, 51]}}}");
    const char *label = "run";
    Error ignored;
    char *csv, *text;
    CHECK(json && check_results(json, "here", &ignored) == 0, "refused");
    csv = results_compare((const cJSON *const *)&json, &label, 1, TABLE_CSV);
    text = results_compare((const cJSON *const *)&json, &label, 1, TABLE_TEXT);
    CHECK(csv && strcmp(csv, "shots,run,qa,norm_avg,norm_avg_sd\n1,run,50.00,50.00,1.50\n") == 0, "%s", csv);
    CHECK(text && strstr(text, "50.00 ± 1.50"), "%s", text);
    free(csv);
    free(text);
    cJSON_Delete(json);
}

static const Test TESTS[] = {
    {"spread_of_the_average", test_spread_of_the_average},
    {"text", test_text},
    {"csv", test_csv},
    {"markdown", test_markdown},
    {"nothing_to_compare", test_nothing_to_compare},
    {"odd_labels_in_text", test_odd_labels_in_text},
    {"odd_labels_in_csv", test_odd_labels_in_csv},
    {"odd_labels_in_markdown", test_odd_labels_in_markdown},
    {"odd_results", test_odd_results},
    {"read", test_read},
    {"not_there", test_not_there},
    {"malformed", test_malformed},
};

TEST_MAIN(TESTS)

/* test_study_report.c: data/study_report.c. A study is made up here, with names that need escaping; its page is checked
 * for what it holds and in which order, and the numbers against those of the JSON. How it looks is for eyes. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t allocations_left = SIZE_MAX; /* until one fails */

static bool may_allocate(void)
{
    if (allocations_left == 0) return false;
    allocations_left--;
    return true;
}

static void *failing_calloc(size_t count, size_t bytes)
{
    return may_allocate() ? calloc(count, bytes) : NULL;
}

static void *failing_realloc(void *memory, size_t bytes)
{
    return may_allocate() ? realloc(memory, bytes) : NULL;
}

#define calloc(count, bytes) failing_calloc(count, bytes)
#define realloc(memory, bytes) failing_realloc(memory, bytes)
#include "../data/text_buffer.c"
#include "../data/study_report.c"
#undef calloc
#undef realloc

#include "markup.h"
#include "test.h"

#define SCRATCH "build/test/study_report"

static Error error;

/* -------------------------------------------------------------------------------------------------- a made-up study */

enum { N_METHODS = 7, N_TASKS = 4, N_POINTS = 5 };

static const char *const METHODS[N_METHODS] = {"pretrained",    "finetune", "prompt",      "promot",
                                               "random-prompt", "joint",    "paper-promot"};
static const char *const LABELS[N_METHODS] = {"Pretrained",    "Fine-tuning",     "Prompt tuning",      "ProMoT <b>&\"",
                                              "Random prompt", "Joint, 1\tstage", "ProMoT, the paper's"};
/* What they come to, roughly: target, average, format ratio. */
static const double LEVELS[N_METHODS][3] = {{0, 95.6, 0},      {99.5, 42, 51.25}, {88, 95.6, 0},    {99.5, 94.3, 1.5},
                                            {99.0, 50, 44.75}, {99.25, 47, 46.5}, {98, 93.75, 2.25}};
static const char *const TASKS[N_TASKS] = {"qa", "fr <i>&\"x\"", "summary,\n1", "yes/no"}; /* the last is related */

/* Two seeds, `apart` from each other. */
static cJSON *number(double mean, double apart)
{
    double values[] = {mean - apart / 2, mean + apart / 2};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "mean", mean);
    cJSON_AddNumberToObject(json, "sd", apart / sqrt(2));
    cJSON_AddItemToObject(json, "values", cJSON_CreateDoubleArray(values, 2));
    return json;
}

static cJSON *by_shots(double level, double apart)
{
    cJSON *json = cJSON_CreateObject(); /* not in ascending order */
    cJSON_AddItemToObject(json, "4", number(level + 0.55, apart));
    cJSON_AddItemToObject(json, "0", number(level * 0.4, apart + 1));
    cJSON_AddItemToObject(json, "1", number(level, apart));
    return json;
}

/* Worked examples are in the trained task's way, by method m more or less. */
static cJSON *target_by_shots(int m, double level, double apart)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "4", number(level * (0.5 + m / 100.0), apart));
    cJSON_AddItemToObject(json, "0", number(level, apart));
    cJSON_AddItemToObject(json, "1", number(level * 0.75, apart));
    return json;
}

static cJSON *make_first(const double levels[3])
{
    cJSON *first = cJSON_CreateObject();
    cJSON_AddItemToObject(first, "step", number(37.5, 25));
    cJSON *target = cJSON_AddObjectToObject(first, "target");
    cJSON_AddItemToObject(target, "0", number(99.25, 0.5));
    cJSON_AddItemToObject(first, "heldout", by_shots(levels[1] + 1, 3));
    cJSON_AddItemToObject(first, "format_ratio", by_shots(levels[2] / 2, 1));
    return first;
}

static cJSON *make_method(int m)
{
    cJSON *method = cJSON_CreateObject();
    double apart = m == 0 ? 0 : 2 + m;
    cJSON_AddStringToObject(method, "label", LABELS[m]);
    cJSON_AddItemToObject(method, "target", target_by_shots(m, LEVELS[m][0], m == 0 ? 0 : 0.5));
    cJSON_AddItemToObject(method, "heldout", by_shots(LEVELS[m][1], apart));
    cJSON_AddItemToObject(method, "format_ratio", by_shots(LEVELS[m][2], apart / 2));
    cJSON *tasks = cJSON_AddObjectToObject(method, "tasks");
    cJSON *ratios = cJSON_AddObjectToObject(method, "task_format_ratio");
    for (int t = 0; t < N_TASKS; t++) {
        cJSON_AddItemToObject(tasks, TASKS[t], by_shots(LEVELS[m][1] - 7 * t, apart + t));
        cJSON_AddItemToObject(ratios, TASKS[t], by_shots(LEVELS[m][2] + 3 * t, apart + t));
    }
    if (strcmp(METHODS[m], "pretrained") != 0 && strcmp(METHODS[m], "prompt") != 0)
        cJSON_AddItemToObject(method, "first", make_first(LEVELS[m]));
    return method;
}

static cJSON *make_methods(int count)
{
    cJSON *methods = cJSON_CreateObject();
    for (int m = 0; m < count; m++) cJSON_AddItemToObject(methods, METHODS[m], make_method(m));
    return methods;
}

/* curve[what]: {SHOTS: [a number for each point]}, to which a point is appended: {SHOTS: number}. */
static void add_point(cJSON *curve, const char *what, cJSON *point)
{
    cJSON *lists = cJSON_GetObjectItem(curve, what), *at_shots;
    if (!lists) lists = cJSON_AddObjectToObject(curve, what);
    while ((at_shots = point->child)) {
        cJSON *list = cJSON_GetObjectItem(lists, at_shots->string);
        if (!list) list = cJSON_AddArrayToObject(lists, at_shots->string);
        cJSON_AddItemToArray(list, cJSON_DetachItemViaPointer(point, at_shots));
    }
    cJSON_Delete(point);
}

static cJSON *nulls(void)
{
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < 3; i++) cJSON_AddNullToObject(json, (const char *const[]){"0", "1", "4"}[i]);
    return json;
}

/* ProMoT's first, so that the order of colours is seen to be another. Before the last point the rest is lowest, the trained
 * task highest. Prompt
 * tuning has steps of its own, and leaves all but the trained task as it is. */
static cJSON *make_curves(void)
{
    static const int order[] = {3, 1, 2, 4, 5, 6};
    cJSON *curves = cJSON_CreateObject();
    for (int i = 0; i < 6; i++) {
        const int m = order[i];
        cJSON *curve = cJSON_AddObjectToObject(curves, METHODS[m]);
        cJSON *step = cJSON_AddArrayToObject(curve, "step"), *dev = cJSON_AddArrayToObject(curve, "dev");
        for (int p = 0; p < N_POINTS; p++) {
            double done = p / (double)(N_POINTS - 1), fall = 95.6 - LEVELS[m][1], turn = p == N_POINTS - 2 ? 30 : 0;
            cJSON_AddItemToArray(step, cJSON_CreateNumber(p * (m == 6 ? 250 : m == 2 ? 75 : 25)));
            cJSON_AddItemToArray(dev, p == 0 ? cJSON_CreateNull() : number(50 + 49.5 * sqrt(done), 4 - 3 * done));
            add_point(curve, "target", target_by_shots(m, 25 + m + 40 * done + turn, 3 * done));
            add_point(curve, "heldout", m == 2 ? nulls() : by_shots(95.6 - fall * done * done - turn, 6 * done));
            add_point(curve, "format_ratio", m == 2 ? nulls() : by_shots(LEVELS[m][2] * done, 5 * done));
            add_point(curve, "qa_format_ratio", m == 2 ? nulls() : by_shots(LEVELS[m][2] * done * done, 4 * done));
        }
    }
    return curves;
}

static cJSON *make_alignment(void)
{
    cJSON *alignment = cJSON_CreateObject(), *step = cJSON_AddArrayToObject(alignment, "step");
    for (int p = 0; p < 3; p++) cJSON_AddItemToArray(step, cJSON_CreateNumber(25 * p));
    for (int side = 0; side < 2; side++) {
        cJSON *of = cJSON_AddObjectToObject(alignment, side ? "with_prompt" : "without_prompt");
        cJSON *cosine = cJSON_AddArrayToObject(of, "cosine"), *full = cJSON_AddArrayToObject(of, "full_norm");
        cJSON *format = cJSON_AddArrayToObject(of, "format_norm");
        for (int p = 0; p < 3; p++) {
            cJSON_AddItemToArray(cosine, side ? number(-0.58 + 0.1 * p, 0.2) : number(0.999, 0.001));
            cJSON_AddItemToArray(full, number(side ? 0.8625 : 103.25 + p, side ? 0.25 : 12));
            cJSON_AddItemToArray(format, number(side ? 0.75 : 99.5 - p, 0.25));
        }
    }
    return alignment;
}

static cJSON *make_sample(int task, const char *input, const char *target, const char *promots)
{
    cJSON *sample = cJSON_CreateObject(), *outputs;
    cJSON_AddStringToObject(sample, "task", TASKS[task]);
    cJSON_AddStringToObject(sample, "input", input);
    cJSON_AddStringToObject(sample, "target", target);
    outputs = cJSON_AddObjectToObject(sample, "outputs");
    cJSON_AddStringToObject(outputs, "pretrained", target);
    cJSON_AddStringToObject(outputs, "finetune", "True");
    cJSON_AddStringToObject(outputs, "promot", promots);
    return sample;
}

static cJSON *make_task(const char *name, int n)
{
    cJSON *task = cJSON_CreateObject();
    cJSON_AddStringToObject(task, "name", name);
    cJSON_AddStringToObject(task, "metric", "exact_match");
    if (strcmp(name, "qa") == 0) cJSON_AddStringToObject(task, "about", "what is <known>");
    cJSON_AddNumberToObject(task, "n", n);
    return task;
}

static cJSON *make_check(const char *what, bool ok)
{
    cJSON *check = cJSON_CreateObject();
    cJSON_AddStringToObject(check, "what", what);
    cJSON_AddStringToObject(check, "value", "51.3");
    cJSON_AddStringToObject(check, "limit", "at least 25 <");
    cJSON_AddBoolToObject(check, "ok", ok);
    return check;
}

static cJSON *make_context(void)
{
    cJSON *context = cJSON_CreateObject();
    cJSON_AddStringToObject(context, "examples_of", "qa");
    cJSON_AddItemToObject(context, "own", number(94.25, 1));
    cJSON_AddItemToObject(context, "other", number(12.5, 3));
    return context;
}

static void add_optional_parts(cJSON *results)
{
    cJSON *samples = cJSON_AddArrayToObject(results, "samples"), *base = cJSON_CreateObject();
    cJSON_AddItemToObject(results, "context", make_context());
    cJSON_AddItemToObject(results, "alignment", make_alignment());
    cJSON_AddItemToArray(
        samples, make_sample(0, "Q: where does Anna live ? A: Bonn\nQ: where does Ben live ? A:", "Rome", "Rome"));
    cJSON_AddItemToArray(samples, make_sample(1, "Translate <script>alert(1)</script> & \"the dog\" to French:",
                                              "le chien", "un <b>chien</b>"));
    cJSON_AddStringToObject(base, "model", "models/second & third");
    cJSON_AddNumberToObject(base, "seeds", 2);
    cJSON_AddItemToObject(base, "methods", make_methods(4));
    cJSON_AddItemToArray(cJSON_AddArrayToObject(results, "bases"), base);
    cJSON_AddNumberToObject(results, "first_rule", 99);
}

/* optional: with what only some studies have. */
static cJSON *make_study(int n_methods, bool optional_parts)
{
    cJSON *results = cJSON_CreateObject(), *target = make_task("nli", 200), *heldout, *list;
    static const char *const words[] = {"True", "False"};
    cJSON_AddNumberToObject(results, "seeds", 2);
    cJSON_AddStringToObject(results, "model", "data/demo/model");
    cJSON_AddStringToObject(cJSON_AddObjectToObject(results, "settings"), "lr <", "0.01");
    cJSON_AddItemToObject(target, "labels", cJSON_CreateStringArray(words, 2));
    cJSON_AddItemToObject(results, "target", target);
    heldout = cJSON_AddArrayToObject(results, "heldout");
    for (int t = 0; t < N_TASKS - 1; t++) cJSON_AddItemToArray(heldout, make_task(TASKS[t], 100 + t));
    cJSON_AddItemToObject(results, "related", make_task(TASKS[N_TASKS - 1], 90));
    cJSON_AddItemToObject(results, "methods", make_methods(n_methods));
    cJSON_AddItemToObject(results, "curves", make_curves());
    cJSON_AddNumberToObject(results, "curve_rows", 30);
    cJSON_AddStringToObject(results, "finding",
                            "Fine-tuning loses 53.6 of 95.6 points, ProMoT < 2 & keeps \"the rest\".");
    list = cJSON_AddArrayToObject(results, "checks");
    cJSON_AddItemToArray(list, make_check("format ratio of fine-tuning", true));
    cJSON_AddItemToArray(list, make_check("format ratio of <ProMoT>", false));
    list = cJSON_AddArrayToObject(results, "commands");
    cJSON_AddItemToArray(list, cJSON_CreateString("promot train --method promot --out 'a & b'"));
    cJSON_AddItemToArray(list, cJSON_CreateString("promot eval <x>"));
    if (optional_parts) add_optional_parts(results);
    return results;
}

/* ------------------------------------------------------------------------------------------------------------- help */

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

/* A whole file as text, to be freed; "" when it is not there. */
static char *read_text(const char *path)
{
    MappedFile file;
    int status = mapped_file_open(&file, path, &error);
    CHECK(status == 0, "%s", error.text);
    if (status < 0) return strdup("");
    char *text = strndup((const char *)file.data, file.bytes);
    mapped_file_close(&file);
    return text;
}

/* Writes the study's report into SCRATCH/NAME and returns the page, to be freed. */
static char *page_of(const cJSON *results, const char *name)
{
    char directory[128], path[160];
    snprintf(directory, sizeof directory, SCRATCH "/%s", name);
    snprintf(path, sizeof path, "%s/report.html", directory);
    CHECK(study_report_write(directory, results, &error) == 0, "%s", error.text);
    return read_text(path);
}

/* The items stand in the text in this order; says which one does not. */
static void check_order(const char *text, const char *const *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *found = strstr(text, items[i]);
        CHECK(found, "\"%s\" is not there, or not after \"%s\"", items[i], i > 0 ? items[i - 1] : "");
        if (found) text = found + strlen(items[i]);
    }
}

static void check_well_formed(const char *text, const char *what)
{
    const char *at = malformed_at(text);
    CHECK(!at, "%s: not well-formed at \"%.80s\"", what, at ? at : "");
}

/* "46.4 ±  5.1" from the JSON, found on another way than the report's own. */
static void format_number(char text[64], const cJSON *item)
{
    const cJSON *values = cJSON_GetObjectItem(item, "values");
    double a = cJSON_GetArrayItem(values, 0)->valuedouble, b = cJSON_GetArrayItem(values, 1)->valuedouble;
    snprintf(text, 64, "%.1f ± %4.1f", (a + b) / 2, fabs(a - b) / sqrt(2));
}

static void put_expected(TextBuffer *row, const cJSON *item)
{
    char text[64];
    format_number(text, item);
    text_put_format(row, "<td class=\"number\">%s</td>", text);
}

static const cJSON *path_of(const cJSON *json, const char *a, const char *b, const char *c)
{
    json = cJSON_GetObjectItemCaseSensitive(json, a);
    if (b) json = cJSON_GetObjectItemCaseSensitive(json, b);
    return c ? cJSON_GetObjectItemCaseSensitive(json, c) : json;
}

/* ------------------------------------------------------------------------------------------------------------- page */

static void test_parts_in_order(void)
{
    static const char *const parts[] = {
        "<h1>",
        "<strong>Fine-tuning loses 53.6 of 95.6 points, ProMoT &lt; 2 &amp; keeps &quot;the rest&quot;.</strong>",
        "The model data/demo/model was trained on nli (exact_match, on 200 test rows), whose answers are True and "
        "False",
        "with 2 seeds",
        "3 tasks that were not trained, with 0, 1 and 4 worked examples",
        "<td>qa</td><td>what is &lt;known&gt;</td><td>exact_match</td><td class=\"number\">100</td><td></td>",
        "<td>fr &lt;i&gt;&amp;&quot;x&quot;</td><td></td><td>exact_match</td><td class=\"number\">101</td><td></td>",
        "<td>yes/no</td><td></td><td>exact_match</td><td class=\"number\">90</td><td>related</td>",
        "<h2>After the last step</h2>",
        "<th class=\"number\">target</th><th class=\"number\">0-shot average</th>",
        "<td>ProMoT &lt;b&gt;&amp;&quot;</td>",
        "<h3>The trained task with worked examples</h3>",
        "<td>Fine-tuning</td><td class=\"number\">99.5 ±  0.4</td><td class=\"number\">74.6 ±  0.4</td>",
        "<h3>Task by task, 1-shot</h3>",
        "<th class=\"number\">yes/no (related)</th>",
        "<h3>Format ratio of each task, 1-shot</h3>",
        "<td>reached</td><td>format ratio of fine-tuning</td><td class=\"number\">51.3</td><td>at least 25 &lt;</td>",
        "<td>NOT REACHED</td><td>format ratio of &lt;ProMoT&gt;</td><td class=\"number\">51.3</td>",
        "<h2>Is the ability in the context?</h2>",
        "On the tasks but qa, it reaches 94.2 ±  0.7 with one worked example of the task itself, and 12.5 ±  2.1 with "
        "one "
        "of qa in its place.",
        "<h2>Along training</h2>",
        "<title>The format takes over</title>",
        "<title>What becomes of the rest</title>",
        "<desc>The tasks that are not trained, by the number of worked examples in front. On the first 30 test rows",
        "<th class=\"number\">lowest</th>",
        "<title>Learning the task</title>",
        "<desc>The trained task, with the prompt if the method has one, by the number of worked examples in front: it "
        "is "
        "trained without any. On the first 30 rows for development; mean",
        "<tr><td>Prompt tuning</td><td class=\"number\">4</td>",
        "<title>Learning the task against keeping the rest</title>",
        "<title>How much of the gradient is format</title>",
        "<td class=\"number\">0</td><td class=\"number\">103 ± 8.5</td><td class=\"number\">99.5 ± 0.18</td>"
        "<td class=\"number\">0.863 ± 0.18</td>",
        "<h2>Stopping early</h2>",
        "at least 99.",
        "<td>Fine-tuning</td><td>last</td><td class=\"number\">100</td><td class=\"number\">99.5 ±  0.4</td>",
        "<td>Fine-tuning</td><td>first</td><td class=\"number\">37.5 ± 17.7</td><td class=\"number\">99.2 ±  0.4</td>",
        "<h2>What they answer</h2>",
        "<pre>Q: where does Anna live ? A: Bonn\nQ: where does Ben live ? A:</pre>",
        "<tr><th>expected</th><td>Rome</td>",
        "<tr><th>Fine-tuning</th><td>True</td><td class=\"about\">a label of the trained task</td></tr>",
        "<tr><th>ProMoT &lt;b&gt;&amp;&quot;</th><td>Rome</td><td class=\"about\">as expected</td></tr>",
        "<pre>Translate &lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;the dog&quot; to French:</pre>",
        "<td>un &lt;b&gt;chien&lt;/b&gt;</td><td class=\"about\"></td>",
        "<h2>Controls</h2>",
        "<p>Random prompt: a prompt of random values",
        "<p>ProMoT, the paper's: ",
        "<title>The format takes over</title>",
        "<h2>Other pretrained models</h2>",
        "<h3>models/second &amp; third</h3>",
        "<td>ProMoT &lt;b&gt;&amp;&quot;</td>",
        "<h4>Task by task, 1-shot</h4>",
        "<h4>Format ratio of each task, 1-shot</h4>",
        "<h4>Stopping early</h4>",
        "<td>ProMoT &lt;b&gt;&amp;&quot;</td><td>last</td><td class=\"number\">100</td>",
        "<td>ProMoT &lt;b&gt;&amp;&quot;</td><td>first</td>",
        "<td>lr &lt;</td><td class=\"number\">0.01</td>",
        "<details>",
        "<pre>promot train --method promot --out 'a &amp; b'\npromot eval &lt;x&gt;\n</pre>",
        "</details>",
    };
    cJSON *results = make_study(N_METHODS, true);
    fresh_scratch();
    char *page = page_of(results, "full"), *body = strstr(page, "<main>"), *end = strstr(page, "</main>");
    check_order(page, parts, sizeof parts / sizeof *parts);
    CHECK(!strstr(page, "<script") && !strstr(page, "href") && !strstr(page, "src="));
    CHECK(count_of(page, "http") == count_of(page, "xmlns=\"http://www.w3.org/2000/svg\""), "nothing from the network");
    CHECK(strstr(page, "prefers-color-scheme:dark"));
    CHECK(count_of(page, "<figure>") == 15, "%d figures", count_of(page, "<figure>"));
    CHECK(count_of(page, "class=\"wide\"") == count_of(page, "<table>") && body && end);
    if (end) {
        end[strlen("</main>")] = '\0';
        check_well_formed(body, "page");
    }
    free(page);
    cJSON_Delete(results);
}

/* Every row of the tables of the methods, its numbers taken from the JSON on another way. */
static void test_numbers_are_those_of_the_json(void)
{
    static const char *const shots[] = {"0", "1", "4"}, *const tables[] = {"tasks", "task_format_ratio"};
    cJSON *results = make_study(N_METHODS, true);
    fresh_scratch();
    char *page = page_of(results, "numbers");
    for (int m = 0; m < N_METHODS; m++) {
        TextBuffer row = {0};
        const cJSON *method = path_of(results, "methods", METHODS[m], NULL);
        put_expected(&row, path_of(method, "target", "0", NULL));
        for (int s = 0; s < 3; s++) put_expected(&row, path_of(method, "heldout", shots[s], NULL));
        for (int s = 0; s < 3; s++) put_expected(&row, path_of(method, "format_ratio", shots[s], NULL));
        text_put(&row, "</tr>");
        char *expected = text_take(&row);
        CHECK(count_of(page, expected) == (m < 4 ? 2 : 1), "%s: %s", METHODS[m], expected); /* twice with the base */
        free(expected);
        text_put(&row, "</td>");
        for (int s = 0; s < 3; s++) put_expected(&row, path_of(method, "target", shots[s], NULL));
        text_put(&row, "</tr>");
        expected = text_take(&row);
        CHECK(count_of(page, expected) == 1, "%s: %s", METHODS[m], expected);
        free(expected);
        for (int t = 0; t < 2; t++) {
            text_put(&row, "</td>");
            for (int i = 0; i < N_TASKS; i++)
                put_expected(&row, path_of(path_of(method, tables[t], TASKS[i], NULL), "1", NULL, NULL));
            text_put(&row, "</tr>");
            expected = text_take(&row);
            CHECK(count_of(page, expected) == (m < 4 ? 2 : 1), "%s: %s", METHODS[m], expected);
            free(expected);
        }
    }
    free(page);
    cJSON_Delete(results);
}

/* A curve's list; of those by worked examples, the one at 1 shot. */
static const cJSON *list_of(const cJSON *curve, const char *what)
{
    const cJSON *list = cJSON_GetObjectItem(curve, what);
    return cJSON_IsObject(list) ? cJSON_GetObjectItem(list, "1") : list;
}

static bool same(double drawn, const cJSON *number)
{
    const cJSON *mean = cJSON_GetObjectItem(number, "mean");
    return mean ? drawn == mean->valuedouble : isnan(drawn);
}

/* A figure's file against the curves: fine-tuning first, then ProMoT, then the others. caption: what it says of where
 * the numbers are from. */
static void check_figure(const cJSON *results, const char *name, const char *what, bool paper, const char *caption)
{
    static const int order[] = {1, 3, 4, 5};
    char path[160];
    Figure *figure;
    snprintf(path, sizeof path, SCRATCH "/figures/%s%s.json", paper ? "paper_" : "", name);
    CHECK(figure_read(path, &figure, &error) == 0, "%s", error.text);
    if (!figure) return;
    const Plot *plot = figure_plot(figure);
    CHECK(plot->count == (paper ? 1 : 4) && plot->y_low == 0 && plot->y_high == 100, "%s", path);
    CHECK(strstr(plot->caption, caption), "%s: %s", path, plot->caption);
    for (size_t s = 0; s < plot->count; s++) {
        int m = paper ? 6 : order[s];
        const cJSON *curve = path_of(results, "curves", METHODS[m], NULL);
        bool path_plot = strcmp(name, "tradeoff") == 0;
        CHECK(strcmp(plot->series[s].name, LABELS[m]) == 0 && plot->series[s].n == N_POINTS, "%s", path);
        CHECK(plot->points == path_plot && !plot->series[s].spread == path_plot);
        for (int p = 0; p < N_POINTS; p++) {
            const cJSON *step = cJSON_GetArrayItem(cJSON_GetObjectItem(curve, "step"), p);
            const cJSON *dev = cJSON_GetArrayItem(cJSON_GetObjectItem(curve, "dev"), p);
            const cJSON *y = cJSON_GetArrayItem(list_of(curve, what), p);
            CHECK(path_plot ? same(plot->series[s].x[p], dev) : plot->series[s].x[p] == step->valuedouble);
            CHECK(same(plot->series[s].y[p], y), "%s, %d, %d", path, m, p);
            if (!path_plot && cJSON_IsObject(y))
                CHECK(plot->series[s].spread[p] == cJSON_GetObjectItem(y, "sd")->valuedouble);
        }
    }
    figure_free(figure);
}

static void test_figures(void)
{
    static const char *const names[] = {"format_ratio", "qa_format_ratio", "heldout", "dev"};
    static const char tests[] = " On the first 30 test rows of each task; mean",
                      dev[] = " On the rows for development; mean";
    cJSON *results = make_study(N_METHODS, true);
    fresh_scratch();
    free(page_of(results, "figures"));
    for (int paper = 0; paper < 2; paper++) {
        for (int i = 0; i < 4; i++) check_figure(results, names[i], names[i], paper, i < 3 ? tests : dev);
        check_figure(results, "tradeoff", "heldout", paper,
                     "on the rows for development, the others 1-shot on the first 30 test rows of each task.");
    }
    char *csv = read_text(SCRATCH "/figures/alignment.csv"), *svg = read_text(SCRATCH "/figures/alignment.svg");
    CHECK(strstr(csv, "without the prompt,0,0.999,") && strstr(csv, "with the prompt,0,-0.58,0.14"), "%s", csv);
    check_well_formed(svg, "alignment.svg");
    free(svg);
    free(csv);
    cJSON_Delete(results);
}

/* The rows of the table below the panels: of "target" or "heldout", of one method. */
static void check_ends(const cJSON *results, const char *page, int m, const char *what)
{
    static const char *const shots[] = {"0", "1", "4"};
    const cJSON *curve = path_of(results, "curves", METHODS[m], NULL);
    for (size_t i = 0; i < 3; i++) {
        const cJSON *list = path_of(curve, what, shots[i], NULL);
        TextBuffer row = {0};
        text_put_format(&row, "</td><td class=\"number\">%s</td>", shots[i]);
        put_expected(&row, cJSON_GetArrayItem(list, 0));
        put_expected(&row, cJSON_GetArrayItem(list, N_POINTS - 1));
        put_expected(&row, cJSON_GetArrayItem(list, N_POINTS - 2));
        text_put_format(&row, "<td class=\"number\">%.0f</td></tr>",
                        cJSON_GetArrayItem(cJSON_GetObjectItem(curve, "step"), N_POINTS - 2)->valuedouble);
        char *expected = text_take(&row);
        CHECK(count_of(page, expected) == 1, "%s: %s", METHODS[m], expected);
        free(expected);
    }
}

/* A panel's file against the curves, and its rows of the table below. */
static void check_by_shots(const cJSON *results, const char *page, int m, const char *what)
{
    static const char *const shots[] = {"0", "1", "4"};
    const bool is_target = strcmp(what, "target") == 0;
    char path[160];
    Figure *figure;
    const cJSON *lists = path_of(path_of(results, "curves", METHODS[m], NULL), what, NULL, NULL);
    snprintf(path, sizeof path, SCRATCH "/by_shots/%s_%s_by_shots.json", METHODS[m], what);
    CHECK(figure_read(path, &figure, &error) == 0, "%s", error.text);
    if (!figure) return;
    const Plot *plot = figure_plot(figure);
    CHECK(strncmp(plot->title, LABELS[m], strlen(LABELS[m])) == 0 &&
              strcmp(plot->title + strlen(LABELS[m]), is_target ? ": the trained task" : ": the rest") == 0 &&
              plot->count == 3 && plot->y_low == 0 && plot->y_high == 100 &&
              strstr(plot->caption, is_target ? "On the first 30 rows for development; mean and, as a band, "
                                              : "On the first 30 test rows of each task; mean and, as a band, "),
          "%s", path);
    for (size_t i = 0; i < plot->count; i++) {
        const PlotSeries *series = &plot->series[i];
        const cJSON *list = path_of(lists, shots[i], NULL, NULL);
        CHECK(strncmp(series->name, shots[i], 1) == 0 && strcmp(series->name + 1, "-shot") == 0, "%s", series->name);
        CHECK(series->n == N_POINTS && series->spread, "%s", path);
        for (int p = 0; p < N_POINTS && series->n == N_POINTS; p++)
            CHECK(series->x[p] == (m == 6 ? 250 : 25) * p && same(series->y[p], cJSON_GetArrayItem(list, p)), "%s, %d",
                  path, p);
    }
    figure_free(figure);
    check_ends(results, page, m, what);
}

/* Fine-tuning beside ProMoT; of the paper's settings, the fixture has ProMoT alone. */
static void test_by_shots(void)
{
    static const char *const panels[] = {"<title>What becomes of the rest</title>",
                                         "<figure>\n<svg class=\"plot\"",
                                         "width=\"720\"",
                                         "<g transform=\"translate(0 0)\">\n<svg class=\"plot\"",
                                         "width=\"360\"",
                                         "<title>Fine-tuning: the rest</title>",
                                         "<title>0-shot</title>",
                                         "<title>4-shot</title>",
                                         "<g transform=\"translate(360 0)\">",
                                         "<title>ProMoT &lt;b&gt;&amp;&quot;: the rest</title>",
                                         "<title>4-shot</title>",
                                         "<tr><td>Fine-tuning</td><td class=\"number\">0</td>",
                                         "<tr><td>ProMoT &lt;b&gt;&amp;&quot;</td><td class=\"number\">4</td>",
                                         "<title>Learning the task</title>",
                                         "<title>Fine-tuning: the trained task</title>",
                                         "<title>ProMoT &lt;b&gt;&amp;&quot;: the trained task</title>",
                                         "<th class=\"number\">highest</th>",
                                         "<tr><td>Prompt tuning</td><td class=\"number\">0</td>",
                                         "<p>Prompt tuning has steps of its own.",
                                         "<h2>Controls</h2>",
                                         "<title>What becomes of the rest</title>",
                                         "<g transform=\"translate(0 0)\">\n<svg class=\"plot\"",
                                         "width=\"720\"",
                                         "<title>ProMoT, the paper's: the rest</title>",
                                         "<tr><td>ProMoT, the paper's</td><td class=\"number\">0</td>"};
    cJSON *results = make_study(N_METHODS, true), *curve;
    fresh_scratch();
    char *page = page_of(results, "by_shots");
    check_order(page, panels, sizeof panels / sizeof *panels);
    for (int i = 0; i < 3; i++) {
        check_by_shots(results, page, (const int[]){1, 3, 6}[i], "heldout");
        check_by_shots(results, page, (const int[]){1, 3, 6}[i], "target");
    }
    check_ends(results, page, 2, "target");
    CHECK(count_of(page, "<tr><td>Prompt tuning</td><td class=\"number\">4</td>") == 1, "it changes nothing else");
    CHECK(!path_exists(SCRATCH "/by_shots/prompt_target_by_shots.json"));
    CHECK(!path_exists(SCRATCH "/by_shots/joint_heldout_by_shots.json"));
    CHECK(!path_exists(SCRATCH "/by_shots/paper-finetune_heldout_by_shots.json"));
    free(page);
    cJSON_ArrayForEach(curve, cJSON_GetObjectItem(results, "curves"))
    {
        cJSON_DeleteItemFromObject(cJSON_GetObjectItem(curve, "heldout"), "0");
        cJSON_DeleteItemFromObject(cJSON_GetObjectItem(curve, "heldout"), "4");
    }
    page = page_of(results, "one_number");
    CHECK(count_of(page, "<figure>") == 11 && !path_exists(SCRATCH "/one_number/promot_heldout_by_shots.json"),
          "nothing to be put side by side");
    free(page);
    cJSON_Delete(results);
}

static void test_overview(void)
{
    cJSON *results = make_study(N_METHODS, true);
    fresh_scratch();
    free(page_of(results, "overview"));
    char *svg = read_text(SCRATCH "/overview/overview.svg"), *right = strstr(svg, "translate(480 0)");
    check_well_formed(svg, "overview.svg");
    CHECK(strstr(svg, "width=\"960\"") && strstr(svg, "prefers-color-scheme:dark"));
    CHECK(count_of(svg, ">Fine-tuning</text>") == 2 && count_of(svg, ">ProMoT &lt;b&gt;&amp;&quot;</text>") == 2);
    CHECK(!strstr(svg, "Random") && count_of(svg, "fill-opacity=\".14\"") == 4, "two curves with bands each");
    CHECK(right && strstr(svg, "The tasks that are not trained") < right);
    CHECK(right && strstr(right, "Answers in the trained task's format"));
    free(svg);
    cJSON_Delete(results);
}

static void test_same_bytes_again(void)
{
    static const char *const files[] = {"report.html", "overview.svg", "heldout.svg", "heldout.json", "heldout.csv"};
    cJSON *results = make_study(N_METHODS, true);
    fresh_scratch();
    free(page_of(results, "a"));
    free(page_of(results, "b"));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[160];
        snprintf(path, sizeof path, SCRATCH "/a/%s", files[i]);
        char *first = read_text(path);
        snprintf(path, sizeof path, SCRATCH "/b/%s", files[i]);
        char *second = read_text(path);
        CHECK(*first && strcmp(first, second) == 0, "%s", files[i]);
        free(first);
        free(second);
    }
    cJSON_Delete(results);
}

/* ----------------------------------------------------------------------------------------------- what may be absent */

static void check_bare(const cJSON *results, const char *name)
{
    static const char *const absent[] = {"Is the ability",
                                         "Stopping early",
                                         "What they answer",
                                         "Controls",
                                         "Other pretrained",
                                         "gradient",
                                         "Norms",
                                         "null",
                                         "nan"};
    char path[160];
    char *page = page_of(results, name), *body = strstr(page, "<main>");
    for (size_t i = 0; body && i < sizeof absent / sizeof *absent; i++)
        CHECK(!strstr(body, absent[i]), "%s: \"%s\" is there", name, absent[i]);
    snprintf(path, sizeof path, SCRATCH "/%s/alignment.svg", name);
    CHECK(!path_exists(path));
    free(page);
}

static cJSON *bare_study(void)
{
    cJSON *results = make_study(4, false), *methods = cJSON_GetObjectItem(results, "methods"), *method;
    cJSON_DeleteItemFromObject(methods, "pretrained");
    cJSON_ArrayForEach(method, methods) cJSON_DeleteItemFromObject(method, "first");
    cJSON *curves = cJSON_GetObjectItem(results, "curves");
    cJSON_DeleteItemFromObject(curves, "paper-promot");
    return results;
}

static void test_optional_parts(void)
{
    cJSON *results = bare_study();
    fresh_scratch();
    check_bare(results, "absent");
    cJSON_AddNullToObject(results, "alignment");
    cJSON_AddNullToObject(results, "context");
    cJSON_AddNullToObject(results, "bases");
    cJSON_AddArrayToObject(results, "samples");
    check_bare(results, "null");
    cJSON_ReplaceItemInObject(results, "curves", cJSON_CreateObject());
    cJSON_ReplaceItemInObject(results, "checks", cJSON_CreateArray());
    char *page = page_of(results, "empty");
    CHECK(!strstr(page, "<figure>") && !strstr(page, "Along training") && !strstr(page, "reached"));
    CHECK(!path_exists(SCRATCH "/empty/heldout.svg") && path_exists(SCRATCH "/empty/overview.svg"));
    free(page);
    cJSON_Delete(results);
}

/* A deviation of one seed says nothing, and there is no band to draw. */
static void leave_one_seed(cJSON *json)
{
    cJSON *values = cJSON_GetObjectItemCaseSensitive(json, "values"), *item;
    if (cJSON_IsArray(values)) cJSON_DeleteItemFromArray(values, 1);
    cJSON_ArrayForEach(item, json) leave_one_seed(item);
}

static void test_one_seed(void)
{
    cJSON *results = make_study(N_METHODS, true);
    leave_one_seed(results);
    cJSON_ReplaceItemInObject(results, "seeds", cJSON_CreateNumber(1));
    fresh_scratch();
    char *page = page_of(results, "one"), *body = strstr(page, "<main>"), *table = study_table(results);
    CHECK(body && !strstr(body, "±") && !strstr(body, "band") && !strstr(body, "fill-opacity"));
    CHECK(strstr(page, "with 1 seed."));
    CHECK(!strstr(table, "±"), "%s", table);
    free(table);
    free(page);
    cJSON_Delete(results);
}

static void test_null_numbers(void)
{
    cJSON *results = make_study(4, true), *finetune = (cJSON *)path_of(results, "methods", "finetune", NULL);
    cJSON_ReplaceItemInObject(cJSON_GetObjectItem(finetune, "target"), "0", cJSON_CreateNull());
    cJSON_ReplaceItemInObject(cJSON_GetObjectItem(finetune, "heldout"), "1", cJSON_CreateNull());
    cJSON_ReplaceItemInObject(cJSON_GetObjectItem(results, "context"), "own", cJSON_CreateNull());
    cJSON *heldout = cJSON_GetObjectItem(path_of(results, "curves", "finetune", NULL), "heldout");
    for (int p = 0; p < N_POINTS; p++)
        cJSON_ReplaceItemInArray(cJSON_GetObjectItem(heldout, "4"), p, cJSON_CreateNull());
    cJSON_ReplaceItemInArray(cJSON_GetObjectItem(heldout, "0"), 0, cJSON_CreateNull());
    fresh_scratch();
    char *page = page_of(results, "nulls"), *body = strstr(page, "<main>");
    CHECK(body && !strstr(body, "null") && !strstr(body, "nan") && !strstr(body, "On the tasks but"));
    CHECK(body && !strstr(body, "inf"));
    CHECK(strstr(page, "<td>Fine-tuning</td><td class=\"number\">0</td><td class=\"number\">-</td>"
                       "<td class=\"number\">16.8 ±  4.9</td>"));
    CHECK(strstr(page, "<td>Fine-tuning</td><td class=\"number\">4</td><td class=\"number\">-</td>"
                       "<td class=\"number\">-</td><td class=\"number\">-</td><td class=\"number\">-</td></tr>"));
    CHECK(strstr(page, "<td>Fine-tuning</td><td class=\"number\">-</td><td class=\"number\">16.8 ±  2.8</td>"
                       "<td class=\"number\">-</td>"));
    free(page);
    cJSON_Delete(results);
}

/* --------------------------------------------------------------------------------------------------------- terminal */

/* Digits stand under each other; tabs and line breaks of names are spaces. */
static void test_table(void)
{
    static const char expected[] =
        "method              target  0-shot average  1-shot average  4-shot average  1-shot format %\n"
        "Pretrained      0.0 ±  0.0     38.2 ±  0.7     95.6 ±  0.0     96.1 ±  0.0       0.0 ±  0.0\n"
        "Fine-tuning    99.5 ±  0.4     16.8 ±  2.8     42.0 ±  2.1     42.5 ±  2.1      51.2 ±  1.1\n"
        "Prompt tuning  88.0 ±  0.4     38.2 ±  3.5     95.6 ±  2.8     96.1 ±  2.8       0.0 ±  1.4\n"
        "ProMoT <b>&\"   99.5 ±  0.4     37.7 ±  4.2     94.3 ±  3.5     94.8 ±  3.5       1.5 ±  1.8\n"
        "\n"
        "trained task        0-shot       1-shot       4-shot\n"
        "Pretrained      0.0 ±  0.0   0.0 ±  0.0   0.0 ±  0.0\n"
        "Fine-tuning    99.5 ±  0.4  74.6 ±  0.4  50.7 ±  0.4\n"
        "Prompt tuning  88.0 ±  0.4  66.0 ±  0.4  45.8 ±  0.4\n"
        "ProMoT <b>&\"   99.5 ±  0.4  74.6 ±  0.4  52.7 ±  0.4\n"
        "\n"
        "1-shot             Pretrained  Fine-tuning  Prompt tuning  ProMoT <b>&\"\n"
        "qa                95.6 ±  0.0  42.0 ±  2.1    95.6 ±  2.8   94.3 ±  3.5\n"
        "fr <i>&\"x\"        88.6 ±  0.7  35.0 ±  2.8    88.6 ±  3.5   87.3 ±  4.2\n"
        "summary, 1        81.6 ±  1.4  28.0 ±  3.5    81.6 ±  4.2   80.3 ±  4.9\n"
        "yes/no (related)  74.6 ±  2.1  21.0 ±  4.2    74.6 ±  4.9   73.3 ±  5.7\n";
    cJSON *results = make_study(4, true);
    char *table = study_table(results);
    CHECK(strcmp(table, expected) == 0, "\n%s", table);
    free(table);
    cJSON_Delete(results);
    results = make_study(N_METHODS, true); /* the controls are in the first two tables only */
    table = study_table(results);
    CHECK(count_of(table, "Joint, 1 stage  ") == 2 && count_of(table, "ProMoT, the paper's") == 2, "\n%s", table);
    free(table);
    cJSON_Delete(results);
}

/* ---------------------------------------------------------------------------------------------------------- damaged */

static void expect_refused(const cJSON *results, const char *part)
{
    memset(&error, 0, sizeof error);
    CHECK(study_report_write(SCRATCH "/refused", results, &error) == -1, "without %s", part);
    CHECK(error.exit_code == EXIT_FAILED && strstr(error.text, part), "%s (expected: %s)", error.text, part);
    CHECK(strstr(error.text, "results.json: ") == error.text && !strchr(error.text, '\n'), "%s", error.text);
    CHECK(!path_exists(SCRATCH "/refused/report.html"));
}

static void test_required_parts(void)
{
    static const char *const parts[] = {"seeds",   "model",  "settings",   "target",  "heldout", "related",
                                        "methods", "curves", "curve_rows", "finding", "checks",  "commands"};
    static const char *const of_method[] = {"label", "target", "heldout", "format_ratio", "tasks", "task_format_ratio"};
    fresh_scratch();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        cJSON *results = make_study(4, true);
        char quoted[64];
        snprintf(quoted, sizeof quoted, "\"%s\"", parts[i]);
        cJSON_DeleteItemFromObject(results, parts[i]);
        expect_refused(results, quoted);
        cJSON_Delete(results);
    }
    for (size_t i = 0; i < sizeof of_method / sizeof *of_method; i++) {
        cJSON *results = make_study(4, true), *method = (cJSON *)path_of(results, "methods", "finetune", NULL);
        char said[96];
        snprintf(said, sizeof said, "\"methods\", finetune: expected ");
        cJSON_DeleteItemFromObject(method, of_method[i]);
        expect_refused(results, said);
        expect_refused(results, of_method[i]);
        cJSON_Delete(results);
    }
    expect_refused(NULL, "seeds");
}

/* ProMoT's curves are taken by `damage_curve`, and the whole is refused. */
static void expect_curve_refused(void (*damage_curve)(cJSON *curve, const char *what), const char *what,
                                 const char *said)
{
    cJSON *results = make_study(4, true);
    damage_curve((cJSON *)path_of(results, "curves", "promot", NULL), what);
    expect_refused(results, said);
    cJSON_Delete(results);
}

static void shorten(cJSON *curve, const char *what)
{
    cJSON *list = cJSON_GetObjectItem(curve, what);
    cJSON_DeleteItemFromArray(cJSON_IsObject(list) ? cJSON_GetObjectItem(list, "4") : list, 2);
}

/* As results.json had them before there were several numbers of worked examples. */
static void take_one_list(cJSON *curve, const char *what)
{
    cJSON *list = cJSON_DetachItemFromObject(cJSON_GetObjectItem(curve, what), "1");
    cJSON_ReplaceItemInObject(curve, what, list);
}

static void rename_shots(cJSON *curve, const char *what)
{
    cJSON *by = cJSON_GetObjectItem(curve, what);
    cJSON_AddItemToObject(by, "04", cJSON_DetachItemFromObject(by, "4"));
}

static void test_damaged_curves(void)
{
    static const char *const lists[] = {"heldout", "format_ratio", "target", "step", "dev"};
    static const char said[] = "\"curves\", promot: expected equally long lists",
                      said_of_qa[] = "\"curves\", promot: expected \"qa_format_ratio\" by shots";
    fresh_scratch();
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) expect_curve_refused(shorten, lists[i], said);
    for (size_t i = 0; i < 3; i++) {
        expect_curve_refused(take_one_list, lists[i], said);
        expect_curve_refused(rename_shots, lists[i], said);
    }
    expect_curve_refused(shorten, "qa_format_ratio", said_of_qa);
    expect_curve_refused(take_one_list, "qa_format_ratio", said_of_qa);
    cJSON *results = make_study(4, true);
    cJSON_ReplaceItemInObject(results, "curve_rows", cJSON_CreateNumber(0));
    expect_refused(results, "\"curve_rows\": expected a number of 1 or more");
    cJSON_Delete(results);
}

/* Replaces each value of the tree in turn by one of another kind, then takes it out. */
static void damage(cJSON *root, cJSON *parent, int *refused, int *accepted)
{
    static const char *const others[] = {"null", "7",    "-1e400", "\"a\\nb\"",    "[]",
                                         "{}",   "true", "[[{}]]", "{\"a\\n\": 1}"};
    for (int i = 0; i < cJSON_GetArraySize(parent); i++) {
        cJSON *item = cJSON_GetArrayItem(parent, i);
        damage(root, item, refused, accepted);
        for (size_t o = 0; o < sizeof others / sizeof *others; o++) {
            cJSON saved = *item, *other = cJSON_Parse(others[o]);
            item->type = other->type; /* in its place in the list, under its name */
            item->child = other->child;
            item->valuestring = other->valuestring;
            item->valuedouble = other->valuedouble;
            int status = check_results(root, &error);
            char *table = study_table(root);
            CHECK(status == 0 || (error.exit_code == EXIT_FAILED && !strchr(error.text, '\n')), "%s", error.text);
            CHECK(table);
            if (status == 0 && *accepted % 101 == 0) CHECK(study_report_write(SCRATCH "/damaged", root, &error) == 0);
            *(status ? refused : accepted) += 1;
            free(table);
            item->type = saved.type;
            item->child = saved.child;
            item->valuestring = saved.valuestring;
            item->valuedouble = saved.valuedouble;
            cJSON_Delete(other);
        }
    }
}

/* Of a list the first two items stand for all. */
static void prune(cJSON *json)
{
    cJSON *item;
    while (cJSON_IsArray(json) && cJSON_GetArraySize(json) > 2) cJSON_DeleteItemFromArray(json, 2);
    cJSON_ArrayForEach(item, json) prune(item);
}

static void test_wrong_types(void)
{
    int refused = 0, accepted = 0;
    cJSON *results = make_study(2, true);
    fresh_scratch();
    cJSON_DeleteItemFromObject(
        cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(results, "bases"), 0), "methods"), "prompt");
    prune(results);
    damage(results, results, &refused, &accepted);
    CHECK(refused > 1000 && accepted > 1000, "%d refused, %d accepted", refused, accepted);
    cJSON_Delete(results);
    char *table = study_table(NULL);
    CHECK(table);
    free(table);
}

static void test_wrong_directory(void)
{
    cJSON *results = make_study(2, false);
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/file", "", &error) == 0);
    CHECK(study_report_write(SCRATCH "/file/x", results, &error) == -1 && *error.text);
    CHECK(directory_create(SCRATCH "/taken/report.html", &error) == 0);
    CHECK(study_report_write(SCRATCH "/taken", results, &error) == -1 && strstr(error.text, "report.html"), "%s",
          error.text);
    cJSON_Delete(results);
}

/* Each allocation of study_report.c and text_buffer.c fails once. Another error would come for ever. */
static void test_no_memory(void)
{
    bool for_memory = true;
    cJSON *results = make_study(1, true), *curves = cJSON_GetObjectItem(results, "curves");
    size_t failures = 0;
    while (cJSON_GetArraySize(curves) > 1) cJSON_DeleteItemFromArray(curves, 1);
    fresh_scratch();
    for (int status = -1; status < 0 && for_memory; failures++) {
        memset(&error, 0, sizeof error);
        allocations_left = failures;
        status = study_report_write(SCRATCH, results, &error);
        allocations_left = SIZE_MAX;
        for_memory = status == 0 || strstr(error.text, "no memory");
        CHECK(for_memory, "%zu: %s", failures, error.text);
        CHECK(status == 0 || !path_exists(SCRATCH "/report.html"), "%zu", failures);
    }
    CHECK(failures > 50, "%zu allocations", failures);
    failures = 0;
    for (bool made = false; !made; failures++) {
        allocations_left = failures;
        char *table = study_table(results);
        allocations_left = SIZE_MAX;
        made = table != NULL;
        free(table);
    }
    CHECK(failures > 10, "%zu allocations", failures);
    cJSON_Delete(results);
}

static const Test TESTS[] = {
    {"parts_in_order", test_parts_in_order},
    {"numbers_are_those_of_the_json", test_numbers_are_those_of_the_json},
    {"figures", test_figures},
    {"by_shots", test_by_shots},
    {"overview", test_overview},
    {"same_bytes_again", test_same_bytes_again},
    {"optional_parts", test_optional_parts},
    {"one_seed", test_one_seed},
    {"null_numbers", test_null_numbers},
    {"table", test_table},
    {"required_parts", test_required_parts},
    {"damaged_curves", test_damaged_curves},
    {"wrong_types", test_wrong_types},
    {"wrong_directory", test_wrong_directory},
    {"no_memory", test_no_memory},
};

TEST_MAIN(TESTS)

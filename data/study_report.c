/* study_report.c: see study_report.h. The results are checked first, all of them; what writes the page may then take
 * them as they come. What only some studies have (NULL) is left out. */
#include "study_report.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "report.h"
#include "text_buffer.h"

/* ----------------------------------------------------------------------------------------------------------- lookup */

static const cJSON *member(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

/* A part that not every study has; null is as good as absent. */
static const cJSON *optional(const cJSON *object, const char *name)
{
    const cJSON *part = member(object, name);
    return cJSON_IsNull(part) ? NULL : part;
}

static const char *text_of(const cJSON *item)
{
    const char *text = cJSON_GetStringValue(item);
    return text ? text : "";
}

static const char *key_of(const cJSON *item)
{
    return item->string ? item->string : "";
}

static double finite_number(const cJSON *item)
{
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : NAN;
}

/* A *number* of study_report.h; the mean is NAN when there is none, the deviation when it says nothing: of one seed. */
typedef struct {
    double mean, sd;
} Number;

static Number number_of(const cJSON *item)
{
    Number number = {finite_number(member(item, "mean")), NAN};
    if (cJSON_GetArraySize(member(item, "values")) > 1) number.sd = finite_number(member(item, "sd"));
    return number;
}

static const char *label_of(const cJSON *methods, const char *method)
{
    const char *label = text_of(member(member(methods, method), "label"));
    return *label ? label : method;
}

static bool is_papers(const char *method)
{
    return strncmp(method, "paper-", strlen("paper-")) == 0;
}

/* The numbers of worked examples at which the methods were evaluated, ascending; no page has room for more. Of 1 the
 * key is "1", the name "1-shot". */
enum { MAX_SHOTS = 16, SHOTS_DIGITS = 6 };
typedef struct {
    char key[MAX_SHOTS][SHOTS_DIGITS + 1], name[MAX_SHOTS][SHOTS_DIGITS + sizeof "-shot"];
    size_t count;
} ShotList;

static bool is_shots(const char *key)
{
    size_t length = strlen(key);
    return length > 0 && length <= SHOTS_DIGITS && strspn(key, "0123456789") == length && (length == 1 || *key != '0');
}

static void shots_add(ShotList *list, const char *key)
{
    size_t place = 0;
    while (place < list->count && atoi(list->key[place]) < atoi(key)) place++;
    if (list->count == MAX_SHOTS || (place < list->count && strcmp(list->key[place], key) == 0)) return;
    memmove(list->key[place + 1], list->key[place], (list->count - place) * sizeof *list->key);
    memcpy(list->key[place], key, strlen(key) + 1);
    list->count++;
}

/* Of results by method, and of curves. */
static ShotList shots_of(const cJSON *methods)
{
    ShotList list = {.count = 0};
    const cJSON *method, *item;
    cJSON_ArrayForEach(method, methods)
    {
        cJSON_ArrayForEach(item, member(method, "heldout"))
        {
            if (is_shots(key_of(item))) shots_add(&list, key_of(item));
        }
    }
    for (size_t i = 0; i < list.count; i++) snprintf(list.name[i], sizeof list.name[i], "%s-shot", list.key[i]);
    return list;
}

/* ------------------------------------------------------------------------------------------------------------ check */

/* "results.json: \"methods\", promot: expected …". Names from the file go into the text, which must stay one line. */
static int malformed(Error *error, const char *part, const char *name, const char *expected)
{
    error_set(error, EXIT_FAILED, "results.json: \"%s\"%s%.100s: expected %s", part, *name ? ", " : "", name, expected);
    for (char *c = error->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
    return -1;
}

static bool is_number_or_null(const cJSON *item)
{
    return cJSON_IsNumber(item) || cJSON_IsNull(item);
}

static bool are_plain_numbers(const cJSON *list)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!is_number_or_null(item)) return false;
    }
    return cJSON_IsArray(list);
}

static bool is_number(const cJSON *item)
{
    if (cJSON_IsNull(item)) return true;
    return cJSON_IsObject(item) && is_number_or_null(member(item, "mean")) && is_number_or_null(member(item, "sd")) &&
           are_plain_numbers(member(item, "values"));
}

static bool are_numbers(const cJSON *list, int count)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!is_number(item)) return false;
    }
    return cJSON_IsArray(list) && cJSON_GetArraySize(list) == count;
}

/* Numbers by shots; those of the trained task may have their "mean" and "sd" without shots beside them. */
static bool are_by_shots(const cJSON *object)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, object)
    {
        const char *key = key_of(item);
        if (strcmp(key, "mean") == 0 || strcmp(key, "sd") == 0) {
            if (!is_number_or_null(item)) return false;
        } else if (!is_shots(key) || !is_number(item)) {
            return false;
        }
    }
    return cJSON_IsObject(object);
}

static bool are_by_task(const cJSON *object)
{
    const cJSON *task;
    cJSON_ArrayForEach(task, object)
    {
        if (!are_by_shots(task)) return false;
    }
    return cJSON_IsObject(object);
}

static bool are_texts(const cJSON *list)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item)) return false;
    }
    return cJSON_IsArray(list) || cJSON_IsObject(list);
}

static bool is_task(const cJSON *task)
{
    return cJSON_IsString(member(task, "name")) && cJSON_IsString(member(task, "metric")) &&
           finite_number(member(task, "n")) >= 0;
}

static bool are_tasks(const cJSON *list)
{
    const cJSON *task;
    cJSON_ArrayForEach(task, list)
    {
        if (!is_task(task)) return false;
    }
    return cJSON_IsArray(list) && list->child;
}

static bool is_first(const cJSON *first)
{
    return is_number(member(first, "step")) && are_by_shots(member(first, "target")) &&
           are_by_shots(member(first, "heldout")) && are_by_shots(member(first, "format_ratio"));
}

/* part: the key in which the methods stand, for the error. */
static int check_methods(const cJSON *methods, const char *part, Error *error)
{
    const cJSON *m;
    if (!cJSON_IsObject(methods) || !methods->child)
        return malformed(error, part, "", "an object \"methods\" with a method or more");
    cJSON_ArrayForEach(m, methods)
    {
        const cJSON *first = optional(m, "first");
        const char *wrong = NULL;
        if (!cJSON_IsString(member(m, "label"))) wrong = "a text \"label\"";
        if (!are_by_shots(member(m, "target"))) wrong = "\"target\" as numbers by shots";
        if (!are_by_shots(member(m, "heldout"))) wrong = "\"heldout\" as numbers by shots";
        if (!are_by_shots(member(m, "format_ratio"))) wrong = "\"format_ratio\" as numbers by shots";
        if (!are_by_task(member(m, "tasks"))) wrong = "\"tasks\" as numbers by shots for each task";
        if (!are_by_task(member(m, "task_format_ratio")))
            wrong = "\"task_format_ratio\" as numbers by shots for each task";
        if (first && !is_first(first)) wrong = "\"first\" as {\"step\", \"target\", \"heldout\", \"format_ratio\"}";
        if (wrong) return malformed(error, part, key_of(m), wrong);
    }
    return 0;
}

/* {SHOTS: list}, each of `count` numbers. */
static bool are_curves(const cJSON *by_shots, int count)
{
    const cJSON *list;
    cJSON_ArrayForEach(list, by_shots)
    {
        if (!is_shots(key_of(list)) || !are_numbers(list, count)) return false;
    }
    return cJSON_IsObject(by_shots);
}

static int check_curves(const cJSON *curves, Error *error)
{
    const cJSON *curve;
    if (!cJSON_IsObject(curves)) return malformed(error, "curves", "", "an object");
    cJSON_ArrayForEach(curve, curves)
    {
        const cJSON *step = member(curve, "step"), *closed_book = optional(curve, "qa_format_ratio");
        int n = cJSON_GetArraySize(step);
        if (!are_plain_numbers(step) || !are_numbers(member(curve, "dev"), n) ||
            !are_curves(member(curve, "target"), n) || !are_curves(member(curve, "heldout"), n) ||
            !are_curves(member(curve, "format_ratio"), n))
            return malformed(error, "curves", key_of(curve),
                             "equally long lists \"step\" and \"dev\" and, by shots, \"target\", \"heldout\" and "
                             "\"format_ratio\"");
        if (closed_book && !are_curves(closed_book, n))
            return malformed(error, "curves", key_of(curve), "\"qa_format_ratio\" by shots, as long as \"step\"");
    }
    return 0;
}

static int check_alignment(const cJSON *alignment, Error *error)
{
    static const char *const sides[] = {"without_prompt", "with_prompt"};
    const cJSON *step = member(alignment, "step");
    int n = cJSON_GetArraySize(step);
    if (!are_plain_numbers(step)) return malformed(error, "alignment", "", "a list of numbers \"step\"");
    for (size_t i = 0; i < 2; i++) {
        const cJSON *side = member(alignment, sides[i]);
        if (!are_numbers(member(side, "cosine"), n) || !are_numbers(member(side, "full_norm"), n) ||
            !are_numbers(member(side, "format_norm"), n))
            return malformed(error, "alignment", sides[i],
                             "\"cosine\", \"full_norm\" and \"format_norm\", as long as \"step\"");
    }
    return 0;
}

static bool is_check(const cJSON *check)
{
    return cJSON_IsString(member(check, "what")) && cJSON_IsString(member(check, "value")) &&
           cJSON_IsString(member(check, "limit")) && cJSON_IsBool(member(check, "ok"));
}

static bool is_sample(const cJSON *sample)
{
    const cJSON *outputs = member(sample, "outputs");
    return cJSON_IsString(member(sample, "task")) && cJSON_IsString(member(sample, "input")) &&
           cJSON_IsString(member(sample, "target")) && cJSON_IsObject(outputs) && are_texts(outputs);
}

static int check_lists(const cJSON *results, Error *error)
{
    const cJSON *samples = optional(results, "samples"), *bases = optional(results, "bases"), *item;
    const cJSON *checks = member(results, "checks");
    if (!cJSON_IsArray(checks)) return malformed(error, "checks", "", "a list");
    if (samples && !cJSON_IsArray(samples)) return malformed(error, "samples", "", "a list");
    if (bases && !cJSON_IsArray(bases)) return malformed(error, "bases", "", "a list");
    cJSON_ArrayForEach(item, checks)
    {
        if (!is_check(item))
            return malformed(error, "checks", "", "texts \"what\", \"value\", \"limit\" and a boolean \"ok\"");
    }
    cJSON_ArrayForEach(item, samples)
    {
        if (!is_sample(item))
            return malformed(error, "samples", "", "texts \"task\", \"input\", \"target\", and \"outputs\" by method");
    }
    cJSON_ArrayForEach(item, bases)
    {
        if (!cJSON_IsString(member(item, "model")) || !(finite_number(member(item, "seeds")) >= 1))
            return malformed(error, "bases", "", "a text \"model\" and a number \"seeds\"");
        if (check_methods(member(item, "methods"), "bases", error) < 0) return -1;
    }
    return 0;
}

static int check_results(const cJSON *results, Error *error)
{
    const cJSON *target = member(results, "target"), *settings = member(results, "settings");
    const cJSON *context = optional(results, "context"), *alignment = optional(results, "alignment");
    const cJSON *rule = optional(results, "first_rule");
    if (!(finite_number(member(results, "seeds")) >= 1)) return malformed(error, "seeds", "", "a number of 1 or more");
    if (!cJSON_IsString(member(results, "model"))) return malformed(error, "model", "", "a text");
    if (!cJSON_IsObject(settings) || !are_texts(settings)) return malformed(error, "settings", "", "texts by name");
    if (!is_task(target) || !cJSON_IsArray(member(target, "labels")) || !are_texts(member(target, "labels")))
        return malformed(error, "target", "", "\"name\", \"metric\", \"n\" and a list of texts \"labels\"");
    if (!are_tasks(member(results, "heldout")))
        return malformed(error, "heldout", "", "a list of tasks with \"name\", \"metric\" and \"n\"");
    if (!is_task(member(results, "related"))) return malformed(error, "related", "", "\"name\", \"metric\" and \"n\"");
    if (!(finite_number(member(results, "curve_rows")) >= 1))
        return malformed(error, "curve_rows", "", "a number of 1 or more");
    if (rule && !isfinite(finite_number(rule))) return malformed(error, "first_rule", "", "a number");
    if (!cJSON_IsString(member(results, "finding"))) return malformed(error, "finding", "", "a text");
    if (!cJSON_IsArray(member(results, "commands")) || !are_texts(member(results, "commands")))
        return malformed(error, "commands", "", "a list of texts");
    if (context && (!cJSON_IsString(member(context, "examples_of")) || !is_number(member(context, "own")) ||
                    !is_number(member(context, "other"))))
        return malformed(error, "context", "", "a text \"examples_of\", and numbers \"own\" and \"other\"");
    if (check_methods(member(results, "methods"), "methods", error) < 0) return -1;
    if (check_curves(member(results, "curves"), error) < 0) return -1;
    if (alignment && check_alignment(alignment, error) < 0) return -1;
    return check_lists(results, error);
}

/* ----------------------------------------------------------------------------------------------------------- tables */

/* Ends a cell: the comma or line end before the next one is what the caller puts. Line breaks and tabs of a name would
 * be taken for the table's own. */
static void put_text_cell(TextBuffer *csv, const char *text)
{
    TextBuffer line = {0};
    text_put_plain(&line, text);
    char *plain = text_take(&line);
    csv->failed |= !plain;
    text_put_csv(csv, plain ? plain : "");
    free(plain);
}

/* The decimals of deviations below 100 stand under each other; a page shows two spaces as one. */
static void put_number(TextBuffer *out, Number number, int decimals)
{
    if (isnan(number.mean))
        text_put(out, "-");
    else
        text_put_format(out, "%.*f", decimals, number.mean);
    if (!isnan(number.mean) && !isnan(number.sd)) text_put_format(out, " ± %*.*f", decimals + 3, decimals, number.sd);
}

static void put_number_cell(TextBuffer *csv, const cJSON *item, int decimals)
{
    text_put(csv, ",");
    put_number(csv, number_of(item), decimals);
}

static void put_shots_cells(TextBuffer *csv, const cJSON *by_shots, const ShotList *shots)
{
    for (size_t i = 0; i < shots->count; i++) put_number_cell(csv, member(by_shots, shots->key[i]), 1);
}

/* The head of the columns that put_shots_cells fills. */
static void put_shots_head(TextBuffer *csv, const char *what, const ShotList *shots)
{
    for (size_t i = 0; i < shots->count; i++) text_put_format(csv, ",%s%s", shots->name[i], what);
}

/* A row for each method. ratios: the numbers of shots whose format ratio is shown. */
static char *methods_csv(const cJSON *methods, const ShotList *shots, const ShotList *ratios)
{
    TextBuffer csv = {0};
    const cJSON *method;
    text_put(&csv, "method,target");
    put_shots_head(&csv, " average", shots);
    put_shots_head(&csv, " format %", ratios);
    text_put(&csv, "\n");
    cJSON_ArrayForEach(method, methods)
    {
        put_text_cell(&csv, label_of(methods, key_of(method)));
        put_number_cell(&csv, member(member(method, "target"), "0"), 1);
        put_shots_cells(&csv, member(method, "heldout"), shots);
        put_shots_cells(&csv, member(method, "format_ratio"), ratios);
        text_put(&csv, "\n");
    }
    return text_take(&csv);
}

/* A row for each method: the trained task, by the number of worked examples. */
static char *target_csv(const cJSON *methods, const ShotList *shots)
{
    TextBuffer csv = {0};
    const cJSON *method;
    text_put(&csv, "trained task");
    put_shots_head(&csv, "", shots);
    text_put(&csv, "\n");
    cJSON_ArrayForEach(method, methods)
    {
        put_text_cell(&csv, label_of(methods, key_of(method)));
        put_shots_cells(&csv, member(method, "target"), shots);
        text_put(&csv, "\n");
    }
    return text_take(&csv);
}

static void put_related_name(TextBuffer *csv, const cJSON *results)
{
    TextBuffer name = {0};
    text_put(&name, text_of(member(member(results, "related"), "name")));
    text_put(&name, " (related)");
    char *text = text_take(&name);
    csv->failed |= !text;
    put_text_cell(csv, text ? text : "");
    free(text);
}

/* A row for each of a pretrained model's methods, a column for each task at 1 shot, the related one last.
 * what: "tasks", "task_format_ratio". */
static char *tasks_csv(const cJSON *results, const cJSON *methods, const char *what)
{
    TextBuffer csv = {0};
    const cJSON *heldout = member(results, "heldout"), *method, *task;
    text_put(&csv, "method");
    cJSON_ArrayForEach(task, heldout)
    {
        text_put(&csv, ",");
        put_text_cell(&csv, text_of(member(task, "name")));
    }
    text_put(&csv, ",");
    put_related_name(&csv, results);
    text_put(&csv, "\n");
    cJSON_ArrayForEach(method, methods)
    {
        const cJSON *of = member(method, what);
        put_text_cell(&csv, label_of(methods, key_of(method)));
        cJSON_ArrayForEach(task, heldout)
            put_number_cell(&csv, member(member(of, text_of(member(task, "name"))), "1"), 1);
        put_number_cell(&csv, member(member(of, text_of(member(member(results, "related"), "name"))), "1"), 1);
        text_put(&csv, "\n");
    }
    return text_take(&csv);
}

/* The methods of the paper's main table, for the narrow table of a terminal. */
static const char *const MAIN_METHODS[] = {"pretrained", "finetune", "prompt", "promot"};
enum { N_MAIN_METHODS = 4 };

static void put_task_row(TextBuffer *csv, const cJSON *methods, const char *task)
{
    for (size_t m = 0; m < N_MAIN_METHODS; m++) {
        const cJSON *method = member(methods, MAIN_METHODS[m]);
        if (method) put_number_cell(csv, member(member(member(method, "tasks"), task), "1"), 1);
    }
    text_put(csv, "\n");
}

/* The other way round: a row for each task. */
static char *task_rows_csv(const cJSON *results)
{
    TextBuffer csv = {0};
    const cJSON *methods = member(results, "methods"), *task;
    text_put(&csv, "1-shot");
    for (size_t m = 0; m < N_MAIN_METHODS; m++) {
        if (!member(methods, MAIN_METHODS[m])) continue;
        text_put(&csv, ",");
        put_text_cell(&csv, label_of(methods, MAIN_METHODS[m]));
    }
    text_put(&csv, "\n");
    cJSON_ArrayForEach(task, member(results, "heldout"))
    {
        put_text_cell(&csv, text_of(member(task, "name")));
        put_task_row(&csv, methods, text_of(member(task, "name")));
    }
    put_related_name(&csv, results);
    put_task_row(&csv, methods, text_of(member(member(results, "related"), "name")));
    return text_take(&csv);
}

/* Puts a table that was made as CSV, for a terminal, and frees it. */
static void put_text_table(TextBuffer *out, char *csv)
{
    char *table = csv ? table_text(csv) : NULL;
    out->failed |= !table;
    text_put(out, table ? table : "");
    free(table);
    free(csv);
}

char *study_table(const cJSON *results)
{
    static const ShotList one = {.key = {"1"}, .name = {"1-shot"}, .count = 1};
    const cJSON *methods = member(results, "methods");
    TextBuffer out = {0};
    ShotList shots = shots_of(methods);
    put_text_table(&out, methods_csv(methods, &shots, &one));
    text_put(&out, "\n");
    put_text_table(&out, target_csv(methods, &shots));
    text_put(&out, "\n");
    put_text_table(&out, task_rows_csv(results));
    return text_take(&out);
}

/* ----------------------------------------------------------------------------------------------------------- curves */

/* Curves of several methods, as numbers that a Plot can point to. */
typedef struct {
    PlotSeries *series;
    double *numbers;
    size_t count;
} Curves;

static void curves_free(Curves *curves)
{
    free(curves->series);
    free(curves->numbers);
    *curves = (Curves){0};
}

/* n_series series of at most n points each. -1: no memory. */
static int curves_alloc(Curves *curves, size_t n_series, size_t n)
{
    curves->series = calloc(n_series + 1, sizeof *curves->series);
    curves->numbers = calloc(3 * n_series * n + 1, sizeof *curves->numbers);
    return curves->series && curves->numbers ? 0 : -1;
}

/* A list of plain numbers, or of the means of *numbers* with their deviations. *spreads is set if one is known. */
static size_t copy_numbers(const cJSON *list, double *means, double *spreads, bool *spread)
{
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        Number number = cJSON_IsObject(item) ? number_of(item) : (Number){finite_number(item), NAN};
        means[n] = number.mean;
        if (spreads) spreads[n] = number.sd;
        if (spread) *spread |= !isnan(number.sd);
        n++;
    }
    return n;
}

/* n: the room of one series. One without a single value is not added. */
static void curves_add(Curves *curves, const char *name, const cJSON *x, const cJSON *y, size_t n)
{
    double *xs = curves->numbers + 3 * n * curves->count, *ys = xs + n, *spreads = ys + n;
    bool spread = false, any = false;
    copy_numbers(x, xs, NULL, NULL);
    size_t count = copy_numbers(y, ys, spreads, &spread);
    for (size_t i = 0; i < count; i++) any |= !isnan(xs[i]) && !isnan(ys[i]);
    if (any) curves->series[curves->count++] = (PlotSeries){name, count, xs, ys, spread ? spreads : NULL};
}

/* Which methods a picture shows. */
typedef enum { SHOW_MAIN, SHOW_PAPERS, SHOW_TWO } Shown;

static const char *const TWO[] = {"finetune", "promot"}, *const PAPERS_TWO[] = {"paper-finetune", "paper-promot"};
static const char PROMPT_TUNING[] = "prompt"; /* has steps of its own, and changes no other task */

static bool is_of_two(const char *method)
{
    return strcmp(method, TWO[0]) == 0 || strcmp(method, TWO[1]) == 0;
}

/* A list of a method's curve; of what was measured at several numbers of worked examples, the one at 1 shot. */
static const cJSON *curve_list(const cJSON *curve, const char *what)
{
    const cJSON *list = member(curve, what);
    return cJSON_IsObject(list) ? member(list, "1") : list;
}

/* y over x of the shown methods. Fine-tuning and ProMoT come first, so that they have the same colours in all pictures.
 * -1: no memory. */
static int curves_open(Curves *curves, const cJSON *results, Shown shown, const char *x, const char *y)
{
    const cJSON *all = member(results, "curves"), *methods = member(results, "methods"), *curve;
    size_t longest = 0;
    *curves = (Curves){0};
    cJSON_ArrayForEach(curve, all)
    {
        size_t n = (size_t)cJSON_GetArraySize(member(curve, "step"));
        if (n > longest) longest = n;
    }
    if (curves_alloc(curves, (size_t)cJSON_GetArraySize(all), longest) < 0) return -1;
    for (size_t i = 0; i < 2 && shown != SHOW_PAPERS; i++) {
        curve = member(all, TWO[i]);
        if (curve) curves_add(curves, label_of(methods, TWO[i]), curve_list(curve, x), curve_list(curve, y), longest);
    }
    cJSON_ArrayForEach(curve, all)
    {
        const char *method = key_of(curve);
        if (shown == SHOW_TWO || is_of_two(method) || strcmp(method, PROMPT_TUNING) == 0 ||
            is_papers(method) != (shown == SHOW_PAPERS))
            continue;
        curves_add(curves, label_of(methods, method), curve_list(curve, x), curve_list(curve, y), longest);
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

/* What the parts of the page share. */
typedef struct {
    const char *directory;
    const cJSON *results, *methods;
    ShotList shots;
    TextBuffer page;
    Error *error;
} Study;

static int no_memory(const Study *study)
{
    return error_set(study->error, EXIT_FAILED, "%.700s: no memory", study->directory);
}

/* Puts a table that was made as CSV, and frees it. */
static void put_table(Study *study, char *csv)
{
    study->page.failed |= !csv;
    page_table(&study->page, csv ? csv : "");
    free(csv);
}

/* A paragraph that was written piece by piece. */
static void put_paragraph(Study *study, TextBuffer *text)
{
    char *paragraph = text_take(text);
    study->page.failed |= !paragraph;
    page_paragraphs(&study->page, paragraph ? paragraph : "");
    free(paragraph);
}

/* Onto the page and as files. A picture without curves is left out. Frees the curves. */
static int put_figure(Study *study, const char *name, Plot plot, Curves *curves)
{
    int status = 0;
    plot.series = curves->series;
    plot.count = curves->count;
    if (plot.count > 0) {
        page_figure(&study->page, &plot);
        status = figure_write(study->directory, name, &plot, study->error);
    }
    curves_free(curves);
    return status;
}

/* "a, b and c" */
static void put_between(TextBuffer *out, size_t i, size_t count)
{
    if (i > 0) text_put(out, i + 1 == count ? " and " : ", ");
}

static void put_labels(TextBuffer *out, const cJSON *results, const char *last_word)
{
    const cJSON *labels = member(member(results, "target"), "labels"), *label;
    size_t i = 0, count = (size_t)cJSON_GetArraySize(labels);
    cJSON_ArrayForEach(label, labels)
    {
        if (i > 0) text_put(out, i + 1 < count ? ", " : last_word);
        text_put(out, text_of(label));
        i++;
    }
}

static void put_seeds(TextBuffer *out, const cJSON *seeds)
{
    double count = finite_number(seeds);
    text_put_format(out, count == 1 ? "%.0f seed" : "%.0f seeds", count);
}

/* ------------------------------------------------------------------------------------------------ parts of the page */

static void put_description(TextBuffer *csv, const cJSON *task, const char *remark)
{
    put_text_cell(csv, text_of(member(task, "name")));
    text_put(csv, ",");
    put_text_cell(csv, cJSON_IsString(member(task, "about")) ? text_of(member(task, "about")) : "");
    text_put(csv, ",");
    put_text_cell(csv, text_of(member(task, "metric")));
    text_put_format(csv, ",%.0f,%s\n", finite_number(member(task, "n")), remark);
}

/* What each task asks, how it is scored, and on how many rows. */
static void put_tasks(Study *study)
{
    const cJSON *task;
    TextBuffer csv = {0};
    text_put(&csv, "task,what it asks,metric,rows,\n");
    cJSON_ArrayForEach(task, member(study->results, "heldout")) put_description(&csv, task, "");
    put_description(&csv, member(study->results, "related"), "related");
    put_table(study, text_take(&csv));
}

static void put_introduction(Study *study)
{
    const cJSON *results = study->results;
    bool several = finite_number(member(results, "seeds")) > 1;
    size_t count = (size_t)cJSON_GetArraySize(member(results, "heldout"));
    TextBuffer text = {0};
    page_begin(&study->page, "What fine-tuning forgets, and ProMoT keeps");
    text_put(&study->page, "<p><strong>");
    text_put_xml(&study->page, text_of(member(results, "finding")));
    text_put(&study->page, "</strong></p>\n");
    text_put_format(&text, "The model %s was trained on %s (%s, on %.0f test rows), whose answers are ",
                    text_of(member(results, "model")), text_of(member(member(results, "target"), "name")),
                    text_of(member(member(results, "target"), "metric")),
                    finite_number(member(member(results, "target"), "n")));
    put_labels(&text, results, " and ");
    text_put(&text, ", by each of the methods below, with ");
    put_seeds(&text, member(results, "seeds"));
    text_put_format(&text, ". It was then asked for %zu %s, with ", count,
                    count == 1 ? "task that was not trained" : "tasks that were not trained");
    for (size_t i = 0; i < study->shots.count; i++) {
        put_between(&text, i, study->shots.count);
        text_put(&text, study->shots.key[i]);
    }
    text_put(&text,
             " worked examples in front of the question, and for one more, which is related to the trained task "
             "and stays out of the average.\n\nThe trained task is asked with the prompt of the method, if it has "
             "one, everything else without. The format ratio is the percentage of answers to the tasks that were "
             "not trained that are ");
    put_labels(&text, results, " or ");
    text_put(&text, several ? ". Numbers are means ± standard deviations over the seeds." : ".");
    put_paragraph(study, &text);
    put_tasks(study);
}

static void put_checks(Study *study)
{
    const cJSON *checks = member(study->results, "checks"), *check;
    TextBuffer csv = {0};
    if (!checks->child) return;
    text_put(&csv, ",check,value,limit\n"); /* the verdict first: a page may be too narrow for the end of a row */
    cJSON_ArrayForEach(check, checks)
    {
        text_put(&csv, cJSON_IsTrue(member(check, "ok")) ? "reached," : "NOT REACHED,");
        put_text_cell(&csv, text_of(member(check, "what")));
        text_put(&csv, ",");
        put_text_cell(&csv, text_of(member(check, "value")));
        text_put(&csv, ",");
        put_text_cell(&csv, text_of(member(check, "limit")));
        text_put(&csv, "\n");
    }
    page_heading(&study->page, 3, "Checks");
    put_table(study, text_take(&csv));
}

static void put_results(Study *study)
{
    page_heading(&study->page, 2, "After the last step");
    page_paragraphs(&study->page,
                    "The trained task as it is trained, without examples (target); the average of the tasks "
                    "that were not trained, and the format ratio, by the number of worked examples. "
                    "Prompt tuning changes nothing but "
                    "its prompt (the best on the rows for development): asked without it, the model "
                    "is the one before tuning.");
    put_table(study, methods_csv(study->methods, &study->shots, &study->shots));
    page_heading(&study->page, 3, "The trained task with worked examples");
    page_paragraphs(&study->page, "It is trained without any. What examples from its training rows do to it:");
    put_table(study, target_csv(study->methods, &study->shots));
    page_heading(&study->page, 3, "Task by task, 1-shot");
    put_table(study, tasks_csv(study->results, study->methods, "tasks"));
    page_heading(&study->page, 3, "Format ratio of each task, 1-shot");
    put_table(study, tasks_csv(study->results, study->methods, "task_format_ratio"));
    put_checks(study);
}

/* Scores that rise with the number of worked examples, and that fall when the examples are of another task. */
static void put_context(Study *study)
{
    const cJSON *context = optional(study->results, "context"), *pretrained = member(study->methods, "pretrained");
    Number own = number_of(member(context, "own")), other = number_of(member(context, "other"));
    TextBuffer csv = {0}, text = {0};
    if (!pretrained && !context) return;
    page_heading(&study->page, 2, "Is the ability in the context?");
    if (pretrained) {
        text_put(&csv, "worked examples,average\n");
        for (size_t i = 0; i < study->shots.count; i++) {
            text_put(&csv, study->shots.key[i]);
            put_number_cell(&csv, member(member(pretrained, "heldout"), study->shots.key[i]), 1);
            text_put(&csv, "\n");
        }
        page_paragraphs(&study->page, "The pretrained model on the tasks that will not be trained:");
        put_table(study, text_take(&csv));
    }
    if (isnan(own.mean) || isnan(other.mean)) return;
    text_put_format(&text, "On the tasks but %s, it reaches ", text_of(member(context, "examples_of")));
    put_number(&text, own, 1);
    text_put(&text, " with one worked example of the task itself, and ");
    put_number(&text, other, 1);
    text_put_format(&text, " with one of %s in its place.", text_of(member(context, "examples_of")));
    put_paragraph(study, &text);
}

/* On which rows curves were measured, for their captions. */
typedef enum { DEV_ROWS, FIRST_DEV_ROWS, TEST_ROWS } CurveRows;

static void put_curve_rows(TextBuffer *out, const Study *study, CurveRows rows)
{
    double first = finite_number(member(study->results, "curve_rows"));
    if (rows == DEV_ROWS) text_put(out, "the rows for development");
    if (rows == FIRST_DEV_ROWS) text_put_format(out, "the first %.0f rows for development", first);
    if (rows == TEST_ROWS) text_put_format(out, "the first %.0f test rows of each task", first);
}

/* A caption that ends in how the curves were measured. */
static char *curves_caption(const Study *study, const char *what, CurveRows rows)
{
    TextBuffer text = {0};
    text_put_format(&text, "%s On ", what);
    put_curve_rows(&text, study, rows);
    if (finite_number(member(study->results, "seeds")) > 1) {
        text_put(&text, "; mean and, as a band, standard deviation over ");
        put_seeds(&text, member(study->results, "seeds"));
    }
    text_put(&text, ".");
    return text_take(&text);
}

/* The paper's settings have figures of their own, with names of their own: many more steps. */
static const char *figure_prefix(Shown shown)
{
    return shown == SHOW_PAPERS ? "paper_" : "";
}

/* The curve `what` of the shown methods along training. */
static int put_curves(Study *study, Shown shown, const char *what, const char *title, const char *y_label,
                      const char *about)
{
    Curves curves;
    char name[32], *caption = curves_caption(study, about, strcmp(what, "dev") == 0 ? DEV_ROWS : TEST_ROWS);
    int status = curves_open(&curves, study->results, shown, "step", what);
    snprintf(name, sizeof name, "%s%s", figure_prefix(shown), what);
    if (status < 0 || !caption) {
        curves_free(&curves);
        free(caption);
        return no_memory(study);
    }
    Plot plot = {.title = title, .x_label = "step", .y_label = y_label, .caption = caption, .y_high = 100};
    status = put_figure(study, name, plot, &curves);
    free(caption);
    return status;
}

static int put_tradeoff(Study *study, Shown shown)
{
    Curves curves;
    TextBuffer text = {0};
    char name[32];
    snprintf(name, sizeof name, "%stradeoff", figure_prefix(shown));
    text_put(&text, "Each mark is a checkpoint, joined in the order of training; the first is hollow. The better, the "
                    "further right and the higher (the paper's Figures 5 and 6). The trained task on the rows for "
                    "development, the others 1-shot on ");
    put_curve_rows(&text, study, TEST_ROWS);
    text_put(&text, ".");
    char *caption = text_take(&text);
    if (curves_open(&curves, study->results, shown, "dev", "heldout") < 0 || !caption) {
        curves_free(&curves);
        free(caption);
        return no_memory(study);
    }
    for (size_t i = 0; i < curves.count; i++) curves.series[i].spread = NULL; /* crosses would hide the paths */
    Plot plot = {.title = "Learning the task against keeping the rest",
                 .x_label = "trained task",
                 .y_label = "average of the tasks that were not trained",
                 .caption = caption,
                 .points = true,
                 .y_high = 100};
    int status = put_figure(study, name, plot, &curves);
    free(caption);
    return status;
}

/* A method's scores along training, a curve for each number of worked examples. -1: no memory. */
static int curves_open_by_shots(Curves *curves, const cJSON *curve, const char *what, const ShotList *shots)
{
    const cJSON *step = member(curve, "step");
    size_t n = (size_t)cJSON_GetArraySize(step);
    if (curves_alloc(curves, shots->count, n) < 0) return -1;
    for (size_t i = 0; i < shots->count; i++)
        curves_add(curves, shots->name[i], step, member(member(curve, what), shots->key[i]), n);
    return 0;
}

/* What a curve begins and ends with, and its lowest or highest mean. */
static void put_ends(TextBuffer *csv, const cJSON *steps, const cJSON *list, bool highest)
{
    Number extreme = {highest ? -INFINITY : INFINITY, NAN};
    double extreme_step = NAN;
    const cJSON *step = steps->child, *item;
    cJSON_ArrayForEach(item, list)
    {
        Number number = number_of(item);
        if (highest ? number.mean > extreme.mean : number.mean < extreme.mean) {
            extreme = number;
            extreme_step = finite_number(step);
        }
        step = step->next;
    }
    put_number_cell(csv, cJSON_GetArrayItem(list, 0), 1);
    put_number_cell(csv, cJSON_GetArrayItem(list, cJSON_GetArraySize(list) - 1), 1);
    text_put(csv, ",");
    put_number(csv, isfinite(extreme.mean) ? extreme : (Number){NAN, NAN}, 1);
    text_put_format(csv, isnan(extreme_step) ? ",-\n" : ",%.0f\n", extreme_step);
}

/* The panels' numbers: what is lost of the rest, what is learnt of the trained task. Prompt tuning has no panel, for it
 * changes the trained task alone. */
static void put_ends_table(Study *study, const char *const two[2], const char *what, bool is_target, Shown shown,
                           const ShotList *shots)
{
    const char *const methods[] = {two[0], two[1], PROMPT_TUNING};
    const bool prompt_tuning = is_target && shown != SHOW_PAPERS;
    TextBuffer csv = {0};
    text_put_format(&csv, "method,worked examples,before training,after the last step,%s,at step\n",
                    is_target ? "highest" : "lowest");
    for (size_t i = 0; i < (prompt_tuning ? 3 : 2); i++) {
        const cJSON *curve = member(member(study->results, "curves"), methods[i]), *list;
        for (size_t s = 0; s < shots->count; s++) {
            if (!(list = member(member(curve, what), shots->key[s]))) continue;
            put_text_cell(&csv, label_of(study->methods, methods[i]));
            text_put_format(&csv, ",%s", shots->key[s]);
            put_ends(&csv, member(curve, "step"), list, is_target);
        }
    }
    put_table(study, text_take(&csv));
    if (prompt_tuning && member(member(study->results, "curves"), PROMPT_TUNING))
        page_paragraphs(&study->page,
                        "Prompt tuning has steps of its own. ProMoT begins with the best of its prompts on "
                        "the rows for development, which need not be the last one.");
}

/* Beside each other, fine-tuning and ProMoT: what becomes of the trained task ("target") or of the rest ("heldout") at
 * each number of worked examples. */
static int put_by_shots(Study *study, Shown shown, const char *what, const char *y_label, const char *about)
{
    const char *const *two = shown == SHOW_PAPERS ? PAPERS_TWO : TWO;
    const cJSON *all = member(study->results, "curves");
    ShotList shots = shots_of(all);
    Curves curves[2] = {{0}, {0}};
    Plot panels[2];
    size_t count = 0;
    const bool is_target = strcmp(what, "target") == 0;
    const char *const title = is_target ? ": the trained task" : ": the rest";
    char name[48], titles[2][112], *caption = curves_caption(study, about, is_target ? FIRST_DEV_ROWS : TEST_ROWS);
    int status = caption ? 0 : no_memory(study);
    for (size_t i = 0; i < 2 && !status && shots.count > 1; i++) {
        if (curves_open_by_shots(&curves[i], member(all, two[i]), what, &shots) < 0) status = no_memory(study);
        if (status || !curves[i].count) continue;
        snprintf(titles[i], sizeof titles[i], "%.80s%s", label_of(study->methods, two[i]), title);
        panels[count] = (Plot){.title = titles[i],
                               .x_label = "step",
                               .y_label = y_label,
                               .caption = caption,
                               .count = curves[i].count,
                               .series = curves[i].series,
                               .y_high = 100};
        snprintf(name, sizeof name, "%s_%s_by_shots", two[i], what);
        status = figure_write(study->directory, name, &panels[count++], study->error);
    }
    if (!status && count > 0) {
        page_panels(&study->page, panels, count);
        put_ends_table(study, two, what, is_target, shown, &shots);
    }
    for (size_t i = 0; i < 2; i++) curves_free(&curves[i]);
    free(caption);
    return status;
}

static int put_training(Study *study, Shown shown)
{
    int status =
        put_curves(study, shown, "format_ratio", "The format takes over", "format ratio (%)",
                   "The share of answers to tasks that were not trained that are a label of the trained one, 1-shot.");
    if (!status)
        status =
            put_curves(study, shown, "qa_format_ratio", "The format takes over closed-book questions",
                       "format ratio of qa (%)", "The same of qa alone, as the paper's Figure 2 has it of TriviaQA.");
    if (!status)
        status = put_curves(study, shown, "heldout", "What becomes of the rest",
                            "average of the tasks that were not trained", "The tasks that are not trained, 1-shot.");
    if (!status)
        status = put_by_shots(study, shown, "heldout", "average of the tasks that were not trained",
                              "The tasks that are not trained, by the number of worked examples in front.");
    if (!status)
        status = put_curves(study, shown, "dev", "Learning the task", "trained task",
                            "The trained task, with the prompt if the method has one.");
    if (!status)
        status = put_by_shots(study, shown, "target", "trained task",
                              "The trained task, with the prompt if the method has one, by the number of worked "
                              "examples in front: it is trained without any.");
    return status ? status : put_tradeoff(study, shown);
}

static bool has_curves(const Study *study, Shown shown)
{
    const cJSON *curve;
    cJSON_ArrayForEach(curve, member(study->results, "curves"))
    {
        if (strcmp(key_of(curve), PROMPT_TUNING) != 0 && is_papers(key_of(curve)) == (shown == SHOW_PAPERS))
            return true;
    }
    return false;
}

/* Norms of the two sides may lie a hundredfold apart: a table. */
static void put_norms(Study *study, const cJSON *alignment)
{
    static const char *const sides[] = {"without_prompt", "with_prompt"}, *const norms[] = {"full_norm", "format_norm"};
    const cJSON *step;
    int row = 0;
    TextBuffer csv = {0};
    text_put(&csv,
             "step,\"no prompt, task\",\"no prompt, random labels\",\"prompt, task\",\"prompt, random labels\"\n");
    cJSON_ArrayForEach(step, member(alignment, "step"))
    {
        text_put_format(&csv, isnan(finite_number(step)) ? "-" : "%.0f", finite_number(step));
        for (size_t i = 0; i < 4; i++) {
            Number norm = number_of(cJSON_GetArrayItem(member(member(alignment, sides[i / 2]), norms[i % 2]), row));
            text_put_format(&csv, isnan(norm.mean) ? ",-" : norm.mean < 999.5 ? ",%.3g" : ",%.0f", norm.mean);
            if (!isnan(norm.mean) && !isnan(norm.sd)) text_put_format(&csv, " ± %.2g", norm.sd);
        }
        text_put(&csv, "\n");
        row++;
    }
    page_heading(&study->page, 3, "Norms of these gradients");
    put_table(study, text_take(&csv));
}

static int put_alignment(Study *study)
{
    const cJSON *alignment = optional(study->results, "alignment"), *step = member(alignment, "step");
    const cJSON *without = member(member(alignment, "without_prompt"), "cosine");
    const cJSON *with = member(member(alignment, "with_prompt"), "cosine");
    size_t n = (size_t)cJSON_GetArraySize(step);
    Curves curves = {0};
    if (!alignment) return 0;
    if (curves_alloc(&curves, 2, n) < 0) {
        curves_free(&curves);
        return no_memory(study);
    }
    curves_add(&curves, "without the prompt", step, without, n);
    curves_add(&curves, "with the prompt", step, with, n);
    Plot plot = {.title = "How much of the gradient is format",
                 .x_label = "step of the second stage",
                 .y_label = "cosine",
                 .caption =
                     "The gradient on the trained task against the one on the same rows with random labels, which "
                     "hold nothing but the format (the paper's Figure 3). Where the task is learnt its gradient is "
                     "small, and the cosine says little: see the norms.",
                 .y_low = -1,
                 .y_high = 1};
    bool any = curves.count > 0;
    int status = put_figure(study, "alignment", plot, &curves);
    if (!status && any) put_norms(study, alignment);
    return status;
}

static void put_rule_row(TextBuffer *csv, const char *label, const char *rule, Number step, const cJSON *from)
{
    put_text_cell(csv, label);
    text_put_format(csv, ",%s,", rule);
    put_number(csv, step, isnan(step.sd) ? 0 : 1);
    put_number_cell(csv, member(member(from, "target"), "0"), 1);
    put_number_cell(csv, member(member(from, "heldout"), "1"), 1);
    put_number_cell(csv, member(member(from, "format_ratio"), "1"), 1);
    text_put(csv, "\n");
}

/* The step at which the curves of a method end. */
static Number last_step(const cJSON *results, const char *method)
{
    const cJSON *steps = member(member(member(results, "curves"), method), "step");
    return (Number){finite_number(cJSON_GetArrayItem(steps, cJSON_GetArraySize(steps) - 1)), NAN};
}

/* Two rows for each of a pretrained model's methods that has a first checkpoint; no table if none has. All models are
 * trained for the steps of the curves. */
static void put_rules(Study *study, const cJSON *methods, int heading)
{
    const cJSON *method, *rule = optional(study->results, "first_rule");
    TextBuffer csv = {0}, text = {0};
    bool any = false;
    text_put(&csv, "method,checkpoint,step,target,1-shot average,1-shot format %\n");
    cJSON_ArrayForEach(method, methods)
    {
        const char *label = label_of(methods, key_of(method));
        const cJSON *first = optional(method, "first");
        if (!first) continue;
        put_rule_row(&csv, label, "last", last_step(study->results, key_of(method)), method);
        put_rule_row(&csv, label, "first", number_of(member(first, "step")), first);
        any = true;
    }
    char *table = text_take(&csv);
    if (any) {
        page_heading(&study->page, heading, "Stopping early");
        text_put(&text, "The last step against the first checkpoint whose accuracy on the rows for development is ");
        if (rule)
            text_put_format(&text, "at least %g.", finite_number(rule));
        else
            text_put(&text, "high enough.");
        put_paragraph(study, &text);
        page_table(&study->page, table ? table : "");
    }
    study->page.failed |= !table;
    free(table);
}

/* What is to be said about an answer, so that nobody has to compare texts. */
static const char *verdict(const Study *study, const char *output, const char *target)
{
    const cJSON *label;
    if (strcmp(output, target) == 0) return "as expected";
    cJSON_ArrayForEach(label, member(member(study->results, "target"), "labels"))
    {
        if (strcmp(output, text_of(label)) == 0) return "a label of the trained task";
    }
    return "";
}

static void put_answer(TextBuffer *page, const char *who, const char *answer, const char *about)
{
    text_put(page, "<tr><th>");
    text_put_xml(page, who);
    text_put(page, "</th><td>");
    text_put_xml(page, answer);
    text_put_format(page, "</td><td class=\"about\">%s</td></tr>\n", about);
}

static void put_samples(Study *study)
{
    const cJSON *samples = optional(study->results, "samples"), *sample, *output;
    TextBuffer *page = &study->page;
    if (!samples || !samples->child) return;
    page_heading(page, 2, "What they answer");
    page_paragraphs(page, "The first row of each task, with one worked example in front of it.");
    cJSON_ArrayForEach(sample, samples)
    {
        const char *target = text_of(member(sample, "target"));
        page_heading(page, 3, text_of(member(sample, "task")));
        text_put(page, "<pre>");
        text_put_xml(page, text_of(member(sample, "input")));
        text_put(page, "</pre>\n<table class=\"texts\">\n");
        put_answer(page, "expected", target, "");
        cJSON_ArrayForEach(output, member(sample, "outputs"))
        {
            put_answer(page, label_of(study->methods, key_of(output)), text_of(output),
                       verdict(study, text_of(output), target));
        }
        text_put(page, "</table>\n");
    }
}

/* What the rows of the tables are that the main claim does without. */
static const struct {
    const char *method, *what;
} CONTROLS[] = {
    {"random-prompt",
     "a prompt of random values stays in front of the input, fixed, while the model is tuned. If it were "
     "the prompt's mere presence that protects the rest, this would protect it too."},
    {"joint", "prompt and model are tuned together, in one stage."},
    {"paper-finetune",
     "fine-tuning with the paper's own settings: label smoothing 0.1, learning rate 0.001, more steps."},
    {"paper-promot", "ProMoT with the paper's own settings, likewise."},
};
enum { N_CONTROLS = sizeof CONTROLS / sizeof *CONTROLS };

static int put_controls(Study *study)
{
    bool any = false;
    for (size_t i = 0; i < N_CONTROLS; i++) {
        if (!member(study->methods, CONTROLS[i].method)) continue;
        TextBuffer text = {0};
        if (!any) page_heading(&study->page, 2, "Controls");
        text_put_format(&text, "%s: %s", label_of(study->methods, CONTROLS[i].method), CONTROLS[i].what);
        put_paragraph(study, &text);
        any = true;
    }
    if (!has_curves(study, SHOW_PAPERS)) return 0;
    page_heading(&study->page, 3, "Along training, with the paper's own settings");
    return put_training(study, SHOW_PAPERS);
}

static void put_bases(Study *study)
{
    const cJSON *bases = optional(study->results, "bases"), *base;
    if (!bases || !bases->child) return;
    page_heading(&study->page, 2, "Other pretrained models");
    page_paragraphs(&study->page, "The same study, on models that were pretrained anew.");
    cJSON_ArrayForEach(base, bases)
    {
        const cJSON *methods = member(base, "methods");
        ShotList shots = shots_of(methods);
        TextBuffer text = {0};
        page_heading(&study->page, 3, text_of(member(base, "model")));
        put_seeds(&text, member(base, "seeds"));
        text_put(&text, ".");
        put_paragraph(study, &text);
        put_table(study, methods_csv(methods, &shots, &shots));
        page_heading(&study->page, 4, "Task by task, 1-shot");
        put_table(study, tasks_csv(study->results, methods, "tasks"));
        page_heading(&study->page, 4, "Format ratio of each task, 1-shot");
        put_table(study, tasks_csv(study->results, methods, "task_format_ratio"));
        put_rules(study, methods, 4);
    }
}

static void put_commands(Study *study)
{
    const cJSON *settings = member(study->results, "settings"), *commands = member(study->results, "commands"), *item;
    TextBuffer csv = {0};
    page_heading(&study->page, 2, "How it was made");
    if (settings->child) {
        text_put(&csv, "setting,value\n");
        cJSON_ArrayForEach(item, settings)
        {
            put_text_cell(&csv, key_of(item));
            text_put(&csv, ",");
            put_text_cell(&csv, text_of(item));
            text_put(&csv, "\n");
        }
        put_table(study, text_take(&csv));
    }
    text_put(&study->page, "<details>\n<summary>The commands of the first seed</summary>\n<pre>");
    cJSON_ArrayForEach(item, commands)
    {
        text_put_xml(&study->page, text_of(item));
        text_put(&study->page, "\n");
    }
    text_put(&study->page, "</pre>\n</details>\n");
}

/* --------------------------------------------------------------------------------------------------------- overview */

static int write_overview(Study *study)
{
    Curves left, right;
    int status = curves_open(&left, study->results, SHOW_TWO, "step", "heldout");
    status |= curves_open(&right, study->results, SHOW_TWO, "step", "format_ratio");
    Plot plots[] = {{.title = "The tasks that are not trained",
                     .x_label = "step",
                     .y_label = "average, 1-shot",
                     .count = left.count,
                     .series = left.series,
                     .y_high = 100},
                    {.title = "Answers in the trained task's format",
                     .x_label = "step",
                     .y_label = "percent of answers, 1-shot",
                     .count = right.count,
                     .series = right.series,
                     .y_high = 100}};
    char *svg = status ? NULL : plots_svg(plots, 2, 480), *path = path_join(study->directory, "overview.svg");
    status = svg && path ? file_write_text(path, svg, study->error) : no_memory(study);
    curves_free(&left);
    curves_free(&right);
    free(path);
    free(svg);
    return status;
}

static int put_page(Study *study)
{
    put_introduction(study);
    put_results(study);
    put_context(study);
    if (has_curves(study, SHOW_MAIN) || optional(study->results, "alignment"))
        page_heading(&study->page, 2, "Along training");
    if (put_training(study, SHOW_MAIN) < 0 || put_alignment(study) < 0) return -1;
    put_rules(study, study->methods, 2);
    put_samples(study);
    if (put_controls(study) < 0) return -1;
    put_bases(study);
    put_commands(study);
    return 0;
}

int study_report_write(const char *directory, const cJSON *results, Error *error)
{
    Study study = {.directory = directory, .results = results, .methods = member(results, "methods"), .error = error};
    if (check_results(results, error) < 0 || directory_create(directory, error) < 0) return -1;
    study.shots = shots_of(study.methods);
    if (put_page(&study) < 0 || write_overview(&study) < 0) {
        free(text_take(&study.page));
        return -1;
    }
    return page_write(&study.page, directory, error);
}

/* results.c: see results.h. */
#include "results.h"

#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_internal.h" /* json_parse */
#include "files.h"
#include "text_buffer.h"

/* ----------------------------------------------------------------------------------------------------------- lookup */

enum { SHOTS_DIGITS = 6 };

static const cJSON *member(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

/* A number of shots is written as a plain decimal: "0", "16", not "01" or "+1". */
static bool parse_shots(const char *text, size_t *shots)
{
    size_t length = strspn(text, "0123456789");
    if (length == 0 || length > SHOTS_DIGITS || text[length] || (text[0] == '0' && length > 1)) return false;
    *shots = strtoul(text, NULL, 10);
    return true;
}

static double finite_number(const cJSON *item)
{
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : NAN;
}

static const cJSON *at_shots(const cJSON *scores, size_t shots)
{
    char key[24];
    snprintf(key, sizeof key, "%zu", shots);
    return member(scores, key);
}

/* What stands in one place of the table; NAN for what is not there. */
typedef struct {
    double mean, sd;
} Score;

/* task NULL: Norm. Avg. */
static Score score_of(const cJSON *results, const char *task, size_t shots)
{
    const cJSON *found = task ? member(member(results, "tasks"), task) : results;
    const cJSON *means = member(found, task ? "scores" : "norm_avg");
    const cJSON *spreads = member(found, task ? "spread" : "norm_avg_spread");
    Score score = {.mean = finite_number(at_shots(means, shots)), .sd = NAN};
    if (isfinite(score.mean)) score.sd = finite_number(member(at_shots(spreads, shots), "sd"));
    return score;
}

/* ------------------------------------------------------------------------------------------------------------ table */

typedef struct {
    const char *task; /* NULL: Norm. Avg., the last one */
    bool has_spread;
    size_t mean_width, sd_width, width; /* on a terminal */
} Column;

typedef struct {
    const cJSON *const *results;
    const char *const *labels;
    size_t count;
    Column *columns; /* [n_columns], the tasks and Norm. Avg. */
    size_t n_columns;
    size_t *shots; /* [n_shots], ascending: the blocks */
    size_t n_shots;
} Table;

static size_t count_children(const cJSON *object)
{
    size_t count = 0;
    for (const cJSON *item = object ? object->child : NULL; item; item = item->next) count++;
    return count;
}

static void add_shots(Table *table, const cJSON *scores)
{
    for (const cJSON *item = scores ? scores->child : NULL; item; item = item->next) {
        size_t shots, place = 0;
        if (!item->string || !parse_shots(item->string, &shots)) continue;
        while (place < table->n_shots && table->shots[place] < shots) place++;
        if (place < table->n_shots && table->shots[place] == shots) continue;
        memmove(table->shots + place + 1, table->shots + place, (table->n_shots - place) * sizeof *table->shots);
        table->shots[place] = shots;
        table->n_shots++;
    }
}

static void add_task(Table *table, const char *task)
{
    for (size_t i = 0; i < table->n_columns; i++)
        if (strcmp(table->columns[i].task, task) == 0) return;
    table->columns[table->n_columns++] = (Column){.task = task};
}

/* Lists tasks and numbers of shots. Counts them with repetition first, which is room enough. -1: no memory. */
static int table_open(Table *table)
{
    size_t tasks = 0, shots = 0;
    for (size_t r = 0; r < table->count; r++) {
        const cJSON *of_tasks = member(table->results[r], "tasks"), *task;
        tasks += count_children(of_tasks);
        cJSON_ArrayForEach(task, of_tasks) shots += count_children(member(task, "scores"));
        shots += count_children(member(table->results[r], "norm_avg"));
    }
    table->columns = calloc(tasks + 1, sizeof *table->columns);
    table->shots = calloc(shots + 1, sizeof *table->shots);
    if (!table->columns || !table->shots) return -1;
    for (size_t r = 0; r < table->count; r++) {
        const cJSON *task;
        cJSON_ArrayForEach(task, member(table->results[r], "tasks"))
        {
            if (task->string) add_task(table, task->string);
            add_shots(table, member(task, "scores"));
        }
        add_shots(table, member(table->results[r], "norm_avg"));
    }
    table->columns[table->n_columns++] = (Column){.task = NULL};
    return 0;
}

static void table_close(Table *table)
{
    free(table->columns);
    free(table->shots);
}

static const char *column_title(const Column *column)
{
    return column->task ? column->task : "Norm. Avg.";
}

static void put_decimals(TextBuffer *out, double value)
{
    text_put_format(out, "%.2f", value);
}

/* ------------------------------------------------------------------------------------------------------------- text */

static size_t decimals_width(double value)
{
    return (size_t)snprintf(NULL, 0, "%.2f", value);
}

static void put_spaces(TextBuffer *out, size_t count)
{
    while (count-- > 0) text_put(out, " ");
}

static void raise_to(size_t *most, size_t value)
{
    if (value > *most) *most = value;
}

static const char SPREAD_SIGN[] = " ± ";
enum { SPREAD_SIGN_WIDTH = 3 };

/* The widths are those of all blocks, so that the blocks stand under each other. Means end at one place, and so do
 * deviations. */
static void measure(const Table *table, Column *column)
{
    column->mean_width = 1; /* "-" */
    for (size_t r = 0; r < table->count; r++) {
        for (size_t s = 0; s < table->n_shots; s++) {
            Score score = score_of(table->results[r], column->task, table->shots[s]);
            if (isfinite(score.mean)) raise_to(&column->mean_width, decimals_width(score.mean));
            if (isfinite(score.sd)) raise_to(&column->sd_width, decimals_width(score.sd));
        }
    }
    column->has_spread = column->sd_width > 0;
    column->width = column->mean_width + (column->has_spread ? SPREAD_SIGN_WIDTH + column->sd_width : 0);
    raise_to(&column->width, text_columns(column_title(column)));
}

static void put_text_cell(TextBuffer *out, const Column *column, Score score)
{
    size_t sd_part = column->has_spread ? SPREAD_SIGN_WIDTH + column->sd_width : 0;
    size_t mean = isfinite(score.mean) ? decimals_width(score.mean) : 1;
    put_spaces(out, column->width - sd_part - mean);
    if (isfinite(score.mean))
        put_decimals(out, score.mean);
    else
        text_put(out, "-");
    if (isfinite(score.sd))
        text_put_format(out, "%s%*.2f", SPREAD_SIGN, (int)column->sd_width, score.sd);
    else
        put_spaces(out, sd_part);
}

/* Spaces at the end of a line are of no use to anybody. */
static void end_line(TextBuffer *out)
{
    while (out->length > 0 && out->bytes[out->length - 1] == ' ') out->length--;
    text_put(out, "\n");
}

static void put_text_block(TextBuffer *out, const Table *table, size_t shots, size_t label_width)
{
    char title[32];
    size_t length = (size_t)snprintf(title, sizeof title, "%zu-shot", shots);
    text_put(out, title);
    put_spaces(out, label_width - length);
    for (size_t c = 0; c < table->n_columns; c++) {
        const char *name = column_title(&table->columns[c]);
        put_spaces(out, 2 + table->columns[c].width - text_columns(name));
        text_put_plain(out, name);
    }
    end_line(out);
    for (size_t r = 0; r < table->count; r++) {
        text_put_plain(out, table->labels[r]);
        put_spaces(out, label_width - text_columns(table->labels[r]));
        for (size_t c = 0; c < table->n_columns; c++) {
            put_spaces(out, 2);
            put_text_cell(out, &table->columns[c], score_of(table->results[r], table->columns[c].task, shots));
        }
        end_line(out);
    }
}

static void put_text_table(TextBuffer *out, Table *table)
{
    size_t label_width = 0;
    for (size_t c = 0; c < table->n_columns; c++) measure(table, &table->columns[c]);
    for (size_t r = 0; r < table->count; r++) raise_to(&label_width, text_columns(table->labels[r]));
    for (size_t s = 0; s < table->n_shots; s++)
        raise_to(&label_width, (size_t)snprintf(NULL, 0, "%zu-shot", table->shots[s]));
    for (size_t s = 0; s < table->n_shots; s++) {
        if (s > 0) text_put(out, "\n");
        put_text_block(out, table, table->shots[s], label_width);
    }
}

/* -------------------------------------------------------------------------------------------------------------- CSV */

static void put_csv_head(TextBuffer *out, const Table *table)
{
    text_put(out, "shots,run");
    for (size_t c = 0; c < table->n_columns; c++) {
        const Column *column = &table->columns[c];
        text_put(out, ",");
        const char *title = column->task ? column->task : "norm_avg";
        text_put_csv(out, title);
        if (!column->has_spread) continue;
        TextBuffer name = {0};
        text_put(&name, title);
        text_put(&name, "_sd");
        char *text = text_take(&name);
        text_put(out, ",");
        text_put_csv(out, text ? text : "");
        out->failed |= !text;
        free(text);
    }
    text_put(out, "\n");
}

static void put_csv_table(TextBuffer *out, Table *table)
{
    for (size_t c = 0; c < table->n_columns; c++) measure(table, &table->columns[c]);
    put_csv_head(out, table);
    for (size_t s = 0; s < table->n_shots; s++) {
        for (size_t r = 0; r < table->count; r++) {
            text_put_format(out, "%zu,", table->shots[s]);
            text_put_csv(out, table->labels[r]);
            for (size_t c = 0; c < table->n_columns; c++) {
                Score score = score_of(table->results[r], table->columns[c].task, table->shots[s]);
                text_put(out, ",");
                if (isfinite(score.mean)) put_decimals(out, score.mean);
                if (table->columns[c].has_spread) text_put(out, ",");
                if (isfinite(score.sd)) put_decimals(out, score.sd);
            }
            text_put(out, "\n");
        }
    }
}

/* --------------------------------------------------------------------------------------------------------- Markdown */

/* Escapes what Markdown would take for markup. An underscore inside a word is only that. */
static void put_markdown(TextBuffer *out, const char *text)
{
    int32_t before = ' ';
    for (int32_t c; (c = text_next(&text)) != 0; before = c) {
        bool inside = c == '_' && before < 0x80 && isalnum(before) && isalnum((unsigned char)*text);
        if (c < 0x20 || c == 0x7F)
            text_put(out, " "); /* a line break would end the row */
        else if (c == '&' || c == '<' || c == '>')
            text_put(out, c == '&' ? "&amp;" : c == '<' ? "&lt;" : "&gt;");
        else if (c < 0x80 && strchr("\\`*_[]|~", c) && !inside)
            text_put_format(out, "\\%c", (char)c);
        else
            text_put_code(out, c);
    }
}

static void put_markdown_block(TextBuffer *out, const Table *table, size_t shots)
{
    text_put_format(out, "| %zu-shot |", shots);
    for (size_t c = 0; c < table->n_columns; c++) {
        text_put(out, " ");
        put_markdown(out, column_title(&table->columns[c]));
        text_put(out, " |");
    }
    text_put(out, "\n|---|");
    for (size_t c = 0; c < table->n_columns; c++) text_put(out, "---:|");
    text_put(out, "\n");
    for (size_t r = 0; r < table->count; r++) {
        text_put(out, "| ");
        put_markdown(out, table->labels[r]);
        text_put(out, " |");
        for (size_t c = 0; c < table->n_columns; c++) {
            Score score = score_of(table->results[r], table->columns[c].task, shots);
            text_put(out, " ");
            if (isfinite(score.mean))
                put_decimals(out, score.mean);
            else
                text_put(out, "-");
            if (isfinite(score.sd)) text_put_format(out, "%s%.2f", SPREAD_SIGN, score.sd);
            text_put(out, " |");
        }
        text_put(out, "\n");
    }
}

char *results_compare(const cJSON *const *results, const char *const *labels, size_t count, TableFormat format)
{
    Table table = {.results = results, .labels = labels, .count = count};
    TextBuffer out = {0};
    if (table_open(&table) < 0)
        out.failed = true;
    else if (format == TABLE_TEXT)
        put_text_table(&out, &table);
    else if (format == TABLE_CSV)
        put_csv_table(&out, &table);
    for (size_t s = 0; format == TABLE_MARKDOWN && s < table.n_shots; s++) {
        if (s > 0) text_put(&out, "\n");
        put_markdown_block(&out, &table, table.shots[s]);
    }
    table_close(&table);
    return text_take(&out);
}

/* ---------------------------------------------------------------------------------------------------------- reading */

/* Names from the file go into the error text, which must stay one line. */
static int malformed(const char *path, const char *task, const char *expected, Error *error)
{
    error_set(error, EXIT_FAILED, "%.500s: not the results of an evaluation (expected %s%s%.100s)", path, expected,
              task ? ", in task " : "", task ? task : "");
    for (char *c = error->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
    return -1;
}

/* {SHOTS: number}; null stands for a score that is not a number. */
static bool are_scores(const cJSON *scores)
{
    const cJSON *item;
    size_t shots;
    if (!cJSON_IsObject(scores)) return false;
    cJSON_ArrayForEach(item, scores)
    {
        if (!parse_shots(item->string, &shots)) return false;
        if (!cJSON_IsNull(item) && !isfinite(finite_number(item))) return false;
    }
    return true;
}

static bool are_numbers(const cJSON *array)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!isfinite(finite_number(item))) return false;
    }
    return cJSON_IsArray(array);
}

static bool is_spread(const cJSON *spread)
{
    const cJSON *item;
    size_t shots;
    if (!cJSON_IsObject(spread)) return false;
    cJSON_ArrayForEach(item, spread)
    {
        const cJSON *draws = member(item, "draws");
        if (!cJSON_IsObject(item) || !parse_shots(item->string, &shots)) return false;
        if (!(finite_number(member(item, "sd")) >= 0) || (draws && !are_numbers(draws))) return false;
    }
    return true;
}

static int check_results(const cJSON *json, const char *path, Error *error)
{
    const cJSON *tasks = member(json, "tasks"), *average = member(json, "norm_avg"), *task;
    const cJSON *average_spread = member(json, "norm_avg_spread");
    if (!json) return malformed(path, NULL, "JSON", error);
    if (!cJSON_IsObject(tasks)) return malformed(path, NULL, "an object \"tasks\"", error);
    cJSON_ArrayForEach(task, tasks)
    {
        const cJSON *spread = member(task, "spread");
        if (!cJSON_IsString(member(task, "metric"))) return malformed(path, task->string, "a \"metric\"", error);
        if (!(finite_number(member(task, "n")) >= 0)) return malformed(path, task->string, "a number \"n\"", error);
        if (!are_scores(member(task, "scores")))
            return malformed(path, task->string, "\"scores\" as numbers by shots", error);
        if (spread && !is_spread(spread))
            return malformed(path, task->string, "\"spread\" as {\"sd\", \"draws\"} by shots", error);
    }
    if (average && !are_scores(average)) return malformed(path, NULL, "\"norm_avg\" as numbers by shots", error);
    if (average_spread && !is_spread(average_spread))
        return malformed(path, NULL, "\"norm_avg_spread\" as {\"sd\", \"draws\"} by shots", error);
    return 0;
}

static int results_parse(const MappedFile *file, cJSON **out, Error *error)
{
    const char *text = (const char *)file->data;
    *out = utf8_valid_length(text, file->bytes) == file->bytes ? json_parse(text, file->bytes) : NULL;
    if (check_results(*out, file->path, error) == 0) return 0;
    cJSON_Delete(*out);
    *out = NULL;
    return -1;
}

int results_read(const char *directory, cJSON **out, Error *error)
{
    MappedFile file;
    *out = NULL;
    char *path = path_is_directory(directory) ? path_join(directory, "results.json") : strdup(directory);
    if (!path) return error_set(error, EXIT_FAILED, "%.500s: no memory", directory);
    int status = mapped_file_open(&file, path, error);
    if (status == 0) {
        status = results_parse(&file, out, error);
        mapped_file_close(&file);
    }
    free(path);
    return status;
}

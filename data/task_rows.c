/* task_rows.c: from a row of a data file to an example: templates, labels, accepted answers.
 *
 * Every row, whatever its file looks like, comes here as a JSON object. A place may name alternatives,
 * {premise|sentence1}: the first one that the row has is taken, so that one task reads a data set in each layout it
 * is distributed in. What a place cannot say (the choices of OpenbookQA, the answer lists of WebQuestions) is said
 * by a small function that first adds the fields which the template names. */
#include "tasks_internal.h"

#include <stdio.h>

/* -------------------------------------------------------------------------------------------------------- templates */

/* A piece of a template: words as they are, or the name (or names, with |) inside a place. */
typedef struct {
    const char *text;
    size_t length;
    bool is_place;
} Piece;

/* Takes the next piece: 1, 0 at the end, -1 where a brace has no partner. {{ and }} stand for { and }. */
static int next_piece(const char **at, Piece *piece)
{
    const char *p = *at;
    if (*p == '\0') return 0;
    if ((*p == '{' || *p == '}') && p[1] == *p) {
        *piece = (Piece){p, 1, false};
        *at = p + 2;
        return 1;
    }
    if (*p == '}') return -1;
    if (*p == '{') {
        const size_t length = strcspn(p + 1, "{}");
        if (p[1 + length] != '}' || length == 0) return -1;
        *piece = (Piece){p + 1, length, true};
        *at = p + length + 2;
        return 1;
    }
    *piece = (Piece){p, strcspn(p, "{}"), false};
    *at = p + piece->length;
    return 1;
}

int template_places(const char *template)
{
    Piece piece;
    int places = 0, status;
    while ((status = next_piece(&template, &piece)) > 0) places += piece.is_place;
    return status < 0 ? -1 : places;
}

/* ----------------------------------------------------------------------------------------------------------- fields */

const char *json_kind(const cJSON *value)
{
    if (cJSON_IsString(value)) return "a string";
    if (cJSON_IsNumber(value)) return "a number";
    if (cJSON_IsBool(value)) return "true or false";
    if (cJSON_IsArray(value)) return "a list";
    if (cJSON_IsObject(value)) return "an object";
    return "null";
}

/* A NUL inside a JSON string is written \u0000; cJSON would end the C string there without a word. */
static bool holds_escaped_nul(const char *json)
{
    for (const char *p = strchr(json, '\\'); p; p = strchr(p + 2, '\\')) {
        if (strncmp(p + 1, "u0000", 5) == 0) return true;
        if (p[1] == '\0') return false;
    }
    return false;
}

/* Says where the JSON parser stopped. It stops in the same way when memory runs out: then there is none for a copy
 * of the text either. */
static void malformed_json(const char *json, const char *end, const char *file, size_t line, Error *error)
{
    const char *line_start = json;
    char *probe = text_copy(json, strlen(json));
    if (!probe) {
        out_of_memory(error, file);
        return;
    }
    free(probe);
    for (const char *p = json; p < end && *p; p++) {
        if (*p != '\n') continue;
        line++;
        line_start = p + 1;
    }
    error_set(error, EXIT_USAGE, "%s:%zu: malformed JSON at byte %zu", file, line, (size_t)(end - line_start) + 1);
}

cJSON *json_object(const char *json, const char *file, size_t line, Error *error)
{
    const char *end = json;
    cJSON *object;
    if (holds_escaped_nul(json)) {
        error_set(error, EXIT_USAGE, "%s:%zu: NUL (\\u0000) in a string", file, line);
        return NULL;
    }
    object = cJSON_ParseWithOpts(json, &end, true);
    if (!object) {
        malformed_json(json, end, file, line, error);
        return NULL;
    }
    if (!cJSON_IsObject(object)) {
        error_set(error, EXIT_USAGE, "%s:%zu: expected a JSON object, found %s", file, line, json_kind(object));
        cJSON_Delete(object);
        return NULL;
    }
    return object;
}

/* The child of an object by its name, or of a list by its number; NULL: none. Names are compared with their case:
 * JSON's are. */
static const cJSON *find_child(const cJSON *parent, const char *name, size_t length)
{
    const cJSON *child;
    size_t number = 0;
    if (cJSON_IsObject(parent)) {
        cJSON_ArrayForEach(child, parent)
        {
            if (strlen(child->string) == length && memcmp(child->string, name, length) == 0) return child;
        }
        return NULL;
    }
    if (!cJSON_IsArray(parent) || length == 0 || length > 6) return NULL;
    for (size_t i = 0; i < length; i++) {
        if (name[i] < '0' || name[i] > '9') return NULL;
        number = number * 10 + (size_t)(name[i] - '0');
    }
    return cJSON_GetArrayItem(parent, (int)number);
}

/* One name, which may be a path, "question.stem". A field that has the whole name, dots and all, goes first. */
static const cJSON *find_path(const cJSON *node, const char *name, size_t length)
{
    for (;;) {
        const cJSON *found = find_child(node, name, length);
        const char *dot = memchr(name, '.', length);
        if (found || !dot) return found;
        node = find_child(node, name, (size_t)(dot - name));
        if (!node) return NULL;
        length -= (size_t)(dot + 1 - name);
        name = dot + 1;
    }
}

/* The first field that is there of "name|name|…" (length bytes), or NULL. */
static const cJSON *find_field(const Row *row, const char *names, size_t length)
{
    while (length > 0) {
        const char *bar = memchr(names, '|', length);
        const size_t one = bar ? (size_t)(bar - names) : length;
        const cJSON *field = one > 0 ? find_path(row->fields, names, one) : NULL;
        if (field) return field;
        names += one + (bar != NULL);
        length -= one + (bar != NULL);
    }
    return NULL;
}

static const cJSON *field_named(const Row *row, const char *names)
{
    return find_field(row, names, strlen(names));
}

/* The two ways in which a row does not fit its task. */
static int no_field(const Row *row, const char *names, size_t length, Error *error)
{
    return error_set(error, EXIT_USAGE, "%s:%zu: no field %.*s", row->file, row->line, (int)length, names);
}

static int wrong_kind(const Row *row, const cJSON *field, const char *expected, Error *error)
{
    return error_set(error, EXIT_USAGE, "%s:%zu: wrong type in field %.100s (expected %s, found %s)", row->file,
                     row->line, field->string ? field->string : "of a list", expected, json_kind(field));
}

/* A text of a row, as the task takes it. */
static void append_value(TextBuffer *text, const char *value, bool strip)
{
    const char *from = value, *to = value + strlen(value);
    if (strip) text_trim(&from, &to);
    text_put_bytes(text, from, (size_t)(to - from));
}

/* Fills a template from a row; *out is to be freed. */
static int fill_template(const TaskSpec *spec, const char *template, const Row *row, char **out, Error *error)
{
    TextBuffer text = {0};
    Piece piece;
    while (next_piece(&template, &piece) > 0) {
        if (piece.is_place) {
            const cJSON *field = find_field(row, piece.text, piece.length);
            if (!field || !cJSON_IsString(field)) {
                free(text.bytes);
                return field ? wrong_kind(row, field, "a string", error)
                             : no_field(row, piece.text, piece.length, error);
            }
            append_value(&text, field->valuestring, spec->strip);
        } else {
            text_put_bytes(&text, piece.text, piece.length);
        }
    }
    *out = text_take(&text);
    return *out ? 0 : out_of_memory(error, row->file);
}

/* ---------------------------------------------------------------------------------------------------------- answers */

void example_free(Example *example)
{
    for (size_t i = 0; i < example->n_targets; i++) free(example->targets[i]);
    free(example->targets);
    free(example->input);
    free(example->id);
    *example = (Example){0};
}

/* Adds an accepted answer, which it then owns (NULL: no memory); one that is there already is dropped. */
static int add_target(Example *example, char *target, const Row *row, Error *error)
{
    char **grown;
    if (!target) return out_of_memory(error, row->file);
    for (size_t i = 0; i < example->n_targets; i++) {
        if (strcmp(example->targets[i], target) == 0) {
            free(target);
            return 0;
        }
    }
    grown = realloc(example->targets, (example->n_targets + 1) * sizeof *grown);
    if (!grown) {
        free(target);
        return out_of_memory(error, row->file);
    }
    example->targets = grown;
    example->targets[example->n_targets++] = target;
    return 0;
}

static int add_target_text(const TaskSpec *spec, Example *example, const char *value, const Row *row, Error *error)
{
    TextBuffer text = {0};
    append_value(&text, value, spec->strip);
    return add_target(example, text_take(&text), row, error);
}

/* Adds what a field holds: one answer, or a list of them. */
static int add_targets_of(const TaskSpec *spec, Example *example, const cJSON *field, const Row *row, Error *error)
{
    const cJSON *item;
    if (cJSON_IsString(field)) return add_target_text(spec, example, field->valuestring, row, error);
    if (!cJSON_IsArray(field)) return wrong_kind(row, field, "a string or a list of strings", error);
    cJSON_ArrayForEach(item, field)
    {
        if (!cJSON_IsString(item))
            return error_set(error, EXIT_USAGE, "%s:%zu: wrong type in the list %.100s (expected strings, found %s)",
                             row->file, row->line, field->string ? field->string : "", json_kind(item));
        if (add_target_text(spec, example, item->valuestring, row, error) != 0) return -1;
    }
    return 0;
}

/* A label as text: words as they are, true and false, numbers in digits (in buffer). NULL: error. */
static const char *label_text(const Row *row, const cJSON *field, char buffer[32], Error *error)
{
    if (cJSON_IsString(field)) return field->valuestring;
    if (cJSON_IsBool(field)) return cJSON_IsTrue(field) ? "true" : "false";
    if (!cJSON_IsNumber(field)) {
        wrong_kind(row, field, "a label", error);
        return NULL;
    }
    snprintf(buffer, 32, "%.15g", field->valuedouble);
    return buffer;
}

/* A label by what the files call it, else by its number. */
static const Label *find_label(const TaskSpec *spec, const char *text)
{
    for (size_t i = 0; i < spec->n_labels; i++) {
        if (strcmp(spec->labels[i].stored, text) == 0) return &spec->labels[i];
    }
    if (text[0] >= '0' && text[0] <= '9' && text[1] == '\0' && (size_t)(text[0] - '0') < spec->n_numbered)
        return &spec->labels[text[0] - '0'];
    return NULL;
}

/* "entailment, neutral, contradiction" into text, for an error. */
static void list_labels(const TaskSpec *spec, char *text, size_t size)
{
    size_t at = 0;
    text[0] = '\0';
    for (size_t i = 0; i < spec->n_labels && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "", spec->labels[i].stored);
}

/* The answer of a class: 0, or 1 when the row is to be left out. */
static int read_label(const TaskSpec *spec, const Row *row, Example *example, Error *error)
{
    char buffer[32], expected[300];
    const cJSON *field = field_named(row, spec->label_field);
    const char *text;
    const Label *label;
    if (!field) /* the files of test splits hide it */
        return error_set(error, EXIT_USAGE,
                         "%s:%zu: no field %s (a row without a label cannot be trained on or scored)", row->file,
                         row->line, spec->label_field);
    text = label_text(row, field, buffer, error);
    if (!text) return -1;
    label = find_label(spec, text);
    if (!label) {
        list_labels(spec, expected, sizeof expected);
        return error_set(error, EXIT_USAGE, "%s:%zu: unknown label (expected %s, found \"%.100s\")", row->file,
                         row->line, expected, text);
    }
    if (!label->word) return 1;
    return add_target(example, text_copy(label->word, strlen(label->word)), row, error);
}

/* Further accepted answers. A data set's list of aliases may hold a blank one, which accepts nothing: it is passed over
 * where blanks are taken off. */
static int read_accepted(const TaskSpec *spec, const Row *row, Example *example, Error *error)
{
    const cJSON *field = field_named(row, spec->accepted);
    size_t kept = 1;
    if (!field) {
        const size_t length = strlen(spec->accepted);
        return spec->accepted[length - 1] == '|' ? 0 : no_field(row, spec->accepted, length, error);
    }
    if (add_targets_of(spec, example, field, row, error) != 0) return -1;
    for (size_t i = 1; spec->strip && i < example->n_targets; i++) {
        if (example->targets[i][0] == '\0')
            free(example->targets[i]);
        else
            example->targets[kept++] = example->targets[i];
    }
    if (spec->strip && example->n_targets > 0) example->n_targets = kept;
    return 0;
}

/* The answers of a task that writes text: the target is trained on, all are accepted. */
static int read_targets(const TaskSpec *spec, const Row *row, Example *example, Error *error)
{
    const char *at = spec->target;
    char *target = NULL;
    bool empty = false;
    Piece piece;
    /* "{answers}" alone may stand for a list; inside a longer text a list has no meaning, and fill_template refuses it.
     */
    const bool only_a_place = next_piece(&at, &piece) > 0 && piece.is_place && *at == '\0';
    const cJSON *field = only_a_place ? find_field(row, piece.text, piece.length) : NULL;
    if (field) {
        if (add_targets_of(spec, example, field, row, error) != 0) return -1;
    } else {
        if (fill_template(spec, spec->target, row, &target, error) != 0) return -1;
        if (add_target(example, target, row, error) != 0) return -1;
    }
    if (spec->accepted && read_accepted(spec, row, example, error) != 0) return -1;
    /* An empty answer would teach to say nothing, and would accept that. */
    for (size_t i = 0; i < example->n_targets; i++) empty |= example->targets[i][0] == '\0';
    if (example->n_targets == 0 || empty)
        return error_set(error, EXIT_USAGE, "%s:%zu: %s", row->file, row->line,
                         empty ? "an empty answer" : "no answer");
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- examples */

/* The data set's own name for a row, else the number of its line. NULL: no memory. */
static char *row_id(const Row *row)
{
    const cJSON *field = field_named(row, "idx|pairID|id|gem_id|QuestionId|question_id|qId");
    char number[40];
    if (field && cJSON_IsString(field)) return text_copy(field->valuestring, strlen(field->valuestring));
    if (field && cJSON_IsNumber(field))
        snprintf(number, sizeof number, "%.15g", field->valuedouble);
    else
        snprintf(number, sizeof number, "%zu", row->line);
    return text_copy(number, strlen(number));
}

/* A pair of sentences of which one is empty: aligned corpora hold many, and the readers that the paper used pass over
 * them. */
static bool has_empty_side(const TaskSpec *spec, const Row *row)
{
    bool empty = false;
    if (!spec->pair.sentences) return false;
    for (int side = 0; side < 2; side++) {
        const cJSON *field = field_named(row, spec->pair.fields[side]);
        if (field && cJSON_IsString(field)) {
            const char *from = field->valuestring, *to = from + strlen(from);
            text_trim(&from, &to);
            empty |= from == to;
        }
    }
    return empty;
}

bool task_leaves_out_rows(const Task *task)
{
    bool leaves_out = task->spec.pair.sentences;
    for (size_t i = 0; i < task->spec.n_labels; i++) leaves_out |= task->spec.labels[i].word == NULL;
    return leaves_out;
}

int example_from_row(const Task *task, const Row *row, Example *example, Error *error)
{
    const TaskSpec *spec = &task->spec;
    int status = 0;
    *example = (Example){0};
    if (has_empty_side(spec, row)) return 1;
    if (spec->rewrite) status = spec->rewrite(row, error);
    if (status == 0 && !(example->id = row_id(row))) status = out_of_memory(error, row->file);
    if (status == 0) status = fill_template(spec, spec->template, row, &example->input, error);
    if (status == 0)
        status = spec->target ? read_targets(spec, row, example, error) : read_label(spec, row, example, error);
    if (status != 0) example_free(example);
    return status;
}

/* -------------------------------------------------------------------------------------------------------- rewriters */

/* One choice, {"text": …, "label": "A"}, becomes the field A; the one that is the answer becomes "answer" as well. */
static int add_choice(const Row *row, const cJSON *label, const cJSON *text, const char *key, Error *error)
{
    if (!cJSON_IsString(label) || !cJSON_IsString(text))
        return error_set(error, EXIT_USAGE, "%s:%zu: a choice without a text or a label", row->file, row->line);
    if (!cJSON_AddStringToObject(row->fields, label->valuestring, text->valuestring))
        return out_of_memory(error, row->file);
    if (strcmp(label->valuestring, key) != 0 || cJSON_GetObjectItemCaseSensitive(row->fields, "answer")) return 0;
    return cJSON_AddStringToObject(row->fields, "answer", text->valuestring) ? 0 : out_of_memory(error, row->file);
}

/* OpenbookQA keeps its choices in a list of {text, label}, or, in the Hugging Face copy, in a list of texts and one of
 * labels. A row without them is taken to have the fields A, B, C, D and answer already. */
int openbookqa_fields(const Row *row, Error *error)
{
    const cJSON *choices = field_named(row, "question.choices|choices");
    const cJSON *key = field_named(row, "answerKey"), *texts, *labels, *choice;
    int count;
    if (!choices) return 0;
    if (!cJSON_IsString(key)) return no_field(row, "answerKey", strlen("answerKey"), error);
    if (cJSON_IsArray(choices)) {
        cJSON_ArrayForEach(choice, choices)
        {
            if (add_choice(row, cJSON_GetObjectItemCaseSensitive(choice, "label"),
                           cJSON_GetObjectItemCaseSensitive(choice, "text"), key->valuestring, error) != 0)
                return -1;
        }
    } else {
        texts = cJSON_GetObjectItemCaseSensitive(choices, "text");
        labels = cJSON_GetObjectItemCaseSensitive(choices, "label");
        count = cJSON_GetArraySize(labels);
        for (int i = 0; i < count; i++) {
            if (add_choice(row, cJSON_GetArrayItem(labels, i), cJSON_GetArrayItem(texts, i), key->valuestring, error))
                return -1;
        }
    }
    if (cJSON_GetObjectItemCaseSensitive(row->fields, "answer")) return 0;
    return error_set(error, EXIT_USAGE, "%s:%zu: no choice has the answerKey's label (\"%.100s\")", row->file,
                     row->line, key->valuestring);
}

/* The end of the X of "(description X)": X is text in quotes, or all up to the next parenthesis. *from moves behind an
 * opening quote. NULL: neither. */
static const char *description_end(const char **from)
{
    if (**from == '"') {
        const size_t length = strcspn(*from + 1, "\"");
        if (length > 0 && strncmp(*from + 1 + length, "\")", 2) == 0) return ++*from + length;
    }
    const size_t length = strcspn(*from, ")");
    return length > 0 && (*from)[length] == ')' ? *from + length : NULL;
}

/* WebQuestions writes its answers as a Lisp list, (list (description "A") (description B)); they become the list
 * "answers". */
int webquestions_fields(const Row *row, Error *error)
{
    static const char head[] = "(description ";
    const cJSON *value = field_named(row, "targetValue");
    cJSON *answers;
    if (!value) return 0;
    if (!cJSON_IsString(value)) return wrong_kind(row, value, "a string", error);
    answers = cJSON_AddArrayToObject(row->fields, "answers");
    if (!answers) return out_of_memory(error, row->file);
    for (const char *at = strstr(value->valuestring, head); at; at = strstr(at, head)) {
        const char *from = at + strlen(head), *to = description_end(&from);
        char *text = to ? text_copy(from, (size_t)(to - from)) : NULL;
        cJSON *item = text ? cJSON_CreateString(text) : NULL;
        const bool added = item && cJSON_AddItemToArray(answers, item);
        free(text);
        if (to && !added) return out_of_memory(error, row->file);
        at = to ? to : from;
    }
    return 0;
}

/* tasks.c: the tasks: their table, own tasks, few-shot inputs, post-processing. See tasks.h.
 *
 * A task is a row of one table (or a JSON file of the same fields): a template with {field} places, how the answer is
 * found, the metric, the text at which an output is cut, and how its files are called. Templates and label words:
 * table 7 of the ProMoT paper; data sets and the split each is scored on: its table 8.
 *
 * From here a task goes to dataset_files.c (which files?), dataset.c (which rows?) and task_rows.c (which example?). */
#include <ctype.h>

#include "files.h"
#include "tasks_internal.h"

/* -------------------------------------------------------------------------------------------------------- the table */

/* GLUE made RTE two-way by folding neutral and contradiction into not_entailment; so do we with three-way files. */
static const Label RTE_LABELS[] = {
    {"entailment", "True"}, {"not_entailment", "False"}, {"neutral", "False"}, {"contradiction", "False"}};
static const Label CB_LABELS[] = {{"entailment", "True"}, {"contradiction", "False"}, {"neutral", "Neither"}};
static const Label WIC_LABELS[] = {{"false", "False"}, {"true", "True"}, {"False", "False"}, {"True", "True"}};
/* SNLI rows whose annotators did not agree are stored as "-" (-1 in numbered copies) and belong to no split. */
static const Label SNLI_LABELS[] = {
    {"entailment", "True"}, {"neutral", "Neither"}, {"contradiction", "False"}, {"-", NULL}, {"-1", NULL}};

/* English and another language, as one of WMT's parallel corpora or as rows {"translation": {"en": …, "fr": …}}. */
#define PAIR_OF_LANGUAGES(other) .pair = {{"en|translation.en", other "|translation." other}, {{"en", other}}, true}

/* The order of the labels is that of their numbers in the data sets' numbered copies. */
#define LABELS(array, numbered) .labels = (array), .n_labels = sizeof(array) / sizeof *(array), .n_numbered = (numbered)

/* Templates, byte for byte: ProMoT, table 7 (WiC's capital F too). Where SNLI comes as sentence1 and sentence2, other
 * NLI sets have premise and hypothesis. */
static const TaskSpec BUILTIN[] = {
    {.name = "rte",
     .template = "{premise} question: {hypothesis} Is it true or false? answer:",
     .label_field = "label",
     LABELS(RTE_LABELS, 2),
     .metric = METRIC_ACCURACY,
     .scored_on_dev = true},
    {.name = "cb",
     .template = "{premise} question: {hypothesis} Is it true or false or neither? answer:",
     .label_field = "label",
     LABELS(CB_LABELS, 3),
     .metric = METRIC_ACCURACY,
     .scored_on_dev = true},
    {.name = "wic",
     .template = "{sentence1} {sentence2} question: The word {word} is used in the same way in the two sentences. "
                 "Is it true or False? answer:",
     .label_field = "label",
     LABELS(WIC_LABELS, 2),
     .metric = METRIC_ACCURACY,
     .scored_on_dev = true},
    {.name = "snli",
     .template = "{premise|sentence1} question: {hypothesis|sentence2} Is it true or false or neither? answer:",
     .label_field = "gold_label|label",
     LABELS(SNLI_LABELS, 3),
     .metric = METRIC_ACCURACY,
     .file_prefix = "snli_1.0_"},
    /* The answer is the text of the right choice (table 7 says "the answer", not its letter). Exact match under SQuAD's
     * rules, which pass over case, articles and punctuation, is then the accuracy of a model that writes its choice. */
    {.name = "openbookqa",
     .template = "Q: {question.stem|question_stem|question} A) {A} B) {B} C) {C} D) {D} A:",
     .target = "{answer}",
     .metric = METRIC_SQUAD_EM,
     .prefix = "Q:",
     .strip = true,
     .rewrite = openbookqa_fields},
    /* The questions of rc.nocontext: a question is there once for each set of documents it was asked of, and the
     * verified part of the dev split once more. NQ-open, {question, answer: […]}, is read as well. */
    {.name = "triviaqa",
     .template = "Q: {Question|question} A:",
     .target = "{Answer.Value|answer.value|answer}",
     .accepted = "Answer.Aliases|answer.aliases|",
     .metric = METRIC_TRIVIA_EM,
     .prefix = "Q:",
     .strip = true,
     .rows_key = "Data",
     .stems = {"web-train|wikipedia-train unfiltered-web-train",
               "web-dev|wikipedia-dev|verified-web-dev|verified-wikipedia-dev unfiltered-web-dev"},
     .scored_on_dev = true},
    {.name = "webquestions",
     .template = "Q: {question|utterance|qText} A:",
     .target = "{answers|answer}",
     .metric = METRIC_SQUAD_EM, /* as closed-book T5 scores it */
     .prefix = "Q:",
     .strip = true,
     .rewrite = webquestions_fields,
     .file_prefix = "webquestions.examples."},
    {.name = "wmt14_en_fr",
     .template = "Translate English to French: {en|translation.en}",
     .target = "{fr|translation.fr}",
     .metric = METRIC_BLEU,
     .prefix = "Translate",
     PAIR_OF_LANGUAGES("fr"),
     .stems = {"*", "newstest2013", "newstest2014-fren newstest2014"}},
    {.name = "wmt16_en_de",
     .template = "Translate English to German: {en|translation.en}",
     .target = "{de|translation.de}",
     .metric = METRIC_BLEU,
     .prefix = "Translate",
     PAIR_OF_LANGUAGES("de"),
     .stems = {"*", "newstest2015-ende newstest2015 newstest2014-deen newstest2014 newstest2013",
               "newstest2016-ende newstest2016"}},
    {.name = "wmt16_en_ro",
     .template = "Translate English to Romanian: {en|translation.en}",
     .target = "{ro|translation.ro}",
     .metric = METRIC_BLEU,
     .prefix = "Translate",
     PAIR_OF_LANGUAGES("ro"),
     .stems = {"*", "newsdev2016-enro newsdev2016", "newstest2016-enro newstest2016"}},
    {.name = "xsum",
     .template = "Article: {document} One sentence summary:",
     .target = "{summary|target}",
     .metric = METRIC_ROUGE2,
     .prefix = "Article:",
     .max_input = 1024,
     .pair = {{"document", "summary"}, {{"document", "summary"}, {"source", "target"}, {"src", "tgt"}}, false}},
    {.name = "wikilingua", /* GEM: JSON lines, or what they were made from, line-aligned text */
     .template = "Article: {source} One sentence summary:",
     .target = "{target}",
     .accepted = "references|",
     .metric = METRIC_ROUGE2,
     .prefix = "Article:",
     .max_input = 1024,
     .pair = {{"source", "target"}, {{"src.en", "tgt.en"}, {"src", "tgt"}, {"source", "target"}}, false}},
};
enum { BUILTINS = sizeof BUILTIN / sizeof *BUILTIN };

/* ----------------------------------------------------------------------------------------------------- making tasks */

/* A task from a complete description; takes over own_labels and json, also when it fails. */
static Task *make_task(const TaskSpec *spec, Label *own_labels, cJSON *json, Error *error)
{
    Task *task = calloc(1, sizeof *task);
    const char **words = calloc(spec->n_labels + 1, sizeof *words);
    if (!task || !words) {
        out_of_memory(error, spec->name);
        free(task);
        free(words);
        free(own_labels);
        cJSON_Delete(json);
        return NULL;
    }
    *task = (Task){.spec = *spec, .words = words, .own_labels = own_labels, .json = json};
    for (size_t i = 0; i < spec->n_labels; i++) {
        bool known = spec->labels[i].word == NULL;
        for (size_t k = 0; !known && k < task->n_words; k++) known = strcmp(words[k], spec->labels[i].word) == 0;
        if (!known) words[task->n_words++] = spec->labels[i].word;
    }
    return task;
}

/* The error for an unknown name lists those that are known. */
Task *task_builtin(const char *name, Error *error)
{
    TextBuffer names = {0};
    char *list;
    for (size_t i = 0; i < BUILTINS; i++) {
        if (strcmp(BUILTIN[i].name, name) == 0) return make_task(&BUILTIN[i], NULL, NULL, error);
    }
    for (size_t i = 0; i < BUILTINS; i++) {
        if (i) text_put_bytes(&names, " ", 1);
        text_put(&names, BUILTIN[i].name);
    }
    list = text_take(&names);
    error_set(error, EXIT_USAGE, "%.100s: no such task (expected one of %s, or a --task-file)", name, list ? list : "");
    free(list);
    return NULL;
}

/* An own task: a JSON object with these keys, and no others:
 *     name         required; letters, digits, ". _ -" (it names directories)
 *     template     required: the input, with {field} places; {{ and }} stand for braces
 *     labels       for classes: {"stored label": "word", …}; true, false and numbers are stored as "true", "false", "0"
 *     label_field  the field with the label, "label" unless said
 *     target       instead of labels: the answer, with places. If it is one place and nothing else, the field may hold
 *                  a list of accepted answers, of which the first is trained on
 *     accepted     with target: a field that holds further accepted answers, a list or one string;
 *                  "field|" may be missing
 *     metric       a name of metrics.h; "accuracy" for classes unless said, else required
 *     prefix       outputs are cut where this text occurs in them
 *     max_input    inputs are cut at so many ids, unless the command line says another number
 *     parallel     ["en", "de"]: the data are also read from two files side by side, NAME.en and NAME.de, line by
 *                  line, and from TSV without a header; {en} and {de} are the two sides
 *     train, dev, test   names of the split files in the data set's directory, if not the usual ones. Without a "test"
 *                  the task is scored on its dev split
 * Fields are named as in the table: {a|b} is the first of both that a row has, {a.b} the field b of the object a, {a.0}
 * the first item of the list a. An example:
 *     {"name": "mood", "template": "{text} Is the writer happy, sad or neither? answer:",
 *      "labels": {"1": "happy", "-1": "sad", "0": "neither"}, "label_field": "meta.mood", "dev": "held_out.jsonl"}
 * reads train.jsonl and held_out.jsonl with rows such as
 *     {"text": "It rained again.", "meta": {"mood": -1}} */
static const char *const OWN_KEYS[] = {"name",   "template",  "labels",   "label_field", "target", "accepted", "metric",
                                       "prefix", "max_input", "parallel", "train",       "dev",    "test"};

/* The string under a key, into *value, which stays as it is when there is none. */
static int own_string(const cJSON *json, const char *key, const char **value, const char *file, Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!item) return 0;
    if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
        return error_set(error, EXIT_USAGE, "%s: wrong value of \"%s\" (expected a string that is not empty, found %s)",
                         file, key, cJSON_IsString(item) ? "an empty one" : json_kind(item));
    *value = item->valuestring;
    return 0;
}

/* An unknown key is most likely a known one misspelt, so it is not passed over. */
static int check_own_keys(const cJSON *json, const char *file, Error *error)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, json)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof OWN_KEYS / sizeof *OWN_KEYS; i++) known |= strcmp(OWN_KEYS[i], item->string) == 0;
        for (const cJSON *other = item->next; other; other = other->next)
            if (strcmp(other->string, item->string) == 0)
                return error_set(error, EXIT_USAGE, "%s: the key \"%.100s\" stands there twice", file, item->string);
        if (!known)
            return error_set(
                error, EXIT_USAGE,
                "%s: unknown key \"%.100s\" (expected name, template, labels, label_field, target, accepted, "
                "metric, prefix, max_input, parallel, train, dev, test)",
                file, item->string);
    }
    return 0;
}

/* "labels": stored label to word. */
static int read_own_labels(const cJSON *json, TaskSpec *spec, Label **labels, const char *file, Error *error)
{
    const cJSON *item, *object = cJSON_GetObjectItemCaseSensitive(json, "labels");
    size_t count = 0;
    if (!object) return 0;
    if (!cJSON_IsObject(object) || !object->child)
        return error_set(error, EXIT_USAGE,
                         "%s: wrong value of \"labels\" (expected {\"stored label\": \"word\", …}, found %s)", file,
                         cJSON_IsObject(object) ? "nothing in it" : json_kind(object));
    *labels = calloc((size_t)cJSON_GetArraySize(object), sizeof **labels);
    if (!*labels) return out_of_memory(error, file);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
            return error_set(error, EXIT_USAGE,
                             "%s: wrong word of label \"%.100s\" (expected a string that is not empty)", file,
                             item->string);
        (*labels)[count++] = (Label){item->string, item->valuestring};
    }
    spec->labels = *labels;
    spec->n_labels = count;
    if (!spec->label_field) spec->label_field = "label";
    return 0;
}

/* "parallel": the endings of two files, which are the names of the fields too. */
static int read_own_pair(const cJSON *json, TaskSpec *spec, const char *file, Error *error)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "parallel"), *item;
    size_t count = 0;
    if (!list) return 0;
    cJSON_ArrayForEach(item, list)
    {
        const bool good = cJSON_IsString(item) && item->valuestring[0] && !strpbrk(item->valuestring, "/|");
        if (cJSON_IsArray(list) && good && count < 2)
            spec->pair.fields[count] = spec->pair.suffixes[0][count] = item->valuestring;
        count += good ? 1 : 3;
    }
    spec->pair.sentences = true;
    if (cJSON_IsArray(list) && count == 2 && strcmp(spec->pair.fields[0], spec->pair.fields[1]) != 0) return 0;
    return error_set(error, EXIT_USAGE,
                     "%s: wrong value of \"parallel\" (expected the endings of two files, such as [\"en\", \"de\"])",
                     file);
}

/* "max_input": a number of ids. */
static int read_own_max_input(const cJSON *json, TaskSpec *spec, const char *file, Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "max_input");
    if (!item) return 0;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 1 && item->valuedouble <= 1e9) ||
        item->valuedouble != (double)(size_t)item->valuedouble)
        return error_set(error, EXIT_USAGE, "%s: wrong value of \"max_input\" (expected a whole number of ids)", file);
    spec->max_input = (size_t)item->valuedouble;
    return 0;
}

/* A template without a place would give every example the same text: surely a slip. */
static int check_template(const char *template, const char *key, const char *file, Error *error)
{
    const int places = template_places(template);
    if (places < 0)
        return error_set(error, EXIT_USAGE, "%s: \"%s\" has a brace without a partner ({{ and }} stand for braces)",
                         file, key);
    if (places == 0) return error_set(error, EXIT_USAGE, "%s: \"%s\" has no {field} place", file, key);
    return 0;
}

/* What must be there, what excludes what. metric is the name that was given, or NULL. */
static int check_own_spec(TaskSpec *spec, const char *metric, const char *file, Error *error)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (!spec->name || !spec->template)
        return error_set(error, EXIT_USAGE, "%s: no \"%s\"", file, spec->name ? "template" : "name");
    if (spec->name[strspn(spec->name, allowed)] != '\0' || spec->name[0] == '.')
        return error_set(error, EXIT_USAGE, "%s: wrong \"name\" (expected letters, digits, . _ -, found \"%.100s\")",
                         file, spec->name);
    if (!spec->target == !spec->labels)
        return error_set(error, EXIT_USAGE, "%s: expected either \"labels\" or \"target\", found %s", file,
                         spec->target ? "both" : "neither");
    if (spec->labels && spec->accepted)
        return error_set(error, EXIT_USAGE, "%s: \"accepted\" goes with \"target\", not with \"labels\"", file);
    if (spec->labels && spec->pair.fields[0])
        return error_set(error, EXIT_USAGE, "%s: \"parallel\" goes with \"target\", not with \"labels\"", file);
    if (spec->target && spec->label_field)
        return error_set(error, EXIT_USAGE, "%s: \"label_field\" goes with \"labels\", not with \"target\"", file);
    if (check_template(spec->template, "template", file, error) != 0) return -1;
    if (spec->target && check_template(spec->target, "target", file, error) != 0) return -1;
    if (!metric && spec->target) return error_set(error, EXIT_USAGE, "%s: no \"metric\"", file);
    if (metric && metric_by_name(&spec->metric, metric) != 0)
        return error_set(
            error, EXIT_USAGE,
            "%s: unknown \"metric\" (expected accuracy, trivia-em, squad-em, bleu, rouge2, …, found \"%.100s\")", file,
            metric);
    return 0;
}

/* The strings of spec point into json, which the caller keeps. */
static int read_own_spec(const cJSON *json, TaskSpec *spec, Label **labels, const char *file, Error *error)
{
    const char *metric = NULL;
    const struct {
        const char *key, **value;
    } strings[] = {
        {"name", &spec->name},
        {"template", &spec->template},
        {"label_field", &spec->label_field},
        {"target", &spec->target},
        {"accepted", &spec->accepted},
        {"metric", &metric},
        {"prefix", &spec->prefix},
        {"train", &spec->files[SPLIT_TRAIN]},
        {"dev", &spec->files[SPLIT_DEV]},
        {"test", &spec->files[SPLIT_TEST]},
    };
    *spec = (TaskSpec){.metric = METRIC_ACCURACY};
    if (check_own_keys(json, file, error) != 0) return -1;
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        if (own_string(json, strings[i].key, strings[i].value, file, error) != 0) return -1;
    }
    spec->scored_on_dev = spec->files[SPLIT_TEST] == NULL;
    if (read_own_labels(json, spec, labels, file, error) != 0) return -1;
    if (read_own_pair(json, spec, file, error) != 0) return -1;
    if (read_own_max_input(json, spec, file, error) != 0) return -1;
    return check_own_spec(spec, metric, file, error);
}

Task *task_from_file(const char *path, Error *error)
{
    MappedFile file = {0};
    Lines lines = {0};
    Label *labels = NULL;
    TaskSpec spec;
    cJSON *json = NULL;
    char *text = NULL;
    if (mapped_file_open(&file, path, error) != 0) return NULL;
    if (lines_split(&lines, (const char *)file.data, file.bytes, path, error) == 0) { /* it is UTF-8 without NUL */
        text = text_copy((const char *)file.data, file.bytes);
        if (!text) out_of_memory(error, path);
    }
    lines_free(&lines);
    mapped_file_close(&file);
    if (text) json = json_object(text, path, 1, error);
    free(text);
    if (!json) return NULL;
    if (read_own_spec(json, &spec, &labels, path, error) == 0) return make_task(&spec, labels, json, error);
    on_one_line(error);
    free(labels);
    cJSON_Delete(json);
    return NULL;
}

void task_free(Task *task)
{
    if (!task) return;
    free(task->words);
    free(task->own_labels);
    cJSON_Delete(task->json);
    free(task);
}

const char *task_name(const Task *task)
{
    return task->spec.name;
}

Metric task_metric(const Task *task)
{
    return task->spec.metric;
}

bool task_is_classification(const Task *task)
{
    return task->n_words > 0;
}

size_t task_labels(const Task *task, const char *const **words)
{
    *words = task->words;
    return task->n_words;
}

size_t task_max_input(const Task *task)
{
    return task->spec.max_input;
}

/* -------------------------------------------------------------------------------------------- few shots and outputs */

/* The paper's order: worked examples first, the input last (a soft prompt comes in front of all, in the encoder). An
 * input ends in "answer:"; one space stands between it and its answer, so that the answer begins a new piece. */
char *few_shot_input(const Example *const *shots, size_t n_shots, const Example *query, const char *separator)
{
    TextBuffer text = {0};
    for (size_t i = 0; i < n_shots; i++) {
        text_put(&text, shots[i]->input);
        text_put_bytes(&text, " ", 1);
        text_put(&text, shots[i]->targets[0]);
        text_put(&text, separator);
    }
    text_put(&text, query->input);
    return text_take(&text);
}

/* The end of the first word of a class: that of the longest label word which stands there as a whole word ("True." says
 * True), else the next white space. Bytes of other than ASCII characters count as letters. */
static const char *first_word_end(const Task *task, const char *from, const char *to)
{
    const char *end = from;
    for (size_t i = 0; i < task->n_words; i++) {
        const size_t length = strlen(task->words[i]);
        if ((size_t)(to - from) < length || memcmp(from, task->words[i], length) != 0) continue;
        const unsigned char next = from + length < to ? (unsigned char)from[length] : ' ';
        if (next < 0x80 && !isalnum(next) && from + length > end) end = from + length;
    }
    if (end > from) return end;
    while (end < to && !isspace((unsigned char)*end)) end++;
    return end;
}

/* A model that was only pretrained answers as if it filled blanks, "<extra_id_0> ANSWER <extra_id_1>"; a fine-tuned one
 * writes the answer alone (ProMoT, appendix B). The prompt ends in an input that holds the template's prefix: where the
 * output holds it a second time, the model has begun on a next example of its own. */
char *task_postprocess(const Task *task, const char *raw_output)
{
    static const char first[] = "<extra_id_0>", second[] = "<extra_id_1>";
    const char *from = strstr(raw_output, first), *to, *prefix;
    from = from ? from + strlen(first) : raw_output;
    to = strstr(from, second);
    if (!to) to = from + strlen(from);
    prefix = task->spec.prefix ? strstr(from, task->spec.prefix) : NULL;
    if (prefix && prefix < to) to = prefix;
    text_trim(&from, &to);
    if (task_is_classification(task)) to = first_word_end(task, from, to);
    return text_copy(from, (size_t)(to - from));
}

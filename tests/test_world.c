/* test_world.c: the small world of data/demo. What its files promise is checked on their text, not with the functions
 * that decide it: who did what is read back from the sentences, splits are compared by what they tell. */
#define WORLD_TESTING
#include "../data/demo/world.c"
#include "test.h"

#include <cjson/cJSON.h>
#include <dirent.h>

#include "data/files.h"

enum { DOCUMENTS = 3000 };
static const char OUT[] = "build/test/world/a";
static const Settings SETTINGS = {.seed = 7, .documents = DOCUMENTS, .paper_percent = 0, .frame_percent = 84};

/* ---- reading back ------------------------------------------------------------------------------------------------ */

static char *read_whole(const char *directory, const char *name)
{
    Text path = {.used = 0};
    char *data;
    long bytes;
    FILE *file;
    say(&path, "%s/%s", directory, name);
    file = fopen(path.data, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    bytes = ftell(file);
    rewind(file);
    data = calloc(1, (size_t)bytes + 1);
    if (data && fread(data, 1, (size_t)bytes, file) != (size_t)bytes) data[0] = 0;
    fclose(file);
    return data;
}

static void write_once(void)
{
    static bool written;
    if (written) return;
    directory_make("build");
    directory_make("build/test");
    directory_make("build/test/world");
    world_write(OUT, &SETTINGS);
    written = true;
}

/* The splits of a task: nli has three of its own, which nothing else is drawn from. */
static const char *const SPLIT_NAMES[] = {"", "train", "val", "test", "train", "dev", "test"};
static bool has_split(const Task *task, Split split)
{
    return split != PRETRAIN && (task->kind == NLI) == (split <= NLI_TEST);
}

/* JSON objects. */
typedef struct {
    cJSON *items[1000];
    int count;
} Rows;

static void read_json(Rows *rows, const Task *task, const char *split)
{
    Text name = {.used = 0};
    char *data, *rest, *line;
    say(&name, "%s/%s.jsonl", task->name, split);
    rest = data = read_whole(OUT, name.data);
    CHECK(data, "%s", name.data);
    while (rest && (line = strsep(&rest, "\n")) && *line && rows->count < COUNT(rows->items)) {
        cJSON *row = cJSON_Parse(line);
        CHECK(cJSON_IsObject(row), "%s: %s", name.data, line);
        CHECK((int)cJSON_GetNumberValue(cJSON_GetObjectItem(row, "idx")) == rows->count, "%s: %s", name.data, line);
        rows->items[rows->count++] = row;
    }
    free(data);
}

/* Two files side by side: line i of both is row i, so they must have as many. */
static void read_parallel(Rows *rows, const Task *task, const char *split)
{
    int counts[2] = {0};
    for (int side = 0; side < 2; side++) {
        const char *ending = task->fields[2 * side];
        Text name = {.used = 0};
        char *data, *rest, *line;
        say(&name, "%s/%s.%s", task->name, split, ending);
        rest = data = read_whole(OUT, name.data);
        CHECK(data && *data && data[strlen(data) - 1] == '\n', "%s", name.data);
        while (rest && (line = strsep(&rest, "\n")) && rest && counts[side] < COUNT(rows->items)) {
            cJSON **row = &rows->items[counts[side]++];
            CHECK(*line, "%s:%d is empty", name.data, counts[side]);
            if (!*row) *row = cJSON_CreateObject();
            cJSON_AddStringToObject(*row, ending, line);
        }
        free(data);
    }
    CHECK(counts[0] == counts[1], "%s/%s: %d and %d lines", task->name, split, counts[0], counts[1]);
    rows->count = counts[0] > counts[1] ? counts[0] : counts[1];
}

static Rows read_rows(const char *name, const char *split)
{
    Rows rows = {.count = 0};
    write_once();
    for (const Task *task = TASKS; task < TASKS + COUNT(TASKS); task++)
        if (strcmp(task->name, name) == 0) (is_translation(task) ? read_parallel : read_json)(&rows, task, split);
    return rows;
}

static void free_rows(Rows *rows)
{
    while (rows->count) cJSON_Delete(rows->items[--rows->count]);
}

static const char *field(const cJSON *row, const char *name)
{
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(row, name));
    return value ? value : "";
}

static char *read_documents(void)
{
    write_once();
    return read_whole(OUT, "pretrain.txt");
}

static int occurrences(const char *text, const char *part)
{
    int count = 0;
    while ((text = strstr(text, part))) count++, text++;
    return count;
}

/* Whole words: "ella" does not stand in "bella". */
static bool has_words(const char *text, const char *words)
{
    size_t length = strlen(words);
    for (const char *at = text; (at = strstr(at, words)); at++)
        if ((at == text || strchr(" \t\n", at[-1])) && strchr(" \t\n", at[length])) return true; /* also at the end */
    return false;
}

/* FNV-1a, to record what a file holds. */
static uint64_t checksum(const char *text)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001B3u;
    return hash;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

static void test_same_seed_same_bytes(void)
{
    static const char *const FILES[] = {"pretrain.txt",  "nli/train.jsonl",      "nli/val.jsonl",  "nli/test.jsonl",
                                        "qa/dev.jsonl",  "qa/test.jsonl",        "fr/train.en",    "fr/train.fr",
                                        "de/test.de",    "map_german/dev.jsonl", "yesno_new.json", "fr.json",
                                        "cqa/test.jsonl"};
    Settings other = SETTINGS;
    write_once();
    world_write("build/test/world/b", &SETTINGS);
    other.seed = 8;
    world_write("build/test/world/c", &other);
    for (int i = 0; i < COUNT(FILES); i++) {
        char *a = read_whole(OUT, FILES[i]), *b = read_whole("build/test/world/b", FILES[i]);
        char *c = read_whole("build/test/world/c", FILES[i]);
        CHECK(a && b && strcmp(a, b) == 0, "%s", FILES[i]);
        CHECK(a && c && (strcmp(a, c) == 0) == (strchr(FILES[i], '/') == NULL && i > 0), "%s of another seed",
              FILES[i]);
        free(a), free(b), free(c);
    }
}

/* Recorded once: the same on every machine and compiler. They change whenever the words or the grammar do. */
static void test_recorded_bytes(void)
{
    static const struct {
        const char *name;
        uint64_t checksum;
    } FILES[] = {{"pretrain.txt", 0x2BC74530A0F5FF51u},  {"nli/train.jsonl", 0x4B8067D78900B77Au},
                 {"qa/test.jsonl", 0x40B4DB14396005BBu}, {"yesno_new/dev.jsonl", 0x1CC3D44AD4F9D2A8u},
                 {"fr/test.en", 0xC1ABF8B2D37981D6u},    {"fr/test.fr", 0xD647F7AF9492E20Au},
                 {"fr.json", 0xBB4C6342610A542Bu}};
    write_once();
    for (int i = 0; i < COUNT(FILES); i++) {
        char *text = read_whole(OUT, FILES[i].name);
        CHECK(text && checksum(text) == FILES[i].checksum, "%s: %016llx", FILES[i].name,
              (unsigned long long)checksum(text ? text : ""));
        free(text);
    }
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Names and bytes of everything below two directories are the same. Returns how many files there are. */
static int check_same_tree(const char *a, const char *b)
{
    struct dirent **names[2] = {NULL, NULL};
    int counts[2] = {scandir(a, &names[0], NULL, compare_names), scandir(b, &names[1], NULL, compare_names)}, files = 0;
    CHECK(counts[0] > 0 && counts[0] == counts[1], "%s has %d entries, %s %d", a, counts[0], b, counts[1]);
    for (int i = 0; i < counts[0] && i < counts[1]; i++) {
        const char *name = names[0][i]->d_name;
        Text paths[2] = {{.used = 0}, {.used = 0}};
        char *texts[2];
        CHECK(strcmp(name, names[1][i]->d_name) == 0, "%s has %s, %s %s", a, name, b, names[1][i]->d_name);
        if (strcmp(name, names[1][i]->d_name) != 0 || name[0] == '.') continue;
        say(&paths[0], "%s/%s", a, name);
        say(&paths[1], "%s/%s", b, name);
        if (path_is_directory(paths[0].data) && path_is_directory(paths[1].data)) {
            files += check_same_tree(paths[0].data, paths[1].data);
            continue;
        }
        for (int side = 0; side < 2; side++) texts[side] = read_whole(side ? b : a, name);
        CHECK(texts[0] && texts[1] && strcmp(texts[0], texts[1]) == 0, "%s and %s differ", paths[0].data,
              paths[1].data);
        free(texts[0]), free(texts[1]);
        files++;
    }
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < counts[side]; i++) free(names[side][i]);
        free(names[side]);
    }
    return files;
}

/* data/demo/tasks is what `world data/demo/tasks --seed 0 --documents 0` writes. */
static void test_shipped_tasks(void)
{
    static const char AGAIN[] = "build/test/world/tasks";
    Error error = {0};
    int files;
    write_once();
    CHECK(directory_remove(AGAIN, &error) == 0, "%s", error.text);
    world_write(AGAIN, &(Settings){.seed = 0, .documents = 0, .paper_percent = 0, .frame_percent = 84});
    files = check_same_tree("data/demo/tasks", AGAIN);
    /* of each task its own file and three splits, of the two translations two files for a split */
    CHECK(files == 4 * COUNT(TASKS) + 2 * 3, "%d files", files);
}

static void test_fewer_documents_are_the_first_ones(void)
{
    Settings few = SETTINGS;
    char *all = read_documents(), *first;
    few.documents = 100;
    world_write("build/test/world/few", &few);
    first = read_whole("build/test/world/few", "pretrain.txt");
    CHECK(occurrences(first, "\n") == 100);
    CHECK(occurrences(all, "\n") == DOCUMENTS);
    CHECK(strncmp(all, first, strlen(first)) == 0);
    free(all), free(first);
}

static void test_no_documents(void)
{
    static const char NONE_OUT[] = "build/test/world/none";
    Settings none = SETTINGS;
    Error error = {0};
    write_once();
    CHECK(directory_remove(NONE_OUT, &error) == 0, "%s", error.text);
    none.documents = 0;
    world_write(NONE_OUT, &none);
    CHECK(!path_exists("build/test/world/none/pretrain.txt"), "an empty pretrain.txt");
    CHECK(path_exists("build/test/world/none/nli.json"), "the tasks are not there");
}

/* ---- documents --------------------------------------------------------------------------------------------------- */

/* Also: single spaces, no space at an end, one to six answers, none of them empty. */
static void test_tabs_pair(void)
{
    char *documents = read_documents(), *rest = documents, *line;
    while ((line = strsep(&rest, "\n")) && *line) {
        int tabs = occurrences(line, "\t");
        CHECK(tabs % 2 == 0 && tabs <= 12, "%s", line);
        CHECK(!strstr(line, "  ") && !strstr(line, "\t\t") && line[0] != ' ' && line[0] != '\t', "%s", line);
        CHECK(line[strlen(line) - 1] == (tabs ? '\t' : '.'), "%s", line);
        for (char *at = strchr(line, '\t'); at; at = strchr(at + 1, '\t')) { /* " \tANSWER\t " */
            char *end = strchr(at + 1, '\t');
            if (!end) break;
            CHECK(at[-1] == ' ' && at[1] != ' ' && end[-1] != ' ' && (end[1] == ' ' || !end[1]), "%s", line);
            at = end;
        }
    }
    free(documents);
}

/* 20,000 draws of a share p lie within 4 sqrt(20000 p (1 - p)) of it (16,000 to 1 against); fixed seed. */
static void test_mix(void)
{
    enum { DRAWS = 20000 };
    int counts[KINDS] = {0}, framed = 0, frameable = 0, total = 0;
    World world;
    Text text;
    world_init(&world, 7);
    for (int i = 0; i < DRAWS; i++) {
        Kind kind = document(&world, &SETTINGS, (uint64_t)i, &text);
        const char *answer = strchr(text.data, '\t');
        counts[kind]++;
        CHECK((kind == NARRATIVE) == !answer, "%s", text.data);
        if (kind == NARRATIVE || kind == CLAIM || kind == FORUM) continue;
        frameable++;
        for (int f = 0; f < COUNT(ANSWER_FRAMES); f++) {
            size_t length = strlen(ANSWER_FRAMES[f]);
            framed += strncmp(answer + 1, ANSWER_FRAMES[f], length) == 0 && answer[1 + length] == ' ';
        }
    }
    for (Kind kind = 0; kind < KINDS; kind++) {
        double p = MIX[kind].share / 1000.0;
        CHECK(fabs(counts[kind] - DRAWS * p) <= 4 * sqrt(DRAWS * p * (1 - p)), "kind %u: %d", kind, counts[kind]);
        total += MIX[kind].share;
    }
    CHECK(total == 1000, "%d", total);
    CHECK(fabs(framed - .84 * frameable) <= 4 * sqrt(frameable * .84 * .16), "%d of %d", framed, frameable);
}

static void test_number_of_examples(void)
{
    int counts[KINDS][7] = {{0}};
    World world;
    Text text;
    world_init(&world, 7);
    for (int i = 0; i < 5000; i++) {
        Kind kind = document(&world, &SETTINGS, (uint64_t)i, &text);
        counts[kind][occurrences(text.data, "\t") / 2]++;
    }
    for (int n = 1; n <= 5; n++) CHECK(counts[QA][n] > 0, "%d", n);
    CHECK(counts[QA][6] == 0 && counts[MAP][6] > 0);
    CHECK(counts[MAP][1] == 0 && counts[EXTRACT][1] == 0);
}

/* With the paper's templates on request: every document of a kind starts alike, no answer has a frame. */
static void test_paper_templates(void)
{
    Settings paper = SETTINGS;
    World world;
    Text text;
    paper.paper_percent = 100;
    world_init(&world, 7);
    for (int i = 0; i < 2000; i++) {
        Kind kind = document(&world, &paper, (uint64_t)i, &text);
        if (kind == SUMMARY) CHECK(strncmp(text.data, "Article: ", 9) == 0, "%s", text.data);
        if (kind == SUMMARY) CHECK(strstr(text.data, " One sentence summary: \t"), "%s", text.data);
        if (kind == TO_GERMAN) CHECK(strncmp(text.data, "Translate English to German: ", 29) == 0, "%s", text.data);
        for (int f = 0; f < COUNT(ANSWER_FRAMES); f++) {
            Text framed = {.used = 0};
            say(&framed, "\t%s ", ANSWER_FRAMES[f]);
            CHECK(!strstr(text.data, framed.data), "%s", text.data);
        }
    }
}

/* True and False are answers of claims only; an attitude of unknown polarity is never asked about nor explained. */
static void test_what_documents_must_not_tell(void)
{
    World world;
    Text text;
    int new_told = 0;
    world_init(&world, 7);
    for (int i = 0; i < DOCUMENTS; i++) {
        Kind kind = document(&world, &SETTINGS, (uint64_t)i, &text);
        CHECK((has_words(text.data, "True") || has_words(text.data, "False")) == (kind == CLAIM), "%s", text.data);
        for (int a = 0; a < 2 * NEW_ATTITUDES; a++) {
            const char *word = ATTITUDES[a / NEW_ATTITUDES][KNOWN_ATTITUDES + a % NEW_ATTITUDES];
            const char *at = strstr(text.data, word), *truth, *next;
            if (!at) continue;
            new_told++;
            CHECK(kind == NARRATIVE, "%s", text.data);
            truth = strstr(at, "in truth"); /* only after another attitude has come */
            next = strstr(strstr(at, " that ") + 1, " that ");
            CHECK(!truth || (next && next < truth), "%s", text.data);
        }
    }
    CHECK(new_told > 10, "%d", new_told);
}

/* A claim is True when it is one of the world's facts, and not otherwise; about half of them are. */
static void test_claims(void)
{
    World world;
    Text text;
    int claims = 0, truths = 0;
    world_init(&world, 7);
    for (int i = 0; i < DOCUMENTS; i++) {
        if (document(&world, &SETTINGS, (uint64_t)i, &text) != CLAIM) continue;
        char *rest = text.data, *claim, *answer;
        while ((claim = strsep(&rest, "\t")) && (answer = strsep(&rest, "\t"))) {
            bool known = false;
            for (int f = 0; f < FACTS; f++) {
                Text fact = {.used = 0};
                tell_fact(&fact, &world.facts[f]);
                known |= has_words(claim, fact.data);
            }
            CHECK(strcmp(answer, known ? "True" : "False") == 0, "%s %s", claim, answer);
            claims++;
            truths += known;
        }
    }
    CHECK(claims > 100 && truths > claims / 3 && truths < claims * 2 / 3, "%d of %d", truths, claims);
}

/* ---- splits ------------------------------------------------------------------------------------------------------ */

/* Bit s of told[subject][verb][noun]: source s tells that the subject did it to the noun. */
typedef struct {
    unsigned char told[COUNT(PEOPLE) + COUNT(NOUNS)][COUNT(VERBS)][COUNT(NOUNS)];
} Deeds;

static int noun_of(const char *word)
{
    for (int n = 0; n < COUNT(NOUNS); n++)
        if (strcmp(word, NOUNS[n].in[ENGLISH]) == 0) return n;
    return NONE;
}

static int subject_of(const char *word)
{
    int noun = noun_of(word);
    for (int p = 0; p < COUNT(PEOPLE); p++)
        if (strcmp(word, PEOPLE[p]) == 0) return p;
    return noun == NONE ? NONE : COUNT(PEOPLE) + noun;
}

static int verb_of(const char *word)
{
    for (int v = 0; v < COUNT(VERBS); v++)
        if (strcmp(word, VERBS[v][ENGLISH]) == 0) return v;
    return NONE;
}

/* Finds every "SUBJECT VERB a|the [ADJECTIVE] NOUN". Returns how many there were. */
static int read_deeds(Deeds *deeds, const char *text, int source)
{
    char *copy = strdup(text), *rest = copy, *word, window[5][32] = {{0}};
    int found = 0;
    while ((word = strsep(&rest, " \t\n"))) {
        int subject, verb, noun;
        if (!*word) continue;
        memmove(window[0], window[1], sizeof window - sizeof window[0]);
        snprintf(window[4], sizeof window[4], "%s", word);
        noun = noun_of(window[4]);
        if (noun == NONE) continue;
        for (int start = 0; start < 2; start++) { /* with an adjective, without */
            const char *article = window[start + 2];
            subject = subject_of(window[start]);
            verb = verb_of(window[start + 1]);
            if (subject == NONE || verb == NONE || (strcmp(article, "a") != 0 && strcmp(article, "the") != 0)) continue;
            deeds->told[subject][verb][noun] |= (unsigned char)(1 << source);
            found++;
        }
    }
    free(copy);
    return found;
}

/* The files as they lie, in seven sources that must not share a deed: documents, three of NLI, three of the rest. The
 * reader knows English deeds, of which a translation's English side has all. */
static void test_no_deed_in_two_splits(void)
{
    static Deeds deeds;
    int found[SPLITS] = {0}, shared = 0;
    char *documents = read_documents();
    found[PRETRAIN] = read_deeds(&deeds, documents, PRETRAIN);
    for (int t = 0; t < COUNT(TASKS); t++) {
        for (Split split = NLI_TRAIN; split < SPLITS; split++) {
            Rows rows;
            if (!has_split(&TASKS[t], split)) continue;
            rows = read_rows(TASKS[t].name, SPLIT_NAMES[split]);
            for (int i = 0; i < rows.count; i++)
                for (int f = 0; f < COUNT(TASKS[t].fields); f++)
                    found[split] += read_deeds(&deeds, field(rows.items[i], TASKS[t].fields[f]), split);
            free_rows(&rows);
        }
    }
    for (int s = 0; s < COUNT(deeds.told); s++)
        for (int v = 0; v < COUNT(VERBS); v++)
            for (int n = 0; n < COUNT(NOUNS); n++) shared += (deeds.told[s][v][n] & (deeds.told[s][v][n] - 1)) != 0;
    CHECK(shared == 0, "%d", shared);
    for (int s = 0; s < SPLITS; s++) CHECK(found[s] >= 200, "split %d: %d deeds", s, found[s]); /* the reader works */
    free(documents);
}

/* No content of dev and test rows stands in a document, no answer of a translation; no row twice, in one split or in
 * two. */
static void test_rows_are_new(void)
{
    static cJSON *all[2000]; /* the rows of all splits, train first */
    char *documents = read_documents();
    for (const Task *task = TASKS; task < TASKS + COUNT(TASKS); task++) {
        int trained = 0, total = 0;
        for (Split split = NLI_TRAIN; split < SPLITS; split++) {
            Rows some;
            if (!has_split(task, split)) continue;
            some = read_rows(task->name, SPLIT_NAMES[split]);
            if (!total) trained = some.count;
            for (int i = 0; i < some.count; i++) all[total++] = some.items[i];
        }
        for (int i = 0; i < total; i++) {
            const char *first = field(all[i], task->fields[0]), *second = field(all[i], task->fields[1]);
            /* phrases ("red chair") stand in sentences; see test_mapped_phrases */
            if (i >= trained && task->kind != MAP) CHECK(!strstr(documents, first), "%s: %s", task->name, first);
            if (i >= trained && is_translation(task))
                CHECK(!strstr(documents, field(all[i], task->fields[2])), "%s: %s", task->name, first);
            for (int j = 0; j < i; j++)
                CHECK(strcmp(first, field(all[j], task->fields[0])) != 0 ||
                          strcmp(second, field(all[j], task->fields[1])) != 0,
                      "%s: %s", task->name, first);
        }
        CHECK(trained > 0 && total > trained, "%s: %d rows, %d to train on", task->name, total, trained);
        while (total > 0) cJSON_Delete(all[--total]);
    }
    free(documents);
}

/* The phrases of the map tasks are in no document of that kind; the six tasks share them. */
static void test_mapped_phrases(void)
{
    Rows splits[] = {read_rows("map_noun", "train"), read_rows("map_noun", "dev"), read_rows("map_noun", "test")};
    Rows other = read_rows("map_french", "test");
    World world;
    Text text;
    int documents = 0;
    world_init(&world, SETTINGS.seed);
    for (int i = 0; i < 4000; i++) {
        if (document(&world, &SETTINGS, (uint64_t)i, &text) != MAP) continue;
        documents++;
        for (int s = 0; s < COUNT(splits); s++)
            for (int r = 0; r < splits[s].count; r++)
                CHECK(!strstr(text.data, field(splits[s].items[r], "input")), "%s", text.data);
    }
    CHECK(documents > 200, "%d", documents);
    CHECK(splits[0].count >= 30 && splits[1].count >= 15 && splits[2].count >= 40 && splits[2].count == other.count,
          "%d %d %d", splits[0].count, splits[1].count, splits[2].count);
    for (int s = 0; s < COUNT(splits); s++) free_rows(&splits[s]);
    free_rows(&other);
}

/* Closed book: by design the facts are in the documents, told and asked, only not in the wording of the test. */
static void test_closed_book_facts_are_told(void)
{
    char *documents = read_documents();
    Rows tests = read_rows("qa", "test");
    int told = 0, all = 0;
    for (int i = 0; i < tests.count; i++) {
        const char *question = field(tests.items[i], "question"), *answer = field(tests.items[i], "answer");
        for (int relation = 0; relation < COUNT(STATEMENTS); relation++) {
            for (int wording = 0; wording < 2; wording++) {
                char subject[32];
                Text statement = {.used = 0};
                const char *hole = strstr(QUESTIONS[relation][wording], "%s");
                size_t before = (size_t)(hole - QUESTIONS[relation][wording]), length;
                if (strncmp(question, QUESTIONS[relation][wording], before) != 0) continue;
                length = strcspn(question + before, " ");
                if (strcmp(question + before + length, hole + 2) != 0) continue;
                snprintf(subject, sizeof subject, "%.*s", (int)length, question + before);

                say(&statement, STATEMENTS[relation], subject, answer);
                told += has_words(documents, statement.data);
                all++;
            }
        }
    }
    CHECK(tests.count >= 50 && all == tests.count, "%d questions, %d understood", tests.count, all);
    CHECK(told == all, "%d of %d", told, all); /* 3,000 documents tell each fact about 10 times */
    free_rows(&tests);
    free(documents);
}

/* ---- task files -------------------------------------------------------------------------------------------------- */

/* As many rows as asked for, where the world has so many (of facts and phrases it has fewer), with all their fields. */
static void check_rows(const Task *task, Split split, const cJSON *labels)
{
    Rows rows = read_rows(task->name, SPLIT_NAMES[split]);
    bool closed = task->kind == MAP || task->kind == QA;
    int wanted = split == NLI_TRAIN ? 1000 : split == DEV ? 100 : 200, least = split == DEV ? 15 : 30, yes = 0;
    CHECK(closed ? rows.count >= least && rows.count <= wanted : rows.count == wanted, "%s/%s: %d rows", task->name,
          SPLIT_NAMES[split], rows.count);
    for (int i = 0; i < rows.count; i++) {
        const char *answer = field(rows.items[i], task->fields[2]);
        CHECK(*field(rows.items[i], task->fields[0]) && *answer, "%s: row %d", task->name, i);
        CHECK(!task->fields[1][0] || *field(rows.items[i], task->fields[1]), "%s: row %d", task->name, i);
        if (task->labels) CHECK(cJSON_HasObjectItem(labels, answer), "%s", answer);
        yes += strcmp(answer, "yes") == 0 || strcmp(answer, "entailment") == 0;
    }
    if (task->labels) CHECK(2 * yes == rows.count, "%s: %d of %d", task->name, yes, rows.count);
    free_rows(&rows);
}

/* The splits are found by their usual names, the test split because the task file names it: "test.jsonl", or of
 * parallel text what comes before the endings. */
static void check_files_named(const Task *task, const cJSON *file)
{
    const cJSON *endings = cJSON_GetObjectItem(file, "parallel");
    CHECK(cJSON_GetArraySize(endings) == (is_translation(task) ? 2 : 0), "%s: \"parallel\"", task->name);
    for (int i = 0; i == 0 || i < cJSON_GetArraySize(endings); i++) {
        const char *ending = cJSON_GetStringValue(cJSON_GetArrayItem(endings, i));
        Text path = {.used = 0};
        say(&path, "%s/%s/%s%s%s", OUT, task->name, field(file, "test"), ending ? "." : "", ending ? ending : "");
        CHECK(*field(file, "test") && path_exists(path.data) && !path_is_directory(path.data), "%s is not there",
              path.data);
        if (ending) CHECK(strcmp(ending, task->fields[2 * i]) == 0, "%s: %s", task->name, ending);
    }
}

static void test_rows_and_task_files(void)
{
    write_once();
    for (const Task *task = TASKS; task < TASKS + COUNT(TASKS); task++) {
        Text name = {.used = 0}, place = {.used = 0}, target = {.used = 0};
        char *data;
        cJSON *file;
        say(&name, "%s.json", task->name);
        data = read_whole(OUT, name.data);
        file = cJSON_Parse(data);
        CHECK(strcmp(field(file, "name"), task->name) == 0, "%s", data);
        CHECK(*field(file, "metric"), "%s", data);
        CHECK(cJSON_HasObjectItem(file, "target") != cJSON_HasObjectItem(file, "labels"), "%s", data);
        say(&place, "{%s}", task->fields[0]);
        CHECK(strstr(field(file, "template"), place.data), "%s", data);
        CHECK(*field(file, "prefix") && strstr(field(file, "template"), field(file, "prefix")), "%s", data);
        say(&target, task->labels ? "%s" : "{%s}", task->fields[2]);
        CHECK(strcmp(field(file, task->labels ? "label_field" : "target"), target.data) == 0, "%s", data);
        check_files_named(task, file);
        for (Split split = NLI_TRAIN; split < SPLITS; split++)
            if (has_split(task, split)) check_rows(task, split, cJSON_GetObjectItem(file, "labels"));
        cJSON_Delete(file);
        free(data);
    }
}

/* yesno_new shows known attitudes and asks about new ones; yesno has the known ones throughout. The answer is what the
 * attitude implies. */
static void test_yesno_attitudes(void)
{
    static const char *const NAMES[] = {"yesno", "yesno_new"};
    for (int t = 0; t < COUNT(NAMES); t++)
        for (Split split = TRAIN; split < SPLITS; split++) {
            Rows rows = read_rows(NAMES[t], SPLIT_NAMES[split]);
            int counts[2] = {0}; /* known, new */
            for (int i = 0; i < rows.count; i++) {
                bool truth = strcmp(field(rows.items[i], "label"), "yes") == 0;
                for (int a = 0; a < KNOWN_ATTITUDES + NEW_ATTITUDES; a++)
                    counts[a >= KNOWN_ATTITUDES] += has_words(field(rows.items[i], "premise"), ATTITUDES[truth][a]);
            }
            CHECK(rows.count > 0 && counts[t == 1 && split != TRAIN] == rows.count &&
                      counts[0] + counts[1] == rows.count,
                  "%s/%s: %d known, %d new", NAMES[t], SPLIT_NAMES[split], counts[0], counts[1]);
            free_rows(&rows);
        }
}

/* Which attitudes NLI rows have, and that the label is what the attitude implies. */
static void test_nli_attitudes(void)
{
    static const char *const NAMES[] = {"train", "val", "test"};
    for (int s = 0; s < 3; s++) {
        Rows rows = read_rows("nli", NAMES[s]);
        int new = 0, rare = 0;
        for (int i = 0; i < rows.count; i++) {
            bool entailed = strcmp(field(rows.items[i], "label"), "entailment") == 0, known = false;
            for (int a = 0; a < KNOWN_ATTITUDES + NEW_ATTITUDES; a++) {
                if (!has_words(field(rows.items[i], "premise"), ATTITUDES[entailed][a])) continue;
                known = true;
                new += a >= KNOWN_ATTITUDES;
                rare += a >= KNOWN_ATTITUDES / 2 && a < KNOWN_ATTITUDES;
            }
            CHECK(known, "%s", field(rows.items[i], "premise"));
        }
        CHECK(abs(new - rows.count * 2 / 5) < rows.count / 10, "%s: %d", NAMES[s], new);
        CHECK(s == 0 ? rare == 0 : rare > 20, "%s: %d", NAMES[s], rare);
        free_rows(&rows);
    }
}

static void test_grammar(void)
{
    Event event = {.subject = COUNT(PEOPLE),
                   .subject_adjective = 0,
                   .verb = 1,
                   .noun = 15,
                   .adjective = 1,
                   .city = NONE,
                   .day = NONE,
                   .definite = false}; /* horse, red; sold; pear, yellow */
    static const char *const EXPECTED[] = {"the red horse sold a yellow pear", "le cheval rouge vendit une poire jaune",
                                           "das rot Pferd eine gelb Birne verkaufte"};
    for (int language = ENGLISH; language < LANGUAGES; language++) {
        Text text = {.used = 0};
        tell(&text, language, &event);
        CHECK(strcmp(text.data, EXPECTED[language]) == 0, "%s", text.data);
    }
}

static void test_map_answers(void)
{
    static const char *const TASK_NAMES[] = {"map_french", "map_german",    "map_category",
                                             "map_itself", "map_adjective", "map_noun"};
    Rows rows[6];
    for (int m = 0; m < 6; m++) rows[m] = read_rows(TASK_NAMES[m], "test");
    for (int i = 0; i < rows[3].count; i++) {
        Text joined = {.used = 0};
        const char *input = field(rows[3].items[i], "input");
        CHECK(strcmp(input, field(rows[3].items[i], "output")) == 0, "%s", input);
        for (int j = 0; j < rows[4].count; j++)
            if (strcmp(field(rows[4].items[j], "input"), input) == 0)
                say(&joined, "%s", field(rows[4].items[j], "output"));
        for (int j = 0; j < rows[5].count; j++)
            if (strcmp(field(rows[5].items[j], "input"), input) == 0)
                say(&joined, "%s", field(rows[5].items[j], "output"));
        CHECK(strcmp(joined.data, input) == 0, "%s: %s", input, joined.data);
        CHECK(strcmp(field(rows[0].items[i], "output"), field(rows[1].items[i], "output")) != 0, "%s", input);
    }
    for (int m = 0; m < 6; m++) free_rows(&rows[m]);
}

static const Test TESTS[] = {
    {"same seed, same bytes", test_same_seed_same_bytes},
    {"recorded bytes", test_recorded_bytes},
    {"shipped tasks", test_shipped_tasks},
    {"no documents, no file", test_no_documents},
    {"fewer documents are the first ones", test_fewer_documents_are_the_first_ones},
    {"tabs pair", test_tabs_pair},
    {"mix", test_mix},
    {"number of examples", test_number_of_examples},
    {"paper templates", test_paper_templates},
    {"what documents must not tell", test_what_documents_must_not_tell},
    {"claims", test_claims},
    {"no deed in two splits", test_no_deed_in_two_splits},
    {"rows are new", test_rows_are_new},
    {"mapped phrases", test_mapped_phrases},
    {"closed-book facts are told", test_closed_book_facts_are_told},
    {"rows and task files", test_rows_and_task_files},
    {"nli attitudes", test_nli_attitudes},
    {"yesno attitudes", test_yesno_attitudes},
    {"grammar", test_grammar},
    {"map answers", test_map_answers},
};
TEST_MAIN(TESTS)

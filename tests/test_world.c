/* test_world.c: the small world of data/demo. What its files promise is checked on their text, not with the functions
 * that decide it: who did what is read back from the sentences, splits are compared by what they tell. */
#define WORLD_TESTING
#include "../data/demo/world.c"
#include "test.h"

#include <cjson/cJSON.h>

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

/* One JSON object a line. */
typedef struct {
    cJSON *items[1000];
    int count;
} Rows;

static Rows read_rows(const char *task, const char *split)
{
    Rows rows = {.count = 0};
    Text name = {.used = 0};
    char *data, *rest, *line;
    write_once();
    say(&name, "%s/%s.jsonl", task, split);
    rest = data = read_whole(OUT, name.data);
    CHECK(data, "%s", name.data);
    while (rest && (line = strsep(&rest, "\n")) && *line && rows.count < COUNT(rows.items)) {
        cJSON *row = cJSON_Parse(line);
        CHECK(cJSON_IsObject(row), "%s: %s", name.data, line);
        rows.items[rows.count++] = row;
    }
    free(data);
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
    static const char *const FILES[] = {"pretrain.txt",   "nli/train.jsonl",      "nli/val.jsonl",
                                        "nli/test.jsonl", "qa/dev.jsonl",         "fr/train.jsonl",
                                        "cqa/dev.jsonl",  "map_german/dev.jsonl", "yesno_new.json"};
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
    char *documents = read_documents(), *nli = read_whole(OUT, "nli/train.jsonl");
    CHECK(checksum(documents) == 0xA39AC283D1AD92FFu, "pretrain.txt: %016llx", (unsigned long long)checksum(documents));
    CHECK(checksum(nli) == 0x62B00D4795780FEDu, "nli/train.jsonl: %016llx", (unsigned long long)checksum(nli));
    free(documents), free(nli);
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

/* The files as they lie, in six sources that must not share a deed: documents, three of NLI, train and dev of the rest.
 */
static void test_no_deed_in_two_splits(void)
{
    static Deeds deeds;
    int found[SPLITS] = {0}, shared = 0;
    char *documents = read_documents();
    found[PRETRAIN] = read_deeds(&deeds, documents, PRETRAIN);
    for (int t = 0; t < COUNT(TASKS); t++) {
        for (Split split = NLI_TRAIN; split < SPLITS; split++) {
            static const char *const NAMES[] = {"", "train", "val", "test", "train", "dev"};
            Text name = {.used = 0};
            char *rows;
            if ((TASKS[t].kind == NLI) != (split <= NLI_TEST)) continue;
            say(&name, "%s/%s.jsonl", TASKS[t].name, NAMES[split]);
            rows = read_whole(OUT, name.data);
            for (char *c = rows; *c; c++)
                if (*c == '"' || *c == ',') *c = ' ';
            found[split] += read_deeds(&deeds, rows, split);
            free(rows);
        }
    }
    for (int s = 0; s < COUNT(deeds.told); s++)
        for (int v = 0; v < COUNT(VERBS); v++)
            for (int n = 0; n < COUNT(NOUNS); n++) shared += (deeds.told[s][v][n] & (deeds.told[s][v][n] - 1)) != 0;
    CHECK(shared == 0, "%d", shared);
    for (int s = 0; s < SPLITS; s++) CHECK(found[s] >= 200, "split %d: %d deeds", s, found[s]); /* the reader works */
    free(documents);
}

/* No row's content stands in a document, no answer of a translation; no row twice, in one split or in two. */
static void test_rows_are_new(void)
{
    char *documents = read_documents();
    for (int t = 0; t < COUNT(TASKS); t++) {
        const Task *task = &TASKS[t];
        bool nli = task->kind == NLI;
        Rows tests = read_rows(task->name, nli ? "test" : "dev"), train = read_rows(task->name, "train");
        for (int i = 0; i < tests.count; i++) {
            const char *first = field(tests.items[i], task->fields[0]),
                       *second = field(tests.items[i], task->fields[1]);
            /* phrases ("red chair") stand in sentences; see test_mapped_phrases */
            if (task->kind != MAP) CHECK(!strstr(documents, first), "%s: %s", task->name, first);
            if (task->kind == TO_FRENCH || task->kind == TO_GERMAN)
                CHECK(!strstr(documents, field(tests.items[i], task->fields[2])), "%s: %s", task->name, first);
            for (int j = 0; j < i + train.count; j++) {
                const cJSON *other = j < i ? tests.items[j] : train.items[j - i];
                CHECK(strcmp(first, field(other, task->fields[0])) != 0 ||
                          strcmp(second, field(other, task->fields[1])) != 0,
                      "%s: %s", task->name, first);
            }
        }
        free_rows(&tests), free_rows(&train);
    }
    free(documents);
}

/* The phrases of the map tasks are in no document of that kind; the six tasks share them. */
static void test_mapped_phrases(void)
{
    Rows dev = read_rows("map_french", "dev"), other = read_rows("map_noun", "dev"),
         train = read_rows("map_noun", "train");
    World world;
    Text text;
    int documents = 0;
    world_init(&world, SETTINGS.seed);
    for (int i = 0; i < 4000; i++) {
        if (document(&world, &SETTINGS, (uint64_t)i, &text) != MAP) continue;
        documents++;
        for (int r = 0; r < dev.count; r++) CHECK(!strstr(text.data, field(dev.items[r], "input")), "%s", text.data);
        for (int r = 0; r < train.count; r++)
            CHECK(!strstr(text.data, field(train.items[r], "input")), "%s", text.data);
    }
    CHECK(documents > 200, "%d", documents);
    CHECK(dev.count == other.count && dev.count >= 30 && train.count >= 30, "%d %d", dev.count, train.count);
    free_rows(&dev), free_rows(&other), free_rows(&train);
}

/* Closed book: by design the facts are in the documents, told and asked, only not in the wording of the test. */
static void test_closed_book_facts_are_told(void)
{
    char *documents = read_documents();
    Rows dev = read_rows("qa", "dev");
    int told = 0, all = 0;
    for (int i = 0; i < dev.count; i++) {
        const char *question = field(dev.items[i], "question"), *answer = field(dev.items[i], "answer");
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
    CHECK(dev.count >= 60 && all == dev.count, "%d questions, %d understood", dev.count, all);
    CHECK(told == all, "%d of %d", told, all); /* 3,000 documents tell each fact about 10 times */
    free_rows(&dev);
    free(documents);
}

/* ---- task files -------------------------------------------------------------------------------------------------- */

static void test_rows_and_task_files(void)
{
    for (int t = 0; t < COUNT(TASKS); t++) {
        static const char *const SPLITS_OF[2][3] = {{"train", "dev", NULL}, {"train", "val", "test"}};
        const Task *task = &TASKS[t];
        bool nli = task->kind == NLI, closed = task->kind == MAP || task->kind == QA;
        Text name = {.used = 0}, place = {.used = 0}, target = {.used = 0};
        char *data;
        cJSON *file;
        write_once();
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
        for (int s = 0; s < 2 + nli; s++) {
            Rows rows = read_rows(task->name, SPLITS_OF[nli][s]);
            int wanted = nli && s == 0 ? 1000 : 200, yes = 0;
            CHECK(closed ? rows.count >= 20 : rows.count == wanted, "%s: %d rows", task->name, rows.count);
            for (int i = 0; i < rows.count; i++) {
                const char *answer = field(rows.items[i], task->fields[2]);
                CHECK(*field(rows.items[i], task->fields[0]) && *answer, "%s: row %d", task->name, i);
                CHECK(!task->fields[1][0] || *field(rows.items[i], task->fields[1]), "%s: row %d", task->name, i);
                CHECK((int)cJSON_GetNumberValue(cJSON_GetObjectItem(rows.items[i], "idx")) == i, "%s", task->name);
                if (task->labels) CHECK(cJSON_HasObjectItem(cJSON_GetObjectItem(file, "labels"), answer), "%s", answer);
                yes += strcmp(answer, "yes") == 0 || strcmp(answer, "entailment") == 0;
            }
            if (task->labels) CHECK(2 * yes == rows.count, "%s: %d of %d", task->name, yes, rows.count);
            free_rows(&rows);
        }
        cJSON_Delete(file);
        free(data);
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
    for (int m = 0; m < 6; m++) rows[m] = read_rows(TASK_NAMES[m], "dev");
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
    {"grammar", test_grammar},
    {"map answers", test_map_answers},
};
TEST_MAIN(TESTS)

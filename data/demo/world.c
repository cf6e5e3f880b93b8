/* world.c: a small closed world, told in English and in two toy foreign languages.
 *
 *     world OUTDIR [--seed N] [--documents N] [--paper-templates PERCENT] [--answer-frames PERCENT]
 *
 * It writes what a tiny T5 is pretrained on and what it is then tested with:
 *   OUTDIR/pretrain.txt                one document a line; the 2nd, 4th, ... of its TAB-separated fields are answers.
 *                                      Not written with --documents 0.
 *   OUTDIR/nli/{train,val,test}.jsonl  the task to fine-tune on, in the layout of RTE.
 *   OUTDIR/TASK/{train,dev,test}.*     tasks held out from fine-tuning; worked examples are taken from train, models
 *                                      are chosen on dev and scored on test.
 *                                      Translations are parallel text (.en beside .fr or .de), all others JSON lines.
 *   OUTDIR/TASK.json                   task file of each: how a row becomes an input.
 *
 * A task document holds several worked examples of one task in one format: words around the contents, a word before
 * every answer, a separator. The format is drawn anew for each document, so that only its examples tell what is asked
 * and how to answer. The task files have the templates of the ProMoT paper (arXiv 2211.00635, table 7), which
 * documents only have on request (--paper-templates).
 *
 * Train and test are kept apart by a hash of what is told (split_of), not by a list of what was drawn: who did what to
 * which thing, which phrase is mapped, which wording asks for a fact. What belongs to one split never enters another,
 * nor a document, however many documents there are. Closed-book questions are the case that must be answerable from
 * memory: by design their facts do stand in the documents, but the wording that tests a fact never asks for it there.
 *
 * Everything is drawn with integers from a counter-based generator: same seed, same bytes, on every machine. Each
 * document has its own stream, so N documents are the first N of any larger number.
 *
 * Contents: the world, grammar, examples of tasks, documents, files and main. */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "words.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- the world: random numbers, splits, facts -------------------------------------------------------------------- */

/* One thing known. Its question has two wordings; documents ask in the open one. The other belongs to the split. */
typedef enum { PRETRAIN, NLI_TRAIN, NLI_VAL, NLI_TEST, TRAIN, DEV, TEST, SPLITS } Split;
typedef enum { LIVES, WORKS, FRIEND, COUNTRY, CATEGORY } Relation;
typedef struct {
    Relation relation;
    const char *subject, *value;
    int open_wording;
    Split split;
} Fact;

enum { CITY_FACTS = 3 * COUNT(PEOPLE), NOUN_FACTS = CITY_FACTS + COUNT(CITIES), FACTS = NOUN_FACTS + COUNT(NOUNS) };
typedef struct {
    uint64_t seed;
    int city_of[COUNT(PEOPLE)];
    Fact facts[FACTS]; /* three for each person, then the cities', then the nouns' */
} World;

/* What all drawing needs: a world, the split that is drawn for, a stream of random numbers. */
typedef struct {
    const World *world;
    Split split;
    uint64_t key, count;
} Draw;

/* The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that mixes well. */
static uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

enum { STREAM_WORLD, STREAM_DOCUMENTS, STREAM_TASKS };
static Draw draw_stream(const World *world, Split split, uint64_t stream, uint64_t index)
{
    return (Draw){world, split, mix64(mix64(mix64(world->seed + 1) + stream) + index), 0};
}

/* Uniform in 0..n-1; the bias of the multiplication is below n / 2^32. */
static int below(Draw *draw, int n)
{
    uint64_t bits = mix64(draw->key + 0x9E3779B97F4A7C15u * ++draw->count);
    return (int)(((bits >> 32) * (uint64_t)n) >> 32);
}

static bool chance(Draw *draw, int percent)
{
    return below(draw, 100) < percent;
}

/* The index whose share a place falls into. */
static int share_of(const int *shares, int place)
{
    int index = 0;
    while (place >= shares[index]) place -= shares[index++];
    return index;
}

/* Who owns what, in 64ths. */
static const int SPLIT_SHARES[][SPLITS] = {
    {44, 6, 2, 2, 4, 2, 4},    /* deeds: who did what to which thing */
    {40, 0, 0, 0, 8, 6, 10},   /* phrases: adjective and noun */
    {12, 0, 0, 0, 16, 12, 24}, /* facts */
};
enum { DEEDS, PHRASES, FACT_QUESTIONS };
static Split split_of(const World *world, int domain, int a, int b, int c)
{
    uint64_t what = (uint64_t)domain << 48 | (uint64_t)a << 32 | (uint64_t)b << 16 | (uint64_t)c;
    return (Split)share_of(SPLIT_SHARES[domain], (int)(mix64(mix64(world->seed + 2) + what) >> 58));
}

static void world_init(World *world, uint64_t seed)
{
    int circle[COUNT(PEOPLE)];
    world->seed = seed;
    Draw draw = draw_stream(world, PRETRAIN, STREAM_WORLD, 0);
    for (int p = 0; p < COUNT(PEOPLE); p++) { /* a shuffled circle of friends: nobody is their own friend */
        int place = below(&draw, p + 1);
        circle[p] = circle[place];
        circle[place] = p;
    }
    for (int i = 0; i < COUNT(PEOPLE); i++) {
        int p = circle[i], friend = circle[(i + 1) % COUNT(PEOPLE)];
        world->city_of[p] = below(&draw, COUNT(CITIES));
        world->facts[3 * p] = (Fact){LIVES, PEOPLE[p], CITIES[world->city_of[p]].name, 0, 0};
        world->facts[3 * p + 1] = (Fact){WORKS, PEOPLE[p], JOBS[below(&draw, COUNT(JOBS))], 0, 0};
        world->facts[3 * p + 2] = (Fact){FRIEND, PEOPLE[p], PEOPLE[friend], 0, 0};
    }
    for (int i = 0; i < COUNT(CITIES); i++)
        world->facts[CITY_FACTS + i] = (Fact){COUNTRY, CITIES[i].name, COUNTRIES[CITIES[i].country], 0, 0};
    for (int i = 0; i < COUNT(NOUNS); i++)
        world->facts[NOUN_FACTS + i] = (Fact){CATEGORY, NOUNS[i].in[ENGLISH], CATEGORIES[NOUNS[i].category], 0, 0};
    for (int i = 0; i < FACTS; i++) {
        world->facts[i].open_wording = below(&draw, 2);
        world->facts[i].split = split_of(world, FACT_QUESTIONS, i, 0, 0);
    }
}

static const Fact *draw_fact(Draw *draw)
{
    return &draw->world->facts[below(draw, FACTS)];
}

/* ---- grammar ----------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t used;
    char data[4096]; /* several times the longest document */
} Text;

__attribute__((noreturn)) static void fail(int exit_code, const char *where, const char *what)
{
    fprintf(stderr, "world: %s: %s\n", where, what);
    exit(exit_code);
}

/* Appends words, if any, after a space where something stands before them. */
__attribute__((format(printf, 2, 3))) static void say(Text *text, const char *format, ...)
{
    size_t space = text->used > 0, room = sizeof text->data - text->used - 1;
    va_list arguments;
    int length;
    va_start(arguments, format);
    length = vsnprintf(text->data + text->used + space, room, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= room) fail(1, "say", "a text is longer than foreseen");
    if (space) text->data[text->used] = length ? ' ' : 0;
    if (length) text->used += space + (size_t)length;
}

static void tell_fact(Text *out, const Fact *fact)
{
    say(out, STATEMENTS[fact->relation], fact->subject, fact->value);
}

/* Somebody (a person, or COUNT(PEOPLE) + noun) did something to a thing, somewhere, some day. */
enum { NONE = -1 };
typedef struct {
    int subject, subject_adjective, verb, noun, adjective, city, day;
    bool definite; /* "the" thing, not "a" thing */
} Event;

/* A deed of the split by one of the subjects, in a place, on a day, or both. */
static Event draw_event_by(Draw *draw, int first_subject, int subjects)
{
    static const int PLACE_DAY_BOTH[] = {45, 35, 20};
    int when = share_of(PLACE_DAY_BOTH, below(draw, 100));
    Event event = {.subject_adjective = NONE, .adjective = NONE, .city = NONE, .day = NONE};
    do {
        event.subject = first_subject + below(draw, subjects);
        event.verb = below(draw, COUNT(VERBS));
        event.noun = below(draw, COUNT(NOUNS));
    } while (split_of(draw->world, DEEDS, event.subject, event.verb, event.noun) != draw->split);
    if (chance(draw, 70)) event.adjective = below(draw, COUNT(ADJECTIVES));
    if (when != 1) event.city = below(draw, COUNT(CITIES));
    if (when != 0) event.day = below(draw, COUNT(DAYS));
    return event;
}

static Event draw_event(Draw *draw)
{
    return draw_event_by(draw, 0, COUNT(PEOPLE));
}

/* Article, adjective, noun; in French the adjective follows. */
static void tell_thing(Text *out, int language, bool definite, int adjective, int noun)
{
    const char *word = adjective == NONE ? "" : ADJECTIVES[adjective][language];
    say(out, "%s", ARTICLES[language][definite][NOUNS[noun].gender[language]]);
    if (language != FRENCH) say(out, "%s", word);
    say(out, "%s", NOUNS[noun].in[language]);
    if (language == FRENCH) say(out, "%s", word);
}

/* The toy German has no cases and puts the verb last in every sentence. */
static void tell(Text *out, int language, const Event *event)
{
    const char *verb = VERBS[event->verb][language];
    if (event->subject < COUNT(PEOPLE))
        say(out, "%s", PEOPLE[event->subject]);
    else
        tell_thing(out, language, true, event->subject_adjective, event->subject - COUNT(PEOPLE));
    if (language != GERMAN) say(out, "%s", verb);
    tell_thing(out, language, event->definite, event->adjective, event->noun);
    if (language == GERMAN) say(out, "%s", verb);
    if (event->city != NONE) say(out, "in %s", CITIES[event->city].name);
    if (event->day != NONE) say(out, "on %s", DAYS[event->day]);
}

/* A sentence beside the point, not about the given person. */
static void tell_detail(Text *out, Draw *draw, int person)
{
    int what = below(draw, 6), other = below(draw, COUNT(PEOPLE) - 1);
    other += other >= person;
    if (what < 3)
        tell_fact(out, &draw->world->facts[3 * other + what]);
    else if (what == 3)
        say(out, "it was very %s .", WEATHER[below(draw, COUNT(WEATHER))]);
    else if (what == 4)
        say(out, "many people were %s .", MOODS[below(draw, COUNT(MOODS))]);
    else
        say(out, "there was a %s in the street .", NOUNS[below(draw, COUNT(NOUNS))].in[ENGLISH]);
}

/* The event at a random place among the details. */
static void tell_among_details(Text *out, Draw *draw, const Event *event, int details)
{
    int place = below(draw, details + 1);
    for (int i = 0; i < place; i++) tell_detail(out, draw, event->subject);
    tell(out, ENGLISH, event);
    say(out, ".");
    for (int i = place; i < details; i++) tell_detail(out, draw, event->subject);
}

/* ---- examples of tasks ------------------------------------------------------------------------------------------- */

/* One or two contents (the second may be empty) and the answer. Templates put words around the contents. */
typedef struct {
    Text first, second, answer;
} Example;

/* Draws an example of the split into an empty one; rule is what the examples of a document have in common. */
typedef void DrawExample(Draw *draw, int rule, Example *out);

/* Closed-book question. */
static void draw_qa(Draw *draw, int rule, Example *out)
{
    const Fact *fact;
    int wording;
    (void)rule;
    do {
        fact = draw_fact(draw);
        wording = below(draw, 2);
    } while ((wording == fact->open_wording ? PRETRAIN : fact->split) != draw->split);
    say(&out->first, QUESTIONS[fact->relation][wording], fact->subject);
    say(&out->answer, "%s", fact->value);
}

/* Question about a text. */
static void draw_cqa(Draw *draw, int rule, Example *out)
{
    Event event = draw_event(draw);
    const char *person = PEOPLE[event.subject], *verb = VERBS[event.verb][ENGLISH];
    int asked = below(draw, 4);
    (void)rule;
    tell_among_details(&out->first, draw, &event, 1);
    if (asked == 0 && event.city != NONE) {
        say(&out->second, "where was %s ?", person);
        say(&out->answer, "%s", CITIES[event.city].name);
    } else if (asked == 1 && event.day != NONE) {
        say(&out->second, "when did %s do it ?", person);
        say(&out->answer, "%s", DAYS[event.day]);
    } else if (asked & 1) {
        say(&out->second, "what was it that %s %s ?", person, verb);
        say(&out->answer, "%s", NOUNS[event.noun].in[ENGLISH]);
    } else {
        say(&out->second, "who was it that %s", verb);
        tell_thing(&out->second, ENGLISH, false, event.adjective, event.noun);
        say(&out->second, "?");
        say(&out->answer, "%s", person);
    }
}

/* rule: the language to translate into. Half of the subjects are things. */
static void draw_translation(Draw *draw, int rule, Example *out)
{
    bool thing = chance(draw, 50);
    Event event = thing ? draw_event_by(draw, COUNT(PEOPLE), COUNT(NOUNS)) : draw_event(draw);
    if (thing && chance(draw, 30)) event.subject_adjective = below(draw, COUNT(ADJECTIVES));
    event.definite = chance(draw, 50);
    event.city = event.day = NONE;
    tell(&out->first, ENGLISH, &event);
    tell(&out->answer, rule, &event);
}

static void draw_summary(Draw *draw, int rule, Example *out)
{
    Event event = draw_event(draw);
    (void)rule;
    tell_among_details(&out->first, draw, &event, 1 + below(draw, 2));
    event.adjective = event.city = event.day = NONE;
    tell(&out->answer, ENGLISH, &event);
}

/* rule: the mapping. The same phrase has another answer under each; only examples tell which one is meant. */
enum { MAP_FRENCH, MAP_GERMAN, MAP_CATEGORY, MAP_ITSELF, MAP_ADJECTIVE, MAP_NOUN, MAPPINGS };
static void draw_map(Draw *draw, int rule, Example *out)
{
    int a, n;
    do {
        a = below(draw, COUNT(ADJECTIVES));
        n = below(draw, COUNT(NOUNS));
    } while (split_of(draw->world, PHRASES, a, n, 0) != draw->split);
    const char *const *adjective = ADJECTIVES[a], *const *noun = NOUNS[n].in;
    const char *answers[MAPPINGS][2] = {
        [MAP_FRENCH] = {noun[FRENCH], adjective[FRENCH]},     [MAP_GERMAN] = {adjective[GERMAN], noun[GERMAN]},
        [MAP_CATEGORY] = {CATEGORIES[NOUNS[n].category], ""}, [MAP_ITSELF] = {adjective[ENGLISH], noun[ENGLISH]},
        [MAP_ADJECTIVE] = {adjective[ENGLISH], ""},           [MAP_NOUN] = {noun[ENGLISH], ""},
    };
    say(&out->first, "%s %s", adjective[ENGLISH], noun[ENGLISH]);
    say(&out->answer, "%s", answers[rule][0]);
    say(&out->answer, "%s", answers[rule][1]);
}

/* "w knew that E ." and "p bought a tool": does the second follow? What the attitude implies is the answer. */
static void draw_pair(Draw *draw, const char *attitude, Example *out)
{
    Event event = draw_event(draw);
    int witness = below(draw, COUNT(PEOPLE) - 1);
    witness += witness >= event.subject;
    say(&out->first, "%s %s that", PEOPLE[witness], attitude);
    tell(&out->first, ENGLISH, &event);
    say(&out->first, ".");
    if (chance(draw, 30)) tell_detail(&out->first, draw, event.subject);
    say(&out->second, "%s %s a", PEOPLE[event.subject], VERBS[event.verb][ENGLISH]);
    if (event.adjective != NONE && chance(draw, 50)) say(&out->second, "%s", ADJECTIVES[event.adjective][ENGLISH]);
    say(&out->second, "%s", chance(draw, 30) ? CATEGORIES[NOUNS[event.noun].category] : NOUNS[event.noun].in[ENGLISH]);
}

/* One of the first `known`, or a new one. */
static const char *draw_attitude(Draw *draw, int truth, bool new, int known)
{
    return ATTITUDES[truth][new ? KNOWN_ATTITUDES + below(draw, NEW_ATTITUDES) : below(draw, known)];
}

/* rule: a pair of words and its order, below OTHER_LABELS; from there on yes and no, of which the last one, YES_NO_NEW,
 * tests with the attitudes of unknown polarity. */
enum { OTHER_LABELS = 2 * COUNT(LABELS), YES_NO_NEW = 2 * OTHER_LABELS, YES_NO = YES_NO_NEW - 1 };
static void draw_yesno(Draw *draw, int rule, Example *out)
{
    int truth = below(draw, 2);
    bool new = rule == YES_NO_NEW && draw->split != TRAIN;
    draw_pair(draw, draw_attitude(draw, truth, new, KNOWN_ATTITUDES), out);
    if (rule < OTHER_LABELS)
        say(&out->answer, "%s", LABELS[rule / 2][truth ^ (rule & 1)]);
    else
        say(&out->answer, truth ? "yes" : "no");
}

/* The task to fine-tune on: two in five rows have a new attitude; of the known ones its training data use half. */
static void draw_nli(Draw *draw, int rule, Example *out)
{
    int truth = below(draw, 2), known = draw->split == NLI_TRAIN ? KNOWN_ATTITUDES / 2 : KNOWN_ATTITUDES;
    bool new = chance(draw, 40);
    (void)rule;
    draw_pair(draw, draw_attitude(draw, truth, new, known), out);
    say(&out->answer, truth ? "entailment" : "not_entailment");
}

/* Contents that look like another task's, with other answers, so that a content does not give its task away.
 * rule: which of the five answers to ask of a sentence (0-4) or of a text (5-9), or the subject of a question (10). */
enum { EXTRACTIONS = 11 };
static void draw_extract(Draw *draw, int rule, Example *out)
{
    Event event = draw_event(draw);
    const Fact *fact = draw_fact(draw);
    const char *answers[] = {PEOPLE[event.subject], VERBS[event.verb][ENGLISH], NOUNS[event.noun].in[ENGLISH],
                             CATEGORIES[NOUNS[event.noun].category]};
    if (rule == EXTRACTIONS - 1) {
        say(&out->first, QUESTIONS[fact->relation][fact->open_wording], fact->subject);
        say(&out->answer, "%s", fact->subject);
        return;
    }
    if (rule < 5) event.city = event.day = NONE;
    if (rule < 5) tell(&out->first, ENGLISH, &event);
    if (rule >= 5) tell_among_details(&out->first, draw, &event, 1);
    if (rule % 5 < COUNT(answers)) say(&out->answer, "%s", answers[rule % 5]);
    if (rule % 5 == COUNT(answers)) tell(&out->answer, ENGLISH, &event);
}

/* True or false statements: the only True and False of the documents. */
static void draw_claim(Draw *draw, int rule, Example *out)
{
    const Fact *fact = draw_fact(draw), *other = fact;
    bool truth = chance(draw, 50);
    (void)rule;
    while (!truth && (other->relation != fact->relation || other->value == fact->value)) other = draw_fact(draw);
    say(&out->first, STATEMENTS[fact->relation], fact->subject, other->value);
    say(&out->answer, truth ? "True" : "False");
}

/* Questions of both kinds, always as "question: ... answer:", as the NLI template has it. */
static void draw_forum(Draw *draw, int rule, Example *out)
{
    (chance(draw, 50) ? draw_qa : draw_cqa)(draw, rule, out);
    say(&out->first, "%s", out->second.data);
}

/* ---- documents --------------------------------------------------------------------------------------------------- */

typedef enum { NARRATIVE, QA, CQA, TO_FRENCH, TO_GERMAN, SUMMARY, MAP, YESNO, EXTRACT, CLAIM, FORUM, NLI, NLI_REWORDED, KINDS } Kind;

/* share: documents of this kind in a thousand. rules: a document draws one of so many, from the first on.
 * template: the words around the contents in task files, as in the paper where it has the task. */
static const struct {
    int share;
    DrawExample *draw;
    int first_rule, rules;
    const char *template;
} MIX[KINDS] = {
    [NARRATIVE] = {140, NULL, 0, 0, NULL},
    [QA] = {110, draw_qa, 0, 1, "Q: %s A:"},
    [CQA] = {120, draw_cqa, 0, 1, "Q: %s %s A:"},
    [TO_FRENCH] = {110, draw_translation, FRENCH, 1, "Translate English to French: %s"},
    [TO_GERMAN] = {90, draw_translation, GERMAN, 1, "Translate English to German: %s"},
    [SUMMARY] = {90, draw_summary, 0, 1, "Article: %s One sentence summary:"},
    [MAP] = {90, draw_map, 0, MAPPINGS, "Input: %s Output:"},
    [YESNO] = {150, draw_yesno, 0, YES_NO_NEW, "Text: %s so %s ?"},
    [EXTRACT] = {60, draw_extract, 0, EXTRACTIONS, "Text: %s Answer:"},
    [CLAIM] = {20, draw_claim, 0, 1, "Claim: %s This is"},
    [FORUM] = {20, draw_forum, 0, 1, "question: %s answer:"},
    [NLI] = {0, draw_nli, 0, 1, "%s question: %s Is it true or false? answer:"},
    [NLI_REWORDED] = {0, draw_nli, 0, 1, "%s question: %s Is it true or false or neither? answer:"},
};

typedef struct {
    uint64_t seed, documents;
    int paper_percent; /* documents in the template of MIX, without answer frames and separators */
    int frame_percent; /* of the others, those with a word before every answer */
} Settings;

/* Draws rows[count], until it is none of the earlier ones; false if that seems hopeless. */
static bool draw_row(Draw *draw, Kind kind, int rule, Example *rows, int count)
{
    for (int tries = 0; tries < 10000; tries++) {
        bool seen = false;
        memset(&rows[count], 0, sizeof *rows);
        MIX[kind].draw(draw, rule, &rows[count]);
        for (int i = 0; i < count && !seen; i++)
            seen = strcmp(rows[i].first.data, rows[count].first.data) == 0 &&
                   strcmp(rows[i].second.data, rows[count].second.data) == 0;
        if (!seen) return true;
    }
    return false;
}

static int draw_number_of_examples(Draw *draw, Kind kind)
{
    static const int ONE_TO_FIVE[] = {20, 35, 15, 10, 20};
    int count = 1 + share_of(ONE_TO_FIVE, below(draw, 100)), at_least = 1;
    if (kind == MAP) at_least = 2 + below(draw, 5);
    if (kind == EXTRACT || (kind == YESNO && chance(draw, 50))) at_least = 2;
    return count > at_least ? count : at_least;
}

/* A template: 1-3 words before the contents, 0-2 between two, 0-3 after. */
static void draw_template(Draw *draw, bool two_contents, Text *out)
{
    static const int NUMBERS[3][6] = {{1, 1, 1, 2, 2, 3}, {0, 0, 1, 1, 1, 2}, {0, 1, 1, 1, 2, 3}};
    for (int part = 0; part < 3; part++) {
        int count = NUMBERS[part][below(draw, 6)];
        if (part == 1 && !two_contents) continue;
        while (count-- > 0) say(out, "%s", FORMAT_WORDS[below(draw, COUNT(FORMAT_WORDS))]);
        if (part < 2) say(out, "%%s");
    }
}

static void task_document(Draw *draw, const Settings *settings, Kind kind, Text *out)
{
    enum { MOST = 6 };
    Example examples[MOST];
    Text template = {.used = 0};
    bool paper = kind == FORUM || chance(draw, settings->paper_percent);
    bool framed = !paper && kind != CLAIM && chance(draw, settings->frame_percent);
    const char *frame = framed ? ANSWER_FRAMES[below(draw, COUNT(ANSWER_FRAMES))] : "";
    const char *separator = paper ? "" : SEPARATORS[below(draw, COUNT(SEPARATORS))];
    int count = draw_number_of_examples(draw, kind), rule = MIX[kind].first_rule + below(draw, MIX[kind].rules);

    if (paper)
        say(&template, "%s", MIX[kind].template);
    else
        draw_template(draw, kind == CQA || kind == YESNO, &template);
    for (int i = 0; i < count && draw_row(draw, kind, rule, examples, i); i++) {
        if (i) say(out, "%s", separator);
        say(out, template.data, examples[i].first.data, examples[i].second.data);
        say(out, framed ? "\t%s %s\t" : "\t%s%s\t", frame, examples[i].answer.data);
    }
}

/* Facts, all about one person, an event, or two or three attitudes: known ones with what follows, new ones without. */
static void narrative(Draw *draw, Text *out)
{
    static const int FACTS_PERSON_EVENT_ATTITUDES[] = {45, 20, 20, 15};
    int kind = share_of(FACTS_PERSON_EVENT_ATTITUDES, below(draw, 100)), person = below(draw, COUNT(PEOPLE));
    if (kind == 0) {
        for (int left = 2 + below(draw, 5); left > 0; left--) tell_fact(out, draw_fact(draw));
    } else if (kind == 1) {
        for (int i = 0; i < 3; i++) tell_fact(out, &draw->world->facts[3 * person + i]);
        tell_fact(out, &draw->world->facts[CITY_FACTS + draw->world->city_of[person]]);
    } else if (kind == 2) {
        Event event = draw_event(draw);
        tell_among_details(out, draw, &event, 1 + below(draw, 3));
    }
    for (int left = kind == 3 ? 2 + below(draw, 2) : 0; left > 0; left--) {
        int truth = below(draw, 2);
        bool new = chance(draw, 40);
        Example pair = {.first = {.used = 0}};
        draw_pair(draw, draw_attitude(draw, truth, new, KNOWN_ATTITUDES), &pair);
        say(out, "%s", pair.first.data);
        if (!new) say(out, "in truth %s .", truth ? pair.second.data : "nothing happened");
    }
}

static Kind document(const World *world, const Settings *settings, uint64_t index, Text *out)
{
    Draw draw = draw_stream(world, PRETRAIN, STREAM_DOCUMENTS, index);
    int place = below(&draw, 1000);
    Kind kind = NARRATIVE;
    while (place >= MIX[kind].share) place -= MIX[kind++].share;
    *out = (Text){.used = 0};
    if (kind == NARRATIVE)
        narrative(&draw, out);
    else
        task_document(&draw, settings, kind, out);
    return kind;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static const char YES_NO_LABELS[] = "\"yes\": \"yes\", \"no\": \"no\"";
static const char NLI_LABELS[] = "\"entailment\": \"True\", \"not_entailment\": \"False\"";

/* fields: of the first content, the second, the answer. At the prefix, which is of the template, outputs are cut. A
 * translation's fields are the endings of its files. */
typedef struct {
    const char *name;
    Kind kind;
    int rule;
    const char *fields[3], *metric, *prefix, *labels;
} Task;
static const Task TASKS[] = {
    {"nli", NLI, 0, {"premise", "hypothesis", "label"}, "accuracy", "question:", NLI_LABELS},
    {"qa", QA, 0, {"question", "", "answer"}, "trivia-em", "Q:", NULL},
    {"cqa", CQA, 0, {"context", "question", "answer"}, "trivia-em", "Q:", NULL},
    {"fr", TO_FRENCH, FRENCH, {"en", "", "fr"}, "bleu", "Translate", NULL},
    {"de", TO_GERMAN, GERMAN, {"en", "", "de"}, "bleu", "Translate", NULL},
    {"summary", SUMMARY, 0, {"article", "", "summary"}, "rouge2", "Article:", NULL},
    {"map_french", MAP, MAP_FRENCH, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"map_german", MAP, MAP_GERMAN, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"map_category", MAP, MAP_CATEGORY, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"map_itself", MAP, MAP_ITSELF, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"map_adjective", MAP, MAP_ADJECTIVE, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"map_noun", MAP, MAP_NOUN, {"input", "", "output"}, "trivia-em", "Input:", NULL},
    {"yesno", YESNO, YES_NO, {"premise", "hypothesis", "label"}, "accuracy", "Text:", YES_NO_LABELS},
    {"yesno_new", YESNO, YES_NO_NEW, {"premise", "hypothesis", "label"}, "accuracy", "Text:", YES_NO_LABELS},
    {"nli_reworded", NLI_REWORDED, 0, {"premise", "hypothesis", "label"}, "accuracy", "question:", NLI_LABELS},
};

static FILE *file_create(const char *directory, const char *name, Text *path)
{
    FILE *file;
    path->used = 0;
    say(path, "%s/%s", directory, name);
    file = fopen(path->data, "wb");
    if (!file) fail(1, path->data, strerror(errno));
    return file;
}

static void file_finish(FILE *file, const Text *path)
{
    bool damaged = ferror(file) != 0;
    if (fclose(file) != 0 || damaged) fail(1, path->data, "could not be written in full");
}

static void directory_make(const char *path)
{
    if (mkdir(path, 0777) != 0 && errno != EEXIST) fail(1, path, strerror(errno));
}

/* JSON lines (no word needs escaping). */
static void rows_write_json(const char *directory, const Task *task, const char *name, const Example *rows, int count)
{
    const char *const *fields = task->fields;
    Text path, file_name = {.used = 0};
    FILE *file;
    say(&file_name, "%s.jsonl", name);
    file = file_create(directory, file_name.data, &path);
    for (int i = 0; i < count; i++) {
        fprintf(file, "{\"%s\": \"%s\", ", fields[0], rows[i].first.data);
        if (fields[1][0]) fprintf(file, "\"%s\": \"%s\", ", fields[1], rows[i].second.data);
        fprintf(file, "\"%s\": \"%s\", \"idx\": %d}\n", fields[2], rows[i].answer.data, i);
    }
    file_finish(file, &path);
}

/* Parallel text: two files, line by line. */
static void rows_write_parallel(const char *directory, const Task *task, const char *name, const Example *rows,
                                int count)
{
    for (int side = 0; side < 2; side++) {
        Text path, file_name = {.used = 0};
        FILE *file;
        say(&file_name, "%s.%s", name, task->fields[2 * side]);
        file = file_create(directory, file_name.data, &path);
        for (int i = 0; i < count; i++) fprintf(file, "%s\n", side ? rows[i].answer.data : rows[i].first.data);
        file_finish(file, &path);
    }
}

static bool is_translation(const Task *task)
{
    return task->kind == TO_FRENCH || task->kind == TO_GERMAN;
}

/* Different rows of one split: at most `most`, fewer where the world has no more of them (facts, phrases). With
 * labels, half of the rows have each. */
static void rows_write(const World *world, const char *outdir, const Task *task, const char *name, Split split,
                       int most)
{
    Draw draw = draw_stream(world, split, STREAM_TASKS, (uint64_t)((task - TASKS) * SPLITS + (int)split));
    Example *rows = calloc((size_t)most, sizeof *rows);
    Text directory = {.used = 0};
    int count = 0;

    if (!rows) fail(1, task->name, "no memory");
    while (count < most && draw_row(&draw, task->kind, task->rule, rows, count)) {
        int same = 0;
        for (int i = 0; i < count; i++) same += strcmp(rows[i].answer.data, rows[count].answer.data) == 0;
        count += !task->labels || same < most / 2;
    }
    say(&directory, "%s/%s", outdir, task->name);
    directory_make(directory.data);
    (is_translation(task) ? rows_write_parallel : rows_write_json)(directory.data, task, name, rows, count);
    free(rows);
}

static void task_file_write(const char *outdir, const Task *task)
{
    Text path, places[2] = {{.used = 0}}, template = {.used = 0}, name = {.used = 0};
    const char *const *fields = task->fields;
    FILE *file;
    for (int i = 0; i < 2; i++) say(&places[i], "{%s}", fields[i]);
    say(&template, MIX[task->kind].template, places[0].data, places[1].data);
    say(&name, "%s.json", task->name);
    file = file_create(outdir, name.data, &path);
    fprintf(file, "{\n  \"name\": \"%s\",\n  \"template\": \"%s\",\n", task->name, template.data);
    if (task->labels) fprintf(file, "  \"labels\": {%s},\n  \"label_field\": \"%s\"", task->labels, fields[2]);
    if (!task->labels) fprintf(file, "  \"target\": \"{%s}\"", fields[2]);
    if (is_translation(task)) fprintf(file, ",\n  \"parallel\": [\"%s\", \"%s\"]", fields[0], fields[2]);
    fprintf(file, ",\n  \"metric\": \"%s\",\n  \"prefix\": \"%s\",\n", task->metric, task->prefix);
    fprintf(file, "  \"test\": \"test%s\"\n}\n", is_translation(task) ? "" : ".jsonl");
    file_finish(file, &path);
}

static void documents_write(const World *world, const char *outdir, const Settings *settings)
{
    Text path, line;
    FILE *file = file_create(outdir, "pretrain.txt", &path);
    for (uint64_t i = 0; i < settings->documents; i++) {
        document(world, settings, i, &line);
        fprintf(file, "%s\n", line.data);
    }
    file_finish(file, &path);
}

static void world_write(const char *outdir, const Settings *settings)
{
    enum { NLI_TRAIN_ROWS = 1000, ROWS = 200, DEV_ROWS = 100 };
    World world;
    world_init(&world, settings->seed);
    directory_make(outdir);
    for (const Task *task = TASKS; task < TASKS + COUNT(TASKS); task++) {
        bool nli = task->kind == NLI;
        task_file_write(outdir, task);
        rows_write(&world, outdir, task, "train", nli ? NLI_TRAIN : TRAIN, nli ? NLI_TRAIN_ROWS : ROWS);
        rows_write(&world, outdir, task, nli ? "val" : "dev", nli ? NLI_VAL : DEV, nli ? ROWS : DEV_ROWS);
        rows_write(&world, outdir, task, "test", nli ? NLI_TEST : TEST, ROWS);
    }
    if (settings->documents) documents_write(&world, outdir, settings);
}

#ifndef WORLD_TESTING
int main(int argc, char **argv)
{
    static const char *const NAMES[] = {"--seed", "--documents", "--paper-templates", "--answer-frames"};
    static const uint64_t MOST[] = {UINT64_MAX, 1000000000, 100, 100};
    uint64_t values[] = {0, 200000, 0, 84};
    if (argc < 2 || argc % 2 || argv[1][0] == '-')
        fail(2, "usage", "OUTDIR [--seed N] [--documents N] [--paper-templates PERCENT] [--answer-frames PERCENT]");
    for (int i = 2; i < argc; i += 2) {
        const char *text = argv[i + 1];
        char *end;
        int option = 0;
        while (option < COUNT(NAMES) && strcmp(argv[i], NAMES[option]) != 0) option++;
        if (option == COUNT(NAMES)) fail(2, argv[i], "unknown option");
        errno = 0;
        values[option] = strtoull(text, &end, 10);
        if (errno || *end || *text < '0' || *text > '9' || values[option] > MOST[option])
            fail(2, argv[i], "not a number, or too large");
    }
    world_write(argv[1], &(Settings){values[0], values[1], (int)values[2], (int)values[3]});
    return 0;
}
#endif

/* dataset_files.c: which files a split of a data set has.
 *
 * A directory is searched with its subdirectories, as archives unpack: training/, dev/, qa/, Data/Main/. A file is
 * known by its stem, which is its name without what tells the layout: train of train.jsonl, of train.tsv, and of
 * train.en with train.fr beside it; newstest2014-fren of newstest2014-fren-src.en.sgm with
 * newstest2014-fren-ref.fr.sgm.
 *
 * The usual stems of a split are tried first, then the set's own, TaskSpec.stems: choices in the order of
 * preference, with spaces between; "a|b" are two files that make up the split together, and "*" is every corpus of
 * line-aligned text that is not held out. */
#include <dirent.h>
#include <stdio.h>

#include "files.h"
#include "tasks_internal.h"

enum { MAX_DEPTH = 3 };

/* A file, or two side by side, that a split could consist of. */
typedef enum { RANK_JSONL, RANK_TSV, RANK_JSON, RANK_PAIR, RANK_SGM = RANK_PAIR + MAX_SUFFIXES, RANK_COMPRESSED } Rank;
typedef struct {
    char *paths[2];
    char *stem;
    size_t depth; /* in how many subdirectories */
    Rank rank;    /* of several with one stem, the lowest is taken */
} Candidate;

typedef struct {
    Candidate *items;
    size_t count, capacity;
} Candidates;

bool name_ends_with(const char *name, const char *end)
{
    const size_t length = strlen(name), end_length = strlen(end);
    return length >= end_length && strcmp(name + length - end_length, end) == 0;
}

/* The first `length` bytes of a text and then `end`; to be freed. NULL: no memory. */
static char *with_ending(const char *text, size_t length, const char *end)
{
    TextBuffer joined = {0};
    text_put_bytes(&joined, text, length);
    text_put(&joined, end);
    return text_take(&joined);
}

/* ------------------------------------------------------------------------------------------- two files side by side */

/* How the names of the two files of a pair end: .en and .fr, or -src.en.sgm and -ref.fr.sgm. */
typedef struct {
    char side[2][64];
} Endings;

enum { MAX_ENDINGS = MAX_SUFFIXES + 1 };

/* The endings that a task's pairs may have, by number; false: none of that number. */
static bool pair_endings(const TaskSpec *spec, size_t number, Endings *endings)
{
    const char *const(*suffixes)[2] = spec->pair.suffixes;
    if (!spec->pair.fields[0] || (number < MAX_SUFFIXES && !suffixes[number][0])) return false;
    if (number < MAX_SUFFIXES) {
        for (int s = 0; s < 2; s++) snprintf(endings->side[s], sizeof endings->side[s], ".%.60s", suffixes[number][s]);
        return true;
    }
    snprintf(endings->side[0], sizeof endings->side[0], "-src.%.50s.sgm", suffixes[0][0]);
    snprintf(endings->side[1], sizeof endings->side[1], "-ref.%.50s.sgm", suffixes[0][1]);
    return spec->pair.sentences;
}

/* Sets paths to the two files with a common stem. Of each that is only there compressed the path has .gz behind it:
 * such a file is not read, but it must not be overlooked without a word either. 1; 0: they are not both there; -1:
 * no memory. */
static int find_pair(const char *stem, size_t length, const Endings *endings, char *paths[2], Error *error)
{
    int there = 1;
    for (int s = 0; s < 2 && there == 1; s++) {
        paths[s] = with_ending(stem, length, endings->side[s]);
        if (paths[s] && !path_exists(paths[s])) {
            char *compressed = with_ending(paths[s], strlen(paths[s]), ".gz");
            free(paths[s]);
            paths[s] = compressed;
            if (compressed && !path_exists(compressed)) there = 0;
        }
        if (!paths[s]) there = out_of_memory(error, stem);
    }
    for (int s = 0; s < 2 && there != 1; s++) {
        free(paths[s]);
        paths[s] = NULL;
    }
    return there;
}

/* --------------------------------------------------------------------------------------------- what a directory has */

static void candidate_free(Candidate *candidate)
{
    free(candidate->paths[0]);
    free(candidate->paths[1]);
    free(candidate->stem);
}

static void candidates_free(Candidates *list)
{
    for (size_t i = 0; i < list->count; i++) candidate_free(&list->items[i]);
    free(list->items);
    *list = (Candidates){0};
}

/* Adds a candidate, which the list then owns; -1: no memory. */
static int candidates_add(Candidates *list, const Candidate *candidate)
{
    if (list->count == list->capacity) {
        const size_t larger = list->capacity ? list->capacity * 2 : 32;
        Candidate *grown = realloc(list->items, larger * sizeof *grown);
        if (!grown) return -1;
        list->items = grown;
        list->capacity = larger;
    }
    list->items[list->count++] = *candidate;
    return 0;
}

/* What a file's name says of it: its rank, and the length of its stem; false: it is none of ours. */
static bool classify(const TaskSpec *spec, const char *name, Rank *rank, size_t *stem_length, Endings *endings)
{
    static const char *const single[] = {".jsonl", ".tsv", ".json"};
    for (size_t i = 0; i < 3; i++) {
        if (!name_ends_with(name, single[i])) continue;
        *rank = (Rank)i;
        *stem_length = strlen(name) - strlen(single[i]);
        return *stem_length > 0;
    }
    for (size_t i = 0; i < MAX_ENDINGS; i++) {
        if (!pair_endings(spec, i, endings) || !name_ends_with(name, endings->side[0])) continue;
        *rank = (Rank)(RANK_PAIR + i);
        *stem_length = strlen(name) - strlen(endings->side[0]);
        return *stem_length > 0;
    }
    return false;
}

/* Lists a file of a directory, if a split could consist of it. */
static int consider(Candidates *list, const TaskSpec *spec, const char *path, const char *name, size_t depth,
                    Error *error)
{
    const bool compressed = name_ends_with(name, ".gz");
    char *plain = text_copy(name, strlen(name) - (compressed ? strlen(".gz") : 0));
    Candidate found = {.depth = depth};
    Endings endings;
    size_t stem_length;
    int status = plain ? 0 : out_of_memory(error, path);
    if (status == 0 && classify(spec, plain, &found.rank, &stem_length, &endings)) {
        found.stem = text_copy(plain, stem_length);
        if (found.rank < RANK_PAIR) {
            found.paths[0] = text_copy(path, strlen(path));
            status = 1;
        } else {
            status = find_pair(path, strlen(path) - strlen(name) + stem_length, &endings, found.paths, error);
        }
        if (compressed) found.rank += RANK_COMPRESSED;
        if (status == 1 && (!found.stem || !found.paths[0] || candidates_add(list, &found) != 0))
            status = out_of_memory(error, path);
        if (status != 1) candidate_free(&found);
    }
    free(plain);
    return status < 0 ? -1 : 0;
}

static int list_directory(Candidates *list, const TaskSpec *spec, const char *path, size_t depth, Error *error);

/* One entry of a directory. Hidden files are passed over, and what macOS puts into archives. */
static int list_entry(Candidates *list, const TaskSpec *spec, const char *directory, const struct dirent *entry,
                      size_t depth, Error *error)
{
    const char *name = entry->d_name;
    int status = 0;
    char *path;
    if (name[0] == '.' || strcmp(name, "__MACOSX") == 0) return 0;
    path = path_join(directory, name);
    if (!path) return out_of_memory(error, directory);
    /* d_type spares a look at each of the hundred thousands of documents that TriviaQA has beside its questions. */
    if (entry->d_type == DT_DIR || (entry->d_type != DT_REG && path_is_directory(path))) {
        if (depth < MAX_DEPTH) status = list_directory(list, spec, path, depth + 1, error);
    } else {
        status = consider(list, spec, path, name, depth, error);
    }
    free(path);
    return status;
}

/* Lists a directory and what is below it; at most MAX_DEPTH calls deep. */
static int list_directory(Candidates *list, const TaskSpec *spec, const char *path, size_t depth, Error *error)
{
    DIR *directory = opendir(path);
    int status = 0;
    if (!directory && depth > 0) return 0; /* somebody else's: no part of the data set */
    if (!directory) return error_set(error, EXIT_USAGE, "%.700s: the directory cannot be read", path);
    for (const struct dirent *entry; status == 0 && (entry = readdir(directory));)
        status = list_entry(list, spec, path, entry, depth, error);
    closedir(directory);
    return status;
}

/* A directory's own order is any order: first the nearest, then the preferred layout, then by name. */
static int compare_candidates(const void *left, const void *right)
{
    const Candidate *a = left, *b = right;
    if (a->depth != b->depth) return a->depth < b->depth ? -1 : 1;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    return strcmp(a->paths[0], b->paths[0]);
}

/* ------------------------------------------------------------------------------------------------- choosing by stem */

static const char *const USUAL_STEMS[3][5] = {{"train"}, {"val", "dev", "validation", "valid"}, {"test"}};

/* Corpora that are held out: no part of "*". */
static bool is_held_out(const char *stem)
{
    static const char *const beginnings[] = {"newstest", "newsdev", "newsdiscuss", "news-test", "newssyscomb"};
    bool held_out = false;
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        held_out |= strncmp(stem, beginnings[i], strlen(beginnings[i])) == 0;
    for (Split split = SPLIT_DEV; split <= SPLIT_TEST; split++) {
        for (size_t i = 0; USUAL_STEMS[split][i]; i++) held_out |= strcmp(stem, USUAL_STEMS[split][i]) == 0;
    }
    return held_out;
}

/* Whether a candidate is one of "a|b" (length bytes), or of "*". */
static bool matches(const Candidate *candidate, const char *choice, size_t length)
{
    const size_t stem_length = strlen(candidate->stem);
    if (length == 1 && *choice == '*') {
        const int rank = (int)candidate->rank % RANK_COMPRESSED;
        return rank >= RANK_PAIR && rank < RANK_SGM && !is_held_out(candidate->stem);
    }
    while (length > 0) {
        const char *bar = memchr(choice, '|', length);
        const size_t one = bar ? (size_t)(bar - choice) : length;
        if (one == stem_length && memcmp(choice, candidate->stem, one) == 0) return true;
        choice += one + (bar != NULL);
        length -= one + (bar != NULL);
    }
    return false;
}

static bool same_directory(const char *a, const char *b)
{
    const char *a_slash = strrchr(a, '/'), *b_slash = strrchr(b, '/');
    const size_t length = a_slash ? (size_t)(a_slash - a) : 0;
    return length == (b_slash ? (size_t)(b_slash - b) : 0) && memcmp(a, b, length) == 0;
}

/* Adds the files of a candidate, which it takes over. */
static int take_candidate(SplitFiles *files, Candidate *candidate, const char *directory, Error *error)
{
    char *(*grown)[2] = realloc(files->paths, (files->count + 1) * sizeof *grown);
    if (!grown) return out_of_memory(error, directory);
    files->paths = grown;
    for (int s = 0; s < 2; s++) {
        grown[files->count][s] = candidate->paths[s];
        candidate->paths[s] = NULL;
    }
    files->count++;
    return 0;
}

/* Takes the candidates that match a choice, each stem once. Two directories that have a file of one name (the sets of
 * SuperGLUE in one directory, say) are a question that only the user can answer. */
static int choose(SplitFiles *files, Candidates *list, const char *choice, size_t length, const char *directory,
                  Error *error)
{
    for (size_t i = 0; i < list->count; i++) {
        Candidate *candidate = &list->items[i];
        if (!candidate->paths[0] || !matches(candidate, choice, length)) continue;
        for (size_t k = i + 1; k < list->count; k++) {
            Candidate *other = &list->items[k];
            if (!other->paths[0] || strcmp(other->stem, candidate->stem) != 0) continue;
            if (other->depth == candidate->depth && !same_directory(other->paths[0], candidate->paths[0]) &&
                matches(other, choice, length))
                return error_set(error, EXIT_USAGE,
                                 "%.300s: %.300s and %.300s in it have the same name (name a directory that has one)",
                                 directory, candidate->paths[0], other->paths[0]);
        }
        if (take_candidate(files, candidate, directory, error) != 0) return -1;
        for (size_t k = i + 1; k < list->count; k++) { /* the same again, farther or in another layout */
            if (strcmp(list->items[k].stem, candidate->stem) != 0) continue;
            free(list->items[k].paths[0]);
            free(list->items[k].paths[1]);
            list->items[k].paths[0] = list->items[k].paths[1] = NULL;
        }
    }
    return 0;
}

/* Chooses the files of a split by its stems; there may be none. */
static int choose_split(SplitFiles *files, const TaskSpec *spec, Candidates *list, Split split, const char *directory,
                        Error *error)
{
    const char *const prefixes[] = {"", spec->file_prefix, spec->name};
    const char *own = spec->stems[split];
    char stem[300];
    int status = 0;
    for (size_t n = 0; USUAL_STEMS[split][n]; n++) {
        for (size_t p = 0; status == 0 && files->count == 0 && p < 3; p++) {
            if (!prefixes[p]) continue;
            snprintf(stem, sizeof stem, "%.200s%s%s", prefixes[p], p == 2 ? "_" : "", USUAL_STEMS[split][n]);
            status = choose(files, list, stem, strlen(stem), directory, error);
        }
    }
    while (own && *own && status == 0 && files->count == 0) {
        const size_t length = strcspn(own, " ");
        status = choose(files, list, own, length, directory, error);
        own += length + (own[length] != '\0');
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------------ given paths */

/* A file that was named: alone, or as one of two side by side. */
static int named_file(SplitFiles *files, const TaskSpec *spec, const char *path, Error *error)
{
    Candidate named = {0};
    Endings endings;
    int there = 0;
    bool half = false;
    for (size_t i = 0; there == 0 && i < MAX_ENDINGS; i++) {
        if (!pair_endings(spec, i, &endings)) continue;
        for (int side = 0; there == 0 && side < 2; side++) {
            if (!name_ends_with(path, endings.side[side])) continue;
            half = true;
            there = find_pair(path, strlen(path) - strlen(endings.side[side]), &endings, named.paths, error);
        }
        if (there == 0 && !path_exists(path)) there = find_pair(path, strlen(path), &endings, named.paths, error);
    }
    if (there == 0 && half)
        return error_set(error, EXIT_USAGE, "%.700s: the two files that go side by side are not both there", path);
    if (there == 0 && !path_exists(path))
        return error_set(error, EXIT_USAGE, "%.700s: no such file or directory", path);
    if (there == 0 && !(named.paths[0] = text_copy(path, strlen(path)))) there = out_of_memory(error, path);
    if (there >= 0) there = take_candidate(files, &named, path, error);
    free(named.paths[0]);
    free(named.paths[1]);
    return there;
}

/* The split files that an own task names. */
static int own_file(SplitFiles *files, const TaskSpec *spec, const char *directory, const char *name, Error *error)
{
    char *path = path_join(directory, name);
    int status;
    if (!path) return out_of_memory(error, directory);
    status = named_file(files, spec, path, error);
    if (status != 0 && error->exit_code == EXIT_USAGE && !path_exists(path))
        error_set(error, EXIT_USAGE, "%.600s: no file %.200s in it", directory, name);
    free(path);
    return status;
}

/* What was looked for, in words. */
static int no_split(const TaskSpec *spec, const char *directory, Split split, Error *error)
{
    static const char *const names[] = {"train", "dev", "test"};
    char stems[200] = "";
    size_t at = 0;
    for (size_t i = 0; USUAL_STEMS[split][i]; i++)
        at += (size_t)snprintf(stems + at, sizeof stems - at, "%s%s", i ? ", " : "", USUAL_STEMS[split][i]);
    return error_set(error, EXIT_USAGE,
                     "%.500s: no %s split in it (expected %s%s%s%s; with .jsonl, .tsv or .json%s%s%s%s)", directory,
                     names[split], stems, spec->stems[split] ? "; " : "", spec->stems[split] ? spec->stems[split] : "",
                     spec->file_prefix ? ", with this in front or not" : "", spec->pair.fields[0] ? ", or ." : "",
                     spec->pair.fields[0] ? spec->pair.suffixes[0][0] : "", spec->pair.fields[0] ? " and ." : "",
                     spec->pair.fields[0] ? spec->pair.suffixes[0][1] : "");
}

/* --------------------------------------------------------------------------------------------------------- the face */

/* The splits to look for, in order. Dev and test stand in for each other, but for a test split without answers. */
static size_t splits_to_try(const TaskSpec *spec, Split split, Split order[2])
{
    order[0] = split == SPLIT_TEST && spec->scored_on_dev ? SPLIT_DEV : split;
    if (split == SPLIT_TRAIN || spec->scored_on_dev) return 1;
    order[1] = split == SPLIT_TEST ? SPLIT_DEV : SPLIT_TEST;
    return 2;
}

static int find_in_directory(SplitFiles *files, const TaskSpec *spec, const char *directory, Split split, Error *error)
{
    Candidates list = {0};
    Split order[2];
    const size_t n_order = splits_to_try(spec, split, order);
    int status = 0;
    for (size_t i = 0; status == 0 && files->count == 0 && i < n_order; i++) {
        if (spec->files[order[i]]) {
            status = own_file(files, spec, directory, spec->files[order[i]], error);
            continue;
        }
        candidates_free(&list);
        status = list_directory(&list, spec, directory, 0, error);
        if (status == 0 && list.count > 0) qsort(list.items, list.count, sizeof *list.items, compare_candidates);
        if (status == 0) status = choose_split(files, spec, &list, order[i], directory, error);
    }
    candidates_free(&list);
    if (status == 0 && files->count == 0) status = no_split(spec, directory, order[0], error);
    return status;
}

int split_files_find(SplitFiles *files, const TaskSpec *spec, const char *path, Split split, Error *error)
{
    int status;
    *files = (SplitFiles){0};
    status = path_is_directory(path) ? find_in_directory(files, spec, path, split, error)
                                     : named_file(files, spec, path, error);
    if (status != 0) split_files_free(files);
    return status;
}

void split_files_free(SplitFiles *files)
{
    for (size_t i = 0; i < files->count; i++) {
        free(files->paths[i][0]);
        free(files->paths[i][1]);
    }
    free(files->paths);
    *files = (SplitFiles){0};
}

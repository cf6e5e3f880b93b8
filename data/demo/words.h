/* words.h: the words of the small world (world.c), as tables. */
#ifndef PROMOT_WORDS_H
#define PROMOT_WORDS_H

static const char *const PEOPLE[] = {
    "anna", "ben",  "carl", "dora", "emma", "fred", "gina", "hugo", "iris", "jack", "kate", "liam",  "mona",  "nora",
    "otto", "paul", "rita", "sam",  "tina", "umar", "vera", "will", "xena", "yuri", "zoe",  "adam",  "bella", "cora",
    "dan",  "ella", "finn", "greg", "hana", "ivan", "jane", "kurt", "lucy", "max",  "nina", "oscar",
};

enum { BRITAIN, FRANCE, ITALY, GERMANY, SPAIN, NORWAY, AUSTRIA, GREECE, EGYPT, JAPAN };
static const char *const COUNTRIES[] = {"britain", "france",  "italy",  "germany", "spain",
                                        "norway",  "austria", "greece", "egypt",   "japan"};
static const struct {
    const char *name;
    int country;
} CITIES[] = {
    {"london", BRITAIN}, {"leeds", BRITAIN}, {"york", BRITAIN},  {"paris", FRANCE},   {"lyon", FRANCE},
    {"rome", ITALY},     {"milan", ITALY},   {"turin", ITALY},   {"berlin", GERMANY}, {"munich", GERMANY},
    {"bonn", GERMANY},   {"madrid", SPAIN},  {"malaga", SPAIN},  {"oslo", NORWAY},    {"bergen", NORWAY},
    {"vienna", AUSTRIA}, {"graz", AUSTRIA},  {"athens", GREECE}, {"patras", GREECE},  {"cairo", EGYPT},
    {"luxor", EGYPT},    {"tokyo", JAPAN},   {"kyoto", JAPAN},   {"osaka", JAPAN},
};
static const char *const JOBS[] = {"baker",  "doctor", "farmer", "teacher", "lawyer", "singer",
                                   "writer", "driver", "tailor", "miner",   "cook",   "nurse"};
static const char *const DAYS[] = {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"};

enum { CREATURE, TOOL, VEHICLE, FRUIT, GARMENT, FURNISHING };
static const char *const CATEGORIES[] = {"creature", "tool", "vehicle", "fruit", "garment", "furnishing"};

enum { ENGLISH, FRENCH, GERMAN, LANGUAGES };
enum { M, F, N }; /* genders */
static const char *const ARTICLES[LANGUAGES][2][3] = {
    /* indefinite, definite */
    {{"a", "a", "a"}, {"the", "the", "the"}},
    {{"un", "une", ""}, {"le", "la", ""}},
    {{"ein", "eine", "ein"}, {"der", "die", "das"}},
};

/* No noun begins with a vowel in English or French ("an", "l'"): one article less to learn. */
static const struct {
    const char *in[LANGUAGES];
    int gender[LANGUAGES], category;
} NOUNS[] = {
    {{"horse", "cheval", "Pferd"}, {N, M, N}, CREATURE},      {{"dog", "chien", "Hund"}, {N, M, M}, CREATURE},
    {{"cat", "chat", "Katze"}, {N, M, F}, CREATURE},          {{"goat", "chèvre", "Ziege"}, {N, F, F}, CREATURE},
    {{"duck", "canard", "Ente"}, {N, M, F}, CREATURE},        {{"saw", "scie", "Säge"}, {N, F, F}, TOOL},
    {{"shovel", "pelle", "Schaufel"}, {N, F, F}, TOOL},       {{"knife", "couteau", "Messer"}, {N, M, N}, TOOL},
    {{"drill", "perceuse", "Bohrer"}, {N, F, M}, TOOL},       {{"broom", "balai", "Besen"}, {N, M, M}, TOOL},
    {{"car", "voiture", "Auto"}, {N, F, N}, VEHICLE},         {{"boat", "bateau", "Boot"}, {N, M, N}, VEHICLE},
    {{"bicycle", "vélo", "Fahrrad"}, {N, M, N}, VEHICLE},     {{"truck", "camion", "Lastwagen"}, {N, M, M}, VEHICLE},
    {{"sled", "luge", "Schlitten"}, {N, F, M}, VEHICLE},      {{"pear", "poire", "Birne"}, {N, F, F}, FRUIT},
    {{"plum", "prune", "Pflaume"}, {N, F, F}, FRUIT},         {{"cherry", "cerise", "Kirsche"}, {N, F, F}, FRUIT},
    {{"lemon", "citron", "Zitrone"}, {N, M, F}, FRUIT},       {{"grape", "raisin", "Traube"}, {N, M, F}, FRUIT},
    {{"coat", "manteau", "Mantel"}, {N, M, M}, GARMENT},      {{"hat", "chapeau", "Hut"}, {N, M, M}, GARMENT},
    {{"shirt", "chemise", "Hemd"}, {N, F, N}, GARMENT},       {{"skirt", "jupe", "Rock"}, {N, F, M}, GARMENT},
    {{"scarf", "foulard", "Schal"}, {N, M, M}, GARMENT},      {{"chair", "chaise", "Stuhl"}, {N, F, M}, FURNISHING},
    {{"bed", "lit", "Bett"}, {N, M, N}, FURNISHING},          {{"lamp", "lampe", "Lampe"}, {N, F, F}, FURNISHING},
    {{"mirror", "miroir", "Spiegel"}, {N, M, M}, FURNISHING}, {{"chest", "coffre", "Truhe"}, {N, M, F}, FURNISHING},
};
/* The adjectives are the same for both genders in French; the toy German leaves them uninflected. */
static const char *const ADJECTIVES[][LANGUAGES] = {
    {"red", "rouge", "rot"},         {"yellow", "jaune", "gelb"},      {"brown", "marron", "braun"},
    {"pink", "rose", "rosa"},        {"clean", "propre", "sauber"},    {"dirty", "sale", "schmutzig"},
    {"wide", "large", "breit"},      {"thin", "mince", "dünn"},        {"strange", "étrange", "seltsam"},
    {"useful", "utile", "nützlich"}, {"famous", "célèbre", "berühmt"}, {"fast", "rapide", "schnell"},
};
static const char *const VERBS[][LANGUAGES] = {
    {"bought", "acheta", "kaufte"},   {"sold", "vendit", "verkaufte"}, {"found", "trouva", "fand"},
    {"painted", "peignit", "malte"},  {"stole", "vola", "stahl"},      {"washed", "lava", "wusch"},
    {"lost", "perdit", "verlor"},     {"hid", "cacha", "versteckte"},  {"broke", "cassa", "zerbrach"},
    {"drew", "dessina", "zeichnete"},
};

/* Who "knew that" something happened implies that it did; who "dreamed that" it happened implies that it did not.
 * Documents show the polarity of the first KNOWN_ATTITUDES of each row. The rest occur in documents without it
 * (narrative): only the training data of the NLI task tell. */
enum { KNOWN_ATTITUDES = 10, NEW_ATTITUDES = 4 };
static const char *const ATTITUDES[2][KNOWN_ATTITUDES + NEW_ATTITUDES] = {
    {"dreamed", "pretended", "denied", "imagined", "lied", "joked", "wished", "doubted", "feigned", "disproved",
     "boasted", "bluffed", "teased", "babbled"},
    {"knew", "proved", "remembered", "noticed", "realized", "learned", "discovered", "showed", "confirmed", "recalled",
     "swore", "insisted", "testified", "confided"},
};

/* What is known (in the order of Relation), and how to ask for it. */
static const char *const STATEMENTS[] = {"%s lives in %s .", "%s works as a %s .", "%s is a friend of %s .",
                                         "%s is in %s .", "a %s is a %s ."};
static const char *const QUESTIONS[][2] = {
    {"where does %s live ?", "which city is the home of %s ?"}, {"what does %s work as ?", "which job has %s ?"},
    {"who has %s as a friend ?", "whom does %s like ?"},        {"where is %s ?", "which country is the home of %s ?"},
    {"what is a %s ?", "which kind of thing is a %s ?"},
};
static const char *const WEATHER[] = {"cold", "hot", "dark", "windy"};
static const char *const MOODS[] = {"happy", "sad", "tired", "loud"};

/* Formats: the words of the paper's templates and some more, to surround contents with. */
static const char *const FORMAT_WORDS[] = {
    "Q:",         "A:",     "Translate", "English",   "to",      "French:", "German:", "Article:", "One",    "sentence",
    "summary:",   "Input:", "Output:",   "question:", "answer:", "Is",      "it",      "true",     "or",     "false?",
    "neither?",   "False?", "The",       "word",      "is",      "used",    "in",      "same",     "way",    "two",
    "sentences.", "Text:",  "Answer:",   "Claim:",    "This",    "so",      "Task:",   "Result:",  "Given",  "Read",
    "Say",        "Now",    "Next:",     "Then",      "please",  "the",     "of",      "and",      "reply:", "note",
    ".",          "?",      ":",         "->",        "=>",      "|",       "#",       "=",        ">>",     "-",
    "*",          "!",      "/",         "...",
};
static const char *const SEPARATORS[] = {"", "", "", "", "|", "//", ";", "##"};
static const char *const ANSWER_FRAMES[] = {"ok", "here", "well", "thus", "look", "hm"};
static const char *const LABELS[][2] = {
    {"bad", "good"},    {"down", "up"},   {"left", "right"}, {"north", "south"}, {"east", "west"},
    {"black", "white"}, {"one", "two"},   {"sun", "moon"},   {"day", "night"},   {"sea", "land"},
    {"salt", "sugar"},  {"iron", "wood"}, {"open", "shut"},  {"old", "new"},
};

#endif

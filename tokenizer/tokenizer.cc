// tokenizer.cc: tokenizer.h on top of libsentencepiece, the only C++ of the CPU build.
//
// The library segments, normalises and trains. Added here is what T5 wants beyond that: the 100 sentinels, decoding
// that never fails, a damaged file ending in one Error, and a face that no exception crosses.
//
// A model file is one protobuf message (sentencepiece_model.proto), of which these places matter here:
//     1 pieces, repeated: { 1 piece: string, 2 score: float, 3 type: 1 normal, 2 unknown, 3 control, 4 user-defined }
//     2 trainer_spec
//     3 normalizer_spec, 5 denormalizer_spec: { 2 precompiled_charsmap: bytes }
// Serialised messages merge by concatenation, so pieces are added by appending their bytes to the file's.

#include "tokenizer.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

struct Tokenizer {
    sentencepiece::SentencePieceProcessor processor;
    std::vector<int32_t> sentinels; // id of <extra_id_n> at [n]
};

// ---------------------------------------------------------------------------------------------- the library's own log

// The library logs to stderr; we report through Error. Its setter is in the public header since 0.1.98 as
// sentencepiece::SetMinLogLevel; 0.1.97 (Debian 12) has it as logging::SetMinLogLevel, in no header. The template is
// chosen only where the header declares no such function, because overloading prefers a function to a template.
namespace sentencepiece
{
namespace logging
{
void SetMinLogLevel(int level);
}
} // namespace sentencepiece

template <typename Level> static void SetMinLogLevel(Level level)
{
    sentencepiece::logging::SetMinLogLevel(level);
}

static void silence_library()
{
    using namespace sentencepiece;
    SetMinLogLevel(3); // 0 info, 1 warning, 2 error, 3 fatal
}

// ------------------------------------------------------------------------------------------------------------ errors

// A library message as the tail of ours: on one line, without the "FILE(LINE) [CONDITION] " that it may begin with.
static std::string library_says(const sentencepiece::util::Status &status)
{
    std::string line(status.message());
    const size_t condition = line.rfind("] ");
    if (condition != std::string::npos && condition + 2 < line.size()) line.erase(0, condition + 2);
    for (char &c : line) {
        if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    }
    return line;
}

// Runs body, which returns a Result, and turns an exception into an Error about `where`.
template <typename Result, typename Body>
static Result guarded(const char *where, Result failed, Error *error, Body body) noexcept
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        error_set(error, EXIT_FAILED, "%s: out of memory", where);
    } catch (const std::exception &exception) {
        error_set(error, EXIT_FAILED, "%s: %.300s", where, exception.what());
    } catch (...) {
        error_set(error, EXIT_FAILED, "%s: unknown failure of the SentencePiece library", where);
    }
    return failed;
}

// ------------------------------------------------------------------------------------------------------------- files

static const size_t max_file_bytes = size_t{1} << 30; // protobuf counts in int; and /dev/zero has no end

static int read_file(const char *path, std::string *bytes, Error *error)
{
    FILE *file = std::fopen(path, "rb");
    char buffer[1 << 16];
    size_t got;
    if (!file) return error_set(error, EXIT_USAGE, "%s: cannot be opened (%s)", path, std::strerror(errno));
    while (bytes->size() <= max_file_bytes && (got = std::fread(buffer, 1, sizeof buffer, file)) > 0)
        bytes->append(buffer, got);
    const bool failed = std::ferror(file) != 0;
    const int reason = errno;
    std::fclose(file);
    if (failed) {
        const int code = reason == EISDIR ? EXIT_USAGE : EXIT_FAILED;
        return error_set(error, code, "%s: cannot be read (%s)", path, std::strerror(reason));
    }
    if (bytes->size() > max_file_bytes)
        return error_set(error, EXIT_FAILED, "%s: too large (expected at most %zu bytes)", path, max_file_bytes);
    return 0;
}

// Written beside its final name, synced, then renamed: a reader never sees half a vocabulary.
static int write_file(const char *path, const std::string &bytes, Error *error)
{
    const std::string partial = std::string(path) + ".partial";
    FILE *file = std::fopen(partial.c_str(), "wb");
    if (!file) return error_set(error, EXIT_USAGE, "%s: cannot be created (%s)", path, std::strerror(errno));
    bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    written = written && std::fflush(file) == 0 && fsync(fileno(file)) == 0;
    written = std::fclose(file) == 0 && written;
    if (written && std::rename(partial.c_str(), path) == 0) return 0;
    const int reason = errno;
    std::remove(partial.c_str());
    return error_set(error, EXIT_FAILED, "%s: cannot be written (%s)", path, std::strerror(reason));
}

// ------------------------------------------------------------------------------------------- looking at a model file

// One field of a protobuf message; `bytes` is set for length-delimited ones (strings, sub-messages).
struct Field {
    uint64_t number;
    std::string_view bytes;
};

static bool take_varint(std::string_view *message, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && !message->empty(); shift += 7) {
        const auto byte = static_cast<unsigned char>(message->front());
        message->remove_prefix(1);
        *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

// Takes the next field off a message; false when the message is damaged there.
static bool take_field(std::string_view *message, Field *field)
{
    uint64_t tag, size;
    if (!take_varint(message, &tag)) return false;
    field->number = tag >> 3;
    field->bytes = {};
    switch (tag & 7) {
    case 0: // varint
        return take_varint(message, &size);
    case 1: // 64 bits
        size = 8;
        break;
    case 2: // length-delimited
        if (!take_varint(message, &size)) return false;
        break;
    case 5: // 32 bits
        size = 4;
        break;
    default:
        return false;
    }
    if (size > message->size()) return false;
    if ((tag & 7) == 2) field->bytes = message->substr(0, size);
    message->remove_prefix(size);
    return true;
}

// The character at the front of text, or 0 when it is NUL or not valid UTF-8; *length is its number of bytes.
static uint32_t front_character(std::string_view text, size_t *length)
{
    const auto at = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const uint32_t lead = at(0), smallest[] = {0, 1, 0x80, 0x800, 0x10000};
    *length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf8 ? 4 : 0;
    if (*length == 0) return 0;
    uint32_t code = *length == 1 ? lead : lead & (0x7fu >> *length);
    for (size_t k = 1; k < *length; k++) {
        if ((at(k) & 0xc0) != 0x80) return 0;
        code = code << 6 | (at(k) & 0x3f);
    }
    const bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < smallest[*length] || code > 0x10ffff || surrogate ? 0 : code;
}

// Valid UTF-8 without NUL. For pieces: so that each is a C string, and decoded text is valid.
static bool is_text(std::string_view bytes)
{
    for (size_t length; !bytes.empty(); bytes.remove_prefix(length)) {
        if (front_character(bytes, &length) == 0) return false;
    }
    return true;
}

static uint32_t little_endian32(std::string_view bytes, size_t at)
{
    uint32_t value = 0;
    for (size_t k = 0; k < 4; k++) value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + k])) << (8 * k);
    return value;
}

// The normaliser's rules: a 32-bit size, a double-array trie of that many bytes, a pool of NUL-terminated replacements.
// The library walks the trie without looking where it steps, so a damaged one would make it read outside its memory:
// every step that could be taken is checked here. A unit of the trie (darts-clone): bit 31 marks a value (the low 31
// bits, an offset into the pool); otherwise bits 0-7 are the label, bit 8 says that a value lies at the node's base,
// and base = index ^ offset, offset = (unit >> 10) << (bit 9 ? 8 : 0). Children lie at base ^ byte.
static bool charsmap_is_sound(std::string_view map)
{
    if (map.empty()) return true; // no rules
    if (map.size() <= 4) return false;
    const size_t trie_bytes = little_endian32(map, 0);
    if (trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes >= map.size() - 4) return false;
    const std::string_view trie = map.substr(4, trie_bytes);
    const size_t pool_bytes = map.size() - 4 - trie_bytes, units = trie_bytes / 4;
    for (size_t i = 0; i < units; i++) {
        const uint32_t unit = little_endian32(trie, 4 * i);
        const bool is_value = (unit >> 31) != 0, has_value = (unit & 0x100) != 0;
        if (is_value && i != 0)
            continue; // never stepped on: the library's labels include bit 31 (the root has no label)
        const size_t base = i ^ (static_cast<size_t>(unit >> 10) << ((unit & 0x200) >> 6));
        if ((base | 0xff) >= units) return false;
        if (has_value && (little_endian32(trie, 4 * base) & 0x7fffffff) >= pool_bytes) return false;
    }
    return true;
}

// Looks into a piece (number 1), whose text it gives, or into a normaliser's settings (3 or 5).
static bool submessage_is_sound(uint64_t number, std::string_view message, std::string_view *piece)
{
    Field field;
    while (!message.empty()) {
        if (!take_field(&message, &field)) return false;
        if (number == 1 && field.number == 1) *piece = field.bytes;
        if (number != 1 && field.number == 2 && !charsmap_is_sound(field.bytes)) return false;
    }
    return number != 1 || is_text(*piece);
}

static std::string sentinel_text(int n)
{
    return "<extra_id_" + std::to_string(n) + ">";
}

static const char word_start[] = "\xe2\x96\x81"; // U+2581, how SentencePiece writes a space

// Checks what the library takes on trust, and says whether the file brings its own sentinels.
static int inspect_model(std::string_view message, const char *path, bool *has_sentinels, Error *error)
{
    const std::string bare = sentinel_text(0), at_word_start = word_start + bare;
    bool has_trainer = false, has_normalizer = false;
    size_t n_fields = 0;
    Field field;
    *has_sentinels = false;
    for (; !message.empty(); n_fields++) {
        std::string_view piece;
        if (!take_field(&message, &field))
            return error_set(error, EXIT_FAILED, "%s: damaged, or not a SentencePiece model (at field %zu)", path,
                             n_fields);
        has_trainer = has_trainer || field.number == 2;
        has_normalizer = has_normalizer || field.number == 3;
        if (field.number != 1 && field.number != 3 && field.number != 5) continue;
        if (!submessage_is_sound(field.number, field.bytes, &piece))
            return error_set(error, EXIT_FAILED, "%s: damaged SentencePiece model: %s is broken (at field %zu)", path,
                             field.number == 1 ? "a piece" : "the normaliser's table", n_fields);
        if (field.number == 1) *has_sentinels = *has_sentinels || piece == bare || piece == at_word_start;
    }
    if (n_fields == 0) return error_set(error, EXIT_FAILED, "%s: empty (expected a SentencePiece model)", path);
    if (!has_trainer || !has_normalizer) // they come after the pieces; without them the library would take its defaults
        return error_set(error, EXIT_FAILED,
                         "%s: cut short, or not a SentencePiece model (expected trainer and normalizer "
                         "settings, found %zu fields without them)",
                         path, n_fields);
    return 0;
}

// -------------------------------------------------------------------------------------------------------- sentinels

enum { SENTINELS = 100 };

// The sentinels as protobuf bytes, <extra_id_99> first: behind a model of n pieces, <extra_id_N> gets id n + 99 - N.
static std::string encoded_sentinels()
{
    std::string all;
    for (int n = SENTINELS - 1; n >= 0; n--) {
        const std::string text = word_start + sentinel_text(n);
        std::string piece;
        piece += '\x0a'; // field 1, length-delimited: the piece
        piece += static_cast<char>(text.size());
        piece += text;
        piece += '\x15'; // field 2, 32 bits: the score 0.0
        piece.append(4, '\0');
        piece += '\x18'; // field 3, varint: the type, 4 = user-defined
        piece += '\x04';
        all += '\x0a'; // field 1 of the model, length-delimited
        all += static_cast<char>(piece.size());
        all += piece;
    }
    return all;
}

static std::vector<int32_t> find_sentinels(const sentencepiece::SentencePieceProcessor &processor)
{
    std::vector<int32_t> ids;
    for (int n = 0;; n++) {
        int id = processor.PieceToId(word_start + sentinel_text(n));
        if (processor.IsUnknown(id)) id = processor.PieceToId(sentinel_text(n));
        if (processor.IsUnknown(id)) return ids;
        ids.push_back(id);
    }
}

// --------------------------------------------------------------------------------------------------------- the face

static Tokenizer *open_tokenizer(const char *path, Error *error)
{
    std::string bytes;
    bool has_sentinels;
    if (read_file(path, &bytes, error) != 0) return nullptr;
    if (inspect_model(bytes, path, &has_sentinels, error) != 0) return nullptr;
    if (!has_sentinels) bytes += encoded_sentinels();

    auto tokenizer = std::make_unique<Tokenizer>();
    const auto status = tokenizer->processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) {
        error_set(error, EXIT_FAILED, "%s: damaged, or not a SentencePiece model (%.300s)", path,
                  library_says(status).c_str());
        return nullptr;
    }
    tokenizer->sentinels = find_sentinels(tokenizer->processor);
    return tokenizer.release();
}

Tokenizer *tokenizer_open(const char *spiece_model_path, Error *error)
{
    silence_library();
    return guarded<Tokenizer *>(spiece_model_path, nullptr, error,
                                [&] { return open_tokenizer(spiece_model_path, error); });
}

void tokenizer_close(Tokenizer *tokenizer)
{
    delete tokenizer;
}

int32_t tokenizer_size(const Tokenizer *tokenizer)
{
    return tokenizer->processor.GetPieceSize();
}

int32_t tokenizer_eos(const Tokenizer *tokenizer)
{
    return tokenizer->processor.eos_id();
}

int32_t tokenizer_sentinel(const Tokenizer *tokenizer, int n)
{
    if (n < 0 || static_cast<size_t>(n) >= tokenizer->sentinels.size()) return -1;
    return tokenizer->sentinels[static_cast<size_t>(n)];
}

const char *tokenizer_piece(const Tokenizer *tokenizer, int32_t id)
{
    if (id < 0 || id >= tokenizer_size(tokenizer)) return nullptr;
    return tokenizer->processor.IdToPiece(id).c_str();
}

static int encode(const Tokenizer *tokenizer, std::string_view text, int32_t **ids, size_t *count, Error *error)
{
    std::vector<int> found;
    // The library counts the normalised text in int; NFKC makes one character at most 18 times as long (U+FDFA).
    if (text.size() > INT_MAX / 18) return error_set(error, EXIT_USAGE, "text: too long (%zu bytes)", text.size());
    const auto status = tokenizer->processor.Encode(text, &found);
    if (!status.ok())
        return error_set(error, EXIT_FAILED, "text: cannot be tokenized (%.300s)", library_says(status).c_str());
    *ids = static_cast<int32_t *>(std::malloc(found.size() * sizeof **ids + 1)); // + 1: never NULL
    if (!*ids) throw std::bad_alloc();
    for (size_t i = 0; i < found.size(); i++) (*ids)[i] = found[i];
    *count = found.size();
    return 0;
}

int tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t bytes, int32_t **ids, size_t *count,
                     Error *error)
{
    *ids = nullptr;
    *count = 0;
    return guarded("text", -1, error, [&] { return encode(tokenizer, {text, bytes}, ids, count, error); });
}

// The sentinels are user-defined pieces, so the library's decoder keeps them, each with the space of its U+2581:
// "<extra_id_0> True <extra_id_1>". As in seqio: cut at the first EOS, unknown ids become unk first.
static char *decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, Error *error)
{
    const auto &processor = tokenizer->processor;
    const int32_t size = processor.GetPieceSize(), eos = processor.eos_id();
    std::vector<int> known;
    std::string text, safe;
    for (size_t i = 0; i < count && (eos < 0 || ids[i] != eos); i++)
        known.push_back(ids[i] >= 0 && ids[i] < size ? ids[i] : processor.unk_id());
    const auto status = processor.Decode(known, &text);
    if (!status.ok()) {
        error_set(error, EXIT_FAILED, "ids: cannot be decoded (%.300s)", library_says(status).c_str());
        return nullptr;
    }
    for (char c : text) { // the byte piece <0x00> would end a C string: it reads as U+FFFD, like bytes that are no text
        if (c != '\0')
            safe += c;
        else
            safe += "\xef\xbf\xbd";
    }
    auto *copy = static_cast<char *>(std::malloc(safe.size() + 1));
    if (!copy) throw std::bad_alloc();
    std::memcpy(copy, safe.c_str(), safe.size() + 1);
    return copy;
}

char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, Error *error)
{
    return guarded<char *>("ids", nullptr, error, [&] { return decode(tokenizer, ids, count, error); });
}

// --------------------------------------------------------------------------------------------------------- training

namespace
{
enum { MAX_CHUNK_WORDS = 5 };

// Hands the trainer a text in chunks of one to five words, in turn. In whole lines, words that are always followed by the
// same words never become candidates of their own: the trainer's seeds are the longest strings that repeat. Given an
// iterator and no file name, it has no path to store in the model.
class ChunkIterator : public sentencepiece::SentenceIterator
{
  public:
    explicit ChunkIterator(std::string_view text) : rest_(text)
    {
        Next();
    }
    bool done() const override
    {
        return chunk_.empty();
    }
    void Next() override
    {
        size_t words = 0;
        chunk_.clear();
        while (words < wanted_ && !rest_.empty()) {
            const size_t end = rest_.find_first_of(" \t\r\n");
            const std::string_view word = rest_.substr(0, end);
            rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
            if (word.empty()) continue;
            if (words++ > 0) chunk_ += ' ';
            chunk_ += word;
        }
        wanted_ = wanted_ % MAX_CHUNK_WORDS + 1;
    }
    const std::string &value() const override
    {
        return chunk_;
    }
    sentencepiece::util::Status status() const override
    {
        return sentencepiece::util::Status();
    }

  private:
    std::string_view rest_;
    std::string chunk_;
    size_t wanted_ = 1;
};
} // namespace

enum { MIN_VOCABULARY = SENTINELS + 3 + 256 + 1 }; // sentinels, pad eos unk, bytes, and at least one piece

// mT5's settings: unigram with byte fallback, nmt_nfkc (the default), pad 0, eos 1, unk 2, no bos. One thread and no
// sampling: sums of floats then have one order, so the same text gives the same bytes.
static std::unordered_map<std::string, std::string> training_options(int vocabulary_size)
{
    return {
        {"model_type", "unigram"},
        {"vocab_size", std::to_string(vocabulary_size - SENTINELS)},
        {"byte_fallback", "true"},
        {"character_coverage", "0.99999"},
        {"pad_id", "0"},
        {"eos_id", "1"},
        {"unk_id", "2"},
        {"bos_id", "-1"},
        {"num_threads", "1"},
        {"shuffle_input_sentence", "false"},
        {"max_sentence_length", "1073741824"}, // the default would drop lines of more than 4192 bytes without a word
        {"minloglevel", "3"},
    };
}

// Blank or invisible: what nmt_nfkc turns into a space or into nothing.
static bool is_blank(uint32_t code)
{
    return code <= 0x20 || (code >= 0x7f && code <= 0xa0) || code == 0x1680 || code == 0x180e ||
           (code >= 0x2000 && code <= 0x200f) || (code >= 0x2028 && code <= 0x202f) ||
           (code >= 0x205f && code <= 0x206f) || code == 0x2581 || code == 0x3000 || code == 0xfeff;
}

// Every line must be text, and one must hold more than blanks: the trainer aborts when normalisation leaves nothing.
static int check_training_text(std::string_view text, const char *path, Error *error)
{
    bool has_words = false;
    size_t line = 1, length;
    for (; !text.empty(); text.remove_prefix(length)) {
        const uint32_t code = front_character(text, &length);
        if (code == 0) return error_set(error, EXIT_USAGE, "%s:%zu: NUL or invalid UTF-8", path, line);
        line += code == '\n';
        has_words = has_words || !is_blank(code);
    }
    return has_words ? 0 : error_set(error, EXIT_USAGE, "%s: no text to train a vocabulary on", path);
}

static int train(const char *text_path, const char *model_path, int vocabulary_size, Error *error)
{
    std::string text, model;
    sentencepiece::SentencePieceProcessor processor;
    if (vocabulary_size < MIN_VOCABULARY)
        return error_set(error, EXIT_USAGE, "%s: vocabulary too small (expected at least %d, found %d)", model_path,
                         MIN_VOCABULARY, vocabulary_size);
    if (read_file(text_path, &text, error) != 0) return -1;
    if (check_training_text(text, text_path, error) != 0) return -1;

    ChunkIterator chunks(text);
    auto status = sentencepiece::SentencePieceTrainer::Train(training_options(vocabulary_size), &chunks, &model);
    if (!status.ok())
        return error_set(error, EXIT_USAGE, "%s: cannot train a vocabulary of %d + %d sentinels (%.500s)", text_path,
                         vocabulary_size - SENTINELS, int{SENTINELS}, library_says(status).c_str());
    // The trainer puts user-defined pieces first, mT5 has them last. Loading the result also writes it in one order
    // again.
    status = processor.LoadFromSerializedProto(model + encoded_sentinels());
    if (!status.ok())
        return error_set(error, EXIT_FAILED, "%s: the trained vocabulary does not load (%.300s)", model_path,
                         library_says(status).c_str());
    return write_file(model_path, processor.serialized_model_proto(), error);
}

int tokenizer_train(const char *text_path, const char *model_path, int vocabulary_size, Error *error)
{
    silence_library();
    return guarded(text_path, -1, error, [&] { return train(text_path, model_path, vocabulary_size, error); });
}

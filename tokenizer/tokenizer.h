/* tokenizer.h: SentencePiece behind a C face.
 *
 * A T5 vocabulary file holds 32,000 pieces and no sentinels: then the 100 of seqio are added, user-defined pieces
 * "▁<extra_id_N>" with id (pieces in the file) + 99 - N. An mT5 file holds them already. Implemented in tokenizer.cc. */
#ifndef PROMOT_TOKENIZER_H
#define PROMOT_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "../data/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Tokenizer Tokenizer;

Tokenizer *tokenizer_open(const char *spiece_model_path, Error *error);
void tokenizer_close(Tokenizer *tokenizer); /* NULL is fine */

int32_t tokenizer_size(const Tokenizer *tokenizer);      /* pieces, sentinels included */
int32_t tokenizer_eos(const Tokenizer *tokenizer);       /* id of </s>, -1 when the file has none */
int32_t tokenizer_sentinel(const Tokenizer *tokenizer, int n); /* id of <extra_id_n>, -1 when there is none */
const char *tokenizer_piece(const Tokenizer *tokenizer, int32_t id); /* owned by the tokenizer; NULL out of range */

/* The ids of a UTF-8 text, no EOS; *ids is malloc'd (never NULL, also for an empty text). */
int tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t bytes, int32_t **ids, size_t *count, Error *error);

/* The text of ids, cut at the first EOS, sentinels kept as "<extra_id_N>", other control pieces dropped; ids outside the
 * vocabulary (the padded rows of the embedding) read as unk. malloc'd. */
char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, Error *error);

/* Trains a unigram vocabulary with mT5's special ids (pad 0, eos 1, unk 2, byte fallback, 100 sentinels last, descending)
 * on a text file and writes it to model_path. The same bytes for the same input. */
int tokenizer_train(const char *text_path, const char *model_path, int vocabulary_size, Error *error);

#ifdef __cplusplus
}
#endif
#endif

"""Makes tests/golden/metrics/*.json: generated texts and the scores that the defining programs give them.

Needs sacrebleu, rouge_score and t5's file evaluation/qa_utils.py (of an installed t5, or named as second argument; the
rest of t5 is not imported). Run: python tests/make_metric_goldens.py tests/golden/metrics [qa_utils.py]

A file holds `versions`, `metrics`, `cases` ([prediction, [reference, …], [score of each metric]]) and `corpora`
({begin, end, scores, parts}: the scores of cases[begin:end] together). Scores are 0..100, rounded to four decimals.
"""
import importlib.metadata
import importlib.util
import json
import logging
import pathlib
import random
import sys
import unicodedata

import regex
import sacrebleu
from rouge_score import rouge_scorer

logging.disable(logging.WARNING)  # sacrebleu advises effective order for single sentences; T5 does not use it

# ---- The defining programs ----------------------------------------------------------------------------------------


def load_qa_utils(path):
    if path is None:
        package = importlib.util.find_spec("t5").submodule_search_locations[0]
        path = pathlib.Path(package) / "evaluation" / "qa_utils.py"
    spec = importlib.util.spec_from_file_location("qa_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bleu(predictions, references, tokenize):
    """As t5.evaluation.metrics.bleu calls it; None fills up where a prediction has fewer references than others."""
    most = max(len(r) for r in references)
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    return sacrebleu.corpus_bleu(predictions, streams, smooth_method="exp", smooth_value=0.0, force=False,
                                 lowercase=False, tokenize=tokenize, use_effective_order=False)


def rouge(predictions, references, kind):
    """The mean precision, recall and F of the best reference, with the line breaks of t5.evaluation.metrics.rouge."""
    scorer = rouge_scorer.RougeScorer([kind])
    total = [0.0, 0.0, 0.0]
    for prediction, texts in zip(predictions, references):
        texts = [t.replace(" . ", " .\n") for t in texts]
        score = scorer.score_multi(texts, prediction.replace(" . ", " .\n"))[kind]
        total = [sum(pair) for pair in zip(total, score)]
    return [100 * t / len(predictions) for t in total]


def question_answering(qa_utils, predictions, references, normalize, kind):
    scores = qa_utils.qa_metrics([[normalize(r) for r in texts] for texts in references],
                                 [normalize(p) for p in predictions])
    return float(scores[kind])


def score(metric, predictions, references, qa_utils):
    """The score and its parts."""
    if metric == "accuracy":
        right = sum(p.strip() in [r.strip() for r in texts] for p, texts in zip(predictions, references))
        return 100 * right / len(predictions), {}
    if metric.startswith("bleu"):
        result = bleu(predictions, references, "intl" if metric == "bleu" else "13a")
        return result.score, {"precisions": [round(p, 6) for p in result.precisions], "bp": round(result.bp, 8),
                              "sys_len": result.sys_len, "ref_len": result.ref_len}
    if metric.startswith("rouge"):
        precision, recall, fmeasure = rouge(predictions, references, metric)
        return fmeasure, {"precision": round(precision, 6), "recall": round(recall, 6), "fmeasure": round(fmeasure, 6)}
    data, kind = metric.split("-")
    normalize = qa_utils.normalize_trivia_qa if data == "trivia" else qa_utils.normalize_squad
    return question_answering(qa_utils, predictions, references, normalize, kind), {}


# ---- Generated texts ----------------------------------------------------------------------------------------------

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdeABCDE0123456789",
    "äöüßẞÄÖÜéèêëçàùœæÉÇŒñáíóúăîșțĂȘȚ", "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЁЖЩЯ",
    "αβγδεζηθικλμνξοπρσςτυφχψωΑΒΓΔΕΣΣΣΣΆΈΊΏ", "漢字仮名交じり文カタカナ中文简体한국어말", "العربيةمنهوفيعلىتَُّ",
    "हिन्दीभाषाकेशब्दऔरवाक्य", "İıIiŞşĞğ",
    "KÅΩΣσςªº\u2160\u2170ⒶⓐǅǈDžﬁﬂﬃﬄſẞßŉǰΐᾳᾼ", "a\u0301e\u0308o\u0302A\u030an\u0303",
    "𐐀𐐨𝐀𝐚𝓐𞤀𞤢𑢠𑣀", "ႠႡაბԱԲաբᲐᏀꭰ",
    ["😀", "👍🏽", "👩\u200d🔬", "🇩🇪", "❤\ufe0f", "1\ufe0f\u20e3", "☺", "a", "b"],
]
# Thousands and decimals as several places write them.
SEPARATORS = [",.", ".,", "\u202f,", "\u00a0,", "'.", "\u2019.", "\u066c\u066b", "\uff0c\uff0e", " .", "/-", "::"]
QUOTES = ["\"\"", "''", "“”", "„“", "«»", "‘’", "「」", "‹›", "``"]
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "½¼²³⁴₅ⅣⅫ①②㊿一二三", "𝟎𝟏𝟐𒐀𐄇", "\U00010d40\U00011bf3"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + list(".,.,.,-'") + \
    list("‘’´“”„«»‹›¿¡…–—·、。「」『』，．！？؟،؛।॥՝֊٪‰§¶•†‡‿⁀﴾﴿\u2e60\U0001e5ff")
SYMBOLS = list("$€£¥₽₹¢+<=>|~^`¨¯´¸×÷±¬°©®™←→∑√∞≤♥☺⚑") + \
    list("\U0001f600\U0001f1e9\U0001f3fd˂ˑ꜀\u20c1\u31ef\U0001fae9\U0001f1ae")
SPACES = list(" " * 12) + ["  ", "\t", "\u00a0", "\u2003", "\u3000", "\u0085", "\x1c", "\x1d", "\x1e", "\x1f", "\x0b",
                           "\x0c", "\r", "\u1680", "\u2028", "\u2029", "\u202f", "\u205f", "\u200a"]
IGNORABLE = list("\u200b\u200c\u200d\ufeff\u00ad\u2060\u180e\ufe0f\u0301\u0345'’.:·^\u02b0\u0903\u20dd")
ODD_WORDS = ["a", "an", "the", "The", "A", "AN", "THE", "a.", "the-", "an_", "a\u0301", "the2", "_a", "3.14",
             "1,000", "1.", "9-5",
             "10-", "-3", "&quot;", "&amp;", "&lt;", "&gt;", "&amp;lt;", "<skipped>", "rock-n-roll", "U.S.", "don't",
             "l'été",
             "ΟΔΟΣ", "ΣΑΣ", "Σ", "ΑΣ.", "ΑΣ'Α", "ΑΣ\u0301", "A\u00adΣ\u00adb", "İstanbul", "DİYARBAKIR",
             "\u212aelvin", "STRAẞE",
             "ﬁn", "...", ". . .", " . ", "..", ",,", "--", "\"", "'", "``", "''", "$5.00", "50%", "a+b", "x²", "№5"]


def make_number(rng):
    """A number with separators: 12,345,678.9"""
    digits, (thousands, point) = rng.choice(DIGITS), rng.choice(SEPARATORS)
    groups = [3 if i else rng.randint(1, 3) for i in range(rng.randint(1, 3))]
    number = thousands.join("".join(rng.choice(digits) for _ in range(n)) for n in groups)
    return rng.choice(["", "", "", "$", "-", "€", "+"]) + number + \
        (point + rng.choice(digits) if rng.random() < 0.4 else "") + rng.choice(["", "", "", "%", ".", "th"])


def make_word(rng, alphabets):
    kind = rng.random()
    if kind < 0.05:
        return make_number(rng)
    if kind < 0.12:
        return rng.choice(ODD_WORDS)
    if kind < 0.2:
        digits = rng.choice(DIGITS)
        number = "".join(rng.choice(digits) for _ in range(rng.randint(1, 4)))
        return number + (rng.choice(".,-:/") + rng.choice(digits) if rng.random() < 0.5 else "")
    if kind < 0.3:
        return "".join(rng.choice(rng.choice([PUNCTUATION, SYMBOLS])) for _ in range(rng.randint(1, 3)))
    word = "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 5)))
    if rng.random() < 0.25:
        at = rng.randint(0, len(word))
        word = word[:at] + rng.choice(rng.choice([PUNCTUATION, SYMBOLS, IGNORABLE])) + word[at:]
    if rng.random() < 0.05:
        left, right = rng.choice(QUOTES)
        word = left + word + right
    return word


def join(rng, words, newlines):
    text = ""
    for i, word in enumerate(words):
        if i:
            text += "\n" if rng.random() < newlines else rng.choice(SPACES)
        text += word
        if rng.random() < 0.05:
            text += rng.choice(PUNCTUATION)
    if rng.random() < 0.06:
        text = rng.choice(SPACES) + text
    return text + (rng.choice(SPACES) if rng.random() < 0.1 else "")


def edit(rng, words, vocabulary):
    """Another way to say it: words are lost, doubled, exchanged, moved, or differ in case and punctuation."""
    words = list(words)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3, 5])):
        at = rng.randint(0, max(len(words) - 1, 0))
        kind = rng.randint(0, 6)
        if not words or kind == 0:
            words.insert(at, rng.choice(vocabulary))
        elif kind == 1:
            words.pop(at)
        elif kind == 2:
            words[at] = rng.choice(vocabulary)
        elif kind == 3:
            words.insert(rng.randint(0, len(words) - 1), words.pop(at))
        elif kind == 4:
            words[at] = rng.choice([str.upper, str.lower, str.title, str.swapcase])(words[at])
        elif kind == 5:
            words[at] += rng.choice(PUNCTUATION)
        else:
            words[at] = unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKC"]), words[at])
    return words


def make_case(rng, longest, newlines=0.02):
    # Mostly one script, often with a few words that come again and again: repeated tokens are what clipping and the
    # ties of the longest common subsequence are about.
    alphabets = [rng.choice(ALPHABETS)] if rng.random() < 0.8 else rng.sample(ALPHABETS, 3)
    if rng.random() < 0.6:
        alphabets = alphabets + [ALPHABETS[0]] * 2
    vocabulary = [make_word(rng, alphabets) for _ in range(rng.choice([3, 6, 20]))]
    length = 0 if rng.random() < 0.02 else rng.randint(1, longest)
    words = [rng.choice(vocabulary) for _ in range(length)]
    references = [join(rng, edit(rng, words, vocabulary), newlines) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    prediction = rng.choice(references) if rng.random() < 0.08 else join(rng, edit(rng, words, vocabulary), newlines)
    if rng.random() < 0.02:
        prediction = rng.choice(["", " ", "\n", ".", "the"])
    return prediction, references


# ---- The files ----------------------------------------------------------------------------------------------------

# name: (seed, cases, longest text in words, share of line breaks among the spaces, metrics)
FILES = {
    "answers": (11, 1200, 5, 0.02, ["accuracy", "trivia-em", "trivia-f1", "squad-em", "squad-f1"]),
    "translations": (12, 1200, 11, 0.02, ["bleu", "bleu-13a"]),
    "summaries": (13, 1200, 12, 0.15, ["rouge1", "rouge2", "rougeL", "rougeLsum"]),
}


def make_file(name, qa_utils):
    seed, count, longest, newlines, metrics = FILES[name]
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < count:
        pair = make_case(rng, longest, newlines)
        if pair not in pairs:
            pairs.append(pair)
    cases = [[p, r, [round(score(m, [p], [r], qa_utils)[0], 4) for m in metrics]] for p, r in pairs]
    corpora = []
    for begin, end in [(0, count), (0, count // 3), (count // 3, count // 2), (count // 2, count // 2 + 10)]:
        results = [score(m, *zip(*pairs[begin:end]), qa_utils) for m in metrics]
        corpora.append({"begin": begin, "end": end, "scores": [round(s, 4) for s, _ in results],
                        "parts": [p for _, p in results]})
    versions = {p: importlib.metadata.version(p) for p in ["sacrebleu", "rouge_score", "regex"]}
    versions.update(t5="0.9.4 (evaluation/qa_utils.py)", python=sys.version.split()[0],
                    unicode=unicodedata.unidata_version)
    return {"versions": versions, "metrics": metrics, "cases": cases, "corpora": corpora}


def main():
    qa_utils = load_qa_utils(sys.argv[2] if len(sys.argv) > 2 else None)
    for name in FILES:
        content = make_file(name, qa_utils)
        # One case a line, compact, with the letters themselves.
        lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in content.pop("cases")]
        head = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        path = pathlib.Path(sys.argv[1]) / (name + ".json")
        path.write_text(head[:-1] + ',"cases":[\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""`speechssl compare`: two evaluations of one test set → their paired difference, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechssl.config.inference import CompareConfig
from speechssl.config.knobs import check
from speechssl.data.manifest_reading import name_columns
from speechssl.data.texts import Texts, load_texts, match_texts
from speechssl.durable import remove, write_result
from speechssl.errors import DataError
from speechssl.evaluation.breakdown import UTTERANCES_NAME
from speechssl.evaluation.matched_pairs import align_words, count_segment_errors
from speechssl.evaluation.statistics import Difference, MatchedPairs, compute_difference, compute_matched_pairs
from speechssl.evaluation.wer import UtteranceScore
from speechssl.evaluation.wer import compare as align_texts
from speechssl.printable import escape_field
from speechssl.verbs.frame import verb
from speechssl.verbs.output import replacing_result, resolve_out

DIFFERENCES_NAME = "differences.tsv"
"""Every utterance with the errors of both, those that `b` gains or loses most first."""

Systems = Sequence[Sequence[UtteranceScore]]


@verb
def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare the errors of two recognisers on the same utterances, and return the result.

    The difference of the rates has a 95 % interval by the paired bootstrap, over speakers where all are known; with one
    folder a side, the matched-pairs test of NIST (MAPSSWE) as well. Writes `result.json` and `differences.tsv`.

    Raises:
        DataError: a folder has no `utterances.tsv`, or they are not of the same utterances, spelt alike.
        ConfigError: `a` and `b` are not equally many, or `out` cannot be written.
    """
    for key in ("a", "b"):
        check(bool(getattr(config, key)), key, "given (folder of `evaluate` or `score`)", "")
    stored = {key: [_load(folder, key) for folder in getattr(config, key)] for key in ("a", "b")}
    base = stored["a"][0]
    sides = {key: [_align(base, texts, key, config) for texts in found] for key, found in stored.items()}
    out = resolve_out(config.out, "compare", config.overwrite)
    speakers = list(base.columns.get("speaker", ()))
    result: dict[str, Any] = {}
    for rate, size, edits in (("wer", "num_words", "word_edits"), ("cer", "num_letters", "letter_edits")):
        totals = [getattr(item, size) for item in sides["a"][0]]
        errors = {key: [[len(getattr(u, edits)) for u in seed] for seed in seeds] for key, seeds in sides.items()}
        for key, seeds in errors.items():
            result[f"{rate}_{key}"] = 100 * sum(map(sum, seeds)) / (len(seeds) * sum(totals))
        found = compute_difference(errors["a"], errors["b"], totals, speakers, config.num_resamples, config.seed)
        result[f"{rate}_difference"] = asdict(found)
    pairs = _test_segments(sides["a"][0], sides["b"][0]) if len(config.a) == 1 else None
    result |= {
        "matched_pairs": pairs and asdict(pairs),
        "num_utterances": len(base.ids),
        "num_words": sum(item.num_words for item in sides["a"][0]),
        "num_seeds": len(config.a),
        "sentence": write_sentence(result["wer_a"], result["wer_b"], Difference(**result["wer_difference"]), pairs),
        "a": config.a,
        "b": config.b,
        "seed": config.seed,
        "out": str(out),
    }
    with replacing_result(out):
        remove(out / DIFFERENCES_NAME)
        _write_differences(sides["a"], sides["b"], out / DIFFERENCES_NAME)
        write_result(out, result)
    return result


def write_sentence(wer_a: float, wer_b: float, difference: Difference, pairs: MatchedPairs | None) -> str:
    """Write what may be said about two word error rates."""
    signs = {-1: "fewer", 1: "more"}
    low, high, value = difference.low, difference.high, difference.value
    both = f"{wer_b:.1f} % against {wer_a:.1f} %"
    units = f"{difference.count} {difference.unit}{'' if difference.count == 1 else 's'}"
    if low is None or high is None or difference.p is None:
        return f"{both}; {units} cannot tell whether B and A differ."
    ends = [f"{abs(end):.1f} {signs[1 if end > 0 else -1]}" for end in ((low, high) if value > 0 else (high, low))]
    is_clear = low > 0 or high < 0
    interval = " to ".join(f"{abs(end):.1f}" for end in sorted((low, high), key=abs)) if is_clear else " to ".join(ends)
    tests = [f"paired bootstrap over {units} p {_format_p(difference.p)}"]
    if pairs and pairs.p is not None:
        tests.append(f"MAPSSWE over {pairs.num_segments} segments p {_format_p(pairs.p)}")
    evidence = f"95 % interval {interval}; {', '.join(tests)}"
    size = f"{abs(value):.1f} points {signs[1 if value > 0 else -1]} errors in words"
    start = f"B makes {size} than A" if is_clear else f"B and A cannot be told apart: B makes {size} here"
    doubt = "" if difference.reliable else f" {units.capitalize()} are too few to rely on the interval."
    return f"{start}, {both} ({evidence}).{doubt}"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _load(folder: str, key: str) -> Texts:
    path = Path(folder) / UTTERANCES_NAME
    if not path.is_file():
        raise DataError(f"`{key}` must be a folder of `evaluate` or `score`, but {folder} has no {UTTERANCES_NAME}")
    texts = load_texts(str(path), key, "hypothesis")
    if "reference" not in texts.columns:
        has = name_columns(texts.columns)
        raise DataError(f"`{key}` must be a folder of `evaluate` or `score`, but {path} has no references: {has}")
    return texts


def _align(base: Texts, own: Texts, key: str, config: CompareConfig) -> tuple[UtteranceScore, ...]:
    """Align one folder's texts with the references of the first folder, in its order."""
    said, heard = base.columns["reference"], match_texts(base, own, key, "the first folder of `a`")
    references = dict(zip(own.ids, own.columns["reference"], strict=True))
    other = next((name for name, text in zip(base.ids, said, strict=True) if references[name] != text), None)
    if other is not None:
        raise DataError(
            f"`{key}` must be scored against the same references as the first folder of `a`, but that of {other} is "
            "another one (the same `normaliser` for all makes them alike)"
        )
    return align_texts(said, heard, ids=base.ids, speakers=base.columns.get("speaker"))


def _test_segments(a: Sequence[UtteranceScore], b: Sequence[UtteranceScore]) -> MatchedPairs:
    segments = []
    for first, second in zip(a, b, strict=True):
        said = first.reference.split()
        alignments = (align_words(said, item.hypothesis.split()) for item in (first, second))
        segments += count_segment_errors(*alignments)
    return compute_matched_pairs(segments)


def _write_differences(a: Systems, b: Systems, path: Path) -> None:
    """Write one line an utterance: its errors in both, as sums over seeds, and the texts of the first seed."""
    rows = []
    for k, item in enumerate(a[0]):
        errors = [sum(len(seed[k].word_edits) for seed in side) for side in (a, b)]
        texts = item.reference, item.hypothesis, b[0][k].hypothesis
        cells = (item.id, item.speaker or "", item.num_words, *errors, *texts)
        rows.append((-abs(errors[1] - errors[0]), k, "\t".join(escape_field(str(cell)) for cell in cells)))
    header = "id speaker num_words word_errors_a word_errors_b reference hypothesis_a hypothesis_b".replace(" ", "\t")
    path.write_text("\n".join([header, *(line for *_, line in sorted(rows))]) + "\n", encoding="utf-8")

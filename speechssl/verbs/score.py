"""`speechssl score`: reference and hypothesis texts → WER and CER, and where the errors are; no model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from speechssl.config.inference import ScoreConfig
from speechssl.data.manifest_reading import name_columns
from speechssl.data.texts import load_texts, match_texts
from speechssl.durable import write_result
from speechssl.errors import DataError
from speechssl.evaluation import breakdown
from speechssl.evaluation.matched_pairs import align_words
from speechssl.evaluation.wer import UtteranceScore
from speechssl.evaluation.wer import score as score_texts
from speechssl.printable import log_lines
from speechssl.text.normalise import find_normaliser
from speechssl.verbs.frame import verb
from speechssl.verbs.output import STDOUT, print_line, replacing_result, resolve_out
from speechssl.verbs.summary import format_summary

MAX_CELLS = 25_000_000
"""Largest table of an alignment as sclite's, in cells: two texts of 5,000 words; 100 MB."""

_logger = logging.getLogger("speechssl")


@verb
def score(config: ScoreConfig) -> dict[str, Any]:
    """Score the texts of one file against those of another, and return the result.

    Without `out` the figures go to stdout, and nothing is written. With it, the folder gets `result.json`,
    `utterances.tsv` (worst first), `confusions.tsv`, `groups.tsv` with `by`, and transcripts with `trn`.

    Raises:
        DataError: a file cannot be read, the ids of the two are not the same, no reference has a word, or there is no
            column that `by` names.
        ConfigError: `normaliser` is not installed, or `out` cannot be written.
    """
    reference = load_texts(config.reference, "reference", "reference")
    hypothesis = load_texts(config.hypothesis, "hypothesis", "hypothesis")
    heard = match_texts(reference, hypothesis)
    for name in config.by:
        if name not in reference.columns:
            has = name_columns(reference.columns) or "no further columns"
            raise DataError(f"`by` must name columns of `reference`, but is {name}, and {config.reference} has {has}")
    normalise = find_normaliser(config.normaliser)
    said = [normalise(text) for text in reference.texts]
    speakers = list(reference.columns.get("speaker", ()))
    scores = score_texts(said, list(map(normalise, heard)), speakers or None, reference.ids, "reference")
    out = resolve_out(config.out, "score", config.overwrite) if config.out else None
    columns = {name: reference.columns[name] for name in config.by}
    groups = breakdown.score_groups(scores, columns, config.num_resamples, config.seed)
    result = breakdown.summarise(scores, groups, config.num_resamples, config.seed)
    result |= {
        "sclite": _count_as_sclite(scores.utterances),
        "normaliser": config.normaliser,
        "reference": config.reference,
        "hypothesis": config.hypothesis,
        "seed": config.seed,
        "out": str(out or STDOUT),
    }
    if result["num_silent"]:
        _logger.warning(
            "%d of %d references are empty: all words that were recognised in them are insertions",
            result["num_silent"], len(said),
        )  # fmt: skip
    found = breakdown.format_breakdown(scores, groups)
    if out is None:
        print_line("\n".join(filter(None, (format_summary("score", result), found))))
        return result
    with replacing_result(out):
        breakdown.write_tables(scores, groups, out, columns, config.trn)
        if found:
            log_lines(found)
        write_result(out, result)
    return result


def _count_as_sclite(utterances: Sequence[UtteranceScore]) -> dict[str, float | int] | None:
    """Count errors as NIST's sclite does (`align_words`); None where a text is too long for its table."""
    texts = [(item.reference.split(), item.hypothesis.split()) for item in utterances]
    if any((len(said) + 1) * (len(heard) + 1) > MAX_CELLS for said, heard in texts):
        return None
    counts = [align_words(said, heard).counts for said, heard in texts]
    substitutions, deletions, insertions = (sum(column) for column in zip(*counts, strict=True))
    num_words = sum(len(said) for said, _ in texts)
    wer = 100 * (substitutions + deletions + insertions) / num_words
    return {"wer": wer, "substitutions": substitutions, "deletions": deletions, "insertions": insertions}

"""Word and character error rates of a corpus, and where the errors are.

Rates are corpus sums through jiwer: all edits over all words (or letters, the spaces between words included) of the
references. A rate can pass 100 %, since insertions count. Where references have no word boundary (Chinese), their
characters are counted as words, and WER is CER.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import NamedTuple

import jiwer

from speechssl.errors import DataError
from speechssl.evaluation.statistics import Interval, compute_interval
from speechssl.text.spelling import lacks_words


class Edit(NamedTuple):
    """One error.

    Attributes:
        kind: `substitution`, `deletion` (missing in the hypothesis) or `insertion` (only in the hypothesis).
        reference: the word or letter that was said; empty for an insertion.
        hypothesis: the word or letter that was recognised; empty for a deletion.
    """

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance: its two texts and the edits between them; without words, characters stand for them."""

    id: str
    speaker: str | None
    reference: str
    hypothesis: str
    word_edits: tuple[Edit, ...]
    letter_edits: tuple[Edit, ...]
    has_words: bool = True

    @property
    def num_words(self) -> int:
        """Words of the reference."""
        return len(self.reference.split()) if self.has_words else self.num_letters

    @property
    def num_letters(self) -> int:
        """Letters of the reference, spaces between words included."""
        return len(self.reference)


@dataclass(frozen=True)
class SpeakerScore:
    """One speaker's rates, in percent; None where the references have no words."""

    speaker: str
    num_utterances: int
    num_words: int
    wer: float | None
    cer: float | None


@dataclass(frozen=True)
class Scores:
    """A corpus.

    Attributes:
        wer: word error rate, percent.
        cer: character error rate, percent.
        utterances: every utterance, in the order given.
    """

    wer: float
    cer: float
    utterances: tuple[UtteranceScore, ...]

    @property
    def has_words(self) -> bool:
        """Whether WER counts words; else it is CER, since the references have no word boundary."""
        return all(utterance.has_words for utterance in self.utterances)

    @property
    def num_words(self) -> int:
        """Words of all references."""
        return sum(utterance.num_words for utterance in self.utterances)

    @property
    def num_letters(self) -> int:
        """Letters of all references, spaces between words included."""
        return sum(utterance.num_letters for utterance in self.utterances)

    def select(self, indices: Sequence[int]) -> Scores:
        """Take some utterances, with their rates; NaN where they have no words."""
        own = tuple(self.utterances[index] for index in indices)
        return Scores(*_sum_rates(own), own)

    def count_word_confusions(self) -> Counter[Edit]:
        """Count each error of words."""
        return Counter(edit for utterance in self.utterances for edit in utterance.word_edits)

    def count_letter_confusions(self) -> Counter[Edit]:
        """Count each error of letters."""
        return Counter(edit for utterance in self.utterances for edit in utterance.letter_edits)

    def sort_worst_first(self) -> list[UtteranceScore]:
        """Sort utterances by word errors, then by letter errors, most first; ties keep their order."""
        return sorted(self.utterances, key=lambda u: (-len(u.word_edits), -len(u.letter_edits)))

    def compute_wer_interval(self, num_resamples: int, seed: int) -> Interval:
        """Compute the 95 % bootstrap interval of `wer`, over speakers where every utterance has one."""
        errors, totals = zip(*((len(u.word_edits), u.num_words) for u in self.utterances), strict=True)
        return compute_interval(errors, totals, [u.speaker for u in self.utterances], num_resamples, seed)

    def compute_cer_interval(self, num_resamples: int, seed: int) -> Interval:
        """Compute the 95 % bootstrap interval of `cer`, over speakers where every utterance has one."""
        errors, totals = zip(*((len(u.letter_edits), u.num_letters) for u in self.utterances), strict=True)
        return compute_interval(errors, totals, [u.speaker for u in self.utterances], num_resamples, seed)

    def score_speakers(self) -> list[SpeakerScore]:
        """Compute each speaker's rates, sorted by name; empty unless every utterance has a speaker."""
        groups: dict[str, list[UtteranceScore]] = defaultdict(list)
        for utterance in self.utterances:
            if not utterance.speaker:
                return []
            groups[utterance.speaker].append(utterance)
        scores = []
        for speaker, own in sorted(groups.items()):
            wer, cer = (None if isnan(rate) else rate for rate in _sum_rates(own))
            scores.append(SpeakerScore(speaker, len(own), sum(u.num_words for u in own), wer, cer))
        return scores


def compare(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    has_words: bool = True,
) -> tuple[UtteranceScore, ...]:
    """Align recognised texts with their references by the fewest edits (Levenshtein 1966, through jiwer).

    Args:
        references: n texts, normalised by `Vocabulary.normalise_reference`; only white space is touched here.
        hypotheses: n recognised texts.
        speakers: n speakers, where known.
        ids: n names of utterances; their numbers by default.
        has_words: False counts characters as words.

    Returns:
        n utterances with their edits, in the order given.
    """
    assert len(references) == len(hypotheses), f"{len(references)} references, {len(hypotheses)} hypotheses"
    said, heard = [" ".join(text.split()) for text in references], [" ".join(text.split()) for text in hypotheses]
    names, owners = ids or [str(k) for k in range(len(said))], speakers or [None] * len(said)
    letters = _list_edits(jiwer.process_characters(said, heard))
    words = _list_edits(jiwer.process_words(said, heard)) if has_words else letters
    rows = zip(names, owners, said, heard, words, letters, [has_words] * len(said), strict=True)
    return tuple(UtteranceScore(*row) for row in rows)


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    key: str = "data.test",
) -> Scores:
    """Score the recognised texts of a corpus.

    Args:
        references, hypotheses, speakers, ids: as `compare`. An empty reference is scored too: all that was recognised
            is insertions.
        key: the key that the error names.

    Returns:
        WER and CER in percent, and every utterance.

    Raises:
        DataError: no reference has a word, so there is nothing to divide by.
    """
    utterances = compare(references, hypotheses, speakers, ids, not lacks_words(references))
    if not any(utterance.num_words for utterance in utterances):
        raise DataError(
            f"`{key}` must have words to score against, but all of its {len(utterances)} transcripts are empty"
        )
    return Scores(*_sum_rates(utterances), utterances)


def compute_error_rates(
    references: Sequence[str], hypotheses: Sequence[str], key: str = "data.valid"
) -> tuple[float, float]:
    """Compute WER and CER in percent, as corpus sums; arguments and errors as `score`."""
    scores = score(references, hypotheses, key=key)
    return scores.wer, scores.cer


def _list_edits(output: jiwer.WordOutput | jiwer.CharacterOutput) -> list[tuple[Edit, ...]]:
    """List the errors of each utterance, one word or letter each."""
    rows = []
    for said, heard, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        edits: list[Edit] = []
        for chunk in chunks:
            before = said[chunk.ref_start_idx : chunk.ref_end_idx]
            after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            match chunk.type:
                case "substitute":
                    edits += [Edit("substitution", *pair) for pair in zip(before, after, strict=True)]
                case "delete":
                    edits += [Edit("deletion", token, "") for token in before]
                case "insert":
                    edits += [Edit("insertion", "", token) for token in after]
        rows.append(tuple(edits))
    return rows


def _sum_rates(utterances: Sequence[UtteranceScore]) -> tuple[float, float]:
    """Divide the sums of word and letter errors by those of words and letters: percent, NaN without any."""
    num_words, num_letters = sum(u.num_words for u in utterances), sum(u.num_letters for u in utterances)
    word_errors = sum(len(u.word_edits) for u in utterances)
    letter_errors = sum(len(u.letter_edits) for u in utterances)
    return 100 * word_errors / (num_words or nan), 100 * letter_errors / (num_letters or nan)

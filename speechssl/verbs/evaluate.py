"""`speechssl evaluate`: a recogniser and a transcribed manifest → WER and CER, and where the errors are."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.data import TestDataConfig
from speechssl.config.inference import EvaluateConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.data.texts import check_trn_ids
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.errors import DataError
from speechssl.evaluation import breakdown
from speechssl.evaluation.statistics import compute_calibration
from speechssl.evaluation.wer import Scores, score
from speechssl.inference.readings import Reading
from speechssl.inference.recognise import recognise, require_recogniser
from speechssl.inference.source import FloatArray
from speechssl.interop.load import load_for_inference
from speechssl.printable import log_lines
from speechssl.text.normalise import find_normaliser
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import choose_decoder
from speechssl.verbs.output import replacing_result, resolve_out

_logger = logging.getLogger("speechssl")


class Measured:
    """What is measured of utterances while they are recognised.

    Attributes:
        levels: mean power in decibels against full scale, by id, as written.
        confidences: how sure the recogniser is of each letter of the text, by id.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self.levels: dict[str, str] = {}
        self.confidences: dict[str, float] = {}

    def see(self, index: int, waveform: FloatArray) -> None:
        """Note the level of an utterance."""
        power = float(np.mean(np.square(waveform, dtype=np.float64)))
        self.levels[self._ids[index]] = f"{10 * np.log10(power):.1f}" if power else "-inf"

    def note(self, index: int, reading: Reading) -> None:
        """Note how sure the recogniser is of an utterance."""
        self.confidences[self._ids[index]] = reading.confidence

    def list_columns(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Give columns of some utterances, '' where nothing was measured."""
        sure = [f"{self.confidences[name]:.4f}" if name in self.confidences else "" for name in ids]
        return {"level_db": [self.levels.get(name, "") for name in ids], "confidence": sure}

    def calibrate(self, scores: Scores) -> dict[str, Any] | None:
        """Compare confidences with the share of the recognised letters that are right; None without any."""
        items = [item for item in scores.utterances if item.hypothesis and item.id in self.confidences]
        if not items:
            return None
        wrong = [sum(edit.kind != "deletion" for edit in item.letter_edits) for item in items]
        sizes = [len(item.hypothesis) for item in items]
        shares = [1 - errors / size for errors, size in zip(wrong, sizes, strict=True)]
        return asdict(compute_calibration([self.confidences[item.id] for item in items], shares, sizes))


@verb
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Recognise every transcribed utterance, score it, write the breakdown, and return the result.

    Writes `result.json`, `utterances.tsv` (worst first; `level_db` is the mean power against full scale),
    `confusions.tsv`, with `by` `groups.tsv`, with `trn` transcripts and, where audio cannot be used, `left_out.tsv` to
    `out`.

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        DataError: the manifest has no transcripts, none of its audio can be used, or `decoding.lm` is no ARPA file.
    """
    manifest, num_untranscribed = load_transcribed(config.data, config.empty)
    for name in config.by:
        manifest.require(name, "by")
    if config.trn:
        check_trn_ids(manifest.column("id"))
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    vocabulary = require_recogniser(model, config.checkpoint)
    decoder = choose_decoder(config.decoding, config.checkpoint, vocabulary)
    chosen = find_normaliser(config.normaliser) if config.normaliser else None
    spell_reference, spell_hypothesis = chosen or vocabulary.normalise_reference, chosen or vocabulary.fold
    out = resolve_out(config.out, "evaluate", config.overwrite)
    precision = resolve_precision(config.precision, device)
    left_out = LeftOut("data.test")
    measured = Measured(manifest.column("id"))
    start = time.monotonic()
    given = (config.batch_s, config.window_s, precision, decoder, left_out)
    hypotheses = recognise(model, manifest, *given, measured)
    seconds = time.monotonic() - start
    manifest = left_out.drop_from(manifest)
    left_out.require_others(len(manifest))
    texts = manifest.labels("text")
    speakers = manifest.column("speaker") if manifest.has("speaker") else None
    said, heard = map(spell_reference, texts), map(spell_hypothesis, hypotheses)
    scores = score(list(said), list(heard), speakers, manifest.column("id"))
    by = {name: manifest.labels(name) for name in config.by}
    groups = breakdown.score_groups(scores, by, config.num_resamples, config.seed)
    lengths = [f"{samples / SAMPLE_RATE:.2f}" for samples in manifest.num_samples_16k.tolist()]
    columns = {"seconds": lengths, **measured.list_columns(manifest.column("id")), **by}
    unknown = vocabulary.unknown_letters(texts)
    result = breakdown.summarise(scores, groups, config.num_resamples, config.seed)
    result |= {
        "calibration": measured.calibrate(scores),
        "unknown_letters": dict(unknown.most_common()),
        "case": vocabulary.case,
        "normaliser": config.normaliser or vocabulary.normaliser,
        "checkpoint": config.checkpoint,
        "data": [str(Path(path)) for path in config.data.test],
        "seed": config.seed,
    }
    result |= decoder.describe() | {"audio_s": manifest.total_s, "audio_s_per_s": manifest.total_s / seconds}
    if decoder.fit:
        decoder.fit.warn_of_silence(result["num_words"], result["deletions"], result["insertions"])
    result |= {"num_untranscribed": num_untranscribed, "num_left_out": len(left_out), "out": str(out)}
    with replacing_result(out):
        breakdown.write_tables(scores, groups, out, columns, config.trn)
        _log(scores, groups, unknown)
        left_out.save(out)
        write_result(out, result)
    return result


def load_transcribed(data: TestDataConfig, keep_empty: bool = False) -> tuple[Manifest, int]:
    """Load the rows that have a transcript, and count those that have none.

    A `.tsv` does not tell silence from what nobody transcribed: the user says whether rows without text are kept.
    """
    manifest = load_manifests(data.test, "data.test").filter_where(data.where)
    manifest.require("text", "data.test")
    transcribed = [index for index, text in enumerate(manifest.column("text")) if text and text.strip()]
    missing = len(manifest) - len(transcribed)
    if not transcribed:
        raise DataError(f"`data.test` must have transcripts, but none of its {missing} utterances has one")
    if missing and not keep_empty:
        _logger.warning("%d of %d utterances have no transcript and are left out", missing, len(manifest))
        manifest = manifest.select(np.array(transcribed, dtype=np.int64))
    return manifest, 0 if keep_empty else missing


def _log(scores: Scores, groups: Sequence[breakdown.Group], unknown: Counter[str]) -> None:
    """Tell people where the errors are."""
    if not scores.has_words:
        _logger.warning("the references have no word boundary: wer counts characters, as cer does")
    if unknown:
        _logger.warning("characters of the transcripts outside the vocabulary (text.keep makes labels of them):")
        log_lines(breakdown.format_unknown(unknown), logging.WARNING)
    if found := breakdown.format_breakdown(scores, groups):
        log_lines(found)

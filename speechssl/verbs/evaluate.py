"""`speechssl evaluate`: a recogniser and a transcribed manifest → WER and CER, and where the errors are."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.config.data import TestDataConfig
from speechssl.config.inference import EvaluateConfig
from speechssl.config.knobs import check
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import remove, write_result
from speechssl.errors import DataError
from speechssl.evaluation import breakdown
from speechssl.evaluation.statistics import RELIABLE_UNITS
from speechssl.evaluation.wer import Scores, score
from speechssl.inference.recognise import recognise, require_recogniser
from speechssl.interop.load import load_for_inference
from speechssl.printable import log_lines
from speechssl.text.vocabulary import Vocabulary
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import choose_decoder
from speechssl.verbs.output import replacing_result, resolve_out

_logger = logging.getLogger("speechssl")


@verb
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Recognise every transcribed utterance, score it, write the breakdown, and return the result.

    Writes `result.json`, `utterances.tsv` (worst first), `confusions.tsv` and, where audio cannot be used,
    `left_out.tsv` to `out`.

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        DataError: the manifest has no transcripts, none of its audio can be used, or `decoding.lm` is no ARPA file.
    """
    check(config.num_resamples >= 1, "num_resamples", "at least 1", config.num_resamples)
    manifest, num_untranscribed = load_transcribed(config.data)
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    vocabulary = require_recogniser(model, config.checkpoint)
    decoder = choose_decoder(config.decoding, config.checkpoint, vocabulary)
    out = resolve_out(config.out, "evaluate", config.overwrite)
    precision = resolve_precision(config.precision, device)
    left_out = LeftOut("data.test")
    start = time.monotonic()
    hypotheses = recognise(model, manifest, config.batch_s, config.window_s, precision, decoder, left_out)
    seconds = time.monotonic() - start
    manifest = left_out.drop_from(manifest)
    left_out.require_others(len(manifest))
    texts = manifest.column("text")
    references = [vocabulary.normalise_reference(text) for text in texts]
    speakers = manifest.column("speaker") if manifest.has("speaker") else None
    scores = score(references, [vocabulary.fold(text) for text in hypotheses], speakers, manifest.column("id"))
    unknown = vocabulary.unknown_letters(texts)
    result = _summarise(config, scores, unknown, vocabulary)
    result |= decoder.describe() | {"audio_s": manifest.total_s, "audio_s_per_s": manifest.total_s / seconds}
    if decoder.fit:
        decoder.fit.warn_of_silence(result["num_words"], result["deletions"], result["insertions"])
    result |= {"num_untranscribed": num_untranscribed, "num_left_out": len(left_out), "out": str(out)}
    with replacing_result(out):
        for name in (breakdown.UTTERANCES_NAME, breakdown.CONFUSIONS_NAME):
            # It may be a link, which would be followed.
            remove(out / name)
        breakdown.write_utterances(scores, out / breakdown.UTTERANCES_NAME)
        breakdown.write_confusions(scores, out / breakdown.CONFUSIONS_NAME)
        _log(scores, unknown)
        left_out.save(out)
        write_result(out, result)
    return result


def load_transcribed(data: TestDataConfig) -> tuple[Manifest, int]:
    """Load the rows that have a transcript, and count those that have none: they cannot be scored."""
    manifest = load_manifests(data.test, "data.test").filter_where(data.where)
    manifest.require("text", "data.test")
    transcribed = [index for index, text in enumerate(manifest.column("text")) if text and text.strip()]
    missing = len(manifest) - len(transcribed)
    if not transcribed:
        raise DataError(f"`data.test` must have transcripts, but none of its {missing} utterances has one")
    if missing:
        _logger.warning("%d of %d utterances have no transcript and are left out", missing, len(manifest))
        manifest = manifest.select(np.array(transcribed, dtype=np.int64))
    return manifest, missing


def _summarise(config: EvaluateConfig, scores: Scores, unknown: Counter[str], vocabulary: Vocabulary) -> dict[str, Any]:
    """Collect the figures of the JSON line; every speaker's where they are few."""
    kinds = Counter(edit.kind for utterance in scores.utterances for edit in utterance.word_edits)
    speakers = scores.score_speakers()
    return {
        "wer": scores.wer,
        "wer_interval": scores.compute_wer_interval(config.num_resamples, config.seed).to_dict(),
        "cer": scores.cer,
        "cer_interval": scores.compute_cer_interval(config.num_resamples, config.seed).to_dict(),
        "num_utterances": len(scores.utterances),
        "num_words": scores.num_words,
        "num_letters": scores.num_letters,
        "num_speakers": len(speakers) or None,
        "num_empty": sum(not utterance.hypothesis for utterance in scores.utterances),
        "substitutions": kinds["substitution"],
        "deletions": kinds["deletion"],
        "insertions": kinds["insertion"],
        "speakers": [asdict(speaker) for speaker in speakers] if len(speakers) < RELIABLE_UNITS else [],
        "unknown_letters": dict(unknown.most_common()),
        "case": vocabulary.case,
        "checkpoint": config.checkpoint,
        "data": [str(Path(path)) for path in config.data.test],
        "seed": config.seed,
    }


def _log(scores: Scores, unknown: Counter[str]) -> None:
    """Tell people where the errors are."""
    if unknown:
        _logger.warning("characters of the transcripts outside the vocabulary (text.keep makes labels of them):")
        log_lines(breakdown.format_unknown(unknown), logging.WARNING)
    speakers = scores.score_speakers()
    if speakers and len(speakers) < RELIABLE_UNITS:
        log_lines(f"speakers:\n{breakdown.format_speakers(speakers)}")
    if any(utterance.letter_edits for utterance in scores.utterances):
        log_lines(f"commonest errors:\n{breakdown.format_confusions(scores)}")
        log_lines(f"worst utterances:\n{breakdown.format_worst(scores)}")

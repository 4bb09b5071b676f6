"""`speechssl tune`: a recogniser and development speech → weights of a language model, kept beside the recogniser."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.layout import DECODING
from speechssl.config.decoding import WEIGHTS
from speechssl.config.inference import TuneConfig
from speechssl.config.knobs import check
from speechssl.data.left_out import LeftOut
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import remove, write_result
from speechssl.errors import ConfigError
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.inference.decoding.lm_fit import Fit, list_writable, load_lm
from speechssl.inference.decoding.tuning import Point, Tuning
from speechssl.inference.decoding.tuning import tune as search
from speechssl.inference.recognise import collect_logits, require_recogniser
from speechssl.inference.source import Source
from speechssl.interop.load import find_update, load_model
from speechssl.text.vocabulary import Vocabulary
from speechssl.verbs.evaluate import load_transcribed
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import find_digest, find_home, spell_weights, write_kept
from speechssl.verbs.output import replacing_result, resolve_out

POINTS_NAME = "points.tsv"
"""Every set of weights that was tried, in order."""

NUM_SHOWN = 5
"""Best ones that the table shows, beside greedy decoding and where the search began."""

_logger = logging.getLogger("speechssl")


@verb
def tune(config: TuneConfig) -> dict[str, Any]:
    """Search for the weights with the fewest wrong words, keep them beside the recogniser, and return the result.

    The logits are computed once. The weights go to `decoding.json` in the folder that `checkpoint` names, where
    `evaluate` and `transcribe` find them; for a recogniser of another toolkit, and where that folder cannot be written
    to, into `out`. `out` gets `result.json`, `points.tsv` and, where audio cannot be used, `left_out.tsv`.

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        ConfigError: no `decoding.lm`, or weights are kept there already and `overwrite` is false.
        DataError: the manifest has no transcripts, none of its audio can be used, or `decoding.lm` is no ARPA file.
    """
    check(config.decoding.lm != "", "decoding.lm", "given (n-gram language model: ARPA file)", "")
    manifest, num_untranscribed = load_transcribed(config.data)
    device = resolve_device(config.device)
    model = load_model(config.checkpoint, device, weights=config.weights, language=config.language)
    vocabulary = require_recogniser(model, config.checkpoint)
    lm = load_lm(config.decoding.lm, vocabulary)
    out = resolve_out(config.out, "tune", config.overwrite)
    home = find_home(config.checkpoint, out)
    if os.path.lexists(home / DECODING) and not config.overwrite:
        raise ConfigError(
            f"`checkpoint` must have no weights of a language model yet, but {home / DECODING} is there "
            "(overwrite=true replaces it)"
        )
    left_out = LeftOut("data.test")
    source = Source.from_manifest(manifest, left_out)
    precision = resolve_precision(config.precision, device)
    logits = collect_logits(model, source, config.batch_s, config.window_s, precision)
    manifest = left_out.drop_from(manifest)
    left_out.require_others(len(manifest))
    references = [vocabulary.normalise_reference(text) for text in manifest.column("text")]
    fit = Fit(len(lm.words), len(list_writable(lm, vocabulary)))
    greedy = _score_greedily(logits, references, vocabulary, fit)
    found = search(logits, references, lm, vocabulary, config.decoding, "data.test")
    for text in found.texts:
        fit.count([vocabulary.fold(word) for word in vocabulary.split(text)], lm)
    fit.warn_of_unknown()
    facts = {
        "weights": {name: getattr(found.config, name) for name in WEIGHTS},
        "wer": found.best.wer,
        "cer": found.best.cer,
        "greedy": greedy,
        "num_utterances": len(manifest),
        "num_words": sum(len(text.split()) for text in references),
        "beam_width": found.config.beam_width,
        "lm": Path(config.decoding.lm).name,
        "lm_sha256": find_digest(config.decoding.lm),
        "checkpoint": config.checkpoint,
        "update": find_update(config.checkpoint),
        "data": [str(Path(path)) for path in config.data.test],
    }
    result = facts | {
        "lm": config.decoding.lm,
        "fit": fit.describe(),
        "num_points": len(found.points),
        "points": _list_notable(found),
        "num_untranscribed": num_untranscribed,
        "num_left_out": len(left_out),
        "kept": str(home / DECODING),
        "out": str(out),
    }
    with replacing_result(out):
        remove(out / POINTS_NAME)
        _write_points(found.points, out / POINTS_NAME)
        left_out.save(out)
        write_kept(home, facts | {"command": sys.argv})
        write_result(out, result)
    _tell(result, home == out)
    return result


def _score_greedily(
    logits: Sequence[Tensor], references: Sequence[str], vocabulary: Vocabulary, fit: Fit
) -> dict[str, float]:
    """Give the rates of greedy decoding, and count its words."""
    texts = [greedy_decode(row[None], torch.tensor([len(row)]), vocabulary)[0] for row in logits]
    fit.greedy_words = sum(len(vocabulary.split(text)) for text in texts)
    wer, cer = compute_error_rates(references, [vocabulary.fold(text) for text in texts], "data.test")
    return {"wer": wer, "cer": cer}


def _list_notable(found: Tuning) -> list[dict[str, Any]]:
    """List the best points on all utterances with the full beam, the one that is kept and where the search began."""
    size = (found.best.num_utterances, found.best.beam_width)
    whole = [point for point in found.points if (point.num_utterances, point.beam_width) == size]
    named = {found.start: "start", found.best: "kept"}
    shown = {*sorted(whole, key=lambda point: (point.wer, point.cer))[:NUM_SHOWN], *named}
    rows = sorted(shown, key=lambda point: (point.wer, point.cer, point is not found.best))
    return [asdict(point) | {"note": named.get(point, "")} for point in rows]


def _write_points(points: Sequence[Point], path: Path) -> None:
    rows = [list(asdict(points[0])), *([f"{value:g}" for value in asdict(point).values()] for point in points)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def _tell(result: dict[str, Any], is_apart: bool) -> None:
    """Warn of weights that do not pay, and say how those that are kept apart are used."""
    if result["wer"] >= result["greedy"]["wer"]:
        _logger.warning(
            "greedy decoding is as good: %.2f %% of the words are wrong, and %.2f %% with decoding.lm",
            result["greedy"]["wer"], result["wer"],
        )  # fmt: skip
    if is_apart:
        weights = spell_weights(result["weights"])
        _logger.info("%s is not beside the recogniser: give its weights by hand, as %s", result["kept"], weights)

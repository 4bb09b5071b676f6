"""`speechssl align`: a recogniser, audio and its text → words and characters in time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.inference import ALIGN_FORMATS, AlignConfig
from speechssl.config.knobs import check
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_in_one_step, write_result
from speechssl.errors import DataError
from speechssl.inference.alignment import align_words, split_words
from speechssl.inference.recognise import iterate_logits, require_recogniser
from speechssl.inference.source import Source
from speechssl.inference.text_formats import choose_format, name_file, render
from speechssl.inference.timed import TimedText
from speechssl.interop.load import load_for_inference
from speechssl.parsing import read_text
from speechssl.text.romanise import load_romaniser
from speechssl.verbs.frame import verb
from speechssl.verbs.output import STDOUT, print_line, resolve_out

_logger = logging.getLogger("speechssl")


@verb
def align(config: AlignConfig) -> dict[str, Any]:
    """Put the words and characters of known texts in time, and return the result.

    Words that nobody said, and speech that nobody wrote, are passed over (`speechssl.inference.alignment`). Without
    `out` the words go to stdout, and nothing is written. `out` with a suffix is one file for all utterances; without
    one it is a folder with a file for each and `result.json`. What cannot be used is left out, and listed in
    `left_out.tsv` (`<name>.left_out.tsv` beside a file).

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        ConfigError: `format` and the suffix of `out` contradict one another, or uroman is missing.
        DataError: there is no audio, no text, or none of either that can be used.
    """
    left_out = LeftOut("audio")
    format = choose_format(config.format, config.out)
    format = "ctm" if format == "tsv" and not config.out.endswith(".tsv") else format
    check(format in ALIGN_FORMATS, "out", f"a folder, or a file of {', '.join(ALIGN_FORMATS)}", config.out)
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    texts = _find_texts(config.text, manifest, left_out)
    manifest = left_out.drop_from(manifest)
    left_out.require_others(len(manifest))
    spell = load_romaniser(config.language) if config.romanise else None
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    vocabulary = require_recogniser(model, config.checkpoint)
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    out = resolve_out(config.out, "align", config.overwrite, is_file=is_file) if config.out else None
    source = Source.from_manifest(manifest, left_out)
    precision = resolve_precision(config.precision, device)
    counts = {"num_utterances": 0, "num_words": 0, "num_unheard": 0}
    frame_s = model.config.hop_samples / SAMPLE_RATE

    def iterate() -> Iterator[TimedText]:
        for index, logits in iterate_logits(model, source, config.batch_s, config.window_s, precision):
            row = source[index]
            words = split_words(texts[row.id], vocabulary, spell)
            found, characters = align_words(logits, words, vocabulary, frame_s, tolerant=True)
            counts["num_utterances"] += 1
            counts["num_words"] += len(words)
            counts["num_unheard"] += len(words) - len(found)
            # A word that was not heard has none.
            confidence = sum(word.confidence for word in found) / max(1, len(words))
            yield TimedText(
                row.id, os.fspath(row.path), row.speaker or "", row.channel, row.duration_s, texts[row.id],
                confidence, found, characters,
            )  # fmt: skip

    _write(iterate(), format, out, is_file)
    left_out.require_others(counts["num_utterances"])
    if out:
        left_out.save(out)
    elif len(left_out):
        left_out.warn()
    if counts["num_unheard"]:
        _logger.warning(
            "%d of %d words of the texts were not heard, and are left out", counts["num_unheard"], counts["num_words"]
        )
    result: dict[str, Any] = counts | {
        "num_left_out": len(left_out),
        "audio_s": left_out.drop_from(manifest).total_s,
        "checkpoint": config.checkpoint,
        "format": format,
        "texts": str(out or STDOUT),
        "out": str(out or STDOUT),
    }
    if out and not is_file:
        write_result(out, result)
    return result


def _find_texts(text: str, manifest: Manifest, left_out: LeftOut) -> Mapping[str, str]:
    """Find the text of each utterance, by its id; what has none is left out.

    Raises:
        DataError: no text is given, it is not that of one utterance, or it cannot be read.
    """
    ids = manifest.column("id")
    folder = Path(text)
    if text and len(ids) == 1 and not folder.is_dir():
        return {ids[0]: " ".join((read_text(folder) if _is_file(text) else text).split())}
    if text and not folder.is_dir():
        must = f"`text` must be a folder with a .txt for each of {len(ids)} utterances"
        raise DataError(f"{must}, or empty where a manifest has them, but is {text[:80]!r}")
    if not text and not manifest.has("text"):
        raise DataError("`text` must be given (what is said) where `audio` has no column `text`, but is not")
    found = dict(zip(ids, manifest.column("text"), strict=True)) if not text else {}
    for row, name in enumerate(ids):
        path = folder / f"{name}.txt"
        if text and path.is_file():
            found[name] = read_text(path)
        elif text or not found[name]:
            reason = f"{path} must be there, but is not" if text else f"{name} must have a text, but has none"
            left_out.add(name, manifest[row].path, reason)
    return {name: " ".join(written.split()) for name, written in found.items() if written}


def _is_file(text: str) -> bool:
    """Say whether a text is the name of a file.

    Raises:
        DataError: it reads like one, but there is none.
    """
    if len(text) < 4096 and Path(text).is_file():
        return True
    if text.endswith(".txt") and len(text.split()) == 1:
        raise DataError(f"`text` must be a file that is there, a folder or what is said, but {text} does not exist")
    return False


def _write(texts: Iterable[TimedText], format: str, out: Path | None, is_file: bool) -> None:
    """Write all utterances to stdout or into one file, or each into a file of its own."""
    if out is None:
        rest = ""
        for piece in render(texts, format):
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                print_line(line)
    elif is_file:
        write_in_one_step(out, "".join(render(texts, format)))
    else:
        for text in texts:
            path = out / name_file(text.id, format)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_in_one_step(path, "".join(render([text], format)))

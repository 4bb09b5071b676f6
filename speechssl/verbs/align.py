"""`speechssl align`: a recogniser, audio and its text → words and characters in time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.config.inference import TIMED_FORMATS, AlignConfig
from speechssl.config.knobs import check
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_in_one_step, write_result, writing
from speechssl.errors import DataError
from speechssl.inference.alignment import align_words, split_words
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.recognise import find_frame_s, iterate_logits, require_recogniser
from speechssl.inference.source import Source
from speechssl.inference.text_formats import choose_format, name_file, render
from speechssl.inference.timed import TimedText
from speechssl.interop.load import load_for_inference
from speechssl.parsing import read_text
from speechssl.text.romanise import load_romaniser, require_romaniser
from speechssl.verbs.frame import verb
from speechssl.verbs.output import STDOUT, print_text, resolve_out

_logger = logging.getLogger("speechssl")


@dataclass
class _Job:
    """What is aligned, and what was counted meanwhile.

    Attributes:
        config: the keys.
        model: a recogniser.
        source: the utterances.
        texts: what is said in each, by its id.
    """

    config: AlignConfig
    model: AnyModel
    source: Source
    texts: Mapping[str, str]
    num_utterances: int = 0
    num_words: int = 0
    num_unheard: int = 0
    audio_s: float = 0.0

    def iterate(self) -> Iterator[TimedText]:
        """Put one utterance after the other in time.

        Raises:
            DataError: none could be used.
        """
        config, vocabulary = self.config, require_recogniser(self.model, self.config.checkpoint)
        spell = load_romaniser(config.language) if config.romanise else None
        precision = resolve_precision(config.precision, self.model.device)
        for index, logits in iterate_logits(self.model, self.source, config.batch_s, config.window_s, precision):
            row = self.source[index]
            text = self.texts[row.id]
            words = split_words(text, vocabulary, spell)
            found, characters = align_words(logits, words, vocabulary, find_frame_s(self.model), tolerant=True)
            self.num_utterances += 1
            self.num_words += len(words)
            self.num_unheard += len(words) - len(found)
            self.audio_s += row.duration_s
            # A word that was not heard has none.
            confidence = sum(word.confidence for word in found) / max(1, len(words))
            about = (row.id, str(row.path), row.speaker or "", row.channel, row.duration_s)
            yield TimedText(*about, text, confidence, found, characters)
        assert self.source.left_out is not None
        self.source.left_out.require_others(self.num_utterances)

    def describe(self) -> dict[str, Any]:
        """Give what a result says."""
        return {name: getattr(self, name) for name in ("num_utterances", "num_words", "num_unheard", "audio_s")}


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
    format = choose_format(config.format, config.out)
    if format == "tsv":
        must = f"a folder, or a file of {', '.join(TIMED_FORMATS)}"
        check(Path(config.out).suffix != ".tsv", "out", must, config.out)
        format = "ctm"
    if config.romanise:
        require_romaniser()
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    texts = _find_texts(config.text, manifest, left_out)
    manifest = left_out.drop_from(manifest)
    left_out.require_others(len(manifest))
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    require_recogniser(model, config.checkpoint)
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    out = resolve_out(config.out, "align", config.overwrite, is_file=is_file) if config.out else None
    job = _Job(config, model, Source.from_manifest(manifest, left_out), texts)
    _write(job.iterate(), format, out, is_file)
    if out:
        left_out.save(out)
    elif len(left_out):
        left_out.warn()
    if job.num_unheard:
        message = "%d of %d words of the texts were not heard, and are left out"
        _logger.warning(message, job.num_unheard, job.num_words)
    place = str(out or STDOUT)
    result = job.describe() | {
        "num_left_out": len(left_out),
        "checkpoint": config.checkpoint,
        "format": format,
        "texts": place,
        "out": place,
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
        for piece in render(texts, format):
            print_text(piece)
    elif is_file:
        # Nothing is begun where nothing can be used.
        write_in_one_step(out, "".join(render(texts, format)))
    else:
        for text in texts:
            path = out / name_file(text.id, format)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_in_one_step(path, render([text], format))

"""What `align` is worth on real speech: an hour against its whole text, and words cut out and recognised again.

    python -m tests.benchmarks.aligned_speech runs/asr m/test.tsv

1. The utterances, joined to one recording, are aligned with their texts joined to one: with the whole text, and with a
   text that has a sentence that nobody says in place of every twelfth utterance.
   Words are compared with those of each utterance aligned alone; what is off by more than 0.2 s is misplaced.
2. Each utterance is cut between words, and the pieces are recognised: CER of the pieces' texts together, beside that of
   the whole, and of as many pieces that are cut anywhere.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from time import process_time

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import load_manifests
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.alignment import Word, align_words, split_words
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.recognise import collect_logits, find_frame_s, require_recogniser
from speechssl.inference.source import Source
from speechssl.inference.timed import Span
from speechssl.interop.load import load_for_inference

LACKING = 12
"""One utterance in so many is not written."""

FOREIGN = "colourless green ideas sleep furiously while the parliament of owls debates the price of umbrellas"

WORDS = (20, 5)
"""Words of a piece."""


def recognise(model: AnyModel, waveforms: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return collect_logits(model, Source.from_arrays(waveforms, SAMPLE_RATE), 60, 30, "float32")


def join_texts(texts: Sequence[str], with_mistakes: bool) -> list[tuple[int, int, str]]:
    """Join texts to words, each with its utterance's number, -1 for one that nobody says, and its own in there."""
    words: list[tuple[int, int, str]] = []
    for number, text in enumerate(texts):
        is_lacking = with_mistakes and number % LACKING == LACKING - 1
        said = [(number, k, word) for k, word in enumerate(text.split())]
        words += [(-1, k, word) for k, word in enumerate(FOREIGN.upper().split())] if is_lacking else said
    return words


def align_whole(
    model: AnyModel, waveforms: Sequence[np.ndarray], texts: Sequence[str], alone: Sequence[Sequence[Span]]
) -> None:
    """Align everything joined, and print how far its words are from those of each utterance aligned alone."""
    vocabulary = require_recogniser(model)
    starts = np.cumsum([0, *(len(waveform) for waveform in waveforms)]) / SAMPLE_RATE
    (logits,) = recognise(model, [np.concatenate(waveforms)])
    for with_mistakes in (False, True):
        given = join_texts(texts, with_mistakes)
        # The words' numbers come back with them.
        words = [Word(str(place), split_words(word, vocabulary)[0].spelt) for place, (_, _, word) in enumerate(given)]
        before = process_time()
        found, _ = align_words(logits, words, vocabulary, find_frame_s(model), tolerant=True)
        took_s = process_time() - before
        placed = [(given[int(span.text)], span) for span in found]
        said = [(span, number, k) for (number, k, _), span in placed if number >= 0]
        off = np.array([abs(span.start_s - starts[number] - alone[number][k].start_s) for span, number, k in said])
        num_said = sum(number >= 0 for number, _, _ in given)
        print(
            f"{starts[-1] / 60:.1f} min, {len(given)} words"
            f"{f', {len(given) - num_said} of them not said' if with_mistakes else ''}: "
            f"{num_said - len(said)} said ones not heard, {len(placed) - len(said)} heard that nobody says; "
            f"{100 * (off > 0.2).mean():.2f} % misplaced by more than 0.2 s, "
            f"95 % within {1000 * np.quantile(off, 0.95):.0f} ms; {took_s:.1f} s of CPU time"
        )


def list_cuts(words: Sequence[Span], num_words: int) -> list[float]:
    """List the middles of what lies between words, every so many words."""
    return [(words[k - 1].end_s + words[k].start_s) / 2 for k in range(num_words, len(words) - 1, num_words)]


def recognise_pieces(
    model: AnyModel, waveforms: Sequence[np.ndarray], cuts: Sequence[Sequence[float]]
) -> tuple[list[str], int]:
    """Cut utterances at these seconds, and put together what is recognised in the pieces; and count these."""
    vocabulary = require_recogniser(model)
    parts = [np.split(w, [round(cut * SAMPLE_RATE) for cut in at]) for w, at in zip(waveforms, cuts, strict=True)]
    logits = iter(recognise(model, [piece for pieces in parts for piece in pieces]))
    texts = []
    for pieces in parts:
        rows = [next(logits) for _ in pieces]
        found = [greedy_decode(row[None], torch.tensor([len(row)]), vocabulary)[0] for row in rows]
        texts.append(" ".join(" ".join(found).split()))
    return texts, sum(map(len, parts))


def main(checkpoint: str, manifest_path: str) -> None:
    model = load_for_inference(checkpoint, torch.device("cpu"))
    vocabulary, manifest = require_recogniser(model), load_manifests([manifest_path], "manifest")
    source = Source.from_manifest(manifest)
    waveforms = [source.read(index) for index in range(len(manifest))]
    references = [vocabulary.normalise_reference(text) for text in manifest.column("text")]
    logits = recognise(model, waveforms)
    frame_s = find_frame_s(model)
    # As `align` does with a text that is known to be true.
    alone = [
        align_words(row, split_words(text, vocabulary), vocabulary, frame_s)[0]
        for row, text in zip(logits, references, strict=True)
    ]
    whole = [greedy_decode(row[None], torch.tensor([len(row)]), vocabulary)[0] for row in logits]
    kinds = {"whole": (whole, len(whole))}
    for count in WORDS:
        cuts = [list_cuts(words, count) for words in alone]
        lengths = [len(waveform) / SAMPLE_RATE for waveform in waveforms]
        blind = [[s * k / (len(at) + 1) for k in range(1, len(at) + 1)] for at, s in zip(cuts, lengths, strict=True)]
        kinds[f"every {count} words"] = recognise_pieces(model, waveforms, cuts)
        kinds["  as many, anywhere"] = recognise_pieces(model, waveforms, blind)
        for name, (texts, num_pieces) in kinds.items():
            wer, cer = compute_error_rates(references, texts, "manifest")
            print(f"{name:20} {num_pieces:5} pieces: WER {wer:.2f}, CER {cer:.2f} %", flush=True)
        kinds.clear()
    align_whole(model, waveforms, references, alone)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])

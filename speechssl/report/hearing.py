"""What a pretrained model makes of speech: one utterance under its mask, and how often each code is chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.wav2vec2 import normalize_waveforms
from speechssl.report.charts import make_series, plot
from speechssl.report.content import Figure, Section, format_number, format_percent
from speechssl.report.live import Live, choose_evenly, choose_example, list_long_enough
from speechssl.report.pretraining import find_chance
from speechssl.report.run_folder import RunFolder
from speechssl.report.sounds import Sounds, read_waveform
from speechssl.report.strip import FRAME_S, Strip, draw_spectrogram, find_spans, find_stretches

EXAMPLE_S = 6.0
USE_UTTERANCES, USE_S = 30, 5.0
"""Code use is counted on at most so many utterances, the first seconds of each: some minutes of speech."""

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


def make_hearing(run: RunFolder, live: Live, sounds: Sounds) -> list[Section]:
    """Draw one utterance, with its mask and codes where the model has a quantizer, and the use of each codebook."""
    index = choose_example(live, EXAMPLE_S)
    figures = [] if index is None else [_draw_example(run, live, index, sounds)]
    figures += _draw_code_use(live) if live.model.pretraining is not None else []
    return [Section("What it hears", figures)] if figures else []


@torch.inference_mode()
def solve_masked(live: Live, waveform: FloatArray, num_negatives: int, seed: int) -> tuple[BoolArray, BoolArray]:
    """Mask one utterance as in training and let the model find the masked frames.

    Args:
        live: a pretrained model.
        waveform: (N,) at 16 kHz.
        num_negatives: K.
        seed: of the mask and the negatives.

    Returns:
        Mask (T,), and for each masked frame in order of time whether the target got the highest score (M,).
    """
    assert live.model.pretraining is not None, "only a pretrained model has targets"
    rng = np.random.default_rng(seed)
    batch = torch.from_numpy(waveform)[None]
    num_frames = int(live.model.count_frames(batch, None)[0])
    mask = sample_masks([num_frames], live.model.config.mask, rng)[0]
    if mask.sum() < 2:
        return np.zeros(num_frames, dtype=np.bool_), np.zeros(0, dtype=np.bool_)
    negatives = sample_negatives(int(mask.sum()), num_negatives, rng)
    config = live.model.config
    prepared = normalize_waveforms(batch, None, config.waveform_epsilon) if config.normalize_waveform else batch
    rows = torch.from_numpy(mask)[None], torch.from_numpy(negatives)[None]
    output = live.model.pretraining(prepared, None, *rows, None, 1.0)
    return mask, (output.logits[0].argmax(-1) == 0).numpy()


@torch.inference_mode()
def count_codes(live: Live) -> tuple[IntArray, int]:
    """Count how often each code is chosen, on a few minutes of speech.

    Returns:
        Counts (G, V) and the number of utterances.
    """
    quantizer = live.model.config.quantizer
    counts = np.zeros((quantizer.num_groups, quantizer.num_codes), dtype=np.int64)
    chosen = choose_evenly(list_long_enough(live), USE_UTTERANCES)
    for index in chosen:
        codes, _ = live.model.codes(torch.from_numpy(read_waveform(live.manifest, index, USE_S))[None], None)
        for group in range(quantizer.num_groups):
            counts[group] += np.bincount(codes[0, :, group].numpy(), minlength=quantizer.num_codes)
    return counts, len(chosen)


def _draw_example(run: RunFolder, live: Live, index: int, sounds: Sounds) -> Figure:
    waveform, row = read_waveform(live.manifest, index, 1.5 * EXAMPLE_S), live.manifest[index]
    strip = Strip(len(waveform) / SAMPLE_RATE, draw_spectrogram(waveform), row.text or "", sounds.encode(waveform))
    note = ""
    if live.model.pretraining is not None:
        num_negatives = int(run.get_config("objective.num_negatives", 100))
        mask, right = solve_masked(live, waveform, num_negatives, int(run.get_config("seed", 1)))
        with torch.inference_mode():
            codes = live.model.codes(torch.from_numpy(waveform)[None], None)[0][0].numpy()
        strip.masked, strip.found = (
            find_spans(mask),
            list(zip(np.flatnonzero(mask).tolist(), right.tolist(), strict=True)),
        )
        strip.codes = [find_stretches(codes[:, group].tolist()) for group in range(codes.shape[1])]
        strip.num_codes = live.model.config.quantizer.num_codes
        note = _explain(run, live, mask, right, codes)
    return Figure(f"One utterance, {row.id}", strip, note, is_wide=True)


def _explain(run: RunFolder, live: Live, mask: BoolArray, right: BoolArray, codes: IntArray) -> str:
    share, chance = float(right.mean()) if len(right) else 0.0, find_chance(run)
    changes = float((codes[1:] != codes[:-1]).any(1).sum()) / max(len(codes) * FRAME_S, 1e-9)
    where = "held-out" if live.held_out else "training"
    return (
        f"Frames under the veil ({format_percent(float(mask.mean()))} of this {where} utterance) were hidden from the "
        "model. A tall mark says that it still picked the frame’s own code vector among "
        f"{chance.candidates}, which it did for {format_percent(share)} of them (guessing finds "
        f"{format_percent(chance.accuracy, 2)}). The lanes below show which code each codebook gives each 20 ms frame: "
        f"a long dash is a code that stays. The codes change {format_number(changes)} times a second; people speak "
        "some 10 to 15 phones a second."
    )


def _draw_code_use(live: Live) -> list[Figure]:
    counts, num_utterances = count_codes(live)
    figures = []
    for group, row in enumerate(counts):
        shares = np.sort(row / max(int(row.sum()), 1))[::-1]
        present = shares[shares > 0]
        effective = float(np.exp(-(present * np.log(present)).sum())) if len(present) else 0.0
        note = (
            f"{len(present)} of {len(row)} codes are used, as evenly as {format_number(effective)} codes in equal use. "
            f"Counted on {format_number(int(row.sum()))} frames of {num_utterances} utterances."
        )
        ranks = range(1, len(row) + 1)
        bars = make_series("share", f"c{group % 5 + 1}", ranks, (100 * shares).tolist(), kind="bars")
        options = {"x_label": "code, the busiest first", "from_zero": True}
        title = f"Use of codebook {group + 1}"
        figures += plot(title, "% of frames", [bars], note, [("equal use", 100 / len(row))], **options)
    return figures

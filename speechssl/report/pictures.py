"""What a model makes of speech: one utterance over time, how often each code is chosen, and a map of voices."""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.model.log_mel import compute_log_mel
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.wav2vec2 import normalize_waveforms
from speechssl.report.figures import Figure, Section, format_number, format_percent, make_series, plot
from speechssl.report.live import (
    Live,
    Sounds,
    choose_evenly,
    choose_example,
    list_long_enough,
    read_waveform,
)
from speechssl.report.pretraining import find_chance
from speechssl.report.run_folder import RunFolder
from speechssl.seeds import make_rng

EXAMPLE_S = 6.0
USE_UTTERANCES, USE_S = 30, 5.0
"""Code use is counted on at most so many utterances, the first seconds of each: some minutes of speech."""

MAX_SPEAKERS, MAX_UTTERANCES, UTTERANCE_S = 15, 120, 3.0
LEAST_FOR_TSNE = 30

NUM_MELS, HOP_SAMPLES, WINDOW_SAMPLES, FFT_SAMPLES, MIN_HZ = 96, 80, 400, 1024, 50.0

RANGE_DB = 62.0
"""Levels this far under the loudest one are drawn as silence."""

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]
# Anchors of the palettes, from silence to loudest: one rise in lightness each, so that they also read in grey.
LIGHT = ((248, 250, 251), (206, 226, 234), (120, 178, 202), (37, 113, 155), (12, 58, 100), (8, 22, 48))
DARK = ((17, 22, 29), (24, 44, 72), (30, 88, 126), (48, 150, 168), (150, 214, 190), (250, 250, 226))


@dataclass
class Strip:
    """What page.html draws of one utterance; places in time are frames.

    Attributes:
        duration_s: length of the utterance, the width of every row.
        pictures: its spectrogram for light pages and for dark ones, as data URIs.
        text: what is said; '' where that is not known.
        sound: as a data URI; None without.
        masked: stretches of frames that were hidden and that were not: first frame, length, 1 or 0.
        found: each masked frame, and whether the model picked it.
        codes: for each codebook the stretches of one code: first frame, length, code.
        num_codes: V.
        letters: the frame where each letter is written, and the letter.
        frame_rate: frames a second.
    """

    macro: ClassVar[str] = "strip"
    duration_s: float
    pictures: tuple[str, str]
    text: str = ""
    sound: str | None = None
    masked: Sequence[tuple[int, int, int]] = ()
    found: Sequence[tuple[int, bool]] = ()
    codes: Sequence[Sequence[tuple[int, int, int]]] = ()
    num_codes: int = 1
    letters: Sequence[tuple[int, str]] = field(default_factory=list)
    frame_rate: float = 50


def find_stretches(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """List the stretches of one value as (first, length, value)."""
    stretches, first = [], 0
    for value, members in groupby(values):
        length = len(list(members))
        stretches.append((first, length, value))
        first += length
    return stretches


def draw_spectrogram(waveform: FloatArray) -> tuple[str, str]:
    """Draw a waveform (N,) at 16 kHz: 50 Hz to 8 kHz on the mel scale, high ones on top, a column every 5 ms."""
    padded = np.pad(waveform, WINDOW_SAMPLES // 2)
    bands = compute_log_mel(padded, NUM_MELS, HOP_SAMPLES, FFT_SAMPLES, MIN_HZ) * (10 / np.log(10))
    scaled = np.clip(1 + (bands - bands.max()) / RANGE_DB, 0.0, 1.0)
    levels = np.round(scaled[::-1] * 255).astype(np.uint8)
    return _encode(levels, LIGHT), _encode(levels, DARK)


def encode_png(levels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Write an 8-bit picture with a palette as PNG.

    Args:
        levels: (height, width) indices into the palette.
        palette: (256, 3) red, green, blue.

    Source: PNG specification, third edition, §11 (chunks IHDR, PLTE, IDAT, IEND; filter type 0 in each row).
    """
    height, width = levels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = levels
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 9)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _encode(levels: npt.NDArray[np.uint8], anchors: tuple[tuple[int, int, int], ...]) -> str:
    places = np.linspace(0, 255, len(anchors))
    columns = [np.interp(np.arange(256), places, [anchor[c] for anchor in anchors]) for c in range(3)]
    palette = np.stack(columns, axis=1).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(levels, palette)).decode("ascii")


def make_hearing(run: RunFolder, live: Live, sounds: Sounds) -> list[Section]:
    """Draw one utterance, with its mask and codes where the model has a quantizer, and the use of each codebook."""
    index = choose_example(live, EXAMPLE_S)
    figures = [] if index is None else [_draw_example(run, live, index, sounds)]
    figures += _draw_code_use(live) if live.model.pretraining is not None else []
    return [Section("What it hears", figures)]


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
    rng = make_rng(seed, "picture")
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
    strip.frame_rate = live.model.config.frame_rate
    note = ""
    if live.model.pretraining is not None:
        num_negatives = int(run.get_config("objective.num_negatives", 100))
        mask, right = solve_masked(live, waveform, num_negatives, int(run.get_config("seed", 1)))
        with torch.inference_mode():
            codes = live.model.codes(torch.from_numpy(waveform)[None], None)[0][0].numpy()
        strip.masked = find_stretches(mask.astype(int).tolist())
        strip.found = list(zip(np.flatnonzero(mask).tolist(), right.tolist(), strict=True))
        strip.codes = [find_stretches(codes[:, group].tolist()) for group in range(codes.shape[1])]
        strip.num_codes = live.model.config.quantizer.num_codes
        note = _explain(run, live, mask, right, codes)
    return Figure(f"One utterance, {row.id}", strip, note, is_wide=True)


def _explain(run: RunFolder, live: Live, mask: BoolArray, right: BoolArray, codes: IntArray) -> str:
    share, chance = float(right.mean()) if len(right) else 0.0, find_chance(run)
    frame_rate = live.model.config.frame_rate
    changes = float((codes[1:] != codes[:-1]).any(1).sum()) * frame_rate / max(len(codes), 1)
    where = "held-out" if live.held_out else "training"
    return (
        f"Frames under the veil ({format_percent(float(mask.mean()))} of this {where} utterance) were hidden from the "
        "model. A tall mark says that it still picked the frame’s own code vector among "
        f"{chance.candidates}, which it did for {format_percent(share)} of them (guessing finds "
        f"{format_percent(chance.accuracy, 2)}). The lanes below show which code each codebook gives each "
        f"{1000 // frame_rate} ms frame: a long dash is a code that stays. The codes change "
        f"{format_number(changes)} times a second; people speak some 10 to 15 phones a second."
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
        options: dict[str, Any] = {"x_label": "code, the busiest first", "from_zero": True}
        title = f"Use of codebook {group + 1}"
        figures += plot(title, "% of frames", [bars], note, [("equal use", 100 / len(row))], **options)
    return figures


@dataclass(frozen=True)
class Map:
    """Utterances as points in a plane, in groups that have a shape and a colour each.

    Attributes:
        points: x and y (0 to 100, downwards), number of the group, name, and its sound among `Sounds.clips`.
        groups: names, each with the place of its label.
    """

    macro: ClassVar[str] = "map"
    points: Sequence[tuple[float, float, int, str, int | None]]
    groups: Sequence[tuple[float, float, str]]


def make_speakers(live: Live, sounds: Sounds) -> list[Section]:
    """Draw the embeddings of some layers in two dimensions; [] where the manifest names fewer than two speakers."""
    chosen, speakers = choose_utterances(live)
    if len(set(speakers)) < 2:
        return []
    last = live.model.num_layers
    layers = sorted({0, (last + 1) // 2, last})
    waveforms = [read_waveform(live.manifest, index, UTTERANCE_S) for index in chosen]
    embeddings = embed_layers(live, waveforms, layers)
    clips = [sounds.add_clip(live.manifest, k, waveform) for k, waveform in zip(chosen, waveforms, strict=True)]
    names = [f"{live.manifest[index].id}, speaker {speaker}" for index, speaker in zip(chosen, speakers, strict=True)]
    figures, total = [], len(speakers)
    # Of all pairs of different utterances, those of one speaker.
    chance = sum(n * (n - 1) for n in Counter(speakers).values()) / (total * (total - 1))
    for layer in layers:
        agreement = compute_neighbour_agreement(embeddings[layer], speakers)
        note = (
            f"For {format_percent(agreement)} of the utterances the nearest neighbour (cosine, all dimensions) "
            f"is of the same speaker; by chance it would be {format_percent(chance)}."
        )
        where = {0: ", what enters the first block", last: ", the last"}.get(layer, ", in the middle")
        drawn = _draw(reduce_to_plane(embeddings[layer]), speakers, names, clips)
        figures.append(Figure(f"Layer {layer}{where}", drawn, note))
    method = "t-SNE after principal components" if len(chosen) >= LEAST_FOR_TSNE else "two principal components"
    lead = (
        f"Each mark is the mean over time of one {'held-out' if live.held_out else 'training'} utterance "
        f"({len(chosen)} of them, at most {UTTERANCE_S:g} s each, {len(set(speakers))} speakers), drawn with {method}. "
        "No label was used in pretraining: marks of one shape and colour that lie together mean that the model hears "
        "who speaks. Distances between groups mean little in such a drawing. A click on a mark plays it."
    )
    return [Section("Voices", figures, lead)]


def choose_utterances(live: Live) -> tuple[list[int], list[str]]:
    """Choose utterances of the speakers who have most, as many of each; without speakers, none.

    Returns:
        Rows of the manifest, and their speakers.
    """
    if not live.manifest.has("speaker"):
        return [], []
    speakers = live.manifest.column("speaker")
    by_speaker: dict[str, list[int]] = defaultdict(list)
    for index in list_long_enough(live, 1.0):
        if speakers[index]:
            by_speaker[speakers[index]].append(index)
    several = {speaker: rows for speaker, rows in by_speaker.items() if len(rows) >= 2}
    names = sorted(several, key=lambda speaker: (-len(several[speaker]), speaker))[:MAX_SPEAKERS]
    quota = MAX_UTTERANCES // max(len(names), 1)
    pairs = [(index, name) for name in names for index in choose_evenly(several[name], quota)]
    return [index for index, _ in pairs], [name for _, name in pairs]


@torch.inference_mode()
def embed_layers(live: Live, waveforms: Sequence[FloatArray], layers: list[int]) -> dict[int, DoubleArray]:
    """Embed utterances as the mean over their valid frames.

    Returns:
        For each layer (n, D), in the order of `waveforms`.
    """
    rows = []
    for waveform in waveforms:
        frames = live.model(torch.from_numpy(waveform)[None], None)
        rows.append([frames.layers[layer][0].double().mean(0).numpy() for layer in layers])
    return {layer: np.array([row[k] for row in rows]) for k, layer in enumerate(layers)}


def reduce_to_plane(embeddings: DoubleArray) -> DoubleArray:
    """Reduce (n, D) to (n, 2): principal components, then t-SNE where there are points enough for it."""
    centred = embeddings - embeddings.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    components = left * scale
    if len(embeddings) < LEAST_FOR_TSNE:
        return np.pad(components[:, :2], ((0, 0), (0, max(2 - components.shape[1], 0))))
    from sklearn.manifold import TSNE

    perplexity = min(15.0, (len(embeddings) - 1) / 3)
    start = components[:, :2] / max(float(components[:, 0].std()), 1e-12) * 1e-4
    # For so few points the exact method is the quicker one, and it does not wait for threads on a busy machine.
    method = TSNE(2, perplexity=perplexity, init=start, random_state=1, max_iter=500, method="exact")
    plane: DoubleArray = method.fit_transform(components[:, :30]).astype(np.float64)
    return plane


def compute_neighbour_agreement(embeddings: DoubleArray, speakers: list[str]) -> float:
    """Give the share of rows whose nearest other row (cosine, after centring) has the same speaker."""
    centred = embeddings - embeddings.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(1)
    return float(np.mean([speakers[k] == speakers[int(n)] for k, n in enumerate(nearest)]))


def _draw(plane: DoubleArray, speakers: list[str], names: list[str], clips: list[int | None]) -> Map:
    low, span = plane.min(0), np.maximum(np.ptp(plane, axis=0), 1e-9)
    places = (4 + 92 * (plane - low) / span).round(2)
    groups = sorted(set(speakers))
    numbers = [groups.index(speaker) for speaker in speakers]
    points = [(*place, *rest) for place, *rest in zip(places.tolist(), numbers, names, clips, strict=True)]
    middles = [np.median(places[np.array(numbers) == number], axis=0).tolist() for number in range(len(groups))]
    return Map(points, [(x, y, name) for (x, y), name in zip(middles, groups, strict=True)])

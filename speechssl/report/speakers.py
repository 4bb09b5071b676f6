"""Utterances as points in a plane: does the model tell speakers apart that nobody named to it?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from speechssl.report.content import Figure, Section, format_percent
from speechssl.report.live import Live, choose_evenly, list_long_enough, stack_waveforms
from speechssl.report.sounds import Sounds, read_waveform

MAX_SPEAKERS, MAX_UTTERANCES, UTTERANCE_S, BATCH = 15, 120, 3.0, 10
LEAST_FOR_TSNE = 30

FloatArray = npt.NDArray[np.float64]


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
    figures = []
    for layer in layers:
        agreement = compute_neighbour_agreement(embeddings[layer], speakers)
        note = (
            f"For {format_percent(agreement)} of the utterances the nearest neighbour (cosine, all dimensions) "
            f"is of the same speaker; by chance it would be {format_percent(_find_chance(speakers))}."
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
def embed_layers(live: Live, waveforms: Sequence[npt.NDArray[np.float32]], layers: list[int]) -> dict[int, FloatArray]:
    """Embed utterances as the mean over their valid frames.

    Returns:
        For each layer (n, D), in the order of `waveforms`.
    """
    order = sorted(range(len(waveforms)), key=lambda k: len(waveforms[k]))
    rows: dict[int, FloatArray] = {layer: np.zeros((len(waveforms), live.model.dim)) for layer in layers}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        frames = live.model(*stack_waveforms([waveforms[k] for k in batch]))
        for layer in layers:
            for k, row, num_frames in zip(batch, frames.layers[layer], frames.num_frames.tolist(), strict=True):
                rows[layer][k] = row[:num_frames].double().mean(0).numpy()
    return rows


def reduce_to_plane(embeddings: FloatArray) -> FloatArray:
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
    plane: FloatArray = method.fit_transform(components[:, :30]).astype(np.float64)
    return plane


def compute_neighbour_agreement(embeddings: FloatArray, speakers: list[str]) -> float:
    """Give the share of rows whose nearest other row (cosine, after centring) has the same speaker."""
    centred = embeddings - embeddings.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(1)
    return float(np.mean([speakers[k] == speakers[int(n)] for k, n in enumerate(nearest)]))


def _find_chance(speakers: list[str]) -> float:
    """Share of pairs of different utterances that have the same speaker."""
    total = len(speakers)
    same = sum(speakers.count(speaker) * (speakers.count(speaker) - 1) for speaker in set(speakers))
    return same / (total * (total - 1))


def _draw(plane: FloatArray, speakers: list[str], names: list[str], clips: list[int | None]) -> Map:
    low, span = plane.min(0), np.maximum(np.ptp(plane, axis=0), 1e-9)
    places = (4 + 92 * (plane - low) / span).round(2)
    groups = sorted(set(speakers))
    numbers = [groups.index(speaker) for speaker in speakers]
    points = [(*place, *rest) for place, *rest in zip(places.tolist(), numbers, names, clips, strict=True)]
    middles = [np.median(places[[k for k, n in enumerate(numbers) if n == number]], axis=0) for number in range(len(groups))]
    return Map(points, [(float(x), float(y), name) for (x, y), name in zip(middles, groups, strict=True)])

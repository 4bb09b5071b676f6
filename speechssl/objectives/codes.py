"""Discrete targets of a waveform, one or two codes a frame: a random projection of log-mel (BEST-RQ), or k-means
clusters of MFCC or of a teacher's states (HuBERT).

A code belongs to a moment, the middle of its frame or of its half of it, whatever the frame rates of student and
teacher: log-mel and MFCC are taken around it, and of a teacher's frames the one whose middle is nearest. So a student
with frames of 40 ms takes every second frame of a teacher with 20 ms, or both with two codes a frame; the other way
round each of the teacher's frames is told twice. R is the number of codes a frame.

Log-mel and MFCC are Kaldi's, as torchaudio computes them: windows of 25 ms, 10 ms apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechssl.checkpoints.clusters import FloatArray, read_clusters
from speechssl.config.knobs import check
from speechssl.config.model import ModelConfig
from speechssl.config.objective import MaskedCodesConfig
from speechssl.data.loader import Batch
from speechssl.interop.load import load_model
from speechssl.seeds import make_rng

WINDOW, STEP, MEL_BINS, MFCC_DIM = 400, 160, 80, 39


@dataclass(frozen=True)
class Grid:
    """Where codes lie in time: code k belongs to `field` samples from sample `hop` · k on, or to what is their middle.

    Attributes:
        hop: samples from one code to the next.
        field: samples that a code's frame sees. Of half a frame, what leaves its middle in the middle of that half.
    """

    hop: int
    field: int


def make_grid(config: ModelConfig, codes_per_frame: int = 1) -> Grid:
    """Place a model's codes: those of frame k are number `codes_per_frame` · k and the following."""
    hop = config.hop_samples // codes_per_frame
    return Grid(hop, config.receptive_field - config.hop_samples + hop)


def stack_log_mel(waveform: FloatArray, num_codes: int, grid: Grid, stack: int) -> Tensor:
    """Stack normalised log-mel around the moment of each code: (F, stack · 80) float64.

    BEST-RQ stacks four frames for an encoder frame of 40 ms; here it is two for one of 20 ms. They reach 5 ms beyond
    the 25 ms that the encoder's frame sees, at either end. Each band has zero mean and unit variance over the crop:
    without that most frames get few codes (BEST-RQ §3.1), and loudness and microphone would be most of what they tell.
    With statistics of the whole corpus, targets would depend on more than the audio.

    Args:
        waveform: (N,) at 16 kHz.
        num_codes: F.
        grid: where they lie.
        stack: log-mel frames for each of them.
    """
    from torchaudio.compliance import kaldi

    x: Tensor = kaldi.fbank(_centre(waveform, grid.field, WINDOW + STEP * (stack - 1)), num_mel_bins=MEL_BINS)
    # A band that never changes, as in digital silence, has no deviation.
    x = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
    places = grid.hop // STEP * torch.arange(num_codes)[:, None] + torch.arange(stack)
    return x[places].flatten(1)


def compute_mfcc(waveform: FloatArray, num_codes: int, grid: Grid, subtract_mean: bool = False) -> Tensor:
    """Compute 13 MFCC with first and second differences around the moment of each code: (F, 39) float64.

    As HuBERT's first iteration (fairseq's `dump_mfcc_feature`), not normalised; of its 100 a second every other one
    for codes that are 20 ms apart.

    Args:
        waveform: (N,) at 16 kHz.
        num_codes: F.
        grid: where they lie.
        subtract_mean: take the mean over time from each coefficient, and with it loudness, microphone and part of the
            voice (cepstral mean normalisation).
    """
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    x = kaldi.mfcc(_centre(waveform, grid.field, WINDOW), use_energy=False, subtract_mean=subtract_mean).T
    first = compute_deltas(x)
    return torch.cat([x, first, compute_deltas(first)]).T[:: grid.hop // STEP][:num_codes]


def draw_projection(seed: int, num_inputs: int, num_codes: int, code_dim: int) -> tuple[FloatArray, FloatArray]:
    """Draw what is never trained: normal codes (V, E) of length 1, and a Xavier-uniform matrix (inputs, E).

    BEST-RQ scales the projected vector to length 1 too, which changes no choice among codes of one length.
    """
    bound = (6 / (num_inputs + code_dim)) ** 0.5
    projection = make_rng(seed, "projection").uniform(-bound, bound, (num_inputs, code_dim))
    codes = make_rng(seed, "codes").standard_normal((num_codes, code_dim))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    return codes.astype(np.float32), projection.astype(np.float32)


class Teacher:
    """A layer of a frozen model, whose states are made into codes.

    Args:
        config: the student's network; the teacher's frames may be longer or shorter than its.
        task: which model, pretrained or a recogniser, and which layer of it.

    Raises:
        ConfigError: the model does not load, or does not fit the student or the clusters.

    Attributes:
        clusters: given ones of that layer; None where they are to be fitted.
    """

    def __init__(self, config: ModelConfig, task: MaskedCodesConfig) -> None:
        self.name, self.layer = task.teacher, task.teacher_layer
        self.model = load_model(task.teacher, key="objective.teacher")
        last, own = self.model.num_layers, self.model.config
        check(
            0 <= self.layer <= last, "objective.teacher_layer", f"between 0 and the teacher's {last} blocks", self.layer
        )
        self.grid, per_frame = make_grid(config, task.codes_per_frame), task.codes_per_frame
        is_fine = per_frame == 1 or own.hop_samples <= self.grid.hop
        why = f"1, since a frame of the teacher ({own.hop_samples} samples) is longer than half of the model's"
        check(is_fine, "objective.codes_per_frame", why, per_frame)
        knows_level = own.normalize_waveform or not config.normalize_waveform
        must = "a model that takes normalised waveforms, as `model` does"
        check(knows_level, "objective.teacher", must, task.teacher)
        self.clusters = read_clusters(task.codes, "objective.codes") if task.codes else None
        if self.clusters is not None:
            self.clusters.check_model(self.model, "objective.teacher", task.teacher)
            layer, must = self.clusters.layer, "clusters of a layer with a number"
            check(layer.isdecimal(), "objective.codes", must, f"{task.codes}, of {layer}")
            must = f"{layer}, which {task.codes} has clusters of"
            check(str(self.layer) == layer, "objective.teacher_layer", must, self.layer)
            self.clusters.check_number(task.num_codes, "objective.num_codes")

    @torch.no_grad()
    def describe(self, batch: Batch) -> list[Tensor]:
        """Give the states (T, D) of each row, which the teacher hears unmasked and in float32.

        On a CPU one row after the other, so that the codes do not depend on what else is in the batch. A GPU takes all
        rows at once, since it would wait for its launches most of the time, and codes agree to rounding.
        """
        model, device = self.model.to(batch.waveforms.device), batch.waveforms.device.type
        with torch.autocast(device, enabled=False):
            if device == "cpu":
                return [model(row[None]).layers[self.layer][0] for row in split_rows(batch)]
            frames = model(batch.waveforms, batch.num_samples)
            states = zip(frames.layers[self.layer], frames.num_frames.tolist(), strict=True)
            return [row[:count] for row, count in states]

    def place(self, states: Tensor, num_codes: int) -> Tensor:
        """Take the frame whose middle is nearest to the moment of each code: (T, …) → (F, …).

        Of two that are equally near it is the later one; beyond the teacher's last frame it is the last.
        """
        config, grid = self.model.config, self.grid
        ahead = grid.field - config.receptive_field + config.hop_samples
        places = (2 * grid.hop * torch.arange(num_codes, device=states.device) + ahead) // (2 * config.hop_samples)
        return states.index_select(0, places.clamp(0, len(states) - 1))

    def digest(self) -> Tensor:
        """Digest the weights, and given clusters: (32,) uint8."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        if self.clusters is not None:
            digest.update(self.clusters.centroids.tobytes())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def split_rows(batch: Batch) -> list[Tensor]:
    """Give the waveform of each row without its padding."""
    lengths = [batch.waveforms.shape[1]] * len(batch.ids) if batch.num_samples is None else batch.num_samples
    return [waveform[: int(length)] for waveform, length in zip(batch.waveforms, lengths, strict=True)]


def _centre(waveform: FloatArray, field: int, span: int) -> Tensor:
    """Shift a waveform so that windows of `span` samples have the middle of the encoder's frames: (1, N') float64.

    In units of 16-bit samples, as Kaldi has them: its floor under the logarithm would cut quiet speech otherwise.
    """
    lead = (span - field) // 2
    padded = np.pad(waveform, max(lead, 0), "reflect")[max(-lead, 0) :]
    return torch.from_numpy(padded)[None].double() * 2**15

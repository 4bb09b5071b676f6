"""Discrete targets of a waveform, one code a frame: a random projection of log-mel (BEST-RQ), or k-means clusters of
MFCC or of a teacher's states (HuBERT).

Log-mel and MFCC are Kaldi's, as torchaudio computes them: windows of 25 ms, 10 ms apart.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.config.knobs import check
from speechssl.config.model import ModelConfig
from speechssl.config.objective import MaskedCodesConfig
from speechssl.data.loader import Batch
from speechssl.errors import ConfigError
from speechssl.interop.load import load_model
from speechssl.seeds import make_rng

WINDOW, STEP, MEL_BINS, MFCC_DIM = 400, 160, 80, 39

FloatArray = npt.NDArray[np.float32]


def stack_log_mel(waveform: FloatArray, num_frames: int, field: int, stack: int, hop: int = 320) -> Tensor:
    """Stack normalised log-mel around the middle of each of the encoder's frames: (T, stack · 80) float64.

    BEST-RQ stacks four frames for an encoder frame of 40 ms; here it is two for one of 20 ms. They reach 5 ms beyond
    the 25 ms that the encoder's frame sees, at either end. Each band has zero mean and unit variance over the crop:
    without that most frames get few codes (BEST-RQ §3.1), and loudness and microphone would be most of what they tell.
    With statistics of the whole corpus, targets would depend on more than the audio.

    Args:
        waveform: (N,) at 16 kHz.
        num_frames: T, of the encoder.
        field: samples that one of the encoder's frames sees.
        stack: log-mel frames for each of its frames.
        hop: samples from one of the encoder's frames to the next.
    """
    from torchaudio.compliance import kaldi

    x: Tensor = kaldi.fbank(_centre(waveform, field, WINDOW + STEP * (stack - 1)), num_mel_bins=MEL_BINS)
    # A band that never changes, as in digital silence, has no deviation.
    x = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
    places = hop // STEP * torch.arange(num_frames)[:, None] + torch.arange(stack)
    return x[places].flatten(1)


def compute_mfcc(
    waveform: FloatArray, num_frames: int, field: int, subtract_mean: bool = False, hop: int = 320
) -> Tensor:
    """Compute 13 MFCC with first and second differences for each of the encoder's frames: (T, 39) float64.

    As HuBERT's first iteration (fairseq's `dump_mfcc_feature`), not normalised; of its 100 a second every other one,
    or every fourth at 25 Hz.

    Args:
        waveform: (N,) at 16 kHz.
        num_frames: T, of the encoder.
        field: samples that one of the encoder's frames sees.
        subtract_mean: take the mean over time from each coefficient, and with it loudness, microphone and part of the
            voice (cepstral mean normalisation).
        hop: samples from one of the encoder's frames to the next.
    """
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    x = kaldi.mfcc(_centre(waveform, field, WINDOW), use_energy=False, subtract_mean=subtract_mean).T
    first = compute_deltas(x)
    return torch.cat([x, first, compute_deltas(first)]).T[:: hop // STEP][:num_frames]


def find_nearest(x: Tensor, codes: Tensor) -> Tensor:
    """Find the code that is nearest to each vector: (T, E), (V, E) → (T,) int64."""
    return (x.float() @ codes.T - codes.square().sum(1) / 2).argmax(1)


def draw_projection(seed: int, num_inputs: int, num_codes: int, code_dim: int) -> tuple[FloatArray, FloatArray]:
    """Draw what is never trained: normal codes (V, E) of length 1, and a Xavier-uniform matrix (inputs, E).

    BEST-RQ scales the projected vector to length 1 too, which changes no choice among codes of one length.
    """
    bound = (6 / (num_inputs + code_dim)) ** 0.5
    projection = make_rng(seed, "projection").uniform(-bound, bound, (num_inputs, code_dim))
    codes = make_rng(seed, "codes").standard_normal((num_codes, code_dim))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    return codes.astype(np.float32), projection.astype(np.float32)


def fit_centroids(features: FloatArray, num_codes: int, seed: int) -> FloatArray:
    """Fit mini-batch k-means with HuBERT's settings (fairseq's `learn_kmeans`): (F, E) → (V, E), the same every time.

    Raises:
        ConfigError: there are fewer frames than codes.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < num_codes:
        raise ConfigError(
            f"`objective.num_codes` must be at most the {len(features)} frames that objective.fit_s gives, "
            f"but is {num_codes}"
        )
    kmeans = MiniBatchKMeans(
        num_codes,
        batch_size=10_000,
        max_no_improvement=100,
        n_init=20,
        reassignment_ratio=0.0,
        random_state=int(make_rng(seed, "k-means").integers(2**31)),
    )
    centroids: FloatArray = kmeans.fit(features).cluster_centers_.astype(np.float32)
    return centroids


class Teacher:
    """A layer of a frozen model, whose states are made into codes.

    Args:
        config: the student's network, whose frames the teacher's must be.
        task: which model, and which layer of it.

    Raises:
        ConfigError: the model does not load, or does not fit the student.
    """

    def __init__(self, config: ModelConfig, task: MaskedCodesConfig) -> None:
        self.name, self.layer = task.teacher, task.teacher_layer
        self.model = load_model(task.teacher, key="objective.teacher")
        last, own = self.model.num_layers, self.model.config
        check(
            0 <= self.layer <= last, "objective.teacher_layer", f"between 0 and the teacher's {last} blocks", self.layer
        )
        shape, wanted = own.frame_windows, config.frame_windows
        check(shape == wanted, "objective.teacher", f"a model with the convolutions {wanted}", shape)
        knows_level = own.normalize_waveform or not config.normalize_waveform
        must = "a model that takes normalised waveforms, as `model` does"
        check(knows_level, "objective.teacher", must, task.teacher)

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

    def digest(self) -> Tensor:
        """Digest the weights: (32,) uint8."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
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

"""Sounds inside the page, as Ogg/Opus in data URIs, within a budget that is counted."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.audio.reading import SAMPLE_RATE, load_audio
from speechssl.data.manifest import Manifest

FloatArray = npt.NDArray[np.float32]

LONGEST_S = 20.0

MAX_BYTES = 3_000_000
"""Of all sounds of a page, as base64 text; the page itself stays under 5 MB."""

COMPRESSION = 0.95
"""Of Opus: about 20 kbit/s, which speech of 16 kHz loses little by."""


@dataclass
class Sounds:
    """The sounds of one page: how many bytes they take, and how many had no room.

    Attributes:
        budget: bytes that all of them may take.
        clips: data URIs that points of a map play, each utterance once however many maps it is on.
    """

    budget: int = MAX_BYTES
    num_bytes: int = 0
    num_kept: int = 0
    num_left_out: int = 0
    clips: list[str] = field(default_factory=list)
    _places: dict[str, int | None] = field(default_factory=dict)

    def encode(self, waveform: FloatArray) -> str | None:
        """Encode (N,) at 16 kHz; None where it has no room, or this libsndfile no Opus."""
        if not soundfile.check_format("OGG", "OPUS"):
            self.num_left_out += 1
            return None
        buffer = io.BytesIO()
        soundfile.write(buffer, waveform, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
        uri = "data:audio/ogg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if self.num_bytes + len(uri) > self.budget:
            self.num_left_out += 1
            return None
        self.num_bytes += len(uri)
        self.num_kept += 1
        return uri

    def add_clip(self, manifest: Manifest, index: int, waveform: FloatArray) -> int | None:
        """Give the place of an utterance among `clips`; None where it has no room."""
        row = manifest[index]
        key = f"{row.path}:{row.offset}:{row.channel}"
        if key not in self._places:
            uri = self.encode(waveform)
            self._places[key] = None if uri is None else len(self.clips)
            self.clips += [] if uri is None else [uri]
        return self._places[key]

    def describe(self) -> str:
        """Say what the sounds take, and what was left out; '' without any."""
        if not self.num_kept and not self.num_left_out:
            return ""
        size = f"{self.num_kept} sounds take {self.num_bytes / 1e6:.1f} MB of it"
        return f"{size}; {self.num_left_out} more were left out to keep the page small." if self.num_left_out else f"{size}."


def read_waveform(manifest: Manifest, index: int, longest_s: float = LONGEST_S) -> FloatArray:
    """Read one utterance, or its first `longest_s` seconds: (N,) at 16 kHz."""
    row = manifest[index]
    num_samples = min(row.num_samples, int(longest_s * row.sample_rate))
    return load_audio(row.path, row.offset, num_samples, row.sample_rate, row.channel)

"""Audio files to mono float32 at 16 kHz."""

from speechssl.audio.reading import AudioFile, AudioInfo, load_audio, read_info
from speechssl.audio.waveform import SAMPLE_RATE, convert_waveform

__all__ = ["SAMPLE_RATE", "AudioFile", "AudioInfo", "convert_waveform", "load_audio", "read_info"]

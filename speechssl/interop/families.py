"""Speech models that are no wav2vec 2.0, told by what their files call them."""

from __future__ import annotations

from typing import NoReturn

from speechssl.errors import CheckpointError
from speechssl.parsing import show

FAMILIES = {
    "hubert": "HuBERT",
    "hubert_ctc": "HuBERT",
    "wavlm": "WavLM",
    "data2vec-audio": "data2vec",
    "data2vec_audio": "data2vec",
    "data2vec_multi": "data2vec 2.0",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeech-SAT",
    "wav2vec2-conformer": "wav2vec 2.0 Conformer",
    "wav2vec2-bert": "w2v-BERT 2.0",
    "wav2vec": "wav2vec (the first)",
    "wav2vec_seq2seq": "wav2vec 2.0 with a decoder",
    "sew": "SEW",
    "sew-d": "SEW-D",
    "mctct": "M-CTC-T",
    "whisper": "Whisper",
    "speech-encoder-decoder": "a speech encoder with a text decoder",
}
"""Names of architectures in Hugging Face's `model_type` and in fairseq's `_name` or `arch`."""


def refuse_family(name: object, where: str, key: str) -> NoReturn:
    """Say that a model is no wav2vec 2.0.

    Args:
        name: what its file calls it.
        where: the file.
        key: the key that the error names.

    Raises:
        CheckpointError: always; it names the family.
    """
    family = FAMILIES.get(name) if isinstance(name, str) else None
    problem = f"describes {family}, which does not load yet" if family else f"has the model type {show(name)}"
    raise CheckpointError(f"`{key}` must be a wav2vec 2.0 model, but {where} {problem}")

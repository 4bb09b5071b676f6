"""What a Hugging Face folder says about audio and text: feature extractor and tokenizer files of both spellings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.checks import read_json
from speechssl.checkpoints.model_folder import PIECES
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.files import write_json
from speechssl.interop.foreign import make_vocabulary, read_field
from speechssl.interop.huggingface.languages import choose_tokens
from speechssl.interop.huggingface.pieces import FAST, write_pieces
from speechssl.interop.pieces import read_pieces
from speechssl.parsing import show
from speechssl.text.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

BANDS = "SeamlessM4TFeatureExtractor"
"""The feature extractor of w2v-BERT 2.0."""

EPSILON = 1e-7
"""What Hugging Face's feature extractor adds to the variance."""

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
VOCABULARY, TOKENIZER, SPECIALS, ADDED = (
    "vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip

_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The tokenizer's special tokens, with the defaults of `Wav2Vec2CTCTokenizer`."""


@dataclass(frozen=True)
class Labels:
    """The outputs of a CTC head.

    Attributes:
        vocabulary: the blank first.
        order: for each of our outputs the row of the file's head.
    """

    vocabulary: Vocabulary
    order: tuple[int, ...]


def read_audio(folder: Path, key: str) -> tuple[bool, float]:
    """Read whether waveforms are normalised, and with which epsilon.

    Version 4 of `transformers` writes preprocessor_config.json, version 5 processor_config.json with the same
    mapping inside; where both are there and differ, version 5 takes its own and 4 the other, so neither is taken.

    Raises:
        CheckpointError: no file says so, two files contradict each other, or the model wants another sample rate.
    """
    found = _read_extractors(folder, "whether waveforms are normalised (do_normalize)", key)
    choices = {name: values.get("do_normalize", True) for name, values in found.items()}
    for name in found:
        if not isinstance(choices[name], bool):
            raise CheckpointError(
                f"`{key}` must have true or false as do_normalize in {folder / name}, but has {show(choices[name])}"
            )
    if len(set(choices.values())) > 1:
        said = " and ".join(f"{value} in {name}" for name, value in choices.items())
        raise CheckpointError(f"`{key}` must say one thing about do_normalize, but {folder} says {said}")
    return bool(next(iter(choices.values()))), EPSILON


def read_num_mels(folder: Path, key: str) -> int:
    """Read how many of Kaldi's bands a model takes; files and errors as `read_audio`."""
    found = _read_extractors(folder, "how many bands there are (num_mel_bins)", key)
    counts = set()
    for name, values in found.items():
        given = values.get("feature_extractor_type", BANDS)
        if given != BANDS:
            raise CheckpointError(f"`{key}` must have {BANDS} in {folder / name}, but has {show(given)}")
        if values.get("stride", 2) != 2:
            raise CheckpointError(
                f"`{key}` must have pairs of bands (stride=2) in {folder / name}, but has {show(values['stride'])}"
            )
        counts.add(read_field(values, "num_mel_bins", 80, str(folder / name), key))
    if len(counts) > 1:
        raise CheckpointError(f"`{key}` must say one thing about num_mel_bins, but {folder} says {sorted(counts)}")
    return int(counts.pop())


def _read_extractors(folder: Path, what: str, key: str) -> dict[str, dict[str, Any]]:
    """Read what each file of a folder says of the feature extractor."""
    found: dict[str, dict[str, Any]] = {}
    if (folder / PROCESSOR).is_file():
        inner = read_json(folder / PROCESSOR, key).get("feature_extractor")
        found |= {PROCESSOR: inner} if isinstance(inner, dict) else {}
    if (folder / PREPROCESSOR).is_file():
        found[PREPROCESSOR] = read_json(folder / PREPROCESSOR, key)
    if not found:
        raise CheckpointError(f"`{key}` must say in {PREPROCESSOR} {what}, but {folder} has no such file")
    for name, values in found.items():
        rate = values.get("sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise CheckpointError(f"`{key}` must take audio at {SAMPLE_RATE} Hz, but {folder / name} says {show(rate)}")
    return found


def read_labels(folder: Path, num_rows: int, pad_id: Any, key: str, language: str = "") -> Labels:
    """Read the vocabulary of a CTC model.

    Args:
        folder: with vocab.json and, where the tokenizer's tokens are not the usual ones, tokenizer_config.json; or
            with sentencepiece.model instead.
        num_rows: outputs of the head.
        pad_id: `pad_token_id` of config.json: the CTC blank there.
        language: whose tokens are taken where there are those of several; empty: the folder's own.

    Raises:
        CheckpointError: the vocabulary does not fit the head or has no blank.
    """
    if not (folder / VOCABULARY).is_file():
        return _read_pieces(folder, num_rows, key)
    tokens = _read_tokens(folder, num_rows, key, language)
    special = _read_special(folder, key)
    blank = special["pad_token"]
    if blank not in tokens:
        raise CheckpointError(
            f"`{key}` must have its blank {show(blank)} in {folder / VOCABULARY}, but it is not there"
        )
    if pad_id is not None and (type(pad_id) is not int or tokens.index(blank) != pad_id):
        raise CheckpointError(
            f"`{key}` must have its blank {show(blank)} where config.json has pad_token_id={show(pad_id)}, but "
            f"{folder / VOCABULARY} has it at {tokens.index(blank)}"
        )
    boundary = special["word_delimiter_token"]
    symbols = [WORD_BOUNDARY if token == boundary else token for token in tokens]
    first = tokens.index(blank)
    order = (first, *(row for row in range(num_rows) if row != first))
    ordered = tuple(symbols[row] for row in order)
    return Labels(make_vocabulary(ordered, str(folder / VOCABULARY), key), order)


def _read_pieces(folder: Path, num_rows: int, key: str) -> Labels:
    """Read labels that are sentencepieces: one for each row, in the order of the model."""
    if not (folder / PIECES).is_file():
        raise CheckpointError(f"`{key}` must have {VOCABULARY} or {PIECES}, but {folder} has neither")
    vocabulary = read_pieces(folder / PIECES, key)
    if len(vocabulary) != num_rows:
        raise CheckpointError(
            f"`{key}` must have a piece for each of the {num_rows} outputs of its head, but {folder / PIECES} has "
            f"{len(vocabulary)}"
        )
    return Labels(vocabulary, tuple(range(num_rows)))


def export_tokens(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Name each output of a head as Hugging Face does: its blank is `<pad>`, where fairseq's is `<s>`.

    Rows never move: fairseq's `<s> <pad> </s> <unk>` becomes `<pad> <s> </s> <unk>`.
    """
    swap = {"<s>": "<pad>", "<pad>": "<s>"} if vocabulary.symbols[BLANK] == "<s>" else {}
    return tuple(swap.get(symbol, symbol) for symbol in vocabulary.symbols)


def write_processor(folder: Path, config: ModelConfig, vocabulary: Vocabulary | None) -> None:
    """Write the files that decide the audio and the text, so that `transformers` 4 and 5 each find theirs.

    `return_attention_mask` is true for layer-norm models alone, since Hugging Face's group-norm models are meant to
    be run without a mask.
    """
    has_bands = config.front_end == "kaldi_fbank"
    processor = "Wav2Vec2BertProcessor" if has_bands else "Wav2Vec2Processor"
    extractor: dict[str, Any] = {"sampling_rate": SAMPLE_RATE, "padding_value": 0.0, "padding_side": "right"}
    if has_bands:
        extractor |= {"feature_extractor_type": BANDS, "feature_size": config.num_mels, "num_mel_bins": config.num_mels}
        extractor |= {"stride": 2, "return_attention_mask": True}
    else:
        extractor |= {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
        extractor |= {"do_normalize": config.normalize_waveform, "return_attention_mask": config.conv_norm == "layer"}
    if vocabulary is None:
        write_json(folder / PREPROCESSOR, extractor)
        return
    write_json(folder / PREPROCESSOR, {**extractor, "processor_class": processor})
    write_json(folder / PROCESSOR, {"processor_class": processor, "feature_extractor": extractor})
    for name in (VOCABULARY, SPECIALS, FAST, PIECES):
        (folder / name).unlink(missing_ok=True)
    if vocabulary.pieces is not None:
        write_pieces(folder, vocabulary.pieces, export_tokens(vocabulary), processor)
        return
    tokens = export_tokens(vocabulary)
    unknown = next((token for token in ("<unk>", "[UNK]") if token in tokens), None)
    bos, eos = (token if token in tokens else None for token in ("<s>", "</s>"))
    # A special token that is no label is null: the tokenizer would add it with an index beyond the head.
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "pad_token": tokens[BLANK]}
    write_json(folder / VOCABULARY, {token: index for index, token in enumerate(tokens)})
    write_json(folder / SPECIALS, {name: token for name, token in special.items() if token is not None})
    tokenizer = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": processor,
        **special,
        "word_delimiter_token": WORD_BOUNDARY if WORD_BOUNDARY in tokens else None,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "target_lang": None,
        "model_max_length": 10**30,
    }
    write_json(folder / TOKENIZER, tokenizer)


def _read_tokens(folder: Path, num_rows: int, key: str, language: str) -> tuple[str, ...]:
    """Read the token of each row of the head; added tokens count where the head has rows for them."""
    indices = choose_tokens(read_json(folder / VOCABULARY, key), folder, language, key)
    if len(indices) < num_rows and (folder / ADDED).is_file():
        indices |= read_json(folder / ADDED, key)
    wrong = next((token for token, index in indices.items() if type(index) is not int), None)
    if wrong is not None:
        raise CheckpointError(
            f"`{key}` must have one index for each token, but {folder / VOCABULARY} has {show(indices[wrong])} for "
            f"{show(wrong)}"
        )
    if sorted(indices.values()) != list(range(num_rows)):
        raise CheckpointError(
            f"`{key}` must have a token for each of the {num_rows} outputs of its head, but {folder / VOCABULARY} has "
            f"{len(indices)} tokens from {show(min(indices.values(), default=0))} to "
            f"{show(max(indices.values(), default=0))}"
        )
    return tuple(sorted(indices, key=indices.__getitem__))


def _read_special(folder: Path, key: str) -> dict[str, str]:
    """Read which tokens are special, as text or as the mapping with `content` that later versions write."""
    stored: dict[str, Any] = {}
    for name in (SPECIALS, TOKENIZER):
        stored |= read_json(folder / name, key) if (folder / name).is_file() else {}
    special = {}
    for name, default in (_TOKENS | {"word_delimiter_token": WORD_BOUNDARY}).items():
        value = stored.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if not isinstance(value, str | None):
            raise CheckpointError(f"`{key}` must have text as {name} in {folder}, but has {show(value)}")
        special[name] = default if value is None else value
    return special

"""Languages of an MMS folder: each has a file of small weights, adapters and head, and a vocabulary of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoints.checks import check_names, join, read_json
from speechssl.errors import CheckpointError
from speechssl.interop.files import read_tensors
from speechssl.interop.names import respell
from speechssl.parsing import show

SUFFIXES = (".safetensors", ".bin")
"""How a language's file of weights ends, the first that is there counts; it begins with `adapter.<language>`."""

LISTED = 40
"""An error lists this many languages; MMS has 1,162."""


def list_languages(folder: Path) -> list[str]:
    """List the languages that a folder has weights of."""
    files = [path.name for suffix in SUFFIXES for path in folder.glob(f"adapter.*{suffix}")]
    return sorted({name.removeprefix("adapter.").rpartition(".")[0] for name in files} - {""})


def refuse_language(language: str) -> CheckpointError:
    """Say that a checkpoint has no languages to choose from."""
    return CheckpointError(f"`language` must be left out without language adapters (MMS), but is {show(language)}")


def take_language(source: dict[str, Tensor], folder: Path, language: str, key: str) -> dict[str, Tensor]:
    """Put the adapters and the head of a language in the place of those that a folder's own weights have.

    Args:
        source: by the names of `transformers`, without prefixes.
        folder: of the model.
        language: as its file is called; that of the folder's own weights, `target_lang` of its tokenizer, needs none.

    Raises:
        CheckpointError: the folder has no such language, or its file has other weights than adapters and head.
    """
    own = {name for name in source if ".adapter_layer." in name}
    if not own:
        raise refuse_language(language)
    there = list_languages(folder)
    if language not in there:
        if language == _read_target(folder, key):
            return source
        there = sorted({*there, *filter(None, [_read_target(folder, key)])}) if there else _list_named(folder, key)
        raise CheckpointError(
            f"`language` must be one of those in {folder} ({join(there, LISTED) or 'none'}), but is {show(language)}"
        )
    path = next(path for suffix in SUFFIXES if (path := folder / f"adapter.{language}{suffix}").is_file())
    weights = respell(read_tensors(path, key), "huggingface", str(path), key)
    check_names(own | {"lm_head.weight", "lm_head.bias"}, weights, key, str(path))
    return source | weights


def choose_tokens(vocabulary: dict[str, Any], folder: Path, language: str, key: str) -> dict[str, Any]:
    """Choose a language's tokens where vocab.json has those of several: {language: {token: index}}.

    Args:
        vocabulary: the content of vocab.json; returned where it is a plain one.
        language: empty for that of the folder's own weights.

    Raises:
        CheckpointError: it has none of this language, or does not say which is its own.
    """
    if not vocabulary or not all(isinstance(tokens, dict) for tokens in vocabulary.values()):
        return vocabulary
    chosen = language or _read_target(folder, key)
    if not chosen:
        raise CheckpointError(
            f"`language` must be given where vocab.json has several and tokenizer_config.json no target_lang, but "
            f"is not for {folder} ({join(sorted(vocabulary), LISTED)})"
        )
    if chosen not in vocabulary:
        raise CheckpointError(
            f"`{key}` must have the tokens of {show(chosen)} in {folder / 'vocab.json'}, but has none"
        )
    tokens: dict[str, Any] = vocabulary[chosen]
    return tokens


def _read_target(folder: Path, key: str) -> str:
    """Read which language the folder's own weights are of; empty where it does not say."""
    path = folder / "tokenizer_config.json"
    target = read_json(path, key).get("target_lang") if path.is_file() else None
    return target if isinstance(target, str) else ""


def _list_named(folder: Path, key: str) -> list[str]:
    """List the languages that vocab.json has tokens of: of a model of the Hub no other file is here."""
    path = folder / "vocab.json"
    vocabulary = read_json(path, key) if path.is_file() else {}
    return sorted(name for name, tokens in vocabulary.items() if isinstance(tokens, dict))

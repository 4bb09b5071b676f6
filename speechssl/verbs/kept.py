"""Weights of a language model that `tune` found: kept beside the recogniser, and used by whoever decodes with both."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import DECODING
from speechssl.config.decoding import WEIGHTS, DecodingConfig
from speechssl.durable import write_in_one_step
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.decoding.decoder import Decoder, build_decoder
from speechssl.interop.load import find_update
from speechssl.parsing import open_regular, parsing, read_json
from speechssl.printable import make_json_printable
from speechssl.text.vocabulary import Vocabulary

VERSION = 1

_logger = logging.getLogger("speechssl")


def choose_decoder(config: DecodingConfig, checkpoint: str, vocabulary: Vocabulary) -> Decoder:
    """Build the decoder that `decoding.*` asks for, with the kept weights where the user gave none of them.

    Raises:
        CheckpointError: what is kept is damaged.
        DataError: as `build_decoder`.
    """
    path = Path(checkpoint) / DECODING
    # A language model that is not there has its own sentence.
    if not config.lm or not Path(config.lm).is_file() or not os.path.lexists(path):
        return build_decoder(config, vocabulary)
    if config.given:
        names = ", ".join(f"decoding.{name}" for name in config.given)
        _logger.info("%s is not used, since %s is given", path, names)
        return build_decoder(config, vocabulary)
    kept = read_kept(path)
    if find_digest(config.lm) != kept["lm_sha256"]:
        _logger.warning(
            "decoding.lm=%s is not the %s that %s was tuned with: the weights are the defaults (`speechssl tune` "
            "finds better ones)",
            config.lm, kept["lm"], path,
        )  # fmt: skip
        return build_decoder(config, vocabulary)
    if (update := find_update(checkpoint)) != kept["update"]:
        _logger.warning("%s was tuned with update %s of the recogniser, not %s", path, kept["update"], update)
    _logger.info("weights of decoding.lm from %s: %s", path, spell_weights(kept["weights"]))
    return build_decoder(replace(config, **kept["weights"]), vocabulary, weights_from=str(path))


def find_home(checkpoint: str, out: Path) -> Path:
    """Find the folder to keep weights in: the recogniser's where it is ours and can be written to, else `out`."""
    folder = Path(checkpoint)
    is_ours = folder.is_dir() and find_update(checkpoint) is not None
    return folder if is_ours and os.access(folder, os.W_OK) else out


def write_kept(folder: Path, kept: Mapping[str, Any]) -> None:
    """Write weights and all that is known of them.

    Raises:
        ConfigError: that cannot be written.
    """
    text = json.dumps({"version": VERSION, **kept}, ensure_ascii=False, allow_nan=False, indent=2)
    write_in_one_step(folder / DECODING, f"{make_json_printable(text)}\n")


def read_kept(path: Path) -> dict[str, Any]:
    """Read what `write_kept` wrote.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    kept = read_json(path, CheckpointError)
    with parsing(str(path), "what `speechssl tune` wrote", CheckpointError):
        weights = {name: kept["weights"][name] for name in WEIGHTS}
        if kept["version"] != VERSION:
            raise ValueError("it is of another version")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in weights.values()):
            raise ValueError("its weights are no numbers")
        if weights["blank_penalty"] < 0:
            raise ValueError("its blank_penalty is negative")
        if not isinstance(kept["lm"], str) or not isinstance(kept["lm_sha256"], str):
            raise ValueError("it does not say which language model it is of")
        if not isinstance(kept["update"], int | None):
            raise ValueError("it does not say which update it is of")
    return kept | {"weights": weights}


def find_kept(checkpoint: str) -> dict[str, Any] | None:
    """Read what is kept beside a recogniser, if anything; raises as `read_kept`."""
    path = Path(checkpoint) / DECODING
    return read_kept(path) if os.path.lexists(path) else None


def find_digest(path: str, key: str = "decoding.lm") -> str:
    """Compute the SHA-256 of a language model's file: compressed, it is another one.

    Raises:
        ConfigError: it cannot be read.
    """
    with parsing(f"`{key}`", "a file that can be read", ConfigError, path), open_regular(path) as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
        return digest.hexdigest()


def spell_weights(weights: Mapping[str, float]) -> str:
    """Spell weights as a user would type them."""
    return " ".join(f"decoding.{name}={weights[name]:g}" for name in WEIGHTS)

"""Models of the Hugging Face Hub: fetched into its own cache and found there without a network; and sent there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from speechssl.checkpoints.layout import RESULT
from speechssl.errors import CheckpointError
from speechssl.parsing import parsing, shorten

FACTS = ("config.json", "preprocessor_config.json", "processor_config.json", "vocab.json", "tokenizer_config.json",
         "special_tokens_map.json", "added_tokens.json")  # fmt: skip
"""The small files of a model; what else a repository holds is never fetched."""

WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
"""Spellings of the weights, of which the first that is there is fetched."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_hub_id(checkpoint: str) -> bool:
    """Say whether a value is `owner/model` (or `owner/model@revision`) and no path that is there or almost there.

    Where a folder of the owner's name lies here, the value is a path that was mistyped.
    """
    owner = checkpoint.partition("/")[0]
    return _ID.fullmatch(checkpoint) is not None and not Path(checkpoint).exists() and not Path(owner).exists()


def fetch_from_hub(checkpoint: str, key: str = "checkpoint", language: str = "") -> Path:
    """Fetch a model, or find it in the cache.

    Args:
        checkpoint: `owner/model`, or `owner/model@revision` to stay with one version of it.
        language: whose adapters are fetched too.

    Returns:
        The folder of the cache that holds it. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count.

    Raises:
        CheckpointError: `huggingface_hub` is not installed, there is no such model, or the Hub cannot be reached and
            the cache does not hold it.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"`{key}` must be something that is here, but {checkpoint} is not; to take it from the Hugging Face Hub, "
            "pip install 'speechssl[hub]'"
        ) from error
    name, _, revision = checkpoint.partition("@")
    # One of no language's form is refused by the reader, which lists those that there are.
    adapters = [f"adapter.{language}.safetensors"] if re.fullmatch(r"[\w-]+", language) else []
    # What the Hub and its client raise is of a dozen classes, and another dozen in the next version.
    with parsing(f"`{key}`", "something that is here or a model of the Hub", CheckpointError, checkpoint):
        for spelling in WEIGHTS:
            patterns = [*FACTS, *spelling, *adapters]
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if (folder / spelling[0]).is_file():
                break
    return folder


def require_hub(key: str) -> None:
    """Check that the client of the Hub is installed.

    Raises:
        CheckpointError: it is not.
    """
    if find_spec("huggingface_hub") is None:
        raise CheckpointError(f"`{key}` must be empty where huggingface_hub is missing: pip install 'speechssl[hub]'")


def push_to_hub(folder: Path, repository: str, key: str = "push") -> str:
    """Upload a folder to a model repository, which is made, private, where there is none.

    Args:
        folder: of `write_huggingface` or `write_own`; the result of `convert` in it stays here.
        repository: `owner/model`. `HF_ENDPOINT` and `HF_TOKEN` (or `hf auth login`) count.

    Returns:
        Where it is.

    Raises:
        CheckpointError: huggingface_hub is not installed, the Hub cannot be reached, or it refuses.
    """
    require_hub(key)
    from huggingface_hub import HfApi

    with parsing(f"`{key}`", "a repository that can be written", CheckpointError, repository):
        api, kept = HfApi(), [f"*{RESULT}*"]
        try:
            url = api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, ignore_patterns=kept, commit_message="speechssl convert"
            )
        except OSError as error:
            # What the client raises of a refusal; it is not the folder that cannot be read.
            raise ValueError(shorten(error)) from error
    return str(url)

"""Hugging Face folders of networks that have no class there: our weights, and beside them the code that runs them.

The code (`modeling_speechssl.py`, copied as it is) is for `transformers` alone, which runs it where its user says
`trust_remote_code=True`. We read such a folder by its JSON and its weights, and never look at the code.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speechssl.checkpoints.checks import restore_vocabulary
from speechssl.checkpoints.model_folder import ModelCard, build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.files import write_json, write_tensors
from speechssl.interop.foreign import OURS, Foreign, find_kind, make_extra, read_extra
from speechssl.interop.huggingface.folder import CONFIG, WEIGHTS, read_files
from speechssl.interop.huggingface.processor import export_tokens, write_processor
from speechssl.interop.names import list_weights
from speechssl.model.log_mel import LogMelEncoder
from speechssl.model.speech_model import SpeechModel

MODEL_TYPE = "speechssl"
CODE = "modeling_speechssl.py"
CLASSES = {"AutoConfig": "SpeechSSLConfig", "AutoModel": "SpeechSSLModel", "AutoModelForCTC": "SpeechSSLForCTC"}

FIXED = ("backbone.encoder.window", "backbone.encoder.filters")
"""Tensors that we make of the configuration, and that the code finds among the weights: it has no librosa."""

NOTE = (
    f"transformers has no class for this network: the folder brings its own code ({CODE}) and opens there with "
    "trust_remote_code=True"
)

VALUES: dict[str, tuple[object, ...]] = {
    "front_end": ("convolutions", "log_mel"),
    "frame_rate": (25, 50),
    "conv_norm": ("group", "layer"),
    "block": ("transformer", "conformer"),
    "block_norm": ("layer", "batch"),
    "positions": ("convolutional", "rotary"),
}
"""What the code knows of the keys that choose a network."""

_KNOWN = (
    "name family num_mels mel_channels mel_kernels conv_channels conv_kernels conv_strides conv_bias "
    "group_norm_frames feature_gradient_scale normalize_waveform waveform_epsilon num_layers model_dim ffn_dim "
    "num_heads norm_first macaron adapter_dim block_kernel position_kernel position_groups dropout "
    "attention_dropout activation_dropout input_dropout feature_dropout layer_drop_prob head_dropout "
    "self_conditioning target_dim quantizer mask"
)
KNOWN = frozenset(_KNOWN.split())
"""Keys of which it takes every value; any other key must have its default."""


def check_known(config: ModelConfig) -> None:
    """Make sure that the code computes a network.

    Raises:
        CheckpointError: it is of a later kind.
    """
    for name, default in asdict(ModelConfig()).items():
        value, known = getattr(config, name), VALUES.get(name, (default,))
        if name not in KNOWN and value not in known:
            must, given = " or ".join(map(str, known)).lower(), str(value).lower()
            raise CheckpointError(
                f"`model.{name}` must be {must} for huggingface, whose code has no other, but is {given}"
            )


def write_own(model: SpeechModel, folder: Path, update: int = 0) -> None:
    """Write a folder that `transformers` opens with the code in it.

    Args:
        model: a backbone, a pretraining model or a recogniser.
        folder: made if it is missing.

    Raises:
        CheckpointError: the code does not know this network.
    """
    check_known(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = model.backbone.encoder
    fixed = (encoder.window, encoder.filters) if isinstance(encoder, LogMelEncoder) else ()
    write_tensors(folder / WEIGHTS, list_weights(model) | dict(zip(FIXED, fixed, strict=False)))
    kind, config = find_kind(model), model.config
    auto = {name: value for name, value in CLASSES.items() if kind == "ctc" or name != "AutoModelForCTC"}
    tokens = export_tokens(model.vocabulary) if model.vocabulary else ()
    description: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [list(auto.values())[-1]],
        "auto_map": {name: f"{Path(CODE).stem}.{value}" for name, value in auto.items()},
        "dtype": "float32",
        "torch_dtype": "float32",
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        **({"vocab_size": len(tokens), "pad_token_id": 0} if tokens else {}),
    }
    write_json(folder / CONFIG, {**description, OURS: make_extra(model, update)})
    # The code normalises waveforms itself, with the network's epsilon, and takes a mask unless padding has a say.
    sees_padding = config.has_group_norm and config.group_norm_frames == "all"
    plain = replace(config, normalize_waveform=False, conv_norm="group" if sees_padding else "layer")
    write_processor(folder, plain, model.vocabulary)
    code = Path(__file__).with_name(CODE).read_text(encoding="utf-8")
    (folder / CODE).write_text(code, encoding="utf-8")


def read_own(folder: Path, stored: dict[str, Any], key: str = "checkpoint") -> Foreign:
    """Read a folder of `write_own`, or what `transformers` saved of one.

    Args:
        stored: its config.json.

    Raises:
        CheckpointError: a file is missing or damaged, or says nothing of its network.
    """
    where = str(folder / CONFIG)
    ours = read_extra(stored, key)
    if not ours:
        raise CheckpointError(f"`{key}` must have a network under {OURS!r} in {where}, but has none")
    config: ModelConfig = build_config(ModelConfig, ours["model"], key)
    weights = {name: value for name, value in read_files(folder, key).items() if name not in FIXED}
    heads = {"ctc": "head.", "pretraining": "pretraining."}
    kind = next((kind for kind, start in heads.items() if any(name.startswith(start) for name in weights)), "backbone")
    vocabulary = restore_vocabulary(ours["vocabulary"], where, key) if kind == "ctc" else None
    return Foreign("huggingface", ModelCard(kind, config, vocabulary, ours["update"]), weights, says_padding=True)

"""The model card of a Hugging Face folder: `README.md`, for people, with what the Hub reads at its top."""

from __future__ import annotations

import logging
from pathlib import Path

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.interop.foreign import find_kind
from speechssl.interop.huggingface.families import has_class
from speechssl.interop.huggingface.own_code import NOTE
from speechssl.model.speech_model import SpeechModel

CARD = "README.md"

UNKNOWN = "Not recorded in this folder. Say here what speech it learnt from, how many hours, and how well it does.\n"

KINDS = {
    "ctc": ("A speech recogniser (CTC)", "automatic-speech-recognition", "AutoModelForCTC"),
    "pretraining": ("A pretrained speech encoder", "feature-extraction", "AutoModel"),
    "backbone": ("A speech encoder", "feature-extraction", "AutoModel"),
}
"""What each kind of model is called, the Hub's task, and the class of `transformers` that opens it."""

_logger = logging.getLogger("speechssl")


def write_card(folder: Path, model: SpeechModel, training: str = "") -> None:
    """Write the model card of a folder; one that is there stays, since somebody may have written in it.

    Args:
        folder: of the model.
        training: what is known of it, as Markdown.
    """
    if (folder / CARD).exists():
        _logger.warning("%s is kept as it is", folder / CARD)
        return
    (folder / CARD).write_text(make_card(folder.resolve().name, model, training), encoding="utf-8")


def make_card(name: str, model: SpeechModel, training: str = "") -> str:
    """Make the text of a model card; arguments as `write_card`."""
    what, task, auto = KINDS[find_kind(model)]
    trusted = "" if has_class(model.config) else ", trust_remote_code=True"
    tags = ["speech", "self-supervised-learning", "speechssl", *(["custom_code"] if trusted else [])]
    top = ["library_name: transformers", f"pipeline_tag: {task}", "tags:", *(f"- {tag}" for tag in tags)]
    header = "\n".join(["---", *top, "---"])
    rows = "\n".join(f"| {label} | {value} |" for label, value in list_network(model).items())
    outputs = "logits" if model.vocabulary else "last_hidden_state"
    lines = [f'model = {auto}.from_pretrained("{name}"{trusted})']
    lines += ['audio, _ = soundfile.read("a.flac", dtype="float32")  # 16 kHz, mono']
    lines += [f'inputs = processor(audio, sampling_rate={SAMPLE_RATE}, return_tensors="pt")']
    lines += [f"{outputs} = model(**inputs).{outputs}"]
    processor = "AutoProcessor" if model.vocabulary else "AutoFeatureExtractor"
    lines += ["text = processor.batch_decode(logits.argmax(-1))[0]"] if model.vocabulary else []
    verb, out = ("transcribe", "texts.tsv") if model.vocabulary else ("embed", "clips.parquet")
    code = f"\n{NOTE[0].upper()}{NOTE[1:]}. Read that file before you trust it.\n" if trusted else ""
    return f"""{header}

# {name}

{what}, trained with speechssl. It takes speech at {SAMPLE_RATE // 1000} kHz.

## Network

| | |
| --- | --- |
{rows}

## Training

{training or UNKNOWN}
## Use
{code}
```python
import soundfile
from transformers import {processor}, {auto}

processor = {processor}.from_pretrained("{name}")
{chr(10).join(lines)}
```

With speechssl, which runs no code of this folder:

    speechssl {verb} {name} clips/*.flac out={out}

## Licence

Not chosen yet: who publishes this model says it here, and as `license:` at the top.
"""


def list_network(model: SpeechModel) -> dict[str, str]:
    """List what describes a network, by label."""
    config = model.config
    bands = f"{config.num_mels} log-mel bands" if config.front_end == "log_mel" else "convolutions over the waveform"
    rows = {
        "size": f"{config.name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        "input": bands + (", each utterance normalised" if config.normalize_waveform else ""),
        "blocks": f"{config.num_layers} × {config.block}, {config.model_dim} wide, {config.num_heads} heads",
        "frames": f"{SAMPLE_RATE / config.output_hop:g} a second",
    }
    if model.vocabulary:
        letters = " ".join(symbol.replace("|", "\\|") for symbol in model.vocabulary.symbols[:64])
        rows["symbols"] = f"{len(model.vocabulary)}: {letters}{' …' * (len(model.vocabulary) > 64)}"
    return rows

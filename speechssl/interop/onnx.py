"""Export for serving: a model as one graph of tensors, with dynamic batch and time (docs/serving.md).

`export_program` gives torch's own form of it, `write_onnx` an .onnx file that stands alone: the whole front-end is
inside the graph, and the file says what decides the audio that enters. `interop/onnx_file.py` opens such files.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.foreign import OURS, find_kind, make_extra
from speechssl.model.lengths import make_valid_mask
from speechssl.model.speech_model import SpeechModel

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

INPUTS = ("waveforms", "num_samples")
"""Names of the inputs: (B, N) float32 at 16 kHz, and (B,) int64 valid samples of each row."""

OUTPUTS = ("logits", "features")
"""What a graph can give, each with `num_frames`."""

PACKAGES = ("onnx", "onnxscript")
"""What torch's exporter needs; onnxruntime, which runs the file, is needed only there."""


_NEVER = -1e30
"""Added to the score of a key that is not attended to: its weight is 0, and no row is without a sum."""


class ServingModel(nn.Module):
    """A model as serving calls it: everything that depends on lengths is computed from `num_samples` alone.

    Args:
        model: the network; not copied.
        what: `logits` of the CTC head, or `features`, the backbone's output after the final norm where it has one.
    """

    def __init__(self, model: SpeechModel, what: str) -> None:
        super().__init__()
        self.model, self.what = model, what

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the valid frames of each row.

        Args:
            waveforms: (B, N) float32 at 16 kHz, N at least `count_min_samples`.
            num_samples: (B,) int64 valid samples of each row, at most N.

        Returns:
            (B, T, V) logits or (B, T, D) features, zero beyond a row's valid frames, where a greedy decoder reads the
            blank; and (B,) int64 valid frames, 0 for a row shorter than the receptive field.
        """
        if self.what == "logits":
            values, num_frames = self.model.logits(waveforms, num_samples)
        else:
            frames = self.model(waveforms, num_samples)
            values, num_frames = frames.last, frames.num_outputs
        # A row without any valid frame attends to nothing, and what comes of that differs between runtimes.
        valid = make_valid_mask(num_frames, values.shape[1])
        return torch.where(valid[..., None], values, 0.0), num_frames


def choose_output(model: SpeechModel) -> str:
    """Choose what an export gives where nobody says: `logits` of a recogniser, else `features`."""
    return "logits" if model.head is not None else "features"


def count_min_samples(config: ModelConfig) -> int:
    """Count the samples that a batch must have, padding included: those of two frames (720, 45 ms).

    A graph with a dynamic length is traced for lengths of 2 and more.
    """
    return config.output_field + config.output_hop


def export_program(model: SpeechModel, what: str) -> ExportedProgram:
    """Export a model as torch's `ExportedProgram`, with dynamic batch and time.

    Args:
        model: to export; its mode and its gradient flags stay as they are.
        what: `logits` or `features`, see `ServingModel`.

    Returns:
        The program. Its `module()` takes (B, N) float32 waveforms at 16 kHz and (B,) int64 valid samples, for any
        B ≥ 1 and N ≥ `count_min_samples`, and gives the output and (B,) int64 valid frames.

    Raises:
        ConfigError: there is no such output.
        CheckpointError: logits are asked of a model without a CTC head.
    """
    if what not in OUTPUTS:
        raise ConfigError(f"`what` must be one of {', '.join(OUTPUTS)}, but is {what!r}")
    if what == "logits" and model.head is None:
        raise CheckpointError("`checkpoint` must be a recogniser for an export of logits, but has no CTC head")
    batch = torch.export.Dim("batch", min=1)
    samples = torch.export.Dim("samples", min=count_min_samples(model.config))
    example = (torch.zeros(2, SAMPLE_RATE), torch.tensor([SAMPLE_RATE, SAMPLE_RATE // 2]))
    with _in_evaluation_mode(model), torch.no_grad():
        return torch.export.export(
            ServingModel(model, what),
            tuple(value.to(model.device) for value in example),
            dynamic_shapes=({0: batch, 1: samples}, {0: batch}),
        )


def write_onnx(model: SpeechModel, path: Path, what: str = "", update: int = 0) -> None:
    """Write a model as an ONNX file that stands alone.

    Inputs and outputs are those of `ServingModel`, by the names in `INPUTS`, `OUTPUTS` and `num_frames`. The weights
    are inside the file; from 1.5 GiB (the format ends at 2) they stand in `<name>.data` beside it. Neither is ever
    seen half-written.

    Args:
        model: to write; its mode and its gradient flags stay as they are.
        what: `logits` or `features`; empty: `choose_output`.

    Raises:
        ConfigError: onnx or onnxscript is not installed, or there is no such output.
        CheckpointError: logits are asked of a model without a CTC head.
    """
    check_packages()
    what = what or choose_output(model)
    program = convert_program(export_program(model, what), what)
    program.model.producer_name = "speechssl"
    program.model.metadata_props.update(describe_model(model, what, update))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        program.save(Path(folder) / path.name, external_data=False)
        publish(Path(folder), path)


def publish(folder: Path, path: Path) -> None:
    """Move a file out of a folder to `path`, after what lies beside it: the file names its data."""
    for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
        os.replace(part, path.parent / part.name)


def convert_program(program: ExportedProgram, what: str) -> ONNXProgram:
    """Convert an exported program into an ONNX graph.

    Args:
        program: from `export_program`.
        what: the name of its first output.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    # The exporter warns of packages that no graph of ours needs (torchvision).
    logger.setLevel(logging.ERROR)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=INPUTS,
            output_names=(what, "num_frames"),
            # The program has these dimensions already; here each gets its name once.
            dynamic_shapes=({0: "batch", 1: "samples"}, {}),
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attend},
        )
    finally:
        logger.setLevel(level)
    assert converted is not None, "the exporter gives a program where it is given no file"
    for node in converted.model.graph:
        # Among them are the lines of source that each node comes from, with the folders of this machine.
        node.metadata_props.clear()
    return converted


def _attend(query: Any, key: Any, value: Any, scope: Any = None, *_: Any, scale: float | None = None, **__: Any) -> Any:
    """Write attention as five operations; the exporter's own guards every weight against rows without any key.

    Here such rows attend to everything, and `ServingModel` gives zero for them.
    """
    from onnxscript import opset18

    op: Any = opset18
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, query.shape[-1] ** -0.5 if scale is None else scale)
    if scope is not None:
        scores = op.Add(scores, op.Where(scope, 0.0, _NEVER) if scope.dtype.name == "BOOL" else scope)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def describe_model(model: SpeechModel, what: str, update: int = 0) -> dict[str, str]:
    """Describe a model for the metadata of its ONNX file: text by name, JSON where it is more than a word.

    Args:
        model: the network.
        what: `logits` or `features`.

    Returns:
        `output`, `sample_rate`, `audio` (what decides the audio that enters), `vocabulary` (symbols by class, the
        first of them the CTC blank; only with logits), and `speechssl`, all that our own checkpoints say.
    """
    config = model.config
    audio = {
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        "min_samples": count_min_samples(config),
        "receptive_field_samples": config.output_field,
        "hop_samples": config.output_hop,
        "normalize_waveform": config.normalize_waveform,
        "waveform_epsilon": config.waveform_epsilon,
        "normalized_inside": True,
        "group_norm_frames": config.group_norm_frames if config.can_see_padding else None,
    }
    facts = {"output": what, "sample_rate": str(SAMPLE_RATE), "audio": json.dumps(audio)}
    if what == "logits" and model.vocabulary is not None:
        facts["vocabulary"] = json.dumps(model.vocabulary.symbols, ensure_ascii=False)
    return facts | {OURS: json.dumps(make_extra(model, update), ensure_ascii=False)}


def check_packages(packages: Sequence[str] = PACKAGES) -> None:
    """Check that what the exporter needs is installed.

    Raises:
        ConfigError: it is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the format `onnx` must have the packages {' and '.join(packages)}, but {' and '.join(missing)} cannot be "
            "found: pip install 'speechssl[onnx]'"
        )


def list_left_behind(model: SpeechModel, what: str) -> tuple[str, ...]:
    """List what a model has and its export does not give."""
    heads = ("quantizer, target and context projection",) if find_kind(model) == "pretraining" else ()
    unused = ("CTC head",) if model.head is not None and what == "features" else ()
    return ("mask vector", *heads, *unused)


@contextmanager
def _in_evaluation_mode(model: SpeechModel) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

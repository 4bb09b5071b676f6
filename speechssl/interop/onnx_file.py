"""ONNX files of `interop/onnx.py`: opened for inference, and written again with weights of 8 bits."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch

from speechssl.checkpoints.checks import MAX_JSON, reading, restore_vocabulary
from speechssl.checkpoints.model_folder import build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.inference.onnx_model import OnnxModel
from speechssl.interop.foreign import OURS, read_extra
from speechssl.interop.onnx import OUTPUTS, check_packages, count_min_samples, publish
from speechssl.parsing import open_regular, parse_json

WEIGHTS = "weights"
"""Name in the metadata of what the weights of a quantised file are: `int8`."""

CUDA = "CUDAExecutionProvider"

_logger = logging.getLogger("speechssl")


def is_onnx(path: Path) -> bool:
    """Say whether a path is an ONNX file: its first field is a version, where safetensors has a length and a brace."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        start = file.read(9)
    return start[:1] == b"\x08" and start[8:] != b"{"


def read_onnx(path: Path, key: str = "checkpoint", device: torch.device | None = None) -> OnnxModel:
    """Open a file that `write_onnx` or `quantize_onnx` wrote.

    Args:
        device: where it runs: on a GPU where onnxruntime has one, else on the CPU, with as many threads as torch.

    Raises:
        CheckpointError: onnxruntime is not installed, the file is damaged, or it does not say what it is.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            f"`{key}` must be something that can be run, but for {path} onnxruntime is missing: "
            "pip install 'speechssl[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    gpu: list[tuple[str, dict[str, int]]] = []
    if device is not None and device.type == "cuda" and CUDA in onnxruntime.get_available_providers():
        gpu = [(CUDA, {"device_id": device.index or 0})]
    with reading(path, key, "a whole ONNX file"):
        # Without a second try, which it would tell on stdout.
        providers = [*gpu, "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        facts = dict(session.get_modelmeta().custom_metadata_map)
    what = facts.get("output")
    if OURS not in facts or what not in OUTPUTS:
        raise CheckpointError(
            f"`{key}` must be an ONNX file of `convert`, which says its network and vocabulary, but {path} does not"
        )
    with reading(path, key, "an ONNX file with whole metadata"):
        if len(facts[OURS]) > MAX_JSON:
            raise ValueError(f"they have more than {MAX_JSON} letters")
        ours = read_extra({OURS: parse_json(facts[OURS].encode())}, key)
    config: ModelConfig = build_config(ModelConfig, ours["model"], key)
    vocabulary = restore_vocabulary(ours["vocabulary"], str(path), key) if what == "logits" else None
    size = f"{len(vocabulary)} symbols" if vocabulary else f"{config.model_dim} wide"
    weights, where = facts.get(WEIGHTS, "float32"), "GPU" if gpu else "CPU"
    _logger.info(
        "%s=%s: onnx %s of %s (%s), weights in %s whatever `precision`, on the %s",
        key, path, what, config.name, size, weights, where,
    )  # fmt: skip
    return OnnxModel(config, vocabulary, session, count_min_samples(config), str(path))


def quantize_onnx(source: Path, target: Path) -> None:
    """Write an ONNX file again with the weights of its products in 8 bits, one scale an output.

    Activations become 8 bits while it runs, by their own range each time (dynamic quantisation). Convolutions, the
    front-end and attention stay in float32: they have few weights.

    Args:
        source: from `write_onnx`.
        target: another place; never seen half-written.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
    """
    check_packages(("onnx", "onnxruntime"))
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    is_large = source.with_name(f"{source.name}.data").exists()
    root = logging.getLogger()
    level = root.level
    # It asks for a step before it, which the exporter has done.
    root.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        scratch = Path(folder) / target.name
        try:
            # 7 bits of the 8: processors without VNNI add pairs of products in 16 bits, which would overflow.
            quantize_dynamic(
                source, scratch, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
                weight_type=QuantType.QInt8, use_external_data_format=is_large,
            )  # fmt: skip
        finally:
            root.setLevel(level)
        model = onnx.load(scratch, load_external_data=False)
        model.producer_name = "speechssl"
        model.metadata_props.add(key=WEIGHTS, value="int8")
        onnx.save(model, scratch)
        publish(Path(folder), target)

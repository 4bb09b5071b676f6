"""Every key of the command line, as typed dataclasses. A wrong value is one sentence when one of them is made."""

from speechssl.config.decoding import DecodingConfig
from speechssl.config.model import MaskConfig, ModelConfig, QuantizerConfig
from speechssl.config.training import LoggingConfig, TrainingConfig
from speechssl.config.verbs import (
    BenchConfig,
    ConvertConfig,
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    EvaluateConfig,
    FinetuneConfig,
    PrepareConfig,
    PretrainConfig,
    ProbeConfig,
    ReportConfig,
    TranscribeConfig,
)

__all__ = [
    "BenchConfig", "ConvertConfig", "DecodingConfig", "DemoConfig", "DoctorConfig", "EmbedConfig", "EvaluateConfig",
    "FinetuneConfig", "LoggingConfig", "MaskConfig", "ModelConfig", "PrepareConfig", "PretrainConfig", "ProbeConfig",
    "QuantizerConfig", "ReportConfig", "TrainingConfig", "TranscribeConfig",
]  # fmt: skip

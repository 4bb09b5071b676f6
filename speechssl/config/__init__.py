"""Every key of the command line, as typed dataclasses. A wrong value is one sentence when one of them is made."""

from speechssl.config.data import (
    AnalyseDataConfig,
    BenchDataConfig,
    FinetuneDataConfig,
    PretrainDataConfig,
    ProbeDataConfig,
    TestDataConfig,
    TextConfig,
)
from speechssl.config.decoding import DecodingConfig
from speechssl.config.inference import (
    AnalyseConfig,
    EmbedConfig,
    EvaluateConfig,
    ProbeConfig,
    SimilarConfig,
    TranscribeConfig,
    TuneConfig,
    UnitsConfig,
)
from speechssl.config.model import MaskConfig, ModelConfig, QuantizerConfig
from speechssl.config.objective import ContrastiveConfig, MaskedCodesConfig
from speechssl.config.training import LoggingConfig, TrainingConfig
from speechssl.config.verbs import (
    BenchConfig,
    ConvertConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    LMConfig,
    PrepareConfig,
    PretrainConfig,
    ReportConfig,
)

__all__ = [
    "AnalyseConfig", "AnalyseDataConfig", "BenchConfig", "BenchDataConfig", "ContrastiveConfig", "ConvertConfig",
    "DecodingConfig", "DemoConfig", "DoctorConfig", "EmbedConfig", "EvaluateConfig", "FinetuneConfig",
    "FinetuneDataConfig", "LMConfig", "LoggingConfig", "MaskConfig", "MaskedCodesConfig", "ModelConfig", "PrepareConfig",
    "PretrainConfig", "PretrainDataConfig", "ProbeConfig", "ProbeDataConfig", "QuantizerConfig", "ReportConfig",
    "SimilarConfig", "TestDataConfig", "TextConfig", "TrainingConfig", "TranscribeConfig", "TuneConfig", "UnitsConfig",
]  # fmt: skip

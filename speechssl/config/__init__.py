"""Every key of the command line, as typed dataclasses. A wrong value is one sentence when one of them is made."""

from speechssl.config.analysis import AnalyseConfig, AnalyseDataConfig, SimilarConfig
from speechssl.config.data import (
    BenchDataConfig,
    FinetuneDataConfig,
    PretrainDataConfig,
    ProbeDataConfig,
    TestDataConfig,
    TextConfig,
)
from speechssl.config.decoding import DecodingConfig
from speechssl.config.inference import (
    AlignConfig,
    CompareConfig,
    EmbedConfig,
    EvaluateConfig,
    ProbeConfig,
    ScoreConfig,
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
    "AlignConfig", "AnalyseConfig", "AnalyseDataConfig", "BenchConfig", "BenchDataConfig", "CompareConfig",
    "ContrastiveConfig", "ConvertConfig", "DecodingConfig", "DemoConfig", "DoctorConfig", "EmbedConfig",
    "EvaluateConfig", "FinetuneConfig", "FinetuneDataConfig", "LMConfig", "LoggingConfig", "MaskConfig",
    "MaskedCodesConfig", "ModelConfig", "PrepareConfig", "PretrainConfig", "PretrainDataConfig", "ProbeConfig",
    "ProbeDataConfig", "QuantizerConfig", "ReportConfig", "ScoreConfig", "SimilarConfig", "TestDataConfig",
    "TextConfig", "TrainingConfig", "TranscribeConfig", "TuneConfig", "UnitsConfig",
]  # fmt: skip

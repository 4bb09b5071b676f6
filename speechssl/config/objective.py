"""What pretraining learns: one dataclass an objective, chosen as `objective=…`; `F:` in a source means fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from speechssl.config.knobs import check, check_choice, check_finite, knob
from speechssl.config.model import MAX_WIDTH


@dataclass(kw_only=True)
class BaseObjectiveConfig:
    """What the keys of every objective have in common."""

    name: str = knob("", "set by the choice objective=…")

    def __post_init__(self) -> None:
        check(self.name == type(self).name, "objective.name", "left to the choice objective=…", self.name)

    @property
    def checkpoints_read(self) -> dict[str, str]:
        """Keys that name a checkpoint which this objective reads, with their values."""
        return {}


@dataclass(kw_only=True)
class ContrastiveConfig(BaseObjectiveConfig):
    """wav2vec 2.0: find the true quantised frame among others (arXiv 2006.11477 §3.2, eq. 2 to 4)."""

    name: str = knob("wav2vec2", "set by the choice objective=…")
    num_negatives: int = knob(100, "negatives K for each masked frame, from the row's other masked frames", "", "§4.2")
    logit_temperature: float = knob(0.1, "κ, the temperature of the cosine similarities", "", "§4.2")
    diversity_weight: float = knob(0.1, "α, weight of the codebook diversity term", "", "§4.2")
    feature_penalty_weight: float = knob(10.0, "weight of the mean squared feature encoder output", "", "F: loss_weights")
    unmasked_weight: float = knob(0.0, "weight of the loss at frames that are not masked, told from any other frames of the row")

    def __post_init__(self) -> None:
        BaseObjectiveConfig.__post_init__(self)
        check(self.unmasked_weight >= 0, "objective.unmasked_weight", "at least 0", self.unmasked_weight)
        check(1 <= self.num_negatives <= MAX_WIDTH, "objective.num_negatives", f"between 1 and {MAX_WIDTH}", self.num_negatives)
        check(self.logit_temperature > 0, "objective.logit_temperature", "positive", self.logit_temperature)


@dataclass(kw_only=True)
class MaskedCodesConfig(BaseObjectiveConfig):
    """BEST-RQ (arXiv 2202.01855) and HuBERT (arXiv 2106.07447): name the code of each masked frame."""

    name: str = knob("masked_codes", "set by the choice objective=…")
    targets: str = knob("random_projection", "`random_projection` of log-mel (BEST-RQ) or `kmeans` (HuBERT)", "", "arXiv 2202.01855, 2106.07447")
    num_codes: int = knob(0, "number of codes; 0: 8192 of a random projection, 100 of MFCC, 500 of a teacher's layer", "", "BEST-RQ §4, HuBERT §4")
    code_dim: int = knob(16, "dimensions that stacked log-mel is projected to (targets=random_projection)", "", "BEST-RQ §4")
    stack_frames: int = knob(2, "log-mel frames, 10 ms apart, around the middle of a frame (targets=random_projection)", "frames")
    teacher: str = knob("mfcc", "what k-means clusters: `mfcc`, or a layer of what `checkpoint` takes elsewhere", "", "HuBERT §4")
    teacher_layer: int = knob(6, "layer of the teacher, 0 to its number of blocks", "", "HuBERT §4, BASE")
    codes: str = knob("", "clusters of that layer which `speechssl units` wrote; empty: k-means is fitted to `data.train`")
    codes_per_frame: int = knob(1, "codes of each frame: 1, or 2, one for either half of it, such as the two 20 ms in a frame of 40 ms", "codes")
    subtract_mean: bool = knob(False, "subtract each utterance's mean (in pretraining each crop's) from its MFCC", "", "cepstral mean normalisation")
    fit_s: float = knob(3600.0, "audio that k-means is fitted to, once, before the first update", "s")
    intermediate_layer: int = knob(0, "add the same loss after this block; 0: none", "", "ILS-SSL, arXiv 2112.08778")
    unmasked_weight: float = knob(0.0, "weight of the loss at frames that are not masked", "", "HuBERT: (1 - α) / α")
    feature_penalty_weight: float = knob(10.0, "weight of the mean squared feature encoder output", "", "F: loss_weights")

    def __post_init__(self) -> None:
        BaseObjectiveConfig.__post_init__(self)
        check_choice("objective.targets", self.targets, ("random_projection", "kmeans"))
        is_number = self.num_codes == 0 or 2 <= self.num_codes <= MAX_WIDTH
        check(is_number, "objective.num_codes", f"between 2 and {MAX_WIDTH}, or 0 for the published number", self.num_codes)
        check(1 <= self.code_dim <= MAX_WIDTH, "objective.code_dim", f"between 1 and {MAX_WIDTH}", self.code_dim)
        check(self.codes_per_frame in (1, 2), "objective.codes_per_frame", "1 or 2", self.codes_per_frame)
        check(1 <= self.stack_frames <= 1000, "objective.stack_frames", "between 1 and 1000 frames", self.stack_frames)
        must = "left out unless objective.targets is kmeans and objective.teacher a model"
        check(not self.codes or self.has_teacher, "objective.codes", must, self.codes)
        check_finite("objective.fit_s", self.fit_s)
        check(self.fit_s > 0, "objective.fit_s", "positive", self.fit_s)
        check(self.unmasked_weight >= 0, "objective.unmasked_weight", "at least 0", self.unmasked_weight)

    @property
    def has_teacher(self) -> bool:
        """Whether a network says what the codes are."""
        return self.targets == "kmeans" and self.teacher != "mfcc"

    @property
    def checkpoints_read(self) -> dict[str, str]:
        """The teacher, where it is a network, and its clusters."""
        return {"objective.teacher": self.teacher, "objective.codes": self.codes} if self.has_teacher else {}


ObjectiveConfig = ContrastiveConfig | MaskedCodesConfig


def list_objectives() -> dict[str, type[BaseObjectiveConfig]]:
    """Map the name of each objective to the dataclass of its keys."""
    return {schema.name: schema for schema in get_args(ObjectiveConfig)}


def keep_own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from a section `objective` the keys that only objectives have which it did not choose.

    Presets in `conf/training` set keys of several objectives, and runs of before 0.1 stored the keys of all. A key that
    no objective has stays, for whoever reads the section to refuse.

    Args:
        values: the section; without `name`, as the first runs stored it, it is wav2vec 2.0's.
    """
    schemas = list_objectives()
    chosen = schemas.get(str(values.get("name", "wav2vec2")))
    if chosen is None:
        return dict(values)
    others = {item.name for schema in schemas.values() for item in fields(schema)} - {item.name for item in fields(chosen)}
    return {"name": chosen.name, **{key: value for key, value in values.items() if key not in others}}


def drop_other_objectives(config: dict[str, Any]) -> dict[str, Any]:
    """Give a stored configuration as it would be stored today: with the keys of its own objective only."""
    section = config.get("objective")
    if not isinstance(section, dict):
        return config
    own = keep_own_keys(section)
    # A run that stored the keys of all objectives had this one from another: the contrastive task had none yet.
    if own.get("name") == ContrastiveConfig.name and not section.keys() <= own.keys():
        own.pop("unmasked_weight", None)
    return config | {"objective": own}

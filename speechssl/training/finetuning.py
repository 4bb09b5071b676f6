"""What a fine-tuning learns, and from what."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.layout import CHECKPOINTS, list_published
from speechssl.checkpoints.model_folder import ModelCard, load_backbone_into, read_card
from speechssl.config.adaptation import Adaptation
from speechssl.config.knobs import check
from speechssl.config.verbs import FinetuneConfig
from speechssl.data.augment import count_at_speed
from speechssl.data.manifest import Manifest
from speechssl.errors import CheckpointError, DataError
from speechssl.interop.adapted import locate, start_adapting
from speechssl.interop.load import load_model, read_stored_card
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective, CTCOptions, Tolerance, count_needed_frames
from speechssl.text.keep import name_letters, write_keep
from speechssl.text.vocabulary import (
    BLANK,
    Vocabulary,
    build_vocabulary,
    is_silent,
)
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.run import Task
from speechssl.training.schedules import compute_frozen_updates
from speechssl.training.sources import ManifestSource, build_source, leave_out, select_utterances

MAX_KEPT = 40
"""More characters than these nobody types after `text.keep=`."""

_logger = logging.getLogger("speechssl")


def build_task(config: FinetuneConfig, ranks: Ranks, goes_on: bool) -> Task:
    """Build what a fine-tuning learns, and from what."""
    train_set = _select(config, config.data.train, "data.train")
    valid_set = _select(config, config.data.valid, "data.valid") if config.data.valid else None
    begun = _read_own_card(config) if goes_on else None
    vocabulary = make_vocabulary(config, train_set, valid_set, begun)
    check_layers(config)
    model = SpeechModel(config.model, vocabulary)
    if config.init and not goes_on:
        start_from(model, config)
    if config.adapt != "all":
        _adapt(model, config, begun)
    objective = CTCObjective(model, config.seed, choose_options(config))
    source = _build_source(config, vocabulary, train_set, "data.train", ranks)
    valid = _build_source(config, vocabulary, valid_set, "data.valid", ranks) if valid_set else None
    return Task(objective, source, valid, learns_texts=True)


def _read_own_card(config: FinetuneConfig) -> ModelCard | None:
    """Read what the newest checkpoint of a run says that does not lie damaged there; `init` may be another by now."""
    for folder in reversed(list_published(Path(config.out) / CHECKPOINTS)):
        with suppress(CheckpointError):
            return read_card(folder, "out")
    return None


def make_vocabulary(
    config: FinetuneConfig, train_set: Manifest, valid_set: Manifest | None, begun: ModelCard | None = None
) -> Vocabulary:
    """Make the labels, and say which characters of the transcripts are none; rows without a transcript have no say.

    Args:
        config: with `text.*`; `text.vocabulary=init` reads `init`.
        train_set: what is learned from.
        valid_set: what is validated on.
        begun: what a run that goes on has saved.

    Raises:
        ConfigError: as `build_vocabulary`.
        DataError: as `build_vocabulary` and `check_letters`; in `data.valid` nothing is refused, nobody learns from it.
    """
    texts = [text for text in train_set.column("text") if text]
    own = begun.vocabulary if begun else None
    if own is not None and own.pieces is not None:
        # As they were trained: another version of sentencepiece might find others.
        vocabulary = own
    elif config.text.vocabulary == "init":
        card = begun or read_stored_card(config.init, language=config.language)
        # A run that goes on has the characters of `text.keep` already.
        vocabulary = build_vocabulary(config.text, [], card.vocabulary)
    else:
        vocabulary = build_vocabulary(config.text, texts)
    check_letters(vocabulary, texts, config.text.unknown)
    if valid_set is not None:
        check_letters(vocabulary, valid_set.column("text"), "drop", "data.valid")
    return vocabulary


def count_frozen_updates(config: FinetuneConfig) -> int:
    """Count the first updates in which only the head learns.

    Without `init` a share below 1 counts for nothing: the presets' shares spare what was pretrained. 1 keeps the
    encoder as it was drawn for the whole run, the random frozen encoder that a pretrained one must beat.
    """
    return compute_frozen_updates(config.training) if config.init or config.training.freeze_share >= 1 else 0


def check_layers(config: FinetuneConfig) -> None:
    """Check the keys that name blocks, now that the network is known.

    Raises:
        ConfigError: there are not so many, or what is told to a block could not be learned.
    """
    model = config.model
    last = model.num_layers
    inside = 0 <= config.reset_layers <= last
    check(inside, "reset_layers", f"between 0 and {last}, the blocks there are", config.reset_layers)
    most = model.self_conditioning or last - config.reset_layers
    why = "model.self_conditioning" if model.self_conditioning else "the blocks that come from `init`"
    check(-1 <= config.freeze_layers <= most, "freeze_layers", f"between -1 and {most}, {why}", config.freeze_layers)
    inside = 0 <= config.intermediate_layer < last
    check(inside, "intermediate_layer", f"0, or a block before the last of {last}", config.intermediate_layer)
    must = f"0 with {last} block, since there is none before the last"
    check(last > 1 or config.intermediate_weight == 0, "intermediate_weight", must, config.intermediate_weight)


def choose_options(config: FinetuneConfig) -> CTCOptions:
    """Choose what is frozen and what is added to the loss; without `init` there is nothing to keep (see above)."""
    network, training = config.model, config.training
    penalties = config.star_penalty, config.word_penalty, config.penalty_decay
    return CTCOptions(
        head_updates=count_frozen_updates(config),
        frozen_layers=config.freeze_layers if config.init else -1,
        frozen_updates=compute_frozen_updates(training, training.unfreeze_share),
        intermediate_weight=config.intermediate_weight,
        intermediate_layer=config.intermediate_layer or network.self_conditioning or network.num_layers // 2,
        consistency_weight=config.consistency_weight,
        best_by=config.best_by,
        tolerance=Tolerance(*penalties, training.planned_updates) if config.tolerate_errors else None,
    )


def start_from(model: SpeechModel, config: FinetuneConfig) -> None:
    """Copy the weights of `init`; the last `reset_layers` blocks and the norm after them stay as initialised.

    The CTC head of a recogniser comes along with the labels that it has, in whatever order, where no block starts
    afresh.

    Raises:
        CheckpointError, ConfigError: as `load_model`.
    """
    last = model.config.num_layers
    source = load_model(config.init, key="init", weights=config.weights, language=config.language)
    load_backbone_into(model, source, last - config.reset_layers)
    _take_head(model, source, config)


def _take_head(model: SpeechModel, source: SpeechModel, config: FinetuneConfig) -> None:
    """Copy of the CTC head of `source` what fits, and say what became of it."""
    if source.head is None or source.vocabulary is None:
        return
    assert model.head is not None and model.vocabulary is not None, "a recogniser is what is trained"
    here, there = model.vocabulary, source.vocabulary
    rows = match_labels(there, here)
    letters = {here.symbols[k]: rows[k] for k in sorted(here.labels)}
    missing = [symbol for symbol, row in letters.items() if row is None]
    # The boundary alone says nothing of a language.
    fits = len(letters) - len(missing) > (letters.get(here.boundary) is not None)
    one_form = (here.pieces is None) == (there.pieces is None)
    if config.reset_layers or not fits or not one_form:
        why = f"it has no label for {name_letters(missing)}"
        why = why if one_form else "one of the two has letters for labels, the other pieces"
        why = f"with reset_layers={config.reset_layers} the blocks before it do" if config.reset_layers else why
        _logger.warning("init=%s is a recogniser, but its CTC head starts afresh: %s", config.init, why)
        return
    _move_rows(model.head, source.head, rows)
    _move_conditioning(model, source, rows)
    goes_on = f"init={config.init}: its CTC head goes on too, by the letters of its labels"
    if missing:
        _logger.warning("%s; it has none for %s: those start afresh", goes_on, name_letters(missing))
    else:
        _logger.info(goes_on)


def _adapt(model: SpeechModel, config: FinetuneConfig, begun: ModelCard | None) -> None:
    """Freeze what comes from `init`, and add the weights that learn beside it.

    Args:
        model: of a run that begins with the weights of `init`, of one that goes on as it was drawn.
        config: with `adapt` and `lora`.
        begun: what a run that goes on has saved, with the place where the weights were then.

    Raises:
        CheckpointError: as `load_model`. Whether the weights are those of then is seen when the checkpoint is loaded.
    """
    adaptation = begun.adaptation if begun else None
    if adaptation is not None:
        of = adaptation
        source = load_model(of.init, key="init", weights=of.weights, log=False, language=of.language)
        load_backbone_into(model, source)
    else:
        place = {"init": locate(config.init), "weights": config.weights, "language": config.language}
        adaptation = Adaptation(adapt=config.adapt, lora=config.lora, **place)
    start_adapting(model, adaptation)
    count, total = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    _logger.info("adapt=%s: %s of %s weights learn", config.adapt, f"{count:,}", f"{total:,} ({count / total:.2%})")


def match_labels(there: Vocabulary, here: Vocabulary) -> list[int | None]:
    """Find which output of a recogniser is which of another: the blank, each letter by its spelling, specials in order.

    Args:
        there: labels of the head that is trained.
        here: labels of the head that is to go on.

    Returns:
        For each symbol of `here` its index in `there`; None where there is none.
    """
    own = {there.symbols[k]: k for k in sorted(there.labels, reverse=True)}
    spelt = {here.fold_symbol(symbol): k for symbol, k in own.items()} | own
    specials = iter([k for k in range(len(there)) if k != BLANK and k not in there.labels])
    rows: list[int | None] = [BLANK]
    for k, symbol in list(enumerate(here.symbols))[1:]:
        is_label = k in here.labels
        rows.append(spelt.get(symbol, spelt.get(here.fold_symbol(symbol))) if is_label else next(specials, None))
    return rows


def _move_rows(head: nn.Module, source: nn.Module, rows: Sequence[int | None]) -> None:
    """Copy the rows of a trained head; a row of which it has none keeps what was drawn."""
    weights, trained = head.state_dict(), source.state_dict()
    for name, value in weights.items():
        value.copy_(torch.stack([value[k] if row is None else trained[name][row] for k, row in enumerate(rows)]))


def _move_conditioning(model: SpeechModel, source: SpeechModel, rows: Sequence[int | None]) -> None:
    """Copy what a block is told of each label, where both recognisers tell it after the same block."""
    mine, theirs = model.conditioning, source.conditioning
    if mine is None or theirs is None or model.config.self_conditioning != source.config.self_conditioning:
        return
    with torch.no_grad():
        mine.bias.copy_(theirs.bias)
        for k, row in enumerate(rows):
            if row is not None:
                mine.weight[:, k] = theirs.weight[:, row]


def _select(config: FinetuneConfig, paths: Sequence[str], key: str) -> Manifest:
    manifest = select_utterances(paths, key, config.data, config.seed, key == "data.train")
    manifest.require("text", key)
    return manifest


def check_letters(vocabulary: Vocabulary, texts: Sequence[str | None], unknown: str, key: str = "data.train") -> None:
    """Say which characters of the transcripts are no labels, so that nothing is lost unseen.

    Args:
        vocabulary: labels.
        texts: transcripts.
        unknown: `text.unknown`; punctuation, which nobody speaks, is only listed.
        key: where the transcripts come from.

    Raises:
        DataError: letters or digits are outside the vocabulary, and `unknown` is `refuse`.
    """
    counts = vocabulary.unknown_letters(text for text in texts if text)
    spoken = {letter: count for letter, count in counts.most_common() if not is_silent(letter)}
    if spoken and unknown == "refuse":
        raise DataError(
            f"`{key}` must be spelt in the vocabulary, but has {name_letters(spoken)} outside it "
            f"({_advise_labels(spoken)}text.unknown=drop leaves them out of the labels)"
        )
    if counts:
        # Validation is scored against the labels (`CTCObjective`), `evaluate` against what was said.
        scored = "; the wer and cer of validation leave them out too, evaluate counts those that are spoken as errors"
        note = scored if spoken and key == "data.valid" else ""
        listed = name_letters(dict(counts.most_common()))
        _logger.warning("%s has characters outside the vocabulary, left out of the labels: %s%s", key, listed, note)


def _advise_labels(spoken: Mapping[str, int]) -> str:
    """Name the keys that make labels of characters; of the data's own only letters become labels by themselves."""
    keep = f"{write_keep(spoken)} adds them, " if len(spoken) <= MAX_KEPT else ""
    return keep + ("text.vocabulary=data takes all letters, " if any(map(str.isalpha, spoken)) else "")


def _build_source(
    config: FinetuneConfig, vocabulary: Vocabulary, manifest: Manifest, key: str, ranks: Ranks
) -> ManifestSource:
    is_training = key == "data.train"
    return build_source(
        select_usable(manifest, vocabulary, config, key),
        config.seed,
        config.model,
        config.training,
        config.data,
        ascending_epochs=config.data.ascending_epochs,
        speeds=config.data.speed_perturbation,
        is_training=is_training,
        ranks=ranks,
    )


def select_usable(manifest: Manifest, vocabulary: Vocabulary, config: FinetuneConfig, key: str) -> Manifest:
    """Leave out utterances without labels, longer than `data.max_s`, or with more labels than frames allow.

    In training there must be frames enough at the fastest speed; `data.max_s` is the length at speed 1.

    Raises:
        DataError: none is left.
    """
    labels = [vocabulary.encode(text or "") for text in manifest.column("text")]
    samples = manifest.num_samples_16k
    speed = config.data.fastest if key == "data.train" else 1.0
    frames = config.model.count_outputs(count_at_speed(samples, speed))
    needed = np.array([count_needed_frames(row) for row in labels])
    is_short = needed > frames
    first = int(is_short.argmax())
    has = f"{frames[first]} at speed {speed:g}" if speed != 1 else str(frames[first])
    reasons = {
        "without labels": np.array([not row for row in labels]),
        f"longer than data.max_s={config.data.max_s:g} s": samples > config.data.max_s * SAMPLE_RATE,
        f"too short for their text (the first needs {needed[first]} frames, and has {has})": is_short,
    }
    return leave_out(manifest, reasons, key)

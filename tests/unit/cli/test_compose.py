"""From words to dataclasses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from speechssl.cli.compose import build_config, compose, compose_request, to_yaml
from speechssl.cli.verbs import VERBS
from speechssl.cli.words import Request, escape, find_conf_folder, find_groups, is_assignment, read_words
from speechssl.config.decoding import DecodingConfig
from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.config.objective import ContrastiveConfig, MaskedCodesConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.errors import ConfigError


def test_a_word_is_key_value_only_behind_an_identifier_path() -> None:
    yes = ["layer=9", "training.lr=1e-3", "+columns.x=y", "data.where=speaker=19", "ä=1"]
    no = ["clips/take=1.flac", "a b=c.flac", "1=2.wav", "clips/a.flac"]
    assert [word for word in [*yes, *no] if is_assignment(word)] == yes


def test_bare_words_are_the_main_inputs_taken_literally() -> None:
    config = compose("embed", ["runs/base", "clips/a.flac", "clips/b.flac", "layer=9"])
    assert (config.checkpoint, config.audio, config.layer) == ("runs/base", ["clips/a.flac", "clips/b.flac"], 9)
    odd = ["a b.flac", "a#1.flac", "é(2).flac", "[x].flac", "a,b.flac", "${x}.flac", "'q'.wav", "\\${y}"]
    assert compose("embed", ["runs/a", *odd]).audio == odd
    demo = compose("demo", ["runs/quick", "3"])
    assert (demo.out, demo.minutes) == ("runs/quick", 3.0)
    tiny = compose("pretrain", ["tiny", "m/train.tsv", "out=runs/a"])
    assert (tiny.model.name, tiny.model.model_dim, tiny.data.train) == ("tiny", 32, ["m/train.tsv"])


def test_a_list_takes_one_value_too() -> None:
    for words, expected in (
        (["data.test=a.tsv"], ["a.tsv"]),
        (["data.test=[a.tsv,b.tsv]"], ["a.tsv", "b.tsv"]),
        (["data={test: a.tsv}"], ["a.tsv"]),
    ):
        assert compose("evaluate", ["runs/a", *words]).data.test == expected
    with pytest.raises(ConfigError, match=r"`data.speed_perturbation` must be a list of numbers, but is \['fast'\]"):
        compose("pretrain", ["tiny", "data.speed_perturbation=fast"])


def test_values_follow_hydra_and_the_schema() -> None:
    config = compose("evaluate", ["x", "num_resamples=1e2", "data.where=speaker=19", 'out="a(1), b"', "overwrite=true"])
    assert (config.num_resamples, config.data.where) == (100, "speaker=19")
    assert (config.out, config.overwrite) == ("a(1), b", True)
    assert compose("pretrain", ["tiny", "out=runs/${model.name}-${seed}", "seed=3"]).out == "runs/tiny-3"
    assert "model_dim: 32" in to_yaml(compose("pretrain", ["tiny", "out=runs/a"]))


def test_mappings_are_set_key_by_key_or_at_once() -> None:
    config = compose("prepare", ["d", "columns.path=file", "+columns.accent=where"])
    assert config.columns == {"path": "file", "text": "text", "speaker": "speaker", "accent": "where"}
    expected = {"path": "file", "text": "text", "speaker": "speaker", "split": "part"}
    assert compose("prepare", ["d", "columns={path:file,split:part}"]).columns == expected
    request = Request("prepare")
    request.add("columns", {"path": "file", "split": "part"})
    assert compose_request(request).columns == expected
    for value in ("5", "file", "[file]", "null", "{path:[a]}", "{path:null}", "{1:file}"):
        with pytest.raises(ConfigError, match="`columns` must be a mapping of texts to texts, but is "):
            compose("prepare", ["d", f"columns={value}"])


def test_python_values_are_nested_or_dotted_and_literal() -> None:
    request = Request("pretrain")
    request.add("model", "tiny")
    request.add("training", {"max_updates": 5})
    request.add("training.lr", 2e-3)
    request.add("data.train", escape(Path("m/${odd}.tsv")))
    request.add("out", "runs/a b")
    config = compose_request(request)
    assert (config.training.max_updates, config.training.lr, config.model.name) == (5, 2e-3, "tiny")
    assert (config.data.train, config.out) == (["m/${odd}.tsv"], "runs/a b")


def test_a_stored_network_takes_the_place_of_the_preset() -> None:
    stored = asdict(ModelConfig(name="small", model_dim=48, num_heads=3))
    config = compose("finetune", ["runs/a", "data.train=m.tsv", "out=b", "model.head_dropout=0.2"], stored_model=stored)
    assert (config.model.model_dim, config.model.head_dropout, config.model.name) == (48, 0.2, "small")
    with pytest.raises(ConfigError, match="`model` must be left out or be small"):
        compose("finetune", ["runs/a", "model=base", "out=b"], stored_model=stored)


def test_what_an_older_run_does_not_know_is_the_schemas_not_the_presets() -> None:
    """`small` took the waveform before it took log-mel, and its runs of then have no key for it."""
    stored = asdict(ModelConfig(name="small"))
    del stored["front_end"], stored["mel_channels"]
    model = compose("finetune", ["init=gone", "out=b"], stored_model=stored).model
    assert (model.front_end, model.mel_channels) == (ModelConfig().front_end, ModelConfig().mel_channels)
    assert compose("finetune", ["model=small", "out=b"]).model.front_end == "log_mel"


def test_text_that_looks_like_a_number_stays_as_it_is() -> None:
    for text in ("2024_01_05", "1e3", "007", "true", "0x10"):
        (request,) = read_words("evaluate", ["x", f"out={text}", "seed=1_0"])
        assert (request.values["out"], request.values["seed"]) == (text, 10)
        assert read_words("transcribe", ["x", f"audio={text}"])[0].values["audio"] == [text]


def test_fine_tuning_masks_the_same_channels_wherever_its_network_comes_from() -> None:
    """A pretrained `.pt` of fairseq says 10, which its fine-tuning never uses; a Hugging Face folder says nothing."""
    for name, length in (("base", 10), ("base", 64), ("large", 10), ("large_lv60k", 64), ("xls_r_1b", 10), ("odd", 10)):
        stored = asdict(ModelConfig(name=name, mask=MaskConfig(channel_length=length)))
        mask = compose("finetune", ["init=a", "out=b"], stored_model=stored).model.mask
        assert (mask.channel_prob, mask.channel_length) == (0.25, 64), name


def test_a_bench_of_ctc_has_the_network_of_fine_tuning_except_given_values() -> None:
    (request,) = read_words("bench", ["ctc", "base", "model.dropout=0.3"])
    network = build_config(request).model
    assert (network.feature_gradient_scale, network.mask.channel_prob, network.dropout) == (0.0, 0.25, 0.3)


def test_every_file_of_conf_composes() -> None:
    known = {f"{verb}.yaml" for verb in VERBS}
    for verb, row in VERBS.items():
        needed = {"checkpoint": ["runs/a"], "reference": ["a", "b"], "embeddings": ["a.parquet", "b"]}
        given = needed.get(row.inputs[0] if row.inputs else "", [])
        words = given + (["out=x"] if "out" in row.inputs else [])
        assert isinstance(compose(verb, words), row.schema)
    for verb in ("pretrain", "finetune"):
        groups = find_groups(verb)
        known |= {f"{group}/{name}.yaml" for group, names in groups.items() for name in names}
        for model in groups["model"]:
            assert compose(verb, ["out=x", f"model={model}"]).model.name == model
        for preset in groups["training"]:
            model = "small" if preset.endswith("_demo") else "base"
            assert compose(verb, ["out=x", f"model={model}", f"training={preset}"]).training.max_updates > 0
    folder = find_conf_folder()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")} == known, "a file nobody composes"


def test_a_preset_of_another_verb_is_no_choice() -> None:
    with pytest.raises(ConfigError, match="`training` must be one of pretrain_base, .*, but 'finetune_base' is one of"):
        compose("pretrain", ["out=x", "training=finetune_base"])


def test_a_folder_of_ones_own_adds_presets(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nnum_layers: 3\n", encoding="utf-8")
    words = ["out=x", f"hydra.searchpath=[file://{tmp_path}]", "model=mine", "training=pretrain_tiny"]
    assert compose("pretrain", words).model.num_layers == 3
    with pytest.raises(ConfigError, match="`training` must be one of .*, but 'pretrain_mine' does not exist"):
        compose("pretrain", words[:-1])


def test_an_objective_brings_its_own_keys() -> None:
    """A preset sets keys of several objectives, of which those of the chosen one count."""
    words = ["model=small", "data.train=x", "out=y"]
    chosen = compose("pretrain", [*words, "objective.num_negatives=50"])
    assert type(chosen) is PretrainConfig
    assert chosen.objective == ContrastiveConfig(num_negatives=50, feature_penalty_weight=1.0, unmasked_weight=1.0)
    # The order of the words does not matter.
    codes = compose("pretrain", [*words, "objective.num_codes=50", "objective=masked_codes"]).objective
    assert isinstance(codes, MaskedCodesConfig)
    assert (codes.targets, codes.num_codes, codes.feature_penalty_weight) == ("kmeans", 50, 1.0)


def test_a_key_of_another_objective_is_unknown(tmp_path: Path) -> None:
    for word, sentence in (
        ("objective=foo", "`objective` must be one of masked_codes, wav2vec2, but 'foo' does not exist"),
        ("objective.name=masked_codes", "`objective.name` must be left to the choice objective=…"),
        ("objective.targets=kmeans", "a key of objective=wav2vec2, but belongs to objective=masked_codes"),
        ("objective.num_negative=5", "is none; the nearest one is `objective.num_negatives`"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            compose("pretrain", ["out=y", word])
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("name: masked_codes\nnum_code: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="the configuration must compose, but Key 'num_code' not in"):
        compose("pretrain", ["out=x", f"hydra.searchpath=[file://{tmp_path}]", "objective=mine"])


TRAIN = ("pretrain", "model=tiny", "out=x")
TUNE = ("finetune", "model=tiny", "out=x")
PROBE = ("probe", "runs/a", "m.tsv")

OUT_OF_RANGE = (
    (TUNE, "training.final_lr_scale=0", "must be positive, since the decay of tri_stage is exponential"),
    (TUNE, "training.hold_share=0.95", "must be at most 0.9, what training.warmup_share leaves, but is 0.95"),
    (TUNE, "training.freeze_share=1.1", "must be between 0 and 1, but is 1.1"),
    (TUNE, "training.unfreeze_share=0.5", "must be 1 without freeze_layers, but is 0.5"),
    (TRAIN, "training.unfreeze_share=0.5", "must be 1 in pretraining, since it is for fine-tuning, but is 0.5"),
    (TUNE, "training.layer_lr_decay=0", "must be positive and at most 1, but is 0.0"),
    (TRAIN, "training.layer_lr_decay=0.9", "must be 1 in pretraining, since it is for fine-tuning, but is 0.9"),
    (TUNE, "star_penalty=3", "must be left out without tolerate_errors=true, but is 3.0"),
    ((*TUNE, "tolerate_errors=true"), "word_penalty=-1", "must be between 0 and 1000, but is -1.0"),
    ((*TUNE, "tolerate_errors=true"), "star_penalty=nan", "must be a finite number, but is nan"),
    ((*TUNE, "tolerate_errors=true"), "penalty_decay=0", "must be positive and at most 1, but is 0.0"),
    (TUNE, "training.patience=3", "must be 0 without data.valid, but is 3"),
    (TRAIN, "training.patience=-1", "must be positive, or 0 to make all updates, but is -1"),
    (TUNE, "intermediate_weight=1", "must be at least 0 and less than 1, but is 1.0"),
    (TUNE, "consistency_weight=-1", "must be positive, or 0 for one view, but is -1.0"),
    (TUNE, "best_by=bleu", "must be one of wer, cer, loss, but is 'bleu'"),
    (TUNE, "model.self_conditioning=2", "must be 0, or a block before the last of 2, but is 2"),
    (TRAIN, "model.self_conditioning=1", "must be 0 in pretraining, which has no CTC head, but is 1"),
    (TRAIN, "training.warmup_share=-0.1", "must be between 0 and 1, but is -0.1"),
    (TRAIN, "training.checkpoint_every=0", "must be at least 1, but is 0"),
    (TRAIN, "training.validate_every=0", "must be at least 1, but is 0"),
    (TRAIN, "training.log_every=0", "must be at least 1, but is 0"),
    (TRAIN, "training.beta1=1", "must be at least 0 and less than 1, but is 1.0"),
    (TRAIN, "training.beta2=-0.1", "must be at least 0 and less than 1, but is -0.1"),
    (TRAIN, "training.eps=-1e-8", "must be at least 0, but is -1e-08"),
    (TRAIN, "training.weight_decay=-1", "must be at least 0, but is -1.0"),
    (TRAIN, "training.clip_norm=-1", "must be positive, or 0 for no clipping, but is -1.0"),
    (TRAIN, "training.max_hours=-1", "must be positive, or 0 for no limit, but is -1.0"),
    (TRAIN, "model.quantizer.temperature_decay=1.1", "must be positive and at most 1, but is 1.1"),
    (TRAIN, "model.quantizer.temperature_decay=0", "must be positive and at most 1, but is 0.0"),
    (TRAIN, "model.quantizer.temperature_start=0", "must be positive, but is 0.0"),
    (TRAIN, "model.num_heads=0", "must be a whole number between 1 and 65536, but is 0"),
    (TUNE, "model.num_heads=-2", "must be a whole number between 1 and 65536, but is -2"),
    (TRAIN, "model.position_groups=0", "must be a whole number between 1 and 65536, but is 0"),
    (TRAIN, "model.family=hubbert", "must be one of wav2vec2, hubert, "),
    (TRAIN, "model.position_depth=2", "must be 1 where model.position_norm is weight, but is 2"),
    (TRAIN, "model.position_norm=group", "must be one of weight, batch, layer, but is 'group'"),
    (TRAIN, "model.position_buckets=3", "must be 0, or at least 4, but is 3"),
    (TRAIN, "model.position_max_distance=0", "must be a whole number between 1 and 65536, but is 0"),
    (TUNE, "model.feature_gradient_scale=-0.1", "must be positive, or 0 to freeze, but is -0.1"),
    (TUNE, "reset_layers=2", "must be 0 without `init`, "),
    (TUNE, "weights=emma", "must be one of model, ema, but is 'emma'"),
    (TRAIN, "weights=emma", "must be one of model, ema, but is 'emma'"),
    (TRAIN, "data.limit_s=-1", "must be positive, or 0 for all, but is -1.0"),
    (TRAIN, "data.num_workers=-2", "must be between 0 and 256, or -1 to have it chosen, but is -2"),
    (TUNE, "data.num_workers=-2", "must be between 0 and 256, or -1 to have it chosen, but is -2"),
    (
        ("bench", "load", "data.train=x"),
        "data.num_workers=-2",
        "must be between 0 and 256, or -1 to have it chosen, but is -2",
    ),
    (PROBE, "num_resamples=0", "must be at least 1, but is 0"),
    (PROBE, "num_trials=1", "must be at least 2, one of each kind, but is 1"),
    (PROBE, "updates=0", "must be at least 1, but is 0"),
    (PROBE, "lr=-1", "must be a positive number or a list of them, but is -1"),
    (PROBE, "data.max_s=0", "must be at least 0.025 s, one frame, but is 0.0"),
    (PROBE, "data.trials=t.txt", "must be left out with task=auto"),
)

FINITE = (
    (TRAIN, "training.update_s"),
    (TRAIN, "training.lr"),
    (TRAIN, "data.speed_perturbation"),
    (TUNE, "data.max_s"),
    (TRAIN, "model.quantizer.temperature_decay"),
    (("bench", "extract"), "seconds"),
    (("embed", "runs/a", "x"), "window_s"),
    (("evaluate", "runs/a", "x", "decoding=beam"), "decoding.lm_weight"),
    (("evaluate", "runs/a", "x", "decoding=beam"), "decoding.word_bonus"),
)


def test_a_value_out_of_range_is_refused_by_its_own_name() -> None:
    for command, word, sentence in OUT_OF_RANGE:
        with pytest.raises(ConfigError) as caught:
            compose(command[0], [*command[1:], word])
        assert str(caught.value).startswith(f"`{word.partition('=')[0]}` {sentence}")
    for command, key in FINITE:
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(ConfigError, match=f"`{key}` must be a finite number, but is {value}"):
                compose(command[0], [*command[1:], f"{key}={value}"])
    for name in ("lm_weight", "word_bonus", "unknown_penalty"):
        with pytest.raises(ConfigError, match=f"`decoding.{name}` must be a finite number, but is nan"):
            DecodingConfig(name="beam", **{name: float("nan")})


def test_shares_may_fill_the_run() -> None:
    words = ["model=tiny", "out=x", "training.warmup_share=0.7", "training.hold_share=0.3", "training.freeze_share=1"]
    assert compose("finetune", words).training.hold_share == 0.3
    linear = ["training.schedule=polynomial", "training.final_lr_scale=0", "training.warmup_share=0.9"]
    assert compose("finetune", ["model=tiny", "out=x", *linear]).training.final_lr_scale == 0


def test_decoding_is_chosen_and_its_keys_are_set() -> None:
    for verb in ("evaluate", "transcribe"):
        assert compose(verb, ["runs/ctc", "x"]).decoding == DecodingConfig()
        assert compose(verb, ["runs/ctc", "x", "decoding=greedy"]).decoding.name == "greedy"
        beam = compose(verb, ["runs/ctc", "x", "decoding=beam", "decoding.lm=a.arpa", "decoding.lm_weight=2"]).decoding
        assert beam == DecodingConfig(name="beam", lm="a.arpa", lm_weight=2.0)
        assert beam.given == ("lm_weight",)
        with pytest.raises(ConfigError, match="`decoding.word_bonus` must be a number, or empty, but is 'much'"):
            compose(verb, ["runs/ctc", "x", "decoding=beam", "decoding.word_bonus=much"])
        with pytest.raises(ConfigError, match="`decoding` must be one of beam, greedy, but 'bean' does not exist"):
            compose(verb, ["runs/ctc", "x", "decoding=bean"])
        with pytest.raises(ConfigError, match="`decoding.lm` must be left out with decoding=greedy"):
            compose(verb, ["runs/ctc", "x", "decoding.lm=a.arpa"])
    assert compose("tune", ["runs/ctc", "x", "decoding.lm=a.arpa"]).decoding == DecodingConfig(name="beam", lm="a.arpa")
    with pytest.raises(ConfigError, match="`decoding` must be beam, which has a language model, but is 'greedy'"):
        compose("tune", ["runs/ctc", "x", "decoding=greedy"])

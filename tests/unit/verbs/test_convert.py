"""`speechssl convert`, and every verb that starts from a model of another toolkit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechssl
from speechssl.cli.main import main
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary

TRAINING = (
    "training.max_updates=1", "training.update_s=8", "training.sub_batch_s=8", "training.forward_s=8",
    "data.num_workers=0", "device=cpu",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_config: ModelConfig) -> Path:
    """A folder with a pretrained model and a recogniser of ours, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(6)
    speechssl.save(SpeechModel(tiny_model_config, pretraining=True), "pretrained")
    speechssl.save(SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])), "recogniser")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    code = main(list(words))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, object] = json.loads(captured.out.splitlines()[-1])
    return result


def test_round_the_formats(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours → Hugging Face → fairseq → ours: the weights stay bitwise the same."""
    first = run(capsys, "convert", "pretrained", "huggingface", "out=hf")
    assert (first["from"], first["to"], first["kind"]) == ("speechssl", "huggingface", "pretraining")
    assert first["left_behind"] == first["notes"] == []
    run(capsys, "convert", "hf", "fairseq", "fs.pt")
    last = run(capsys, "convert", "fs.pt", "to=speechssl", "out=back")
    assert (last["from"], last["parameters"]) == ("fairseq", first["parameters"])
    before, after = load_model("pretrained").state_dict(), load_model("back").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_torchaudio_has_no_place_for_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "convert", "pretrained", "torchaudio", "out=ta")
    assert result["out"] == "ta/model.pt"
    assert result["left_behind"] == ["mask vector", "quantizer, target and context projection"]
    assert (place / "ta" / "model.json").exists()
    assert (place / "ta" / "result.json").exists()
    again = run(capsys, "convert", "ta/model.pt", "speechssl", "out=back")
    assert again["kind"] == "backbone"
    assert "mask vector" in str(again["notes"])


def test_what_decides_the_audio_is_in_the_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", "recogniser", "huggingface", "out=hf")
    config = json.loads((place / "hf" / "config.json").read_text())
    del config["speechssl"]
    (place / "hf" / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "processor_config.json"):
        text = (place / "hf" / name).read_text().replace('"do_normalize": false', '"do_normalize": true')
        (place / "hf" / name).write_text(text)
    result = run(capsys, "convert", "hf", "speechssl", "out=back")
    assert (result["normalize_waveform"], result["waveform_epsilon"]) == (True, 1e-7)
    assert result["group_norm_frames"] == "valid"
    assert "group_norm_frames=valid" in str(result["notes"])
    model = load_model("back").config
    assert (model.normalize_waveform, model.waveform_epsilon, model.group_norm_frames) == (True, 1e-7, "valid")


def test_an_epsilon_that_hugging_face_cannot_hold_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((place / "recogniser" / "config.json").read_text())
    config["model"]["normalize_waveform"] = True
    (place / "recogniser" / "config.json").write_text(json.dumps(config))
    result = run(capsys, "convert", "recogniser", "huggingface", "out=hf")
    assert result["left_behind"] == ["waveform_epsilon=1e-05 (there it is 1e-07)"]
    assert load_model("hf").config.waveform_epsilon == 1e-5


def test_a_finished_conversion_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", "recogniser", "huggingface", "out=hf")
    assert main(["convert", "recogniser", "huggingface", "out=hf"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    run(capsys, "convert", "recogniser", "huggingface", "out=hf", "overwrite=true")


@pytest.mark.parametrize("format", ["huggingface", "fairseq", "torchaudio"])
def test_training_and_measuring_start_from_it(
    format: str, place: Path, librispeech_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "prepare", str(librispeech_tree), "out=m")
    source = "model" if format == "huggingface" else "model.pt"
    run(capsys, "convert", "pretrained", format, f"out={source}")
    tuned = run(capsys, "finetune", f"init={source}", "data.train=m/train.tsv", "out=tuned", *TRAINING)
    assert tuned["updates"] == 1
    more = run(capsys, "pretrain", f"init={source}", "data.train=m/train.tsv", "out=more", *TRAINING)
    assert more["updates"] == 1
    clip = str(next((librispeech_tree / "dev").rglob("*.flac")))
    assert run(capsys, "embed", source, clip, "out=e.parquet", "device=cpu")["dim"] == 32
    words = ("data.train=m/train.tsv", "updates=2", "num_resamples=10", "device=cpu", "out=probe")
    assert "accuracy" in run(capsys, "probe", source, *words)


def test_a_recogniser_transcribes_and_is_evaluated(
    place: Path, librispeech_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "convert", "recogniser", "huggingface", "out=hf")
    clip = str(next((librispeech_tree / "dev").rglob("*.flac")))
    ours = run(capsys, "transcribe", "recogniser", clip, "out=a", "device=cpu")
    theirs = run(capsys, "transcribe", "hf", clip, "out=b", "device=cpu")
    assert Path(str(ours["texts"])).read_text() == Path(str(theirs["texts"])).read_text()


def test_a_network_without_a_class_there_brings_its_code_and_every_folder_a_card(
    place: Path, tiny_model_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    speechssl.save(SpeechModel(replace(tiny_model_config, front_end="log_mel")), "mel")
    assert main(["convert", "mel", "huggingface", "out=hf/mel"]) == 0
    told = capsys.readouterr()
    assert "opens there with trust_remote_code=True" in told.err
    assert "to upload it: hf upload mel hf/mel --exclude result.json" in told.err
    result = json.loads(told.out.splitlines()[-1])
    assert (result["left_behind"], len(result["notes"])) == ([], 1)
    assert run(capsys, "convert", "recogniser", "huggingface", "out=hf/asr")["notes"] == []
    cards = {name: (place / "hf" / name / "README.md").read_text() for name in ("mel", "asr")}
    for name, words in {
        "mel": ("pipeline_tag: feature-extraction", "- custom_code", "80 log-mel bands", "trust_remote_code=True",
                "Not recorded in this folder", "speechssl embed mel"),
        "asr": ("pipeline_tag: automatic-speech-recognition", "AutoModelForCTC", "32: <s> <pad> </s> <unk> \\| E",
                "speechssl transcribe asr", "## Licence"),
    }.items():  # fmt: skip
        assert not [word for word in words if word not in cards[name]], cards[name]
    assert "trust_remote_code" not in cards["asr"]
    assert "license:" not in cards["asr"].partition("\n# ")[0]
    # Somebody has written in it.
    (place / "hf" / "asr" / "README.md").write_text("mine")
    run(capsys, "convert", "recogniser", "huggingface", "out=hf/asr", "overwrite=true")
    assert (place / "hf" / "asr" / "README.md").read_text() == "mine"


MISTAKES = (
    (("convert",), "`checkpoint` must be given"),
    (("convert", "nowhere"), "nowhere does not exist"),
    (("convert", "recogniser", "onyx"), "`to` must be one of speechssl, huggingface, fairseq, torchaudio"),
    (("convert", "recogniser", "huggingface", "recogniser/config.json/x"), "`out` must be a place"),
    (("convert", "truncated"), "`checkpoint` must be a whole file of tensors"),
    (("finetune", "init=truncated", "out=x"), "`init` must be a whole file of tensors"),
    (("convert", "recogniser", "onnx", "push=a/b"), "`push` must be empty unless `to` is huggingface, but is 'a/b'"),
    (("convert", "recogniser", "huggingface", "push=b"), "`push` must be of the form owner/model, but is 'b'"),
    (("embed", "sew", "a.wav"), "describes SEW, which does not load yet"),
)


def test_a_mistake_is_one_sentence_and_exit_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("truncated", "sew"):
        speechssl.save(load_model("recogniser"), name, format="huggingface")
    weights = place / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = json.loads((place / "sew" / "config.json").read_text()) | {"model_type": "sew"}
    (place / "sew" / "config.json").write_text(json.dumps(config))
    for words, expected in MISTAKES:
        assert main(list(words)) == 2
        captured = capsys.readouterr()
        assert expected in captured.err
        assert "Traceback" not in captured.err

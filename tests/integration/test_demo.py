from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from speechssl.cli.compose import compose, compose_request
from speechssl.cli.run import run_verb
from speechssl.cli.words import Request
from speechssl.config.verbs import DemoConfig
from speechssl.durable import write_result
from speechssl.errors import ConfigError
from speechssl.verbs import demo

MANIFEST = "id\tpath\tsample_rate\tnum_samples\tspeaker\n101-1-0000\ta.flac\t16000\t32000\t101\n"


class FakeVerbs:
    """Stands in for the verbs: composes each configuration for real, and writes results as a run would."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fresh: dict[str, int] = {}

    def __call__(self, verb: str, keys: dict[str, Any]) -> dict[str, Any]:
        request = Request(verb)
        for key, value in keys.items():
            request.add(key, value)
        small = asdict(compose("pretrain", ["model=small", "training=pretrain_demo", "out=x"]).model)
        config = compose_request(request, small if "init" in keys else None)
        out = Path(config.out)
        self.calls.append((verb, out.name))
        if verb == "finetune":
            self.fresh[out.name] = config.reset_layers
        result = self.make_result(verb, out)
        if verb in ("lm", "embed", "report"):
            out.write_text("x")
            return result
        out.mkdir(parents=True, exist_ok=True)
        write_result(out, result)
        return result

    @staticmethod
    def make_result(verb: str, out: Path) -> dict[str, Any]:
        match verb:
            case "prepare":
                out.mkdir(parents=True)
                for split in ("train", "dev", "test", "session"):
                    (out / f"{split}.tsv").write_text(MANIFEST)
                return {"manifests": {"train": {"hours": 0.5}}}
            case "pretrain" | "finetune":
                out.mkdir(parents=True, exist_ok=True)
                lines = [{"update": 0, "split": "valid", "accuracy": 0.02}]
                speeds = {"split": "train", "audio_s_per_s": 100.0, "hours_seen": 1.0}
                lines += [{"update": update, **speeds} for update in range(1, 9)]
                (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                return {"hours_seen": 2.0, "valid": {"accuracy": 0.3}}
            case "evaluate":
                rate = 80.0 if "scratch" in out.name else 20.0
                return {"wer": rate, "cer": rate / 3}
            case "probe":
                return {"accuracy": 70.0, "baselines": {"log_mel": {"accuracy": 20.0}, "untrained": {"accuracy": 25.0}}}
            case _:
                return {}


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> FakeVerbs:
    fake = FakeVerbs()
    monkeypatch.setattr(import_module("speechssl.verbs.demo"), "build_demo_corpus", lambda root, seed, splits: root)
    return fake


ALL_STEPS = [
    ("prepare", "manifests"),
    ("pretrain", "pretrain"),
    ("pretrain", "pretrained"),
    ("finetune", "finetune"),
    ("finetune", "finetuned"),
    ("finetune", "from_scratch"),
    ("lm", "lm.arpa"),
    ("evaluate", "wer_finetuned"),
    ("evaluate", "lm_finetuned"),
    ("evaluate", "wer_from_scratch"),
    ("evaluate", "lm_from_scratch"),
    ("embed", "embeddings.parquet"),
    ("probe", "probe"),
    ("report", "report.html"),
]


def test_every_step_composes_and_the_table_comes_last(
    tmp_path: Path, verbs: FakeVerbs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="speechssl")
    out = tmp_path / "a demo, with spaces"
    result = demo(DemoConfig(out=str(out), minutes=0.5, device="cpu"), verbs)
    assert verbs.calls == ALL_STEPS
    assert (verbs.fresh["finetuned"], verbs.fresh["from_scratch"]) == (2, 0)
    assert result["as_hoped"] is True
    assert json.loads((out / "result.json").read_text()) == result
    said = [record.getMessage() for record in caplog.records]
    commands = [line.split()[2] for line in said if line.startswith("$ speechssl ")]
    assert commands == [verb for verb, _ in ALL_STEPS]
    after = said[max(n for n, line in enumerate(said) if line.startswith("$ speechssl ")) :]
    assert "speaker accuracy" in "\n".join(after)
    assert "report.html" in "\n".join(after)


def test_finished_steps_are_skipped(tmp_path: Path, verbs: FakeVerbs) -> None:
    config = DemoConfig(out=str(tmp_path), minutes=0.5, device="cpu")
    first = demo(config, verbs)
    verbs.calls.clear()
    assert demo(config, verbs) == first
    assert verbs.calls == []
    # As if it had been stopped before the probe: training verbs are asked again, and answer at once.
    (tmp_path / "result.json").unlink()
    (tmp_path / "probe" / "result.json").unlink()
    (tmp_path / "elapsed.json").write_text('{"seconds": 600}')
    assert demo(config, verbs)["minutes"] >= 10.0, "the time of earlier starts counts"
    assert verbs.calls == [ALL_STEPS[2], *ALL_STEPS[4:6], *ALL_STEPS[-2:]]


@pytest.mark.slow
def test_another_length_needs_another_folder_or_overwrite(tmp_path: Path, verbs: FakeVerbs) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    demo(DemoConfig(out=str(tmp_path), minutes=0.5), verbs)
    with pytest.raises(ConfigError, match="`minutes` must be 0.5, as in the demo that"):
        demo(DemoConfig(out=str(tmp_path), minutes=1.0), verbs)
    verbs.calls.clear()
    demo(DemoConfig(out=str(tmp_path), minutes=1.0, overwrite=True), verbs)
    assert verbs.calls == ALL_STEPS
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.slow
def test_the_demo_runs_from_speech_to_report(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")
    result = demo(DemoConfig(out=str(tmp_path / "demo"), minutes=0.2, device="cpu"), run_verb)
    rows = {row["name"]: row for row in result["rows"]}
    assert 0 < rows["codes of masked frames, held out"]["value"] <= 100
    assert rows["WER, unseen speakers"]["value"] > 0
    assert set(rows["speaker accuracy, unseen session"]["baselines"]) >= {"untrained"}
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert (tmp_path / "demo" / "embeddings.parquet").stat().st_size > 1000

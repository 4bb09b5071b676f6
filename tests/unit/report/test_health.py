"""What a page says of a run's state and health."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from speechssl.report.health import describe_status, find_stretches, judge, make_health
from speechssl.report.page import build_report
from speechssl.report.run_folder import RunFolder, load_run
from speechssl.training.lock import hold_folder


def contrast(update: int, split: str, loss: float | None, **others: Any) -> dict[str, Any]:
    healthy = {"hard_perplexity": [90.0, 80.0], "loss_of_guessing": 6.64, "removed_negatives": 0.01}
    row = {"update": update, "split": split, "loss_contrastive": loss, "loss": loss, "accuracy": 0.3, **healthy}
    return {**row, "masked_share": 0.49, "grad_norm": 1.0, "audio_s_per_s": 90.0, "hours_seen": update / 10, **others}


def codes(update: int, loss: float) -> dict[str, Any]:
    return {"update": update, "split": "train", "loss_codes": loss, "target_entropy": 8.0, "accuracy": 0.1}


def write(update: int, wer: float, cer: float) -> dict[str, Any]:
    return {"update": update, "split": "valid", "loss": 100.0 - update, "wer": wer, "cer": cer}


def contrasts(last: float | None, **others: Any) -> list[dict[str, Any]]:
    """A validation before, and twenty lines of training at the end."""
    return [contrast(0, "valid", 6.8), contrast(1, "train", 6.8), *[contrast(100, "train", last, **others)] * 20]


def validated(*losses: float, **others: Any) -> list[dict[str, Any]]:
    rows = [contrast(50 * (k + 1), "valid", loss, **others) for k, loss in enumerate(losses)]
    return [*contrasts(losses[-1]), *rows]


def heard(*losses: float) -> list[dict[str, Any]]:
    return [{"update": 25 * k, "split": "valid", "loss": loss} for k, loss in enumerate(losses)]


TRAIN = [{"update": 100, "split": "train", "loss": 1.0}] * 20
CASES: tuple[tuple[str, list[dict[str, Any]], str, str], ...] = (
    ("pretrain", [contrast(0, "valid", 6.8)], "open", "No update has been logged yet"),
    (
        "pretrain",
        validated(5.5, 5.0),
        "good",
        "6.80 to 5 bits; guessing costs 6.64 bits; 90 and 80 of",
    ),
    ("pretrain", [contrast(1, "train", 6.8), contrast(2, "train", 6.7)], "open", "still rising"),
    ("pretrain", contrasts(6.639), "bad", "no better than guessing"),
    ("pretrain", validated(5.5, 5.0, hard_perplexity=[1.1, 80.0]), "bad", "a codebook has collapsed"),
    ("pretrain", contrasts(5.0, collapse_warning=1), "bad", "signs of a collapse"),
    ("pretrain", contrasts(None), "bad", "no longer a number"),
    ("pretrain", validated(5.0, 6.0), "doubt", "lower at update 50"),
    ("pretrain", contrasts(5.0, skipped_updates=9), "doubt", "9 updates of 100 were skipped"),
    ("pretrain", contrasts(5.0, masked_share=0.1), "doubt", "only 10 % of the frames"),
    ("pretrain", contrasts(5.0, removed_negatives=0.3), "doubt", "many negatives"),
    ("pretrain", [codes(1, 9.0), *[codes(100, 7.0)] * 20], "good", "the entropy of the codes is 8 bits"),
    ("pretrain", [codes(1, 9.0), *[codes(100, 7.99)] * 20], "bad", "how often each code comes"),
    ("pretrain", [{**TRAIN[0], "update": 1, "loss": 2.0}, *TRAIN], "open", "fell from 2 to 1"),
    ("pretrain", [*TRAIN, *heard(9.0, 7.0, 7.5, 6.0)], "good", "fell from 9 to 6"),
    ("pretrain", [*TRAIN, *heard(9.0, 7.0, 8.5, 8.0)], "open", "by more than its noise"),
    ("pretrain", TRAIN, "bad", "the loss has not fallen"),
    ("finetune", [write(0, 100, 99), write(100, 30, 9), *TRAIN], "good", "the word error rate is 30 %"),
    ("finetune", [write(0, 100, 99), write(100, 100, 95), *TRAIN], "bad", "hardly a word is right"),
    ("finetune", [write(0, 100, 99), write(50, 20, 5), write(100, 40, 19), *TRAIN], "doubt", "lower at update 50"),
)


def test_every_run_has_a_verdict_in_plain_words() -> None:
    config = {"training": {"warmup_share": 0.1, "max_updates": 100}}
    wrong = []
    for kind, rows, level, words in CASES:
        verdict = judge(RunFolder(Path("run"), kind, config=config, metrics=rows))
        if verdict.level != level or words.lower() not in verdict.text.lower():
            wrong.append((words, verdict))
    assert not wrong


def test_the_status_says_where_a_run_stands(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run", num_updates=60)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"]["max_updates"] = 300
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    status = dict(describe_status(load_run(folder)))
    assert status["State"] == "stopped at update 60 of 300; the same command goes on"
    assert status["Command"] == "speechssl '<x>' '&' y"
    assert (status["Seed"], status["Data"]) == ("1", "trained on train.tsv")
    assert status["Training time"].endswith("seconds, without validation")
    with hold_folder(folder):
        assert dict(describe_status(load_run(folder)))["State"] == "running, at update 60 of 300"
    (folder / "result.json").write_text('{"updates": 300, "best_update": 0}')
    status = dict(describe_status(load_run(folder)))
    assert status["State"] == "finished, all 300 updates"
    assert "Best checkpoint" not in status, "the state before the first update is none"


def test_a_healthy_run_has_nothing_more_to_say(make: SimpleNamespace, tmp_path: Path) -> None:
    assert make_health(load_run(make.pretrain(tmp_path / "run")))[0].figures == []


def test_skipped_updates_warnings_and_the_average_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run")
    ids = ["<a>", "b", "c", "d", "e"]
    lines = [{"update": update, "reason": "loss is nan", "ids": ids} for update in range(1, 24)]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["collapse_warning"] = int(100 <= row["update"] < 150)
    make.lines(folder, rows)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"] |= {"ema_decay": 0.999, "validate_ema": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    page = build_report([folder], tmp_path / "page.html").read_text()
    assert page.count("<td>loss is nan</td>") == 20
    for words in ("23 updates skipped", "&lt;a&gt;, b, c, …", "from 100 to 149", "decay 0.999", "Validation used it"):
        assert words in page


def test_stretches() -> None:
    rows = [{"update": k, "w": w} for k, w in enumerate([0, 1, 1, 0, None, 1], 1)]
    assert find_stretches(rows, "w") == [(2, 3), (6, 6)]
    assert find_stretches([], "w") == []

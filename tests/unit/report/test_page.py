"""The page as a whole, on folders that hold everything and on folders that hold almost nothing."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from speechssl.checkpoints.model_folder import save_model
from speechssl.config.verbs import TextConfig
from speechssl.errors import ConfigError
from speechssl.model.speech_model import SpeechModel
from speechssl.report.page import build_report
from speechssl.text.vocabulary import build_vocabulary

VOID = {"meta", "br", "img", "link", "source"}
HOSTILE = "</script><script>alert(1)</script>"


class Checker(html.parser.HTMLParser):
    """Checks that tags nest, and collects addresses, ids, text, tags and the content of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.attributes: dict[str, str] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        self.attributes |= {name: value or "" for name, value in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3", "figcaption", "title"):
            self.headings.append(data.strip())
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def read_page(path: Path) -> Checker:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    for address in checker.addresses:
        assert address.startswith(("#", "data:image/png;base64,", "data:audio/mpeg;base64,")), f"{address} is outside"
        assert not address.startswith("#") or address[1:] in checker.ids
    assert not re.search(r"@import|url\(|fetch\(|src=.?http", text)
    assert len(text) < 5_000_000
    return checker


@pytest.fixture
def pretrained(make: SimpleNamespace, manifest: Path, tmp_path: Path) -> Path:
    folder: Path = make.pretrain(tmp_path / "runs" / "base", valid=str(manifest))
    torch.manual_seed(0)
    save_model(SpeechModel(make.model(), pretraining=True), folder / "checkpoints" / "best")
    return folder


@pytest.fixture
def recogniser(make: SimpleNamespace, manifest: Path, tmp_path: Path) -> Path:
    folder: Path = make.finetune(tmp_path / "runs" / "ctc", valid=str(manifest))
    torch.manual_seed(0)
    vocabulary = build_vocabulary(TextConfig(), [])
    save_model(SpeechModel(make.model(), vocabulary=vocabulary), folder / "checkpoints" / "best")
    return folder


def test_a_pretraining_run_has_all_its_sections(pretrained: Path, tmp_path: Path) -> None:
    out = build_report([pretrained], tmp_path / "deep" / "page.html")
    page = read_page(out)
    for heading in (
        "Learning", "Contrastive loss", "Accuracy", "Codebook perplexity", "What it hears", "Use of codebook 2",
        "Voices", "Under the bonnet", "Learning rate", "Speed", "Facts",
    ):  # fmt: skip
        assert heading in page.headings
    assert page.tags["audio"] == 1 and len(json.loads(page.scripts[-2])) == 12, "the example, and the marks of the map"
    assert "13 sounds in" in page.text
    assert "6.66 bits" in page.text
    first = json.loads((pretrained / "metrics.jsonl").read_text().splitlines()[1])["loss_contrastive"]
    assert f"training: {first:.4g} at 1, " in page.text, "without a script the curves are told in words"
    assert "left out:" not in page.text


def test_a_recogniser_writes_and_its_words_are_escaped(recogniser: Path, tmp_path: Path) -> None:
    page = read_page(build_report([recogniser], tmp_path / "page.html"))
    assert "What it writes" in page.headings
    assert "Error rates" in page.headings
    assert page.tags["audio"] == 7
    assert "decoded for this page" in page.text
    assert "<B>" in page.text


def test_stored_transcripts_are_taken_before_live_ones(recogniser: Path, make: SimpleNamespace, tmp_path: Path) -> None:
    make.evaluate(recogniser / "evaluation")
    page = read_page(build_report([recogniser], tmp_path / "page.html"))
    assert "From the run’s evaluation" in page.text
    assert "BRAUN" in page.text


def test_several_runs_share_a_page(pretrained: Path, recogniser: Path, make: SimpleNamespace, tmp_path: Path) -> None:
    runs = [pretrained, recogniser, make.finetune(tmp_path / "other" / "ctc", init="", pace=2.0)]
    runs += [make.evaluate(tmp_path / "wer"), make.probe(tmp_path / "probe")]
    page = read_page(build_report(runs, tmp_path / "page.html"))
    assert page.ids[:6] == ["top", *(f"run-{k}" for k in range(1, 6))]
    assert "Word error rate, held out" in page.headings
    assert {"base", "runs/ctc", "other/ctc", "wer", "probe"} <= set(page.headings)


@pytest.mark.parametrize("missing", ["checkpoints", "manifest", "audio", "damaged"])
def test_what_is_missing_is_said_and_the_rest_stands(
    pretrained: Path, manifest: Path, tmp_path: Path, missing: str
) -> None:
    if missing == "checkpoints":
        shutil.rmtree(pretrained / "checkpoints")
    elif missing == "manifest":
        manifest.unlink()
    elif missing == "audio":
        for file in tmp_path.glob("*.wav"):
            file.unlink()
    else:
        (pretrained / "checkpoints" / "best" / "model.safetensors").write_bytes(b"nothing")
    page = read_page(build_report([pretrained], tmp_path / "page.html"))
    assert "are left out" in page.text
    assert "Contrastive loss" in page.headings
    assert "What it hears" not in page.headings


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_that_has_logged_nothing_has_a_page(make: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    folder = getattr(make, kind)(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    (folder / "environment.json").unlink()
    page = read_page(build_report([folder], tmp_path / "page.html"))
    assert "Learning" not in page.headings


def test_metrics_that_are_null_or_absent_leave_gaps(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run")
    rows = [{"update": k, "split": "train", "loss": 5.0 if k % 2 else None} for k in range(1, 40)]
    make.lines(folder, rows)
    page = read_page(build_report([folder], tmp_path / "page.html"))
    assert "Loss" in page.headings
    assert "Contrastive loss" not in page.headings
    assert "nan" not in page.text.lower().split()


def test_the_page_is_the_same_twice(pretrained: Path, tmp_path: Path) -> None:
    pages = [build_report([pretrained], tmp_path / f"{k}.html").read_text() for k in range(2)]
    first, second = (re.sub(r"Made by speechssl on [\d: -]+", "", page) for page in pages)
    assert first == second


def test_only_the_pages_own_script_runs_whatever_a_run_is_called(
    recogniser: Path, manifest: Path, make: SimpleNamespace, tmp_path: Path
) -> None:
    """Ids, transcripts, file names and metric names are text, in the page and in the JSON that its script reads."""
    manifest.write_text(manifest.read_text().replace("A <B> C", HOSTILE).replace("u3\t", f"{HOSTILE}\t"))
    named = make.pretrain(tmp_path / HOSTILE.replace("/", "_"), num_updates=30)
    rows = [{"update": k, "split": "train", "loss": 9.0 - k, HOSTILE: 1.0} for k in range(1, 9)]
    make.lines(named, rows)
    page = read_page(build_report([named, recogniser, make.pretrain(tmp_path / "b")], tmp_path / "page.html"))
    charts, (clips, script) = page.scripts[:-2], page.scripts[-2:]
    assert page.tags["script"] == len(page.scripts)
    labels = [json.loads(chart)["yLabel"] for chart in charts]
    assert len(labels) > 10 and json.loads(clips) == []
    assert HOSTILE in page.headings and page.text.count(HOSTILE) == 3
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', (tmp_path / "page.html").read_text())
    assert policy and "default-src 'none'" in policy[1] and f"script-src 'sha256-{digest}'" in policy[1]


def test_an_evaluation_is_linked_to_its_run_here_or_on_its_own_page(
    make: SimpleNamespace, recogniser: Path, tmp_path: Path
) -> None:
    evaluation = make.evaluate(tmp_path / "wer")
    result = json.loads((evaluation / "result.json").read_text()) | {"checkpoint": str(recogniser), "update": 150}
    (evaluation / "result.json").write_text(json.dumps(result))
    text = build_report([recogniser, evaluation], tmp_path / "page.html").read_text()
    assert '<p class="link">Evaluation: <a href="#run-2">wer</a></p>' in text
    assert '<p class="link">Of update 150 of <a href="#run-1">ctc</a></p>' in text
    alone = f'<p class="link">Of update 150 of {recogniser}</p>'
    assert alone in build_report([evaluation], tmp_path / "page.html").read_text()
    (recogniser / "report.html").write_text("")
    text = build_report([evaluation], tmp_path / "page.html").read_text()
    assert f'Of update 150 of <a href="runs/ctc/report.html">{recogniser}</a>' in text


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`run` must be a run folder"):
        build_report([tmp_path / "none"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_facts_have_the_units_of_the_charts_and_list_the_keys_of_another_objective(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = make.pretrain(tmp_path / "run", num_updates=60)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["objective"] = {"name": "masked_codes", "num_codes": 64}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    line = {"update": 60, "split": "train", "loader_wait": 0.3765, "loss_codes": 5.0, "loss": 5.0}
    make.lines(folder, [line])
    page = read_page(build_report([folder], tmp_path / "page.html"))
    assert "loader_wait37.65% of the time" in page.text.replace("\n", "") and "37.65 (% of the time)" in page.text
    assert "???" not in page.text.partition("Environment")[0]
    assert "objective.namemasked_codeswav2vec2objective.num_codes640" in page.text.replace("\n", "")

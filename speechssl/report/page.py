"""One self-contained HTML page from one or more run folders: nothing is fetched when it is opened."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from speechssl.durable import write_in_one_step, writing
from speechssl.errors import SpeechSSLError
from speechssl.parsing import parsing
from speechssl.report.comparison import make_comparison
from speechssl.report.evaluation import describe_evaluation, make_evaluation
from speechssl.report.facts import make_facts
from speechssl.report.health import make_health
from speechssl.report.html import Stat, escape, make_stats
from speechssl.report.learning_curve import gather_probes, make_learning_curve
from speechssl.report.live import find_missing, load_live
from speechssl.report.pretraining import describe_pretraining, make_learning, make_machinery
from speechssl.report.probe import describe_probe, make_probe
from speechssl.report.quantizer import make_quantizer
from speechssl.report.recognition import describe_recogniser, make_recogniser
from speechssl.report.run_folder import KINDS, RunFolder, load_run
from speechssl.report.speakers import make_speakers

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Chapter:
    """One run on the page."""

    anchor: str
    name: str
    kind: str
    summary: str
    stats: list[Stat]
    body: str


def build_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page about some runs.

    Sections appear where their data is there; a checkpoint or an audio file that is missing leaves a sentence on
    the page instead of its pictures, so that a finished run never fails for its report.

    Args:
        runs: folders of `pretrain`, `finetune`, `evaluate` and `probe`, in the order of the page.
        out: file to write; its folder is made.

    Returns:
        The page.

    Raises:
        ConfigError: a run folder is not there.
        DataError: a folder is of no known kind, or one of its files is damaged.
    """
    folders = [load_run(Path(run)) for run in runs]
    # A log, a configuration or a result may be whole as JSON or YAML, and hold what no run has.
    with parsing(f"`run` ({', '.join(map(str, runs))})", "what speechssl wrote"):
        names, probes = name_runs(folders), gather_probes(folders)
        chapters = [
            _make_chapter(run, name, number, probes)
            for number, (run, name) in enumerate(zip(folders, names, strict=True), 1)
        ]
        page = _assemble(folders, chapters, probes)
    path = Path(out)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, page)
    return path


def name_runs(runs: Sequence[RunFolder]) -> list[str]:
    """Name runs by their folders, with the folder above where two would have one name."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in runs]


def _make_chapter(run: RunFolder, name: str, number: int, probes: Sequence[RunFolder]) -> Chapter:
    match run.kind:
        case "pretrain":
            summary, stats = describe_pretraining(run)
            learning = make_learning(run) + make_learning_curve([(run, name)], probes)
            body = make_health(run) + learning + _make_pictures(run) + make_machinery(run)
        case "finetune":
            summary, stats = describe_recogniser(run)
            body = make_health(run) + _make_pictures(run)
        case "evaluate":
            summary, stats = describe_evaluation(run)
            body = make_evaluation(run)
        case "probe":
            summary, stats = describe_probe(run)
            body = make_probe(run)
        case _:
            raise AssertionError(f"unknown kind {run.kind}")
    return Chapter(f"run-{number}", name, KINDS[run.kind], summary, stats, body + make_facts(run))


def _make_pictures(run: RunFolder) -> str:
    """Make the sections that need the model and speech, or say why they are not there."""
    missing = find_missing(run)
    if missing:
        return _make_files_only(run) + _make_apology(missing)
    try:
        live = load_live(run)
        if run.kind == "pretrain":
            return make_quantizer(run, live) + make_speakers(live)
        return make_recogniser(run, live)
    except SpeechSSLError as error:
        # A damaged checkpoint or an audio file that has moved: the rest of the page still stands.
        _logger.warning("report of %s: %s", run.path, error)
        return _make_files_only(run) + _make_apology(
            f"The pictures that need the model or speech are left out: {error}."
        )


def _make_files_only(run: RunFolder) -> str:
    return make_recogniser(run, None) if run.kind == "finetune" else ""


def _make_apology(sentence: str) -> str:
    return f'<p class="apology">{escape(sentence)}</p>'


def _assemble(runs: Sequence[RunFolder], chapters: Sequence[Chapter], probes: Sequence[RunFolder]) -> str:
    title = chapters[0].name if len(chapters) == 1 else f"{len(chapters)} runs"
    single = len(chapters) == 1
    names, cards = [c.name for c in chapters], [_make_card(c) for c in chapters]
    overview = "" if single else make_comparison(runs, names, cards, probes)
    links = "".join(f'<a href="#{c.anchor}">{escape(c.name)}</a>' for c in chapters)
    nav = "" if single else f'<nav aria-label="Runs"><a href="#top">All runs</a>{links}</nav>'
    body = "".join(_make_article(chapter) for chapter in chapters)
    folder = files("speechssl.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    made = f"{datetime.now():%Y-%m-%d %H:%M}"
    top = "" if single else f"<header class=top id=top><h1>{escape(title)}</h1></header>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · speechssl</title><style>{style}</style></head>\n<body>"
        f"{nav}<main>{top}{overview}{body}</main>"
        f"<footer><p>Made by speechssl on {made}. Everything on this page is inside this file.</p></footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _make_article(chapter: Chapter) -> str:
    return (
        f'<article id="{chapter.anchor}"><header><p class="kind">{escape(chapter.kind)}</p>'
        f"<h2>{escape(chapter.name)}</h2>"
        f'<p class="summary">{chapter.summary}</p></header>{make_stats(chapter.stats)}{chapter.body}</article>\n'
    )


def _make_card(chapter: Chapter) -> str:
    first = "".join(f"<dt>{escape(s.name)}</dt><dd>{escape(s.value)}</dd>" for s in chapter.stats[:3])
    return (
        f'<a class="card" href="#{chapter.anchor}"><span class="kind">{escape(chapter.kind)}</span>'
        f"<b>{escape(chapter.name)}</b><dl>{first}</dl></a>"
    )

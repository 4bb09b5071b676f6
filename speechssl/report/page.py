"""One self-contained HTML page from one or more run folders: nothing is fetched when it is opened."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from speechssl.checkpoints.layout import REPORT
from speechssl.durable import write_in_one_step, writing
from speechssl.errors import SpeechSSLError
from speechssl.parsing import parsing
from speechssl.report.comparison import make_comparison
from speechssl.report.content import Section, Stat, Verdict, format_value
from speechssl.report.evaluation import describe_evaluation, judge_evaluation, make_evaluation
from speechssl.report.facts import make_facts
from speechssl.report.health import describe_status, judge, make_health
from speechssl.report.hearing import make_hearing
from speechssl.report.learning_curve import gather_probes, make_learning_curve
from speechssl.report.live import find_missing, load_live
from speechssl.report.pretraining import describe_pretraining, make_learning, make_machinery
from speechssl.report.probe import describe_probe, judge_probe, make_probe
from speechssl.report.recognition import describe_recogniser, make_errors, make_stored, make_writing
from speechssl.report.run_folder import KINDS, RunFolder, load_run
from speechssl.report.sounds import Sounds
from speechssl.report.speakers import make_speakers

_logger = logging.getLogger("speechssl")


@dataclass
class Chapter:
    """One run on the page.

    Attributes:
        links: the runs that belong to it, or the run that it belongs to: a word, a name, an address.
        apology: what is left out, and why.
    """

    run: RunFolder
    name: str
    anchor: str
    verdict: Verdict
    summary: str
    stats: list[Stat]
    sections: list[Section]
    links: list[tuple[str, str, str]]
    apology: str = ""


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
    path, sounds = Path(out), Sounds()
    # A log, a configuration or a result may be whole as JSON or YAML, and hold what no run has.
    with parsing(f"`run` ({', '.join(map(str, runs))})", "what speechssl wrote"):
        named = list(zip(folders, name_runs(folders), strict=True))
        probes = gather_probes(folders)
        chapters = [_make_chapter(named, number, probes, sounds, path) for number in range(len(named))]
        overview = make_comparison(named, probes) if len(named) > 1 else []
        page = _render(chapters, overview, sounds)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, page)
    return path


def name_runs(runs: Sequence[RunFolder]) -> list[str]:
    """Name runs by their folders, with the folder above where two would have one name."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in runs]


def _make_chapter(
    named: Sequence[tuple[RunFolder, str]], number: int, probes: Sequence[RunFolder], sounds: Sounds, out: Path
) -> Chapter:
    run, name = named[number]
    before: list[Section] = []
    after: list[Section] = []
    match run.kind:
        case "pretrain":
            (summary, stats), verdict = describe_pretraining(run), judge(run)
            before = make_learning(run) + make_learning_curve([(run, name)], probes)
            after = make_machinery(run) + make_health(run)
        case "finetune":
            (summary, stats), verdict = describe_recogniser(run), judge(run)
            before, after = make_errors(run) + make_stored(run, sounds), make_machinery(run) + make_health(run)
        case "evaluate":
            (summary, stats), verdict, before = describe_evaluation(run), judge_evaluation(run), make_evaluation(run, sounds)
        case "probe":
            (summary, stats), verdict, before = describe_probe(run), judge_probe(run), make_probe(run)
        case _:
            raise AssertionError(f"unknown kind {run.kind}")
    pictures, apology = _draw_pictures(run, sounds) if run.kind in ("pretrain", "finetune") else ([], "")
    links = _find_links(named, number, out)
    sections = before + pictures + after
    return Chapter(run, name, f"run-{number + 1}", verdict, summary, stats, sections, links, apology)


def _draw_pictures(run: RunFolder, sounds: Sounds) -> tuple[list[Section], str]:
    """Make the sections that need the model and speech, or say why they are not there."""
    missing = find_missing(run)
    if missing:
        return [], missing
    try:
        live = load_live(run)
        if run.kind == "pretrain":
            return make_hearing(run, live, sounds) + make_speakers(live, sounds), ""
        return make_writing(run, live, sounds), ""
    except SpeechSSLError as error:
        # A damaged checkpoint or an audio file that has moved: the rest of the page still stands.
        _logger.warning("report of %s: %s", run.path, error)
        return [], f"The pictures that need the model or speech are left out: {error}."


def _find_links(named: Sequence[tuple[RunFolder, str]], number: int, out: Path) -> list[tuple[str, str, str]]:
    """Link an evaluation or a probe to the run whose checkpoint it names, and that run to it."""
    run = named[number][0]
    checkpoint = run.result.get("checkpoint")
    update = run.result.get("update")
    of = f"Of update {update} of" if isinstance(update, int) and update > 0 else "Of"
    links = []
    for k, (other, name) in enumerate(named):
        if other.holds(checkpoint) and other is not run and run.kind in ("evaluate", "probe"):
            links.append((of, name, f"#run-{k + 1}"))
        elif run.kind in ("pretrain", "finetune") and run.holds(other.result.get("checkpoint")) and other is not run:
            links.append((f"{KINDS[other.kind]}:", name, f"#run-{k + 1}"))
        elif run.kind == "finetune" and other is not run and other.holds(run.get_config("init")):
            links.append(("Fine-tuned from", name, f"#run-{k + 1}"))
    if not links and isinstance(checkpoint, str):
        page = Path(checkpoint) / REPORT
        relative = quote(os.path.relpath(page.resolve(), out.resolve().parent)) if page.is_file() else ""
        links.append((of, checkpoint, relative))
    return links


def _render(chapters: Sequence[Chapter], overview: Sequence[Section], sounds: Sounds) -> str:
    folder = files("speechssl.report")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["value"] = format_value
    script = read("uplot/uPlot.iife.min.js") + "\n" + read("page.js")
    return environment.from_string(read("page.html")).render(
        chapters=chapters,
        overview=overview,
        kinds=KINDS,
        status=describe_status,
        facts=make_facts,
        title=chapters[0].name if len(chapters) == 1 else f"{len(chapters)} runs",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        sounds=sounds,
        style=Markup(read("uplot/uPlot.min.css") + read("page.css")),
        script=Markup(script),
        # Only this very script may run: nothing that a transcript or a file name could smuggle in.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )

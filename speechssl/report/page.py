"""One self-contained HTML page from one or more run folders: nothing is fetched when it is opened."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from speechssl.checkpoints.layout import REPORT
from speechssl.config.knobs import MISSING
from speechssl.config.objective import list_objectives
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.durable import write_in_one_step, writing
from speechssl.errors import SpeechSSLError
from speechssl.parsing import parsing
from speechssl.report.analysis import describe_analysis, judge_analysis, make_analysis
from speechssl.report.comparison import draw_by_hours, gather_probes, make_comparison
from speechssl.report.evaluation import describe_evaluation, judge_evaluation, make_evaluation
from speechssl.report.figures import Section, Stat, Table, Verdict, format_value, is_number
from speechssl.report.health import describe_status, judge, make_health
from speechssl.report.live import Sounds, find_missing, load_live
from speechssl.report.pictures import make_hearing, make_speakers
from speechssl.report.pretraining import describe_pretraining, draw_learning, find_unit, make_machinery
from speechssl.report.probe import describe_probe, judge_probe, make_probe
from speechssl.report.recognition import describe_recogniser, make_errors, make_writing
from speechssl.report.run_folder import KINDS, RunFolder, load_run
from speechssl.report.tuning import describe_tuning, judge_tuning, make_tuning
from speechssl.training.run_folder import flatten

_logger = logging.getLogger("speechssl")


@dataclass
class Chapter:
    """One run on the page; a link is a word, a name and an address, an apology says what is left out."""

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
        runs: folders of `pretrain`, `finetune`, `evaluate`, `tune`, `probe` and `analyse`, in the order of the page.
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
    """Name runs by their folders, with the folder above where two would be alike; evaluations by their test set too."""
    counts = Counter(run.name for run in runs)
    names = [run.name if counts[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    tested = [", ".join(Path(path).stem for path in run.test_sets) if run.kind == "evaluate" else "" for run in runs]
    return [f"{test} ({name})" if test else name for test, name in zip(tested, names, strict=True)]


def _make_chapter(
    named: Sequence[tuple[RunFolder, str]], number: int, probes: Sequence[RunFolder], sounds: Sounds, out: Path
) -> Chapter:
    run, name = named[number]
    apology = ""
    match run.kind:
        case "pretrain" | "finetune":
            verdict, is_pretraining = judge(run), run.kind == "pretrain"
            summary, stats = describe_pretraining(run) if is_pretraining else describe_recogniser(run)
            curves = draw_learning(run) + draw_by_hours([(run, name)], probes) if is_pretraining else []
            sections = [Section("Learning", curves)] if is_pretraining else make_errors(run, sounds)
            pictures, apology = _draw_pictures(run, sounds)
            sections += pictures + make_machinery(run) + make_health(run)
        case "evaluate":
            (summary, stats), verdict, sections = (
                describe_evaluation(run),
                judge_evaluation(run),
                make_evaluation(run, sounds),
            )
        case "tune":
            (summary, stats), verdict, sections = describe_tuning(run), judge_tuning(run), make_tuning(run)
        case "analyse":
            (summary, stats), verdict, sections = describe_analysis(run), judge_analysis(run), make_analysis(run)
        case _:
            (summary, stats), verdict, sections = describe_probe(run), judge_probe(run), make_probe(run)
    links = _find_links(named, number, out)
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
    """Link a run to what it comes from, on this page or on that run's own one, and to what was measured of it."""
    run, update = named[number][0], named[number][0].result.get("update")
    source = run.get_config("init") if run.kind == "finetune" else run.result.get("checkpoint")
    word = "Fine-tuned from" if run.kind == "finetune" else "Of"
    word += f" update {update} of" if isinstance(update, int) and update > 0 else ""
    others = [(k, other, name) for k, (other, name) in enumerate(named, 1) if other is not run]
    links = [(word, name, f"#run-{k}") for k, other, name in others if other.holds(source)]
    if not links and source and isinstance(source, str):
        page = Path(source) / REPORT
        links.append(
            (word, source, quote(os.path.relpath(page.resolve(), out.resolve().parent)) if page.is_file() else "")
        )
    if run.kind in ("pretrain", "finetune"):
        measured = ((k, other, name) for k, other, name in others if run.holds(other.result.get("checkpoint")))
        links += [(f"{KINDS[other.kind]}:", name, f"#run-{k}") for k, other, name in measured]
    return links


def _make_facts(run: RunFolder) -> dict[str, Table]:
    """Tabulate what a reader may look up, by title; tables with nothing to tell are left out."""
    config = flatten(run.config)
    tables = {
        "Final figures": _tabulate_figures(run),
        # Lists of mappings have pictures of their own.
        "Result": Table(("key", "value"), [row for row in flatten(run.result).items() if not _is_table(row[1])]),
        "Configuration that differs from the published BASE": Table(("key", "here", "default"), _list_changed(run)),
        "Environment": Table(("what", "value"), list(flatten(run.environment).items())),
        "Whole configuration": Table(("key", "value"), list(config.items())),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _tabulate_figures(run: RunFolder) -> Table:
    """Tabulate the last line of each split, in the units of the charts."""
    splits = [run.select(name)[-1] for name in ("train", "valid") if run.select(name)]
    rows = []
    for name in dict.fromkeys(key for row in splits for key in row if key != "split"):
        unit, factor = find_unit(run, name)
        values = [row.get(name, "") for row in splits]
        rows.append((name, *(factor * v if factor != 1 and is_number(v) else v for v in values), unit))
    words = {"train": "training", "valid": "held out"}
    return Table(["metric", *(words[row["split"]] for row in splits), "unit"], rows)


def _list_changed(run: RunFolder) -> list[tuple[str, Any, Any]]:
    """List the keys that differ from BASE, and all that BASE's objective does not have; not what has no default."""
    schema = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}.get(run.kind)
    if schema is None:
        return []
    config, defaults = flatten(run.config), flatten(asdict(schema()))
    chosen = list_objectives().get(str(run.get_config("objective.name")))
    own = flatten({"objective": asdict(chosen())}) if chosen else {}
    told = [(key, value, defaults.get(key, own.get(key, MISSING))) for key, value in config.items()]
    return [row for row in told if row[2] != MISSING and (row[0] not in defaults or row[1] != row[2])]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


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
        facts=_make_facts,
        title=chapters[0].name if len(chapters) == 1 else f"{len(chapters)} runs",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        sounds=sounds,
        style=read("uplot/uPlot.min.css") + read("page.css"),
        script=script,
        # Only this very script may run: nothing that a transcript or a file name could smuggle in.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )

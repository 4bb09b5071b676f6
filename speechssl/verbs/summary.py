"""The short table that a verb ends with on stderr: its main figures, and where its files are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speechssl.bench.table import format_table as format_bench
from speechssl.checkpoints.layout import REPORT
from speechssl.demo.table import format_table as format_demo
from speechssl.evaluation.statistics import Interval
from speechssl.printable import format_columns
from speechssl.verbs.output import STDOUT

HELD_OUT = {
    "wer": ("WER, held out", 1.0),
    "cer": ("CER, held out", 1.0),
    "loss": ("loss, held out", 1.0),
    "accuracy": ("accuracy, held out", 100.0),
}
"""Figures of a validation that a training's table shows: what they are called and their factor."""

LAYER_FIGURES = {
    "rank": "effective rank",
    "spread": "spread",
    "norm": "norm",
    "anisotropy": "anisotropy",
    "cca_log_mel": "CCA log-mel",
    "cka_against": "CKA against",
    "variance_ratio": "between / within",
    "neighbour_accuracy": "1-NN, %",
    "pnmi": "PNMI",
    "phone_purity": "phone purity",
}
"""Figures of a layer: what the table calls them."""

KNOWN_LOSSES = frozenset({"loss_contrastive", "loss_codes"})
"""What only objectives log whose loss is in bits a masked frame."""


def format_summary(verb: str, result: Mapping[str, Any]) -> str:
    """Lay out the main figures of a result, and where its files are; empty for `doctor`, whose log is a table already.

    Args:
        verb: name of the verb.
        result: the dict of its JSON line.
    """
    tables = {"bench": format_bench, "demo": format_demo, "tune": _lay_out_points, "score": _lay_out_score}
    tables |= {"compare": _lay_out_comparison, "similar": _lay_out_search, "analyse": _lay_out_layers}
    if verb in (*tables, "doctor"):
        return tables[verb](result) if verb in tables else ""
    lists: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "pretrain": _list_training, "finetune": _list_training, "prepare": _list_manifests,
        "evaluate": _list_evaluation, "lm": _list_lm, "probe": _list_probe, "transcribe": _list_texts,
        "align": _list_alignment, "embed": _list_embeddings, "units": _list_units, "convert": _list_conversion,
        "report": lambda result: {"report": f"{result['out']} (open it in a browser)"},
    }  # fmt: skip
    return format_columns([(label, str(value)) for label, value in lists[verb](result).items()])


def _list_evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = _list_errors(result)
    rows |= {"speed": f"{result['audio_s_per_s']:.0f} × real time"} if "audio_s_per_s" in result else {}
    return rows | {"utterances": result["num_utterances"], "out": result["out"]}


def _list_lm(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {"n-grams": ", ".join(f"{count:,} of {n}" for n, count in enumerate(result["ngrams"], 1))}
    rows |= {"perplexity": _format_perplexity(result)} if "perplexity" in result else {}
    return rows | {"out": result["lm"]}


def _list_texts(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {"utterances": _count_used(result)}
    rows |= {"texts": result["texts"]} if result["texts"] != STDOUT else {}
    if "num_kept" in result:
        quartiles = " / ".join(f"{value:.3f}" for value in result["confidence_quartiles"])
        kept = f"{result['num_kept']}, {_format_hours(result['kept_s'] / 3600)} (quartiles of all: {quartiles})"
        rows |= {f"with confidence {result['min_confidence']:g} or more": kept}
    return rows


def _list_alignment(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {"utterances": _count_used(result), "words": result["num_words"]}
    rows |= {"words that were not heard": result["num_unheard"]} if result["num_unheard"] else {}
    return rows | ({"texts": result["texts"]} if result["texts"] != STDOUT else {})


def _list_embeddings(result: Mapping[str, Any]) -> dict[str, Any]:
    shape = f"{result['num_rows']} × {result['dim']}, layers {', '.join(result['layers'])}"
    return {"utterances": _count_used(result), "embeddings": shape, "out": result["out"]}


def _list_training(result: Mapping[str, Any]) -> dict[str, Any]:
    valid = result["valid"] or {}
    # Losses of other objectives have units of their own.
    unit = " nats an utterance" if "wer" in valid else " bits a masked frame" if valid.keys() & KNOWN_LOSSES else ""
    return {
        "updates": f"{result['updates']} (best: {result['best_update']})",
        "speech seen": _format_hours(result["hours_seen"]),
        **{
            label: f"{factor * valid[name]:.4g}{unit if name == 'loss' else ' %'}"
            for name, (label, factor) in HELD_OUT.items()
            if valid.get(name) is not None
        },
        "report": f"{Path(result['out']) / REPORT} (open it in a browser)",
    }


def _list_manifests(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {}
    for name, part in result["manifests"].items():
        counts = f"{part['num_utterances']} utterances, {part['num_speakers']} speakers"
        counts += f", {part['num_transcribed']} texts" if part["num_transcribed"] else ""
        rows[name] = f"{_format_hours(part['hours'])}, {counts}: {part['path']}"
    left_out = result["num_unreadable"]
    return rows | ({"left out": f"{left_out} files that cannot be used"} if left_out else {})


def _list_units(result: Mapping[str, Any]) -> dict[str, Any]:
    used = " and ".join(str(number) for number in result["num_used"])
    spread = " and ".join(f"{value:.1f}" for value in result["perplexity"])
    rows = {
        "utterances": f"{_count_used(result)}, {_format_hours(result['hours'])}",
        "units": f"{result['num_units']:,} of {result['num_frames']:,} frames",
        f"codes, layer {result['layer']}": f"{used} of {result['num_codes']} in use (perplexity {spread})",
    }
    return rows | ({"clusters": result["clusters"]} if result["clusters"] else {}) | {"out": result["out"]}


def _list_conversion(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {result["kind"]: f"{result['model']}, {result['parameters']:,} parameters", result["to"]: result["out"]}
    if "bytes" in result:
        whole = f" ({result['bytes_float32'] / 1e6:.1f} MB in float32)" if "bytes_float32" in result else ""
        rows["size"] = f"{result['bytes'] / 1e6:.1f} MB{whole}"
    return rows


def _list_probe(result: Mapping[str, Any]) -> dict[str, Any]:
    told = result.get("label", "speaker")
    names = {"identification": ("accuracy", f"{told} accuracy"), "regression": ("r2", f"R² of {told}")}
    name, label = names.get(result["task"], ("eer", "EER"))
    rows = {f"{label}, this model": _format_rate(name, result)}
    for key, baseline in result["baselines"].items():
        note = ", saturated" if key in result["saturated"] else ""
        rows[f"{label}, {key.replace('_', '-')}"] = f"{_format_rate(name, baseline)}{note}"
    if "largest_label" in result:
        rows["saying the commonest each time"] = f"{result['largest_label']:.2f} %"
    if "mean_error" in result:
        rows["mean error"] = (
            f"{result['mean_error']:.3g} (saying the mean each time: {result['mean_error_of_mean']:.3g})"
        )
    for cost in result.get("min_dcf", ()):
        weights = f"p_target {cost['p_target']}, c_miss {cost['c_miss']:g}, c_fa {cost['c_fa']:g}"
        rows[f"minDCF ({weights})"] = f"{cost['min_dcf']:.3f}{_format_ends(cost['interval'])}"
    for backend, figures in result.get("backends", {}).items():
        rows[f"EER, {backend}"] = f"{figures['eer']:.2f} %"
    if "calibration" in result:
        costs = ", ".join(f"DCF {value:.3f} at {p}" for p, value in result["calibration"]["act_dcf"].items())
        rows["calibrated"] = f"Cllr {result['calibration']['cllr']:.3f} bits, {costs}"
    return rows | ({"beware": result["confound"]} if result.get("confound") else {}) | {"out": result["out"]}


def _format_ends(interval: Mapping[str, Any]) -> str:
    """Write the ends of an interval that is not in percent."""
    if interval["low"] is None:
        return ""
    return f" (95 %: {interval['low']:.3f} to {interval['high']:.3f}{'' if interval['reliable'] else ', unreliable'})"


def _list_errors(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {name.upper(): _format_rate(name, result) for name in ("wer", "cer")}
    kinds = [f"{result[kind]:,} {kind}" for kind in ("substitutions", "deletions", "insertions")]
    return rows | {"words": f"{result['num_words']:,}: {', '.join(kinds)}"}


def _lay_out_score(result: Mapping[str, Any]) -> str:
    """Lay out the rates and the kinds of errors; what sclite would say only where it would say something else."""
    rows = _list_errors(result)
    sclite = result["sclite"]
    if sclite and round(sclite["wer"], 2) != round(result["wer"], 2):
        rows |= {"WER of NIST's sclite": f"{sclite['wer']:.2f} %"}
    rows |= {"utterances": f"{result['num_utterances']:,}, {result['num_wrong_utterances']:,} with an error"}
    rows |= {"out": result["out"]} if result["out"] != STDOUT else {}
    return format_columns([(label, str(value)) for label, value in rows.items()])


def _lay_out_comparison(result: Mapping[str, Any]) -> str:
    sides = [(name, _format_side(name, result)) for name in ("a", "b")]
    return format_columns([*sides, ("", result["sentence"]), ("out", result["out"])])


def _format_side(name: str, result: Mapping[str, Any]) -> str:
    return f"WER {result[f'wer_{name}']:.2f} %, CER {result[f'cer_{name}']:.2f} %: {', '.join(result[name])}"


def _lay_out_points(result: Mapping[str, Any]) -> str:
    """Lay out sets of weights by their errors, greedy decoding among them, and say where the best is kept."""
    greedy = {**result["greedy"], "note": "greedy"}
    rows = sorted([*result["points"], greedy], key=lambda row: float(row["wer"]))
    names = ("lm_weight", "word_bonus", "blank_penalty", "unknown_penalty", "beam_width")
    cells = [["", *names, "WER", "CER"]]
    for row in rows:
        weights = [f"{row[name]:g}" if name in row else "" for name in names]
        cells.append([row["note"], *weights, f"{row['wer']:.2f} %", f"{row['cer']:.2f} %"])
    return f"{format_columns(cells, right=range(1, 8))}\nkept: {result['kept']}"


def _lay_out_search(result: Mapping[str, Any]) -> str:
    searched = f"{result['num_embeddings']:,} × {result['dim']}, layer {result['layer']}"
    rows = [("embeddings", searched), *([("out", str(result["out"]))] if result["out"] != STDOUT else [])]
    return format_columns(rows)


def _lay_out_layers(result: Mapping[str, Any]) -> str:
    """Lay out the figures of each layer, and of log-mel bands, to which all else compares."""
    names = [name for name in LAYER_FIGURES if result["layers"][0].get(name) is not None]
    cells = [["layer", *(LAYER_FIGURES[name] for name in names), ""]]
    for row in [*result["layers"], {"layer": "log-mel", **result["log_mel"]}]:
        figures = ["" if row.get(name) is None else f"{row[name]:.3g}" for name in names]
        cells.append([str(row["layer"]), *figures, "COLLAPSED" if row.get("collapsed") else ""])
    return f"{format_columns(cells, right=range(1, len(names) + 1))}\nout: {result['out']}"


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _format_rate(name: str, figures: Mapping[str, Any]) -> str:
    """Write a rate in percent and its interval."""
    return f"{figures[name]:.2f} % (95 %: {Interval(**figures[f'{name}_interval'])})"


def _format_perplexity(result: Mapping[str, Any]) -> str:
    unknown = 100 * result["test_units_unknown"] / max(result["test_units"], 1)
    return f"{result['perplexity']:.1f} ({unknown:.1f} % of {result['test_units']:,} {result['unit']}s unknown)"


def _count_used(result: Mapping[str, Any]) -> str:
    left_out = f", {result['num_left_out']} left out" if result["num_left_out"] else ""
    return f"{result['num_utterances']}{left_out}"

from __future__ import annotations

from speechssl.demo.table import format_table, judge, make_rows
from tests.cases import each_case


@each_case(
    "value, baselines, higher, verdict",
    [
        (30.0, [2.0], True, "better"),
        (2.0, [2.0], True, "not better"),
        (3.0, [2.0], True, "not better"),
        (108.0, [134.0], False, "not better"),
        (97.0, [96.0], True, "saturated"),
        (40.0, [90.0], False, "better"),
        (90.0, [40.0], False, "not better"),
        (15.0, [20.0, 10.0], False, "not better"),
        (1.0, [20.0, 4.0], False, "saturated"),
    ],
)
def test_a_figure_is_judged_by_its_best_baseline(
    value: float, baselines: list[float], higher: bool, verdict: str
) -> None:
    assert judge(value, baselines, higher) == verdict


def make_result(wer: float) -> dict[str, object]:
    rows = make_rows(
        {
            "prepare": {"manifests": {"train": {"hours": 0.7}, "test": {"hours": 0.1}}},
            "pretrained": {"hours_seen": 5.0, "valid": {"accuracy": 0.4}},
            "finetuned": {"hours_seen": 2.0},
            "from_scratch": {"hours_seen": 2.0},
            "wer_finetuned": {"wer": wer, "cer": 5.0},
            "wer_from_scratch": {"wer": 50.0, "cer": 20.0},
            "lm_finetuned": {"wer": wer / 2, "cer": 5.0},
            "lm_from_scratch": {"wer": 25.0, "cer": 20.0},
            "probe": {"accuracy": 80.0, "baselines": {"log_mel": {"accuracy": 20.0}, "untrained": {"accuracy": 30.0}}},
        },
        {"accuracy": 0.02},
    )
    return {"rows": rows, "report": "runs/demo/report.html", "minutes": 8.04}


def test_the_table_shows_every_figure_beside_its_baselines() -> None:
    lines = format_table(make_result(12.5)).splitlines()
    found = {line.split("  ")[0]: line for line in lines}
    assert "42.0 min" in found["speech made, train"]
    assert found["codes of masked frames, held out"].endswith("better")
    for text in ("before 2.0", "40.0 %"):
        assert text in found["codes of masked frames, held out"]
    for text in ("from scratch 50.0", "12.5 %"):
        assert text in found["WER, unseen speakers"]
    for text in ("from scratch 25.0", "6.2 %"):
        assert text in found["WER with language model, unseen speakers"]
    for text in ("log-mel 20.0, untrained 30.0", "80.0 %"):
        assert text in found["speaker accuracy, unseen session"]
    assert any("runs/demo/report.html" in line for line in lines)
    assert "hoped" not in "\n".join(lines)


def test_the_table_says_when_a_figure_is_no_better() -> None:
    text = format_table(make_result(60.0))
    assert "Not what was hoped for: WER, unseen speakers; WER with language model, unseen speakers." in text

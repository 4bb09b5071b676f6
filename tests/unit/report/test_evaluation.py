from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from speechssl.report.evaluation import describe_evaluation
from speechssl.report.run_folder import load_run


def test_the_summary_says_how_texts_were_decoded(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.evaluate(tmp_path / "wer"))
    assert describe_evaluation(run)[0].endswith("as sums over the whole test set.")
    run.result.update(decoding="beam", beam={"beam_width": 50, "lm": "<4>.arpa"})
    assert describe_evaluation(run)[0].endswith(", decoded with a beam of 50 and the n-gram &lt;4&gt;.arpa.")
    run.result["beam"] = {"beam_width": 8}
    assert describe_evaluation(run)[0].endswith(", decoded with a beam of 8 and no language model.")

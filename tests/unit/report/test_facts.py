from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from speechssl.report.facts import find_differences, flatten, make_facts
from speechssl.report.run_folder import load_run


def test_only_what_differs_is_listed(make: SimpleNamespace, tmp_path: Path) -> None:
    differences = {
        path: (value, default) for path, value, default, _ in find_differences(load_run(make.pretrain(tmp_path / "a")))
    }
    assert differences["model.num_layers"] == (2, 12)
    assert differences["model.quantizer.num_codes"] == (12, 320)
    assert "training.lr" not in differences


def test_a_probe_has_no_configuration_to_differ(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.probe(tmp_path / "probe"))
    assert find_differences(run) == []
    assert "Result" in make_facts(run)


def test_nested_keys_become_dotted() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}


def test_facts_are_escaped_and_hold_the_last_figures(make: SimpleNamespace, tmp_path: Path) -> None:
    facts = make_facts(load_run(make.pretrain(tmp_path / "a")))
    assert "speechssl &#x27;&lt;x&gt;&#x27; &#x27;&amp;&#x27; y" in facts
    assert facts.count("<details>") == 4
    assert "loss_contrastive" in facts

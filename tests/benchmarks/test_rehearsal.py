"""The side-by-side scripts run to the end, at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechssl.bench import meter as bench_meter
from speechssl.config.model import ModelConfig
from speechssl.model.transformer import PositionalConvolution
from tests.benchmarks import adaptation, ctc_step, data_loading, extraction, old_and_new, positions, pretrain_step
from tests.benchmarks.side_by_side import COMPILED, summarise_ratio
from tests.cases import each_case

TINY = ["model=tiny", "device=cpu", "warmup_steps=1"]


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_meter, "CEILING_SIZES", {"cpu": (128,)})
    monkeypatch.setattr(bench_meter, "CEILING_S", 0.02)


def read_tables(text: str) -> list[list[list[str]]]:
    """Read the cells of the tables of a Markdown text, without their head."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block[2:]] for block in blocks]


def test_pretraining_step(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is the other side")
    pretrain_step.main([*TINY, "batch=2", "seconds=1", "--repeats", "2", "--no-memory"])
    rows, ratios = read_tables(capsys.readouterr().out)
    assert [row[1] for row in rows] == [name for name in pretrain_step.NAMES if COMPILED not in name]
    assert all(float(row[3]) > 0 for row in rows)
    assert len(ratios) == 4
    assert all(float(row[1]) > 0 for row in ratios)


def test_ctc_step(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is the other side")
    ctc_step.main([*TINY, "batch=2", "seconds=2", "--repeats", "1", "--no-memory"])
    rows, ratios = read_tables(capsys.readouterr().out)
    assert [row[1] for row in rows] == list(ctc_step.NAMES)
    assert len(ratios) == 4
    assert all(float(row[1]) > 0 for row in ratios)


def test_ways_of_adapting(capsys: pytest.CaptureFixture[str]) -> None:
    for way in adaptation.WAYS:
        adaptation.main([way, "model=tiny", "batch=2", "seconds=1", "steps=1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip(" `") for row in rows] == list(adaptation.WAYS)
    counts = [int(row[1].split()[0].replace(",", "")) for row in rows]
    assert max(counts[1:]) < counts[0] / 4


def test_extraction_gives_everyone_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is the other side")
    pytest.importorskip("torchaudio", reason="torchaudio is another side")
    extraction.main([*TINY, "--utterances", "4", "--scale", "0.1", "--batch-s", "2", "--repeats", "1", "--no-memory"])
    rows, ratios, cosines = read_tables(capsys.readouterr().out)
    assert [row[1] for row in rows] == list(extraction.NAMES)
    assert len(ratios) == 10
    lowest = {name: float(value) for name, value in cosines}
    assert lowest["transformers one by one float32"] == pytest.approx(1.0, abs=1e-5)
    # In padded batches the others' group norm sees the padding.
    assert min(lowest.values()) > 0.9


@pytest.mark.slow
def test_data_loading(capsys: pytest.CaptureFixture[str]) -> None:
    data_loading.main(["--utterances", "4", "--scale", "0.3", "--rows", "3000", "--repeats", "1"])
    codecs, growth, rows = read_tables(capsys.readouterr().out)
    assert [row[0].split()[0] for row in codecs] == list(data_loading.CODECS)
    assert all(float(cell.split()[0]) > 0 for row in codecs for cell in row[1:])
    assert [row[0] for row in growth] == ["1 ×", "4 ×", "16 ×"]
    assert len(rows) == 4 and all(float(row[-1]) > 10 for row in rows), "two sizes in two formats, workers measured"


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pretrain_step.main([*TINY, "batch=1", "seconds=1", "--repeats", "1", "--only", "ours float32"])
    (rows,) = read_tables(capsys.readouterr().out)
    assert float(rows[0][5]) > 100


def test_a_ratio_is_taken_turn_by_turn() -> None:
    middle, spread, low, high = summarise_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (middle, spread, low, high) == (2.0, 0.0, 2.0, 2.0)


@each_case("kernel", [6, 7])
def test_all_ways_to_positions_come_to_the_same(kernel: int) -> None:
    torch.manual_seed(1)
    config = ModelConfig(model_dim=12, num_heads=1, position_kernel=kernel, position_groups=3)
    module, x = PositionalConvolution(config), torch.randn(2, 15, 12)
    torch.nn.init.normal_(module.conv.bias)
    expected = module(x)
    for way in positions.WAYS.values():
        torch.testing.assert_close(way(module, x), expected, rtol=1e-4, atol=1e-5)


def test_positions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="its version is in the table")
    positions.main([*TINY, "batch=2", "seconds=1", "--repeats", "1", "--no-memory"])
    rows, ratios = read_tables(capsys.readouterr().out)
    assert [row[1] for row in rows] == list(positions.WAYS) and len(ratios) == len(positions.WAYS) - 1


def test_a_checkout_beside_itself(capsys: pytest.CaptureFixture[str]) -> None:
    old_and_new.main([str(old_and_new.HERE), "--turns", "1", "model=tiny", "batch=1", "seconds=1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [
        (job, precision) for job in old_and_new.JOBS for precision in old_and_new.PRECISIONS
    ]
    assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in rows)

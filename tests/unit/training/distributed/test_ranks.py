"""What a process is told of the others, and how what they share is divided."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from speechssl.config.training import TrainingConfig
from speechssl.errors import ConfigError, DataError, RanksError
from speechssl.objectives.protocol import LossTerms
from speechssl.training.distributed.ranks import Ranks, check_division, format_cause, is_lost_contact, join_ranks
from tests.cases import each_case


def test_one_process_gets_back_what_it_gives() -> None:
    ranks = Ranks()
    terms = LossTerms(torch.tensor(1.5), torch.tensor(3), {"right": torch.tensor(2.0)})
    assert ranks.sum_terms(terms) is terms
    assert (ranks.find_max(7), ranks.broadcast("é")) == (7, "é")
    assert ranks.agree_to_stop(None) is None
    assert ranks.agree_to_stop(("stopped by SIGTERM", 143)) == ("stopped by SIGTERM", 143)
    assert ranks.gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
    assert ranks.is_main


@each_case("size", [1, 2, 4, 8, 64])
def test_a_divisor_of_the_sub_batches_is_accepted(size: int) -> None:
    check_division(Ranks(size=size), TrainingConfig())


@each_case("size", [3, 128])
def test_another_number_is_answered_with_those_that_divide(size: int) -> None:
    message = r"must divide the 64 sub-batches of an update .* so be one of 1, 2, 4, 8, 16, 32, 64, but is " + str(size)
    with pytest.raises(ConfigError, match=message):
        check_division(Ranks(size=size), TrainingConfig())


@each_case("device", ["cuda:1", "cpu:0", "tpu"])
def test_several_processes_choose_their_gpus_themselves(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"`device` must be auto, cpu or cuda with several processes, but is "):
        join_ranks(device)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.device.type) == (0, 1, "cpu")


@each_case(
    "error, is_lost",
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer"), True),
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (DataError("`data.train` must be a manifest, but gloo.tsv is none"), False),
    ],
)
def test_lost_contact_is_told_from_own_mistakes(error: Exception, is_lost: bool) -> None:
    assert is_lost_contact(error) is is_lost


def test_a_cause_is_one_line_with_its_kind_where_it_is_no_sentence() -> None:
    assert format_cause(DataError("`x` must be y")) == format_cause(RanksError("`x` must be y")) == "`x` must be y"
    assert format_cause(ValueError("first\nsecond")) == "ValueError: first"

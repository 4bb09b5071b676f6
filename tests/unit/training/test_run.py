"""The road from a configuration to its result, as a user of Python takes it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from speechssl.checkpoints.model_folder import save_model
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.model.speech_model import SpeechModel
from speechssl.training.network import adopt_network

SCRIPT = """
import json, sys

class Absent:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in ("hydra", "omegaconf"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
from speechssl.config.model import ModelConfig
from speechssl.config.training import LoggingConfig, TrainingConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.verbs.finetune import finetune
from speechssl.verbs.pretrain import pretrain

out = sys.argv[1]
def make(kind, name, updates, **more):
    config = kind(out=f"{out}/{name}", device="cpu", precision="float32", **more)
    config.data.train, config.data.num_workers = [f"{out}/all.tsv"], 0
    config.training = TrainingConfig(update_s=8, sub_batch_s=4, forward_s=4, max_updates=updates)
    config.logging = LoggingConfig(tensorboard=False)
    return config

network = ModelConfig(conv_channels=[4] * 7, num_layers=1, model_dim=8, ffn_dim=8, num_heads=1, position_groups=2)
begun = make(PretrainConfig, "run", 1, model=network)
results = [pretrain(begun)]
results += [pretrain(make(PretrainConfig, "run", 2, model=network)) for _ in range(2)]
results += [finetune(make(FinetuneConfig, "ctc", 1, init=f"{out}/run"))]
assert begun.training.schedule_updates == 0, "the caller's configuration is as it was"
print(json.dumps([result["updates"] for result in results]))
"""


def test_verbs_train_without_hydra(tmp_path: Path) -> None:
    lines = ["id\tpath\tsample_rate\tnum_samples\ttext"]
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 40_000), 16_000)
        lines.append(f"{number}\t{number}.wav\t16000\t40000\tTEXT")
    (tmp_path / "all.tsv").write_text("\n".join(lines) + "\n")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 2, 2, 1]
    assert "resumed from update-0000001" not in done.stdout and (tmp_path / "run" / "report.html").exists()
    card = json.loads((tmp_path / "ctc" / "checkpoints" / "last" / "config.json").read_text())
    assert (card["kind"], card["model"]["model_dim"]) == ("ctc", 8), "the network is that of `init`"


def test_the_network_of_init_is_taken_where_none_was_given(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    stored = replace(tiny_model_config, name="other", dropout=0.3)
    save_model(SpeechModel(stored, pretraining=True), tmp_path)
    init, given = str(tmp_path), replace(stored, dropout=0.0)
    assert adopt_network(FinetuneConfig(init=init)).model == stored
    assert adopt_network(PretrainConfig(init=init)).model == stored
    # Also one that is the default, where it was said.
    for model in (given, ModelConfig()):
        assert adopt_network(FinetuneConfig(init=init, model=model)).model == model
    assert adopt_network(FinetuneConfig()).model == ModelConfig()

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.config.verbs import PrepareConfig
from speechssl.data.manifest import load_manifest
from speechssl.errors import ConfigError, DataError
from speechssl.verbs import prepare as run


def prepare(out: Path, **keys: Any) -> dict[str, Any]:
    return run(PrepareConfig(out=str(out), **keys))


def write_clips(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(16_000), 16_000)
    return folder


def test_librispeech_is_recognised_and_gets_a_manifest_a_split(tmp_path: Path, librispeech_tree: Path) -> None:
    result = prepare(tmp_path / "m", root=str(librispeech_tree), subset=["10s", "20s"])
    assert result["corpus"] == "librispeech"
    assert {"train", "dev", "test", "train-10s", "train-20s"} <= set(result["manifests"])
    assert json.loads((tmp_path / "m" / "result.json").read_text()) == result
    train = load_manifest(tmp_path / "m" / "train.tsv")
    assert train.table.column_names == ["id", "path", "sample_rate", "num_samples", "speaker", "text", "sex"]
    assert train.column("path") == sorted(train.column("path"))
    assert train[0].path.is_file()
    assert len(train) == result["manifests"]["train"]["num_utterances"] == 12
    small, large = (set(load_manifest(tmp_path / "m" / f"train-{n}s.tsv").column("id")) for n in (10, 20))
    assert small < large < set(train.column("id"))


def test_splits_and_format_are_chosen(tmp_path: Path, librispeech_tree: Path) -> None:
    result = prepare(tmp_path / "m", root=str(librispeech_tree.parent), splits=["dev"], format="parquet")
    assert list(result["manifests"]) == ["dev"]
    assert len(load_manifest(tmp_path / "m" / "dev.parquet")) == 4
    one = prepare(tmp_path / "n", root=str(librispeech_tree / "test"))
    assert list(one["manifests"]) == ["test"]


def test_a_folder_becomes_one_manifest_or_two(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", tuple(f"{speaker}/{n}.wav" for speaker in "abcde" for n in range(2)))
    result = prepare(tmp_path / "m", root=str(root))
    assert (result["corpus"], list(result["manifests"]), result["held_out_by"]) == ("folder", ["all"], None)
    result = prepare(tmp_path / "n", root=str(root), valid_share=0.2)
    assert (set(result["manifests"]), result["held_out_by"]) == ({"train", "valid"}, "speaker")
    assert load_manifest(tmp_path / "n" / "valid.tsv").total_s == 2.0


def test_a_table_is_read_and_guessed(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav", "b.wav"))
    (root / "meta.csv").write_text("file,said\na.wav,HELLO\nb.wav,\n")
    columns = {"path": "file", "text": "said", "speaker": "speaker"}
    for number, keys in enumerate(({"table": str(root / "meta.csv")}, {"root": str(root / "meta.csv")})):
        result = prepare(tmp_path / f"m{number}", columns=columns, **keys)
        assert result["corpus"] == "table"
        assert load_manifest(tmp_path / f"m{number}" / "all.tsv").column("text") == ["HELLO", None]
    with pytest.raises(ConfigError, match=r"`corpus` must be folder or table .* holds meta\.csv"):
        prepare(tmp_path / "m2", root=str(root))


def test_unreadable_files_are_counted_named_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav",))
    (root / "b.wav").write_text("no sound")
    result = prepare(tmp_path / "m", root=str(root))
    assert result["num_unreadable"] == 1
    assert "1 files cannot be used" in caplog.text and "b.wav must be audio" in caplog.text
    assert (tmp_path / "m" / "unreadable.tsv").read_text().startswith(f"{root / 'b.wav'}\t")


def test_a_finished_result_is_replaced_only_on_request(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav",))
    prepare(tmp_path / "m", root=str(root))
    with pytest.raises(ConfigError, match="`out` must be a new place"):
        prepare(tmp_path / "m", root=str(root))
    write_clips(root, ("b.wav",))
    assert prepare(tmp_path / "m", root=str(root), overwrite=True)["manifests"]["all"]["num_utterances"] == 2


def test_what_an_earlier_result_wrote_does_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", tuple(f"{n}.wav" for n in range(9)))
    (root / "bad.wav").touch()
    prepare(tmp_path / "old", root=str(root))
    out = (tmp_path / "old").rename(tmp_path / "m")
    assert (out / "unreadable.tsv").exists()
    (root / "bad.wav").unlink()
    for name in ("notes.txt", "mine.tsv"):
        (out / name).write_text("the user's")
    with pytest.raises(DataError, match="`splits` must be"):
        prepare(out, root=str(root), splits=["none"], overwrite=True)
    assert (out / "all.tsv").exists(), "what is refused takes nothing away"
    prepare(out, root=str(root), valid_share=0.3, format="parquet", overwrite=True)
    names = ["mine.tsv", "notes.txt", "result.json", "train.parquet", "valid.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    (out / "unreadable.tsv").write_text("the user's")
    prepare(out, root=str(root), valid_share=0.3, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [*names[:3], "train.tsv", "unreadable.tsv", "valid.tsv"]
    (out / "result.json").write_text('{"wer": 1.0}')
    prepare(out, root=str(root), overwrite=True)
    left = sorted(path.name for path in out.iterdir())
    assert left == ["all.tsv", *names[:3], "train.tsv", "unreadable.tsv", "valid.tsv"], (
        "another verb's result tells nothing"
    )


def test_a_table_that_somebody_made_of_an_earlier_manifest_stays(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "b.wav", np.zeros(16_000), 16_000)
    out = tmp_path / "m"
    speechssl.prepare(corpus="folder", root=str(tmp_path), out=str(out))
    (out / "all.tsv").write_text(f"path\tsplit\n{tmp_path}/a.wav\ttrain\n{tmp_path}/b.wav\tdev\n")
    speechssl.prepare(
        corpus="table", table=str(out / "all.tsv"), columns={"split": "split"}, out=str(out), overwrite=True
    )
    assert sorted(path.name for path in out.glob("*.tsv")) == ["all.tsv", "dev.tsv", "train.tsv"]


@pytest.mark.parametrize(
    ("split", "keys"),
    [("all", {"valid_share": 0.3}), ("train-2s", {"subset": ["2s"]}), ("valid", {"valid_share": 0.3})],
)
def test_splits_that_would_take_each_others_names_leave_an_earlier_result(
    tmp_path: Path, split: str, keys: dict[str, Any]
) -> None:
    root = write_clips(tmp_path / "clips", tuple(f"{n}.wav" for n in range(9)))
    rows = [f"{n}.wav,{'train' if n < 5 else split}\n" for n in range(9)]
    (tmp_path / "t.csv").write_text("".join(["path,split\n", *rows]))
    columns = {"path": "path", "split": "split"}
    prepare(tmp_path / "m", table=str(tmp_path / "t.csv"), root=str(root), columns=columns)
    before = {path: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises((ConfigError, DataError), match="`valid_share` must be 0|`subset` must make names"):
        prepare(tmp_path / "m", table=str(tmp_path / "t.csv"), root=str(root), columns=columns, overwrite=True, **keys)
    assert {path: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"corpus": "folder", "download": ["dev-clean-2"]}, r"`download` .* corpus=folder, but is \['dev-clean-2'\]"),
        ({"corpus": "folder", "table": "x.csv"}, "`table` .* corpus=folder, but is 'x.csv'"),
        ({"columns": {"path": "path", "text": "foo"}}, r"`columns` .* corpus=folder \(guessed\), but is {'path'"),
        ({"corpus": "demo", "speaker_pattern": "(x)"}, r"`speaker_pattern` .* corpus=demo, but is '\(x\)'"),
        ({"corpus": "table", "download": ["dev-clean-2"]}, "`download` must be left out with corpus=table"),
        ({"download": ["dev-clean-2"], "table": "x.csv"}, r"`table` .* corpus=librispeech \(guessed\), but is"),
        ({"corpus": "table", "download_url": "http://x"}, "`download_url` must be left out with corpus=table"),
        ({"corpus": "librispeech", "download_url": "http://x"}, "`download_url` must be left out without `download`"),
    ],
)
def test_a_key_that_the_corpus_does_not_read_is_refused(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav",))
    with pytest.raises(ConfigError, match=sentence):
        prepare(tmp_path / "m", root=str(root), **keys)
    assert not (tmp_path / "m").exists()


def test_the_demo_corpus_is_made_and_read(
    tmp_path: Path, librispeech_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "speechssl.demo.corpus.build_demo_corpus", lambda root, seed: asked.append((root, seed)) or librispeech_tree
    )
    result = prepare(tmp_path / "m", corpus="demo", seed=3)
    assert asked == [(tmp_path / "m" / "speech", 3)]
    assert set(result["manifests"]) == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "`root` must be the folder that holds the corpus, but is not given"),
        ({"root": "none"}, "`root` must be the folder that holds the corpus, but .*none is not there"),
        ({"root": "none", "corpus": "folder"}, "`root` must be the folder .*none is not there"),
        ({"root": "a" * 5000}, "`root` must be the folder .*a is not there"),
        ({"root": "a" * 5000, "corpus": "folder"}, "`root` must be the folder .*a is not there"),
        ({"root": "a" * 5000, "corpus": "table"}, r"`table` must be a CSV or TSV file, but .*a is not there"),
        ({"root": "empty"}, "`root` must be a folder with audio, but .*empty has none"),
        ({"root": "empty", "corpus": "librispeech"}, "`splits` must be folders of the corpus, but .* has no folder"),
        ({"root": "clips", "splits": ["dev"]}, "`splits` must be some of all, but one is 'dev'"),
        ({"root": "clips", "subset": ["ten"]}, "`subset` must be lengths such as 10m, 1h or 90s, but one is 'ten'"),
        ({"root": "clips", "subset": ["1h"]}, "`subset` must be shorter than a split, but 1h is not"),
        ({"corpus": "table"}, "`table` must be the CSV or TSV file that lists the audio, but is not given"),
        ({"download": ["dev-clean"]}, "`root` must be the folder to download to, but is not given"),
    ],
)
def test_a_mistake_gets_a_sentence(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    write_clips(tmp_path / "clips", ("a.wav",))
    placed = {**keys, "root": str(tmp_path / keys["root"])} if "root" in keys else keys
    with pytest.raises((ConfigError, DataError), match=sentence):
        prepare(tmp_path / "m", **placed)
    assert not (tmp_path / "m" / "result.json").exists()


@pytest.mark.parametrize(
    "content",
    ["{", "[" * 100_000, '{"held_out_by": 1}', '{"held_out_by": 1, "manifests": {"a": 3}, "num_unreadable": 0}', "\0"],
    ids=["cut off", "deep", "without manifests", "wrong types", "zeros"],
)
def test_an_earlier_result_that_is_damaged_is_replaced(tmp_path: Path, content: str) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav",))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "result.json").write_text(content)
    (tmp_path / "m" / "old.tsv").touch()
    assert prepare(tmp_path / "m", root=str(root), overwrite=True)["num_unreadable"] == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["all.tsv", "old.tsv", "result.json"]


def test_damaged_files_are_left_out_and_listed(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", ("a.wav", "b.flac", "c.ogg", "d.wav", "e.flac"))
    whole = {name: (root / name).read_bytes() for name in ("b.flac", "c.ogg", "d.wav")}
    (root / "b.flac").write_bytes(whole["b.flac"][:20])
    (root / "c.ogg").write_bytes(b"\0" * len(whole["c.ogg"]))
    (root / "d.wav").write_bytes(whole["d.wav"][:1000])
    result = prepare(tmp_path / "m", root=str(root))
    assert load_manifest(tmp_path / "m" / "all.tsv").column("id") == ["a", "e"]
    lines = (tmp_path / "m" / "unreadable.tsv").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == ["b.flac", "c.ogg", "d.wav"]
    assert result["num_unreadable"] == 3

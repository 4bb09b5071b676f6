"""What a table lacks is said in words that can be typed as they stand; here they are typed."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.cli.words import read_words as parse_words
from speechssl.config.verbs import PrepareConfig
from speechssl.corpora.table import check_places
from speechssl.data.manifest import Manifest, load_manifest
from speechssl.errors import ConfigError, DataError
from speechssl.verbs import prepare as run
from tests.cases import each_case

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
COMMON_VOICE = "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\nab\tc1.wav\tx\tHello “you”\t2\t\n"
LJSPEECH = (
    "LJ001-0001|Printing, in the only sense, with 1 of us, differs|"
    "Printing, in the only sense, with one of us, differs\n"
    "LJ001-0002|in being comparatively modern.|in being comparatively modern.\n"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder whose name wants quoting."""
    folder = tmp_path / "it's a $place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(name: str, content: str = "") -> None:
    """Write a text, or a clip."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if content:
        Path(name).write_text(content, encoding="utf-8")
    else:
        soundfile.write(name, np.zeros(1600), 16_000)


def read_words(typed: str) -> list[str]:
    """Let each shell split what is typed."""
    outputs = {run_in(shell, f"printf '%s\\0' {typed}") for shell in SHELLS}
    assert len(outputs) == 1
    return outputs.pop().split("\0")[:-1]


def run_in(shell: str, typed: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", typed], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    return done.stdout


def configure(*words: str) -> PrepareConfig:
    """Read words as the command line does, without the files of `conf/`, which `prepare` has no part in."""
    (request,) = parse_words("prepare", words)
    columns = {key.removeprefix("columns."): value for key, value in request.values.items() if "." in key}
    keys = {key: value for key, value in request.values.items() if "." not in key}
    return PrepareConfig(**keys, columns=PrepareConfig().columns | columns)


def prepare(*words: str) -> Manifest:
    run(configure(*words, "out=m", "overwrite=true"))
    return load_manifest("m/all.tsv")


def refuse(*words: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        prepare(*words)
    return str(caught.value)


def follow(sentence: str, *words: str) -> Manifest:
    """Do what a sentence says: its command, where it has one, and the keys after `say`."""
    before, _, keys = sentence.partition(" and say ") if " and say " in sentence else sentence.partition(": say ")
    command = before.partition("make one with ")[2]
    if command:
        assert [run_in(shell, command) for shell in SHELLS]
    return prepare(*read_words(keys), *words)


def test_texts_and_speakers_that_are_not_taken_are_named_with_the_words_that_take_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write("cv/train.tsv", COMMON_VOICE)
    write("cv/c1.wav")
    with caplog.at_level(logging.INFO):
        assert not prepare("cv/train.tsv").has("text")
    warning = next(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    keys = "columns.text=sentence columns.speaker=client_id"
    assert warning == f"train.tsv: not taken: sentence and client_id, which {keys} would take"
    assert "train.tsv: not taken: sentence_id, up_votes, age; columns.sentence_id=sentence_id" in caplog.text
    caplog.clear()
    manifest = prepare("cv/train.tsv", *read_words(keys))
    assert (manifest[0].text, manifest[0].speaker) == ("Hello “you”", "ab")
    assert "WARNING" not in caplog.text


@each_case(
    "header, keys",
    [
        ("path,Sentence", "columns.text=Sentence"),
        ("path,transcription,spk_id", "columns.text=transcription columns.speaker=spk_id"),
        ("path,text,CLIENT_ID", "columns.speaker=CLIENT_ID"),
        ("path,text,speaker", ""),
        ("path,Satz", ""),
    ],
)
def test_usual_names_are_known_in_any_case(header: str, keys: str, caplog: pytest.LogCaptureFixture) -> None:
    write("a.wav")
    write("t.csv", f"{header}\na.wav{',x' * header.count(',')}\n")
    prepare("t.csv")
    assert f"{keys} would take" in caplog.text if keys else "WARNING" not in caplog.text


@each_case("header", ["audio_filepath,text", "file_name,transcription", "wav_filename,n,transcript"])
def test_a_path_of_another_name_is_found(header: str) -> None:
    write("a.wav")
    write("t.csv", f"{header}\na.wav,{'5,' * (header.count(',') - 1)}HELLO\n")
    sentence = refuse("t.csv")
    assert sentence.startswith("`columns.path` must be a column of t.csv, which has ")
    assert follow(sentence, "table=t.csv").column("text") == ["HELLO"]


def test_a_table_without_a_header_gets_one() -> None:
    write("LJSpeech 1.1/metadata.csv", LJSPEECH)
    for number in (1, 2):
        write(f"LJSpeech 1.1/wavs/LJ001-000{number}.wav")
    sentence = refuse("LJSpeech 1.1/metadata.csv")
    assert "must begin with a line that names its columns, but LJSpeech 1.1/metadata.csv begins with a row" in sentence
    manifest = follow(sentence)
    assert manifest.column("id") == ["LJ001-0001", "LJ001-0002"]
    assert manifest.column("text")[0] == "Printing, in the only sense, with one of us, differs"


@each_case(
    "content",
    [
        "a.wav,HELLO\n",
        "x 1,a.wav,HELLO THERE\n",
        "a\tHELLO YOU THERE MY FRIEND\n",
        '"a.wav","HELLO, YOU"\n',
        "a.wav\n",
        "a.wav,HELLO\r",
    ],
)
def test_a_row_at_the_head_is_known_by_what_it_holds(content: str) -> None:
    write("clips/a.wav")
    write("it's.csv", content)
    manifest = follow(refuse("it's.csv"))
    assert manifest.column("id") == ["a"]
    assert manifest.has("text") == ("HELLO" in content)


@each_case("name", ["manifest.json", "manifest.jsonl", "manifest.csv"])
def test_json_of_nemo_is_no_table_and_becomes_one(name: str) -> None:
    write("a.wav")
    write(name, '{"audio_filepath": "a.wav", "duration": 0.1, "text": "oh, \\"hello\\""}\n')
    sentence = refuse(name)
    assert sentence.startswith(f"`table` must be CSV or TSV, but {name} is JSON: make one with python -c ")
    assert follow(sentence).column("text") == ['oh, "hello"']
    write("list.json", '[\n{"audio": "a.wav"}\n]\n')
    assert refuse("list.json") == "`table` must be CSV or TSV, but list.json is JSON"


def test_a_list_of_speakers_is_none_of_files() -> None:
    write("vox1_meta.csv", "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA\tm\tIreland\tdev\n")
    assert "the table lists speakers, not files; take the folder of the audio, with corpus=" in refuse("vox1_meta.csv")


def test_paths_that_start_from_another_folder_are_found() -> None:
    write("cv/en/train.tsv", COMMON_VOICE)
    write("cv/en/clips/c1.wav")
    sentence = refuse("cv/en/train.tsv")
    assert sentence.startswith("`root` must be the folder that the paths of cv/en/train.tsv start from, but ")
    assert follow(sentence).column("id") == ["c1"]
    assert follow(refuse("table=cv/en/train.tsv", "root=cv")).column("id") == ["c1"]


@each_case(
    "path, reason",
    [
        ("clips\\a.wav", r"write clips/a.wav for clips\\a.wav"),
        ("/data/of/others/clips/a.wav", "write clips/a.wav for /data/of/others/clips/a.wav"),
        ("clips/a", "write clips/a.wav for clips/a"),
        ("gone.wav", "is not there: say table=t.csv root=FOLDER"),
    ],
)
def test_paths_that_are_written_otherwise_are_named(path: str, reason: str) -> None:
    write("clips/a.wav")
    write("t.csv", f"path\n{path}\n")
    assert reason.replace("\\\\", "\\") in refuse("t.csv")


def test_some_files_that_are_not_there_are_left_out() -> None:
    write("a.wav")
    write("t.csv", "path\ngone.wav\na.wav\n")
    assert prepare("t.csv").column("id") == ["a"]
    assert Path("m/unreadable.tsv").read_text().count("gone.wav") == 2


def test_a_clip_that_is_named_twice_is_said_with_its_rows() -> None:
    write("x/a.wav")
    write("t.csv", "path,name,split\nx/a.wav,1,all\n./x/../x/a.wav,2,all\n")
    assert "a.wav stands in rows 2 and 3: leave one out, or give each row a name" in refuse("t.csv")
    assert prepare("t.csv", "columns.id=name").column("id") == ["1", "2"]
    write("t.csv", "path,name\nx/a.wav,1\nx/b.wav,1\n")
    assert "`columns.id` must tell the rows of t.csv apart, but 1 stands in rows 2 and 3" in refuse(
        "t.csv", "columns.id=name"
    )


@each_case(
    "content",
    [b"\xff\xfep\0a\0t\0h\0\n\0", b"path\n\xff.wav\n", b"path\na\0.wav\n", b"path\n\n \n", b"path\n/\n"],
)
def test_bytes_that_are_no_table_get_a_sentence(content: bytes) -> None:
    Path("t.csv").write_bytes(content)
    assert refuse("t.csv").startswith(
        ("`table` (t.csv) must be a CSV or TSV file in UTF-8, but is not", "`columns.path`")
    )


def test_a_pipe_is_no_table() -> None:
    os.mkfifo("t.csv")
    assert "cannot be read (it is no regular file)" in refuse("table=t.csv")


def test_long_texts_are_read() -> None:
    write("a.wav")
    write("t.csv", f"path,text\na.wav,{'word ' * 50_000}\n")
    assert len(str(prepare("t.csv")[0].text)) == 249_999


def test_names_without_end_do_not_make_a_sentence_without_end() -> None:
    write("t.csv", ",".join(f"column{n}" for n in range(5000)) + "\n" + "," * 4999 + "\n")
    assert len(refuse("t.csv")) < 600


def test_a_path_without_end_is_looked_for_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    write("t.csv", f"path\n{'a/' * 2000}b.wav\n")
    asked: list[object] = []
    monkeypatch.setattr("speechssl.corpora.table.os.path.isfile", lambda path: bool(asked.append(path)))
    monkeypatch.setattr("speechssl.corpora.table.os.scandir", refuse_to_list)
    with pytest.raises(DataError, match="start from"):
        check_places(Path("t.csv"), Path.cwd(), [Path.cwd() / f"{'a/' * 2000}b.wav"])
    assert len(asked) < 400


def refuse_to_list(folder: Path) -> None:
    raise PermissionError(13, "Permission denied", str(folder))

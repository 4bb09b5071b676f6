from pathlib import Path

import pytest

from speechssl.corpora.table import read_table
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case

DEFAULT = {"path": "path", "text": "text", "speaker": "speaker"}


def write(tmp_path: Path, content: str, name: str = "meta.csv") -> Path:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    table = write(tmp_path, 'file,said,who,accent\nx/b.wav,"Hello, ""you""",bob,north\na.wav,,ann,\n')
    columns = {"path": "file", "text": "said", "speaker": "who", "accent": "accent"}
    ((split, recordings),) = read_table(table, None, columns).items()
    assert split == "all"
    assert [(r.id, r.path, r.speaker, r.text, r.extra) for r in recordings] == [
        ("a", tmp_path / "a.wav", "ann", None, {"accent": None}),
        ("x/b", tmp_path / "x/b.wav", "bob", 'Hello, "you"', {"accent": "north"}),
    ]


@each_case("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_in_the_header(tmp_path: Path, delimiter: str) -> None:
    table = write(tmp_path, f"path{delimiter}text\r\na.wav{delimiter}HELLO\r\n")
    assert read_table(table, None, DEFAULT)["all"][0].text == "HELLO"


def test_a_quotation_mark_between_tabs_is_a_character(tmp_path: Path) -> None:
    table = write(tmp_path, 'path\ttext\na.wav\t"Oh\nb.wav\tyes"\n', "meta.tsv")
    assert [r.text for r in read_table(table, None, DEFAULT)["all"]] == ['"Oh', 'yes"']


def test_paths_start_from_the_root_and_rows_may_have_splits_and_ids(tmp_path: Path) -> None:
    table = write(tmp_path, "path,part,name\na.wav,test,A\nb.wav,train,B\n")
    splits = read_table(table, tmp_path / "audio", {**DEFAULT, "split": "part", "id": "name"})
    assert {split: [r.id for r in rows] for split, rows in splits.items()} == {"test": ["A"], "train": ["B"]}
    assert splits["test"][0].path == tmp_path / "audio" / "a.wav"


@each_case(
    "content, columns, sentence",
    [
        ("file\na.wav\n", DEFAULT, r"`columns\.path` must be a column of .*, which has file, but is path"),
        ("path\na.wav\n", {**DEFAULT, "text": "said"}, r"`columns\.text` must be a column of .* but is said"),
        ("path\na.wav\n", {**DEFAULT, "offset": "path"}, r"`columns\.offset` must not be given"),
    ],
)
def test_a_wrong_column_gets_a_sentence(tmp_path: Path, content: str, columns: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_table(write(tmp_path, content), None, columns)


@each_case(
    "content, sentence",
    [
        ("path,text\n", "`table` must list audio, but .* has no rows"),
        ("path,text\na.wav,A,B\n", "must have 2 fields in each row, but row 2 of .* has 3"),
        ('path,text\na.wav,"open\n', "must be a CSV or TSV file in UTF-8, but is not .unexpected end"),
        ("path,text, text\na.wav,A,B\n", r"`table` must have each column once, but .*meta\.csv has text 2 times"),
        ("path,split\na.wav,../up\n", r"`columns\.split` must hold names .* but one is '\.\./up'"),
    ],
)
def test_a_damaged_table_gets_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    columns = {**DEFAULT, "split": "split"} if "split" in content else DEFAULT
    with pytest.raises(DataError, match=sentence):
        read_table(write(tmp_path, content), None, columns)


def test_columns_without_a_name_may_be_many(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "path,text,,\na.wav,A,,\n"), None, DEFAULT)["all"][0].text == "A"


def test_a_table_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`table` must be a CSV or TSV file, but .* is not there"):
        read_table(tmp_path / "none.csv", None, DEFAULT)

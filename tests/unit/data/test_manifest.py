import math
import os
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifest, load_manifests, save_manifest
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case

NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
"""Text that says it is UTF-8 and is not, as a flipped bit leaves it."""

HEADER = "id\tpath\tsample_rate\tnum_samples\n"
AWKWARD = [
    "a\ttab",
    "two\nlines",
    "back\\slash",
    "\\n is no new line",
    '"quoted',
    "d'accord",
    "Grüße 你好 🎙",
    "#",
    "\r",
]


def make_manifest(num_rows: int = 40, seed: int = 0, root: Path = Path("/corpus")) -> Manifest:
    """Make rows of 1 to 15 s by 8 speakers, the first of whom has half of them; even speakers are men."""
    rng = np.random.default_rng(seed)
    speakers = [f"s{max(0, number)}" for number in rng.integers(-7, 8, num_rows)]
    rows = [
        Utterance(f"u{n}", root / f"{n}.flac", 16_000, int(rng.integers(16_000, 240_000)), 0, speaker, "A")
        for n, speaker in enumerate(speakers)
    ]
    manifest = build_manifest(rows, root)
    sexes = pa.array(["MF"[int(speaker[1:]) % 2] for speaker in speakers])
    return Manifest(manifest.table.append_column("sex", sexes), root, "m/train.tsv")


@each_case("suffix", ["tsv", "parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [
        Utterance(f"id {text}", tmp_path / f"{n} {text}.flac", 16_000, n + 1, 7 * n, text, None if n == 3 else text)
        for n, text in enumerate(AWKWARD)
    ]
    written = build_manifest(rows, tmp_path)
    save_manifest(written, tmp_path / f"m.{suffix}")
    read = load_manifest(tmp_path / f"m.{suffix}")
    assert [read[index] for index in range(len(read))] == rows
    assert read.table.equals(written.table)
    assert [path.name for path in tmp_path.iterdir()] == [f"m.{suffix}"]


def test_further_columns_are_kept(tmp_path: Path) -> None:
    save_manifest(make_manifest(), tmp_path / "m.tsv")
    assert set(load_manifest(tmp_path / "m.tsv").column("sex")) == {"F", "M"}


@each_case(
    "first, folder",
    [("", "place"), ("# root=/somewhere\n", "/somewhere"), ("# root=../other\n", "other"), ("# root=\n", "place")],
)
def test_paths_start_from_the_root_line_or_the_manifests_folder(tmp_path: Path, first: str, folder: str) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "m.tsv").write_text(first + HEADER + "a\tx/a.flac\t16000\t5\nb\t/abs/b.flac\t8000\t6\n")
    manifest = load_manifest(tmp_path / "place" / "m.tsv")
    assert manifest[0] == Utterance("a", tmp_path / folder / "x/a.flac", 16_000, 5)
    assert manifest[1].path == Path("/abs/b.flac")
    assert manifest.num_samples_16k.tolist() == [5, 12]


@each_case(
    "content, sentence",
    [
        ("", "has no header line with id, path"),
        ("a sentence\n", "has no header line"),
        ("id\tpath\tnum_samples\na\tb\t5\n", "must have the columns .* but .* has id, path, num_samples"),
        (HEADER, "must hold utterances, but .* has no rows"),
        (HEADER + "a\tb\t16000\n", "must be a whole manifest, but is not .CSV parse error: Expected 4"),
        (HEADER + "a\tb\t16000\tlong\n", "must have whole numbers in its column num_samples"),
        (
            HEADER + "a\tb\t16000\t0\n",
            "must have numbers from 1 to 68719476735 in its column num_samples, but .* has 0",
        ),
        (HEADER + "a\tb\t\t7\n", "must have a value in its column sample_rate in every row"),
        ("text\t" + HEADER.strip() + "\ttext\nA\ta\tb\t16000\t7\tB\n", "must have each column once, .* 'text' 2 times"),
    ],
)
def test_a_manifest_that_is_none_gets_a_sentence_with_its_key(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "m.tsv").write_text(content)
    with pytest.raises(DataError, match=f"^`data.valid` (must|.*m.tsv.).*{sentence}|^`data.valid` {sentence}"):
        load_manifest(tmp_path / "m.tsv", "data.valid")


def test_a_manifest_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data\.test` must be a manifest .* but .*none\.tsv does not exist"):
        load_manifest(tmp_path / "none.tsv", "data.test")
    with pytest.raises(DataError, match="is a folder"):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match="`data.train` must be a manifest or a list of manifests, but is not given"):
        load_manifests([], "data.train")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"bad\.parquet\) must be a whole manifest, but is not"):
        load_manifest(tmp_path / "bad.parquet")


def test_several_manifests_become_one_with_absolute_paths(tmp_path: Path) -> None:
    first = build_manifest([Utterance("a", tmp_path / "x/a.flac", 16_000, 5, 0, "s", "HI")], tmp_path)
    second = build_manifest([Utterance("b", Path("/else/b.wav"), 8_000, 7, 3)], Path("/else"))
    save_manifest(first, tmp_path / "1.tsv")
    save_manifest(second, tmp_path / "2.parquet")
    joined = load_manifests([str(tmp_path / "1.tsv"), str(tmp_path / "2.parquet")], "data.train")
    assert joined[0] == first[0]
    assert joined[1] == second[0]
    assert joined.column("text") == ["HI", None]
    with pytest.raises(DataError, match="must name each utterance once, but a is 2 times in"):
        load_manifests([str(tmp_path / "1.tsv")] * 2, "data.train")


@each_case(
    "name, values, sentence",
    [
        ("text", [["A", "B"]], "must have text in its column text, but .*list"),
        ("speaker", [{"id": 1}], "must have text in its column speaker, but .*struct"),
        ("text", [b"\xff"], "must have text in its column text, but .*UTF8"),
        ("num_samples", [[5]], "must have whole numbers in its column num_samples, but .*list"),
        ("num_samples", [Decimal("5.5")], "must have whole numbers in its column num_samples, but .*data loss"),
        ("num_samples", [2**62], "must have numbers from 1 to .* num_samples, but .* has 4611686018427387904"),
        ("num_samples", [-1], "must have numbers from 1 to .* num_samples, but .* has -1"),
        ("sample_rate", [2**40], "must have numbers from 2000 to 768000 in its column sample_rate, but .* has 1099"),
        ("num_samples", [math.nan], "must have whole numbers in its column num_samples"),
        ("offset", [-1], "must have numbers from 0 to .* offset, but .* has -1"),
        ("id", [b"\xff"], "must have text in its column id, but .*UTF8"),
        ("id", [""], "must have a value in its column id in every row"),
        ("path", ["a\0.wav"], "must have names without NUL bytes in its column path"),
        ("text", NOT_UTF8, ".*must be a whole manifest, but is not .*UTF8"),
        ("accent", NOT_UTF8, ".*must be a whole manifest, but is not .*UTF8"),
    ],
)
def test_a_column_of_another_kind_gets_a_sentence(tmp_path: Path, name: str, values: object, sentence: str) -> None:
    row = {"id": ["a"], "path": ["a.wav"], "sample_rate": [16_000], "num_samples": [5]}
    pq.write_table(pa.table({**row, name: values}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=rf"`data\.test` {sentence}"):
        load_manifest(tmp_path / "m.parquet", "data.test")


def test_columns_that_hold_the_same_in_another_kind_are_taken(tmp_path: Path) -> None:
    row = {"id": [7], "path": pa.array([b"a.wav"]), "sample_rate": [Decimal("16000")], "num_samples": [5.0]}
    pq.write_table(pa.table({**row, "text": pa.array(["A"]).dictionary_encode()}), tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet")[0] == Utterance("7", tmp_path / "a.wav", 16_000, 5, 0, None, "A")


@each_case("values", [pa.array([b"\xff"]), pa.array([["F"]]), pa.array([{"a": 1}])])
def test_a_further_column_without_single_values_gets_a_sentence_where_it_is_used(
    tmp_path: Path, values: pa.Array
) -> None:
    row = {"id": ["a"], "path": ["a.wav"], "sample_rate": [16_000], "num_samples": [50_000], "sex": values}
    pq.write_table(pa.table(row), tmp_path / "m.parquet")
    manifest = load_manifest(tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"^`data\.where` \(sex of .* must be a column of single values"):
        manifest.filter_where("sex=F")
    with pytest.raises(DataError, match=r"^the column sex of .* must be text or single values, but is not"):
        manifest.limit_to(1.0, 0)


@each_case("suffix", ["tsv", "parquet"])
def test_a_named_pipe_is_no_manifest(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"m.{suffix}")
    with pytest.raises(DataError, match=rf"m\.{suffix} is no regular file"):
        load_manifest(tmp_path / f"m.{suffix}")


def test_a_text_as_long_as_a_day_is_read(tmp_path: Path) -> None:
    text = "word " * 500_000
    (tmp_path / "m.tsv").write_text(f"{HEADER.strip()}\ttext\na\ta\t16000\t5\t{text}\nb\tb\t16000\t5\tB\n")
    assert load_manifest(tmp_path / "m.tsv").column("text") == [text, "B"]


@each_case(
    "content, sentence",
    [
        (HEADER + "a\ta\t16000\t5\n" * 2, "must name each utterance once, but a is 2 times in"),
        (HEADER.replace("id", "\t".join(map(str, range(1001)))), "must have at most 1000 columns, but .* has 1004"),
        ("# root=a\0\n" + HEADER + "a\ta\t16000\t5\n", r".*m\.tsv\) must be a whole manifest, but is not .*null byte"),
        ("# root=" + "/a" * 3000 + "\n" + HEADER + "a\ta\t16000\t5\n", "must have a root of at most 4096 characters"),
        (HEADER + "a\ta\udcff\t16000\t5\n", r".*must be a whole manifest, but is not .*UTF8"),
    ],
)
def test_a_hostile_manifest_gets_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "m.tsv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"^`data.test` {sentence}"):
        load_manifest(tmp_path / "m.tsv", "data.test")


def test_parquet_that_unpacks_to_much_more_than_it_is_gets_a_sentence(tmp_path: Path) -> None:
    num_rows, zeros = 4_000, pa.array(np.zeros(4_000, np.int32))
    ids = pa.array([str(n) for n in range(num_rows)])
    row = {"id": ids, "path": ids, "sample_rate": np.full(num_rows, 16_000), "num_samples": np.full(num_rows, 5)}
    text = pa.DictionaryArray.from_arrays(zeros, pa.array(["x" * 100_000]))
    pq.write_table(pa.table({**row, "text": text}), tmp_path / "m.parquet", compression="zstd", store_schema=False)
    with pytest.raises(DataError, match="takes more than 134217728 bytes of memory"):
        load_manifest(tmp_path / "m.parquet")
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["x"]))
    pq.write_table(pa.table({"id": same, "path": same}), tmp_path / "m.parquet", store_schema=False)
    with pytest.raises(DataError, match="announces 1000000 rows in"):
        load_manifest(tmp_path / "m.parquet")


def test_a_root_in_another_encoding_survives(tmp_path: Path) -> None:
    root = Path(os.fsdecode(b"/corpus\xff"))
    for suffix in ("tsv", "parquet"):
        save_manifest(Manifest(make_manifest().table, root, ""), tmp_path / f"m.{suffix}")
        assert load_manifest(tmp_path / f"m.{suffix}").root == root


def test_a_further_column_that_is_text_in_one_manifest_and_numbers_in_another_is_text(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text(HEADER.strip() + "\tage\na\ta.wav\t16000\t5\tforty\n")
    row = {"id": ["b"], "path": ["b.wav"], "sample_rate": [16_000], "num_samples": [5]}
    pq.write_table(pa.table({**row, "age": [41]}), tmp_path / "p.parquet")
    paths = [str(tmp_path / name) for name in ("q.tsv", "p.parquet")]
    assert load_manifests(paths, "data.train").column("age") == ["forty", "41"]
    assert load_manifests(paths[1:], "data.train").column("age") == [41]
    pq.write_table(pa.table({**row, "age": [[41]]}), tmp_path / "p.parquet")
    with pytest.raises(
        DataError, match=r"the column age must be alike in all manifests, but holds list<.*int64> in one"
    ):
        load_manifests(paths, "data.train")


def test_a_missing_or_empty_column_is_named_with_the_key() -> None:
    manifest = make_manifest()
    manifest.require("speaker", "data.test")
    with pytest.raises(DataError, match=r"`data\.test` must have a column accent, but m/train\.tsv has id, path"):
        manifest.require("accent", "data.test")
    empty = Manifest(manifest.table.append_column("accent", pa.nulls(40, pa.string())), manifest.root, "m.tsv")
    assert not empty.has("accent")
    with pytest.raises(DataError, match="must have values in its column accent"):
        empty.require("accent", "data.test")


def test_rows_are_filtered_by_a_value() -> None:
    manifest = make_manifest()
    women = manifest.filter_where("sex=F")
    assert 0 < len(women) < len(manifest)
    assert set(women.column("sex")) == {"F"}
    assert len(manifest.filter_where("num_samples=" + str(manifest[3].num_samples))) == 1
    assert manifest.filter_where("") is manifest
    with pytest.raises(ConfigError, match="`data.where` must be column=value"):
        manifest.filter_where("sex")
    with pytest.raises(DataError, match="must have a column accent"):
        manifest.filter_where("accent=x")
    with pytest.raises(DataError, match=r"must keep some rows, but no row of m/train\.tsv has sex=X"):
        manifest.filter_where("sex=X")


def test_a_smaller_limit_is_part_of_a_larger_one() -> None:
    manifest = make_manifest(400)
    subsets = [manifest.limit_to(seconds, 1) for seconds in (60.0, 300.0, 1200.0)]
    ids = [subset.column("id") for subset in subsets]
    assert set(ids[0]) < set(ids[1]) < set(ids[2]) < set(manifest.column("id"))
    for subset, seconds in zip(subsets, (60.0, 300.0, 1200.0), strict=True):
        assert seconds - 15 < subset.total_s <= seconds
        assert subset.column("id") == [name for name in manifest.column("id") if name in set(subset.column("id"))]
    assert manifest.limit_to(300.0, 1).column("id") == ids[1]
    assert manifest.limit_to(300.0, 2).column("id") != ids[1]


def test_a_limit_is_balanced_over_speakers_and_sexes() -> None:
    subset = make_manifest(4000).limit_to(3600.0, 1)
    seconds: dict[str, float] = {}
    for index, sex in enumerate(subset.column("sex")):
        row = subset[index]
        seconds[sex] = seconds.get(sex, 0.0) + row.duration_s
        seconds[str(row.speaker)] = seconds.get(str(row.speaker), 0.0) + row.duration_s
    assert seconds.pop("F") == pytest.approx(1800, abs=15)
    assert seconds.pop("M") == pytest.approx(1800, abs=15)
    assert len(seconds) == 8
    assert max(seconds.values()) - min(seconds.values()) < 25


def test_a_limit_that_is_none_or_too_large_takes_all() -> None:
    manifest = make_manifest()
    assert manifest.limit_to(0.0, 1) is manifest
    assert manifest.limit_to(1e6, 1) is manifest
    assert len(manifest.limit_to(0.001, 1)) == 1


def test_a_limit_works_without_speakers() -> None:
    rows = [Utterance(str(n), Path(f"/c/{n}.wav"), 8_000, 8_000) for n in range(100)]
    assert len(build_manifest(rows, Path("/c")).limit_to(10.0, 1)) == 10


@pytest.mark.slow
def test_a_million_rows_open_in_seconds(tmp_path: Path) -> None:
    lines = "".join(f"u{n}\td/{n}.flac\t16000\t{16_000 + n}\ts{n % 1000}\tHELLO WORLD {n}\n" for n in range(1_000_000))
    (tmp_path / "m.tsv").write_text(HEADER.rstrip() + "\tspeaker\ttext\n" + lines)
    start = time.process_time()
    manifest = load_manifest(tmp_path / "m.tsv")
    assert manifest.num_samples_16k[999_999] == 1_015_999
    assert manifest[999_999].text == "HELLO WORLD 999999"
    assert time.process_time() - start < 5  # of all threads, whatever else the machine does


def test_the_digest_is_of_ids_and_lengths_in_their_order(tmp_path: Path) -> None:
    def digest(*rows: tuple[str, int, str]) -> str:
        made = [Utterance(name, tmp_path / path, 16_000, samples) for name, samples, path in rows]
        return build_manifest(made, tmp_path).digest

    first = digest(("a", 16_000, "a.flac"), ("b", 8_000, "b.flac"))
    assert digest(("a", 16_000, "moved/a.flac"), ("b", 8_000, "b.flac")) == first
    assert digest(("b", 8_000, "b.flac"), ("a", 16_000, "a.flac")) != first
    assert digest(("a", 16_000, "a.flac"), ("b", 8_001, "b.flac")) != first
    assert digest(("a", 16_000, "a.flac"), ("c", 8_000, "b.flac")) != first
    assert digest(("a", 16_000, "a.flac")) != first

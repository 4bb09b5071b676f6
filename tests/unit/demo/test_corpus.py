from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.demo import corpus as demo
from speechssl.demo import espeak
from speechssl.demo.corpus import Split, build_demo_corpus, make_speakers
from speechssl.demo.sound import finish_utterance
from speechssl.demo.text import WORDS, list_words, make_sentences
from speechssl.errors import ConfigError, DataError

SMALL = (Split("train", 2, 1, 2), Split("test", 1, 1, 1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")
    return build_demo_corpus(tmp_path_factory.mktemp("demo"), seed=3, splits=SMALL)


def hash_files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tree: Path, tmp_path: Path) -> None:
    again = build_demo_corpus(tmp_path / "a", seed=3, splits=SMALL)
    other = build_demo_corpus(tmp_path / "b", seed=4, splits=SMALL)
    assert hash_files(again) == hash_files(tree)
    sounds = [name for name in hash_files(tree) if name.endswith(".flac")]
    assert len(sounds) == 5
    assert all(hash_files(other)[name] != hash_files(tree)[name] for name in sounds)


def test_the_tree_is_librispeech(tree: Path) -> None:
    path = tree / "train" / "101" / "1" / "101-1-0001.flac"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    assert 1.0 < info.duration < 6.0
    lines = (path.parent / "101-1.trans.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["101-1-0000", "101-1-0001"]
    assert all(line == line.upper() for line in lines)
    rows = [line.split("|") for line in (tree / "SPEAKERS.TXT").read_text().splitlines() if not line.startswith(";")]
    assert [(row[0].strip(), row[1].strip(), row[2].strip()) for row in rows] == [
        ("101", "F", "train"),
        ("102", "M", "train"),
        ("103", "F", "test"),
    ]


def test_the_sound_is_speech_with_quiet_edges(tree: Path) -> None:
    for path in tree.rglob("*.flac"):
        sound, _ = soundfile.read(path)
        assert 0.2 < np.abs(sound).max() <= 0.71
        edge = np.square(sound[:1600]).mean()
        assert edge < 0.05 * np.square(sound).mean()


def test_nobody_speaks_the_texts_for_a_language_model(tree: Path) -> None:
    texts = (tree / "texts.txt").read_text().splitlines()
    spoken = {line.partition(" ")[2] for path in tree.rglob("*.trans.txt") for line in path.read_text().splitlines()}
    assert len(set(texts)) == len(texts) == 5000
    assert spoken and spoken.isdisjoint(texts)


def test_a_corpus_that_is_there_is_left_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "synthesise", lambda jobs: pytest.fail("made again"))
    assert build_demo_corpus(tree.parent, seed=3, splits=SMALL) == tree
    assert build_demo_corpus(tree.parent, seed=3) == tree
    with pytest.raises(DataError, match="another seed or size"):
        build_demo_corpus(tree.parent, seed=4)
    with pytest.raises(DataError, match="another seed or size"):
        build_demo_corpus(tree.parent, seed=3, splits=SMALL[:1])


def test_another_corpus_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a" / "LibriSpeech").mkdir(parents=True)
    (tmp_path / "a" / "LibriSpeech" / "SPEAKERS.TXT").write_text("")
    with pytest.raises(DataError, match="holds another corpus"):
        build_demo_corpus(tmp_path / "a", seed=1)
    own = tmp_path / "LibriSpeech" / "train" / "101" / "1" / "101-1-0000.flac"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(DataError, match="holds another corpus"):
        build_demo_corpus(tmp_path, seed=1, splits=SMALL)
    assert own.read_bytes() == b"mine"


def test_an_interrupted_corpus_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "require_espeak", lambda: None)

    def make(jobs: list[espeak.Job], until: int | None = None) -> Iterator[str]:
        for job in jobs[:until]:
            soundfile.write(job.path, np.zeros(160), 16_000)
            yield job.path
        if until is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "synthesise", make)
    whole = build_demo_corpus(tmp_path / "whole", 3, SMALL)
    monkeypatch.setattr(demo, "synthesise", lambda jobs: make(jobs, 15))
    with pytest.raises(KeyboardInterrupt):
        build_demo_corpus(tmp_path, 4, (Split("train", 3, 2, 3), Split("dev", 1, 1, 2)))
    assert not (tmp_path / "LibriSpeech").exists()
    monkeypatch.setattr(demo, "synthesise", make)
    assert hash_files(build_demo_corpus(tmp_path, 3, SMALL)) == hash_files(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LibriSpeech", "whole"]


def test_the_whole_plan_keeps_speakers_and_sentences_apart(tmp_path: Path) -> None:
    jobs = [job for chapter in demo._plan(tmp_path, 1, demo.SPLITS) for job in chapter]
    assert len({job.text for job in jobs}) == len(jobs) == len({job.seed for job in jobs})
    sessions = {(Path(job.path).parts[-3], job.session_seed) for job in jobs}
    assert len(sessions) == sum(split.num_speakers * split.num_chapters for split in demo.SPLITS)
    voices: dict[str, set[str]] = {}
    for job in jobs:
        voices.setdefault(Path(job.path).relative_to(tmp_path).parts[0], set()).add(json.dumps(job.voice.__dict__))
    assert {split: len(found) for split, found in voices.items()} == {s.name: s.num_speakers for s in demo.SPLITS}
    assert not voices["train"] & (voices["test"] | voices["dev"])
    assert voices["train"] == voices["session"]
    train = {word for job in jobs if "/train/" in job.path for word in job.text.split()}
    assert {word for job in jobs if "/test/" in job.path for word in job.text.split()} <= train


def test_the_vocabulary_is_small_and_the_sentences_are_short() -> None:
    sentences = make_sentences(2000, seed=1)
    assert len(set(sentences)) == 2000
    assert 120 <= len(list_words(sentences)) <= 250
    assert all(4 <= len(sentence.split()) <= 14 for sentence in sentences)
    assert all(set(sentence) <= set("abcdefghijklmnopqrstuvwxyz ") for sentence in sentences)
    assert all(len(set(entries)) == len(entries) for entries in WORDS.values())
    with pytest.raises(ConfigError, match="at most 50000"):
        make_sentences(60_000, seed=1)


def test_speakers_have_different_voices_and_both_sexes() -> None:
    speakers = make_speakers(50, seed=1)
    assert len({speaker.voice.name for speaker in speakers}) == 50
    assert sum(speaker.sex == "F" for speaker in speakers) == 25


def test_every_voice_of_the_demo_is_one_that_espeak_has(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")
    names = [f"{accent}+{demo._MALE[0]}" for accent in demo._ACCENTS]
    names += [f"en-us+{variant}" for variant in (*demo._MALE, *demo._FEMALE)]
    jobs = [
        espeak.Job(str(tmp_path / f"{number}.flac"), "the tall girl", espeak.Voice(name, 200, 50, 50, 1.0), 1, 1)
        for number, name in enumerate(names)
    ]
    assert len(list(espeak.synthesise(jobs))) == len(jobs)
    contents = {Path(job.path).read_bytes() for job in jobs}
    assert len(contents) == len(set(names))


def test_a_failing_helper_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")
    voice = espeak.Voice("no-such-voice", 150, 50, 50, 1.0)
    with pytest.raises(DataError, match="no-such-voice"):
        list(espeak.synthesise([espeak.Job(str(tmp_path / "x.flac"), "hello", voice, 1, 1)]))


def test_without_the_extra_one_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'speechssl\[demo\]'"):
        build_demo_corpus(tmp_path, seed=1)
    assert not any(tmp_path.iterdir())


def test_the_helper_process_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, speechssl.demo.espeak; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_session_has_its_own_tone_and_noise() -> None:
    rng = np.random.default_rng(0)
    speech = (3000 * rng.standard_normal(22_050)).astype(np.int16)
    one, same, other = (finish_utterance(speech, 22_050, 1.0, session, 5) for session in (1, 1, 2))
    assert one.dtype == np.float32
    assert np.array_equal(one, same)
    assert np.abs(np.abs(np.fft.rfft(one)) - np.abs(np.fft.rfft(other))).max() > 1.0
    # A second of sound and 0.15 s of silence at each end.
    assert abs(len(one) - 1.3 * 16_000) < 200
    shorter = finish_utterance(speech, 22_050, 1.1, 1, 5)
    assert abs((len(shorter) - 4800) * 1.1 - 16_000) < 200


def test_the_helper_stops_when_nobody_listens(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")
    voice = espeak.Voice("en-us+f2", 200, 50, 50, 1.0)
    jobs = [espeak.Job(str(tmp_path / f"{number}.flac"), "hello", voice, 1, number) for number in range(3000)]
    made = espeak.synthesise(jobs)
    next(made)
    made.close()
    assert len(list(tmp_path.glob("*.flac"))) < 1000

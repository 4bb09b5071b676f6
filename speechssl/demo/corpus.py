"""Speech made on the spot: a LibriSpeech tree of many synthetic speakers, the same files for the same seed.

Speakers of `train`, `dev` and `test` are disjoint, and no sentence comes twice. Every speaker has several sessions
(chapters) that differ in tone, room, noise and level. `session` is one more session of each speaker of `train`: to
know a speaker again in it takes more than the sound of the room. `texts.txt` has further sentences, for a language
model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path

import soundfile

from speechssl.corpora.librispeech import TRANSCRIPT_SUFFIX, list_splits
from speechssl.demo.espeak import Job, Voice, require_espeak, synthesise
from speechssl.demo.text import make_sentences
from speechssl.durable import remove
from speechssl.errors import DataError
from speechssl.progress import track

FOLDER = "LibriSpeech"
_FINISHED = "demo.json"
_UNFINISHED = ".LibriSpeech.part"
"""Where the corpus is made until it is whole; what an interrupted start has left there is removed."""

_FIRST_SPEAKER = 101
_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbclan")
_MALE = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8")
_FEMALE = ("f1", "f2", "f3", "f4", "f5", "Annie")


@dataclass(frozen=True)
class Split:
    """One part of the corpus.

    Args:
        name: name of its folder.
        num_speakers: speakers that no other part has.
        num_chapters: sessions of each speaker.
        num_utterances: utterances in each session.
        speakers_of: part whose speakers these are, in sessions of their own; empty: new speakers.
    """

    name: str
    num_speakers: int
    num_chapters: int
    num_utterances: int
    speakers_of: str = ""


SPLITS = (
    Split("train", 32, 3, 10),
    Split("dev", 6, 2, 5),
    Split("test", 12, 2, 8),
    Split("session", 32, 1, 6, speakers_of="train"),
)
"""Some 42 minutes of training speech, 3 of dev, 8 of test and 8 of further sessions."""

TEXTS, NUM_TEXTS = "texts.txt", 5000
"""A file of so many sentences that nobody speaks, for a language model."""


@dataclass(frozen=True)
class Speaker:
    """A speaker: the number in LibriSpeech's file names, sex as SPEAKERS.TXT has it, and voice."""

    number: int
    sex: str
    voice: Voice


def build_demo_corpus(root: Path, seed: int, splits: Sequence[Split] | None = None) -> Path:
    """Make the corpus, or leave it alone where it is there already.

    Args:
        root: folder that gets a folder `LibriSpeech`.
        seed: the same seed and splits give bit-identical FLAC files (with one version of eSpeak NG and libsndfile).
        splits: parts and their sizes; None takes a corpus that is there in its size, and else makes `SPLITS`.

    Returns:
        the folder `LibriSpeech`.

    Raises:
        ConfigError: the extra `demo` is not installed.
        DataError: the folder holds something else, or eSpeak NG failed.
    """
    folder = root / FOLDER
    if _is_finished(folder, seed, splits):
        return folder
    require_espeak()
    splits = SPLITS if splits is None else splits
    place = root / _UNFINISHED
    remove(place)
    chapters = list(_plan(place, seed, splits))
    for chapter in chapters:
        Path(chapter[0].path).parent.mkdir(parents=True, exist_ok=True)
    jobs = [job for chapter in chapters for job in chapter]
    for _ in track(synthesise(jobs), "making speech", total=len(jobs), unit="utterances"):
        pass
    for chapter in chapters:
        _write_transcripts(chapter)
    _write_speakers(place, seed, splits)
    spoken = _count_utterances(splits)
    texts = make_sentences(spoken + NUM_TEXTS, seed)[spoken:]
    (place / TEXTS).write_text("".join(f"{text.upper()}\n" for text in texts), encoding="utf-8")
    (place / _FINISHED).write_text(json.dumps(_describe(seed, splits)) + "\n", encoding="utf-8")
    place.replace(folder)
    return folder


def make_speakers(num_speakers: int, seed: int) -> list[Speaker]:
    """Draw speakers: women and men in turn, no two with the same accent and variant until all are used."""
    draw = random.Random(f"demo speakers {seed}")
    pools = {}
    for sex, variants in (("F", _FEMALE), ("M", _MALE)):
        pools[sex] = [f"{accent}+{variant}" for accent in _ACCENTS for variant in variants]
        draw.shuffle(pools[sex])
    speakers = []
    for index in range(num_speakers):
        sex = "FM"[index % 2]
        names = pools[sex]
        tract = draw.uniform(0.93, 1.07)
        # The pitch that scaling takes or gives is not corrected: short tracts go with high voices.
        rate = round(draw.uniform(135, 185) / tract)
        voice = Voice(names[index // 2 % len(names)], rate, draw.randint(30, 70), draw.randint(30, 70), round(tract, 4))
        speakers.append(Speaker(_FIRST_SPEAKER + index, sex, voice))
    return speakers


def _describe(seed: int, splits: Sequence[Split]) -> dict[str, object]:
    return {"seed": seed, "splits": [asdict(split) for split in splits], "texts": NUM_TEXTS}


def _count_utterances(splits: Sequence[Split]) -> int:
    return sum(split.num_speakers * split.num_chapters * split.num_utterances for split in splits)


def _is_finished(folder: Path, seed: int, splits: Sequence[Split] | None) -> bool:
    """Say whether this corpus is there.

    Raises:
        DataError: another one is.
    """
    mark = folder / _FINISHED
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found["seed"] == seed and (splits is None or found == _describe(seed, splits)):
            return True
        raise DataError(f"`root` must be new or hold the same speech, but {folder} has another seed or size")
    if (folder / "SPEAKERS.TXT").exists() or list_splits(folder):
        raise DataError(f"`root` must be a new folder for the demo's speech, but {folder} holds another corpus")
    return False


def _plan(folder: Path, seed: int, splits: Sequence[Split]) -> Iterator[list[Job]]:
    """Yield the jobs of every chapter."""
    sentences = iter(make_sentences(_count_utterances(splits), seed))
    chapters = {split.name: split.num_chapters for split in splits}
    for split, speakers in _share_speakers(seed, splits):
        first = 1 + chapters.get(split.speakers_of, 0)
        for speaker, chapter in product(speakers, range(first, first + split.num_chapters)):
            place = folder / split.name / str(speaker.number) / str(chapter)
            stem = f"{speaker.number}-{chapter}"
            base = ((seed * 1009 + speaker.number) * 17 + chapter) * 1000
            yield [
                Job(str(place / f"{stem}-{n:04d}.flac"), next(sentences), speaker.voice, base, base + n)
                for n in range(split.num_utterances)
            ]


def _share_speakers(seed: int, splits: Sequence[Split]) -> Iterator[tuple[Split, list[Speaker]]]:
    """Give every part its speakers."""
    speakers = iter(make_speakers(sum(split.num_speakers for split in splits if not split.speakers_of), seed))
    given: dict[str, list[Speaker]] = {}
    for split in splits:
        if split.speakers_of:
            given[split.name] = given[split.speakers_of][: split.num_speakers]
        else:
            given[split.name] = list(islice(speakers, split.num_speakers))
        yield split, given[split.name]


def _write_transcripts(chapter: Sequence[Job]) -> None:
    """Write <speaker>-<chapter>.trans.txt beside the chapter's files."""
    lines = [f"{Path(job.path).stem} {job.text.upper()}\n" for job in chapter]
    first = Path(chapter[0].path)
    name = f"{first.stem.rpartition('-')[0]}{TRANSCRIPT_SUFFIX}"
    first.with_name(name).write_text("".join(lines), encoding="utf-8")


def _write_speakers(folder: Path, seed: int, splits: Sequence[Split]) -> None:
    """Write SPEAKERS.TXT in LibriSpeech's form, with the voice as the name."""
    lines = ["; speech made by eSpeak NG for speechssl's demo\n", ";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for split, speakers in _share_speakers(seed, splits):
        for speaker in () if split.speakers_of else speakers:
            paths = folder.glob(f"*/{speaker.number}/*/*.flac")
            minutes = sum(soundfile.info(path).duration for path in paths) / 60
            cells = (f"{speaker.number:<5}", f" {speaker.sex} ", f" {split.name:<17}", f" {minutes:<6.2f}")
            lines.append(f"{'|'.join(cells)}| {speaker.voice.name}\n")
    (folder / "SPEAKERS.TXT").write_text("".join(lines), encoding="utf-8")

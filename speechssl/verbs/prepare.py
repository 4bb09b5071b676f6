"""`speechssl prepare`: a corpus → manifests."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl.advice import spell
from speechssl.checkpoints.layout import RESULT
from speechssl.config.verbs import PrepareConfig
from speechssl.corpora.download import download_parts
from speechssl.corpora.folder import read_folder
from speechssl.corpora.librispeech import find_tree, read_splits
from speechssl.corpora.scan import Recording, Unreadable, scan_recordings
from speechssl.corpora.subset import ALL, describe, hold_out, parse_length, take_subsets
from speechssl.corpora.table import TABLE_SUFFIXES, check_places, read_table
from speechssl.data.files import find_audio
from speechssl.data.manifest import Manifest, save_manifest
from speechssl.durable import write_result
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import parsing, read_json
from speechssl.verbs.frame import verb
from speechssl.verbs.output import replacing_result, resolve_out

UNREADABLE_NAME = "unreadable.tsv"
"""Lists the files that could not be used, with the reason."""

LIST_SUFFIXES = TABLE_SUFFIXES | {".txt", ".json", ".jsonl"}
"""Files that somebody who names one as the corpus takes for a table."""

NAMED = 3
"""So many unreadable files are named on stderr."""

OWNERS = {
    "download": "librispeech",
    "download_url": "librispeech",
    "table": "table",
    "columns": "table",
    "speaker_pattern": "folder",
}
"""Keys that one corpus alone reads."""

Splits = Mapping[str, Sequence[Recording]]

_logger = logging.getLogger("speechssl")


@verb
def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Find the recordings of a corpus, read their headers, and write a manifest for each split and subset.

    Raises:
        ConfigError: keys contradict each other, or do not say which corpus it is.
        DataError: the corpus is not there, holds no audio that can be read, or is not what `corpus` says.
    """
    for name in config.subset:
        parse_length(name)
    corpus = config.corpus or guess_corpus(config)
    check_keys(config, corpus)
    out = resolve_out(config.out, "prepare", config.overwrite)
    root, splits = read_corpus(config, corpus, out)
    scans = {split: scan_recordings(recordings, root, split, config.channel) for split, recordings in splits.items()}
    unreadable = [item for scan in scans.values() for item in scan.unreadable]
    manifests, unit = _divide({split: scan.manifest for split, scan in scans.items()}, config)
    earlier = _list_earlier(out)
    with replacing_result(out):
        _report_unreadable(unreadable, out)
        result: dict[str, Any] = {
            "corpus": corpus,
            "root": str(root),
            "manifests": _save(manifests, out, config.format),
            "num_unreadable": len(unreadable),
            "held_out_by": unit,
            "out": str(out),
        }
        for file in earlier - _list_files(result, out):
            if not _is_input(file, config):
                file.unlink(missing_ok=True)
        write_result(out, result)
    return result


def guess_corpus(config: PrepareConfig) -> str:
    """Tell from the keys and the folder which corpus it is.

    Raises:
        ConfigError: nothing says which, or the folder may be two things.
        DataError: the folder is not there or holds no audio.
    """
    if config.download:
        return "librispeech"
    if config.table:
        return "table"
    if not config.root:
        raise ConfigError("`root` must be the folder that holds the corpus, but is not given")
    root = Path(config.root).absolute()
    if os.path.isfile(root) and root.suffix.lower() in LIST_SUFFIXES:
        return _say_guess("table", root)
    if not os.path.isdir(root):
        raise DataError(f"`root` must be the folder that holds the corpus, but {root} {_say_what(root)}")
    if find_tree(root):
        return _say_guess("librispeech", root)
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if tables:
        raise ConfigError(
            f"`corpus` must be folder or table for {root}, which holds {tables[0]}, but is not given: "
            f"say corpus=folder or {spell('table', str(root / tables[0]))}"
        )
    if not any(find_audio(root)):
        raise DataError(f"`root` must be a folder with audio, but {root} has none")
    return _say_guess("folder", root)


def check_keys(config: PrepareConfig, corpus: str) -> None:
    """Make sure that no key is given that the corpus does not read.

    Raises:
        ConfigError: one is; a key that has its default counts as not given.
    """
    defaults = PrepareConfig()
    for key, owner in OWNERS.items():
        value = getattr(config, key)
        if owner != corpus and value != getattr(defaults, key):
            guessed = "" if config.corpus else " (guessed)"
            raise ConfigError(f"`{key}` must be left out with corpus={corpus}{guessed}, but is {value!r}")
    if config.download_url != defaults.download_url and not config.download:
        raise ConfigError(f"`download_url` must be left out without `download`, but is {config.download_url!r}")


def read_corpus(config: PrepareConfig, corpus: str, out: Path) -> tuple[Path, Splits]:
    """List the recordings of a corpus by split, and the folder that their paths start from."""
    match corpus:
        case "librispeech":
            return _read_librispeech(config)
        case "demo":
            from speechssl.demo.corpus import build_demo_corpus

            tree = build_demo_corpus(Path(config.root) if config.root else out / "speech", config.seed).resolve()
            return tree, read_splits(tree, config.splits)
        case "table":
            return _read_table(config)
        case _:
            root = _find_root(config)
            return root, _choose_splits({ALL: read_folder(root, config.speaker_pattern)}, config.splits)


def _read_librispeech(config: PrepareConfig) -> tuple[Path, Splits]:
    if config.download:
        if not config.root:
            raise ConfigError("`root` must be the folder to download to, but is not given")
        tree = download_parts(config.download, Path(config.root), config.download_url).resolve()
        return tree, read_splits(tree, config.splits)
    root = _find_root(config)
    tree, split = find_tree(root) or (root, "")
    return tree, read_splits(tree, config.splits or ([split] if split else []))


def _read_table(config: PrepareConfig) -> tuple[Path, Splits]:
    path = Path(config.table or config.root)
    if not (config.table or config.root):
        raise ConfigError("`table` must be the CSV or TSV file that lists the audio, but is not given")
    root = _find_root(config) if config.table and config.root else path.parent.resolve()
    splits = read_table(path, root, config.columns)
    check_places(path, root, (recording.path for split in splits.values() for recording in split))
    return root, _choose_splits(splits, config.splits)


def _find_root(config: PrepareConfig) -> Path:
    """Return the folder `root`, absolute.

    Raises:
        ConfigError: it is not given.
        DataError: it is no folder.
    """
    if not config.root:
        raise ConfigError("`root` must be the folder that holds the corpus, but is not given")
    root = Path(config.root)
    if not os.path.isdir(root):
        raise DataError(f"`root` must be the folder that holds the corpus, but {root} {_say_what(root)}")
    return root.resolve()


def _choose_splits(splits: Splits, wanted: Sequence[str]) -> Splits:
    """Keep the splits that are asked for; all without a wish.

    Raises:
        DataError: one is not there.
    """
    missing = [split for split in wanted if split not in splits]
    if missing:
        raise DataError(f"`splits` must be some of {', '.join(splits)}, but one is {missing[0]!r}")
    return {split: splits[split] for split in (wanted or splits)}


def _divide(manifests: dict[str, Manifest], config: PrepareConfig) -> tuple[dict[str, Manifest], str | None]:
    """Hold out a share and add subsets, as asked for; also says what was held out, speakers or files."""
    unit = None
    if config.valid_share > 0:
        held_out = hold_out(manifests, config.valid_share, config.seed)
        manifests, unit = held_out.manifests, held_out.unit
    if config.subset:
        manifests = {**manifests, **take_subsets(manifests, config.subset, config.seed)}
    return manifests, unit


def _save(manifests: Mapping[str, Manifest], out: Path, suffix: str) -> dict[str, Any]:
    """Write the manifests and describe each."""
    described = {}
    for name, manifest in manifests.items():
        path = out / f"{name}.{suffix}"
        save_manifest(manifest, path)
        described[name] = {"path": str(path), **describe(manifest)}
    return described


def _list_earlier(out: Path) -> set[Path]:
    """List the files that an earlier result of `prepare` in a folder tells of."""
    path = out / RESULT
    try:
        with parsing(str(path), "a result of `prepare`"):
            earlier = read_json(path)
            return _list_files(earlier, out) if "held_out_by" in earlier else set()
    except DataError:  # none, or damaged: nothing that it may have told of is touched
        return set()


def _list_files(result: Mapping[str, Any], out: Path) -> set[Path]:
    """List the files beside a result of `prepare`, by their names alone: the folder may have been moved since."""
    names = [Path(manifest["path"]).name for manifest in result["manifests"].values()]
    return {out / name for name in (*names, *([UNREADABLE_NAME] if result["num_unreadable"] else []))}


def _is_input(file: Path, config: PrepareConfig) -> bool:
    """Say whether a file is what this command reads: somebody has made a table of an earlier manifest."""
    return file.exists() and any(
        Path(path).exists() and file.samefile(path) for path in (config.table, config.root) if path
    )


def _report_unreadable(unreadable: Sequence[Unreadable], out: Path) -> None:
    """Count and name the files that could not be used; all of them are listed in a file."""
    if not unreadable:
        return
    lines = [f"{ascii(str(item.path))[1:-1]}\t{' '.join(item.reason.split())}\n" for item in unreadable]
    (out / UNREADABLE_NAME).write_text("".join(lines), encoding="utf-8")
    _logger.warning("%d files cannot be used and are left out; %s lists them", len(unreadable), out / UNREADABLE_NAME)
    for item in unreadable[:NAMED]:
        _logger.warning("left out: %s", item.reason)


def _say_guess(corpus: str, root: Path) -> str:
    _logger.info("corpus=%s, to judge by %s", corpus, root)
    return corpus


def _say_what(path: Path) -> str:
    return "is a file" if os.path.exists(path) else "is not there"

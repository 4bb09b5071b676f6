"""Peak memory of `embed` over a long file, many short ones, and one of a minute, side by side.

    python -m tests.benchmarks.embedding_memory runs/base speech.flac --hours 3 --files 5000

Each is a process of its own, whose peak the system tells (`ru_maxrss`). The long file and the short ones are cut from
what is given, again and again. Prints JSON: MiB for each, and how much more than for a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

MEASURE = """
import resource, sys
from speechssl.cli.main import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=open(sys.argv.pop(), "w"))
"""


def measure(checkpoint: str, audio: Path, keys: list[str], folder: Path) -> float:
    """Embed audio in a process of its own, and give its peak in MiB."""
    note = folder / "peak"
    code = MEASURE.replace("sys.argv.pop()", repr(str(note)))
    given = [f"checkpoint={checkpoint}", f"audio=[{audio}]", f"out={folder / 'x.parquet'}", "overwrite=true", *keys]
    subprocess.run([sys.executable, "-c", code, "embed", *given], check=True, env=os.environ)
    return int(note.read_text()) / 1024


def main() -> None:
    """Make the audio, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("speech", type=Path)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("keys", nargs="*", help="of `embed`, such as pooling=frames")
    args = parser.parse_intermixed_args()
    speech, rate = soundfile.read(args.speech, dtype="float32")
    minute = np.resize(speech, 60 * rate)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soundfile.write(folder / "minute.flac", minute, rate)
        with soundfile.SoundFile(folder / "long.flac", "w", rate, 1) as file:
            for _ in range(round(60 * args.hours)):
                file.write(minute)
        (folder / "short").mkdir()
        for number in range(args.files):
            first = number * rate // 7 % (58 * rate)
            soundfile.write(folder / "short" / f"{number}.flac", minute[first : first + 2 * rate], rate)
        names = ["minute.flac", "long.flac", *(["short"] if args.files else [])]
        found = {place: measure(args.checkpoint, folder / place, args.keys, folder) for place in names}
    more = {place: round(peak - found["minute.flac"]) for place, peak in found.items()}
    print(json.dumps({"hours": args.hours, "files": args.files, "keys": args.keys, "peak_mib": found, "more": more}))


if __name__ == "__main__":
    main()

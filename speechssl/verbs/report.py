"""`speechssl report`: run folders → one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechssl.config.verbs import ReportConfig
from speechssl.errors import ConfigError
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out


@verb
def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page and return where it is.

    Raises:
        ConfigError: no run is given, one is not there, or the page cannot be written.
    """
    from speechssl.report.page import build_report

    if not config.run:
        raise ConfigError("`run` must be one or more run folders, but none is given")
    first = Path(config.run[0])
    if not config.out and not first.is_dir():
        raise ConfigError(f"`run` must be a run folder, but {first} is {'a file' if first.exists() else 'not there'}")
    if config.out and Path(config.out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"`out` must be an .html file, but is {config.out}")
    out = resolve_out(config.out or str(first / "report.html"), "report", config.overwrite, is_file=True)
    page = build_report(config.run, out)
    return {"runs": list(config.run), "out": str(page), "num_bytes": page.stat().st_size}

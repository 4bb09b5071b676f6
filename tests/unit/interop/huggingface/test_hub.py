"""Models of the Hub: fetched from a local server that speaks its protocol, cached, found again without it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from speechssl.checkpoints.model_folder import save_model
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop import load as entrance
from speechssl.interop.huggingface import hub as hub_module
from speechssl.interop.huggingface.folder import write_huggingface
from speechssl.interop.huggingface.hub import fetch_from_hub, is_hub_id, push_to_hub
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case
from tests.unhooked import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server with one model, and what was asked of it."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    url: str = ""
    made: dict[str, object] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Take what is sent: a repository to make, the list of files, and a commit of them."""
        path = request.path.partition("?")[0]
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Authorization") != "Bearer hf_secret":
            send(request, b'{"error": "Invalid username or password."}', 401)
        elif path == "/api/repos/create":
            self.made = json.loads(body)
            send(request, json.dumps({"url": f"{self.url}/{self.made['organization']}/{self.made['name']}"}).encode())
        elif path == "/api/validate-yaml":
            send(request, b'{"errors": [], "warnings": []}')
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            rows = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            send(request, json.dumps({"files": rows}).encode())
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.url}/tiny/new/commit/{COMMIT}", "commitOid": COMMIT, "pullRequestUrl": None}
            send(request, json.dumps(answer).encode())
        else:
            send(request, b'{"error": "no such thing"}', 404)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request: the list of files, or one of them."""
        path = request.path.partition("?")[0]
        self.asked.append(path)
        files = sorted(file.name for file in self.folder.iterdir())
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/tiny/asr/tree/"):
            rows = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0"} for n in files]
            send(request, json.dumps(rows).encode())
        elif path.startswith("/api/models/tiny/asr"):
            model = {"id": "tiny/asr", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            send(request, json.dumps({**model, "private": False, "gated": False, "tags": [], "downloads": 0}).encode())
        elif path.startswith("/tiny/asr/resolve/") and name in files:
            send(request, (self.folder / name).read_bytes())
        else:
            send(request, b'{"error": "Repository not found"}', 404)


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Content-Type", "application/json")
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
    if status == 404:
        request.send_header("X-Error-Code", "RepoNotFound")
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, tiny_model_config: ModelConfig) -> Iterator[Hub]:
    """A local Hub with `tiny/asr`, which holds a file that nobody needs."""
    served = Hub(tmp_path / "served")
    write_huggingface(SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])), served.folder)
    (served.folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    (served.folder / "README.md").write_text("a model")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.answer(self)

        def do_HEAD(self) -> None:
            served.answer(self)

        def do_POST(self) -> None:
            served.take(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield served
        server.shutdown()


def fetch(name: str, home: Path, **variables: str) -> str:
    """Fetch in a process of its own, since the client reads its environment once; gives the folder or the error."""
    pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    code = f"""
from speechssl.errors import CheckpointError
from speechssl.interop.huggingface.hub import fetch_from_hub
try:
    print(fetch_from_hub({name!r}))
except CheckpointError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", **variables}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_model_is_fetched_once_and_found_without_the_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    folder = fetch("tiny/asr", home, HF_ENDPOINT=hub.url)
    assert Path(folder).is_relative_to(home)
    assert not any("pytorch_model.bin" in path or "README" in path for path in hub.asked)
    hub.asked.clear()
    assert fetch("tiny/asr", home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == folder
    assert hub.asked == []
    monkeypatch.setattr(entrance, "fetch_from_hub", lambda *_: Path(folder))
    model = load_model("tiny/asr")
    assert model.vocabulary == build_vocabulary(TextConfig(), [])


def convert(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `convert` in a process of its own."""
    environment = {"HF_HOME": str(place / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "*", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "speechssl", "convert", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=place, env={**os.environ, **environment, **variables}, timeout=120
    )


@pytest.mark.slow
def test_a_folder_is_pushed_into_a_private_repository(hub: Hub, tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    save_model(SpeechModel(replace(tiny_model_config, front_end="log_mel")), tmp_path / "model")
    words = ("model", "huggingface", "out=hf", "push=tiny/new")
    done = convert(tmp_path, *words, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["url"] == f"{hub.url}/tiny/new"
    assert (hub.made["name"], hub.made["organization"]) == ("new", "tiny")
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    names = ["README.md", "config.json", "model.safetensors", "modeling_speechssl.py", "preprocessor_config.json"]
    assert sorted(hub.sent) == names
    assert all((tmp_path / "hf" / name).read_bytes() == content for name, content in hub.sent.items())
    # Not allowed: a sentence, and the folder stays.
    done = convert(tmp_path, *words, "overwrite=true", HF_ENDPOINT=hub.url, HF_TOKEN="hf_other")
    assert done.returncode == 2
    assert "`push` must be a repository that can be written, but tiny/new is not" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "hf" / "model.safetensors").exists()


def test_what_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    said = fetch("tiny/nothing", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert said.startswith("`checkpoint` must be something that is here or a model of the Hub, but tiny/nothing")
    said = fetch("tiny/asr", tmp_path / "home", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert said.startswith("`checkpoint` must be something that is here or a model of the Hub, but tiny/asr")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'speechssl\[hub\]'"):
        fetch_from_hub("facebook/wav2vec2-base-960h")
    monkeypatch.setattr(hub_module, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"`push` must be empty where huggingface_hub is missing: pip install 's"):
        push_to_hub(Path(), "tiny/new")


@each_case(
    "value, expected",
    [
        ("facebook/wav2vec2-base-960h", True),
        ("facebook/wav2vec2-base@1a2b3c", True),
        ("runs/smal", False),
        ("nowhere", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("../b", False),
    ],
)
def test_a_path_that_was_mistyped_is_not_looked_for_in_the_hub(
    value: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id(value) is expected

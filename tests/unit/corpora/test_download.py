import contextlib
import functools
import hashlib
import http.client
import io
import shutil
import ssl
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl.corpora import download
from speechssl.corpora.download import ARCHIVES, Archive, download_parts, unpack
from speechssl.corpora.librispeech import list_splits
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case

PATH = "/31/dev-clean-2.tar.gz"

ENDLESS = "…".encode()


@dataclass
class Server:
    """What the local server gives, and what it was asked for."""

    content: bytes
    break_after: int | None = None
    knows_ranges: bool = True
    status: int = 200
    reason: str | None = None
    answer: bytes | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Gives one archive, from the byte that is asked for, and may drop the connection once."""

    def __init__(self, state: Server, *arguments: object) -> None:
        self.state = state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        state, asked = self.state, self.headers.get("Range", "")
        state.requests.append(f"{self.path} {asked}".strip())
        if state.status != 200 or self.path != PATH:
            self.send_error(state.status if state.status != 200 else 404, state.reason)
            return
        if state.answer is not None:
            self.answer_raw(state.answer)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
        if start >= len(state.content):
            self.send_error(416)
            return
        body = state.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, state.break_after = state.break_after, None
        self.wfile.write(body if cut is None else body[:cut])

    def answer_raw(self, answer: bytes) -> None:
        """Send bytes as they are; an answer that ends with `…` goes on until the other side has had enough."""
        self.wfile.write(answer.removesuffix(ENDLESS))
        with contextlib.suppress(OSError):
            while answer.endswith(ENDLESS):
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def make_archive(names: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Give a server that has the part dev-clean-2, whose sum is the one that is expected."""
    noise = hashlib.shake_256(b"seed").digest(60_000)
    state = Server(make_archive({
        "LibriSpeech/dev-clean-2/84/1/84-1-0000.flac": noise,
        "LibriSpeech/dev-clean-2/84/1/84-1.trans.txt": b"84-1-0000 HELLO\n",
        "LibriSpeech/SPEAKERS.TXT": b"84 | F | dev-clean-2 | 1.0 | Ann\n",
    }))  # fmt: skip
    expect(monkeypatch, state.content)
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    local = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state))
    state.url = f"http://127.0.0.1:{local.server_port}"
    thread = threading.Thread(target=local.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    local.shutdown()
    thread.join()
    local.server_close()


def expect(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setitem(ARCHIVES, "dev-clean-2", Archive(31, hashlib.md5(content).hexdigest(), 1))


def test_a_part_is_fetched_once_and_unpacked(tmp_path: Path, server: Server) -> None:
    tree = download_parts(["dev-clean-2", "dev-clean-2"], tmp_path, server.url)
    assert tree == tmp_path / "LibriSpeech"
    assert list_splits(tree) == ["dev-clean-2"]
    assert (tree / "SPEAKERS.TXT").is_file()
    (tmp_path / "dev-clean-2.tar.gz").unlink()
    download_parts(["dev-clean-2"], tmp_path, server.url + "/")
    assert server.requests == [PATH]
    assert [path.name for path in tmp_path.iterdir()] == ["LibriSpeech"]


def test_an_archive_that_is_there_is_not_fetched(tmp_path: Path, server: Server) -> None:
    (tmp_path / "dev-clean-2.tar.gz").write_bytes(server.content)
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]
    assert server.requests == []


def test_a_broken_connection_is_resumed_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.break_after = 20_000
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]
    assert server.requests == [PATH, f"{PATH} bytes=20000-"]


@each_case("error", [ssl.SSLError("record layer failure"), OSError(113, "No route to host")])
def test_what_tls_and_routes_say_is_a_broken_connection(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    server.requests.clear()
    read, errors = http.client.HTTPResponse.readinto, [None, error]

    def read_once(response: http.client.HTTPResponse, block: memoryview) -> int:
        if errors and (trouble := errors.pop(0)):
            raise trouble
        return read(response, block)

    monkeypatch.setattr(download, "BLOCK", 20_000)
    monkeypatch.setattr(http.client.HTTPResponse, "readinto", read_once)
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]
    assert server.requests == [PATH, f"{PATH} bytes=20000-"]


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, server: Server) -> None:
    partial = tmp_path / "dev-clean-2.tar.gz.part"
    partial.mkdir()
    with pytest.raises(DataError, match=rf"^{partial} must be readable and writable, but is not: Is a directory$"):
        download_parts(["dev-clean-2"], tmp_path, server.url)
    assert len(server.requests) == 1, "the server cannot help"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_gets_a_sentence(tmp_path: Path, server: Server) -> None:
    partial = tmp_path / "dev-clean-2.tar.gz.part"
    partial.symlink_to("/dev/full")
    with pytest.raises(DataError, match=rf"^{partial} must be .* but is not: No space left on device$"):
        download_parts(["dev-clean-2"], tmp_path, server.url)


def test_a_second_run_goes_on_with_what_the_first_one_left(tmp_path: Path, server: Server) -> None:
    (tmp_path / "dev-clean-2.tar.gz.part").write_bytes(server.content[:30_000])
    download_parts(["dev-clean-2"], tmp_path, server.url)
    assert server.requests == [f"{PATH} bytes=30000-"]


def test_a_whole_part_is_recognised(tmp_path: Path, server: Server) -> None:
    (tmp_path / "dev-clean-2.tar.gz.part").write_bytes(server.content)
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]


def test_a_server_without_ranges_sends_everything_again(tmp_path: Path, server: Server) -> None:
    server.knows_ranges = False
    (tmp_path / "dev-clean-2.tar.gz.part").write_bytes(b"x" * 30_000)
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]


def test_a_corrupted_archive_is_deleted_and_named(tmp_path: Path, server: Server) -> None:
    right = server.content
    server.content = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(
        DataError, match=r"dev-clean-2\.tar\.gz must have the MD5 sum [0-9a-f]{32}, but .* it is deleted"
    ):
        download_parts(["dev-clean-2"], tmp_path, server.url)
    assert not list(tmp_path.glob("*.tar.gz*"))
    server.content = right
    assert list_splits(download_parts(["dev-clean-2"], tmp_path, server.url)) == ["dev-clean-2"]


@each_case("name", ["../evil", "/tmp/evil", "LibriSpeech/dev-clean-2/../../../../evil"])
def test_an_archive_cannot_write_outside(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server.content = make_archive({"LibriSpeech/dev-clean-2/1/1/1-1-0.flac": b"x", name: b"evil"})
    expect(monkeypatch, server.content)
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    if name.startswith("/"):
        # The filter strips the leading slash: the member lands inside, where nothing takes it up.
        download_parts(["dev-clean-2"], root, server.url)
    else:
        with pytest.raises(DataError, match="must be an archive that can be unpacked, but is not"):
            download_parts(["dev-clean-2"], root, server.url)
        assert not (root / "LibriSpeech" / "dev-clean-2").exists()
    assert not [path for path in tmp_path.rglob("evil*")]
    assert not list(root.glob(".*"))


def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = make_archive({"LibriSpeech/README.TXT": b"x"})
    expect(monkeypatch, server.content)
    with pytest.raises(DataError, match=r"must hold LibriSpeech/dev-clean-2, but does not"):
        download_parts(["dev-clean-2"], tmp_path, server.url)


@each_case("status, tries", [(404, 1), (403, 1), (503, 5)])
def test_a_server_that_refuses_is_named(tmp_path: Path, server: Server, status: int, tries: int) -> None:
    server.status = status
    server.requests.clear()
    with pytest.raises(DataError, match=rf"dev-clean-2\.tar\.gz must be there, but the server answers {status}"):
        download_parts(["dev-clean-2"], tmp_path, server.url)
    assert len(server.requests) == tries


def test_a_server_out_of_reach_is_named(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="must be reachable, but is not .*; the same command resumes"):
        download_parts(["dev-clean-2"], tmp_path, "http://127.0.0.1:1")


@each_case(
    "url",
    ["", "foo", "server/path", "gopher://server", "http://", "http:///path", "http://a:b", "http://[::1", "http://a..b",
     "http://server/ä", "http://server/a b"],
)  # fmt: skip
def test_what_is_no_url_gets_a_sentence(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="`download_url` must be a URL such as https://server/folder, but is '"):
        download_parts(["dev-clean-2"], tmp_path / "ls", url)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_a_server_too(tmp_path: Path, server: Server) -> None:
    (tmp_path / "mirror" / "31").mkdir(parents=True)
    (tmp_path / "mirror" / PATH[1:]).write_bytes(server.content)
    tree = download_parts(["dev-clean-2"], tmp_path / "ls", (tmp_path / "mirror").as_uri())
    assert list_splits(tree) == ["dev-clean-2"]


@each_case("root", ["file", "file/below", "ls"])
def test_a_root_that_is_a_file_gets_a_sentence(tmp_path: Path, root: str) -> None:
    (tmp_path / "ls").mkdir()
    for name in ("file", "ls/LibriSpeech"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        DataError, match="`root` must be a folder to download to, but .*: (Not a directory|File exists)"
    ):
        download_parts(["dev-clean-2"], tmp_path / root, "http://127.0.0.1:1")


def test_an_unknown_part_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`download` must be some of dev-clean, .*, but one is 'train-clean'"):
        download_parts(["train-clean"], tmp_path, "http://127.0.0.1:1")
    assert not list(tmp_path.iterdir())


def test_every_published_sum_is_a_sum() -> None:
    assert all(len(archive.md5) == 32 and int(archive.md5, 16) for archive in ARCHIVES.values())
    assert len({archive.md5 for archive in ARCHIVES.values()}) == len(ARCHIVES)


HOSTILE = {
    "a length of letters": (b"200 OK\r\nContent-Length: abc\r\n\r\n", "must have a length, but .* announces .abc."),
    "a negative length": (b"200 OK\r\nContent-Length: -5\r\n\r\nx", "must have a length, but .* '-5'"),
    "a length with a sign and a bar": (b"200 OK\r\nContent-Length: +1_0\r\n\r\nx", "must have a length"),
    "a digit that is none": (b"200 OK\r\nContent-Length: \xb2\r\n\r\nx", "must have a length"),
    "a length of 5,000 digits": (b"200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "must have a length"),
    "a length of a petabyte": (b"200 OK\r\nContent-Length: 1000000000000000\r\n\r\n", "must have a length"),
    "a length of a terabyte": (
        b"200 OK\r\nContent-Length: 1000000000000\r\n\r\n",
        "must have at most 1153433 bytes, but the server announces 1000000000000",
    ),
    "no length and no end": (b"200 OK\r\n\r\n" + ENDLESS, "must have at most 1153433 bytes, but the server sends more"),
    "a chunk of -1 bytes": (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + ENDLESS, "reachable|at most"),
    "a chunk that is no number": (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "must be reachable"),
    "half an address": (b"302 Found\r\nLocation: http://[\r\n\r\n", "must be a file that can be fetched, but is not"),
    "a port that is none": (b"302 Found\r\nLocation: http://a:b/\r\n\r\n", "must be reachable"),
    "a file of this machine": (b"302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "the server answers 302"),
    "itself": (b"302 Found\r\nLocation: " + PATH.encode() + b"\r\n\r\n", "the server answers 302"),
    "nowhere": (b"302 Found\r\n\r\n", "the server answers 302"),
    "a line without end": (b"200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "must be reachable"),
    "200 headers": (b"200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "must be reachable"),
    "a status that is none": (b"abc OK\r\n\r\n", "must be reachable"),
    "nothing": (b"200 OK\r\nContent-Length: 0\r\n\r\n", "must have the MD5 sum"),
    "a name of its own": (b"200 OK\r\nContent-Disposition: x; filename=../evil\r\n\r\nx", "must have the MD5 sum"),
    "another part than was asked for": (b"206 Partial\r\nContent-Range: bytes 7-8/9\r\n\r\nx", "must have the MD5 sum"),
}  # fmt: skip
"""What a server answers after the version of HTTP, and the sentence."""


# urllib keeps the answers of a chain of redirections, and closes them when it is done with them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@each_case("name", HOSTILE)
def test_what_a_hostile_server_says_is_one_short_sentence(name: str, tmp_path: Path, server: Server) -> None:
    answer, sentence = HOSTILE[name]
    server.answer = b"HTTP/1.0 " + answer
    with pytest.raises(DataError, match=sentence) as caught:
        download_parts(["dev-clean-2"], tmp_path / "ls", server.url)
    assert len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["ls"]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 * 1024 * 1024


def test_a_reason_is_cut_short(tmp_path: Path, server: Server) -> None:
    server.status, server.reason = 404, "no " * 2000
    with pytest.raises(DataError, match="the server answers 404 no no") as caught:
        download_parts(["dev-clean-2"], tmp_path, server.url)
    assert len(str(caught.value)) < 300


def make_bomb(kind: str) -> bytes:
    """A small archive with a part in it, and something large: a file, a hole, a name, or thousands of headers."""
    stream = io.BytesIO()
    size = 64 << 20
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        part = tarfile.TarInfo("LibriSpeech/dev-clean-2/1/1/1-1.trans.txt")
        tar.addfile(part)
        member = tarfile.TarInfo("LibriSpeech/dev-clean-2/1/1/1-1-0.flac")
        if kind == "name":
            member.pax_headers = {"comment": "x" * size}
        elif kind == "headers":
            for number in range(3_000):
                tar.addfile(tarfile.TarInfo(f"LibriSpeech/dev-clean-2/1/1/{number}"))
        else:
            member.size = size
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


@each_case("kind", ["file", "name", "headers"])
def test_an_archive_that_unpacks_to_more_than_speech_does_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(make_bomb(kind))
    (tmp_path / "LibriSpeech").mkdir()
    if kind == "name":
        tracemalloc.start()
    with pytest.raises(
        DataError, match=r"a\.tar\.gz must unpack to what speech takes, but unpacks to more than \d+ bytes"
    ):
        unpack(tmp_path / "a.tar.gz", "dev-clean-2", tmp_path)
    if kind == "name":
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["LibriSpeech", "a.tar.gz"]


def test_a_limit_leaves_room_for_what_archives_of_speech_are(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, as FLAC is, with ten times as much of text and headers as LibriSpeech has, and no room to spare."""
    monkeypatch.setattr(download, "ROOM", 1 << 16)
    noise = hashlib.shake_256(b"speech").digest(2_000_000)
    names = {f"LibriSpeech/dev-clean-2/1/1/1-1-{n}.flac": noise[n * 20_000 :][:20_000] for n in range(100)}
    (tmp_path / "a.tar.gz").write_bytes(make_archive(names))
    (tmp_path / "LibriSpeech").mkdir()
    unpack(tmp_path / "a.tar.gz", "dev-clean-2", tmp_path)
    assert len(list((tmp_path / "LibriSpeech").rglob("*.flac"))) == 100


def test_no_room_for_what_is_unpacked_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar.gz").write_bytes(make_archive({"LibriSpeech/dev-clean-2/1/1/1-1-0.flac": b"x"}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DataError, match="`root` must have room for"):
        unpack(tmp_path / "a.tar.gz", "dev-clean-2", tmp_path)

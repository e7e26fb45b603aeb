"""One file over a real line: cut, stalled, redirected, refused, changed on the way."""

from __future__ import annotations

import errno
import random
import re
import shutil
import socket
import ssl
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_server import Server, serving
from hypothesis import given, settings
from hypothesis import strategies as st

import spineps
from spineps.errors import OutputError
from spineps.models import download
from spineps.models.download import DownloadError, Patience, discard, fetch

CONTENT = random.Random(0).randbytes(300_000)
QUICK = Patience(timeout=0.3, attempts=3, pause=0.01)
HALF = len(CONTENT) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "x.part"


def test_a_file_arrives_and_progress_ends_at_its_size(server: Server, part: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(server.url("/a.zip", CONTENT), part, QUICK, lambda done, total: seen.append((done, total)))
    assert part.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    fetch(server.address + "/a.zip", part, QUICK)  # complete: nothing is asked again
    assert len(server.seen) == 1


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_a_broken_line_is_taken_up_where_it_broke(server: Server, part: Path, fault: str, validator: str) -> None:
    server.validator, server.faults = validator, [fault]
    start = time.perf_counter()
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT
    assert server.seen == [("/a.zip", None, HALF), ("/a.zip", f"bytes={HALF}-", len(CONTENT) - HALF)]
    assert time.perf_counter() - start < 3  # a stall is noticed after the timeout, not when the server gives up


def test_a_later_call_goes_on_too(server: Server, part: Path) -> None:
    address = server.url("/a.zip", CONTENT)
    server.faults = ["cut"]
    with pytest.raises(DownloadError, match=r"cut after 150000 of 300000.*goes on from where it stopped"):
        fetch(address, part, Patience(timeout=0.3, attempts=1))
    assert part.stat().st_size == HALF
    fetch(address, part, QUICK)
    assert part.read_bytes() == CONTENT and server.seen[-1][1] == f"bytes={HALF}-"


def test_the_part_of_another_address_is_thrown_away(server: Server, part: Path) -> None:
    server.faults = ["cut"]
    with pytest.raises(DownloadError):
        fetch(server.url("/a.zip", CONTENT), part, Patience(attempts=1))
    fetch(server.url("/b.zip", CONTENT[::-1]), part, QUICK)
    assert part.read_bytes() == CONTENT[::-1] and server.seen[-1][1] is None


def test_a_server_that_ignores_if_range_is_found_out(server: Server, part: Path) -> None:
    server.if_range, server.faults = False, ["swap"]
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT[::-1]
    assert [asked for _, asked, _ in server.seen] == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_between_the_halves_is_never_mixed(server: Server, part: Path, ranges: bool) -> None:
    server.ranges, server.faults = ranges, ["swap"]
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT[::-1]
    assert server.seen[-1] == ("/a.zip", f"bytes={HALF}-", len(CONTENT))


def test_a_server_without_ranges_starts_again(server: Server, part: Path) -> None:
    server.ranges, server.faults = False, ["cut"]
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT and server.seen[-1][2] == len(CONTENT)


@pytest.mark.parametrize("validator", [None, "ETag"])
def test_without_a_sure_version_nothing_is_taken_up(server: Server, part: Path, validator: str | None) -> None:
    server.validator, server.weak, server.faults = validator, True, ["swap"]
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT[::-1] and server.seen[-1][1] is None


def test_a_part_that_was_not_asked_for_is_not_appended(server: Server, part: Path) -> None:
    server.faults = ["cut", "shift"]
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT and [asked for _, asked, _ in server.seen] == [None, f"bytes={HALF}-", None]


def test_a_part_that_is_too_long_is_not_trusted(server: Server, part: Path) -> None:
    address = server.url("/a.zip", CONTENT)
    fetch(address, part, QUICK)
    with part.open("ab") as out:
        out.write(b"more")
    fetch(address, part, QUICK)
    assert part.read_bytes() == CONTENT


def test_a_file_without_a_length_arrives(server: Server, part: Path) -> None:
    server.length = False
    for _ in range(2):
        fetch(server.url("/a.zip", CONTENT), part, QUICK)
        assert part.read_bytes() == CONTENT
    assert len(server.seen) == 1


def test_redirects_are_followed_with_the_range(server: Server, part: Path) -> None:
    server.redirects["/release"] = server.url("/a.zip", CONTENT)
    server.faults = [None, "cut"]
    fetch(server.address + "/release", part, QUICK)
    assert part.read_bytes() == CONTENT
    assert [path for path, _, _ in server.seen] == ["/release", "/a.zip"] * 2 and server.seen[-1][1] == f"bytes={HALF}-"


def test_redirects_never_lead_to_the_disk_or_in_circles(server: Server, part: Path) -> None:
    server.redirects = {"/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/x", "/circle": "/circle"}
    for path, why in (("/file", "not allowed"), ("/ftp", "not safe"), ("/circle", "302")):
        with pytest.raises(DownloadError, match=why):
            fetch(server.address + path, part, QUICK)
    with pytest.raises(DownloadError, match="not safe"):
        download._Redirects().redirect_request(
            download.Request("https://a.example/x"), None, 302, "", {}, "http://a.example/x"
        )


@pytest.mark.parametrize(
    ("status", "cure"),
    [(404, "newer spineps"), (410, "newer spineps"), (403, "firewall"), (401, "login"), (407, "PROXY")],
)
def test_what_will_not_pass_is_not_tried_again(server: Server, part: Path, status: int, cure: str) -> None:
    server.faults = [status] * 3
    with pytest.raises(DownloadError, match=f"answered {status}.*{cure}.*--from FILE"):
        fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert len(server.seen) == 1 and not part.exists()


def test_an_ill_server_is_asked_again(server: Server, part: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.faults, server.retry_after = [500, 503], "0"
    fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert part.read_bytes() == CONTENT and "answered 500" in caplog.text and "answered 503" in caplog.text


def test_retries_are_bounded_and_progress_counts(server: Server, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.url("/a.zip", CONTENT)
    server.faults = [500] * 9
    with pytest.raises(DownloadError, match="3 attempts"):
        fetch(address, part, QUICK)
    assert len(server.seen) == 3
    server.faults = ["cut"] * 9
    with pytest.raises(DownloadError, match="3 attempts"):
        fetch(address, part, QUICK)
    discard(part)
    monkeypatch.setattr(download, "WORTHWHILE", 500)
    server.faults = ["cut"] * 8  # a line that breaks eight times but brings something each time
    fetch(address, part, QUICK)
    assert part.read_bytes() == CONTENT


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["cut", "shift", "swap", 500, 416, None]), max_size=6), st.booleans(), st.booleans())
def test_whatever_happens_the_file_is_one_version_and_whole(faults: list, ranges: bool, tagged: bool) -> None:
    import tempfile

    content = CONTENT[:5000]
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        server.faults, server.ranges, server.validator = list(faults), ranges, "ETag" if tagged else None
        part = Path(folder) / "x.part"
        fetch(server.url("/a", content), part, Patience(timeout=2, attempts=9, pause=0))
        assert part.read_bytes() in (content, content[::-1])


def test_no_server_no_name_no_address(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DownloadError, match=r"line failed.*3 attempts"):
        fetch(f"http://127.0.0.1:{port}/a.zip", part, QUICK)

    def unknown(*args: object, **how: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"weights\.example cannot be found.*HTTPS_PROXY.*--from FILE"):
        fetch("https://weights.example/a.zip", part, QUICK)
    for wrong in ("ftp://x/y", "file:///etc/passwd", "http://a b/c", "http://x:port/"):
        with pytest.raises(DownloadError, match="address"):
            fetch(wrong, part, QUICK)


def test_a_connection_that_never_speaks(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/a.zip"
        with pytest.raises(DownloadError, match=r"nothing came for 0\.1 s \(2 attempts\)"):
            fetch(address, part, Patience(timeout=0.1, attempts=2, pause=0))


def test_a_proxy_that_refuses(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            line, _ = proxy.accept()
            line.recv(1000)
            line.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            line.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(DownloadError, match=r"proxy refuses the way to weights\.example.*407.*HTTPS_PROXY"):
            fetch("https://weights.example/a.zip", part, QUICK)
        thread.join()


def test_a_certificate_that_cannot_be_trusted() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    found = download._line_error("https://a.example/x", download.URLError(error), 1)
    assert isinstance(found, DownloadError) and "self-signed" in str(found) and "SSL_CERT_FILE" in str(found)


def test_a_full_disk_says_so_and_keeps_what_can_be_gone_on_with(
    server: Server, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.url("/a.zip", CONTENT)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 10))
        with pytest.raises(OutputError, match=r"disk is full.*300000 bytes.*Free some space"):
            fetch(address, part, QUICK)
    real = Path.open

    def open_full(path: Path, mode: str = "r", **how: object):  # type: ignore[no-untyped-def]
        stream = real(path, mode, **how)  # type: ignore[call-overload]
        if mode != "ab":
            return stream

        class Full:
            def __enter__(self):  # type: ignore[no-untyped-def]
                return self

            def __exit__(self, *args: object) -> None:
                stream.close()

            def write(self, block: bytes) -> None:
                if stream.tell() > 100_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                stream.write(block)

            def flush(self) -> None:
                stream.flush()

        return Full()

    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_full)
        with pytest.raises(OutputError, match=r"disk is full \(No space"):
            fetch(address, part, QUICK)
    kept = part.stat().st_size
    assert kept > 100_000
    fetch(address, part, QUICK)
    assert part.read_bytes() == CONTENT and server.seen[-1][1] == f"bytes={kept}-"


def test_a_server_that_never_stops(server: Server, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST", 100_000)
    server.length = False
    with pytest.raises(DownloadError, match="larger than"):
        fetch(server.url("/a.zip", CONTENT), part, QUICK)
    assert not part.exists()


@pytest.mark.parametrize(("value", "answer"), [("1", True), ("yes", True), ("ON", True), ("0", False), ("", False)])
def test_offline_by_environment(value: str, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINEPS_OFFLINE", value)
    assert download.is_offline() is answer


def test_nothing_else_in_the_package_opens_a_connection() -> None:
    root = Path(spineps.__file__).parent
    network = "socket|ssl|urllib(?!.parse)|http|requests|httpx|ftplib|urllib3|aiohttp|pooch"
    line = re.compile(rf"^\s*(?:import|from) (?:{network})\b.*", re.M)
    found = {file.name: line.findall(file.read_text(encoding="utf-8")) for file in root.rglob("*.py")}
    assert [name for name, lines in found.items() if lines] == ["download.py"]

"""Fetch one file over http(s): resumable, bounded in time, and plain about what went wrong.

The only module of the package that opens a connection.  The standard library is enough for one file at a time, honours
``HTTPS_PROXY``/``NO_PROXY`` and the system's certificates, and adds no dependency.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from spineps.errors import ModelError, OutputError

logger = logging.getLogger(__name__)

OFFLINE_VARIABLE = "SPINEPS_OFFLINE"
#: More bytes than any published archive has; a server that never stops must not fill the disk.
LARGEST = 20 * 2**30
#: An attempt that added this many bytes was worth it and does not count as a failure.
WORTHWHILE = 2**20
LONGEST_PAUSE = 60.0
BLOCK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
ELSEWHERE = "or fetch the file in another way and give it with --from FILE"

Progress = Callable[[int, int | None], None]


class DownloadError(ModelError):
    """A file could not be fetched."""


class _TryAgain(Exception):
    """A fault that may pass; ``pause`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Patience:
    """How long to bear with a bad line.

    Attributes:
        timeout: seconds for connecting, and seconds without a single byte after which the line counts as stalled.
        attempts: failures in a row, without progress worth the name, after which it is given up.
        pause: seconds before the second attempt; doubled each time, at most a minute.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


def is_offline() -> bool:
    """Whether the environment forbids the network (``SPINEPS_OFFLINE`` is 1, true, yes or on)."""
    return os.environ.get(OFFLINE_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def fetch(address: str, part: Path, patience: Patience | None = None, progress: Progress | None = None) -> None:
    """Bring the file at ``address`` to ``part``, going on where an earlier call was cut off.

    A small JSON beside ``part`` says which version of the file it holds (ETag, or else Last-Modified); when the server
    has another version by now, the old bytes are thrown away.  When this function returns, ``part`` is complete; when
    it raises or is interrupted, ``part`` can be gone on with.

    Args:
        address: http or https; redirects are followed, but never from https to http.
        part: the file to write; its folder exists.
        patience: timeouts and attempts.
        progress: called with (bytes so far, bytes in all or None).

    Raises:
        DownloadError: not to be had; the cure says why.
        OutputError: the disk is full or ``part`` cannot be written.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise DownloadError(f"{address} is not an http(s) address.", "Give an address, a zip file or a folder.")
    patience = patience or Patience()
    opener = build_opener(_Redirects())
    failures, most = 0, _size(part)
    while True:
        try:
            _attempt(opener, address, part, patience.timeout, progress)
            return
        except _TryAgain as fault:
            have = _size(part)
            failures = 1 if have >= most + WORTHWHILE else failures + 1
            most = max(most, have)
            if failures >= patience.attempts:
                raise DownloadError(
                    f"{address} could not be fetched: {fault} ({failures} attempts).",
                    f"Run the same command again later, it goes on from where it stopped; {ELSEWHERE}.",
                ) from fault
            pause = min(max(fault.pause, patience.pause * 2 ** (failures - 1)), LONGEST_PAUSE)
            logger.warning("%s: %s; trying again in %.0f s", address, fault, pause)
        time.sleep(pause)


def discard(part: Path) -> None:
    """Forget a partial file."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def output_error(path: Path, error: OSError) -> OutputError:
    """What a failure to write ``path`` means to the user."""
    why = error.strerror or str(error)
    if error.errno in FULL:
        return OutputError(f"{path} cannot be written: the disk is full ({why}).", "Free some space and run it again.")
    cure = "Change its permissions, or let SPINEPS_SEGMENTOR_MODELS name a folder of your own."
    if error.errno in DENIED:
        return OutputError(f"{path} may not be written ({why}).", cure)
    return OutputError(f"{path} cannot be written ({why}).", cure)


class _Redirects(HTTPRedirectHandler):
    """Releases are redirected to a storage server; a step from https to anything else is refused."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        allowed = ("https",) if req.full_url.startswith("https:") else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not safe.", f"Do not; {ELSEWHERE}.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(opener: OpenerDirector, address: str, part: Path, timeout: float, progress: Progress | None) -> None:
    """``part`` is complete after it, or :class:`_TryAgain` is raised."""
    state = _read_state(part, address)
    have = _size(part) if state else 0
    if state and have and have == state["size"]:
        return
    headers = {"User-Agent": "spineps", "Accept-Encoding": "identity"}
    if have and state:
        headers |= {"Range": f"bytes={have}-", "If-Range": state["validator"]}
    try:
        with opener.open(Request(address, headers=headers), timeout=timeout) as answer:
            _receive(answer, address, part, state or {}, have, progress)
    except HTTPError as error:
        with error:
            if error.code == 416:
                discard(part)
                raise _TryAgain("the file is another one by now") from error
            raise _status_error(address, error) from error
    except InvalidURL as error:
        raise DownloadError(f"{address} is not an address: {error}.", "Check its spelling.") from error
    except (OSError, HTTPException) as error:
        raise _line_error(address, error, timeout) from error


def _receive(
    answer: HTTPResponse, address: str, part: Path, state: dict[str, Any], have: int, progress: Progress | None
) -> None:
    if answer.status == 206:
        state = {**state, "size": _rest(answer, state, have)}
        if state["size"] is None:
            discard(part)
            raise _TryAgain("the server answered with another part than asked for")
    elif answer.status == 200:
        # Either the server knows no ranges or the file has changed: both mean from the start.
        have, length = 0, answer.headers.get("Content-Length", "")
        state = {"address": address, "validator": _validator(answer), "size": int(length) if length.isdigit() else None}
    else:
        raise DownloadError(f"{address} answered {answer.status} {answer.reason}.", f"Check the address, {ELSEWHERE}.")
    size = state["size"]
    if (size or 0) - have > shutil.disk_usage(part.parent).free:
        raise output_error(part, OSError(errno.ENOSPC, f"{size} bytes are needed"))
    have = _store(answer, part, state, have, progress)
    if size is not None and have < size:
        raise _TryAgain(f"the line was cut after {have} of {size} bytes")
    _write_state(part, state | {"size": have})


def _store(answer: HTTPResponse, part: Path, state: dict[str, Any], have: int, progress: Progress | None) -> int:
    """Append what comes to ``part``; returns its size in the end."""
    size = state["size"]
    try:
        if not have:
            discard(part)
            _write_state(part, state)
        out = part.open("ab")
    except OSError as error:
        raise output_error(part, error) from error
    with out:
        while have < (LARGEST if size is None else size):
            # read1 returns what one packet brought: a stall then loses nothing that has arrived.
            block = answer.read1(BLOCK)
            if not block:
                return have
            try:
                out.write(block)
                out.flush()
            except OSError as error:
                raise output_error(part, error) from error
            have += len(block)
            if progress is not None:
                progress(have, size)
    if have >= LARGEST:
        discard(part)
        raise DownloadError(f"The file is larger than {LARGEST >> 30} GiB; no model is.", "Check the address.")
    return have


def _rest(answer: HTTPResponse, state: dict[str, Any], have: int) -> int | None:
    """Size of the whole file if the answer is the rest of this very version of it, else None."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip())
    known = "ETag" if state["validator"].startswith('"') else "Last-Modified"
    if found is None or answer.headers.get(known, state["validator"]) != state["validator"]:
        return None
    start, end, size = map(int, found.groups())
    return size if start == have and end == size - 1 and state["size"] in (None, size) else None


def _status_error(address: str, error: HTTPError) -> Exception:
    said = f"{error.code} {error.reason}".strip()
    if error.code >= 500 or error.code in (408, 425, 429):
        wait = error.headers.get("Retry-After") or ""
        return _TryAgain(f"the server answered {said}", float(wait) if wait.isdigit() else 0.0)
    cures = {
        404: "The file has moved: look for a newer spineps,",
        410: "The file has moved: look for a newer spineps,",
        401: "The server wants a login, or a firewall is in the way: try the address in a browser,",
        403: "The server or a firewall forbids it: try the address in a browser,",
        407: "Put user and password of the proxy into HTTPS_PROXY (http://user:password@host:port),",
    }
    cure = cures.get(error.code, "Check the address,")
    return DownloadError(f"{address} answered {said}.", f"{cure} {ELSEWHERE}.")


def _line_error(address: str, error: OSError | HTTPException, timeout: float) -> Exception:
    reason = error.reason if isinstance(error, URLError) else error
    host = urlsplit(address).hostname
    if isinstance(reason, TimeoutError):
        return _TryAgain(f"nothing came for {timeout:g} s")
    if isinstance(reason, socket.gaierror):
        cure = f"Connect to the network, set HTTPS_PROXY where there is a proxy, {ELSEWHERE}."
        return DownloadError(f"The server {host} cannot be found ({reason.strerror}).", cure)
    if isinstance(reason, ssl.SSLCertVerificationError):
        cure = "Check the clock; where a company's proxy re-signs traffic, let SSL_CERT_FILE name its certificates;"
        message = f"The certificate of {host} cannot be trusted ({reason.verify_message})."
        return DownloadError(message, f"{cure} {ELSEWHERE}.")
    if "Tunnel connection failed" in str(reason):
        cure = f"Check HTTPS_PROXY (http://user:password@host:port), {ELSEWHERE}."
        return DownloadError(f"The proxy refuses the way to {host} ({reason}).", cure)
    return _TryAgain(f"the line failed ({reason or type(reason).__name__})")


def _validator(answer: HTTPResponse) -> str | None:
    """What identifies this version of the file; a weak ETag does not vouch for bytes (RFC 9110, 13.1.5)."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path, address: str) -> dict[str, Any] | None:
    """What ``part`` is a part of; None when that is unknown, so that it cannot be gone on with."""
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
        fits = state["address"] == address and (state["validator"] or _size(part) == state["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if fits else None


def _write_state(part: Path, state: dict[str, Any]) -> None:
    try:
        _state_file(part).write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        raise output_error(part, error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""Opens the URL of a file at an offset: redirects, tokens, proxies of the environment, and what each status means."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from errors import DownloadFailed, DownloadForbidden, WrongFile
from loopback import is_loopback
from model_files.stop_signal import StopSignal

CHUNK_BYTES = 1 << 18
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_WHY_UNTRUSTED = re.compile(r"certificate verify failed: ([\w .'\-]+)")
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError)


@dataclass(frozen=True)
class HttpOptions:
    """How patient a pull is, and which servers get a token."""

    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """host, with its port if the URL has one -> token; sent to no other, also after a redirect"""
    connect_timeout_s: float = 10
    stall_timeout_s: float = 30
    """without a byte, or with less than `slowest` bytes a second"""
    slowest: float = 1000
    attempts: int = 8
    """in a row that bring less than 64 kB"""
    first_delay_s: float = 1
    longest_delay_s: float = 30
    longest_retry_after_s: float = 600
    """A server that names a longer time is not waited for."""


class TryAgain(Exception):
    """The server may answer better later: after `after_s`, if it named a time."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass(frozen=True)
class Answer:
    """The response to a request for the bytes from an offset on."""

    start: int
    """Of its first byte in the file; 0 if the server sends the whole file instead"""
    total: int | None
    """Size of the whole file; None if the server does not tell"""
    validator: str
    """What If-Range takes; empty if the server sent nothing of the kind"""
    is_complete: bool
    """The offset is the end of the file: there is no body."""
    sha256: str | None
    """As the server names it"""
    body: Any = None

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, at most CHUNK_BYTES each. Raises TryAgain."""
        try:
            while data := self.body.read1(CHUNK_BYTES, decode_content=False):
                yield data
        except _NETWORK_ERRORS as error:
            raise TryAgain(_reason(error)) from None


@contextmanager
def open_at(
    url: str, offset: int, validator: str, options: HttpOptions, stop: StopSignal, *, gated: bool
) -> Iterator[Answer]:
    """Request the bytes of `url` from `offset` on, if its content still has that `validator` (empty: whatever it has).

    Raises TryAgain for what may pass, DownloadForbidden and other DownloadFailed for what does not, and Cancelled after
    `stop`, however long the server is silent.
    """
    with requests.Session() as session:
        headers = {"User-Agent": "easel", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        try:
            response, named = stop.wait_for(
                lambda: _follow(session, url, headers, options, gated), lambda found: found[0].close()
            )
        except _NETWORK_ERRORS as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DownloadFailed(_untrusted(url, error)) from None
            raise TryAgain(_reason(error)) from None
        with response:
            yield _answer(response, url, offset, named)


def _follow(
    session: requests.Session, url: str, headers: Mapping[str, str], options: HttpOptions, gated: bool
) -> tuple[requests.Response, str | None]:
    """The response after redirects, and the hash that one of them named."""
    named, is_local, sends_token = None, is_loopback(urlsplit(url).hostname), gated
    for _ in range(_MAX_REDIRECTS):
        _check_url(url, is_local)
        host = urlsplit(url).netloc.rpartition("@")[2]
        token = options.tokens.get(host) if sends_token else None
        response = session.get(
            url,
            headers=headers,
            auth=_Auth(token),
            stream=True,
            allow_redirects=False,
            timeout=(options.connect_timeout_s, options.stall_timeout_s),
        )
        named = _sha256_of(response, host) or named
        if response.status_code in (401, 403) and host in options.tokens and not sends_token:
            response.close()
            sends_token = True
            continue
        if response.status_code not in _REDIRECTS or "Location" not in response.headers:
            return response, named
        response.close()
        url = urljoin(url, response.headers["Location"])
    raise DownloadFailed(f"{_place(url)} redirects too often.")


class _Auth(requests.auth.AuthBase):
    """The token, or nothing. Without this, requests would send passwords of ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _check_url(url: str, is_local: bool) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise DownloadFailed("The server redirects to a malformed URL.") from None
    if parts.scheme == "https" and host:
        return
    # A public server must not reach what listens on this machine.
    if not (parts.scheme == "http" and is_loopback(host) and is_local):
        raise DownloadFailed(f"{_place(url)} is not https. Only files of this machine are pulled without.")


def _answer(response: requests.Response, url: str, offset: int, named: str | None) -> Answer:
    status, headers = response.status_code, response.headers
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if status == 416 and offset:
        total = int(found[3]) if found and found[3].isdecimal() else None
        return Answer(0, total, "", is_complete=total == offset, sha256=named)
    _raise_for_status(response, url)
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise DownloadFailed(f"{_place(url)} sends the file compressed, which was not requested.")
    length = headers.get("Content-Length", "")
    remaining = int(length) if length.isdecimal() and "Transfer-Encoding" not in headers else None
    start, total = 0, remaining
    if status == 206:
        if found is None or found[1] is None or int(found[1]) != offset:
            raise _WrongRange("the server sent another part of the file than it was asked for")
        start, total = offset, int(found[3]) if found[3].isdecimal() else None
        if total is not None and remaining is not None and start + remaining > total:
            raise _WrongRange("the server sent a part that is larger than the file")
    return Answer(start, total, _validator(headers), False, named, response.raw)


class _WrongRange(TryAgain):
    """Ranges of this server cannot be used."""


def is_range_wrong(error: TryAgain) -> bool:
    """Whether the file must be requested from its begin."""
    return isinstance(error, _WrongRange)


def _raise_for_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (401, 403):
        page = "/".join(url.split("/")[:5]) if urlsplit(url).hostname == "huggingface.co" else _place(url)
        raise DownloadForbidden(
            f"{page} answered {status}: accept the terms there, and set HF_TOKEN to a token of that account in the "
            "environment of Easel."
        )
    if status in (408, 416, 425, 429) or status >= 500:
        raise TryAgain(
            f"the server answered {status}", _retry_after_s(response.headers.get("Retry-After", ""))
        )
    raise DownloadFailed(f"{_place(url)} answered {status}.")


def _retry_after_s(text: str) -> float | None:
    """Seconds, or the time until a date."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _validator(headers: Mapping[str, str]) -> str:
    """If-Range must not have a weak ETag."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _sha256_of(response: requests.Response, host: str) -> str | None:
    """Hugging Face names the hash of a large file."""
    found = _SHA256.fullmatch(response.headers.get("X-Linked-ETag", ""))
    return found[1] if found and host == "huggingface.co" else None


def names_hashes(url: str) -> bool:
    """Whether the server of `url` names the hash of its files."""
    return urlsplit(url).hostname == "huggingface.co"


def _place(url: str) -> str:
    """The URL for messages: without its query, which may be a signature, and without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _untrusted(url: str, error: BaseException) -> str:
    why = _WHY_UNTRUSTED.search(str(error))
    return (
        f"The certificate of {_place(url)}, or of the server that it redirects to, is not trusted"
        f"{f' ({why[1]})' if why else ''}. If it has a CA of its own, set REQUESTS_CA_BUNDLE to the file with that."
    )


def _reason(error: BaseException) -> str:
    """Why the network failed, without the URL, whose query may be a signature."""
    text = type(error).__name__
    if "Timeout" in text or isinstance(error, TimeoutError):
        return "nothing arrived in time"
    if "Incomplete" in str(error) or "Incomplete" in text:
        return "the connection broke off"
    if "Ssl" in text or "SSL" in text:
        return "the server's certificate is not trusted"
    return "the connection failed"


def size_at(url: str, options: HttpOptions, stop: StopSignal, *, gated: bool) -> int | None:
    """The size of the file at `url`; None if the server does not tell or does not answer well now. Raises what `open_at`
    raises."""
    try:
        with open_at(url, 0, "", options, stop, gated=gated) as answer:
            return answer.total
    except TryAgain:
        return None


def check_total(total: int | None, size: int | None, name: str) -> None:
    """Raises WrongFile if the server has a file of another size than the catalogue says."""
    if None not in (total, size) and total != size:
        raise WrongFile(
            f"The server's {name} has {total:,} bytes, and the catalogue says {size:,}. Nothing was pulled."
        )

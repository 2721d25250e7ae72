"""Fetching images by URL: only below prefixes that the operator allows, and never from a private network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import httpx2

from ..errors import ConfigError, ImageError

_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = 3
_AT_ONCE: Final = 16
"""Images fetched at the same time; other requests wait."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class UrlPrefix:
    """A URL below which images may be fetched: same scheme, host and port, and a path in the same folder."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> UrlPrefix:
        """Parse a URL such as https://images.example.com/public/. Raises `ConfigError`."""
        url = _url(text)
        if url is None or url.scheme not in _PORTS or not url.host or url.userinfo or url.query or url.fragment:
            raise ConfigError(
                f"Images cannot be allowed from {text!r}. Give the beginning of a URL without query and password, "
                "such as https://images.example.com/public/."
            )
        return cls(url.scheme, url.host, url.port or _PORTS[url.scheme], url.path)

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"

    @property
    def names_address(self) -> bool:
        """Whether the host is an address or localhost, which may be private. A name may resolve to any address."""
        return self.host == "localhost" or _address(self.host) is not None

    def includes(self, url: httpx2.URL) -> bool:
        """Whether a URL is this one or below it. Below /public is /public/a, not /publicity."""
        if (url.scheme, url.host, url.port or _PORTS.get(url.scheme)) != (self.scheme, self.host, self.port):
            return False
        below = self.path if self.path.endswith("/") else f"{self.path}/"
        return not url.userinfo and _is_plain(url) and (url.path == self.path or url.path.startswith(below))


class Fetcher:
    """Fetches images below the given prefixes. most_bytes, seconds: limits per image, including redirects."""

    def __init__(self, prefixes: Sequence[UrlPrefix], most_bytes: int, seconds: float):
        self.prefixes, self._most_bytes, self._seconds = tuple(prefixes), most_bytes, seconds
        self._limiter = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, text: str) -> bytes:
        """The bytes at a URL. Raises `ImageError` if it is not allowed or cannot be fetched."""
        try:
            async with asyncio.timeout(self._seconds), self._limiter:
                return await self._follow(text)
        except TimeoutError as error:
            raise self._failed(text, f"it took more than {self._seconds:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._failed(text, str(error) or type(error).__name__) from error

    async def _follow(self, text: str) -> bytes:
        url = _url(text)
        # trust_env: the proxies and passwords of this machine are not for requests of clients.
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._seconds) as client:
            for _ in range(_REDIRECTS + 1):
                prefix = next((one for one in self.prefixes if url is not None and one.includes(url)), None)
                if url is None or prefix is None:
                    raise self._refused(text)
                found = await self._get(client, url, prefix)
                if isinstance(found, bytes):
                    return found
                url = _url(found, url)
        raise self._failed(text, f"it redirects more than {_REDIRECTS} times")

    async def _get(self, client: httpx2.AsyncClient, url: httpx2.URL, prefix: UrlPrefix) -> bytes | str:
        """The bytes at a URL, or the URL that it redirects to."""
        # Connect to the address that was checked: the name may resolve to another one the next time.
        address = await _checked_address(url.host, prefix)
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        pinned = url.copy_with(host=str(address))
        async with client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": url.host}) as response:
            if response.has_redirect_location:
                return response.headers["location"]
            if response.status_code != 200:
                raise self._failed(str(url), f"the response has status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self._failed(str(url), "the response is compressed")
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > self._most_bytes:
                    raise self._failed(str(url), f"it has more than {self._most_bytes:,} bytes")
                parts.append(part)
        return b"".join(parts)

    def _refused(self, text: str) -> ImageError:
        prefixes = ", ".join(map(str, self.prefixes))
        return ImageError(
            f"The image was given as {_shown(text)!r}, or redirects there. Images are fetched only from {prefixes}; "
            "give others as data URIs."
        )

    def _failed(self, text: str, reason: str) -> ImageError:
        return ImageError(f"The image at {_shown(text)!r} cannot be fetched: {reason}. Give it as a data URI.")


async def _checked_address(host: str, prefix: UrlPrefix) -> _Address:
    found = await resolve(host, prefix.port)
    for address in found:
        mapped = getattr(address, "ipv4_mapped", None) or address
        if prefix.names_address or (mapped.is_global and not mapped.is_multicast):
            return address
    raise ImageError(
        f"The host {host!r} of the image is in a private network, from which nothing is fetched. Give the image as a "
        "data URI."
    )


async def resolve(host: str, port: int) -> list[_Address]:
    """The addresses of a host."""
    known = _address(host)
    if known is not None:
        return [known]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _url(text: str, base: httpx2.URL | None = None) -> httpx2.URL | None:
    """The URL as the HTTP library parses it. Two parsers that disagree could be used to evade the checks."""
    try:
        return httpx2.URL(text) if base is None else base.join(text)
    except (httpx2.InvalidURL, ValueError, TypeError):
        return None


def _is_plain(url: httpx2.URL) -> bool:
    """Whether no segment of the path could be decoded into another one by a server."""
    raw = url.raw_path.decode("ascii").partition("?")[0]
    segments = raw.split("/")
    odd = any(mark in raw.lower() for mark in ("%2f", "%5c", "%00", "\\", "%25"))
    return not odd and not any(unquote(segment) in (".", "..") for segment in segments)


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."

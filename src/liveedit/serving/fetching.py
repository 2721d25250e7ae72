"""Images from elsewhere: only from places that the operator named, and never from this machine's own network."""

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
"""So many images are fetched at a time; others wait."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Place:
    """Where images may be fetched from: scheme, host and port alike, and a path that begins with this one."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """From a URL such as https://images.example.com/public/. Raises `ConfigError`."""
        url = _url(text)
        if url is None or url.scheme not in _PORTS or not url.host or url.userinfo or url.query or url.fragment:
            raise ConfigError(
                f"Images cannot be allowed from {text!r}. Give the beginning of a URL, such as "
                "https://images.example.com/public/."
            )
        return cls(url.scheme, url.host, url.port or _PORTS[url.scheme], url.path)

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"

    @property
    def names_address(self) -> bool:
        """Whether it names an address, which may be one of this network, and not a name that may come to mean one."""
        return self.host == "localhost" or _address(self.host) is not None

    def holds(self, url: httpx2.URL) -> bool:
        """Whether a URL is below it."""
        if (url.scheme, url.host, url.port or _PORTS.get(url.scheme)) != (self.scheme, self.host, self.port):
            return False
        below = self.path if self.path.endswith("/") else f"{self.path}/"
        return not url.userinfo and _is_plain(url) and (url.path == self.path or url.path.startswith(below))


class Fetcher:
    """Fetches images from some places. most_bytes: of one image. seconds: for all of one, redirects included."""

    def __init__(self, places: Sequence[Place], most_bytes: int, seconds: float):
        self.places, self._most_bytes, self._seconds = tuple(places), most_bytes, seconds
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, text: str) -> bytes:
        """What is at a URL. Raises `ImageError` where it may not be fetched, or cannot."""
        try:
            async with asyncio.timeout(self._seconds), self._turns:
                return await self._follow(text)
        except TimeoutError as error:
            raise self._failed(text, f"it took more than {self._seconds:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._failed(text, str(error) or type(error).__name__) from error

    async def _follow(self, text: str) -> bytes:
        url = _url(text)
        # What the machine's settings say of proxies and passwords is not for strangers.
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._seconds) as client:
            for _ in range(_REDIRECTS + 1):
                place = next((place for place in self.places if url is not None and place.holds(url)), None)
                if url is None or place is None:
                    raise self._refused(text)
                found = await self._get(client, url, place)
                if isinstance(found, bytes):
                    return found
                url = _url(found, url)
        raise self._failed(text, f"it leads on more than {_REDIRECTS} times")

    async def _get(self, client: httpx2.AsyncClient, url: httpx2.URL, place: Place) -> bytes | str:
        """The bytes there, or where it leads on to."""
        # The address that was looked at is the one that is connected to: a name may mean another the next time.
        address = await _checked_address(url.host, place)
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        pinned = url.copy_with(host=str(address))
        async with client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": url.host}) as response:
            if response.has_redirect_location:
                return response.headers["location"]
            if response.status_code != 200:
                raise self._failed(str(url), f"it is answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self._failed(str(url), "it comes compressed")
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > self._most_bytes:
                    raise self._failed(str(url), f"it has more than {self._most_bytes:,} bytes")
                parts.append(part)
        return b"".join(parts)

    def _refused(self, text: str) -> ImageError:
        places = ", ".join(map(str, self.places))
        return ImageError(
            f"The image was given as {_shown(text)!r}, or leads there. Images are fetched from {places} alone; "
            "give others as data URIs."
        )

    def _failed(self, text: str, reason: str) -> ImageError:
        return ImageError(f"The image at {_shown(text)!r} cannot be fetched: {reason}. Give it as a data URI.")


async def _checked_address(host: str, place: Place) -> _Address:
    found = await resolve(host, place.port)
    for address in found:
        mapped = getattr(address, "ipv4_mapped", None) or address
        if place.names_address or (mapped.is_global and not mapped.is_multicast):
            return address
    raise ImageError(
        f"The host {host!r} of the image is in a private network, and nothing is fetched from there. Give it as a "
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
    """As the library that fetches it reads it: two readings of one URL are a way around any list."""
    try:
        return httpx2.URL(text) if base is None else base.join(text)
    except (httpx2.InvalidURL, ValueError, TypeError):
        return None


def _is_plain(url: httpx2.URL) -> bool:
    """Whether no step of the path could be read as another by a server behind."""
    raw = url.raw_path.decode("ascii").partition("?")[0]
    steps = raw.split("/")
    odd = any(mark in raw.lower() for mark in ("%2f", "%5c", "%00", "\\", "%25"))
    return not odd and not any(unquote(step) in (".", "..") for step in steps)


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."

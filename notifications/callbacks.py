"""HTTP to URLs that strangers have given us: the callbacks of subscriptions.

They must not become a way into our own network ("server-side request forgery"). libcurl asks us for each socket and
says which address it is for; only public ones get one. So what is checked is what is connected to, however a host is
spelled and whatever its name resolved to a moment before; Host header, SNI and certificate stay those of the name.
"""

import ipaddress
import re
import secrets
import socket
import threading
from urllib.parse import urlencode

import certifi
import pycurl
from django.conf import settings

from accounts.errors import RateLimited

LONGEST_URL = 500
URL = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:[/?][!$-~]*)?", re.IGNORECASE
)  # no user and password, no fragment
CONNECT_MS = 3_000
WHOLE_MS = 5_000  # until the answer's last byte, however slowly they drip
MOST_BYTES = 64 * 1024  # of an answer

# CURLOPT_QUICK_EXIT, for which pycurl has no name. Without it, closing waits for name servers that do not answer: 10 s.
QUICK_EXIT = 322

IPV6_UNICAST = ipaddress.ip_network("2000::/3")  # all else embeds IPv4 (mapped, NAT64), or is not of the internet

# A request that subscribes holds a thread of the app server for as long as the callback takes its time.
_challenges = threading.BoundedSemaphore(4)


class Failed(Exception):
    """What a callback did wrong, for its developer to read."""


def check(url: str) -> None:
    """Raises Failed for what cannot be a callback's URL."""
    match = URL.fullmatch(url)
    if not match or len(url) > LONGEST_URL:
        raise Failed(f"must be http://… or https://…, at most {LONGEST_URL} characters, no user, no fragment")
    if match["port"] and not _is_open(int(match["port"])):
        raise Failed("the port must be 80, 443, or one of 1024 to 65535")


def challenge(url: str, verify_token: str | None) -> None:
    """Asks a callback whether it wants to be one, as PubSubHubbub does. Raises Failed, RateLimited."""
    check(url)
    expected = secrets.token_hex(16)
    params = {"hub.mode": "subscribe", "hub.challenge": expected}
    if verify_token is not None:
        params["hub.verify_token"] = verify_token
    if not _challenges.acquire(blocking=False):
        raise RateLimited("too many callbacks are being verified at this moment; try again in some seconds")
    try:
        answer = _request(f"{url}{'&' if '?' in url else '?'}{urlencode(params)}")
    finally:
        _challenges.release()
    if answer != expected.encode():
        raise Failed("did not answer with the value of hub.challenge and nothing else")


def post(url: str, body: bytes, signature: str) -> None:
    """Sends signed JSON to a callback. Raises Failed unless it answers 2xx."""
    _request(url, body, ["Content-Type: application/json", f"X-Hub-Signature: {signature}", "Expect:"])


def is_public(address: str) -> bool:
    """Whether an IP address may be connected to on a stranger's behalf."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip in network for network in settings.CALLBACK_NETWORKS):
        return True
    if ip.version == 6 and (ip not in IPV6_UNICAST or ip.sixtofour is not None):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _is_open(port: int) -> bool:
    """Whether a callback may be at this port. Those of mail, SSH and the like shall never hear from us."""
    return port in (80, 443) or 1024 <= port <= 65535


def _request(url: str, body: bytes | None = None, headers: list[str] | None = None) -> bytes:
    """The body of a 2xx; a GET, or a POST if there is a body to send. Raises Failed."""
    received = bytearray()
    allowed: list[bool] = []  # each address that was tried

    def open_socket(purpose: int, target) -> socket.socket | int:
        address, port = target.addr[:2]
        allowed.append(is_public(address) and _is_open(port))
        return socket.socket(target.family, target.socktype, target.protocol) if allowed[-1] else pycurl.SOCKET_BAD

    def receive(chunk: bytes) -> int:
        received.extend(chunk)
        return len(chunk) if len(received) <= MOST_BYTES else -1  # -1 ends the transfer

    curl = pycurl.Curl()
    try:
        curl.setopt(curl.URL, url)
        curl.setopt(curl.PROTOCOLS, curl.PROTO_HTTP | curl.PROTO_HTTPS)
        curl.setopt(curl.FOLLOWLOCATION, False)
        curl.setopt(curl.PROXY, "")  # whatever the environment says: it would connect for us, unchecked
        curl.setopt(curl.OPENSOCKETFUNCTION, open_socket)
        curl.setopt(curl.CONNECTTIMEOUT_MS, CONNECT_MS)
        curl.setopt(curl.TIMEOUT_MS, WHOLE_MS)
        curl.setopt(curl.NOSIGNAL, True)  # threads
        curl.setopt(QUICK_EXIT, True)
        curl.setopt(curl.CAINFO, certifi.where())
        curl.setopt(curl.USERAGENT, "instagram-subscriptions/1")
        curl.setopt(curl.WRITEFUNCTION, receive)
        if body is not None:
            curl.setopt(curl.POSTFIELDS, body)
            curl.setopt(curl.HTTPHEADER, headers)
        curl.perform()
        status = curl.getinfo(curl.RESPONSE_CODE)
    except pycurl.error as error:
        if len(received) > MOST_BYTES:
            raise Failed(f"answered with more than {MOST_BYTES} bytes") from None
        if allowed and not any(allowed):
            raise Failed("is at an address that is not public") from None
        raise Failed(f"cannot be reached: {error.args[1]}") from None
    finally:
        curl.close()
    if not 200 <= status < 300:
        raise Failed(f"answered with status {status}")
    return bytes(received)

"""How often a client may ask: so many requests in a sliding hour (docs/api.md), counted in Redis.

A counter is two numbers, the requests of this clock hour and of the one before. The latter weigh what the sliding hour
still covers of it, as if they had come evenly: 20 minutes past, two thirds. That takes constant memory, and errs little
("How we built rate limiting capable of scaling to millions of domains", Cloudflare, 2017). A refused request is not
counted, so who waits for as long as `Retry-After` says will pass.

The counters are in the Redis of the feeds, which drops what it has no room for: to lose one is no harm. Nor is it to
lose Redis: then all requests pass, and their answers have no headers.

It is one call to Redis a request, which also tells of the changes in the cache since the last one (shardmap/copies.py).
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from accounts.errors import RateLimited
from accounts.web import View, error_page
from shardmap import cache
from shardmap.redis_client import Command, Unavailable, ask_all, redis_client

logger = logging.getLogger(__name__)

SECONDS = 3600
SCRIPT = (Path(__file__).parent / "lua" / "count.lua").read_text()


@dataclass(frozen=True)
class Limit:
    """At most `most` requests in an hour; `key` names their counter in Redis."""

    key: str
    most: int


@dataclass(frozen=True)
class Standing:
    """How a request stands with the limit that is nearest: `wait` is 0, or the seconds until it would pass."""

    most: int
    remaining: int
    wait: int


def of_token(token: str, name: str = "") -> list[Limit]:
    """The limits of an access token: on all its requests, and the limit `name` if there is one."""
    subject = _hash(f"token {token}")
    return [_limit(subject, name) for name in ("requests", name) if name in settings.RATE_LIMITS]


def of_client(client_id: str) -> list[Limit]:
    """The limit of a client, on the requests that come without a token."""
    return [_limit(_hash(f"client {client_id}"), "requests")]


def of_address(request: HttpRequest, name: str) -> list[Limit]:
    """The limit `name`, if there is one, of the IP address that a request came from."""
    return [_limit(_hash(f"address {_address(request)}"), name)] if name in settings.RATE_LIMITS else []


def of_login(request: HttpRequest) -> list[Limit]:
    """The limits on trying passwords, for a form that has one: of its `username`, and of the IP address."""
    form = request.POST
    if "password" not in form:
        return []
    username = form.get("username", "").lower()
    # One hash tag for all of them, since an address meets any username.
    return [
        _limit("login", "logins_of_user", _hash(username)),
        _limit("login", "logins", _hash(_address(request))),
    ]


def of_form(request: HttpRequest, name: str) -> list[Limit]:
    """The limit `name` of the user who sends a form."""
    is_sent = request.method == "POST" and request.user.is_authenticated
    return [_limit(_hash(f"user {request.user.pk}"), name)] if is_sent else []


def ask(limits: Iterable[Limit], now: float | None = None, ahead: Sequence[Command] = ()) -> Standing | None:
    """Asks Redis whether a request may pass; all limits have the same hash tag. See `cache.listen` for `ahead`.

    None when there are no limits, or nobody knows since Redis is away: the request may pass. `now` is the time in
    seconds, for tests; else it is that of Redis, one clock for all app servers.
    """
    limits = list(limits)
    if not limits:
        return None
    keys, most = [limit.key for limit in limits], [limit.most for limit in limits]
    # The whole script each time: it is short, and its hash alone may be unknown to a Redis that has restarted.
    command = ("EVAL", SCRIPT, len(keys), *keys, SECONDS, "" if now is None else now, *most)
    reply = cache.listen(command, ahead)
    if isinstance(reply, Unavailable):
        logger.warning("nobody counts requests: %s", reply)
        return None
    wait, *remaining = reply
    nearest = min(range(len(remaining)), key=remaining.__getitem__)
    return Standing(limits[nearest].most, remaining[nearest], wait)


def take_back(limits: Iterable[Limit]) -> None:
    """Drops the counters of what turned out to be no credential: who makes up tokens fills no Redis with them."""
    try:
        ask_all(redis_client(settings.REDIS_FEEDS_URL), [("UNLINK", *(limit.key for limit in limits))])
    except Unavailable as error:
        logger.warning("a counter of requests stays: %s", error)


def require_passed(standing: Standing | None) -> None:
    """Raises RateLimited."""
    if standing is not None and standing.wait:
        message = f"at most {standing.most} of these requests are allowed in an hour; wait {standing.wait} s"
        raise RateLimited(message)


def limited_page(view: View, limited: Callable[[HttpRequest], list[Limit]]) -> View:
    """A page that counts against the limits that `limited` names; over them, a page says so."""

    def wrapped(request: HttpRequest, **path_params: str) -> HttpResponse:
        standing = ask(limited(request))
        try:
            require_passed(standing)
        except RateLimited as error:
            return tell(error_page(request, error.code, "That was too often", f"Sorry: {error}."), standing)
        return view(request, **path_params)

    return wrapped


def tell(response: HttpResponse, standing: Standing | None) -> HttpResponse:
    """Puts the headers into an answer, as far as anything is known."""
    if standing is not None:
        response["X-Ratelimit-Limit"] = str(standing.most)
        response["X-Ratelimit-Remaining"] = str(standing.remaining)
        if standing.wait:
            response["Retry-After"] = str(standing.wait)
    return response


def _limit(tag: str, name: str, subject: str = "") -> Limit:
    return Limit(f"limit:{{{tag}}}:{name}{subject and ':'}{subject}", settings.RATE_LIMITS[name])


def _hash(subject: str) -> str:
    """A dump of Redis opens no account."""
    return hashlib.sha256(subject.encode()).hexdigest()[:32]


def _address(request: HttpRequest) -> str:
    """The client's IP address, which our nginx sets, whatever the client has sent as such."""
    return request.headers.get("X-Forwarded-For") or request.META["REMOTE_ADDR"]

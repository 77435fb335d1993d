"""Many notifications at a time over few connections to APNs.

libcurl (CurlMulti) sends each as a stream of a long-lived HTTP/2 connection. One thread a connection does all of that;
others hand it a `Batch` and wait until each notification of it has its answer.

What Apple's answers mean is in "Handling notification responses from APNs". What is worth another try (a lost
connection, 429, 5xx, an expired provider token) is sent once more after a backoff, with the same `apns-id`, until the
batch's time is over. The rest is final.
"""

import heapq
import itertools
import logging
import os
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import certifi
import orjson
import pycurl

from notifications.pyapns.authorization import Authorization, Credentials
from shardmap.metrics import Counter, labelled
from workers import sentry

logger = logging.getLogger(__name__)

STREAMS = 250  # of a connection at a time; Apple allows 1000, once it knows us
CONNECT_SECONDS = 5
ANSWER_SECONDS = 10
SILENT_SECONDS = 3  # without any answer, after which a notification's time-out ends the connection
FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 5.0
MOST_BYTES = 4096  # of a payload
MOST_WAITING = 20_000  # notifications of a connection

# Apple's reasons (410) for which a device token is of no use any more. A bad one, or one for another topic, may be the
# fault of our settings, and is none of these: a wrong URL must not cost all users their phones.
DEAD = ("Unregistered", "ExpiredToken")
UNDELIVERED = "Undelivered"  # our own reason, among Apple's
_pushes = labelled(Counter("pushes", "Notifications, by what became of them", ["outcome"]))
TRIED_AGAIN = {429, 500, 502, 503, 504}
PUSH_TYPE = "alert"
HEADERS = {"id", "collapse-id", "expiration", "priority", "push-type"}


class Full(Exception):
    """More notifications wait than there is room for."""


@dataclass
class Batch:
    """Notifications that one caller waits for."""

    until: float  # time.monotonic()
    left: int
    # For good: (device token, Apple's reason).
    refused: list[tuple[str, str]] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)  # device tokens
    error: str = ""  # the last one, of what was not delivered
    done: threading.Event = field(default_factory=threading.Event)

    def ended(self, token: str = "", *, refused: str = "", error: str = "") -> None:
        _pushes("refused" if refused else "undelivered" if error else "delivered").inc()
        if refused:
            self.refused.append((token, refused))
        if error:
            self.undelivered.append(token)
            self.error = error
        self.left -= 1
        if not self.left:
            self.done.set()


@dataclass(slots=True)
class Notification:
    token: str
    payload: bytes
    headers: tuple[str, ...]
    batch: Batch
    tries: int = 0


class Content(NamedTuple):
    """What one device or many are told: a payload's JSON, and what goes into headers instead."""

    payload: bytes
    headers: tuple[str, ...] = (f"apns-push-type: {PUSH_TYPE}",)
    has_id: bool = False

    @classmethod
    def of(cls, payload: dict) -> "Content":
        """From what a caller of `notify` gave: a payload as APNs has it.

        Its key "apns", if there is one, has what Apple wants in headers: "id", "collapse-id", "expiration", "priority",
        "push-type". Raises ValueError for what cannot be a notification.
        """
        if not isinstance(payload, dict) or not isinstance(payload.get("aps"), dict):
            raise ValueError('a notification is a payload as APNs has it: {"aps": {…}, …}')
        if "apns" not in payload:
            return cls(fitted(payload))
        headers = {"push-type": PUSH_TYPE} | {name: str(value) for name, value in dict(payload["apns"]).items()}
        if unknown := headers.keys() - HEADERS:
            raise ValueError(f'"apns" has {sorted(unknown)}, which are no headers of APNs')
        if not all(value.isprintable() and value.isascii() for value in headers.values()):
            raise ValueError('"apns" has a value that cannot be in a header')
        text = fitted({name: value for name, value in payload.items() if name != "apns"})
        return cls(text, tuple(f"apns-{name}: {value}" for name, value in headers.items()), "id" in headers)

    def to(self, token: str, batch: Batch) -> Notification:
        """Raises ValueError."""
        if not (token.isascii() and token.isalnum() and len(token) <= 200):
            raise ValueError(f"{token[:80]!r} is no device token")
        headers = self.headers if self.has_id else (*self.headers, f"apns-id: {_new_id()}")
        return Notification(token, self.payload, headers, batch)


def _new_id() -> str:
    """A random UUID, as `uuid.uuid4` makes it in four times the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def fitted(payload: dict) -> bytes:
    """A payload's JSON, its alert shortened if that makes it fit. Raises ValueError if even without it is too large."""
    text = orjson.dumps(payload)
    if len(text) <= MOST_BYTES:
        return text
    alert = payload["aps"].get("alert", "")
    body = alert.get("body", "") if isinstance(alert, dict) else alert

    def with_body(length: int) -> bytes:
        shorter = body[:length].rstrip() + "…" if length else ""
        new = alert | {"body": shorter} if isinstance(alert, dict) else shorter
        return orjson.dumps(payload | {"aps": payload["aps"] | {"alert": new}})

    # The longest that fits; a character takes one to twelve bytes of JSON.
    shortest, longest = 0, len(body)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if len(with_body(middle)) <= MOST_BYTES:
            shortest = middle
        else:
            longest = middle - 1
    if len(with_body(shortest)) > MOST_BYTES:
        raise ValueError(f"the payload has {len(text)} bytes; {MOST_BYTES} are the most that APNs takes")
    return with_body(shortest)


class Sender(threading.Thread):
    """A connection to one of Apple's environments, on which an app's notifications are sent until `stop`.

    `on_dead` is called with when a device token was found dead (Unix time), and the token.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        authorization: Authorization,
        ca_file: str,
        on_dead: Callable[[float, str], None],
    ) -> None:
        super().__init__(name=f"apns {credentials.topic}", daemon=True)
        self._url, self._credentials, self._authorization, self._ca_file = url, credentials, authorization, ca_file
        self._on_dead = on_dead
        self._waiting: deque[Notification] = deque()
        self._later: list[tuple[float, int, Notification]] = []  # a heap, by time.monotonic()
        self._numbers = itertools.count()
        self._in_flight: dict[pycurl.Curl, Notification] = {}
        self._idle: list[pycurl.Curl] = []
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._stopped = False
        self._heard_at = 0.0  # when APNs last answered, or was asked while nothing was on its way
        self._multi = self._new_multi()

    def backlog(self) -> int:
        """How many notifications wait for their answer."""
        return len(self._waiting) + len(self._later) + len(self._in_flight)

    def put(self, notifications: Sequence[Notification]) -> None:
        """Raises Full."""
        if self._stopped:
            raise Full("the app was provisioned anew a moment ago")
        if self.backlog() + len(notifications) > MOST_WAITING:
            raise Full(f"{self.backlog()} notifications wait already, of {MOST_WAITING}")
        self._waiting.extend(notifications)
        self._notify()

    def stop(self) -> None:
        self._stopped = True
        self._notify()

    def _notify(self) -> None:
        with suppress(BlockingIOError):  # then it will wake anyway
            self._wake.send(b"x")

    def run(self) -> None:
        try:
            while not self._stopped:
                self._start_what_is_due()
                self._multi.perform()
                if not self._finish_what_is_done():
                    self._wait()
        except BaseException as error:
            logger.exception("the sender for %s", self._credentials.topic)
            sentry.capture(error)
            sentry.flush()
            os._exit(1)  # a service that takes what it cannot send is worse than none, and a new one comes at once
        for one in (*self._in_flight.values(), *self._waiting, *(later for _, _, later in self._later)):
            one.batch.ended(one.token, error="the service is stopping")

    def _wait(self) -> None:
        """Until a socket of ours or of libcurl's has something to do."""
        readable, writable, failed = self._multi.fdset()
        timeout = self._multi.timeout()
        seconds = 1.0 if timeout < 0 else timeout / 1000
        if self._later:
            seconds = min(seconds, max(0.0, self._later[0][0] - time.monotonic()))
        if self._woken in select.select([*readable, self._woken], writable, failed, seconds)[0]:
            with suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._later)[2])
        headers = self._authorization.headers()
        if self._waiting and not self._in_flight:
            self._heard_at = now
        while self._waiting and len(self._in_flight) < STREAMS:
            one = self._waiting.popleft()
            if now > one.batch.until:
                one.batch.ended(one.token, error="not delivered in time")
                continue
            curl = self._idle.pop() if self._idle else self._new_handle()
            curl.setopt(pycurl.URL, f"{self._url}/3/device/{one.token}")
            curl.setopt(pycurl.HTTPHEADER, headers + one.headers)
            curl.setopt(pycurl.POSTFIELDS, one.payload)
            curl.setopt(pycurl.TIMEOUT_MS, 1 + int(1000 * min(ANSWER_SECONDS, one.batch.until - now)))
            self._in_flight[curl] = one
            self._multi.add_handle(curl)

    def _new_multi(self) -> pycurl.CurlMulti:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, 1)
        multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, 1000)
        return multi

    def _new_handle(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_0)
        curl.setopt(pycurl.PIPEWAIT, 1)  # rather a stream of the connection that is being opened than one more of those
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_SECONDS)
        curl.setopt(pycurl.CAINFO, self._ca_file or certifi.where())
        if self._credentials.certificate:
            pem = self._credentials.certificate.encode()
            curl.setopt(pycurl.SSLCERT_BLOB, pem)
            curl.setopt(pycurl.SSLKEY_BLOB, pem)
        curl.body = bytearray()
        curl.setopt(pycurl.WRITEFUNCTION, curl.body.extend)
        return curl

    def _finish_what_is_done(self) -> int:
        count = 0
        more = True
        while more:
            more, answered, failed = self._multi.info_read()
            for curl in answered:
                self._answered(curl, self._taken_back(curl))
            for curl, number, message in failed:
                self._failed(curl, self._taken_back(curl), f"curl {number}: {message}")
            if answered:
                self._heard_at = time.monotonic()
            elif any(number == pycurl.E_OPERATION_TIMEDOUT for _, number, _ in failed):
                self._leave_if_silent()
            count += len(answered) + len(failed)
        return count

    def _leave_if_silent(self) -> None:
        """Ends a connection on which nothing comes any more: libcurl would give it each further notification, too."""
        if time.monotonic() - self._heard_at < SILENT_SECONDS:
            return
        logger.warning("APNs is silent: %d notifications go to a new connection", len(self._in_flight))
        for curl in list(self._in_flight):
            self._failed(curl, self._taken_back(curl), "no answer")
        while self._idle:
            self._idle.pop().close()
        self._multi.close()
        self._multi = self._new_multi()

    def _taken_back(self, curl: pycurl.Curl) -> Notification:
        self._multi.remove_handle(curl)
        return self._in_flight.pop(curl)

    def _answered(self, curl: pycurl.Curl, one: Notification) -> None:
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        self._idle.append(curl)
        if status == 200:
            one.batch.ended()
            return
        answer = _read(bytes(curl.body))
        curl.body.clear()
        reason = str(answer.get("reason", status))
        if status in TRIED_AGAIN:
            self._again(one, f"{status} {reason}")
        elif reason == "ExpiredProviderToken":
            self._authorization.has_expired()
            self._again(one, f"{status} {reason}")
        elif status == 403:  # it is us whom Apple does not know: no fault of the notification
            logger.error("APNs refuses %s: %s %s", self._credentials.topic, status, reason)
            one.batch.ended(one.token, error=f"{status} {reason}")
        else:
            logger.warning("APNs refused a notification for %s: %s %s", self._credentials.topic, status, reason)
            if reason in DEAD:
                since = answer.get("timestamp")  # in milliseconds
                self._on_dead(since / 1000 if isinstance(since, int) else time.time(), one.token)
            one.batch.ended(one.token, refused=reason)

    def _failed(self, curl: pycurl.Curl, one: Notification, error: str) -> None:
        curl.close()  # of a stream that was cut, nothing is to be used again
        self._again(one, error)

    def _again(self, one: Notification, error: str) -> None:
        """Sends a notification once more after 0.2, 0.4, 0.8 … s, unless its batch's time is over by then."""
        backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**one.tries) * random.uniform(0.75, 1.25)
        one.tries += 1
        at = time.monotonic() + backoff
        if at > one.batch.until:
            one.batch.ended(one.token, error=error)
        else:
            heapq.heappush(self._later, (at, next(self._numbers), one))


def _read(body: bytes) -> dict:
    """What Apple says of a refusal: {reason, timestamp?}."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}

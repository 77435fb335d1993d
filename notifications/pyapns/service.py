"""pyapns' contract over XML-RPC, on loopback: whoever may speak to it may notify all phones.

    provision(app_id, credentials, environment, timeout=15)
    notify(app_id, token or [token, …], notification or [notification, …]) → [[token, reason], …]
    feedback(app_id) → [[time, token], …]

As with pyapns, except that `notify` returns when APNs has answered, so that what it took is not lost when this process
dies. It returns those that were not delivered, with Apple's reason if they were refused for good, and "Undelivered" if
they are to be sent again, under the same "id". If that is all of them, it faults (503).
Instead of its structs, `notify` also takes their JSON text, which costs an eighth of the parsing.
"""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Lock
from xmlrpc.client import Fault
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import orjson
from django.conf import settings

from notifications.pyapns.apns import UNDELIVERED, Batch, Content, Full, Notification, Sender
from notifications.pyapns.authorization import Authorization, Credentials
from workers import sentry

logger = logging.getLogger(__name__)

CONNECTIONS = 2  # of an app, each with a thread: most of its time goes into libcurl, which needs no GIL
MOST_BYTES = 16 * 1024 * 1024  # of a call
MOST_DEAD = 100_000  # device tokens kept for `feedback`
IDLE_SECONDS = 300  # after which a caller's connection is closed
# As HTTP has them.
INVALID, UNKNOWN, INTERNAL, UNAVAILABLE = 400, 404, 500, 503


class App:
    """A provisioned app: its connections, and the device tokens that APNs said were dead.

    Raises ValueError when the credentials' key or certificate is none.
    """

    def __init__(self, credentials: Credentials, environment: str, timeout: int) -> None:
        self.made_of = credentials, environment, timeout
        self.timeout = timeout
        self._dead: list[tuple[datetime, str]] = []
        self._lock = Lock()
        url, authorization = settings.APNS_URLS[environment], Authorization(credentials)
        self._senders = [
            Sender(url, credentials, authorization, settings.APNS_CA_FILE, self._note_dead) for _ in range(CONNECTIONS)
        ]
        for sender in self._senders:
            sender.start()

    def put(self, notifications: list[Notification]) -> None:
        """Raises Full."""
        min(self._senders, key=Sender.backlog).put(notifications)

    def stop(self) -> None:
        for sender in self._senders:
            sender.stop()

    def _note_dead(self, since: float, token: str) -> None:
        with self._lock:
            self._dead.append((datetime.fromtimestamp(since, UTC), token))
            del self._dead[:-MOST_DEAD]

    def take_dead(self) -> list[tuple[datetime, str]]:
        with self._lock:
            dead, self._dead = self._dead, []
        return dead


class Service:
    """What can be called."""

    def __init__(self) -> None:
        self._apps: dict[str, App] = {}
        self._lock = Lock()

    def provision(self, app_id: str, credentials: dict | str, environment: str, timeout: int = 15) -> bool:
        """Makes an app known, or known anew. `environment` is "production" or "sandbox", `timeout` in seconds.

        `credentials` is {topic, key, key_id, team_id} for a signing key (the text of a .p8 file), or
        {topic, certificate} for a certificate with its key (the text of a PEM file, or its path).
        """
        if environment not in settings.APNS_URLS:
            raise Fault(INVALID, f"environment: {environment!r} is neither 'production' nor 'sandbox'")
        if not isinstance(timeout, int) or not 1 <= timeout <= 60:
            raise Fault(INVALID, f"timeout: {timeout!r} is not between 1 and 60 seconds")
        made_of = _credentials(credentials), environment, timeout
        with self._lock:
            before = self._apps.get(app_id)
            if before is None or before.made_of != made_of:
                try:
                    self._apps[app_id] = App(*made_of)
                except ValueError as error:
                    raise Fault(INVALID, f"credentials: {error}") from None
                if before:
                    before.stop()
        return True

    def notify(self, app_id: str, tokens: str | list[str], notifications: dict | str | list) -> list[list[str]]:
        """Delivers a notification to a device, or one to each of several, or each of several to one of as many."""
        app = self._app(app_id)
        tokens = tokens if isinstance(tokens, list) else [tokens]
        if not tokens:
            return []
        batch = Batch(until=time.monotonic() + app.timeout, left=len(tokens))
        try:
            if isinstance(notifications, str):
                notifications = orjson.loads(notifications)
            if isinstance(notifications, list) and len(notifications) != len(tokens):
                raise Fault(INVALID, f"notifications: {len(notifications)} for {len(tokens)} tokens")
            if isinstance(notifications, list):
                contents = [Content.of(one) for one in notifications]
            else:
                contents = [Content.of(notifications)] * len(tokens)
            made = [content.to(token, batch) for token, content in zip(tokens, contents, strict=True)]
        except (ValueError, TypeError, AttributeError) as error:
            raise Fault(INVALID, f"notification: {error}") from None
        try:
            app.put(made)
        except Full as error:
            raise Fault(UNAVAILABLE, f"the queue is full: {error}; try again later") from None
        # The sender keeps the time; some more for what is on its way then.
        if not batch.done.wait(app.timeout + 2):
            raise Fault(UNAVAILABLE, "no answer from the sender")
        if len(batch.undelivered) == len(tokens):
            raise Fault(UNAVAILABLE, f"{len(tokens)} of {len(tokens)} were not delivered: {batch.error}")
        return [list(refused) for refused in batch.refused] + [[token, UNDELIVERED] for token in batch.undelivered]

    def feedback(self, app_id: str) -> list[list]:
        """The device tokens that have turned out dead since the last call, each with when (UTC) it did."""
        return [[since, token] for since, token in self._app(app_id).take_dead()]

    def _app(self, app_id: str) -> App:
        if app_id not in self._apps:
            raise Fault(UNKNOWN, f"app_id: {app_id!r} is not provisioned")
        return self._apps[app_id]


def _credentials(given: dict | str) -> Credentials:
    fields = {"certificate": given} if isinstance(given, str) else given
    if not isinstance(fields, dict):
        raise Fault(INVALID, "credentials: must be a struct, or a certificate")
    for name, value in fields.items():
        # A topic with a line of its own would be a header of its own. PEM has lines.
        is_pem = name in ("certificate", "key")
        if not isinstance(value, str) or not value.isascii() or not (is_pem or value.isprintable()):
            raise Fault(INVALID, f"credentials: {name} is no text in ASCII")
    fields = {"topic": settings.APNS_TOPIC} | fields
    if "certificate" in fields:
        fields["certificate"] = _pem(fields["certificate"])
    try:
        credentials = Credentials(**fields)
    except TypeError:
        raise Fault(INVALID, f"credentials: {sorted(fields)} are not those of a key or of a certificate") from None
    if bool(credentials.certificate) == bool(credentials.key and credentials.key_id and credentials.team_id):
        raise Fault(INVALID, "credentials: give {topic, key, key_id, team_id}, or {topic, certificate}")
    return credentials


def _pem(certificate: str) -> str:
    """The text of a PEM file. pyapns took that, or the file's path, and so do we."""
    if "-----BEGIN " in certificate or not certificate:
        return certificate
    try:
        if Path(certificate).is_file():
            return Path(certificate).read_text("ascii")
    except (OSError, ValueError):
        pass
    raise Fault(INVALID, "credentials: certificate is neither PEM nor the path of such a file")


class Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/", "/RPC2")
    protocol_version = "HTTP/1.1"  # callers keep their connections
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            self.send_error(413, f"a call may have {MOST_BYTES} bytes")
            return
        super().do_POST()


class Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Handler, logRequests=False, allow_none=True)
        self.service = Service()
        self.register_instance(self.service)

    def _dispatch(self, method: str, params: tuple) -> object:
        try:
            return super()._dispatch(method, params)
        except Fault:
            raise
        except Exception as error:
            logger.exception("%s", method)
            sentry.capture(error)
            raise Fault(INTERNAL, f"{type(error).__name__}: {error}") from None

"""How the workers reach the pyapns service."""

import http.client
import json
import threading
from collections.abc import Sequence
from xmlrpc.client import Error, ServerProxy, Transport

from django.conf import settings

CONNECT_AND_ANSWER_SECONDS = 8  # more than the service gives APNs; two calls are less than a job may take

_local = threading.local()


class Unavailable(Exception):
    """The service, or APNs behind it, did not take all of the notifications: notify again later, with the same IDs."""


class _Transport(Transport):
    def make_connection(self, host: str) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = CONNECT_AND_ANSWER_SECONDS
        return connection


def notify(environment: str, tokens: Sequence[str], notifications: Sequence[dict]) -> list[tuple[str, str]]:
    """Delivers one notification to each device; returns those that were not delivered: (token, reason).

    The reason is Apple's if it refused for good, else UNDELIVERED, for what is to be sent again, under the same ID.

    `environment` is "production" or "sandbox"; a notification is a payload as APNs has it (notifications/pyapns).
    Raises Unavailable.
    """
    try:
        # JSON in ASCII, for not every character may be in XML.
        refused = _service().notify(environment, list(tokens), json.dumps(list(notifications)))
    except (Error, OSError, http.client.HTTPException) as error:
        _local.__dict__.clear()
        raise Unavailable(f"{settings.PYAPNS_URL}: {error}") from error
    return [(token, reason) for token, reason in refused]


def _service() -> ServerProxy:
    """This thread's connection."""
    if not hasattr(_local, "service"):
        _local.service = ServerProxy(settings.PYAPNS_URL, transport=_Transport(), allow_none=True)
    return _local.service

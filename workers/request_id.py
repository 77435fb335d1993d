"""The ID of the request at hand, for each line of its log. nginx makes it, and tells it to the client as well."""

import logging
import re
import secrets
from contextvars import ContextVar

# As nginx makes them, and as Sentry names its events: 32 hexadecimal digits.
FORM = re.compile(r"[0-9a-f]{32}")
_current: ContextVar[str] = ContextVar("request_id", default="")


def begin(given: str) -> None:
    """A request begins in this thread, with nginx' ID, or with one of ours if it did not come through nginx."""
    _current.set(given if FORM.fullmatch(given) else secrets.token_hex(16))


def current() -> str:
    """ "" where there is no request."""
    return _current.get()


class Filter(logging.Filter):
    """Gives each line of the log its `request_id`, "-" where there is no request (settings.LOGGING)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current() or "-"
        return True

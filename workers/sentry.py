"""What Sentry gets of failures: which, and where in the code (docs/errors.md). Nothing that people wrote, no secrets;
of a user, the ID alone.

An error's message may quote a text, or a URL with an access token in it. So messages stay in our log, where a request's
lines have its ID, and in the outbox (`last_error`), of which Sentry gets the row's name.
"""

import time
from typing import Any

import sentry_sdk
from django.conf import settings
from django.http import HttpRequest

from workers import request_id
from workers.models import OutboxJob
from workers.status import name_of

FLUSH_SECONDS = 2
AWAY_SECONDS = 1  # of a process, in which one event is enough of a server that is away: to make one takes 4 ms of CPU
_next_away = 0.0


def start(program: str) -> None:
    """To be called in each program, before it forks or after: each process begins to send with its first event. Without
    SENTRY_DSN nothing is sent.

    What is captured goes out in the background, from a queue that takes 100; what is too much for that is dropped.
    """
    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        release=settings.RELEASE,
        environment=settings.SENTRY_ENVIRONMENT,
        sample_rate=settings.SENTRY_SAMPLE_RATE,
        default_integrations=False,  # they would send requests, what is logged, and what the process was called with
        include_local_variables=False,
        before_send=_without_messages,
    )
    sentry_sdk.get_global_scope().set_tag("program", program)


def capture(error: BaseException) -> None:
    """Sends a failure that is neither a request's nor a job's. Like the others it goes out in the background, and never
    fails itself."""
    sentry_sdk.capture_exception(error)


def capture_request(request: HttpRequest, error: BaseException, user_id: int | None) -> str:
    """Sends a request's failure. Returns the event's ID, which is the request's, for the answer."""
    event_id = request_id.current()

    def name(event: dict, hint: dict) -> dict:
        return event | {"event_id": event_id}

    with sentry_sdk.new_scope() as scope:
        scope.add_event_processor(name)
        scope.set_tag("request_id", event_id)
        match = request.resolver_match
        scope.set_transaction_name(f"{request.method} /{match.url_name or match.route}" if match else request.method)
        if user_id is not None:
            scope.set_user({"id": str(user_id)})
        scope.capture_exception(error)
    return event_id


def capture_away(request: HttpRequest, error: BaseException, user_id: int | None) -> str:
    """`capture_request` for a server of ours that is away, which may fail all requests: one of them in AWAY_SECONDS."""
    global _next_away
    if time.monotonic() >= _next_away:
        _next_away = time.monotonic() + AWAY_SECONDS
        capture_request(request, error, user_id)
    return request_id.current()


def capture_job(row: OutboxJob, error: BaseException) -> None:
    """Sends a job's failure."""
    with sentry_sdk.new_scope() as scope:
        scope.set_transaction_name(row.job)
        scope.set_tag("job", row.job)
        args = {name: _shown(value) for name, value in row.args.items()}
        scope.set_context("job", {"row": name_of(row), "attempt": row.attempts, "args": args})
        scope.capture_exception(error)


def flush() -> None:
    """Waits until what was captured is sent, for a while: before the process ends."""
    sentry_sdk.flush(FLUSH_SECONDS)


def _without_messages(event: dict, hint: dict) -> dict:
    for exception in event["exception"]["values"]:
        exception["value"] = ""
    return event


def _shown(value: Any) -> str:
    """IDs as text, since browsers round large numbers; of what people may have written, how much it is."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, str | list | dict) else str(value)

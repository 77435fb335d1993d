"""What Sentry gets of jobs that fail: which ones, and where in the code. Nothing that people wrote, and no secrets.

An error's message may quote a text, or a URL with an access token in it. So messages stay in our log and in the outbox
(`last_error`), of which Sentry gets the row's name.
"""

from typing import Any

import sentry_sdk
from django.conf import settings

from workers.models import OutboxJob
from workers.status import name_of

FLUSH_SECONDS = 2


def start() -> None:
    """To be called in each process, after the fork. Without SENTRY_DSN nothing is sent."""
    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        default_integrations=False,  # they would send what is logged, and what the process was called with
        include_local_variables=False,
        before_send=_without_messages,
    )


def capture(row: OutboxJob, error: BaseException) -> None:
    """Sends a job's failure. It goes out in the background, and never fails itself."""
    with sentry_sdk.new_scope() as scope:
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

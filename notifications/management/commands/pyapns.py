"""Runs the service that talks to APNs, until it is told to stop (SIGTERM). See docs/push.md."""

import logging
import signal
import socket
import threading
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from gunicorn.systemd import sd_notify

from notifications.pyapns.service import Server
from workers import sentry

logger = logging.getLogger(__name__)

# Seconds. What is not delivered by then is a job for later: a worker has others to do.
WORKERS_WAIT = 5


def loopback_of(url: str) -> tuple[str, int]:
    """Where to listen. Raises CommandError if others than this host could come there: they could notify all phones."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    try:
        is_loopback = ip_address(socket.gethostbyname(host)).is_loopback
    except OSError as error:
        raise CommandError(f"PYAPNS_URL: {host!r}: {error}") from None
    if not is_loopback:
        raise CommandError(f"PYAPNS_URL: {host!r} is not of loopback, and the service listens nowhere else")
    return host, port


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        sentry.start("pyapns")
        with Server(loopback_of(settings.PYAPNS_URL)) as server:
            if settings.APNS_KEY_FILE:
                key = {
                    "key": Path(settings.APNS_KEY_FILE).read_text(),
                    "key_id": settings.APNS_KEY_ID,
                    "team_id": settings.APNS_TEAM_ID,
                }
                # Our workers call the app by the environment, and need no key of their own.
                for environment in settings.APNS_URLS:
                    server.service.provision(environment, key, environment, WORKERS_WAIT)
            for signum in (signal.SIGTERM, signal.SIGINT):
                # What is on its way is left to the callers, who notify again. (`shutdown` waits for `serve_forever`.)
                signal.signal(signum, lambda *_: threading.Thread(target=server.shutdown).start())
            sd_notify("READY=1", logger)
            server.serve_forever()

"""Runs the service that talks to APNs, until it is told to stop (SIGTERM). See docs/push.md."""

import signal
import threading
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand

from notifications.pyapns.service import Server

# Seconds. What is not delivered by then is a job for later: a worker has others to do.
WORKERS_WAIT = 5


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        address = urlsplit(settings.PYAPNS_URL)
        with Server((address.hostname, address.port)) as server:
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
            server.serve_forever()

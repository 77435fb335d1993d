"""Does jobs until it is told to stop (SIGTERM); the one at hand is finished first."""

from django.core.management.base import BaseCommand

from workers.worker import stop_on_signals, work_until


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        work_until(stop_on_signals())

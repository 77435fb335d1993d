"""Hands the outbox's jobs to gearmand again that were not done, each second, until it is told to stop (SIGTERM)."""

from django.core.management.base import BaseCommand

from workers.worker import relay_until, stop_on_signals


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        relay_until(stop_on_signals())

"""The parking lot: `jobs parked` lists the jobs that were given up, `jobs replay` lets them try again."""

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from workers import outbox
from workers.models import OutboxJob


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("action", choices=["parked", "replay"])
        parser.add_argument("jobs", nargs="*", help="replay these alone, named as `parked` names them: a:17 b:4")

    def handle(self, *args, **options) -> None:
        parked = [
            row
            for database in ["default", *settings.SHARD_SERVERS]
            for row in OutboxJob.objects.using(database).exclude(parked_at=None).order_by("parked_at")
        ]
        if unknown := set(options["jobs"]) - {name_of(row) for row in parked}:
            raise CommandError(f"not parked: {', '.join(sorted(unknown))}")
        if options["action"] == "parked":
            for row in parked:
                print(f"{name_of(row)}  {row.parked_at:%Y-%m-%d %H:%M:%S}  {row.job} {row.args}")
                print(f"    {row.last_error.strip().splitlines()[-1]}")
            print(f"{len(parked)} parked")
            return
        chosen = [row for row in parked if not options["jobs"] or name_of(row) in options["jobs"]]
        for row in chosen:
            outbox.replay(row)
        print(f"{len(chosen)} will be tried again")


def name_of(row: OutboxJob) -> str:
    return f"{row._state.db}:{row.id}"

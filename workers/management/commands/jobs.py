"""What is still to be done: `status` counts it, `parked` lists what was given up, `replay` lets that try again."""

import json

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from workers import outbox
from workers.registry import all_jobs
from workers.status import STATES, counts, name_of, parked, totals


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="how many wait, run and are parked, of each queue and of each job")
        status.add_argument("--json", action="store_true")
        actions.add_parser("parked", help="the jobs that were given up, and why")
        replay = actions.add_parser("replay", help="let parked jobs try again, from the first attempt")
        replay.add_argument("jobs", nargs="*", metavar="ID", help="as `parked` shows them: a:17 b:4")
        replay.add_argument("--all", action="store_true")

    def handle(self, *args, action: str, **options) -> None:
        match action:
            case "status":
                show_status(options["json"])
            case "parked":
                show_parked()
            case "replay":
                replay(options["jobs"], options["all"])


def show_status(as_json: bool) -> None:
    """Raises CommandError when a database did not answer, after what the others said."""
    all_jobs()  # which know their queues
    jobs, away = counts()
    queues = totals(jobs)
    now = timezone.now()
    for counted in (*jobs.values(), *queues.values()):
        oldest = counted.pop("oldest")
        counted["oldest_seconds"] = None if oldest is None else round((now - oldest).total_seconds(), 1)
    if as_json:
        print(json.dumps({"queues": queues, "jobs": jobs, "away": away}))
    else:
        show_table("queue", queues, (*STATES, "oldest_seconds"))
        print()
        show_table("job", jobs, (*STATES, "oldest_seconds", "queue"))
    if away:
        raise CommandError("away, and not counted: " + "; ".join(f"{name}: {why}" for name, why in away.items()))


def show_table(title: str, rows: dict[str, dict], columns: tuple[str, ...]) -> None:
    print(f"{title:32}" + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        print(f"{name:32}" + "".join(f"{'' if row[column] is None else row[column]:>15}" for column in columns))


def show_parked() -> None:
    rows = parked()
    for row in rows:
        print(f"{name_of(row)}  {row.parked_at:%Y-%m-%d %H:%M:%S}  {row.job} {row.args}")
        print(f"    {row.last_error.strip().splitlines()[-1]}")
    print(f"{len(rows)} parked")


def replay(names: list[str], everything: bool) -> None:
    if bool(names) == everything:
        raise CommandError("replay which? Name some (a:17 b:4), or say --all")
    rows = parked()
    if unknown := set(names) - {name_of(row) for row in rows}:
        raise CommandError(f"not parked: {', '.join(sorted(unknown))}")
    chosen = [row for row in rows if everything or name_of(row) in names]
    for row in chosen:
        outbox.replay(row)
    print(f"{len(chosen)} will be tried again")

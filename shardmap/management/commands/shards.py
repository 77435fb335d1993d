"""Where the logical shards are, and moving them to other physical servers (docs/sharding.md).

shards status             each server: shards, size, missing migrations, IDs ahead of the clock; moves; old copies
shards list a             the shards on a server, each with its size in MB
shards move 42 --to b     moves a shard while the site runs, or goes on with a move that was cut short
shards drain a --to b     moves all shards of a server, one after another
shards undo 42            takes back a move that has not been switched yet (--target-lost: without asking its target)
shards drop-old 42        drops the copy that a finished move has left behind
"""

from collections import Counter

import psycopg2
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from shardmap import moves
from shardmap.ids import EPOCH_MS, TICKS
from shardmap.migrate import missing, plan
from shardmap.models import LogicalShard, ShardMove
from shardmap.shards import placement, schema_name

# In seconds; 0 as long as the clock is where it belongs.
IDS_AHEAD = f"""
    SELECT greatest(0, coalesce(max(last_value), 0) / {1000 * TICKS}.0
                       - (date_part('epoch', clock_timestamp()) - {EPOCH_MS / 1000}))
    FROM pg_sequences WHERE schemaname ~ '^shard[0-9]{{4}}$' AND sequencename = 'id_opened'
"""

SIZES = """
    SELECT nspname, sum(pg_total_relation_size(pg_class.oid)) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relkind = 'r' AND nspname ~ '^shard[0-9]{4}$' GROUP BY 1
"""


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("status")
        actions.add_parser("list").add_argument("server", choices=settings.SHARD_SERVERS)
        move = actions.add_parser("move")
        move.add_argument("shard", type=int)
        move.add_argument("--to", required=True, metavar="SERVER")
        drain = actions.add_parser("drain")
        drain.add_argument("server")
        drain.add_argument("--to", required=True, metavar="SERVER")
        undo = actions.add_parser("undo")
        undo.add_argument("shard", type=int)
        undo.add_argument("--target-lost", action="store_true")
        actions.add_parser("drop-old").add_argument("shard", type=int)

    def handle(self, *args, **options) -> None:
        settings.DATABASE_ANSWER_SECONDS = 24 * 3600  # copies and checksums of a large shard take their time
        try:
            match options["action"]:
                case "status":
                    status()
                case "list":
                    list_shards(options["server"])
                case "move":
                    move(options["shard"], options["to"])
                case "drain":
                    drain(options["server"], options["to"])
                case "undo":
                    server = moves.undo(options["shard"], options["target_lost"])
                    print(f"shard {options['shard']} stays on {server}")
                case "drop-old":
                    for dropped in moves.drop_old(options["shard"]) or ["nothing: there is no old copy"]:
                        print(f"dropped {dropped}")
        except (moves.MoveFailed, psycopg2.Error) as error:
            raise CommandError(str(error)) from error


def status() -> None:
    places = Counter(placement().values())
    behind = Counter(placement()[shard] for shard in missing(plan()))
    print(f"{'server':10}{'shards':>8}{'size':>12}{'lack migrations':>18}{'IDs ahead':>14}")
    for server in settings.SHARD_SERVERS:
        with connections[server].cursor() as cursor:
            # Of all shards, old copies and the catalogue. Adding up tables takes 5 s where there are 2000 shards.
            cursor.execute("SELECT pg_database_size(current_database())")
            ((size,),) = cursor.fetchall()
            cursor.execute(IDS_AHEAD)
            ((ahead,),) = cursor.fetchall()
        print(f"{server:10}{places[server]:>8}{size / 2**20:>9.1f} MB{behind[server]:>18}{ahead:>12.1f} s")
    for begun in ShardMove.objects.order_by("shard"):
        print(f"shard {begun.shard} is on its way from {begun.source} to {begun.target} since {begun.began_at:%F %T}")
    for server, schema in moves.old_copies():
        print(f"{server} still has {schema}")


def list_shards(server: str) -> None:
    with connections[server].cursor() as cursor:
        cursor.execute(SIZES)
        sizes = dict(cursor.fetchall())
    for shard in sorted(shard for shard, its_server in placement().items() if its_server == server):
        print(f"{shard:>4} {sizes.get(schema_name(shard), 0) / 2**20:>10.1f}")


def move(shard: int, to: str) -> None:
    moves.move(shard, to, lambda text: print(f"shard {shard}: {text}", flush=True))
    print(f"shard {shard} is on {to}; when all is well: shards drop-old {shard}")


def drain(server: str, to: str) -> None:
    begun = ShardMove.objects.filter(source=server, target=to).values_list("shard", flat=True)
    there = LogicalShard.objects.filter(database=server).values_list("shard", flat=True)
    for shard in sorted({*begun, *there}):
        move(shard, to)

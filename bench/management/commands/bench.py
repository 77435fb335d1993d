"""Measures what the README states: `manage.py bench NAME`, on the running local stack."""

import json
import os
import platform
import sys
from importlib import import_module

from django.core.management.base import BaseCommand, CommandError

from bench import own_stack

NAMES = {
    "photo": "from POST /v1/media to the top of a follower's feed",
    "shardmap": "bytes an entry and lookups of the photo→user map, beside SET and the recipe of 2011",
    "ids": "rows inserted a second with our IDs, beside a bigserial",
    "shards": "thousands of logical shards: to make them, to ask them through pgbouncer and directly",
    "feed_read": "a warm page of the home feed, beside an empty view and SQL joins",
    "fan_out": "deliveries a second into followers' feeds by one worker, beside pipelines and a call a feed",
    "push": "notifications from pyapns' `notify` to APNs' 200, beside httpx and @parse/node-apn",
    "freshness": "from the answer to POST /v1/media to a follower's feed, at ten photos a second",
    "jobs": "jobs a second, and from the commit to the start of one, with 50 worker processes",
}


def machine() -> str:
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {models[0] if models else platform.machine()}, {memory:.0f} GiB, {platform.system()}"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("name", choices=NAMES, help="; ".join(f"{name}: {what}" for name, what in NAMES.items()))
        parser.add_argument(
            "--n",
            type=int,
            help="how many entries, shards, followers, people or photos",
        )
        parser.add_argument("--plot", metavar="FILE.png", help="draw what was compared")
        parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")

    def handle(self, *args, **options) -> None:
        name = options["name"]
        bench = import_module(f"bench.{name}")
        if options["plot"] and not hasattr(bench, "PLOTTED"):
            raise CommandError(f"{name} compares nothing that could be drawn")
        if hasattr(bench, "OWN_STACK") and not own_stack.is_here():
            sys.exit(own_stack.run_in_it(sys.argv[1:]))
        print(f"{name}: {NAMES[name]}\non {machine()}")
        size = {} if options["n"] is None else {"n": options["n"]}
        result = bench.run(**size)
        for key, value in result.items():
            print(f"  {key:32}{value:>14,}")
        if options["plot"]:
            from bench.plot import plot  # takes a second to load

            plot(options["plot"], f"{NAMES[name]}\n{machine()}", result, bench.PLOTTED)
        if options["json"]:
            print(json.dumps({"bench": name, "machine": machine(), **result}))

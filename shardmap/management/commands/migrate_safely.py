"""Migrates the directory and all shards while the old code runs, unless that would not survive a migration."""

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from shardmap.safety import MARK, unsafe


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        executor = MigrationExecutor(connection)
        # The directory has a note of each migration, whichever tables it is about.
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        wrong = [sentence for migration, _ in plan for sentence in unsafe(migration)]
        if wrong and executor.loader.applied_migrations:  # without any it is a new installation, where nothing runs
            wrong.append(f'If the code that runs now survives it, say in the migration why: {MARK} = "…"')
            raise CommandError("\n".join(wrong))
        if plan:
            call_command("migrate", interactive=False)
        call_command("migrate_shards")

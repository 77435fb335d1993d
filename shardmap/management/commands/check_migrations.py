"""Refuses migrations, of those still to be applied, that the code that runs now would not survive."""

from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from shardmap.safety import MARK, unsafe


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        executor = MigrationExecutor(connection)
        if not executor.loader.applied_migrations:
            return  # a new installation: nothing runs
        # The directory has a note of each migration, whichever tables it is about.
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if wrong := [sentence for migration, _ in plan for sentence in unsafe(migration)]:
            wrong.append(f'If the code that runs now survives it, say in the migration why: {MARK} = "…"')
            raise CommandError("\n".join(wrong))

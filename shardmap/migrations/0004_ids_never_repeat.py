"""next_id() anew: from an unlogged sequence, which tells of a crash, a failover or a restore (see shardmap.ids)."""

from django.db import migrations

from shardmap.ids import NEXT_ID_SQL

# Renaming the old sequence waits for all who have drawn from it, and holds off the others. Whoever is about to draw in
# the old function then gets an error: better that than a tick which the new one gives out as well.
NEW_SEQUENCES = """
ALTER SEQUENCE "logical".id_clock RENAME TO id_clock_before;
CREATE SEQUENCE "logical".id_opened AS bigint;
CREATE UNLOGGED SEQUENCE "logical".id_ticks AS bigint MINVALUE 0 START 0;
SELECT setval('"logical".id_opened', ((last_value >> 10) + 1) << 10) FROM "logical".id_clock_before;
SELECT setval('"logical".id_ticks', last_value) FROM "logical".id_opened;
DROP SEQUENCE "logical".id_clock_before;
"""


class Migration(migrations.Migration):
    dependencies = [("shardmap", "0003_moves")]

    operations = [migrations.RunSQL(NEW_SEQUENCES + NEXT_ID_SQL, hints={"sharded": True})]

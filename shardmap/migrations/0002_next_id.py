"""The function that makes IDs, in each logical shard."""

from django.db import migrations

from shardmap.ids import NEXT_ID_SQL


class Migration(migrations.Migration):
    dependencies = [("shardmap", "0001_initial")]

    operations = [migrations.RunSQL(NEXT_ID_SQL, hints={"sharded": True})]

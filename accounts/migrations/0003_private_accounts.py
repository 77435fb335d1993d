"""Edges get a status, for requests to private accounts, and a time; blocks get their mirror."""

from django.db import migrations, models

import shardmap.fields

EDGES = [(0, "None"), (1, "Requested"), (2, "Follows")]
FROM_ACTIVE = """
UPDATE "logical"."accounts_follow" SET status = 2 WHERE active;
UPDATE "logical"."accounts_follower" SET status = 2 WHERE active;
"""
# The mirrors of blocks that there are already: in other shards, so by the outbox.
MIRROR_BLOCKS = """
INSERT INTO "public"."workers_outbox" (job, args, attempts, last_error)
SELECT 'accounts.mirror_block', jsonb_build_object('blocker_id', blocker_id, 'blocked_id', blocked_id), 0, ''
FROM "logical"."accounts_block";
"""


def since_and_status(model):
    return [
        migrations.AddField(model, "status", models.SmallIntegerField(choices=EDGES, default=0), preserve_default=False),
        migrations.AddField(model, "since", models.BigIntegerField(db_default=shardmap.fields.NextId())),
    ]


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_phone"), ("shardmap", "0002_next_id"), ("workers", "0001_initial")]

    operations = [
        migrations.AddField("user", "is_private", models.BooleanField(db_default=False)),
        *since_and_status("follow"),
        *since_and_status("follower"),
        migrations.RunSQL(FROM_ACTIVE, hints={"sharded": True}),
        migrations.RemoveField("follow", "active"),
        migrations.RemoveField("follower", "active"),
        migrations.AddIndex(
            "follow", models.Index(fields=["follower_id", "status", "since"], name="follow_since")
        ),
        migrations.AddIndex(
            "follower", models.Index(fields=["followee_id", "status", "since"], name="follower_since")
        ),
        migrations.CreateModel(
            name="BlockedBy",
            fields=[
                ("pk", models.CompositePrimaryKey("blocked_id", "blocker_id", blank=True, editable=False, primary_key=True, serialize=False)),
                ("blocked_id", models.BigIntegerField()),
                ("blocker_id", models.BigIntegerField()),
            ],
            options={"db_table": '"logical"."accounts_blockedby"'},
        ),
        migrations.RunSQL(MIRROR_BLOCKS, hints={"sharded": True}),
    ]

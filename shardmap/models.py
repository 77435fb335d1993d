"""The directory's tables about shards, and what each physical database knows of its own."""

from django.db import models

from shardmap.shards import physical_table


class LogicalShard(models.Model):
    """Where a logical shard is: data, so that a shard can move while the site runs."""

    shard = models.IntegerField(primary_key=True)
    database = models.CharField(max_length=63)  # an alias of settings.DATABASES


class ShardMove(models.Model):
    """A move of a logical shard that has begun and is not finished (shardmap.moves)."""

    shard = models.IntegerField(primary_key=True)
    source = models.CharField(max_length=63)
    target = models.CharField(max_length=63)
    began_at = models.DateTimeField(auto_now_add=True)


class ShardMigration(models.Model):
    """A migration that a logical shard has. Kept beside the shards, so that both commit in one transaction."""

    pk = models.CompositePrimaryKey("shard", "app", "name")
    shard = models.IntegerField()
    app = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    applied = models.DateTimeField(db_default=models.functions.Now())

    class Meta:
        db_table = physical_table("shardmap_migration")

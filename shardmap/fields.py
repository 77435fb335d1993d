"""What sharded models are made of."""

from django.db.models import Func

from shardmap.shards import PLACEHOLDER


class NextId(Func):
    """The shard's next ID, made by Postgres as the row is written (see shardmap.ids)."""

    template = f"{PLACEHOLDER}.next_id()"

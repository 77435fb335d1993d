"""A user's counts: exact, because each changes in the transaction of the row that is counted."""

from django.db import connections

from shardmap.shards import current_database


def add_to_counts(user_id: int, *, media: int = 0, follows: int = 0, followed_by: int = 0) -> None:
    """Adds to a user's counts, within the shard transaction of the row that is counted.

    The caller forgets `COUNTS.key(user_id)` after the commit.
    """
    with connections[current_database()].cursor() as cursor:
        # One statement: two requests that count at once must both count, and the first of all finds no row yet.
        cursor.execute(
            """
            INSERT INTO "logical"."accounts_counts" AS counts (user_id, media, follows, followed_by)
            VALUES (%(user_id)s, greatest(0, %(media)s), greatest(0, %(follows)s), greatest(0, %(followed_by)s))
            ON CONFLICT (user_id) DO UPDATE SET
                media = counts.media + %(media)s,
                follows = counts.follows + %(follows)s,
                followed_by = counts.followed_by + %(followed_by)s
            """,
            {"user_id": user_id, "media": media, "follows": follows, "followed_by": followed_by},
        )

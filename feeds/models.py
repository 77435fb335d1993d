"""What happened to a user, in the user's shard."""

from django.db import models

from shardmap.fields import NextId
from shardmap.shards import sharded_table


class Kind(models.TextChoices):
    LIKE = "like"
    COMMENT = "comment"
    MENTION = "mention"  # in a comment, or in a caption
    FOLLOW = "follow"
    REQUEST = "request"  # to follow, not answered yet


class Activity(models.Model):
    """One thing that somebody did. Whether it still holds is known to the row that it was made of."""

    id = models.BigIntegerField(primary_key=True, db_default=NextId())
    recipient_id = models.BigIntegerField()
    kind = models.CharField(max_length=7, choices=Kind)
    actor_id = models.BigIntegerField()
    # 0: none
    photo_id = models.BigIntegerField(default=0)
    owner_id = models.BigIntegerField(default=0)  # the photo's
    comment_id = models.BigIntegerField(default=0)

    class Meta:
        db_table = sharded_table("feeds_activity")
        constraints = [
            models.UniqueConstraint(
                fields=["recipient_id", "photo_id", "kind", "actor_id", "comment_id"], name="activity_once"
            )
        ]
        indexes = [models.Index(fields=["recipient_id", "id"], name="activity_of_recipient")]

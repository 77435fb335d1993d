"""Photos, in their owner's shard."""

from django.db import models

from shardmap.fields import NextId
from shardmap.shards import sharded_table


class Status(models.TextChoices):
    PROCESSING = "processing"  # published; visible to its owner alone
    READY = "ready"
    REJECTED = "rejected"  # not a picture; its owner reads why
    # Shown to nobody; the job photos.bury removes what it was. The row stays, so that its upload_id is never used anew:
    # the renditions' names are made of it, and caches keep them.
    DELETED = "deleted"


class Photo(models.Model):
    id = models.BigIntegerField(primary_key=True, db_default=NextId())
    owner_id = models.BigIntegerField()
    upload_id = models.CharField(max_length=32)  # also the name of the renditions, which nobody can guess
    status = models.CharField(max_length=10, choices=Status, default=Status.PROCESSING)
    # How often it was begun to be decoded. What takes its worker down each time must not come back forever.
    decodes = models.SmallIntegerField(default=0)
    message = models.CharField(max_length=300, default="")  # why it was rejected
    caption = models.CharField(max_length=2200, default="")
    filter = models.CharField(max_length=30, default="Normal")
    latitude = models.FloatField(null=True)
    longitude = models.FloatField(null=True)

    class Meta:
        db_table = sharded_table("photos_photo")
        constraints = [models.UniqueConstraint(fields=["owner_id", "upload_id"], name="photo_once_per_upload")]
        indexes = [
            models.Index(fields=["owner_id", "id"], condition=models.Q(status=Status.READY), name="photos_of_owner")
        ]

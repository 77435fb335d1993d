"""Photos, in their owner's shard."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

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
    location_id = models.BigIntegerField(null=True)
    # Exact: each changes in the transaction of the row that is counted.
    likes = models.BigIntegerField(db_default=0)
    comments = models.BigIntegerField(db_default=0)
    # The tags under which it is listed, as far as the job `photos.tag` has come.
    tags = ArrayField(models.TextField(), db_default=[])

    class Meta:
        db_table = sharded_table("photos_photo")
        constraints = [models.UniqueConstraint(fields=["owner_id", "upload_id"], name="photo_once_per_upload")]
        indexes = [
            models.Index(fields=["owner_id", "id"], condition=models.Q(status=Status.READY), name="photos_of_owner")
        ]


class Like(models.Model):
    """A like, in the photo's shard: the truth."""

    pk = models.CompositePrimaryKey("photo_id", "user_id")
    photo_id = models.BigIntegerField()
    user_id = models.BigIntegerField()
    since = models.BigIntegerField(db_default=NextId())  # when, as an ID: lists are in this order

    class Meta:
        db_table = sharded_table("photos_like")
        indexes = [models.Index(fields=["photo_id", "since"], name="like_since")]


class Liked(models.Model):
    """The same like in the shard of the one who likes, brought up to the truth by the job `photos.mirror_like`."""

    pk = models.CompositePrimaryKey("user_id", "photo_id")
    user_id = models.BigIntegerField()
    photo_id = models.BigIntegerField()
    owner_id = models.BigIntegerField()
    since = models.BigIntegerField(db_default=NextId())

    class Meta:
        db_table = sharded_table("photos_liked")
        indexes = [models.Index(fields=["user_id", "since"], name="liked_since")]


class Comment(models.Model):
    """A comment, in the photo's shard."""

    id = models.BigIntegerField(primary_key=True, db_default=NextId())
    photo_id = models.BigIntegerField()
    user_id = models.BigIntegerField()
    text = models.CharField(max_length=300)

    class Meta:
        db_table = sharded_table("photos_comment")
        indexes = [
            models.Index(fields=["photo_id", "id"], name="comments_of_photo"),
            models.Index(fields=["user_id"], name="comments_of_user"),  # for when an account is deleted
        ]


class Tag(models.Model):
    """A tag that was ever used, in the shard of its name's hash."""

    name = models.TextField(primary_key=True)
    media_count = models.BigIntegerField(default=0)  # exact: changes in the transaction of a Tagging

    class Meta:
        db_table = sharded_table("photos_tag")


class TagName(models.Model):
    """A tag that photos have, in the directory: a search by first letters knows no shard."""

    name = models.TextField(primary_key=True)
    # Of its number of photos in binary: as exact as a ranking needs, and seldom changed however hot the tag.
    digits = models.SmallIntegerField()

    class Meta:
        indexes = [models.Index(fields=["name"], opclasses=["text_pattern_ops"], name="tag_names_by_prefix")]


class Tagging(models.Model):
    """A photo under a tag, in the tag's shard."""

    pk = models.CompositePrimaryKey("name", "photo_id")
    name = models.TextField()
    photo_id = models.BigIntegerField()
    owner_id = models.BigIntegerField()
    since = models.BigIntegerField(db_default=NextId())

    class Meta:
        db_table = sharded_table("photos_tagging")
        indexes = [models.Index(fields=["name", "since"], name="tagging_since")]


class Location(models.Model):
    """A place that has a name, in the directory. Postgres makes its `position` of it (see photos.places)."""

    name = models.CharField(max_length=100)
    latitude = models.FloatField()
    longitude = models.FloatField()
    foursquare_v2_id = models.CharField(max_length=32, null=True, unique=True)  # noqa: DJ001 (unique, but for nulls)


class PlacedPhoto(models.Model):
    """Where a photo was taken, in the directory, so that photos can be found by place across all shards."""

    photo_id = models.BigIntegerField(primary_key=True)
    owner_id = models.BigIntegerField()
    location_id = models.BigIntegerField(null=True)
    latitude = models.FloatField()
    longitude = models.FloatField()

    class Meta:
        indexes = [models.Index(fields=["location_id", "photo_id"], name="photos_at_location")]


class ShareAccount(models.Model):
    """A user's account at another service, in the user's shard."""

    pk = models.CompositePrimaryKey("user_id", "service")
    user_id = models.BigIntegerField()
    service = models.CharField(max_length=10)
    username = models.CharField(max_length=100)  # as the service has it
    credentials = models.TextField()  # encrypted: photos.sharing
    is_broken = models.BooleanField(db_default=False)  # the service lets us in no longer

    class Meta:
        db_table = sharded_table("photos_shareaccount")


class Identity(models.Model):
    """Who a user is at another service, in the directory, so that friends find each other whatever their shards."""

    user_id = models.BigIntegerField()
    service = models.CharField(max_length=10)
    account_id = models.CharField(max_length=50)  # as the service has it

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user_id", "service"], name="identity_once_a_service"),
            models.UniqueConstraint(fields=["service", "account_id"], name="identity_of_one_user"),
        ]


class ShareStatus(models.TextChoices):
    WAITING = "waiting"  # for the photo to be ready, for a worker, or for the end of a rate limit
    POSTING = "posting"  # perhaps it is posted, perhaps not: photos/shares.py
    SHARED = "shared"
    FAILED = "failed"  # its owner reads why


class Share(models.Model):
    """A photo that is, or is to be, shared at another service; in the owner's shard."""

    pk = models.CompositePrimaryKey("photo_id", "service")
    photo_id = models.BigIntegerField()
    service = models.CharField(max_length=10)
    status = models.CharField(max_length=10, choices=ShareStatus, default=ShareStatus.WAITING)
    held_until = models.DateTimeField(null=True)  # no other run of the job may have it before this
    wished_at = models.DateTimeField(db_default=Now())
    post_id = models.CharField(max_length=100, default="")  # as the service has it
    message = models.CharField(max_length=300, default="")  # why it failed

    class Meta:
        db_table = sharded_table("photos_share")


class Avatar(models.Model):
    """What a user wants as avatar, and what is shown meanwhile; in the directory, as the user is."""

    user_id = models.BigIntegerField(primary_key=True)
    upload_id = models.CharField(max_length=32)
    # The object that is made of the upload. Each change has another one, since caches keep it; nobody can guess it.
    picture = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status)
    decodes = models.SmallIntegerField(default=0)  # as for photos
    message = models.CharField(max_length=300, default="")  # why it was rejected
    shown = models.CharField(max_length=200, default="")  # the user's profile_picture

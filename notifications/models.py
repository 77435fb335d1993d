"""Real-time subscriptions and phones, in the directory: neither a client nor a device token knows a shard.

And what each user wants to be told, in the user's shard.
"""

from django.db import models
from django.db.models.functions import Now

from shardmap.shards import sharded_table


class Callback(models.Model):
    """A URL of a client's. What waits for it goes there in one job after another, never in two at a time."""

    client = models.ForeignKey("oauth2_provider.Application", models.CASCADE)
    url = models.CharField(max_length=500)
    # Whether there is a job `notifications.deliver`; and which one, so that one that comes twice does nothing.
    is_busy = models.BooleanField(default=False)
    turn = models.BigIntegerField(default=0)
    # For who is on call: since when it has failed, how often in a row, and how.
    failures = models.IntegerField(default=0)
    failing_since = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=300, default="")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["client", "url"], name="callback_once")]


class Object(models.TextChoices):
    """What can be subscribed to."""

    USER = "user"  # all users who have authorized the client
    TAG = "tag"
    LOCATION = "location"
    GEOGRAPHY = "geography"


class Subscription(models.Model):
    callback = models.ForeignKey(Callback, models.CASCADE, related_name="subscriptions")
    object = models.CharField(max_length=10, choices=Object)
    target = models.CharField(max_length=100, default="")  # a tag's name, or a location's ID

    class Meta:
        indexes = [models.Index(fields=["object", "target"], name="subscriptions_to")]


class Geography(models.Model):
    """A circle on the map, which a subscription made and whose ID it has. Postgres makes its `position`."""

    subscription = models.OneToOneField(Subscription, models.CASCADE, primary_key=True)
    latitude = models.FloatField()
    longitude = models.FloatField()
    radius = models.IntegerField()  # metres


class Update(models.Model):
    """A new photo that a subscription is to be told of. Kept for a while after, so that it is told once."""

    # Both have an index below.
    callback = models.ForeignKey(Callback, models.CASCADE, db_index=False)  # that of its subscription
    subscription = models.ForeignKey(Subscription, models.CASCADE, db_index=False)
    photo_id = models.BigIntegerField()
    owner_id = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now())
    is_done = models.BooleanField(default=False)  # told, or not to be told any more

    class Meta:
        constraints = [models.UniqueConstraint(fields=["subscription", "photo_id"], name="update_once")]
        indexes = [
            models.Index(fields=["callback", "id"], condition=models.Q(is_done=False), name="updates_waiting"),
            models.Index(fields=["callback", "created_at"], name="updates_by_age"),
        ]


class Environment(models.TextChoices):
    """Which of Apple's push services knows a device token."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


class Device(models.Model):
    """A phone that somebody wants to be notified on."""

    token = models.CharField(primary_key=True, max_length=200)  # hexadecimal, lower case
    user = models.ForeignKey("accounts.User", models.CASCADE, db_index=False)
    environment = models.CharField(max_length=10, choices=Environment)
    since = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [models.Index(fields=["user", "-since"], name="devices_of_user")]


class Audience(models.TextChoices):
    """Whose doings a user is notified of."""

    OFF = "off"
    FOLLOWING = "following"  # of people whom the user follows
    EVERYONE = "everyone"


def _from_everyone() -> models.CharField:
    return models.CharField(max_length=10, choices=Audience, default=Audience.EVERYONE)


class PushSettings(models.Model):
    """What a user wants to be notified of, and when. A user without a row has the defaults."""

    user_id = models.BigIntegerField(primary_key=True)
    likes = _from_everyone()
    comments = _from_everyone()
    mentions = _from_everyone()
    follows = _from_everyone()
    follow_requests = _from_everyone()
    first_photos = _from_everyone()
    friends_joined = _from_everyone()
    # No notifications from … to, as "HH:MM" in the user's time zone; two equal ones are no hours at all.
    quiet_from = models.CharField(max_length=5, default="00:00")
    quiet_to = models.CharField(max_length=5, default="00:00")
    time_zone = models.CharField(max_length=64, default="UTC")
    language = models.CharField(max_length=2, default="en")

    class Meta:
        db_table = sharded_table("notifications_pushsettings")


class FriendTold(models.Model):
    """That a user was told of a friend who joined, in the user's shard: once is enough, however often they link."""

    pk = models.CompositePrimaryKey("user_id", "friend_id")
    user_id = models.BigIntegerField()
    friend_id = models.BigIntegerField()

    class Meta:
        db_table = sharded_table("notifications_friendtold")


class Muted(models.Model):
    """Somebody of whose doings a user is not notified, in the user's shard. Nobody else is told."""

    pk = models.CompositePrimaryKey("user_id", "muted_id")
    user_id = models.BigIntegerField()
    muted_id = models.BigIntegerField()
    since = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = sharded_table("notifications_muted")

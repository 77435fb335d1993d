"""Real-time subscriptions, in the directory: a photo's tag or place knows no shard, and neither does a client."""

from django.db import models
from django.db.models.functions import Now


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

    callback = models.ForeignKey(Callback, models.CASCADE)  # that of its subscription
    subscription = models.ForeignKey(Subscription, models.CASCADE)
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

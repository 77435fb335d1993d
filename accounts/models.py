"""Users (in the directory), and what each user's shard knows of the follow graph."""

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models.functions import Now

from shardmap.shards import sharded_table


class UserManager(BaseUserManager):
    def get_by_natural_key(self, username: str) -> "User":
        """For Django's authentication: names are stored in lower case."""
        return self.get(username=username.lower())


class User(AbstractBaseUser):
    """An account. Its ID, small and dense, says in which shard all else of the user lives."""

    username = models.CharField(max_length=30, unique=True)  # lower case
    email = models.CharField(max_length=254, unique=True)  # lower case
    full_name = models.CharField(max_length=64)
    bio = models.CharField(max_length=150)
    website = models.CharField(max_length=200)
    profile_picture = models.CharField(max_length=200)  # a URL, or "" for the default picture
    created_at = models.DateTimeField(db_default=Now())
    last_login = None  # phones stay logged in

    USERNAME_FIELD = "username"
    EMAIL_FIELD = "email"
    objects = UserManager()


class Counts(models.Model):
    """A user's numbers, in the user's shard. Changed only in the transaction of the row that is counted."""

    user_id = models.BigIntegerField(primary_key=True)
    media = models.BigIntegerField(default=0)
    follows = models.BigIntegerField(default=0)
    followed_by = models.BigIntegerField(default=0)

    class Meta:
        db_table = sharded_table("accounts_counts")
        constraints = [
            models.CheckConstraint(
                condition=models.Q(media__gte=0, follows__gte=0, followed_by__gte=0),
                name="counts_not_negative",
            )
        ]


class Follow(models.Model):
    """The edge as its follower's shard has it: the truth, written by the request.

    An edge that ended stays as `active=False`. Each change raises the version, by which the far side tells old news.
    """

    pk = models.CompositePrimaryKey("follower_id", "followee_id")
    follower_id = models.BigIntegerField()
    followee_id = models.BigIntegerField()
    active = models.BooleanField()
    version = models.IntegerField()

    class Meta:
        db_table = sharded_table("accounts_follow")


class Follower(models.Model):
    """The same edge in its followee's shard, brought up to the truth by the job `accounts.mirror_follow`."""

    pk = models.CompositePrimaryKey("followee_id", "follower_id")
    followee_id = models.BigIntegerField()
    follower_id = models.BigIntegerField()
    active = models.BooleanField()
    version = models.IntegerField()

    class Meta:
        db_table = sharded_table("accounts_follower")


class Block(models.Model):
    """`blocker_id` does not want to be seen by `blocked_id`. In the blocker's shard."""

    pk = models.CompositePrimaryKey("blocker_id", "blocked_id")
    blocker_id = models.BigIntegerField()
    blocked_id = models.BigIntegerField()

    class Meta:
        db_table = sharded_table("accounts_block")

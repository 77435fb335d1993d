"""Users (in the directory), and what each user's shard knows of the follow graph."""

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models.functions import Now

from shardmap.fields import NextId
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
    profile_picture = models.CharField(max_length=200)  # its path below CDN_URL, or "" for the default
    is_private = models.BooleanField(db_default=False)  # photos for approved followers only
    # False: deleted. The row stays, emptied, so that the ID is never another's.
    is_active = models.BooleanField(db_default=True)
    is_staff = models.BooleanField(db_default=False)  # sees the admin (`manage.py staff`)
    created_at = models.DateTimeField(db_default=Now())
    last_login = None  # phones stay logged in

    USERNAME_FIELD = "username"
    EMAIL_FIELD = "email"
    objects = UserManager()


class SigningClient(models.Model):
    """A client whose developer wants each of its requests signed, so that a stolen token alone is of no use."""

    client = models.OneToOneField(
        "oauth2_provider.Application", models.CASCADE, primary_key=True, related_name="signing"
    )


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


class Edge(models.IntegerChoices):
    """How one user stands to another."""

    NONE = 0
    REQUESTED = 1  # the other's account is private, and has not answered yet
    FOLLOWS = 2


class Follow(models.Model):
    """The edge as its follower's shard has it: the truth.

    An edge that ended stays as `NONE`. Each change raises the version, by which the far side tells old news.
    """

    pk = models.CompositePrimaryKey("follower_id", "followee_id")
    follower_id = models.BigIntegerField()
    followee_id = models.BigIntegerField()
    status = models.SmallIntegerField(choices=Edge)
    version = models.IntegerField()
    since = models.BigIntegerField(db_default=NextId())  # when it got its status, as an ID: lists are in this order

    class Meta:
        db_table = sharded_table("accounts_follow")
        indexes = [models.Index(fields=["follower_id", "status", "since"], name="follow_since")]


class Follower(models.Model):
    """The same edge in its followee's shard, brought up to the truth by the job `accounts.mirror_follow`."""

    pk = models.CompositePrimaryKey("followee_id", "follower_id")
    followee_id = models.BigIntegerField()
    follower_id = models.BigIntegerField()
    status = models.SmallIntegerField(choices=Edge)
    version = models.IntegerField()
    since = models.BigIntegerField(db_default=NextId())

    class Meta:
        db_table = sharded_table("accounts_follower")
        indexes = [models.Index(fields=["followee_id", "status", "since"], name="follower_since")]


class Block(models.Model):
    """`blocker_id` and `blocked_id` shall not see each other; the first wants it so. In the blocker's shard."""

    pk = models.CompositePrimaryKey("blocker_id", "blocked_id")
    blocker_id = models.BigIntegerField()
    blocked_id = models.BigIntegerField()

    class Meta:
        db_table = sharded_table("accounts_block")


class BlockedBy(models.Model):
    """The same block in the shard of the blocked one, so that what a viewer may not see is known in one place."""

    pk = models.CompositePrimaryKey("blocked_id", "blocker_id")
    blocked_id = models.BigIntegerField()
    blocker_id = models.BigIntegerField()

    class Meta:
        db_table = sharded_table("accounts_blockedby")

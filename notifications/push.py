"""What a user's phones are told: the phones, and the user's wishes.

Phones are in the directory, since a device token is a name for all of the site, as a username is: whoever registers
one last has it, also if the one before lives in another shard. Their wishes are the user's, in the user's shard.
"""

from django.db import transaction
from django.db.models.functions import Now

from accounts.cached import USERS
from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.visibility import Sight, known, sight_of
from notifications.models import Device, FriendTold, Muted, PushSettings
from shardmap import cache
from shardmap.rows import execute
from shardmap.shards import on_shard, shard_transaction

MOST_DEVICES = 20  # of a user; phones that were erased or sold leave theirs behind
MOST_MUTED = 300  # people, by a user: a list without pages

DEVICES = """
    SELECT token, user_id, environment, since FROM notifications_device WHERE user_id = %s ORDER BY since DESC
"""
COLUMNS = [column.name for column in PushSettings._meta.concrete_fields]
# One question, for it is asked for each push.
WISHES = f"""
    SELECT {", ".join(f"wishes.{column}" for column in COLUMNS)}, EXISTS (
        SELECT FROM "logical"."notifications_muted" WHERE user_id = %(user_id)s AND muted_id = %(other_id)s
    )
    FROM (SELECT) AS one LEFT JOIN "logical"."notifications_pushsettings" AS wishes ON user_id = %(user_id)s
"""


def register(user_id: int, token: str, environment: str) -> Device:
    """Makes a phone the user's, and nobody else's. The user's oldest ones go when there are too many."""
    values = {"user_id": user_id, "environment": environment, "since": Now()}
    with transaction.atomic():
        device, _ = Device.objects.update_or_create(token=token, defaults=values)
        newest = Device.objects.filter(user_id=user_id).order_by("-since").values_list("token", flat=True)
        Device.objects.filter(user_id=user_id).exclude(token__in=list(newest[:MOST_DEVICES])).delete()
    return device


def unregister(user_id: int, token: str) -> None:
    """Forgets one of the user's phones, if it is one."""
    Device.objects.filter(user_id=user_id, token=token).delete()


def devices_of(user_id: int) -> list[Device]:
    """A user's phones, the latest first."""
    return [Device(*row) for row in execute(DEVICES, [user_id], "default")]


def remove(device: Device) -> None:
    """Forgets a phone that has the app no longer, unless it was registered again since."""
    Device.objects.filter(token=device.token, since=device.since).delete()


def settings_of(user_id: int) -> PushSettings:
    with on_shard(user_id):
        return PushSettings.objects.filter(user_id=user_id).first() or PushSettings(user_id=user_id)


def wishes_about(user_id: int, other_id: int) -> PushSettings | None:
    """A user's settings; None if the user has muted that other one."""
    with on_shard(user_id):
        ((*wishes, is_muted),) = execute(WISHES, {"user_id": user_id, "other_id": other_id})
    if is_muted:
        return None
    has_any = wishes[0] is not None
    return PushSettings(**dict(zip(COLUMNS, wishes, strict=True))) if has_any else PushSettings(user_id=user_id)


def change_settings(user_id: int, **changes: str) -> PushSettings:
    """Changes some of a user's settings. Raises InvalidParameters when there is nothing to change."""
    if not changes:
        raise InvalidParameters("give at least one setting to change, e.g. likes=following")
    with shard_transaction(user_id):
        changed, _ = PushSettings.objects.update_or_create(user_id=user_id, defaults=changes)
    return changed


def mute(user_id: int, muted_id: int) -> dict:
    """Ends what a user is notified of somebody's doings; returns that somebody, a value of kind USERS.

    Raises InvalidParameters (oneself), NotFound, NotAllowed (a block, or MOST_MUTED reached).
    """
    if user_id == muted_id:
        raise InvalidParameters("user_id: you cannot mute yourself")
    users, *sight = cache.fetch((USERS, [muted_id]), *sight_of(user_id))
    if muted_id not in users:
        raise NotFound(f"there is no user {muted_id}")
    Sight.of(user_id, *sight).require_known(users[muted_id])
    with shard_transaction(user_id):
        Muted.objects.get_or_create(user_id=user_id, muted_id=muted_id)
        if Muted.objects.filter(user_id=user_id).count() > MOST_MUTED:
            raise NotAllowed(f"you have muted {MOST_MUTED} people, which is the most allowed")
    return users[muted_id]


def unmute(user_id: int, muted_id: int) -> None:
    """Notifies a user of somebody's doings again, if it did not anyway. Raises NotFound."""
    with on_shard(user_id):
        Muted.objects.filter(user_id=user_id, muted_id=muted_id).delete()
    (users,) = cache.fetch((USERS, [muted_id]))
    if muted_id not in users:
        raise NotFound(f"there is no user {muted_id}")


def muted_by(user_id: int) -> list[dict]:
    """Whom a user has muted, the latest first, as values of kind USERS."""
    with on_shard(user_id):
        ids = list(Muted.objects.filter(user_id=user_id).order_by("-since").values_list("muted_id", flat=True))
    people = known(user_id, ids)
    return [people[muted_id] for muted_id in ids if muted_id in people]


def erase(user_id: int) -> None:
    """Removes what a deleted user has left here; the user's clients take their subscriptions with them."""
    Device.objects.filter(user_id=user_id).delete()
    with on_shard(user_id):
        PushSettings.objects.filter(user_id=user_id).delete()
        FriendTold.objects.filter(user_id=user_id).delete()
        Muted.objects.filter(user_id=user_id).delete()

"""What a user's phones are told: the phones, and the user's wishes.

Phones are in the directory, since a device token is a name for all of the site, as a username is: whoever registers
one last has it, also if the one before lives in another shard. Their wishes are the user's, in the user's shard.
"""

from django.db import transaction
from django.db.models.functions import Now

from accounts.errors import InvalidParameters
from notifications.models import Device, FriendTold, PushSettings
from shardmap.shards import on_shard, shard_transaction

MOST_DEVICES = 20  # of a user; phones that were erased or sold leave theirs behind


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
    return list(Device.objects.filter(user_id=user_id).order_by("-since"))


def remove(device: Device) -> None:
    """Forgets a phone that has the app no longer, unless it was registered again since."""
    Device.objects.filter(token=device.token, since=device.since).delete()


def settings_of(user_id: int) -> PushSettings:
    with on_shard(user_id):
        return PushSettings.objects.filter(user_id=user_id).first() or PushSettings(user_id=user_id)


def change_settings(user_id: int, **changes: str) -> PushSettings:
    """Changes some of a user's settings. Raises InvalidParameters when there is nothing to change."""
    if not changes:
        raise InvalidParameters("give at least one setting to change, e.g. likes=following")
    with shard_transaction(user_id):
        changed, _ = PushSettings.objects.update_or_create(user_id=user_id, defaults=changes)
    return changed


def erase(user_id: int) -> None:
    """Removes what a deleted user has left here; the user's clients take their subscriptions with them."""
    Device.objects.filter(user_id=user_id).delete()
    with on_shard(user_id):
        PushSettings.objects.filter(user_id=user_id).delete()
        FriendTold.objects.filter(user_id=user_id).delete()

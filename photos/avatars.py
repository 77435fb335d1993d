"""Avatars: `change` notes what a user wants, the job `make` makes it so; and `remove`.

The row says which picture is wanted last, so jobs may come in any order: whichever finds that another one is wanted
only cleans up. Until its picture is made, and for good if the upload is none, the user keeps the avatar of before.
"""

import secrets

from django.db import transaction

from accounts.cached import USERS
from accounts.errors import InvalidParameters
from accounts.services import set_profile_picture
from photos import services, storage
from photos.imaging import NotAPicture
from photos.models import Avatar, Photo, Status
from shardmap import cache
from shardmap.shards import on_shard
from workers.outbox import enqueue


def change(user_id: int, upload_id: str) -> None:
    """Lets an upload of the user's become the avatar. Doing it again changes nothing.

    Raises InvalidParameters when nothing, or too much, was uploaded under this ID by this user; or a photo.
    """
    if not services.is_uploaded(user_id, upload_id):
        # A phone that lost our first answer asks again, perhaps after the upload was processed and removed.
        accepted = Avatar.objects.filter(user_id=user_id, upload_id=upload_id).exclude(status=Status.REJECTED)
        if not accepted.exists():
            raise services.nothing_uploaded(upload_id)
        return
    with on_shard(user_id):
        is_photo = Photo.objects.filter(owner_id=user_id, upload_id=upload_id).exists()
    if is_photo:
        raise InvalidParameters(f"upload_id: {upload_id!r} was published as a photo; upload it once more")
    with transaction.atomic():
        avatar, _ = Avatar.objects.select_for_update().get_or_create(user_id=user_id)
        if avatar.upload_id != upload_id or avatar.status == Status.REJECTED:
            avatar.upload_id, avatar.picture = upload_id, f"profiles/{secrets.token_hex(16)}.jpg"
            avatar.status, avatar.message, avatar.decodes = Status.PROCESSING, "", 0
            avatar.save()
            enqueue("photos.make_avatar", user_id=user_id, upload_id=upload_id, picture=avatar.picture)


def state(user_id: int) -> tuple[str, str]:
    """How the user's last change has gone: processing, ready, or rejected and why; "none" if there was none."""
    avatar = Avatar.objects.filter(user_id=user_id).first()
    return (avatar.status, avatar.message) if avatar else ("none", "")


def make(user_id: int, upload_id: str, picture: str) -> None:
    """Turns the upload into the user's avatar, unless something else is wanted by now; or notes that it is none."""
    wanted = Avatar.objects.filter(user_id=user_id, picture=picture, status=Status.PROCESSING)
    if wanted.exists():
        try:
            renditions = services.render_upload(user_id, upload_id, wanted)
        except NotAPicture as error:
            wanted.update(status=Status.REJECTED, message=str(error)[:300])
        else:
            storage.put_picture(picture, renditions["thumbnail"])
            _show(user_id, picture)
    if not Avatar.objects.filter(user_id=user_id, shown=picture).exists():
        storage.delete_picture(picture)
    services.drop_upload(user_id, upload_id)
    cache.forget_surely(USERS.key(user_id))


def _show(user_id: int, picture: str) -> None:
    """Makes a picture the user's, if it still is the one that is wanted."""
    with transaction.atomic():
        avatar = Avatar.objects.select_for_update().filter(user_id=user_id).first()
        if avatar is None or (avatar.picture, avatar.status) != (picture, Status.PROCESSING):
            return
        if avatar.shown:
            enqueue("photos.drop_avatar", key=avatar.shown)
        if set_profile_picture(user_id, picture):
            avatar.shown, avatar.status = picture, Status.READY
            avatar.save()
        else:  # the account was deleted
            avatar.delete()
    cache.forget(USERS.key(user_id))


def remove(user_id: int) -> None:
    """Gives the user the default picture again; what is being made will not be shown."""
    with transaction.atomic():
        avatar = Avatar.objects.select_for_update().filter(user_id=user_id).first()
        if avatar is None:
            return
        set_profile_picture(user_id, "")
        if avatar.shown:
            enqueue("photos.drop_avatar", key=avatar.shown)
        avatar.delete()
    cache.forget(USERS.key(user_id))

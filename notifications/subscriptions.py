"""Subscribing to photos: `client_of`, `subscribe`, `subscriptions_of`, `unsubscribe`. See docs/realtime.md."""

import hmac

from django.db import transaction
from django.db.models import QuerySet
from oauth2_provider.models import Application

from accounts.errors import InvalidClient, InvalidParameters, NotAllowed
from accounts.types import DIGITS
from notifications import callbacks
from notifications.models import Callback, Geography, Object, Subscription
from photos import places
from photos.tags import LONGEST_TAG, TAG, normal

MOST_SUBSCRIPTIONS = 30  # of a client

Circle = tuple[float, float, int]  # latitude, longitude, radius in metres


def client_of(client_id: str, client_secret: str) -> Application:
    """The client that proves itself by its secret. Raises InvalidClient."""
    client = Application.objects.filter(client_id=client_id, client_type=Application.CLIENT_CONFIDENTIAL).first()
    if client is None or not hmac.compare_digest(client.client_secret.encode(), client_secret.encode()):
        raise InvalidClient("client_id: unknown, without a secret, or not with this client_secret")
    return client


def subscribe(
    client: Application,
    object: str,
    object_id: str | None,
    circle: Circle | None,
    callback_url: str,
    verify_token: str | None,
) -> Subscription:
    """Subscribes a client, whose callback has to agree; the same subscription again is the one that there is.

    `object_id` is for tags and locations, `circle` for geographies. Raises InvalidParameters, NotFound, NotAllowed.
    """
    target = _target(object, object_id)
    if (circle is None) == (object == Object.GEOGRAPHY):
        raise InvalidParameters("lat: a geography needs lat, lng and radius, and nothing else has them")
    try:
        callbacks.challenge(callback_url, verify_token)
    except callbacks.Failed as error:
        raise InvalidParameters(f"callback_url: {callback_url[: callbacks.LONGEST_URL]} {error}") from None
    with transaction.atomic():
        _lock(client)
        wanted = Subscription.objects.filter(
            callback__client=client, callback__url=callback_url, object=object, target=target
        )
        if circle is not None:
            wanted = wanted.filter(geography__latitude=circle[0], geography__longitude=circle[1])
            wanted = wanted.filter(geography__radius=circle[2])
        if (known := wanted.select_related("callback").first()) is not None:
            return known
        if subscriptions_of(client).count() >= MOST_SUBSCRIPTIONS:
            raise NotAllowed(f"a client may have {MOST_SUBSCRIPTIONS} subscriptions; delete one first")
        callback, _ = Callback.objects.get_or_create(client=client, url=callback_url)
        made = Subscription.objects.create(callback=callback, object=object, target=target)
        if circle is not None:
            latitude, longitude, radius = circle
            Geography.objects.create(subscription=made, latitude=latitude, longitude=longitude, radius=radius)
    return made


def subscriptions_of(client: Application) -> QuerySet[Subscription]:
    """A client's subscriptions, oldest first."""
    return Subscription.objects.filter(callback__client=client).select_related("callback").order_by("id")


def unsubscribe(client: Application, subscription_id: int | None, object: str | None) -> None:
    """Ends one subscription of a client, or those to an object, or `"all"`; what waits for them is not sent.

    Raises InvalidParameters when nothing says which.
    """
    if subscription_id is None and object is None:
        raise InvalidParameters("id: give the id of a subscription, or an object: all, user, tag, location, geography")
    gone = Subscription.objects.filter(callback__client=client)
    if subscription_id is not None:
        gone = gone.filter(id=subscription_id)
    if object not in (None, "all"):
        gone = gone.filter(object=object)
    with transaction.atomic():
        _lock(client)
        gone.delete()
        Callback.objects.filter(client=client, subscriptions=None).delete()


def _lock(client: Application) -> None:
    """From here to the commit no other request changes the client's subscriptions: not too many, and none twice."""
    if Application.objects.select_for_update(no_key=True).filter(id=client.id).first() is None:
        raise InvalidClient("client_id: the client was deleted at this moment")


def _target(object: str, object_id: str | None) -> str:
    """The tag's name or the location's ID as it is stored."""
    if object == Object.TAG:
        name = normal((object_id or "").removeprefix("#"))
        if not TAG.fullmatch(f"#{name}") or len(name) > LONGEST_TAG:
            raise InvalidParameters(f"object_id: {object_id!r} is not the name of a tag")
        return name
    if object == Object.LOCATION:
        if not DIGITS.fullmatch(object_id or ""):
            raise InvalidParameters(f"object_id: {object_id!r} is not the ID of a location")
        return str(places.get_location(int(object_id))["id"])
    return ""

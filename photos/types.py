"""The API's parameter that names a photo."""

import re
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, WithJsonSchema

from shardmap.ids import MAX_ID

MEDIA_ID = re.compile(r"(\d{1,19})(?:_(\d{1,19}))?", re.ASCII)


class MediaRef(NamedTuple):
    """`"<photo>_<owner>"`, or a bare `"<photo>"`."""

    photo_id: int
    owner_id: int | None


def _parse(text: Any) -> MediaRef:
    match = MEDIA_ID.fullmatch(str(text))
    if not match:
        raise ValueError(f"{text!r} is not a media ID")
    photo_id, owner_id = int(match[1]), int(match[2]) if match[2] else None
    if photo_id > MAX_ID or (owner_id or 0) > MAX_ID:
        raise ValueError(f"{text!r} is not a media ID")
    return MediaRef(photo_id, owner_id)


MediaId = Annotated[
    MediaRef,
    BeforeValidator(_parse),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,19}(_[0-9]{1,19})?$"}),
]
MediaIdText = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,19}_[0-9]{1,19}$"})]  # of answers

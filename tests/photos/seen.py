"""What the tests about photos look at: pixels through the CDN, rows, and objects in S3."""

import io

import requests
from PIL import Image

from photos import storage
from photos.models import Photo
from shardmap.shards import on_shard
from tests.support import photo_id


def pixels(url: str) -> Image.Image:
    response = requests.get(url, timeout=10)
    assert response.status_code == 200, url
    return Image.open(io.BytesIO(response.content))


def row_of(media: dict) -> Photo | None:
    with on_shard(int(media["user"]["id"])):
        return Photo.objects.filter(id=photo_id(media["id"])).first()


def exists(bucket: str, key: str) -> bool:
    return "Contents" in storage._s3().list_objects_v2(Bucket=bucket, Prefix=key)

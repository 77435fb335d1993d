"""S3: where a phone uploads to, and where the renditions are.

Two buckets. `uploads` is written by phones through presigned POSTs and read by nobody but the job that processes;
`photos` has the renditions, read by the world through the CDN. The app servers never see a photo's bytes.
"""

import re
from functools import cache

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings

from photos.imaging import MAX_BYTES, RENDITIONS

# What any call here may raise when S3 is away.
Unavailable = (BotoCoreError, ClientError)

PRESIGNED_SECONDS = 15 * 60
UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
# As Instagram named its files: 5, 6, 7 for 150, 306 and 612 pixels.
SUFFIXES = {"thumbnail": "_5", "low_resolution": "_6", "standard_resolution": "_7"}
# A rendition never changes; a new photo gets a new name.
FOREVER = "public, max-age=31536000, immutable"


@cache
def _s3():
    """boto3's client; it is thread-safe."""
    return boto3.client(
        "s3",
        endpoint_url=settings.S3_ENDPOINT or None,
        aws_access_key_id=settings.S3_ACCESS_KEY,
        aws_secret_access_key=settings.S3_SECRET_KEY,
        region_name=settings.S3_REGION,
        config=Config(
            connect_timeout=1,
            read_timeout=5,
            retries={"total_max_attempts": 2, "mode": "standard"},
            max_pool_connections=32,
            s3={"addressing_style": "path"},
            signature_version="s3v4",
        ),
    )


def presign(owner_id: int, upload_id: str, content_type: str) -> tuple[str, dict[str, str]]:
    """A form for one upload: (URL, fields). It fixes the key and the type, bounds the size, and expires."""
    post = _s3().generate_presigned_post(
        settings.S3_UPLOADS_BUCKET,
        _upload_key(owner_id, upload_id),
        Fields={"Content-Type": content_type},
        Conditions=[{"Content-Type": content_type}, ["content-length-range", 1, MAX_BYTES]],
        ExpiresIn=PRESIGNED_SECONDS,
    )
    return post["url"], post["fields"]


def upload_size(owner_id: int, upload_id: str) -> int | None:
    """Bytes of an upload, or None when there is none."""
    try:
        head = _s3().head_object(Bucket=settings.S3_UPLOADS_BUCKET, Key=_upload_key(owner_id, upload_id))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    return head["ContentLength"]


def read_upload(owner_id: int, upload_id: str) -> bytes | None:
    """The bytes of an upload, never more than one byte above MAX_BYTES; None when there is none."""
    try:
        upload = _s3().get_object(Bucket=settings.S3_UPLOADS_BUCKET, Key=_upload_key(owner_id, upload_id))
    except _s3().exceptions.NoSuchKey:
        return None
    with upload["Body"] as body:
        return body.read(MAX_BYTES + 1)


def delete_upload(owner_id: int, upload_id: str) -> None:
    _s3().delete_object(Bucket=settings.S3_UPLOADS_BUCKET, Key=_upload_key(owner_id, upload_id))


def put_renditions(upload_id: str, renditions: dict[str, bytes]) -> None:
    for name, jpeg in renditions.items():
        put_picture(_rendition_key(upload_id, name), jpeg)


def put_picture(key: str, jpeg: bytes) -> None:
    _s3().put_object(
        Bucket=settings.S3_PHOTOS_BUCKET, Key=key, Body=jpeg, ContentType="image/jpeg", CacheControl=FOREVER
    )


def delete_picture(key: str) -> None:
    _s3().delete_object(Bucket=settings.S3_PHOTOS_BUCKET, Key=key)


def delete_renditions(upload_id: str) -> None:
    keys = [{"Key": _rendition_key(upload_id, name)} for name in RENDITIONS]
    answer = _s3().delete_objects(Bucket=settings.S3_PHOTOS_BUCKET, Delete={"Objects": keys, "Quiet": True})
    if errors := answer.get("Errors"):
        raise OSError(f"S3 kept renditions of {upload_id}: {errors}")


def check() -> None:
    """Raises one of `Unavailable` when S3 does not answer or does not know us."""
    for bucket in (settings.S3_UPLOADS_BUCKET, settings.S3_PHOTOS_BUCKET):
        _s3().head_bucket(Bucket=bucket)


def cdn_url(upload_id: str, rendition: str) -> str:
    return f"{settings.CDN_URL}/{_rendition_key(upload_id, rendition)}"


def _upload_key(owner_id: int, upload_id: str) -> str:
    # With the owner in the key, another user's upload is simply not there.
    return f"{owner_id}/{upload_id}"


def _rendition_key(upload_id: str, rendition: str) -> str:
    return f"{upload_id}{SUFFIXES[rendition]}.jpg"

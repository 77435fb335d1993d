"""Snapshots of the photo→user map's Redis in S3, and getting them back (docs/backups.md).

The map can be rebuilt from Postgres; of 300 million photos that takes hours in which each lookup costs a query, and
loading a snapshot minutes. Feeds, activity and sessions are not kept: they come back by themselves.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from deploy.local.layout import Failed

FOLDER = "redis/shardmap/"
NAME = "%Y-%m-%dT%H-%M-%SZ.rdb"
KEPT = timedelta(days=28)  # as Postgres' backups
PATIENCE = 3600  # seconds, for 4 GB


@dataclass(frozen=True)
class Snapshot:
    key: str
    made: datetime
    bytes: int


class Bucket:
    """The bucket of backups, with the credentials that are for it alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.name = environment["BACKUPS_BUCKET"]
        self.s3 = boto3.client(
            "s3",
            endpoint_url=environment["S3_ENDPOINT"],
            aws_access_key_id=environment["BACKUPS_ACCESS_KEY"],
            aws_secret_access_key=environment["BACKUPS_SECRET_KEY"],
            region_name="us-east-1",
            config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 3, "mode": "standard"}),
        )

    def snapshots(self) -> list[Snapshot]:
        """Oldest first."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=FOLDER)
        found = [item for page in pages for item in page.get("Contents", [])]
        return sorted(
            (Snapshot(item["Key"], made_at(item["Key"]), item["Size"]) for item in found), key=lambda it: it.made
        )


def made_at(key: str) -> datetime:
    return datetime.strptime(key.removeprefix(FOLDER), NAME).replace(tzinfo=UTC)


def take(redis_url: str, bucket: Bucket) -> Snapshot:
    """Has Redis write a snapshot, which it does in a process of its own, and puts it into the bucket.

    One that cannot be read is not kept; old ones go when a new one is there.
    """
    redis, now = urlsplit(redis_url), datetime.now(UTC)
    key = FOLDER + now.strftime(NAME)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "map.rdb"
        run(["redis-cli", "-h", redis.hostname, "-p", str(redis.port), "--rdb", str(file)], redis.password)
        run(["redis-check-rdb", str(file)])
        bucket.s3.upload_file(str(file), bucket.name, key)
    for old in bucket.snapshots():
        if now - old.made > KEPT:
            bucket.s3.delete_object(Bucket=bucket.name, Key=old.key)
    return bucket.snapshots()[-1]


def fetch(snapshot: Snapshot, bucket: Bucket, file: Path) -> None:
    """Puts a snapshot where a Redis can start from it."""
    bucket.s3.download_file(bucket.name, snapshot.key, str(file))


def run(command: list[str], password: str | None = None) -> None:
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password or ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    if done.returncode:
        raise Failed(f"{command[0]}: {(done.stderr + done.stdout).strip()[-500:]}")

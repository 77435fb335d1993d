"""Snapshots of the photo→user map's Redis in S3, and getting them back (docs/backups.md).

python -m deploy.redis_snapshots take                 makes one
python -m deploy.redis_snapshots list                 says which there are
python -m deploy.redis_snapshots fetch KEY map.rdb    gets one of these, for a Redis to start from

Settings: REDIS_SHARDMAP_URL, S3_ENDPOINT, S3_REGION, SNAPSHOTS_BUCKET, SNAPSHOTS_ACCESS_KEY, SNAPSHOTS_SECRET_KEY; see
ENV_FILES in instagram/settings.py.

The map can be rebuilt from Postgres; of 300 million photos that takes hours in which each lookup costs a query, and
loading a snapshot minutes. Feeds, activity and sessions are not kept: they come back by themselves.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
from botocore.config import Config
from redis import Redis

from deploy.local.layout import Failed
from shardmap.redis_client import nodes, redis_client

FOLDER = "redis/shardmap/"
TIME = "%Y-%m-%dT%H-%M-%SZ"
KEPT = timedelta(days=28)  # as Postgres' backups
PATIENCE = 3600  # seconds, for 4 GB


@dataclass(frozen=True)
class Snapshot:
    key: str
    made: datetime
    bytes: int


class Bucket:
    """The bucket of snapshots, with the credentials that are for it alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.name = environment.get("SNAPSHOTS_BUCKET", "snapshots")
        self.s3 = boto3.client(
            "s3",
            endpoint_url=environment["S3_ENDPOINT"],
            aws_access_key_id=environment["SNAPSHOTS_ACCESS_KEY"],
            aws_secret_access_key=environment["SNAPSHOTS_SECRET_KEY"],
            region_name=environment.get("S3_REGION", "us-east-1"),
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
    return datetime.strptime(Path(key).name[: len("2026-11-22T03-00-00Z")], TIME).replace(tzinfo=UTC)


def take(redis_url: str, bucket: Bucket) -> list[Snapshot]:
    """Has each Redis that has entries, or its replica, write a snapshot, in a process of its own, and keeps that.

    One that cannot be read is not kept; old ones go when there are new ones.
    """
    now = datetime.now(UTC)
    for node in nodes(redis_client(redis_url)).values():
        host, port = source(node)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "map.rdb"
            run(["redis-cli", "-h", host, "-p", port, "--rdb", str(file)], node.get_connection_kwargs().get("password"))
            run(["redis-check-rdb", str(file)])
            key = f"{FOLDER}{now.strftime(TIME)}-{host}-{port}.rdb"
            bucket.s3.upload_file(str(file), bucket.name, key)
    for old in bucket.snapshots():
        if now - old.made > KEPT:
            bucket.s3.delete_object(Bucket=bucket.name, Key=old.key)
    return [snapshot for snapshot in bucket.snapshots() if snapshot.made == now.replace(microsecond=0)]


def source(node: Redis) -> tuple[str, str]:
    """Host and port to take a node's snapshot from: a replica, if one is well, which has nothing else to do.

    Sentinels see who takes one from a master, in what the master says of its replicas, and would keep it for one.
    """
    for name, replica in node.info("replication").items():
        if re.fullmatch(r"slave\d+", name) and replica["state"] == "online" and replica["port"]:
            return replica["ip"], str(replica["port"])
    master = node.connection_pool.get_connection()  # which knows who that is now, if there are Sentinels
    node.connection_pool.release(master)
    return master.host, str(master.port)


def fetch(key: str, bucket: Bucket, file: Path) -> None:
    """Puts a snapshot where a Redis can start from it."""
    bucket.s3.download_file(bucket.name, key, str(file))


def say(action: str, environment: Mapping[str, str]) -> str:
    """Takes a snapshot, or lists those that there are; says which."""
    bucket = Bucket(environment)
    found = take(environment["REDIS_SHARDMAP_URL"], bucket) if action == "take" else bucket.snapshots()
    return "\n".join(
        f"map           {one.made:%Y-%m-%d %H:%M:%S} UTC {one.bytes / 1e6:.1f} MB  {one.key}" for one in found
    )


def run(command: list[str], password: str | None = None) -> None:
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password or ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    if done.returncode:
        raise Failed(f"{command[0]}: {(done.stderr + done.stdout).strip()[-500:]}")


if __name__ == "__main__":
    from instagram.settings import env  # of the files that ENV_FILES names

    action, *what = sys.argv[1:]
    try:
        if action == "fetch":
            fetch(what[0], Bucket(env), Path(what[1]))
        else:
            print(say(action, env))
    except Failed as failure:
        sys.exit(str(failure))

"""What the app needs to find in the servers of a fresh stack: roles, its databases, its buckets.

Run by cli.py with the virtual environment's Python, as `prepare.py <stack>`. Does nothing where all is there.
"""

import sys
from pathlib import Path

import boto3
import psycopg2
from botocore.config import Config
from botocore.exceptions import ClientError

sys.path[0] = str(Path(__file__).resolve().parents[2])
from deploy.backups import at_once, local_servers  # noqa: E402
from deploy.local.layout import DEPLOY, Stack  # noqa: E402
from deploy.local.ports import HOST  # noqa: E402
from deploy.local.programs import ROLE_SETTINGS, ROLES  # noqa: E402

DATABASES = {"postgres_a": ["directory", "shards_a"], "postgres_b": ["shards_b"]}


def prepare_postgres(stack: Stack, server: str) -> None:
    connection = psycopg2.connect(
        host=HOST, port=stack.ports[stack.primary_of(server)], user="postgres",
        password=stack.secrets["postgres_password"], dbname="postgres", connect_timeout=5,
        options="-c synchronous_commit=local",  # the replicas that a COMMIT may have to wait for come later
    )  # fmt: skip
    connection.autocommit = True
    with connection.cursor() as cursor:
        for role, rights in ROLES.items():
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
            if not cursor.fetchone():
                cursor.execute(f"CREATE ROLE {role} {rights}")
            cursor.execute(f"ALTER ROLE {role} PASSWORD %s", [stack.secrets[f"{role}_password"]])
        # Munin's plugins ask as the app does, and look at WAL and its archiving too.
        cursor.execute("GRANT pg_monitor TO instagram")
        for name, value in ROLE_SETTINGS.items():
            cursor.execute(f"ALTER ROLE instagram SET {name} = %s", [value])
        for database in DATABASES[server]:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
            if not cursor.fetchone():
                cursor.execute(f"CREATE DATABASE {database} OWNER instagram")
    connection.close()


def prepare_buckets(settings: dict[str, str]) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=settings["S3_ENDPOINT"],
        aws_access_key_id=settings["S3_ACCESS_KEY"],
        aws_secret_access_key=settings["S3_SECRET_KEY"],
        region_name="us-east-1",
        # A fresh SeaweedFS answers before it has elected itself master.
        config=Config(retries={"max_attempts": 8, "mode": "standard"}, connect_timeout=2, read_timeout=10),
    )
    for bucket in (settings["S3_UPLOADS_BUCKET"], settings["S3_PHOTOS_BUCKET"], "backups", "snapshots"):
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError:
            s3.create_bucket(Bucket=bucket)
            # The first object makes SeaweedFS allocate volumes, which takes a moment: better now than at an upload.
            s3.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
    # Who has no picture of their own is shown with this one (accounts/schemas.py).
    picture = (DEPLOY / "s3/anonymous.jpg").read_bytes()
    s3.put_object(
        Bucket=settings["S3_PHOTOS_BUCKET"], Key="anonymous.jpg", Body=picture, ContentType="image/jpeg",
        CacheControl="public, max-age=86400",
    )  # fmt: skip


if __name__ == "__main__":
    stack = Stack(sys.argv[1])
    stack.load_secrets()
    for server in DATABASES:
        prepare_postgres(stack, server)
    prepare_buckets(stack.environment())
    at_once(lambda server: server.pgbackrest("stanza-create"), local_servers(stack))

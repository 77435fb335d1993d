"""A stack's place on this machine: directories, users, ports, secrets, and the rendered configuration.

.local/                     ignored by git; a link where servers cannot reach the clone (`local_dir`)
.local/dev/env              what the app reads (instagram/settings.py)
.local/dev/secrets.json     made once, kept
.local/dev/config/          deploy/**, rendered
.local/dev/data/<program>/  all that survives `down`; gone with `make clean`
.local/dev/logs/            one file a program
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.ports import HOST, ports_of

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
BUGSINK_VENV = ROOT / ".venv-bugsink"  # its Django and gunicorn need not be ours
BUGSINK_LOGIN = "ops@example.com"
DEPLOY = ROOT / "deploy"

# Postgres refuses to run as root, and the others have no need for it: root's stack runs them as these users.
# The app and SeaweedFS, whose programs are inside the clone, run as whoever calls.
AS_ROOT = os.getuid() == 0
POSTGRES_USER = "postgres" if AS_ROOT else None
SERVER_USER = "nobody" if AS_ROOT else None


def local_dir() -> Path:
    """Where `.local` really is: elsewhere, when it would be out of the reach of root's servers."""
    reachable = all(directory.stat().st_mode & 0o001 for directory in (ROOT, *ROOT.parents))
    if reachable or not AS_ROOT:
        return LINK
    return Path("/var/lib/instagram-local") / hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]


LINK = ROOT / ".local"
LOCAL = local_dir()

SECRETS = ("secret_key", "postgres_password", "replicator_password", "instagram_password", "pgbouncer_password",
           "redis_password", "supervisor_password", "s3_access_key", "s3_secret_key", "credentials_key",
           "backups_access_key", "backups_secret_key", "backups_passphrase",
           "snapshots_access_key", "snapshots_secret_key",
           "twitter_key", "twitter_secret", "facebook_id", "facebook_secret", "pagerduty_key",
           "bugsink_secret_key", "bugsink_password", "bugsink_key")  # fmt: skip

# `make up REPLICAS=1`: not remembered, so that what runs is what the last `make up` asked for.
# `make up REPLICAS=sync`: the same, and a COMMIT waits for them.
WITH_REPLICAS = os.environ.get("REPLICAS", "0") not in ("", "0")
SYNCHRONOUS = os.environ.get("REPLICAS") == "sync"


# The tests sign up thousands of users, whose passwords guard nothing.
ONLY_IN_TESTS = {"PASSWORD_HASHER": "django.contrib.auth.hashers.MD5PasswordHasher"}


class Failed(Exception):
    """Something that the person at the keyboard has to read; it is printed without a traceback."""


@dataclass
class Stack:
    name: str
    ports: dict[str, int] = field(init=False)
    dir: Path = field(init=False)
    secrets: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = ports_of(self.name)
        self.dir = LOCAL / self.name

    @property
    def is_for_tests(self) -> bool:
        return self.name.startswith("test")

    @property
    def conf(self) -> Path:
        return self.dir / "config"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    def data(self, program: str) -> Path:
        return self.dir / "data" / program

    def address(self, server: str) -> str:
        return f"{HOST}:{self.ports[server]}"

    def addresses(self, server: str) -> list[str]:
        """Those of a server that there are several of, by number: memcached_1, memcached_2."""
        return [self.address(name) for name in self.ports if re.fullmatch(rf"{server}_\d", name)]

    def primary_of(self, server: str) -> str:
        """`postgres_b`, or `postgres_b_replica` since that was promoted (docs/failover.md)."""
        replica = self.data(f"{server}_replica")
        return replica.name if replica.exists() and not (replica / "standby.signal").exists() else server

    def load_secrets(self) -> None:
        """Reads the secrets, after making those that are missing."""
        file = self.dir / "secrets.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        self.secrets = {name: secrets.token_hex(20) for name in SECRETS} | known
        if self.secrets != known:
            write(file, json.dumps(self.secrets, indent=1) + "\n")

    @property
    def sentry_key(self) -> str:
        """The public part of the DSN: a UUID."""
        return self.secrets["bugsink_key"][:32]

    def postgres_url(self, server: str, database: str) -> str:
        return f"postgresql://instagram:{self.secrets['instagram_password']}@{self.address(server)}/{database}"

    def admin_url(self, server: str, database: str) -> str:
        return f"postgresql://postgres:{self.secrets['postgres_password']}@{self.address(server)}/{database}"

    def logical_shards(self) -> str:
        """As many as the stack was made with: `make up LOGICAL_SHARDS=4096` before there is one, or 8."""
        wanted, file = os.environ.get("LOGICAL_SHARDS"), self.dir / "env"
        made_with = re.search(r"^LOGICAL_SHARDS=(\d+)$", file.read_text() if file.exists() else "", re.MULTILINE)
        if made_with and wanted not in (None, made_with[1]):
            raise Failed(f"This stack has {made_with[1]} logical shards. To make one of {wanted}: `make clean` first.")
        return made_with[1] if made_with else wanted or "8"

    def environment(self) -> dict[str, str]:
        """The app's settings."""
        redis = f"redis://:{self.secrets['redis_password']}@"
        return {
            "STACK": self.name,
            "SECRET_KEY": self.secrets["secret_key"],
            "SITE_URL": f"http://{self.address('edge')}",
            "CDN_URL": f"http://{self.address('cdn')}/photos",
            "DIRECTORY_URL": self.postgres_url("pgbouncer", "directory"),
            "SHARD_SERVERS": f"a={self.postgres_url('pgbouncer', 'shards_a')} "
            f"b={self.postgres_url('pgbouncer', 'shards_b')}",
            "SHARD_ADMINS": f"a={self.admin_url(self.primary_of('postgres_a'), 'shards_a')} "
            f"b={self.admin_url(self.primary_of('postgres_b'), 'shards_b')}",
            "SHARD_REPLICAS": f"a={self.postgres_url('pgbouncer', 'shards_a_replica')} "
            f"b={self.postgres_url('pgbouncer', 'shards_b_replica')}"
            if WITH_REPLICAS
            else "",
            "LOGICAL_SHARDS": self.logical_shards(),
            "REDIS_SHARDMAP_URL": f"{redis}{self.address('redis_shardmap')}/0",
            "REDIS_FEEDS_URL": f"{redis}{self.address('redis_feeds')}/0",
            "MEMCACHED": ",".join(self.addresses("memcached")),
            "GEARMAN": ",".join(self.addresses("gearmand")),
            "METRICS_DIR": str(self.dir / "metrics"),
            "S3_ENDPOINT": f"http://{self.address('s3')}",
            "S3_ACCESS_KEY": self.secrets["s3_access_key"],
            "CREDENTIALS_KEYS": self.secrets["credentials_key"],
            "S3_SECRET_KEY": self.secrets["s3_secret_key"],
            "S3_UPLOADS_BUCKET": "uploads",
            "S3_PHOTOS_BUCKET": "photos",
            "PYAPNS_URL": f"http://{self.address('pyapns')}/",
            "APNS_PRODUCTION_URL": f"https://{self.address('apns')}",
            "APNS_SANDBOX_URL": f"https://{self.address('apns')}",
            "APNS_CA_FILE": str(self.conf / "apns.pem"),
            "APNS_KEY_FILE": str(self.conf / "apns.p8"),
            "APNS_KEY_ID": "LOCALKEY01",
            "APNS_TEAM_ID": "LOCALTEAM1",
            "TWITTER_URL": f"http://{self.address('social')}/twitter",
            "FACEBOOK_URL": f"http://{self.address('social')}/facebook",
            "FACEBOOK_LOGIN_URL": f"http://{self.address('social')}/facebook",
            **{name.upper(): self.secrets[name] for name in SECRETS if name.startswith(("twitter", "facebook"))},
            "SENTRY_DSN": f"http://{self.sentry_key}@{self.address('bugsink')}/1",
            "SENTRY_ENVIRONMENT": self.name,
            # Demo and tests sign up and log in all their people from one address, this machine's.
            "RATE_LIMITS": "sign_ups=1000000 logins=1000000 subscriptions=1000000",
            # A developer's callback may be on this machine; nothing else of ours may be one.
            "CALLBACK_NETWORKS": "127.0.0.1/32",
            **(ONLY_IN_TESTS if self.is_for_tests else {}),
        }

    def snapshots_environment(self) -> dict[str, str]:
        """What reaches the snapshots of the map; the app does not."""
        return {
            "S3_ENDPOINT": f"http://{self.address('s3')}",
            "SNAPSHOTS_ACCESS_KEY": self.secrets["snapshots_access_key"],
            "SNAPSHOTS_SECRET_KEY": self.secrets["snapshots_secret_key"],
        }

    def migration_environment(self) -> dict[str, str]:
        """Migrations go to Postgres itself: pgbouncer cuts a statement off after 10 s, an index takes longer."""
        a, b = self.primary_of("postgres_a"), self.primary_of("postgres_b")
        return {
            "STACK": self.name,
            "DIRECTORY_URL": self.postgres_url(a, "directory"),
            "DATABASE_ANSWER_SECONDS": "3600",
            "SHARD_SERVERS": f"a={self.postgres_url(a, 'shards_a')} b={self.postgres_url(b, 'shards_b')}",
        }


def prepare_local_dir() -> None:
    """Makes `.local`, or the link of that name to where it is instead."""
    if LINK != LOCAL:
        make_dir(LOCAL.parent)
        if LINK.is_symlink():
            LINK.unlink()
        elif LINK.exists():
            raise Failed(f"The servers' users cannot reach {LINK}: remove it (with its data), or move the clone.")
        LINK.symlink_to(LOCAL)
    make_dir(LOCAL)


def make_dir(path: Path, owner: str | None = None, mode: int = 0o755) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if owner:
        shutil.chown(path, owner)


def write(path: Path, text: str, owner: str | None = None) -> bool:
    """Writes a file that only its owner may read. Returns whether that changed anything."""
    if path.exists() and path.read_text() == text:
        return False
    draft = path.with_name(path.name + ".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    if owner:
        shutil.chown(draft, owner)
    draft.replace(path)
    return True


def render(template: Path, values: dict) -> str:
    """The template with each `{{ name }}` replaced. An unknown name is an error."""

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise Failed(f"{template.relative_to(ROOT)} wants {{{{ {match[1]} }}}}, which nobody gives it")
        return str(values[match[1]])

    return re.sub(r"\{\{ (\w+) \}\}", value, template.read_text())

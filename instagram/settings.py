"""Django's settings. Everything that differs between installations comes from the environment, here and only here.

The local stack writes its ports and secrets to `.local/<stack>/env`; a host of production has /etc/instagram/env, which
ENV_FILES names. Real environment variables win over files. So `manage.py` works in a checkout where `make up` has run.
"""

import os
from ipaddress import ip_network
from pathlib import Path

from psycopg2.extensions import parse_dsn

BASE_DIR = Path(__file__).resolve().parent.parent


def _read_environment() -> dict[str, str]:
    """The files of ENV_FILES, later ones winning, or else the local stack's; overlaid with the environment."""
    stack = BASE_DIR / ".local" / os.environ.get("STACK", "dev") / "env"
    named = os.environ.get("ENV_FILES")
    files = [Path(name) for name in named.split(":")] if named else [stack] if stack.exists() else []
    lines = [line for file in files for line in file.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if "=" in line) | dict(os.environ)


env = _read_environment()


def _database(url: str) -> dict:
    """Django's description of `postgresql://user:password@host:port/name`, reached through pgbouncer.

    Past it, `…@host:port,host:port/name?target_session_attrs=primary` is whichever of the two is the primary.
    """
    parts = parse_dsn(url)
    return {
        # Our own thin backend: swaps the placeholder schema for the shard's, and checks a connection without a query.
        "ENGINE": "shardmap.backend",
        "HOST": parts.pop("host", ""),
        "PORT": parts.pop("port", ""),
        "NAME": parts.pop("dbname", ""),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        # Connections to pgbouncer are cheap to hold and dear to open.
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        # pgbouncer pools transactions: nothing may outlive one.
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "OPTIONS": {"tcp_user_timeout": 5000, "keepalives_idle": 10, **parts},
    }


# Which release this is: `fab deploy` writes the file. Health checks and Sentry say so.
RELEASE = (BASE_DIR / "RELEASE").read_text().strip() if (BASE_DIR / "RELEASE").exists() else "development"

SECRET_KEY = env.get("SECRET_KEY", "")
DEBUG = False
# nginx passes only requests for our own names; the app's own URLs come from SITE_URL, never from the Host header.
ALLOWED_HOSTS = ["*"]

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.admin.apps.SimpleAdminConfig",  # instagram/admin.py has what it shows
    "oauth2_provider",
    "shardmap",
    "workers",
    "accounts",
    "photos",
    "feeds",
    "notifications",
    "bench",
]
# The API needs none: authentication, errors and limits are the dispatcher's (instagram/api/dispatch.py). Pages for
# people bring their own (accounts/web.py).
MIDDLEWARE: list[str] = []
SILENCED_SYSTEM_CHECKS = ["admin.E408", "admin.E409", "admin.E410"]  # the admin brings its own, too
STATIC_URL = "/static/"  # of the admin alone
ROOT_URLCONF = "instagram.urls"
WSGI_APPLICATION = "instagram.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "instagram/templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
# Photo bytes never pass through here; this is the most that a form or JSON body may weigh.
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024

# Postgres. `default` is the directory; each further alias is a physical server that holds logical shards.
DATABASES = {"default": _database(env.get("DIRECTORY_URL", "postgresql://"))}
SHARD_SERVERS: list[str] = []
for _server in env.get("SHARD_SERVERS", "").split():
    _alias, _url = _server.split("=", 1)
    DATABASES[_alias] = _database(_url)
    SHARD_SERVERS.append(_alias)
# The streaming replicas of some of them, or of none (shardmap/replicas.py). Their aliases are no shard servers: nothing
# is written, migrated or looked for there.
SHARD_REPLICAS: dict[str, str] = {}
for _server in env.get("SHARD_REPLICAS", "").split():
    _alias, _url = _server.split("=", 1)
    SHARD_REPLICAS[_alias] = f"{_alias}_replica"
    DATABASES[SHARD_REPLICAS[_alias]] = _database(_url)
# The same servers as a superuser reaches them, not through pgbouncer: for moving shards, so for the operator's shell
# alone. The local stack has one operator, and puts them here.
SHARD_ADMINS = dict(server.split("=", 1) for server in env.get("SHARD_ADMINS", "").split())
# The last resort against a server that is silent. Slow statements end before: by the role's statement_timeout (5 s)
# and by pgbouncer's query_timeout (10 s). Migrations run with a larger one.
DATABASE_ANSWER_SECONDS = float(env.get("DATABASE_ANSWER_SECONDS", "12"))
DATABASE_ROUTERS = ["shardmap.router.ShardRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Fixed for the life of an installation: it is part of every ID.
LOGICAL_SHARDS = int(env.get("LOGICAL_SHARDS", "8"))

# The photo→user map's windows: (from this millisecond since shardmap.ids.EPOCH_MS on, they are 2**bits ms), the latest
# first. "0:26 520000000000:24" makes them a quarter as long from 2028-02-15 on. In time: what the map has of a later
# time already would no longer be found, but looked up in the shards, and written once more (docs/sharding.md).
MAP_WINDOWS = sorted(
    (tuple(map(int, pair.split(":"))) for pair in env.get("MAP_WINDOWS", "0:26").split()), reverse=True
)

# Redis, Memcached, Gearman. Either Redis may be a Redis Cluster, redis+cluster://:password@host:port,host:port
# or whoever the sentinels say is the master of that name, redis+sentinel://:password@host:port,host:port/name
REDIS_SHARDMAP_URL = env.get("REDIS_SHARDMAP_URL", "")
REDIS_FEEDS_URL = env.get("REDIS_FEEDS_URL", "")
MEMCACHED = [server for server in env.get("MEMCACHED", "").split(",") if server]
GEARMAN = [server for server in env.get("GEARMAN", "").split(",") if server]

# S3 and the CDN in front of it.
S3_ENDPOINT = env.get("S3_ENDPOINT", "")
S3_REGION = env.get("S3_REGION", "us-east-1")
S3_ACCESS_KEY = env.get("S3_ACCESS_KEY", "")
S3_SECRET_KEY = env.get("S3_SECRET_KEY", "")
S3_UPLOADS_BUCKET = env.get("S3_UPLOADS_BUCKET", "uploads")
S3_PHOTOS_BUCKET = env.get("S3_PHOTOS_BUCKET", "photos")
CDN_URL = env.get("CDN_URL", "http://127.0.0.1:8001/photos")
SITE_URL = env.get("SITE_URL", "http://127.0.0.1:8000")

# Sessions of the pages, in Redis: every app server can answer. (The API's own cache is shardmap/cache.py.)
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        # Django's backend knows no Redis Cluster: where the feeds are on one, this is a server by itself.
        "LOCATION": [env.get("REDIS_SESSIONS_URL", REDIS_FEEDS_URL)],
        "KEY_FUNCTION": "accounts.web.session_cache_key",
        "OPTIONS": {
            "serializer": "django.core.signing.JSONSerializer",  # not pickle, which can run code
            "pool_class": "shardmap.redis_client.SessionPool",  # finds the master, and gives up in time, as all else
        },
    }
}
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SITE_URL.startswith("https:")
CSRF_COOKIE_HTTPONLY = True
# The app sees http where TLS ends at the load balancer; forms come from here all the same.
CSRF_TRUSTED_ORIGINS = [SITE_URL]
CSRF_FAILURE_VIEW = "accounts.web.forged_form"
LOGIN_URL = "/accounts/login/"

# What opens our users' accounts at other services is encrypted with the first of these keys; the others still decrypt.
CREDENTIALS_KEYS = [key for key in env.get("CREDENTIALS_KEYS", "").split(",") if key]

# Accounts.
AUTH_USER_MODEL = "accounts.User"
# Memory-hard, in the standard library; 0.27 s of a core each (measured). The test stack signs up thousands of users.
PASSWORD_HASHERS = [env.get("PASSWORD_HASHER", "django.contrib.auth.hashers.ScryptPasswordHasher")]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator",
        "OPTIONS": {"user_attributes": ("username", "full_name", "email")},
    },
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
OAUTH2_PROVIDER = {
    "OAUTH2_VALIDATOR_CLASS": "accounts.oauth.Validator",
    "SCOPES": {
        "basic": "See your profile, photos and whom you follow",
        "comments": "Write and delete comments for you",
        "relationships": "Follow and unfollow for you",
        "likes": "Like and unlike for you",
        "publish": "Publish and delete photos for you",
    },
    "DEFAULT_SCOPES": ["basic"],
    "CLIENT_SECRET_GENERATOR_LENGTH": 40,  # letters and digits: 238 bits, and still readable
    # Instagram's tokens did not expire; ours end by revocation. Ten years, since the column wants a date.
    "ACCESS_TOKEN_EXPIRE_SECONDS": 10 * 365 * 24 * 3600,
}

# Addresses of ours that a client's callback may have all the same: "127.0.0.1/32 …". None in production.
CALLBACK_NETWORKS = [ip_network(network) for network in env.get("CALLBACK_NETWORKS", "").split()]

# Push. The service that workers hand notifications to; and, for that service alone, Apple's servers and our key there.
PYAPNS_URL = env.get("PYAPNS_URL", "http://127.0.0.1:7077/")
APNS_URLS = {
    "production": env.get("APNS_PRODUCTION_URL", "https://api.push.apple.com"),
    "sandbox": env.get("APNS_SANDBOX_URL", "https://api.sandbox.push.apple.com"),
}
APNS_CA_FILE = env.get("APNS_CA_FILE", "")  # whose certificates to trust there; else those of the web
APNS_TOPIC = env.get("APNS_TOPIC", "com.instagram.app")  # the app's bundle ID
APNS_KEY_FILE = env.get("APNS_KEY_FILE", "")
APNS_KEY_ID = env.get("APNS_KEY_ID", "")
APNS_TEAM_ID = env.get("APNS_TEAM_ID", "")

# Sharing. Our keys at other services, each of which is offered where there is a key, and where they are.
TWITTER_KEY = env.get("TWITTER_KEY", "")
TWITTER_SECRET = env.get("TWITTER_SECRET", "")
TWITTER_URL = env.get("TWITTER_URL", "https://api.twitter.com")
FACEBOOK_ID = env.get("FACEBOOK_ID", "")
FACEBOOK_SECRET = env.get("FACEBOOK_SECRET", "")
FACEBOOK_URL = env.get("FACEBOOK_URL", "https://graph.facebook.com")
FACEBOOK_LOGIN_URL = env.get("FACEBOOK_LOGIN_URL", "https://www.facebook.com")

# How often in an hour (instagram/api/limits.py); "name=number …" in the environment overrides.
RATE_LIMITS = {
    "requests": 5000,  # of an access token, or of a client without one
    # Those of a token's requests that write with the scope of this name; about twice what Instagram allowed.
    "comments": 120,
    "likes": 200,
    "relationships": 120,
    # Of a token's requests that try the user's password.
    "passwords": 30,
    # Of a token's requests, or a user's in the pages, that link an account at another service: each asks that one.
    "links": 100,
    # Of an IP address, which may be that of a school, or of a carrier with a city behind it.
    "sign_ups": 100,
    "subscriptions": 100,
    "logins": 500,
    "logins_of_user": 30,  # attempts to log in with one username
} | {name: int(most) for name, most in (pair.split("=") for pair in env.get("RATE_LIMITS", "").split())}

# Where processes count what they do, for Munin (shardmap/metrics.py): best in memory, so that no disk holds up a
# request. "" is nowhere.
METRICS_DIR = env.get("METRICS_DIR", "")

# Where errors are sent; "" is nowhere. Which part of them, 1 being all; and of which installation they are.
SENTRY_DSN = env.get("SENTRY_DSN", "")
SENTRY_SAMPLE_RATE = float(env.get("SENTRY_SAMPLE_RATE", "1"))
SENTRY_ENVIRONMENT = env.get("SENTRY_ENVIRONMENT", "production")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "workers.request_id.Filter"}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["request_id"], "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # pygearman and boto3 tell their inner life at INFO; Django, each refused request as a warning.
        "gearman": {"level": "WARNING"},
        "botocore": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
    },
}

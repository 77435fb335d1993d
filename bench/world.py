"""People with photos, follows, likes and comments in any number, made in SQL; the same ones for what is compared.

User 1 … n follows those who come OFFSETS after, in a circle; so each has as many followers. Each has PHOTOS photos,
which those OFFSETS before like and those 1 … COMMENTS before comment on. All of it follows from the user's number, so
that each shard can make its part without asking another.
"""

import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
from django.conf import settings
from django.db import connection, transaction
from oauth2_provider.models import AccessToken, Application

from accounts.tokens import PHONE
from shardmap.ids import EPOCH_MS, SEQUENCE_BITS, SHARD_BITS
from shardmap.shards import placement, schema_name

FOLLOWS, PHOTOS, LIKES, COMMENTS = 30, 5, 6, 2
# Of all remainders, so that whom one follows is in many shards.
OFFSETS = [1 + j * (j + 1) // 2 for j in range(1, FOLLOWS + 1)]
FEWEST = OFFSETS[-1] + 1
VIEWERS = 500

USERS = """
    SET LOCAL statement_timeout = 0;
    INSERT INTO accounts_user (id, username, email, password, full_name, bio, website, profile_picture, created_at)
    SELECT u, 'user' || u, u || '@example.com', '!', 'User number ' || u, '', '', '', now()
    FROM generate_series(1, {n}) u;
    ANALYZE accounts_user
"""
# For a connection that makes a world: its foreign keys would be checked row by row, which takes minutes.
UNCHECKED = "-c session_replication_role=replica"
# Of one shard. {mine} are its users; {photo} is the ID of photo k of user u, in the order in which they were published.
SHARD = """
    INSERT INTO {schema}.accounts_follow (follower_id, followee_id, status, version)
    SELECT u, (u - 1 + o) % {n} + 1, 2, 1 FROM {mine}, unnest({follows}) o;
    INSERT INTO {schema}.accounts_follower (followee_id, follower_id, status, version)
    SELECT u, (u - 1 - o + {n}) % {n} + 1, 2, 1 FROM {mine}, unnest({follows}) o;
    INSERT INTO {schema}.accounts_counts (user_id, media, follows, followed_by)
    SELECT u, {photos}, cardinality({follows}), cardinality({follows}) FROM {mine};
    INSERT INTO {schema}.photos_photo
        (id, owner_id, upload_id, status, decodes, message, caption, filter, likes, comments)
    SELECT {photo}, u, md5(u || ':' || k), 'ready', 1, '', 'Photo ' || k || ' of user ' || u || ' #bench', 'Amaro',
        cardinality({likers}), {comments}
    FROM {mine}, generate_series(1, {photos}) k;
    INSERT INTO {schema}.photos_like (photo_id, user_id)
    SELECT {photo}, (u - 1 - o + {n}) % {n} + 1 FROM {mine}, generate_series(1, {photos}) k, unnest({likers}) o;
    INSERT INTO {schema}.photos_liked (user_id, photo_id, owner_id)
    SELECT liker, {photo}, u
    FROM (SELECT u AS liker, (u - 1 + o) % {n} + 1 AS u FROM {mine}, unnest({likers}) o) AS liked,
        generate_series(1, {photos}) k;
    INSERT INTO {schema}.photos_comment (photo_id, user_id, text)
    SELECT {photo}, (u - 1 - o + {n}) % {n} + 1, 'How nice, says ' || o
    FROM {mine}, generate_series(1, {photos}) k, generate_series(1, {comments}) o;
    ANALYZE {schema}.accounts_follow, {schema}.accounts_follower, {schema}.photos_photo, {schema}.photos_like,
        {schema}.photos_liked, {schema}.photos_comment;
"""

# The same in the tables of bench/sql_join.
ONE_DATABASE = """
    INSERT INTO auth_user (id, username, password, is_superuser, first_name, last_name, email, is_staff, is_active,
        date_joined)
    SELECT u, 'user' || u, '!', false, '', '', u || '@example.com', false, true, now() FROM generate_series(1, {n}) u;
    INSERT INTO sql_join_profile (user_id, full_name, picture, is_private)
    SELECT u, 'User number ' || u, '', false FROM generate_series(1, {n}) u;
    INSERT INTO authtoken_token (key, user_id, created)
    SELECT 'bench' || u, u, now() FROM unnest(ARRAY{viewers}) u;
    INSERT INTO sql_join_follow (follower_id, followee_id)
    SELECT u, (u - 1 + o) % {n} + 1 FROM generate_series(1, {n}) u, unnest({follows}) o;
    INSERT INTO sql_join_photo (id, owner_id, upload_id, caption, filter, created_at)
    SELECT k * {n}::bigint + u, u, md5(u || ':' || k), 'Photo ' || k || ' of user ' || u || ' #bench', 'Amaro',
        now() + (k * {n}::bigint + u) * interval '1 ms'
    FROM generate_series(1, {photos}) k, generate_series(1, {n}) u;
    INSERT INTO sql_join_like (photo_id, user_id)
    SELECT id, (owner_id - 1 - o + {n}) % {n} + 1 FROM sql_join_photo, unnest({likers}) o;
    INSERT INTO sql_join_comment (photo_id, user_id, text, created_at)
    SELECT id, (owner_id - 1 - o + {n}) % {n} + 1, 'How nice, says ' || o, now()
    FROM sql_join_photo, generate_series(1, {comments}) o;
    ANALYZE;
"""


def make(n: int) -> dict[int, str]:
    """Makes n people on an empty installation; returns the access tokens of some, by their user IDs."""
    if n < FEWEST:
        raise ValueError(f"a world of {n} people is too small: {FEWEST} are the least")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(USERS.format(n=n))
    began = int(time.time() * 1000) - EPOCH_MS - (PHOTOS + 1) * n
    schemas: dict[str, list[str]] = {}
    for shard, alias in placement().items():
        first = shard or settings.LOGICAL_SHARDS
        sql = SHARD.format(
            schema=schema_name(shard),
            mine=f"generate_series({first}::bigint, {n}, {settings.LOGICAL_SHARDS}) u",
            photo=f"(({began} + k * {n}::bigint + u) << {SHARD_BITS + SEQUENCE_BITS}"
            f" | (u % {settings.LOGICAL_SHARDS}) << {SEQUENCE_BITS})",
            **_numbers(n),
        )
        schemas.setdefault(alias, []).append(sql)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(_run, settings.SHARD_ADMINS[alias], *sql) for alias, sql in schemas.items()]:
            done.result()
    return _tokens(n)


def in_one_database(n: int, viewers: list[int]) -> str:
    """The SQL that makes the same people in one database, with tokens of the same names."""
    return ONE_DATABASE.format(viewers=viewers, **_numbers(n))


def _numbers(n: int) -> dict[str, object]:
    follows, likers = f"ARRAY{OFFSETS}", f"ARRAY{OFFSETS[:LIKES]}"
    return {"n": n, "follows": follows, "likers": likers, "photos": PHOTOS, "comments": COMMENTS}


def _run(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url, options=UNCHECKED)) as connection, connection, connection.cursor() as cursor:
        for sql in statements:
            cursor.execute(sql)


def _tokens(n: int) -> dict[int, str]:
    phone = Application.objects.get(client_id=PHONE)
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    tokens = {user_id: f"bench{user_id}" for user_id in range(1, n + 1, max(1, n // VIEWERS))}
    AccessToken.objects.bulk_create(
        AccessToken(user_id=user_id, application=phone, token=token, scope="basic likes", expires=expires)
        for user_id, token in tokens.items()
    )
    return tokens

import datetime
import threading

import pytest
from django.conf import settings
from django.db import connections

from photos.models import Photo
from shardmap.ids import EPOCH_MS, first_id_at, shard_of_id, time_of_id
from shardmap.shards import OutsideShard, database_of, on_logical_shard, on_shard, schema_name

SESSIONS, ROWS, BATCH = 2, 100_000, 5_000


def next_ids(shard: int, count: int) -> list[int]:
    with connections[database_of(shard)].cursor() as cursor:
        cursor.execute(f"SELECT {schema_name(shard)}.next_id() FROM generate_series(1, %s)", [count])
        return [row[0] for row in cursor.fetchall()]


def test_two_sessions_insert_100_000_photos_each_at_once_and_no_id_comes_twice():
    shard = 3
    owner = shard  # user 3 lives in shard 3
    start = threading.Barrier(SESSIONS)
    errors = []

    def insert(session: int) -> None:
        try:
            start.wait(10)
            with on_logical_shard(shard), connections[database_of(shard)].cursor() as cursor:
                for batch in range(0, ROWS, BATCH):  # the role's statement_timeout is 5 s
                    cursor.execute(
                        """INSERT INTO "logical"."photos_photo"
                           (owner_id, upload_id, status, decodes, message, caption, filter)
                           SELECT %s, %s || n, 'processing', 0, '', '', '' FROM generate_series(%s::int, %s::int) n""",
                        [owner, f"ids{session}-", batch, batch + BATCH - 1],
                    )
        except Exception as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=insert, args=[session]) for session in range(SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    with on_shard(owner), connections[database_of(shard)].cursor() as cursor:
        inserted = Photo.objects.filter(owner_id=owner, upload_id__startswith="ids")
        # The primary key would have refused a repeated ID; so all rows being there is the proof.
        assert inserted.count() == SESSIONS * ROWS
        assert {shard_of_id(photo_id) for photo_id in inserted.values_list("id", flat=True)} == {shard}
        for begin in [f"ids{session}-{digit}" for session in range(SESSIONS) for digit in range(10)]:
            cursor.execute("""DELETE FROM "logical"."photos_photo" WHERE upload_id LIKE %s""", [f"{begin}%"])


def test_an_id_tells_its_shard_and_when_it_was_made():
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(milliseconds=1)
    for shard in range(settings.LOGICAL_SHARDS):
        (made,) = next_ids(shard, 1)
        after = datetime.datetime.now(datetime.UTC)
        assert shard_of_id(made) == shard
        assert before <= time_of_id(made) <= after + datetime.timedelta(seconds=1)


def test_ids_only_rise_even_in_one_statement():
    made = next_ids(5, 50_000)
    assert made == sorted(set(made))


def test_first_id_at_is_a_bound_for_times():
    (made,) = next_ids(1, 1)
    second = int(time_of_id(made).timestamp())
    assert first_id_at(second) <= made < first_id_at(second + 1)
    assert first_id_at(EPOCH_MS / 1000 - 1) == 0


def test_a_sharded_table_outside_a_shard_is_an_error_that_says_so():
    with pytest.raises(OutsideShard, match="on_shard"):
        Photo.objects.count()

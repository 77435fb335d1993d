"""The function that makes IDs, in each logical shard. 0004 makes it anew."""

from django.db import migrations

NEXT_ID_SQL = """
CREATE SEQUENCE "logical".id_clock AS bigint MINVALUE 0 START 0;
CREATE FUNCTION "logical".next_id() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    shard constant bigint := ltrim(trim('"logical"', '"'), 'shard')::bigint;
    lock_class constant int := 1751213924;  -- any number of our own: advisory locks are shared by all of a database
    now_tick bigint := (floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - 1314220021721) << 10;
    tick bigint := nextval('"logical".id_clock');
BEGIN
    IF tick < now_tick THEN
        BEGIN
            PERFORM pg_advisory_lock(lock_class, shard::int);
            tick := nextval('"logical".id_clock');
            IF tick < now_tick THEN
                tick := setval('"logical".id_clock', greatest(now_tick, tick + 1024));
            END IF;
            PERFORM pg_advisory_unlock(lock_class, shard::int);
        EXCEPTION WHEN query_canceled OR OTHERS THEN
            PERFORM pg_advisory_unlock(lock_class, shard::int);
            RAISE;
        END;
    END IF;
    RETURN ((tick >> 10) << 23)
           | (shard << 10) | (tick & 1023);
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("shardmap", "0001_initial")]

    operations = [migrations.RunSQL(NEXT_ID_SQL, hints={"sharded": True})]

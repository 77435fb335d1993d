"""newest_photos(), once on each physical database: a feed's rebuild in one statement, however many the shards.

It asks one shard after the other. As soon as it has found enough photos, it asks the rest only for newer ones, so that
little is read there. A UNION ALL over a thousand schemas would be planned as a whole, and knows no such bound.
"""

from django.db import migrations

NEWEST_PHOTOS_SQL = """
CREATE FUNCTION public.newest_photos(schemas text[], owners text[], below bigint, wanted int)
RETURNS TABLE (photo bigint, owner bigint) LANGUAGE plpgsql STABLE AS $$
DECLARE
    newest bigint[] := '{}';
    above bigint := 0;
BEGIN
    FOR i IN 1 .. cardinality(schemas) LOOP
        FOR photo, owner IN EXECUTE format(
            -- The inner LIMIT makes it a short walk down the index for each owner, however many photos there are.
            'SELECT newest.id, owner.id FROM unnest($1) AS owner (id), LATERAL (
                SELECT id FROM %I.photos_photo AS photo
                WHERE photo.owner_id = owner.id AND photo.status = ''ready'' AND photo.id < $2 AND photo.id > $3
                ORDER BY photo.id DESC LIMIT $4
            ) AS newest ORDER BY newest.id DESC LIMIT $4',
            schemas[i]
        ) USING owners[i]::bigint[], below, above, wanted
        LOOP
            newest := newest || photo;
            RETURN NEXT;
        END LOOP;
        IF cardinality(newest) >= 2 * wanted THEN
            newest := ARRAY(SELECT id FROM unnest(newest) AS id ORDER BY id DESC LIMIT wanted);
            above := newest[wanted];
        END IF;
    END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("photos", "0008_tag_names")]

    operations = [
        migrations.RunSQL(
            NEWEST_PHOTOS_SQL,
            "DROP FUNCTION public.newest_photos(text[], text[], bigint, int)",
            hints={"physical": True},
        )
    ]

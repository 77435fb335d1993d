"""What a deploy's migrations may do to the code that runs meanwhile (shardmap/safety.py)."""

import pytest
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

from shardmap.safety import unsafe

TEXT = models.TextField


def migration(*operations, app="photos", **attributes):
    made = type("Migration", (migrations.Migration,), {"operations": list(operations), **attributes})
    return made("0001_try", app)


@pytest.mark.parametrize(
    "operation",
    [
        migrations.CreateModel("Filter", [("name", TEXT(primary_key=True))]),
        migrations.AddField("photo", "filter", TEXT(null=True)),
        migrations.AddField("photo", "filter", TEXT(db_default="")),
        migrations.AddIndex("photo", models.Index(fields=["filter"], name="by_filter")),
        migrations.RemoveIndex("photo", "by_filter"),
        migrations.SeparateDatabaseAndState([], [migrations.RemoveField("photo", "filter")]),
    ],
)
def test_what_the_running_code_does_not_notice_may_pass(operation):
    assert unsafe(migration(operation)) == []


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("photo", "filter", TEXT(default="")),  # Django's default is not the column's
        migrations.RemoveField("photo", "filter"),
        migrations.RenameField("photo", "filter", "look"),
        migrations.AlterField("photo", "filter", TEXT(db_default="")),
        migrations.DeleteModel("Filter"),
        migrations.AddConstraint("photo", models.UniqueConstraint(fields=["filter"], name="one_each")),
        migrations.RemoveConstraint("photo", "one_each"),  # ON CONFLICT (…) of the old code wants it
        migrations.RunSQL("DROP TABLE photos_photo"),
        migrations.RunPython(migrations.RunPython.noop),
        migrations.SeparateDatabaseAndState([migrations.RemoveField("photo", "filter")], []),
    ],
)
def test_what_may_break_the_running_code_is_named(operation):
    (sentence,) = unsafe(migration(operation))
    assert sentence.startswith("photos.0001_try: ")


def test_an_index_of_a_table_that_is_not_sharded_is_made_while_people_write_to_it():
    index = models.Index(fields=["joined_at"], name="by_time")
    person, new = migrations.CreateModel("Person", [("name", TEXT(primary_key=True))]), "person"
    assert unsafe(migration(migrations.AddIndex("user", index), app="accounts"))
    assert unsafe(migration(AddIndexConcurrently("user", index), app="accounts")) == []
    assert unsafe(migration(person, migrations.AddIndex(new, index), app="accounts")) == []


def test_a_migration_that_says_why_it_is_safe_may_pass():
    assert unsafe(migration(migrations.RemoveField("photo", "filter"), safe_because="unused since May")) == []

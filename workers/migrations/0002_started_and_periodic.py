"""Since when a job runs; and when periodic jobs were enqueued last."""

from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("workers", "0001_initial")]

    operations = [
        migrations.AddField("outboxjob", "started_at", models.DateTimeField(null=True)),
        migrations.CreateModel(
            "PeriodicJob",
            [
                ("job", models.CharField(max_length=100, primary_key=True, serialize=False)),
                ("enqueued_at", models.DateTimeField(db_default=Now())),
            ],
            {"db_table": "workers_periodic"},
        ),
    ]

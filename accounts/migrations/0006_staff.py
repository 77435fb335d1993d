"""Who may see the admin."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0005_deleted_users")]

    operations = [migrations.AddField("user", "is_staff", models.BooleanField(db_default=False))]

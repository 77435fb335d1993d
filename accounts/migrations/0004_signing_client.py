"""Clients whose requests have to be signed."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_private_accounts"), ("oauth2_provider", "0022_refreshtoken_token_family_index")]

    operations = [
        migrations.CreateModel(
            name="SigningClient",
            fields=[
                (
                    "client",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="signing",
                        serialize=False,
                        to="oauth2_provider.application",
                    ),
                ),
            ],
        ),
    ]

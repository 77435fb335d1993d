"""The first-party client `phone`, which exists in every installation."""

from django.db import migrations


def create_phone(apps, schema_editor):
    Application = apps.get_model("oauth2_provider", "Application")
    Application.objects.get_or_create(
        client_id="phone",
        defaults={
            "name": "Instagram for phones",
            "client_type": "public",  # an app cannot keep a secret
            "authorization_grant_type": "password",
            "client_secret": "",
            "skip_authorization": True,
        },
    )


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial"), ("oauth2_provider", "0022_refreshtoken_token_family_index")]

    operations = [migrations.RunPython(create_phone, migrations.RunPython.noop)]

"""Makes somebody staff, who then can log in at /admin/; or takes that back."""

from django.core.management.base import BaseCommand, CommandError

from accounts.models import User


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("username")
        parser.add_argument("--remove", action="store_true")

    def handle(self, *args, username: str, remove: bool, **options) -> None:
        found = User.objects.filter(username=username.lower(), is_active=True)
        if not found.update(is_staff=not remove):
            raise CommandError(f"there is no user {username!r}")

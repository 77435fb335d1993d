"""Django's admin, for staff (`manage.py staff NAME`): what the outboxes hold, and a button for what was parked.

Its middleware is put around its own views, as for all pages (accounts/web.py): the API goes on without. One logs in
where everybody does, with that page's limits.
"""

from pathlib import Path

from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.contrib.messages.middleware import MessageMiddleware
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone

from accounts.web import View, as_page, error_page
from workers import outbox
from workers.models import OutboxJob
from workers.status import PARKED, STATES, databases, name_of

STATIC = Path(admin.__file__).parent / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'"
)


class Site(admin.AdminSite):
    enable_nav_sidebar = False

    def has_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated and request.user.is_active and request.user.is_staff

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        checked = super().admin_view(view, cacheable)

        def answer(request: HttpRequest, **path_params: str) -> HttpResponse:
            response = checked(request, **path_params)
            response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
            return response

        return as_page(answer, MessageMiddleware)

    def login(self, request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
        return as_page(_log_in)(request)

    def password_change(self, request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
        raise Http404  # the API's also revokes tokens


def _log_in(request: HttpRequest) -> HttpResponse:
    if request.user.is_authenticated:
        return error_page(request, 403, "This is for staff", "You are logged in, but are not staff.")
    return redirect_to_login(request.GET.get("next", "/admin/"))


class DatabaseFilter(admin.SimpleListFilter):
    """Which outbox; there is no list of all of them, since their IDs are each database's own."""

    title = parameter_name = "database"

    def lookups(self, request, model_admin) -> list[tuple[str, str]]:
        return [(database, database) for database in databases()]

    def queryset(self, request, queryset) -> None:
        """`JobAdmin.get_queryset` has chosen it already."""

    def choices(self, changelist):
        for database in databases():
            yield {
                "selected": database == changelist.queryset.db,
                "query_string": changelist.get_query_string({self.parameter_name: database}),
                "display": database,
            }


class StateFilter(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request, model_admin) -> list[tuple[str, str]]:
        return [(state, state) for state in STATES]

    def queryset(self, request, queryset) -> QuerySet | None:
        return queryset.filter(STATES[self.value()]) if self.value() in STATES else None


class JobAdmin(admin.ModelAdmin):
    """A list to look at, oldest first; nothing is added, changed or deleted here."""

    list_display = ("name", "job", "args", "state", "attempts", "created_at", "error")
    list_display_links = None
    list_filter = (DatabaseFilter, StateFilter, "job")
    show_facets = admin.ShowFacets.ALWAYS  # the counts
    ordering = ("created_at",)
    actions = ("replay",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxJob]:
        database = request.GET.get("database")
        return super().get_queryset(request).using(database if database in databases() else "default")

    @admin.display(description="ID")
    def name(self, row: OutboxJob) -> str:
        return name_of(row)

    def state(self, row: OutboxJob) -> str:
        if row.parked_at:
            return "parked"
        return "running" if row.started_at and row.held_until > timezone.now() else "waiting"

    def error(self, row: OutboxJob) -> str:
        return row.last_error.strip().rpartition("\n")[2]

    @admin.action(description="Replay: let parked jobs try again")
    def replay(self, request: HttpRequest, queryset: QuerySet[OutboxJob]) -> None:
        rows = list(queryset.filter(PARKED))
        for row in rows:
            outbox.replay(row)
        self.message_user(request, f"{len(rows)} will be tried again")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True  # whoever is here is staff

    def has_view_permission(self, request: HttpRequest, obj: OutboxJob | None = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutboxJob | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: OutboxJob | None = None) -> bool:
        return False


site = Site()
site.register(OutboxJob, JobAdmin)

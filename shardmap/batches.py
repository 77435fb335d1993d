"""Deleting what may be much."""

from django.db.models import QuerySet

ROWS_A_STATEMENT = 1000


def delete_all(rows: QuerySet) -> None:
    """Deletes rows some at a time: a statement may take 5 s, and a famous photo has a million likes."""
    while pks := list(rows.values_list("pk", flat=True)[:ROWS_A_STATEMENT]):
        rows.model.objects.filter(pk__in=pks).delete()

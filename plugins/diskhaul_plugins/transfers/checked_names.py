"""Names that come from outside, as stores check them before they look for anything under them."""

from __future__ import annotations

from diskhaul.errors import StorageError
from diskhaul.formats.export_id import is_export_id
from diskhaul.names import name_problem, printable


def check_export_id(export_id: str) -> None:
    """Raise `StorageError` unless it is an export's id."""
    if not is_export_id(export_id):
        raise StorageError(f"{printable(export_id)} is not an export id", path=printable(export_id))


def check_instance_name(instance: str) -> None:
    """Raise `StorageError` unless it can be an instance's name."""
    problem = name_problem("instance", instance)
    if problem:
        raise StorageError(problem, path=printable(instance))

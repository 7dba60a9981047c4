"""Where export options come from: what a call gives, then the cluster's ``[defaults]``, then `ExportOptions` itself."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .errors import ConfigurationError
from .model import Cluster
from .options import ExportOptions


def export_options(cluster: Cluster, **given: Any) -> ExportOptions:
    """Return the options of an export: `given` over ``cluster.defaults`` over the defaults of `ExportOptions`.

    A given value of None means "not given". A default that only has a meaning with a shutdown is dropped when the call asks for
    none. Otherwise values are taken as they are; whether they make sense together is for the operation to say.

    Raises:
        ConfigurationError: ``cluster.defaults`` names an option that does not exist.
        TypeError: `given` does.
    """
    known = {option.name for option in fields(ExportOptions)}
    unknown = sorted(set(cluster.defaults) - known)
    if unknown:
        raise ConfigurationError(
            f"defaults.{name}: there is no such option; there is {', '.join(sorted(known))}" for name in unknown
        )
    asked = {name: value for name, value in given.items() if value is not None}
    defaults = dict(cluster.defaults)
    if asked.get("shutdown") is False:
        defaults.pop("long_sleep", None)
    return ExportOptions(**(defaults | asked))

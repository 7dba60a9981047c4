"""Where options come from: what a call gives, then the profile, then the cluster's ``[defaults]``, then the built-in ones."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .errors import ConfigurationError
from .model import Cluster
from .options import ExportOptions, ImportOptions, PathOptions
from .records import Profile


def with_profile(cluster: Cluster, profile: Profile) -> Cluster:
    """Return `cluster` with the values of `profile` over its ``[defaults]`` and ``[backend_options]``."""
    backends = {name: dict(options) for name, options in cluster.backend_options.items()}
    for name, options in profile.backend_options.items():
        backends[name] = {**backends.get(name, {}), **options}
    return replace(cluster, defaults={**cluster.defaults, **profile.export}, backend_options=backends)


def export_options(cluster: Cluster, *, profile: Profile | None = None, **given: Any) -> ExportOptions:
    """Return the options of an export: `given` over `profile` over ``cluster.defaults`` over those of `ExportOptions`.

    A given value of None means "not given". A default that only has a meaning with a shutdown, or without compression, is
    dropped when the call asks for the opposite. Otherwise values are taken as they are; whether they make sense together is for
    the operation to say. Options of backends in the profile are no options of the export: `with_profile` has a cluster with them.

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
    if profile is not None:
        defaults |= profile.export
    if asked.get("shutdown") is False:
        defaults.pop("long_sleep", None)
    if asked.get("compress", "none") != "none":
        defaults.pop("digest", None)
    return ExportOptions(**(defaults | asked))


def move_options(cluster: Cluster, *, profile: Profile | None = None, **given: Any) -> ExportOptions:
    """`export_options` of an export that moves its instance: what a move decides itself is not taken from the defaults."""
    decided = {"shutdown": True, "long_sleep": False, "layout": "diskhaul", "digest": "now"}
    return export_options(cluster, profile=profile, **{**decided, **given})


def import_options(*, profile: Profile | None = None, **given: Any) -> ImportOptions:
    """Return the options of an import: `given` over the path options of `profile` over those of `ImportOptions`.

    A given value of None means "not given".

    Raises:
        TypeError: `given` names an option that does not exist.
    """
    paths = {option.name for option in fields(PathOptions)}
    tuned: dict[str, Any] = {}
    if profile is not None:
        tuned = {name: value for name, value in profile.export.items() if name in paths}
    return ImportOptions(**(tuned | {name: value for name, value in given.items() if value is not None}))

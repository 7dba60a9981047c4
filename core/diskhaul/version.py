"""The version: the one place that says it. The package's metadata, ``--version`` and manifests take it from here."""

__version__ = "0.1.0"

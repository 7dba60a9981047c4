"""The build backend: setuptools, told about the cffi module.

`cffi_modules` is only a keyword of setup(); pyproject.toml has no place for it, and a setup.py would have nothing else
to say. This is the extension of setuptools.build_meta that its documentation describes.
"""

from __future__ import annotations

import setuptools
from setuptools import build_meta

CFFI_MODULES = ["native/ffi_build.py:ffibuilder"]


def run_setup() -> None:
    """Run setup() in the project's directory, for the command in sys.argv."""
    setuptools.setup(cffi_modules=CFFI_MODULES)


class _Backend(build_meta._BuildMetaBackend):
    # The class has no public name; the documentation derives from it too.

    def run_setup(self, setup_script: str = "setup.py") -> None:
        """Called by every hook once it has put its command into sys.argv."""
        run_setup()


_backend = _Backend()

build_sdist = _backend.build_sdist
build_wheel = _backend.build_wheel
build_editable = _backend.build_editable
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable

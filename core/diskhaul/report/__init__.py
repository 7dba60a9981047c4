"""Reports for people: one HTML or SVG file each, with everything in it.

- `page`: the page of a tuning run
- `figures`: what its tables and plots show
- `plots`: the plots; needs matplotlib
- `disk_picture`: what lies where on a disk
"""

from __future__ import annotations

from .page import write_tune_report as write_tune_report

"""Reports for people: one HTML file each, with everything in it.

- `page`: the page of a tuning run
- `figures`: what its tables and plots show
- `plots`: the plots; needs matplotlib
"""

from __future__ import annotations

from .page import write_tune_report as write_tune_report

"""diskhaul beside the programs that people use for the same work; `benches/compare.py` is the command.

- `command_line`: arguments, and the order of events.
- `disk`: makes the disk that all of them work on, and the disks that are made from it.
- `contestants`: who takes part, with which commands.
- `running`, `page_cache`: one measured run; what is in the page cache before it.
- `results`: what was measured, ratios and rows; no input or output there.
- `checking`: whether a result holds the disk's bytes.
- `machine`, `report`: what it was measured on; tables, JSON and the chart.
"""

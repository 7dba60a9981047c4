"""The parts of a tuning run.

- `request`: what is asked for, and whether it makes sense
- `space`: which settings there are to try
- `sample`: which part of the source every trial reads, and the disk that shows it
- `trial`: one export of the sample, timed
- `objective`: what is better
- `search`: which settings to try next: a grid here, `optuna_search` where optuna is installed
- `trial_log`: what has been measured, kept for ``--resume``
- `comparison`: the settings found against the defaults, again, in turn
- `run`: all of it in order, within the time
"""

"""The command line and all wiring; takes no decisions.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 a
request that cannot be, 130 stopped by the user. Modules that only some commands need are imported
where they are used: `--help` and a warm `pull` must answer before anyone notices.

One module for each group of commands; `app` has what they share, `entry` runs them.
"""

from modelcache.main.entry import main

__all__ = ["main"]

"""`python -m modelcache.main`."""

from modelcache.main.entry import main

main()

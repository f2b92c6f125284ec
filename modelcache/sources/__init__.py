"""One module for each origin protocol; `source` says what they all do."""

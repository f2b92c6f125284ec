"""Use cases over one store: pull, verify, evict."""

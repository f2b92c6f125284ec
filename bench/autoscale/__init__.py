"""How autoscalers fare with a server whose replicas take minutes to start, in virtual time."""

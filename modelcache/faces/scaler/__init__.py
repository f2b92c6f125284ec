"""What autoscalers and schedulers ask: how many replicas, where they start warm, how soon.

Every replica of this process watches and answers for itself; only statuses are written by one.
"""

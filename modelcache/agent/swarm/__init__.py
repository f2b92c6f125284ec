"""A node among others: who is there, what each has, and what they may have of ours."""

from modelcache.agent.swarm.swarm import Swarm

__all__ = ["Swarm"]

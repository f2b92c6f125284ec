"""The agent's API as a client sees it: for the command line, the CSI driver, and programs.

It knows how to ask and what the answers mean, and raises the errors of `modelcache.errors` as if
the work were done here. It must not know the engine, the store, or any setting.
"""

from modelcache.client.agent import AgentClient, AgentStatus
from modelcache.client.answers import AgentEvent, error_of
from modelcache.client.finding import find_agent

__all__ = ["AgentClient", "AgentEvent", "AgentStatus", "error_of", "find_agent"]

"""When models will be ready here and elsewhere: what is known for it, and how well it came true."""

from modelcache.agent.foresight.foresight import NEW_NODE, Foresight, Outlook
from modelcache.agent.foresight.records import Prediction
from modelcache.agent.foresight.survey import Around

__all__ = ["NEW_NODE", "Around", "Foresight", "Outlook", "Prediction"]

"""When models will be ready here and elsewhere: what is known for it, and how well it came true."""

from modelcache.agent.foresight.foresight import NEW_NODE, Around, Foresight, Outlook
from modelcache.agent.foresight.knowledge import Prediction

__all__ = ["NEW_NODE", "Around", "Foresight", "Outlook", "Prediction"]

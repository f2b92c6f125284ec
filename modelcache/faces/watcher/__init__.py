"""The agent's view of its cluster: pods bound to this node, and what is declared for it.

It turns objects into wants, and tells in events and `NodeModels` how far they are. It may not
change pods or nodes.
"""

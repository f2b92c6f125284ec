"""Other nodes: who they are, what they say to each other, and the server that gives them chunks."""

"""The node benchmark: how fast the node as it ships is on this machine, and what it loses."""

"""Where the list of nodes and instances comes from."""

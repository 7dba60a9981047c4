"""Where the functions of a node run."""

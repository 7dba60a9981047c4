"""Many exports at once: which instances, in what order, to which nodes, how many at a time, and what became of them."""

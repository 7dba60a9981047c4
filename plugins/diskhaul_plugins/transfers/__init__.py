"""Transfers: how an export reaches the node where it will lie."""

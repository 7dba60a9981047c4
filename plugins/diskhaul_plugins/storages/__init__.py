"""Storages: how a disk's bytes are reached."""

"""Snapshots: who can freeze a disk in time."""

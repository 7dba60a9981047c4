"""Lock services."""

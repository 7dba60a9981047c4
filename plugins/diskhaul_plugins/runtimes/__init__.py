"""What runs guests."""

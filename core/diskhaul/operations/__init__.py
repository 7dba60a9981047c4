"""What diskhaul can do: one class per operation, all living the same life (`base.Operation`)."""

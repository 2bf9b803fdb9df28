"""What llmd costs, measured against direct access to the same worker."""

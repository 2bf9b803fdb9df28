"""The HTTP API on TCP."""

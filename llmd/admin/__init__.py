"""The operators' side: the admin protocol over a Unix socket, its server and its clients."""

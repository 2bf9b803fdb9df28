"""llama-server processes: starting, watching, talking to and stopping them."""

"""What llmd says of itself: metrics, logs, service-manager notifications."""

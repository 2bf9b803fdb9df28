"""llmd: the control plane for one box that runs local language models."""

__version__ = "0.1.0"

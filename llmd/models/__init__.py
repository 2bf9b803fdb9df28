"""The models on this box: their files, names and metadata."""

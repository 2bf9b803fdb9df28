"""The operators' screen: what the models and requests of one box do, live."""

"""Take answers from anywhere, let teachers come and go, hand a cache to somebody else, and keep the proof through all of it."""
# Made from the modules by `make prepare`: do not edit

__all__ = []


"""Measurements of the library by itself: time and memory, one question a script."""

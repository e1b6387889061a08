"""Graph passes, one a file; pipeline.py is the list."""

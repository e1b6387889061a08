"""Receive: rows from the stage before."""

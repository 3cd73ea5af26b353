"""Reads and draws what runs left."""

"""Micrograph to coordinates: networks and their training, the dense scan, picks and what is made of them."""

"""Micrograph to coordinates: the room that is kept for particle picking; it holds no code yet."""

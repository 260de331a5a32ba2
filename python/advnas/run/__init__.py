"""Runs as people start them: their folders, how they are watched, how they go on."""

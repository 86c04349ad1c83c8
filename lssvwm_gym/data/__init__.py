"""Recorded episodes: one type, one layout on disk, readers for public sets, collecting."""

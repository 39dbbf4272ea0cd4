"""Whole commands, ours and the peers', on the same files and the same server: ``make bench``."""

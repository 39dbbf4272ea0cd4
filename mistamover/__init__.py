"""MiStaMover: mirror, stage and move files to other hosts, each proven there before its source goes."""

__version__ = "0.2.0"

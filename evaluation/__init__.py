"""What Step-Adaptive CFG does to videos, against controls: `python -m evaluation --help`."""

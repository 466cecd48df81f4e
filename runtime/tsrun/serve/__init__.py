"""`tsrun serve`: HTTP in front of an engine that has a process of its own. README.md has the files in reading order."""

"""The processes around the filesystem: command line, life cycle. Read README.md beside this package."""

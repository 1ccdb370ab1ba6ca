"""The versions, oldest first. A released one never changes; the next change is a new module."""

"""The storage service: names, chunks, identities. Read README.md beside this package first."""

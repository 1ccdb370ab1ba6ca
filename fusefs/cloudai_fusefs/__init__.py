"""The filesystem: kernel requests in, chunks and commits out. Read README.md beside this package first."""

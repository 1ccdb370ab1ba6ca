"""The filesystems that are compared, one module each."""

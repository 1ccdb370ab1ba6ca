"""The same work on this filesystem, on sshfs, on rclone and on local disk, in one run."""

"""What `cloudai doctor` looks at. Changes nothing, waits for nothing without a bound, and never sees a token.

In reading order: `findings` (a line and what to do about it), `machine`, `tree` (does it answer, and the kernel's
knobs), `daemon` (with its directories, its token and its master), `mounts` (which there are, each with the last two).
"""

"""The words both ends of the wire share: names, paths, chunk arithmetic, digests, limits, errors.

Relies on the standard library and blake3 only, and does no I/O.
"""

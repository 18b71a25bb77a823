"""Workdirs and inputs at addresses (gs://, s3://): requests, local copies, and the lock of a run.

A run works in a folder on local disk. `workdir` copies what it needs from the bucket at the start, and stores what
changes while the run continues. A checkpoint counts as stored when its marker is, which is stored last.
"""

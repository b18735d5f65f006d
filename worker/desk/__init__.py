"""The operators' desk: the commands that show what failed, say what a replay would do to the money, and do it."""

"""Reports print a Run; they never change it."""

"""Define networks that one algorithm alone uses."""

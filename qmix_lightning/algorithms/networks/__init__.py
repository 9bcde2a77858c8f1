"""Networks that one algorithm alone has."""

"""Store episodes and draw from them what an update learns from."""

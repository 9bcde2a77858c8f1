"""Episode stores and what an update draws from them."""

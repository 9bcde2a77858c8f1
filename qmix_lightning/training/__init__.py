"""Training in Lightning's terms: module, data module, callbacks, loggers."""

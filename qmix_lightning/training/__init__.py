"""Train with Lightning: module, data module, callbacks, loggers."""

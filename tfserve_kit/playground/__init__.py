"""A local page on which to try the models of a running server."""

"""Use cases on running servers: start, reload, prove a swap, promote, roll back, smoke-test."""

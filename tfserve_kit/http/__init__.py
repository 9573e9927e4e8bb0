"""HTTP/1.1 as bytes and connections: what clients and load generators share."""

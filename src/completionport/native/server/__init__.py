"""The cores of the servers: packets to callbacks."""

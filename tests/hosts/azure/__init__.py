"""A small Azure on loopback, and the tests of what talks to it."""

"""SpinQuant: the states of a decoder are rotated by what was learned to make rounding cost least."""

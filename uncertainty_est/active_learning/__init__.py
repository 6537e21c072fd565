"""Active learning: a method's own scores choose which inputs are labelled next."""

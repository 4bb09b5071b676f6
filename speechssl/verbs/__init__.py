"""One file a verb: a typed configuration in, the dict of its result out."""

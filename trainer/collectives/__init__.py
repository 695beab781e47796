"""How the ranks of a run agree: a few small collectives, over gloo or plain TCP."""

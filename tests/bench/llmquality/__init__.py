"""How good the decoder's answers are: the worlds they are asked in, and how they are judged."""

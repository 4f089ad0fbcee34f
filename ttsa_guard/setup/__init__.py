"""Set up a guard: what is to be written or amended, from a few answers. Nothing is asked here."""

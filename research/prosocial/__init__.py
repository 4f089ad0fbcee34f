"""The study of the steerer `prosocial`: how far safety and preference are traded."""

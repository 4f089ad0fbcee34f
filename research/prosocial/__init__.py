"""The study of the steerer `prosocial`: how safety and preference are traded off."""

"""Studies of what looks at images, on made features: no image-text encoder is needed."""

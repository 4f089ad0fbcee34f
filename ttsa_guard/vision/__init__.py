"""What looks at images: decoding, image-text encoders, masking of patches, adapters of classes."""

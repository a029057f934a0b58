"""A generated world of images, audio and text: the example that needs no download."""

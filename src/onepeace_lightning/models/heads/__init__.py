"""What turns features into answers."""

"""Running over many devices."""

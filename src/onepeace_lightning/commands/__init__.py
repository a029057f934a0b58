"""What ``onepeace convert``, ``embed`` and ``search`` do, as functions."""
